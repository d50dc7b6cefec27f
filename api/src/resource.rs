//! Custom resources in `steadfast.dev/v1alpha1`, beside [`crate::test`] and [`crate::policy`]: specs that people write and statuses that the controller writes.
//!
//! Statuses hold summaries, and of pods a few: what grows with pods or time is in the report.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Percent, Span,
    golden::Verdict,
    policy::LabelSelector,
    report::{PodState, RunOutcome},
};

/// `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`, `Running`, `Verdict`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One CamelCase word.
    pub reason: String,
    #[schemars(length(max = 32_768))]
    pub message: String,
    /// RFC 3339, in seconds.
    pub last_transition_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunPhase {
    #[default]
    Pending,
    Running,
    /// It ended; the verdict says how.
    Finished,
    /// It could not run: the message says why.
    Refused,
}

/// `ResilienceTest.status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResilienceTestStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default)]
    pub phase: RunPhase,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RunOutcome>,
    /// One sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<u32>,
    /// E.g. `99.443%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<String>,
    /// Median time from fault to first correct prediction, e.g. `12.1s`; `never` when most outages did not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<String>,
    /// Whether the target was stable again after every fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<bool>,
    /// What runs now, e.g. `step 2 of 3: node lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// The same for those who draw it; of tests with steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveProgress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportAddress>,
    /// Of a test without steps: windows that are over, and outages in them. The figures above are of the last window; `recovery` of the last outage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outages: Option<u32>,
    /// The last of them in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_outage: Option<String>,
    /// Report of the last window with an outage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_report: Option<ReportAddress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// A run at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveProgress {
    pub phase: LivePhase,
    /// Of the step, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whom its fault hits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub on: String,
    /// Phase so many of so many, from 1.
    pub number: u32,
    pub of: u32,
    pub phase_left_ms: u64,
    /// Of the run, if it recovers as expected.
    pub left_ms: u64,
    /// Share of the run that is behind, 0 to 1.
    pub done: f64,
    /// Over the last five seconds, 0 to 1; absent without a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// At most 32; of more, those that are not in service first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub pods: Vec<LivePod>,
    /// Of a watch: outages that are open.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub open_outages: u32,
    /// The first ten of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub outages: Vec<LiveOutage>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Open outages that a status names.
pub const LIVE_OUTAGES_MAX: usize = 10;

/// An outage that is not over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveOutage {
    pub pod: String,
    pub node: String,
    pub cause: String,
    pub open_seconds: u64,
}

/// Pods in a status: as many as one look takes in, and little enough to be written every second.
pub const LIVE_PODS_MAX: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LivePhase {
    #[default]
    WarmUp,
    Baseline,
    Watch,
    Fault,
    Recovery,
    CleanUp,
}

/// A pod at that moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LivePod {
    pub name: String,
    pub node: String,
    pub state: PodState,
    /// Worst of its golden sets; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

/// Where a report lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportAddress {
    /// `configMap/NAME`, or the address in the object store.
    pub address: String,
    /// `sha256:…` of report.json.
    pub digest: String,
}

/// `FaultPolicy.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultPolicyStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Pods that the selector matches, and how many of them have confirmed the policy.
    #[serde(default)]
    pub pods_matched: u32,
    #[serde(default)]
    pub pods_armed: u32,
    /// Faults that took place so far.
    #[serde(default)]
    pub injected: u64,
    /// RFC 3339, from `creationTimestamp` and `expiresAfter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// `GoldenSet.spec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoldenSetSpec {
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub selector: LabelSelector,
    pub source: GoldenSource,
    /// `sha256:…` of the set (`steadfast golden show` prints it). What does not match is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(default)]
    pub schedule: GoldenSchedule,
    #[serde(default)]
    pub verdict: GoldenPromise,
    #[serde(default)]
    pub readiness: GoldenReadiness,
}

/// Where a golden set lies; exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum GoldenSource {
    /// One key per file of the set, `/` in paths written as `__`; or the single key `set.tar`. A set that is too large for one lies in several.
    ConfigMap(ConfigMapSource),
    /// A claim that a short-lived reader pod mounts, read only; the set is at `path` in it.
    PersistentVolumeClaim(ClaimSource),
    /// An OCI image that a short-lived reader pod mounts as an image volume (Kubernetes 1.33 or newer with the feature gate ImageVolume at API server and
    /// kubelets; containerd 2.1 or CRI-O 1.31); the set is at `path` in it.
    Image(ImageSource),
    /// An object store that a short-lived reader pod asks.
    ObjectStore(ObjectStoreSource),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapSource {
    pub name: String,
    /// How many ConfigMaps: `name`, `name-2`, `name-3` … A key that is in several is one file, in this order.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 16))]
    pub parts: u32,
}

const fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_one(parts: &u32) -> bool {
    *parts == 1
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedSource {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimSource {
    pub claim_name: String,
    /// Folder of the set, or a tar file of it; the whole volume without it.
    #[serde(default)]
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    pub reference: String,
    /// Folder of the set, or a tar file of it; the whole image without it.
    #[serde(default)]
    pub path: String,
    /// Whether a node that has the image asks the registry for it again. Without it as for containers: `Always` where the tag is `latest` or none, else
    /// `IfNotPresent`, which does not see that a tag has moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
}

/// As Kubernetes has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectStoreSource {
    /// `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`: what ends in `.tar` is a tar file of the set, everything else its folder.
    pub url: String,
    /// Secret of the same namespace whose keys are the variables of the store's own tools, such as `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Service account of the reader pod, for stores that know workloads by theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
}

/// When samples are replayed in each pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoldenSchedule {
    #[serde(default = "one_second")]
    pub every: Span,
    /// At most this share of the pod's requests.
    #[serde(default = "one_percent")]
    pub share: Percent,
}

impl Default for GoldenSchedule {
    fn default() -> Self {
        Self { every: one_second(), share: one_percent() }
    }
}

/// What the verdict promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoldenPromise {
    #[serde(default)]
    pub false_alarms: FalseAlarms,
    /// The smallest share of wrong answers that must be seen.
    #[serde(default = "one_percent")]
    pub detect: Percent,
}

impl Default for GoldenPromise {
    fn default() -> Self {
        Self { false_alarms: FalseAlarms::default(), detect: one_percent() }
    }
}

/// At most this many false alarms in this time, per pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FalseAlarms {
    pub at_most: u32,
    pub per: Span,
}

impl Default for FalseAlarms {
    fn default() -> Self {
        Self { at_most: 1, per: Span::from_secs(365 * 86_400) }
    }
}

/// Whether a pod that answers wrong leaves the Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoldenReadiness {
    #[serde(default)]
    pub gate: bool,
    /// At most this share of the matching pods is taken out, so that a bad reference cannot take a service down.
    #[serde(default = "quarter")]
    pub max_unavailable: Percent,
}

impl Default for GoldenReadiness {
    fn default() -> Self {
        Self { gate: false, max_unavailable: quarter() }
    }
}

const fn one_second() -> Span {
    Span::from_secs(1)
}

fn one_percent() -> Percent {
    Percent::from_ratio(0.01)
}

fn quarter() -> Percent {
    Percent::from_ratio(0.25)
}

/// `GoldenSet.status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenSetStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Of the service as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Digest of what is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(default)]
    pub pods_matched: u32,
    #[serde(default)]
    pub pods_passing: u32,
    #[serde(default)]
    pub pods_failing: u32,
    /// Pods kept out of the Service now.
    #[serde(default)]
    pub pods_gated: u32,
    /// Names of failing pods, at most ten, those made last first: a roll-out is judged by its newest pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
    /// Names of pods kept out of the Service now, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gated: Vec<String>,
}

/// `ResilienceSchedule.spec`: runs copies of a test at random moments, in the manner of kube-monkey. What is hit, and how much of it, is what the test says: its
/// steps' `mode` and `value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResilienceScheduleSpec {
    /// The ResilienceTest that is copied, of the same namespace. With `suspend: true` it does not run itself.
    pub test: NamedSource,
    /// From one run to the next, on average over a long time; moments are drawn at random, inside the window alone.
    pub mean_time_between: Span,
    pub window: Window,
    /// `YYYY-MM-DD`, in the window's time zone: no run begins on that day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackout_dates: Vec<String>,
    /// Leashed until someone says otherwise: what would have run is told as an Event.
    #[serde(default)]
    pub armed: bool,
    /// Every moment is drawn from it, and the seed of every run.
    #[serde(default)]
    pub seed: u64,
    /// A moment that nobody saw in time is let pass after so long.
    #[serde(default = "five_minutes")]
    pub start_within: Span,
    /// Runs that are kept, the present one among them; the oldest go first, with their reports.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 100))]
    pub history_limit: u32,
}

const fn five_minutes() -> Span {
    Span::from_secs(300)
}

const fn ten() -> u32 {
    10
}

/// When runs may start: while a clock on the wall of that place shows one of these days and a time from `from` to before `to`. Over midnight (`from` after `to`) the
/// window belongs to the day on which it opens. Where clocks change, no run begins while they show a time outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    #[schemars(length(max = 7))]
    pub days: Vec<Weekday>,
    /// `HH:MM`.
    pub from: String,
    /// `HH:MM`; `24:00` is the end of the day.
    pub to: String,
    /// IANA name, such as `Europe/Berlin`.
    pub time_zone: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// `ResilienceSchedule.status`. Moments are RFC 3339, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResilienceScheduleStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The moment of the last test that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run_at: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run_at: Option<String>,
    /// From where `nextRunAt` was drawn: the last moment, run or let pass, or the last change of the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn_from: Option<String>,
    /// Why the last moment was let pass, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_skipped: Option<Skipped>,
    /// Runs that were deleted to keep to `historyLimit`.
    #[serde(default)]
    pub history_deleted: u64,
}

/// A moment at which nothing was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    pub at: String,
    /// One CamelCase word, such as `UnreadyPods`; `Leashed`: it would have run.
    pub reason: String,
    pub message: String,
}
