//! The last faults that took place, for people who want to see what happened: `/policy` shows them.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use steadfast_api::FaultKind;

/// Faults that are remembered.
pub const REMEMBERED: usize = 100;
/// Bytes of a path that are.
const PATH_MAX: usize = 200;

/// What was asked that a fault fell on. Queries are left out: secrets stand in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// `None`: the sidecar itself.
    pub client: Option<IpAddr>,
    /// Method and path; empty for a connection that nobody has asked by.
    pub method: String,
    pub path: String,
}

impl About {
    pub fn new(client: Option<IpAddr>, method: &http::Method, path: &str) -> Self {
        let end = (0..=path.len().min(PATH_MAX)).rev().find(|end| path.is_char_boundary(*end)).unwrap_or(0);
        Self { client, method: method.to_string(), path: path[..end].to_owned() }
    }
}

/// A fault that took place.
#[derive(Clone, Debug)]
pub struct Injection {
    /// Rises by one with every fault, from 1, so that who looks again knows what it has missed.
    pub number: u64,
    /// On [`crate::clock`].
    pub at_ns: u64,
    /// The policy's name, or `header`.
    pub by: Arc<str>,
    pub kind: FaultKind,
    pub about: Arc<About>,
}

/// The last [`REMEMBERED`] of them, over all threads.
#[derive(Debug, Default)]
pub struct Ring(Mutex<(u64, VecDeque<Injection>)>);

impl Ring {
    pub fn push(&self, at_ns: u64, by: Arc<str>, kind: FaultKind, about: Arc<About>) {
        let (number, ring) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *number += 1;
        if ring.len() == REMEMBERED {
            ring.pop_front();
        }
        ring.push_back(Injection { number: *number, at_ns, by, kind, about });
    }

    /// The newest last.
    pub fn all(&self) -> Vec<Injection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_remembered_and_no_path_is_long() {
        let ring = Ring::default();
        for at_ns in 0..250 {
            ring.push(at_ns, "p".into(), FaultKind::Delay, Arc::default());
        }
        let all = ring.all();
        assert_eq!((all.len(), all[0].at_ns, all[99].at_ns, all[99].number), (100, 150, 249, 250));
        let about = About::new(None, &http::Method::GET, &"é".repeat(300));
        assert_eq!(about.path, "é".repeat(100));
    }
}
