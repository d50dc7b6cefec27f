//! Faults in force: carried out, ended when asked or when their time is up, whichever comes first, with the proof of what they did.
//!
//! An order ends exactly once; whoever asks for it, the caller or the timer, waits for the same end. Faults of requests end a second time in the sidecars,
//! by their own clocks, should this process be gone; a burner ends by itself too, and for lost nodes the keeper stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use steadfast_api::{
    Span,
    policy::{FaultPolicySpec, NamedPolicy},
    test::NodeFailureBy,
};
use tokio::sync::OnceCell;

use super::{
    burn::{self, Burner},
    inner::Inner,
    life::Command,
};
use crate::platform::{
    InForce, Order, PlatformError, Pod, Undone,
    armed::{self, Told},
};

/// A sidecar that is there confirms a change well within this.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);
/// Sidecars report their requests about once a second.
const COUNTED_WITHIN: Duration = Duration::from_millis(1_500);

/// All orders in force, and those that ended and were not asked about yet.
#[derive(Default)]
pub(super) struct Orders {
    last: AtomicU64,
    placed: Mutex<BTreeMap<u64, Arc<Placed>>>,
    /// Burners that run, by node: a node that falls silent takes them with it.
    burners: Mutex<Vec<(String, Pid)>>,
}

struct Placed {
    began: Instant,
    until: Instant,
    kind: Kind,
    end: OnceCell<Undone>,
}

enum Kind {
    Requests(Box<Requests>),
    Killed(Vec<String>),
    Lost(Vec<Lost>),
    Burn(tokio::sync::Mutex<Vec<Burner>>),
    /// Replicas before, and who went.
    Scaled(usize, Vec<String>),
}

/// A fault armed in sidecars.
struct Requests {
    policy: String,
    spec: FaultPolicySpec,
    nodes: Vec<String>,
    /// Names by UID of the pods that have it.
    covered: Mutex<BTreeMap<String, String>>,
    armed: AtomicBool,
}

/// A node that fell silent.
struct Lost {
    node: String,
    pods: usize,
    processes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Requests {
    fn covers(&self, uid: &str) -> bool {
        self.armed.load(Ordering::Relaxed) && lock(&self.covered).contains_key(uid)
    }
}

impl Orders {
    fn requests(&self) -> Vec<Arc<Placed>> {
        lock(&self.placed).values().filter(|placed| matches!(placed.kind, Kind::Requests(_))).cloned().collect()
    }

    /// A new pod stands where an armed fault reaches: on one of its nodes, or, for a fault that names pods alone, in the place of one of them.
    pub(super) fn cover(&self, inner: &Inner, pod: &Pod) {
        let replaces = inner.cluster().held(&pod.uid).and_then(|held| held.replaces.clone());
        for placed in self.requests() {
            let Kind::Requests(requests) = &placed.kind else { continue };
            let inherits = requests.nodes.is_empty() && replaces.as_ref().is_some_and(|replaced| requests.covers(replaced));
            if requests.nodes.contains(&pod.node) || inherits {
                lock(&requests.covered).insert(pod.uid.clone(), pod.name.clone());
            }
        }
        self.arm(inner, &pod.uid);
    }

    /// Tells the pod's sidecar what is in force for it now. Returns the generation to wait for.
    pub(super) fn arm(&self, inner: &Inner, uid: &str) -> Option<u64> {
        let now = Instant::now();
        let requests = self.requests();
        let policies = requests.iter().filter_map(|placed| match &placed.kind {
            Kind::Requests(requests) if requests.covers(uid) && placed.until > now => {
                let expires_after = Span::new(placed.until - now);
                Some(NamedPolicy { name: requests.policy.clone(), spec: FaultPolicySpec { expires_after, ..requests.spec.clone() } })
            }
            _ => None,
        });
        inner
            .hub
            .set_policies("run", uid, policies.collect())
            .map_err(|error| tracing::warn!(uid, %error, "the pod's sidecar cannot be told its policies"))
            .ok()
    }

    /// Carries out an order. Call on the platform's thread.
    pub(super) async fn apply(inner: &Arc<Inner>, order: Order, expires_after: Span) -> Result<InForce, PlatformError> {
        let orders = &inner.orders;
        let id = orders.last.fetch_add(1, Ordering::Relaxed) + 1;
        let began = Instant::now();
        let until = began + expires_after.get();
        let place = |kind| {
            let placed = Arc::new(Placed { began, until, kind, end: OnceCell::new() });
            lock(&orders.placed).insert(id, placed);
        };
        let since = match order {
            Order::Requests { .. } | Order::HoldDown { .. } | Order::BurnPods { .. } => {
                let requests = requests(inner, id, order)?;
                let uids: Vec<_> = lock(&requests.covered).keys().cloned().collect();
                place(Kind::Requests(Box::new(requests)));
                match inner.tell_and_wait(&uids).await {
                    (since, unconfirmed) if unconfirmed.is_empty() => since.unwrap_or(began).max(began),
                    (_, unconfirmed) => {
                        end(inner, id).await;
                        lock(&orders.placed).remove(&id);
                        return Err(PlatformError::new("the fault cannot be armed", unconfirmed.join("; ")));
                    }
                }
            }
            Order::Kill { pods, grace } => {
                let uids = inner.cluster().uids(&pods).map_err(|why| PlatformError::new("pods cannot be deleted", why))?;
                let how = if grace.is_zero() { "SIGKILL".to_owned() } else { format!("SIGTERM, SIGKILL after {grace}") };
                inner.change_at(began, |cluster, at| {
                    for uid in &uids {
                        inner.command(uid, Command::Delete { grace: grace.get() });
                    }
                    cluster.delete(at, &uids, "deleted");
                });
                place(Kind::Killed(pods.iter().map(|pod| format!("{pod} deleted ({how})")).collect()));
                began
            }
            Order::LoseNodes { nodes, by: NodeFailureBy::Auto, .. } => {
                place(Kind::Lost(lose(inner, &nodes).await?));
                began
            }
            Order::Burn { nodes, load } => {
                let burners = burn::start(inner, &nodes, load, expires_after).map_err(|why| PlatformError::new("CPU cannot be burned", why))?;
                lock(&orders.burners).extend(burners.iter().map(|burner| (burner.node.clone(), burner.pid())));
                place(Kind::Burn(tokio::sync::Mutex::new(burners)));
                began
            }
            Order::Scale { replicas } => {
                let (before, went) = inner.change_at(began, |cluster, at| cluster.scale(at, replicas as usize, &[], false));
                delete(inner, &went);
                place(Kind::Scaled(before, went));
                began
            }
            other => return Err(PlatformError::new(other.name(), "the local platform cannot do this")),
        };
        let timer = Arc::clone(inner);
        inner.platform.spawn(async move {
            tokio::time::sleep_until(until.into()).await;
            end(&timer, id).await;
        });
        Ok(InForce { id, since })
    }

    /// Takes an order back, or tells how it ended by itself.
    pub(super) async fn undo(inner: &Arc<Inner>, order: &InForce) -> Undone {
        let undone = end(inner, order.id).await;
        lock(&inner.orders.placed).remove(&order.id);
        undone.unwrap_or_else(|| Undone { left_behind: vec![format!("order {} is not known: it was taken back before", order.id)], ..Undone::default() })
    }

    /// All orders are void: the run is over, and everything that they touch is about to be killed.
    pub(super) fn drop_all(&self) {
        lock(&self.placed).clear();
    }
}

/// What the sidecars of these pods shall do.
fn requests(inner: &Inner, id: u64, order: Order) -> Result<Requests, PlatformError> {
    let refuse = |why| PlatformError::new("the fault cannot be armed", why);
    let (spec, pods, nodes) = armed::policy(order)?;
    let cluster = inner.cluster();
    cluster.check_nodes(&nodes).map_err(refuse)?;
    // A node's requests are those of all its pods, named or not.
    let mut covered: BTreeMap<String, String> = cluster.uids(&pods).map_err(refuse)?.into_iter().zip(pods.iter().cloned()).collect();
    covered.extend(cluster.pods.iter().filter(|held| nodes.contains(&held.pod.node)).map(|held| (held.pod.uid.clone(), held.pod.name.clone())));
    Ok(Requests { policy: format!("step-{id}"), spec, nodes, covered: Mutex::new(covered), armed: AtomicBool::new(true) })
}

impl Inner {
    /// Pods among these whose sidecar can be reached now.
    fn reachable(&self, uids: &[String]) -> Vec<String> {
        let cluster = self.cluster();
        let silent: BTreeSet<&str> = cluster.nodes.iter().filter(|node| node.lost.is_some()).map(|node| node.name.as_str()).collect();
        let there = cluster.pods.iter().filter(|held| held.address.is_some() && !held.terminating && !silent.contains(held.pod.node.as_str()));
        there.filter(|held| uids.contains(&held.pod.uid)).map(|held| held.pod.uid.clone()).collect()
    }

    /// Tells these pods' sidecars what is in force, and waits for those that are there. Returns when the first of them had it, and who did not confirm.
    async fn tell_and_wait(&self, uids: &[String]) -> (Option<Instant>, Vec<String>) {
        let reachable = self.reachable(uids);
        let told: Vec<_> = uids.iter().filter_map(|uid| Some((uid, self.orders.arm(self, uid)?))).collect();
        let deadline = Instant::now() + CONFIRM_WITHIN;
        let (mut first, mut unconfirmed) = (None::<Instant>, Vec::new());
        for (uid, generation) in told.into_iter().filter(|(uid, _)| reachable.contains(uid)) {
            match self.hub.wait(uid, generation, deadline.saturating_duration_since(Instant::now())).await {
                Ok(at) => first = Some(first.map_or(at, |first| first.min(at))),
                // It may have died meanwhile.
                Err(error) if self.reachable(std::slice::from_ref(uid)).contains(uid) => unconfirmed.push(error.to_string()),
                Err(_) => {}
            }
        }
        (first, unconfirmed)
    }
}

async fn lose(inner: &Arc<Inner>, nodes: &[String]) -> Result<Vec<Lost>, PlatformError> {
    let refuse = |why: String| PlatformError::new("nodes cannot be lost", why);
    let losses: Vec<(String, u64)> = {
        let mut cluster = inner.cluster();
        cluster.check_nodes(nodes).map_err(refuse)?;
        if let Some(node) = cluster.nodes.iter().find(|node| node.lost.is_some() && nodes.contains(&node.name)) {
            return Err(refuse(format!("{} is lost already", node.name)));
        }
        nodes.iter().filter_map(|node| Some((node.clone(), cluster.lose(node)?))).collect()
    };
    let mut lost = Vec::new();
    for (node, loss) in losses {
        let pods = inner.cluster().on(&node);
        let mut processes = 0;
        for uid in &pods {
            processes += inner.obeyed(uid, Command::Freeze).await.unwrap_or(0);
        }
        inner.orders.signal_burners(&node, Signal::SIGSTOP);
        lost.push(Lost { node: node.clone(), pods: pods.len(), processes });
        let inner = Arc::clone(inner);
        let timers = inner.settings.local.timers.clone();
        inner.clone().platform.spawn(async move {
            tokio::time::sleep(timers.node_monitor_grace_period.get()).await;
            inner.change(|cluster, at| cluster.unreachable(at, &node, loss));
            tokio::time::sleep(timers.toleration_seconds.get()).await;
            inner.change(|cluster, at| cluster.evict(at, &node, loss));
        });
    }
    Ok(lost)
}

impl Orders {
    fn signal_burners(&self, node: &str, signal: Signal) {
        for (on, pid) in lock(&self.burners).iter() {
            if on == node {
                // It may have ended.
                let _ = nix::sys::signal::killpg(*pid, signal);
            }
        }
    }
}

/// Deletes pods that are not wanted any more, with the grace that they ask for.
fn delete(inner: &Inner, uids: &[String]) {
    for uid in uids {
        inner.command(uid, Command::Delete { grace: inner.settings.local.pods.termination_grace_period.get() });
    }
}

/// Ends an order, once. Nothing: there is no such order.
async fn end(inner: &Arc<Inner>, id: u64) -> Option<Undone> {
    let placed = lock(&inner.orders.placed).get(&id).cloned()?;
    Some(placed.end.get_or_init(|| take_back(inner, &placed)).await.clone())
}

async fn take_back(inner: &Arc<Inner>, placed: &Placed) -> Undone {
    match &placed.kind {
        Kind::Requests(requests) => disarm(inner, requests, placed.began).await,
        Kind::Scaled(before, went) => {
            let (meanwhile, surplus) = inner.change(|cluster, at| cluster.scale(at, *before, went, true));
            delete(inner, &surplus);
            let evidence = vec![format!("scaled from {before} to {meanwhile} pods, and back to {before}")];
            Undone { evidence, ..Undone::default() }
        }
        Kind::Killed(evidence) => Undone { evidence: evidence.clone(), ..Undone::default() },
        Kind::Lost(nodes) => bring_back(inner, nodes, placed.began).await,
        Kind::Burn(burners) => {
            let burners = std::mem::take(&mut *burners.lock().await);
            let pids: Vec<_> = burners.iter().map(Burner::pid).collect();
            let undone = burn::stop(burners).await;
            lock(&inner.orders.burners).retain(|(_, pid)| !pids.contains(pid));
            undone
        }
    }
}

async fn disarm(inner: &Inner, requests: &Requests, began: Instant) -> Undone {
    requests.armed.store(false, Ordering::Relaxed);
    let covered = lock(&requests.covered).clone();
    let uids: Vec<_> = covered.keys().cloned().collect();
    let serving: BTreeSet<String> = inner.cluster().pods.iter().filter(|held| held.pod.in_service).map(|held| held.pod.uid.clone()).collect();
    let (_, unconfirmed) = inner.tell_and_wait(&uids).await;
    let left_behind = unconfirmed.into_iter().map(|why| format!("{}: {why}; the fault ends there by its own expiry", requests.policy)).collect();
    // What was injected until now is told with the next count of requests.
    let (now, deadline) = (Instant::now(), Instant::now() + COUNTED_WITHIN);
    for uid in inner.reachable(&uids) {
        inner.ingest.requests_until(&uid, now, deadline.saturating_duration_since(Instant::now())).await;
    }
    // One run, and each of its orders has a name of its own: nobody counted under it before.
    let Told { evidence, doubts } =
        armed::evidence(&inner.ingest, &requests.policy, &requests.spec, &covered, &armed::Before::new(), began.elapsed(), |uid| serving.contains(uid));
    Undone { evidence, doubts, left_behind }
}

async fn bring_back(inner: &Arc<Inner>, nodes: &[Lost], began: Instant) -> Undone {
    let mut undone = Undone::default();
    for Lost { node, pods, processes } in nodes {
        let silent = began.elapsed();
        inner.orders.signal_burners(node, Signal::SIGKILL);
        let on: Vec<(String, bool)> = {
            let cluster = inner.cluster();
            cluster.pods.iter().filter(|held| held.pod.node == *node).map(|held| (held.pod.uid.clone(), !held.terminating)).collect()
        };
        for (uid, again) in on {
            if inner.obeyed(&uid, |done| Command::Thaw { again, done }).await.is_none() && inner.cluster().held(&uid).is_some() {
                undone.left_behind.push(format!("pod {uid} on {node} does not end"));
            }
        }
        inner.change(|cluster, at| cluster.back(at, node));
        undone.evidence.push(format!("{node} silent for {:.1} s: {processes} processes (pods: {pods}) stopped at once, then killed", silent.as_secs_f64()));
    }
    undone
}
