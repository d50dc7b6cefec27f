//! How a client is asked to come by another connection. See the room's documentation for the order of it.

use std::time::Duration;

use super::Connection;
use crate::relay::http2::frame::{self, code};

/// Ours among PINGs.
pub(super) const PING: [u8; 8] = *b"steadfst";
/// A client that has not answered PING by then speaks no HTTP/2: it is refused more streams as if it had.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// A client that goes on beginning streams has at least so long.
const SOON: Duration = Duration::from_secs(1);
/// A client that has heard has begun nothing new for so long before it is taken at its word.
const QUIET: Duration = Duration::from_millis(100);

/// How far the client has been told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Going {
    Stays,
    /// GOAWAY is on its way.
    Told,
    /// It has answered the PING behind it. Streams that it had begun before may stand in its own queue behind that answer, so they are still relayed.
    Heard,
    /// Streams from now on are refused.
    Refused,
}

impl Connection<'_> {
    /// Announces the end, once, and not before the server has begun.
    pub(super) fn tell_to_go(&mut self) {
        if self.going == Going::Stays && self.first.is_none() && !self.opaque && !self.closing {
            self.going = Going::Told;
            self.inject.extend(frame::go_soon());
            self.inject.extend(frame::ping(PING));
            self.deadline.set_after(ANSWERS_WITHIN);
            // Who goes on asking by this connection has heard and does not heed.
            self.go_by.set_after(self.worker.shared.config.drain_timeout.max(SOON));
            self.worker.meter.metrics.moved.with_label_values(&["stack"]).inc();
        }
    }

    /// The client knows that it is to go.
    pub(super) fn heard(&mut self) {
        self.going = Going::Heard;
        self.begin_quiet();
    }

    pub(super) fn begin_quiet(&mut self) {
        self.deadline.set_after(QUIET);
    }

    /// Time is up for what was waited for.
    pub(super) fn time_is_up(&mut self) {
        if self.going == Going::Heard && !self.streams.is_empty() {
            // They may take as long as they like; the last of them begins the wait anew.
            return;
        }
        if matches!(self.going, Going::Told | Going::Heard) {
            self.refuse();
        }
    }

    /// It was told long ago, and still begins streams: they are refused, and those that are open go on to their end.
    pub(super) fn has_not_gone(&mut self) {
        if matches!(self.going, Going::Told | Going::Heard) {
            self.worker.meter.exceeded("http2-going");
            self.refuse();
        }
    }

    fn refuse(&mut self) {
        self.going = Going::Refused;
        self.inject.extend(frame::go_away(self.last, code::NO_ERROR));
    }
}
