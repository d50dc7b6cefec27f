//! Starting and stopping: threads, the one line on standard output, signals, the order of leaving.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, PoisonError, mpsc},
    thread,
    time::Duration,
};

use steadfast_golden_sets::SetError;
use tokio::{
    net::TcpSocket,
    signal::unix::{SignalKind, signal},
    sync::Notify,
    task::LocalSet,
};

use crate::{
    accept,
    admin::{self, Reach},
    clock,
    config::{Args, BadFlag, Config},
    control::{
        connection,
        report::{self, Evidence},
    },
    descriptors,
    drain::Phase,
    forward::pool::Pool,
    golden, ready,
    relay::parked::Parked,
    unmap::{Whose, unmap},
    worker::{Shared, Worker},
};

/// Evidence that waits for the controller.
const EVIDENCE_MAX: usize = 10_000;
/// A policy in a file.
const POLICY_BYTES_MAX: u64 = 1 << 20;
/// How often threads hand over what they counted, and drop idle connections.
const HAND_OVER: Duration = Duration::from_millis(250);
/// Nothing that only the start needs is needed any more.
const STARTED: Duration = Duration::from_secs(1);

/// Why the sidecar could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Flag(#[from] BadFlag),
    #[error("--policy: {0}")]
    Policy(String),
    #[error("--golden: {0}")]
    Golden(#[from] SetError),
    #[error("{what} {address}: {why}")]
    Listen { what: &'static str, address: SocketAddr, why: io::Error },
    #[error("{what}: {why}")]
    Start { what: &'static str, why: io::Error },
    #[error("a thread that forwards requests ended by itself; see the log")]
    Thread,
}

fn start<T>(what: &'static str, result: io::Result<T>) -> Result<T, RunError> {
    result.map_err(|why| RunError::Start { what, why })
}

/// Runs a sidecar until SIGTERM or SIGINT has drained it. Takes over the calling thread and prints one line of JSON when it listens.
pub fn run(args: Args) -> Result<(), RunError> {
    // A program that has set up logging already keeps its own.
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO).try_init();
    clock::since_start_ns();
    let mut config = Config::new(args, |name| std::env::var(name).ok())?;
    config.max_connections = descriptors::connections(config.max_connections);
    let policy = config.policy.as_ref().map(read_policy).transpose()?;
    let sets = config.golden.iter().map(|directory| golden::load(directory)).collect::<Result<Vec<_>, _>>()?;
    let listen = |what, address, why| RunError::Listen { what, address, why };
    let mut ports = Ports::default();
    for route in &config.routes {
        let (address, sockets) = accept::bind(route.listen, config.threads).map_err(|why| listen("--listen", route.listen, why))?;
        ports.data.push(address);
        ports.sockets.push(sockets);
    }
    let admin = std::net::TcpListener::bind(config.admin).map_err(|why| listen("--admin", config.admin, why))?;
    if let Some(address) = config.health {
        let (_, mut sockets) = accept::bind(address, 1).map_err(|why| listen("--health", address, why))?;
        ports.health = sockets.pop();
    }
    let shared = Shared::new(config, Evidence::new(EVIDENCE_MAX));
    if let (Some(text), Some(file)) = (policy, &shared.config.policy) {
        admin::arm(&shared, &file.display().to_string(), &text).map_err(|error| RunError::Policy(error.message))?;
    }
    let runtime = start("no runtime", tokio::runtime::Builder::new_current_thread().enable_all().build())?;
    LocalSet::new().block_on(&runtime, main(shared, ports, admin, sets))
}

fn read_policy(file: &PathBuf) -> Result<String, RunError> {
    let fail = |why: &dyn std::fmt::Display| RunError::Policy(format!("{}: {why}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| fail(&error))?.len();
    if size > POLICY_BYTES_MAX {
        return Err(fail(&format!("has {size} bytes; at most {POLICY_BYTES_MAX} are read")));
    }
    std::fs::read_to_string(file).map_err(|error| fail(&error))
}

/// The main thread: everything that is not a request of a user.
async fn main(shared: Arc<Shared>, ports: Ports, admin: std::net::TcpListener, sets: Vec<golden::Loaded>) -> Result<(), RunError> {
    // Before anybody can know that we run, so that no signal finds the default action.
    let mut terminate = start("SIGTERM", signal(SignalKind::terminate()))?;
    let mut interrupt = start("SIGINT", signal(SignalKind::interrupt()))?;
    let admin_address = start("admin port", admin.local_addr())?;
    start("admin port", admin.set_nonblocking(true))?;
    let admin = start("admin port", tokio::net::TcpListener::from_std(admin))?;
    let mut threads = Vec::new();
    let (done, ended) = (Arc::new(Notify::new()), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let Ports { data, sockets: mut by_route, health } = ports;
    let count = shared.config.threads;
    for index in 0..count {
        let sockets = by_route.iter_mut().filter_map(Vec::pop).collect();
        threads.push(spawn(&shared, index as u64, sockets, Arc::clone(&done), Arc::clone(&ended))?);
    }
    tokio::task::spawn_local(admin::serve(Arc::clone(&shared), admin, Reach::Loopback));
    let mut health_address = None;
    if let Some(socket) = health {
        let listener = start("health port", accept::listen(socket))?;
        health_address = Some(start("health port", listener.local_addr())?);
        tokio::task::spawn_local(admin::serve(Arc::clone(&shared), listener, Reach::Network));
    }
    tokio::task::spawn_local(ready::watch(Arc::clone(&shared)));
    tokio::task::spawn_local({
        let shared = Arc::clone(&shared);
        async move { shared.store.expire().await }
    });
    tokio::task::spawn_local(report::windows(Arc::clone(&shared)));
    unmap(Whose::Everybody);
    tokio::task::spawn_local(async {
        tokio::time::sleep(STARTED).await;
        unmap(Whose::Program);
    });
    let last = Arc::new(Notify::new());
    let connection =
        shared.config.controller.clone().map(|controller| tokio::task::spawn_local(connection::keep(Arc::clone(&shared), controller, Arc::clone(&last))));
    if !sets.is_empty() {
        start("golden thread", golden_thread(&shared, sets))?;
    } else if connection.is_some() {
        // Nobody pays for a thread before there is something for it to do.
        let shared = Arc::clone(&shared);
        tokio::task::spawn_local(async move {
            let mut assigned = shared.store.golden.subscribe();
            let some = assigned.wait_for(|assigned| !assigned.is_empty()).await.is_ok();
            if some && let Err(error) = golden_thread(&shared, Vec::new()) {
                tracing::error!(%error, "no thread for golden replays");
            }
        });
    }
    // Whoever started us may not listen; then nobody needs it.
    let mut line = serde_json::json!({ "data": data[0].to_string(), "admin": admin_address.to_string() });
    if data.len() > 1 {
        line["routes"] = data.iter().map(ToString::to_string).collect();
    }
    if let Some(health) = health_address {
        line["health"] = health.to_string().into();
    }
    let _ = writeln!(io::stdout(), "{line}");
    let _ = io::stdout().flush();
    for (listen, route) in data.iter().zip(&shared.config.routes) {
        tracing::info!(data = %listen, upstream = %route.upstream, admin = %admin_address, threads = count, "listening");
    }

    let mut failed = false;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // No thread ends before it is asked to.
        () = done.notified() => failed = true,
    }
    tracing::info!("draining");
    shared.drain.enter(Phase::Grace);
    let all_gone = async {
        tokio::time::sleep(shared.config.drain_grace).await;
        shared.drain.enter(Phase::Leaving);
        while ended.load(std::sync::atomic::Ordering::Acquire) < count {
            done.notified().await;
        }
    };
    tokio::select! {
        () = all_gone => {}
        () = tokio::time::sleep(shared.config.drain_grace + shared.config.drain_timeout) => tracing::warn!("time to drain is over; what is still open is cut"),
        _ = terminate.recv() => tracing::warn!("second signal: what is still open is cut"),
        _ = interrupt.recv() => tracing::warn!("second signal: what is still open is cut"),
    }
    shared.drain.enter(Phase::Gone);
    for thread in threads {
        failed |= thread.join().is_err();
    }
    shared.store.disarm();
    report::close_window(&shared);
    last.notify_one();
    if let Some(connection) = connection {
        // It has a deadline of its own.
        let _ = connection.await;
    }
    if failed { Err(RunError::Thread) } else { Ok(()) }
}

fn golden_thread(shared: &Arc<Shared>, sets: Vec<golden::Loaded>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let run = move || {
        if let Err(error) = golden::run(&shared, sets, u64::MAX) {
            tracing::error!(%error, "golden replays could not start");
        }
    };
    thread::Builder::new().name("golden".into()).spawn(run).map(drop)
}

/// What is bound before anything runs.
#[derive(Default)]
struct Ports {
    /// Address of each route.
    data: Vec<SocketAddr>,
    /// For each route, a socket for each thread.
    sockets: Vec<Vec<TcpSocket>>,
    health: Option<TcpSocket>,
}

/// A thread that serves `sockets`, one for each route. Returns once it listens.
fn spawn(
    shared: &Arc<Shared>,
    index: u64,
    sockets: Vec<TcpSocket>,
    done: Arc<Notify>,
    ended: Arc<std::sync::atomic::AtomicUsize>,
) -> Result<thread::JoinHandle<()>, RunError> {
    let (listening, listens) = mpsc::channel();
    let shared = Arc::clone(shared);
    let serve = move || {
        // Also when this thread panics.
        let _told = Told(done, ended);
        let result = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            LocalSet::new().block_on(&runtime, async {
                let worker = Worker::new(Arc::clone(&shared), index)?;
                let listeners = sockets.into_iter().map(accept::listen).collect::<io::Result<Vec<_>>>()?;
                let _ = listening.send(Ok(()));
                tokio::task::spawn_local(hand_over(Rc::clone(&worker)));
                let accepting = listeners.into_iter().enumerate().map(|(route, listener)| accept::accept(Rc::clone(&worker), listener, route));
                futures_util::future::join_all(accepting).await;
                flush(&worker);
                Ok(())
            })
        });
        if let Err(error) = result {
            let _ = listening.send(Err(error));
        }
    };
    let thread = start("data thread", thread::Builder::new().name(format!("data-{index}")).spawn(serve))?;
    match listens.recv() {
        Ok(listens) => start("data port", listens)?,
        Err(_) => return Err(RunError::Thread),
    }
    Ok(thread)
}

struct Told(Arc<Notify>, Arc<std::sync::atomic::AtomicUsize>);

impl Drop for Told {
    fn drop(&mut self) {
        self.1.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        self.0.notify_one();
    }
}

async fn hand_over(worker: Rc<Worker>) {
    let mut every = tokio::time::interval(HAND_OVER);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        flush(&worker);
        worker.pools.iter().for_each(Pool::sweep);
        worker.parked.iter().for_each(Parked::sweep);
    }
}

fn flush(worker: &Worker) {
    worker.meter.flush(&mut worker.shared.window.lock().unwrap_or_else(PoisonError::into_inner));
}
