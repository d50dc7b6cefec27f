//! What the charts draw: a small extract of the report, as columns and runs, so that an hour of 256 pods still opens at once.

use std::collections::BTreeMap;

use serde::Serialize;
use steadfast_api::{
    Span,
    golden::Verdict,
    mark::Mark,
    report::{Bucket, PhaseKind, PodReport, PodState, Report},
    test::Hypothesis,
};

/// Buckets drawn at most; a longer run shows several buckets as one.
const BUCKETS_MAX: usize = 1_200;
/// Outages drawn at most, the longest; the table below the chart has all.
const BARS_MAX: usize = 40;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View<'a> {
    /// Where the time axis begins: before zero where an outage goes on from the window before.
    begin_ms: f64,
    duration_ms: f64,
    phases: Vec<PhaseView<'a>>,
    faults: Vec<FaultView<'a>>,
    lanes: Vec<Lane<'a>>,
    outages: Vec<OutageView<'a>>,
    /// Ids of the outages in the waterfall.
    bars: Vec<u32>,
    series: SeriesView,
    latency_limits: Vec<Limit>,
    floor: Vec<Limit>,
}

#[derive(Serialize)]
struct PhaseView<'a> {
    name: &'a str,
    kind: PhaseKind,
    start: f64,
    end: f64,
}

#[derive(Serialize)]
struct FaultView<'a> {
    name: &'a str,
    description: &'a str,
    start: f64,
    end: f64,
}

#[derive(Serialize)]
struct Lane<'a> {
    /// Something happened here.
    notable: bool,
    pods: Vec<PodView<'a>>,
}

#[derive(Serialize)]
struct PodView<'a> {
    name: &'a str,
    node: &'a str,
    states: Vec<(PodState, f64, f64)>,
    golden: Vec<GoldenRun<'a>>,
    verdicts: Vec<(f64, &'a str, Verdict)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Match,
    Mismatch,
    /// No answer is never a mismatch.
    None,
}

/// Golden replays of one pod that went alike, without a gap.
#[derive(Debug, PartialEq, Serialize)]
struct GoldenRun<'a> {
    answer: Answer,
    start: f64,
    end: f64,
    replays: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutageView<'a> {
    id: u32,
    lane: Option<usize>,
    pod: &'a str,
    node: &'a str,
    replacement: Option<&'a str>,
    cause: &'a str,
    /// In order of time.
    marks: Vec<(Mark, f64)>,
    start: f64,
    routing_ms: Option<f64>,
    capacity_ms: f64,
    censored: bool,
}

/// Columns; index i covers i × bucket to (i + 1) × bucket.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct SeriesView {
    bucket_ms: f64,
    good: Vec<u32>,
    wrong: Vec<u32>,
    failed_upstream: Vec<u32>,
    failed_injected: Vec<u32>,
    failed_proxy: Vec<u32>,
    failed_silence: Vec<u32>,
    attempted: Vec<u32>,
    p50: Vec<Option<f32>>,
    p99: Vec<Option<f32>>,
}

#[derive(Serialize)]
struct Limit {
    ms: f64,
    label: String,
}

impl<'a> View<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        let lanes = lanes(report);
        let lane_of = |uid: &str, name: &str| {
            lanes
                .iter()
                .position(|(_, pods)| pods.iter().any(|pod| pod.uid == uid))
                .or_else(|| lanes.iter().position(|(_, pods)| pods.iter().any(|pod| pod.name == name)))
        };
        let mut outages: Vec<_> = report
            .outages
            .iter()
            .map(|outage| {
                let mut marks: Vec<_> = outage.marks.0.iter().map(|(mark, at)| (*mark, *at)).collect();
                marks.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
                OutageView {
                    id: outage.id,
                    lane: lane_of(&outage.uid, &outage.pod),
                    pod: &outage.pod,
                    node: &outage.node,
                    replacement: outage.replacement.as_deref(),
                    cause: &outage.cause,
                    start: marks.first().map_or(0.0, |first| first.1),
                    marks,
                    routing_ms: outage.routing_outage_ms,
                    capacity_ms: outage.capacity_outage_ms,
                    censored: outage.censored,
                }
            })
            .collect();
        outages.sort_by_key(|outage| outage.id);
        let mut longest: Vec<_> = outages.iter().map(|outage| (outage.id, outage.capacity_ms)).collect();
        longest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut bars: Vec<_> = longest.into_iter().take(BARS_MAX).map(|(id, _)| id).collect();
        bars.sort_unstable();

        let pause = golden_pause(report);
        Self {
            begin_ms: begin(report),
            duration_ms: report.run.duration_ms,
            phases: report.phases.iter().map(|phase| PhaseView { name: &phase.name, kind: phase.kind, start: phase.start_ms, end: phase.end_ms }).collect(),
            faults: report
                .faults
                .iter()
                .map(|fault| FaultView { name: &fault.name, description: &fault.description, start: fault.start_ms, end: fault.end_ms })
                .collect(),
            lanes: lanes
                .iter()
                .enumerate()
                .map(|(index, (_, pods))| Lane {
                    notable: outages.iter().any(|outage| outage.lane == Some(index))
                        || pods
                            .iter()
                            .any(|pod| pod.service.consistency.replays_mismatched > 0 || pod.verdicts.iter().any(|point| point.verdict == Verdict::Fail)),
                    pods: pods
                        .iter()
                        .map(|pod| PodView {
                            name: &pod.name,
                            node: &pod.node,
                            states: pod
                                .states
                                .iter()
                                .filter(|stretch| stretch.state != PodState::Gone)
                                .map(|stretch| (stretch.state, stretch.start_ms, stretch.end_ms))
                                .collect(),
                            golden: golden_runs(pod, report.series.bucket_ms, pause),
                            verdicts: pod.verdicts.iter().map(|point| (point.at_ms, point.set.as_str(), point.verdict)).collect(),
                        })
                        .collect(),
                })
                .collect(),
            outages,
            bars,
            series: series(&report.series.all, report.series.bucket_ms),
            latency_limits: latency_limits(report),
            floor: floor(report),
        }
    }

    /// Share of the time axis that lies before this moment, 0 to 1.
    pub(super) fn share(&self, ms: f64) -> f64 {
        ((ms - self.begin_ms) / (self.duration_ms - self.begin_ms).max(1.0)).clamp(0.0, 1.0)
    }

    /// Lanes in the timeline.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Outages in the waterfall.
    pub(super) fn bars(&self) -> usize {
        self.bars.len()
    }
}

/// Of what lies before the window no more is shown than a third of the chart; what began earlier has an arrow.
fn begin(report: &Report) -> f64 {
    let first = report.outages.iter().flat_map(|outage| outage.marks.0.values().copied()).fold(0.0, f64::min);
    if first < 0.0 { (first - 0.02 * report.run.duration_ms).max(-0.5 * report.run.duration_ms) } else { 0.0 }
}

/// Pods by lane, in the order in which they came.
fn lanes(report: &Report) -> Vec<(u32, Vec<&PodReport>)> {
    let mut lanes = BTreeMap::<u32, Vec<&PodReport>>::new();
    for pod in &report.pods {
        lanes.entry(pod.lane).or_default().push(pod);
    }
    let began = |pod: &PodReport| pod.states.first().map_or(f64::MAX, |stretch| stretch.start_ms);
    for pods in lanes.values_mut() {
        pods.sort_by(|a, b| began(a).total_cmp(&began(b)));
    }
    lanes.into_iter().collect()
}

/// Between two replays that follow one another at their usual pace; in milliseconds.
fn golden_pause(report: &Report) -> f64 {
    let slowest = report.test.spec.golden.iter().map(|check| check.every.get().as_secs_f64() * 1e3).fold(0.0, f64::max);
    2.5 * slowest.max(report.series.bucket_ms)
}

fn golden_runs(pod: &PodReport, bucket_ms: f64, pause: f64) -> Vec<GoldenRun<'_>> {
    let mut points: Vec<_> = pod.golden.iter().collect();
    points.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    let mut runs = Vec::<GoldenRun<'_>>::new();
    for point in points {
        let answer = match (point.mismatched, point.unanswered, point.matched) {
            (1.., _, _) => Answer::Mismatch,
            (0, 1.., _) => Answer::None,
            (0, 0, 1..) => Answer::Match,
            (0, 0, 0) => continue,
        };
        let (end, replays) = (point.at_ms + bucket_ms, point.matched + point.mismatched + point.unanswered);
        match runs.last_mut() {
            Some(last) if last.answer == answer && point.at_ms - last.end <= pause => {
                last.end = last.end.max(end);
                last.replays += replays;
                last.detail = last.detail.or(point.detail.as_deref());
            }
            _ => runs.push(GoldenRun { answer, start: point.at_ms, end, replays, detail: point.detail.as_deref() }),
        }
    }
    runs
}

/// Counts add up. Of several latencies the chart keeps the highest, so that no peak is lost.
fn series(all: &[Bucket], bucket_ms: f64) -> SeriesView {
    let each = all.len().div_ceil(BUCKETS_MAX).max(1);
    let mut view = SeriesView { bucket_ms: bucket_ms * each as f64, ..SeriesView::default() };
    for group in all.chunks(each) {
        let sum = |of: fn(&Bucket) -> u32| group.iter().map(of).sum::<u32>();
        let highest = |of: fn(&Bucket) -> Option<f32>| group.iter().filter_map(of).max_by(f32::total_cmp);
        // A wrong answer is an answer all the same; the chart shows right and wrong apart.
        view.good.push(sum(|bucket| bucket.attempted.saturating_sub(bucket.wrong + failed(bucket))));
        view.wrong.push(sum(|bucket| bucket.wrong));
        view.failed_upstream.push(sum(|bucket| bucket.failed_upstream));
        view.failed_injected.push(sum(|bucket| bucket.failed_injected));
        view.failed_proxy.push(sum(|bucket| bucket.failed_proxy));
        view.failed_silence.push(sum(|bucket| bucket.failed_silence));
        view.attempted.push(sum(|bucket| bucket.attempted));
        view.p50.push(highest(|bucket| bucket.p50_ms));
        view.p99.push(highest(|bucket| bucket.p99_ms));
    }
    view
}

const fn failed(bucket: &Bucket) -> u32 {
    bucket.failed_upstream + bucket.failed_injected + bucket.failed_proxy + bucket.failed_silence
}

fn latency_limits(report: &Report) -> Vec<Limit> {
    let limit = |hypothesis: &Hypothesis| match hypothesis {
        Hypothesis::Latency(latency) => Some(Limit {
            ms: latency.at_most.get().as_secs_f64() * 1e3,
            label: format!("p{} ≤ {}", latency.quantile.to_string().trim_end_matches('%'), latency.at_most),
        }),
        _ => None,
    };
    report.test.spec.hypothesis.iter().filter_map(limit).collect()
}

/// Before these a lost node cannot be noticed, and its pods not be replaced.
fn floor(report: &Report) -> Vec<Limit> {
    let planned = |fault: Option<u32>| fault.and_then(|index| report.faults.get(index as usize)).is_some_and(|fault| fault.action == "nodeFailure");
    let node_failed = report.outages.iter().any(|outage| outage.node_lost || planned(outage.fault));
    let Some(timers) = report.run.timers.as_ref().filter(|_| node_failed) else {
        return Vec::new();
    };
    let limit = |span: Span, label: &str| Limit { ms: span.get().as_secs_f64() * 1e3, label: label.to_owned() };
    let lost = limit(timers.node_called_lost().0, "node called lost");
    std::iter::once(lost).chain(timers.node_loss().map(|(least, _)| limit(least, "its pods replaced"))).collect()
}

#[cfg(test)]
mod tests {
    use steadfast_api::report::{GoldenPoint, Service};

    use super::*;

    fn pod(golden: Vec<GoldenPoint>) -> PodReport {
        PodReport {
            name: "a".into(),
            uid: "u".into(),
            node: "n".into(),
            lane: 0,
            states: Vec::new(),
            service: Service::default(),
            golden,
            verdicts: Vec::new(),
            sidecar_rss_bytes: None,
        }
    }

    fn point(at_ms: f64, matched: u32, mismatched: u32, unanswered: u32) -> GoldenPoint {
        let detail = (mismatched > 0).then(|| format!("at {at_ms}"));
        GoldenPoint { at_ms, set: "s".into(), matched, mismatched, unanswered, detail }
    }

    #[test]
    fn replays_that_went_alike_are_one_run_and_a_mismatch_is_never_hidden_in_one() {
        let pod = pod(vec![
            point(0.0, 1, 0, 0),
            point(1000.0, 1, 0, 0),
            point(2000.0, 3, 1, 1),
            point(3000.0, 0, 0, 2),
            point(4000.0, 0, 0, 0),
            point(5000.0, 1, 0, 0),
            point(60_000.0, 1, 0, 0),
        ]);
        let runs = golden_runs(&pod, 1000.0, 2500.0);
        let seen: Vec<_> = runs.iter().map(|run| (run.answer, run.start, run.end, run.replays)).collect();
        assert_eq!(
            seen,
            [
                (Answer::Match, 0.0, 2000.0, 2),
                (Answer::Mismatch, 2000.0, 3000.0, 5),
                (Answer::None, 3000.0, 4000.0, 2),
                (Answer::Match, 5000.0, 6000.0, 1),
                (Answer::Match, 60_000.0, 61_000.0, 1),
            ]
        );
        assert_eq!(runs[1].detail, Some("at 2000"));
    }

    #[test]
    fn a_long_run_keeps_every_request_and_every_peak() {
        let buckets: Vec<_> = (0..3_700u32)
            .map(|i| Bucket {
                attempted: 2,
                good: 2,
                wrong: u32::from(i % 2 == 0),
                p50_ms: Some(1.0),
                p99_ms: (i != 5).then_some(if i == 3_001 { 900.0 } else { 2.0 }),
                ..Bucket::default()
            })
            .collect();
        let view = series(&buckets, 1000.0);
        assert!(view.good.len() <= BUCKETS_MAX && view.bucket_ms * view.good.len() as f64 >= 3_700_000.0);
        assert_eq!(view.attempted.iter().sum::<u32>(), 7_400);
        assert_eq!((view.good.iter().sum::<u32>(), view.wrong.iter().sum::<u32>()), (7_400 - 1_850, 1_850));
        assert!(view.p99.iter().flatten().any(|ms| ms.to_bits() == 900.0_f32.to_bits()));
    }
}
