//! Failures of nodes, workloads and containers: they happen, they are seen, and nothing of them is left, whoever dies meanwhile.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use steadfast_api::{mark::Mark, report::RunOutcome};

use crate::{
    experiments::{ASKS, digits, golden_set, run, run_into, test},
    harness::{Cluster, IMAGE, Installation, Namespace, cluster_alone, names, root},
    install::{Installed, install_anew, install_with},
};

/// Values by which a run may do whatever needs no power hook.
pub(crate) const EVERY_FAILURE: [&str; 5] = [
    "nodeAgent.enabled=true",
    "failures.nodes=true",
    "failures.cpuPressureOnNodes=true",
    "failures.maxUnavailableNodes=100%",
    "failures.maxUnavailablePods=100%",
];

/// Every node has opted in, until this is dropped.
pub(crate) struct NodesAllowed<'a>(&'a Cluster);

impl<'a> NodesAllowed<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        cluster.kubectl(&["label", "nodes", "--all", "--overwrite", "steadfast.dev/faults=allowed"]).expect("labelled");
        Self(cluster)
    }
}

impl Drop for NodesAllowed<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(&["label", "nodes", "--all", "steadfast.dev/faults-"]);
    }
}

/// What failures change, as it is now: taints and cordons of nodes, replicas and images of the target.
pub(crate) fn changeable(cluster: &Cluster, space: &Namespace<'_>) -> Vec<Value> {
    let mut nodes = cluster.list("nodes");
    nodes.sort_by_key(|node| node["metadata"]["name"].to_string());
    let deployment = space.get("deployment/digits").expect("there");
    let nodes = nodes.iter().map(|node| {
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        // The cluster's own, while it is busy noticing that a node is back.
        let taints: Vec<Value> = taints.into_iter().filter(|taint| !taint["key"].as_str().unwrap_or_default().starts_with("node.kubernetes.io/")).collect();
        serde_json::json!([taints, node["spec"]["unschedulable"], node["metadata"]["annotations"]["steadfast.dev/cordoned-by"]])
    });
    nodes.chain([deployment["spec"]["replicas"].clone(), deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone()]).collect()
}

/// Pods that burn.
pub(crate) fn burners(cluster: &Cluster, installed: &Installed<'_>) -> Vec<String> {
    names(&cluster.objects("pods", Some(&installed.system), "steadfast.dev/burner")).into_iter().map(|name| format!("pods/{name}")).collect()
}

/// What runs keep in the controller's namespace while something is in force.
pub(crate) fn kept(cluster: &Cluster, installed: &Installed<'_>) -> Vec<String> {
    let list = |kind: &str, selector: &str| {
        let objects = cluster.objects(kind, Some(&installed.system), selector);
        names(&objects).into_iter().map(|name| format!("{kind}/{name}")).collect::<Vec<_>>()
    };
    [list("configmaps", "steadfast.dev/ledger"), list("nodefaults", ""), burners(cluster, installed), list("pods", "steadfast.dev/part=users")].concat()
}

pub(crate) fn nothing_kept(cluster: &Cluster, installed: &Installed<'_>, space: &Namespace<'_>, seconds: u64) {
    space.wait(seconds, format_args!("nothing kept\n{}", installed.state()), || kept(cluster, installed).is_empty().then_some(()));
}

pub(crate) fn eventually_as_before(cluster: &Cluster, installed: &Installed<'_>, space: &Namespace<'_>, before: &[Value], seconds: u64) {
    space.wait(seconds, format_args!("a cluster as it was before: {before:?}\n{}", installed.state()), || {
        (kept(cluster, installed).is_empty() && changeable(cluster, space) == before).then_some(())
    });
}

#[test]
fn nodes_workloads_and_containers_fail_with_proof_and_are_put_back() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("failures", ASKS);
    digits(&space, 3);
    let before = changeable(&cluster, &space);
    let text = test(
        "failures",
        "  baseline: 3s
  steps:
    - {name: container, containerKill: {pods: {mode: one}}}
    - {name: cordoned, cordon: {nodes: {mode: one}}, for: 2s}
    - {name: tainted, taint: {nodes: {mode: one}, key: example.com/maintenance}, for: 2s}
    - {name: bad image, rollout: {container: server, image: steadfast.test/none:1}, for: 4s}
    - {name: fewer, scale: {replicas: 1}, for: 4s}
    - {name: busy, cpuPressure: {nodes: {mode: one}, load: 30%}, for: 5s}
    - {name: cut off, nodeFailure: {nodes: {mode: one}, by: agent}, for: 8s}
    # Kubelet renews its lease every 10 s, and may have nothing to say in between.
    - {name: no kubelet, nodeFailure: {nodes: {mode: one}, by: kubelet}, for: 12s}
    - {name: drained, drain: {nodes: {mode: one}}, for: 4s}
    - {name: slow node, networkLatency: {nodes: {mode: one}, delay: 300ms, by: agent}, for: 6s}
  stable: {within: 90s, hold: 2s}
  hypothesis: [{availability: {atLeast: 50%}}]
",
    );
    let ended = run(&cluster, &space, &text);
    let context = || format!("{}\n{}", ended.said, installed.state());
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}", context()));
    assert_eq!((ended.code, report.verdict.outcome), (Some(0), RunOutcome::Pass), "{:?}\n{}", report.faults, context());
    let proofs: Vec<(String, String)> = report.faults.iter().map(|fault| (fault.name.clone(), fault.evidence.join("; "))).collect();
    for (name, proof) in [
        ("container", "killed by SIGKILL"),
        ("cordoned", "takes no new pods"),
        ("tainted", "example.com/maintenance:NoSchedule"),
        ("bad image", "again in container server"),
        ("fewer", "scaled back from 1 to 3"),
        ("busy", "% of every core burned"),
        ("cut off", "packets were dropped"),
        ("no kubelet", "packets were dropped"),
        ("drained", "evicted"),
        ("slow node", "packets waited, 30"),
    ] {
        assert!(proofs.iter().any(|(fault, evidence)| fault == name && evidence.contains(proof)), "{name}: {proofs:#?}");
    }
    let of = |name: &str| report.faults.iter().position(|fault| fault.name == name).expect("a fault") as u32;
    let killed = report.outages.iter().find(|outage| outage.fault == Some(of("container"))).unwrap_or_else(|| panic!("{:?}", report.outages));
    assert!(
        killed.replacement.as_ref() == Some(&killed.pod) && killed.marks.get(Mark::ContainerStarted).is_some(),
        "started again in the same pod: {killed:?}"
    );
    let cut = report.outages.iter().find(|outage| outage.fault == Some(of("cut off"))).unwrap_or_else(|| panic!("{:?}", report.outages));
    assert!(cut.routing_outage_ms.is_some_and(|outage| (4_000.0..40_000.0).contains(&outage)), "users met nobody there: {cut:?}");
    let slow = report.phases.iter().find(|phase| phase.name.starts_with("slow node")).unwrap_or_else(|| panic!("{:?}", report.phases));
    assert!((300.0..900.0).contains(&slow.service.latency.p99_ms), "users of the slow node waited: {:?}", slow.service.latency);
    assert!(report.run.left_behind.is_empty(), "{:?}", report.run.left_behind);
    eventually_as_before(&cluster, &installed, &space, &before, 30);
}

#[test]
fn a_slow_node_is_fast_again_when_its_agent_is_killed() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("slow", ASKS);
    digits(&space, 3);
    space.apply(&test("slow", "  baseline: 1s\n  steps: [{name: slow, networkLatency: {nodes: {mode: one}, delay: 400ms, by: agent}, for: 60s}]\n"));
    let of = |field: &str| cluster.kubectl(&["--namespace", &installed.system, "get", "nodefaults", "-o", &format!("jsonpath={{.items[*].{field}}}")]);
    let node = space.wait(60, format_args!("a slow node\n{}", installed.state()), || {
        (of("status.phase").ok()?.trim() == "InForce").then(|| of("spec.node").expect("a node").trim().to_owned())
    });
    let pods = space.list("pods");
    let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == node.as_str()).unwrap_or_else(|| panic!("a pod on {node}: {pods:?}"));
    let address = format!("{}:4180", pod["status"]["podIP"].as_str().expect("an address"));
    // A connection takes one round trip.
    let dial = || {
        let began = Instant::now();
        let dialled = cluster.inside(|| TcpStream::connect_timeout(&address.parse().expect("an address"), Duration::from_secs(1)).is_ok());
        dialled.then(|| began.elapsed())
    };
    space.wait(5, "a slow connection", || dial().filter(|took| (400..700).contains(&took.as_millis())));
    let agents =
        ["--namespace", &installed.system, "get", "pods", "-l", "steadfast.dev/part=agent", "-o", "name", "--field-selector", &format!("spec.nodeName={node}")];
    let agent = cluster.kubectl(&agents).expect("agents").trim().to_owned();
    let began = Instant::now();
    cluster.kubectl(&["--namespace", &installed.system, "delete", &agent, "--grace-period=0", "--force"]).expect("deleted");
    space.wait(20, "a fast connection", || dial().filter(|took| took.as_millis() < 200));
    println!("fast {:.1} s after the agent was killed", began.elapsed().as_secs_f64());
    space.kubectl(&["delete", "resiliencetest/slow"]).expect("deleted");
    nothing_kept(&cluster, &installed, &space, 60);
    assert!(dial().is_some_and(|took| took.as_millis() < 200), "and stays so");
}

/// How the leader is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// Its process by SIGKILL. Kubelet starts it again in the same pod, which takes the lead up again.
    Killed,
    /// Its process stands still, and the other replica takes over.
    Frozen,
    /// It is told to stop, which is no loss.
    Told,
}

/// The leader's pod, and its process where it is one of this machine.
fn leader(cluster: &Cluster, installed: &Installed<'_>) -> (String, Option<Pid>) {
    let lease = ["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"];
    let pod = cluster.kubectl(&lease).expect("told").trim().to_owned();
    let process = process(cluster, installed, &pod);
    (pod, process)
}

/// The process of a pod of the chart, where it is one of this machine.
pub(crate) fn process(cluster: &Cluster, installed: &Installed<'_>, pod: &str) -> Option<Pid> {
    if cluster.is_elsewhere() {
        return None;
    }
    let container = ["--namespace", &installed.system, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"];
    let container = cluster.kubectl(&container).expect("told");
    let container = container.trim().split_once("://").expect("it runs").1.to_owned();
    let processes = std::fs::read_dir("/proc").expect("processes").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroup| cgroup.contains(&container));
    let process = processes.filter(inside).min().unwrap_or_else(|| panic!("no process of container {container}"));
    Some(Pid::from_raw(process))
}

/// Steps in which the leader is lost. Without `STEADFAST_KILL_MATRIX=full` (`just kill-matrix`, 20 minutes) one of each way to take back.
const STEPS: [(&str, &str, Lost, bool); 21] = [
    ("cordon", "cordon: {nodes: {mode: all}}, for: 5m", Lost::Frozen, false),
    ("taint", "taint: {nodes: {mode: one}}, for: 5m", Lost::Killed, false),
    ("rollout", "rollout: {container: server, image: steadfast.test/none:1}, for: 5m", Lost::Killed, false),
    ("scale", "scale: {replicas: 1}, for: 5m", Lost::Killed, false),
    ("burn", "cpuPressure: {nodes: {mode: one}, load: 20%}, for: 5m", Lost::Killed, false),
    ("cut", "nodeFailure: {nodes: {mode: one}, by: agent}, for: 5m", Lost::Killed, false),
    ("slow", "networkLatency: {nodes: {mode: one}, delay: 200ms, by: agent}, for: 5m", Lost::Killed, true),
    ("kubelet", "nodeFailure: {nodes: {mode: one}, by: kubelet}, for: 5m", Lost::Frozen, true),
    ("power", "nodeFailure: {nodes: {mode: one}, by: power}, for: 5m", Lost::Killed, true),
    ("drain", "drain: {nodes: {mode: one}}, for: 5m", Lost::Killed, true),
    ("throw-out", "taint: {nodes: {mode: one}, effect: NoExecute}, for: 5m", Lost::Killed, true),
    ("evict", "evict: {pods: {mode: one}}", Lost::Killed, true),
    ("container", "containerKill: {pods: {mode: one}}", Lost::Killed, true),
    ("kill", "podKill: {pods: {mode: one}}", Lost::Killed, true),
    ("hold", "podHoldDown: {pods: {mode: one}}, for: 8s", Lost::Killed, true),
    ("late", "networkLatency: {pods: {mode: all}, delay: 900ms}, for: 8s", Lost::Killed, true),
    ("loss", "networkLoss: {pods: {mode: all}, share: 50%}, for: 8s", Lost::Killed, true),
    ("partition", "networkPartition: {pods: {mode: one}}, for: 8s", Lost::Frozen, true),
    ("corrupt", "corrupt: {pods: {mode: all}, share: 100%}, for: 8s", Lost::Killed, true),
    ("pressure", "cpuPressure: {pods: {mode: one}, load: 20%}, for: 8s", Lost::Killed, true),
    ("stop", "scale: {replicas: 1}, for: 5m", Lost::Told, false),
];

/// Every failure, and not one of each way to take back.
pub(crate) fn whole_matrix() -> bool {
    std::env::var("STEADFAST_KILL_MATRIX").as_deref() == Ok("full")
}

#[test]
fn a_leader_that_is_lost_or_told_to_stop_in_any_failure_leaves_nothing() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    let full = whole_matrix() && !cluster.is_elsewhere();
    let mut values: Vec<String> = [
        "nodeAgent.enabled=true",
        "failures.nodes=true",
        "failures.workloads=true",
        "failures.cpuPressureOnNodes=true",
        "failures.maxUnavailableNodes=100%",
        "leaderElection.leaseDurationSeconds=6",
    ]
    .map(str::to_owned)
    .to_vec();
    let station = full.then(|| PowerStation::start(&cluster));
    let nodes = cluster.nodes();
    let _power: Vec<_> = if full { nodes.iter().filter_map(|node| cluster.power(node)).collect() } else { Vec::new() };
    values.extend(station.as_ref().map(|station| format!("powerHook.url={}", station.url())));
    let installed = install_anew(&cluster, &values.iter().map(String::as_str).collect::<Vec<_>>());
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("killed", ASKS);
    digits(&space, 3);
    let before = changeable(&cluster, &space);
    for (name, step, how, _) in STEPS.into_iter().filter(|(.., of_full)| full || !of_full) {
        space.wait_injected("app=digits", 3);
        // The one before may still be starting anew, and kubelet lets one that died several times wait for longer each time.
        for pod in cluster.list("pods").iter().filter(|pod| pod["metadata"]["namespace"] == installed.system.as_str()) {
            if pod["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|restarts| restarts >= 2) {
                let name = pod["metadata"]["name"].as_str().expect("a name");
                let _ = cluster.kubectl(&["--namespace", &installed.system, "delete", "pod", name]);
            }
        }
        space.wait(60, "both replicas", || {
            let replicas =
                cluster.kubectl(&["--namespace", &installed.system, "get", "deployment/steadfast-controller", "-o", "jsonpath={.status.readyReplicas}"]);
            (replicas.ok()?.trim() == "2").then_some(())
        });
        let text = test(name, &format!("  baseline: 1s\n  steps: [{{name: {name}, {step}}}]\n"));
        space.apply(&text);
        // Not only written down: the cluster shows it.
        space.wait(90, format_args!("{name} in force\n{}", installed.state()), || {
            let test = space.get(&format!("resiliencetest/{name}"))?;
            assert!(test["status"]["phase"] != "Refused" && test["status"]["phase"] != "Finished", "{name}: {:#}", test["status"]);
            let in_system = |what: &str, field: &str| {
                cluster.kubectl(&["--namespace", &installed.system, "get", what, "-o", &format!("jsonpath={{.items[*].{field}}}")]).unwrap_or_default()
            };
            let shows = match name {
                "burn" => in_system("pods", "status.phase").contains("Running") && !burners(&cluster, &installed).is_empty(),
                "cut" | "slow" | "kubelet" => in_system("nodefaults", "status.phase").contains("InForce"),
                "power" => station.as_ref().is_some_and(|station| !station.switched().is_empty()),
                "evict" | "container" | "kill" => ["Fault", "Recovery"].iter().any(|phase| test["status"]["live"]["phase"] == *phase),
                "late" | "loss" | "partition" | "corrupt" | "pressure" | "hold" => test["status"]["live"]["phase"] == "Fault",
                _ => changeable(&cluster, &space) != before,
            };
            shows.then_some(())
        });
        // Somewhere between being made and being in force for long.
        thread::sleep(Duration::from_millis(u64::from(name.len() as u32 % 3) * 300));
        let (pod, process) = leader(&cluster, &installed);
        let began = Instant::now();
        match (how, process) {
            (Lost::Killed, Some(process)) => kill(process, Signal::SIGKILL).expect("killed"),
            (Lost::Frozen, Some(process)) => kill(process, Signal::SIGSTOP).expect("frozen"),
            (how, _) => {
                let mut delete = vec!["--namespace", &installed.system, "delete", "pod", &pod, "--wait=false"];
                // As near to it as one comes from elsewhere.
                delete.extend(if how == Lost::Told { &[][..] } else { &["--grace-period=0", "--force"][..] });
                cluster.kubectl(&delete).expect("deleted");
            }
        }
        let status = space.wait(120, format_args!("the end of {name}\n{}", installed.state()), || {
            let test = space.get(&format!("resiliencetest/{name}"))?;
            (test["status"]["phase"] == "Finished").then(|| test["status"].clone())
        });
        assert_eq!(status["verdict"], "inconclusive", "{name}: {status:#}");
        assert_eq!(status["report"].is_null(), how != Lost::Told, "who is told to stop leaves the report: {status:#}");
        if how != Lost::Told {
            assert!(status["reason"].as_str().is_some_and(|reason| reason.contains("controller was lost")), "by whoever came next: {status:#}");
        }
        eventually_as_before(&cluster, &installed, &space, &before, 90);
        println!("{name}: as before {:.1} s after its leader was {how:?}", began.elapsed().as_secs_f64());
        if let (Lost::Frozen, Some(process)) = (how, process) {
            // It awakes to a world that somebody else leads, unless kubelet has killed it by now.
            let _ = kill(process, Signal::SIGCONT);
            thread::sleep(Duration::from_secs(3));
            eventually_as_before(&cluster, &installed, &space, &before, 20);
            assert_eq!(space.get(&format!("resiliencetest/{name}")).expect("there")["status"]["phase"], "Finished", "and stays ended");
        }
        if full {
            space.wait_injected("app=digits", 3);
            space.wait(60, "answers as ever", || {
                let quick = || {
                    let began = Instant::now();
                    space.ask("digits:80", "/v2/models/digits").is_ok() && began.elapsed() < Duration::from_millis(800)
                };
                (0..10).all(|_| quick()).then_some(())
            });
        }
        space.kubectl(&["delete", &format!("resiliencetest/{name}")]).expect("deleted");
    }
    nobody_owns(&cluster, &space);
    // Removing the chart takes everything back first, though no node takes pods, and nothing begins after it.
    space.wait_injected("app=digits", 3);
    space.apply(&test("removed", "  baseline: 1s\n  steps: [{name: cordon, cordon: {nodes: {mode: all}}, for: 5m}]\n"));
    space.wait(60, "closed nodes", || (changeable(&cluster, &space) != before).then_some(()));
    space.apply(&test("next", "  baseline: 1s\n  steps: [{name: scale, scale: {replicas: 1}, for: 5m}]\n"));
    drop(installed);
    let of = |name: &str| space.get(&format!("resiliencetest/{name}")).expect("there")["status"].clone();
    assert_eq!(of("removed")["phase"], "Finished", "{:#}", of("removed"));
    thread::sleep(Duration::from_secs(3));
    assert_eq!(changeable(&cluster, &space), before, "the chart is gone, and the cluster as it was; {:#}", of("next"));
}

/// Who wrote a field owns it, and whoever applies it next must find nobody in the way.
fn nobody_owns(cluster: &Cluster, space: &Namespace<'_>) {
    for (objects, show) in [("nodes", ""), ("deployments", space.name())] {
        let namespace = if show.is_empty() { vec![] } else { vec!["--namespace", show] };
        let listed = cluster.kubectl(&[&namespace[..], &["get", objects, "-o", "json", "--show-managed-fields"]].concat()).expect("listed");
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let entries =
            listed["items"].as_array().expect("a list").iter().flat_map(|object| object["metadata"]["managedFields"].as_array().into_iter().flatten());
        let ours: Vec<&Value> = entries.filter(|entry| entry["manager"] == "steadfast").collect();
        assert!(ours.is_empty(), "{objects}: {ours:?}");
    }
}

#[test]
fn what_is_cut_off_returns_when_its_test_is_deleted_and_what_a_budget_refuses_is_told_at_once() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("ended", ASKS);
    digits(&space, 3);
    let before = changeable(&cluster, &space);
    for by in ["agent", "kubelet"] {
        space.wait_injected("app=digits", 3);
        space.apply(&test(by, &format!("  baseline: 1s\n  steps: [{{name: cut, nodeFailure: {{nodes: {{mode: one}}, by: {by}}}, for: 10m}}]\n")));
        space.wait(60, format_args!("a node that is cut off\n{}", installed.state()), || {
            let phases = cluster.kubectl(&["--namespace", &installed.system, "get", "nodefaults", "-o", "jsonpath={.items[*].status.phase}"]);
            (phases.ok()?.trim() == "InForce").then_some(())
        });
        thread::sleep(Duration::from_secs(3));
        space.kubectl(&["delete", &format!("resiliencetest/{by}"), "--wait=false"]).expect("deleted");
        let began = Instant::now();
        eventually_as_before(&cluster, &installed, &space, &before, 30);
        println!("by: {by}: healed {:.1} s after its test was deleted", began.elapsed().as_secs_f64());
        for node in cluster.nodes() {
            space.wait(60, format_args!("{node} is Ready"), || {
                let node = cluster.get(&format!("node/{node}"))?;
                (crate::harness::condition(&node, "Ready").as_deref() == Some("True")).then_some(())
            });
        }
    }
    space.wait_injected("app=digits", 3);
    space.apply("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: all}\nspec: {minAvailable: 3, selector: {matchLabels: {app: digits}}}\n");
    space.wait(30, "a budget that counts", || (space.get("poddisruptionbudget/all")?["status"]["currentHealthy"] == 3).then_some(()));
    let steps = "  baseline: 1s\n  steps: [{name: evict, evict: {pods: {mode: one}}}]\n  stable: {within: 20s, hold: 1s}\n";
    space.apply(&test("refused", steps));
    let began = Instant::now();
    let status = space.wait(60, format_args!("the end\n{}", installed.state()), || {
        let status = space.get("resiliencetest/refused")?["status"].clone();
        (status["phase"] == "Finished").then_some(status)
    });
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(status["verdict"] == "inconclusive" && reason.contains("disruption budget"), "{status:#}");
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    // A drain goes on asking for as long as it lasts, and no budget holds the run up.
    space.apply(&test("drained", "  baseline: 1s\n  steps: [{name: drain, drain: {nodes: {mode: one}}, for: 5m}]\n"));
    space.wait(60, format_args!("a drain\n{}", installed.state()), || (changeable(&cluster, &space) != before).then_some(()));
    thread::sleep(Duration::from_secs(8));
    assert_ne!(changeable(&cluster, &space), before, "its time began when it was in force");
    space.kubectl(&["delete", "resiliencetest/drained", "--wait=false"]).expect("deleted");
    let began = Instant::now();
    eventually_as_before(&cluster, &installed, &space, &before, 30);
    println!("a drain that a budget holds up ends {:.1} s after its test was deleted", began.elapsed().as_secs_f64());
    // Whoever is on call for the node could read whose doing it was.
    let of_nodes =
        ["--namespace", "default", "get", "events", "--field-selector", "reason=FaultBegan,involvedObject.kind=Node", "-o", "jsonpath={.items[*].message}"];
    let said = cluster.kubectl(&of_nodes).expect("Events of nodes");
    assert!(said.contains("/drained: drain on nodes n"), "{said}");
    // A budget that holds one pod back: what it refused is told where people look.
    space.kubectl(&["delete", "poddisruptionbudget/all"]).expect("deleted");
    let pods = space.wait_injected("app=digits", 3);
    space.kubectl(&["label", "pod", &pods[0], "guarded=yes"]).expect("labelled");
    space
        .apply("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: one}\nspec: {minAvailable: 1, selector: {matchLabels: {guarded: 'yes'}}}\n");
    space.wait(30, "a budget that counts", || (space.get("poddisruptionbudget/one")?["status"]["currentHealthy"] == 1).then_some(()));
    space.apply(&test("partly", "  baseline: 1s\n  steps: [{name: evict, evict: {pods: {mode: all}}}]\n  stable: {within: 60s, hold: 1s}\n"));
    let status = space.wait(120, format_args!("the end\n{}", installed.state()), || {
        let status = space.get("resiliencetest/partly")?["status"].clone();
        (status["phase"] == "Finished").then_some(status)
    });
    let reason = status["reason"].as_str().unwrap_or_default();
    let refused = format!("(evict of 3 pods): {} was not evicted: ", pods[0]);
    assert!(status["verdict"] == "pass" && reason.contains(&refused) && reason.contains("disruption budget"), "{status:#}");
    let events = space.list("events");
    let told = |about: &str, reason: &str| {
        let of = |event: &&Value| {
            event["involvedObject"]["name"] == about
                && event["reason"] == reason
                && event["message"].as_str().is_some_and(|note| note.contains("/partly: evict on pods "))
        };
        events.iter().filter(of).count()
    };
    for about in pods.iter().map(String::as_str).chain(["partly"]) {
        assert_eq!((told(about, "FaultBegan"), told(about, "FaultEnded")), (1, 1), "{about}: {events:#?}");
    }

    // A namespace that is deleted takes its pods along first, and those of a node that is cut off cannot end: the fault must not wait for them.
    let gone = cluster.namespace_with("gone", ASKS);
    digits(&gone, 3);
    gone.wait_injected("app=digits", 3);
    gone.apply(&test("cut", "  baseline: 1s\n  steps: [{name: cut, nodeFailure: {nodes: {mode: one}, by: agent}, for: 10m}]\n"));
    gone.wait(60, format_args!("a node that is cut off\n{}", installed.state()), || {
        let phases = cluster.kubectl(&["--namespace", &installed.system, "get", "nodefaults", "-o", "jsonpath={.items[*].status.phase}"]);
        (phases.ok()?.trim() == "InForce").then_some(())
    });
    let began = Instant::now();
    let deleted = cluster.kubectl(&["delete", "namespace", gone.name(), "--wait=true", "--timeout=120s"]);
    assert!(deleted.is_ok(), "{deleted:?}\n{}\n{}", cluster.get(&format!("namespace/{}", gone.name())).unwrap_or_default(), installed.state());
    println!("a namespace whose test had cut a node off was gone after {:.1} s", began.elapsed().as_secs_f64());
    assert!(kept(&cluster, &installed).is_empty(), "{:?}", kept(&cluster, &installed));
}

/// Which node was switched off, from when until when, in nanoseconds of CLOCK_MONOTONIC.
type Switched = Arc<Mutex<Vec<(String, u64, u64)>>>;

/// Somebody who can switch nodes, as a cloud's API would be: `POST {"node": …, "action": …}` switches the node of this machine's cluster.
pub(crate) struct PowerStation {
    address: String,
    switched: Switched,
}

impl PowerStation {
    pub(crate) fn url(&self) -> String {
        format!("http://{}/switch", self.address)
    }

    pub(crate) fn switched(&self) -> Vec<(String, u64, u64)> {
        self.switched.lock().expect("nobody panics with it").clone()
    }

    pub(crate) fn start(cluster: &Cluster) -> Self {
        let switched = Switched::default();
        let told = Arc::clone(&switched);
        let listener = cluster.inside(|| TcpListener::bind("10.77.0.254:0").expect("an address that pods reach"));
        let address = listener.local_addr().expect("bound").to_string();
        let tool = Arc::new(root().join("tests/cluster/cluster"));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tool, told) = (Arc::clone(&tool), Arc::clone(&told));
                thread::spawn(move || serve(stream, &tool, &told));
            }
        });
        Self { address, switched }
    }
}

fn serve(stream: TcpStream, tool: &std::path::Path, switched: &Switched) {
    let mut reader = BufReader::new(&stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let node = asked["node"].as_str().and_then(|node| node.strip_prefix('n')).unwrap_or_default().to_owned();
    let action = asked["action"].as_str().unwrap_or_default();
    let from = crate::truth::now();
    let done = std::process::Command::new(tool).args([if action == "off" { "off" } else { "restore" }, &node]).status().is_ok_and(|status| status.success());
    if done && action == "off" {
        switched.lock().expect("nobody panics with it").push((format!("n{node}"), from, crate::truth::now()));
    }
    let status = if done { "204 No Content" } else { "500 Internal Server Error" };
    let _ = (&stream).write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
}

/// The case of the literature, on the files of examples/recommender: slow network, a node without power, busy cores. In a short form, unless
/// `STEADFAST_CASE_STUDY=full`; the report is left in target/case-study.
#[test]
fn the_case_study_runs_on_a_cluster_with_a_node_that_loses_its_power() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if cluster.is_elsewhere() {
        eprintln!("not run: the nodes of this cluster cannot be switched off from here");
        return;
    }
    let full = std::env::var("STEADFAST_CASE_STUDY").as_deref() == Ok("full");
    let nodes = cluster.nodes();
    let _power: Vec<_> = nodes.iter().filter_map(|node| cluster.power(node)).collect();
    let station = PowerStation::start(&cluster);
    let installed = install_with(&cluster, &["failures.nodes=true", "failures.cpuPressureOnNodes=true", &format!("powerHook.url={}", station.url())]);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("case-study", ASKS);
    golden_set(&space, "recommender");
    let example = |name: &str| std::fs::read_to_string(root().join("examples/recommender").join(name)).expect("an example");
    space.apply(&example("recommender.yaml").replace("image: steadfast #", &format!("imagePullPolicy: Never\n          image: {IMAGE} #")));
    space.wait_ready("app=recommender", 3);
    let mut text = example("case-study.yaml");
    if !full {
        // One node of three is silent for most of so short a run, and the machine may be busy with other tests.
        for (long, short) in [
            ("baseline: 30s", "baseline: 5s"),
            ("rate: 100/s", "rate: 30/s"),
            ("500ms}, for: 60s", "500ms}, for: 8s"),
            ("for: 90s", "for: 70s"),
            ("90%}, for: 60s", "50%}, for: 6s"),
            ("hold: 10s", "hold: 3s"),
            ("atLeast: 90%", "atLeast: 65%"),
            ("atMost: 250ms", "atMost: 5s"),
        ] {
            assert!(text.contains(long), "{long}");
            text = text.replace(long, short);
        }
    }
    let ended = run_into(&cluster, &space, &text, &root().join("target/case-study"));
    let context = || format!("{}\n{}", ended.said, installed.state());
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}", context()));
    println!("{}", ended.said);
    assert_eq!((ended.code, report.verdict.outcome), (Some(0), RunOutcome::Pass), "{:?}\n{}", report.faults, context());
    let lost = report.outages.iter().find(|outage| outage.fault == Some(1)).unwrap_or_else(|| panic!("{:?}", report.outages));
    println!("a node without power: {lost:#?}");
    let mark = |mark: Mark| lost.marks.get(mark).unwrap_or_else(|| panic!("no {mark:?}: {lost:?}"));
    let floor = report.run.timers.as_ref().expect("the cluster's own timers");
    let (noticed, replaced) = (floor.node_called_lost(), floor.node_loss().expect("pods that are replaced"));
    let since_fault = |at: Mark| Duration::from_secs_f64((mark(at) - mark(Mark::Fault)) / 1000.0);
    // Switching off takes a moment, and so does hearing of it.
    let moment = Duration::from_secs(1);
    assert!(since_fault(Mark::Detected) + moment >= noticed.0.get() && since_fault(Mark::Detected) <= noticed.1.get() + 7 * moment, "{floor:?}: {lost:?}");
    assert!(since_fault(Mark::ReplacementCreated) + moment >= replaced.0.get(), "no faster than the floor, {floor:?}: {lost:?}");
    assert!(
        mark(Mark::Detected) <= mark(Mark::ReplacementCreated) && mark(Mark::FirstCorrectPrediction) >= mark(Mark::ModelLoaded) && !lost.censored,
        "{lost:?}"
    );
    assert!(lost.replacement_node.as_ref().is_some_and(|node| *node != lost.node), "{lost:?}");
    assert!(report.faults[1].evidence.iter().any(|words| words.contains("the cluster held it for lost")), "{:?}", report.faults[1].evidence);
    assert!(kept(&cluster, &installed).is_empty() && report.run.left_behind.is_empty());
}
