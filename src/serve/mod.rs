//! `steadfast serve`: a small Open Inference Protocol v2 server over one ONNX model, for the demo and for tests.
//!
//! - [`model`] finds what is to be served; [`worker`] computes, on threads of its own;
//! - [`life`] is the one state that everything asks (loading, ready, draining) and keeps the truth about when it changed;
//! - [`handle`] turns a request into an answer; [`listen`] accepts connections and drains them.

mod handle;
mod life;
mod listen;
mod model;
mod worker;

use std::{
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use steadfast_golden_sets::engine::EngineChoice;
use tokio::net::TcpListener;

use crate::exit;

/// Serve an ONNX model over the Open Inference Protocol v2, for the demo and for tests.
///
/// It exists so that Steadfast can be tried and tested without anything else, and promises no speed. In production bring your own server: Steadfast works
/// with any that speaks the protocol (MLServer, Triton, KServe, OpenVINO, …).
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  steadfast serve golden-sets/sets/recommender --port 8080\n  curl http://127.0.0.1:8080/v2/models/recommender\n\nSIGTERM drains it: not ready any more, requests inside are answered, exit status 0."
)]
pub(crate) struct Args {
    /// A golden set, or any folder with a model.onnx. The model's name is that of golden.yaml, else the folder's.
    #[arg(value_name = "MODEL_DIR")]
    directory: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one and tells it.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What computes: auto (ONNX Runtime where its library is found, else rten), rten or onnxruntime.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Loading takes at least this long, as it does with real models; until then it listens and is not ready.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    load_seconds: Duration,
    /// Threads that compute, each with its own copy of the model.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Requests inside at once, computing or waiting; one more is answered 503.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_concurrency: u32,
    /// Bytes of a request's body; a larger one is answered 413.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, value_parser = clap::value_parser!(u64).range(1..=steadfast_golden_sets::oip::BODY_MAX as u64))]
    max_body: u64,
    /// Become ready only this long after loading.
    #[arg(long, hide = true, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    ready_seconds: Duration,
    /// Answer well-formed but wrong for this long after becoming ready.
    #[arg(long, hide = true, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    wrong_seconds: Duration,
    /// Append what happened and when, one JSON line an event.
    #[arg(long, hide = true, value_name = "FILE")]
    truth_file: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("{text:?} is not a time: write seconds from 0 to 86400, such as 1.5"))
}

pub(crate) fn main(args: Args) -> ExitCode {
    start(args).unwrap_or_else(|code| code)
}

fn start(args: Args) -> Result<ExitCode, ExitCode> {
    let began = Instant::now();
    let (file, directory) = (args.truth_file, args.directory);
    let truth = life::Truth::open(file.as_deref()).map_err(exit::bad_input)?;
    let found = model::Found::in_directory(&directory).map_err(exit::bad_input)?;
    let life = Arc::new(life::Life::new(truth, began));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(exit::failed)?;
    runtime.block_on(async move {
        let cannot = |error| exit::bad_input(format!("cannot listen on {}:{}: {error}", args.host, args.port));
        let signals = listen::Signals::handle().map_err(exit::failed)?;
        let listener = TcpListener::bind((args.host, args.port)).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(exit::failed)?;
        eprintln!("steadfast serve: model {:?} on http://{address} (for demo and tests)", found.name);
        let server = Arc::new(handle::Server::new(life.clone(), &found, args.max_concurrency, args.max_body));
        let failed = worker::load(worker::Plan {
            found,
            engine: args.engine,
            workers: usize::from(args.workers),
            life,
            load: args.load_seconds,
            ready: args.ready_seconds,
            wrong: args.wrong_seconds,
        });
        Ok(listen::run(listener, signals, server, failed).await)
    })
}
