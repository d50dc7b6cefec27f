//! One HTTP/2 connection on the relay. See the room's documentation for how it is left.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use steadfast_api::policy::{Origin, POD_HEADER};
use tokio::{net::TcpStream, time::Sleep};

use super::{
    frame::{self, Event, Frame, Malformed, Reader, flag, kind},
    hpack::{self, Decoder, Said},
};
use crate::{
    clock,
    drain::Phase as Drain,
    forward::ForwardError,
    measure::request::{Begun, Record},
    relay::{Client, Exit, PREFACE, bell::Bell, is_armed, must_stack, side::Side},
    upstream::Dialled,
    worker::Worker,
};

/// Bytes of a client that are kept until its server has shown that it speaks HTTP/2.
const FIRST_MAX: usize = 64 << 10;
/// Streams whose answers are followed; a connection with more is not understood.
const STREAMS_MAX: usize = 10_000;
/// Ours among PINGs.
const PING: [u8; 8] = *b"steadfst";
/// A client that has not answered PING by then speaks no HTTP/2: it is refused more streams as if it had.
const ANSWERS_WITHIN_NS: u64 = 30_000_000_000;
/// A client that has heard has begun nothing new for so long before it is taken at its word.
const QUIET_NS: u64 = 100_000_000;
/// A connection of which one side has ended is over after so long.
const LINGER_NS: u64 = 1_000_000_000;
/// A server that does not speak HTTP/2 is not tried again for so long.
pub const NO_HTTP2_NS: u64 = 60_000_000_000;
/// Frames may always be as large as this.
const FRAME_MAX: usize = 16 << 10;

/// How far the client has been told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    Stays,
    /// GOAWAY is on its way.
    Told,
    /// It has answered the PING behind it. Streams that it had begun before may stand in its own queue behind that answer, so they are still relayed.
    Heard,
    /// Streams from now on are refused.
    Refused,
}

/// What happens to the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Passes,
    /// Kept until it is whole.
    Waits,
    Dropped,
}

struct Stream {
    begun: Option<Begun>,
    record: Option<Record>,
    asks_pod: bool,
    /// The request has ended.
    asked: bool,
}

struct Direction {
    reader: Reader,
    decoder: Decoder,
    way: Way,
    /// The header block ends its stream's side.
    ends_stream: bool,
}

impl Direction {
    fn new() -> Self {
        Self { reader: Reader::default(), decoder: Decoder::default(), way: Way::Passes, ends_stream: false }
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Dialled, ForwardError>>>>;

struct Connection<'a> {
    worker: &'a Rc<Worker>,
    bell: &'a Bell,
    route: usize,
    client: Side<TcpStream>,
    upstream: Option<Side<Dialled>>,
    connecting: Option<Connecting>,
    /// All that the client has said, until the server has begun.
    first: Option<Vec<u8>>,
    /// The server's first bytes.
    begins: Vec<u8>,
    up: Direction,
    down: Direction,
    streams: HashMap<u32, Stream>,
    /// The last stream that was seen, and the last that was passed on.
    seen: u32,
    last: u32,
    going: Going,
    /// Header blocks were kept from the server: its table is not the client's any more.
    kept_blocks: bool,
    /// For the client, as soon as a frame may stand there.
    inject: Vec<u8>,
    /// Nothing is understood any more.
    opaque: bool,
    closing: bool,
    deadline_ns: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// Why a connection leaves the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Ended,
    /// The server speaks no HTTP/2, or is not there.
    ToStack,
}

type Step = Result<(), Leave>;

/// Relays `client`'s HTTP/2 connection, of which [`Client::ahead`] is everything so far, until it ends or turns out to be the stack's.
pub async fn relay(worker: &Rc<Worker>, client: Client, bell: &Bell) -> Exit {
    let Client { stream, ahead, peer, route } = client;
    if must_stack(worker) || clock::now_ns() < worker.no_http2[route].get() {
        return Exit::Stack(Client { stream, ahead, peer, route });
    }
    let pool = worker.pools[route].clone();
    let mut connection = Connection {
        worker,
        bell,
        route,
        client: Side::new(stream),
        upstream: None,
        connecting: Some(Box::pin(async move { pool.dial().await })),
        first: Some(ahead),
        begins: Vec::new(),
        up: Direction::new(),
        down: Direction::new(),
        streams: HashMap::new(),
        seen: 0,
        last: 0,
        going: Going::Stays,
        kept_blocks: false,
        inject: Vec::new(),
        opaque: false,
        closing: false,
        deadline_ns: None,
        sleep: None,
    };
    connection.client.watch();
    let left = poll_fn(|cx| {
        let mut buffer = worker.buffer.take();
        let polled = connection.poll(cx, &mut buffer);
        worker.buffer.put(buffer);
        polled
    })
    .await;
    let Connection { client, first, streams, .. } = connection;
    match (left, first) {
        (Leave::ToStack, Some(ahead)) => {
            streams.into_values().filter_map(|stream| stream.begun).for_each(Begun::left_to_others);
            Exit::Stack(Client { stream: client.stream, ahead, peer, route })
        }
        _ => Exit::Ended,
    }
}

impl Connection<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Leave> {
        if self.bell.rung(cx) && (self.worker.held.is_held() || self.worker.drain.has_reached(Drain::Gone)) {
            return Poll::Ready(Leave::Ended);
        }
        // Parting alone sends nobody away who does not ask: he would come back to where he was told.
        if is_armed(self.worker) || self.worker.drain.has_reached(Drain::Leaving) {
            self.tell_to_go();
        }
        loop {
            match self.step(cx, buffer) {
                Ok(true) => {}
                Ok(false) if self.poll_deadline(cx) => {
                    if self.closing || self.client.ended {
                        return Poll::Ready(Leave::Ended);
                    }
                    self.time_is_up();
                }
                Ok(false) => return Poll::Pending,
                Err(leave) => return Poll::Ready(leave),
            }
        }
    }

    /// Moves whatever can be moved. Whether anything was.
    fn step(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<bool, Leave> {
        let mut moved = self.client.pay(cx).map_err(|_| Leave::Ended)?;
        if let Some(upstream) = &mut self.upstream {
            match upstream.pay(cx) {
                Ok(paid) => moved |= paid,
                // What it has said before still counts.
                Err(_) => upstream.forget(),
            }
        }
        if let Some(connecting) = &mut self.connecting
            && let Poll::Ready(connected) = connecting.as_mut().poll(cx)
        {
            self.connecting = None;
            self.connected(cx, connected)?;
            moved = true;
        }
        moved |= self.settle(cx)?;
        if self.client.is_clear()
            && let Some(upstream) = &mut self.upstream
            && !upstream.ended
            && let Poll::Ready(read) = upstream.poll_read(cx, buffer)
        {
            moved = true;
            match read {
                Ok(size @ 1..) => self.upstream_said(cx, &buffer[..size])?,
                Ok(0) | Err(_) => self.upstream_ended(cx)?,
            }
        }
        if self.wants_client()
            && let Poll::Ready(read) = self.client.poll_read(cx, buffer)
        {
            moved = true;
            match read {
                Ok(size @ 1..) => self.client_said(cx, &buffer[..size])?,
                Ok(0) => self.client_ended(cx),
                Err(_) => return Err(Leave::Ended),
            }
        }
        Ok(moved)
    }

    fn wants_client(&self) -> bool {
        let upstream_is_clear = self.upstream.as_ref().is_some_and(Side::is_clear);
        !self.client.ended && (self.closing || (upstream_is_clear && self.first.as_ref().is_none_or(|first| first.len() < FIRST_MAX)))
    }

    fn connected(&mut self, cx: &mut Context<'_>, connected: Result<Dialled, ForwardError>) -> Step {
        // The stack finds the same, and says so in the client's terms.
        let stream = connected.map_err(|_| Leave::ToStack)?;
        if must_stack(self.worker) {
            return Err(Leave::ToStack);
        }
        self.upstream = Some(Side::new(stream));
        let first = self.first.clone().unwrap_or_default();
        let (preface, frames) = first.split_at(PREFACE.len());
        self.tell_upstream(cx, preface);
        self.walk(cx, true, frames)
    }

    /// What follows from what has been said and heard so far. Whether something did.
    fn settle(&mut self, cx: &mut Context<'_>) -> Result<bool, Leave> {
        if self.closing {
            if self.client.is_clear() {
                self.client.end(cx);
                if self.client.ended {
                    return Err(Leave::Ended);
                }
            }
            return Ok(false);
        }
        if let Some(upstream) = &mut self.upstream
            && self.client.ended
            && upstream.is_clear()
        {
            upstream.end(cx);
        }
        if self.going == Going::Heard && self.deadline_ns.is_none() && self.streams.is_empty() {
            self.begin_quiet();
        }
        if !self.inject.is_empty() && self.first.is_none() && self.down.reader.is_between_frames() {
            let inject = std::mem::take(&mut self.inject);
            self.tell_client(cx, &inject)?;
            return Ok(true);
        }
        if self.going == Going::Refused && self.streams.is_empty() && self.inject.is_empty() {
            self.close();
            return Ok(true);
        }
        Ok(false)
    }

    fn close(&mut self) {
        self.closing = true;
        self.upstream = None;
        self.deadline_ns = Some(clock::now_ns() + LINGER_NS);
    }

    /// Announces the end, once, and not before the server has begun.
    fn tell_to_go(&mut self) {
        if self.going == Going::Stays && self.first.is_none() && !self.opaque && !self.closing {
            self.going = Going::Told;
            self.inject.extend(frame::go_soon());
            self.inject.extend(frame::ping(PING));
            self.deadline_ns = Some(clock::now_ns() + ANSWERS_WITHIN_NS);
            self.worker.meter.metrics.moved.with_label_values(&["stack"]).inc();
        }
    }

    /// The client knows that it is to go.
    fn heard(&mut self) {
        self.going = Going::Heard;
        self.begin_quiet();
    }

    fn begin_quiet(&mut self) {
        self.deadline_ns = Some(clock::now_ns() + QUIET_NS);
    }

    /// Time is up for what was waited for.
    fn time_is_up(&mut self) {
        if self.going == Going::Heard && !self.streams.is_empty() {
            // They may take as long as they like; the last of them begins the wait anew.
            return;
        }
        if matches!(self.going, Going::Told | Going::Heard) {
            self.going = Going::Refused;
            self.inject.extend(frame::go_away(self.last));
        }
    }

    fn client_said(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        if let Some(first) = &mut self.first {
            first.extend_from_slice(bytes);
        }
        if self.closing { Ok(()) } else { self.walk(cx, true, bytes) }
    }

    fn client_ended(&mut self, cx: &mut Context<'_>) {
        let held = self.up.reader.held();
        self.tell_upstream(cx, &held);
        // Its streams are given up with it; the server is told at once and has a moment to say something about it.
        self.deadline_ns = Some(clock::now_ns() + LINGER_NS);
    }

    fn upstream_said(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        if self.client.ended {
            // As long as the server goes on, so does its client's half of a connection.
            self.deadline_ns = Some(clock::now_ns() + LINGER_NS);
        }
        if self.first.is_none() {
            return self.walk(cx, false, bytes);
        }
        self.begins.extend_from_slice(bytes);
        let Some(head) = self.begins.first_chunk() else { return Ok(()) };
        let frame = Frame::read(head);
        if frame.kind != kind::SETTINGS || frame.stream != 0 || frame.has(flag::ACK) || frame.size > FRAME_MAX {
            return self.speaks_no_http2();
        }
        self.first = None;
        let begins = std::mem::take(&mut self.begins);
        self.walk(cx, false, &begins)
    }

    fn speaks_no_http2(&self) -> Step {
        self.worker.no_http2[self.route].set(clock::now_ns() + NO_HTTP2_NS);
        Err(Leave::ToStack)
    }

    fn upstream_ended(&mut self, cx: &mut Context<'_>) -> Step {
        if self.first.is_some() {
            return if self.client.ended { Err(Leave::Ended) } else { self.speaks_no_http2() };
        }
        let held = self.down.reader.held();
        self.tell_client(cx, &held)?;
        for (_, stream) in self.streams.drain() {
            stream.broke_off(self.client.ended);
        }
        self.close();
        Ok(())
    }

    fn tell_upstream(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        let Some(upstream) = &mut self.upstream else { return };
        match upstream.send(cx, bytes) {
            Ok(true) => {}
            Ok(false) => self.client.read_less(),
            Err(_) => upstream.forget(),
        }
    }

    fn tell_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        if !self.client.send(cx, bytes).map_err(|_| Leave::Ended)?
            && let Some(upstream) = &mut self.upstream
        {
            upstream.read_less();
        }
        Ok(())
    }

    fn give(&mut self, cx: &mut Context<'_>, up: bool, bytes: &[u8]) -> Step {
        if up {
            self.tell_upstream(cx, bytes);
            return Ok(());
        }
        self.tell_client(cx, bytes)
    }

    fn direction(&mut self, up: bool) -> &mut Direction {
        if up { &mut self.up } else { &mut self.down }
    }

    /// Passes `bytes` on, in as few pieces as can be, and reads them along.
    fn walk(&mut self, cx: &mut Context<'_>, up: bool, bytes: &[u8]) -> Step {
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
            let begun = Some(Begun::new(self.worker));
            self.streams.insert(frame.stream, Stream { begun, record: None, asks_pod: false, asked: false });
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

    /// The client has said something on `id`.
    fn asked(&mut self, id: u32, said: Said, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.asks_pod |= said.asks_pod;
        stream.asked |= ends;
        if stream.asked && stream.is_answered() {
            self.streams.remove(&id);
        }
    }

    /// The server has said something on `id`.
    fn answered(&mut self, id: u32, said: Said, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(status) = said.status.filter(|status| *status >= 200)
            && let Some(begun) = stream.begun.take()
        {
            stream.record = Some(begun.relayed(Origin::Upstream, status));
        }
        if let (Some(code), Some(record)) = (said.grpc_status, &stream.record) {
            record.grpc(code);
        }
        if ends {
            if let Some(mut record) = stream.record.take() {
                record.finish();
            }
            if stream.asked {
                self.streams.remove(&id);
            }
        }
    }

    /// From here on the bytes are the two sides' own business: first those that were kept, then `bytes`.
    fn not_understood(&mut self, cx: &mut Context<'_>, up: bool, before: &[u8], bytes: &[u8]) -> Step {
        let metrics = &self.worker.meter.metrics;
        metrics.opaque_connections.inc();
        metrics.opaque_bytes.inc_by(bytes.len() as u64);
        self.opaque = true;
        (self.going, self.deadline_ns) = (Going::Stays, None);
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

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline_ns) = self.deadline_ns else { return false };
        let due = clock::instant(deadline_ns).into();
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        let over = sleep.as_mut().poll(cx).is_ready();
        if over {
            self.deadline_ns = None;
        }
        over
    }
}

impl Stream {
    fn is_answered(&self) -> bool {
        self.begun.is_none() && self.record.is_none()
    }

    /// The server has given it up: without an answer that is what the stack calls a broken one. If the client `left` first, it was the client's doing.
    fn broke_off(self, left: bool) {
        if left {
            return;
        }
        self.begun.into_iter().for_each(|begun| begun.relayed(Origin::Upstream, 502).finish());
        self.record.into_iter().for_each(|mut record| record.cut_by("upstream"));
    }
}
