//! What sidecar and controller say to each other: numbered evidence up, policy snapshots down, both as JSON lines that `curl` can read.
//!
//! `GET /v1alpha1/policies?uid=…` streams [`PolicySnapshot`](crate::policy::PolicySnapshot) lines for as long as the connection lives; `POST /v1alpha1/reports`
//! takes [`SidecarReport`] lines; `GET /v1alpha1/golden-sets/{digest}` answers a golden set that was assigned to the pod, as a tar. All want `Authorization: Bearer …`. Reports go up at least once: the controller drops what it has by (`uid`, `sequence`).
//!
//! Times are nanoseconds on the sidecar's own monotonic clock since its start. `sent_ns` beside them lets the receiver place them on its own clock to
//! within the time that the message travelled: nobody's wall clock decides a mark.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FaultKind,
    golden::{Outcome, Verdict},
    policy::Origin,
};

/// Request header that says which protocol the sidecar speaks, as `major` or `major.minor`; without it, [`PROTOCOL_MAJOR`] is meant. The controller names its own
/// in every answer, and refuses a major version that it does not speak with 426.
pub const PROTOCOL_HEADER: &str = "steadfast-protocol";
/// Rises when an old sidecar could misunderstand a new controller, or the reverse. New fields and new addresses do not raise it.
pub const PROTOCOL_MAJOR: u32 = 1;
/// Audience of the service-account tokens by which sidecars prove which pod they stand in.
pub const TOKEN_AUDIENCE: &str = "steadfast.dev";

/// Which pod a sidecar stands in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    pub name: String,
    pub uid: String,
    pub node: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// One message of a sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarReport {
    pub pod: PodIdentity,
    /// From 1, without gaps, for as long as the sidecar lives.
    pub sequence: u64,
    /// When this message was written, on the sidecar's clock.
    pub sent_ns: u64,
    pub evidence: Vec<Evidence>,
    /// Evidence that was dropped because the controller was away for longer than the sidecar's bounded memory reaches.
    pub dropped: u64,
}

/// Something that a sidecar saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    pub at_ns: u64,
    #[serde(flatten)]
    pub what: What,
}

/// The kinds of evidence, a one-of by key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// The model server's readiness changed: `ready` by its readiness path, polled every 20 ms while it is not ready.
    Upstream { ready: bool },
    /// A golden sample was replayed.
    Golden(GoldenReplay),
    /// The sequential verdict of a golden set, after every replay that changed it.
    GoldenVerdict {
        set: String,
        /// Of the set, where a controller assigned it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        verdict: Verdict,
        samples: u64,
        mismatches: u64,
    },
    /// Which snapshot is in force.
    Policy { generation: u64, armed: bool },
    /// What passed since the last such line.
    Requests(RequestWindow),
}

/// One replay of one sample. `at_ns` of its evidence is when the answer had been compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenReplay {
    pub set: String,
    pub sample: String,
    pub outcome: Outcome,
    pub latency_ns: u64,
    /// For a mismatch: what differed, by how much. For no answer: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Counts of one window of time. Golden replays are not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestWindow {
    pub window_ns: u64,
    pub responses: Vec<ResponseCount>,
    pub injected: Vec<InjectedCount>,
    /// Faults that a policy called for and its budget refused.
    pub over_budget: u64,
    pub latency_p50_ns: u64,
    pub latency_p99_ns: u64,
}

/// Responses by origin and status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseCount {
    pub origin: Origin,
    pub status: u16,
    pub count: u64,
}

/// Faults that took place, by kind and by the policy (or `header`) that asked for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InjectedCount {
    pub policy: String,
    pub kind: FaultKind,
    pub count: u64,
}
