//! One HTTP/2 connection on the relay. See the room's documentation for how it is left.

mod frames;
mod going;
mod streams;

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::net::TcpStream;

use self::{frames::Direction, going::Going, streams::Stream};
use super::{
    frame::{Frame, flag, kind},
    patience::{Flood, Patience},
};
use crate::{
    clock,
    drain::Phase as Drain,
    forward::ForwardError,
    measure::request::Begun,
    relay::{Client, Exit, PREFACE, bell::Bell, deadline::Deadline, is_armed, must_stack, side::Side},
    upstream::Dialled,
    worker::Worker,
};

/// Bytes of a client that are kept until its server has shown that it speaks HTTP/2.
const FIRST_MAX: usize = 64 << 10;
/// A connection of which one side has ended is over after so long.
const LINGER: Duration = Duration::from_secs(1);
/// A server that does not speak HTTP/2 is not tried again for so long.
pub const NO_HTTP2_NS: u64 = 60_000_000_000;
/// Frames may always be as large as this.
const FRAME_MAX: usize = 16 << 10;

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
    /// For the client and for the server, as soon as a frame may stand there.
    inject: Vec<u8>,
    inject_up: Vec<u8>,
    patience: Patience,
    /// Nothing is understood any more.
    opaque: bool,
    closing: bool,
    deadline: Deadline,
    /// When the first stream that waits for its answer has waited for too long, or earlier.
    answers: Deadline,
    /// When a client that was told to go must have gone.
    go_by: Deadline,
    /// By then a header block that has begun must be whole.
    head: Deadline,
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
    let dialling = Rc::clone(worker);
    let mut connection = Connection {
        worker,
        bell,
        route,
        client: Side::new(stream),
        upstream: None,
        connecting: Some(Box::pin(async move { dialling.dial(route, false).await })),
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
        inject_up: Vec::new(),
        patience: Patience::default(),
        opaque: false,
        closing: false,
        deadline: Deadline::default(),
        answers: Deadline::default(),
        go_by: Deadline::default(),
        head: Deadline::default(),
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
                Ok(false) if self.deadline.is_over(cx) => {
                    if self.closing || self.client.ended {
                        return Poll::Ready(Leave::Ended);
                    }
                    self.time_is_up();
                }
                Ok(false) if self.answers.is_over(cx) => {
                    if let Err(leave) = self.time_out(cx) {
                        return Poll::Ready(leave);
                    }
                }
                Ok(false) if self.go_by.is_over(cx) => self.has_not_gone(),
                Ok(false) if self.head.is_over(cx) => {
                    if let Err(leave) = self.enough(cx, Flood::HeadTime) {
                        return Poll::Ready(leave);
                    }
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
        if self.going == Going::Heard && !self.deadline.is_set() && self.streams.is_empty() {
            self.begin_quiet();
        }
        if !self.inject.is_empty() && self.first.is_none() && self.down.reader.is_between_frames() {
            let inject = std::mem::take(&mut self.inject);
            self.tell_client(cx, &inject)?;
            return Ok(true);
        }
        if !self.inject_up.is_empty() && self.up.reader.is_between_frames() {
            let inject = std::mem::take(&mut self.inject_up);
            self.tell_upstream(cx, &inject);
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
        self.answers.clear();
        self.go_by.clear();
        self.head.clear();
        self.deadline.set_after(LINGER);
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
        self.deadline.set_after(LINGER);
    }

    fn upstream_said(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        if self.client.ended {
            // As long as the server goes on, so does its client's half of a connection.
            self.deadline.set_after(LINGER);
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
}
