//! The command line or the API server is lost while something is in force: it ends all the same, and the cluster is as it was.

use std::{
    fmt::Display,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    experiments::{ASKS, digits, test},
    failures::{EVERY_FAILURE, NodesAllowed, burners, changeable, eventually_as_before, kept, nothing_kept, process, whole_matrix},
    harness::{Cluster, Installation, Namespace, STEADFAST, cluster_alone},
    install::install_with,
};

/// How long the model server's own answer takes, by the Service, without the API server.
fn takes(cluster: &Cluster, address: &str) -> Option<Duration> {
    cluster.inside(|| {
        let began = Instant::now();
        let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET /v2/models/digits HTTP/1.1\r\nHost: digits\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then(|| began.elapsed())
    })
}

fn service(space: &Namespace<'_>) -> String {
    let address = space.kubectl(&["get", "service/digits", "-o", "jsonpath={.spec.clusterIP}"]).expect("a Service");
    format!("{}:80", address.trim())
}

#[test]
fn a_run_whose_command_line_is_killed_ends_by_itself() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("orphan", ASKS);
    digits(&space, 2);
    let before = changeable(&cluster, &space);
    let all = [
        ("slow", "networkLatency: {pods: {mode: all}, delay: 700ms}, for: 4s"),
        ("held", "podHoldDown: {pods: {mode: one}}, for: 4s"),
        ("cordoned", "cordon: {nodes: {mode: all}}, for: 4s"),
        ("scaled", "scale: {replicas: 1}, for: 4s"),
        ("killed", "podKill: {pods: {mode: one}}"),
        ("lossy", "networkLoss: {pods: {mode: all}, share: 20%}, for: 4s"),
        ("parted", "networkPartition: {pods: {mode: one}}, for: 4s"),
        ("wrong", "corrupt: {pods: {mode: all}, share: 100%}, for: 4s"),
        ("busy", "cpuPressure: {pods: {mode: one}, load: 20%}, for: 4s"),
        ("busy-node", "cpuPressure: {nodes: {mode: one}, load: 20%}, for: 4s"),
        ("evicted", "evict: {pods: {mode: one}}"),
        ("container", "containerKill: {pods: {mode: one}}"),
        ("bad-image", "rollout: {container: server, image: steadfast.test/none:1}, for: 4s"),
        ("tainted", "taint: {nodes: {mode: one}}, for: 4s"),
        ("thrown-out", "taint: {nodes: {mode: one}, effect: NoExecute}, for: 4s"),
        ("drained", "drain: {nodes: {mode: one}}, for: 4s"),
        ("cut", "nodeFailure: {nodes: {mode: one}, by: agent}, for: 4s"),
        // A kubelet that has nothing to tell renews its lease every ten seconds: of a shorter cut nothing is seen.
        ("kubelet", "nodeFailure: {nodes: {mode: one}, by: kubelet}, for: 12s"),
        ("slow-node", "networkLatency: {nodes: {mode: one}, delay: 200ms, by: agent}, for: 4s"),
    ];
    let steps = if whole_matrix() { &all[..] } else { &all[..5] };
    for &(name, step) in steps {
        space.wait_ready("app=digits", 2);
        let folder = tempfile::TempDir::new().expect("a folder");
        let file = folder.path().join("test.yaml");
        let text = test(name, &format!("  baseline: 1s\n  steps: [{{name: {name}, {step}}}]\n  stable: {{within: 60s, hold: 2s}}\n"));
        std::fs::write(&file, text).expect("written");
        let mut command = cluster.command(STEADFAST);
        command.args(["run", "--platform", "kubernetes", "--namespace", space.name()]).arg(&file).current_dir(folder.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("steadfast runs");
        let of_this = || space.list("resiliencetests").into_iter().find(|object| object["metadata"]["name"].as_str().is_some_and(|it| it.starts_with(name)));
        space.wait(60, format_args!("{name} in force\n{}", installed.state()), || {
            let status = of_this()?["status"].clone();
            status["live"]["phase"].as_str().is_some_and(|phase| ["Fault", "Recovery"].contains(&phase)).then_some(())
        });
        child.kill().expect("killed");
        child.wait().expect("it was there");
        let status = space.wait(90, format_args!("the end of {name}\n{}", installed.state()), || {
            let status = of_this()?["status"].clone();
            (status["phase"] == "Finished").then_some(status)
        });
        assert!(status["verdict"] == "pass" && status["report"].is_object(), "{name}: nobody missed it: {status:#}");
        eventually_as_before(&cluster, &installed, &space, &before, 20);
    }
}

#[test]
fn what_is_in_force_ends_without_the_api_server_or_as_soon_as_it_is_back() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("cut", ASKS);
    digits(&space, 2);
    let (before, service) = (changeable(&cluster, &space), service(&space));
    let slow = || takes(&cluster, &service).is_some_and(|took| took >= Duration::from_millis(700));
    let quick = || takes(&cluster, &service).is_some_and(|took| took < Duration::from_millis(700));

    // In sidecars: their own clocks end it, 30 s after its time, whoever is there to tell them.
    space.apply(&test("slow", "  baseline: 1s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 700ms}, for: 5s}]\n"));
    space.wait(60, format_args!("a slow network\n{}", installed.state()), || slow().then_some(()));
    let Some(cut) = cluster.cut_api() else { return };
    let began = Instant::now();
    while !quick() {
        assert!(began.elapsed() < Duration::from_secs(50), "slow for {:?} without the API server", began.elapsed());
        thread::sleep(Duration::from_millis(500));
    }
    println!("slow: over {:.1} s after the API server was cut off", began.elapsed().as_secs_f64());
    // Nobody leads any more by now, and the runs of lost leaders are ended by the next one.
    thread::sleep(Duration::from_secs(25).saturating_sub(began.elapsed()));
    drop(cut);
    finished(&space, "slow", installed.state());

    // Of nodes and workloads: whoever leads next takes it back.
    let all = [
        ("cordon", "cordon: {nodes: {mode: all}}, for: 5m"),
        ("scale", "scale: {replicas: 1}, for: 5m"),
        ("taint", "taint: {nodes: {mode: one}}, for: 5m"),
        ("bad-image", "rollout: {container: server, image: steadfast.test/none:1}, for: 5m"),
        ("drain", "drain: {nodes: {mode: one}}, for: 5m"),
        ("thrown-out", "taint: {nodes: {mode: one}, effect: NoExecute}, for: 5m"),
        ("busy-node", "cpuPressure: {nodes: {mode: one}, load: 20%}, for: 5m"),
        // The kernel ends these by itself when nobody writes them again.
        ("cut-node", "nodeFailure: {nodes: {mode: one}, by: agent}, for: 20s"),
        ("slow-node", "networkLatency: {nodes: {mode: one}, delay: 200ms, by: agent}, for: 20s"),
    ];
    for (name, step) in if whole_matrix() { &all[..] } else { &all[..2] } {
        space.wait_injected("app=digits", 2);
        space.apply(&test(name, &format!("  baseline: 1s\n  steps: [{{name: {name}, {step}}}]\n")));
        // Not only written down: the cluster shows it.
        space.wait(60, format_args!("{name} in force\n{}", installed.state()), || {
            let shows = match *name {
                "busy-node" => !burners(&cluster, &installed).is_empty(),
                name if name.ends_with("-node") => kept(&cluster, &installed).iter().any(|object| object.contains("nodefault")),
                _ => changeable(&cluster, &space) != before,
            };
            shows.then_some(())
        });
        let Some(cut) = cluster.cut_api() else { return };
        thread::sleep(Duration::from_secs(25));
        drop(cut);
        let began = Instant::now();
        eventually_as_before(&cluster, &installed, &space, &before, 90);
        println!("{name}: as before {:.1} s after the API server was back", began.elapsed().as_secs_f64());
        finished(&space, name, installed.state());
    }

    // A short loss is survived: the run goes on.
    space.wait_injected("app=digits", 2);
    let spec = "  baseline: 4s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 300ms}, for: 8s}]\n  stable: {within: 60s, hold: 2s}\n";
    space.apply(&test("short", spec));
    space.wait(60, "the fault", || (space.get("resiliencetest/short")?["status"]["live"]["phase"] == "Fault").then_some(()));
    let Some(cut) = cluster.cut_api() else { return };
    thread::sleep(Duration::from_secs(3));
    drop(cut);
    let status = finished(&space, "short", installed.state());
    assert_eq!(status["verdict"], "pass", "{status:#}");
}

#[test]
fn a_node_that_was_cut_off_is_heard_again_when_nobody_is_left_to_say_so() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    if cluster.is_elsewhere() {
        eprintln!("not run: the processes of this cluster cannot be stopped from here");
        return;
    }
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("heals", ASKS);
    digits(&space, 3);
    space.apply(&test("cut", "  baseline: 1s\n  steps: [{name: cut, nodeFailure: {nodes: {mode: one}, by: agent}, for: 20s}]\n"));
    let node = space.wait(60, format_args!("a node that is cut off\n{}", installed.state()), || {
        let faults = cluster.objects("nodefaults", Some(&installed.system), "");
        let fault = faults.first().filter(|fault| fault["status"]["phase"] == "InForce")?;
        Some(fault["spec"]["node"].as_str().expect("a node").to_owned())
    });
    let began = Instant::now();
    let on_node = |pods: Vec<Value>| pods.into_iter().find(|pod| pod["spec"]["nodeName"] == node.as_str()).unwrap_or_else(|| panic!("a pod on {node}"));
    let agent = on_node(cluster.objects("pods", Some(&installed.system), "steadfast.dev/part=agent"));
    let agent = process(&cluster, &installed, agent["metadata"]["name"].as_str().expect("a name")).expect("a process of this machine");
    let pod = on_node(space.list("pods"));
    let address: SocketAddr = format!("{}:4180", pod["status"]["podIP"].as_str().expect("an address")).parse().expect("an address");
    let hears = || cluster.inside(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok());
    // Neither who made it can take it back, nor can anybody be told to.
    kill(agent, Signal::SIGSTOP).expect("frozen");
    let frozen = Frozen(agent);
    let Some(cut) = cluster.cut_api() else { return };
    assert!(!hears(), "cut off, {:?} after it was", began.elapsed());
    while !hears() {
        assert!(began.elapsed() < Duration::from_secs(50), "still cut off after {:?}", began.elapsed());
    }
    let took = began.elapsed();
    println!("heard again {:.1} s after it was cut off for 20 s, by nobody's word", took.as_secs_f64());
    assert!(took > Duration::from_secs(15), "before its time: {took:?}");
    drop((cut, frozen));
    finished(&space, "cut", installed.state());
    nothing_kept(&cluster, &installed, &space, 90);
}

/// A process that stands still, until this is dropped.
struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        // Kubelet may have ended it.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn what_is_interrupted_or_halted_is_undone() {
    let Some(cluster) = cluster_alone(Installation::EveryFailure) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_with(&cluster, &EVERY_FAILURE);
    let _allowed = NodesAllowed::new(&cluster);
    let space = cluster.namespace_with("halted", ASKS);
    digits(&space, 2);
    let before = changeable(&cluster, &space);
    let folder = tempfile::TempDir::new().expect("a folder");

    let text = test("interrupted", "  baseline: 1s\n  steps: [{name: cordon, cordon: {nodes: {mode: all}}, for: 5m}]\n");
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, text).expect("written");
    let mut command = cluster.command(STEADFAST);
    command.args(["run", "--platform", "kubernetes", "--namespace", space.name()]).arg(&file).current_dir(folder.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("steadfast runs");
    space.wait(60, format_args!("closed nodes\n{}", installed.state()), || (changeable(&cluster, &space) != before).then_some(()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("interrupted");
    let ended = child.wait_with_output().expect("it was there");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert_eq!(changeable(&cluster, &space), before, "undone when the command has ended: {said}");
    assert!(kept(&cluster, &installed).is_empty() && space.list("resiliencetests").is_empty(), "{said}");

    // To nothing, and back before its time, since users have had enough.
    let halts = "  baseline: 2s\n  steps: [{name: none, scale: {replicas: 0}, for: 5m}]\n  halt: [{availability: {below: 50%, for: 3s}}]\n";
    space.apply(&test("halts", halts));
    space.wait(60, format_args!("no pod\n{}", installed.state()), || space.pods("app=digits").is_empty().then_some(()));
    let status = finished(&space, "halts", installed.state());
    assert!(status["verdict"] == "halted" && status["reason"].as_str().is_some_and(|reason| reason.contains("below the halt at 50%")), "{status:#}");
    eventually_as_before(&cluster, &installed, &space, &before, 20);
    space.wait_injected("app=digits", 2);

    // Nobody is there who could take a test up: interrupted, it goes with its command.
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        cluster.kubectl(&["--namespace", &installed.system, "scale", "deployment/steadfast-controller", &replicas]).expect("scaled")
    };
    let replicas = ["--namespace", &installed.system, "get", "deployment/steadfast-controller", "-o", "jsonpath={.spec.replicas}"];
    let replicas = cluster.kubectl(&replicas).expect("its size");
    scale("0");
    let gone = ["--namespace", &installed.system, "wait", "--for=delete", "pod", "--selector", "app.kubernetes.io/name=steadfast", "--timeout=120s"];
    cluster.kubectl(&gone).expect("nobody leads");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("steadfast runs");
    space.wait(30, "the test", || space.list("resiliencetests").iter().any(|test| test["metadata"]["generateName"] == "interrupted-").then_some(()));
    let began = Instant::now();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("interrupted");
    let ended = child.wait_with_output().expect("it was there");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(3) && said.contains("is deleted again") && began.elapsed() < Duration::from_secs(10), "{:?}: {said}", began.elapsed());
    assert!(space.list("resiliencetests").iter().all(|test| test["metadata"]["generateName"] != "interrupted-"), "{said}");

    scale(replicas.trim());
    let ready = ["--namespace", &installed.system, "rollout", "status", "deployment/steadfast-controller", "--timeout=120s"];
    cluster.kubectl(&ready).unwrap_or_else(|why| panic!("{why}\n{}", installed.state()));

    // A taint that no controller tolerates, wherever it may be made, and then no controller: one comes back, and takes it back.
    space.apply(&test("tainted", "  baseline: 1s\n  steps: [{name: taint, taint: {nodes: {mode: all}, key: example.com/maintenance}, for: 5m}]\n"));
    space.wait(60, format_args!("a taint\n{}", installed.state()), || (changeable(&cluster, &space) != before).then_some(()));
    let controllers = ["--namespace", &installed.system, "delete", "pods", "--selector", "app.kubernetes.io/name=steadfast", "--grace-period=0", "--force"];
    cluster.kubectl(&controllers).expect("killed");
    eventually_as_before(&cluster, &installed, &space, &before, 90);
    finished(&space, "tainted", installed.state());
}

fn finished(space: &Namespace<'_>, name: &str, state: impl Display) -> serde_json::Value {
    space.wait(120, format_args!("the end of {name}\n{state}"), || {
        let status = space.get(&format!("resiliencetest/{name}"))?["status"].clone();
        (status["phase"] == "Finished").then_some(status)
    })
}
