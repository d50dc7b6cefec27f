//! How much a client may do that asks for nothing. HTTP/2 has frames that cost their reader more than their sender, and legal uses of each, so they are counted
//! against what goes on beside them: a client that only resets, pings, sets, opens windows or sends empty frames is ended; one that does so for its requests is not.
//!
//! The same allowance holds on the relay and in front of the stack.

use super::frame::{Frame, flag, kind};
use crate::clock;

/// Frames that ask for nothing: so many at once, so many a second, and so many for each frame that carries something.
const FRAMES: u32 = 10_000;
const FRAMES_A_SECOND: u64 = 1000;
const FRAMES_EACH: u32 = 4;
/// Streams that a client gives up as soon as it has begun them, or makes its server give up: so many at once, so many a second, and one for each answer.
const RESETS: u32 = 1000;
const RESETS_A_SECOND: u64 = 33;
/// A stream that has waited for so long may be given up: clients have deadlines, and servers hang.
const WAITED_NS: u64 = 500_000_000;

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames that ask for nothing.
    Frames,
    /// Streams begun and given up.
    Resets,
    /// Streams open at once.
    Streams,
    /// A header list that is longer than any head may be.
    Headers,
    /// A header block whose end does not come.
    HeadTime,
}

impl Flood {
    /// For metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frames => "http2-frames",
            Self::Resets => "http2-resets",
            Self::Streams => "http2-streams",
            Self::Headers => "http2-headers",
            Self::HeadTime => "head-time",
        }
    }
}

/// Tokens, of which some come back with time. The clock is asked only when there are none left.
#[derive(Debug)]
struct Bucket {
    left: u32,
    most: u32,
    a_second: u64,
    since_ns: u64,
}

impl Bucket {
    fn new(most: u32, a_second: u64) -> Self {
        Self { left: most, most, a_second, since_ns: clock::now_ns() }
    }

    fn give(&mut self, tokens: u32) {
        self.left = (self.left + tokens).min(self.most);
    }

    /// Whether there was one to take.
    fn take(&mut self, now_ns: impl FnOnce() -> u64) -> bool {
        if self.left == 0 {
            let now = now_ns();
            let back = now.saturating_sub(self.since_ns).saturating_mul(self.a_second) / 1_000_000_000;
            if back == 0 {
                return false;
            }
            self.since_ns = now;
            self.left = u32::try_from(back).unwrap_or(self.most).min(self.most);
        }
        self.left -= 1;
        true
    }
}

/// One connection's allowance.
#[derive(Debug)]
pub struct Patience {
    frames: Bucket,
    resets: Bucket,
}

impl Default for Patience {
    fn default() -> Self {
        Self { frames: Bucket::new(FRAMES, FRAMES_A_SECOND), resets: Bucket::new(RESETS, RESETS_A_SECOND) }
    }
}

impl Patience {
    /// The client begins a frame. `waited_ns`: for how long its stream has waited for an answer, or for ever if it has one; `None`: there is no such stream.
    pub fn client(&mut self, frame: &Frame, waited_ns: impl FnOnce() -> Option<u64>) -> Result<(), Flood> {
        match frame.kind {
            kind::HEADERS => self.frames.give(FRAMES_EACH),
            kind::DATA if frame.size > 0 => self.frames.give(FRAMES_EACH),
            kind::DATA if frame.has(flag::END_STREAM) => {}
            kind::RST_STREAM => match waited_ns() {
                Some(waited) if waited >= WAITED_NS => {}
                Some(_) => return self.reset(),
                None => return if self.frames.take(clock::now_ns) { Ok(()) } else { Err(Flood::Frames) },
            },
            _ => return if self.frames.take(clock::now_ns) { Ok(()) } else { Err(Flood::Frames) },
        }
        Ok(())
    }

    /// The server begins a frame.
    pub fn server(&mut self, frame: &Frame) {
        if frame.size > 0 && matches!(frame.kind, kind::HEADERS | kind::DATA) {
            self.frames.give(FRAMES_EACH);
        }
    }

    /// So many answers have begun.
    pub fn answered(&mut self, answers: u32) {
        self.resets.give(answers.min(RESETS));
    }

    /// A stream was given up by the client, or because of what it did.
    pub fn reset(&mut self) -> Result<(), Flood> {
        if self.resets.take(clock::now_ns) { Ok(()) } else { Err(Flood::Resets) }
    }
}

/// Whether a server gives a stream up with this code because of what the client sent, which a client may do on purpose to be rid of its own request
/// (PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR).
pub const fn is_clients_doing(code: u32) -> bool {
    matches!(code, 1 | 3 | 5 | 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, size: usize) -> Frame {
        Frame { size, kind, flags: 0, stream: 1 }
    }

    #[test]
    fn a_client_that_only_floods_is_ended_and_one_that_asks_is_not() {
        for (kind, most) in [(kind::PING, FRAMES), (kind::SETTINGS, FRAMES), (WINDOW_UPDATE, FRAMES), (kind::DATA, FRAMES), (kind::RST_STREAM, RESETS)] {
            let mut patience = Patience::default();
            let taken = (0..1_000_000).take_while(|_| patience.client(&frame(kind, 0), || Some(0)).is_ok()).count() as u32;
            assert!((most..most + most / 2).contains(&taken), "{kind}: {taken}");
        }
        let mut busy = Patience::default();
        for _ in 0..100_000 {
            busy.client(&frame(kind::HEADERS, 10), || None).unwrap();
            busy.client(&frame(WINDOW_UPDATE, 4), || None).unwrap();
            busy.client(&frame(kind::PING, 8), || None).unwrap();
            busy.server(&frame(kind::DATA, 10));
            busy.client(&frame(WINDOW_UPDATE, 4), || None).unwrap();
            busy.answered(1);
            busy.client(&frame(kind::RST_STREAM, 4), || Some(0)).unwrap();
            // Of a server that hangs.
            busy.client(&frame(kind::RST_STREAM, 4), || Some(WAITED_NS)).unwrap();
        }
    }

    #[test]
    fn time_gives_back() {
        let mut bucket = Bucket { left: 1, most: 100, a_second: 33, since_ns: 0 };
        assert!(bucket.take(|| unreachable!()));
        assert!(!bucket.take(|| 10_000_000), "a third of one");
        assert!(bucket.take(|| 100_000_000) && bucket.left == 2, "three in a tenth of a second");
        bucket.left = 0;
        assert!(bucket.take(|| u64::MAX) && bucket.left == 99, "never more than at first");
    }
}
