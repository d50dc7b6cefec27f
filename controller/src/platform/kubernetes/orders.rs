//! Orders in force on a cluster: armed in sidecars, done to pods by the API server, or [`failures`] of the cluster itself; ended when asked or when their time is up,
//! whichever comes first.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod as Object;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use steadfast_api::{
    Span,
    policy::{FaultPolicySpec, NamedPolicy},
};
use tokio::sync::OnceCell;

use super::{
    Inner,
    failures::{self, Evicted, Failure, FailureError, Target},
    labels,
};
use crate::{
    platform::{
        InForce, Order, PlatformError, Undone,
        armed::{self, Before},
    },
    words::{NAMES_MAX, some},
};

/// A sidecar that listens confirms a change well within this.
const CONFIRM_WITHIN: Duration = Duration::from_secs(3);
/// Sidecars report their requests about once a second.
const COUNTED_WITHIN: Duration = Duration::from_millis(1_500);

/// All orders in force, and those that ended and were not asked about yet.
#[derive(Default)]
pub(super) struct Orders {
    last: AtomicU64,
    placed: Mutex<BTreeMap<u64, Arc<Placed>>>,
}

struct Placed {
    began: Instant,
    until: Instant,
    kind: Kind,
    end: OnceCell<Undone>,
}

enum Kind {
    Armed(Box<Armed>),
    /// Nothing to take back: what was done, in words.
    Done(Vec<String>),
    Failure(Failure),
}

/// A fault in sidecars.
struct Armed {
    /// In the hub: what this order alone wants.
    owner: String,
    policy: String,
    spec: FaultPolicySpec,
    nodes: Vec<String>,
    /// Names by UID of the pods that have it.
    covered: Mutex<BTreeMap<String, String>>,
    /// What their sidecars had counted under this name before: those of one controller are counted for as long as it leads.
    before: Mutex<Before>,
    on: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Orders {
    fn placed(&self) -> Vec<Arc<Placed>> {
        lock(&self.placed).values().cloned().collect()
    }

    /// Pods have come: one that stands on a covered node, or, for a fault that names pods alone, in the place of a covered pod, has the fault too.
    pub(super) fn cover(&self, inner: &Inner) {
        for placed in self.placed() {
            let Kind::Armed(armed) = &placed.kind else { continue };
            if !armed.on.load(Ordering::Relaxed) || placed.until <= Instant::now() {
                continue;
            }
            let new: Vec<(String, String)> = {
                let (facts, covered) = (inner.facts(), lock(&armed.covered));
                let reaches = |uid: &str, node: &str| {
                    armed.nodes.iter().any(|covered| covered == node)
                        || (armed.nodes.is_empty() && facts.replaces(uid).is_some_and(|before| covered.contains_key(before)))
                };
                let pods = facts.pods().into_iter().filter(|pod| !covered.contains_key(&pod.uid) && reaches(&pod.uid, &pod.node));
                pods.map(|pod| (pod.uid, pod.name)).collect()
            };
            for (uid, name) in new {
                armed.reaches(inner, &uid);
                if let Err(error) = inner.hub.set_policies(&armed.owner, &uid, vec![armed.named(placed.until)]) {
                    tracing::warn!(pod = name, %error, "cannot be told its policies");
                }
                lock(&armed.covered).insert(uid, name);
            }
        }
    }

    pub(super) async fn apply(inner: &Arc<Inner>, order: Order, expires_after: Span) -> Result<InForce, PlatformError> {
        let orders = &inner.orders;
        let id = orders.last.fetch_add(1, Ordering::Relaxed) + 1;
        let began = Instant::now();
        let until = began + expires_after.get();
        let place = |kind| drop(lock(&orders.placed).insert(id, Arc::new(Placed { began, until, kind, end: OnceCell::new() })));
        let since = match order {
            Order::Requests { .. } | Order::HoldDown { .. } | Order::BurnPods { .. } => {
                place(Kind::Armed(Box::new(armed(inner, id, order)?)));
                match arm(inner, id).await {
                    Ok(since) => since.max(began),
                    Err(why) => {
                        end(inner, id).await;
                        lock(&orders.placed).remove(&id);
                        return Err(PlatformError::new("the fault cannot be armed", why));
                    }
                }
            }
            Order::Kill { pods, grace } => {
                let how = if grace.is_zero() { "SIGKILL".to_owned() } else { format!("SIGTERM, SIGKILL after {grace}") };
                let mut done = Vec::new();
                for (name, uid) in uids(inner, &pods)? {
                    delete(inner, &name, &uid, grace).await?;
                    done.push(format!("{name} deleted ({how})"));
                }
                place(Kind::Done(done));
                began
            }
            Order::Evict { pods } => {
                let mut done = Vec::new();
                for (name, uid) in uids(inner, &pods)? {
                    done.push(match failures::evict(&inner.client, &inner.namespace, &name, &uid).await? {
                        Evicted::Yes => format!("{name} evicted"),
                        Evicted::Refused(words) => format!("{name} not evicted, a disruption budget refused: {words}"),
                        Evicted::Gone => format!("{name} was gone before it could be evicted"),
                    });
                }
                place(Kind::Done(done));
                began
            }
            other => {
                let scaled = if let Order::Scale { replicas } = &other { Some(*replicas as usize) } else { None };
                if scaled.is_some() {
                    inner.facts().scaled(scaled);
                }
                let short = inner.run.get(..8).unwrap_or(&inner.run);
                let target = Target { namespace: &inner.namespace, selector: &labels(&inner.selector), prefix: &format!("steadfast-{short}-{id}") };
                let failure = failures::carry_out(&inner.means, &inner.ledger, &target, other, expires_after).await;
                let failure = failure.inspect_err(|_| inner.facts().scaled(None))?;
                let since = failure.since;
                place(Kind::Failure(failure));
                since
            }
        };
        let timer = Arc::downgrade(inner);
        tokio::spawn(async move {
            tokio::time::sleep_until(until.into()).await;
            if let Some(inner) = timer.upgrade() {
                end(&inner, id).await;
            }
        });
        Ok(InForce { id, since })
    }

    /// Takes an order back, or tells how it ended by itself.
    pub(super) async fn undo(inner: &Arc<Inner>, order: &InForce) -> Undone {
        let undone = end(inner, order.id).await;
        lock(&inner.orders.placed).remove(&order.id);
        undone.unwrap_or_else(|| Undone { evidence: Vec::new(), left_behind: vec![format!("order {} is not known: it was taken back before", order.id)] })
    }

    /// Takes everything back. Returns what could not be.
    pub(super) async fn close(inner: &Arc<Inner>) -> Vec<String> {
        let ids: Vec<u64> = lock(&inner.orders.placed).keys().copied().collect();
        let mut left = Vec::new();
        for id in ids {
            left.extend(end(inner, id).await.map(|undone| undone.left_behind).unwrap_or_default());
        }
        lock(&inner.orders.placed).clear();
        left
    }
}

impl Armed {
    /// From now on what this pod's sidecar counts is this order's.
    fn reaches(&self, inner: &Inner, uid: &str) {
        lock(&self.before).insert(uid.to_owned(), inner.ingest.injected(uid, &self.policy));
    }

    fn named(&self, until: Instant) -> NamedPolicy {
        let expires_after = Span::new(until.saturating_duration_since(Instant::now()));
        NamedPolicy { name: self.policy.clone(), spec: FaultPolicySpec { expires_after, ..self.spec.clone() } }
    }
}

fn uids(inner: &Inner, names: &[String]) -> Result<Vec<(String, String)>, PlatformError> {
    let facts = inner.facts();
    let uid =
        |name: &String| facts.uid(name).map(|uid| (name.clone(), uid.to_owned())).ok_or_else(|| PlatformError::new(name.clone(), "is not there any more"));
    names.iter().map(uid).collect()
}

fn armed(inner: &Inner, id: u64, order: Order) -> Result<Armed, PlatformError> {
    let (spec, pods, nodes) = armed::policy(order, inner.in_flight_max)?;
    let mut covered: BTreeMap<String, String> = uids(inner, &pods)?.into_iter().map(|(name, uid)| (uid, name)).collect();
    covered.extend(inner.facts().pods().into_iter().filter(|pod| nodes.contains(&pod.node)).map(|pod| (pod.uid, pod.name)));
    if covered.is_empty() {
        return Err(PlatformError::new("the fault", "would reach no pod of the target"));
    }
    let owner = format!("run/{}/{id}", inner.run);
    let uids: Vec<String> = covered.keys().cloned().collect();
    // No FaultPolicy can be called so: names of objects have no underscore. Names of steps come again in every run, since each is a label of the sidecars'
    // metrics.
    let policy = format!("step_{id}");
    let armed = Armed { owner, policy, spec, nodes, covered: Mutex::new(covered), before: Mutex::default(), on: AtomicBool::new(true) };
    for uid in &uids {
        armed.reaches(inner, uid);
    }
    Ok(armed)
}

/// Arms an order and waits until every sidecar that it reaches has confirmed it. Returns when the first of them had it.
async fn arm(inner: &Arc<Inner>, id: u64) -> Result<Instant, String> {
    let Some(placed) = lock(&inner.orders.placed).get(&id).cloned() else { return Err("it was taken back already".to_owned()) };
    let Kind::Armed(armed) = &placed.kind else { return Ok(placed.began) };
    let covered = lock(&armed.covered).clone();
    let deaf: Vec<&str> = covered.iter().filter(|(uid, _)| !inner.hub.connected(uid)).map(|(_, name)| name.as_str()).collect();
    if !deaf.is_empty() {
        let asks = "give the pods their sidecars: label steadfast.dev/inject=true";
        return Err(format!("no sidecar of {} listens to this controller; {asks}", some(&deaf, NAMES_MAX)));
    }
    let (first, unconfirmed) = tell(inner, armed, &covered, Some(placed.until)).await;
    match first {
        Some(first) if unconfirmed.is_empty() => Ok(first),
        _ => Err(some(&unconfirmed, NAMES_MAX)),
    }
}

/// Tells sidecars to have it in force until then, or no more; waits for those that listen. Returns when the first confirmed, and who did not.
async fn tell(inner: &Inner, armed: &Armed, covered: &BTreeMap<String, String>, until: Option<Instant>) -> (Option<Instant>, Vec<String>) {
    let mut told = Vec::new();
    let (mut first, mut unconfirmed) = (None::<Instant>, Vec::new());
    for (uid, name) in covered {
        match inner.hub.set_policies(&armed.owner, uid, until.map(|until| armed.named(until)).into_iter().collect()) {
            Ok(generation) => told.push((uid, name, generation)),
            Err(error) => unconfirmed.push(format!("{name}: {error}")),
        }
    }
    let deadline = Instant::now() + CONFIRM_WITHIN;
    for (uid, name, generation) in told {
        if !inner.hub.connected(uid) {
            continue;
        }
        match inner.hub.wait(uid, generation, deadline.saturating_duration_since(Instant::now())).await {
            Ok(at) => first = Some(first.map_or(at, |first| first.min(at))),
            // It may be gone meanwhile, and its fault with it.
            Err(error) if inner.hub.connected(uid) => unconfirmed.push(format!("{name}: {error}")),
            Err(_) => {}
        }
    }
    (first, unconfirmed)
}

/// Ends an order, once. Nothing: there is no such order.
async fn end(inner: &Arc<Inner>, id: u64) -> Option<Undone> {
    let placed = lock(&inner.orders.placed).get(&id).cloned()?;
    let undone = placed.end.get_or_init(|| async {
        match &placed.kind {
            Kind::Done(evidence) => Undone { evidence: evidence.clone(), left_behind: Vec::new() },
            Kind::Armed(armed) => disarm(inner, armed, placed.began).await,
            Kind::Failure(failure) => {
                let undone = failures::take_back(&inner.means, &inner.ledger, failure).await;
                inner.facts().scaled(None);
                undone
            }
        }
    });
    Some(undone.await.clone())
}

async fn disarm(inner: &Inner, armed: &Armed, began: Instant) -> Undone {
    armed.on.store(false, Ordering::Relaxed);
    let covered = lock(&armed.covered).clone();
    let (_, unconfirmed) = tell(inner, armed, &covered, None).await;
    inner.hub.clear(&armed.owner);
    let left_behind = unconfirmed.into_iter().map(|why| format!("{}: {why}; the fault ends there by its own expiry", armed.policy)).collect();
    // What was injected until now is told with the next count of requests.
    let (now, deadline) = (Instant::now(), Instant::now() + COUNTED_WITHIN);
    for uid in covered.keys().filter(|uid| inner.hub.connected(uid)) {
        inner.ingest.requests_until(uid, now, deadline.saturating_duration_since(Instant::now())).await;
    }
    Undone { evidence: armed::evidence(&inner.ingest, &armed.policy, &armed.spec, &covered, &lock(&armed.before), began.elapsed()), left_behind }
}

/// Deletes the pod with this UID, and no other of its name.
async fn delete(inner: &Inner, name: &str, uid: &str, grace: Span) -> Result<(), PlatformError> {
    let parameters = DeleteParams::default().grace_period(grace.get().as_secs_f64().ceil() as u32).preconditions(only(uid));
    let api: Api<Object> = Api::namespaced(inner.client.clone(), &inner.namespace);
    api.delete(name, &parameters).await.map(drop).map_err(|error| FailureError::api(format!("pod {name}"), &error).into())
}

fn only(uid: &str) -> Preconditions {
    Preconditions { uid: Some(uid.to_owned()), resource_version: None }
}
