//! How many sidecars does one controller carry? Simulated ones speak the real protocol (TLS, JSON lines; policies down and a report a second up) with
//! the controller's own server, hub and ingest in a process of its own; its CPU, its memory and the time that a policy takes to reach a sidecar are measured at growing numbers.
//!
//! What a cluster adds is not in it: TokenReviews (once per token and sidecar), watches over pods, and reconcilers. Sidecars prove themselves by one secret, as on one machine.

mod clock;
mod controller;
mod figures;
mod process;
mod sidecar;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

use crate::{
    figures::{Row, quantile},
    process::Controller,
    sidecar::{Heard, Sidecar, Totals},
};

/// TLS handshakes at once while sidecars are added.
const HANDSHAKES: usize = 64;
/// Open files beside connections: streams, polls, libraries.
const FILES_BESIDE: u64 = 100;
/// Policies for one sidecar that are timed at each number.
const SINGLE: usize = 200;
/// A policy that has not come by then is lost.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// Simulated sidecars against one controller: CPU, memory and how fast policies travel.
#[derive(Parser)]
struct Args {
    /// Numbers of sidecars, rising.
    #[arg(long, value_delimiter = ',', default_value = "1000,2500,5000,10000")]
    sidecars: Vec<usize>,
    /// Seconds of steady load at each number.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Where scale.json, scale.csv and scale.svg are written.
    #[arg(long, default_value = "benches/scale/results")]
    out: PathBuf,
    /// Be the controller that is measured.
    #[arg(long, hide = true)]
    controller: bool,
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
    let ended = if args.controller { controller::run() } else { bench(&args) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("scale: {why}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<(), Failure> {
    let most = args.sidecars.iter().copied().max().unwrap_or(0);
    process::allow_files(most as u64 + FILES_BESIDE)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(io("no runtime"))?;
    let rows = runtime.block_on(measure(args))?;
    figures::write(&args.out, &rows)?;
    println!("\nwritten to {}: scale.json, scale.csv, scale.svg", args.out.display());
    let broken = figures::broken(&rows);
    if broken.is_empty() { Ok(()) } else { Err(Failure::Other(broken.join("\n       "))) }
}

async fn measure(args: &Args) -> Result<Vec<Row>, Failure> {
    let mut controller = Controller::start()?;
    let (told, mut heard) = mpsc::unbounded_channel();
    let totals = Arc::<Totals>::default();
    let target = Arc::new(sidecar::Target::new(&controller.hello)?);
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    let mut rows = Vec::new();
    let mut count = 0;
    println!(
        "{:>9} {:>10} {:>12} {:>9} {:>22} {:>22} {:>11}",
        "sidecars", "CPU cores", "µs/report", "RSS MB", "policy for all p50/p99", "policy for one p50/p99", "reports/s"
    );
    for wanted in &args.sidecars {
        let began = Instant::now();
        for number in count..*wanted {
            let permit = Arc::clone(&room).acquire_owned().await.map_err(|error| Failure::Other(error.to_string()))?;
            let sidecar = Sidecar { number, target: Arc::clone(&target), told: told.clone(), totals: Arc::clone(&totals) };
            tokio::spawn(sidecar.live(permit));
        }
        count = *wanted;
        totals.connected(count, LOST_AFTER).await?;
        let joined = began.elapsed();
        // Handshakes leave memory behind that the first reports use again.
        sleep(Duration::from_secs(3)).await;
        let (cpu, reports, since) = (controller.cpu()?, totals.acknowledged(), Instant::now());
        sleep(Duration::from_secs(args.seconds)).await;
        let (cpu, reports, took) = (controller.cpu()?.saturating_sub(cpu), totals.acknowledged() - reports, since.elapsed());
        let rss = controller.rss()?;
        while heard.try_recv().is_ok() {}
        let all = everybody(&mut controller, &mut heard, count).await?;
        let one = one_by_one(&mut controller, &mut heard, count).await?;
        let row = Row {
            sidecars: count,
            cpu_cores: cpu.as_secs_f64() / took.as_secs_f64(),
            cpu_us_per_report: cpu.as_secs_f64() * 1e6 / reports as f64,
            rss_mb: rss as f64 / 1e6,
            reports_per_second: reports as f64 / took.as_secs_f64(),
            policy_all_p50_ms: quantile(&all, 0.5),
            policy_all_p99_ms: quantile(&all, 0.99),
            policy_one_p50_ms: quantile(&one, 0.5),
            policy_one_p99_ms: quantile(&one, 0.99),
            joined_seconds: joined.as_secs_f64(),
            reports_lost: totals.lost(),
        };
        println!("{row}");
        rows.push(row);
    }
    totals.over.store(true, Ordering::Relaxed);
    Ok(rows)
}

/// Milliseconds from asking the controller for a policy in every pod until each sidecar has read it; sorted.
async fn everybody(controller: &mut Controller, heard: &mut mpsc::UnboundedReceiver<Heard>, count: usize) -> Result<Vec<f64>, Failure> {
    let mut taken = Vec::with_capacity(3 * count);
    for round in 0..3 {
        let name = format!("all-{count}-{round}");
        let began = controller.arm(0, count, &name)?;
        let mut left = count;
        while left > 0 {
            let Ok(Some(one)) = timeout(LOST_AFTER, heard.recv()).await else {
                return Err(Failure::Other(format!("{left} of {count} sidecars did not hear of a policy")));
            };
            if one.policy == name {
                taken.push(clock::ms(began, one.at));
                left -= 1;
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

async fn one_by_one(controller: &mut Controller, heard: &mut mpsc::UnboundedReceiver<Heard>, count: usize) -> Result<Vec<f64>, Failure> {
    let mut taken = Vec::with_capacity(SINGLE);
    for round in 0..SINGLE {
        let name = format!("one-{count}-{round}");
        let number = round * 7_919 % count;
        let began = controller.arm(number, number + 1, &name)?;
        loop {
            match timeout(LOST_AFTER, heard.recv()).await {
                Ok(Some(one)) if one.policy == name => break taken.push(clock::ms(began, one.at)),
                Ok(Some(_)) => {}
                _ => return Err(Failure::Other(format!("sidecar {number} did not hear of a policy"))),
            }
        }
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}
