//! The agent's own connections to the API server, marked so that its cuts let them through: it hears of the end of what it does, and can say so, while nothing else on the
//! node can.

use std::{io, net::SocketAddr, pin::Pin, task, time::Duration};

use hyper_util::{
    client::legacy::Client as HttpClient,
    rt::{TokioExecutor, TokioIo},
};
use kube::{Client, Config, client::ConfigExt};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};
use tower::{BoxError, Service, ServiceBuilder};

/// The bits of a packet's mark that say it, and what they are then. Bits that kube-proxy and the usual networks leave alone.
pub(super) const MASK: u32 = 0x1f;
pub(super) const MARK: u32 = 0x1d;

const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// A peer that is not there any more is noticed within ten seconds, by a packet each five: a connection that was open while the API server was cut off may hang for as long
/// as that took, since its sender waits twice as long before each try, and orders that come meanwhile are given up after ten seconds.
const IDLE_SECONDS: u32 = 5;
const PROBE_SECONDS: u32 = 2;
const PROBES: u32 = 2;

/// A client of the API server whose connections are marked.
///
/// # Errors
/// When there is no cluster.
pub(super) async fn client() -> Result<Client, BoxError> {
    let config = Config::infer().await?;
    let https = config.rustls_https_connector_with_connector(Marked)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace))
}

/// Dials.
#[derive(Clone, Copy, Debug)]
struct Marked;

impl Service<http::Uri> for Marked {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: http::Uri) -> Self::Future {
        Box::pin(async move {
            let host = to.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{to} names no host")))?;
            let port = to.port_u16().unwrap_or(if to.scheme_str() == Some("http") { 80 } else { 443 });
            let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            for address in lookup_host((host.trim_start_matches('[').trim_end_matches(']'), port)).await? {
                match timeout(CONNECTS_WITHIN, dial(address)).await {
                    Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer within {CONNECTS_WITHIN:?}")),
                }
            }
            Err(last)
        })
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Err(error) = setsockopt(&socket, sockopt::Mark, &MARK) {
        // Cuts then end by the kernel's timer alone.
        tracing::warn!(%error, "this agent's connections cannot be marked, so it cannot hear of anything while its node is cut off; it needs the capability NET_ADMIN");
    }
    socket.set_keepalive(true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &IDLE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &PROBE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &PROBES)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
