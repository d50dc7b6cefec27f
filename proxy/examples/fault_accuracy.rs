//! Prints how exact delays and CPU burns are on this machine: `cargo run --release --example fault_accuracy -p steadfast-proxy`.

use std::time::Duration;

use steadfast_proxy::{
    clock,
    fault::{
        cpu::{Burn, Target},
        timer::Timer,
    },
};
use tokio::task::LocalSet;

fn main() -> std::io::Result<()> {
    println!("Delay, lateness in ms of 1000 delays, four at a time");
    println!("{:>10} {:>9} {:>9} {:>9} {:>9} {:>9}", "asked ms", "min", "p50", "p90", "p99", "max");
    for asked_ms in [1_u64, 5, 20, 100] {
        let late = delays(asked_ms, if asked_ms > 50 { 400 } else { 1000 })?;
        let at = |q: f64| late[((late.len() - 1) as f64 * q) as usize] as f64 / 1e6;
        println!("{asked_ms:>10} {:>9.4} {:>9.4} {:>9.4} {:>9.4} {:>9.4}", at(0.0), at(0.5), at(0.9), at(0.99), at(1.0));
    }
    println!("\nCPU, one thread for 10 s");
    println!("{:>8} {:>10} {:>12}", "asked %", "achieved %", "error points");
    for load in [0.1, 0.5, 0.9] {
        match Burn::start(&Target { load, threads: 1, pin: vec![], duration: Duration::from_secs(10) }) {
            Ok(mut burn) => {
                let outcome = burn.join();
                println!(
                    "{:>8.1} {:>10.2} {:>12.3} {}",
                    load * 100.0,
                    outcome.achieved * 100.0,
                    (outcome.achieved - load) * 100.0,
                    outcome.limited_by.unwrap_or_default()
                );
            }
            Err(error) => println!("{:>8.1} {error}", load * 100.0),
        }
    }
    Ok(())
}

/// Lateness in nanoseconds, sorted.
fn delays(asked_ms: u64, count: usize) -> std::io::Result<Vec<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let timer = Timer::new()?;
        tokio::task::spawn_local(timer.clone().drive());
        let ask = |timer: Timer| async move {
            let mut late = Vec::with_capacity(count / 4);
            for _ in 0..count / 4 {
                let deadline = clock::now_ns() + asked_ms * 1_000_000;
                if let Some(sleep) = timer.sleep_until(deadline) {
                    sleep.await;
                    late.push(clock::now_ns().saturating_sub(deadline));
                }
            }
            late
        };
        let (a, b, c, d) = tokio::join!(ask(timer.clone()), ask(timer.clone()), ask(timer.clone()), ask(timer));
        let mut all = [a, b, c, d].concat();
        all.sort_unstable();
        Ok(all)
    })
}
