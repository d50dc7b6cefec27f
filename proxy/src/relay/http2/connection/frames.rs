//! Frames as they pass: what becomes of each, and what is learnt from it.

use std::task::Context;

use steadfast_api::policy::POD_HEADER;

use super::{Connection, FRAME_MAX, Going, Leave, Step, going::PING, streams::Stream};
use crate::{
    clock,
    measure::request::Begun,
    relay::{
        http1::head::HEAD_MAX,
        http2::{
            frame::{self, Event, Frame, Reader, Unread, code, flag, kind},
            hpack::{self, Decoder, Said},
            patience::{self, Flood},
        },
        must_stack,
    },
};

/// Streams of one connection that wait for the end of their answers. How many may be open at once the server says.
const STREAMS_MAX: usize = 10_000;

/// Why a frame does not pass.
enum Odd {
    Malformed,
    Flood(Flood),
    Ended,
}

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
            let (size, event) = match self.direction(up).reader.next(&bytes[at..]) {
                Ok(next) => next,
                Err(Unread::TooLong) if up => return self.enough(cx, Flood::Headers),
                Err(_) => return self.not_understood(cx, up, &before, &bytes[run..]),
            };
            match event {
                Event::Begins => {
                    let way = match self.begins(up) {
                        Ok(way) => way,
                        Err(Odd::Flood(flood)) => return self.enough(cx, flood),
                        Err(Odd::Ended | Odd::Malformed) => return Err(Leave::Ended),
                    };
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
                    let replaced = match self.ends(up) {
                        Ok(replaced) => replaced,
                        Err(Odd::Flood(flood)) => {
                            if !up && self.down.way == Way::Passes {
                                self.tell_client(cx, &bytes[run..at])?;
                                self.down.reader.done();
                            }
                            return self.enough(cx, flood);
                        }
                        Err(Odd::Ended | Odd::Malformed) => return self.not_understood(cx, up, &[], &bytes[run..]),
                    };
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
                Event::Dry { held } => {
                    if up {
                        self.head.bound(self.up.reader.is_in_head(), self.worker.shared.config.header_timeout);
                    }
                    return self.give(cx, up, &bytes[run..at + size - held]);
                }
            }
            at += size;
        }
    }

    /// What becomes of the frame that has begun.
    fn begins(&mut self, up: bool) -> Result<Way, Odd> {
        let Some(frame) = self.direction(up).reader.frame else { return Ok(Way::Passes) };
        if up {
            let streams = &self.streams;
            let waited = || streams.get(&frame.stream).map(|stream| stream.begun.as_ref().map_or(u64::MAX, |begun| clock::now_ns() - begun.since_ns()));
            self.patience.client(&frame, waited).map_err(Odd::Flood)?;
        } else {
            self.patience.server(&frame);
        }
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
                self.patience.reset().map_err(Odd::Flood)?;
                self.inject.extend(frame::reset(frame.stream, code::REFUSED_STREAM));
                return Ok(Way::Dropped);
            }
            if must_stack(self.worker) {
                self.tell_to_go();
            }
            self.last = frame.stream;
            let begun = Begun::new(self.worker);
            if !self.answers.is_set() {
                self.answers.set(begun.since_ns() + clock::ns(self.worker.shared.config.upstream_timeout));
            }
            self.streams.insert(frame.stream, Stream::new(begun));
            if self.streams.len() > STREAMS_MAX {
                return Err(Odd::Flood(Flood::Streams));
            }
        }
        Ok(match frame.kind {
            _ if self.going == Going::Refused && frame.stream > self.last => Way::Dropped,
            // Its block cannot be read by a server that has missed others. The client was told to go and did not.
            kind::HEADERS if self.kept_blocks => return Err(Odd::Ended),
            kind::PING if frame.has(flag::ACK) && frame.size == PING.len() && self.going == Going::Told => Way::Waits,
            _ => Way::Passes,
        })
    }

    /// The frame is whole. What is passed on in its stead if it has waited; malformed: it cannot be read.
    fn ends(&mut self, up: bool) -> Result<Vec<u8>, Odd> {
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
                let said = direction.decoder.read(&direction.reader.block).map_err(|_| Odd::Malformed)?;
                if up && said.size > HEAD_MAX {
                    return Err(Odd::Flood(Flood::Headers));
                }
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
        } else if frame.kind == kind::RST_STREAM {
            let code = direction.reader.payload.first_chunk().map_or(0, |code| u32::from_be_bytes(*code));
            if let Some(stream) = self.streams.remove(&frame.stream)
                && !up
            {
                // Nor does a server give up a good request with such a code.
                stream.broke_off(patience::is_clients_doing(code));
                if patience::is_clients_doing(code) {
                    self.patience.reset().map_err(Odd::Flood)?;
                }
            }
        }
        Ok(replaced)
    }

    /// The client has had all the patience that there is for it.
    pub(super) fn enough(&mut self, cx: &mut Context<'_>, flood: Flood) -> Step {
        self.worker.meter.exceeded(flood.name());
        if self.first.is_some() {
            return Err(Leave::Ended);
        }
        if self.down.reader.is_between_frames() {
            let inject = std::mem::take(&mut self.inject);
            self.tell_client(cx, &inject)?;
            self.tell_client(cx, &frame::go_away(self.last, code::ENHANCE_YOUR_CALM))?;
        }
        self.streams.clear();
        self.close();
        Ok(())
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
