//! Prints how often verdicts are wrong and how fast they come: `cargo run --example sequential_simulation -p steadfast-golden-sets`.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use steadfast_golden_sets::{
    Outcome, Verdict,
    sequential::{Judge, Settings},
};

const RUNS: usize = 10_000;

/// Samples until the verdict is `wanted`, for each run; `None` where it did not come within `horizon`.
fn times(judge: impl Fn() -> Judge, wanted: Verdict, p: f64, horizon: u64, runs: usize) -> Vec<Option<u64>> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut run = || {
        let mut judge = judge();
        (1..=horizon).find(|_| {
            judge.observe(if rng.random_bool(p) { Outcome::Mismatch } else { Outcome::Match });
            judge.verdict() == wanted
        })
    };
    (0..runs).map(|_| run()).collect()
}

fn quantile(times: &[Option<u64>], share: f64) -> String {
    let mut sorted: Vec<u64> = times.iter().map(|time| time.unwrap_or(u64::MAX)).collect();
    sorted.sort_unstable();
    match sorted[((sorted.len() - 1) as f64 * share) as usize] {
        u64::MAX => "never".to_owned(),
        time => time.to_string(),
    }
}

fn main() {
    let defaults = Settings::default();
    let gate = |settings: Settings| move || Judge::gate(settings).expect("the settings are in range");
    println!("one-shot gate, tolerated 0.1 %, {RUNS} runs\n\nfalse alarms at a true mismatch of 0.1 %, over 5,000 samples:");
    for alpha in [0.001, 0.05] {
        let alarms = times(gate(Settings { false_alarms: alpha, ..defaults }), Verdict::Fail, 0.001, 5_000, RUNS).iter().flatten().count();
        println!("  promised {alpha:>5}   seen {:.4}  ({alarms} runs)", alarms as f64 / RUNS as f64);
    }
    println!("\nsamples until Fail (false alarms 0.001):\n  mismatch   median     90 %");
    for p in [0.01, 0.05, 0.2, 1.0] {
        let times = times(gate(defaults), Verdict::Fail, p, 20_000, RUNS);
        println!("  {:>6} % {:>8} {:>8}", p * 100.0, quantile(&times, 0.5), quantile(&times, 0.9));
    }
    println!("\nsamples until Pass (excluding 1 %, false passes 0.001):\n  mismatch   median     90 %   passed within 5,000");
    for p in [0.0, 0.0005, 0.001, 0.01] {
        let times = times(gate(defaults), Verdict::Pass, p, 5_000, 2_000);
        let passed = times.iter().flatten().count() as f64 / times.len() as f64;
        println!("  {:>6} % {:>8} {:>8}   {passed:.4}", p * 100.0, quantile(&times, 0.5), quantile(&times, 0.9));
    }
    println!("\nmonitor (e-detector), tolerated 0.1 %, samples until Fail from the start:\n  run length   mismatch   median     90 %");
    for run_length in [1e7, 1e8] {
        for p in [0.01, 0.05, 0.2, 1.0] {
            let settings = Settings { run_length, ..defaults };
            let times = times(|| Judge::monitor(settings).expect("the settings are in range"), Verdict::Fail, p, 20_000, 2_000);
            println!("  {run_length:>10.0e} {:>8} % {:>8} {:>8}", p * 100.0, quantile(&times, 0.5), quantile(&times, 0.9));
        }
    }
}
