//! The engine of connections that no armed policy can touch: bytes pass as they are, and parsers that only read along measure.
//!
//! ```text
//!  client ──► sniff ─┬─► http1: one exchange at a time ──┐         ▲ a request that belongs to the stack is handed over unsent,
//!                    ├─► http2: frame by frame ──────────┼─► model │ with both sockets, and comes back the same way
//!                    └─► opaque: TLS and whatever else ──┘  server ▼
//!                                  stack (served.rs): hyper
//! ```
//!
//! **The seam.** Whether something is armed is asked when a request begins, so a request that begins after `PUT /policy` has answered is the stack's.
//! HTTP/1 moves between two messages: to the stack with the request's bytes unsent ([`http1`] says why none is lost or repeated), back when hyper is between two
//! messages and gives up its buffer ([`served`](crate::served)). HTTP/2 is left by its client, by graceful GOAWAY, in both directions ([`http2`]).
//!
//! **What belongs to the stack although nothing is armed**: requests that ask the sidecar itself (`steadfast-*` fields), requests that could be read in two ways,
//! everything while the pod parts with its clients, and what finds no model server: each has one answer, made in one place.
//!
//! Between two messages the two connections go separate ways: a model server that closes an idle one is dialled again for the next request, and one whose client has
//! left is parked for the next client. Within a message an end on either side is the other side's end at once.

/// What a client is told goes to the field `stream` as it is; only what it says is looked at.
macro_rules! writes_through {
    ($type:ident) => {
        impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for $type<S> {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(cx, buffer)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_shutdown(cx)
            }

            fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
            }

            fn is_write_vectored(&self) -> bool {
                self.stream.is_write_vectored()
            }
        }
    };
}

pub mod bell;
pub mod deadline;
pub mod http1;
pub mod http2;
pub mod parked;
pub mod side;

use std::{future::poll_fn, net::IpAddr, pin::Pin, task::Poll, time::Duration};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use crate::{drain::Phase, worker::Worker};

use bell::Bell;

/// The connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A method that is longer than this is none.
const METHOD_MAX: usize = 32;
/// While we leave, a client that has connected has so long to say something.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// A client's connection between two engines.
pub struct Client {
    pub stream: TcpStream,
    /// What it has sent and nobody has answered: the beginning of a message.
    pub ahead: Vec<u8>,
    pub peer: IpAddr,
    /// By which of [`Config::routes`](crate::config::Config::routes) it came in.
    pub route: usize,
}

/// How a connection left the relay.
pub enum Exit {
    Ended,
    /// Its next request belongs to the stack.
    Stack(Client),
}

/// What a connection speaks, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    /// TLS, or something of its own.
    Opaque,
}

/// Whether requests that begin now belong to the stack, whatever they say.
pub fn must_stack(worker: &Worker) -> bool {
    is_armed(worker) || worker.drain.has_reached(Phase::Parting)
}

/// Whether a policy in force could do something to a request. One that only burns CPU or holds the pod down could not.
pub fn is_armed(worker: &Worker) -> bool {
    worker.shared.store.load().policies.iter().any(|policy| !policy.rules.is_empty() || policy.headers.is_some())
}

/// Waits for the first bytes, which become [`Client::ahead`]; `None`: they did not come in time, or the client left.
pub async fn sniff(worker: &Worker, client: &mut Client, bell: &Bell) -> Option<Protocol> {
    let mut within = Box::pin(tokio::time::sleep(worker.shared.config.header_timeout));
    let mut leaving = worker.drain.has_reached(Phase::Leaving);
    if leaving {
        within.as_mut().reset(tokio::time::Instant::now() + FIRST_WORD);
    }
    poll_fn(|cx| {
        if bell.rung(cx) {
            if worker.held.is_held() || worker.drain.has_reached(Phase::Gone) {
                return Poll::Ready(None);
            }
            if !leaving && worker.drain.has_reached(Phase::Leaving) {
                leaving = true;
                within.as_mut().reset(tokio::time::Instant::now() + FIRST_WORD);
            }
        }
        loop {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut client.stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => client.ahead.extend_from_slice(read.filled()),
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => break,
            }
            if let Some(protocol) = protocol(&client.ahead) {
                return Poll::Ready(Some(protocol));
            }
        }
        within.as_mut().poll(cx).map(|()| {
            if !leaving {
                worker.meter.exceeded(if client.ahead.is_empty() { "idle-time" } else { "head-time" });
            }
            None
        })
    })
    .await
}

/// What `bytes` begin, once that is certain.
pub(crate) fn protocol(bytes: &[u8]) -> Option<Protocol> {
    if PREFACE.starts_with(bytes) || bytes.starts_with(PREFACE) {
        return (bytes.len() >= PREFACE.len()).then_some(Protocol::Http2);
    }
    // Empty lines before a request are passed over (RFC 9112 §2.2).
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte));
    // However they are cut: what is too many of them in pieces is too many at once.
    let Some(start) = start.filter(|start| *start <= METHOD_MAX) else { return (bytes.len() > METHOD_MAX).then_some(Protocol::Opaque) };
    let word = &bytes[start..];
    match word.iter().position(|byte| !is_token(*byte)) {
        Some(end) if end > 0 && end <= METHOD_MAX && b" \t".contains(&word[end]) => Some(Protocol::Http1),
        None if word.len() <= METHOD_MAX => None,
        _ => Some(Protocol::Opaque),
    }
}

pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether bytes that are no HTTP pass while something is armed: a TLS record does, because the server in the pod speaks it and nobody here could read it.
pub fn is_tls(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x16, 0x03]) || bytes == [0x16]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_known_by_its_first_bytes_and_not_before() {
        for (bytes, expected) in [
            (&b""[..], None),
            (b"\r\n", None),
            (b"GE", None),
            (b"GET", None),
            (b"GET /", Some(Protocol::Http1)),
            (b"\r\nGET /", Some(Protocol::Http1)),
            (b"PRI * HT", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Some(Protocol::Http2)),
            (b"PRI /x HTTP/1.1\r\n", Some(Protocol::Http1)),
            (&[0x16, 0x03, 0x01], Some(Protocol::Opaque)),
            (b"\0", Some(Protocol::Opaque)),
            (b" GET /", Some(Protocol::Opaque)),
            // Refused there.
            (b"GET\t/", Some(Protocol::Http1)),
            (b"GET\0/", Some(Protocol::Opaque)),
            (&[b'x'; 33], Some(Protocol::Opaque)),
        ] {
            assert_eq!(protocol(bytes), expected, "{bytes:?}");
        }
    }
}
