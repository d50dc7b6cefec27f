//! Who is measured, and how each is started: one process, one thread that forwards, one server behind it, no access log.

mod config;

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde::Serialize;
use tempfile::TempDir;

use crate::{
    Failure, io,
    process::{Cores, Process},
};

/// In the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    Sidecar,
    Copy,
    Haproxy,
    Nginx,
    Envoy,
    Pingora,
}

/// All that can be asked for.
pub(crate) const PEERS: [Peer; 6] = [Peer::Sidecar, Peer::Copy, Peer::Haproxy, Peer::Nginx, Peer::Envoy, Peer::Pingora];

/// What a proxy is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Http1,
    Http2,
    /// Faults are configured that no request of these asks for.
    Armed,
    /// Every request is held back for [`DELAY`].
    Delays,
}

pub(crate) const DELAY: Duration = Duration::from_millis(200);
/// A proxy that does not take connections by then has not started.
const STARTS_WITHIN: Duration = Duration::from_secs(15);

/// Where programs are.
pub(crate) struct Places {
    pub(crate) sidecar: PathBuf,
    /// What `setup` made.
    pub(crate) cache: PathBuf,
    pub(crate) upstream: SocketAddr,
    pub(crate) cores: Cores,
}

/// A proxy that runs. Dropping it ends it.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
    _files: TempDir,
}

/// Why one is not measured.
pub(crate) enum Absent {
    /// It cannot do this, or is not on this machine.
    Because(String),
    Failed(Failure),
}

impl From<Failure> for Absent {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Peer {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "Steadfast",
            Self::Copy => "TCP copy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
            Self::Pingora => "pingora",
        }
    }

    /// Starts it, and waits until it takes connections.
    pub(crate) fn start(self, way: Way, places: &Places) -> Result<Running, Absent> {
        if !matches!(way, Way::Http1 | Way::Http2) && !matches!(self, Self::Sidecar | Self::Envoy) {
            return Err(Absent::Because("injects no faults".to_owned()));
        }
        let files = tempfile::tempdir().map_err(io("a folder for configurations"))?;
        let address = free_port()?;
        let command = self.command(way, address, places, files.path())?;
        let mut process = Process::start(command, places.cores)?;
        let began = Instant::now();
        while TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_err() {
            if let Some(how) = process.ended() {
                return Err(Absent::Because(format!("did not start: {how}")));
            }
            if began.elapsed() > STARTS_WITHIN {
                return Err(Absent::Because(format!("took no connection within {STARTS_WITHIN:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Running { address, process, _files: files })
    }

    fn command(self, way: Way, address: SocketAddr, places: &Places, files: &Path) -> Result<Command, Absent> {
        let (listen, upstream) = (address.to_string(), places.upstream.to_string());
        let write = |name: &str, text: String| {
            let file = files.join(name);
            fs::write(&file, text).map(|()| file).map_err(io("a configuration")).map_err(Absent::from)
        };
        let mut command;
        match self {
            Self::Sidecar => {
                command = Command::new(found(&places.sidecar, "cargo build --release -p steadfast-proxy")?);
                command.args(["--listen", &listen, "--upstream", &upstream, "--admin", "127.0.0.1:0", "--ready-tcp", "--threads", "1"]);
                let policy = match way {
                    Way::Http1 | Way::Http2 => None,
                    Way::Armed => Some(config::policy_for_nobody()),
                    Way::Delays => Some(config::policy_of_delays()),
                };
                if let Some(text) = policy {
                    command.arg("--policy").arg(write("policy.yaml", text)?);
                }
            }
            Self::Copy => {
                command = Command::new(std::env::current_exe().map_err(io("this program"))?);
                command.args(["--copy", &listen, &upstream]);
            }
            Self::Haproxy => {
                command = Command::new(installed("haproxy")?);
                command.arg("-db").arg("-f").arg(write("haproxy.cfg", config::haproxy(&listen, &upstream, way))?);
            }
            Self::Nginx => {
                command = Command::new(installed("nginx")?);
                let file = write("nginx.conf", config::nginx(&listen, &upstream, way, files))?;
                command.arg("-p").arg(files).arg("-c").arg(file);
            }
            Self::Envoy => {
                command = Command::new(found(&places.cache.join("envoy/bin/envoy"), "benches/dataplane/setup")?);
                command.arg("-c").arg(write("envoy.json", config::envoy(address, places.upstream, way))?);
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
            }
            Self::Pingora => {
                command = Command::new(found(&places.cache.join("pingora/release/dataplane-pingora"), "benches/dataplane/setup")?);
                command.args([&*listen, &*upstream, if way == Way::Http2 { "h2" } else { "h1" }]);
            }
        }
        Ok(command)
    }
}

fn found(program: &Path, made_by: &str) -> Result<PathBuf, Absent> {
    if program.exists() { Ok(program.to_owned()) } else { Err(Absent::Because(format!("not here ({made_by} makes it)"))) }
}

fn installed(name: &str) -> Result<PathBuf, Absent> {
    let here = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|file| file.exists());
    here.ok_or_else(|| Absent::Because("not here (benches/dataplane/setup installs it on Debian as root)".to_owned()))
}

/// Free a moment ago.
fn free_port() -> Result<SocketAddr, Failure> {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(io("no port"))
}
