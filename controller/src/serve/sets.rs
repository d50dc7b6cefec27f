//! Golden sets as sidecars fetch them: one tar a digest, held in memory, all of them together within [`BYTES_MAX`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

/// All sets together.
pub const BYTES_MAX: usize = 256 << 20;

/// A set does not fit beside the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "golden set {digest} has {bytes} bytes and the controller holds {held} of at most {BYTES_MAX} already: take fewer samples, or delete GoldenSets that nobody needs"
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
