//! Those who ask. Each load runs until it is dropped and counts what was done; the measurement looks at the count and at the proxy's CPU time at the same two moments.

mod client;
mod paced;
mod stream;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

pub(crate) use client::hold_open;

/// What is asked, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// The next request as soon as the last is answered.
    Get { connections: usize },
    /// 600 KB up.
    Post { connections: usize },
    /// Each request by a connection of its own.
    Anew { clients: usize },
    /// So many requests a second, evenly, whatever becomes of them.
    Paced { per_second: u64, connections: usize },
    /// Server-sent events; each event counts.
    Events { streams: usize },
    /// HTTP/2, so many requests at one moment on each connection.
    Grpc { connections: usize, streams: usize },
}

/// What was done so far.
pub(crate) struct Done {
    pub(crate) count: Cell<u64>,
    /// Nanoseconds from when a request was due until it was answered; paced loads alone keep it.
    pub(crate) took: RefCell<Histogram<u64>>,
    failed: RefCell<Option<String>>,
}

/// Longer than any request takes.
const TOOK_MAX_NS: u64 = 60_000_000_000;

impl Done {
    fn new() -> Rc<Self> {
        let took = Histogram::new_with_max(TOOK_MAX_NS, 4).expect("constant bounds are valid");
        Rc::new(Self { count: Cell::new(0), took: RefCell::new(took), failed: RefCell::default() })
    }

    fn one_more(&self) {
        self.count.set(self.count.get() + 1);
    }

    fn fail(&self, why: &dyn std::fmt::Display) {
        self.failed.borrow_mut().get_or_insert_with(|| why.to_string());
    }

    /// The first that went wrong.
    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.borrow().clone()
    }
}

/// A load that goes on until it is dropped.
pub(crate) struct Running {
    pub(crate) done: Rc<Done>,
    _tasks: JoinSet<()>,
}

/// Begins, on the calling thread's `LocalSet`.
pub(crate) fn start(load: Load, target: SocketAddr) -> Running {
    let (done, mut tasks) = (Done::new(), JoinSet::new());
    let told = |done: &Rc<Done>, result: io::Result<()>| {
        if let Err(error) = result {
            done.fail(&error);
        }
    };
    let count = match load {
        Load::Get { connections } | Load::Post { connections } | Load::Grpc { connections, .. } => connections,
        Load::Anew { clients } => clients,
        Load::Events { streams } => streams,
        Load::Paced { .. } => 1,
    };
    for _ in 0..count {
        let done = Rc::clone(&done);
        tasks.spawn_local(async move {
            let result = match load {
                Load::Get { .. } => client::again_and_again(target, client::get(), &done).await,
                Load::Post { .. } => client::again_and_again(target, client::post(), &done).await,
                Load::Anew { .. } => client::anew(target, &done).await,
                Load::Events { .. } => stream::events(target, &done).await,
                Load::Grpc { streams, .. } => stream::grpc(target, streams, &done).await,
                Load::Paced { per_second, connections } => paced::paced(target, Duration::from_nanos(1_000_000_000 / per_second), connections, &done).await,
            };
            told(&done, result);
        });
    }
    Running { done, _tasks: tasks }
}
