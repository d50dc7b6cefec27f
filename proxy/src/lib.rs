//! The sidecar: stands in front of one model server, measures every request, injects faults where a policy is armed, replays golden inputs.
//!
//! ```text
//!              ┌─► relay: bytes as they are, measured in passing ──────────────┐
//!  clients ──► accept ─► stack: sanitize ─► measure ─► decide ─► inject ─► forward ──► model server      (one thread per core, SO_REUSEPORT)
//!                                               ▲                             ▲
//!  controller ─► control::connection ─► fault::armed ┘ (ArcSwap)   golden ─────────┘                          (a thread of its own)
//!  controller ◄─ control::report ◄─ evidence ◄─ measure::window, ready, golden, fault::armed             (the main thread, with admin)
//! ```
//!
//! It is a library so that the command line can start itself as a sidecar, and a small binary for containers. It never links kube, and works without
//! a controller: policies come from `PUT /policy` or `--policy` too. Traffic does not depend on anything but the model server.

pub mod accept;
pub mod admin;
pub mod body;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod drain;
pub mod fault;
pub mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub mod golden;
pub mod half_close;
pub mod hold;
pub mod hook;
pub mod measure;
pub mod problem;
pub mod ready;
pub mod relay;
mod run;
pub mod sanitize;
pub mod served;
pub mod stack;
mod unmap;
pub mod upstream;
pub mod worker;

pub use run::{RunError, run};
