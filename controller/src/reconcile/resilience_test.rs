//! ResilienceTests: run one after the other, in the order in which they were made, each once; told of in their status; the report beside them in a ConfigMap.
//!
//! A run that its controller did not survive is not begun again: what it had armed ends on the sidecars' own clocks, and the next leader takes the rest back and says
//! that it is inconclusive. A controller that is told to stop ends its run first.
//! Deleting a test ends its run; the annotation `steadfast.dev/stop` does too, and keeps the report.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use k8s_openapi::{
    ByteString,
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use steadfast_api::{
    report::{PhaseKind, Report, RunOutcome},
    resource::{Condition, ReportAddress, ResilienceTestStatus, RunPhase},
    sidecar::{GoldenReplay, What},
    test::{ApiVersion, Kind, Metadata, ResilienceTest as Test},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    golden_set::runs::Runs,
    pods::{FAULTS_ALLOWED, FAULTS_LABEL, Pods},
    resource::{API_VERSION, MANAGER, ResilienceTest},
    watched::Watched,
};
use crate::{
    events::Events,
    experiment::{
        Plan, Progress,
        conclude::{About, conclude},
        hypothesis::{millis, share},
        plan::Target,
        progress::PhaseNow,
        run::run,
        sets::Finder,
    },
    golden,
    platform::kubernetes::{
        KubernetesOptions, KubernetesPlatform,
        failures::{Means, undo},
    },
    report::json,
    serve::{ingest::Ingest, policy::PolicyHub},
};

/// Key of the report in its ConfigMap.
pub const REPORT_KEY: &str = "report.json.gz";
/// On a test whose run shall end now, with what was seen until then.
pub const STOP_ANNOTATION: &str = "steadfast.dev/stop";
/// Evidence that waits for its reader.
const SEEN_MAX: usize = 65_536;
/// Progress is written so often.
const TELL_EVERY: Duration = Duration::from_secs(2);
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// A ConfigMap takes 1 MiB, and the rest of it is small.
const REPORT_MAX: usize = 1_000_000;
/// A run that was asked to end has ended, and undone what it did.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// What could not be taken back is tried again so often.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(5);
/// Where a load does not say how many requests may be under way at once.
const IN_FLIGHT: u32 = 1_000;

/// Name of the ConfigMap that holds a test's report.
pub fn report_name(test: &str) -> String {
    format!("steadfast-run-{test}")
}

/// Asks every run of the cluster to end, and waits until they have, or for a minute. Returns their names.
///
/// # Errors
/// When the tests cannot be listed or changed.
pub async fn stop_all(client: &Client) -> Result<Vec<String>, kube::Error> {
    let all: Api<ResilienceTest> = Api::all(client.clone());
    let running = async || -> Result<Vec<ResilienceTest>, kube::Error> {
        let tests = match all.list(&ListParams::default()).await {
            Ok(tests) => tests.items,
            // The custom resource is not there (any more).
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(tests.into_iter().filter(|test| test.status.as_ref().is_some_and(|status| status.phase == RunPhase::Running)).collect())
    };
    let tests = running().await?;
    for test in &tests {
        let api: Api<ResilienceTest> = Api::namespaced(client.clone(), &test.namespace().unwrap_or_default());
        let stop = json!({ "metadata": { "annotations": { STOP_ANNOTATION: "now" } } });
        api.patch(&test.name_any(), &PatchParams::default(), &Patch::Merge(&stop)).await?;
    }
    let deadline = Instant::now() + STOPPED_WITHIN;
    while !tests.is_empty() && Instant::now() < deadline && !running().await?.is_empty() {
        sleep(Duration::from_millis(300)).await;
    }
    Ok(tests.iter().map(ToString::to_string).collect())
}

/// See the module. Wants `list` and `watch` on resiliencetests and `patch` on their status, `get`, `create` and `patch` on ConfigMaps, `get` on goldensets, and what
/// [`KubernetesPlatform::start`] wants.
pub struct Tests {
    means: Arc<Means>,
    objects: Watched<ResilienceTest>,
    pods: Arc<Pods>,
    hub: Arc<PolicyHub>,
    ingest: Arc<Ingest>,
    golden: Arc<Runs>,
    events: Events,
    stopping: watch::Receiver<bool>,
    /// Runs that this leader began, by UID.
    begun: BTreeSet<String>,
}

impl Tests {
    /// `stopping` turning true ends the run that goes on, and with it [`run`](Self::run).
    pub fn new(means: Arc<Means>, hub: Arc<PolicyHub>, ingest: Arc<Ingest>, golden: Arc<Runs>, events: Events, stopping: watch::Receiver<bool>) -> Self {
        let objects = Watched::objects(Api::all(means.client.clone()), watcher::Config::default(), |_| {});
        Self { pods: Arc::clone(&means.pods), means, objects, hub, ingest, golden, events, stopping, begun: BTreeSet::new() }
    }

    /// Returns when it is told to stop and what it did is undone.
    pub async fn run(mut self) {
        self.pods.listed().await;
        self.objects.listed().await;
        // Between runs nothing may be in force: whatever is, is of a run that is no more, or could not be undone at its end.
        let mut left = self.take_back().await;
        let mut looked = Instant::now();
        let mut changes = self.objects.changes();
        loop {
            let tests = self.objects.all();
            if *self.stopping.borrow() {
                return;
            }
            if looked.elapsed() >= TAKE_BACK_EVERY {
                left = self.take_back().await;
                looked = Instant::now();
            }
            let there: BTreeSet<String> = tests.iter().filter_map(|test| test.uid()).collect();
            self.begun.retain(|uid| there.contains(uid));
            let mut waiting: Vec<Arc<ResilienceTest>> = Vec::new();
            for test in tests.into_iter().filter(|test| test.metadata.deletion_timestamp.is_none()) {
                let begun = self.begun.contains(&test.uid().unwrap_or_default());
                match test.status.as_ref().map_or(RunPhase::Pending, |status| status.phase) {
                    RunPhase::Pending if !begun && !test.is_suspended() => waiting.push(test),
                    RunPhase::Running if !begun => self.lost(&test).await,
                    _ => {}
                }
            }
            waiting.sort_by_key(|test| test.metadata.creation_timestamp.as_ref().map(|created| created.0));
            if let (Some(test), Some(why)) = (waiting.first(), &left) {
                let words = format!("what an earlier run has in force must be taken back before another begins: {why}");
                self.events.warn(test.object_ref(&()), "Waits", "Run", &words);
            } else if let Some(test) = waiting.first() {
                self.begun.insert(test.uid().unwrap_or_default());
                Box::pin(self.one(test)).await;
                continue;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(TELL_EVERY) => {}
                _ = self.stopping.wait_for(|stopping| *stopping) => return,
            }
        }
    }

    /// Takes back what runs left in force. Returns why something still is.
    async fn take_back(&self) -> Option<String> {
        match undo::everything(&self.means).await {
            Ok(summary) => {
                for words in summary.undone.iter().chain(&summary.not_ours) {
                    tracing::warn!("taken back for a run that did not end it: {words}");
                }
                for why in &summary.failed {
                    tracing::error!("could not be taken back, and is tried again: {why}");
                }
                (!summary.failed.is_empty()).then(|| summary.failed.join("; "))
            }
            Err(error) => {
                tracing::error!(%error, "what is in force cannot be read; tried again");
                Some(error.to_string())
            }
        }
    }

    /// A run whose controller is gone.
    async fn lost(&mut self, test: &ResilienceTest) {
        let during = test.status.as_ref().and_then(|status| status.progress.clone()).unwrap_or_default();
        let reason = format!("The controller was lost during the run ({during}); what it had armed ended by itself.");
        let before = test.status.clone().unwrap_or_default();
        let status = ResilienceTestStatus {
            phase: RunPhase::Finished,
            verdict: Some(RunOutcome::Inconclusive),
            reason: Some(reason.clone()),
            progress: None,
            finished_at: Some(now()),
            ..before
        };
        self.events.warn(test.object_ref(&()), "ControllerLost", "Run", &reason);
        self.begun.insert(test.uid().unwrap_or_default());
        self.write(test, status).await;
    }

    async fn one(&self, test: &ResilienceTest) {
        let started = ResilienceTestStatus {
            observed_generation: test.metadata.generation,
            phase: RunPhase::Running,
            progress: Some("starting".to_owned()),
            started_at: Some(now()),
            ..ResilienceTestStatus::default()
        };
        match self.plan(test).await {
            Err(why) => {
                self.events.warn(test.object_ref(&()), "Refused", "Run", &why);
                let status = ResilienceTestStatus { phase: RunPhase::Refused, reason: Some(why), progress: None, finished_at: Some(now()), ..started };
                self.write(test, status).await;
            }
            Ok((plan, _sets)) => {
                self.write(test, started.clone()).await;
                self.events.say(test.object_ref(&()), "Started", "Run", "the run began");
                let status = match Box::pin(self.lead(test, &plan, &started)).await {
                    Ok(report) => self.finished(test, &report, started).await,
                    Err(why) => ResilienceTestStatus {
                        phase: RunPhase::Finished,
                        verdict: Some(RunOutcome::Inconclusive),
                        reason: Some(why),
                        progress: None,
                        finished_at: Some(now()),
                        ..started
                    },
                };
                let said = format!("{:?}: {}", status.verdict.unwrap_or(RunOutcome::Inconclusive), status.reason.clone().unwrap_or_default());
                self.events.say(test.object_ref(&()), "Finished", "Run", &said);
                self.write(test, status).await;
            }
        }
    }

    /// What will be run, with its golden sets in a folder that lives as long as it.
    async fn plan(&self, test: &ResilienceTest) -> Result<(Plan, Folder), String> {
        let namespace = test.namespace().unwrap_or_default();
        let spec = test.spec.get().map_err(|why| format!("spec: {why}"))?.clone();
        if !self.pods.allowed_in(&namespace) {
            return Err(format!("namespace {namespace} does not allow faults: kubectl label namespace {namespace} {FAULTS_LABEL}={FAULTS_ALLOWED}"));
        }
        let folder = Folder(std::env::temp_dir().join(format!("steadfast-{}", test.uid().unwrap_or_default())));
        let golden = spec.golden.iter().map(|golden| &golden.set);
        for name in spec.load.iter().map(|load| &load.inputs.golden_set).chain(golden).collect::<BTreeSet<_>>() {
            golden::fetch(&self.means.client, &namespace, name, &folder.0).await?;
        }
        let metadata = Metadata { name: test.name_any(), labels: test.labels().clone() };
        let wanted = Test { api_version: ApiVersion::V1Alpha1, kind: Kind::ResilienceTest, metadata, spec };
        let finder = Finder { shelves: vec![folder.0.clone()], work_dir: folder.0.clone() };
        let plan = Plan::new(wanted, Target::Cluster, &finder);
        plan.map(|plan| (plan, folder)).map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    async fn lead(&self, test: &ResilienceTest, plan: &Plan, started: &ResilienceTestStatus) -> Result<Report, String> {
        let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
        let in_flight = plan.test.spec.load.iter().map(|load| load.max_in_flight).fold(0, u32::saturating_add);
        let uid = test.uid().unwrap_or_default();
        let (of, golden) = (namespace.clone(), plan.test.spec.golden.clone());
        // What others have replayed in these pods is no part of the run.
        let asked = move |what: &What| match what {
            What::Golden(GoldenReplay { set, .. }) | What::GoldenVerdict { set, .. } => golden.iter().any(|golden| golden.set == *set),
            _ => true,
        };
        let seen = self.ingest.subscribe(SEEN_MAX, move |pod, what| pod.namespace == of && asked(what)).into_receiver();
        let sets = plan.test.spec.golden.iter().filter_map(|golden| Some((golden.set.as_str(), &*plan.sets.get(&golden.set)?.set, golden.every)));
        let _replays = self.golden.begin(&uid, &namespace, &plan.test.spec.target.selector, sets)?;
        let platform = KubernetesPlatform::start(KubernetesOptions {
            means: Arc::clone(&self.means),
            hub: Arc::clone(&self.hub),
            ingest: Arc::clone(&self.ingest),
            run: uid.clone(),
            test: name.clone(),
            namespace: namespace.clone(),
            target: plan.test.spec.target.clone(),
            in_flight_max: if in_flight == 0 { IN_FLIGHT } else { in_flight.min(100_000) },
        })
        .await
        .map_err(|error| error.to_string())?;
        let platform = Arc::new(platform);
        let (interrupt, interrupted) = watch::channel(false);
        let (told, hear) = watch::channel(Progress::default());
        let (mut course, history) = {
            let work = std::pin::pin!(run(plan, Arc::clone(&platform), seen, interrupted, &told));
            let watching = std::pin::pin!(self.follow(test, started, hear, &interrupt));
            match futures_util::future::select(work, watching).await {
                futures_util::future::Either::Left((ended, _)) => ended,
                // It only ends with the run.
                futures_util::future::Either::Right((never, _)) => match never {},
            }
        };
        course.notes.extend(platform.notes());
        let rerun = format!("kubectl -n {namespace} get resiliencetest {name} -o yaml, then apply it under another name");
        Ok(conclude(plan, course, &history, About { run_id: uid, rerun }))
    }

    /// Writes progress while the run goes on, and interrupts it when its test is deleted or its namespace takes its leave back.
    async fn follow(
        &self,
        test: &ResilienceTest,
        started: &ResilienceTestStatus,
        hear: watch::Receiver<Progress>,
        interrupt: &watch::Sender<bool>,
    ) -> std::convert::Infallible {
        let (namespace, name, uid) = (test.namespace().unwrap_or_default(), test.name_any(), test.uid());
        let mut last = String::new();
        loop {
            sleep(TELL_EVERY).await;
            let now = self.objects.get(Some(&namespace), &name);
            let ends = |now: &ResilienceTest| now.metadata.deletion_timestamp.is_some() || now.annotations().contains_key(STOP_ANNOTATION);
            let gone = now.is_none_or(|now| now.uid() != uid || ends(&now));
            if gone || *self.stopping.borrow() || !self.pods.allowed_in(&namespace) {
                interrupt.send_replace(true);
                continue;
            }
            let said = in_words(&hear.borrow());
            if said != last {
                self.write(test, ResilienceTestStatus { progress: Some(said.clone()), ..started.clone() }).await;
                last = said;
            }
        }
    }

    async fn finished(&self, test: &ResilienceTest, report: &Report, started: ResilienceTestStatus) -> ResilienceTestStatus {
        let address = match self.keep(test, report).await {
            Ok(address) => Some(address),
            Err(why) => {
                self.events.warn(test.object_ref(&()), "ReportNotKept", "Report", &why);
                None
            }
        };
        ResilienceTestStatus {
            phase: RunPhase::Finished,
            verdict: Some(report.verdict.outcome),
            reason: Some(report.verdict.reason.clone()),
            score: report.verdict.score,
            availability: report.total.availability.ratio.map(share),
            recovery: match (report.recovery.outages, report.recovery.first_correct_p50_ms) {
                (0, _) => None,
                (_, Some(ms)) => Some(millis(ms).replace(' ', "")),
                (_, None) => Some("never".to_owned()),
            },
            consistency: report.total.consistency.ratio.map(share),
            stable: Some(report.phases.iter().all(|phase| phase.kind != PhaseKind::Recovery || phase.stable_ms.is_some())),
            progress: None,
            report: address,
            finished_at: Some(now()),
            ..started
        }
    }

    /// The report, in a ConfigMap that goes with its test.
    async fn keep(&self, test: &ResilienceTest, report: &Report) -> Result<ReportAddress, String> {
        let text = json::render(report).map_err(|error| error.to_string())?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        let packed = packed.write_all(text.as_bytes()).and_then(|()| packed.finish()).map_err(|error| error.to_string())?;
        if packed.len() > REPORT_MAX {
            return Err(format!("the report has {} bytes, and a ConfigMap takes {REPORT_MAX}", packed.len()));
        }
        let digest = steadfast_golden_sets::set::sha256(text.as_bytes()).to_string();
        let (name, namespace) = (report_name(&test.name_any()), test.namespace().unwrap_or_default());
        let owner = OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: ResilienceTest::KIND.to_owned(),
            name: test.name_any(),
            uid: test.uid().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta { name: Some(name.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, binary_data: Some([(REPORT_KEY.to_owned(), ByteString(packed))].into()), ..ConfigMap::default() };
        let api: Api<ConfigMap> = Api::namespaced(self.means.client.clone(), &namespace);
        api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await.map_err(|error| error.to_string())?;
        Ok(ReportAddress { address: format!("configMap/{name}"), digest })
    }

    async fn write(&self, test: &ResilienceTest, mut status: ResilienceTestStatus) {
        status.conditions = conditions(test.status.as_ref().map(|before| before.conditions.as_slice()).unwrap_or_default(), &status, test.metadata.generation);
        let (name, namespace) = (test.name_any(), test.namespace().unwrap_or_default());
        let api: Api<ResilienceTest> = Api::namespaced(self.means.client.clone(), &namespace);
        // What ends a run must be written; what tells of it can wait for the next time.
        let tries = if status.phase == RunPhase::Running { 2 } else { 30 };
        for _ in 0..tries {
            match timeout(WRITTEN_WITHIN, patch_status(&api, &name, test.uid().as_deref(), &status)).await {
                Ok(Ok(())) => return,
                // Somebody wrote between reading and writing.
                Ok(Err(kube::Error::Api(answer))) if answer.code == 409 => continue,
                Ok(Err(error)) => tracing::warn!(%test, %error, "its status could not be written"),
                Err(_) => tracing::warn!(%test, "its status could not be written in time"),
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Writes the status of the object with this UID, and of no other that has taken its name.
async fn patch_status(api: &Api<ResilienceTest>, name: &str, uid: Option<&str>, status: &ResilienceTestStatus) -> Result<(), kube::Error> {
    let Some(now) = api.get_opt(name).await?.filter(|now| now.uid().as_deref() == uid) else { return Ok(()) };
    let patch = json!({
        "apiVersion": API_VERSION, "kind": ResilienceTest::KIND,
        "metadata": { "name": name, "resourceVersion": now.resource_version() },
        "status": status,
    });
    match api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removed with all it holds.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

fn conditions(before: &[Condition], status: &ResilienceTestStatus, generation: Option<i64>) -> Vec<Condition> {
    let running = status.phase == RunPhase::Running;
    let passed = match status.verdict {
        Some(RunOutcome::Pass) => "True",
        Some(RunOutcome::Fail) => "False",
        _ => "Unknown",
    };
    let verdict = status.verdict.map_or_else(|| format!("{:?}", status.phase), |verdict| format!("{verdict:?}"));
    let message = status.reason.clone().unwrap_or_default();
    let one = |kind: &str, is: &str, reason: String, message: String| {
        let since =
            before.iter().find(|condition| condition.kind == kind && condition.status == is).map_or_else(now, |known| known.last_transition_time.clone());
        Condition { kind: kind.to_owned(), status: is.to_owned(), reason, message, last_transition_time: since, observed_generation: generation }
    };
    vec![
        one("Running", if running { "True" } else { "False" }, format!("{:?}", status.phase), status.progress.clone().unwrap_or_default()),
        one("Verdict", passed, verdict, message),
    ]
}

/// E.g. `2 of 7: node lost, on n1; 99.2% available, p99 3.1 ms`.
fn in_words(progress: &Progress) -> String {
    let phase = match &progress.phase {
        PhaseNow::WarmUp => return "warm-up".to_owned(),
        PhaseNow::CleanUp => return "undoing everything".to_owned(),
        PhaseNow::Baseline => "baseline".to_owned(),
        PhaseNow::Fault { name, on } => format!("{name} on {on}"),
        PhaseNow::Recovery { name } => format!("recovery from {name}"),
    };
    let available = progress.availability.map(|ratio| format!("; {} available", share(ratio))).unwrap_or_default();
    let p99 = progress.p99_ms.map(|ms| format!(", p99 {}", millis(ms))).unwrap_or_default();
    format!("{} of {}: {phase}{available}{p99}", progress.number, progress.of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_whether_it_runs_and_whether_it_held() {
        let running = ResilienceTestStatus { phase: RunPhase::Running, progress: Some("baseline".into()), ..ResilienceTestStatus::default() };
        let first = conditions(&[], &running, Some(1));
        let words = |conditions: &[Condition]| conditions.iter().map(|c| format!("{} {} {}", c.kind, c.status, c.reason)).collect::<Vec<_>>();
        assert_eq!(words(&first), ["Running True Running", "Verdict Unknown Running"]);
        let done = ResilienceTestStatus { phase: RunPhase::Finished, verdict: Some(RunOutcome::Pass), ..ResilienceTestStatus::default() };
        assert_eq!(words(&conditions(&first, &done, Some(1))), ["Running False Finished", "Verdict True Pass"]);
        let refused = ResilienceTestStatus { phase: RunPhase::Refused, reason: Some("why".into()), ..ResilienceTestStatus::default() };
        assert_eq!(words(&conditions(&[], &refused, None)), ["Running False Refused", "Verdict Unknown Refused"]);
    }

    #[test]
    fn progress_is_one_line() {
        let progress = Progress {
            phase: PhaseNow::Fault { name: "slow".into(), on: "n1".into() },
            number: 2,
            of: 7,
            availability: Some(0.992),
            p99_ms: Some(3.1),
            ..Progress::default()
        };
        assert_eq!(in_words(&progress), "2 of 7: slow on n1; 99.2% available, p99 3.10 ms");
    }
}
