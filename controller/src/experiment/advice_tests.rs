//! Each rule once where it speaks and once where it must not.

use steadfast_api::{
    Span,
    mark::Marks,
    report::{Availability, Consistency, GoldenVerdictPoint, Latency, ProbeTimers},
};

use super::*;

/// A run in which nothing happened; every case changes what it is about.
struct Run {
    test: ResilienceTest,
    phases: Vec<Phase>,
    faults: Vec<FaultWindow>,
    outages: Vec<Outage>,
    losses: Losses,
    keep_alive: bool,
    total: Service,
    baseline: Service,
    pods: Vec<PodReport>,
    timers: Option<PlatformTimers>,
}

fn test(step: &str) -> ResilienceTest {
    let yaml = format!(
        "{{apiVersion: steadfast.dev/v1alpha1, kind: ResilienceTest, metadata: {{name: t}}, spec: {{target: {{selector: {{matchLabels: {{app: a}}}}}}, \
         load: [{{name: users, rate: 10/s, inputs: {{goldenSet: s}}, timeout: 2s}}], steps: [{step}]}}}}"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}

const KILL: &str = "{name: step, podKill: {pods: {mode: one}}}";
const LATENCY: &str = "{name: step, for: 10s, networkLatency: {nodes: {mode: one}, delay: 500ms}}";
const CPU: &str = "{name: step, for: 10s, cpuPressure: {nodes: {mode: one}, load: 90%}}";
const CORRUPT: &str = "{name: step, for: 10s, corrupt: {pods: {mode: one}, magnitude: 10%}}";

fn span(seconds: u64) -> Span {
    Span::from_secs(seconds)
}

fn service(p99_ms: f64) -> Service {
    Service { latency: Latency { count: 100, p99_ms, ..Latency::default() }, ..Service::default() }
}

fn wrong(answers: u64) -> Service {
    Service { consistency: Consistency { answers_checked: 100, answers_right: 100 - answers, ..Consistency::default() }, ..Service::default() }
}

fn phase(kind: PhaseKind, service: Service) -> Phase {
    let step = (kind != PhaseKind::Baseline).then_some(0);
    Phase { name: "step".into(), kind, round: 1, step, start_ms: 10_000.0, end_ms: 20_000.0, stable_ms: None, service }
}

fn outage(node_lost: bool, marks: &[(Mark, f64)]) -> Outage {
    Outage {
        id: 1,
        pod: "a".into(),
        uid: "u".into(),
        node: "n1".into(),
        replacement: Some("b".into()),
        replacement_node: Some("n2".into()),
        fault: None,
        cause: "deleted".into(),
        node_lost,
        continues: false,
        began_before: false,
        marks: Marks(marks.iter().copied().collect()),
        routing_outage_ms: None,
        capacity_outage_ms: 60_000.0,
        censored: false,
    }
}

impl Run {
    fn new(step: &str) -> Self {
        Self {
            test: test(step),
            phases: Vec::new(),
            faults: Vec::new(),
            outages: Vec::new(),
            losses: Losses::default(),
            keep_alive: true,
            total: Service::default(),
            baseline: Service::default(),
            pods: Vec::new(),
            timers: None,
        }
    }

    fn lost(mut self, outage: Outage, of: OfOutage) -> Self {
        self.outages.push(outage);
        self.losses.outages.push(of);
        self
    }

    fn in_phase(mut self, kind: PhaseKind, service: Service) -> Self {
        self.phases.push(phase(kind, service));
        self
    }

    fn against(mut self, baseline: Service) -> Self {
        self.baseline = baseline;
        self
    }

    fn with_timers(mut self) -> Self {
        self.timers = Some(PlatformTimers {
            node_monitor_grace_period: span(50),
            node_heartbeat: span(10),
            node_monitor_period: span(5),
            known_from: "the version's defaults".into(),
            toleration_seconds: Some(span(30)),
            back_off: span(10),
            back_off_max: span(300),
            readiness: Some(ProbeTimers { initial_delay: Span::ZERO, period: span(5), failure_threshold: 3 }),
            sidecar_readiness: None,
        });
        self
    }

    fn advice(&self) -> Vec<Advice> {
        advice(&Seen {
            test: &self.test,
            phases: &self.phases,
            faults: &self.faults,
            outages: &self.outages,
            losses: &self.losses,
            keep_alive: self.keep_alive,
            total: &self.total,
            baseline: &self.baseline,
            pods: &self.pods,
            timers: self.timers.as_ref(),
        })
    }
}

/// The one thing that is advised.
fn only(run: &Run) -> Advice {
    let advice = run.advice();
    assert_eq!(advice.len(), 1, "{advice:?}");
    advice.into_iter().next().unwrap()
}

fn nothing(run: &Run) {
    assert_eq!(run.advice(), []);
}

#[test]
fn nothing_is_advised_of_a_run_in_which_nothing_happened() {
    nothing(&Run::new(KILL));
}

#[test]
fn wrong_answers_that_nobody_asked_for() {
    let advice = only(&Run::new(KILL).in_phase(PhaseKind::Baseline, wrong(3)));
    assert_eq!((advice.title.as_str(), advice.evidence.starts_with("3 answers differed")), ("Find out why the model answers wrongly", true));
    nothing(&Run::new(KILL).in_phase(PhaseKind::Baseline, wrong(0)));
    // What corruption leaves behind in answers under way is its doing.
    nothing(&Run::new(CORRUPT).in_phase(PhaseKind::Recovery, wrong(3)));
}

#[test]
fn wrong_answers_that_were_asked_for_and_that_nobody_stopped() {
    let mut run = Run::new(CORRUPT).in_phase(PhaseKind::Fault, wrong(3));
    assert_eq!(only(&run).title, "Take pods that answer wrongly out of the Service");
    assert!(only(&run).evidence.contains("no golden set called a pod wrong"));
    run.pods.push(PodReport {
        name: "a".into(),
        uid: "u".into(),
        node: "n1".into(),
        lane: 0,
        states: Vec::new(),
        service: Service::default(),
        golden: Vec::new(),
        verdicts: vec![GoldenVerdictPoint { at_ms: 12_000.0, set: "s".into(), verdict: Verdict::Fail }],
        sidecar_rss_bytes: None,
    });
    assert!(only(&run).evidence.contains("called a wrong after 2"), "{:?}", only(&run));
    nothing(&Run::new(CORRUPT).in_phase(PhaseKind::Fault, wrong(0)));
}

#[test]
fn pods_that_serve_before_they_are_right() {
    let late = [(Mark::EndpointAdded, 1000.0), (Mark::FirstGoodResponse, 1500.0), (Mark::FirstCorrectPrediction, 4000.0)];
    let wrong = |wrong_at_first| OfOutage { wrong_at_first, late_ms: None };
    let advice = only(&Run::new(KILL).lost(outage(false, &late), wrong(7)));
    assert_eq!(advice.title, "Let a pod serve only once it answers a golden input rightly");
    assert!(advice.evidence.contains("7 answers") && advice.evidence.contains("2.5"), "{advice:?}");
    // Only no user came by for so long.
    nothing(&Run::new(KILL).lost(outage(false, &late), wrong(0)));
    let at_once = [(Mark::EndpointAdded, 1000.0), (Mark::FirstGoodResponse, 3900.0), (Mark::FirstCorrectPrediction, 4000.0)];
    nothing(&Run::new(KILL).lost(outage(false, &at_once), wrong(7)));
}

#[test]
fn nodes_that_are_called_lost_late() {
    let marks = [(Mark::Fault, 0.0), (Mark::EndpointRemoved, 48_000.0)];
    let advice = only(&Run::new(KILL).with_timers().lost(outage(true, &marks), OfOutage::default()));
    assert_eq!(advice.title, "Take silent pods out of the Service before the node is called lost");
    assert!(advice.evidence.contains("floor is 40s to 55s (nodeMonitorGracePeriod 50s"), "{advice:?}");
    nothing(&Run::new(KILL).with_timers().lost(outage(false, &marks), OfOutage::default()));
    nothing(&Run::new(KILL).with_timers().lost(outage(true, &[(Mark::Fault, 0.0), (Mark::EndpointRemoved, 100.0)]), OfOutage::default()));
}

#[test]
fn pods_of_a_lost_node_that_are_replaced_late() {
    let marks = |created| [(Mark::EndpointRemoved, 0.0), (Mark::ReplacementCreated, created)];
    let advice = only(&Run::new(KILL).with_timers().lost(outage(true, &marks(31_000.0)), OfOutage::default()));
    assert_eq!(advice.title, "Replace the pods of a lost node sooner");
    assert!(advice.evidence.contains("which is 30s here and the floor") && advice.gain.contains("30.0 s"), "{advice:?}");
    nothing(&Run::new(KILL).with_timers().lost(outage(true, &marks(5_000.0)), OfOutage::default()));
    nothing(&Run::new(KILL).with_timers().lost(outage(false, &marks(31_000.0)), OfOutage::default()));
}

#[test]
fn models_that_load_slowly() {
    let marks = |loaded| [(Mark::ContainerStarted, 0.0), (Mark::ModelLoaded, loaded)];
    assert_eq!(only(&Run::new(KILL).lost(outage(false, &marks(20_000.0)), OfOutage::default())).title, "Load the model faster");
    nothing(&Run::new(KILL).lost(outage(false, &marks(10_000.0)), OfOutage::default()));
}

#[test]
fn probes_that_ask_too_rarely() {
    let marks = |ready| [(Mark::ModelLoaded, 0.0), (Mark::Ready, ready)];
    assert_eq!(only(&Run::new(KILL).with_timers().lost(outage(false, &marks(4_000.0)), OfOutage::default())).title, "Ask for readiness more often");
    nothing(&Run::new(KILL).with_timers().lost(outage(false, &marks(100.0)), OfOutage::default()));
    // Something else held it up.
    nothing(&Run::new(KILL).with_timers().lost(outage(false, &marks(9_000.0)), OfOutage::default()));
    nothing(&Run::new(KILL).lost(outage(false, &marks(4_000.0)), OfOutage::default()));
}

#[test]
fn requests_to_pods_that_have_left_the_service() {
    let late = |late_ms| OfOutage { wrong_at_first: 0, late_ms };
    let mut run = Run::new(KILL).lost(outage(false, &[]), late(Some(1500.0)));
    assert!(only(&run).title.starts_with("Stop sending to a pod") && only(&run).gain.starts_with("Closing connections"));
    run.keep_alive = false;
    let advice = only(&run);
    assert!(
        advice.title.starts_with("Let nodes hear sooner") && advice.evidence.contains("a connection of its own") && !advice.gain.contains("Closing"),
        "{advice:?}"
    );
    nothing(&Run::new(KILL).lost(outage(false, &[]), late(Some(100.0))));
    nothing(&Run::new(KILL).lost(outage(false, &[]), late(None)));
}

#[test]
fn requests_that_another_pod_would_have_answered() {
    let mut run = Run::new(KILL);
    run.total.availability = Availability { attempted: 1000, good: 900, failed_silence: 100, ratio: Some(0.9), ..Availability::default() };
    nothing(&run);
    run.losses.retriable = 40;
    let advice = only(&run);
    assert_eq!(advice.title, "Retry once on another pod");
    assert!(advice.evidence.starts_with("40 of 1,000") && advice.gain.contains("94% instead of 90%"), "{advice:?}");
}

#[test]
fn a_node_that_is_slow() {
    let run = |p99| Run::new(LATENCY).in_phase(PhaseKind::Fault, service(p99)).against(service(10.0));
    assert_eq!(only(&run(510.0)).title, "Hedge slow requests");
    nothing(&run(25.0));
    nothing(&Run::new(LATENCY).in_phase(PhaseKind::Fault, service(510.0)));
}

#[test]
fn a_node_that_is_busy() {
    let run = |p99| Run::new(CPU).in_phase(PhaseKind::Fault, service(p99)).against(service(10.0));
    assert_eq!(only(&run(40.0)).title, "Reserve CPU for the model server");
    nothing(&run(15.0));
    nothing(&Run::new(KILL).in_phase(PhaseKind::Fault, service(40.0)).against(service(10.0)));
}
