//! Pods of users: each is awaited by its UID, told what to ask, and heard for as long as its run wants it. What it tells is placed on this process's clock.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time::timeout,
};

use super::clock::TwoWays;
use crate::load::{
    Record,
    wire::{Batch, Begin, Down, Kernel, Lines, Up, say},
};

/// Pods of users at once: one a run, and there are so many watches at most.
pub const USERS_MAX: usize = 128;
/// A pod tells ten times a second.
const SILENT_FOR: Duration = Duration::from_secs(5);
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// Acknowledgements whose moment is remembered: what a pod says of one comes with its next batch.
const REMEMBERED: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Awaited {
    places: Mutex<HashMap<String, Arc<Place>>>,
    /// Names of pods that a run has, from before they are written down until they are struck out.
    names: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// When it was heard last.
    pub last: Option<Instant>,
    /// Everything is told.
    pub ended: bool,
    /// Why it cannot do what it was asked.
    pub failed: Option<String>,
    /// Requests in no record: the pod or this process could not take them fast enough.
    pub dropped: u64,
    /// How far from the truth its moments are at most, of late.
    pub uncertain: Option<Duration>,
    /// How far they are, where pod and controller share a kernel.
    pub apart_ns: Option<i64>,
}

#[derive(Debug)]
struct Place {
    begin: Begin,
    records: mpsc::Sender<Record>,
    heard: watch::Sender<Heard>,
    stop: watch::Sender<bool>,
    /// Which of its connections is its own: with the newest it is heard.
    turn: watch::Sender<u64>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    sequence: u64,
    clock: TwoWays,
    acknowledged: VecDeque<(u64, Instant)>,
    refused: u64,
    kernel: Option<Kernel>,
}

/// A pod that is awaited, until it is dropped.
#[derive(Debug)]
pub struct Expected {
    awaited: Arc<Awaited>,
    uid: String,
    place: Arc<Place>,
}

/// A pod's name is in use, until it is dropped.
#[derive(Debug)]
pub struct Name {
    awaited: Arc<Awaited>,
    pub name: String,
}

impl Awaited {
    /// Nobody takes this pod for one that was left behind.
    ///
    /// # Errors
    /// When there are too many.
    pub fn name(self: &Arc<Self>, name: String) -> Result<Name, String> {
        let mut names = lock(&self.names);
        if names.len() >= USERS_MAX {
            return Err(format!("{USERS_MAX} pods of users are there already"));
        }
        names.insert(name.clone());
        Ok(Name { awaited: Arc::clone(self), name })
    }

    pub fn uses(&self, name: &str) -> bool {
        lock(&self.names).contains(name)
    }

    /// Waits for the pod with this UID: it is told to `begin`, and what it tells goes to `records`.
    pub fn expect(self: &Arc<Self>, uid: &str, begin: Begin, records: mpsc::Sender<Record>) -> Expected {
        let place = Arc::new(Place {
            begin,
            records,
            heard: watch::Sender::default(),
            stop: watch::Sender::new(false),
            turn: watch::Sender::new(0),
            taken: Mutex::default(),
        });
        lock(&self.places).insert(uid.to_owned(), Arc::clone(&place));
        Expected { awaited: Arc::clone(self), uid: uid.to_owned(), place }
    }

    /// Whether this pod asks samples of the golden set with this digest.
    pub(super) fn asks(&self, uid: &str, digest: &str) -> bool {
        lock(&self.places).get(uid).is_some_and(|place| place.begin.loads.iter().any(|wanted| wanted.digest == digest))
    }

    /// Lets it speak. `None`: nobody waits for it.
    pub(super) fn hear(&self, uid: &str) -> Option<Connection> {
        let place = Arc::clone(lock(&self.places).get(uid)?);
        Some(Connection { place })
    }
}

impl Expected {
    pub fn heard(&self) -> watch::Receiver<Heard> {
        self.place.heard.subscribe()
    }

    /// Nobody asks any more; [`Heard::ended`] says when what was under way is on record.
    pub fn stop(&self) {
        self.place.stop.send_replace(true);
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.awaited.places).remove(&self.uid);
        // Nobody's turn: its connections end.
        self.place.turn.send_modify(|turn| *turn += 1);
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        lock(&self.awaited.names).remove(&self.name);
    }
}

/// One connection of an awaited pod.
pub(super) struct Connection {
    place: Arc<Place>,
}

impl Connection {
    /// Until either side ends it.
    pub(super) async fn live(self, stream: impl AsyncRead + AsyncWrite) {
        let why = self.talk(stream).await;
        tracing::debug!(why, "a connection of users ended");
    }

    async fn talk(&self, stream: impl AsyncRead + AsyncWrite) -> String {
        let place = &self.place;
        let mut own = 0;
        place.turn.send_modify(|turn| {
            *turn += 1;
            own = *turn;
        });
        let (mut turn, mut stop) = (place.turn.subscribe(), place.stop.subscribe());
        let (from, to) = tokio::io::split(stream);
        let (mut to, mut lines) = (std::pin::pin!(to), Lines::new(Box::pin(from)));
        let late = |_| "it takes nothing".to_owned();
        let mut downs = vec![Down::Begin(Box::new(place.begin.clone()))];
        if *stop.borrow_and_update() {
            downs.push(Down::Stop);
        }
        loop {
            for down in downs.drain(..) {
                if let Down::Acknowledged(sequence) = down {
                    place.acknowledges(sequence, Instant::now());
                }
                match timeout(WRITTEN_WITHIN, say(&mut to, &down)).await.map_err(late) {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) | Err(why) => return why,
                }
            }
            tokio::select! {
                biased;
                _ = turn.wait_for(|turn| *turn != own) => return "another took its place, or nobody waits for it any more".to_owned(),
                _ = stop.changed() => downs.push(Down::Stop),
                line = timeout(SILENT_FOR, lines.next()) => match line {
                    Ok(Ok(Up::Batch(batch))) => {
                        let sequence = batch.sequence;
                        place.take(Instant::now(), batch);
                        downs.push(Down::Acknowledged(sequence));
                    }
                    Ok(Ok(Up::Failed(why))) => {
                        place.heard.send_modify(|heard| heard.failed = Some(why.clone()));
                        return why;
                    }
                    Ok(Err(why)) => return why,
                    Err(_) => return format!("it was silent for {SILENT_FOR:?}"),
                },
            }
        }
    }
}

impl Place {
    fn acknowledges(&self, sequence: u64, at: Instant) {
        let mut taken = lock(&self.taken);
        taken.acknowledged.push_back((sequence, at));
        if taken.acknowledged.len() > REMEMBERED {
            taken.acknowledged.pop_front();
        }
    }

    /// Puts on record what came at `received`, once.
    fn take(&self, received: Instant, batch: Batch) {
        let mut taken = lock(&self.taken);
        taken.clock.came(received, Duration::from_nanos(batch.sent_ns));
        if let Some((sequence, heard_ns)) = batch.heard
            // The youngest: the same may have been acknowledged on an earlier connection.
            && let Some((_, at)) = taken.acknowledged.iter().rev().find(|(acknowledged, _)| *acknowledged == sequence).copied()
        {
            taken.clock.went(at, Duration::from_nanos(heard_ns));
        }
        let Some((zero, uncertain)) = taken.clock.zero() else { return };
        if batch.kernel.is_some() {
            taken.kernel.clone_from(&batch.kernel);
        }
        if batch.sequence > taken.sequence {
            taken.sequence = batch.sequence;
            let names: Vec<Arc<str>> = batch.pods.iter().map(|name| Arc::from(name.as_str())).collect();
            for row in batch.rows {
                let at = |ns: u64| zero.checked_add(Duration::from_nanos(ns)).unwrap_or(received);
                // Nothing has ended that is still to come; how long it took stays what it was.
                let ahead = at(row.2).saturating_duration_since(received);
                let at = |ns: u64| at(ns).checked_sub(ahead).unwrap_or(received);
                let pod = row.3.and_then(|number| names.get(number as usize).cloned());
                let record = Record { due: at(row.0), sent: at(row.1), ended: at(row.2), pod, end: row.4.into() };
                if self.records.try_send(record).is_err() {
                    taken.refused += 1;
                }
            }
        }
        let apart_ns = taken.kernel.as_ref().and_then(|kernel| {
            let here = Kernel::here(zero).filter(|here| here.boot == kernel.boot)?;
            Some(here.zero_ns as i64 - kernel.zero_ns as i64)
        });
        let heard = Heard { last: Some(received), ended: batch.ended, failed: None, dropped: batch.dropped + taken.refused, uncertain, apart_ns };
        drop(taken);
        self.heard.send_replace(heard);
    }
}

#[cfg(test)]
#[path = "users_tests.rs"]
mod tests;
