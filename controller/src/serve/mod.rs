//! The controller's side of the sidecars' connection: policies down, evidence up. Words and addresses are in `steadfast_api::sidecar`.

pub(crate) mod answer;
pub mod auth;
mod clock;
mod connection;
pub mod handed;
pub mod ingest;
pub mod policy;
pub mod server;
pub mod sets;
pub mod users;

use std::time::Instant;

use steadfast_api::sidecar::{PodIdentity, What};

/// Evidence of a sidecar, placed on this process's clock.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub pod: PodIdentity,
    pub what: What,
}
