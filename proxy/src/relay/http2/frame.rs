//! HTTP/2's frame layer (RFC 9113 §4), read along: where a frame begins and ends, in pieces of any size.

use Unread::{Malformed, TooLong};

/// Bytes of a frame's head.
pub const HEAD: usize = 9;
/// Bytes of one header block that are kept to be read.
const BLOCK_MAX: usize = 64 << 10;
/// The largest stream there is.
pub const LAST: u32 = (1 << 31) - 1;

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
}

/// Errors (RFC 9113 §7).
pub mod code {
    pub const NO_ERROR: u32 = 0;
    /// It was not begun, and can safely be asked again.
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// What is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Not HTTP/2.
    Malformed,
    /// A header block that is longer than is kept.
    TooLong,
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub size: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Frame {
    pub fn read(head: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *head;
        Self { size: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]) & LAST }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it carries (a part of) a header block.
    pub fn has_block(&self) -> bool {
        matches!(self.kind, kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION)
    }

    /// PING and RST_STREAM as they should be: their payloads are kept.
    fn is_small(&self) -> bool {
        self.size <= 8 && matches!(self.kind, kind::PING | kind::RST_STREAM)
    }

    pub fn write(&self) -> [u8; HEAD] {
        let [_, a, b, c] = (self.size as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// The part of `payload` that is a header block's.
    pub fn block<'a>(&self, payload: &'a [u8]) -> Result<&'a [u8], Unread> {
        let (mut from, mut to) = (0, payload.len());
        if self.kind != kind::CONTINUATION {
            if self.has(flag::PADDED) {
                to = to.checked_sub(usize::from(*payload.first().ok_or(Malformed)?)).ok_or(Malformed)?;
                from += 1;
            }
            if self.kind == kind::PUSH_PROMISE {
                from += 4;
            } else if self.has(flag::PRIORITY) {
                from += 5;
            }
        }
        payload.get(from..to).ok_or(Malformed)
    }
}

/// GOAWAY: streams up to `last` are served, later ones were not begun.
pub fn go_away(last: u32, code: u32) -> Vec<u8> {
    let head = Frame { size: 8, kind: kind::GOAWAY, flags: 0, stream: 0 }.write();
    [&head[..], &last.to_be_bytes(), &code.to_be_bytes()].concat()
}

/// GOAWAY that only announces the end: no stream is refused by it.
pub fn go_soon() -> Vec<u8> {
    go_away(LAST, code::NO_ERROR)
}

pub fn ping(payload: [u8; 8]) -> Vec<u8> {
    [&Frame { size: 8, kind: kind::PING, flags: 0, stream: 0 }.write()[..], &payload].concat()
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    [&Frame { size: 4, kind: kind::RST_STREAM, flags: 0, stream }.write()[..], &code.to_be_bytes()].concat()
}

/// SETTINGS that leave everything as it is.
pub fn settings() -> [u8; HEAD] {
    Frame { size: 0, kind: kind::SETTINGS, flags: 0, stream: 0 }.write()
}

/// Where one direction has got to.
#[derive(Debug, Default)]
pub struct Reader {
    head: [u8; HEAD],
    have: usize,
    /// The frame that has begun, and how much of its payload is to come.
    pub frame: Option<Frame>,
    left: usize,
    /// Between HEADERS and the end of its header block; nothing else may come in between.
    pub in_block: Option<u32>,
    /// The header block so far.
    pub block: Vec<u8>,
    /// The frame's payload so far, where it is kept.
    pub payload: Vec<u8>,
}

/// What [`Reader::next`] has found in the bytes that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A frame's head has become whole.
    Begins,
    /// So many bytes of payload.
    Payload(usize),
    Ends,
    /// The bytes are used up; so many of the last ones are a head's beginning.
    Dry {
        held: usize,
    },
}

impl Reader {
    /// Nothing of a frame has gone on, and no header block is open: another frame may stand here.
    pub fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.in_block.is_none()
    }

    /// A header block has begun and is not whole.
    pub fn is_in_head(&self) -> bool {
        self.in_block.is_some() || self.frame.is_some_and(|frame| frame.has_block())
    }

    /// The beginning of a head that came with an earlier read and has not been passed on.
    pub fn held(&self) -> Vec<u8> {
        self.head[..self.have].to_vec()
    }

    /// The frame's head as it came.
    pub fn head(&self) -> [u8; HEAD] {
        self.head
    }

    /// The next thing in `bytes`, and how many bytes it took.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Event), Unread> {
        if let Some(frame) = self.frame {
            if self.left == 0 {
                self.ends(frame)?;
                return Ok((0, Event::Ends));
            }
            if bytes.is_empty() {
                return Ok((0, Event::Dry { held: 0 }));
            }
            let size = self.left.min(bytes.len());
            self.left -= size;
            if frame.has_block() || frame.is_small() {
                if self.payload.len() + size > BLOCK_MAX {
                    return Err(TooLong);
                }
                self.payload.extend_from_slice(&bytes[..size]);
            }
            return Ok((size, Event::Payload(size)));
        }
        let earlier = self.have;
        let size = (HEAD - earlier).min(bytes.len());
        self.head[earlier..earlier + size].copy_from_slice(&bytes[..size]);
        self.have += size;
        if self.have < HEAD {
            return Ok((size, Event::Dry { held: size }));
        }
        let frame = Frame::read(&self.head);
        let expected = match self.in_block {
            Some(stream) => frame.kind == kind::CONTINUATION && frame.stream == stream,
            None => frame.kind != kind::CONTINUATION,
        };
        if !expected {
            return Err(Malformed);
        }
        (self.have, self.left, self.frame) = (0, frame.size, Some(frame));
        self.payload.clear();
        if frame.has_block() {
            self.in_block = Some(frame.stream);
            if frame.kind != kind::CONTINUATION {
                self.block.clear();
            }
        }
        Ok((size, Event::Begins))
    }

    /// The frame's last byte has come. Its header block, if it is whole, stands in [`Reader::block`].
    fn ends(&mut self, frame: Frame) -> Result<(), Unread> {
        if frame.has_block() {
            let part = frame.block(&self.payload)?;
            if self.block.len() + part.len() > BLOCK_MAX {
                return Err(TooLong);
            }
            self.block.extend_from_slice(part);
            if frame.has(flag::END_HEADERS) {
                self.in_block = None;
            }
        }
        Ok(())
    }

    /// To be called when [`Event::Ends`] has been dealt with.
    pub fn done(&mut self) {
        self.frame = None;
        if self.in_block.is_none() && self.block.capacity() > 4096 {
            (self.block, self.payload) = (Vec::new(), Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(bytes: &[u8], cut: usize) -> Result<Vec<(Frame, Vec<u8>)>, Unread> {
        let (mut reader, mut found) = (Reader::default(), Vec::new());
        for mut piece in bytes.chunks(cut.max(1)) {
            loop {
                let (size, event) = reader.next(piece)?;
                piece = &piece[size..];
                match event {
                    Event::Ends => {
                        found.extend(reader.frame.map(|frame| (frame, reader.block.clone())));
                        reader.done();
                    }
                    Event::Dry { .. } => break,
                    Event::Begins | Event::Payload(_) => {}
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn a_block_is_whole_without_padding_and_priority() {
        let padded = Frame { size: 1 + 5 + 3 + 2, kind: kind::HEADERS, flags: flag::PADDED | flag::PRIORITY, stream: 3 }.write();
        let more = Frame { size: 1, kind: kind::CONTINUATION, flags: flag::END_HEADERS, stream: 3 }.write();
        let bytes = [&padded[..], &[2, 0, 0, 0, 0, 16], b"abc\0\0", &more, b"d"].concat();
        let found = frames(&bytes, 4).unwrap();
        assert_eq!((found.len(), &found[1].1[..]), (2, &b"abcd"[..]));
        let lies = Frame { size: 2, kind: kind::HEADERS, flags: flag::PADDED, stream: 3 }.write();
        assert_eq!(frames(&[&lies[..], &[9, 0]].concat(), 100), Err(Malformed));
    }

    #[test]
    fn nothing_stands_inside_a_header_block_and_none_is_endless() {
        let open = Frame { size: 0, kind: kind::HEADERS, flags: 0, stream: 1 }.write();
        let data = Frame { size: 0, kind: kind::DATA, flags: 0, stream: 1 }.write();
        assert_eq!(frames(&[open, data].concat(), 100), Err(Malformed));
        let more = [&Frame { size: 16_000, kind: kind::CONTINUATION, flags: 0, stream: 1 }.write()[..], &[0; 16_000]].concat();
        assert_eq!(frames(&[&open[..], &more.repeat(5)].concat(), 1000), Err(TooLong));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_frames_are_the_same(sizes in prop::collection::vec((0_usize..300, prop::sample::select(vec![0_u8, 1, 3, 4, 6, 7, 8, 200])), 1..20), cut in 1_usize..50) {
            let bytes: Vec<u8> = sizes.iter().flat_map(|(size, kind)| [&Frame { size: *size, kind: *kind, flags: flag::END_HEADERS, stream: 5 }.write()[..], &vec![7; *size]].concat()).collect();
            let found = frames(&bytes, cut).unwrap();
            prop_assert_eq!(found.iter().map(|(frame, _)| (frame.size, frame.kind)).collect::<Vec<_>>(), sizes);
        }
    }
}
