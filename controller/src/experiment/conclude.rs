//! From the history of a run to its report.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use steadfast_api::{
    Percent, Span,
    golden::Outcome,
    mark::Mark,
    report::{
        FaultWindow, GoldenPoint, GoldenSetReport, GoldenVerdictPoint, Machine, Phase, PhaseKind, PlatformTimers, PodReport, PodState, PodStretch, ProbeTimers,
        Report, Run, RunVerdict, SCHEMA, Service,
    },
    test::{Action, During, LatencyBy, Local, NodeFailureBy, Step},
};

use super::{
    advice,
    hypothesis::{self, Facts},
    losses::losses,
    plan::Plan,
    run::{Course, Ending, FaultSpan},
    score,
};
use crate::observe::{History, endpoints::Track, marks::Lost, recovery, series};

/// What the report says of the run itself.
#[derive(Clone, Debug)]
pub struct About {
    pub run_id: String,
    /// Command that runs it again.
    pub rerun: String,
    /// GoldenSets that are replayed in the target's pods beside the run.
    pub golden_sets: Vec<GoldenSetReport>,
}

/// The clock of one run: the history's microseconds against the report's milliseconds.
struct Clock<'a> {
    history: &'a History,
    begin: i64,
    end: i64,
}

impl Clock<'_> {
    fn ms_of(&self, us: i64) -> f64 {
        (us - self.begin) as f64 / 1000.0
    }

    fn ms(&self, at: Instant) -> f64 {
        self.ms_of(self.history.us(at))
    }
}

/// The report of a run whose history is sealed.
pub fn conclude(plan: &Plan, course: Course, history: &History, about: About) -> Report {
    let spec = &plan.test.spec;
    let clock = Clock { history, begin: history.us(course.began), end: history.us(course.ended) };
    let phases: Vec<Phase> = course
        .phases
        .iter()
        .map(|phase| {
            let stretch = (history.us(phase.start), history.us(phase.end));
            Phase {
                name: phase.name.clone(),
                kind: phase.kind,
                round: phase.round,
                step: phase.step,
                start_ms: clock.ms(phase.start),
                end_ms: clock.ms(phase.end),
                stable_ms: phase.stable.map(|at| clock.ms(at)),
                service: history.measure(&[stretch]).service(),
            }
        })
        .collect();
    let measured = |during: During| history.measure(&stretches(&course, history, during));
    let faults: Vec<FaultWindow> = course.faults.iter().map(|fault| window(&spec.steps[fault.step as usize], fault, &clock)).collect();

    let hold = spec.stable.hold.get().as_micros() as i64;
    let lost = history.outages(hold, clock.begin, clock.end);
    let outages: Vec<_> = lost.iter().map(|lost: &Lost| lost.outage.clone()).collect();
    let action = |fault: &FaultWindow| spec.steps.get(fault.step as usize).map(|step| &step.action);
    let facts = Facts {
        measured: &measured,
        outages: &outages,
        pods_were_taken: faults.iter().filter_map(action).any(Action::takes_pods),
        scaled_to_nothing: faults.iter().filter_map(action).any(|action| matches!(action, Action::Scale(scale) if scale.replicas == 0)),
        faults: faults.len(),
        watches: spec.steps.is_empty(),
        complete: course.ending == Ending::Complete,
    };
    let results: Vec<_> = spec.hypothesis.iter().map(|hypothesis| hypothesis::evaluate(hypothesis, &facts)).collect();
    let total = history.measure(&[(clock.begin, clock.end)]).service();
    let baseline = measured(During::Baseline).service();
    let (score, score_parts) = score::score(&spec.hypothesis, &total, &baseline, &outages);
    // Of a run that did not come to its end it would say how little was seen.
    let score = (course.ending == Ending::Complete).then_some(score);
    let (outcome, reason) = hypothesis::verdict(&course.ending, &results, &phases, &faults, &course.left_behind);

    let (series, series_left_out) = series::series(&history.requests, clock.begin, clock.end);
    let mut notes = course.notes;
    notes.extend(history.dropped());
    if series_left_out > 0 {
        notes.push(format!("{series_left_out} pods with few requests have no series of their own"));
    }
    if outages.iter().any(|outage| outage.fault.is_none()) {
        notes.push("Some outages were not planned by any step".to_owned());
    }
    let pods = pods(history, &lost, &clock, series.bucket_ms, &course.sidecar_rss);
    let timers = course.timers.or_else(|| spec.local.as_ref().map(timers_of));
    let advice = advice::advice(&advice::Seen {
        test: &plan.test,
        phases: &phases,
        faults: &faults,
        outages: &outages,
        losses: &losses(history, &lost, clock.begin, clock.end),
        keep_alive: course.keep_alive,
        total: &total,
        baseline: &baseline,
        pods: &pods,
        timers: timers.as_ref(),
    });
    Report {
        schema: SCHEMA.to_owned(),
        run: Run {
            id: about.run_id,
            started: started(course.began),
            started_monotonic_ns: monotonic_ns(course.began),
            duration_ms: clock.ms(course.ended),
            platform: course.platform.to_owned(),
            timers,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine {
                os: std::env::consts::OS.to_owned(),
                architecture: std::env::consts::ARCH.to_owned(),
                cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            },
            left_behind: course.left_behind,
            notes,
        },
        verdict: RunVerdict { outcome, reason, score, score_parts },
        hypothesis: results,
        phases,
        faults,
        nodes: course.nodes,
        pods,
        recovery: recovery::summary(&outages),
        outages,
        total,
        series,
        advice,
        golden_sets: about.golden_sets,
        test: plan.test.clone(),
        rerun: about.rerun,
    }
}

/// Of the local platform, which has what its file says.
fn timers_of(local: &Local) -> PlatformTimers {
    let (timers, probe) = (&local.timers, &local.pods.ready);
    PlatformTimers {
        node_monitor_grace_period: timers.node_monitor_grace_period,
        known_from: "local.timers, scaled for one machine".to_owned(),
        node_heartbeat: Span::ZERO,
        node_monitor_period: Span::ZERO,
        toleration_seconds: Some(timers.toleration_seconds),
        back_off: timers.back_off,
        back_off_max: timers.back_off_max,
        readiness: Some(ProbeTimers { initial_delay: Span::ZERO, period: probe.period, failure_threshold: probe.failure_threshold }),
        sidecar_readiness: None,
    }
}

/// The moment as RFC 3339.
fn started(at: Instant) -> String {
    let now = Timestamp::now();
    let began = now.checked_sub(at.elapsed()).unwrap_or(now);
    // Milliseconds are what a reader can use.
    format!("{began:.3}")
}

fn monotonic_ns(at: Instant) -> Option<u64> {
    let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?);
    u64::try_from(now.checked_sub(at.elapsed())?.as_nanos()).ok()
}

fn stretches(course: &Course, history: &History, during: During) -> Vec<(i64, i64)> {
    let wanted = |kind: PhaseKind| match during {
        During::Run => true,
        During::Baseline => kind == PhaseKind::Baseline,
        During::Faults => kind == PhaseKind::Fault,
        During::Recovery => kind == PhaseKind::Recovery,
    };
    course.phases.iter().filter(|phase| wanted(phase.kind)).map(|phase| (history.us(phase.start), history.us(phase.end))).collect()
}

fn window(step: &Step, fault: &FaultSpan, clock: &Clock<'_>) -> FaultWindow {
    FaultWindow {
        name: step.name.clone(),
        action: step.action.name().to_owned(),
        description: describe(&step.action),
        round: fault.round,
        step: fault.step,
        start_ms: clock.ms(fault.start),
        end_ms: clock.ms(fault.end),
        nodes: if step.action.nodes().is_some() { fault.nodes.clone() } else { Vec::new() },
        pods: fault.pods.clone(),
        evidence: fault.evidence.clone(),
        doubts: fault.doubts.clone(),
        undone_ms: fault.undone.map(|at| clock.ms(at)),
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::NetworkLatency(latency) => {
            let more = if latency.jitter.is_zero() { String::new() } else { format!(" and up to {} more", latency.jitter) };
            format!("{}{more} added to every {}", latency.delay, if latency.by == LatencyBy::Agent { "packet that came to the node" } else { "request" })
        }
        Action::PodKill(kill) if kill.grace_period.is_zero() => "killed at once".to_owned(),
        Action::PodKill(kill) => format!("deleted, with {} to finish", kill.grace_period),
        Action::NetworkLoss(loss) => format!("{} of the requests lost", loss.share),
        Action::NetworkPartition(_) => "no request got through".to_owned(),
        Action::PodHoldDown(_) => "held down: connections refused, not ready".to_owned(),
        Action::Evict(_) => "evicted, as far as disruption budgets allowed".to_owned(),
        Action::ContainerKill(_) => "main process killed".to_owned(),
        Action::Rollout(rollout) => format!("{} rolled out in container {}", rollout.image, rollout.container),
        Action::Scale(scale) => format!("scaled to {}", scale.replicas),
        Action::NodeFailure(failure) if failure.by == NodeFailureBy::Kubelet => "kubelet cut off from the API server".to_owned(),
        Action::NodeFailure(_) => "fell silent with everything on it".to_owned(),
        Action::Drain(_) => "cordoned, and its pods evicted".to_owned(),
        Action::Cordon(_) => "cordoned".to_owned(),
        Action::Taint(taint) => format!("tainted {}:{}", taint.key, taint.effect.name()),
        Action::CpuPressure(pressure) if pressure.pods.is_some() => format!("{} of a core burnt in the pod", pressure.load),
        Action::CpuPressure(pressure) => format!("{} of each core burnt", pressure.load),
        Action::Corrupt(corrupt) if corrupt.share == Percent::HUNDRED => format!("every answer moved by {}", corrupt.magnitude),
        Action::Corrupt(corrupt) => format!("{} of the answers moved by {}", corrupt.share, corrupt.magnitude),
    }
}

fn pods(history: &History, lost: &[Lost], clock: &Clock<'_>, bucket_ms: f64, rss: &BTreeMap<String, u64>) -> Vec<PodReport> {
    let services = history.measure_pods(clock.begin, clock.end);
    let mut golden = golden(history, clock, bucket_ms);
    let mut verdicts: HashMap<u32, Vec<GoldenVerdictPoint>> = HashMap::new();
    for judged in &history.replays.verdicts {
        // A verdict from before the run stands at its begin.
        let point = GoldenVerdictPoint {
            at_ms: clock.ms_of(judged.at.max(clock.begin)),
            set: history.replays.sets[usize::from(judged.set)].clone(),
            verdict: judged.verdict,
        };
        if judged.at <= clock.end {
            verdicts.entry(judged.pod).or_default().push(point);
        }
    }
    let pods = history.fleet.pods().iter().zip(services).enumerate();
    pods.filter_map(|(index, (pod, service))| {
        let index = index as u32;
        let states = states(pod, lost, clock);
        (!states.is_empty()).then(|| pod_report(pod, states, service, golden.remove(&index), verdicts.remove(&index), rss))
    })
    .collect()
}

fn pod_report(
    pod: &Track,
    states: Vec<PodStretch>,
    service: Service,
    golden: Option<Vec<GoldenPoint>>,
    verdicts: Option<Vec<GoldenVerdictPoint>>,
    rss: &BTreeMap<String, u64>,
) -> PodReport {
    PodReport {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        node: pod.node.clone(),
        lane: pod.lane,
        states,
        service,
        golden: golden.unwrap_or_default(),
        verdicts: verdicts.unwrap_or_default(),
        sidecar_rss_bytes: rss.get(&pod.name).copied(),
    }
}

/// The pod's states within the run; what is gone has no state any more. One that was lost with its node is silent from then on, whenever the platform noticed.
fn states(pod: &Track, lost: &[Lost], clock: &Clock<'_>) -> Vec<PodStretch> {
    let began = |lost: &Lost| lost.at.get(&Mark::Fault).copied().filter(|_| lost.outage.node_lost && lost.outage.uid == pod.uid);
    let ends = pod.states.iter().skip(1).map(|(at, _)| *at).chain([i64::MAX]);
    let stretches = pod.states.iter().zip(ends).filter(|((_, state), _)| *state != PodState::Gone).flat_map(|((start, state), end)| {
        let silent = lost.iter().filter_map(began).find(|silent| *state == PodState::Serving && (*start..end).contains(silent));
        [(*state, *start, silent.unwrap_or(end)), (PodState::Silent, silent.unwrap_or(end), end)]
    });
    let clipped = stretches.map(|(state, start, end)| (state, start.max(clock.begin), end.min(clock.end))).filter(|(_, start, end)| start < end);
    let mut states: Vec<PodStretch> = Vec::new();
    for (state, start, end) in clipped {
        match states.last_mut() {
            Some(last) if last.state == state => last.end_ms = clock.ms_of(end),
            _ => states.push(PodStretch { state, start_ms: clock.ms_of(start), end_ms: clock.ms_of(end) }),
        }
    }
    states
}

/// Golden replays by pod, set and bucket.
fn golden(history: &History, clock: &Clock<'_>, bucket_ms: f64) -> HashMap<u32, Vec<GoldenPoint>> {
    let mut points: BTreeMap<(u32, u16, u64), GoldenPoint> = BTreeMap::new();
    for replay in history.replays.between(clock.begin, clock.end) {
        let bucket = (clock.ms_of(replay.at) / bucket_ms) as u64;
        let point = points.entry((replay.pod, replay.set, bucket)).or_insert_with(|| GoldenPoint {
            at_ms: bucket as f64 * bucket_ms,
            set: history.replays.sets[usize::from(replay.set)].clone(),
            matched: 0,
            mismatched: 0,
            unanswered: 0,
            detail: None,
        });
        match replay.outcome {
            Outcome::Match => point.matched += 1,
            Outcome::Mismatch => point.mismatched += 1,
            Outcome::NoAnswer => point.unanswered += 1,
        }
        if point.detail.is_none() {
            point.detail = replay.detail.as_deref().map(str::to_owned);
        }
    }
    let mut by_pod: HashMap<u32, Vec<GoldenPoint>> = HashMap::new();
    for ((pod, ..), point) in points {
        by_pod.entry(pod).or_default().push(point);
    }
    by_pod
}
