//! Users' connections. Where every request has one of its own, each leaves by the port that has not been used for longest.
//!
//! A Service's address is rewritten by the node's connection tracking, which remembers an attempt that was never answered for two minutes
//! (`nf_conntrack_tcp_timeout_syn_sent`), by the port that it came from. The kernel hands ports out again much sooner, and a connection from such a port is
//! led to the lost pod once more, long after its endpoint has gone: one busy client would suffer what a thousand clients with addresses of their own
//! do not. In turn, all 64,512 ports last for two minutes at 500 connections a second.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tower::Service;

/// The first port that needs no privilege.
const FIRST: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST;
/// Ports that are in use by others stand in a row at times; after so many the kernel chooses.
const TRIES: u32 = 64;

/// Of the whole process: every user leaves by another.
static TURN: AtomicU32 = AtomicU32::new(0);

/// Connects to one address, whatever the request says.
#[derive(Clone, Debug)]
pub(super) struct Connect {
    pub(super) target: SocketAddr,
    /// Every connection leaves by the port that has not been used for longest.
    pub(super) in_turn: bool,
}

impl Connect {
    async fn connect(self) -> io::Result<TokioIo<TcpStream>> {
        let tries = if self.in_turn { TRIES } else { 0 };
        for _ in 0..tries {
            let port = (FIRST + TURN.fetch_add(1, Ordering::Relaxed) % PORTS) as u16;
            match self.from(port).await {
                // Somebody has it, or had it a moment ago.
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
                connected => return connected,
            }
        }
        self.from(0).await
    }

    async fn from(&self, port: u16) -> io::Result<TokioIo<TcpStream>> {
        let (socket, any) = match self.target {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        socket.set_nodelay(true)?;
        if port != 0 {
            // Connections that have ended keep a port for a minute otherwise.
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(any, port))?;
        }
        socket.connect(self.target).await.map(TokioIo::new)
    }
}

impl Service<Uri> for Connect {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn no_port_is_used_again_before_all_others_and_ports_of_others_are_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let target = listener.local_addr().expect("bound");
        let next = (FIRST + (TURN.load(Ordering::Relaxed) + 20) % PORTS) as u16;
        let taken = TcpListener::bind(("0.0.0.0", next)).await;
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let connected = Connect { target, in_turn: true }.connect().await.expect("connected");
            let (accepted, from) = listener.accept().await.expect("accepted");
            assert_eq!(connected.inner().local_addr().expect("connected"), from);
            assert!(seen.insert(from.port()), "{from} was used a moment ago");
            drop((connected, accepted));
        }
        assert!(taken.is_err() || !seen.contains(&next), "a port that somebody listens on");
    }

    #[tokio::test]
    async fn a_refused_connection_is_an_error_and_not_another_try() {
        let target = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
        let before = TURN.load(Ordering::Relaxed);
        let error = Connect { target, in_turn: true }.connect().await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(TURN.load(Ordering::Relaxed) - before < TRIES + 200);
    }
}
