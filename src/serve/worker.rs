//! The threads that load the model and compute. Never the runtime's own: an answer that takes long must not hold up health checks.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use steadfast_golden_sets::{
    engine::{self, Engine, EngineChoice, EngineError, EngineOptions},
    onnx::{self, Signature},
    tensor::Tensor,
};
use tokio::sync::oneshot;

use super::{life::Life, model::Found};

/// What is to be loaded, and how long that takes at least.
pub(super) struct Plan {
    pub(super) found: Found,
    pub(super) engine: EngineChoice,
    pub(super) workers: usize,
    pub(super) life: Arc<Life>,
    pub(super) load: Duration,
    pub(super) ready: Duration,
    pub(super) wrong: Duration,
}

/// A model that answers.
pub(super) struct Loaded {
    pub(super) signature: Signature,
    /// `onnxruntime 1.23.2`.
    pub(super) engine: String,
    jobs: mpsc::Sender<Job>,
}

struct Job {
    inputs: Vec<Tensor>,
    answer: oneshot::Sender<Result<Vec<Tensor>, EngineError>>,
}

impl Loaded {
    /// Computes on a worker. How many wait is bounded by whoever calls.
    pub(super) async fn compute(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, EngineError> {
        let gone = || EngineError::Run { engine: "the server", why: "its workers are gone".into() };
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { inputs, answer }).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Loads on a thread and makes the server ready. What comes back tells why it could not.
pub(super) fn load(plan: Plan) -> oneshot::Receiver<String> {
    let (failed, receiver) = oneshot::channel();
    thread::spawn(move || {
        if let Err(why) = load_here(&plan) {
            let _ = failed.send(why);
        }
    });
    receiver
}

fn load_here(plan: &Plan) -> Result<(), String> {
    let Plan { found, life, .. } = plan;
    let bytes = found.read().map_err(|error| error.to_string())?;
    let model = onnx::decode_model(bytes.clone()).map_err(|error| error.to_string())?;
    let signature = Signature::of(&model).map_err(|error| error.to_string())?;
    drop(model);
    let options = EngineOptions { choice: plan.engine, threads: 1, ..EngineOptions::default() };
    let engines = (0..plan.workers).map(|_| engine::open(&bytes, &options)).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let engine = engines.first().map_or_else(String::new, |engine| format!("{} {}", engine.name(), engine.version()));
    let (jobs, queue) = mpsc::channel();
    let queue = Arc::new(Mutex::new(queue));
    for engine in engines {
        let (queue, reopen) = (queue.clone(), Reopen { bytes: bytes.clone(), options: options.clone() });
        thread::spawn(move || work(engine, &queue, &reopen));
    }
    sleep_until(life.began + plan.load);
    life.loaded();
    sleep_until(Instant::now() + plan.ready);
    let correct_from = life.become_ready(Loaded { signature, engine, jobs }, plan.wrong);
    sleep_until(correct_from);
    life.became_correct(correct_from);
    Ok(())
}

fn sleep_until(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// How to replace an engine whose state a panic left unknown.
struct Reopen {
    bytes: Bytes,
    options: EngineOptions,
}

fn work(mut engine: Box<dyn Engine>, queue: &Mutex<mpsc::Receiver<Job>>, reopen: &Reopen) {
    loop {
        // Held while waiting: one idle worker waits for jobs, the others for it.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { inputs, answer }) = job else { return };
        if answer.is_closed() {
            // Whoever asked is gone.
            continue;
        }
        let result = engine.run(&inputs);
        if let Err(EngineError::Panicked { .. }) = &result {
            match engine::open(&reopen.bytes, &reopen.options) {
                Ok(fresh) => engine = fresh,
                Err(error) => eprintln!("steadfast serve: the engine could not be opened again: {error}"),
            }
        }
        let _ = answer.send(result);
    }
}
