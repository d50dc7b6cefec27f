//! What the parts of the platform share, and how a change of the cluster is carried out: routes follow at once, new pods begin to live.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use steadfast_api::{Span, test::Local};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};

use super::{
    cluster::Cluster,
    gateway::Routes,
    life::{Command, Life},
    orders::Orders,
    ports::Ports,
    process::{Launch, peak_memory},
};
use crate::{
    platform::Pod,
    serve::{ingest::Ingest, policy::PolicyHub},
};

/// Commands that wait for one pod. More would mean that its task hangs.
const COMMANDS_MAX: usize = 64;
/// A pod that has not obeyed by then hangs in the kernel.
const OBEY_WITHIN: Duration = Duration::from_secs(5);
/// How often sidecars' memory is looked at. The kernel keeps the peak, so only the last moments of a sidecar can be missed.
const MEMORY_EVERY: Duration = Duration::from_millis(500);

/// What does not change during a run.
#[derive(Debug)]
pub(super) struct Settings {
    pub exe: PathBuf,
    pub run: String,
    pub run_dir: PathBuf,
    pub work_dir: PathBuf,
    pub local: Local,
    pub golden: Vec<PathBuf>,
    pub golden_every: Span,
    pub seed: u64,
    pub controller: SocketAddr,
    pub token: String,
    /// The cores of this machine that we may use.
    pub cores: Vec<usize>,
}

/// See the module.
pub(super) struct Inner {
    pub settings: Settings,
    pub hub: Arc<PolicyHub>,
    pub ingest: Arc<Ingest>,
    pub orders: Orders,
    /// The platform's own thread. Every process is started from it.
    pub platform: Handle,
    /// The thread that writes logs.
    pub logs: Handle,
    pub closing: AtomicBool,
    routes: Routes,
    cluster: Mutex<Cluster>,
    ports: Mutex<Ports>,
    lives: Mutex<HashMap<String, mpsc::Sender<Command>>>,
    living: watch::Sender<usize>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    sidecars: HashMap<String, Pid>,
    peaks: BTreeMap<String, u64>,
}

/// Nothing panics while it holds one of these locks; were it to, what they guard is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn new(
        settings: Settings,
        cluster: Cluster,
        (hub, ingest): (Arc<PolicyHub>, Arc<Ingest>),
        routes: Routes,
        platform: Handle,
        logs: Handle,
    ) -> Self {
        Self {
            settings,
            hub,
            ingest,
            orders: Orders::default(),
            platform,
            logs,
            closing: AtomicBool::new(false),
            routes,
            cluster: Mutex::new(cluster),
            ports: Mutex::default(),
            lives: Mutex::default(),
            living: watch::Sender::new(0),
            memory: Mutex::default(),
        }
    }

    /// To read. Changes go through [`Inner::change`].
    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        lock(&self.cluster)
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }

    /// Changes the cluster now, and carries out what follows from it.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Cluster, Instant) -> T) -> T {
        self.change_at(Instant::now(), change)
    }

    /// The same for something that happened a moment ago.
    pub(super) fn change_at<T>(self: &Arc<Self>, at: Instant, change: impl FnOnce(&mut Cluster, Instant) -> T) -> T {
        let mut cluster = self.cluster();
        let result = change(&mut cluster, at);
        let scheduled = if self.closing.load(Ordering::Relaxed) { Vec::new() } else { cluster.schedule(at) };
        if let Some(backends) = cluster.take_backends() {
            self.routes.set(&backends);
        }
        drop(cluster);
        for pod in scheduled {
            self.begin(pod);
        }
        result
    }

    /// A pod that has just been given its node.
    fn begin(self: &Arc<Self>, pod: Pod) {
        self.orders.cover(self, &pod);
        let frozen = self.cluster().node(&pod.node).is_some_and(|node| node.lost.is_some());
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        lock(&self.lives).insert(pod.uid.clone(), commands);
        self.living.send_modify(|living| *living += 1);
        let inner = Arc::clone(self);
        self.platform.spawn(async move {
            Life::new(Arc::clone(&inner), pod, receiver, frozen).run().await;
            inner.living.send_modify(|living| *living -= 1);
        });
    }

    /// Tells a pod. False: it is gone.
    pub(super) fn command(&self, uid: &str, command: Command) -> bool {
        lock(&self.lives).get(uid).is_some_and(|commands| commands.try_send(command).is_ok())
    }

    /// Tells a pod, and waits until it has obeyed. Nothing: it is gone, or does not obey.
    pub(super) async fn obeyed<T>(&self, uid: &str, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (done, obeyed) = oneshot::channel();
        if !self.command(uid, command(done)) {
            return None;
        }
        tokio::time::timeout(OBEY_WITHIN, obeyed).await.ok()?.ok()
    }

    /// Tells every pod that the run is over, and waits until all of them have killed what they ran. Returns how many have not.
    pub(super) async fn end_all(&self) -> usize {
        lock(&self.lives).clear();
        let mut living = self.living.subscribe();
        let _ = tokio::time::timeout(OBEY_WITHIN, living.wait_for(|living| *living == 0)).await;
        *self.living.borrow()
    }

    /// The pod is gone.
    pub(super) fn forget(&self, pod: &Pod) {
        lock(&self.lives).remove(&pod.uid);
        self.ingest.forget(&pod.uid);
    }

    pub(super) fn cores(&self, node: &str) -> Vec<usize> {
        self.cluster().node(node).map(|node| node.cores.clone()).unwrap_or_default()
    }

    /// A pod's sidecar is about to start: it knows nothing yet, and is told what is in force as soon as it asks.
    pub(super) fn sidecar_starts(&self, uid: &str) {
        self.ingest.sidecar_starts(uid);
        self.orders.arm(self, uid);
    }

    /// How to start a pod's sidecar before a model server at `port`.
    pub(super) fn sidecar(&self, pod: &Pod, port: u16) -> Launch {
        let settings = &self.settings;
        let mut arguments: Vec<OsString> = vec!["proxy".into()];
        let mut flag = |name: &str, value: &str| arguments.extend([name.into(), value.into()]);
        flag("--listen", "127.0.0.1:0");
        flag("--admin", "127.0.0.1:0");
        flag("--upstream", &format!("127.0.0.1:{port}"));
        flag("--ready-path", &settings.local.pods.ready.http_get.path);
        flag("--pod-name", &pod.name);
        flag("--pod-uid", &pod.uid);
        flag("--node-name", &pod.node);
        flag("--controller", &format!("http://{}", settings.controller));
        flag("--golden-every", &settings.golden_every.to_string());
        flag("--golden-seed", &settings.seed.to_string());
        // One is enough for what one pod is asked here, and leaves the node's cores to the model.
        flag("--threads", "1");
        flag("--drain-timeout", &settings.local.pods.termination_grace_period.to_string());
        for set in &settings.golden {
            arguments.extend(["--golden".into(), set.into()]);
        }
        Launch {
            program: settings.exe.clone(),
            arguments,
            variables: vec![("STEADFAST_CONTROLLER_TOKEN".to_owned(), settings.token.clone())],
            run: settings.run.clone(),
            folder: settings.work_dir.clone(),
            cores: self.cores(&pod.node),
            speaks: true,
        }
    }

    /// The process whose memory counts as the pod's sidecar's.
    pub(super) fn watch_memory(&self, pod: &Pod, sidecar: Option<Pid>) {
        let sidecars = &mut lock(&self.memory).sidecars;
        match sidecar {
            Some(pid) => sidecars.insert(pod.name.clone(), pid),
            None => sidecars.remove(&pod.name),
        };
    }

    fn look_at_memory(&self) {
        let mut memory = lock(&self.memory);
        let seen: Vec<_> = memory.sidecars.iter().filter_map(|(name, pid)| Some((name.clone(), peak_memory(*pid)?))).collect();
        for (name, bytes) in seen {
            let peak = memory.peaks.entry(name).or_default();
            *peak = bytes.max(*peak);
        }
    }

    pub(super) fn peaks(&self) -> BTreeMap<String, u64> {
        self.look_at_memory();
        lock(&self.memory).peaks.clone()
    }

    pub(super) async fn watch_all_memory(self: Arc<Self>) {
        let mut every = tokio::time::interval(MEMORY_EVERY);
        loop {
            every.tick().await;
            self.look_at_memory();
        }
    }
}
