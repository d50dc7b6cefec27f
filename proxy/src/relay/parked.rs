//! Connections to the model server whose clients have left between two messages: the next client without one gets one of these, which is what makes a new
//! connection per request cheap.
//!
//! Invariants: parked is only what was left clean (the last exchange understood to its end on both sides, nothing unasked behind it); not used again after
//! [`IDLE_NS_MAX`], as in the pool; looked at right before it is used.

use std::{cell::RefCell, os::fd::AsRawFd};

use crate::{clock, forward::pool::IDLE_NS_MAX, upstream::Dialled};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

/// Connections kept on one thread for one route.
const PARKED_MAX: usize = 256;

/// Most recently used last.
#[derive(Default)]
pub struct Parked(RefCell<Vec<(Dialled, u64)>>);

impl Parked {
    pub fn put(&self, stream: Dialled) {
        let mut parked = self.0.borrow_mut();
        if parked.len() < PARKED_MAX {
            parked.push((stream, clock::now_ns()));
        }
    }

    /// One that is still good.
    pub fn take(&self) -> Option<Dialled> {
        let now = clock::now_ns();
        let mut parked = self.0.borrow_mut();
        while let Some((stream, since)) = parked.pop() {
            if now - since < IDLE_NS_MAX && is_quiet(&stream) {
                return Some(stream);
            }
        }
        None
    }

    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// Drops what is too old. Call it now and then.
    pub fn sweep(&self) {
        let now = clock::now_ns();
        self.0.borrow_mut().retain(|(_, since)| now - since < IDLE_NS_MAX);
    }
}

/// Neither closed nor has it said anything unasked.
fn is_quiet(stream: &Dialled) -> bool {
    let peeked = recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
    peeked == Err(Errno::EAGAIN)
}
