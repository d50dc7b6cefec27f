//! Failures that change the cluster itself, and not only what sidecars do: nodes, workloads, containers, burner pods. Each is written down in the run's [`ledger`]
//! before it is made, may hit only what has opted in ([`guard`]), and is taken back by [`undo`], by whoever finds it.

mod burner;
mod error;
mod guard;
pub mod ledger;
mod node_faults;
mod nodes;
mod power;
pub mod undo;
mod workload;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{LocalObjectReference, Pod as Object};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, EvictParams, Preconditions},
};
use steadfast_api::{
    Span,
    node::NodeFaultKind,
    test::{Action, LatencyBy, NodeFailureBy, TaintEffect},
};
use tokio::task::JoinHandle;

pub use self::{error::FailureError, power::PowerHook};
use self::{
    ledger::{ClusterChange, Ledger, Undo},
    workload::Workload,
};
use crate::{
    platform::{Order, Undone},
    reconcile::pods::Pods,
};

/// Evictions that a disruption budget refused are asked for again so often, as a drain does.
const EVICT_AGAIN: Duration = Duration::from_secs(2);

/// What this controller has to make failures with.
pub struct Means {
    pub client: Client,
    pub pods: Arc<Pods>,
    /// The controller's own namespace: ledgers, node faults and burner pods live there.
    pub namespace: String,
    /// The node that the controller (and so the users of a run) stands on: never taken away.
    pub node: String,
    /// Its own image, which burns too.
    pub image: String,
    pub image_pull_policy: Option<String>,
    /// Secrets of its namespace by which that image is pulled.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    pub power: Option<PowerHook>,
}

/// A failure in force.
pub(super) struct Failure {
    /// When the first part of it took hold.
    pub since: Instant,
    entries: Vec<Undo>,
    /// Proof so far, in words.
    evidence: Arc<Mutex<Vec<String>>>,
    /// Goes on evicting.
    drain: Option<JoinHandle<()>>,
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
    /// Begins the names of what is made; unique among all orders of all runs.
    pub prefix: &'a str,
}

/// The nodes that this action may choose, of `nodes`: with opt-in, and not the controller's own where it would be taken away, or where its processors would be burned
/// although there are others.
///
/// # Errors
/// When there is none; why the first of them was refused.
pub(super) async fn choosable(means: &Means, action: &Action, nodes: Vec<String>) -> Result<Vec<String>, FailureError> {
    // Whose users would be measured with the node's own trouble, where there is another.
    let burns = matches!(action, Action::CpuPressure(_));
    let (guarded, harms, takes) = match action {
        Action::NodeFailure(_) | Action::Drain(_) => (true, true, true),
        Action::NetworkLatency(latency) if latency.by == LatencyBy::Agent => (true, true, true),
        Action::Taint(taint) => (true, taint.effect == TaintEffect::NoExecute, taint.effect == TaintEffect::NoExecute),
        Action::CpuPressure(_) => (true, true, false),
        Action::Cordon(_) => (true, false, false),
        _ => (false, false, false),
    };
    if !guarded {
        return Ok(nodes);
    }
    let mut may = Vec::new();
    let mut refused = None;
    for node in nodes {
        let verdict = if takes && node == means.node {
            Err(FailureError::new(
                format!("node {node}"),
                "holds the controller that leads, and with it the users of this run: no failure takes it away or slows its network",
            ))
        } else {
            guard::node(means, &node, harms).await
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
            if burns && may.iter().any(|node| *node != means.node) {
                may.retain(|node| *node != means.node);
            }
            Ok(may)
        }
    }
}

/// Carries an order out, for `expires_after` at most. What was done before something failed is taken back.
pub(super) async fn carry_out(means: &Arc<Means>, ledger: &Ledger, target: &Target<'_>, order: Order, expires_after: Span) -> Result<Failure, FailureError> {
    let failure = Failure { since: Instant::now(), entries: Vec::new(), evidence: Arc::default(), drain: None };
    let mut making = Making { means, ledger, target, expires_after, failure };
    let made = match order {
        Order::LoseNodes { nodes, by, lasts } => making.lose(&nodes, by, lasts).await,
        Order::DelayNodes { nodes, delay, lasts } => making.ask_agents(&nodes, NodeFaultKind::Latency(delay), lasts).await,
        Order::Burn { nodes, load } => {
            let named: Vec<(String, String)> = nodes.iter().enumerate().map(|(index, node)| (format!("{}-{index}", target.prefix), node.clone())).collect();
            let written = making.write(named.iter().map(|(pod, node)| ClusterChange::Burner { pod: pod.clone(), node: node.clone() }).collect()).await;
            match written {
                Ok(()) => {
                    let starting: Vec<_> = named.iter().map(|(pod, node)| burner::start(means, pod, node, load, expires_after)).collect();
                    let started = join_all(starting).await;
                    making.failure.since = Instant::now();
                    started.into_iter().collect()
                }
                Err(error) => Err(error),
            }
        }
        Order::KillContainers { pods, container } => making.kill_containers(&pods, container.as_deref()).await,
        Order::RollOut { container, image } => making.roll_out(&container, &image).await,
        Order::Scale { replicas } => making.scale(replicas).await,
        Order::Cordon { nodes } => making.cordon(&nodes).await,
        Order::Drain { nodes } => making.drain(&nodes).await,
        Order::Taint { nodes, key, value, effect } => making.taint(&nodes, &key, &value, effect).await,
        other => Err(FailureError::new(other.name(), "cannot be done on a cluster")),
    };
    match made {
        Ok(()) => Ok(making.failure),
        Err(mut error) => {
            let undone = undo::entries(means, ledger, std::mem::take(&mut making.failure.entries)).await;
            if !undone.failed.is_empty() {
                error.why = format!("{}; and what was done before could not be undone, it is tried again: {}", error.why, undone.failed.join("; "));
            }
            Err(error)
        }
    }
}

/// Takes a failure back, and tells what proves that it was there.
pub(super) async fn take_back(means: &Means, ledger: &Ledger, failure: &Failure) -> Undone {
    if let Some(drain) = &failure.drain {
        drain.abort();
    }
    let summary = undo::entries(means, ledger, failure.entries.clone()).await;
    let mut evidence = failure.evidence.lock().unwrap_or_else(PoisonError::into_inner).clone();
    evidence.extend(summary.undone);
    evidence.extend(summary.not_ours);
    let left_behind = summary.failed.into_iter().map(|why| format!("{why}; the controller goes on trying")).collect();
    Undone { evidence, left_behind }
}

struct Making<'a> {
    means: &'a Arc<Means>,
    ledger: &'a Ledger,
    target: &'a Target<'a>,
    expires_after: Span,
    failure: Failure,
}

impl Making<'_> {
    fn say(&self, words: String) {
        self.failure.evidence.lock().unwrap_or_else(PoisonError::into_inner).push(words);
    }

    /// Writes down what is about to be changed.
    async fn write(&mut self, changes: Vec<ClusterChange>) -> Result<(), FailureError> {
        for change in changes {
            let id = self.ledger.record(change.clone(), self.expires_after).await?;
            self.failure.entries.push(Undo { id, expires_at: String::new(), change });
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
        if let Some(hook) = power {
            self.write(nodes.iter().map(|node| ClusterChange::PoweredOff { node: node.clone() }).collect()).await?;
            self.failure.since = Instant::now();
            let switched: Vec<_> = nodes.iter().map(|node| hook.switch(node, false)).collect();
            return join_all(switched).await.into_iter().collect();
        }
        let fault = if by == NodeFailureBy::Kubelet { NodeFaultKind::KubeletCut {} } else { NodeFaultKind::Partition {} };
        self.ask_agents(nodes, fault, lasts).await
    }

    async fn ask_agents(&mut self, nodes: &[String], fault: NodeFaultKind, lasts: Span) -> Result<(), FailureError> {
        let means = Arc::clone(self.means);
        let named: Vec<(String, &String)> = nodes.iter().enumerate().map(|(index, node)| (format!("{}-{index}", self.target.prefix), node)).collect();
        self.write(named.iter().map(|(name, node)| ClusterChange::NodeFault { node: (*node).clone(), name: name.clone() }).collect()).await?;
        let asked: Vec<_> = named.iter().map(|(name, node)| node_faults::ask(&means.client, &means.namespace, name, node, fault.clone(), lasts)).collect();
        let said: Vec<String> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
        self.failure.since = Instant::now();
        for words in said {
            self.say(words);
        }
        Ok(())
    }

    async fn kill_containers(&mut self, pods: &[String], container: Option<&str>) -> Result<(), FailureError> {
        let means = Arc::clone(self.means);
        let api: Api<Object> = Api::namespaced(means.client.clone(), self.target.namespace);
        let mut wanted = Vec::new();
        for (index, name) in pods.iter().enumerate() {
            let pod = api.get(name).await.map_err(|error| FailureError::api(format!("pod {name}"), &error))?;
            let container_id = container_id(&pod, container)?;
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            wanted.push((
                format!("{}-{index}", self.target.prefix),
                node,
                NodeFaultKind::ContainerKill { pod_uid: pod.uid().unwrap_or_default(), container_id },
            ));
        }
        self.write(wanted.iter().map(|(name, node, _)| ClusterChange::NodeFault { node: node.clone(), name: name.clone() }).collect()).await?;
        self.failure.since = Instant::now();
        let lasts = Span::from_secs(1);
        let asked: Vec<_> =
            wanted.iter().map(|(name, node, fault)| node_faults::ask(&means.client, &means.namespace, name, node, fault.clone(), lasts)).collect();
        // Told again by the agent's status when its object is taken away.
        join_all(asked).await.into_iter().collect::<Result<Vec<String>, _>>().map(drop)
    }

    async fn workload(&self) -> Result<Workload, FailureError> {
        Workload::of_pods(&self.means.client, self.target.namespace, self.target.selector).await
    }

    async fn roll_out(&mut self, container: &str, image: &str) -> Result<(), FailureError> {
        let workload = self.workload().await?;
        let before = workload.image(&self.means.client, container).await?;
        if before == image {
            return Err(FailureError::new(workload.to_string(), format!("has {image} in container {container} already: there is nothing to roll out")));
        }
        let Workload { kind, namespace, name } = workload.clone();
        let change = ClusterChange::RolledOut { kind, namespace, name, container: container.to_owned(), image: before, to: image.to_owned() };
        self.write(vec![change]).await?;
        self.failure.since = Instant::now();
        workload.roll_out(&self.means.client, container, image).await?;
        let observed = workload.observed(&self.means.client).await?;
        self.say(observed);
        Ok(())
    }

    async fn scale(&mut self, replicas: u32) -> Result<(), FailureError> {
        let workload = self.workload().await?;
        let before = workload.replicas(&self.means.client).await?;
        let to = i32::try_from(replicas).unwrap_or(i32::MAX);
        if before == to {
            return Err(FailureError::new(workload.to_string(), format!("has {to} replicas already: there is nothing to scale")));
        }
        let Workload { kind, namespace, name } = workload.clone();
        self.write(vec![ClusterChange::Scaled { kind, namespace, name, replicas: before, to }]).await?;
        self.failure.since = Instant::now();
        workload.scale(&self.means.client, to).await?;
        let observed = workload.observed(&self.means.client).await?;
        self.say(observed);
        Ok(())
    }

    async fn cordon(&mut self, nodes: &[String]) -> Result<(), FailureError> {
        self.write(nodes.iter().map(|node| ClusterChange::Cordoned { node: node.clone() }).collect()).await?;
        self.failure.since = Instant::now();
        for node in nodes {
            let ours = nodes::cordon(&self.means.client, node, self.ledger.test()).await?;
            self.say(if ours { format!("node {node} takes no new pods") } else { format!("node {node} was cordoned by somebody else before, and stays so") });
        }
        Ok(())
    }

    async fn drain(&mut self, nodes: &[String]) -> Result<(), FailureError> {
        self.cordon(nodes).await?;
        let mut pods: BTreeSet<(String, String, String)> = BTreeSet::new();
        for node in nodes {
            let on_node = guard::on_node(self.means, node).await?;
            let moves = on_node.iter().filter(|pod| !guard::stays(pod) && pod.metadata.deletion_timestamp.is_none());
            pods.extend(moves.map(|pod| (pod.namespace().unwrap_or_default(), pod.name_any(), pod.uid().unwrap_or_default())));
        }
        let (client, evidence) = (self.means.client.clone(), Arc::clone(&self.failure.evidence));
        let say = move |words: String| evidence.lock().unwrap_or_else(PoisonError::into_inner).push(words);
        let mut refused = evict_all(&client, pods, &say).await?;
        if !refused.is_empty() {
            let names: Vec<&str> = refused.iter().map(|(_, name, _)| name.as_str()).collect();
            say(format!("a disruption budget refused the eviction of {} at first", names.join(", ")));
            self.failure.drain = Some(tokio::spawn(async move {
                while !refused.is_empty() {
                    tokio::time::sleep(EVICT_AGAIN).await;
                    match evict_all(&client, refused.clone(), &say).await {
                        Ok(left) => refused = left,
                        Err(error) => tracing::info!(%error, "an eviction is tried again"),
                    }
                }
            }));
        }
        Ok(())
    }

    async fn taint(&mut self, nodes: &[String], key: &str, value: &str, effect: TaintEffect) -> Result<(), FailureError> {
        let (key, value, effect) = (key.to_owned(), value.to_owned(), effect.name().to_owned());
        for node in nodes {
            if nodes::tainted(&self.means.client, node, &key, &effect).await? {
                return Err(FailureError::new(format!("node {node}"), format!("carries {key}:{effect} already: write another key")));
            }
        }
        let change = |node: &String| ClusterChange::Tainted { node: node.clone(), key: key.clone(), value: value.clone(), effect: effect.clone() };
        self.write(nodes.iter().map(change).collect()).await?;
        self.failure.since = Instant::now();
        for node in nodes {
            nodes::taint(&self.means.client, node, &key, &value, &effect).await?;
        }
        Ok(())
    }
}

/// Evicts each pod with this UID, and no other of its name, as far as disruption budgets allow. Returns those that they refused.
async fn evict_all(
    client: &Client,
    pods: BTreeSet<(String, String, String)>,
    say: &(impl Fn(String) + Sync),
) -> Result<BTreeSet<(String, String, String)>, FailureError> {
    let mut refused = BTreeSet::new();
    for (namespace, name, uid) in pods {
        match evict(client, &namespace, &name, &uid).await? {
            Evicted::Yes => say(format!("{namespace}/{name} evicted")),
            Evicted::Gone => {}
            Evicted::Refused(_) => {
                refused.insert((namespace, name, uid));
            }
        }
    }
    Ok(refused)
}

/// What became of an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    Yes,
    /// A disruption budget refused; its words.
    Refused(String),
    /// It was gone already.
    Gone,
}

/// Evicts the pod with this UID, if the disruption budgets allow it.
pub(super) async fn evict(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<Evicted, FailureError> {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters = EvictParams { delete_options: Some(DeleteParams::default().preconditions(preconditions)), ..EvictParams::default() };
    let api: Api<Object> = Api::namespaced(client.clone(), namespace);
    match api.evict(name, &parameters).await {
        Ok(_) => Ok(Evicted::Yes),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Evicted::Gone),
        Err(kube::Error::Api(status)) if status.code == 429 => {
            let causes: Vec<String> = status.details.iter().flat_map(|details| &details.causes).map(|cause| cause.message.clone()).collect();
            Ok(Evicted::Refused(if causes.is_empty() { status.message.clone() } else { causes.join("; ") }))
        }
        Err(error) => Err(FailureError::api(format!("the eviction of pod {name}"), &error)),
    }
}

/// Without its scheme. `container`: by name; none: the first, which is what the pod was made for.
fn container_id(pod: &Object, container: Option<&str>) -> Result<String, FailureError> {
    let what = || format!("pod {}", pod.name_any());
    let containers: Vec<&str> = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.as_str()).collect();
    let Some(wanted) = container.or_else(|| containers.first().copied()).filter(|wanted| containers.contains(wanted)) else {
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
    fn the_container_that_a_pod_was_made_for_is_killed_unless_another_is_named() {
        let pod: Object = serde_saphyr::from_str(
            "metadata: {name: p}\nspec: {containers: [{name: server}, {name: log}]}\nstatus:\n  containerStatuses:\n  - {name: log, image: x, imageID: x, ready: true, restartCount: 0, \
             containerID: 'containerd://bb', state: {running: {}}}\n  - {name: server, image: x, imageID: x, ready: true, restartCount: 0, containerID: 'containerd://aa', state: {running: {}}}\n",
        )
        .unwrap();
        assert_eq!(container_id(&pod, None).unwrap(), "aa");
        assert_eq!(container_id(&pod, Some("log")).unwrap(), "bb");
        assert!(container_id(&pod, Some("x")).unwrap_err().why.contains("server, log"));
    }
}
