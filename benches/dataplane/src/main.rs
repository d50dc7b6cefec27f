//! What does the sidecar cost? CPU time for each request, latency and memory, beside a plain TCP copy, haproxy, nginx, Envoy and pingora, all on one machine in one run:
//! whoever is measured has one core and one thread that forwards, those who ask and the server that answers have another core.
//!
//! CPU time is that of the whole process as the scheduler counts it, system time included, by what was answered meanwhile.

mod burn;
mod copy;
mod h2;
mod load;
mod measure;
mod peer;
mod picture;
mod process;
mod rows;
mod table;
mod upstream;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use tokio::task::LocalSet;

use crate::{
    measure::Pace,
    peer::{PEERS, Peer, Places},
    process::{Cores, allow_files, stay_on},
    table::Row,
};

/// Open files: connections of the memory row and of delayed requests, on both sides.
const FILES: u64 = 16_000;

/// The sidecar's data path beside its peers. `benches/dataplane/run` builds everything first.
#[derive(Parser)]
struct Args {
    /// Two minutes instead of a quarter of an hour: fewer and shorter runs, whose figures say less.
    #[arg(long)]
    quick: bool,
    /// Only these rows; the others stay as an earlier run left them in --out.
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(rows::groups()))]
    rows: Vec<String>,
    /// Only these peers.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Runs of each peer in each row.
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds of each run.
    #[arg(long)]
    length: Option<u64>,
    /// Where dataplane.json, dataplane.md and dataplane.svg are written.
    #[arg(long, default_value = "benches/dataplane/results")]
    out: PathBuf,
    /// The sidecar.
    #[arg(long, default_value = "target/release/steadfast-proxy")]
    sidecar: PathBuf,
    /// What benches/dataplane/setup made.
    #[arg(long, default_value = ".cache/dataplane")]
    cache: PathBuf,
    /// Be the plain TCP copy from LISTEN to UPSTREAM.
    #[arg(long, hide = true, num_args = 2, value_names = ["LISTEN", "UPSTREAM"])]
    copy: Option<Vec<SocketAddr>>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what}: {why}")]
    Io { what: &'static str, why: std::io::Error },
    #[error("{0}")]
    Other(String),
}

pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |why| Failure::Io { what, why }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some([listen, upstream]) = args.copy.as_deref() {
        let (listen, upstream) = (*listen, *upstream);
        forever(|| async move { copy::serve(tokio::net::TcpListener::bind(listen).await?, upstream).await });
        return ExitCode::FAILURE;
    }
    match run(&args) {
        Ok(rows) => {
            let missed: Vec<_> = rows.iter().flat_map(Row::missed).collect();
            for line in &missed {
                println!("missed: {line}");
            }
            if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            eprintln!("dataplane: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Runs what never ends on this thread alone, and says why it did.
pub(crate) fn forever<F: Future<Output = std::io::Result<()>>>(begin: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Err(error) = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, begin())) {
        eprintln!("dataplane: {error}");
    }
}

fn run(args: &Args) -> Result<Vec<Row>, Failure> {
    let cores = Cores::find()?;
    stay_on(&[cores.load])?;
    allow_files(FILES)?;
    let upstream = measure::serve_upstream(std::net::TcpListener::bind("127.0.0.1:0").map_err(io("no port"))?)?;
    let places = Places { sidecar: args.sidecar.clone(), cache: args.cache.clone(), upstream, cores };
    let peers = if args.peers.is_empty() { PEERS.to_vec() } else { args.peers.clone() };
    let ms = Duration::from_millis;
    let mut pace = if args.quick { Pace { rounds: 3, warm: ms(150), length: ms(350) } } else { Pace { rounds: 5, warm: ms(300), length: ms(2000) } };
    pace.rounds = args.rounds.unwrap_or(pace.rounds).max(1);
    pace.length = args.length.map_or(pace.length, ms);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("no runtime"))?;
    LocalSet::new().block_on(&runtime, all(args, &peers, &places, pace))
}

async fn all(args: &Args, peers: &[Peer], places: &Places, pace: Pace) -> Result<Vec<Row>, Failure> {
    let mut kept = if args.rows.is_empty() { Vec::new() } else { table::read(&args.out) };
    let mut rows: Vec<Row> = Vec::new();
    for group in rows::groups() {
        if !args.rows.is_empty() && !args.rows.iter().any(|asked| asked == group) {
            rows.extend(kept.extract_if(.., |row| row.group == group));
            continue;
        }
        let new = match (rows::CPU.iter().find(|row| row.group == group), group) {
            (Some(row), _) => measure::cpu(row, peers, places, pace).await?,
            (None, rows::LATENCY) => measure::latency(peers, places, pace).await?,
            (None, rows::MEMORY) => measure::memory(peers, places, pace).await?,
            (None, _) => measure::accuracy(peers, places, pace).await?,
        };
        println!("{}\n", table::markdown(&new));
        rows.extend(new);
    }
    table::write(&args.out, &rows)?;
    Ok(rows)
}
