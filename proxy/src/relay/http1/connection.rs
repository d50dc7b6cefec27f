//! One HTTP/1 connection on the relay.
//!
//! Invariants: one exchange at a time, what the client sends ahead waits here (at most [`HEAD_MAX`] of it, then the client is not read); the boundary between two
//! messages is where the client's last request has gone up to its end, the answer has come down to its end, and nothing else was written to either socket: there,
//! and only there, a request is looked at, and it goes up whole or the connection goes to the stack with the request unsent. So none is lost and none sent twice.
//! An answer of our own (the model server broke off, took too long) ends the connection.

mod answer;
mod request;

pub use answer::too_slow;

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::net::TcpStream;

use super::head::{Framing, HEAD_MAX, RequestHead};
use crate::{
    clock,
    drain::Phase as Drain,
    forward::ForwardError,
    measure::request::{Begun, Record},
    problem::Dialect,
    relay::{Client, Exit, bell::Bell, deadline::Deadline, side::Side},
    upstream::Dialled,
    worker::Worker,
};

/// A client that was answered before it had sent everything has so long to hear it.
const LINGER: Duration = Duration::from_secs(1);

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between two messages, or in a request's head.
    Boundary,
    /// A request waits for its connection to the model server.
    Connecting,
    Exchange,
    /// Nobody looks in any more: WebSocket and other upgrades, and what is not understood.
    Tunnel {
        opaque: bool,
    },
    /// The client gets what is left, and hears that it is over; what it still says is passed over.
    Closing {
        linger: bool,
    },
}

/// A request and its answer.
#[expect(clippy::struct_excessive_bools, reason = "facts do not exclude each other")]
struct Exchange {
    request: Framing,
    /// Once its head has come.
    response: Option<Framing>,
    head: bool,
    upgrade: bool,
    dialect: Dialect,
    /// Both say so far that the connection can be used again.
    persistent: bool,
    /// The model server does not take the rest of the request.
    deaf: bool,
    begun: Option<Begun>,
    record: Option<Record>,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Dialled, ForwardError>>>>;

struct Connection<'a> {
    worker: &'a Rc<Worker>,
    bell: &'a Bell,
    route: usize,
    client: Side<TcpStream>,
    upstream: Option<Side<Dialled>>,
    connecting: Option<Connecting>,
    /// The request that waits for it.
    waiting: Option<Begun>,
    /// When the model server's connection was last of use.
    used_ns: u64,
    /// What the client has sent and nobody has taken.
    ahead: Vec<u8>,
    /// The beginning of a response's head.
    partial: Vec<u8>,
    phase: Phase,
    exchange: Option<Exchange>,
    deadline: Deadline,
}

/// Why a connection leaves the relay, found out somewhere inside.
struct Leave(bool);

const ENDED: Leave = Leave(false);
const TO_STACK: Leave = Leave(true);

type Step = Result<(), Leave>;

/// Relays `client`'s HTTP/1 messages until it ends, or until a request comes that belongs to the stack.
pub fn relay<'a>(worker: &'a Rc<Worker>, client: Client, bell: &'a Bell) -> impl Future<Output = Exit> {
    run(worker, client, bell, Phase::Boundary)
}

/// Passes bytes of which nothing is known, both ways, until both sides have ended.
pub fn opaque<'a>(worker: &'a Rc<Worker>, client: Client, bell: &'a Bell) -> impl Future<Output = Exit> {
    worker.meter.metrics.opaque_connections.inc();
    run(worker, client, bell, Phase::Tunnel { opaque: true })
}

/// The connection is made before the future is, which would otherwise have room for it and for what it was made of as long as it lives.
fn run<'a>(worker: &'a Rc<Worker>, client: Client, bell: &'a Bell, phase: Phase) -> impl Future<Output = Exit> {
    let Client { stream, ahead, peer, route } = client;
    let mut connection = Connection {
        worker,
        bell,
        route,
        client: Side::new(stream),
        upstream: None,
        connecting: None,
        waiting: None,
        used_ns: 0,
        ahead: Vec::new(),
        partial: Vec::new(),
        phase,
        exchange: None,
        deadline: Deadline::default(),
    };
    connection.deadline.set_after(worker.shared.config.header_timeout);
    let mut ahead = Some(ahead);
    async move {
        let left = poll_fn(|cx| {
            let mut buffer = worker.buffer.take();
            let begun = match ahead.take() {
                Some(ahead) => connection.begin(cx, &ahead),
                None => Ok(()),
            };
            let polled = match begun {
                Ok(()) => connection.poll(cx, &mut buffer),
                Err(leave) => Poll::Ready(leave),
            };
            worker.buffer.put(buffer);
            polled
        })
        .await;
        let Connection { client, upstream, ahead, phase, .. } = connection;
        // A connection to the model server that was left between two messages is good for others.
        let clean = upstream.filter(|upstream| phase == Phase::Boundary && !upstream.ended && upstream.is_clear());
        let Leave(to_stack) = left;
        if to_stack {
            if let Some(upstream) = clean {
                worker.pools[route].adopt(upstream.stream);
            }
            return Exit::Stack(Client { stream: client.stream, ahead, peer, route });
        }
        if let Some(upstream) = clean {
            worker.parked[route].put(upstream.stream);
        }
        Exit::Ended
    }
}

impl Connection<'_> {
    /// With what was read before.
    fn begin(&mut self, cx: &mut Context<'_>, ahead: &[u8]) -> Step {
        match self.phase {
            Phase::Boundary if !ahead.is_empty() => self.at_boundary(cx, ahead),
            Phase::Tunnel { .. } => {
                self.client.watch();
                self.ahead = ahead.to_vec();
                self.connect();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Leave> {
        if self.bell.rung(cx) {
            let worker = self.worker;
            let idle = self.phase == Phase::Boundary && self.ahead.is_empty();
            if worker.held.is_held() || worker.drain.has_reached(Drain::Gone) || (idle && worker.drain.has_reached(Drain::Leaving)) {
                return Poll::Ready(ENDED);
            }
        }
        loop {
            match self.step(cx, buffer) {
                Ok(true) => {}
                Ok(false) => break,
                Err(leave) => return Poll::Ready(leave),
            }
        }
        match self.time_is_up(cx) {
            Ok(false) => Poll::Pending,
            // Something was said to the client: its socket must be asked again before anybody waits.
            Ok(true) => self.poll(cx, buffer),
            Err(leave) => Poll::Ready(leave),
        }
    }

    /// Moves whatever can be moved. Whether anything was.
    fn step(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<bool, Leave> {
        let mut moved = self.client.pay(cx).map_err(|_| ENDED)?;
        if let Some(upstream) = &mut self.upstream {
            match upstream.pay(cx) {
                Ok(paid) => moved |= paid,
                Err(_) => self.upstream_is_deaf(),
            }
        }
        moved |= self.settle(cx)?;
        if let Some(connecting) = &mut self.connecting
            && let Poll::Ready(connected) = connecting.as_mut().poll(cx)
        {
            self.connecting = None;
            self.connected(cx, connected)?;
            moved = true;
        }
        if self.client.is_clear()
            && let Some(upstream) = &mut self.upstream
            && !upstream.ended
            && let Poll::Ready(read) = upstream.poll_read(cx, buffer)
        {
            moved = true;
            match read {
                Ok(0) => self.upstream_ended(cx, false)?,
                Ok(size) => self.upstream_said(cx, &buffer[..size])?,
                Err(_) => self.upstream_ended(cx, true)?,
            }
        }
        if self.wants_client()
            && let Poll::Ready(read) = self.client.poll_read(cx, buffer)
        {
            moved = true;
            match read {
                Ok(0) => {}
                Ok(size) => self.client_said(cx, &buffer[..size])?,
                Err(_) => return Err(ENDED),
            }
        }
        Ok(moved)
    }

    fn wants_client(&self) -> bool {
        let upstream_is_clear = self.upstream.as_ref().is_none_or(Side::is_clear);
        !self.client.ended
            && match self.phase {
                Phase::Boundary | Phase::Closing { .. } => true,
                Phase::Connecting => false,
                Phase::Exchange if self.exchange.as_ref().is_some_and(|exchange| exchange.request.is_done()) => self.ahead.len() < HEAD_MAX,
                Phase::Exchange => upstream_is_clear,
                Phase::Tunnel { .. } => self.upstream.is_some() && upstream_is_clear,
            }
    }

    /// What follows from what has been said and heard so far. Whether something did.
    fn settle(&mut self, cx: &mut Context<'_>) -> Result<bool, Leave> {
        let client_ended = self.client.ended && self.ahead.is_empty();
        match self.phase {
            Phase::Boundary if self.client.ended => return Err(ENDED),
            Phase::Boundary | Phase::Connecting => {}
            Phase::Exchange => {
                let Some(exchange) = &mut self.exchange else { return Err(ENDED) };
                if let Some(upstream) = &mut self.upstream
                    && client_ended
                    && (exchange.request.is_done() || !exchange.deaf)
                    && upstream.is_clear()
                {
                    // Half of the connection is closed, or all of it; which, the model server finds out as it would without us.
                    upstream.end(cx);
                    exchange.persistent = false;
                }
                if self.client.is_clear() && exchange.response.as_ref().is_some_and(Framing::is_done) {
                    if let Some(mut record) = exchange.record.take() {
                        record.finish();
                    }
                    let sent = exchange.request.is_done() && self.upstream.as_ref().is_some_and(Side::is_clear);
                    if sent || exchange.deaf || client_ended {
                        self.exchange_ended(cx)?;
                        return Ok(true);
                    }
                }
            }
            Phase::Tunnel { .. } => {
                let Some(upstream) = &mut self.upstream else { return Ok(false) };
                if client_ended {
                    upstream.end(cx);
                }
                if upstream.ended {
                    self.client.end(cx);
                    if client_ended && self.client.is_clear() && upstream.is_clear() {
                        return Err(ENDED);
                    }
                }
            }
            Phase::Closing { linger } => {
                if self.client.is_clear() {
                    self.client.end(cx);
                    if !linger || self.client.ended {
                        return Err(ENDED);
                    }
                }
            }
        }
        Ok(false)
    }

    fn exchange_ended(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(exchange) = self.exchange.take() else { return Err(ENDED) };
        if !exchange.persistent || exchange.deaf {
            self.close(!exchange.request.is_done() || !self.ahead.is_empty());
            return Ok(());
        }
        self.phase = Phase::Boundary;
        self.used_ns = clock::now_ns();
        self.deadline.set(self.used_ns + clock::ns(self.worker.shared.config.header_timeout));
        if self.ahead.is_empty() {
            return if self.worker.drain.has_reached(Drain::Leaving) { Err(ENDED) } else { Ok(()) };
        }
        let ahead = std::mem::take(&mut self.ahead);
        self.at_boundary(cx, &ahead)
    }

    /// Ends the client's connection when it has taken what it was given.
    fn close(&mut self, linger: bool) {
        self.phase = Phase::Closing { linger };
        self.upstream = None;
        self.deadline.set_after(LINGER);
    }

    fn tell_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        match self.client.send(cx, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => {
                if let Some(upstream) = &mut self.upstream {
                    upstream.read_less();
                }
                Ok(())
            }
            Err(_) => Err(ENDED),
        }
    }

    fn count(&self, opaque: bool, bytes: &[u8]) {
        if opaque {
            self.worker.meter.metrics.opaque_bytes.inc_by(bytes.len() as u64);
        }
    }

    /// Whether time was up and something was said about it.
    fn time_is_up(&mut self, cx: &mut Context<'_>) -> Result<bool, Leave> {
        let waits = match self.phase {
            Phase::Boundary | Phase::Closing { .. } => true,
            Phase::Exchange => self.exchange.as_ref().is_some_and(|exchange| exchange.response.is_none()),
            // A dial has a deadline of its own, and a tunnel none.
            Phase::Connecting | Phase::Tunnel { .. } => false,
        };
        if !waits || !self.deadline.is_over(cx) {
            return Ok(false);
        }
        if self.phase == Phase::Exchange {
            let after = self.worker.shared.config.upstream_timeout;
            return self.answer(cx, &ForwardError::Timeout { after }).map(|()| true);
        }
        if self.phase == Phase::Boundary {
            let half = !self.ahead.is_empty();
            self.worker.meter.exceeded(if half { "head-time" } else { "idle-time" });
            if half {
                self.close(true);
                return self.tell_client(cx, &too_slow(self.worker.shared.config.header_timeout)).map(|()| true);
            }
        }
        Err(ENDED)
    }
}

impl Exchange {
    fn new(head: &RequestHead, request: Framing, begun: Begun) -> Self {
        let dialect = if head.oip { Dialect::Oip } else { Dialect::Http };
        let RequestHead { head, upgrade, persistent, .. } = *head;
        Self { request, response: None, head, upgrade, dialect, persistent, deaf: false, begun: Some(begun), record: None }
    }
}
