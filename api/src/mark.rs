//! Outages and their marks t0…t12: when a pod was taken away, noticed, replaced, ready, and right again.
//!
//! Marks are milliseconds since the run began, on one monotonic clock. A mark that was not seen is absent, never guessed; an outage that had not ended when
//! the run did is *censored*: its length is a lower bound, and it stays in every statistic as that.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The moments of one outage, in the order in which they usually come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mark {
    /// t0: the fault began.
    Fault,
    /// t1: the first request that failed was sent.
    FirstFailure,
    /// t2: the platform noticed (pod or node condition).
    Detected,
    /// t3: the endpoint was withdrawn.
    EndpointRemoved,
    /// t4: the replacement was created.
    ReplacementCreated,
    /// t5: it was given a node.
    Scheduled,
    /// t6: its preparation was done (the sidecar listens).
    Initialized,
    /// t7: the model server's process runs.
    ContainerStarted,
    /// t8: the model server says that its model is loaded.
    ModelLoaded,
    /// t9: the platform calls the pod ready.
    Ready,
    /// t10: the endpoint was added.
    EndpointAdded,
    /// t11: a client got the first good response from it.
    FirstGoodResponse,
    /// Beside t11: the first golden input answered within tolerance.
    FirstCorrectPrediction,
    /// t12: the beginning of the good service that then lasted.
    Sustained,
}

impl Mark {
    pub const ALL: [Self; 14] = [
        Self::Fault,
        Self::FirstFailure,
        Self::Detected,
        Self::EndpointRemoved,
        Self::ReplacementCreated,
        Self::Scheduled,
        Self::Initialized,
        Self::ContainerStarted,
        Self::ModelLoaded,
        Self::Ready,
        Self::EndpointAdded,
        Self::FirstGoodResponse,
        Self::FirstCorrectPrediction,
        Self::Sustained,
    ];
}

/// The marks of one outage; every one at most once. Milliseconds since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Marks(pub std::collections::BTreeMap<Mark, f64>);

impl Marks {
    /// Keeps the first value that a mark was given.
    pub fn set(&mut self, mark: Mark, at_ms: f64) {
        self.0.entry(mark).or_insert(at_ms);
    }

    pub fn get(&self, mark: Mark) -> Option<f64> {
        self.0.get(&mark).copied()
    }

    /// From one mark to a later one, in milliseconds.
    pub fn between(&self, from: Mark, to: Mark) -> Option<f64> {
        Some(self.get(to)? - self.get(from)?)
    }
}

/// One outage of one pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Outage {
    /// From 1, in order of t0.
    pub id: u32,
    /// Pod that was lost, and where it stood.
    pub pod: String,
    pub uid: String,
    pub node: String,
    /// Pod that took its place; the same pod when it came back by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement_node: Option<String>,
    /// Index into `report.faults`; absent when nobody planned it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<u32>,
    pub cause: String,
    /// The platform heard no more of its node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_lost: bool,
    /// It began before this window of a watch, whose report told of it as not recovered: t0 is less than zero then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// It had begun before anybody watched: t0 is the latest that it can have been, and every length that counts from it is at least so long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub began_before: bool,
    pub marks: Marks,
    /// First to last failure that clients saw, in milliseconds; absent when no client saw one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_outage_ms: Option<f64>,
    /// t0 to t12, in milliseconds; up to the end of the run when censored.
    pub capacity_outage_ms: f64,
    /// Not recovered when the run ended.
    pub censored: bool,
}
