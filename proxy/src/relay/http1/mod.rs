//! HTTP/1 on the relay: heads and chunks are read along, so that the end of every message is known.

mod chunked;
mod connection;
pub mod head;

pub use connection::{opaque, relay};
