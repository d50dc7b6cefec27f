//! How far are the marks of an outage from the truth? Pods whose loading, readiness and first right answer are scripted write down when each really happened;
//! thirty of them are killed, and every mark of the report is compared with what their successors wrote.
//!
//! What is compared, each on CLOCK_MONOTONIC, with what may lie between at most:
//!
//! | mark | truth | may lie between |
//! |---|---|---|
//! | t7 container started | the server's `main` began | starting a process |
//! | t8 model loaded | the server's ready path answered 200 from then on | the sidecar's poll (20 ms) |
//! | t9 ready | the same | the probe's period (20 ms here) |
//! | t10 endpoint added | the same; the Service may send users from then on | the probe's period |
//! | t11 first good response | the server wrote its first answer (no golden replays here: it went to a user) | one connection |
//! | first correct prediction | the server wrote its first right answer | one answer's way |
//! | t12 sustained | the first answer: nothing failed after it | one connection |
//!
//! All of them must lie within one request interval: every pod is sent a request each 30 ms. How long a pod could have answered right before somebody asked
//! it is a row of its own: users ask within one interval, and then the answer takes its time (at most the slowest in a thousand of any phase).

use std::{fs, path::Path, process::Command};

use serde::Deserialize;
use steadfast_api::{
    mark::{Mark, Outage},
    report::Report,
};

/// 100 requests a second over three pods.
const INTERVAL_MS: f64 = 30.0;
const OUTAGES: usize = 30;

#[derive(Deserialize)]
struct Line {
    pid: u32,
    event: String,
    monotonic_ns: u64,
}

/// What one server wrote, in milliseconds of the report.
struct Truth {
    started: f64,
    ready: f64,
    correct_from: f64,
    first_answer: f64,
    first_right_answer: f64,
}

fn truths(file: &Path, zero_ns: u64) -> Vec<Truth> {
    let text = fs::read_to_string(file).expect("the servers wrote");
    let lines: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    let mut pids: Vec<u32> = lines.iter().map(|line| line.pid).collect();
    pids.dedup();
    pids.sort_unstable();
    pids.dedup();
    let at = |pid: u32, event: &str| {
        let line = lines.iter().find(|line| line.pid == pid && line.event == event)?;
        Some((line.monotonic_ns as f64 - zero_ns as f64) / 1e6)
    };
    let truth = |pid| {
        Some(Truth {
            started: at(pid, "started")?,
            ready: at(pid, "ready")?,
            correct_from: at(pid, "correctFrom")?,
            first_answer: at(pid, "firstAnswer")?,
            first_right_answer: at(pid, "firstRightAnswer")?,
        })
    };
    let mut truths: Vec<Truth> = pids.into_iter().filter_map(truth).collect();
    truths.sort_by(|a, b| a.started.total_cmp(&b.started));
    truths
}

/// Mark minus truth, in milliseconds.
fn errors(outage: &Outage, truth: &Truth) -> Vec<(Mark, f64)> {
    let mark = |mark: Mark| outage.marks.get(mark).unwrap_or_else(|| panic!("no {mark:?}: {outage:?}"));
    [
        (Mark::ContainerStarted, truth.started),
        (Mark::ModelLoaded, truth.ready),
        (Mark::Ready, truth.ready),
        (Mark::EndpointAdded, truth.ready),
        (Mark::FirstGoodResponse, truth.first_answer),
        (Mark::FirstCorrectPrediction, truth.first_right_answer),
        (Mark::Sustained, truth.first_answer),
    ]
    .into_iter()
    .map(|(which, truth)| (which, mark(which) - truth))
    .collect()
}

/// Prints one row of the table; least and most of `errors`, which it sorts.
fn row(name: &str, errors: &mut [f64]) -> (f64, f64) {
    errors.sort_by(f64::total_cmp);
    let (least, most) = (errors[0], errors[errors.len() - 1]);
    println!("{name:<24} {least:>8.2} {:>8.2} {most:>8.2}", errors[errors.len() / 2]);
    (least, most)
}

/// A stall of the machine's makes a mark late and never makes it right, so the better of two runs counts.
#[test]
fn every_mark_of_thirty_outages_is_within_one_request_interval_of_the_truth() {
    let first = measure();
    if let Err(why) = &first {
        eprintln!("{why}; once more, since the machine may have stalled");
    }
    if let Err(why) = first.or_else(|_| measure()) {
        panic!("{why}");
    }
}

/// One run of thirty outages, held against what the servers themselves wrote down.
fn measure() -> Result<(), String> {
    let folder = tempfile::TempDir::new().expect("a folder");
    let truth_file = folder.path().join("truth.jsonl");
    let test = format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {{name: scripted-truth}}
spec:
  target: {{selector: {{matchLabels: {{app: digits}}}}}}
  local:
    nodes: 3
    pods:
      replicas: 3
      labels: {{app: digits}}
      command: [steadfast, serve, golden-sets/sets/digits, --port, $(PORT), --load-seconds, '0.4', --ready-seconds, '0.2', --wrong-seconds, '0.3', --truth-file, '{}']
      ready: {{period: 20ms}}
  load: [{{name: users, rate: 100/s, inputs: {{goldenSet: digits}}}}]
  baseline: 2s
  steps: [{{name: killed, podKill: {{pods: {{mode: one}}}}}}]
  stable: {{within: 20s, hold: 1s}}
  rounds: {OUTAGES}
  seed: 5
",
        truth_file.display()
    );
    let file = folder.path().join("test.yaml");
    fs::write(&file, test).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_steadfast"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("run")
        .arg(&file)
        .args(["--output", "json", "--report-dir"])
        .arg(folder.path().join("report"))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!((report.outages.len(), report.recovery.censored), (OUTAGES, 0), "{:?}", report.verdict);

    let truths = truths(&truth_file, report.run.started_monotonic_ns.expect("the run's zero is known"));
    let mut by_mark = std::collections::BTreeMap::<Mark, Vec<f64>>::new();
    let mut until_asked = Vec::new();
    for outage in &report.outages {
        let started = outage.marks.get(Mark::ContainerStarted).expect("t7");
        let truth = truths.iter().min_by(|a, b| (a.started - started).abs().total_cmp(&(b.started - started).abs())).expect("a truth");
        for (mark, error) in errors(outage, truth) {
            by_mark.entry(mark).or_default().push(error);
        }
        until_asked.push(outage.marks.get(Mark::FirstCorrectPrediction).expect("it was reached") - truth.correct_from);
    }
    println!("{:<24} {:>8} {:>8} {:>8}   ms, mark − truth over {OUTAGES} outages", "mark", "min", "p50", "max");
    let mut worst = 0.0_f64;
    for (mark, errors) in &mut by_mark {
        let (least, most) = row(&format!("{mark:?}"), errors);
        worst = worst.max(most).max(-least);
    }
    let (earliest, latest) = row("(right until asked)", &mut until_asked);
    let answer = report.phases.iter().map(|phase| phase.service.latency.p999_ms).fold(0.0, f64::max);
    assert!(earliest >= 0.0, "a pod's answer counts as correct {:.1} ms before the pod answered right", -earliest);
    if worst > INTERVAL_MS {
        return Err(format!("a mark is {worst:.1} ms from the truth, and a pod is asked every {INTERVAL_MS} ms"));
    }
    if latest > INTERVAL_MS + answer {
        return Err(format!("a pod answered right for {latest:.1} ms before anybody saw it; asked every {INTERVAL_MS} ms, answered within {answer:.1} ms"));
    }
    Ok(())
}
