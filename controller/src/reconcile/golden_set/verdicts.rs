//! What sidecars said last of each golden set, by pod; and what that makes of the service.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use steadfast_api::{golden::Verdict, policy::GOLDEN_SETS_MAX, sidecar::What};
use tokio::{sync::watch, task::AbortHandle};

use crate::serve::{
    ingest::{Evidence, Ingest},
    policy::PODS_MAX,
};

/// Verdicts that wait to be read; each is some hundred bytes.
const WAITING_MAX: usize = 65_536;
/// Sets of one pod: as many as it takes, and as many again that it was told to leave off.
const SETS_MAX: usize = 2 * GOLDEN_SETS_MAX;

/// What a sidecar said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub verdict: Verdict,
    pub samples: u64,
    pub mismatches: u64,
}

/// By UID, then by name and digest of the set.
type Known = HashMap<String, HashMap<(String, String), Said>>;

/// See the module. Dropping it ends the reading.
pub struct Verdicts {
    known: Arc<Mutex<Known>>,
    changed: watch::Receiver<u64>,
    task: AbortHandle,
}

impl Verdicts {
    /// Reads what comes in from now on.
    pub fn follow(ingest: &Ingest) -> Self {
        let evidence = ingest.subscribe(WAITING_MAX, |_, what| matches!(what, What::GoldenVerdict { digest: Some(_), .. }));
        let known = Arc::<Mutex<Known>>::default();
        let (change, changed) = watch::channel(0);
        let task = tokio::spawn(read(evidence, Arc::clone(&known), change)).abort_handle();
        Self { known, changed, task }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when some verdict is another.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    pub fn of(&self, uid: &str, set: &str, digest: &str) -> Option<Said> {
        self.known().get(uid)?.get(&(set.to_owned(), digest.to_owned())).copied()
    }

    /// Forgets all pods but these.
    pub fn retain(&self, uids: &HashSet<&str>) {
        self.known().retain(|uid, _| uids.contains(uid.as_str()));
    }
}

impl Drop for Verdicts {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(mut evidence: Evidence, known: Arc<Mutex<Known>>, change: watch::Sender<u64>) {
    while let Some(seen) = evidence.next().await {
        if let What::GoldenVerdict { set, digest: Some(digest), verdict, samples, mismatches } = seen.what {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if learn(&mut known, seen.pod.uid, (set, digest), Said { verdict, samples, mismatches }) {
                change.send_modify(|count| *count += 1);
            }
        }
    }
}

/// Whether the verdict is another than before.
fn learn(known: &mut Known, uid: String, set: (String, String), said: Said) -> bool {
    if known.len() >= PODS_MAX && !known.contains_key(&uid) {
        tracing::warn!(uid, "too many pods have verdicts; this one's is not kept");
        return false;
    }
    let sets = known.entry(uid).or_default();
    if sets.len() >= SETS_MAX && !sets.contains_key(&set) {
        // Some are of sets that were assigned once; those that are assigned now say so again with the next sample.
        sets.clear();
    }
    sets.insert(set, said).is_none_or(|before| before.verdict != said.verdict)
}

/// The service's verdict: the worst of its pods', and Pass only when every one of them passes. `None` of a pod: it has not said anything.
pub fn of_service(pods: impl Iterator<Item = Option<Verdict>>) -> Option<Verdict> {
    let badness = |verdict: Verdict| match verdict {
        Verdict::Pass => 0,
        Verdict::Inconclusive => 1,
        Verdict::ReferenceBroken => 2,
        Verdict::Fail => 3,
    };
    pods.map(|verdict| verdict.unwrap_or(Verdict::Inconclusive)).max_by_key(|verdict| badness(*verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_as_bad_as_its_worst_pod_and_right_when_all_are() {
        use Verdict::{Fail, Inconclusive, Pass, ReferenceBroken};
        let of = |verdicts: &[Option<Verdict>]| of_service(verdicts.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[Some(Pass), Some(Pass)]), Some(Pass));
        assert_eq!(of(&[Some(Pass), None]), Some(Inconclusive));
        assert_eq!(of(&[Some(Pass), Some(Inconclusive), Some(ReferenceBroken)]), Some(ReferenceBroken));
        assert_eq!(of(&[Some(ReferenceBroken), Some(Fail)]), Some(Fail));
    }

    #[test]
    fn counts_are_kept_and_only_verdicts_are_news() {
        let mut known = Known::new();
        let set = || ("digits".to_owned(), "sha256:1".to_owned());
        let said = |verdict, samples| Said { verdict, samples, mismatches: 0 };
        assert!(learn(&mut known, "a".into(), set(), said(Verdict::Inconclusive, 1)));
        assert!(!learn(&mut known, "a".into(), set(), said(Verdict::Inconclusive, 2)));
        assert!(learn(&mut known, "a".into(), set(), said(Verdict::Pass, 728)));
        for number in 0..2 * SETS_MAX {
            learn(&mut known, "a".into(), (number.to_string(), String::new()), said(Verdict::Pass, 1));
        }
        assert!(known["a"].len() <= SETS_MAX);
    }
}
