//! The flow of an experiment: warm-up → baseline → for each round, for each step: fault → monitor → undo → analyse until stable or until the deadline → end.
//!
//! Whatever happens on the way (a halt, an interruption, a fault that cannot be carried out), what is in force is undone and the platform is closed, and the
//! history up to there is kept: [`Course`] says how it ended. A test without steps watches on instead, until it is told to end, in one window after the other, and
//! without a warm-up where the target was there before.

mod step;
mod warm_up;
mod watching;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use steadfast_api::report::{PhaseKind, PlatformTimers, PodState};
use tokio::sync::{mpsc, watch};

use super::{
    halt,
    plan::Plan,
    progress::{OutageNow, PhaseNow, PodNow, Progress},
};
use crate::{
    load::Record,
    observe::History,
    platform::{InForce, Platform, Users},
    serve::Seen,
};

pub use watching::Window;

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(250);
/// How often a watch looks which outages are open.
const OPEN_EVERY: Duration = Duration::from_secs(2);
/// What progress calls "now".
const GLANCE: Duration = Duration::from_secs(5);
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
    /// Why its effect, or a part of it, was not seen.
    pub doubts: Vec<String>,
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
#[derive(Clone, Debug)]
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
    /// Whether users keep their connections from one request to the next.
    pub keep_alive: bool,
    pub sidecar_rss: std::collections::BTreeMap<String, u64>,
    pub timers: Option<PlatformTimers>,
}

/// Leads the run on a platform that has just been started, and closes it. `seen` is the sidecars' evidence; `interrupt` turning true ends the run early. A test without
/// steps goes on until then; its windows go out by `windows` as they end, and the last one is returned; without `windows` the whole is one.
pub async fn run<P: Platform>(
    plan: &Plan,
    platform: Arc<P>,
    seen: mpsc::Receiver<Seen>,
    interrupt: watch::Receiver<bool>,
    progress: &watch::Sender<Progress>,
    windows: Option<mpsc::Sender<Window>>,
) -> (Course, History) {
    let reach = halt::reach_us(&plan.test.spec.halt).max(GLANCE.as_micros() as i64);
    let mut history = History::new(Instant::now(), reach + 1_000_000);
    if let Some(timers) = platform.timers() {
        history.node_grace(timers.node_monitor_grace_period.get());
    }
    let history = Arc::new(Mutex::new(history));
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
        users: None,
        sink: Some(sink),
        expected: 0,
        measuring_since: None,
        told: None,
        open: None,
        now: PhaseNow::WarmUp,
        phase_end: now,
        number: 0,
        in_force: Vec::new(),
        given_up: None,
        windows,
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
            keep_alive: platform.keep_alive(),
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
    users: Option<Users>,
    sink: Option<mpsc::Sender<Record>>,
    /// Pods that the target has when it is whole.
    expected: usize,
    /// From the baseline on: microseconds of the history. Halts are watched from there.
    measuring_since: Option<i64>,
    told: Option<Instant>,
    /// Open outages, and when it was looked.
    open: Option<(Instant, Vec<OutageNow>)>,
    now: PhaseNow,
    phase_end: Instant,
    number: u32,
    in_force: Vec<(usize, InForce)>,
    /// Why the platform was told to give up: from then on the run ends, come what may.
    given_up: Option<Ending>,
    windows: Option<mpsc::Sender<Window>>,
    course: Course,
}

impl<P: Platform> Conductor<'_, P> {
    async fn flow(&mut self) -> Result<(), Ending> {
        let spec = &self.plan.test.spec;
        let began = if spec.steps.is_empty() && !self.platform.starts_target() {
            self.begin_to_watch().await?
        } else {
            self.warm_up().await?;
            Instant::now()
        };
        self.course.began = began;
        self.measuring_since = Some(lock(self.history).us(began));
        if spec.steps.is_empty() {
            return self.watch().await;
        }
        self.phase(PhaseNow::Baseline, PhaseKind::Baseline, "baseline", 1, None, began, spec.baseline.get());
        self.wait(began + spec.baseline.get(), |_, _| None::<()>).await?;
        for round in 1..=spec.rounds {
            for (index, step) in spec.steps.iter().enumerate() {
                if let Some(why) = self.must_not_go_on() {
                    self.course.notes.push(format!("Step {:?} of round {round} and what follows it were not begun: {why}", step.name));
                    return Ok(());
                }
                self.step(round, index as u32, step).await?;
            }
        }
        Ok(())
    }

    /// Why nothing more may be broken: the last fault is not over yet, in one way or another.
    fn must_not_go_on(&self) -> Option<String> {
        if let Some(left) = self.course.left_behind.first() {
            return Some(format!("a fault could not be undone ({left})"));
        }
        let unstable = self.course.phases.last().filter(|phase| phase.kind == PhaseKind::Recovery && phase.stable.is_none())?;
        let stable = &self.plan.test.spec.stable;
        (!stable.continue_unstable).then(|| {
            format!(
                "the target was not stable {} after {:?} (stable.within; stable.continueUnstable: true would go on all the same)",
                stable.within, unstable.name
            )
        })
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
        if let Some(users) = self.users.take() {
            let dropped = self.alongside(users.stop()).await;
            if dropped > 0 {
                self.course.notes.push(format!("{dropped} requests were answered faster than they could be recorded, and are in no figure"));
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

    /// Why the run must end, if it must: interrupted or halted.
    fn must_end(&self) -> Option<Ending> {
        if self.given_up.is_some() {
            return self.given_up.clone();
        }
        if *self.interrupt.borrow() {
            return Some(Ending::Interrupted);
        }
        let history = lock(self.history);
        let reason = halt::reason(&self.plan.test.spec.halt, &history.live, self.measuring_since?, history.us(Instant::now()));
        reason.map(Ending::Halted)
    }

    /// Waits for what must not be cut off, and tells the platform to be brief should the run have to end meanwhile.
    async fn brought_to_end<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.while_telling(work, |conductor| {
            if conductor.given_up.is_none()
                && let Some(ending) = conductor.must_end()
            {
                conductor.given_up = Some(ending);
                conductor.platform.give_up();
            }
        })
        .await
    }

    /// Until `done` says so (its value) or `until` (`None`), unless the run must end: interrupted or halted.
    async fn wait<T>(&mut self, until: Instant, mut done: impl FnMut(&History, i64) -> Option<T>) -> Result<Option<T>, Ending> {
        loop {
            if let Some(ending) = self.must_end() {
                return Err(ending);
            }
            self.tell();
            let now = Instant::now();
            {
                let history = lock(self.history);
                let now_us = history.us(now);
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
        self.while_telling(work, |_| {}).await
    }

    async fn while_telling<T>(&mut self, work: impl Future<Output = T>, mut meanwhile: impl FnMut(&mut Self)) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(TELL) => self.tell(),
            }
            meanwhile(self);
        }
    }

    fn tell(&mut self) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now < told + TELL) {
            return;
        }
        self.told = Some(now);
        let history = lock(self.history);
        if self.now == PhaseNow::Watch && self.open.as_ref().is_none_or(|(looked, _)| now >= *looked + OPEN_EVERY) {
            let (now_us, hold) = (history.us(now), self.plan.test.spec.stable.hold.get().as_micros() as i64);
            let open = history.open(now_us, hold).into_iter().map(|open| OutageNow {
                pod: open.pod,
                node: open.node,
                cause: open.cause,
                open_for: Duration::from_micros((now_us - open.since).max(0) as u64),
            });
            self.open = Some((now, open.collect()));
        }
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
        let (whole, of) = match self.now {
            PhaseNow::Watch => (self.phase_end.saturating_duration_since(self.course.began), 0),
            _ => (self.plan.estimate().0, 1 + (lasting + spec.steps.len()) as u32 * spec.rounds),
        };
        let behind = self.measuring_since.map_or(Duration::ZERO, |_| now - self.course.began);
        let left = if self.now == PhaseNow::CleanUp { Duration::ZERO } else { whole.saturating_sub(behind) };
        self.progress.send_replace(Progress {
            phase: self.now.clone(),
            number: self.number,
            of,
            phase_left: self.phase_end.saturating_duration_since(now),
            left,
            done: if left.is_zero() { 1.0 } else { 1.0 - left.as_secs_f64() / whole.as_secs_f64() },
            availability: glance.availability,
            p99_ms: glance.p99_ms,
            pods: pods.collect(),
            outages: self.open.as_ref().map(|(_, open)| open.clone()).unwrap_or_default(),
        });
    }
}
