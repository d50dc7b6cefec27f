//! The local platform: a cluster made of processes on this machine. Nothing to install, no privilege, nothing left behind.
//!
//! ```text
//!  users ─▶ gateway ─▶ sidecar ─▶ model server      a pod: two process groups ([life]: kubelet)
//!             ▲           │                          a node: its pods, pinned to its share of the cores
//!   backends  │           ▼ policies, evidence
//!          [cluster]    crate::serve                 plain data: API server, scheduler, ReplicaSet, endpoints
//!             ▲
//!          [orders]                                  faults in force; each ends by itself when its time is up
//!
//!  [keeper]: a process that outlives this one by a moment and clears up, however this one ends
//! ```
//!
//! What is as on a cluster: sidecars start before the model server; readiness by probe with period, time-out and failure threshold; restart with back-off; a
//! deleted pod leaves the Service and is replaced at once, under a new name; a lost node is silent (its connections hang, they are not refused), is noticed
//! after `nodeMonitorGracePeriod`, and its pods are replaced after `tolerationSeconds` more. What is not: [`LocalPlatform::notes`] says it for the report.
//!
//! Invariants: every process of a run has `STEADFAST_RUN=<id>` in its environment, is killed by the kernel when the platform's thread ends, and is found
//! and killed by the keeper when this process is gone. Changes are told with the moment at which they happened.

mod back_off;
mod burn;
mod cluster;
mod command_line;
mod container;
mod cores;
mod gateway;
mod inner;
pub mod keeper;
mod life;
mod log;
mod names;
mod orders;
mod ports;
mod probe;
mod process;
pub mod scan;

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use steadfast_api::{Span, test::ResilienceTest};
use tokio::sync::{Mutex, mpsc};

use self::{
    cluster::Cluster,
    gateway::Gateway,
    inner::{Inner, Settings},
    keeper::Keeper,
    orders::Orders,
};
use super::{Change, InForce, Order, Platform, PlatformError, Pod, Undone};
use crate::{
    runtime::OwnThread,
    serve::{Seen, server::Server},
};

/// Processes that cannot be killed for this long hang in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// What a local run needs to start.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The `steadfast` binary: sidecars, burners and the keeper are this program, and model servers whose command line begins with `steadfast`.
    pub exe: PathBuf,
    pub test: ResilienceTest,
    /// Directories of `spec.golden`, resolved, in its order.
    pub golden: Vec<PathBuf>,
    /// Unique among the runs of this machine: lower case letters, digits and `-`.
    pub run_id: String,
    /// Folder for what the run's processes print; made here, and removed with all it holds at the end. Must not exist yet.
    pub run_dir: PathBuf,
    /// Where the pods' command lines run, so that relative paths in them mean what their writer meant.
    pub work_dir: PathBuf,
}

/// See the module. Dropping it without [`Platform::close`] leaves the clearing up to kernel and keeper.
pub struct LocalPlatform {
    inner: Arc<Inner>,
    changes: Mutex<mpsc::UnboundedReceiver<Change>>,
    address: SocketAddr,
    running: Mutex<Option<Running>>,
}

/// What ends with the run. Fields are dropped in this order.
struct Running {
    _gateway: Gateway,
    _server: Server,
    _platform: OwnThread,
    _logs: OwnThread,
    keeper: Keeper,
}

impl LocalPlatform {
    /// Starts keeper, gateway and the sidecars' server, then creates the pods. Returns as soon as they are created, with the evidence of the sidecars; the
    /// changes tell how the pods get on.
    #[allow(clippy::unused_async)] // The keeper is waited for by the caller's runtime, so there must be one.
    pub async fn start(options: LocalOptions) -> Result<(Self, mpsc::Receiver<Seen>), PlatformError> {
        let spec = options.test.spec;
        let local =
            spec.local.ok_or_else(|| PlatformError::new("the test cannot run on this machine", "spec.local is missing: it says which pods to run here"))?;
        if local.pods.command.first().is_none_or(String::is_empty) {
            return Err(PlatformError::new("pods cannot be started", "spec.local.pods.command is empty: write the model server's command line"));
        }
        if !spec.target.selector.matches(&local.pods.labels) {
            let why = format!(
                "it selects {:?}, and spec.local.pods.labels are {:?}: give the pods these labels",
                spec.target.selector.match_labels, local.pods.labels
            );
            return Err(PlatformError::new("spec.target.selector selects no pod", why));
        }
        let exe = options.exe.canonicalize().map_err(failed(format!("{} cannot be run", options.exe.display())))?;
        let (run, run_dir) = (options.run_id, options.run_dir);
        let work_dir = options.work_dir.canonicalize().map_err(failed(format!("{} cannot be worked in", options.work_dir.display())))?;
        keeper::make(&run, &run_dir).map_err(failed(format!("the run's folder {} cannot be made", run_dir.display())))?;
        let started = (|| {
            let run_dir = run_dir.canonicalize()?;
            // First of all: from here on nothing can be left behind.
            let keeper = Keeper::start(&exe, &run, &run_dir)?;
            let token = format!("{:032x}", rand::random::<u128>());
            let (server, seen) = Server::start(&token)?;
            Ok::<_, std::io::Error>((keeper, server, seen, token, Gateway::start()?, OwnThread::start("platform")?, OwnThread::start("logs")?, run_dir))
        })();
        let (keeper, server, seen, token, gateway, platform, logs, run_dir) = match started {
            Ok(started) => started,
            Err(error) => {
                // If the keeper runs it does the same once its pipe is closed.
                let _ = keeper::remove(&run, &run_dir);
                return Err(PlatformError::new("the local platform cannot be started", error));
            }
        };
        let golden = options.golden.iter().map(|set| set.canonicalize().unwrap_or_else(|_| set.clone())).collect();
        let base = spec.target.selector.match_labels.get("app").or_else(|| local.pods.labels.get("app")).cloned().unwrap_or(options.test.metadata.name);
        let allowed = cores::allowed();
        let (sender, changes) = mpsc::unbounded_channel();
        let shares = cores::shares(local.nodes as usize, &allowed);
        let cluster = Cluster::new(shares, local.pods.replicas as usize, local.pods.labels.clone(), &base, spec.seed, sender);
        let settings = Settings {
            exe,
            run,
            run_dir,
            work_dir,
            local,
            golden,
            golden_every: spec.golden.iter().map(|golden| golden.every).min().unwrap_or(Span::from_secs(1)),
            seed: spec.seed,
            controller: server.address(),
            token,
            cores: allowed,
        };
        let heard = (Arc::clone(server.hub()), Arc::clone(server.ingest()));
        let inner = Arc::new(Inner::new(settings, cluster, heard, gateway.routes().clone(), platform.handle().clone(), logs.handle().clone()));
        inner.platform.spawn(Arc::clone(&inner).watch_all_memory());
        inner.change(|cluster, at| cluster.fill(at, &[]));
        let address = gateway.address();
        let running = Running { _gateway: gateway, _server: server, _platform: platform, _logs: logs, keeper };
        Ok((Self { inner, changes: Mutex::new(changes), address, running: Mutex::new(Some(running)) }, seen))
    }

    /// What a reader of the report must know of this platform.
    pub fn notes(&self) -> Vec<String> {
        let settings = &self.inner.settings;
        let timers = &settings.local.timers;
        let nodes: Vec<String> = {
            let cluster = self.inner.cluster();
            cluster.nodes.iter().map(|node| format!("{} on {}", node.name, cores_in_words(&node.cores))).collect()
        };
        let mut notes = vec![
            "Local platform: pods are processes of this machine and nodes are groups of them, so nodes share memory, disk and kernel, and network faults are \
             made in the sidecars."
                .to_owned(),
            format!(
                "Timers: nodeMonitorGracePeriod {} (Kubernetes: 40s), tolerationSeconds {} (300s), backOff {} to {} (10s to 5m). Recovery from a lost node \
                 would take about that much longer on a cluster with default timers.",
                timers.node_monitor_grace_period, timers.toleration_seconds, timers.back_off, timers.back_off_max
            ),
            "Endpoints change at once here; on a cluster every node's proxy follows within about a second.".to_owned(),
        ];
        if settings.cores.len() > 1 {
            notes.push(format!(
                "Nodes are pinned to cores: {}. Users and gateway run on any core, so pressure on a node's cores can touch them.",
                nodes.join(", ")
            ));
            if settings.local.nodes as usize > settings.cores.len() {
                notes.push("There are more nodes than cores: CPU pressure on a node is felt by the nodes that share its cores.".to_owned());
            }
        } else {
            notes.push("This machine has one core: nodes cannot be kept apart, and CPU pressure on one is felt by all, by users and by gateway.".to_owned());
        }
        notes
    }

    /// Evidence dropped so far: because nobody took it in time here, and because sidecars could not deliver it in time.
    pub fn evidence_dropped(&self) -> u64 {
        self.inner.ingest.dropped() + self.inner.ingest.lost_by_sidecars()
    }
}

fn failed(what: String) -> impl FnOnce(std::io::Error) -> PlatformError {
    move |error| PlatformError::new(what, error)
}

fn gone(_: impl Display) -> PlatformError {
    PlatformError::new("the order cannot be carried out", "the platform is closed")
}

fn cores_in_words(cores: &[usize]) -> String {
    match cores {
        [core] => format!("core {core}"),
        cores => format!("cores {}", cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")),
    }
}

impl Platform for LocalPlatform {
    fn name(&self) -> &'static str {
        "local"
    }

    fn nodes(&self) -> Vec<String> {
        self.inner.cluster().nodes.iter().map(|node| node.name.clone()).collect()
    }

    fn pods(&self) -> Vec<Pod> {
        self.inner.cluster().pods.iter().map(|held| held.pod.clone()).collect()
    }

    fn service(&self) -> SocketAddr {
        self.address
    }

    async fn next_change(&self) -> Option<Change> {
        self.changes.lock().await.recv().await
    }

    /// Everything that an order does is done on the platform's thread: processes must be started from it, and the order is carried out to its end even if
    /// the caller goes away.
    async fn apply(&self, order: Order, expires_after: Span) -> Result<InForce, PlatformError> {
        if self.inner.closing.load(Ordering::Relaxed) {
            return Err(gone(""));
        }
        let inner = Arc::clone(&self.inner);
        self.inner.platform.spawn(async move { Orders::apply(&inner, order, expires_after).await }).await.map_err(gone)?
    }

    async fn undo(&self, order: InForce) -> Undone {
        let inner = Arc::clone(&self.inner);
        let undone = self.inner.platform.spawn(async move { Orders::undo(&inner, &order).await }).await;
        // The platform was closed meanwhile, which undoes everything.
        undone.unwrap_or_default()
    }

    fn sidecar_rss(&self) -> BTreeMap<String, u64> {
        self.inner.peaks()
    }

    /// Kills every process, and looks for itself whether any is left. A second call finds nothing to do.
    async fn close(&self) -> Vec<String> {
        let Some(running) = self.running.lock().await.take() else { return Vec::new() };
        let inner = &self.inner;
        inner.closing.store(true, Ordering::Relaxed);
        inner.orders.drop_all();
        let mut left = Vec::new();
        let unruly = inner.end_all().await;
        if unruly > 0 {
            left.push(format!("{unruly} pods did not end in time"));
        }
        inner.cluster().close();
        let run = inner.settings.run.clone();
        // It looks into every process of the machine, which may take some milliseconds.
        match tokio::task::spawn_blocking(move || scan::kill_all(&run, KILL_WITHIN)).await {
            Ok(pids) => left.extend(pids.into_iter().map(|pid| format!("process {pid} cannot be killed"))),
            Err(error) => left.push(format!("the machine could not be searched for processes: {error}")),
        }
        let Running { _gateway: gateway, _server: server, _platform: platform, _logs: logs, keeper } = running;
        // Threads are waited for, which must not hold up the caller's runtime.
        let dropped = tokio::task::spawn_blocking(move || drop((gateway, server, platform, logs))).await;
        left.extend(dropped.err().map(|error| format!("the platform's threads did not end: {error}")));
        if let Err(error) = keeper::remove(&inner.settings.run, &inner.settings.run_dir) {
            left.push(format!("{} cannot be removed: {error}", inner.settings.run_dir.display()));
        }
        left.extend(keeper.finish().await);
        left
    }
}
