//! Users: an open loop of requests at a set rate, each answer checked. A request counts from the moment it was due, so a stall of the sender or of the
//! service shows in full (no coordinated omission).

mod connect;
pub mod generator;
pub mod pod;
mod users;
pub mod wire;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use steadfast_api::{policy::Origin, test::Load};
use steadfast_golden_sets::GoldenSet;
use tokio::sync::mpsc;

use self::generator::{Generator, LoadError};

/// One load of a run: its golden set, and what its samples are drawn with.
#[derive(Clone, Debug)]
pub struct Asked {
    pub load: Load,
    pub set: Arc<GoldenSet>,
    pub seed: u64,
}

/// Users at work in this process.
///
/// # Errors
/// When one of the loads cannot start.
pub fn here(target: SocketAddr, keep_alive: bool, asked: &[Asked], records: &mpsc::Sender<Record>) -> Result<Vec<Generator>, LoadError> {
    asked.iter().map(|asked| Generator::start(target, keep_alive, &asked.load, &asked.set, asked.seed, records.clone())).collect()
}

/// How one request ended.
#[derive(Clone, Debug)]
pub struct Record {
    pub due: Instant,
    pub sent: Instant,
    pub ended: Instant,
    /// Pod that the gateway chose; `None` when no pod was reached.
    pub pod: Option<Arc<str>>,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// 2xx from the model server. `right`: equal to the golden outputs within tolerance.
    Answered { right: bool },
    /// An error status, and whose doing it was. The gateway's own 502, 503 and 504 count as `proxy`.
    Error { status: u16, origin: Origin },
    /// No answer: time-out, no connection, connection lost, or not sent because `max_in_flight` was reached.
    Silence,
}
