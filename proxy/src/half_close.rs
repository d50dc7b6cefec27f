//! A client may end its half of an HTTP/1 connection and still wait for its answer, which looks exactly as when it has left. Who decides is the model server, as it would
//! without us: the end is passed on to it, behind the request, and if it breaks off then, the client is taken for gone. Only while a fault holds a request or its answer
//! up, and the model server could not be asked, an end is taken for a leaving.
//!
//! The relay does so by itself; this is the stack's part, where hyper keeps the two sockets apart. HTTP/2 has no such half: a stream says by itself how it ends.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{body::Whole, upstream::Dialled};

/// A client's half of its connection. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct ClientHalf(Arc<Client>);

#[derive(Debug, Default)]
struct Client {
    at: Mutex<At>,
    ended: AtomicBool,
    left: AtomicBool,
}

/// With whom the client's request is.
#[derive(Debug, Default)]
enum At {
    /// There is none, or it is on its way.
    #[default]
    Nobody,
    /// Held up by a fault.
    Us,
    /// With the model server, by this connection as soon as there is one.
    Server(Option<ServerHalf>),
}

impl ClientHalf {
    fn set(&self, at: At) {
        *self.0.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// A fault may hold the request up, or the answer to it.
    pub fn held(&self) {
        self.set(At::Us);
    }

    /// The request goes to the model server.
    pub fn forwarded(&self) {
        self.set(At::Server(None));
    }

    /// By this connection.
    pub fn forwarded_by(&self, server: ServerHalf) {
        if self.has_ended() {
            server.end();
        }
        self.set(At::Server(Some(server)));
    }

    /// It has been answered.
    pub fn over(&self) {
        self.set(At::Nobody);
    }

    /// The client has ended its half: nothing more comes from it. Whether it is gone.
    pub fn ends(&self) -> bool {
        self.0.ended.store(true, Ordering::Release);
        match &*self.0.at.lock().unwrap_or_else(PoisonError::into_inner) {
            At::Us => return true,
            At::Server(Some(server)) => server.end(),
            At::Nobody | At::Server(None) => {}
        }
        false
    }

    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// The client is gone after all: its connection ends as soon as it is looked at.
    pub fn leave(&self) {
        self.0.left.store(true, Ordering::Release);
    }

    pub fn has_left(&self) -> bool {
        self.0.left.load(Ordering::Acquire)
    }
}

/// Our half of a connection to the model server. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct ServerHalf(Arc<Server>);

#[derive(Debug, Default)]
struct Server {
    /// Whether the request has been given to the connection to its end.
    whole: Mutex<Whole>,
    end: AtomicBool,
    cut: AtomicBool,
    /// The task that drives the connection.
    driver: Mutex<Option<Waker>>,
}

impl ServerHalf {
    /// A request begins, `whole` when it has been read to its end.
    pub fn begins(&self, whole: Whole) {
        *self.0.whole.lock().unwrap_or_else(PoisonError::into_inner) = whole;
    }

    /// It is to end behind the request.
    fn end(&self) {
        self.0.end.store(true, Ordering::Release);
        self.wake();
    }

    /// The connection breaks off.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(driver) = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            driver.wake_by_ref();
        }
    }

    /// Nobody can ask by this connection again.
    pub fn ends(&self) -> bool {
        self.0.end.load(Ordering::Acquire)
    }

    fn is_due(&self) -> bool {
        self.ends() && self.0.whole.lock().unwrap_or_else(PoisonError::into_inner).get()
    }

    fn driven_by(&self, waker: &Waker) {
        let mut driver = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if !driver.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *driver = Some(waker.clone());
        }
    }
}

/// A connection to the model server whose writing half can be ended while its answer is awaited.
pub struct Ending {
    stream: Dialled,
    half: ServerHalf,
    ended: bool,
}

impl Ending {
    pub fn new(stream: Dialled, half: ServerHalf) -> Self {
        Self { stream, half, ended: false }
    }
}

impl AsyncRead for Ending {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.half.driven_by(cx.waker());
        if self.half.0.cut.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Ending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has written all that it was given.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended && self.half.is_due() {
            self.ended = true;
            // Never pends on a socket; one that is gone needs not be told.
            let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_leaving_only_while_nobody_else_has_the_request() {
        let client = ClientHalf::default();
        assert!(!client.ends(), "between two messages it is neither");
        client.held();
        assert!(client.ends());
        client.forwarded();
        assert!(!client.ends());
        let server = ServerHalf::default();
        client.forwarded_by(server.clone());
        assert!(server.ends(), "it had ended before");
        client.over();
        assert!(!client.ends() && client.has_ended() && !client.has_left());
    }

    #[test]
    fn the_server_hears_of_the_end_behind_the_request() {
        let (server, whole) = (ServerHalf::default(), Whole::default());
        server.begins(whole.clone());
        server.end();
        assert!(!server.is_due());
        whole.set();
        assert!(server.is_due());
    }
}
