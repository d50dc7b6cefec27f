//! A cluster from outside: hand a test to its controller, follow the run, fetch the report, leave nothing behind.

use std::{io::Read as _, time::Duration};

use bytes::Bytes;
use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
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
        resilience_test::{REPORT_KEY, STOP_ANNOTATION},
        resource::{MANAGER, ResilienceTest},
    },
    report::json,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A controller that has not looked at a test by then is not there.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(30);
/// An API server that does not answer for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(60);
const REPORT_BYTES_MAX: u64 = 256 << 20;

/// Why a test could not be run there.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error(transparent)]
    NoCluster(#[from] NoCluster),
    /// The API server's words, or the controller's.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

/// A namespace of a cluster.
pub struct Remote {
    tests: Api<ResilienceTest>,
    maps: Api<ConfigMap>,
    namespace: String,
}

/// A test that was handed over.
#[derive(Clone, Debug)]
pub struct Submitted {
    pub name: String,
    uid: Option<String>,
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
        let made = self.tests.create(&PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }, &object).await;
        match made {
            Ok(made) => Ok(Submitted { name: made.name_any(), uid: made.uid() }),
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                Err(RemoteError::Failed("this cluster knows no ResilienceTest: install the chart in deploy/chart".to_owned()))
            }
            Err(kube::Error::Api(answer)) => Err(RemoteError::Refused(answer.message)),
            Err(error) => Err(RemoteError::Failed(error.to_string())),
        }
    }

    /// Tells every change of its status, and returns the last one. `interrupt` turning true ends the run early, with what was seen.
    pub async fn follow(
        &self,
        test: &Submitted,
        mut interrupt: watch::Receiver<bool>,
        mut tell: impl FnMut(&ResilienceTestStatus),
    ) -> Result<ResilienceTestStatus, RemoteError> {
        let mut last = None;
        let mut heard = tokio::time::Instant::now();
        let began = heard;
        let mut stopping = false;
        loop {
            match self.tests.get_opt(&test.name).await {
                Ok(Some(now)) if now.uid() == test.uid => {
                    heard = tokio::time::Instant::now();
                    if let Some(status) = now.status {
                        if last.as_ref() != Some(&status) {
                            tell(&status);
                        }
                        if matches!(status.phase, RunPhase::Finished | RunPhase::Refused) {
                            return Ok(status);
                        }
                        last = Some(status);
                    } else if began.elapsed() > TAKEN_UP_WITHIN && last.is_none() {
                        tell(&ResilienceTestStatus {
                            progress: Some("waiting: no controller has taken it up yet; is another test running, or is Steadfast not installed?".to_owned()),
                            ..ResilienceTestStatus::default()
                        });
                        last = Some(ResilienceTestStatus::default());
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
            let map = self.maps.get(name).await.map_err(|error| fail(error.to_string()))?;
            let packed = map.binary_data.and_then(|mut data| data.remove(REPORT_KEY));
            packed.ok_or_else(|| fail(format!("has no {REPORT_KEY}")))?.0.into()
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

    /// Takes the test away, and with it whatever stands beside it.
    pub async fn remove(&self, test: &Submitted) -> Result<(), RemoteError> {
        match self.tests.delete(&test.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
            Err(error) => Err(RemoteError::Failed(error.to_string())),
        }
    }
}
