//! One simulated sidecar: a connection on which policies come, and one on which a report goes up each second, as `proxy::control` does it. What it says is the protocol
//! byte for byte; what it does not have is a data path.

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
    sidecar::{Evidence, PROTOCOL_HEADER, PROTOCOL_MAJOR, PodIdentity, RequestWindow, ResponseCount, SidecarReport, What},
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

    /// Head of a request, without its end.
    fn head(&self, method_and_path: &str) -> String {
        format!("{method_and_path} HTTP/1.1\r\nhost: {NAME}\r\nauthorization: Bearer {}\r\n{PROTOCOL_HEADER}: {PROTOCOL_MAJOR}\r\n", self.token)
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
    /// Returns once so many have had their first report taken.
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

    /// Reports and streams that failed.
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
            let mut policies = self.target.dial().await?;
            let request = format!("{}\r\n", self.target.head(&format!("GET /v1alpha1/policies?uid={}", uid(self.number))));
            policies.write_all(request.as_bytes()).await?;
            let mut reports = self.target.dial().await?;
            self.report(&mut reports, 1, Instant::now()).await?;
            drop(handshake);
            self.totals.connected.fetch_add(1, Ordering::Release);
            self.totals.changed.notify_one();
            tokio::try_join!(self.follow(policies), self.report_for_ever(reports)).map(drop)
        };
        if let Err(why) = ended.await {
            // The first few say what is wrong; at the end of the bench all of them end.
            if self.totals.lost.fetch_add(1, Ordering::Relaxed) < SAID_MAX && !self.totals.over.load(Ordering::Relaxed) {
                eprintln!("sidecar {}: {why}", self.number);
            }
        }
    }

    async fn report_for_ever(&self, mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
        let born = Instant::now();
        // Spread over the second, as sidecars that started at their own time are.
        let mut every = interval_at(born + EVERY.mul_f64(rand::random::<f64>()), EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for sequence in 2.. {
            every.tick().await;
            self.report(&mut stream, sequence, born).await?;
        }
        Ok(())
    }

    async fn report(&self, stream: &mut TlsStream<TcpStream>, sequence: u64, born: Instant) -> std::io::Result<()> {
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
        };
        let number = self.number.to_string();
        let report = SidecarReport {
            pod: PodIdentity { name: number, uid: uid(self.number), node: format!("node-{}", self.number % 200), namespace: "models".to_owned() },
            sequence,
            sent_ns,
            evidence: vec![Evidence { at_ns: sent_ns, what: What::Requests(window) }],
            dropped: 0,
        };
        let line = serde_json::to_string(&report)?;
        let head = self.target.head("POST /v1alpha1/reports");
        let request = format!("{head}content-type: application/jsonl\r\ncontent-length: {}\r\n\r\n{line}\n", line.len() + 1);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        while !answer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 || answer.len() > ANSWER_MAX {
                return Err(std::io::Error::other(format!("no answer to a report, but {:?}", String::from_utf8_lossy(&answer))));
            }
        }
        if !answer.starts_with(b"HTTP/1.1 204") {
            return Err(std::io::Error::other(format!("a report was answered {:?}", String::from_utf8_lossy(&answer))));
        }
        self.totals.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Each snapshot comes as one chunk with one line.
    async fn follow(&self, mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
        let mut pending = Vec::with_capacity(1024);
        loop {
            if stream.read_buf(&mut pending).await? == 0 {
                return Err(std::io::Error::other("the stream of policies ended"));
            }
            let at = clock::now();
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                // Heads, lengths of chunks and heartbeats are no snapshots.
                if !line.starts_with(b"{") {
                    continue;
                }
                let snapshot: PolicySnapshot = serde_json::from_slice(&line)?;
                if let Some(policy) = snapshot.policies.into_iter().next() {
                    let _ = self.told.send(Heard { policy: policy.name, at });
                }
            }
        }
    }
}
