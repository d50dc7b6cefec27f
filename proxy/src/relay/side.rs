//! One of the two sockets of a relayed connection, and what it has not taken yet.
//!
//! Invariants: bytes leave in the order in which they were given; nothing is read for a socket that still owes (whoever relays asks [`Side::is_clear`] first), so at most
//! one read's bytes wait for it; what is read at once grows to [`READ_MAX`] only while the other side takes all of it, so a slow reader costs [`READ_MIN`].

use std::{
    cell::RefCell,
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read, at first and at most: the larger the read, the fewer system calls a tensor costs.
const READ_MIN: usize = 16 << 10;
const READ_MAX: usize = 256 << 10;
/// A buffer that was needed once and is larger than this is given back.
const KEEP: usize = 4 << 10;

/// A thread's buffer: borrowed for as long as a connection is polled, and by one at a time.
#[derive(Default)]
pub struct Buffer(RefCell<Vec<u8>>);

impl Buffer {
    /// Takes it; [`Buffer::put`] gives it back.
    pub fn take(&self) -> Vec<u8> {
        let mut buffer = self.0.take();
        if buffer.is_empty() {
            // Zeroed by the kernel as it is used, and most of it never is.
            buffer = vec![0; READ_MAX];
        }
        buffer
    }

    pub fn put(&self, buffer: Vec<u8>) {
        self.0.replace(buffer);
    }
}

/// See the module.
pub struct Side<S> {
    pub stream: S,
    owed: Vec<u8>,
    paid: usize,
    /// How much is read from it at once.
    reads: usize,
    /// It has sent its last byte.
    pub ended: bool,
    /// It was told that nothing more comes.
    told_end: bool,
}

impl<S: AsyncRead + AsyncWrite + AsFd + Unpin> Side<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, owed: Vec::new(), paid: 0, reads: READ_MIN, ended: false, told_end: false }
    }

    /// Asks the kernel to find out when the other end has vanished without a word: what is open for long and says nothing would stay for ever. (A socket that refuses
    /// this still works.)
    pub fn watch(&self) {
        let _ = setsockopt(&self.stream, sockopt::TcpKeepIdle, &30);
        let _ = setsockopt(&self.stream, sockopt::TcpKeepInterval, &10);
        let _ = setsockopt(&self.stream, sockopt::TcpKeepCount, &3);
        let _ = setsockopt(&self.stream, sockopt::KeepAlive, &true);
    }

    /// It has taken all that it was given.
    pub fn is_clear(&self) -> bool {
        self.owed.is_empty()
    }

    /// Reads into `buffer`; 0 is the end, and noted.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let most = self.reads.min(buffer.len());
        let mut read = ReadBuf::new(&mut buffer[..most]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) => {
                let size = read.filled().len();
                self.ended = size == 0;
                if size == most {
                    self.reads = (self.reads * 2).min(READ_MAX);
                }
                Poll::Ready(Ok(size))
            }
            Poll::Ready(Err(error)) => {
                self.ended = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The other side did not take what was read: less at once from now on.
    pub fn read_less(&mut self) {
        self.reads = READ_MIN;
    }

    /// Gives it `bytes`, after what it still owes. Whether it took all of them.
    pub fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<bool> {
        while self.owed.is_empty() && !bytes.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(size)) => bytes = &bytes[size..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.owed.extend_from_slice(bytes);
        Ok(self.owed.is_empty())
    }

    /// Gives it what it owes. Whether it is clear now, and was not before.
    pub fn pay(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.is_clear() {
            return Ok(false);
        }
        while self.paid < self.owed.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.owed[self.paid..]) {
                Poll::Ready(Ok(size)) => self.paid += size,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        self.forget();
        Ok(true)
    }

    /// What it owes is of no use any more.
    pub fn forget(&mut self) {
        self.paid = 0;
        if self.owed.capacity() > KEEP {
            self.owed = Vec::new();
        } else {
            self.owed.clear();
        }
    }

    /// Tells it, once and when it is clear, that nothing more comes; it may go on sending.
    pub fn end(&mut self, cx: &mut Context<'_>) {
        if self.is_clear() && !self.told_end {
            self.told_end = true;
            // Never pends on a socket; one that is gone needs not be told.
            let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
        }
    }
}
