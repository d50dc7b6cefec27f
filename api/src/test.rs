//! `ResilienceTest`: the experiment file. The same file runs on one machine and on a cluster.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Rate, Span, fault::Delay, policy::LabelSelector};

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResilienceTest {
    pub api_version: ApiVersion,
    pub kind: Kind,
    pub metadata: Metadata,
    pub spec: ResilienceTestSpec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    #[serde(rename = "steadfast.dev/v1alpha1")]
    V1Alpha1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    ResilienceTest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Lower case letters, digits and `-`, at most 63.
    pub name: String,
    /// Of the target, on a cluster. Not read on one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Kept on the object that a cluster is given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResilienceTestSpec {
    /// On a cluster: kept as a template that ResilienceSchedules copy, and not run itself. `steadfast run` runs it all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    pub target: Target,
    /// What Deployment and Service say on a cluster; read by the local platform alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load: Vec<Load>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<GoldenCheck>,
    #[serde(default = "thirty_seconds")]
    pub baseline: Span,
    /// One after the other. Without any, nothing is broken: the target is watched until the test is stopped or deleted.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Without steps: there is a report at least this often, and after every outage [default: 10m].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    #[serde(default)]
    pub stable: Stable,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hypothesis: Vec<Hypothesis>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub halt: Vec<Halt>,
    /// How many times the steps run.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub rounds: u32,
    #[serde(default)]
    pub seed: u64,
}

impl ResilienceTestSpec {
    /// How long a window of a test without steps lasts at most, while all is well.
    pub fn window(&self) -> Span {
        self.window.unwrap_or(Span::from_secs(600))
    }
}

const fn one() -> u32 {
    1
}

const fn thirty_seconds() -> Span {
    Span::from_secs(30)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    pub selector: LabelSelector,
    /// Name of the Service port.
    #[serde(default = "http")]
    pub port: String,
}

fn http() -> String {
    "http".to_owned()
}

/// Nodes and pods of the local platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Local {
    #[schemars(range(min = 1, max = 64))]
    pub nodes: u32,
    pub pods: LocalPods,
    /// The platform's own reaction times, as a cluster's operators set them.
    #[serde(default)]
    pub timers: Timers,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalPods {
    #[schemars(range(min = 1, max = 256))]
    pub replicas: u32,
    pub labels: BTreeMap<String, String>,
    /// The model server's command line. `$(PORT)`, `$(POD_NAME)` and `$(NODE_NAME)` are filled in. `steadfast` is this very program.
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub ready: Probe,
    /// SIGTERM to SIGKILL when a pod is deleted with grace.
    #[serde(default = "thirty_seconds")]
    pub termination_grace_period: Span,
}

/// The readiness probe, asked through the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    #[serde(default)]
    pub http_get: HttpGet,
    #[serde(default = "one_second")]
    pub period: Span,
    #[serde(default = "one_second")]
    pub timeout: Span,
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_threshold: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self { http_get: HttpGet::default(), period: one_second(), timeout: one_second(), failure_threshold: 3 }
    }
}

const fn one_second() -> Span {
    Span::from_secs(1)
}

const fn three() -> u32 {
    3
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    pub path: String,
}

impl Default for HttpGet {
    fn default() -> Self {
        Self { path: "/v2/health/ready".to_owned() }
    }
}

/// Names and meanings are Kubernetes' own; the defaults are scaled for a machine, and the report says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timers {
    /// Silence of a node until it is called lost (Kubernetes: 40 s).
    pub node_monitor_grace_period: Span,
    /// From then until its pods are replaced elsewhere (Kubernetes: 300 s).
    pub toleration_seconds: Span,
    /// First wait before a container that died is started again; doubles up to `back_off_max` (Kubernetes: 10 s and 5 min).
    pub back_off: Span,
    pub back_off_max: Span,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            node_monitor_grace_period: Span::from_secs(4),
            toleration_seconds: Span::from_secs(6),
            back_off: Span::from_secs(1),
            back_off_max: Span::from_secs(30),
        }
    }
}

/// Users: an open loop that sends at `rate`, whether answers come or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Load {
    pub name: String,
    pub rate: Rate,
    pub inputs: Inputs,
    /// After this a user has given up: the request counts as failed.
    #[serde(default = "two_seconds")]
    pub timeout: Span,
    /// Requests under way at once; more are not sent and count as failed.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_in_flight: u32,
}

const fn two_seconds() -> Span {
    Span::from_secs(2)
}

const fn thousand() -> u32 {
    1000
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inputs {
    /// Samples of this golden set, drawn at random; their answers are checked. A name from `golden-sets/sets/` or a directory.
    pub golden_set: String,
}

/// Replay of a golden set by every sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoldenCheck {
    /// A name from `golden-sets/sets/` or a directory.
    pub set: String,
    #[serde(default = "one_second")]
    pub every: Span,
}

/// One step: a name, one fault by key, and how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "StepFields", into = "StepFields")]
#[schemars(with = "StepFields")]
pub struct Step {
    pub name: String,
    pub action: Action,
    /// How long the fault lasts. Zero for what happens in an instant (`podKill`, `evict`, `containerKill`).
    pub duration: Span,
}

/// What a step does. [`crate::test`] documents each; `docs/failures.md` has an example of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    NetworkLatency(NetworkLatency),
    NetworkLoss(NetworkLoss),
    NetworkPartition(NetworkPartition),
    PodKill(PodKill),
    PodHoldDown(PodHoldDown),
    Evict(Evict),
    ContainerKill(ContainerKill),
    Rollout(Rollout),
    Scale(Scale),
    NodeFailure(NodeFailure),
    Drain(Drain),
    Cordon(Cordon),
    Taint(Taint),
    CpuPressure(CpuPressure),
    Corrupt(CorruptAnswers),
}

impl Action {
    /// As it is written in the file.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NetworkLatency(_) => "networkLatency",
            Self::NetworkLoss(_) => "networkLoss",
            Self::NetworkPartition(_) => "networkPartition",
            Self::PodKill(_) => "podKill",
            Self::PodHoldDown(_) => "podHoldDown",
            Self::Evict(_) => "evict",
            Self::ContainerKill(_) => "containerKill",
            Self::Rollout(_) => "rollout",
            Self::Scale(_) => "scale",
            Self::NodeFailure(_) => "nodeFailure",
            Self::Drain(_) => "drain",
            Self::Cordon(_) => "cordon",
            Self::Taint(_) => "taint",
            Self::CpuPressure(_) => "cpuPressure",
            Self::Corrupt(_) => "corrupt",
        }
    }

    /// Which nodes it chooses, if it chooses nodes.
    pub const fn nodes(&self) -> Option<Selection> {
        match self {
            Self::NetworkLatency(action) => action.nodes,
            Self::NetworkLoss(action) => action.nodes,
            Self::NetworkPartition(action) => action.nodes,
            Self::CpuPressure(action) => action.nodes,
            Self::NodeFailure(action) => Some(action.nodes),
            Self::Drain(action) => Some(action.nodes),
            Self::Cordon(action) => Some(action.nodes),
            Self::Taint(action) => Some(action.nodes),
            _ => None,
        }
    }

    /// Which pods it chooses, if it chooses pods. What chooses neither nodes nor pods (`scale`, `rollout`) is about the whole target.
    pub const fn pods(&self) -> Option<Selection> {
        match self {
            Self::NetworkLatency(action) => action.pods,
            Self::NetworkLoss(action) => action.pods,
            Self::NetworkPartition(action) => action.pods,
            Self::CpuPressure(action) => action.pods,
            Self::PodKill(action) => Some(action.pods),
            Self::PodHoldDown(action) => Some(action.pods),
            Self::Evict(action) => Some(action.pods),
            Self::ContainerKill(action) => Some(action.pods),
            Self::Corrupt(action) => Some(action.pods),
            _ => None,
        }
    }

    /// It happens in an instant, and takes no `for`.
    pub const fn instant(&self) -> bool {
        matches!(self, Self::PodKill(_) | Self::Evict(_) | Self::ContainerKill(_))
    }

    /// It takes its pods away (or what makes them answer) at once, rather than making their work harder or changing what is wanted of them.
    pub const fn takes_pods(&self) -> bool {
        match self {
            Self::PodKill(_) | Self::PodHoldDown(_) | Self::ContainerKill(_) => true,
            // A node without its kubelet serves on, until the cluster takes its pods away.
            Self::NodeFailure(failure) => !matches!(failure.by, NodeFailureBy::Kubelet),
            _ => false,
        }
    }

    /// It names neither nodes nor pods, or both, where exactly one must be.
    fn place_is_wrong(&self) -> bool {
        matches!(self, Self::NetworkLatency(_) | Self::NetworkLoss(_) | Self::NetworkPartition(_) | Self::CpuPressure(_))
            && self.nodes().is_some() == self.pods().is_some()
    }
}

/// Every request to the chosen pods, or to the pods of the chosen nodes, arrives late; or, `by: agent`, every packet that comes to the chosen nodes. Exactly one of
/// `nodes` and `pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkLatency {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Selection>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Selection>,
    pub delay: Span,
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub jitter: Span,
    #[serde(default, skip_serializing_if = "LatencyBy::is_sidecar")]
    pub by: LatencyBy,
}

/// Who adds latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LatencyBy {
    /// The sidecars, to the requests of users.
    #[default]
    Sidecar,
    /// The node agent, to everything that comes to a node by its network: requests, answers from elsewhere, and what the cluster has to say to its kubelet. It heals
    /// itself by the kernel's own timer.
    Agent,
}

impl LatencyBy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub const fn is_sidecar(&self) -> bool {
        matches!(self, Self::Sidecar)
    }
}

impl NetworkLatency {
    pub fn as_delay(&self) -> Delay {
        Delay { fixed: self.delay, jitter: self.jitter }
    }
}

/// A share of the requests to the chosen pods, or to the pods of the chosen nodes, is lost: the sidecar does not pass them on, and nobody answers, until the fault
/// ends and their connections with it. Exactly one of `nodes` and `pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkLoss {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Selection>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Selection>,
    pub share: Percent,
}

/// No request reaches the chosen pods, or the pods of the chosen nodes, though they run and are ready: the sidecar takes all of them and nobody answers, until the
/// fault ends and their connections with it. Exactly one of `nodes` and `pods`. A node that nothing reaches at all is [`NodeFailure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPartition {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Selection>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Selection>,
}

/// Pods are deleted; the platform makes new ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodKill {
    pub pods: Selection,
    /// SIGTERM, then SIGKILL after this. Zero: SIGKILL at once; on a cluster as soon as kubelet can, which is after two seconds.
    #[serde(default)]
    pub grace_period: Span,
}

/// Pods stay but are of no use: their sidecars refuse connections and say that they are not ready, so that they leave the Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodHoldDown {
    pub pods: Selection,
}

/// Pods are evicted, as a drain or an upgrade would: disruption budgets are respected, and what they refuse is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evict {
    pub pods: Selection,
}

/// The main process of a container is killed (SIGKILL); kubelet starts it again in the same pod. Needs the node agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerKill {
    pub pods: Selection,
    /// Absent: the server's, which is the one behind the target's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// The target's workload is given another image, as by a bad release; the image from before comes back at the end. A model that comes as an image is rolled
/// out the same way, by the name of its (init) container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    pub container: String,
    pub image: String,
}

/// The target's workload is scaled to `replicas`, and back at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scale {
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: u32,
}

/// The nodes fall silent, and come back after the step's time: empty after a loss of power, as they were after a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeFailure {
    pub nodes: Selection,
    #[serde(default, skip_serializing_if = "NodeFailureBy::is_auto")]
    pub by: NodeFailureBy,
}

/// How a node is made to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NodeFailureBy {
    /// By the power hook where there is one, else by the agent.
    #[default]
    Auto,
    /// The node agent drops every packet of the node: a partition. It heals itself by the kernel's own timer.
    Agent,
    /// The power hook switches it off and on.
    Power,
    /// The node agent cuts the kubelet off from the API server: the node is lost to the cluster while its pods go on. It heals itself by the kernel's own timer.
    Kubelet,
}

impl NodeFailureBy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

/// Nodes take no new pods, and their pods are evicted (those of DaemonSets stay), as before maintenance. Disruption budgets are respected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    pub nodes: Selection,
    /// Pods with `emptyDir` volumes are evicted too, and what is in those is lost. Without it a node that has such pods is not drained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_empty_dir_data: bool,
}

/// Nodes take no new pods; those that run stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cordon {
    pub nodes: Selection,
}

/// Nodes carry a taint. `NoExecute` drives pods away that do not tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    pub nodes: Selection,
    #[serde(default = "taint_key")]
    pub key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    #[serde(default)]
    pub effect: TaintEffect,
}

fn taint_key() -> String {
    "steadfast.dev/taint".to_owned()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    #[default]
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl TaintEffect {
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// Somebody else computes on the same cores: of the chosen nodes, or within the chosen pods (and so within their limits). Exactly one of `nodes` and `pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CpuPressure {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Selection>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Selection>,
    /// Share of each core of the node; of one core within a pod.
    pub load: Percent,
}

/// The pods answer well-formed but wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CorruptAnswers {
    pub pods: Selection,
    #[serde(default = "hundred")]
    pub share: Percent,
    #[serde(default = "ten_percent")]
    pub magnitude: Percent,
}

fn ten_percent() -> Percent {
    Percent::from_ratio(0.1)
}

const fn hundred() -> Percent {
    Percent::HUNDRED
}

/// How many of the candidates: `{mode: one}`, `{mode: all}`, `{mode: fixed, value: 2}`, `{mode: fixedPercent, value: 50%}`, `{mode: randomMaxPercent, value: 50%}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "SelectionFields", into = "SelectionFields")]
#[schemars(with = "SelectionFields")]
pub enum Selection {
    One,
    All,
    Fixed(u32),
    /// Rounded up: more than 0% is at least one.
    FixedPercent(Percent),
    /// A share drawn uniformly up to this, rounded up.
    RandomMaxPercent(Percent),
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectionFields {
    mode: Mode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<CountOrShare>,
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Mode {
    One,
    All,
    Fixed,
    FixedPercent,
    RandomMaxPercent,
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum CountOrShare {
    Count(u32),
    Share(Percent),
}

impl TryFrom<SelectionFields> for Selection {
    type Error = String;

    fn try_from(fields: SelectionFields) -> Result<Self, String> {
        use CountOrShare::{Count, Share};
        match (fields.mode, fields.value) {
            (Mode::One, None) => Ok(Self::One),
            (Mode::All, None) => Ok(Self::All),
            (Mode::Fixed, Some(Count(count))) if count > 0 => Ok(Self::Fixed(count)),
            (Mode::FixedPercent, Some(Share(share))) if share > Percent::ZERO => Ok(Self::FixedPercent(share)),
            (Mode::RandomMaxPercent, Some(Share(share))) if share > Percent::ZERO => Ok(Self::RandomMaxPercent(share)),
            (Mode::One | Mode::All, Some(_)) => Err("modes one and all take no value: leave it out".to_owned()),
            (Mode::Fixed, _) => Err("mode fixed takes a value, a count of at least 1, such as value: 2".to_owned()),
            (Mode::FixedPercent | Mode::RandomMaxPercent, _) => {
                Err("modes fixedPercent and randomMaxPercent take a value, a share above 0%, such as value: 50%".to_owned())
            }
        }
    }
}

impl From<Selection> for SelectionFields {
    fn from(selection: Selection) -> Self {
        let (mode, value) = match selection {
            Selection::One => (Mode::One, None),
            Selection::All => (Mode::All, None),
            Selection::Fixed(count) => (Mode::Fixed, Some(CountOrShare::Count(count))),
            Selection::FixedPercent(share) => (Mode::FixedPercent, Some(CountOrShare::Share(share))),
            Selection::RandomMaxPercent(share) => (Mode::RandomMaxPercent, Some(CountOrShare::Share(share))),
        };
        Self { mode, value }
    }
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StepFields {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network_latency: Option<NetworkLatency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network_loss: Option<NetworkLoss>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network_partition: Option<NetworkPartition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod_kill: Option<PodKill>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod_hold_down: Option<PodHoldDown>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    evict: Option<Evict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container_kill: Option<ContainerKill>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollout: Option<Rollout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<Scale>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_failure: Option<NodeFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drain: Option<Drain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cordon: Option<Cordon>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    taint: Option<Taint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu_pressure: Option<CpuPressure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    corrupt: Option<CorruptAnswers>,
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    duration: Option<Span>,
}

const ACTIONS: &str = "networkLatency, networkLoss, networkPartition, podKill, podHoldDown, evict, containerKill, rollout, scale, nodeFailure, drain, cordon, taint, cpuPressure, corrupt";

impl TryFrom<StepFields> for Step {
    type Error = String;

    fn try_from(fields: StepFields) -> Result<Self, String> {
        let name = fields.name;
        let mut actions = [
            fields.network_latency.map(Action::NetworkLatency),
            fields.network_loss.map(Action::NetworkLoss),
            fields.network_partition.map(Action::NetworkPartition),
            fields.pod_kill.map(Action::PodKill),
            fields.pod_hold_down.map(Action::PodHoldDown),
            fields.evict.map(Action::Evict),
            fields.container_kill.map(Action::ContainerKill),
            fields.rollout.map(Action::Rollout),
            fields.scale.map(Action::Scale),
            fields.node_failure.map(Action::NodeFailure),
            fields.drain.map(Action::Drain),
            fields.cordon.map(Action::Cordon),
            fields.taint.map(Action::Taint),
            fields.cpu_pressure.map(Action::CpuPressure),
            fields.corrupt.map(Action::Corrupt),
        ]
        .into_iter()
        .flatten();
        let action = match (actions.next(), actions.next()) {
            (Some(action), None) => action,
            (None, _) => return Err(format!("step {name:?} does nothing: give it exactly one of {ACTIONS}")),
            (Some(a), Some(b)) => {
                return Err(format!("step {name:?} has both {} and {}: give it exactly one of {ACTIONS}", a.name(), b.name()));
            }
        };
        if action.place_is_wrong() {
            return Err(format!("step {name:?}: {} takes exactly one of `nodes` and `pods`, such as `pods: {{mode: one}}`", action.name()));
        }
        let duration = match fields.duration {
            None if action.instant() => Span::ZERO,
            Some(_) if action.instant() => {
                return Err(format!("step {name:?}: {} happens in an instant and takes no `for`: leave it out", action.name()));
            }
            Some(duration) if !duration.is_zero() => duration,
            _ => return Err(format!("step {name:?}: {} lasts for a while: say how long, such as `for: 60s`", action.name())),
        };
        Ok(Self { name, action, duration })
    }
}

impl From<Step> for StepFields {
    fn from(step: Step) -> Self {
        let mut fields = Self { name: step.name, duration: (!step.duration.is_zero()).then_some(step.duration), ..Self::default() };
        match step.action {
            Action::NetworkLatency(action) => fields.network_latency = Some(action),
            Action::NetworkLoss(action) => fields.network_loss = Some(action),
            Action::NetworkPartition(action) => fields.network_partition = Some(action),
            Action::PodKill(action) => fields.pod_kill = Some(action),
            Action::PodHoldDown(action) => fields.pod_hold_down = Some(action),
            Action::Evict(action) => fields.evict = Some(action),
            Action::ContainerKill(action) => fields.container_kill = Some(action),
            Action::Rollout(action) => fields.rollout = Some(action),
            Action::Scale(action) => fields.scale = Some(action),
            Action::NodeFailure(action) => fields.node_failure = Some(action),
            Action::Drain(action) => fields.drain = Some(action),
            Action::Cordon(action) => fields.cordon = Some(action),
            Action::Taint(action) => fields.taint = Some(action),
            Action::CpuPressure(action) => fields.cpu_pressure = Some(action),
            Action::Corrupt(action) => fields.corrupt = Some(action),
        }
        fields
    }
}

/// After every step: stable once every pod is back, no request fails and every answer is right for `hold`; given up after `within`, and then the steps that follow are not
/// begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Stable {
    pub within: Span,
    pub hold: Span,
    /// Begin the steps that follow all the same: break what has not recovered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub continue_unstable: bool,
}

impl Default for Stable {
    fn default() -> Self {
        Self { within: Span::from_secs(120), hold: Span::from_secs(10), continue_unstable: false }
    }
}

/// What must hold for the run to pass. A one-of by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Hypothesis {
    Availability(AtLeast),
    Latency(LatencyAtMost),
    Recovery(RecoveryAtMost),
    Consistency(AtLeast),
}

/// Part of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum During {
    /// From the end of the warm-up to the end of the last analysis.
    #[default]
    Run,
    Baseline,
    /// While a fault was active.
    Faults,
    /// From the end of a fault to stable.
    Recovery,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AtLeast {
    pub at_least: Percent,
    #[serde(default)]
    pub during: During,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LatencyAtMost {
    pub quantile: Percent,
    pub at_most: Span,
    #[serde(default)]
    pub during: During,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryAtMost {
    /// For every outage, from t0.
    pub at_most: Span,
    #[serde(default)]
    pub until: RecoveredAt,
}

/// What counts as recovered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RecoveredAt {
    Ready,
    FirstGoodResponse,
    FirstCorrectPrediction,
    #[default]
    Sustained,
}

/// When to stop at once, undo everything and exit 4. A one-of by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Halt {
    Availability(BelowFor),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BelowFor {
    pub below: Percent,
    #[serde(rename = "for")]
    pub duration: Span,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{from_yaml, to_yaml};

    const CASE_STUDY: &str = r"
apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {name: recommender-case-study}
spec:
  target: {selector: {matchLabels: {app: recommender}}, port: http}
  local:
    nodes: 3
    pods: {replicas: 3, labels: {app: recommender}, command: [steadfast, serve, golden-sets/sets/recommender, --port, $(PORT)], ready: {httpGet: {path: /v2/health/ready}, period: 1s}}
  load: [{name: users, rate: 200/s, inputs: {goldenSet: recommender}}]
  golden: [{set: recommender, every: 1s}]
  baseline: 30s
  steps:
    - {name: slow network, networkLatency: {nodes: {mode: one}, delay: 500ms}, for: 60s}
    - {name: node lost, nodeFailure: {nodes: {mode: one}}, for: 60s}
    - {name: busy node, cpuPressure: {nodes: {mode: fixedPercent, value: 50%}, load: 90%}, for: 60s}
    - {name: killed, podKill: {pods: {mode: fixed, value: 2}}}
    - {name: wrong, corrupt: {pods: {mode: one}, magnitude: 5%}, for: 5s}
  stable: {within: 2m, hold: 10s}
  hypothesis:
    - availability: {atLeast: 99%}
    - latency: {quantile: 99%, atMost: 250ms, during: baseline}
    - recovery: {atMost: 30s, until: firstCorrectPrediction}
    - consistency: {atLeast: 99.9%}
  halt: [{availability: {below: 20%, for: 30s}}]
  rounds: 1
  seed: 7
";

    #[test]
    fn a_file_survives_writing_and_reading() {
        let test: ResilienceTest = from_yaml("case.yaml", CASE_STUDY).unwrap();
        assert_eq!(test.spec.steps.len(), 5);
        let written = to_yaml(&test).unwrap();
        assert_eq!(from_yaml::<ResilienceTest>("again.yaml", &written).unwrap(), test, "{written}");
        let json = serde_json::to_string(&test).unwrap();
        assert_eq!(serde_json::from_str::<ResilienceTest>(&json).unwrap(), test, "{json}");
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place_and_what_would_be_right() {
        for (right, wrong, line, field, says) in [
            ("atLeast: 99%}", "atLeast: 990%}", 21, "spec.hypothesis[0].availability.atLeast", "percentage from 0% to 100%"),
            ("delay: 500ms}, for: 60s", "delay: 500}, for: 60s", 14, "spec.steps[0].networkLatency.delay", "such as 500ms"),
            ("rate: 200/s", "rate: fast", 10, "spec.load[0].rate", "such as 200/s"),
            ("baseline: 30s", "baselin: 30s", 12, "spec.baselin", "unknown field"),
            ("{nodes: {mode: one}, delay", "{nodes: {mode: fixed}, delay", 14, "spec.steps[0].networkLatency.nodes", "value: 2"),
            ("rounds: 1", "rounds: 1\n  rounds: 2", 27, "spec", "is given twice"),
            ("kind: ResilienceTest", "kind: Pod", 3, "kind", "ResilienceTest"),
        ] {
            let text = CASE_STUDY.replacen(right, wrong, 1);
            assert_ne!(text, CASE_STUDY, "{right}");
            let error = from_yaml::<ResilienceTest>("case.yaml", &text).unwrap_err();
            assert_eq!((error.line, error.field.starts_with(field)), (line, true), "{error}");
            assert!(error.column > 0 && error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn every_action_survives_writing_and_reading_under_its_own_name() {
        let lines = [
            "networkLatency: {pods: {mode: one}, delay: 500ms, jitter: 10ms}, for: 1s",
            "networkLoss: {pods: {mode: one}, share: 5%}, for: 1s",
            "networkPartition: {nodes: {mode: one}}, for: 1s",
            "podKill: {pods: {mode: fixed, value: 2}, gracePeriod: 3s}",
            "podHoldDown: {pods: {mode: one}}, for: 1s",
            "evict: {pods: {mode: all}}",
            "containerKill: {pods: {mode: one}, container: server}",
            "rollout: {container: server, image: 'registry.test/model:bad'}, for: 1m",
            "scale: {}, for: 1m",
            "nodeFailure: {nodes: {mode: one}, by: power}, for: 1m",
            "drain: {nodes: {mode: one}}, for: 1m",
            "cordon: {nodes: {mode: one}}, for: 1m",
            "taint: {nodes: {mode: one}, effect: NoExecute}, for: 1m",
            "cpuPressure: {pods: {mode: one}, load: 90%}, for: 1m",
            "corrupt: {pods: {mode: one}}, for: 1m",
        ];
        let names: Vec<&str> = ACTIONS.split(", ").collect();
        for line in lines {
            let step: Step = from_yaml("step.yaml", &format!("{{name: a, {line}}}")).unwrap();
            assert!(line.starts_with(&format!("{}:", step.action.name())) && names.contains(&step.action.name()), "{line}");
            let written = to_yaml(&step).unwrap();
            assert_eq!(from_yaml::<Step>("again.yaml", &written).unwrap(), step, "{written}");
        }
        assert!(names.iter().all(|name| lines.iter().any(|line| line.starts_with(name))), "each action has a line here");
    }

    #[test]
    fn a_step_does_exactly_one_thing_for_a_stated_time() {
        let step = |text: &str| from_yaml::<Step>("step.yaml", text);
        assert!(step("{name: a, for: 1s}").unwrap_err().message.contains("exactly one of networkLatency"));
        assert!(
            step("{name: a, podKill: {pods: {mode: one}}, nodeFailure: {nodes: {mode: one}}}").unwrap_err().message.contains("both podKill and nodeFailure")
        );
        assert!(step("{name: a, nodeFailure: {nodes: {mode: one}}}").unwrap_err().message.contains("for: 60s"));
        assert!(step("{name: a, podKill: {pods: {mode: one}}, for: 1s}").unwrap_err().message.contains("takes no `for`"));
        for place in ["nodes: {mode: one}, pods: {mode: one}, ", ""] {
            let error = step(&format!("{{name: a, networkLoss: {{{place}share: 5%}}, for: 1s}}")).unwrap_err();
            assert!(error.message.contains("exactly one of `nodes` and `pods`"), "{error}");
        }
    }
}
