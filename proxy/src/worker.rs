//! What one thread has for itself, and what all share. Nothing is shared on the request path but the armed policies.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hyper::rt::Executor;
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::Notify;

use crate::{
    config::{Config, Readiness},
    control::report::Evidence,
    drain::{Drain, Phase},
    fault::{armed::Store, timer::Timer},
    forward::{
        ForwardError,
        pool::{Pool, Reached},
    },
    hold::Hold,
    measure::{Meter, Metrics, window::Window},
    relay::{bell::Bells, parked::Parked, side::Buffer},
    upstream::Dialled,
};

/// Spawns on the thread's own [`tokio::task::LocalSet`].
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F: Future + 'static> Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// What all threads share.
pub struct Shared {
    pub config: Config,
    pub store: Store,
    pub evidence: Evidence,
    pub drain: Drain,
    /// The model server is ready by its own path, or was within the patience that its probe has.
    pub upstream_ready: AtomicBool,
    /// The controller's stream of policies is open.
    pub controller_connected: AtomicBool,
    /// What a newer controller said and this sidecar passed over.
    pub not_understood: AtomicU64,
    /// A request could not be forwarded: look at the model server now.
    pub suspect: Notify,
    /// The model server's readiness as it was last seen; wakes the golden thread when it changes.
    pub readiness: tokio::sync::watch::Sender<bool>,
    /// Whether each route's server has been there since this sidecar started.
    pub reached: Vec<Reached>,
    /// One registry a thread.
    metrics: Mutex<Vec<Metrics>>,
    /// What passed since the last report, over all threads.
    pub window: Mutex<Window>,
}

impl Shared {
    pub fn new(config: Config, evidence: Evidence) -> Arc<Self> {
        Arc::new(Self {
            reached: config.routes.iter().map(|_| Reached::default()).collect(),
            config,
            store: Store::new(evidence.clone()),
            evidence,
            drain: Drain::new(),
            upstream_ready: AtomicBool::new(false),
            controller_connected: AtomicBool::new(false),
            not_understood: AtomicU64::new(0),
            suspect: Notify::new(),
            readiness: tokio::sync::watch::Sender::new(false),
            metrics: Mutex::default(),
            window: Mutex::new(Window::new()),
        })
    }

    /// A registry for the calling thread.
    pub fn metrics(&self) -> Metrics {
        let metrics = Metrics::new();
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(metrics.clone());
        metrics
    }

    pub fn all_metrics(&self) -> Vec<Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// User requests in progress.
    pub fn in_progress(&self) -> i64 {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|metrics| metrics.in_progress.get()).sum()
    }

    /// Requests of users that were answered so far; up to a quarter of a second behind.
    pub fn answered(&self) -> u64 {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// Why users should not be sent here now; `None`: the pod is ready.
    pub fn not_ready(&self) -> Option<String> {
        if self.drain.has_reached(Phase::Grace) {
            Some("draining".to_owned())
        } else if self.store.hold.is_held() {
            Some("held down by a policy".to_owned())
        } else if let Some(reason) = self.store.kept_out() {
            Some(format!("kept out of the Service: {reason}"))
        } else {
            let (Readiness::Http { address, .. } | Readiness::Tcp { address }) = &self.config.readiness;
            (!self.upstream_ready.load(Ordering::Acquire)).then(|| format!("model server not ready; {}", address.where_to_listen()))
        }
    }
}

/// One thread's own.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub meter: Meter,
    pub timer: Timer,
    /// One for each route.
    pub pools: Vec<Pool>,
    /// One for each route.
    pub parked: Vec<Parked>,
    /// Until when each route's server is known to speak no HTTP/2.
    pub no_http2: Vec<Cell<u64>>,
    pub buffer: Buffer,
    pub bells: Rc<Bells>,
    pub rng: RefCell<StdRng>,
    pub connections: Rc<Counter>,
    /// [`Shared::drain`] as this thread knows it.
    pub drain: Drain,
    /// [`Store::hold`] as this thread knows it.
    pub held: Hold,
}

impl Worker {
    /// On the calling thread's runtime, inside its `LocalSet`. `index` sets threads' draws apart.
    pub fn new(shared: Arc<Shared>, index: u64) -> io::Result<Rc<Self>> {
        let timer = Timer::new()?;
        tokio::task::spawn_local(timer.clone().drive());
        let config = &shared.config;
        let no_http2 = config.routes.iter().map(|_| Cell::new(0)).collect();
        let parked = config.routes.iter().map(|_| Parked::default()).collect();
        let routes = config.routes.iter().zip(&shared.reached);
        let pools = routes.map(|(route, reached)| Pool::new(route.upstream.clone(), reached.clone(), config.connect_timeout, config.max_connections)).collect();
        let rng = RefCell::new(StdRng::seed_from_u64(config.seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15))));
        let meter = Meter::new(shared.metrics());
        let worker = Rc::new(Self {
            meter,
            timer,
            pools,
            parked,
            no_http2,
            buffer: Buffer::default(),
            bells: Rc::default(),
            rng,
            connections: Rc::default(),
            drain: Drain::new(),
            held: Hold::default(),
            shared,
        });
        let own = Rc::clone(&worker);
        tokio::task::spawn_local(async move { tokio::join!(own.drain.follow(&own.shared.drain), own.held.follow(&own.shared.store.hold), own.ring()) });
        Ok(worker)
    }

    /// Gives back the descriptors of connections to the model server that nobody uses.
    pub fn spare(&self) {
        self.pools.iter().for_each(Pool::spare);
        self.parked.iter().for_each(Parked::clear);
    }

    /// A connection to the model server for the relay. Where no descriptor is left for it, those of idle ones are given back first.
    /// `patient`: a model server that has not been there yet is waited for.
    pub async fn dial(&self, route: usize, patient: bool) -> Result<Dialled, ForwardError> {
        let pool = &self.pools[route];
        match if patient { pool.dial_patiently().await } else { pool.dial().await } {
            Err(ForwardError::Descriptors) => {
                self.meter.exceeded("descriptors");
                self.spare();
                // hyper closes its own when it is next polled.
                tokio::task::yield_now().await;
                pool.dial().await
            }
            dialled => dialled,
        }
    }

    /// Rings the bells at every change that relayed connections must know of, for as long as it is polled.
    async fn ring(&self) {
        let (mut drain, mut held, mut changes) = (self.drain.subscribe(), self.held.subscribe(), self.shared.store.changes.subscribe());
        loop {
            let changed = tokio::select! {
                changed = drain.changed() => changed,
                changed = held.changed() => changed,
                changed = changes.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            self.bells.ring();
        }
    }
}

/// Counts what is open.
#[derive(Default)]
pub struct Counter {
    open: Cell<usize>,
    changed: Notify,
}

impl Counter {
    pub fn enter(self: &Rc<Self>) -> Entered {
        self.open.set(self.open.get() + 1);
        Entered(Rc::clone(self))
    }

    pub fn get(&self) -> usize {
        self.open.get()
    }

    /// Returns once fewer than `most` are open.
    pub async fn below(&self, most: usize) {
        while self.open.get() >= most {
            self.changed.notified().await;
        }
    }
}

/// Counted until it is dropped.
pub struct Entered(Rc<Counter>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.changed.notify_waiters();
        self.0.changed.notify_one();
    }
}
