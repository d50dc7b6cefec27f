//! Failures of nodes, workloads and containers: they happen, they are seen, and nothing of them is left, whoever dies meanwhile.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use steadfast_api::{mark::Mark, report::RunOutcome};

use crate::{
    experiments::{ASKS, digits, golden_set, run, run_into, test},
    harness::{Cluster, IMAGE, Namespace, cluster_alone, root},
    install::{Installed, install_with},
};

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

/// What runs keep in the controller's namespace while something is in force.
pub(crate) fn kept(cluster: &Cluster, installed: &Installed<'_>) -> Vec<String> {
    let list = |what: &str, selector: &str| {
        let args = ["--namespace", &installed.system, "get", what, "--selector", selector, "-o", "name"];
        cluster.kubectl(&args).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    [list("configmaps", "steadfast.dev/ledger"), list("nodefaults", ""), list("pods", "steadfast.dev/burner")].concat()
}

pub(crate) fn eventually_as_before(cluster: &Cluster, installed: &Installed<'_>, space: &Namespace<'_>, before: &[Value], seconds: u64) {
    space.wait(seconds, &format!("a cluster as it was before: {before:?}\n{}", installed.state()), || {
        (kept(cluster, installed).is_empty() && changeable(cluster, space) == before).then_some(())
    });
}

#[test]
fn nodes_workloads_and_containers_fail_with_proof_and_are_put_back() {
    let Some(cluster) = cluster_alone() else { return };
    let installed = install_with(&cluster, &["nodeAgent.enabled=true", "failures.nodes=true", "failures.cpuPressureOnNodes=true"]);
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
    - {name: no kubelet, nodeFailure: {nodes: {mode: one}, by: kubelet}, for: 4s}
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
    let Some(cluster) = cluster_alone() else { return };
    let installed = install_with(&cluster, &["nodeAgent.enabled=true"]);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("slow", ASKS);
    digits(&space, 3);
    space.apply(&test("slow", "  baseline: 1s\n  steps: [{name: slow, networkLatency: {nodes: {mode: one}, delay: 400ms, by: agent}, for: 60s}]\n"));
    let of = |field: &str| cluster.kubectl(&["--namespace", &installed.system, "get", "nodefaults", "-o", &format!("jsonpath={{.items[*].{field}}}")]);
    let node = space.wait(60, &format!("a slow node\n{}", installed.state()), || {
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
    space.wait(60, &format!("nothing kept\n{}", installed.state()), || kept(&cluster, &installed).is_empty().then_some(()));
    assert!(dial().is_some_and(|took| took.as_millis() < 200), "and stays so");
}

#[test]
fn a_leader_that_is_killed_or_told_to_stop_in_any_failure_leaves_nothing() {
    let Some(cluster) = cluster_alone() else { return };
    let installed =
        install_with(&cluster, &["nodeAgent.enabled=true", "failures.nodes=true", "failures.cpuPressureOnNodes=true", "leaderElection.leaseDurationSeconds=6"]);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("killed", ASKS);
    digits(&space, 3);
    let before = changeable(&cluster, &space);
    // Killed is worst, so every failure is; told to stop is one way for all of them.
    for (name, step, kill) in [
        ("cordon", "cordon: {nodes: {mode: all}}, for: 5m", true),
        ("taint", "taint: {nodes: {mode: one}}, for: 5m", true),
        ("rollout", "rollout: {container: server, image: steadfast.test/none:1}, for: 5m", true),
        ("scale", "scale: {replicas: 1}, for: 5m", true),
        ("burn", "cpuPressure: {nodes: {mode: one}, load: 20%}, for: 5m", true),
        ("cut", "nodeFailure: {nodes: {mode: one}, by: agent}, for: 12s", true),
        ("slow", "networkLatency: {nodes: {mode: one}, delay: 200ms, by: agent}, for: 12s", true),
        ("stop", "scale: {replicas: 1}, for: 5m", false),
    ] {
        space.wait_injected("app=digits", 3);
        let text = test(name, &format!("  baseline: 1s\n  steps: [{{name: {name}, {step}}}]\n"));
        space.apply(&text);
        space.wait(60, &format!("{name} in force\n{}", installed.state()), || {
            let test = space.get(&format!("resiliencetest/{name}"))?;
            assert_ne!(test["status"]["phase"], "Refused", "{name}: {:#}", test["status"]);
            (!kept(&cluster, &installed).is_empty()).then_some(())
        });
        // Somewhere between writing down, doing, and being done.
        thread::sleep(Duration::from_millis(u64::from(name.len() as u32 % 3) * 300));
        let lease = ["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"];
        let leader = cluster.kubectl(&lease).expect("a lease").trim().to_owned();
        let mut delete = vec!["--namespace", &installed.system, "delete", "pod", &leader, "--wait=false"];
        if kill {
            delete.extend(["--grace-period=0", "--force"]);
        }
        let began = Instant::now();
        cluster.kubectl(&delete).expect("deleted");
        let status = space.wait(120, &format!("the end of {name}\n{}", installed.state()), || {
            let test = space.get(&format!("resiliencetest/{name}"))?;
            (test["status"]["phase"] == "Finished").then(|| test["status"].clone())
        });
        assert_eq!(status["verdict"], "inconclusive", "{name}: {status:#}");
        assert_eq!(status["report"].is_null(), kill, "who is told to stop leaves the report: {status:#}");
        eventually_as_before(&cluster, &installed, &space, &before, 60);
        println!("{name}: as before {:.1} s after its leader was {}", began.elapsed().as_secs_f64(), if kill { "killed" } else { "told to stop" });
        space.kubectl(&["delete", &format!("resiliencetest/{name}")]).expect("deleted");
    }
    // Removing the chart takes everything back first.
    space.wait_injected("app=digits", 3);
    space.apply(&test("removed", "  baseline: 1s\n  steps: [{name: scale, scale: {replicas: 1}, for: 5m}]\n"));
    space.wait(60, "one replica", || (changeable(&cluster, &space) != before).then_some(()));
    drop(installed);
    assert_eq!(changeable(&cluster, &space), before, "the chart is gone, and the cluster as it was");
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
    let Some(cluster) = cluster_alone() else { return };
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
