//! One load: an open loop of requests at a set rate.
//!
//! ```text
//!  pace ── due moments ──▶ send ── one task a request ──▶ records
//!  (thread, sleeps)        (thread, current-thread runtime; compares each answer with the golden one)
//! ```
//!
//! The request number n is due at `start + n ÷ rate`, whatever became of the ones before it, and everything is counted from there: a sender that comes
//! late, a full connection pool and a slow service all show as latency. The pace has a thread of its own because a runtime's timer wakes up to a
//! millisecond late, which every request would carry as latency; a sleeping thread wakes within some 60 µs and, unlike spinning, takes no CPU from
//! the pods. Comparing an answer takes some ten microseconds after its end has been noted, so it delays at most the requests that end at the same moment.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use steadfast_api::test::Load;
use steadfast_golden_sets::GoldenSet;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{
    End, Record,
    users::{Refused, Users},
};
use crate::runtime::OwnThread;

/// Due requests that the sender has not taken up yet, at least; a sender this far behind counts them as not sent.
const BACKLOG_MIN: usize = 1024;
/// The pace looks up at least this often, so that it ends soon after it is told.
const NAP_MAX: Duration = Duration::from_millis(200);

/// A running load. Dropping it stops it without waiting for the requests under way.
#[derive(Debug)]
pub struct Generator {
    shared: Arc<Shared>,
    pace: thread::Thread,
    ended: oneshot::Receiver<()>,
    _sender: OwnThread,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    due: AtomicU64,
    records_dropped: AtomicU64,
}

/// What a load did, once it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Requests that were due. Each made one record.
    pub due: u64,
    /// Records that nobody took: the receiver fell behind by the whole bound of its channel, or was gone.
    pub records_dropped: u64,
}

/// A load could not start.
#[derive(Debug, thiserror::Error)]
#[error("load {load:?}: {why}")]
pub struct LoadError {
    pub load: String,
    pub why: String,
}

impl LoadError {
    fn new(load: &Load, why: &dyn ToString) -> Self {
        Self { load: load.name.clone(), why: why.to_string() }
    }
}

/// Where records go. Never waits.
#[derive(Clone)]
struct Sink {
    records: mpsc::Sender<Record>,
    shared: Arc<Shared>,
}

impl Sink {
    fn put(&self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.shared.records_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn not_sent(&self, due: Instant) {
        let now = Instant::now();
        self.put(Record { due, sent: now, ended: now, pod: None, end: End::Silence });
    }
}

impl Generator {
    /// Starts sending samples of `set` to `target`, the gateway or Service; without `keep_alive` each on a connection of its own. Every due request makes exactly one [`Record`].
    pub fn start(target: SocketAddr, keep_alive: bool, load: &Load, set: &Arc<GoldenSet>, seed: u64, records: mpsc::Sender<Record>) -> Result<Self, LoadError> {
        let users = Users::new(target, keep_alive, load, set).map_err(|refused: Refused| LoadError::new(load, &refused))?;
        let shared = Arc::new(Shared::default());
        let sink = Sink { records, shared: Arc::clone(&shared) };
        let sender = OwnThread::start("users").map_err(|error| LoadError::new(load, &error))?;
        let max_in_flight = load.max_in_flight as usize;
        let (pace, due) = mpsc::channel(max_in_flight.max(BACKLOG_MIN));
        let (end, ended) = oneshot::channel();
        let (timeout, interval) = (load.timeout.get(), load.rate.interval());
        sender.handle().spawn({
            let sink = sink.clone();
            async move {
                send(due, users, sink, max_in_flight, timeout, seed).await;
                // Nobody may be waiting any more.
                let _ = end.send(());
            }
        });
        let pace = thread::Builder::new().name("pace".into()).spawn(move || keep_pace(interval, &pace, &sink)).map_err(|error| LoadError::new(load, &error))?;
        Ok(Self { shared, pace: pace.thread().clone(), ended, _sender: sender })
    }

    /// Records dropped so far.
    pub fn records_dropped(&self) -> u64 {
        self.shared.records_dropped.load(Ordering::Relaxed)
    }

    /// Sends no more and returns once every request under way has ended, which takes at most the load's timeout.
    pub async fn stop(mut self) -> Sent {
        self.halt();
        // An error says that the sender is gone, so nothing is under way.
        let _ = (&mut self.ended).await;
        Sent { due: self.shared.due.load(Ordering::Relaxed), records_dropped: self.records_dropped() }
    }

    /// Sends no more.
    pub fn halt(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.pace.unpark();
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.halt();
    }
}

fn keep_pace(interval: Duration, pace: &mpsc::Sender<Instant>, sink: &Sink) {
    // The kernel may add 50 µs to a sleep to save power; that would be 50 µs of everybody's latency. Refused, it stays as it is.
    let _ = nix::sys::prctl::set_timerslack(1);
    let start = Instant::now();
    for number in 0_u64.. {
        let due = start + Duration::from_secs_f64(interval.as_secs_f64() * number as f64);
        loop {
            if sink.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left.min(NAP_MAX));
        }
        sink.shared.due.fetch_add(1, Ordering::Relaxed);
        match pace.try_send(due) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(due)) => sink.not_sent(due),
            // The sender is gone; so is whoever asked for the load.
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

async fn send(mut pace: mpsc::Receiver<Instant>, users: Users, sink: Sink, max_in_flight: usize, timeout: Duration, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let users = Arc::new(users);
    let mut under_way = JoinSet::new();
    loop {
        let due = tokio::select! {
            // Ended requests first: they make room for the next.
            biased;
            Some(_) = under_way.join_next() => continue,
            due = pace.recv() => due,
        };
        let Some(due) = due else { break };
        if under_way.len() >= max_in_flight {
            sink.not_sent(due);
            continue;
        }
        let sample = random.random_range(0..users.samples());
        let (users, sink) = (Arc::clone(&users), sink.clone());
        under_way.spawn(async move {
            let sent = Instant::now();
            // The user's patience counts from when the request was due.
            let (ended, pod, end) = match tokio::time::timeout_at((due + timeout).into(), users.ask(sample)).await {
                Ok(Some(answer)) => (answer.ended, answer.pod, answer.end),
                Ok(None) | Err(_) => (Instant::now(), None, End::Silence),
            };
            sink.put(Record { due, sent, ended, pod, end });
        });
    }
    while under_way.join_next().await.is_some() {}
}

#[cfg(test)]
#[path = "generator_tests.rs"]
mod tests;
