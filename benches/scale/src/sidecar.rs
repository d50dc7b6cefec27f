//! One simulated sidecar: a connection on which policies come and a report goes up each second, as `proxy::control` does it. What it says is the protocol byte for byte;
//! what it does not have is a data path.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use steadfast_api::{
    policy::{Origin, PolicySnapshot},
    sidecar::{
        Answer, CONNECTION_PATH, CONNECTION_UPGRADE, Evidence, PROTOCOL_HEADER, PROTOCOL_MAJOR, PodIdentity, RequestWindow, ResponseCount, SidecarReport, What,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    Failure, clock,
    controller::{Hello, NAME},
};

const EVERY: Duration = Duration::from_secs(1);
const ANSWER_MAX: usize = 16 << 10;
/// Sidecars that tell why they ended.
const SAID_MAX: u64 = 5;

/// Of the pod with this number, in the form of Kubernetes' own.
pub(crate) fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Where sidecars dial in.
pub(crate) struct Target {
    address: String,
    token: String,
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Target {
    pub(crate) fn new(hello: &Hello) -> Result<Self, Failure> {
        let other = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
        steadfast_controller::http::provide();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(hello.trust.as_bytes()) {
            roots.add(certificate.map_err(|error| other(&error))?).map_err(|error| other(&error))?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(NAME).map_err(|error| other(&error))?;
        Ok(Self { address: hello.address.clone(), token: hello.token.clone(), connector: TlsConnector::from(Arc::new(config)), name })
    }

    async fn dial(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        self.connector.connect(self.name.clone(), stream).await
    }

    /// What makes a connection a sidecar's own.
    fn head(&self, uid: &str) -> String {
        format!(
            "GET {CONNECTION_PATH}?uid={uid} HTTP/1.1\r\nhost: {NAME}\r\nauthorization: Bearer {}\r\n{PROTOCOL_HEADER}: {PROTOCOL_MAJOR}\r\nconnection: upgrade\r\nupgrade: {CONNECTION_UPGRADE}\r\n\r\n",
            self.token
        )
    }
}

/// A policy that a sidecar read, and when.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) policy: String,
    pub(crate) at: u64,
}

/// Over all sidecars.
#[derive(Default)]
pub(crate) struct Totals {
    connected: AtomicUsize,
    changed: Notify,
    acknowledged: AtomicU64,
    lost: AtomicU64,
    /// The controller is about to go.
    pub(crate) over: AtomicBool,
}

impl Totals {
    /// Returns once so many are connected.
    pub(crate) async fn connected(&self, count: usize, within_each_step: Duration) -> Result<(), Failure> {
        loop {
            let changed = self.changed.notified();
            let now = self.connected.load(Ordering::Acquire);
            if now >= count {
                return Ok(());
            }
            if timeout(within_each_step, changed).await.is_err() && self.connected.load(Ordering::Acquire) == now {
                return Err(Failure::Other(format!("{now} of {count} sidecars are connected, and no more come")));
            }
        }
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Connections that failed.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

pub(crate) struct Sidecar {
    pub(crate) number: usize,
    pub(crate) target: Arc<Target>,
    pub(crate) told: mpsc::UnboundedSender<Heard>,
    pub(crate) totals: Arc<Totals>,
}

impl Sidecar {
    /// Never returns while the controller is there. `handshake` is given back once it is connected.
    pub(crate) async fn live(self, handshake: OwnedSemaphorePermit) {
        let ended = async {
            let mut stream = self.target.dial().await?;
            stream.write_all(self.target.head(&uid(self.number)).as_bytes()).await?;
            let mut lines = Vec::with_capacity(1024);
            // What comes with the head is a line already.
            let head = loop {
                if stream.read_buf(&mut lines).await? == 0 || lines.len() > ANSWER_MAX || !lines.starts_with(b"HTTP/1.1 101") {
                    return Err(std::io::Error::other(format!("no connection, but {:?}", String::from_utf8_lossy(&lines))));
                }
                if let Some(end) = lines.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end + 4;
                }
            };
            lines.drain(..head);
            self.talk(stream, lines, handshake).await
        };
        if let Err(why) = ended.await {
            // The first few say what is wrong; at the end of the bench all of them end.
            if self.totals.lost.fetch_add(1, Ordering::Relaxed) < SAID_MAX && !self.totals.over.load(Ordering::Relaxed) {
                eprintln!("sidecar {}: {why}", self.number);
            }
        }
    }

    /// A report each second, and whatever comes.
    async fn talk(&self, mut stream: TlsStream<TcpStream>, mut pending: Vec<u8>, handshake: OwnedSemaphorePermit) -> std::io::Result<()> {
        drop(handshake);
        self.totals.connected.fetch_add(1, Ordering::Release);
        self.totals.changed.notify_one();
        let (born, mut sequence) = (Instant::now(), 1);
        // Spread over the second, as sidecars that started at their own time are.
        let mut every = interval_at(born + EVERY.mul_f64(rand::random::<f64>()), EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        stream.write_all(&self.report(sequence, born)?).await?;
        loop {
            self.take(&mut pending)?;
            tokio::select! {
                read = stream.read_buf(&mut pending) => if read? == 0 {
                    return Err(std::io::Error::other("the controller ended the connection"));
                },
                _ = every.tick() => {
                    sequence += 1;
                    stream.write_all(&self.report(sequence, born)?).await?;
                }
            }
        }
    }

    fn report(&self, sequence: u64, born: Instant) -> std::io::Result<Vec<u8>> {
        let sent_ns = born.elapsed().as_nanos() as u64 + 1;
        let window = RequestWindow {
            window_ns: EVERY.as_nanos() as u64,
            responses: vec![
                ResponseCount { origin: Origin::Upstream, status: 200, count: 97 },
                ResponseCount { origin: Origin::Upstream, status: 503, count: 2 },
                ResponseCount { origin: Origin::Proxy, status: 502, count: 1 },
            ],
            injected: Vec::new(),
            over_budget: 0,
            latency_p50_ns: 12_345_678,
            latency_p99_ns: 45_678_901,
            burned: Vec::new(),
        };
        let number = self.number.to_string();
        let report = SidecarReport {
            pod: PodIdentity { name: number, uid: uid(self.number), node: format!("node-{}", self.number % 200), namespace: "models".to_owned() },
            sequence,
            sent_ns,
            evidence: vec![Evidence { at_ns: sent_ns, what: What::Requests(window) }],
            dropped: 0,
        };
        let mut line = serde_json::to_vec(&report)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Takes the lines that are whole.
    fn take(&self, pending: &mut Vec<u8>) -> std::io::Result<()> {
        let at = clock::now();
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Answer::Acknowledged(_)) => drop(self.totals.acknowledged.fetch_add(1, Ordering::Relaxed)),
                Ok(Answer::Refused(why)) => return Err(std::io::Error::other(why)),
                Err(_) => {
                    let snapshot: PolicySnapshot = serde_json::from_slice(&line)?;
                    if let Some(policy) = snapshot.policies.into_iter().next() {
                        let _ = self.told.send(Heard { policy: policy.name, at });
                    }
                }
            }
        }
        Ok(())
    }
}
