//! ResilienceTests: told of in their status; the report beside them in a ConfigMap. Those with steps run one after the other, in the order in which they were made, each
//! once. Those without watch on beside them, until they are deleted.
//!
//! A run that its controller did not survive is not begun again: what it had armed ends on the sidecars' own clocks, and the next leader takes the rest back and says
//! that it is inconclusive. A controller that is told to stop ends its run first. A watch goes on with the next leader.
//! Deleting a test ends its run; the annotation `steadfast.dev/stop` does too, and keeps the report.

mod lead;
mod report;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use steadfast_api::{
    report::RunOutcome,
    resource::{ResilienceTestStatus, RunPhase},
    test::{ApiVersion, Kind, Metadata, ResilienceTest as Test},
};
use tokio::{sync::watch, time::sleep};

use self::{
    lead::SoFar,
    status::{finished, now},
};
use super::{
    golden_set::runs::Runs,
    pods::{FAULTS_ALLOWED, FAULTS_LABEL, Pods},
    resource::ResilienceTest,
    scope::Scope,
    watched::Watched,
};
use crate::{
    events::Events,
    experiment::{Plan, plan::Target, sets::Finder},
    golden,
    metrics::Metrics,
    objects::Objects,
    platform::kubernetes::failures::{Means, closing::Closing, undo},
    serve::{ingest::Ingest, policy::PolicyHub},
};

pub use lead::outage_report_name;
pub use report::{REPORT_KEY, report_name};

/// On a test whose run shall end now, with what was seen until then.
pub const STOP_ANNOTATION: &str = "steadfast.dev/stop";
/// Changes are looked for so often, should none be heard of.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A run that was asked to end has ended, and undone what it did.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// What could not be taken back is tried again so often.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(5);
/// Watches that go on at once; more wait.
const WATCHES_MAX: usize = 64;
/// A watch whose target is not there, or never well, begins anew after so long.
const WATCH_AGAIN: Duration = Duration::from_secs(30);

/// Asks every run to end, and every test that waits not to begin; waits until those that ran have ended, or for a minute. Returns their names, and what went wrong with
/// some of them.
///
/// # Errors
/// When the tests cannot be listed.
pub async fn stop_all(client: &Client, scope: &Scope) -> Result<(Vec<String>, Vec<String>), kube::Error> {
    let phase = |test: &ResilienceTest| test.status.as_ref().map_or(RunPhase::Pending, |status| status.phase);
    let under_way = async || -> Result<Vec<ResilienceTest>, kube::Error> {
        let tests = match scope.list::<ResilienceTest>(client).await {
            Ok(tests) => tests,
            // The custom resource is not there (any more).
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            Err(error) => return Err(error),
        };
        let meant = |test: &ResilienceTest| match phase(test) {
            RunPhase::Running => true,
            RunPhase::Pending => !test.is_suspended(),
            _ => false,
        };
        Ok(tests.into_iter().filter(meant).collect())
    };
    let (mut told, mut problems) = (Vec::new(), BTreeMap::new());
    let deadline = Instant::now() + STOPPED_WITHIN;
    loop {
        let tests = under_way().await?;
        // Also those that have come meanwhile.
        for test in tests.iter().filter(|test| !test.annotations().contains_key(STOP_ANNOTATION)) {
            let api: Api<ResilienceTest> = Api::namespaced(client.clone(), &test.namespace().unwrap_or_default());
            let stop = json!({ "metadata": { "annotations": { STOP_ANNOTATION: "now" } } });
            match api.patch(&test.name_any(), &PatchParams::default(), &Patch::Merge(&stop)).await {
                Ok(_) => told.push(test.to_string()),
                // It is gone, which ends it as well.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                // One that cannot be told keeps nobody from the others.
                Err(error) => drop(problems.insert(test.to_string(), format!("{test} could not be told to stop: {error}"))),
            }
        }
        // Those that wait need somebody to end them, and there may be nobody; but they do not begin.
        if !tests.iter().any(|test| phase(test) == RunPhase::Running) || Instant::now() >= deadline {
            return Ok((told, problems.into_values().collect()));
        }
        sleep(Duration::from_millis(300)).await;
    }
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
    metrics: Metrics,
    stopping: watch::Receiver<bool>,
    /// Where reports go; absent: ConfigMaps.
    reports: Option<Objects>,
}

/// What [`Tests`] needs of others.
pub struct Needs {
    pub means: Arc<Means>,
    pub hub: Arc<PolicyHub>,
    pub ingest: Arc<Ingest>,
    pub golden: Arc<Runs>,
    pub events: Events,
    pub metrics: Metrics,
    /// Turning true ends what goes on, and with it [`Tests::run`].
    pub stopping: watch::Receiver<bool>,
    /// Where reports go; absent: ConfigMaps.
    pub reports: Option<Objects>,
}

/// What runs that are over have in force.
enum InForce {
    /// It is being looked at.
    Unknown,
    Nothing,
    /// Or another reason for which no run may begin.
    Left(String),
}

/// Whether it breaks nothing and watches on.
fn watches(test: &ResilienceTest) -> bool {
    test.spec.get().is_ok_and(|spec| spec.steps.is_empty())
}

impl Tests {
    pub fn new(needs: Needs) -> Self {
        let Needs { means, hub, ingest, golden, events, metrics, stopping, reports } = needs;
        let objects = Watched::within(means.pods.scope().apis(&means.client), watcher::Config::default(), |_| {});
        Self { pods: Arc::clone(&means.pods), means, objects, hub, ingest, golden, events, metrics, stopping, reports }
    }

    /// Returns when it is told to stop and what it did is undone.
    pub async fn run(self) {
        self.pods.listed().await;
        self.objects.listed().await;
        // Between runs nothing may be in force: whatever is, is of a run that is no more, or could not be undone at its end. It is taken back beside everything else that
        // goes on here, since that may take as long as a node is silent.
        let mut in_force = InForce::Unknown;
        let mut taking_back = FuturesUnordered::new();
        taking_back.push(self.take_back());
        let mut telling = FuturesUnordered::new();
        let mut looked = Instant::now();
        let mut changes = self.objects.changes();
        let mut stopping = self.stopping.clone();
        // What this leader began, by UID, and what of it goes on: whether it is a watch.
        let mut begun: BTreeSet<String> = BTreeSet::new();
        let mut on: BTreeMap<String, bool> = BTreeMap::new();
        let mut running = FuturesUnordered::new();
        while !*stopping.borrow() {
            let breaks = on.values().any(|watch| !watch);
            if !breaks && taking_back.is_empty() && looked.elapsed() >= TAKE_BACK_EVERY {
                taking_back.push(self.take_back());
            }
            let tests = self.objects.all();
            let there: BTreeSet<String> = tests.iter().filter_map(|test| test.uid()).collect();
            begun.retain(|uid| there.contains(uid));
            let mut waiting: Vec<Arc<ResilienceTest>> = Vec::new();
            for test in tests.into_iter().filter(|test| test.metadata.deletion_timestamp.is_none()) {
                if begun.contains(&test.uid().unwrap_or_default()) {
                    continue;
                }
                match test.status.as_ref().map_or(RunPhase::Pending, |status| status.phase) {
                    RunPhase::Pending if !test.is_suspended() && test.annotations().contains_key(STOP_ANNOTATION) => {
                        begun.insert(test.uid().unwrap_or_default());
                        let why = "It was told to stop before it began.".to_owned();
                        self.events.say(test.object_ref(&()), "Finished", "Run", &why);
                        let status = finished(test.status.clone().unwrap_or_default(), Some(why));
                        telling.push(self.tell(test, status));
                    }
                    RunPhase::Pending if !test.is_suspended() => waiting.push(test),
                    RunPhase::Running if watches(&test) && !test.annotations().contains_key(STOP_ANNOTATION) => waiting.push(test),
                    RunPhase::Running => {
                        begun.insert(test.uid().unwrap_or_default());
                        self.lost(&test).await;
                    }
                    _ => {}
                }
            }
            waiting.sort_by_key(|test| test.metadata.creation_timestamp.as_ref().map(|created| created.0));
            let (watchers, breakers): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|test| watches(test));
            let room = WATCHES_MAX.saturating_sub(on.values().filter(|watch| **watch).count());
            for test in watchers.iter().skip(room) {
                self.events.warn(
                    test.object_ref(&()),
                    "Waits",
                    "Watch",
                    &format!("{WATCHES_MAX} watches go on already: stop one, or let one test watch more pods"),
                );
            }
            let next = match (breakers.first(), &in_force) {
                (Some(test), InForce::Left(why)) if !breaks => {
                    self.events.warn(test.object_ref(&()), "Waits", "Run", why);
                    if telling.is_empty() && test.status.as_ref().and_then(|status| status.progress.as_ref()) != Some(why) {
                        let status = ResilienceTestStatus { progress: Some(why.clone()), ..test.status.clone().unwrap_or_default() };
                        telling.push(self.tell(Arc::clone(test), status));
                    }
                    None
                }
                // Whoever takes back takes back everything: what a run has just begun too.
                (_, InForce::Unknown) => None,
                // And what is still being told of a test that waits must not come after what is told of its run.
                _ if breaks || !taking_back.is_empty() || !telling.is_empty() => None,
                (next, _) => next,
            };
            for test in watchers.iter().take(room).chain(next) {
                let uid = test.uid().unwrap_or_default();
                begun.insert(uid.clone());
                on.insert(uid.clone(), watches(test));
                let (test, tests) = (Arc::clone(test), &self);
                running.push(async move {
                    Box::pin(tests.one(&test)).await;
                    uid
                });
            }
            tokio::select! {
                Some(uid) = running.next(), if !running.is_empty() => {
                    if on.remove(&uid) == Some(false) {
                        in_force = InForce::Unknown;
                        taking_back.push(self.take_back());
                    }
                }
                Some(left) = taking_back.next(), if !taking_back.is_empty() => {
                    in_force = left.map_or(InForce::Nothing, InForce::Left);
                    looked = Instant::now();
                }
                Some(()) = telling.next(), if !telling.is_empty() => {}
                _ = changes.changed() => {}
                () = sleep(LOOK_EVERY) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
        // Each of them was told as well.
        while running.next().await.is_some() {}
    }

    /// Takes back what runs left in force. Returns why something still is, or why no run may begin for another reason.
    async fn take_back(&self) -> Option<String> {
        let waits = |why: String| Some(format!("what an earlier run has in force must be taken back before another begins: {why}"));
        match undo::everything(&self.means, false).await {
            Ok(summary) => {
                for words in [&summary.undone, &summary.restored, &summary.unproven, &summary.not_ours].into_iter().flatten() {
                    tracing::warn!("taken back for a run that did not end it: {words}");
                }
                for why in &summary.failed {
                    tracing::error!("could not be taken back, and is tried again: {why}");
                }
                if summary.failed.is_empty() {
                    return self.closed().await;
                }
                waits(format!("{}; it is tried again, or given up by `steadfast undo --forget`", summary.failed.join("; ")))
            }
            Err(error) => {
                tracing::error!(%error, "what is in force cannot be read; tried again");
                waits(error.to_string())
            }
        }
    }

    /// Why no run may begin, if none may: everything is taken back for good.
    async fn closed(&self) -> Option<String> {
        let closing = Closing::new(self.means.prompt.clone(), &self.means.namespace);
        closing.closed().await.unwrap_or_else(|error| Some(error.to_string()))
    }

    async fn tell(&self, test: Arc<ResilienceTest>, status: ResilienceTestStatus) {
        self.write(&test, status).await;
    }

    /// A run whose controller is gone.
    async fn lost(&self, test: &ResilienceTest) {
        let during = test.status.as_ref().and_then(|status| status.progress.clone()).unwrap_or_default();
        let reason = if watches(test) {
            "Its controller was lost, and it was told to stop.".to_owned()
        } else {
            format!("The controller was lost during the run ({during}); what it had armed ended by itself.")
        };
        self.events.warn(test.object_ref(&()), "ControllerLost", "Run", &reason);
        self.write(test, finished(test.status.clone().unwrap_or_default(), Some(reason))).await;
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
                // A watch goes on where the leader before left it.
                let before = test.status.clone().filter(|status| status.phase == RunPhase::Running);
                let so_far = SoFar::new(before.map_or(started, |before| ResilienceTestStatus { progress: Some("starting".to_owned()), ..before }));
                self.write(test, so_far.now()).await;
                // Asked after it was said that it runs: whoever closes looks for what runs after it was closed.
                if !watches(test)
                    && let Some(why) = self.closed().await
                {
                    return self.write(test, finished(so_far.now(), Some(format!("It did not begin: {why}.")))).await;
                }
                self.events.say(test.object_ref(&()), "Started", "Run", if watches(test) { "the watch began" } else { "the run began" });
                let plan = Arc::new(plan);
                let ended =
                    if watches(test) { Box::pin(self.watch(test, &plan, &so_far)).await } else { Box::pin(self.lead(test, &plan, &so_far)).await.map(drop) };
                if watches(test) && *self.stopping.borrow() {
                    // The next leader goes on.
                    return;
                }
                let status = finished(so_far.now(), ended.err());
                let said = format!("{:?}: {}", status.verdict.unwrap_or(RunOutcome::Inconclusive), status.reason.clone().unwrap_or_default());
                self.events.say(test.object_ref(&()), "Finished", "Run", &said);
                self.write(test, status).await;
            }
        }
        let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
        self.metrics.forget_watch(&namespace, &name);
    }

    /// Watches until somebody ends it: a target that is not there, or never well, may be later.
    async fn watch(&self, test: &ResilienceTest, plan: &Arc<Plan>, so_far: &SoFar) -> Result<(), String> {
        loop {
            let ended = Box::pin(self.lead(test, plan, so_far)).await;
            if self.shall_end(test, true) {
                return ended.map(drop);
            }
            let why = ended.map_or_else(|why| why, |report| report.verdict.reason);
            let progress = format!("looks again in {} s: {why}", WATCH_AGAIN.as_secs());
            so_far.update(|status| ResilienceTestStatus { progress: Some(progress), ..status });
            self.write(test, so_far.now()).await;
            let again = Instant::now() + WATCH_AGAIN;
            while Instant::now() < again {
                if self.shall_end(test, true) {
                    return Err(why);
                }
                sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Its test is deleted or told to stop, its namespace has taken its leave back, or this controller ends.
    fn shall_end(&self, test: &ResilienceTest, watches: bool) -> bool {
        let namespace = test.namespace().unwrap_or_default();
        let now = self.objects.get(Some(&namespace), &test.name_any());
        let ends = |now: &ResilienceTest| now.metadata.deletion_timestamp.is_some() || now.annotations().contains_key(STOP_ANNOTATION);
        let gone = now.is_none_or(|now| now.uid() != test.uid() || ends(&now));
        gone || *self.stopping.borrow() || (!watches && !self.pods.allowed_in(&namespace))
    }

    /// What will be run, with its golden sets in a folder that lives as long as it.
    async fn plan(&self, test: &ResilienceTest) -> Result<(Plan, Folder), String> {
        let namespace = test.namespace().unwrap_or_default();
        let spec = test.spec.get().map_err(|why| format!("spec: {why}"))?.clone();
        if !spec.steps.is_empty() && !self.pods.allowed_in(&namespace) {
            return Err(format!("namespace {namespace} does not allow faults: kubectl label namespace {namespace} {FAULTS_LABEL}={FAULTS_ALLOWED}"));
        }
        let folder = Folder(std::env::temp_dir().join(format!("steadfast-{}", test.uid().unwrap_or_default())));
        let golden = spec.golden.iter().map(|golden| &golden.set);
        for name in spec.load.iter().map(|load| &load.inputs.golden_set).chain(golden).collect::<BTreeSet<_>>() {
            golden::fetch(&self.means.client, &namespace, name, &folder.0, &*self.golden).await?;
        }
        let metadata = Metadata { name: test.name_any(), labels: test.labels().clone() };
        let wanted = Test { api_version: ApiVersion::V1Alpha1, kind: Kind::ResilienceTest, metadata, spec };
        let finder = Finder { shelves: vec![folder.0.clone()], work_dir: folder.0.clone() };
        let plan = Plan::new(wanted, Target::Cluster, &finder);
        plan.map(|plan| (plan, folder)).map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }
}

/// Removed with all it holds.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod stop_tests;
