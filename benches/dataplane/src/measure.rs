//! Runs, interleaved: everybody once, then everybody again, so that what the machine does meanwhile befalls all alike.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::time::sleep;

use crate::{
    Failure, io,
    load::{self, Load},
    peer::{Absent, Peer, Places, Running, Way},
    rows::{ACCURACY, CpuRow, Goal, LATENCY, MEMORY},
    table::{Row, Samples},
};

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) rounds: usize,
    pub(crate) warm: Duration,
    pub(crate) length: Duration,
}

/// Connections of [`MEMORY`].
const HELD: usize = 2_000;
/// Nobody is starting any more by then.
const SETTLES: Duration = Duration::from_secs(2);
/// Connections by which evenly paced requests go, at half load.
const PACED: usize = 64;
const US: f64 = 1e6;

/// What one run told.
struct Told {
    cpu_us: f64,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Proxies that run, and why others do not.
type Started = BTreeMap<Peer, Result<Running, String>>;

fn start(peers: &[Peer], way: Way, places: &Places) -> Result<Started, Failure> {
    let one = |peer: &Peer| match peer.start(way, places) {
        Ok(running) => Ok((*peer, Ok(running))),
        Err(Absent::Because(why)) => Ok((*peer, Err(why))),
        Err(Absent::Failed(failure)) => Err(failure),
    };
    peers.iter().map(one).collect()
}

/// One run. `Err`: what went wrong with a request.
async fn run(target: SocketAddr, running: Option<&Running>, load: Load, pace: Pace) -> Result<Result<Told, String>, Failure> {
    let used = || running.map_or(Ok(Duration::ZERO), |running| running.process.cpu());
    let going = load::start(load, target);
    sleep(pace.warm).await;
    going.done.took.borrow_mut().reset();
    let (cpu, count, since) = (used()?, going.done.count.get(), std::time::Instant::now());
    sleep(pace.length).await;
    let (cpu, count, took) = (used()?.saturating_sub(cpu), going.done.count.get() - count, since.elapsed());
    if let Some(why) = going.done.failed() {
        return Ok(Err(why));
    }
    if count == 0 {
        return Ok(Err("nothing was answered".to_owned()));
    }
    let took_us = |quantile: f64| going.done.took.borrow().value_at_quantile(quantile) as f64 / 1e3;
    Ok(Ok(Told { cpu_us: cpu.as_secs_f64() * US / count as f64, per_second: count as f64 / took.as_secs_f64(), p50_us: took_us(0.5), p99_us: took_us(0.99) }))
}

/// A row of CPU time.
pub(crate) async fn cpu(row: &CpuRow, peers: &[Peer], places: &Places, pace: Pace) -> Result<Vec<Row>, Failure> {
    let started = start(peers, row.way, places)?;
    let mut samples = Samples::new(&started);
    for _ in 0..pace.rounds {
        for (peer, running) in &started {
            let Ok(running) = running else { continue };
            match run(running.address, Some(running), row.load, pace).await? {
                Ok(told) => samples.add(*peer, told.cpu_us, Some(told.per_second)),
                Err(why) => samples.failed(*peer, why),
            }
        }
    }
    Ok(vec![samples.row(row.group, row.title, &format!("CPU µs per {}", row.per), row.goals)])
}

/// What a proxy adds to the time of an answer at half of what the slowest of them carries, so that all keep up; measured in turn with nobody between.
pub(crate) async fn latency(peers: &[Peer], places: &Places, pace: Pace) -> Result<Vec<Row>, Failure> {
    let started = start(peers, Way::Http1, places)?;
    // Clients that keep a pace share their core with the server, and may be the first to have enough.
    let beyond = Load::Paced { per_second: 200_000, connections: PACED };
    let mut most = run(places.upstream, None, beyond, pace).await?.map_err(Failure::Other)?.per_second;
    for running in started.values().flatten() {
        most = most.min(run(running.address, None, Load::Get { connections: 16 }, pace).await?.map_err(Failure::Other)?.per_second);
    }
    let per_second = (most / 2.0) as u64;
    let load = Load::Paced { per_second, connections: PACED };
    let (mut p50, mut p99) = (Samples::new(&started), Samples::new(&started));
    for _ in 0..pace.rounds {
        let direct = run(places.upstream, None, load, pace).await?.map_err(Failure::Other)?;
        for (peer, running) in &started {
            let Ok(running) = running else { continue };
            match run(running.address, Some(running), load, pace).await? {
                Ok(told) => {
                    p50.add(*peer, told.p50_us - direct.p50_us, Some(told.per_second));
                    p99.add(*peer, told.p99_us - direct.p99_us, Some(told.per_second));
                }
                Err(why) => {
                    p50.failed(*peer, why.clone());
                    p99.failed(*peer, why);
                }
            }
        }
    }
    let title = |which: &str| format!("Latency over direct at {per_second} requests/s, {which}");
    Ok(vec![p50.row(LATENCY, &title("p50"), "µs", &[Goal::AtMost(40.0)]), p99.row(LATENCY, &title("p99"), "µs", &[Goal::AtMost(150.0)])])
}

/// What a proxy holds in memory, just started and with many open connections that have been used once.
pub(crate) async fn memory(peers: &[Peer], places: &Places, pace: Pace) -> Result<Vec<Row>, Failure> {
    let (mut idle, mut held, mut each) = (None::<Samples>, None::<Samples>, None::<Samples>);
    for _ in 0..pace.rounds.min(3) {
        let started = start(peers, Way::Http1, places)?;
        sleep(SETTLES).await;
        let new = || Samples::new(&started);
        let (idle, held, each) = (idle.get_or_insert_with(new), held.get_or_insert_with(new), each.get_or_insert_with(new));
        for (peer, running) in &started {
            let Ok(running) = running else { continue };
            let (before, _) = running.process.memory()?;
            let connections = load::hold_open(running.address, HELD).await;
            sleep(Duration::from_millis(300)).await;
            let (with, _) = running.process.memory()?;
            idle.add(*peer, before as f64 / 1e6, None);
            match connections {
                Ok(_open) => {
                    held.add(*peer, with as f64 / 1e6, None);
                    each.add(*peer, with.saturating_sub(before) as f64 / HELD as f64, None);
                }
                Err(error) => {
                    held.failed(*peer, error.to_string());
                    each.failed(*peer, error.to_string());
                }
            }
        }
    }
    let rows = [
        (idle, "Memory (RSS), just started", "MB", &[Goal::AtMost(5.0)][..]),
        (held, "Memory (RSS) with 2,000 open connections", "MB", &[Goal::AtMost(10.0)]),
        (each, "Memory for each open connection", "bytes", &[]),
    ];
    Ok(rows.into_iter().filter_map(|(samples, title, unit, goals)| Some(samples?.row(MEMORY, title, unit, goals))).collect())
}

/// How exact delays and CPU burns are, alone and among 5,000 requests a second of which 1,000 wait at any moment.
pub(crate) async fn accuracy(peers: &[Peer], places: &Places, pace: Pace) -> Result<Vec<Row>, Failure> {
    const LATE: [&str; 3] = ["earliest", "p50", "p99"];
    let load = Load::Paced { per_second: 5_000, connections: 1_400 };
    let started = start(peers, Way::Delays, places)?;
    let mut late = LATE.map(|_| Samples::new(&started));
    // Connections are made first, and the first requests wait as long as all others.
    let pace = Pace { warm: Duration::from_secs(1), ..pace };
    for _ in 0..pace.rounds {
        for (peer, running) in &started {
            let Ok(running) = running else { continue };
            match delays(running.address, load, pace).await? {
                Ok(told) => late.iter_mut().zip(told).for_each(|(samples, us)| samples.add(*peer, us, None)),
                Err(why) => late.iter_mut().for_each(|samples| samples.failed(*peer, why.clone())),
            }
        }
    }
    let title = |which: &str| format!("200 ms delays, 5,000 requests/s, 1,000 waiting: later than asked as the client sees it, {which}");
    let goals: [&[Goal]; 3] = [&[], &[Goal::AtMost(300.0)], &[Goal::AtMost(1_000.0)]];
    let mut rows: Vec<_> = late.into_iter().zip(LATE).zip(goals).map(|((samples, which), goals)| samples.row(ACCURACY, &title(which), "µs", goals)).collect();
    let busy = started.get(&Peer::Sidecar).and_then(|running| running.as_ref().ok()).map(|running| running.address);
    rows.extend(crate::burn::rows(places, busy, load, pace).await?);
    Ok(rows)
}

/// Microseconds by which answers came later than asked: the earliest, the median, the last of a hundred.
async fn delays(target: SocketAddr, load: Load, pace: Pace) -> Result<Result<[f64; 3], String>, Failure> {
    let going = load::start(load, target);
    sleep(pace.warm).await;
    going.done.took.borrow_mut().reset();
    sleep(pace.length).await;
    if let Some(why) = going.done.failed() {
        return Ok(Err(why));
    }
    let took = going.done.took.borrow();
    let asked = crate::peer::DELAY.as_secs_f64() * US;
    Ok(if took.is_empty() { Err("nothing was answered".to_owned()) } else { Ok([0.0, 0.5, 0.99].map(|q| took.value_at_quantile(q) as f64 / 1e3 - asked)) })
}

/// The server's thread, beside this one on its core.
pub(crate) fn serve_upstream(port: std::net::TcpListener) -> Result<SocketAddr, Failure> {
    let address = port.local_addr().map_err(io("no port"))?;
    port.set_nonblocking(true).map_err(io("no port"))?;
    std::thread::Builder::new()
        .name("upstream".into())
        .spawn(move || crate::forever(|| async move { crate::upstream::serve(tokio::net::TcpListener::from_std(port)?).await }))
        .map_err(io("no thread"))?;
    Ok(address)
}
