//! The flow of an experiment: warm-up → baseline → for each round, for each step: fault → monitor → undo → analyse until stable or until the deadline → end.
//!
//! Whatever happens on the way (a halt, an interruption, a fault that cannot be carried out), what is in force is undone and the platform is closed, and the
//! history up to there is kept: [`Course`] says how it ended.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use steadfast_api::{
    Percent, Span,
    fault::{Abort, Corrupt, Fault, HttpAbort},
    golden::Verdict,
    report::{PhaseKind, PlatformTimers, PodState},
    test::{Action, Selection, Step},
};
use tokio::sync::{mpsc, watch};

use super::{
    halt,
    plan::Plan,
    progress::{PhaseNow, PodNow, Progress},
    select,
};
use crate::{
    load::{Record, generator::Generator},
    observe::{History, marks::Planned},
    platform::{InForce, Order, Platform},
    serve::Seen,
};

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(250);
/// What progress calls "now".
const GLANCE: Duration = Duration::from_secs(5);
/// All must have been well for this long before the baseline begins.
const WARM: Duration = Duration::from_secs(1);
/// A target that is not well by then never will be.
const WARM_UP_MAX: Duration = Duration::from_mins(5);
/// A server that ended so often by itself before the run began will do so again.
const DEATHS_MAX: u32 = 3;
/// Beyond a step's own time, until its fault ends by itself: longer than undoing it takes.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30);
/// Records on their way from a load's thread.
const RECORDS_MAX: usize = 1 << 16;

/// One stretch of the run.
#[derive(Clone, Debug)]
pub struct PhaseSpan {
    pub name: String,
    pub kind: PhaseKind,
    pub round: u32,
    pub step: Option<u32>,
    pub start: Instant,
    pub end: Instant,
    /// For recoveries: since when all was well, if it was before the deadline.
    pub stable: Option<Instant>,
}

/// One fault.
#[derive(Clone, Debug)]
pub struct FaultSpan {
    pub step: u32,
    pub round: u32,
    pub start: Instant,
    pub end: Instant,
    pub nodes: Vec<String>,
    pub pods: Vec<String>,
    pub evidence: Vec<String>,
    pub undone: Option<Instant>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Complete,
    /// By a halt of the file; its reason.
    Halted(String),
    Interrupted,
    /// Something that is not the target's doing failed.
    Broken(String),
    /// The target was never well, so there was nothing to test.
    NeverSteady(String),
}

/// How a run went.
#[derive(Debug)]
pub struct Course {
    pub began: Instant,
    pub ended: Instant,
    pub phases: Vec<PhaseSpan>,
    pub faults: Vec<FaultSpan>,
    pub ending: Ending,
    pub left_behind: Vec<String>,
    pub notes: Vec<String>,
    pub nodes: Vec<String>,
    pub platform: &'static str,
    pub sidecar_rss: std::collections::BTreeMap<String, u64>,
    pub timers: Option<PlatformTimers>,
}

/// Leads the run on a platform that has just been started, and closes it. `seen` is the sidecars' evidence; `interrupt` turning true ends the run early.
pub async fn run<P: Platform>(
    plan: &Plan,
    platform: Arc<P>,
    seen: mpsc::Receiver<Seen>,
    interrupt: watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
) -> (Course, History) {
    let reach = halt::reach_us(&plan.test.spec.halt).max(GLANCE.as_micros() as i64);
    let history = Arc::new(Mutex::new(History::new(Instant::now(), reach + 1_000_000)));
    let (sink, records) = mpsc::channel(RECORDS_MAX);
    let changes = tokio::spawn(take_changes(Arc::clone(&platform), Arc::clone(&history)));
    let evidence = tokio::spawn(take_seen(seen, Arc::clone(&history)));
    let records = tokio::spawn(take_records(records, Arc::clone(&history)));

    let now = Instant::now();
    let mut conductor = Conductor {
        plan,
        platform: &*platform,
        history: &history,
        interrupt,
        progress,
        rng: StdRng::seed_from_u64(plan.test.spec.seed),
        users: Vec::new(),
        sink: Some(sink),
        expected: 0,
        measuring_since: None,
        told: None,
        now: PhaseNow::WarmUp,
        phase_end: now,
        number: 0,
        in_force: Vec::new(),
        course: Course {
            began: now,
            ended: now,
            phases: Vec::new(),
            faults: Vec::new(),
            ending: Ending::Complete,
            left_behind: Vec::new(),
            notes: Vec::new(),
            nodes: platform.nodes(),
            platform: platform.name(),
            sidecar_rss: std::collections::BTreeMap::new(),
            timers: platform.timers(),
        },
    };
    if let Err(ending) = conductor.flow().await {
        conductor.course.ending = ending;
    }
    let course = conductor.clean_up().await;
    // Closing ended the changes and the sidecars; the loads ended the records.
    for task in [changes, evidence, records] {
        let _ = tokio::time::timeout(Duration::from_secs(5), task).await;
    }
    let epoch = Instant::now();
    let mut history = std::mem::replace(&mut *lock(&history), History::new(epoch, 0));
    history.cut(course.ended);
    history.seal();
    (course, history)
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn take_changes<P: Platform>(platform: Arc<P>, history: Arc<Mutex<History>>) {
    while let Some(change) = platform.next_change().await {
        lock(&history).change(&change);
    }
}

async fn take_seen(mut seen: mpsc::Receiver<Seen>, history: Arc<Mutex<History>>) {
    let mut batch = Vec::new();
    while seen.recv_many(&mut batch, 1024).await > 0 {
        let mut history = lock(&history);
        for seen in batch.drain(..) {
            history.seen(&seen);
        }
    }
}

async fn take_records(mut records: mpsc::Receiver<Record>, history: Arc<Mutex<History>>) {
    let mut batch = Vec::new();
    while records.recv_many(&mut batch, 1024).await > 0 {
        let mut history = lock(&history);
        for record in batch.drain(..) {
            history.record(&record);
        }
    }
}

struct Conductor<'a, P> {
    plan: &'a Plan,
    platform: &'a P,
    history: &'a Mutex<History>,
    interrupt: watch::Receiver<bool>,
    progress: &'a watch::Sender<Progress>,
    rng: StdRng,
    users: Vec<Generator>,
    sink: Option<mpsc::Sender<Record>>,
    /// Pods that the target has when it is whole.
    expected: usize,
    /// From the baseline on: microseconds of the history. Halts are watched from there.
    measuring_since: Option<i64>,
    told: Option<Instant>,
    now: PhaseNow,
    phase_end: Instant,
    number: u32,
    in_force: Vec<(usize, InForce)>,
    course: Course,
}

impl<P: Platform> Conductor<'_, P> {
    async fn flow(&mut self) -> Result<(), Ending> {
        self.warm_up().await?;
        let spec = &self.plan.test.spec;
        let began = Instant::now();
        self.course.began = began;
        self.measuring_since = Some(lock(self.history).us(began));
        self.phase(PhaseNow::Baseline, PhaseKind::Baseline, "baseline", 1, None, began, spec.baseline.get());
        self.wait(began + spec.baseline.get(), |_, _| None::<()>).await?;
        for round in 1..=spec.rounds {
            for (index, step) in spec.steps.iter().enumerate() {
                self.step(round, index as u32, step).await?;
            }
        }
        Ok(())
    }

    /// Until every pod is in the Service, the first replies are good and the first golden replays match.
    async fn warm_up(&mut self) -> Result<(), Ending> {
        let spec = &self.plan.test.spec;
        self.expected = self.platform.pods().len();
        let deadline = Instant::now() + WARM_UP_MAX;
        self.phase_end = deadline;
        let expected = self.expected;
        let serving = self.wait(deadline, |history, _| hopeless(history).map(Err).or_else(|| (history.fleet.serving().count() >= expected).then_some(Ok(()))));
        serving.await?.ok_or_else(|| Ending::NeverSteady(self.why_not_well()))?.map_err(Ending::NeverSteady)?;
        for (index, load) in spec.load.iter().enumerate() {
            let set =
                self.plan.sets.get(&load.inputs.golden_set).ok_or_else(|| Ending::Broken(format!("golden set {} was not loaded", load.inputs.golden_set)))?;
            let Some(sink) = self.sink.clone() else { continue };
            let seed = spec.seed.wrapping_add(index as u64 + 1);
            self.users.push(
                Generator::start(self.platform.service(), self.platform.keep_alive(), load, &set.set, seed, sink)
                    .map_err(|error| Ending::Broken(error.to_string()))?,
            );
        }
        self.sink = None;
        let (users, golden) = (!spec.load.is_empty(), !spec.golden.is_empty());
        let warm = self.wait(deadline, |history, now| {
            if let Some(why) = hopeless(history) {
                return Some(Err(why));
            }
            let since = history.well_since(expected, users)?;
            let replayed = !golden || history.replays_matched_on_all();
            (replayed && now - since >= WARM.as_micros() as i64).then_some(Ok(()))
        });
        warm.await?.ok_or_else(|| Ending::NeverSteady(self.why_not_well()))?.map_err(Ending::NeverSteady)
    }

    async fn step(&mut self, round: u32, index: u32, step: &Step) -> Result<(), Ending> {
        let (nodes, pods) = self.choose(step).await?;
        let order = order(step, &nodes, &pods);
        let touched: Vec<String> = if nodes.is_empty() {
            pods.clone()
        } else {
            self.platform.pods().into_iter().filter(|pod| nodes.contains(&pod.node)).map(|pod| pod.name).collect()
        };
        if nodes.is_empty() && pods.is_empty() {
            return Err(Ending::Broken(format!("step {:?} found nothing to hit: no pod of the target is in service", step.name)));
        }
        let asked = Instant::now();
        let expires = Span::new(step.duration.get() + grace(&step.action) + EXPIRY_MARGIN);
        let platform = self.platform;
        let in_force = self
            .alongside(platform.apply(order, expires))
            .await
            .map_err(|error| Ending::Broken(format!("step {:?} could not be carried out: {error}", step.name)))?;

        let takes = step.action.takes_pods();
        // Pods confirm a fault one after the other, and the first request is touched before the first of them has: nothing is before the moment of asking.
        let start = if takes { in_force.since.max(asked) } else { asked };
        let fault = self.course.faults.len();
        {
            let mut history = lock(self.history);
            let planned = Planned {
                index: fault as u32,
                since: history.us(start),
                until: None,
                takes,
                pods: pods.clone(),
                nodes: nodes.clone(),
                cause: format!("{} in step {:?}", step.action.name(), step.name),
            };
            let asked = history.us(asked).min(planned.since);
            history.fault(asked, planned);
        }
        let on = if nodes.is_empty() { pods.join(", ") } else { nodes.join(", ") };
        self.course.faults.push(FaultSpan { step: index, round, start, end: start, nodes, pods: touched, evidence: Vec::new(), undone: None });
        self.in_force.push((fault, in_force));

        if !step.duration.is_zero() {
            let name = step.name.clone();
            self.phase(PhaseNow::Fault { name, on }, PhaseKind::Fault, &step.name, round, Some(index), start, step.duration.get());
            self.wait(start + step.duration.get(), |_, _| None::<()>).await?;
        }
        let over = if step.duration.is_zero() { start } else { Instant::now() };
        self.course.faults[fault].end = over;
        let stable = &self.plan.test.spec.stable;
        let name = step.name.clone();
        self.phase(PhaseNow::Recovery { name }, PhaseKind::Recovery, &step.name, round, Some(index), over, stable.within.get());
        self.undo().await;
        self.analyse(over, stable.within.get(), stable.hold.get()).await
    }

    /// Until all has been well for `hold`, or until the deadline.
    async fn analyse(&mut self, over: Instant, within: Duration, hold: Duration) -> Result<(), Ending> {
        let (expected, users) = (self.expected, !self.plan.test.spec.load.is_empty());
        let over_us = lock(self.history).us(over);
        let stable = self
            .wait(over + within, |history, now| {
                let since = history.well_since(expected, users)?.max(over_us);
                (now - since >= hold.as_micros() as i64).then_some(since)
            })
            .await?;
        if let Some(phase) = self.course.phases.last_mut() {
            phase.stable = stable.map(|since| over + Duration::from_micros((since - over_us).max(0) as u64));
        }
        if stable.is_none() && lock(self.history).fleet.serving().count() == 0 {
            return Err(Ending::Broken("no pod was in service any more at the deadline of the analysis, so there was nothing left to test".to_owned()));
        }
        Ok(())
    }

    /// Exact names, drawn among nodes that hold a pod in service, or among pods in service.
    async fn choose(&mut self, step: &Step) -> Result<(Vec<String>, Vec<String>), Ending> {
        let serving: Vec<_> = self.platform.pods().into_iter().filter(|pod| pod.in_service).collect();
        if let Some(selection) = step.action.nodes() {
            let platform = self.platform;
            let may = self.alongside(platform.choosable(&step.action)).await;
            let may = may.map_err(|error| Ending::Broken(format!("step {:?} may hit nothing: {error}", step.name)))?;
            let candidates: Vec<String> = may.into_iter().filter(|node| serving.iter().any(|pod| pod.node == *node)).collect();
            return Ok((select::draw(selection, &candidates, &mut self.rng), Vec::new()));
        }
        let names: Vec<String> = serving.into_iter().map(|pod| pod.name).collect();
        // What chooses neither is about the whole target.
        Ok((Vec::new(), select::draw(step.action.pods().unwrap_or(Selection::All), &names, &mut self.rng)))
    }

    async fn undo(&mut self) {
        let platform = self.platform;
        for (fault, in_force) in std::mem::take(&mut self.in_force) {
            let undone = self.alongside(platform.undo(in_force)).await;
            let at = Instant::now();
            let span = &mut self.course.faults[fault];
            span.evidence = undone.evidence;
            span.undone = undone.left_behind.is_empty().then_some(at);
            self.course.left_behind.extend(undone.left_behind);
            let mut history = lock(self.history);
            let until = history.us(at);
            history.fault_over(fault as u32, until);
        }
    }

    async fn clean_up(mut self) -> Course {
        self.course.ended = Instant::now();
        if self.course.phases.is_empty() && self.measuring_since.is_none() {
            // Never well: the warm-up is all there is to see.
            self.course.ended = self.course.ended.max(self.course.began);
        }
        let ended = self.course.ended;
        if let Some(phase) = self.course.phases.last_mut() {
            phase.end = ended;
        }
        for (fault, _) in &self.in_force {
            self.course.faults[*fault].end = ended;
        }
        self.now = PhaseNow::CleanUp;
        self.phase_end = ended;
        self.undo().await;
        self.sink = None;
        for users in std::mem::take(&mut self.users) {
            let sent = self.alongside(users.stop()).await;
            if sent.records_dropped > 0 {
                self.course.notes.push(format!("{} requests were answered faster than they could be recorded, and are in no figure", sent.records_dropped));
            }
        }
        self.course.sidecar_rss = self.platform.sidecar_rss();
        let platform = self.platform;
        let left = self.alongside(platform.close()).await;
        self.course.left_behind.extend(left);
        self.course
    }

    /// Ends the phase before and begins the next.
    #[allow(clippy::too_many_arguments, reason = "one call site for each kind of phase, each reads as a row of a table")]
    fn phase(&mut self, now: PhaseNow, kind: PhaseKind, name: &str, round: u32, step: Option<u32>, start: Instant, lasts: Duration) {
        if let Some(before) = self.course.phases.last_mut() {
            before.end = start;
        }
        self.course.phases.push(PhaseSpan { name: name.to_owned(), kind, round, step, start, end: start, stable: None });
        self.now = now;
        self.number += 1;
        self.phase_end = start + lasts;
        self.told = None;
    }

    /// Until `done` says so (its value) or `until` (`None`), unless the run must end: interrupted or halted.
    async fn wait<T>(&mut self, until: Instant, mut done: impl FnMut(&History, i64) -> Option<T>) -> Result<Option<T>, Ending> {
        loop {
            if *self.interrupt.borrow() {
                return Err(Ending::Interrupted);
            }
            self.tell();
            let now = Instant::now();
            {
                let history = lock(self.history);
                let now_us = history.us(now);
                if let Some(since) = self.measuring_since
                    && let Some(reason) = halt::reason(&self.plan.test.spec.halt, &history.live, since, now_us)
                {
                    return Err(Ending::Halted(reason));
                }
                if let Some(value) = done(&history, now_us) {
                    return Ok(Some(value));
                }
            }
            if now >= until {
                return Ok(None);
            }
            tokio::time::sleep(TICK.min(until - now)).await;
        }
    }

    /// Waits for something that must not be cut off, and goes on telling.
    async fn alongside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(TELL) => self.tell(),
            }
        }
    }

    fn tell(&mut self) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now < told + TELL) {
            return;
        }
        self.told = Some(now);
        let history = lock(self.history);
        let glance = history.live.glance(history.us(now) - GLANCE.as_micros() as i64);
        let pods = history.fleet.pods().iter().enumerate().filter(|(_, pod)| pod.state() != PodState::Gone);
        let pods = pods.map(|(index, pod)| PodNow {
            name: pod.name.clone(),
            node: pod.node.clone(),
            state: pod.state(),
            golden: history.replays.verdict(index as u32),
            p99_ms: history.requests.find(&pod.name).and_then(|name| glance.pods.get(&name).copied()),
        });
        let spec = &self.plan.test.spec;
        let lasting = spec.steps.iter().filter(|step| !step.duration.is_zero()).count();
        let (whole, _) = self.plan.estimate();
        let behind = self.measuring_since.map_or(Duration::ZERO, |_| now - self.course.began);
        let left = if self.now == PhaseNow::CleanUp { Duration::ZERO } else { whole.saturating_sub(behind) };
        self.progress.send_replace(Progress {
            phase: self.now.clone(),
            number: self.number,
            of: 1 + (lasting + spec.steps.len()) as u32 * spec.rounds,
            phase_left: self.phase_end.saturating_duration_since(now),
            left,
            done: if left.is_zero() { 1.0 } else { 1.0 - left.as_secs_f64() / whole.as_secs_f64() },
            availability: glance.availability,
            p99_ms: glance.p99_ms,
            pods: pods.collect(),
        });
    }

    fn why_not_well(&self) -> String {
        let history = lock(self.history);
        let pods: Vec<String> =
            history.fleet.pods().iter().filter(|pod| pod.state() != PodState::Gone).map(|pod| format!("{} {:?}", pod.name, pod.state())).collect();
        let trouble = history.live.last_trouble().map_or_else(String::new, |_| {
            let wrong = history.replays.log.iter().rev().find_map(|replay| replay.detail.as_deref());
            wrong.map_or_else(|| "; requests failed or were answered wrongly".to_owned(), |wrong| format!("; answered wrongly: {wrong}"))
        });
        format!("after {} of warm-up not everything was well: {}{trouble}", Span::new(WARM_UP_MAX), pods.join(", "))
    }
}

/// Why waiting longer will not make the target well, if it will not.
fn hopeless(history: &History) -> Option<String> {
    let broken = history.replays.verdicts.iter().find(|judged| judged.verdict == Verdict::ReferenceBroken);
    if let Some(judged) = broken {
        let set = &history.replays.sets[usize::from(judged.set)];
        return Some(format!(
            "golden set {set:?} is broken (ReferenceBroken): its model does not give the answers that are stored in it, so nobody could say what is right;              `steadfast golden show` names the sample"
        ));
    }
    let dying = history.fleet.pods().iter().find(|pod| pod.deaths >= DEATHS_MAX && !pod.is_gone())?;
    let last = dying.last_death.as_deref().unwrap_or("its process ended");
    Some(format!("the model server of {} ended {} times before it was ready: {last}", dying.name, dying.deaths))
}

fn grace(action: &Action) -> Duration {
    if let Action::PodKill(action) = action { action.grace_period.get() } else { Duration::ZERO }
}

fn order(step: &Step, nodes: &[String], pods: &[String]) -> Order {
    let (nodes, pods) = (nodes.to_vec(), pods.to_vec());
    let abort = || Fault::Abort(Abort { http_status: HttpAbort::UNAVAILABLE });
    match &step.action {
        Action::NetworkLatency(latency) => Order::Requests { pods, nodes, fault: Fault::Delay(latency.as_delay()), share: Percent::HUNDRED },
        Action::NetworkLoss(loss) => Order::Requests { pods, nodes, fault: abort(), share: loss.share },
        Action::NetworkPartition(_) => Order::Requests { pods, nodes, fault: abort(), share: Percent::HUNDRED },
        Action::PodKill(kill) => Order::Kill { pods, grace: kill.grace_period },
        Action::PodHoldDown(_) => Order::HoldDown { pods },
        Action::Evict(_) => Order::Evict { pods },
        Action::ContainerKill(kill) => Order::KillContainers { pods, container: kill.container.clone() },
        Action::Rollout(rollout) => Order::RollOut { container: rollout.container.clone(), image: rollout.image.clone() },
        Action::Scale(scale) => Order::Scale { replicas: scale.replicas },
        Action::NodeFailure(failure) => Order::LoseNodes { nodes, by: failure.by, lasts: step.duration },
        Action::Drain(_) => Order::Drain { nodes },
        Action::Cordon(_) => Order::Cordon { nodes },
        Action::Taint(taint) => Order::Taint { nodes, key: taint.key.clone(), value: taint.value.clone(), effect: taint.effect },
        Action::CpuPressure(pressure) if nodes.is_empty() => Order::BurnPods { pods, load: pressure.load },
        Action::CpuPressure(pressure) => Order::Burn { nodes, load: pressure.load },
        Action::Corrupt(corrupt) => Order::Requests { pods, nodes, fault: Fault::Corrupt(Corrupt { magnitude: corrupt.magnitude }), share: corrupt.share },
    }
}
