//! Users in a pod of their own: the same open loop, whose records go to the controller by a connection that the pod dials.
//!
//! ```text
//!  Generator ── records ──▶ batches, numbered, ten a second ──▶ controller
//!  (bounded: what nobody takes is counted)  kept until they are acknowledged
//! ```
//!
//! If the connection is lost, users go on asking and what they saw is told on the next one. A pod that hears nothing of its controller for [`ALONE_FOR`] ends itself.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use steadfast_golden_sets::{GoldenSet, set::archive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Record,
    generator::{Generator, Sent},
    wire::{Batch, Begin, Down, Kernel, Lines, Row, Up, say},
};

/// How often the controller is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Records of one batch.
const ROWS_MAX: usize = 2_000;
/// Batches that were not acknowledged yet; more are not made, and their records wait.
const UNACKNOWLEDGED_MAX: usize = 100;
/// Records that wait to be told: a minute at a thousand a second.
const RECORDS_MAX: usize = 1 << 16;
const SAID_WITHIN: Duration = Duration::from_secs(5);
const FETCHED_WITHIN: Duration = Duration::from_secs(20);
/// Until the controller is heard for the first time: its Service may not be known on this node yet.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// Without its controller nobody wants what users do.
pub const ALONE_FOR: Duration = Duration::from_secs(20);
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotHeard {
    /// Its controller does not know this pod (any more).
    Unknown(String),
    /// It may be otherwise in a moment.
    NotNow(String),
}

/// Has users ask until the controller says that it is enough. `dial` opens a connection to it, `fetch` brings the tar of a golden set by its digest.
///
/// # Errors
/// When the controller is not there, knows nothing of this pod, or asks what cannot be done.
pub async fn ask<S, D, DF, F, FF>(dial: D, fetch: F) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Fn() -> DF,
    DF: Future<Output = Result<S, NotHeard>>,
    F: Fn(String) -> FF,
    FF: Future<Output = Result<Bytes, String>>,
{
    let mut users = Users::new();
    loop {
        let why = match dial().await {
            Ok(stream) => match users.talk(stream, &fetch).await {
                Ok(()) => return Ok(()),
                Err(Lost::Failed(why)) => return Err(why),
                Err(Lost::Connection(why)) => why,
            },
            // Another leads by now, and this one's run is over.
            Err(NotHeard::Unknown(why)) if users.at_work.is_some() => return Err(why),
            Err(NotHeard::Unknown(why) | NotHeard::NotNow(why)) => why,
        };
        let patience = if users.at_work.is_some() { ALONE_FOR } else { FOUND_WITHIN };
        if users.heard.elapsed() >= patience {
            return Err(format!("the controller was not heard for {patience:?}: {why}"));
        }
        tracing::info!(why, "no connection to the controller; tried again");
        sleep(AGAIN_AFTER).await;
    }
}

enum Lost {
    Connection(String),
    Failed(String),
}

impl From<String> for Lost {
    fn from(why: String) -> Self {
        Self::Connection(why)
    }
}

/// Loads that go on, or end.
enum AtWork {
    Asking(Vec<Generator>),
    Ending(JoinHandle<Vec<Sent>>),
    Ended(u64),
}

impl AtWork {
    fn dropped(&self) -> u64 {
        match self {
            Self::Asking(loads) => loads.iter().map(Generator::records_dropped).sum(),
            Self::Ending(_) => 0,
            Self::Ended(dropped) => *dropped,
        }
    }
}

struct Users {
    zero: Instant,
    at_work: Option<AtWork>,
    records: mpsc::Receiver<Record>,
    sink: Option<mpsc::Sender<Record>>,
    /// Not acknowledged yet.
    batches: VecDeque<Batch>,
    sequence: u64,
    ended: bool,
    /// The youngest acknowledgement, and when it was heard.
    acknowledged: Option<(u64, u64)>,
    /// When the controller was last heard.
    heard: Instant,
}

impl Users {
    fn new() -> Self {
        let (sink, records) = mpsc::channel(RECORDS_MAX);
        let now = Instant::now();
        let batches = VecDeque::new();
        Self { zero: now, at_work: None, records, sink: Some(sink), batches, sequence: 0, ended: false, acknowledged: None, heard: now }
    }

    fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.zero).as_nanos() as u64
    }

    /// Until everything is told.
    async fn talk<S, F, FF>(&mut self, stream: S, fetch: &F) -> Result<(), Lost>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        F: Fn(String) -> FF,
        FF: Future<Output = Result<Bytes, String>>,
    {
        let (from, mut to) = tokio::io::split(stream);
        let mut lines = Lines::new(from);
        let first = timeout(SAID_WITHIN, lines.next()).await.map_err(|_| "the controller said nothing".to_owned())??;
        let Down::Begin(begin) = first else { return Err(Lost::Connection("the controller did not say what to ask".to_owned())) };
        self.heard = Instant::now();
        if self.at_work.is_none()
            && let Err(why) = self.begin(&begin, fetch).await
        {
            let _ = timeout(SAID_WITHIN, say(&mut to, &Up::Failed(why.clone()))).await;
            return Err(Lost::Failed(why));
        }
        // Whatever was told before and not acknowledged is told again.
        let mut told = 0;
        let mut tick = interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.next() => match line? {
                    Down::Acknowledged(sequence) => {
                        self.heard = Instant::now();
                        self.acknowledged = Some((sequence, self.ns(self.heard)));
                        let before = self.batches.len();
                        self.batches.retain(|batch| batch.sequence > sequence);
                        told -= (before - self.batches.len()).min(told);
                        if self.ended && self.batches.is_empty() {
                            return Ok(());
                        }
                    }
                    Down::Stop => self.stop(),
                    Down::Begin(_) => {}
                },
                _ = tick.tick() => {
                    self.gather().await;
                    while let Some(batch) = self.batches.get_mut(told) {
                        // Of this attempt: the controller takes from it how long the line travelled.
                        batch.sent_ns = self.zero.elapsed().as_nanos() as u64;
                        batch.heard = self.acknowledged;
                        let line = Up::Batch(batch.clone());
                        timeout(SAID_WITHIN, say(&mut to, &line)).await.map_err(|_| format!("a batch was not taken within {SAID_WITHIN:?}"))??;
                        told += 1;
                    }
                }
            }
        }
    }

    async fn begin<F, FF>(&mut self, begin: &Begin, fetch: &F) -> Result<(), String>
    where
        F: Fn(String) -> FF,
        FF: Future<Output = Result<Bytes, String>>,
    {
        let mut sets: BTreeMap<&str, Arc<GoldenSet>> = BTreeMap::new();
        for wanted in &begin.loads {
            if sets.contains_key(wanted.digest.as_str()) {
                continue;
            }
            let of = |why: String| format!("golden set {}: {why}", wanted.digest);
            let tar = timeout(FETCHED_WITHIN, fetch(wanted.digest.clone())).await.map_err(|_| of(format!("did not come within {FETCHED_WITHIN:?}")))?;
            let set = archive::unpack(&tar.map_err(of)?).map_err(|error| of(error.to_string()))?;
            if set.digest().to_string() != wanted.digest {
                return Err(of(format!("another came, {}", set.digest())));
            }
            sets.insert(&wanted.digest, Arc::new(set));
        }
        let Some(sink) = self.sink.take() else { return Ok(()) };
        let start = |wanted: &super::wire::Wanted| {
            Generator::start(begin.target, begin.keep_alive, &wanted.load, &sets[wanted.digest.as_str()], wanted.seed, sink.clone())
                .map_err(|error| error.to_string())
        };
        self.at_work = Some(AtWork::Asking(begin.loads.iter().map(start).collect::<Result<_, _>>()?));
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(AtWork::Asking(loads)) = &mut self.at_work {
            let loads = std::mem::take(loads);
            let ending = tokio::spawn(async move {
                let mut all = Vec::new();
                // Each of them is told before the first is waited for.
                loads.iter().for_each(Generator::halt);
                for load in loads {
                    all.push(load.stop().await);
                }
                all
            });
            self.at_work = Some(AtWork::Ending(ending));
        }
    }

    /// Makes batches of what is there.
    async fn gather(&mut self) {
        if let Some(AtWork::Ending(ending)) = &mut self.at_work
            && ending.is_finished()
        {
            let dropped = ending.await.map(|sent| sent.iter().map(|sent| sent.records_dropped).sum()).unwrap_or_default();
            self.at_work = Some(AtWork::Ended(dropped));
        }
        while !self.ended && self.batches.len() < UNACKNOWLEDGED_MAX {
            let mut batch = Batch { dropped: self.at_work.as_ref().map_or(0, AtWork::dropped), ..Batch::default() };
            let mut names: HashMap<Arc<str>, u32> = HashMap::new();
            while batch.rows.len() < ROWS_MAX {
                match self.records.try_recv() {
                    Ok(record) => {
                        let number = record.pod.map(|pod| {
                            let next = names.len() as u32;
                            *names.entry(pod).or_insert_with_key(|pod| {
                                batch.pods.push(pod.to_string());
                                next
                            })
                        });
                        batch.rows.push(Row(self.ns(record.due), self.ns(record.sent), self.ns(record.ended), number, record.end.into()));
                    }
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        batch.ended = matches!(self.at_work, Some(AtWork::Ended(_)));
                        break;
                    }
                }
            }
            let more = batch.rows.len() == ROWS_MAX;
            self.sequence += 1;
            batch.sequence = self.sequence;
            batch.kernel = if self.sequence == 1 { Kernel::here(self.zero) } else { None };
            self.ended = batch.ended;
            self.batches.push_back(batch);
            if !more {
                break;
            }
        }
    }
}
