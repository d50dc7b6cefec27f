//! Failures that change the cluster itself, and not only what sidecars do: nodes, workloads, containers, burner pods. Each is written down in the run's [`ledger`]
//! before it is made, may hit only what has opted in ([`guard`]), and is taken back by [`undo`], by whoever finds it.

mod budget;
mod burner;
pub mod closing;
mod error;
mod evict;
mod guard;
pub mod ledger;
mod node_faults;
mod nodes;
mod owner;
mod power;
pub mod undo;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use k8s_openapi::{
    api::core::v1::{LocalObjectReference, Pod as Object},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, Client, ResourceExt};
use steadfast_api::{
    Percent, Span,
    node::NodeFaultKind,
    test::{Action, LatencyBy, NodeFailureBy, TaintEffect},
};
use tokio::{sync::watch, task::JoinHandle};

pub(super) use self::evict::{Evictions, Meant, evict};
pub use self::{
    budget::{Budget, UnavailableMax},
    error::FailureError,
    power::PowerHook,
};
use self::{
    ledger::{ClusterChange, Ledger, Undo},
    workload::Workload,
};
use super::facts::server;
use crate::{
    platform::{Order, Undone},
    reconcile::pods::Pods,
    serve::users::Awaited,
    webhook::flags::RunAsUser,
};

/// The key of taints that the controller's own pods tolerate (deploy/chart/templates/controller.yaml).
const TOLERATED: &str = "steadfast.dev/taint";

/// What this controller has to make failures with.
pub struct Means {
    /// Asks a busy API server again, for minutes if need be.
    pub client: Client,
    /// Never asks again by itself: whoever makes or undoes a failure wants every answer at once, and to be able to stop.
    pub prompt: Client,
    pub pods: Arc<Pods>,
    /// The controller's own namespace: ledgers, node faults and burner pods live there.
    pub namespace: String,
    /// The node that the controller stands on: never taken away.
    pub node: String,
    /// Pods of users that are in use, and so nobody's to take back.
    pub users: Arc<Awaited>,
    /// Its own image, which burns too.
    pub image: String,
    pub image_pull_policy: Option<String>,
    pub run_as_user: RunAsUser,
    /// Secrets of its namespace by which that image is pulled.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    pub power: Option<PowerHook>,
    pub budget: Budget,
}

/// Tells whoever carries something out that it shall be given up: its run ends.
#[derive(Clone, Debug)]
pub(super) struct GivenUp(pub watch::Receiver<bool>);

impl GivenUp {
    /// What comes of `work`, unless it is given up before. `work` only looks: what changes something is never cut off in the middle.
    pub(super) async fn or<T>(&self, work: impl Future<Output = Result<T, FailureError>>) -> Result<T, FailureError> {
        tokio::select! {
            done = work => done,
            () = self.told() => Err(FailureError::new("the step", "was given up before it was in force: its run ends")),
        }
    }

    /// False: it was given up before so long had passed.
    pub(super) async fn or_slept(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.told() => false,
        }
    }

    async fn told(&self) {
        if self.0.clone().wait_for(|given_up| *given_up).await.is_err() {
            // Nobody is there any more who could.
            std::future::pending::<()>().await;
        }
    }
}

/// What was seen of a failure.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Its effect.
    proofs: Vec<String>,
    /// Why its effect, or a part of it, was not seen.
    doubts: Vec<String>,
}

/// A failure in force.
pub(super) struct Failure {
    /// When the first part of it took hold.
    pub since: Instant,
    /// What is not undone yet.
    entries: Mutex<Vec<Undo>>,
    seen: Arc<Mutex<Seen>>,
    /// Goes on evicting.
    drain: Option<JoinHandle<()>>,
    /// When the kubelets of nodes without power were last heard of, as it was right after.
    heard: BTreeMap<String, (Instant, String)>,
    /// What was rolled out or scaled is looked at once more before it is taken back.
    workload: Option<Changed>,
}

/// A change of the target's workload.
#[derive(Clone, Debug)]
enum Changed {
    Image { workload: Workload, container: String, to: String },
    Replicas { workload: Workload, before: i32, to: i32 },
}

/// A node that was away is Ready some seconds after it has come back.
const NODES_RETURN_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AT_NODES_EVERY: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Failure {
    fn drop(&mut self) {
        if let Some(drain) = &self.drain {
            drain.abort();
        }
    }
}

/// Whose pods are meant.
pub(super) struct Target<'a> {
    pub namespace: &'a str,
    /// Labels as a selector.
    pub selector: &'a str,
    /// Of its pods, to which its Service leads: behind it is the server.
    pub port: &'a IntOrString,
    /// Begins the names of what is made; unique among all orders of all runs.
    pub prefix: &'a str,
    pub given_up: &'a GivenUp,
}

/// What an action does to the nodes that it chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reach {
    /// It needs the node's leave.
    guarded: bool,
    /// It takes the node away from whoever is on it.
    takes: bool,
    /// Whoever measures there is measured with the node's own trouble.
    burns: bool,
}

impl Reach {
    fn of(action: &Action) -> Self {
        match action {
            Action::NodeFailure(_) | Action::Drain(_) => Self { guarded: true, takes: true, burns: false },
            Action::NetworkLatency(latency) if latency.by == LatencyBy::Agent => Self { guarded: true, takes: true, burns: false },
            Action::Taint(taint) => Self { guarded: true, takes: taint.effect == TaintEffect::NoExecute, burns: false },
            Action::CpuPressure(_) => Self { guarded: true, takes: false, burns: true },
            Action::Cordon(_) => Self { guarded: true, ..Self::default() },
            _ => Self::default(),
        }
    }
}

/// Whether this action chooses nodes, on which no users should be then.
pub(super) fn hits_nodes(action: &Action) -> bool {
    let Reach { takes, burns, .. } = Reach::of(action);
    action.nodes().is_some() && (takes || burns)
}

/// The nodes that this action may choose, of `nodes`: with opt-in, and neither the controller's own nor that of the users' pod (`users`) where it would be taken away, or
/// where its processors would be burned although there are others.
///
/// # Errors
/// When there is none; why the first of them was refused.
pub(super) async fn choosable(means: &Means, action: &Action, nodes: Vec<String>, users: Option<&str>) -> Result<Vec<String>, FailureError> {
    let Reach { guarded, takes, burns } = Reach::of(action);
    // A taint that the controller does not tolerate leaves it one node at least to come back to.
    let keeps_away = matches!(action, Action::Taint(taint) if taint.effect == TaintEffect::NoSchedule && taint.key != TOLERATED);
    if !guarded {
        return Ok(nodes);
    }
    let mut may = Vec::new();
    let mut refused = None;
    for node in nodes {
        let verdict = match (takes, whose(means, &node, users)) {
            _ if keeps_away && node == means.node => Err(FailureError::new(
                format!("node {node}"),
                "holds the controller that leads: should it be lost, a taint of this key would keep away from every node whoever is to take it back; \
                 steadfast.dev/taint is tolerated",
            )),
            (true, Some(whose)) => Err(FailureError::new(format!("node {node}"), format!("holds {whose}: no failure takes it away or slows its network"))),
            _ => guard::node(means, &node).await,
        };
        match verdict {
            Ok(()) => may.push(node),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    match refused {
        Some(error) if may.is_empty() => Err(error),
        _ => {
            if burns && may.iter().any(|node| whose(means, node, users).is_none()) {
                may.retain(|node| whose(means, node, users).is_none());
            }
            Ok(may)
        }
    }
}

/// What stands on this node that measures the run, in words.
fn whose(means: &Means, node: &str, users: Option<&str>) -> Option<&'static str> {
    match users {
        Some(users) if users == node => Some("the users of this run"),
        None if means.node == node => Some("the controller that leads, and with it the users of this run"),
        _ => (means.node == node).then_some("the controller that leads"),
    }
}

/// Carries an order out, for `expires_after` at most. What was done before something failed is taken back.
pub(super) async fn carry_out(means: &Arc<Means>, ledger: &Ledger, target: &Target<'_>, order: Order, expires_after: Span) -> Result<Failure, FailureError> {
    let failure = Failure { since: Instant::now(), entries: Mutex::default(), seen: Arc::default(), drain: None, heard: BTreeMap::new(), workload: None };
    let mut making = Making { means, ledger, target, expires_after, failure };
    let made = match order {
        Order::LoseNodes { nodes, by, lasts } => making.lose(&nodes, by, lasts).await,
        Order::DelayNodes { nodes, delay, lasts } => making.slow(&nodes, NodeFaultKind::Latency(delay), lasts).await,
        Order::Burn { nodes, load } => making.burn(&nodes, load).await,
        Order::KillContainers { pods, container } => making.kill_containers(&pods, container.as_deref()).await,
        Order::RollOut { container, image } => making.roll_out(&container, &image).await,
        Order::Scale { replicas } => making.scale(replicas).await,
        Order::Cordon { nodes } => making.cordon(&nodes).await,
        Order::Drain { nodes, empties } => making.drain(&nodes, empties).await,
        Order::Taint { nodes, key, value, effect } => making.taint(&nodes, &key, &value, effect).await,
        other => Err(FailureError::new(other.name(), "cannot be done on a cluster")),
    };
    match made {
        Ok(()) => Ok(making.failure),
        Err(mut error) => {
            let made = std::mem::take(&mut *lock(&making.failure.entries));
            let (undone, _) = undo::entries(means, ledger, made).await;
            if !undone.failed.is_empty() {
                error.why = format!("{}; and what was done before could not be undone, it is tried again: {}", error.why, undone.failed.join("; "));
            }
            Err(error)
        }
    }
}

/// Takes a failure back, and tells what proves that it was there. What could not be taken back is tried again by the next call.
pub(super) async fn take_back(means: &Means, ledger: &Ledger, failure: &Failure) -> Undone {
    if let Some(drain) = &failure.drain {
        drain.abort();
    }
    let seen = look(means, failure).await;
    let entries = lock(&failure.entries).clone();
    let (summary, left) = undo::entries(means, ledger, entries).await;
    *lock(&failure.entries) = left;
    let mut all = lock(&failure.seen);
    // Looked at again for what could not be taken back at first.
    let new = |before: &[String], words: Vec<String>| words.into_iter().filter(|words| !before.contains(words)).collect::<Vec<_>>();
    let proofs = new(&all.proofs, seen.proofs);
    all.proofs.extend(proofs);
    all.proofs.extend(summary.undone);
    if !all.proofs.is_empty() {
        all.proofs.extend(summary.restored);
    }
    all.doubts.extend(seen.doubts);
    all.doubts.extend(summary.unproven);
    all.doubts.extend(summary.not_ours);
    let left_behind = summary.failed.into_iter().map(|why| format!("{why}; the controller goes on trying")).collect();
    Undone { evidence: all.proofs.clone(), doubts: all.doubts.clone(), left_behind }
}

/// What can only be seen while it is in force.
async fn look(means: &Means, failure: &Failure) -> Seen {
    let mut seen = Seen::default();
    for (node, (at, before)) in &failure.heard {
        match nodes::heard(&means.prompt, node).await {
            Ok(now) if now == *before && at.elapsed() >= nodes::RENEWS_WITHIN => {
                seen.proofs.push(format!("node {node} was silent: its kubelet did not renew its Lease after {before}"));
            }
            Ok(now) if now == *before => {
                let words = format!("node {node} was off for too short a time for its kubelet to be missed: let it last {:?}", nodes::RENEWS_WITHIN);
                seen.doubts.push(words);
            }
            Ok(now) => seen.doubts.push(format!("the kubelet of node {node} was heard of at {now}, after the power hook had said that the node is off")),
            Err(error) => seen.doubts.push(format!("whether the kubelet of node {node} fell silent is not known: {error}")),
        }
    }
    let Some(changed) = failure.workload.clone().filter(|_| !lock(&failure.entries).is_empty()) else { return seen };
    let looked = match changed {
        Changed::Image { workload, container, to } => workload.shows_image(&means.prompt, &container, &to).await,
        Changed::Replicas { workload, before, to } => workload.shows_replicas(&means.prompt, before, to).await,
    };
    match looked {
        Ok(Ok(words)) => seen.proofs.push(words),
        Ok(Err(words)) => seen.doubts.push(words),
        Err(error) => seen.doubts.push(error.to_string()),
    }
    seen
}

struct Making<'a> {
    means: &'a Arc<Means>,
    ledger: &'a Ledger,
    target: &'a Target<'a>,
    expires_after: Span,
    failure: Failure,
}

impl Making<'_> {
    /// Its effect was seen.
    fn prove(&self, words: String) {
        lock(&self.failure.seen).proofs.push(words);
    }

    /// A part of it has no effect; why.
    fn doubt(&self, words: String) {
        lock(&self.failure.seen).doubts.push(words);
    }

    /// Writes down what is about to be changed.
    async fn write(&mut self, changes: Vec<ClusterChange>) -> Result<(), FailureError> {
        for change in changes {
            let id = self.ledger.record(change.clone(), self.expires_after).await?;
            lock(&self.failure.entries).push(Undo { id, expires_at: String::new(), change });
        }
        Ok(())
    }

    async fn lose(&mut self, nodes: &[String], by: NodeFailureBy, lasts: Span) -> Result<(), FailureError> {
        let power = match (&self.means.power, by) {
            (Some(hook), NodeFailureBy::Auto | NodeFailureBy::Power) => Some(hook.clone()),
            (None, NodeFailureBy::Power) => {
                return Err(FailureError::new("by: power", "this controller has no power hook: set powerHook.url in the chart's values, or write by: agent"));
            }
            _ => None,
        };
        let Some(hook) = power else {
            let fault = if by == NodeFailureBy::Kubelet { NodeFaultKind::KubeletCut {} } else { NodeFaultKind::Partition {} };
            return self.slow(nodes, fault, lasts).await;
        };
        self.may_take(nodes).await?;
        self.write(nodes.iter().map(|node| ClusterChange::PoweredOff { node: node.clone() }).collect()).await?;
        self.failure.since = Instant::now();
        // Waited for, given up or not: an `off` under way could come after the `on` that takes it back.
        let switched: Vec<_> = nodes.iter().map(|node| hook.switch(node, false)).collect();
        join_all(switched).await.into_iter().collect::<Result<(), _>>()?;
        for node in nodes {
            match nodes::heard(&self.means.prompt, node).await {
                Ok(heard) => drop(self.failure.heard.insert(node.clone(), (Instant::now(), heard))),
                Err(error) => tracing::info!(node, %error, "when its kubelet was last heard of is not known"),
            }
        }
        Ok(())
    }

    /// One step may take so many nodes away at once, and no more; those that are away already count. They are waited for: an earlier step's nodes come back.
    async fn may_take(&self, nodes: &[String]) -> Result<(), FailureError> {
        let deadline = Instant::now() + NODES_RETURN_WITHIN;
        loop {
            let (all, mut away) = nodes::unavailable(&self.means.prompt).await?;
            away.retain(|node| !nodes.contains(node));
            let allows = |away: &[String]| self.means.budget.allows_nodes(nodes.len(), away, all).map_err(|why| FailureError::new("the step", why));
            allows(&[])?;
            match allows(&away) {
                Err(_) if Instant::now() < deadline && self.target.given_up.or_slept(LOOK_AT_NODES_EVERY).await => {}
                allowed => return allowed,
            }
        }
    }

    /// Makes nodes' network worse, or cuts it, by their agents.
    async fn slow(&mut self, nodes: &[String], fault: NodeFaultKind, lasts: Span) -> Result<(), FailureError> {
        self.may_take(nodes).await?;
        let means = Arc::clone(self.means);
        let named: Vec<(String, &String)> = nodes.iter().enumerate().map(|(index, node)| (format!("{}-{index}", self.target.prefix), node)).collect();
        self.write(named.iter().map(|(name, node)| ClusterChange::NodeFault { node: (*node).clone(), name: name.clone() }).collect()).await?;
        let (namespace, given_up) = (&means.namespace, self.target.given_up);
        let asked: Vec<_> = named.iter().map(|(name, node)| node_faults::ask(&means.prompt, namespace, name, node, fault.clone(), lasts, given_up)).collect();
        join_all(asked).await.into_iter().collect::<Result<(), _>>()?;
        // That an agent begins proves nothing yet: what it dropped or held back it says at the end.
        self.failure.since = Instant::now();
        Ok(())
    }

    async fn burn(&mut self, nodes: &[String], load: Percent) -> Result<(), FailureError> {
        let means = Arc::clone(self.means);
        let named: Vec<(String, String)> = nodes.iter().enumerate().map(|(index, node)| (format!("{}-{index}", self.target.prefix), node.clone())).collect();
        self.write(named.iter().map(|(pod, node)| ClusterChange::Burner { pod: pod.clone(), node: node.clone() }).collect()).await?;
        let starting: Vec<_> = named.iter().map(|(pod, node)| burner::start(&means, pod, node, load, self.expires_after, self.target.given_up)).collect();
        let started = join_all(starting).await;
        self.failure.since = Instant::now();
        started.into_iter().collect()
    }

    async fn kill_containers(&mut self, pods: &[String], container: Option<&str>) -> Result<(), FailureError> {
        let means = Arc::clone(self.means);
        let api: Api<Object> = Api::namespaced(means.prompt.clone(), self.target.namespace);
        let mut wanted = Vec::new();
        for (index, name) in pods.iter().enumerate() {
            let pod = api.get(name).await.map_err(|error| FailureError::api(format!("pod {name}"), &error))?;
            let container_id = container_id(&pod, container, self.target.port)?;
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            wanted.push((
                format!("{}-{index}", self.target.prefix),
                node,
                NodeFaultKind::ContainerKill { pod_uid: pod.uid().unwrap_or_default(), container_id },
            ));
        }
        self.write(wanted.iter().map(|(name, node, _)| ClusterChange::NodeFault { node: node.clone(), name: name.clone() }).collect()).await?;
        self.failure.since = Instant::now();
        let (lasts, namespace, given_up) = (Span::from_secs(1), &means.namespace, self.target.given_up);
        let asked: Vec<_> =
            wanted.iter().map(|(name, node, fault)| node_faults::ask(&means.prompt, namespace, name, node, fault.clone(), lasts, given_up)).collect();
        // Told again by the agent's status when its object is taken away.
        join_all(asked).await.into_iter().collect()
    }

    async fn workload(&self) -> Result<Workload, FailureError> {
        Workload::of_pods(&self.means.prompt, self.target.namespace, self.target.selector).await
    }

    async fn roll_out(&mut self, container: &str, image: &str) -> Result<(), FailureError> {
        let workload = self.workload().await?;
        let before = workload.image(&self.means.prompt, container).await?;
        if before == image {
            return Err(FailureError::new(workload.to_string(), format!("has {image} in container {container} already: there is nothing to roll out")));
        }
        let Workload { kind, namespace, name, uid } = workload.clone();
        let change = ClusterChange::RolledOut { kind, namespace, name, uid, container: container.to_owned(), image: before, to: image.to_owned() };
        self.write(vec![change]).await?;
        self.failure.since = Instant::now();
        self.failure.workload = Some(Changed::Image { workload: workload.clone(), container: container.to_owned(), to: image.to_owned() });
        workload.roll_out(&self.means.prompt, container, image).await?;
        self.target.given_up.or(workload.observed(&self.means.prompt)).await
    }

    async fn scale(&mut self, replicas: u32) -> Result<(), FailureError> {
        let workload = self.workload().await?;
        let before = workload.replicas(&self.means.prompt).await?;
        let to = i32::try_from(replicas).unwrap_or(i32::MAX);
        if before == to {
            return Err(FailureError::new(workload.to_string(), format!("has {to} replicas already: there is nothing to scale")));
        }
        let Workload { kind, namespace, name, uid } = workload.clone();
        self.write(vec![ClusterChange::Scaled { kind, namespace, name, uid, replicas: before, to }]).await?;
        self.failure.since = Instant::now();
        self.failure.workload = Some(Changed::Replicas { workload: workload.clone(), before, to });
        workload.scale(&self.means.prompt, to).await?;
        self.target.given_up.or(workload.observed(&self.means.prompt)).await
    }

    async fn cordon(&mut self, nodes: &[String]) -> Result<(), FailureError> {
        self.may_take(nodes).await?;
        for node in self.close(nodes).await? {
            self.prove(format!("node {node} takes no new pods"));
        }
        Ok(())
    }

    /// Returns those that were open before.
    async fn close(&mut self, nodes: &[String]) -> Result<Vec<String>, FailureError> {
        self.write(nodes.iter().map(|node| ClusterChange::Cordoned { node: node.clone() }).collect()).await?;
        self.failure.since = Instant::now();
        let mut closed = Vec::new();
        for node in nodes {
            if nodes::cordon(&self.means.prompt, node, self.ledger.test()).await? {
                closed.push(node.clone());
            } else {
                self.doubt(format!("node {node} was cordoned by somebody else before, and stays so"));
            }
        }
        Ok(closed)
    }

    async fn drain(&mut self, nodes: &[String], empties: bool) -> Result<(), FailureError> {
        self.may_take(nodes).await?;
        let mut pods = BTreeSet::new();
        for node in nodes {
            pods.extend(evict::movable(node, &guard::on_node(self.means, node).await?, empties)?);
        }
        self.close(nodes).await?;
        // Those that have come meanwhile too.
        for node in nodes {
            pods.extend(evict::movable(node, &guard::on_node(self.means, node).await?, empties)?);
        }
        let Evictions { evicted, refused, .. } = evict::once(&self.means.prompt, pods).await?;
        for pod in evicted {
            self.prove(format!("{pod} evicted"));
        }
        for (pod, words) in &refused {
            self.doubt(format!("{pod} was not evicted at first: {words}"));
        }
        if !refused.is_empty() {
            let seen = Arc::clone(&self.failure.seen);
            let say = move |words| lock(&seen).proofs.push(words);
            self.failure.drain = Some(tokio::spawn(evict::on_and_on(self.means.prompt.clone(), refused.into_keys().collect(), say)));
        }
        Ok(())
    }

    async fn taint(&mut self, nodes: &[String], key: &str, value: &str, effect: TaintEffect) -> Result<(), FailureError> {
        self.may_take(nodes).await?;
        let (key, value, effect) = (key.to_owned(), value.to_owned(), effect.name().to_owned());
        for node in nodes {
            if nodes::tainted(&self.means.prompt, node, &key, &effect).await? {
                return Err(FailureError::new(format!("node {node}"), format!("carries {key}:{effect} already: write another key")));
            }
        }
        let change = |node: &String| ClusterChange::Tainted { node: node.clone(), key: key.clone(), value: value.clone(), effect: effect.clone() };
        self.write(nodes.iter().map(change).collect()).await?;
        self.failure.since = Instant::now();
        for node in nodes {
            nodes::taint(&self.means.prompt, node, &key, &value, &effect).await?;
        }
        Ok(())
    }
}

/// Without its scheme. `container`: by name; none: the one behind the port.
fn container_id(pod: &Object, container: Option<&str>, port: &IntOrString) -> Result<String, FailureError> {
    let what = || format!("pod {}", pod.name_any());
    let containers: Vec<&str> = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.as_str()).collect();
    let Some(wanted) = container.or_else(|| server(pod, port).map(|server| server.name.as_str())).filter(|wanted| containers.contains(wanted)) else {
        return Err(FailureError::new(what(), format!("has no container {}: there are {}", container.unwrap_or_default(), containers.join(", "))));
    };
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let running = statuses.iter().find(|status| status.name == wanted && status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let id = running.and_then(|status| status.container_id.as_deref()).and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
    id.ok_or_else(|| FailureError::new(what(), format!("has no running container {wanted} to kill")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_of_the_server_is_killed_unless_another_is_named() {
        let pod: Object = serde_saphyr::from_str(
            "metadata: {name: p}\nspec: {containers: [{name: log}, {name: server, ports: [{name: http, containerPort: 8000}]}]}\nstatus:\n  containerStatuses:\n  - {name: log, image: x, imageID: x, ready: true, restartCount: 0, \
             containerID: 'containerd://bb', state: {running: {}}}\n  - {name: server, image: x, imageID: x, ready: true, restartCount: 0, containerID: 'containerd://aa', state: {running: {}}}\n",
        )
        .unwrap();
        let port = IntOrString::String("http".to_owned());
        assert_eq!(container_id(&pod, None, &port).unwrap(), "aa");
        assert_eq!(container_id(&pod, Some("log"), &port).unwrap(), "bb");
        assert!(container_id(&pod, Some("x"), &port).unwrap_err().why.contains("log, server"));
    }
}

#[cfg(test)]
#[path = "killed_tests.rs"]
mod killed_tests;
