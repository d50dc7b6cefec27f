//! Does an experiment do what its file says, tell the truth about it, and leave nothing behind? Real runs of the real program.

mod bad_files;
mod harness;

use std::process::Command;

use harness::{Run, STEADFAST, Started, experiment, repository};
use nix::sys::signal::Signal;
use steadfast_api::{
    mark::Mark,
    report::{PhaseKind, Report, RunOutcome},
};

/// What every report must be, whatever happened.
fn assert_sound(report: &Report) {
    for pair in report.phases.windows(2) {
        assert!((pair[0].end_ms - pair[1].start_ms).abs() < 1.0, "phases without a gap: {:?} {:?}", pair[0].end_ms, pair[1].start_ms);
    }
    let buckets: u64 = report.series.all.iter().map(|bucket| u64::from(bucket.attempted)).sum();
    assert_eq!(buckets, report.total.availability.attempted, "buckets sum to the total");
    let counts = &report.total.availability;
    assert_eq!(counts.good + counts.failed_upstream + counts.failed_injected + counts.failed_proxy + counts.failed_silence, counts.attempted);
    for outage in &report.outages {
        let t0 = outage.marks.get(Mark::Fault).expect("t0 is known");
        assert!(outage.marks.0.values().all(|at| *at >= t0 && *at <= report.run.duration_ms), "{outage:?}");
    }
    assert!(report.run.left_behind.is_empty(), "{:?}", report.run.left_behind);
}

#[test]
fn killed_pods_are_replaced_and_every_mark_stands_in_order() {
    let spec = "  baseline: 2s
  steps: [{name: killed, podKill: {pods: {mode: one}}}]
  stable: {within: 30s, hold: 1s}
  hypothesis:
    - availability: {atLeast: 50%}
    - recovery: {atMost: 20s, until: firstCorrectPrediction}
    - consistency: {atLeast: 99%}
  rounds: 2
  seed: 3
";
    let ended = Run::start(&experiment("killed", ", --load-seconds, '0.3'", spec), &[]).ended();
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    let report = ended.report();
    assert_sound(&report);
    assert_eq!((report.verdict.outcome, report.outages.len(), report.recovery.censored), (RunOutcome::Pass, 2, 0));
    for outage in &report.outages {
        let marks = [
            Mark::Fault,
            Mark::ReplacementCreated,
            Mark::Scheduled,
            Mark::Initialized,
            Mark::ContainerStarted,
            Mark::ModelLoaded,
            Mark::Ready,
            Mark::EndpointAdded,
            Mark::FirstGoodResponse,
            Mark::Sustained,
        ];
        let times: Vec<f64> = marks.iter().map(|mark| outage.marks.get(*mark).unwrap_or_else(|| panic!("no {mark:?}: {outage:?}"))).collect();
        assert!(times.is_sorted(), "{outage:?}");
        assert!(outage.marks.get(Mark::EndpointRemoved).is_some() && outage.marks.get(Mark::FirstCorrectPrediction).is_some(), "{outage:?}");
        let loading = outage.marks.between(Mark::ContainerStarted, Mark::ModelLoaded).expect("both are there");
        assert!(loading >= 290.0, "loading takes 300 ms, and {loading} ms were seen");
        assert_ne!(outage.replacement.as_deref(), Some(outage.pod.as_str()));
    }
    assert!(report.faults.iter().all(|fault| !fault.evidence.is_empty() && fault.undone_ms.is_some()), "{:?}", report.faults);
    assert!(report.pods.iter().all(|pod| pod.sidecar_rss_bytes.is_some_and(|bytes| bytes > 0)), "the sidecars' memory is known");
    for file in ["report.html", "junit.xml"] {
        assert!(ended.folder.path().join("report").join(file).exists(), "{file}");
        assert!(ended.stdout.contains(file), "the summary says where it is: {}", ended.stdout);
    }
    ended.assert_no_files();
}

#[test]
fn a_lost_node_is_noticed_and_its_pods_come_up_elsewhere() {
    let spec = "  baseline: 2s
  steps: [{name: lost, nodeFailure: {nodes: {mode: one}}, for: 5s}]
  stable: {within: 30s, hold: 1s}
  seed: 1
";
    let ended = Run::start(&experiment("lost", ", --load-seconds, '0.2'", spec), &[]).ended();
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    let report = ended.report();
    assert_sound(&report);
    let [outage] = report.outages.as_slice() else { panic!("one pod stood on it: {:?}", report.outages) };
    let detected = outage.marks.between(Mark::Fault, Mark::Detected).expect("it was noticed");
    assert!((900.0..2500.0).contains(&detected), "the grace period is 1 s, and {detected} ms passed");
    let replaced = outage.marks.between(Mark::EndpointRemoved, Mark::ReplacementCreated).expect("it was replaced");
    assert!((900.0..2500.0).contains(&replaced), "the toleration is 1 s, and {replaced} ms passed");
    assert_ne!(outage.replacement_node.as_deref(), Some(outage.node.as_str()));
    assert!(outage.routing_outage_ms.is_some_and(|ms| ms > 100.0), "users were sent to a silent pod: {outage:?}");
    let faults = report.phases.iter().find(|phase| phase.kind == PhaseKind::Fault).expect("a phase");
    assert!(faults.service.availability.failed_silence > 0, "silence is unavailable: {:?}", faults.service.availability);
}

#[test]
fn wrong_answers_fail_the_run_although_every_request_was_answered() {
    let spec = "  baseline: 2s
  steps: [{name: wrong, corrupt: {pods: {mode: one}, magnitude: 80%}, for: 3s}]
  stable: {within: 30s, hold: 1s}
  hypothesis:
    - availability: {atLeast: 99%}
    - consistency: {atLeast: 99.9%}
  seed: 1
";
    let ended = Run::start(&experiment("wrong", "", spec), &[]).ended();
    assert_eq!(ended.code, Some(1), "{}", ended.all());
    let report = ended.report();
    assert_sound(&report);
    assert_eq!(report.hypothesis.iter().map(|result| result.outcome).collect::<Vec<_>>(), [RunOutcome::Pass, RunOutcome::Fail]);
    assert!(report.verdict.reason.contains("consistency"), "{}", report.verdict.reason);
    let during = |kind| report.phases.iter().find(|phase| phase.kind == kind).expect("a phase").service.consistency.clone();
    let (before, wrong) = (during(PhaseKind::Baseline), during(PhaseKind::Fault));
    assert_eq!(before.ratio, Some(1.0), "{before:?}");
    assert!(wrong.replays_mismatched > 0 && wrong.answers_right < wrong.answers_checked, "users and golden replays both saw it: {wrong:?}");
    assert!(!report.faults[0].evidence.is_empty());
    assert!(report.outages.is_empty(), "no pod was lost: {:?}", report.outages);
}

#[test]
fn a_slow_network_is_felt_for_as_long_as_it_lasts_and_proven() {
    let spec = "  baseline: 2s
  steps: [{name: slow, networkLatency: {nodes: {mode: one}, delay: 300ms}, for: 3s}]
  stable: {within: 30s, hold: 1s}
  hypothesis:
    - latency: {quantile: 99%, atMost: 250ms, during: baseline}
    - latency: {quantile: 99%, atMost: 250ms, during: faults}
  seed: 1
";
    let ended = Run::start(&experiment("slow", "", spec), &["--output", "json"]).ended();
    assert_eq!(ended.code, Some(1), "{}", ended.all());
    let report: Report = serde_json::from_str(&ended.stdout).expect("standard output is the report and nothing else");
    assert_eq!(report, ended.report());
    assert_sound(&report);
    assert_eq!(report.hypothesis.iter().map(|result| result.outcome).collect::<Vec<_>>(), [RunOutcome::Pass, RunOutcome::Fail]);
    let slow = report.phases.iter().find(|phase| phase.kind == PhaseKind::Fault).expect("a phase");
    assert!((300.0..400.0).contains(&slow.service.latency.p90_ms), "{:?}", slow.service.latency);
    assert!(slow.service.latency.mean_ms < 250.0, "the other pod is as fast as ever: {:?}", slow.service.latency);
}

#[test]
fn pods_held_down_lost_requests_and_scaling_are_seen_for_what_they_are() {
    let spec = "  baseline: 2s
  steps:
    - {name: held, podHoldDown: {pods: {mode: one}}, for: 3s}
    - {name: lossy, networkLoss: {pods: {mode: all}, share: 50%}, for: 2s}
    - {name: cut off, networkPartition: {pods: {mode: one}}, for: 2s}
    - {name: more, scale: {replicas: 3}, for: 3s}
    - {name: fewer, scale: {replicas: 1}, for: 2s}
    - {name: busy pod, cpuPressure: {pods: {mode: one}, load: 20%}, for: 2s}
  stable: {within: 30s, hold: 1s}
";
    let ended = Run::start(&experiment("more-failures", "", spec), &[]).ended();
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    let report = ended.report();
    assert_sound(&report);
    let during = |index: u32| report.phases.iter().find(|phase| phase.kind == PhaseKind::Fault && phase.step == Some(index)).expect("its phase");
    let share = |index: u32| {
        let counts = &during(index).service.availability;
        counts.good as f64 / counts.attempted as f64
    };
    assert!(
        share(0) < 0.99 && during(0).service.availability.failed_injected == 0,
        "a pod held down answers nothing, it resets connections: {:?}",
        during(0).service.availability
    );
    // No sidecar answers; when the fault ends, the gateway says that the connection did.
    let unanswered = |index: u32| {
        let counts = &during(index).service.availability;
        counts.failed_injected == 0 && counts.failed_silence + counts.failed_proxy > 0
    };
    assert!((0.3..0.7).contains(&share(1)) && unanswered(1), "what is lost is answered by nobody: {:?}", during(1).service.availability);
    assert!((0.3..0.7).contains(&share(2)) && unanswered(2), "it stays in the Service and is reached by nobody: {:?}", during(2).service.availability);
    assert!(share(3) > 0.99 && share(5) > 0.99, "{:?} {:?}", during(3).service.availability, during(5).service.availability);
    // The pod that was held down and the one that was scaled away are outages, and recovered; the one that came for a while and went is none.
    let outages: Vec<_> = report.outages.iter().map(|outage| (outage.fault, outage.censored)).collect();
    assert_eq!(outages, [(Some(0), false), (Some(4), false)], "{:?}", report.outages);
    let held = &report.outages[0];
    assert!(held.capacity_outage_ms >= 3_000.0 && held.replacement.as_ref() == Some(&held.pod), "the same pod came back: {held:?}");
    let right = held.marks.get(Mark::FirstCorrectPrediction).expect("it answered right again");
    assert!(right - held.marks.get(Mark::Fault).expect("t0") >= 3_000.0, "not before users could ask it: {held:?}");
}

#[test]
fn a_halt_undoes_everything_and_exits_4() {
    let spec = "  baseline: 2s
  steps: [{name: all gone, nodeFailure: {nodes: {mode: all}}, for: 60s}]
  stable: {within: 60s, hold: 1s}
  halt: [{availability: {below: 50%, for: 2s}}]
";
    // Nobody notices before the halt: users go on asking pods that say nothing.
    let test = experiment("halted", "", spec).replace("nodeMonitorGracePeriod: 1s", "nodeMonitorGracePeriod: 30s");
    let mut run = Run::start(&test, &[]);
    run.wait_for("baseline");
    let started = Started::by(run.pid());
    let ended = run.ended();
    assert_eq!(ended.code, Some(4), "{}", ended.all());
    let report = ended.report();
    assert_sound(&report);
    assert_eq!(report.verdict.outcome, RunOutcome::Halted);
    assert!(report.verdict.reason.contains("below the halt at 50%"), "{}", report.verdict.reason);
    assert!(report.run.duration_ms < 20_000.0, "it stopped at once: {} ms", report.run.duration_ms);
    // Silent until the halt is silent: that the halt ended those requests was nobody's failure.
    let counts = &report.total.availability;
    assert!(counts.failed_proxy == 0 && counts.failed_silence > 20, "{counts:?}");
    assert!(report.outages.iter().all(|outage| outage.censored && outage.routing_outage_ms.is_none_or(|ms| ms > 1000.0)), "{:?}", report.outages);
    assert_eq!(report.verdict.score, None);
    started.assert_gone();
    ended.assert_no_files();
}

#[test]
fn a_target_that_can_never_become_well_is_told_at_once_and_why() {
    let begun = std::time::Instant::now();
    // A server that ends by itself.
    let ended = Run::start(&experiment("dying", ", --load-seconds, '-1'", LONG), &[]).ended();
    assert_eq!(ended.code, Some(3), "{}", ended.all());
    let reason = &ended.report().verdict.reason;
    assert!(reason.contains("ended 3 times before it was ready") && reason.contains("exited with status 2; its last words"), "{reason}");
    // A set whose stored answers are not its model's.
    let set = tempfile::tempdir().expect("a folder");
    let broken = set.path().join("digits");
    let copied = Command::new("cp").arg("-r").arg(repository("golden-sets/sets/digits")).arg(&broken).status().expect("cp");
    assert!(copied.success());
    let output = broken.join("test_data_set_0/output_0.pb");
    let other = std::fs::read(broken.join("test_data_set_1/output_0.pb")).expect("another answer");
    assert_ne!(std::fs::read(&output).expect("an answer"), other);
    std::fs::write(&output, other).expect("written");
    let ended = Run::start(&experiment("broken-set", "", LONG), &["--golden-sets", &set.path().display().to_string()]).ended();
    assert_eq!(ended.code, Some(3), "{}", ended.all());
    let reason = &ended.report().verdict.reason;
    assert!(reason.contains("ReferenceBroken"), "{reason}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn a_report_that_could_not_be_written_is_told_before_the_run() {
    let refused =
        Command::new(STEADFAST).arg("run").arg(repository("examples/pod-kill.yaml")).args(["--report-dir", "/proc/nowhere/report"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("--report-dir") && !said.contains("baseline"), "{said}");
    let mut there = Command::new(STEADFAST);
    there.arg("run").arg(repository("examples/tutorial/pod-kill.yaml")).args(["--platform", "kubernetes", "--kubeconfig", "/proc/nowhere/config"]);
    let there = there.args(["--report-dir", "/proc/nowhere/report"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&there.stderr);
    assert!(there.status.code() == Some(2) && said.contains("--report-dir"), "before the cluster is asked: {said}");
}

/// Baseline, then a fault long enough to be interrupted in.
const LONG: &str = "  baseline: 1s
  steps: [{name: slow, networkLatency: {nodes: {mode: all}, delay: 50ms}, for: 60s}]
  stable: {within: 60s, hold: 1s}
  hypothesis: [{availability: {atLeast: 1%}}]
";

#[test]
fn an_interrupted_run_writes_what_it_saw_leaves_nothing_and_exits_3() {
    let mut run = Run::start(&experiment("interrupted", "", LONG), &[]);
    run.wait_for("slow on");
    let started = Started::by(run.pid());
    assert!(started.processes.len() >= 5, "keeper, two servers, two sidecars: {started:?}");
    run.signal(Signal::SIGINT);
    let ended = run.ended();
    assert_eq!(ended.code, Some(3), "{}", ended.all());
    let report = ended.report();
    assert_sound(&report);
    assert_eq!(report.verdict.outcome, RunOutcome::Inconclusive);
    assert!(report.verdict.reason.starts_with("Interrupted") && report.total.availability.good > 0);
    started.assert_gone();
    ended.assert_no_files();
}

#[test]
fn without_steps_it_watches_until_it_is_told_to_end_and_tells_of_what_nobody_planned() {
    let mut run = Run::start(&experiment("watch", "", "  stable: {within: 60s, hold: 1s}\n  hypothesis: [{availability: {atLeast: 10%}}]\n"), &[]);
    run.wait_for("watching");
    let started = Started::by(run.pid());
    let serves = |pid: &&u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"serve"));
    let server = *started.processes.iter().find(serves).expect("a model server");
    std::thread::sleep(std::time::Duration::from_secs(1));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server as i32), Signal::SIGKILL).expect("it is there");
    std::thread::sleep(std::time::Duration::from_secs(6));
    run.signal(Signal::SIGINT);
    let ended = run.ended();
    let report = ended.report();
    assert_sound(&report);
    assert_eq!((ended.code, report.verdict.outcome), (Some(0), RunOutcome::Pass), "to end it is no failure: {}", ended.all());
    let outages: Vec<_> = report.outages.iter().map(|outage| (outage.fault, outage.censored)).collect();
    assert_eq!(outages, [(None, false)], "{report:?}");
    assert!(report.outages[0].marks.get(Mark::FirstCorrectPrediction).is_some() && report.phases.len() == 1, "{report:?}");
    started.assert_gone();
    ended.assert_no_files();
}

#[test]
fn a_killed_runner_leaves_no_process_no_port_and_no_file() {
    let mut run = Run::start(&experiment("killed-runner", "", LONG), &[]);
    run.wait_for("slow on");
    let started = Started::by(run.pid());
    assert!(started.processes.len() >= 5 && !started.ports.is_empty() && !started.runs.is_empty(), "{started:?}");
    run.signal(Signal::SIGKILL);
    let ended = run.ended();
    assert_eq!(ended.code, None, "{}", ended.all());
    started.assert_gone();
    ended.assert_no_files();
}

#[test]
fn a_dry_run_writes_every_default_and_the_plan_and_starts_nothing() {
    let output =
        Command::new(STEADFAST).current_dir(repository(".")).args(["run", "examples/case-study.yaml", "--dry-run", "--seed", "11"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for default in ["failureThreshold", "maxInFlight", "nodeMonitorGracePeriod", "terminationGracePeriod", "rounds", "seed: 11", "until:"] {
        assert!(text.contains(default), "{default}: {text}");
    }
    assert!(text.contains("# Round 1, \"node lost\": nodeFailure for 1m on node") && text.contains("# The plan: about"), "{text}");
    let again = tempfile::TempDir::new().expect("a folder");
    let file = again.path().join("again.yaml");
    std::fs::write(&file, text.as_bytes()).expect("written");
    let lint = Command::new(STEADFAST).current_dir(repository(".")).arg("lint").arg(&file).output().expect("it runs");
    assert!(lint.status.success(), "what it prints is a file: {}", String::from_utf8_lossy(&lint.stderr));
}

#[test]
fn a_report_is_drawn_again_from_its_json() {
    let sample = tempfile::TempDir::new().expect("a folder");
    let step = "{name: slow, networkLatency: {pods: {mode: one}, delay: 5ms}, for: 1s}";
    let spec = format!("  baseline: 1s\n  steps: [{step}]\n  stable: {{within: 20s, hold: 1s}}\n  hypothesis: [{{availability: {{atLeast: 99%}}}}]\n");
    let ended = Run::start(&experiment("redrawn", "", &spec), &[]).ended();
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    let page = sample.path().join("again.html");
    let drawn = Command::new(STEADFAST).arg("report").arg(ended.folder.path().join("report/report.json")).arg("--html").arg(&page).output().expect("it runs");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("a page");
    assert!(read(&page) == read(&ended.folder.path().join("report/report.html")), "not the same page");
}
