//! `NodeFault`: what the controller asks the agent of one node to do. People do not write it, and only the controller may.
//!
//! It ends by itself: `lasts` counts in the node's kernel from the moment the agent begins, so that no clock needs to agree with another; `notAfter` keeps an
//! agent that comes late from beginning what is long over. `ended`, or the object's deletion, ends the fault earlier where the agent can hear of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Span, fault::Delay};

/// The longest that a node may be asked to suffer.
pub const LASTS_MAX: Span = Span::from_secs(3600);

/// The longest that a packet may be asked to wait, jitter and all.
pub const LATENCY_MAX: Span = Span::from_secs(10);

/// `NodeFault.spec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeFaultSpec {
    /// The agent of this node is meant, and no other.
    pub node: String,
    pub fault: NodeFaultKind,
    /// At most an hour.
    pub lasts: Span,
    /// RFC 3339: not begun after this moment.
    pub not_after: String,
    /// It shall end now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
}

/// What a node suffers, a one-of by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum NodeFaultKind {
    /// Every packet that comes or goes by an uplink of the node is dropped. The kernel forgets the rule by its own timer.
    Partition {},
    /// What the node itself (its kubelet, and pods in its network) sends to the API server is dropped. The kernel forgets the rule by its own timer.
    KubeletCut {},
    /// Every packet that comes by an uplink of the node waits. The kernel forgets the rule by its own timer unless the agent goes on.
    Latency(Delay),
    /// The main process of this container is killed, once.
    ContainerKill {
        pod_uid: String,
        /// Without its scheme, e.g. without `containerd://`.
        container_id: String,
    },
}

impl NodeFaultKind {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Partition {} => "partition",
            Self::KubeletCut {} => "kubelet cut",
            Self::Latency(_) => "latency",
            Self::ContainerKill { .. } => "container kill",
        }
    }
}

/// `NodeFault.status`, written by the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeFaultStatus {
    #[serde(default)]
    pub phase: NodeFaultPhase,
    /// What was done, with counts; or why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of what is over: how much it hit, which proves it: packets dropped or held back, containers killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeFaultPhase {
    /// The agent has not seen it.
    #[default]
    Pending,
    /// The agent begins now. It says so before, since a node without network can say nothing.
    InForce,
    /// Over: the node is as it was.
    Healed,
    /// Not done.
    Refused,
}
