//! ResilienceTests: told of in their status; the report beside them in a ConfigMap. Those with steps run one after the other, in the order in which they were made, each
//! once. Those without watch on beside them, until they are deleted.
//!
//! A run that its controller did not survive is not begun again: what it had armed ends on the sidecars' own clocks, and the next leader takes the rest back and says
//! that it is inconclusive. A controller that is told to stop ends its run first. A watch goes on with the next leader.
//! Deleting a test ends its run; the annotation `steadfast.dev/stop` does too, and keeps the report.
//!
//! What is run is the spec that stood there when it began, and its generation stands in the status. The spec of a run does not change (the definition refuses
//! it); that of a watch may, which then begins its next window with it; and a test that was refused is looked at again when it is mended. A test that a
//! schedule made is let begin, and make each of its faults, by [`Leave`].

mod lead;
mod report;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
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
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use self::{
    lead::SoFar,
    status::{Written, finished, now},
};
use super::{
    golden_set::runs::Runs,
    pods::{FAULTS_ALLOWED, FAULTS_LABEL, Pods},
    resilience_schedule::{Leave, Moment, SCHEDULE_LABEL},
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
    platform::kubernetes::{
        UsersPods,
        failures::{Means, closing::Closing, undo},
    },
    serve::{ingest::Ingest, policy::PolicyHub},
    words::some,
};

pub use lead::outage_report_name;
pub use report::{REPORT_KEY, part, part_name, report_name};

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
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Problems of a spec that are told at once.
const PROBLEMS_MAX: usize = 8;

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
    schedules: Arc<Leave>,
    /// Where reports go; absent: ConfigMaps.
    reports: Option<Objects>,
    /// Users have pods of their own.
    users_pods: Option<UsersPods>,
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
    /// Who lets tests run that a schedule made.
    pub schedules: Arc<Leave>,
    /// Where reports go; absent: ConfigMaps.
    pub reports: Option<Objects>,
    /// Users have pods of their own.
    pub users_pods: Option<UsersPods>,
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

/// What a test that nobody leads asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// To be run, or watched on with.
    Turn,
    /// To be told that it ends before it has begun.
    Stop,
    /// To be told that its controller is gone.
    End,
    Nothing,
}

/// `begun`: the generation with which this leader has begun it, if it has; an older status may still be what is known of it.
fn wants(test: &ResilienceTest, begun: Option<i64>) -> Wants {
    let generation = test.metadata.generation;
    if test.metadata.deletion_timestamp.is_some() || (begun.is_some() && begun >= generation) {
        return Wants::Nothing;
    }
    let status = test.status.as_ref();
    let is_stopped = test.annotations().contains_key(STOP_ANNOTATION);
    match status.map_or(RunPhase::Pending, |status| status.phase) {
        RunPhase::Pending if test.is_suspended() => Wants::Nothing,
        RunPhase::Pending if is_stopped => Wants::Stop,
        RunPhase::Pending => Wants::Turn,
        // Mended since.
        RunPhase::Refused if status.and_then(|status| status.observed_generation) < generation && !test.is_suspended() => Wants::Turn,
        RunPhase::Running if watches(test) && !is_stopped && !test.is_suspended() => Wants::Turn,
        // What this leader ran has ended, and its last word has not been heard of yet.
        RunPhase::Running if begun.is_none() => Wants::End,
        RunPhase::Running | RunPhase::Refused | RunPhase::Finished => Wants::Nothing,
    }
}

/// What goes on.
struct OnNow {
    watches: bool,
    /// In words.
    test: String,
}

impl Tests {
    pub fn new(needs: Needs) -> Self {
        let Needs { means, hub, ingest, golden, events, metrics, stopping, schedules, reports, users_pods } = needs;
        let objects = Watched::within(means.pods.scope().apis(&means.client), watcher::Config::default(), |_| {});
        Self { pods: Arc::clone(&means.pods), means, objects, hub, ingest, golden, events, metrics, stopping, schedules, reports, users_pods }
    }

    /// Returns when it is told to stop and what it did is undone.
    pub async fn run(self) {
        let mut stopping = self.stopping.clone();
        let listed = async {
            self.pods.listed().await;
            self.objects.listed().await;
            self.schedules.listed().await;
        };
        tokio::select! {
            () = listed => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        // Between runs nothing may be in force: whatever is, is of a run that is no more, or could not be undone at its end. It is taken back beside everything else that
        // goes on here, since that may take as long as a node is silent.
        let mut in_force = InForce::Unknown;
        let mut taking_back = FuturesUnordered::new();
        taking_back.push(self.take_back());
        let mut looked = Instant::now();
        let mut changes = self.objects.changes();
        // What this leader began, by UID, and with which generation; and what of it goes on.
        let mut begun: BTreeMap<String, i64> = BTreeMap::new();
        let mut on: BTreeMap<String, OnNow> = BTreeMap::new();
        // Why tests wait, as they were told.
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        let mut running = FuturesUnordered::new();
        let mut telling = FuturesUnordered::new();
        while !*stopping.borrow() {
            let breaks = on.values().find(|on| !on.watches).map(|on| on.test.clone());
            if breaks.is_none() && taking_back.is_empty() && looked.elapsed() >= TAKE_BACK_EVERY {
                taking_back.push(self.take_back());
            }
            let tests = self.objects.all();
            let there: BTreeSet<String> = tests.iter().filter_map(|test| test.uid()).collect();
            begun.retain(|uid, _| there.contains(uid));
            let mut waiting: Vec<Arc<ResilienceTest>> = Vec::new();
            for test in tests {
                let uid = test.uid().unwrap_or_default();
                if on.contains_key(&uid) {
                    continue;
                }
                match wants(&test, begun.get(&uid).copied()) {
                    Wants::Turn => waiting.push(test),
                    Wants::Stop => {
                        begun.insert(uid, test.metadata.generation.unwrap_or_default());
                        telling.push(self.tell(test, Word::Stopped));
                    }
                    Wants::End => {
                        begun.insert(uid, test.metadata.generation.unwrap_or_default());
                        self.lost(&test).await;
                    }
                    Wants::Nothing => {}
                }
            }
            waiting.sort_by_key(|test| test.metadata.creation_timestamp.as_ref().map(|created| created.0));
            let (watchers, breakers): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|test| watches(test));
            let room = WATCHES_MAX.saturating_sub(on.values().filter(|on| on.watches).count());
            // Whoever takes back takes back everything: what a run has just begun too. And what is still being told of a test that waits must not come after what is told
            // of its run.
            let may_begin = breaks.is_none() && taking_back.is_empty() && telling.is_empty() && matches!(in_force, InForce::Nothing);
            let next = breakers.first().filter(|_| may_begin);
            let before = breaks.or_else(|| next.map(ToString::to_string));
            let mut waits: Vec<(&Arc<ResilienceTest>, Wait)> = watchers.iter().skip(room).map(|test| (test, Wait::Watches)).collect();
            for test in breakers.iter().skip(usize::from(next.is_some())) {
                let wait = match (&in_force, &before) {
                    (InForce::Left(why), _) => Wait::TakeBack(why.clone()),
                    (_, Some(before)) => Wait::Turn(before.clone()),
                    // It is looked at what is in force, which takes a moment as a rule.
                    (_, None) => continue,
                };
                waits.push((test, wait));
            }
            told.retain(|uid, _| waits.iter().any(|(test, _)| test.uid().as_ref() == Some(uid)));
            for (test, wait) in waits {
                // Once for each reason, and not whenever something changes somewhere.
                if told.insert(test.uid().unwrap_or_default(), wait.key()).is_none_or(|before| before != wait.key()) {
                    telling.push(self.tell(Arc::clone(test), Word::Waits(wait)));
                }
            }
            for test in watchers.iter().take(room).chain(next) {
                let uid = test.uid().unwrap_or_default();
                begun.insert(uid.clone(), test.metadata.generation.unwrap_or_default());
                on.insert(uid.clone(), OnNow { watches: watches(test), test: test.to_string() });
                let (test, tests) = (Arc::clone(test), &self);
                running.push(async move { (uid, Box::pin(tests.one(&test)).await) });
            }
            tokio::select! {
                Some((uid, began)) = running.next(), if !running.is_empty() => {
                    if !began {
                        begun.remove(&uid);
                    }
                    if on.remove(&uid).is_some_and(|on| !on.watches) {
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

    /// Says once why a test is not run, or not yet: whoever follows it knows that there is a controller.
    async fn tell(&self, test: Arc<ResilienceTest>, word: Word) {
        let wait = match word {
            Word::Waits(wait) => wait,
            Word::Stopped => {
                let why = "It was told to stop before it began.".to_owned();
                self.events.say(test.object_ref(&()), "Finished", "Run", &why);
                self.write(&test, finished(test.status.clone().unwrap_or_default(), Some(why))).await;
                return;
            }
        };
        if !matches!(wait, Wait::Turn(_)) {
            self.events.warn(test.object_ref(&()), "Waits", if watches(&test) { "Watch" } else { "Run" }, &wait.to_string());
        }
        if test.status.as_ref().is_none_or(|status| status.phase == RunPhase::Pending) {
            let status = ResilienceTestStatus {
                observed_generation: test.metadata.generation,
                progress: Some(format!("waits: {wait}")),
                ..ResilienceTestStatus::default()
            };
            self.write(&test, status).await;
        }
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

    /// A run whose controller is gone.
    async fn lost(&self, test: &ResilienceTest) {
        let during = test.status.as_ref().and_then(|status| status.progress.clone()).unwrap_or_default();
        let reason = if watches(test) {
            format!("Its controller was lost, and it was {}.", if test.is_suspended() { "suspended" } else { "told to stop" })
        } else {
            format!("The controller was lost during the run ({during}); what it had armed ended by itself.")
        };
        self.events.warn(test.object_ref(&()), "ControllerLost", "Run", &reason);
        self.write(test, finished(test.status.clone().unwrap_or_default(), Some(reason))).await;
    }

    /// As it stands now: what is known of it here may be older than what this leader itself wrote. `None`: it is gone, or the API server does not say.
    async fn read(&self, test: &ResilienceTest) -> Result<Option<ResilienceTest>, String> {
        let api: Api<ResilienceTest> = Api::namespaced(self.means.client.clone(), &test.namespace().unwrap_or_default());
        match timeout(ASK_WITHIN, api.get_opt(&test.name_any())).await {
            Ok(Ok(now)) => Ok(now.filter(|now| now.uid() == test.uid() && now.metadata.deletion_timestamp.is_none())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        }
    }

    /// Runs or watches it. False: it did not begin, and wants to be looked at again.
    async fn one(&self, test: &ResilienceTest) -> bool {
        let not_yet = async |why: &str| {
            tracing::warn!(%test, why, "cannot begin yet");
            sleep(LOOK_EVERY).await;
            false
        };
        let test = match self.read(test).await {
            Ok(Some(test)) => test,
            Ok(None) => return true,
            Err(why) => return not_yet(&why).await,
        };
        let test = &test;
        if wants(test, None) != Wants::Turn {
            return true;
        }
        let started = ResilienceTestStatus {
            observed_generation: test.metadata.generation,
            phase: RunPhase::Running,
            progress: Some("starting".to_owned()),
            started_at: Some(now()),
            ..ResilienceTestStatus::default()
        };
        let leave = match self.schedules.ask(test, Moment::Start).await {
            Ok(leave) => leave,
            Err(error) => return not_yet(&error.to_string()).await,
        };
        let planned = match leave {
            Ok(()) => self.planned(test, &started).await,
            Err(skip) => Err(Unplanned::Refused(format!("{}: {}", skip.reason, skip.message))),
        };
        match planned {
            Err(Unplanned::Refused(why)) => {
                let made_again = ". Another spec is looked at by itself; where something else was mended, delete this test and make it again";
                let why = if test.labels().contains_key(SCHEDULE_LABEL) { why } else { why + made_again };
                self.events.warn(test.object_ref(&()), "Refused", "Run", &why);
                let status = ResilienceTestStatus { phase: RunPhase::Refused, reason: Some(why), progress: None, finished_at: Some(now()), ..started };
                self.write(test, status).await;
            }
            // The next leader goes on, or this one with what is asked for now.
            Err(Unplanned::NotNow(_)) if *self.stopping.borrow() || self.goes_on_anew(test) => return true,
            Err(Unplanned::NotNow(why)) => {
                self.write(test, finished(started, Some(why))).await;
            }
            Ok(plan) => {
                // A watch goes on where the leader before left it.
                let before = test.status.clone().filter(|status| status.phase == RunPhase::Running);
                let observed_generation = test.metadata.generation;
                let so_far =
                    SoFar::new(before.map_or(started, |before| ResilienceTestStatus { observed_generation, progress: Some("starting".to_owned()), ..before }));
                // What nobody knows to run would be run again by the next leader.
                match self.write(test, so_far.now()).await {
                    Written::Yes => {}
                    Written::Gone => return true,
                    Written::No => return not_yet("that it runs could not be written down").await,
                }
                // Asked after it was said that it runs: whoever closes looks for what runs after it was closed.
                if !watches(test)
                    && let Some(why) = self.closed().await
                {
                    self.write(test, finished(so_far.now(), Some(format!("It did not begin: {why}.")))).await;
                    return true;
                }
                self.events.say(test.object_ref(&()), "Started", "Run", if watches(test) { "the watch began" } else { "the run began" });
                let plan = Arc::new(plan);
                let ended =
                    if watches(test) { Box::pin(self.watch(test, &plan, &so_far)).await } else { Box::pin(self.lead(test, &plan, &so_far)).await.map(drop) };
                if watches(test) && (*self.stopping.borrow() || self.goes_on_anew(test)) {
                    // The next leader goes on, or this one with what is asked for now.
                    return true;
                }
                let status = finished(so_far.now(), ended.err());
                let said = format!("{:?}: {}", status.verdict.unwrap_or(RunOutcome::Inconclusive), status.reason.clone().unwrap_or_default());
                self.events.say(test.object_ref(&()), "Finished", "Run", &said);
                self.write(test, status).await;
            }
        }
        let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
        self.metrics.forget_watch(&namespace, &name);
        true
    }

    /// The spec of this watch is another now.
    fn goes_on_anew(&self, test: &ResilienceTest) -> bool {
        let now = self.objects.get(test.namespace().as_deref(), &test.name_any());
        now.is_some_and(|now| {
            let is_anew = now.uid() == test.uid() && now.metadata.generation > test.metadata.generation;
            is_anew && now.metadata.deletion_timestamp.is_none() && !now.annotations().contains_key(STOP_ANNOTATION) && !now.is_suspended()
        })
    }

    /// The plan, once there is one: a watch is not over because its golden set is not there yet or an API server does not answer; a test that breaks something has
    /// waited for that as long as [`golden::fetch`] does.
    async fn planned(&self, test: &ResilienceTest, started: &ResilienceTestStatus) -> Result<Plan, Unplanned> {
        loop {
            match self.plan(test).await {
                Err(Unplanned::NotNow(why)) if watches(test) => {
                    let before = test.status.clone().filter(|status| status.phase == RunPhase::Running).unwrap_or_else(|| started.clone());
                    self.write(test, ResilienceTestStatus { progress: Some(looks_again(&why)), ..before }).await;
                    if self.is_ended_within(test, WATCH_AGAIN).await {
                        return Err(Unplanned::NotNow(why));
                    }
                }
                Err(Unplanned::NotNow(why)) => return Err(Unplanned::Refused(why)),
                planned => return planned,
            }
        }
    }

    /// Whether somebody ends a watch before so long has passed.
    async fn is_ended_within(&self, test: &ResilienceTest, within: Duration) -> bool {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if self.shall_end(test, true) {
                return true;
            }
            sleep(LOOK_EVERY).await;
        }
        false
    }

    /// Watches until somebody ends it: a target that is not there, or never well, may be later.
    async fn watch(&self, test: &ResilienceTest, plan: &Arc<Plan>, so_far: &SoFar) -> Result<(), String> {
        loop {
            let ended = Box::pin(self.lead(test, plan, so_far)).await;
            self.metrics.watch_now(&test.namespace().unwrap_or_default(), &test.name_any(), None, None);
            if self.shall_end(test, true) {
                return ended.map(drop);
            }
            let why = ended.map_or_else(|why| why, |report| report.verdict.reason);
            so_far.update(|status| ResilienceTestStatus { progress: Some(looks_again(&why)), ..status });
            self.write(test, so_far.now()).await;
            if self.is_ended_within(test, WATCH_AGAIN).await {
                return Err(why);
            }
        }
    }

    /// Its test is deleted or told to stop, a watch is to go on with another spec, its namespace or its schedule has taken its leave back, or this controller
    /// ends.
    fn shall_end(&self, test: &ResilienceTest, watches: bool) -> bool {
        let namespace = test.namespace().unwrap_or_default();
        let now = self.objects.get(Some(&namespace), &test.name_any());
        let ends = |now: &ResilienceTest| {
            let is_another = watches && now.metadata.generation > test.metadata.generation;
            is_another || now.metadata.deletion_timestamp.is_some() || now.annotations().contains_key(STOP_ANNOTATION)
        };
        let gone = now.is_none_or(|now| now.uid() != test.uid() || ends(&now));
        gone || *self.stopping.borrow() || (!watches && !self.pods.allowed_in(&namespace)) || self.schedules.is_leashed(test)
    }

    /// What will be run, with its golden sets.
    async fn plan(&self, test: &ResilienceTest) -> Result<Plan, Unplanned> {
        let namespace = test.namespace().unwrap_or_default();
        let spec = test.spec.get().map_err(|why| Unplanned::Refused(format!("spec: {why}")))?.clone();
        if !spec.steps.is_empty() && !self.pods.allowed_in(&namespace) {
            let why = format!("namespace {namespace} does not allow faults: kubectl label namespace {namespace} {FAULTS_LABEL}={FAULTS_ALLOWED}");
            return Err(Unplanned::Refused(why));
        }
        let folder = Folder(std::env::temp_dir().join(format!("steadfast-{}", test.uid().unwrap_or_default())));
        let golden = spec.golden.iter().map(|golden| &golden.set);
        for name in spec.load.iter().map(|load| &load.inputs.golden_set).chain(golden).collect::<BTreeSet<_>>() {
            golden::fetch(&self.means.client, &namespace, name, &folder.0, &*self.golden).await.map_err(Unplanned::NotNow)?;
        }
        let metadata = Metadata { name: test.name_any(), namespace: Some(namespace), labels: test.labels().clone(), annotations: BTreeMap::new() };
        let wanted = Test { api_version: ApiVersion::V1Alpha1, kind: Kind::ResilienceTest, metadata, spec };
        let finder = Finder { shelves: vec![folder.0.clone()], work_dir: folder.0.clone() };
        // What is read is held; the folder is needed no longer.
        let plan = Plan::new(wanted, Target::Cluster, &finder);
        plan.map_err(|problems| Unplanned::Refused(some(&problems.iter().map(ToString::to_string).collect::<Vec<_>>(), PROBLEMS_MAX)))
    }
}

/// What a test is told that does not run.
enum Word {
    Waits(Wait),
    Stopped,
}

/// Why a test is not run yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wait {
    Watches,
    /// Until this one has ended.
    Turn(String),
    TakeBack(String),
}

impl Wait {
    /// What is told once; words may say more each time.
    fn key(&self) -> String {
        match self {
            Self::Watches => "watches".to_owned(),
            Self::Turn(before) => format!("turn {before}"),
            Self::TakeBack(_) => "take back".to_owned(),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Watches => write!(f, "{WATCHES_MAX} watches go on already: stop one, or let one test watch more pods"),
            Self::Turn(before) => write!(f, "runs go on one after the other, and {before} comes first"),
            Self::TakeBack(why) => f.write_str(why),
        }
    }
}

/// Why there is no plan.
enum Unplanned {
    /// The test must be another one.
    Refused(String),
    /// It may be otherwise in a moment.
    NotNow(String),
}

fn looks_again(why: &str) -> String {
    format!("looks again in {} s: {why}", WATCH_AGAIN.as_secs())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn test(spec: &str, status: &str, generation: i64) -> ResilienceTest {
        serde_saphyr::from_str(&format!(
            "metadata: {{name: t, generation: {generation}}}\nspec: {{target: {{selector: {{matchLabels: {{a: b}}}}}}, {spec}}}\nstatus: {{{status}}}"
        ))
        .unwrap()
    }

    #[test]
    fn each_run_is_begun_once_and_what_was_refused_again_when_it_is_mended() {
        let steps = "steps: [{name: killed, podKill: {pods: {mode: one}}}]";
        let run = |status: &str, generation, begun| wants(&test(steps, status, generation), begun);
        assert_eq!(run("", 1, None), Wants::Turn);
        assert_eq!(run("", 1, Some(1)), Wants::Nothing, "its status has not been heard of yet");
        assert_eq!(run("phase: Running, observedGeneration: 1", 1, None), Wants::End, "of a leader that is gone");
        assert_eq!(run("phase: Running, observedGeneration: 1", 2, Some(1)), Wants::Nothing, "it has ended, as will be heard of");
        assert_eq!(run("phase: Finished, observedGeneration: 1", 2, None), Wants::Nothing);
        assert_eq!(run("phase: Refused, observedGeneration: 1", 1, None), Wants::Nothing);
        assert_eq!(run("phase: Refused, observedGeneration: 1", 2, Some(1)), Wants::Turn, "mended");
        assert_eq!(wants(&test(&format!("suspend: true, {steps}"), "", 1), None), Wants::Nothing);
    }

    #[test]
    fn a_watch_goes_on_with_the_next_leader_and_with_another_spec() {
        let watch = |spec: &str, generation, begun| wants(&test(spec, "phase: Running, observedGeneration: 1", generation), begun);
        assert_eq!(watch("window: 1m", 1, None), Wants::Turn);
        assert_eq!(watch("window: 1m", 1, Some(1)), Wants::Nothing);
        assert_eq!(watch("window: 2m", 2, Some(1)), Wants::Turn);
        assert_eq!(watch("suspend: true", 2, None), Wants::End);
        let mut stopped = test("", "phase: Running", 1);
        stopped.annotations_mut().insert(STOP_ANNOTATION.to_owned(), "now".to_owned());
        assert_eq!(wants(&stopped, None), Wants::End);
    }

    #[test]
    fn who_waits_is_told_once_for_each_reason() {
        let (one, other) = (Wait::TakeBack("n1 is away: tried 3 times".into()), Wait::TakeBack("n1 is away: tried 4 times".into()));
        assert_eq!(one.key(), other.key());
        assert_ne!(one.key(), Wait::Turn("a".into()).key());
        assert_ne!(Wait::Turn("a".into()).key(), Wait::Turn("b".into()).key());
    }
}
