//! A cluster from outside: hand a test to its controller, follow the run, fetch the report, leave nothing behind.

use std::{io::Read as _, time::Duration};

use bytes::Bytes;
use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use steadfast_api::{
    report::Report,
    resource::{ReportAddress, ResilienceTestStatus, RunPhase},
    test::{ResilienceTest as Test, ResilienceTestSpec},
};
use tokio::{sync::watch, time::sleep};

use crate::{
    access::{Access, NoCluster},
    objects::Objects,
    reconcile::{
        resilience_test::{STOP_ANNOTATION, part, part_name},
        resource::{MANAGER, ResilienceTest},
    },
    report::json,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A controller that has not looked at a test by then is not there.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(30);
/// An API server that does not answer for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// A run is written about every second: after so long without a word it is said that there is none.
const SILENT_AFTER: Duration = Duration::from_secs(30);
/// And after so long nobody waits for it any more: the slowest of leases (5 minutes) has run out twice by then, and whoever leads next tells how the run ended.
const GIVEN_UP_AFTER: Duration = Duration::from_mins(11);
const REPORT_BYTES_MAX: u64 = 256 << 20;

/// Why a test could not be run there.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error(transparent)]
    NoCluster(#[from] NoCluster),
    /// The API server's words, or the controller's.
    #[error("{0}")]
    Refused(String),
    /// Nobody had begun to run it, and it was deleted again.
    #[error("{0}")]
    Withdrawn(String),
    #[error("{0}")]
    Failed(String),
}

/// A namespace of a cluster.
pub struct Remote {
    tests: Api<ResilienceTest>,
    maps: Api<ConfigMap>,
    namespace: String,
}

/// What a look at a status came to.
#[derive(Debug, PartialEq)]
enum Seen<'a> {
    News(&'a ResilienceTestStatus),
    Ended(Box<ResilienceTestStatus>),
    /// Nothing has changed for long, though it should; said once.
    Silence(String),
    Nothing,
    GivenUp(String),
}

/// A status as it was seen last, and since when it has not changed.
struct Watched {
    status: ResilienceTestStatus,
    since: tokio::time::Instant,
    is_told: bool,
}

impl Watched {
    fn new(now: tokio::time::Instant) -> Self {
        Self { status: ResilienceTestStatus::default(), since: now, is_told: false }
    }

    fn look(&mut self, now: tokio::time::Instant, status: ResilienceTestStatus) -> Seen<'_> {
        if matches!(status.phase, RunPhase::Finished | RunPhase::Refused) {
            return Seen::Ended(Box::new(status));
        }
        if status != self.status {
            *self = Self { status, since: now, is_told: false };
            return Seen::News(&self.status);
        }
        let (silent, is_taken_up) = (now.duration_since(self.since), self.status != ResilienceTestStatus::default());
        // Who waits for its turn has been told so, and may wait for long.
        if is_taken_up && self.status.phase == RunPhase::Pending {
            return Seen::Nothing;
        }
        if silent > GIVEN_UP_AFTER {
            let then = if is_taken_up { "; what is in force ends by itself, and once a controller leads again it tells how the run ended" } else { "" };
            return Seen::GivenUp(format!(
                "no controller has said anything of it for {} minutes: look at the Pods of Steadfast and at its Lease{then}",
                silent.as_secs() / 60
            ));
        }
        if self.is_told || silent <= if is_taken_up { SILENT_AFTER } else { TAKEN_UP_WITHIN } {
            return Seen::Nothing;
        }
        self.is_told = true;
        Seen::Silence(if is_taken_up {
            format!("no word from the controller for {} s: it may be lost, and the next one tells how the run ended", silent.as_secs())
        } else {
            "waiting: no controller has taken it up yet; is Steadfast not installed, or does it not look at this namespace?".to_owned()
        })
    }
}

/// A test that was handed over.
#[derive(Clone, Debug)]
pub struct Submitted {
    pub name: String,
    uid: Option<String>,
}

/// Whether nobody has begun to run it: nothing of it is in force, and there is no report to wait for.
fn has_not_begun(test: &ResilienceTest) -> bool {
    test.status.as_ref().is_none_or(|status| status.phase == RunPhase::Pending)
}

/// What is missing where the API server knows nothing of what it was asked: the kind, or the namespace.
fn not_there(answer: &kube::core::Status, namespace: &str) -> RemoteError {
    if answer.details.as_ref().is_some_and(|details| details.kind == "namespaces") {
        return RemoteError::Refused(format!("there is no namespace {namespace} in this cluster: name that of the target with --namespace"));
    }
    RemoteError::Failed("this cluster knows no ResilienceTest: install the chart in deploy/chart".to_owned())
}

impl Remote {
    /// Its context's namespace unless one is given.
    pub async fn connect(access: &Access, namespace: Option<String>) -> Result<Self, RemoteError> {
        let client = access.client().await?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { tests: Api::namespaced(client.clone(), &namespace), maps: Api::namespaced(client, &namespace), namespace })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Hands `test` over, under a name of its own that begins with the test's.
    pub async fn submit(&self, test: &Test) -> Result<Submitted, RemoteError> {
        let mut object = ResilienceTest::new("", ResilienceTestSpec { suspend: false, ..test.spec.clone() });
        object.metadata.name = None;
        object.metadata.generate_name = Some(format!("{}-", test.metadata.name));
        object.metadata.labels = Some(test.metadata.labels.clone());
        object.metadata.annotations = Some(test.metadata.annotations.clone());
        let made = self.tests.create(&PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }, &object).await;
        match made {
            Ok(made) => Ok(Submitted { name: made.name_any(), uid: made.uid() }),
            Err(kube::Error::Api(answer)) if answer.code == 404 => Err(not_there(&answer, &self.namespace)),
            Err(kube::Error::Api(answer)) => Err(RemoteError::Refused(answer.message)),
            Err(error) => Err(RemoteError::Failed(error.to_string())),
        }
    }

    /// Tells every change of its status, and returns the last one. `interrupt` turning true ends the run early, with what was seen; a test that has not begun is deleted.
    pub async fn follow(
        &self,
        test: &Submitted,
        mut interrupt: watch::Receiver<bool>,
        mut tell: impl FnMut(&ResilienceTestStatus),
    ) -> Result<ResilienceTestStatus, RemoteError> {
        let mut watched = Watched::new(tokio::time::Instant::now());
        let mut heard = tokio::time::Instant::now();
        let mut stopping = false;
        loop {
            match self.tests.get_opt(&test.name).await {
                Ok(Some(now)) if now.uid() == test.uid => {
                    heard = tokio::time::Instant::now();
                    if *interrupt.borrow() && self.withdraw(&now).await? {
                        return Err(RemoteError::Withdrawn(format!("interrupted before the run began: resiliencetest {} is deleted again", test.name)));
                    }
                    match watched.look(heard, now.status.clone().unwrap_or_default()) {
                        Seen::News(status) => tell(status),
                        Seen::Ended(status) => {
                            tell(&status);
                            return Ok(*status);
                        }
                        Seen::Silence(words) => tell(&ResilienceTestStatus { progress: Some(words), ..ResilienceTestStatus::default() }),
                        Seen::Nothing => {}
                        Seen::GivenUp(why) if self.withdraw(&now).await? => {
                            return Err(RemoteError::Withdrawn(format!("resiliencetest {}: {why}; it is deleted again", test.name)));
                        }
                        Seen::GivenUp(why) => return Err(RemoteError::Failed(format!("resiliencetest {}: {why}", test.name))),
                    }
                }
                Ok(_) => return Err(RemoteError::Failed(format!("somebody deleted resiliencetest {}", test.name))),
                Err(error) if heard.elapsed() > LOST_AFTER => return Err(RemoteError::Failed(format!("the API server does not answer any more: {error}"))),
                Err(_) => {}
            }
            if *interrupt.borrow() && !stopping {
                let patch = json!({ "metadata": { "annotations": { STOP_ANNOTATION: "asked by the command line" } } });
                stopping = self.tests.patch(&test.name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_ok();
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                _ = interrupt.changed(), if !stopping => {}
            }
        }
    }

    /// Deletes a test that has not begun. False: it has, or somebody changed it a moment ago.
    async fn withdraw(&self, test: &ResilienceTest) -> Result<bool, RemoteError> {
        if !has_not_begun(test) {
            return Ok(false);
        }
        // Whoever begins it writes that down first, and then this is another version.
        let preconditions = Some(Preconditions { uid: test.uid(), resource_version: test.resource_version() });
        match self.tests.delete(&test.name_any(), &DeleteParams { preconditions, ..DeleteParams::default() }).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(true),
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(false),
            Err(error) => Err(RemoteError::Failed(format!("it has not begun, and could not be deleted: {error}"))),
        }
    }

    /// Where the report of this test is, or of the last window with an outage if it watches.
    pub async fn address(&self, test: &str, of_outage: bool) -> Result<ReportAddress, RemoteError> {
        let found = self.tests.get_opt(test).await.map_err(|error| RemoteError::Failed(error.to_string()))?;
        let Some(found) = found else {
            return Err(RemoteError::Refused(format!(
                "there is no ResilienceTest {test} in namespace {}: kubectl get resiliencetests --all-namespaces",
                self.namespace
            )));
        };
        let status = found.status.unwrap_or_default();
        let address = if of_outage { status.outage_report } else { status.report };
        let what = if of_outage { "has seen no outage" } else { "has no report yet" };
        address.ok_or_else(|| {
            RemoteError::Refused(format!(
                "ResilienceTest {test} {what}: {:?}{}",
                status.phase,
                status.progress.map(|words| format!(", {words}")).unwrap_or_default()
            ))
        })
    }

    /// The report at an address that a status names: in a ConfigMap, or in an object store, with keys of one's own.
    pub async fn report(&self, address: &ReportAddress) -> Result<Report, RemoteError> {
        let fail = |why: String| RemoteError::Failed(format!("{}: {why}", address.address));
        let packed: Bytes = if let Some(name) = address.address.strip_prefix("configMap/") {
            self.packed(name).await.map_err(fail)?.into()
        } else {
            let got = async { Objects::open(&address.address)?.get("", REPORT_BYTES_MAX as usize).await };
            let hint = "set the variables by which the store's own tools find it and prove who asks, such as AWS_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
            got.await.map_err(|error| fail(format!("{}; {hint}", error.why)))?
        };
        let mut text = String::new();
        GzDecoder::new(packed.as_ref()).take(REPORT_BYTES_MAX).read_to_string(&mut text).map_err(|error| fail(error.to_string()))?;
        let digest = steadfast_golden_sets::set::sha256(text.as_bytes()).to_string();
        // Between a look at the status and one at the report, a watch may have written the next window's.
        if digest != address.digest {
            tracing::warn!(address = address.address, "the report is another than the status named: a newer one");
        }
        json::read(&text).map_err(|error| fail(error.to_string()))
    }

    /// From the ConfigMaps in which it lies.
    async fn packed(&self, first: &str) -> Result<Vec<u8>, String> {
        let get = async |name: &str| part(self.maps.get(name).await.map_err(|error| error.to_string())?).map_err(|why| format!("configMap/{name}: {why}"));
        let (mut packed, parts, digest) = get(first).await?;
        for number in 2..=parts {
            let (more, _, of) = get(&part_name(first, number)).await?;
            if of != digest {
                return Err("is being written anew: ask again".to_owned());
            }
            packed.extend(more);
        }
        Ok(packed)
    }

    /// Takes the test away, and with it whatever stands beside it.
    pub async fn remove(&self, test: &Submitted) -> Result<(), RemoteError> {
        match self.tests.delete(&test.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
            Err(error) => Err(RemoteError::Failed(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_a_controller_that_says_nothing() {
        let began = tokio::time::Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let none = ResilienceTestStatus::default;
        let phase = |phase, progress: &str| ResilienceTestStatus { phase, progress: Some(progress.to_owned()), ..none() };
        let mut watched = Watched::new(began);
        assert_eq!(watched.look(at(30), none()), Seen::Nothing);
        assert!(matches!(watched.look(at(31), none()), Seen::Silence(words) if words.contains("no controller has taken it up")));
        assert_eq!(watched.look(at(40), none()), Seen::Nothing, "it is said once");
        assert!(matches!(watched.look(at(700), none()), Seen::GivenUp(why) if why.contains("for 11 minutes")));

        let waits = phase(RunPhase::Pending, "waits: another comes first");
        assert!(matches!(watched.look(at(100), waits.clone()), Seen::News(_)));
        assert_eq!(watched.look(at(100_000), waits), Seen::Nothing, "there is a controller, and it said what it waits for");

        let running = phase(RunPhase::Running, "baseline");
        assert!(matches!(watched.look(at(100_001), running.clone()), Seen::News(_)));
        assert!(matches!(watched.look(at(100_032), running.clone()), Seen::Silence(words) if words.contains("31 s")));
        assert!(matches!(watched.look(at(100_040), phase(RunPhase::Running, "1 of 3")), Seen::News(_)), "it goes on");
        assert!(matches!(watched.look(at(100_040 + 661), phase(RunPhase::Running, "1 of 3")), Seen::GivenUp(_)));
        assert!(matches!(watched.look(at(200_000), phase(RunPhase::Finished, "")), Seen::Ended(_)));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_not_a_missing_installation() {
        let answer = |kind: &str| -> kube::core::Status {
            serde_json::from_value(json!({ "message": "not found", "reason": "NotFound", "code": 404, "details": { "kind": kind, "name": "nosuch" } })).unwrap()
        };
        assert!(matches!(not_there(&answer("namespaces"), "nosuch"), RemoteError::Refused(why) if why.contains("no namespace nosuch")));
        assert!(matches!(not_there(&answer(""), "nosuch"), RemoteError::Failed(why) if why.contains("install the chart")));
    }

    /// What an API server was asked, and the test that it holds.
    type Held = std::sync::Arc<std::sync::Mutex<(Vec<String>, Option<serde_json::Value>)>>;

    /// One that begins to run the test right before it would be deleted, if `begins`.
    fn server(status: serde_json::Value, begins: bool) -> (Remote, Held) {
        use http_body_util::BodyExt as _;
        let object = json!({
            "apiVersion": "steadfast.dev/v1alpha1", "kind": "ResilienceTest",
            "metadata": { "name": "t", "uid": "u", "resourceVersion": "7" }, "spec": {}, "status": status,
        });
        let held = Held::new(std::sync::Mutex::new((Vec::new(), Some(object))));
        let shared = std::sync::Arc::clone(&held);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let held = std::sync::Arc::clone(&shared);
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let mut held = held.lock().unwrap();
                let failure = |code: u16| (code, json!({ "kind": "Status", "status": "Failure", "reason": "x", "message": "x", "code": code }));
                let (code, answer) = match (method.as_str(), held.1.clone()) {
                    (_, None) => failure(404),
                    ("DELETE", Some(mut now)) => {
                        held.0.push(format!("delete {} {}", body["preconditions"]["uid"], body["preconditions"]["resourceVersion"]));
                        if begins && now["status"]["phase"] != "Running" {
                            now["metadata"]["resourceVersion"] = "8".into();
                            now["status"] = json!({ "phase": "Running" });
                            held.1 = Some(now);
                            failure(409)
                        } else {
                            held.1 = None;
                            (200, now)
                        }
                    }
                    ("PATCH", Some(mut now)) => {
                        held.0.push("stop".to_owned());
                        now["status"] = json!({ "phase": "Finished", "reason": "Interrupted" });
                        held.1 = Some(now.clone());
                        (200, now)
                    }
                    (_, Some(now)) => (200, now),
                };
                let body = kube::client::Body::from(answer.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        let client = kube::Client::new(service, "n");
        (Remote { tests: Api::namespaced(client.clone(), "n"), maps: Api::namespaced(client, "n"), namespace: "n".to_owned() }, held)
    }

    #[tokio::test]
    async fn a_test_that_has_not_begun_is_deleted_at_once_when_it_is_interrupted() {
        let submitted = Submitted { name: "t".to_owned(), uid: Some("u".to_owned()) };
        let interrupted = || watch::channel(true).1;
        for status in [json!({}), json!({ "phase": "Pending", "progress": "waits: another comes first" })] {
            let (remote, held) = server(status, false);
            let ended = remote.follow(&submitted, interrupted(), |_| {}).await;
            assert!(matches!(ended, Err(RemoteError::Withdrawn(why)) if why.contains("resiliencetest t is deleted")));
            assert_eq!(*held.lock().unwrap(), (vec![r#"delete "u" "7""#.to_owned()], None));
        }
        let (remote, held) = server(json!({}), true);
        let ended = remote.follow(&submitted, interrupted(), |_| {}).await.unwrap();
        assert_eq!(ended.reason.as_deref(), Some("Interrupted"), "it began in that moment, and is told to stop");
        assert_eq!(held.lock().unwrap().0, [r#"delete "u" "7""#, "stop"]);
    }
}
