//! What the cluster's own objects say: nodes, pods, who is ready and who is in the Service. Plain data; every change of it is told with its moment.
//!
//! It plays the parts of API server, scheduler, ReplicaSet and endpoints controller. Processes are not its business: [`super::life`] runs them and tells it
//! what became of them, [`super::inner`] carries out what follows.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    time::Instant,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use steadfast_api::Span;
use tokio::sync::mpsc;

use super::names::Names;
use crate::platform::{Change, Pod, What};

#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    /// What its processes are pinned to. Empty: not pinned.
    pub cores: Vec<usize>,
    /// As the node monitor believes.
    pub ready: bool,
    /// As it is: which loss it suffers now. Losses are numbered, so that a timer of an earlier one does nothing to a later one.
    pub lost: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub pod: Pod,
    pub ready: bool,
    pub terminating: bool,
    /// Of its sidecar, while that listens.
    pub address: Option<SocketAddr>,
    /// UID of the pod whose place it took.
    pub replaces: Option<String>,
    /// Trouble has been told since it was last ready.
    detected: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cluster {
    replicas: usize,
    labels: BTreeMap<String, String>,
    pub nodes: Vec<Node>,
    pub pods: Vec<Held>,
    names: Names,
    random: StdRng,
    changes: Option<mpsc::UnboundedSender<Change>>,
    losses: u64,
    /// The Service's backends changed since they were last taken.
    moved: bool,
}

impl Cluster {
    /// `cores` are the nodes' shares, one a node.
    pub(super) fn new(
        cores: Vec<Vec<usize>>,
        replicas: usize,
        labels: BTreeMap<String, String>,
        base: &str,
        seed: u64,
        changes: mpsc::UnboundedSender<Change>,
    ) -> Self {
        let nodes = cores.into_iter().enumerate().map(|(index, cores)| Node { name: format!("node-{}", index + 1), cores, ready: true, lost: None });
        Self {
            replicas,
            labels,
            nodes: nodes.collect(),
            pods: Vec::new(),
            names: Names::new(base, seed),
            random: StdRng::seed_from_u64(seed),
            changes: Some(changes),
            losses: 0,
            moved: false,
        }
    }

    fn tell(&self, at: Instant, what: What) {
        if let Some(changes) = &self.changes {
            // Nobody listens any more: then nobody is told.
            let _ = changes.send(Change { at, what });
        }
    }

    /// No change is told from here on, and whoever waits for one learns that.
    pub(super) fn close(&mut self) {
        self.changes = None;
    }

    pub(super) fn held(&mut self, uid: &str) -> Option<&mut Held> {
        self.pods.iter_mut().find(|held| held.pod.uid == uid)
    }

    pub(super) fn node(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    /// UIDs of the pods on a node, also of those that are terminating.
    pub(super) fn on(&self, node: &str) -> Vec<String> {
        self.pods.iter().filter(|held| held.pod.node == node).map(|held| held.pod.uid.clone()).collect()
    }

    /// Makes pods until there are as many as there shall be; the first of them take the places of `lost`.
    pub(super) fn fill(&mut self, at: Instant, lost: &[String]) {
        let mut lost = lost.iter().cloned();
        while self.pods.iter().filter(|held| !held.terminating).count() < self.replicas {
            let (name, uid) = self.names.next();
            let pod = Pod { name, uid, node: String::new(), labels: self.labels.clone(), in_service: false };
            let replaces = lost.next();
            self.tell(at, What::Created { pod: pod.clone(), replaces: replaces.clone() });
            self.pods.push(Held { pod, ready: false, terminating: false, address: None, replaces, detected: false });
        }
    }

    /// Gives each pod without a node the ready node with the fewest pods; among equals the seed decides. Returns those that have one now.
    pub(super) fn schedule(&mut self, at: Instant) -> Vec<Pod> {
        let mut scheduled = Vec::new();
        for index in 0..self.pods.len() {
            if !self.pods[index].pod.node.is_empty() || self.pods[index].terminating {
                continue;
            }
            let load = |node: &Node| self.pods.iter().filter(|held| held.pod.node == node.name && !held.terminating).count();
            let ready = || self.nodes.iter().filter(|node| node.ready);
            let Some(fewest) = ready().map(load).min() else { break };
            let equals: Vec<&Node> = ready().filter(|node| load(node) == fewest).collect();
            let node = equals[self.random.random_range(0..equals.len())].name.clone();
            self.tell(at, What::Scheduled { uid: self.pods[index].pod.uid.clone(), node: node.clone() });
            self.pods[index].pod.node = node;
            scheduled.push(self.pods[index].pod.clone());
        }
        scheduled
    }

    /// Puts the pod into the Service or takes it out, as what is known of it demands.
    fn endpoint(&mut self, at: Instant, uid: &str) {
        let Some(held) = self.held(uid) else { return };
        let present = held.ready && !held.terminating && held.address.is_some();
        if held.pod.in_service != present {
            held.pod.in_service = present;
            self.moved = true;
            self.tell(at, What::Endpoint { uid: uid.to_owned(), present });
        }
    }

    /// The pod's sidecar listens, or does so no longer.
    pub(super) fn listens(&mut self, at: Instant, uid: &str, address: Option<SocketAddr>) {
        let Some(held) = self.held(uid) else { return };
        held.address = address;
        if address.is_some() {
            self.tell(at, What::Initialized { uid: uid.to_owned() });
        }
        self.endpoint(at, uid);
    }

    pub(super) fn started(&self, at: Instant, uid: &str, restarts: u32) {
        self.tell(at, What::ContainerStarted { uid: uid.to_owned(), restarts });
    }

    pub(super) fn ready(&mut self, at: Instant, uid: &str, ready: bool) {
        let Some(held) = self.held(uid) else { return };
        if held.ready != ready {
            held.ready = ready;
            held.detected &= !ready;
            self.tell(at, What::Ready { uid: uid.to_owned(), ready });
        }
        self.endpoint(at, uid);
    }

    /// The platform noticed trouble: told once until the pod is ready again.
    pub(super) fn detected(&mut self, at: Instant, uid: &str, reason: &str) {
        let Some(held) = self.held(uid) else { return };
        if !std::mem::replace(&mut held.detected, true) {
            self.tell(at, What::Detected { uid: uid.to_owned(), reason: reason.to_owned() });
        }
    }

    pub(super) fn backs_off(&self, at: Instant, uid: &str, reason: &str, wait: Span) {
        self.tell(at, What::BackOff { uid: uid.to_owned(), reason: reason.to_owned(), wait });
    }

    /// Takes pods out of the Service, for good, and makes others in their place: all of it in one moment.
    pub(super) fn delete(&mut self, at: Instant, uids: &[String], reason: &str) {
        for uid in uids {
            self.detected(at, uid, reason);
            let Some(held) = self.held(uid) else { continue };
            if !std::mem::replace(&mut held.terminating, true) {
                self.tell(at, What::Terminating { uid: uid.clone() });
            }
            self.endpoint(at, uid);
        }
        self.fill(at, uids);
    }

    /// Wants this many pods from now on; the newest go first, and who comes back takes the places of `lost`. `retire`: the places of those that go are not wanted
    /// back. Returns the replicas before and who goes.
    pub(super) fn scale(&mut self, at: Instant, replicas: usize, lost: &[String], retire: bool) -> (usize, Vec<String>) {
        let before = std::mem::replace(&mut self.replicas, replicas);
        let there: Vec<String> = self.pods.iter().filter(|held| !held.terminating).map(|held| held.pod.uid.clone()).collect();
        let surplus = there.get(replicas..).unwrap_or_default().to_vec();
        for uid in surplus.iter().filter(|_| retire) {
            self.tell(at, What::Retired { uid: uid.clone() });
        }
        if surplus.is_empty() {
            self.fill(at, lost);
        } else {
            self.delete(at, &surplus, "scaled down");
        }
        (before, surplus)
    }

    /// The pod's processes are gone. One that was not to go is replaced.
    pub(super) fn gone(&mut self, at: Instant, uid: &str, reason: &str) {
        let Some(index) = self.pods.iter().position(|held| held.pod.uid == uid) else { return };
        self.pods[index].ready = false;
        self.endpoint(at, uid);
        self.pods.remove(index);
        self.tell(at, What::Gone { uid: uid.to_owned(), reason: reason.to_owned() });
        self.fill(at, &[uid.to_owned()]);
    }

    /// The node falls silent; nobody knows yet. Returns the number of the loss, or nothing if it is silent already.
    pub(super) fn lose(&mut self, node: &str) -> Option<u64> {
        self.losses += 1;
        let loss = self.losses;
        let node = self.node(node).filter(|node| node.lost.is_none())?;
        node.lost = Some(loss);
        Some(loss)
    }

    fn suffers(&mut self, node: &str, loss: u64) -> bool {
        self.node(node).is_some_and(|node| node.lost == Some(loss))
    }

    /// The node monitor gives up waiting: the node is not ready, nor is any pod on it.
    pub(super) fn unreachable(&mut self, at: Instant, node: &str, loss: u64) {
        if !self.suffers(node, loss) {
            return;
        }
        self.node_ready(at, node, false);
        for uid in self.on(node) {
            self.detected(at, &uid, &format!("{node} does not answer"));
            self.ready(at, &uid, false);
        }
    }

    /// The pods' toleration has run out: others are made elsewhere.
    pub(super) fn evict(&mut self, at: Instant, node: &str, loss: u64) {
        if self.suffers(node, loss) {
            let pods: Vec<_> = self.pods.iter().filter(|held| held.pod.node == node && !held.terminating).map(|held| held.pod.uid.clone()).collect();
            self.delete(at, &pods, &format!("{node} is lost"));
        }
    }

    /// The node is back, with nothing running on it.
    pub(super) fn back(&mut self, at: Instant, node: &str) {
        if let Some(node) = self.node(node) {
            node.lost = None;
        }
        self.node_ready(at, node, true);
    }

    fn node_ready(&mut self, at: Instant, name: &str, ready: bool) {
        let Some(node) = self.node(name) else { return };
        if node.ready != ready {
            node.ready = ready;
            self.tell(at, What::Node { node: name.to_owned(), ready });
        }
    }

    /// The Service's backends with their pods' names, if they changed since this was last asked.
    pub(super) fn take_backends(&mut self) -> Option<Vec<(SocketAddr, String)>> {
        std::mem::take(&mut self.moved).then(|| {
            let present = self.pods.iter().filter(|held| held.pod.in_service);
            present.filter_map(|held| Some((held.address?, held.pod.name.clone()))).collect()
        })
    }

    /// The UIDs of pods with these names.
    pub(super) fn uids(&self, names: &[String]) -> Result<Vec<String>, String> {
        let find = |name: &String| self.pods.iter().find(|held| held.pod.name == *name && !held.terminating).map(|held| held.pod.uid.clone());
        names.iter().map(|name| find(name).ok_or_else(|| no_such("pod", name, self.pods.iter().map(|held| held.pod.name.as_str())))).collect()
    }

    /// Refuses names that are no nodes.
    pub(super) fn check_nodes(&self, names: &[String]) -> Result<(), String> {
        let known: HashSet<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        match names.iter().find(|name| !known.contains(name.as_str())) {
            Some(name) => Err(no_such("node", name, self.nodes.iter().map(|node| node.name.as_str()))),
            None => Ok(()),
        }
    }
}

fn no_such<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    format!("{name} is no {kind} of the target: there are {}", known.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
