//! Which policies each pod shall have armed, and which its sidecar says it has.
//!
//! One snapshot a pod UID; its generation rises with every change, so a sidecar can tell new from old whatever order messages arrive in. A snapshot is taken
//! up by whoever listens at that moment and by whoever connects later: a pod that comes up during a fault is told at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use steadfast_api::policy::{NamedPolicy, PolicySnapshot};
use tokio::{sync::watch, time::timeout};

/// Pods known at once.
pub const PODS_MAX: usize = 10_000;

/// Why a sidecar cannot be told anything, or did not confirm it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    #[error("{PODS_MAX} pods have policies already; forget those that are gone")]
    Full,
    #[error("the sidecar of pod {uid} did not confirm policy generation {generation} within {waited:?}; it confirmed generation {confirmed}")]
    NotConfirmed { uid: String, generation: u64, confirmed: u64, waited: Duration },
}

/// What a sidecar said last of its policies.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    generation: u64,
    at: Instant,
}

#[derive(Debug)]
struct Entry {
    snapshot: watch::Sender<Arc<PolicySnapshot>>,
    confirmed: watch::Sender<Option<Confirmed>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct PolicyHub {
    pods: Mutex<HashMap<String, Arc<Entry>>>,
}

impl PolicyHub {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        // Nothing panics while it holds the lock; were it to, the map is whole at every step.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, uid: &str) -> Result<Arc<Entry>, HubError> {
        let mut pods = self.pods();
        if let Some(entry) = pods.get(uid) {
            return Ok(Arc::clone(entry));
        }
        if pods.len() >= PODS_MAX {
            return Err(HubError::Full);
        }
        let entry = Arc::new(Entry { snapshot: watch::Sender::new(Arc::default()), confirmed: watch::Sender::new(None) });
        pods.insert(uid.to_owned(), Arc::clone(&entry));
        Ok(entry)
    }

    /// What the pod shall have armed from now on, all of it. Returns the generation to [wait](Self::wait) for.
    pub fn set(&self, uid: &str, policies: Vec<NamedPolicy>) -> Result<u64, HubError> {
        let entry = self.entry(uid)?;
        let mut generation = 0;
        entry.snapshot.send_modify(|snapshot| {
            generation = snapshot.generation + 1;
            *snapshot = Arc::new(PolicySnapshot { generation, policies, ..PolicySnapshot::clone(snapshot) });
        });
        Ok(generation)
    }

    /// The pod's snapshot as it is now, and every change after.
    pub fn subscribe(&self, uid: &str) -> Result<watch::Receiver<Arc<PolicySnapshot>>, HubError> {
        let mut receiver = self.entry(uid)?.snapshot.subscribe();
        receiver.mark_changed();
        Ok(receiver)
    }

    /// The sidecar of this pod starts anew: it has nothing armed until it says so.
    pub fn sidecar_starts(&self, uid: &str) {
        if let Some(entry) = self.pods().get(uid) {
            entry.confirmed.send_replace(None);
        }
    }

    /// The sidecar said which generation is in force.
    pub fn confirm(&self, uid: &str, generation: u64, at: Instant) {
        if let Some(entry) = self.pods().get(uid) {
            entry.confirmed.send_if_modified(|confirmed| {
                let newer = confirmed.is_none_or(|confirmed| confirmed.generation < generation);
                if newer {
                    *confirmed = Some(Confirmed { generation, at });
                }
                newer
            });
        }
    }

    /// Returns once the pod's sidecar has `generation` (or a newer one) in force, with the moment when it took hold.
    pub async fn wait(&self, uid: &str, generation: u64, within: Duration) -> Result<Instant, HubError> {
        let mut confirmed = self.entry(uid)?.confirmed.subscribe();
        let reached = |confirmed: &Option<Confirmed>| confirmed.is_some_and(|confirmed| confirmed.generation >= generation);
        if let Ok(Ok(confirmed)) = timeout(within, confirmed.wait_for(reached)).await
            && let Some(confirmed) = *confirmed
        {
            return Ok(confirmed.at);
        }
        let confirmed = confirmed.borrow().map_or(0, |confirmed| confirmed.generation);
        Err(HubError::NotConfirmed { uid: uid.to_owned(), generation, confirmed, waited: within })
    }

    /// The pod is gone: its stream ends and its place is free.
    pub fn forget(&self, uid: &str) {
        self.pods().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> NamedPolicy {
        serde_json::from_value(serde_json::json!({ "name": name, "spec": { "expiresAfter": "1m", "budget": { "concurrent": 1, "share": "100%" } } })).unwrap()
    }

    #[tokio::test]
    async fn who_connects_late_is_told_at_once_and_every_change_has_a_newer_generation() {
        let hub = PolicyHub::default();
        assert_eq!(hub.set("a", vec![policy("one")]), Ok(1));
        let mut stream = hub.subscribe("a").unwrap();
        stream.changed().await.unwrap();
        let first = Arc::clone(&stream.borrow_and_update());
        assert_eq!((first.generation, first.policies.len()), (1, 1));
        assert_eq!(hub.set("a", vec![]), Ok(2));
        stream.changed().await.unwrap();
        assert_eq!(stream.borrow_and_update().policies, vec![]);
        hub.forget("a");
        assert!(stream.changed().await.is_err(), "the stream of a pod that is gone ends");
    }

    #[tokio::test]
    async fn a_generation_is_confirmed_only_by_the_sidecar_that_runs_now() {
        let hub = PolicyHub::default();
        let generation = hub.set("a", vec![policy("one")]).unwrap();
        let at = Instant::now();
        hub.confirm("a", generation, at);
        assert_eq!(hub.wait("a", generation, Duration::from_secs(1)).await, Ok(at));
        hub.sidecar_starts("a");
        let error = hub.wait("a", generation, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error, HubError::NotConfirmed { uid: "a".into(), generation, confirmed: 0, waited: Duration::from_millis(20) });
    }

    #[test]
    fn pods_are_bounded() {
        let hub = PolicyHub::default();
        for pod in 0..PODS_MAX {
            hub.set(&pod.to_string(), vec![]).unwrap();
        }
        assert_eq!(hub.set("one more", vec![]), Err(HubError::Full));
        hub.forget("0");
        assert_eq!(hub.set("one more", vec![]), Ok(1));
    }
}
