//! `report.json`: everything that a run saw and concluded. `report.html` is drawn from it and from nothing else.
//!
//! All times are milliseconds since the run began, on one monotonic clock; `run.started` places them on the calendar.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Span, golden::Verdict, mark::Outage, test::ResilienceTest};

/// Value of [`Report::schema`].
pub const SCHEMA: &str = "steadfast.dev/report/v1alpha1";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: String,
    pub run: Run,
    pub verdict: RunVerdict,
    pub hypothesis: Vec<HypothesisResult>,
    /// In order; they cover the run from baseline to end without a gap.
    pub phases: Vec<Phase>,
    pub faults: Vec<FaultWindow>,
    pub nodes: Vec<String>,
    pub pods: Vec<PodReport>,
    pub outages: Vec<Outage>,
    pub recovery: RecoverySummary,
    pub total: Service,
    pub series: Series,
    pub advice: Vec<Advice>,
    /// GoldenSets of the cluster that are replayed in these pods beside the test's own, as they stood when the run ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden_sets: Vec<GoldenSetReport>,
    /// The input, with every default written out.
    pub test: ResilienceTest,
    /// Command that runs it again.
    pub rerun: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub id: String,
    /// RFC 3339.
    pub started: String,
    /// The same moment on `CLOCK_MONOTONIC` of the machine that led the run, so that other records of that machine can be compared with the marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_monotonic_ns: Option<u64>,
    pub duration_ms: f64,
    pub platform: String,
    /// The platform's own reaction times: no recovery is faster. Absent where they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<PlatformTimers>,
    pub version: String,
    pub machine: Machine,
    /// What could not be undone. Empty is the promise.
    pub left_behind: Vec<String>,
    /// Things a reader must know about how far the figures carry.
    pub notes: Vec<String>,
}

/// How fast a platform can notice and replace what is lost, from its own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformTimers {
    /// Silence of a node until it is called lost; counted from its last heartbeat, by somebody who looks every `node_monitor_period`.
    pub node_monitor_grace_period: Span,
    /// A node is heard so often: its last heartbeat may be so old when it falls silent. Zero: it falls silent for everybody at once.
    #[serde(default)]
    pub node_heartbeat: Span,
    #[serde(default)]
    pub node_monitor_period: Span,
    /// Where that figure is from: the platform itself, or what its version has by default.
    pub known_from: String,
    /// From then until the node's pods are replaced elsewhere; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<Span>,
    /// First wait before a container that died is started again.
    pub back_off: Span,
    pub back_off_max: Span,
    /// The readiness probe of the model server's container; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ProbeTimers>,
    /// That of the sidecar, which is not ready while its server is not, and makes the pod so; absent: there is no such probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar_readiness: Option<ProbeTimers>,
}

impl PlatformTimers {
    /// From a node's silence to the moment at which it is called lost: at least, and at most.
    pub fn node_called_lost(&self) -> (Span, Span) {
        let grace = self.node_monitor_grace_period.get();
        (Span::new(grace.saturating_sub(self.node_heartbeat.get())), Span::new(grace + self.node_monitor_period.get()))
    }

    /// From a node's silence to the moment at which its pods are replaced: at least, and at most; absent: never.
    pub fn node_loss(&self) -> Option<(Span, Span)> {
        let (least, most) = self.node_called_lost();
        self.toleration_seconds.map(|toleration| (Span::new(least.get() + toleration.get()), Span::new(most.get() + toleration.get())))
    }
}

/// How often readiness is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeTimers {
    /// From the container's start to the first probe.
    pub initial_delay: Span,
    pub period: Span,
    pub failure_threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub os: String,
    pub architecture: String,
    pub cores: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RunOutcome {
    Pass,
    Fail,
    Inconclusive,
    Halted,
}

impl RunOutcome {
    /// Exit status of the command line.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Inconclusive => 3,
            Self::Halted => 4,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunVerdict {
    pub outcome: RunOutcome,
    /// One sentence.
    pub reason: String,
    /// 0 to 100: see ARCHITECTURE.md for how it is made. A run that did not come to its end has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<u32>,
    /// The parts that the score is made of.
    pub score_parts: Vec<ScorePart>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScorePart {
    pub name: String,
    pub points: f64,
    pub out_of: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HypothesisResult {
    /// In words, e.g. `availability ≥ 99% during the run`.
    pub statement: String,
    pub outcome: RunOutcome,
    /// In words, with the figure, e.g. `99.93% of 12,000 requests`.
    pub observed: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PhaseKind {
    Baseline,
    Fault,
    /// After a fault: analysing until stable.
    Recovery,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    pub name: String,
    pub kind: PhaseKind,
    pub round: u32,
    /// Index of the step in the file; absent for the baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    pub start_ms: f64,
    pub end_ms: f64,
    /// For recovery: when the system was stable, and since when; absent when it did not become so before the deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_ms: Option<f64>,
    pub service: Service,
}

/// What users and golden replays saw over some stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub availability: Availability,
    pub latency: Latency,
    pub consistency: Consistency,
}

/// Requests by how they ended. `availability` = good ÷ attempted; a wrong answer is available and inconsistent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Availability {
    pub attempted: u64,
    pub good: u64,
    /// Model server's own errors.
    pub failed_upstream: u64,
    /// Errors that a fault was asked to give.
    pub failed_injected: u64,
    /// Errors of sidecar or gateway: the model server could not be reached.
    pub failed_proxy: u64,
    /// No answer before the user gave up, or no connection: silence.
    pub failed_silence: u64,
    /// Ratio 0 to 1; absent when nothing was attempted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// From the moment a request was due to its last byte, in milliseconds; failures that ended in silence count with the time the user waited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// Right answers: users' answers and golden replays, apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Consistency {
    pub answers_checked: u64,
    pub answers_right: u64,
    pub replays_matched: u64,
    pub replays_mismatched: u64,
    /// No answer is never drift: counted apart.
    pub replays_unanswered: u64,
    /// Right ÷ checked over both, 0 to 1; absent when nothing was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultWindow {
    pub name: String,
    /// `networkLatency`, `podKill`, …
    pub action: String,
    /// In words, e.g. `500ms added to every request`.
    pub description: String,
    pub round: u32,
    pub step: u32,
    pub start_ms: f64,
    pub end_ms: f64,
    pub nodes: Vec<String>,
    pub pods: Vec<String>,
    /// Proof that it happened, e.g. `delay injected 3,981 times`; empty when nothing proves it, which makes the run inconclusive.
    pub evidence: Vec<String>,
    /// Why its effect, or a part of it, was not seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
    /// When everything that it changed was back; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// Created, not yet running.
    Pending,
    /// Server process runs, model not loaded.
    Loading,
    /// Model loaded, not in the Service.
    NotReady,
    Serving,
    /// Process died; waits to be started again.
    BackOff,
    /// Nobody hears from it.
    Silent,
    Terminating,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    pub name: String,
    pub uid: String,
    pub node: String,
    /// Pods that replace each other share a lane.
    pub lane: u32,
    pub states: Vec<PodStretch>,
    pub service: Service,
    pub golden: Vec<GoldenPoint>,
    pub verdicts: Vec<GoldenVerdictPoint>,
    /// Resident memory of the sidecar, largest seen, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar_rss_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodStretch {
    pub state: PodState,
    pub start_ms: f64,
    pub end_ms: f64,
}

/// Golden replays of one pod over one bucket of [`Series::bucket_ms`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenPoint {
    pub at_ms: f64,
    pub set: String,
    pub matched: u32,
    pub mismatched: u32,
    pub unanswered: u32,
    /// Of the first mismatch: sample, what differed and by how much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a GoldenSet's status said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenSetReport {
    pub name: String,
    /// Of its pods together; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    pub pods_matched: u32,
    pub pods_passing: u32,
    pub pods_failing: u32,
    /// Kept out of their Service because of their answers.
    pub pods_gated: u32,
    /// Some of those that fail or are kept out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenVerdictPoint {
    pub at_ms: f64,
    pub set: String,
    pub verdict: Verdict,
}

/// Recovery over all outages. Quantiles treat censored outages as longer than every recovered one (absent when they fall there).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoverySummary {
    pub outages: u32,
    pub censored: u32,
    /// t0 to first correct prediction.
    pub first_correct_p50_ms: Option<f64>,
    pub first_correct_max_ms: Option<f64>,
    /// t0 to t12.
    pub sustained_p50_ms: Option<f64>,
    pub sustained_max_ms: Option<f64>,
    /// First to last failure that clients saw.
    pub routing_p50_ms: Option<f64>,
    pub routing_max_ms: Option<f64>,
}

/// Time series over the whole run, in buckets of equal length. Index i covers i × bucket to (i + 1) × bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    pub bucket_ms: f64,
    pub all: Vec<Bucket>,
    /// By pod name; `none` for requests that reached no pod.
    pub pods: BTreeMap<String, Vec<Bucket>>,
}

/// Requests that were due in one bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    pub attempted: u32,
    pub good: u32,
    pub wrong: u32,
    pub failed_upstream: u32,
    pub failed_injected: u32,
    pub failed_proxy: u32,
    pub failed_silence: u32,
    /// Absent (null) without a request.
    pub p50_ms: Option<f32>,
    pub p99_ms: Option<f32>,
    pub max_ms: Option<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// What to do.
    pub title: String,
    /// What was seen that says so, with figures.
    pub evidence: String,
    /// What it would bring, with a figure where there is one.
    pub gain: String,
}
