//! Golden sets as sidecars fetch them: one tar a digest, held in memory, all of them together within [`BYTES_MAX`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use steadfast_api::policy::GOLDEN_BYTES_MAX;

use super::handed::SPEAKERS_MAX;

/// All sets together, wherever they were read from.
pub const BYTES_MAX: usize = 128 << 20;
/// What the chart lets the controller have (`resources.limits.memory`).
const MEMORY: usize = 512 << 20;
/// Without golden sets: 10,000 sidecars at one report a second (benches/README.md).
const WITHOUT_SETS: usize = 140 << 20;
// The sets that sidecars fetch; the same once more, read, for runs and watches that compare answers with them (each set once, however many want it); and those
// that readers bring at this moment.
const _: () = assert!(WITHOUT_SETS + 2 * BYTES_MAX + SPEAKERS_MAX * GOLDEN_BYTES_MAX <= MEMORY);

/// A set does not fit beside the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "golden set {digest} has {bytes} bytes and the controller holds {held} of at most {BYTES_MAX} already: take fewer samples, or delete a GoldenSet that \
     nobody needs"
)]
pub struct NoRoom {
    pub digest: String,
    pub bytes: usize,
    pub held: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct SetStore {
    tars: Mutex<HashMap<String, Bytes>>,
}

impl SetStore {
    fn tars(&self) -> MutexGuard<'_, HashMap<String, Bytes>> {
        self.tars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the tar of the set with this digest; the caller has verified it.
    pub fn insert(&self, digest: &str, tar: Bytes) -> Result<(), NoRoom> {
        let mut tars = self.tars();
        if tars.contains_key(digest) {
            return Ok(());
        }
        let held = tars.values().map(Bytes::len).sum::<usize>();
        if held + tar.len() > BYTES_MAX {
            return Err(NoRoom { digest: digest.to_owned(), bytes: tar.len(), held });
        }
        tars.insert(digest.to_owned(), tar);
        Ok(())
    }

    pub fn get(&self, digest: &str) -> Option<Bytes> {
        self.tars().get(digest).cloned()
    }

    /// Forgets all sets but these.
    pub fn retain(&self, digests: &BTreeSet<String>) {
        self.tars().retain(|digest, _| digests.contains(digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_gives_as_much_memory_as_is_reckoned_with() {
        let values = include_str!("../../../deploy/chart/values.yaml");
        let limits: Vec<&str> = values.lines().filter(|line| line.contains("limits: {memory: ")).collect();
        assert!(limits.iter().any(|line| line.contains(&format!("limits: {{memory: {}Mi}}", MEMORY >> 20))), "{limits:?}");
    }

    #[test]
    fn sets_are_bounded_together_and_forgotten_when_nobody_wants_them() {
        let store = SetStore::default();
        let tar = Bytes::from(vec![0; BYTES_MAX / 2 + 1]);
        store.insert("a", tar.clone()).unwrap();
        store.insert("a", tar.clone()).unwrap();
        assert_eq!(store.insert("b", tar.clone()).unwrap_err().held, tar.len());
        store.retain(&BTreeSet::new());
        assert_eq!((store.get("a"), store.insert("b", tar)), (None, Ok(())));
    }
}
