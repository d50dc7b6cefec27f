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
    (
        "name: good",
        "name: Good_Name",
        "3:18: metadata.name: \"Good_Name\" is not a name: write lower case letters, digits and `-`, at most 63, a letter or digit first and last",
    ),
    (
        "matchLabels: {app: digits}",
        "matchLabels: {app: other}",
        "10:15: spec.local.pods.labels: {app: digits} are not selected by spec.target.selector: the pods must carry {app: other}",
    ),
    ("nodes: 2", "nodes: 65", "7:12: spec.local.nodes: 65 is out of bounds: write 1 to 64"),
    ("replicas: 2", "replicas: 0", "9:17: spec.local.pods.replicas: 0 is out of bounds: write 1 to 256"),
    (
        "[steadfast, serve, golden-sets/sets/digits, --port, $(PORT)]",
        "[no-such-server, --port, $(PORTS)]",
        "11:16: spec.local.pods.command: does not name $(PORT): several servers run on one machine, so each must be told its own port, in `command` or in `env`\n11:17: spec.local.pods.command[0]: there is no program \"no-such-server\", neither in PATH nor from REPOSITORY\n11:41: spec.local.pods.command[2]: $(PORTS) is not known: $(PORT), $(POD_NAME) and $(NODE_NAME) are",
    ),
    (
        "rate: 100/s",
        "rate: 100",
        "13:30: spec.load[0].rate: \"100\" is not a rate: write a rate such as 200/s, 0.5/s or 90/m, more than zero and at most 100000/s",
    ),
    (
        "inputs: {goldenSet: digits}",
        "inputs: {goldenSet: numbers}",
        "13:57: spec.load[0].inputs.goldenSet: \"numbers\" cannot be used: no golden set of this name in REPOSITORY/golden-sets/sets: give its directory, or name the folder that holds it with --golden-sets",
    ),
    ("every: 1s", "every: 1ms", "14:33: spec.golden[0].every: 1ms is too often: write 10ms or more, such as 1s"),
    ("baseline: 5s", "baseline: 5", "15:13: spec.baseline: \"5\" is not a duration: write a duration such as 500ms, 60s, 2m or 1h 30m, at most a year"),
    (
        "baseline: 5s",
        "baselin: 5s",
        "15:3: spec.baselin: unknown field `baselin`, expected one of suspend, target, local, load, golden, baseline, steps, window, stable, hypothesis, halt, rounds, seed",
    ),
    ("delay: 500ms", "delay: 0s", "17:64: spec.steps[0].networkLatency.delay: 0s is too short: write more than zero, such as 500ms"),
    ("delay: 500ms", "delay: 2h", "17:64: spec.steps[0].networkLatency.delay: 2h with its jitter is too long for a sidecar to wait: write 1h or less"),
    (
        ", for: 5s}",
        ", for: 5s, podKill: {pods: {mode: one}}}",
        "17:7: spec.steps[0]: step \"slow\" has both networkLatency and podKill: give it exactly one of networkLatency, networkLoss, networkPartition, podKill, podHoldDown, evict, containerKill, rollout, scale, nodeFailure, drain, cordon, taint, cpuPressure, corrupt",
    ),
    (
        "networkLatency: {nodes: {mode: one}, delay: 500ms}",
        "networkLoss: {nodes: {mode: one}, pods: {mode: one}, share: 5%}",
        "17:7: spec.steps[0]: step \"slow\": networkLoss takes exactly one of `nodes` and `pods`, such as `pods: {mode: one}`",
    ),
    (
        "networkLatency: {nodes: {mode: one}, delay: 500ms}",
        "networkLoss: {pods: {mode: one}, share: 0%}",
        "17:60: spec.steps[0].networkLoss.share: 0% does nothing: write more, such as 5%",
    ),
    (
        "networkLatency: {nodes: {mode: one}, delay: 500ms}",
        "nodeFailure: {nodes: {mode: one}, by: power}",
        "17:58: spec.steps[0].nodeFailure.by: the local platform has one way only for a node to fail: leave `by` out",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "evict: {pods: {mode: one}}",
        "18:29: spec.steps[1].evict: the local platform has no disruption budgets to respect: write podKill",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "containerKill: {pods: {mode: one}}",
        "18:37: spec.steps[1].containerKill: the local platform kills whole pods: write podKill",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "rollout: {container: server, image: bad}, for: 5s",
        "18:31: spec.steps[1].rollout: the local platform runs processes and has no images: write corrupt for a bad model",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "scale: {replicas: 300}, for: 5s",
        "18:40: spec.steps[1].scale.replicas: 300 is out of bounds on one machine: write 0 to 256",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "drain: {nodes: {mode: one}}, for: 5s",
        "18:29: spec.steps[1].drain: the local platform has no disruption budgets to respect: write podKill or nodeFailure",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "taint: {nodes: {mode: one}, key: not a key}, for: 5s",
        "18:29: spec.steps[1].taint: the local platform's scheduler knows no cordons and taints: write nodeFailure or podKill\n18:55: spec.steps[1].taint.key: \"not a key\" is not the key of a taint: write letters, digits, `-`, `_` and `.`, such as example.com/maintenance",
    ),
    (
        "podKill: {pods: {mode: fixed, value: 2}}",
        "podKill: {pods: {mode: one}, gracePeriod: 2h}",
        "18:64: spec.steps[1].podKill.gracePeriod: 2h is too long: write 1h or less",
    ),
    ("delay: 500ms}, for: 5s}", "delay: 500ms}}", "17:7: spec.steps[0]: step \"slow\": networkLatency lasts for a while: say how long, such as `for: 60s`"),
    ("value: 2", "value: 3", "18:59: spec.steps[1].podKill.pods.value: 3 of 2 pods cannot be chosen: write 1 to 2, or mode all"),
    ("name: killed", "name: slow", "18:14: spec.steps[1].name: \"slow\" is there twice: give every step its own name"),
    ("hold: 10s", "hold: 1m", "19:30: spec.stable.hold: 1m is not shorter than `within`, 1m: no system could ever be called stable"),
    (
        "atLeast: 99%",
        "atLeast: 990%",
        "21:31: spec.hypothesis[0].availability.atLeast: \"990%\" is not a percentage: write a percentage from 0% to 100% with at most four decimals, such as 99.9%",
    ),
    ("quantile: 99%", "quantile: 0%", "22:27: spec.hypothesis[1].latency.quantile: 0% is no quantile: write above 0% up to 100%, such as 99%"),
    (
        "during: baseline",
        "during: faultss",
        "22:55: spec.hypothesis[1].latency.during: unknown variant `faultss`, expected one of run, baseline, faults, recovery",
    ),
    ("below: 20%", "below: 0%", "23:33: spec.halt[0].availability.below: 0%: availability is never below that: write more, such as 20%"),
    (
        "  load: [{name: users, rate: 100/s, inputs: {goldenSet: digits}}]\n",
        "",
        "20:21: spec.hypothesis[0].availability: is what users see, and `load` has none: add one, such as {name: users, rate: 200/s, inputs: {goldenSet: recommender}}\n21:16: spec.hypothesis[1].latency: is what users see, and `load` has none: add one, such as {name: users, rate: 200/s, inputs: {goldenSet: recommender}}\n22:25: spec.halt[0].availability: is what users see, and `load` has none: add one",
    ),
    (
        "  baseline: 5s\n",
        "  baseline: 5s\n  window: 1m\n",
        "16:11: spec.window: 1m: windows are for tests without steps, which watch on: take `window` out, or the steps",
    ),
    ("kind: ResilienceTest", "kind: Pod", "2:7: kind: unknown variant `Pod`, expected one of ResilienceTest"),
];

fn lint(text: &str) -> (Option<i32>, String) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("bad.yaml");
    fs::write(&file, text).expect("written");
    let output = Command::new(STEADFAST).current_dir(repository(".")).arg("lint").arg(&file).output().expect("it runs");
    let complaints = String::from_utf8_lossy(&output.stderr).replace(&format!("steadfast: {}:", file.display()), "");
    (output.status.code(), complaints.replace(env!("CARGO_MANIFEST_DIR"), "REPOSITORY").trim_end().to_owned())
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
fn the_examples_are_right_and_are_planned_for_the_platform_that_they_are_for() {
    for entry in fs::read_dir(repository("examples")).expect("examples").flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "yaml")) {
        let text = fs::read_to_string(entry.path()).expect("an example");
        assert_eq!(lint(&text), (Some(0), String::new()), "{}", entry.path().display());
    }
    let planned = |more: &[&str]| {
        let file = repository("examples/recommender/case-study.yaml");
        let output = Command::new(STEADFAST).current_dir(repository(".")).args(["run", "--dry-run"]).arg(file).args(more).output().expect("it runs");
        (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    };
    let (code, plan) = planned(&["--platform", "kubernetes"]);
    assert!(code == Some(0) && plan.contains("networkLatency for 1m on one of the nodes"), "{code:?} {plan}");
    let (code, refused) = planned(&[]);
    assert!(code == Some(2) && refused.contains("spec: has no `local`"), "{code:?} {refused}");
}
