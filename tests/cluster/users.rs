//! The users of a test, in a pod of their own: away from what the test hits, on record at their moments, and gone with it.

use std::{thread, time::Duration};

use serde_json::Value;
use steadfast_api::report::RunOutcome;

use crate::{
    experiments::{ASKS, digits, run, test},
    failures::{EVERY_FAILURE, NodesAllowed, kept, nothing_kept},
    harness::{Cluster, Installation, Namespace, cluster_alone},
    install::{Installed, POLICIES_SINCE, install, install_with},
    killed::kill_leader,
    watches::report,
};

/// Without it no chart gives the right to make the users' pod, but with burners.
const NARROWED: &str = "the ValidatingAdmissionPolicy that narrows the right to make users' pods";
/// A step that goes on until somebody ends it.
const LONG: &str = "  baseline: 1s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 50ms}, for: 5m}]\n";

/// Name and node of the users' pods, as they run.
fn users(cluster: &Cluster, installed: &Installed<'_>) -> Vec<(String, String)> {
    let pods = cluster.objects("pods", Some(&installed.system), "steadfast.dev/part=users");
    let is_running = |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
    let text = |pod: &Value, path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    pods.iter().filter(is_running).map(|pod| (text(pod, "/metadata/name"), text(pod, "/spec/nodeName"))).collect()
}

fn appear(cluster: &Cluster, installed: &Installed<'_>, space: &Namespace<'_>) -> (String, String) {
    space.wait(60, format_args!("the users' pod\n{}", installed.state()), || users(cluster, installed).pop())
}

/// What the leader says of how exactly it placed them, where it shares a kernel with their pod: printed, since here it does.
fn exactness(cluster: &Cluster, installed: &Installed<'_>) {
    let selector = "--selector=app.kubernetes.io/name=steadfast";
    let said = cluster.kubectl(&["--namespace", &installed.system, "logs", selector, "--tail=-1"]).unwrap_or_default();
    for line in said.lines().filter(|line| line.contains("users ask no more")) {
        println!("{line}");
    }
}

#[test]
fn users_stand_away_from_the_target_and_the_lost_node_and_are_gone_with_their_run() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("users", ASKS);
    digits(&space, 2);
    let taken: Vec<String> = space.list("pods").iter().map(|pod| pod["spec"]["nodeName"].as_str().expect("it runs").to_owned()).collect();
    let text = test(
        "lost",
        "  baseline: 4s\n  steps: [{name: cut off, nodeFailure: {nodes: {mode: one}, by: agent}, for: 8s}]\n  stable: {within: 90s, hold: 2s}\n  hypothesis: [{availability: {atLeast: 30%}}]\n",
    );
    let (ended, (pod, node)) = thread::scope(|scope| {
        let running = scope.spawn(|| run(&cluster, &space, &text));
        let seen = appear(&cluster, &installed, &space);
        (running.join().expect("it runs"), seen)
    });
    let context = || format!("{}\n{}", ended.said, installed.state());
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}", context()));
    assert_eq!(report.verdict.outcome, RunOutcome::Pass, "{}", context());
    assert!(!taken.contains(&node) && taken.len() == 2, "users on {node}, the target on {taken:?}");
    let lost = report.faults[0].nodes.clone();
    assert!(lost.len() == 1 && lost[0] != node && taken.contains(&lost[0]), "{lost:?}, and users on {node}");
    let note = report.run.notes.iter().find(|note| note.starts_with("Users ask by Service")).unwrap_or_else(|| panic!("{:?}", report.run.notes));
    println!("{note}");
    assert!(note.contains(&format!("from pod {pod} on node {node}")) && note.contains("placed on the controller's clock to within"), "{note}");
    let attempted = report.total.availability.attempted;
    assert!(attempted >= 500 && report.pods.iter().filter(|pod| pod.service.availability.attempted > 0).count() >= 2, "{attempted}");
    assert!(report.run.notes.iter().all(|note| !note.contains("Nobody asked")), "{:?}", report.run.notes);
    nothing_kept(&cluster, &installed, &space, 20);
    exactness(&cluster, &installed);
}

#[test]
fn the_users_pod_goes_when_its_run_is_stopped_or_deleted_and_when_its_leader_is_killed() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    if cluster.lacks(NARROWED, POLICIES_SINCE) {
        return;
    }
    if cluster.is_elsewhere() {
        eprintln!("not run: the processes of this cluster cannot be killed from here");
        return;
    }
    let installed = install(&cluster);
    let space = cluster.namespace_with("users-gone", ASKS);
    digits(&space, 1);
    let begin = |name: &str| {
        space.apply(&test(name, LONG));
        appear(&cluster, &installed, &space)
    };
    begin("stopped");
    space.kubectl(&["annotate", "resiliencetest/stopped", "steadfast.dev/stop=now"]).expect("annotated");
    nothing_kept(&cluster, &installed, &space, 30);
    begin("deleted");
    space.kubectl(&["delete", "resiliencetest/deleted"]).expect("deleted");
    nothing_kept(&cluster, &installed, &space, 30);
    let (pod, _) = begin("killed");
    assert!(kept(&cluster, &installed).iter().any(|kept| kept.starts_with("configmaps/")), "it is written down");
    kill_leader(&cluster, &installed);
    nothing_kept(&cluster, &installed, &space, 60);
    assert!(users(&cluster, &installed).iter().all(|(name, _)| *name != pod));
}

#[test]
fn a_watch_whose_users_are_lost_has_them_anew_and_tells_the_gap_and_runs_beside_it_leave_them_alone() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    if cluster.lacks(NARROWED, POLICIES_SINCE) {
        return;
    }
    let installed = install(&cluster);
    let space = cluster.namespace_with("users-watch", ASKS);
    digits(&space, 2);
    let status = |name: &str| space.get(&format!("resiliencetest/{name}")).map(|test| test["status"].clone()).unwrap_or_default();
    space.apply(&test("watch", "  window: 12s\n  stable: {within: 60s, hold: 2s}\n"));
    let (first, _) = appear(&cluster, &installed, &space);
    space.wait(90, format_args!("a window\n{}", installed.state()), || (status("watch")["windows"].as_u64() >= Some(1)).then_some(()));
    cluster.kubectl(&["--namespace", &installed.system, "delete", "pod", &first, "--grace-period=0", "--force"]).expect("deleted");
    let (second, _) =
        space.wait(60, format_args!("other users\n{}", installed.state()), || users(&cluster, &installed).into_iter().find(|(name, _)| *name != first));
    let told = space.wait(60, "the gap", || report(&space, "steadfast-run-watch").run.notes.into_iter().find(|note| note.contains("Nobody asked for")));
    println!("{told}");
    assert_eq!(status("watch")["outages"], 0, "nobody was out of service: {:#}", status("watch"));
    // Whoever takes back what runs have left leaves what is in use.
    let ended = run(&cluster, &space, &test("beside", "  baseline: 1s\n  steps: [{name: slow, networkLatency: {pods: {mode: one}, delay: 20ms}, for: 2s}]\n"));
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.said, installed.state());
    thread::sleep(Duration::from_secs(12));
    assert_eq!(users(&cluster, &installed).iter().map(|(name, _)| name).collect::<Vec<_>>(), [&second]);
    space.kubectl(&["delete", "resiliencetest/watch"]).expect("deleted");
    nothing_kept(&cluster, &installed, &space, 30);
}

#[test]
fn where_the_users_pod_finds_no_place_they_ask_from_the_controllers_process_and_the_report_says_why() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    let installed = install_with(&cluster, &["users.cpu=1000"]);
    let space = cluster.namespace_with("users-here", ASKS);
    digits(&space, 1);
    let ended = run(&cluster, &space, &test("here", "  baseline: 2s\n  steps: [{name: slow, networkLatency: {pods: {mode: one}, delay: 20ms}, for: 2s}]\n"));
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}\n{}", ended.said, installed.state()));
    let note = report.run.notes.iter().find(|note| note.starts_with("Users ask by Service")).unwrap_or_else(|| panic!("{:?}", report.run.notes));
    let why = if cluster.is_before(POLICIES_SINCE) { "Kubernetes 1.30" } else { "Insufficient cpu" };
    assert!(note.contains("from the controller's process on node") && note.contains(why), "{note}");
    assert!(report.total.availability.attempted > 100, "{}", ended.said);
    nothing_kept(&cluster, &installed, &space, 20);
}
