//! Experiments on a real cluster: the same file, the same report.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use steadfast_api::{
    mark::Mark,
    report::{PhaseKind, Report, RunOutcome},
};

use crate::{
    harness::{Cluster, IMAGE, Installation, Namespace, STEADFAST, cluster_alone, cluster_for_a_run, output},
    install::install,
};

pub(crate) const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed";

/// A golden set of this repository, as a GoldenSet of the namespace.
pub(crate) fn golden_set(space: &Namespace<'_>, name: &str) {
    let set = output(Command::new(STEADFAST).args(["golden", "manifest", &format!("golden-sets/sets/{name}")]).current_dir(crate::harness::root()), None);
    let applied =
        output(space.cluster().command("kubectl").args(["--namespace", space.name(), "apply", "--server-side", "-f", "-"]), Some(&set.expect("a manifest")));
    applied.expect("the golden set is taken");
}

/// A small classifier with this many replicas, its golden set, and its Service.
pub(crate) fn digits(space: &Namespace<'_>, replicas: usize) {
    golden_set(space, "digits");
    space.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: digits}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: digits}}}}
  template:
    metadata: {{labels: {{app: digits}}}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations:
        - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}}
        - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}}
      topologySpreadConstraints: [{{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: digits}}}}}}]
      containers:
        - name: server
          image: {IMAGE}
          imagePullPolicy: Never
          args: [serve, /golden-sets/digits, --host, 0.0.0.0, --port, '8000', --load-seconds, '0.5']
          ports: [{{name: http, containerPort: 8000}}]
          readinessProbe: {{httpGet: {{path: /v2/health/ready, port: http}}, periodSeconds: 1}}
          resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: digits}}
spec: {{selector: {{app: digits}}, ports: [{{name: http, port: 80, targetPort: http}}]}}
"
    ));
    space.wait_ready("app=digits", replicas);
}

pub(crate) fn test(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {{name: {name}}}
spec:
  target: {{selector: {{matchLabels: {{app: digits}}}}, port: http}}
  load: [{{name: users, rate: 50/s, inputs: {{goldenSet: digits}}}}]
{spec}"
    )
}

pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) report: Option<Report>,
}

/// `steadfast run --platform kubernetes`, as a user on this machine would.
pub(crate) fn run(cluster: &Cluster, space: &Namespace<'_>, text: &str) -> Ended {
    let folder = tempfile::TempDir::new().expect("a folder");
    run_into(cluster, space, text, &folder.path().join("report"))
}

/// With these variables.
pub(crate) fn run_with(cluster: &Cluster, space: &Namespace<'_>, text: &str, variables: &[(&str, &str)]) -> Ended {
    let folder = tempfile::TempDir::new().expect("a folder");
    ran(STEADFAST.as_ref(), cluster, space, text, &folder.path().join("report"), variables)
}

/// By another program than this version's.
pub(crate) fn run_by(program: &Path, cluster: &Cluster, space: &Namespace<'_>, text: &str) -> Ended {
    let folder = tempfile::TempDir::new().expect("a folder");
    ran(program, cluster, space, text, &folder.path().join("report"), &[])
}

/// With the report in a folder that stays.
pub(crate) fn run_into(cluster: &Cluster, space: &Namespace<'_>, text: &str, report: &Path) -> Ended {
    ran(STEADFAST.as_ref(), cluster, space, text, report, &[])
}

fn ran(program: &Path, cluster: &Cluster, space: &Namespace<'_>, text: &str, report: &Path, variables: &[(&str, &str)]) -> Ended {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, text).expect("the file is written");
    let ran = cluster
        .command(program.to_str().expect("UTF-8"))
        .args(["run", "--platform", "kubernetes", "--namespace", space.name(), "--report-dir"])
        .arg(report)
        .arg(&file)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("steadfast runs");
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let report = std::fs::read_to_string(report.join("report.json")).ok().map(|text| serde_json::from_str(&text).expect("a report"));
    Ended { code: ran.status.code(), said, report }
}

#[test]
fn killed_slow_and_held_down_pods_are_measured_as_on_one_machine() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("experiment", ASKS);
    digits(&space, 2);
    let text = test(
        "case",
        "  baseline: 5s
  steps:
    - {name: killed, podKill: {pods: {mode: one}}}
    - {name: slow, networkLatency: {pods: {mode: one}, delay: 300ms}, for: 5s}
    - {name: held, podHoldDown: {pods: {mode: one}}, for: 5s}
    - {name: wrong, corrupt: {pods: {mode: one}, magnitude: 50%, share: 100%}, for: 4s}
  stable: {within: 60s, hold: 3s}
  hypothesis:
    - availability: {atLeast: 60%}
    - recovery: {atMost: 60s, until: firstCorrectPrediction}
",
    );
    let ended = run(&cluster, &space, &text);
    let context = || format!("{}\n{}", ended.said, installed.state());
    assert_eq!(ended.code, Some(0), "{}", context());
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}", context()));
    assert_eq!((report.run.platform.as_str(), report.verdict.outcome), ("kubernetes", RunOutcome::Pass));
    assert!(report.run.left_behind.is_empty() && report.faults.iter().all(|fault| !fault.evidence.is_empty()), "{:?}", report.faults);
    let killed = report.outages.iter().find(|outage| outage.fault == Some(0)).unwrap_or_else(|| panic!("{:?}", report.outages));
    let marks = [
        Mark::Fault,
        Mark::ReplacementCreated,
        Mark::ContainerStarted,
        Mark::ModelLoaded,
        Mark::Ready,
        Mark::EndpointAdded,
        Mark::FirstGoodResponse,
        Mark::Sustained,
    ];
    let times: Vec<f64> = marks.iter().map(|mark| killed.marks.get(*mark).unwrap_or_else(|| panic!("no {mark:?}: {killed:?}"))).collect();
    assert!(times.is_sorted() && !killed.censored && killed.replacement.as_ref().is_some_and(|name| *name != killed.pod), "{killed:?}");
    let held = report.outages.iter().find(|outage| outage.fault == Some(2)).unwrap_or_else(|| panic!("{:?}", report.outages));
    assert!(held.capacity_outage_ms >= 5_000.0 && held.replacement.as_ref() == Some(&held.pod), "the same pod came back: {held:?}");
    let during = |index: u32| report.phases.iter().find(|phase| phase.kind == PhaseKind::Fault && phase.step == Some(index)).expect("its phase");
    assert!(during(1).service.latency.p99_ms >= 300.0, "{:?}", during(1).service.latency);
    assert!(during(3).service.consistency.ratio.is_some_and(|ratio| ratio < 0.9), "{:?}", during(3).service.consistency);
    assert!(report.pods.iter().filter(|pod| pod.service.availability.attempted > 0).count() >= 3, "answers are told apart by pod");
    // Nothing of the run is left.
    assert!(space.list("resiliencetests").is_empty() && space.list("configmaps").iter().all(|map| map["metadata"]["name"] != "steadfast-run-case"));
}

#[test]
fn what_cannot_be_run_is_refused_with_what_would_be_right() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("refused", "steadfast.dev/inject: 'true'");
    digits(&space, 1);
    let good = "  baseline: 1s\n  steps: [{name: killed, podKill: {pods: {mode: one}}}]\n";
    let refused = |text: &str| {
        let ended = run(&cluster, &space, text);
        assert_eq!(ended.code, Some(2), "{}", ended.said);
        ended.said
    };
    let said = refused(&test("case", good));
    assert!(said.contains("steadfast.dev/faults=allowed"), "{said}");
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/faults=allowed"]).expect("labelled");
    let said = refused(&test("case", good).replace("goldenSet: digits", "goldenSet: other"));
    assert!(said.contains("there is no GoldenSet other") && said.contains("golden manifest"), "{said}");
    let said = refused(&test("case", "  baseline: 1s\n  steps: [{name: lost, nodeFailure: {nodes: {mode: one}}, for: 2h}]\n"));
    assert!(said.contains("spec.steps[0]: ") && said.contains("nodeFailure lasts 1h or less"), "{said}");
    assert!(space.list("resiliencetests").is_empty(), "what was refused is not left behind");
    // Nobody can speak for a pod without a sidecar: that is told at once.
    let leave_out = r#"{"spec":{"template":{"metadata":{"labels":{"steadfast.dev/inject":"false"}}}}}"#;
    space.kubectl(&["patch", "deployment/digits", "--patch", leave_out]).expect("patched");
    space.kubectl(&["rollout", "status", "deployment/digits", "--timeout=90s"]).expect("rolled out");
    let pods = space.wait_ready("app=digits", 1);
    let ended = run(&cluster, &space, &test("bare", good));
    assert!(
        ended.code == Some(3) && ended.said.contains(&format!("selects pods without a sidecar: {}; delete them", pods[0])),
        "{:?} {}",
        ended.code,
        ended.said
    );
}

#[test]
fn no_step_takes_more_of_its_target_than_it_may_whether_pods_or_nodes_were_chosen() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("budget", ASKS);
    digits(&space, 3);
    let before = space.pods("app=digits");
    for step in [
        "podKill: {pods: {mode: all}}",
        "podHoldDown: {pods: {mode: fixed, value: 2}}, for: 5s",
        "networkPartition: {nodes: {mode: all}}, for: 5s",
        "networkLoss: {nodes: {mode: all}, share: 99.9%}, for: 5s",
    ] {
        let ended = run(&cluster, &space, &test("most", &format!("  baseline: 1s\n  steps: [{{name: most, {step}}}]\n")));
        let told = ["pods away at once", "failures.maxUnavailablePods", "choose fewer"].iter().all(|words| ended.said.contains(words));
        assert!(ended.code == Some(3) && told, "{step}: {:?} {}\n{}", ended.code, ended.said, installed.state());
    }
    assert_eq!(space.pods("app=digits"), before, "nobody was taken");
}

#[test]
fn a_run_ends_when_its_test_is_deleted_and_is_inconclusive_when_its_controller_is_killed() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("ends", ASKS);
    digits(&space, 1);
    let long = test("long", "  baseline: 1s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 900ms}, for: 5m}]\n");
    let slow = |space: &Namespace<'_>| {
        let began = std::time::Instant::now();
        space.ask("digits:80", "/v2/models/digits").is_ok() && began.elapsed().as_millis() >= 900
    };
    space.apply(&long);
    space.wait(60, format_args!("a slow network\n{}", installed.state()), || slow(&space).then_some(()));
    space.kubectl(&["delete", "resiliencetest/long"]).expect("deleted");
    space.wait(20, "a quick network", || (!slow(&space)).then_some(()));

    space.apply(&long);
    space.wait(60, "a slow network", || slow(&space).then_some(()));
    let leader = cluster.kubectl(&["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"]).expect("a lease");
    cluster.kubectl(&["--namespace", &installed.system, "delete", "pod", leader.trim(), "--grace-period=0", "--force"]).expect("killed");
    let status = space.wait(60, format_args!("the end of a run\n{}", installed.state()), || {
        let test = space.get("resiliencetest/long")?;
        (test["status"]["phase"] == "Finished").then(|| test["status"].clone())
    });
    // A kubelet before 1.31 may take no grace period at all for the pod's own, in which the controller ends the run itself.
    let ended = |reason: &str| reason.contains("The controller was lost") || (cluster.is_before(31) && reason.contains("Interrupted before the end"));
    assert!(status["verdict"] == "inconclusive" && status["reason"].as_str().is_some_and(ended), "{status:#}");
    space.wait(30, "a quick network", || (!slow(&space)).then_some(()));
}
