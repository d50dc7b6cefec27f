//! The leader is killed (SIGKILL, so that it can say nothing) at one moment of a run after the other: each run ends, once, and nothing of it outlives its
//! expiry.
//!
//! `STEADFAST_KILLS=full` (`just kills`): at every second of a run, so in its clean-up and while its report is written too. Else: in its baseline, and in its
//! recovery.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    experiments::{ASKS, digits, test},
    failures::kept,
    harness::{Cluster, Installation, Namespace, cluster_alone, cluster_for_a_run},
    install::{Installed, install},
    truth::pod_of,
};

/// A fault of five seconds, of whom some are left for a recovery to be killed in.
const SPEC: &str = "  baseline: 4s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 700ms}, for: 5s}]\n  stable: {within: 60s, hold: 5s}\n";
/// From the fault on, until it ends by itself: its time, and the margin for taking it back.
const EXPIRES: Duration = Duration::from_secs(35);

/// SIGKILL for the process of whoever leads.
pub(crate) fn kill_leader(cluster: &Cluster, installed: &Installed<'_>) {
    let leader = cluster.kubectl(&["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"]).expect("a lease");
    let uid = cluster.kubectl(&["--namespace", &installed.system, "get", "pod", leader.trim(), "-o", "jsonpath={.metadata.uid}"]).expect("the leader");
    let pids = std::fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_steadfast = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("steadfast"));
    let of_leader: Vec<i32> = pids.filter(|pid| pod_of(*pid).as_deref() == Some(uid.trim())).filter(is_steadfast).collect();
    assert!(!of_leader.is_empty(), "no process of {leader}");
    for pid in of_leader {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
    }
}

fn status(space: &Namespace<'_>, name: &str) -> Value {
    space.get(&format!("resiliencetest/{name}")).map(|test| test["status"].clone()).unwrap_or_default()
}

fn slow(space: &Namespace<'_>) -> bool {
    let began = Instant::now();
    space.ask("digits:80", "/v2/models/digits").is_ok() && began.elapsed() >= Duration::from_millis(700)
}

/// It ends, and was begun once; nothing is in force.
fn ends(cluster: &Cluster, installed: &Installed<'_>, space: &Namespace<'_>, name: &str, fault: Instant) -> Value {
    let ended = space.wait(90, format_args!("the end of {name}\n{}", installed.state()), || {
        let status = status(space, name);
        (status["phase"] == "Finished").then_some(status)
    });
    space.wait(60, format_args!("a quick network after {name}"), || (!slow(space)).then_some(()));
    assert!(fault.elapsed() < EXPIRES + Duration::from_secs(60), "{name}");
    space.wait(20, "nothing in force", || kept(cluster, installed).is_empty().then_some(()));
    let begun = space.list("events").iter().filter(|event| event["reason"] == "Started" && event["involvedObject"]["name"] == name).count();
    assert!(begun <= 1, "{name} was begun {begun} times");
    ended
}

#[test]
fn a_run_ends_once_and_leaves_nothing_whenever_its_leader_is_killed() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    if cluster.is_elsewhere() {
        eprintln!("not run: the processes of this cluster cannot be killed from here");
        return;
    }
    let installed = install(&cluster);
    let space = cluster.namespace_with("killed", ASKS);
    digits(&space, 2);
    for phase in ["Baseline", "Recovery"] {
        let name = phase.to_lowercase();
        space.apply(&test(&name, SPEC));
        space.wait(90, format_args!("{phase}\n{}", installed.state()), || (status(&space, &name)["live"]["phase"] == phase).then_some(()));
        kill_leader(&cluster, &installed);
        let ended = ends(&cluster, &installed, &space, &name, Instant::now());
        let reason = ended["reason"].as_str().unwrap_or_default();
        assert!(ended["verdict"] == "inconclusive" && reason.contains("The controller was lost during the run"), "{phase}: {ended:#}");
    }
    if std::env::var("STEADFAST_KILLS").as_deref() != Ok("full") {
        return;
    }
    for second in 0..30 {
        let name = format!("second-{second}");
        // Whoever leads has to be there for the run to begin.
        let begun = format!("begun-{second}");
        space.apply(&test(&begun, "  baseline: 1s\n  steps: [{name: killed, podKill: {pods: {mode: one}}}]\n  stable: {within: 60s, hold: 1s}\n"));
        space.wait(120, "a leader", || (status(&space, &begun)["phase"] == "Finished").then_some(()));
        space.wait_ready("app=digits", 2);
        space.apply(&test(&name, SPEC));
        let began = Instant::now();
        thread::sleep(Duration::from_secs(second));
        let at = status(&space, &name);
        kill_leader(&cluster, &installed);
        let ended = ends(&cluster, &installed, &space, &name, began);
        let how = ended["reason"].as_str().unwrap_or_default();
        println!("killed after {second} s in {}: {} after {:.0} s; {how}", at["live"]["phase"], ended["verdict"], began.elapsed().as_secs_f64());
        let is_lost = ended["verdict"] == "inconclusive" && how.contains("The controller was lost");
        assert!(is_lost || ended["report"].is_object(), "either it has a report, or it says why it has none: {ended:#}");
    }
}

#[test]
fn a_namespace_that_is_deleted_in_the_middle_of_a_run_is_gone_within_a_minute() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("deleted", ASKS);
    digits(&space, 1);
    space.apply(&test("long", "  baseline: 1s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 300ms}, for: 5m}]\n"));
    space.apply("apiVersion: steadfast.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {name: errors}\nspec: {selector: {matchLabels: {app: digits}}, expiresAfter: 10m, budget: {concurrent: 1, share: 1%}}\n");
    space.apply(&format!("{}  suspend: true\n  steps: [{{name: killed, podKill: {{pods: {{mode: one}}}}}}]\n", test("template", "")));
    space.apply(
        "apiVersion: steadfast.dev/v1alpha1\nkind: ResilienceSchedule\nmetadata: {name: often}\nspec:\n  test: {name: template}\n  meanTimeBetween: 1h\n  armed: true\n  \
         window: {days: [Mon, Tue, Wed, Thu, Fri, Sat, Sun], from: '00:00', to: '24:00', timeZone: UTC}\n",
    );
    space.wait(60, format_args!("the fault\n{}", installed.state()), || (status(&space, "long")["live"]["phase"] == "Fault").then_some(()));
    let began = Instant::now();
    let gone = cluster.kubectl(&["delete", "namespace", space.name(), "--wait=true", "--timeout=60s"]);
    assert!(gone.is_ok(), "{gone:?}\n{}\n{}", cluster.get(&format!("namespace/{}", space.name())).unwrap_or_default(), installed.state());
    println!("a namespace with a run, a policy, a schedule and a golden set was gone after {:.1} s", began.elapsed().as_secs_f64());
    assert!(kept(&cluster, &installed).is_empty());
}
