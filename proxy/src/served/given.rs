//! A client's connection as hyper has it: with what was read of it before, what hyper does not listen to, and what goes out before an answer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::fault::link::Link;

/// A client's socket; by RST it ends where a fault asked for that.
pub struct Socket {
    pub stream: Option<TcpStream>,
    /// By which faults reach it.
    link: Link,
}

impl Socket {
    fn poll<T>(&mut self, poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        // It is taken with the whole of this, and nobody asks any more.
        self.stream.as_mut().map_or_else(|| Poll::Ready(Err(io::ErrorKind::NotConnected.into())), |stream| poll(Pin::new(stream)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.link.is_reset()
            && let Some(stream) = &self.stream
        {
            // A socket that refuses this is closed all the same.
            let _ = stream.set_zero_linger();
        }
    }
}

/// Bytes that a client may send ahead while its request is being answered; those behind them wait in the kernel.
const AHEAD_MAX: usize = 16 << 10;

/// A connection with what was read of it before.
pub struct Given {
    pub socket: Socket,
    pub ahead: BytesMut,
    /// The client has sent its last byte.
    ended: bool,
    /// HTTP/1: hyper does not listen to a client while it is being answered, so we do.
    listens: bool,
    /// hyper waits for bytes, and has said so since it last flushed.
    awaits: bool,
    /// What is left of interim answers that go before what hyper writes.
    interim: BytesMut,
    /// hyper's end of it is not the connection's.
    pub keep_open: Arc<AtomicBool>,
}

impl Given {
    pub fn new(stream: TcpStream, ahead: Vec<u8>, link: Link) -> Self {
        let socket = Socket { stream: Some(stream), link };
        Self { socket, ahead: ahead[..].into(), ended: false, listens: false, awaits: false, interim: BytesMut::new(), keep_open: Arc::default() }
    }

    /// Whose client may end its half and wait for its answer.
    #[must_use]
    pub fn ends_in_halves(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Writes what goes before anything else.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_empty() {
            self.interim = self.socket.link.take_interim()[..].into();
        }
        while !self.interim.is_empty() {
            let (socket, interim) = (&mut self.socket, &mut self.interim);
            let size = ready!(socket.poll(|stream| stream.poll_write(cx, interim)))?;
            self.interim.advance(size);
        }
        Poll::Ready(Ok(()))
    }

    /// Listens where hyper does not. hyper flushes whenever it has been woken and has done what it could.
    fn listen(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::ConnectionAborted);
        if self.socket.link.half().has_left() {
            return Err(gone());
        }
        if std::mem::take(&mut self.awaits) || self.ended {
            return Ok(());
        }
        while self.ahead.len() < AHEAD_MAX {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            match self.socket.poll(|stream| stream.poll_read(cx, &mut read)) {
                Poll::Pending => break,
                Poll::Ready(read) => read?,
            }
            // hyper may have asked before this flush, and would not be woken any more by what is here now.
            cx.waker().wake_by_ref();
            if read.filled().is_empty() {
                self.ended = true;
                return if self.socket.link.half().ends() { Err(gone()) } else { Ok(()) };
            }
            self.ahead.extend_from_slice(read.filled());
        }
        Ok(())
    }
}

impl AsyncRead for Given {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let read = self.socket.poll(|stream| stream.poll_read(cx, buffer));
            self.awaits = read.is_pending();
            return read;
        }
        self.awaits = false;
        let size = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..size]);
        self.ahead.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Given {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.socket.link.writes();
        self.socket.poll(|stream| stream.poll_write(cx, buffer))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        let polled = self.socket.poll(|stream| stream.poll_flush(cx));
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.socket.link.flushed();
            if self.listens {
                self.listen(cx)?;
            }
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.keep_open.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        self.socket.poll(|stream| stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.socket.link.writes();
        self.socket.poll(|stream| stream.poll_write_vectored(cx, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.stream.as_ref().is_some_and(TcpStream::is_write_vectored)
    }
}
