//! Connections to the model server: one pool a thread, nothing shared.
//!
//! Invariants: at most `most` HTTP/1.1 connections are open; a connection is used again only after its response was read to the end and its request was
//! sent to the end; a request that was never written to a connection that had died in the pool is sent again on another one, and no other is.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::ForwardError;
use crate::{
    body::{RequestBody, UpstreamBody},
    clock, descriptors,
    half_close::{ClientHalf, Ending, ServerHalf},
    relay::http2::speaks_http2,
    upstream::{Dialled, Upstream},
    worker::LocalExec,
};

/// An idle connection older than this is not used again: servers close theirs after 5 s and more, and a request must not meet that.
pub const IDLE_NS_MAX: u64 = 4_000_000_000;
/// Idle connections kept.
const IDLE_MAX: usize = 256;
/// What an HTTP/2 server may send of one answer before it is read.
const WINDOW: u32 = 1 << 20;
/// Of an answer that will be held up: so little that it cannot be as many small frames as h2 takes for an attack.
const WINDOW_APART: u32 = 64 << 10;

/// Between two attempts to reach a model server that has not been there yet.
const ATTEMPTS_APART: Duration = Duration::from_millis(20);

/// One HTTP/1.1 connection.
struct Sender {
    sender: http1::SendRequest<RequestBody>,
    half: ServerHalf,
}

impl Sender {
    fn is_usable(&self) -> bool {
        self.sender.is_ready() && !self.half.ends()
    }
}

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

/// Whether a model server has been there since this sidecar started. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<AtomicBool>);

impl Reached {
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self) {
        // Written once: threads go on sharing the line that it stands in.
        if !self.get() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

struct Inner {
    upstream: Upstream,
    reached: Reached,
    /// One asks for a server that has not been there yet, the others wait for it.
    attempting: tokio::sync::Mutex<()>,
    connect_timeout: Duration,
    most: usize,
    open: Cell<usize>,
    /// Most recently used last.
    idle: RefCell<Vec<(Sender, u64)>>,
    h2: RefCell<Option<http2::SendRequest<RequestBody>>>,
    /// The model server has shown that it speaks HTTP/2.
    speaks_h2: Cell<bool>,
    /// One connects, the others wait for it.
    h2_connecting: tokio::sync::Mutex<()>,
}

/// A body that is owed to a connection for ever: its task would wait for it for as long, so the connection is cut with this.
struct Unwanted(ServerHalf);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// The right to put a connection back.
pub struct Lease {
    pool: Pool,
    sender: Sender,
    client: Option<ClientHalf>,
    /// The model server did not want the request's body.
    unwanted: Option<Unwanted>,
}

impl Lease {
    /// The response has been read to the end.
    pub fn give_back(mut self) {
        if self.unwanted.is_some() {
            return;
        }
        if self.sender.is_usable() {
            self.pool.put(self.sender);
        } else if !self.sender.sender.is_closed() && !self.sender.half.ends() {
            // The connection learns of the end in its own task, or the request is still being sent.
            tokio::task::spawn_local(async move {
                if self.sender.sender.ready().await.is_ok() {
                    self.pool.put(self.sender);
                }
            });
        }
    }

    /// The model server broke off: whether because its client had ended its half. Then the client is gone.
    pub fn client_has_left(&self) -> bool {
        let client = self.client.as_ref().filter(|client| client.has_ended());
        client.inspect(|client| client.leave()).is_some()
    }
}

impl Pool {
    pub fn new(upstream: Upstream, reached: Reached, connect_timeout: Duration, most: usize) -> Self {
        let (open, idle, h2, speaks_h2) = (Cell::new(0), RefCell::default(), RefCell::default(), Cell::default());
        let (attempting, h2_connecting) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        Self(Rc::new(Inner { upstream, reached, attempting, connect_timeout, most, open, idle, h2, speaks_h2, h2_connecting }))
    }

    /// Sends `request` and waits for the head of its response. `apart`: by an HTTP/2 connection of its own, since its answer will be held up.
    /// `client`: who asks, if by a connection of its own half of which may end.
    pub async fn send(
        &self,
        mut request: Request<RequestBody>,
        over_h2: bool,
        apart: bool,
        client: Option<&ClientHalf>,
    ) -> Result<Response<UpstreamBody>, ForwardError> {
        // What most requests do not need stands in boxes, so that they do not carry its room from layer to layer.
        if over_h2 && apart {
            return Box::pin(self.send_apart(request)).await;
        }
        if over_h2 {
            return Box::pin(self.send_h2(request)).await;
        }
        loop {
            let idle = self.take();
            let used_before = idle.is_some();
            let mut sender = match idle {
                Some(sender) => sender,
                None => Box::pin(self.connect()).await?,
            };
            sender.half.begins(request.body_mut().tell_end());
            let asked = request.body().asked();
            if let Some(client) = client {
                client.forwarded_by(sender.half.clone());
            }
            match sender.sender.try_send_request(request).await {
                Ok(response) => {
                    let switched = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
                    let unwanted = asked.as_ref().is_some_and(|asked| !asked.get()) && response.status().as_u16() >= 400;
                    let unwanted = unwanted.then(|| Unwanted(sender.half.clone()));
                    if let Some(asked) = asked.filter(|_| unwanted.is_none()) {
                        asked.ask();
                    }
                    let lease = (!switched).then(|| Lease { pool: self.clone(), sender, client: client.cloned(), unwanted });
                    return Ok(response.map(|body| UpstreamBody::new(body, lease)));
                }
                Err(error) => request = again(error, used_before)?,
            }
        }
    }

    async fn send_apart(&self, request: Request<RequestBody>) -> Result<Response<UpstreamBody>, ForwardError> {
        let mut sender = self.open_h2(WINDOW_APART).await?;
        sender.ready().await.map_err(ForwardError::Broken)?;
        let sent = sender.try_send_request(request).await;
        sent.map(|response| response.map(|body| UpstreamBody::new(body, None))).map_err(|error| failed(error.into_error()))
    }

    /// Whether the model server speaks HTTP/2: asked once, by a connection of its own.
    pub async fn speaks_http2(&self) -> Result<bool, ForwardError> {
        if self.0.speaks_h2.get() {
            return Ok(true);
        }
        let _one = self.0.h2_connecting.lock().await;
        if self.0.speaks_h2.get() {
            return Ok(true);
        }
        let mut stream = self.dial_patiently().await?;
        let speaks = timeout(self.0.connect_timeout, speaks_http2(&mut stream)).await.is_ok_and(|answered| answered.unwrap_or(false));
        self.0.speaks_h2.set(speaks);
        Ok(speaks)
    }

    /// The model server may have become another one, which has to be asked anew.
    pub fn forget_http2(&self) {
        self.0.speaks_h2.set(false);
    }

    async fn send_h2(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, ForwardError> {
        loop {
            let shared = self.0.h2.borrow().clone().filter(|sender| !sender.is_closed());
            let used_before = shared.is_some();
            let mut sender = match shared {
                Some(sender) => sender,
                None => Box::pin(self.connect_h2()).await?,
            };
            if sender.ready().await.is_err() {
                self.0.h2.borrow_mut().take();
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| UpstreamBody::new(body, None))),
                Err(error) => request = again(error, used_before)?,
            }
        }
    }

    /// Drops connections that have been idle for too long. Call it now and then.
    pub fn sweep(&self) {
        let now = clock::now_ns();
        self.0.idle.borrow_mut().retain(|(sender, since)| !sender.sender.is_closed() && now - since < IDLE_NS_MAX);
    }

    /// Drops connections that nobody uses.
    pub fn spare(&self) {
        self.0.idle.borrow_mut().clear();
    }

    fn take(&self) -> Option<Sender> {
        let now = clock::now_ns();
        let mut idle = self.0.idle.borrow_mut();
        while let Some((sender, since)) = idle.pop() {
            if sender.is_usable() && now - since < IDLE_NS_MAX {
                return Some(sender);
            }
        }
        None
    }

    fn put(&self, sender: Sender) {
        let mut idle = self.0.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push((sender, clock::now_ns()));
        }
    }

    /// A connection of its own, for the relay.
    pub async fn dial(&self) -> Result<Dialled, ForwardError> {
        let (upstream, after) = (&self.0.upstream, self.0.connect_timeout);
        let connected = timeout(after, upstream.connect()).await.map_err(|_| ForwardError::ConnectTimeout { upstream: upstream.clone(), after })?;
        let stream = connected.map_err(|why| {
            if descriptors::are_exhausted(&why) { ForwardError::Descriptors } else { ForwardError::Refused { upstream: upstream.clone(), why } }
        })?;
        self.0.reached.set();
        Ok(stream)
    }

    /// The same, and waits for a model server that has not been there since this sidecar started, for as long as a connection may take: sidecars start first.
    /// One that was there and is gone is missed at once, so that clients can go elsewhere.
    pub async fn dial_patiently(&self) -> Result<Dialled, ForwardError> {
        let until = Instant::now() + self.0.connect_timeout;
        let mut dialled = self.dial().await;
        while let Err(ForwardError::Refused { why, .. }) = &dialled
            && is_absent(why)
            && !self.0.reached.get()
            && Instant::now() < until
        {
            // However many wait, the server is asked for no more often than by one.
            let turn = async {
                let _one = self.0.attempting.lock().await;
                if !self.0.reached.get() {
                    sleep(ATTEMPTS_APART).await;
                }
            };
            if timeout_at(until, turn).await.is_err() {
                break;
            }
            dialled = self.dial().await;
        }
        dialled
    }

    async fn connect(&self) -> Result<Sender, ForwardError> {
        if self.0.open.get() >= self.0.most {
            return Err(ForwardError::Exhausted { most: self.0.most });
        }
        let open = Open::new(&self.0);
        let stream = Box::pin(self.dial_patiently()).await?;
        Self::handshake(stream, open).await
    }

    /// Takes in a connection on which the relay has been between two messages.
    pub fn adopt(&self, stream: Dialled) {
        if self.0.open.get() >= self.0.most {
            return;
        }
        let (pool, open) = (self.clone(), Open::new(&self.0));
        tokio::task::spawn_local(async move {
            if let Ok(mut sender) = Self::handshake(stream, open).await
                && sender.sender.ready().await.is_ok()
            {
                pool.put(sender);
            }
        });
    }

    async fn handshake(stream: Dialled, open: Open) -> Result<Sender, ForwardError> {
        let half = ServerHalf::default();
        let (sender, connection) = http1::handshake(TokioIo::new(Ending::new(stream, half.clone()))).await.map_err(ForwardError::Broken)?;
        tokio::task::spawn_local(async move {
            let _open = open;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the model server ended");
            }
        });
        Ok(Sender { sender, half })
    }

    async fn connect_h2(&self) -> Result<http2::SendRequest<RequestBody>, ForwardError> {
        let _one = self.0.h2_connecting.lock().await;
        if let Some(sender) = self.0.h2.borrow().clone().filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let sender = self.open_h2(WINDOW).await?;
        *self.0.h2.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }

    /// A new HTTP/2 connection, which ends when nobody asks by it any more.
    async fn open_h2(&self, window: u32) -> Result<http2::SendRequest<RequestBody>, ForwardError> {
        let stream = Box::pin(self.dial_patiently()).await?;
        let (sender, connection) = http2::Builder::new(LocalExec)
            .timer(TokioTimer::new())
            // A model server that died without a word is noticed while streams wait for it.
            .keep_alive_interval(Duration::from_secs(20))
            .initial_stream_window_size(window)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ForwardError::Broken)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to the model server ended");
            }
        });
        Ok(sender)
    }
}

/// A connection is open for as long as this lives.
struct Open(Rc<Inner>);

impl Open {
    fn new(pool: &Rc<Inner>) -> Self {
        pool.open.set(pool.open.get() + 1);
        Self(Rc::clone(pool))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// Nobody listens there: no process, or no socket in the file system yet.
fn is_absent(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// The request again, if nothing of it was sent on a connection that had served before; otherwise why it failed.
fn again(mut error: TrySendError<Request<RequestBody>>, used_before: bool) -> Result<Request<RequestBody>, ForwardError> {
    match error.take_message() {
        Some(request) if used_before => Ok(request),
        _ => Err(failed(error.into_error())),
    }
}

fn failed(error: hyper::Error) -> ForwardError {
    if error.is_user() { ForwardError::Client(error) } else { ForwardError::Broken(error) }
}
