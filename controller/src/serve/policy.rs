//! What each pod's sidecar shall do, and what it says it does.
//!
//! Several owners speak for one pod: a `FaultPolicy`, a run, a golden set, the readiness gate. Each sets its own part under its own name, and the snapshot that
//! the sidecar gets is the sum, so nobody has to know of anybody else and taking one part back leaves the others as they are.
//!
//! Invariants:
//! - Generations rise with every change of any pod, over the life of this process and from one process to the next (they begin at the second it started in), so a
//!   sidecar can tell new from old whatever order messages arrive in, and a confirmation of an earlier controller's snapshot never counts here.
//! - Expiries are kept as moments. A snapshot says what is left of them when it is sent, so saying something again never makes it last longer.
//! - Never more than [`PODS_MAX`] pods are remembered; one for which nobody has set anything and whose sidecar is not connected makes room for another.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use steadfast_api::{
    Span,
    policy::{GOLDEN_SETS_MAX, GoldenAssignment, NamedPolicy, POLICIES_MAX, PolicySnapshot, Unready},
};
use tokio::{sync::watch, time::timeout};

/// Pods known at once.
pub const PODS_MAX: usize = 20_000;
/// Owners that speak for one pod.
pub const OWNERS_MAX: usize = 64;
/// Two expiries nearer than this are the same one, said twice.
const SAME_EXPIRY: Duration = Duration::from_secs(1);
/// Changes that one process may make before its generations could meet those of a process started a second later.
const GENERATIONS_PER_SECOND: u64 = 1_000_000;

/// Why a sidecar cannot be told anything, or did not confirm it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    #[error("{PODS_MAX} pods are known already; remove those that are gone")]
    Full,
    #[error("this controller leads no more; the one that does answers at the same address")]
    Over,
    #[error("pod {uid} has something set by {OWNERS_MAX} owners already, so {owner} cannot speak for it; take the parts of others back first")]
    Crowded { uid: String, owner: String },
    #[error("pod {uid} would have more than {POLICIES_MAX} policies in force with that of {owner}; take others back first")]
    TooManyPolicies { uid: String, owner: String },
    #[error("the sidecar of pod {uid} did not confirm policy generation {generation} within {waited:?}; it confirmed generation {confirmed}")]
    NotConfirmed { uid: String, generation: u64, confirmed: u64, waited: Duration },
}

/// What a sidecar said last of its policies.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    generation: u64,
    at: Instant,
}

/// Something with the moment at which it ends; its own `expires_after` is not looked at again.
#[derive(Clone, Debug)]
struct Until<T> {
    what: T,
    until: Instant,
}

/// What one owner set for one pod.
#[derive(Clone, Debug, Default)]
struct Part {
    policies: Vec<Until<NamedPolicy>>,
    golden: Vec<GoldenAssignment>,
    unready: Option<Until<Unready>>,
}

impl Part {
    const fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.golden.is_empty() && self.unready.is_none()
    }
}

#[derive(Debug)]
struct Parts {
    generation: u64,
    by_owner: BTreeMap<String, Part>,
}

impl Parts {
    /// Policies in force of others than `owner`.
    fn policies_beside(&self, owner: &str) -> usize {
        let now = Instant::now();
        let others = self.by_owner.iter().filter(|(other, _)| *other != owner);
        others.flat_map(|(_, part)| &part.policies).filter(|policy| policy.until > now).count()
    }

    /// Golden sets that the sidecar shall replay, as many as it takes: those of runs first, since somebody waits for them.
    fn golden(&self) -> impl Iterator<Item = &GoldenAssignment> {
        let of = |runs: bool| self.by_owner.iter().filter(move |(owner, _)| owner.starts_with("run") == runs).flat_map(|(_, part)| &part.golden);
        of(true).chain(of(false)).take(GOLDEN_SETS_MAX)
    }

    /// The sum, as it stands at `now`.
    fn snapshot(&self, epoch: &str, now: Instant) -> PolicySnapshot {
        let left = |until: Instant| until.checked_duration_since(now).filter(|left| !left.is_zero()).map(Span::new);
        let parts = || self.by_owner.values();
        let policies = parts().flat_map(|part| &part.policies).filter_map(|policy| {
            let mut said = policy.what.clone();
            said.spec.expires_after = left(policy.until)?;
            Some(said)
        });
        let mut reasons = parts().filter_map(|part| part.unready.as_ref()).filter_map(|unready| Some((left(unready.until)?, unready.what.reason.as_str())));
        let unready = reasons.next().map(|(left, reason)| {
            let first = (left, reason.to_owned());
            let (expires_after, reason) = reasons.fold(first, |(longest, said), (left, reason)| (longest.max(left), format!("{said}; {reason}")));
            Unready { reason, expires_after }
        });
        PolicySnapshot { generation: self.generation, epoch: epoch.to_owned(), policies: policies.collect(), golden: self.golden().cloned().collect(), unready }
    }
}

#[derive(Debug)]
struct Entry {
    parts: watch::Sender<Parts>,
    confirmed: watch::Sender<Option<Confirmed>>,
    /// Names of policies that the sidecar does not understand or cannot take, and so has not armed.
    refused: Vec<String>,
}

impl Entry {
    /// Nobody speaks for the pod, and nobody listens.
    fn is_idle(&self) -> bool {
        self.parts.receiver_count() == 0 && self.confirmed.receiver_count() == 0 && self.parts.borrow().by_owner.is_empty()
    }
}

/// See the module.
#[derive(Debug)]
pub struct PolicyHub {
    epoch: String,
    generation: AtomicU64,
    open: watch::Sender<bool>,
    over: AtomicBool,
    pods: Mutex<HashMap<String, Entry>>,
}

impl Default for PolicyHub {
    fn default() -> Self {
        Self::new(true)
    }
}

impl PolicyHub {
    fn new(open: bool) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            epoch: format!("{:016x}", rand::random::<u64>()),
            generation: AtomicU64::new(started * GENERATIONS_PER_SECOND),
            open: watch::Sender::new(open),
            over: AtomicBool::new(false),
            pods: Mutex::default(),
        }
    }

    /// Says nothing to anybody until [`open`](Self::open): a controller that takes over first learns what is asked for, so that a sidecar that comes over from its
    /// predecessor does not drop golden sets and return to the Service for a moment.
    pub fn closed() -> Self {
        Self::new(false)
    }

    /// What is asked for is known: sidecars are told from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// This process speaks for nobody any more: every stream ends, and none begins.
    pub fn end(&self) {
        let mut pods = self.pods();
        self.over.store(true, Ordering::Relaxed);
        pods.clear();
        drop(pods);
        // Whoever still waited for a first word.
        self.open();
    }

    /// Names this process in every snapshot.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Nothing panics while it holds the lock; were it to, the map is whole at every step.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn entry<'a>(&self, pods: &'a mut HashMap<String, Entry>, uid: &str) -> Result<&'a Entry, HubError> {
        if self.over.load(Ordering::Relaxed) {
            return Err(HubError::Over);
        }
        if !pods.contains_key(uid) && pods.len() >= PODS_MAX {
            pods.retain(|_, entry| !entry.is_idle());
            if pods.len() >= PODS_MAX {
                return Err(HubError::Full);
            }
        }
        Ok(pods.entry(uid.to_owned()).or_insert_with(|| Entry {
            parts: watch::Sender::new(Parts { generation: self.next_generation(), by_owner: BTreeMap::new() }),
            confirmed: watch::Sender::new(None),
            refused: Vec::new(),
        }))
    }

    /// Changes the part of `owner`, of which so many policies are new; `change` tells whether anything is different now.
    fn change(&self, owner: &str, uid: &str, policies: usize, change: impl FnOnce(&mut Part) -> bool) -> Result<u64, HubError> {
        let mut pods = self.pods();
        let entry = self.entry(&mut pods, uid)?;
        let mut result = Err(HubError::Crowded { uid: uid.to_owned(), owner: owner.to_owned() });
        entry.parts.send_if_modified(|parts| {
            if parts.by_owner.len() >= OWNERS_MAX && !parts.by_owner.contains_key(owner) {
                return false;
            }
            // The sidecar would refuse them.
            if policies > 0 && parts.policies_beside(owner) + policies > POLICIES_MAX {
                result = Err(HubError::TooManyPolicies { uid: uid.to_owned(), owner: owner.to_owned() });
                return false;
            }
            let part = parts.by_owner.entry(owner.to_owned()).or_default();
            let changed = change(part);
            if part.is_empty() {
                parts.by_owner.remove(owner);
            }
            if changed {
                parts.generation = self.next_generation();
            }
            result = Ok(parts.generation);
            changed
        });
        result
    }

    /// What `owner` wants armed in this pod from now on, all of it; each policy's `expiresAfter` counts from now. Returns the generation to
    /// [wait](Self::wait) for. Saying the same again (expiries within a second) changes nothing.
    pub fn set_policies(&self, owner: &str, uid: &str, policies: Vec<NamedPolicy>) -> Result<u64, HubError> {
        let now = Instant::now();
        let policies: Vec<_> = policies.into_iter().map(|what| Until { until: until(now, what.spec.expires_after), what }).collect();
        self.change(owner, uid, policies.len(), |part| {
            let same = part.policies.len() == policies.len() && part.policies.iter().zip(&policies).all(|(old, new)| same_policy(old, new));
            if !same {
                part.policies = policies;
            }
            !same
        })
    }

    /// The golden sets that `owner` wants replayed in this pod, all of them.
    pub fn set_golden(&self, owner: &str, uid: &str, golden: Vec<GoldenAssignment>) -> Result<u64, HubError> {
        self.change(owner, uid, 0, |part| {
            let changed = part.golden != golden;
            part.golden = golden;
            changed
        })
    }

    /// Whether `owner` wants this pod out of its Service, and for how long from now; say it again before it expires, or the pod returns.
    pub fn set_unready(&self, owner: &str, uid: &str, unready: Option<Unready>) -> Result<u64, HubError> {
        let now = Instant::now();
        let unready = unready.map(|what| Until { until: until(now, what.expires_after), what });
        self.change(owner, uid, 0, |part| {
            let same = match (&part.unready, &unready) {
                (None, None) => true,
                (Some(old), Some(new)) => old.what.reason == new.what.reason && same_moment(old.until, new.until),
                _ => false,
            };
            if !same {
                part.unready = unready;
            }
            !same
        })
    }

    /// Takes back all that `owner` set, in every pod.
    pub fn clear(&self, owner: &str) {
        for entry in self.pods().values() {
            entry.parts.send_if_modified(|parts| {
                let had = parts.by_owner.remove(owner).is_some();
                if had {
                    parts.generation = self.next_generation();
                }
                had
            });
        }
    }

    /// UIDs of the pods for which `owner` has something set.
    pub fn pods_of(&self, owner: &str) -> Vec<String> {
        self.pods().iter().filter(|(_, entry)| entry.parts.borrow().by_owner.contains_key(owner)).map(|(uid, _)| uid.clone()).collect()
    }

    /// What the pod's sidecar would be told now; empty for a pod that nobody speaks for.
    pub fn snapshot(&self, uid: &str) -> PolicySnapshot {
        self.pods().get(uid).map(|entry| entry.parts.borrow().snapshot(&self.epoch, Instant::now())).unwrap_or_default()
    }

    /// Whether the pod has more golden sets than its sidecar takes, and of `owner`'s one is left out.
    pub fn leaves_out(&self, owner: &str, uid: &str) -> bool {
        let pods = self.pods();
        let Some(entry) = pods.get(uid) else { return false };
        let parts = entry.parts.borrow();
        // What two assign is replayed for both.
        let is_told = |one: &GoldenAssignment| parts.golden().any(|told| (&told.name, &told.digest) == (&one.name, &one.digest));
        parts.by_owner.get(owner).is_some_and(|part| !part.golden.iter().all(is_told))
    }

    /// Whether a golden set with this digest is assigned to this pod.
    pub fn replays(&self, uid: &str, digest: &str) -> bool {
        let pods = self.pods();
        let Some(entry) = pods.get(uid) else { return false };
        let parts = entry.parts.borrow();
        parts.by_owner.values().flat_map(|part| &part.golden).any(|golden| golden.digest == digest)
    }

    /// Whether the pod's sidecar listens to this process now.
    pub fn connected(&self, uid: &str) -> bool {
        self.pods().get(uid).is_some_and(|entry| entry.parts.receiver_count() > 0)
    }

    /// Sidecars that listen to this process now.
    pub fn connections(&self) -> usize {
        self.pods().values().filter(|entry| entry.parts.receiver_count() > 0).count()
    }

    /// The pod's snapshot as it is now, and every change after.
    pub fn subscribe(self: &Arc<Self>, uid: &str) -> Result<Subscription, HubError> {
        let mut pods = self.pods();
        let mut parts = self.entry(&mut pods, uid)?.parts.subscribe();
        parts.mark_changed();
        Ok(Subscription { hub: Arc::clone(self), parts, open: self.open.subscribe() })
    }

    /// The sidecar of this pod starts anew: it has nothing armed until it says so.
    pub fn sidecar_starts(&self, uid: &str) {
        if let Some(entry) = self.pods().get(uid) {
            entry.confirmed.send_replace(None);
        }
    }

    /// The sidecar said which generation is in force.
    pub fn confirm(&self, uid: &str, generation: u64, refused: &[String], at: Instant) {
        if generation > self.generation.load(Ordering::Relaxed) {
            return;
        }
        if let Some(entry) = self.pods().get_mut(uid) {
            entry.refused = refused.to_vec();
            entry.confirmed.send_if_modified(|confirmed| {
                let newer = confirmed.is_none_or(|confirmed| confirmed.generation < generation);
                if newer {
                    *confirmed = Some(Confirmed { generation, at });
                }
                newer
            });
        }
    }

    /// Whether the pod's sidecar has refused this policy: it is of another version.
    pub fn refuses(&self, uid: &str, policy: &str) -> bool {
        self.pods().get(uid).is_some_and(|entry| entry.refused.iter().any(|refused| refused == policy))
    }

    /// Whether the pod's sidecar has `generation` or a newer one in force.
    pub fn confirmed(&self, uid: &str, generation: u64) -> bool {
        self.pods().get(uid).is_some_and(|entry| entry.confirmed.borrow().is_some_and(|confirmed| confirmed.generation >= generation))
    }

    /// Returns once the pod's sidecar has `generation` (or a newer one) in force, with the moment when it took hold.
    pub async fn wait(&self, uid: &str, generation: u64, within: Duration) -> Result<Instant, HubError> {
        let refused = |confirmed| HubError::NotConfirmed { uid: uid.to_owned(), generation, confirmed, waited: within };
        let mut confirmed = self.entry(&mut self.pods(), uid)?.confirmed.subscribe();
        let reached = |confirmed: &Option<Confirmed>| confirmed.is_some_and(|confirmed| confirmed.generation >= generation);
        if let Ok(Ok(confirmed)) = timeout(within, confirmed.wait_for(reached)).await
            && let Some(confirmed) = *confirmed
        {
            return Ok(confirmed.at);
        }
        let confirmed = confirmed.borrow().map_or(0, |confirmed| confirmed.generation);
        Err(refused(confirmed))
    }

    /// The pod is gone: its stream ends, what owners set for it is forgotten, and its place is free.
    pub fn remove_pod(&self, uid: &str) {
        self.pods().remove(uid);
    }
}

/// One sidecar's ear.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<PolicyHub>,
    parts: watch::Receiver<Parts>,
    open: watch::Receiver<bool>,
}

impl Subscription {
    /// The newest snapshot, once there is one that was not given yet. `None`: the pod is gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<PolicySnapshot> {
        self.open.wait_for(|open| *open).await.ok()?;
        self.parts.changed().await.ok()?;
        Some(self.parts.borrow_and_update().snapshot(&self.hub.epoch, Instant::now()))
    }
}

fn until(now: Instant, span: Span) -> Instant {
    // A century is for ever.
    now.checked_add(span.get()).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400))
}

fn same_moment(one: Instant, other: Instant) -> bool {
    one.saturating_duration_since(other).max(other.saturating_duration_since(one)) < SAME_EXPIRY
}

fn same_policy(old: &Until<NamedPolicy>, new: &Until<NamedPolicy>) -> bool {
    let mut spec = old.what.spec.clone();
    spec.expires_after = new.what.spec.expires_after;
    same_moment(old.until, new.until) && old.what.name == new.what.name && spec == new.what.spec
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
