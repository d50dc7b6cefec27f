//! HTTP/1 on the relay: heads and chunks are read along, so that the end of every message is known.

mod chunked;
mod connection;
mod guarded;
pub mod head;

pub use connection::{opaque, relay, too_slow};
pub use guarded::Guarded;
