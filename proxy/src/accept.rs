//! Client connections: bounded in number, given a time to say something, served as HTTP/1.1 or HTTP/2 by their first bytes.
//!
//! Invariants: at most `max_connections` ÷ threads connections are open on a thread, the rest wait in the kernel's queue; no head is larger than
//! [`HEAD_MAX`]; a connection that says nothing for `header_timeout` is closed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Version};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    time::Sleep,
};
use tower::ServiceExt;

use crate::{
    config::UNSPECIFIED,
    drain::{Phase, reached},
    fault::{
        connection,
        link::{Link, NoAnswer},
    },
    hold::held_down,
    stack,
    worker::{LocalExec, Worker},
};

/// Bytes of one request head.
const HEAD_MAX: usize = 64 << 10;
/// Fields of one request head.
const FIELDS_MAX: usize = 128;
/// Streams of one HTTP/2 connection at one moment.
const STREAMS_MAX: u32 = 256;
/// While we leave, a client that has connected has so long to say something.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 1024;
/// The connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One bound socket for each of `threads`, all on one port; port 0 becomes whichever is free. `[::]` takes both families, or IPv4 where there is no other.
pub fn bind(address: SocketAddr, threads: usize) -> io::Result<(SocketAddr, Vec<TcpSocket>)> {
    match bind_one(address, threads) {
        Err(error) if address.ip() == UNSPECIFIED && matches!(error.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)) => {
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), threads)
        }
        bound => bound,
    }
}

/// Listens again on a port of [`bind`] that this thread has closed.
pub fn reopen(address: SocketAddr, threads: usize) -> io::Result<TcpListener> {
    socket(address, threads).and_then(listen)
}

fn socket(address: SocketAddr, threads: usize) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if threads > 1 {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    Ok(socket)
}

fn bind_one(address: SocketAddr, threads: usize) -> io::Result<(SocketAddr, Vec<TcpSocket>)> {
    // A port that is given must be ours alone: threads share it by a flag by which another sidecar's threads could share it too, unnoticed.
    if threads > 1 && address.port() != 0 {
        let alone = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        alone.set_reuseaddr(true)?;
        alone.bind(address)?;
    }
    let first = socket(address, threads)?;
    let address = first.local_addr()?;
    let sockets = std::iter::once(Ok(first)).chain((1..threads).map(|_| socket(address, threads))).collect::<io::Result<_>>()?;
    Ok((address, sockets))
}

/// Listens on a socket of [`bind`].
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Serves `listener`, which is that of `route`, until the sidecar has drained.
pub async fn accept(worker: Rc<Worker>, mut listener: TcpListener, route: usize) {
    let config = &worker.shared.config;
    let most = (config.max_connections / config.threads).max(1);
    let builder = Rc::new(builder(config.header_timeout));
    let (mut leaving, mut gone) = (worker.drain.subscribe(), worker.drain.subscribe());
    let mut refused = worker.shared.store.refuse.subscribe();
    let last = loop {
        let next = async {
            worker.connections.below(most).await;
            listener.accept().await
        };
        tokio::select! {
            biased;
            () = reached(&mut gone, Phase::Gone) => return,
            () = held_down(&mut refused) => tokio::select! {
                // Nobody waits at a port that is closed.
                () = reached(&mut leaving, Phase::Leaving) => break None,
                reopened = connection::closed(listener, &worker.shared.store.refuse, config.threads) => match reopened {
                    Ok(reopened) => listener = reopened,
                    Err(error) => {
                        // A socket always knows its address.
                        tracing::error!(%error, "a port is lost");
                        break None;
                    }
                },
            },
            accepted = next => match accepted {
                Ok((stream, _)) if worker.held.is_held() => refuse(&stream),
                Ok((stream, peer)) => {
                    if let Some(stream) = connection::meet(&worker, stream, peer) {
                        serve(&worker, &builder, stream, peer, route);
                    }
                }
                // Out of descriptors or the client gave up; neither is a reason to stop, and the first needs a moment.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            () = reached(&mut leaving, Phase::Leaving) => break Some(listener),
        }
    };
    // Who connected before the end is served: the kernel's queue is emptied, then the port is closed, and whoever comes now is refused and told so.
    let emptied = last.map_or(Ok(()), |listener| {
        let listener = listener.into_std()?;
        while let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(true)?;
            serve(&worker, &builder, TcpStream::from_std(stream)?, peer, route);
        }
        Ok::<_, io::Error>(())
    });
    if let Err(error) = emptied {
        tracing::warn!(%error, "connections that waited could not be served");
    }
    tokio::select! {
        () = reached(&mut gone, Phase::Gone) => {}
        () = worker.connections.below(1) => {}
    }
}

fn builder(header_timeout: Duration) -> auto::Builder<LocalExec> {
    let mut builder = auto::Builder::new(LocalExec);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEAD_MAX)
        .max_headers(FIELDS_MAX)
        // Answers pass as they are.
        .auto_date_header(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX as u32)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .auto_date_header(false);
    builder
}

/// Held down: the client is told at once, by a reset.
fn refuse(stream: &TcpStream) {
    // A socket that refuses this is closed all the same.
    let _ = stream.set_zero_linger();
}

fn serve(worker: &Rc<Worker>, builder: &Rc<auto::Builder<LocalExec>>, stream: TcpStream, peer: SocketAddr, route: usize) {
    // Small answers must not wait for the acknowledgement of the last one. A socket that refuses this still works.
    let _ = stream.set_nodelay(true);
    let (worker, builder) = (Rc::clone(worker), Rc::clone(builder));
    let open = worker.connections.enter();
    worker.meter.metrics.connections.inc();
    tokio::task::spawn_local(async move {
        // Told when a request has come by HTTP/2.
        let streams = Rc::new(Notify::new());
        let told = Rc::clone(&streams);
        let link = Link::default();
        let stack = stack::stack(Rc::clone(&worker), peer.ip().to_canonical(), route, link.clone()).map_request(move |request: Request<Incoming>| {
            if request.version() == Version::HTTP_2 {
                told.notify_one();
            }
            request
        });
        // An answer that a fault keeps back ends its connection or its stream here.
        let stack = stack.map_result(|answer: Result<_, std::convert::Infallible>| {
            let Ok(response) = answer;
            NoAnswer::heed(response)
        });
        let service = TowerToHyperService::new(stack);
        let spoke = Arc::new(Notify::new());
        let stream = FirstBytes::new(stream, worker.shared.config.header_timeout, Arc::clone(&spoke), link);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let (mut parting, mut leaving, mut gone) = (worker.drain.subscribe(), worker.drain.subscribe(), worker.drain.subscribe());
        let mut held = worker.held.subscribe();
        let part = async {
            reached(&mut parting, Phase::Parting).await;
            // Nothing is lost with a connection that nobody asks by, and one that was told to go before it asked would come back to where it was told.
            streams.notified().await;
        };
        tokio::pin!(part);
        let leave = async {
            reached(&mut leaving, Phase::Leaving).await;
            // A client that has just connected gets its first answer; asked to leave before it spoke, hyper would close the connection in its face.
            let _ = tokio::time::timeout(FIRST_WORD, spoke.notified()).await;
        };
        tokio::pin!(leave);
        let (mut parted, mut left) = (false, false);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "client connection ended");
                    }
                    break;
                }
                // HTTP/1 is told by each answer's head.
                () = &mut part, if !parted => {
                    parted = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut leave, if !left => {
                    (parted, left) = (true, true);
                    connection.as_mut().graceful_shutdown();
                }
                () = reached(&mut gone, Phase::Gone) => break,
                () = held_down(&mut held) => break,
            }
        }
        worker.meter.metrics.connections.dec();
        drop(open);
    });
}

/// A connection that must tell its protocol in time. hyper's own timeout begins only once the protocol is known.
struct FirstBytes {
    stream: TcpStream,
    /// While the protocol is open: how many bytes of the preface were seen, and until when the rest must come.
    waiting: Option<(usize, Pin<Box<Sleep>>)>,
    /// Told when something was read.
    spoke: Option<Arc<Notify>>,
    /// By which faults reach it.
    link: Link,
}

impl Drop for FirstBytes {
    fn drop(&mut self) {
        if self.link.is_reset() {
            // A socket that refuses this is closed all the same.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl FirstBytes {
    fn new(stream: TcpStream, within: Duration, spoke: Arc<Notify>, link: Link) -> Self {
        Self { stream, waiting: Some((0, Box::pin(tokio::time::sleep(within)))), spoke: Some(spoke), link }
    }
}

impl AsyncRead for FirstBytes {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before
            && let Some(spoke) = self.spoke.take()
        {
            spoke.notify_one();
        }
        if let Some((seen, deadline)) = &mut self.waiting {
            match &polled {
                Poll::Ready(Ok(())) => {
                    let new = &buffer.filled()[before..];
                    let preface = PREFACE[*seen..].iter().zip(new).all(|(expected, found)| expected == found);
                    *seen += new.len();
                    if !preface || *seen >= PREFACE.len() {
                        self.waiting = None;
                    }
                }
                Poll::Pending if deadline.as_mut().poll(cx).is_ready() => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Ready(Err(_)) | Poll::Pending => {}
            }
        }
        polled
    }
}

impl AsyncWrite for FirstBytes {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.link.flushed();
        }
        polled
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_threads_share_one_port_even_when_any_will_do() {
        let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert!(address.port() > 0);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        let listeners: Vec<_> = sockets.into_iter().map(|socket| listen(socket).unwrap()).collect();
        assert_eq!(listeners.len(), 3);
    }

    #[tokio::test]
    async fn a_second_sidecar_cannot_take_the_port_unnoticed() {
        for threads in [1, 2] {
            let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), threads).unwrap();
            let _first: Vec<_> = sockets.into_iter().map(|socket| listen(socket).unwrap()).collect();
            let second = bind(address, threads).and_then(|(_, mut sockets)| listen(sockets.remove(0)));
            assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse, "{threads} threads");
        }
    }
}
