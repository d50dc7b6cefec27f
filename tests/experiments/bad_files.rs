//! A wrong file is refused before anything starts: every problem with line, column, field, what stands there and what would be right.

use std::{fs, process::Command};

use crate::harness::{STEADFAST, repository};

const GOOD: &str = "apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {name: good}
spec:
  target: {selector: {matchLabels: {app: digits}}}
  local:
    nodes: 2
    pods:
      replicas: 2
      labels: {app: digits}
      command: [steadfast, serve, golden-sets/sets/digits, --port, $(PORT)]
      ready: {period: 1s}
  load: [{name: users, rate: 100/s, inputs: {goldenSet: digits}}]
  golden: [{set: digits, every: 1s}]
  baseline: 5s
  steps:
    - {name: slow, networkLatency: {nodes: {mode: one}, delay: 500ms}, for: 5s}
    - {name: killed, podKill: {pods: {mode: fixed, value: 2}}}
  stable: {within: 1m, hold: 10s}
  hypothesis:
    - availability: {atLeast: 99%}
    - latency: {quantile: 99%, atMost: 250ms, during: baseline}
  halt: [{availability: {below: 20%, for: 30s}}]
";

/// What is exchanged for what in [`GOOD`], and what `steadfast lint` then says after the file's name.
const BAD: &[(&str, &str, &str)] = &[
    ("name: good", "name: Good_Name", ""),
    ("matchLabels: {app: digits}", "matchLabels: {app: other}", ""),
    ("nodes: 2", "nodes: 65", ""),
    ("replicas: 2", "replicas: 0", ""),
    ("[steadfast, serve, golden-sets/sets/digits, --port, $(PORT)]", "[no-such-server, --port, $(PORTS)]", ""),
    ("rate: 100/s", "rate: 100", ""),
    ("inputs: {goldenSet: digits}", "inputs: {goldenSet: numbers}", ""),
    ("every: 1s", "every: 1ms", ""),
    ("baseline: 5s", "baseline: 5", ""),
    ("baseline: 5s", "baselin: 5s", ""),
    ("delay: 500ms", "delay: 0s", ""),
    (", for: 5s}", ", for: 5s, podKill: {pods: {mode: one}}}", ""),
    ("delay: 500ms}, for: 5s}", "delay: 500ms}}", ""),
    ("value: 2", "value: 3", ""),
    ("name: killed", "name: slow", ""),
    ("hold: 10s", "hold: 1m", ""),
    ("atLeast: 99%", "atLeast: 990%", ""),
    ("quantile: 99%", "quantile: 0%", ""),
    ("during: baseline", "during: faultss", ""),
    ("below: 20%", "below: 0%", ""),
    ("  load: [{name: users, rate: 100/s, inputs: {goldenSet: digits}}]\n", "", ""),
    ("kind: ResilienceTest", "kind: Pod", ""),
];

fn lint(text: &str) -> (Option<i32>, String) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("bad.yaml");
    fs::write(&file, text).expect("written");
    let output = Command::new(STEADFAST).current_dir(repository(".")).arg("lint").arg(&file).output().expect("it runs");
    let complaints = String::from_utf8_lossy(&output.stderr).replace(&format!("steadfast: {}:", file.display()), "");
    (output.status.code(), complaints.replace(&repository(".").display().to_string(), "REPOSITORY").trim_end().to_owned())
}

#[test]
fn every_problem_is_told_with_its_place_and_what_would_be_right() {
    assert_eq!(lint(GOOD), (Some(0), String::new()));
    let mut differences = Vec::new();
    for (right, wrong, says) in BAD {
        let text = GOOD.replacen(right, wrong, 1);
        assert_ne!(text, GOOD, "{right} is in the file");
        let (code, complaints) = lint(&text);
        if (code, complaints.as_str()) != (Some(2), *says) {
            differences.push(format!("    (\n        {right:?},\n        {wrong:?},\n        {complaints:?},\n    ),"));
        }
    }
    assert!(differences.is_empty(), "these say otherwise now:\n{}", differences.join("\n"));
}

#[test]
fn all_problems_are_told_at_once_and_in_the_files_order() {
    let text = GOOD.replace("nodes: 2", "nodes: 99").replace("value: 2", "value: 7").replace("hold: 10s", "hold: 2m");
    let (code, complaints) = lint(&text);
    let lines: Vec<&str> = complaints.lines().map(|line| line.split(':').next().unwrap_or_default()).collect();
    assert_eq!((code, lines), (Some(2), vec!["7", "18", "19"]), "{complaints}");
}

#[test]
fn run_refuses_what_lint_refuses_and_starts_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("bad.yaml");
    fs::write(&file, GOOD.replace("baseline: 5s", "baseline: 5")).expect("written");
    let output = Command::new(STEADFAST).current_dir(folder.path()).arg("run").arg(&file).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("bad.yaml:15:13: spec.baseline:"), "{output:?}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing was written");
}

#[test]
fn the_examples_are_right() {
    for entry in fs::read_dir(repository("examples")).expect("examples").flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "yaml")) {
        let text = fs::read_to_string(entry.path()).expect("an example");
        assert_eq!(lint(&text), (Some(0), String::new()), "{}", entry.path().display());
    }
}
