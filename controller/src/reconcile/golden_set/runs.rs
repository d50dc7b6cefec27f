//! Golden sets that a ResilienceTest has replayed for as long as it runs, in every pod of its target, whoever else has them replayed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use steadfast_api::{
    Percent, Span,
    policy::{GoldenAssignment, LabelSelector},
};
use steadfast_golden_sets::{GoldenSet, set::archive};
use tokio::sync::watch;

use crate::{
    golden,
    serve::{policy::PolicyHub, sets::SetStore},
};

/// One false alarm in ten million samples, as on one machine: none in a run of hours, and one in four months of a watch that asks every second.
const ALPHA: &str = "1e-7";

/// What one run wants.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub namespace: String,
    pub selector: LabelSelector,
    pub golden: Vec<GoldenAssignment>,
}

/// See the module.
pub struct Runs {
    hub: Arc<PolicyHub>,
    sets: Arc<SetStore>,
    by_owner: Mutex<BTreeMap<String, Run>>,
    /// Digests of sets that users of a run ask, in pods of their own.
    held: Mutex<BTreeMap<String, BTreeSet<String>>>,
    changed: watch::Sender<u64>,
}

impl Runs {
    pub fn new(hub: Arc<PolicyHub>, sets: Arc<SetStore>) -> Arc<Self> {
        Arc::new(Self { hub, sets, by_owner: Mutex::default(), held: Mutex::default(), changed: watch::Sender::new(0) })
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<String, Run>> {
        self.by_owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has these sets, each with how often, replayed in the pods of a namespace that `selector` matches, until what is returned is dropped.
    ///
    /// # Errors
    /// When a set cannot be held for the sidecars to fetch.
    pub fn begin<'a>(
        self: &Arc<Self>,
        run: &str,
        namespace: &str,
        selector: &LabelSelector,
        sets: impl Iterator<Item = (&'a str, &'a GoldenSet, Span)>,
    ) -> Result<Running, String> {
        let mut golden = Vec::new();
        let mut runs = self.runs();
        for (name, set, every) in sets {
            let digest = set.digest().to_string();
            let tar = archive::pack(set).map_err(|error| error.to_string())?;
            self.sets.insert(&digest, tar).map_err(|error| error.to_string())?;
            let detect = Percent::from_ratio(0.01);
            golden.push(GoldenAssignment { name: name.to_owned(), digest, every, share: Percent::HUNDRED, alpha: ALPHA.to_owned(), detect });
        }
        if !golden.is_empty() {
            runs.insert(owner(run), Run { namespace: namespace.to_owned(), selector: selector.clone(), golden });
        }
        drop(runs);
        self.changed.send_modify(|count| *count += 1);
        Ok(Running { runs: Arc::clone(self), owner: owner(run) })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds these sets for the run's users to fetch, until what is returned is dropped. What finds no room is not there to be fetched.
    pub fn hold<'a>(self: &Arc<Self>, run: &str, sets: impl Iterator<Item = &'a GoldenSet>) -> Held {
        let mut held = self.held();
        let digests = held.entry(run.to_owned()).or_default();
        for set in sets {
            let digest = set.digest().to_string();
            let stored =
                archive::pack(set).map_err(|error| error.to_string()).and_then(|tar| self.sets.insert(&digest, tar).map_err(|error| error.to_string()));
            match stored {
                Ok(()) => drop(digests.insert(digest)),
                Err(why) => tracing::warn!(why, "a golden set cannot be held for users to fetch"),
            }
        }
        Held { runs: Arc::clone(self), run: run.to_owned() }
    }

    /// Every run with what it wants, by owner.
    pub(super) fn all(&self) -> BTreeMap<String, Run> {
        self.runs().clone()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets all sets but these and those of runs.
    pub(super) fn keep_sets(&self, mut digests: BTreeSet<String>) {
        // A run that begins holds the lock until its sets are named by it.
        let (runs, held) = (self.runs(), self.held());
        digests.extend(held.values().flatten().cloned());
        digests.extend(runs.values().flat_map(|run| &run.golden).map(|golden| golden.digest.clone()));
        self.sets.retain(&digests);
    }
}

impl golden::Held for Runs {
    fn get(&self, digest: &str) -> Option<Bytes> {
        self.sets.get(digest)
    }
}

fn owner(run: &str) -> String {
    format!("run/{run}/golden")
}

/// Ends the replays of a run when it is dropped.
#[must_use]
pub struct Running {
    runs: Arc<Runs>,
    owner: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.runs.runs().remove(&self.owner);
        self.runs.hub.clear(&self.owner);
        self.runs.changed.send_modify(|count| *count += 1);
    }
}

/// Sets of a run's users are held until it is dropped.
#[must_use]
pub struct Held {
    runs: Arc<Runs>,
    run: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.runs.held().remove(&self.run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::server::Sidecars;

    #[test]
    fn a_runs_sets_are_held_and_assigned_until_it_ends() {
        let sidecars = Sidecars::new(PolicyHub::default());
        let runs = Runs::new(Arc::clone(&sidecars.hub), Arc::clone(&sidecars.sets));
        let set = steadfast_golden_sets::set::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets/digits")).unwrap();
        let digest = set.digest().to_string();
        let running = runs.begin("u1", "models", &LabelSelector::default(), [("digits", &set, Span::from_secs(1))].into_iter()).unwrap();
        let (owner, run) = runs.all().into_iter().next().unwrap();
        sidecars.hub.set_golden(&owner, "pod", run.golden).unwrap();
        runs.keep_sets(BTreeSet::new());
        assert!(sidecars.hub.replays("pod", &digest) && sidecars.sets.get(&digest).is_some());
        drop(running);
        let held = runs.hold("u1", std::iter::once(&set));
        runs.keep_sets(BTreeSet::new());
        assert!(sidecars.sets.get(&digest).is_some() && !sidecars.hub.replays("pod", &digest), "for users alone");
        drop(held);
        runs.keep_sets(BTreeSet::new());
        assert!(!sidecars.hub.replays("pod", &digest) && sidecars.sets.get(&digest).is_none() && runs.all().is_empty());
    }
}
