//! Orders in force on a cluster: armed in sidecars, done to pods by the API server, or [`failures`] of the cluster itself; ended when asked or when their time is up,
//! whichever comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
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

use super::{
    Inner,
    failures::{self, Budget, Evictions, Failure, FailureError, Meant, Target},
    labels,
};
use crate::{
    platform::{
        InForce, Order, PlatformError, Pod, Undone,
        armed::{self, Before, Told},
    },
    words::{NAMES_MAX, some},
};

/// A sidecar that listens confirms a change well within this.
const CONFIRM_WITHIN: Duration = Duration::from_secs(3);
/// Sidecars report their requests about once a second.
const COUNTED_WITHIN: Duration = Duration::from_millis(1_500);
/// A sidecar that lost its connection dials again within a fraction of this.
const SILENT_FOR: Duration = Duration::from_millis(500);
/// Beyond a pod's grace period: kubelet hears of it, and the pod's sidecar ends last.
const LEAVES_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What could not be taken back is tried again after so long at first, and never more seldom than at last.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const AGAIN_AT_LAST: Duration = Duration::from_secs(30);
/// An evicted pod has its own grace period; it leaves the Service at once.
const EVICTED_GRACE: Duration = Duration::from_secs(30);
/// Whoever takes an order back waits for so long until that holds; it is tried on afterwards.
const UNDO_PATIENCE: Duration = Duration::from_secs(20);

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
    /// How it ended, once nothing of it is left to be done.
    ended: tokio::sync::Mutex<Option<Undone>>,
}

enum Kind {
    Armed(Box<Armed>),
    /// Nothing to take back: pods were told to go.
    Gone(Leaving),
    Failure(Failure),
}

/// Pods that were deleted or evicted: the API server has agreed, which is not yet their end.
struct Leaving {
    /// With how it was asked, in words.
    pods: Vec<(Meant, String)>,
    grace: Duration,
    /// Sidecars of these listened when it was asked, so that their silence tells something.
    heard: BTreeSet<String>,
    /// Why some of them stay.
    doubts: Vec<String>,
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
        may_take(inner.means.budget, &inner.facts().pods(), &order)?;
        let orders = &inner.orders;
        let id = orders.last.fetch_add(1, Ordering::Relaxed) + 1;
        let began = Instant::now();
        let place = |kind, until| {
            lock(&orders.placed).insert(id, Arc::new(Placed { began, until, kind, ended: tokio::sync::Mutex::default() }));
            until
        };
        // What takes long to be made is in force as long as anything else: its time begins once it is.
        let from_now = || Instant::now() + expires_after.get();
        let (since, until) = match order {
            Order::Requests { .. } | Order::HoldDown { .. } | Order::BurnPods { .. } => {
                let until = place(Kind::Armed(Box::new(armed(inner, id, order)?)), from_now());
                match arm(inner, id).await {
                    Ok(since) => (since.max(began), until),
                    Err(why) => {
                        end(inner, id).await;
                        lock(&orders.placed).remove(&id);
                        return Err(PlatformError::new("the fault cannot be armed", why));
                    }
                }
            }
            Order::Kill { pods, grace } => {
                let how = if grace.is_zero() { "deleted without grace".to_owned() } else { format!("deleted, with {grace} to finish") };
                let mut leaving = Leaving { pods: Vec::new(), grace: grace.get(), heard: BTreeSet::new(), doubts: Vec::new() };
                for pod in meant(inner, &pods)? {
                    leaving.heard.extend(Some(pod.uid.clone()).filter(|uid| inner.hub.connected(uid)));
                    delete(inner, &pod, grace).await?;
                    leaving.pods.push((pod, how.clone()));
                }
                (began, place(Kind::Gone(leaving), from_now()))
            }
            Order::Evict { pods } => {
                let pods: BTreeSet<Meant> = meant(inner, &pods)?.into_iter().collect();
                let heard = pods.iter().map(|pod| pod.uid.clone()).filter(|uid| inner.hub.connected(uid)).collect();
                let Evictions { evicted, refused, gone } = failures::evict(&inner.means.prompt, pods, &inner.given_up()).await?;
                let refused = refused.into_iter().map(|(pod, words)| format!("{} was not evicted: {words}", pod.name));
                let doubts = refused.chain(gone.into_iter().map(|pod| format!("{} was gone before it could be evicted", pod.name))).collect();
                let pods = evicted.into_iter().map(|pod| (pod, "evicted".to_owned())).collect();
                (began, place(Kind::Gone(Leaving { pods, grace: EVICTED_GRACE, heard, doubts }), from_now()))
            }
            other => {
                let scaled = if let Order::Scale { replicas } = &other { Some(*replicas as usize) } else { None };
                if scaled.is_some() {
                    inner.facts().scaled(scaled);
                }
                let short = inner.run.get(..8).unwrap_or(&inner.run);
                let (selector, given_up) = (labels(&inner.selector), inner.given_up());
                let port = inner.facts().port().clone();
                let target =
                    Target { namespace: &inner.namespace, selector: &selector, port: &port, prefix: &format!("steadfast-{short}-{id}"), given_up: &given_up };
                let failure = failures::carry_out(&inner.means, &inner.ledger, &target, other, expires_after).await;
                let failure = failure.inspect_err(|_| inner.facts().scaled(None))?;
                (failure.since, place(Kind::Failure(failure), from_now()))
            }
        };
        let timer = Arc::downgrade(inner);
        tokio::spawn(async move {
            tokio::time::sleep_until(until.into()).await;
            end_at_last(timer, id).await;
        });
        Ok(InForce { id, since })
    }

    /// Takes an order back, or tells how it ended by itself.
    pub(super) async fn undo(inner: &Arc<Inner>, order: &InForce) -> Undone {
        let deadline = Instant::now() + UNDO_PATIENCE;
        let mut wait = AGAIN_AFTER;
        let undone = loop {
            let undone = end(inner, order.id).await;
            if undone.as_ref().is_none_or(|undone| undone.left_behind.is_empty()) || Instant::now() + wait > deadline {
                break undone;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        };
        if undone.as_ref().is_some_and(|undone| !undone.left_behind.is_empty()) {
            // It stays in place, for those who go on trying: here, and whoever closes.
            tokio::spawn(end_at_last(Arc::downgrade(inner), order.id));
        } else {
            lock(&inner.orders.placed).remove(&order.id);
        }
        let unknown = || Undone { left_behind: vec![format!("order {} is not known: it was taken back before", order.id)], ..Undone::default() };
        undone.unwrap_or_else(unknown)
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

/// One step may take so many pods of the target away at once, and no more; those that users are not led to already count. What takes whole nodes has a budget of
/// nodes.
fn may_take(budget: Budget, pods: &[Pod], order: &Order) -> Result<(), PlatformError> {
    let (names, nodes) = order.takes();
    let (taken, rest): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|pod| names.contains(&pod.name) || nodes.contains(&pod.node));
    if taken.is_empty() {
        return Ok(());
    }
    let away: Vec<String> = rest.iter().filter(|pod| !pod.in_service).map(|pod| pod.name.clone()).collect();
    budget.allows_pods(taken.len(), &away, pods.len()).map_err(|why| PlatformError::new("the step", why))
}

fn uids(inner: &Inner, names: &[String]) -> Result<Vec<(String, String)>, PlatformError> {
    let facts = inner.facts();
    let uid =
        |name: &String| facts.uid(name).map(|uid| (name.clone(), uid.to_owned())).ok_or_else(|| PlatformError::new(name.clone(), "is not there any more"));
    names.iter().map(uid).collect()
}

fn meant(inner: &Inner, names: &[String]) -> Result<Vec<Meant>, PlatformError> {
    let meant = |(name, uid)| Meant { namespace: inner.namespace.clone(), name, uid };
    Ok(uids(inner, names)?.into_iter().map(meant).collect())
}

fn armed(inner: &Inner, id: u64, order: Order) -> Result<Armed, PlatformError> {
    let (spec, pods, nodes) = armed::policy(order)?;
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
            Ok(_) if until.is_some() && inner.hub.refuses(uid, &armed.policy) => {
                unconfirmed.push(format!("{name}: its sidecar is of another version and refuses the fault: start the pod anew"));
            }
            Ok(at) => first = Some(first.map_or(at, |first| first.min(at))),
            // It may be gone meanwhile, and its fault with it.
            Err(error) if inner.hub.connected(uid) => unconfirmed.push(format!("{name}: {error}")),
            Err(_) => {}
        }
    }
    (first, unconfirmed)
}

/// Ends an order. What could not be taken back is tried again by the next call. Nothing: there is no such order.
async fn end(inner: &Arc<Inner>, id: u64) -> Option<Undone> {
    let placed = lock(&inner.orders.placed).get(&id).cloned()?;
    let mut ended = placed.ended.lock().await;
    if let Some(undone) = &*ended {
        return Some(undone.clone());
    }
    let undone = match &placed.kind {
        Kind::Gone(leaving) => seen_leaving(inner, leaving, placed.began).await,
        Kind::Armed(armed) => disarm(inner, armed, placed.began).await,
        Kind::Failure(failure) => {
            let undone = failures::take_back(&inner.means, &inner.ledger, failure).await;
            inner.facts().scaled(None);
            if !undone.left_behind.is_empty() {
                return Some(undone);
            }
            undone
        }
    };
    *ended = Some(undone.clone());
    Some(undone)
}

/// Ends an order, again and again until nothing of it is left, or its run is over.
async fn end_at_last(inner: Weak<Inner>, id: u64) {
    let mut wait = AGAIN_AFTER;
    loop {
        let Some(inner) = inner.upgrade() else { return };
        if end(&inner, id).await.is_none_or(|undone| undone.left_behind.is_empty()) {
            return;
        }
        drop(inner);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_AT_LAST);
    }
}

/// Waits until pods that were told to go are seen to do so: users are led to them no more, or their sidecars, which end last, have fallen silent. What was deleted without
/// grace leaves the API server at once, and with it the Service: that tells nothing of the pod.
async fn seen_leaving(inner: &Inner, leaving: &Leaving, began: Instant) -> Undone {
    let deadline = Instant::now() + leaving.grace.min(LEAVES_WITHIN) + LEAVES_WITHIN;
    let given_up = inner.given_up();
    let mut undone = Undone { doubts: leaving.doubts.clone(), ..Undone::default() };
    for (pod, how) in &leaving.pods {
        let mut silent_since = None;
        loop {
            let seconds = began.elapsed().as_secs_f64();
            if leaving.heard.contains(&pod.uid) && !inner.hub.connected(&pod.uid) {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SILENT_FOR {
                    let after = since.saturating_duration_since(began).as_secs_f64();
                    undone.evidence.push(format!("{} {how}: its sidecar was silent {after:.1} s later", pod.name));
                    break;
                }
            } else {
                silent_since = None;
            }
            if !leaving.grace.is_zero() && !inner.facts().serves(&pod.uid) {
                undone.evidence.push(format!("{} {how}: out of the Service {seconds:.1} s later", pod.name));
                break;
            }
            if Instant::now() >= deadline {
                undone.doubts.push(format!("{} was {how}, as the API server agreed, and was not seen to end within {seconds:.0} s", pod.name));
                break;
            }
            if !given_up.or_slept(LOOK_EVERY).await {
                undone.doubts.push(format!("{} was {how}, and its run ended before it was seen to end", pod.name));
                break;
            }
        }
    }
    undone
}

async fn disarm(inner: &Inner, armed: &Armed, began: Instant) -> Undone {
    armed.on.store(false, Ordering::Relaxed);
    let covered = lock(&armed.covered).clone();
    let serving: BTreeSet<String> = covered.keys().filter(|uid| inner.facts().serves(uid)).cloned().collect();
    let (_, unconfirmed) = tell(inner, armed, &covered, None).await;
    inner.hub.clear(&armed.owner);
    let left_behind = unconfirmed.into_iter().map(|why| format!("{}: {why}; the fault ends there by its own expiry", armed.policy)).collect();
    // What was injected until now is told with the next count of requests.
    let (now, deadline) = (Instant::now(), Instant::now() + COUNTED_WITHIN);
    for uid in covered.keys().filter(|uid| inner.hub.connected(uid)) {
        inner.ingest.requests_until(uid, now, deadline.saturating_duration_since(Instant::now())).await;
    }
    let Told { evidence, mut doubts } =
        armed::evidence(&inner.ingest, &armed.policy, &armed.spec, &covered, &lock(&armed.before), began.elapsed(), |uid| serving.contains(uid));
    if evidence.is_empty() && doubts.is_empty() {
        doubts.push(if armed.spec.held_down {
            "its pods were in the Service to the end: let it last longer than their endpoints take to be withdrawn".to_owned()
        } else {
            "no sidecar that had it in force reported that it did anything".to_owned()
        });
    }
    Undone { evidence, doubts, left_behind }
}

/// Deletes the pod with this UID, and no other of its name.
async fn delete(inner: &Inner, pod: &Meant, grace: Span) -> Result<(), PlatformError> {
    let only = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    let parameters = DeleteParams::default().grace_period(grace.get().as_secs_f64().ceil() as u32).preconditions(only);
    let api: Api<Object> = Api::namespaced(inner.means.prompt.clone(), &pod.namespace);
    api.delete(&pod.name, &parameters).await.map(drop).map_err(|error| FailureError::api(format!("pod {}", pod.name), &error).into())
}

#[cfg(test)]
mod tests {
    use steadfast_api::{Percent, fault::Fault};

    use super::*;

    #[test]
    fn what_cuts_pods_off_is_held_against_their_budget_whether_pods_or_their_nodes_were_chosen() {
        let pod = |index: usize, in_service| Pod {
            name: format!("p{index}"),
            uid: format!("u{index}"),
            node: format!("n{}", index % 2),
            labels: BTreeMap::new(),
            in_service,
        };
        let pods: Vec<Pod> = (0..4).map(|index| pod(index, true)).collect();
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cut = |pods: &[&str], nodes: &[&str], percent| Order::Requests {
            pods: strings(pods),
            nodes: strings(nodes),
            fault: Fault::Blackhole(serde_json::from_str("{}").unwrap()),
            share: Percent::from_ratio(percent / 100.0),
        };
        let half = Budget { pods: "50%".parse().unwrap(), ..Budget::ALL };
        assert!(may_take(half, &pods, &cut(&["p0", "p3"], &[], 100.0)).is_ok() && may_take(half, &pods, &cut(&[], &["n1"], 100.0)).is_ok());
        for refused in [
            cut(&["p0", "p1", "p2"], &[], 100.0),
            cut(&[], &["n0", "n1"], 100.0),
            cut(&[], &["n0", "n1"], 99.9999),
            Order::HoldDown { pods: strings(&["p0", "p1", "p2"]) },
        ] {
            let why = may_take(half, &pods, &refused).unwrap_err().to_string();
            assert!(why.contains("failures.maxUnavailablePods"), "{why}");
        }
        assert!(may_take(half, &pods, &cut(&[], &["n0", "n1"], 5.0)).is_ok(), "most requests are answered");
        // One is away already, and does not count twice.
        let pods: Vec<Pod> = (0..4).map(|index| pod(index, index != 0)).collect();
        assert!(may_take(half, &pods, &cut(&[], &["n0"], 100.0)).is_ok());
        assert!(may_take(half, &pods, &cut(&[], &["n1"], 100.0)).unwrap_err().to_string().contains("away already (p0)"));
    }
}
