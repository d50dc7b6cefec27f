//! Where pods and nodes live. The experiment speaks to this trait alone, so the same file runs on one machine and on a cluster.
//!
//! A platform does three things: it keeps the target running and tells every change (as [`Change`]s, each with the moment it happened), it carries out
//! faults and takes them back, and it closes leaving nothing behind.

mod armed;
mod burned;
pub mod kubernetes;
pub mod local;

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Instant};

use steadfast_api::{
    Percent, Span,
    fault::{Delay, Fault},
    report::PlatformTimers,
    test::{Action, NodeFailureBy, TaintEffect},
};
use tokio::sync::mpsc;

use crate::load::{Asked, Record, generator::Generator, here};

/// A pod of the target, as it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub node: String,
    pub labels: BTreeMap<String, String>,
    /// In the Service right now.
    pub in_service: bool,
}

/// Something that happened on the platform, and when it did (not when somebody read about it).
#[derive(Clone, Debug)]
pub struct Change {
    pub at: Instant,
    pub what: What,
}

/// The kinds of change. Pods are named by UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Mark t4. `replaces` is the UID of the pod whose place it takes.
    Created {
        pod: Pod,
        replaces: Option<String>,
    },
    /// Mark t5.
    Scheduled {
        uid: String,
        node: String,
    },
    /// Mark t6: the sidecar listens.
    Initialized {
        uid: String,
    },
    /// Mark t7: the model server's process runs. `restarts` counts earlier processes of the same pod.
    ContainerStarted {
        uid: String,
        restarts: u32,
    },
    /// Mark t9, or its loss.
    Ready {
        uid: String,
        ready: bool,
    },
    /// Marks t10 and t3.
    Endpoint {
        uid: String,
        present: bool,
    },
    /// Mark t2: the platform noticed that this pod or its node is in trouble.
    Detected {
        uid: String,
        reason: String,
    },
    /// It is kept out of the Service on purpose: its answers are wrong.
    HeldOut {
        uid: String,
        why: String,
    },
    /// The model server's process ended by itself or was killed; it starts again in the same pod after `wait`.
    BackOff {
        uid: String,
        reason: String,
        wait: Span,
    },
    /// Its place is not wanted any more (scaled away): what becomes of it now is no outage.
    Retired {
        uid: String,
    },
    Terminating {
        uid: String,
    },
    Gone {
        uid: String,
        reason: String,
    },
    Node {
        node: String,
        ready: bool,
    },
}

/// What an experiment asks a platform to do. Selections have been drawn already: names here are exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Arm `fault` for `share` of the user requests of these pods, and of pods that replace them on the same nodes. Golden replays are exempt, except from
    /// `corrupt`, which they must see: a wrong answer is wrong for everybody.
    Requests {
        pods: Vec<String>,
        nodes: Vec<String>,
        fault: Fault,
        share: Percent,
    },
    /// Delete pods: SIGTERM, SIGKILL after `grace` (zero: at once).
    Kill {
        pods: Vec<String>,
        grace: Span,
    },
    /// Nodes fall silent, for `lasts`: nothing reaches a node that is cut off, so its return is set beforehand.
    LoseNodes {
        nodes: Vec<String>,
        by: NodeFailureBy,
        lasts: Span,
    },
    /// Everything that comes to nodes by their network arrives late, for `lasts`.
    DelayNodes {
        nodes: Vec<String>,
        delay: Delay,
        lasts: Span,
    },
    /// Burn CPU on nodes.
    Burn {
        nodes: Vec<String>,
        load: Percent,
    },
    /// Burn CPU within pods, by their sidecars: a share of one core.
    BurnPods {
        pods: Vec<String>,
        load: Percent,
    },
    /// Sidecars of these pods refuse connections and say that they are not ready.
    HoldDown {
        pods: Vec<String>,
    },
    /// Delete pods as far as disruption budgets allow.
    Evict {
        pods: Vec<String>,
    },
    /// Kill the main process of a container (none: the first) of each pod.
    KillContainers {
        pods: Vec<String>,
        container: Option<String>,
    },
    /// Give the target's workload another image.
    RollOut {
        container: String,
        image: String,
    },
    /// Scale the target's workload.
    Scale {
        replicas: u32,
    },
    Cordon {
        nodes: Vec<String>,
    },
    /// Cordon nodes, and evict their pods as far as disruption budgets allow. `empties`: those too that lose what is in their `emptyDir` volumes.
    Drain {
        nodes: Vec<String>,
        empties: bool,
    },
    Taint {
        nodes: Vec<String>,
        key: String,
        value: String,
        effect: TaintEffect,
    },
}

impl Order {
    /// As a step names it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Requests { .. } => "requests",
            Self::Kill { .. } => "podKill",
            Self::LoseNodes { .. } => "nodeFailure",
            Self::DelayNodes { .. } => "networkLatency",
            Self::Burn { .. } | Self::BurnPods { .. } => "cpuPressure",
            Self::HoldDown { .. } => "podHoldDown",
            Self::Evict { .. } => "evict",
            Self::KillContainers { .. } => "containerKill",
            Self::RollOut { .. } => "rollout",
            Self::Scale { .. } => "scale",
            Self::Cordon { .. } => "cordon",
            Self::Drain { .. } => "drain",
            Self::Taint { .. } => "taint",
        }
    }

    /// Pods that it takes from users at once: of these names, and those of the target on these nodes.
    pub fn takes(&self) -> (&[String], &[String]) {
        match self {
            Self::Kill { pods, .. } | Self::HoldDown { pods } | Self::Evict { pods } | Self::KillContainers { pods, .. } => (pods, &[]),
            // Of most requests nobody hears again.
            Self::Requests { pods, nodes, fault: Fault::Blackhole(_), share } if share.ratio() > 0.5 => (pods, nodes),
            _ => (&[], &[]),
        }
    }
}

/// An order in force. Give it back to [`Platform::undo`].
#[derive(Debug)]
pub struct InForce {
    pub id: u64,
    /// When it took hold: the t0 of what follows.
    pub since: Instant,
}

/// How an order ended.
#[derive(Clone, Debug, Default)]
pub struct Undone {
    /// Proof that it happened, in words with counts. That somebody agreed to do it is none: its effect was seen.
    pub evidence: Vec<String>,
    /// Why its effect, or a part of it, was not seen.
    pub doubts: Vec<String>,
    /// What could not be undone.
    pub left_behind: Vec<String>,
}

/// A step's fault, and what it hits.
#[derive(Clone, Copy, Debug)]
pub struct StepFault<'a> {
    pub step: &'a str,
    /// As the step names it.
    pub action: &'a str,
    pub nodes: &'a [String],
    /// Where it chooses no nodes.
    pub pods: &'a [String],
}

/// A platform could not do something.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct PlatformError {
    pub what: String,
    pub why: String,
}

impl PlatformError {
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

/// Users at work.
#[derive(Debug)]
pub enum Users {
    /// In this process.
    Here(Vec<Generator>),
    /// In a pod of their own.
    InPod(kubernetes::InPod),
}

impl Users {
    /// Returns once nobody asks any more and everything that was under way is on record; how many requests are in no record.
    pub async fn stop(self) -> u64 {
        match self {
            Self::Here(loads) => stop_all(loads).await,
            Self::InPod(pod) => pod.stop().await,
        }
    }
}

async fn stop_all(loads: Vec<Generator>) -> u64 {
    let mut dropped = 0;
    // Each of them is told before the first is waited for.
    loads.iter().for_each(Generator::halt);
    for load in loads {
        dropped += load.stop().await.records_dropped;
    }
    dropped
}

/// See the module.
pub trait Platform: Send + Sync + 'static {
    /// Word for reports: `local`, `kubernetes`.
    fn name(&self) -> &'static str;
    /// Names of all nodes, in order.
    fn nodes(&self) -> Vec<String>;
    /// Those of them that this action may choose.
    fn choosable(&self, _action: &Action) -> impl Future<Output = Result<Vec<String>, PlatformError>> + Send {
        std::future::ready(Ok(self.nodes()))
    }
    /// Whether anything may be broken at this moment, or why not: asked right before each fault.
    fn may_break(&self) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Ok(()))
    }
    /// The target's pods now, in order of creation.
    fn pods(&self) -> Vec<Pod>;
    /// How many pods the target has when it is whole, as its workloads ask for them now.
    fn wanted(&self) -> usize {
        self.pods().len()
    }
    /// Where users send requests.
    fn service(&self) -> SocketAddr;
    /// Whether the target runs because this run began: then it is waited for, and what it does until it is well is none of a watch.
    fn starts_target(&self) -> bool {
        true
    }
    /// Whether a user's next request may go on a connection that he has. Where connections are spread over pods when they are opened, and never again, every request
    /// needs one of its own, or a pod that came back would see nobody.
    fn keep_alive(&self) -> bool {
        true
    }
    /// Has users ask; what they saw goes to `records`. Without loads there are none.
    fn users(&self, asked: Vec<Asked>, records: mpsc::Sender<Record>) -> impl Future<Output = Result<Users, PlatformError>> + Send {
        let users = here(self.service(), self.keep_alive(), &asked, &records);
        std::future::ready(users.map(Users::Here).map_err(|error| PlatformError::new(format!("load {:?}", error.load), error.why)))
    }
    /// Its own reaction times, where the experiment file does not say them.
    fn timers(&self) -> Option<PlatformTimers> {
        None
    }
    /// Next change; `None` after close. Changes come in order and none is lost.
    fn next_change(&self) -> impl Future<Output = Option<Change>> + Send;
    /// Carries out `order` for at most `expires_after`; it ends by itself then, whatever happens to the caller.
    fn apply(&self, order: Order, expires_after: Span) -> impl Future<Output = Result<InForce, PlatformError>> + Send;
    /// The run ends: what is being carried out now is given up as soon as it can be, and what was done of it taken back; nobody waits for proofs any more.
    fn give_up(&self) {}
    /// Tells whoever is on call for what it hits: a fault is about to begin, or has ended.
    fn tell(&self, _fault: StepFault<'_>, _begins: bool) {}
    /// Takes an order back and returns once its effect is gone. A lost node returns (empty), a burn stops, a policy is disarmed.
    fn undo(&self, order: InForce) -> impl Future<Output = Undone> + Send;
    /// Largest resident memory seen of each pod's sidecar, in bytes, by pod name.
    fn sidecar_rss(&self) -> BTreeMap<String, u64>;
    /// Undoes what is in force and stops everything. Returns what could not be undone.
    fn close(&self) -> impl Future<Output = Vec<String>> + Send;
}
