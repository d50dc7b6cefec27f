//! Where a model server is, and a connection to it: TCP, or a Unix socket in a folder that both containers see.

use std::{
    fmt,
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// What an address begins with that is a path.
const UNIX: &str = "unix:";
/// Bytes of a Unix socket's path: the kernel's `sun_path` less its closing zero.
const PATH_MAX: usize = 107;

/// Where a model server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Upstream {
    /// What is asked, and what a server must do to be reached there.
    pub fn where_to_listen(&self) -> String {
        match self {
            Self::Tcp(address) => other_loopback(address).map(|other| {
                let port = address.port();
                format!("{address} and {other} are asked: it must listen on port {port} of loopback or of all addresses, not of the pod's own address alone")
            }),
            Self::Unix(_) => None,
        }
        .unwrap_or_else(|| format!("{self} is asked: it must listen there"))
    }

    /// What stands in `Host` when the sidecar itself asks. A path cannot stand there.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The same server's other port; one that is reached by a path has its ports on loopback.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        let host = match self {
            Self::Tcp(address) => address.ip(),
            Self::Unix(_) => Ipv4Addr::LOCALHOST.into(),
        };
        Self::Tcp(SocketAddr::new(host, port))
    }

    pub async fn connect(&self) -> io::Result<Dialled> {
        match self {
            Self::Tcp(address) => {
                let stream = match (TcpStream::connect(address).await, other_loopback(address)) {
                    // A connection lasts, and being refused here takes microseconds.
                    (Err(why), Some(other)) if is_nobody(&why) => TcpStream::connect(other).await.map_err(|_| why)?,
                    (tried, _) => tried?,
                };
                // Small answers must not wait for the acknowledgement of the last one. A socket that refuses this still works.
                let _ = stream.set_nodelay(true);
                Ok(Dialled::Tcp(stream))
            }
            Self::Unix(path) => UnixStream::connect(path).await.map(Dialled::Unix),
        }
    }
}

/// Where a server that is dialled on loopback may be too: it may listen in the other family alone.
fn other_loopback(address: &SocketAddr) -> Option<SocketAddr> {
    (address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST)).then(|| (Ipv6Addr::LOCALHOST, address.port()).into())
}

fn is_nobody(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable | io::ErrorKind::NetworkUnreachable)
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// An address that cannot be dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUpstream {
    #[error("give ADDRESS:PORT such as 127.0.0.1:8000, or unix:/PATH of a socket")]
    NoAddress,
    #[error("port 0 cannot be dialled: give the model server's port")]
    PortZero,
    #[error("a socket's path begins at the root: give unix:/PATH, such as unix:/run/model/http.sock")]
    RelativePath,
    #[error("a socket's path has {PATH_MAX} bytes at most, and this one has {0}: give a shorter one")]
    LongPath(usize),
}

impl FromStr for Upstream {
    type Err = BadUpstream;

    fn from_str(text: &str) -> Result<Self, BadUpstream> {
        let Some(path) = text.strip_prefix(UNIX) else {
            let address: SocketAddr = text.parse().map_err(|_| BadUpstream::NoAddress)?;
            return if address.port() == 0 { Err(BadUpstream::PortZero) } else { Ok(Self::Tcp(address)) };
        };
        if !Path::new(path).is_absolute() {
            return Err(BadUpstream::RelativePath);
        }
        if path.len() > PATH_MAX {
            return Err(BadUpstream::LongPath(path.len()));
        }
        Ok(Self::Unix(path.into()))
    }
}

/// A connection to a model server.
pub enum Dialled {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Dialled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsRawFd for Dialled {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsyncRead for Dialled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets hold nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_an_absolute_path_and_nothing_else() {
        for good in ["127.0.0.1:8000", "[::1]:9", "unix:/run/model/http.sock"] {
            assert_eq!(good.parse::<Upstream>().unwrap().to_string(), good);
        }
        let long = format!("unix:/{}", "x".repeat(PATH_MAX));
        for (bad, says) in [
            ("localhost:80", "127.0.0.1:8000"),
            ("8000", "unix:/PATH"),
            ("127.0.0.1:0", "port 0"),
            ("unix:model.sock", "begins at the root"),
            ("unix:", "begins at the root"),
            (long.as_str(), "107 bytes at most, and this one has 108"),
        ] {
            let error = bad.parse::<Upstream>().unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn who_is_not_reached_is_told_where_to_listen() {
        let says = |text: &str| text.parse::<Upstream>().unwrap().where_to_listen();
        assert!(says("127.0.0.1:8000").starts_with("127.0.0.1:8000 and [::1]:8000 are asked: it must listen on port 8000 of loopback or of all addresses"));
        assert_eq!(says("10.0.0.1:80"), "10.0.0.1:80 is asked: it must listen there");
    }

    #[test]
    fn what_is_reached_by_a_path_has_a_name_and_ports_of_its_own() {
        let unix: Upstream = "unix:/run/m.sock".parse().unwrap();
        assert_eq!((unix.authority().as_str(), unix.with_port(81).to_string().as_str()), ("localhost", "127.0.0.1:81"));
        let tcp: Upstream = "10.0.0.1:80".parse().unwrap();
        assert_eq!((tcp.authority().as_str(), tcp.with_port(81).to_string().as_str()), ("10.0.0.1:80", "10.0.0.1:81"));
    }
}
