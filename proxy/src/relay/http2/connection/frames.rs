//! Frames as they pass: what becomes of each, and what is learnt from it.

use std::task::Context;

use steadfast_api::policy::POD_HEADER;

use super::{Connection, FRAME_MAX, Going, Leave, Step, going::PING, streams::Stream};
use crate::{
    measure::request::Begun,
    relay::{
        http2::{
            frame::{self, Event, Frame, Malformed, Reader, flag, kind},
            hpack::{self, Decoder, Said},
        },
        must_stack,
    },
};

/// Streams whose answers are followed; a connection with more is not understood.
const STREAMS_MAX: usize = 10_000;
/// What happens to the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Passes,
    /// Kept until it is whole.
    Waits,
    Dropped,
}

pub(super) struct Direction {
    pub(super) reader: Reader,
    decoder: Decoder,
    way: Way,
    /// The header block ends its stream's side.
    ends_stream: bool,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self { reader: Reader::default(), decoder: Decoder::default(), way: Way::Passes, ends_stream: false }
    }
}

impl Connection<'_> {
    pub(super) fn direction(&mut self, up: bool) -> &mut Direction {
        if up { &mut self.up } else { &mut self.down }
    }

    /// Passes `bytes` on, in as few pieces as can be, and reads them along.
    pub(super) fn walk(&mut self, cx: &mut Context<'_>, up: bool, bytes: &[u8]) -> Step {
        if self.opaque {
            self.worker.meter.metrics.opaque_bytes.inc_by(bytes.len() as u64);
            return self.give(cx, up, bytes);
        }
        // Bytes from `run` to `at` are to be passed on.
        let (mut at, mut run) = (0, 0);
        loop {
            let before = self.direction(up).reader.held();
            let next = self.direction(up).reader.next(&bytes[at..]);
            let Ok((size, event)) = next else { return self.not_understood(cx, up, &before, &bytes[run..]) };
            match event {
                Event::Begins => {
                    let way = self.begins(up)?;
                    self.direction(up).way = way;
                    if way == Way::Passes {
                        self.give(cx, up, &before)?;
                    } else {
                        self.give(cx, up, &bytes[run..at])?;
                        run = at + size;
                    }
                }
                Event::Payload(_) if self.direction(up).way != Way::Passes => run = at + size,
                Event::Payload(_) => {}
                Event::Ends => {
                    let Ok(replaced) = self.ends(up) else { return self.not_understood(cx, up, &[], &bytes[run..]) };
                    self.give(cx, up, &replaced)?;
                    let direction = self.direction(up);
                    direction.reader.done();
                    if !up && !self.inject.is_empty() && self.down.reader.is_between_frames() {
                        self.tell_client(cx, &bytes[run..at])?;
                        run = at;
                        let inject = std::mem::take(&mut self.inject);
                        self.tell_client(cx, &inject)?;
                    }
                }
                Event::Dry { held } => return self.give(cx, up, &bytes[run..at + size - held]),
            }
            at += size;
        }
    }

    /// What becomes of the frame that has begun.
    fn begins(&mut self, up: bool) -> Result<Way, Leave> {
        let Some(frame) = self.direction(up).reader.frame else { return Ok(Way::Passes) };
        if frame.kind == kind::CONTINUATION {
            let dropped = self.direction(up).way == Way::Dropped;
            return Ok(if dropped { Way::Dropped } else { Way::Passes });
        }
        if frame.kind == kind::HEADERS {
            self.direction(up).ends_stream = frame.has(flag::END_STREAM);
        }
        if !up {
            let named = frame.kind == kind::HEADERS && self.streams.get(&frame.stream).is_some_and(|stream| stream.asks_pod && stream.record.is_none());
            let whole = frame.has(flag::END_HEADERS) && !frame.has(flag::PADDED);
            return Ok(if named && whole { Way::Waits } else { Way::Passes });
        }
        if frame.kind == kind::HEADERS && frame.stream > self.seen {
            self.seen = frame.stream;
            if self.going == Going::Refused {
                self.kept_blocks = true;
                self.inject.extend(frame::refuse(frame.stream));
                return Ok(Way::Dropped);
            }
            if must_stack(self.worker) {
                self.tell_to_go();
            }
            self.last = frame.stream;
            self.streams.insert(frame.stream, Stream::new(Begun::new(self.worker)));
        }
        Ok(match frame.kind {
            _ if self.going == Going::Refused && frame.stream > self.last => Way::Dropped,
            // Its block cannot be read by a server that has missed others. The client was told to go and did not.
            kind::HEADERS if self.kept_blocks => return Err(Leave::Ended),
            kind::PING if frame.has(flag::ACK) && frame.size == PING.len() && self.going == Going::Told => Way::Waits,
            _ => Way::Passes,
        })
    }

    /// The frame is whole. What is passed on in its stead if it has waited; malformed: it cannot be read.
    fn ends(&mut self, up: bool) -> Result<Vec<u8>, Malformed> {
        let direction = self.direction(up);
        let Some(frame) = direction.reader.frame else { return Ok(Vec::new()) };
        let way = direction.way;
        if way == Way::Dropped {
            return Ok(Vec::new());
        }
        let mut replaced = Vec::new();
        if way == Way::Waits {
            if frame.kind == kind::PING {
                if direction.reader.payload == PING {
                    self.heard();
                    return Ok(replaced);
                }
            } else if let Some(field) = hpack::never_indexed(POD_HEADER, &self.worker.shared.config.pod.name)
                && frame.size + field.len() <= FRAME_MAX
            {
                replaced = [&Frame { size: frame.size + field.len(), ..frame }.write()[..], &self.down.reader.payload, &field].concat();
            }
            if replaced.is_empty() {
                let reader = &self.direction(up).reader;
                replaced = [&reader.head()[..], &reader.payload].concat();
            }
        }
        let direction = self.direction(up);
        if frame.has_block() {
            if direction.reader.in_block.is_none() {
                let said = direction.decoder.read(&direction.reader.block).map_err(|_| Malformed)?;
                let ends_stream = direction.ends_stream;
                match (up, frame.kind) {
                    (_, kind::PUSH_PROMISE) => {}
                    (true, _) => self.asked(frame.stream, said, ends_stream),
                    (false, _) => self.answered(frame.stream, said, ends_stream),
                }
            }
        } else if frame.kind == kind::DATA && frame.has(flag::END_STREAM) {
            if up {
                self.asked(frame.stream, Said::default(), true);
            } else {
                self.answered(frame.stream, Said::default(), true);
            }
        } else if frame.kind == kind::RST_STREAM
            && let Some(stream) = self.streams.remove(&frame.stream)
            && !up
        {
            stream.broke_off(false);
        }
        if self.streams.len() > STREAMS_MAX { Err(Malformed) } else { Ok(replaced) }
    }

    /// From here on the bytes are the two sides' own business: first those that were kept, then `bytes`.
    fn not_understood(&mut self, cx: &mut Context<'_>, up: bool, before: &[u8], bytes: &[u8]) -> Step {
        let metrics = &self.worker.meter.metrics;
        metrics.opaque_connections.inc();
        metrics.opaque_bytes.inc_by(bytes.len() as u64);
        self.opaque = true;
        self.going = Going::Stays;
        self.deadline.clear();
        for (_, stream) in self.streams.drain() {
            stream.begun.into_iter().for_each(Begun::left_to_others);
            stream.record.into_iter().for_each(|mut record| record.cut_by("upstream"));
        }
        let direction = self.direction(up);
        let waited = match (direction.way, direction.reader.frame) {
            (Way::Waits, Some(_)) => [&direction.reader.head()[..], &direction.reader.payload].concat(),
            _ => before.to_vec(),
        };
        let other = self.direction(!up);
        let held = match (other.way, other.reader.frame) {
            (Way::Waits, Some(_)) => [&other.reader.head()[..], &other.reader.payload].concat(),
            _ => other.reader.held(),
        };
        (self.up, self.down) = (Direction::new(), Direction::new());
        self.give(cx, up, &waited)?;
        self.give(cx, up, bytes)?;
        self.give(cx, !up, &held)
    }
}
