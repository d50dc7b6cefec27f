//! A report to draw: the case study as a run would tell it.

use std::collections::BTreeMap;

use steadfast_api::{
    Span,
    golden::Verdict,
    mark::{Mark, Marks, Outage},
    read::from_yaml,
    report::{
        Advice, Availability, Bucket, Consistency, FaultWindow, GoldenPoint, GoldenSetReport, GoldenVerdictPoint, HypothesisResult, Latency, Machine, Phase,
        PhaseKind, PlatformTimers, PodReport, PodState, PodStretch, ProbeTimers, RecoverySummary, Report, Run, RunOutcome, RunVerdict, SCHEMA, ScorePart,
        Series, Service,
    },
    test::ResilienceTest,
};

const TEST: &str = r"
apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {name: recommender-case-study}
spec:
  target: {selector: {matchLabels: {app: recommender}}, port: http}
  local:
    nodes: 3
    pods: {replicas: 3, labels: {app: recommender}, command: [steadfast, serve, golden-sets/sets/recommender, --port, $(PORT), --load-seconds, '3']}
  load: [{name: users, rate: 200/s, inputs: {goldenSet: recommender}}]
  golden: [{set: recommender, every: 1s}]
  baseline: 30s
  steps:
    - {name: slow network, networkLatency: {nodes: {mode: one}, delay: 500ms}, for: 60s}
    - {name: node lost, nodeFailure: {nodes: {mode: one}}, for: 60s}
    - {name: busy node, cpuPressure: {nodes: {mode: one}, load: 90%}, for: 60s}
  hypothesis:
    - availability: {atLeast: 99%}
    - latency: {quantile: 99%, atMost: 250ms, during: baseline}
    - recovery: {atMost: 30s, until: firstCorrectPrediction}
    - consistency: {atLeast: 99.9%}
  seed: 7
";

/// A small generator with a seed: the same report every time.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1_u32 << 31)
    }
}

fn test() -> ResilienceTest {
    from_yaml("sample.yaml", TEST).expect("the sample's experiment is well-formed")
}

pub(crate) const SECOND: f64 = 1000.0;
pub(crate) const LENGTH: usize = 300;

/// Name, kind, step, from, to (in seconds).
const PHASES: [(&str, PhaseKind, Option<u32>, usize, usize); 7] = [
    ("baseline", PhaseKind::Baseline, None, 0, 30),
    ("slow network", PhaseKind::Fault, Some(0), 30, 90),
    ("slow network: recovery", PhaseKind::Recovery, Some(0), 90, 102),
    ("node lost", PhaseKind::Fault, Some(1), 102, 162),
    ("node lost: recovery", PhaseKind::Recovery, Some(1), 162, 200),
    ("busy node", PhaseKind::Fault, Some(2), 200, 260),
    ("busy node: recovery", PhaseKind::Recovery, Some(2), 260, 300),
];

/// 300 s of three pods: latency, a lost node, CPU pressure; three outages, of which the last had not ended, and one pod that began to answer wrongly.
pub(crate) fn case_study() -> Report {
    let mut draw = Draw(7);
    let all: Vec<Bucket> = (0..LENGTH).map(|second| bucket(second, &mut draw)).collect();
    let phases = PHASES
        .iter()
        .map(|&(name, kind, step, start, end)| Phase {
            name: name.into(),
            kind,
            round: 1,
            step,
            start_ms: start as f64 * SECOND,
            end_ms: end as f64 * SECOND,
            stable_ms: (kind == PhaseKind::Recovery && step != Some(2)).then_some((start + 2) as f64 * SECOND),
            service: service(&all[start..end]),
        })
        .collect();
    let stretch = |state, start: f64, end: f64| PodStretch { state, start_ms: start * SECOND, end_ms: end * SECOND };
    let pods = vec![
        pod("recommender-6f9c-x2kqp", "node-1", 0, vec![stretch(PodState::Serving, 0.0, 300.0)], (0, 300), &mut draw),
        pod(
            "recommender-6f9c-b7mtd",
            "node-2",
            1,
            vec![stretch(PodState::Serving, 0.0, 102.0), stretch(PodState::Silent, 102.0, 162.0), stretch(PodState::Gone, 162.0, 300.0)],
            (0, 102),
            &mut draw,
        ),
        pod(
            "recommender-6f9c-q9zvh",
            "node-3",
            1,
            vec![
                stretch(PodState::Pending, 112.1, 112.6),
                stretch(PodState::Loading, 112.6, 115.8),
                stretch(PodState::NotReady, 115.8, 116.9),
                stretch(PodState::Serving, 116.9, 300.0),
            ],
            (116, 300),
            &mut draw,
        ),
        pod(
            "recommender-6f9c-w4lns",
            "node-3",
            2,
            vec![
                stretch(PodState::Serving, 0.0, 231.4),
                stretch(PodState::BackOff, 231.4, 232.5),
                stretch(PodState::Loading, 232.5, 237.2),
                stretch(PodState::NotReady, 237.2, 238.1),
                stretch(PodState::Serving, 238.1, 281.0),
                stretch(PodState::BackOff, 281.0, 283.0),
                stretch(PodState::Loading, 283.0, 300.0),
            ],
            (0, 281),
            &mut draw,
        ),
    ];
    let outages = vec![
        outage(
            1,
            ("recommender-6f9c-b7mtd", "node-2"),
            Some(("recommender-6f9c-q9zvh", "node-3")),
            Some(1),
            "node lost",
            &[
                (Mark::Fault, 102.0),
                (Mark::FirstFailure, 102.004),
                (Mark::Detected, 106.01),
                (Mark::EndpointRemoved, 106.03),
                (Mark::ReplacementCreated, 112.08),
                (Mark::Scheduled, 112.11),
                (Mark::Initialized, 112.42),
                (Mark::ContainerStarted, 112.61),
                (Mark::ModelLoaded, 115.79),
                (Mark::Ready, 116.86),
                (Mark::EndpointAdded, 116.88),
                (Mark::FirstGoodResponse, 116.91),
                (Mark::FirstCorrectPrediction, 115.93),
                (Mark::Sustained, 116.91),
            ],
            Some(6.03),
        ),
        outage(
            2,
            ("recommender-6f9c-w4lns", "node-3"),
            Some(("recommender-6f9c-w4lns", "node-3")),
            None,
            "process died",
            &[
                (Mark::Fault, 231.4),
                (Mark::FirstFailure, 231.41),
                (Mark::Detected, 231.44),
                (Mark::EndpointRemoved, 231.47),
                (Mark::ContainerStarted, 232.5),
                (Mark::ModelLoaded, 237.2),
                (Mark::Ready, 238.06),
                (Mark::EndpointAdded, 238.08),
                (Mark::FirstGoodResponse, 238.1),
                (Mark::FirstCorrectPrediction, 237.5),
                (Mark::Sustained, 238.1),
            ],
            Some(0.31),
        ),
        outage(
            3,
            ("recommender-6f9c-w4lns", "node-3"),
            Some(("recommender-6f9c-w4lns", "node-3")),
            None,
            "process died",
            &[(Mark::Fault, 281.0), (Mark::FirstFailure, 281.01), (Mark::Detected, 281.03), (Mark::EndpointRemoved, 281.06), (Mark::ContainerStarted, 283.0)],
            Some(0.24),
        ),
    ];
    let fault = |index: usize, action: &str, description: &str, node: &str, pod: &str, evidence: &str| {
        let (name, _, step, start, end) = PHASES[index];
        FaultWindow {
            name: name.into(),
            action: action.into(),
            description: description.into(),
            round: 1,
            step: step.unwrap_or_default(),
            start_ms: start as f64 * SECOND,
            end_ms: end as f64 * SECOND,
            nodes: vec![node.into()],
            pods: vec![pod.into()],
            doubts: Vec::new(),
            evidence: vec![evidence.into()],
            undone_ms: Some(end as f64 * SECOND + 12.0),
        }
    };
    let by_pod = BTreeMap::from([(
        "recommender-6f9c-x2kqp".to_owned(),
        all.iter().map(|bucket| Bucket { attempted: bucket.attempted / 3, good: bucket.good / 3, ..bucket.clone() }).collect(),
    )]);
    Report {
        schema: SCHEMA.into(),
        run: Run {
            id: "20261123-0511-7k2f".into(),
            started: "2026-11-23T05:11:57Z".into(),
            started_monotonic_ns: Some(4_711_000_000),
            duration_ms: LENGTH as f64 * SECOND,
            platform: "local".into(),
            timers: Some(PlatformTimers {
                node_monitor_grace_period: Span::from_secs(4),
                known_from: "local.timers, scaled for one machine".into(),
                toleration_seconds: Some(Span::from_secs(6)),
                node_heartbeat: Span::ZERO,
                node_monitor_period: Span::ZERO,
                back_off: Span::from_secs(1),
                back_off_max: Span::from_secs(30),
                readiness: Some(ProbeTimers { initial_delay: Span::ZERO, period: Span::from_secs(1), failure_threshold: 3 }),
                sidecar_readiness: None,
            }),
            version: "0.1.0".into(),
            machine: Machine { os: "linux".into(), architecture: "x86_64".into(), cores: 2 },
            left_behind: Vec::new(),
            notes: vec![
                "The platform's timers are scaled for one machine: a lost node is noticed after 4 s, where Kubernetes waits 40 s.".into(),
                "Load generator, pods and gateway share 2 cores: latency under CPU pressure includes the generator's own.".into(),
            ],
        },
        verdict: RunVerdict {
            outcome: RunOutcome::Fail,
            reason: "Recovery took longer than 30 s: outage #3 of recommender-6f9c-w4lns had not ended when the run did.".into(),
            score: Some(71),
            score_parts: vec![
                ScorePart { name: "availability".into(), points: 27.4, out_of: 30.0 },
                ScorePart { name: "recovery".into(), points: 12.0, out_of: 30.0 },
                ScorePart { name: "consistency".into(), points: 18.6, out_of: 25.0 },
                ScorePart { name: "latency".into(), points: 13.0, out_of: 15.0 },
            ],
        },
        hypothesis: vec![
            hypothesis("availability ≥ 99% during the run", RunOutcome::Pass, "99.45% of 60,000 requests"),
            hypothesis("p99 latency ≤ 250ms during the baseline", RunOutcome::Pass, "9.62 ms over 6,000 answers"),
            hypothesis("recovery until the first correct prediction ≤ 30s for every outage", RunOutcome::Fail, "13.9 s and 6.1 s; outage #3 had not ended after 19 s"),
            hypothesis("consistency ≥ 99.9% during the run", RunOutcome::Inconclusive, "99.94% of 60,573 answers; pod recommender-6f9c-q9zvh undecided"),
        ],
        phases,
        faults: vec![
            fault(1, "networkLatency", "500ms added to every request", "node-1", "recommender-6f9c-x2kqp", "delay injected 3,981 times"),
            fault(3, "nodeFailure", "the node fell silent and came back empty", "node-2", "recommender-6f9c-b7mtd", "2 processes killed with signal 9; node silent for 60 s"),
            fault(5, "cpuPressure", "90% of each core taken", "node-3", "recommender-6f9c-w4lns", "burned 89.98% of 1 core for 60 s"),
        ],
        nodes: vec!["node-1".into(), "node-2".into(), "node-3".into()],
        pods,
        recovery: RecoverySummary {
            outages: 3,
            censored: 1,
            first_correct_p50_ms: Some(13_930.0),
            first_correct_max_ms: None,
            sustained_p50_ms: Some(14_910.0),
            sustained_max_ms: None,
            routing_p50_ms: Some(310.0),
            routing_max_ms: Some(6_030.0),
        },
        outages,
        total: service(&all),
        series: Series { bucket_ms: SECOND, all, pods: by_pod },
        advice: vec![
            Advice {
                title: "Withdraw a lost node's endpoints sooner".into(),
                evidence: "For 6.0 s after node-2 fell silent, one request in three went to a pod that could not answer: 261 requests ended in silence, 80% of all failures.".into(),
                gain: "Passive health checks at the gateway (3 failures, 1 s) would cut the routing outage from 6.0 s to about 1 s: availability 99.45% → 99.81%.".into(),
            },
            Advice {
                title: "Load the model faster, or keep a spare replica".into(),
                evidence: "3.2 s of 14.9 s (outage #1) and 4.7 s of 6.7 s (outage #2) were spent loading the model.".into(),
                gain: "With the file in the page cache a load takes 0.9 s here: recovery 2.3 s to 3.8 s shorter.".into(),
            },
            Advice {
                title: "Look at recommender-6f9c-q9zvh's answers".into(),
                evidence: "5 golden replays of 182 differed from the reference after it replaced a lost pod; no other pod differed.".into(),
                gain: "Right answers for a third of all users.".into(),
            },
        ],
        golden_sets: vec![GoldenSetReport {
            name: "recommender".into(),
            verdict: Some(Verdict::Fail),
            pods_matched: 3,
            pods_passing: 2,
            pods_failing: 1,
            pods_gated: 1,
            failing: vec!["recommender-6f9c-q9zvh".into()],
        }],
        test: test(),
        rerun: "steadfast run report/experiment.yaml --seed 7".into(),
    }
}

fn hypothesis(statement: &str, outcome: RunOutcome, observed: &str) -> HypothesisResult {
    HypothesisResult { statement: statement.into(), outcome, observed: observed.into() }
}

fn bucket(second: usize, draw: &mut Draw) -> Bucket {
    let mut of = Bucket { attempted: 200, ..Bucket::default() };
    let mut wave = |base: f64, spread: f64| (base * (1.0 + spread * draw.next())) as f32;
    let (mut p50, mut p99) = (wave(2.1, 0.2), wave(6.5, 0.5));
    match second {
        30..90 => (of.failed_injected, p50, p99) = (0, wave(2.4, 0.3), wave(504.0, 0.02)),
        102..106 => (of.failed_silence, p50, p99) = (64 + (second as u32 % 3), wave(2.6, 0.2), 2000.0),
        106 => (of.failed_silence, of.failed_proxy, p99) = (2, 9, 2000.0),
        162 => of.failed_proxy = 3,
        200..231 | 239..260 => (p50, p99) = (wave(7.0, 0.9), wave(88.0, 1.2)),
        231 | 281 => (of.failed_proxy, of.failed_upstream, p99) = (21, 6, wave(120.0, 0.5)),
        232..239 => (p50, p99) = (wave(9.0, 0.5), wave(140.0, 0.9)),
        _ => {}
    }
    if (143..150).contains(&second) {
        of.wrong = 4;
    }
    of.good = of.attempted - of.failed_injected - of.failed_silence - of.failed_proxy - of.failed_upstream;
    (of.p50_ms, of.p99_ms, of.max_ms) = (Some(p50), Some(p99), Some(p99 * 1.3));
    of
}

fn service(buckets: &[Bucket]) -> Service {
    let sum = |of: fn(&Bucket) -> u32| buckets.iter().map(|bucket| u64::from(of(bucket))).sum::<u64>();
    let (attempted, good, wrong) = (sum(|b| b.attempted), sum(|b| b.good), sum(|b| b.wrong));
    let highest = |of: fn(&Bucket) -> Option<f32>| f64::from(buckets.iter().filter_map(of).fold(0.0, f32::max));
    let seconds = buckets.len() as u64;
    Service {
        availability: Availability {
            attempted,
            good,
            failed_upstream: sum(|b| b.failed_upstream),
            failed_injected: sum(|b| b.failed_injected),
            failed_proxy: sum(|b| b.failed_proxy),
            failed_silence: sum(|b| b.failed_silence),
            ratio: (attempted > 0).then(|| good as f64 / attempted as f64),
        },
        latency: Latency {
            count: attempted,
            mean_ms: 3.1,
            p50_ms: buckets.get(buckets.len() / 2).and_then(|b| b.p50_ms).map_or(0.0, f64::from),
            p90_ms: 5.0,
            p99_ms: highest(|b| b.p99_ms),
            p999_ms: highest(|b| b.p99_ms),
            max_ms: highest(|b| b.max_ms),
        },
        consistency: Consistency {
            answers_checked: good,
            answers_right: good - wrong,
            replays_matched: 3 * seconds - wrong.min(5),
            replays_mismatched: wrong.min(5),
            replays_unanswered: sum(|b| b.failed_proxy).min(4),
            ratio: (good > 0).then(|| (good - wrong + 3 * seconds - wrong.min(5)) as f64 / (good + 3 * seconds) as f64),
        },
    }
}

fn pod(name: &str, node: &str, lane: u32, states: Vec<PodStretch>, replayed: (usize, usize), draw: &mut Draw) -> PodReport {
    let drifting = name.ends_with("q9zvh");
    let golden: Vec<_> = (replayed.0..replayed.1)
        .map(|second| {
            let wrong = drifting && (143..150).contains(&second) && second % 3 != 0;
            let silent = !wrong && name.ends_with("w4lns") && (231..238).contains(&second);
            GoldenPoint {
                at_ms: second as f64 * SECOND,
                set: "recommender".into(),
                matched: u32::from(!wrong && !silent),
                mismatched: u32::from(wrong),
                unanswered: u32::from(silent),
                detail: wrong.then(|| {
                    format!("sample heavy-{:04}: scores[0,3] is 0.{:03}, the reference 0.871, tolerance 0.0001", second, (draw.next() * 800.0) as u32)
                }),
            }
        })
        .collect();
    let mismatched = golden.iter().map(|point| u64::from(point.mismatched)).sum::<u64>();
    let matched = golden.iter().map(|point| u64::from(point.matched)).sum::<u64>();
    let unanswered = golden.iter().map(|point| u64::from(point.unanswered)).sum::<u64>();
    let verdict = |at: f64, verdict| GoldenVerdictPoint { at_ms: at * SECOND, set: "recommender".into(), verdict };
    let began = replayed.0 as f64;
    let verdicts = if drifting {
        vec![verdict(began, Verdict::Inconclusive), verdict(147.0, Verdict::Fail)]
    } else {
        vec![verdict(began, Verdict::Inconclusive), verdict(began + 59.0, Verdict::Pass)]
    };
    let checked = 66 * (replayed.1 - replayed.0) as u64;
    PodReport {
        name: name.into(),
        uid: format!("uid-of-{name}"),
        node: node.into(),
        lane,
        states,
        service: Service {
            consistency: Consistency {
                answers_checked: checked,
                answers_right: checked - 5 * mismatched,
                replays_matched: matched,
                replays_mismatched: mismatched,
                replays_unanswered: unanswered,
                ratio: Some((checked - 5 * mismatched + matched) as f64 / (checked + matched + mismatched) as f64),
            },
            ..Service::default()
        },
        golden,
        verdicts,
        sidecar_rss_bytes: Some(9_437_184),
    }
}

fn outage(
    id: u32,
    pod: (&str, &str),
    replacement: Option<(&str, &str)>,
    fault: Option<u32>,
    cause: &str,
    marks: &[(Mark, f64)],
    routing_s: Option<f64>,
) -> Outage {
    let mut seen = Marks::default();
    for (mark, at) in marks {
        seen.set(*mark, at * SECOND);
    }
    let ended = seen.between(Mark::Fault, Mark::Sustained);
    Outage {
        id,
        pod: pod.0.into(),
        uid: format!("uid-of-{}", pod.0),
        node: pod.1.into(),
        replacement: replacement.map(|(pod, _)| pod.into()),
        replacement_node: replacement.map(|(_, node)| node.into()),
        fault,
        cause: cause.into(),
        node_lost: false,
        continues: false,
        began_before: false,
        capacity_outage_ms: ended.unwrap_or(LENGTH as f64 * SECOND - marks[0].1 * SECOND),
        marks: seen,
        routing_outage_ms: routing_s.map(|seconds| seconds * SECOND),
        censored: ended.is_none(),
    }
}
