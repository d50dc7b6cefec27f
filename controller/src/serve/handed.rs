//! What reader pods bring: each is awaited by its UID, brings one golden set as a tar or says why it cannot, and is heard once.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;

/// Readers at once, on the whole cluster.
pub const READERS_MAX: usize = 32;
/// Of these so many speak at once: each may bring [`GOLDEN_BYTES_MAX`](steadfast_api::policy::GOLDEN_BYTES_MAX).
pub(super) const SPEAKERS_MAX: usize = 3;

/// A tar, or the reader's words.
pub type Brought = Result<Bytes, String>;

#[derive(Debug)]
enum Place {
    Awaited,
    Coming,
    There(Brought),
}

/// Why a pod is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHeard {
    /// Nobody waits for it.
    Stranger,
    /// It speaks already, or has spoken.
    Twice,
    /// Others speak; its turn comes.
    Busy,
}

/// See the module.
#[derive(Debug)]
pub struct Handed {
    places: Mutex<HashMap<String, Place>>,
    changed: watch::Sender<u64>,
}

impl Default for Handed {
    fn default() -> Self {
        Self { places: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Handed {
    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the pod with this UID until it is forgotten.
    pub fn expect(&self, uid: &str) {
        self.places().insert(uid.to_owned(), Place::Awaited);
    }

    pub fn has_room(&self) -> bool {
        self.places().len() < READERS_MAX
    }

    /// What it brought, once.
    pub fn take(&self, uid: &str) -> Option<Brought> {
        let mut places = self.places();
        match places.remove(uid)? {
            Place::There(brought) => Some(brought),
            other => {
                places.insert(uid.to_owned(), other);
                None
            }
        }
    }

    pub fn forget(&self, uid: &str) {
        self.places().remove(uid);
    }

    /// Somebody brought something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Lets it speak; nobody else speaks for it until what is returned is dropped.
    pub(super) fn hear(&self, uid: &str) -> Result<Coming<'_>, NotHeard> {
        let mut places = self.places();
        let speakers = places.values().filter(|place| !matches!(place, Place::Awaited)).count();
        match places.get_mut(uid) {
            None => Err(NotHeard::Stranger),
            Some(Place::Awaited) if speakers >= SPEAKERS_MAX => Err(NotHeard::Busy),
            Some(place @ Place::Awaited) => {
                *place = Place::Coming;
                Ok(Coming { handed: self, uid: uid.to_owned() })
            }
            Some(_) => Err(NotHeard::Twice),
        }
    }
}

/// A pod that speaks. Dropped before it has ended, it may begin anew.
pub(super) struct Coming<'a> {
    handed: &'a Handed,
    uid: String,
}

impl Coming<'_> {
    pub(super) fn brought(self, brought: Brought) {
        if let Some(place) = self.handed.places().get_mut(&self.uid) {
            *place = Place::There(brought);
        }
        self.handed.changed.send_modify(|count| *count += 1);
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if let Some(place @ Place::Coming) = self.handed.places().get_mut(&self.uid) {
            *place = Place::Awaited;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_heard_once_and_strangers_never() {
        let handed = Handed::default();
        assert_eq!(handed.hear("u").err(), Some(NotHeard::Stranger));
        handed.expect("u");
        let coming = handed.hear("u").unwrap();
        assert_eq!(handed.hear("u").err(), Some(NotHeard::Twice));
        drop(coming);
        handed.hear("u").unwrap().brought(Ok(Bytes::from_static(b"tar")));
        assert_eq!(handed.hear("u").err(), Some(NotHeard::Twice), "a second set does not replace the first");
        assert_eq!(handed.take("u"), Some(Ok(Bytes::from_static(b"tar"))));
        assert_eq!((handed.take("u"), handed.hear("u").err()), (None, Some(NotHeard::Stranger)));
        for number in 0..READERS_MAX {
            assert!(handed.has_room());
            handed.expect(&number.to_string());
        }
        assert!(!handed.has_room());
        let speakers: Vec<_> = (1..=SPEAKERS_MAX).map(|number| handed.hear(&number.to_string()).unwrap()).collect();
        assert_eq!(handed.hear("0").err(), Some(NotHeard::Busy));
        drop(speakers);
        // One that is forgotten while it speaks leaves nothing.
        let coming = handed.hear("0").unwrap();
        handed.forget("0");
        coming.brought(Err(String::new()));
        assert!(handed.has_room() && handed.take("0").is_none());
    }
}
