//! How far are the marks of an outage on a real cluster from the truth? The model servers write down when each thing really happened, and an observer of this test's own
//! watches the API server and the machine's processes. Everything is on CLOCK_MONOTONIC, which the nodes of a cluster on one machine share.
//!
//! | mark | truth |
//! |---|---|
//! | t0 fault | pods: the observer heard of the deletion, or as long before as the API server takes for one. Nodes: the power was switched, from the switch's begin to its end |
//! | t1 first failure | nodes: the same as t0; one of three pods is asked at random, so within five intervals. Killed pods that take their leave lose no request |
//! | t2 detected | pods: the same. Nodes: the observer heard that the node is not Ready |
//! | t3, t10 endpoint | the observer heard of it |
//! | t4 created, t5 scheduled, t9 ready | the observer heard of it |
//! | t6 sidecar up | its process listens |
//! | t7 container started | the server's `main` began. Kubelet tells up to a second later, and nobody else can: not judged, but printed |
//! | t8 model loaded | the server's ready path answers 200 |
//! | t11, first correct prediction, t12 | the server wrote its first (right) answer; no golden replays here |
//!
//! `STEADFAST_TRUTH=full` (`just truth`, 15 minutes): 50 killed pods and 5 nodes that lose their power, of which the 95th percentile of each mark's error is judged. Else
//! three killed pods, of which the median is, by four intervals: one of three that came late on a busy machine says nothing. In short form lost nodes are not here: `watches`
//! switches one off, and asks for t0 and t1 of it.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use steadfast_api::{
    mark::{Mark, Outage},
    report::Report,
};

use crate::{
    experiments::{ASKS, golden_set, run, test},
    failures::{NodesAllowed, PowerStation},
    harness::{Cluster, IMAGE, Installation, Namespace, cluster_alone},
    install::install_with,
};

/// 50 requests a second over three pods: each is asked so often.
const INTERVAL_MS: f64 = 60.0;
/// Intervals that a mark may be from the truth in short form: that runs wherever tests do, beside whatever else such a machine does, and finds marks that mean something
/// else, which are seconds away.
const SHORT_INTERVALS: f64 = 4.0;
/// Where a sidecar listens for users, as the kernel writes it.
const SIDECAR_PORT: &str = ":1054 ";
const LISTENS: &str = " 0A ";

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}

/// What was seen first when: by what happened and to whom (a pod's UID, a node).
type Firsts = Arc<Mutex<HashMap<(&'static str, String), u64>>>;

fn saw(firsts: &Firsts, what: &'static str, whom: &str, at: u64) {
    firsts.lock().expect("nobody panics with it").entry((what, whom.to_owned())).or_insert(at);
}

/// Watches until it is dropped.
struct Observer {
    firsts: Firsts,
    children: Vec<Child>,
    threads: Vec<JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

impl Observer {
    fn start(cluster: &Cluster, space: &Namespace<'_>) -> Self {
        let firsts = Firsts::default();
        let over = Arc::new(AtomicBool::new(false));
        let mut observer = Self { firsts: Arc::clone(&firsts), children: Vec::new(), threads: Vec::new(), over: Arc::clone(&over) };
        let pods = "{.type}|{.object.metadata.uid}|{.object.metadata.name}|{.object.metadata.deletionTimestamp}|{.object.spec.nodeName}|{.object.status.conditions[?(@.type==\"Ready\")].status}|{\"\\n\"}";
        observer.watch(cluster, &["--namespace", space.name(), "get", "pods"], pods, |firsts, fields, at| {
            let [kind, uid, name, deleted, node, ready, ..] = fields else { return };
            saw(firsts, "created", name, at);
            if *kind == "DELETED" || !deleted.is_empty() {
                saw(firsts, "deleted", uid, at);
            }
            if !node.is_empty() {
                saw(firsts, "scheduled", name, at);
            }
            if *ready == "True" {
                saw(firsts, "ready", name, at);
            }
        });
        let slices = "{.type}|{.object.endpoints[*].targetRef.uid}|{.object.endpoints[*].targetRef.name}|{.object.endpoints[*].conditions.ready}|{\"\\n\"}";
        let mut there: HashMap<String, bool> = HashMap::new();
        observer.watch(cluster, &["--namespace", space.name(), "get", "endpointslices"], slices, move |firsts, fields, at| {
            let [_, uids, names, ready, ..] = fields else { return };
            let mut now = HashMap::new();
            for ((uid, name), ready) in uids.split(' ').zip(names.split(' ')).zip(ready.split(' ')) {
                now.insert(uid.to_owned(), ready == "true");
                if ready == "true" {
                    saw(firsts, "added", name, at);
                }
            }
            for (uid, _) in there.iter().filter(|(uid, was)| **was && now.get(*uid) != Some(&true)) {
                saw(firsts, "removed", uid, at);
            }
            there = now;
        });
        let nodes = "{.type}|{.object.metadata.name}|{.object.status.conditions[?(@.type==\"Ready\")].status}|{\"\\n\"}";
        let mut was: HashMap<String, bool> = HashMap::new();
        observer.watch(cluster, &["get", "nodes"], nodes, move |firsts, fields, at| {
            let [_, name, ready, ..] = fields else { return };
            if was.insert((*name).to_owned(), *ready == "True") == Some(true) && *ready != "True" {
                // A node may be lost more than once.
                firsts.lock().expect("nobody panics with it").insert(("lost", format!("{name} {}", at / 1_000_000)), at);
            }
        });
        observer.threads.push(thread::spawn(move || sidecars(&firsts, &over)));
        observer
    }

    fn watch(&mut self, cluster: &Cluster, what: &[&str], path: &str, mut take: impl FnMut(&Firsts, &[&str], u64) + Send + 'static) {
        let mut child = cluster
            .command("kubectl")
            .args(what)
            .args(["--watch", "--output-watch-events", "-o", &format!("jsonpath={path}")])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("kubectl");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        let firsts = Arc::clone(&self.firsts);
        self.threads.push(thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                take(&firsts, &line.split('|').collect::<Vec<_>>(), now());
            }
        }));
        self.children.push(child);
    }

    fn end(mut self) -> HashMap<(&'static str, String), u64> {
        self.over.store(true, Ordering::Relaxed);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for thread in std::mem::take(&mut self.threads) {
            thread.join().expect("an observer");
        }
        self.firsts.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// When each sidecar's process listens, by the UID of its pod.
fn sidecars(firsts: &Firsts, over: &AtomicBool) {
    let mut known: HashMap<i32, Option<String>> = HashMap::new();
    while !over.load(Ordering::Relaxed) {
        let pids: Vec<i32> = std::fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        known.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            // A process that is about to become a sidecar has another name still.
            if known.get(&pid).is_none_or(Option::is_some)
                && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "steadfast-proxy")
            {
                let uid = known.entry(pid).or_insert_with(|| pod_of(pid)).clone();
                let listens = |line: &str| line.contains(SIDECAR_PORT) && line.contains(LISTENS);
                if let Some(uid) = uid
                    && ["tcp", "tcp6"]
                        .iter()
                        .any(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).is_ok_and(|table| table.lines().any(listens)))
                {
                    saw(firsts, "sidecar", &uid, now());
                    known.insert(pid, None);
                }
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn pod_of(pid: i32) -> Option<String> {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    // Either `pod` and the UID, or with underscores, by the driver of the cgroups.
    let uids = cgroup.split("pod").skip(1).filter_map(|rest| Some(rest.get(..36)?.replace('_', "-")));
    uids.into_iter().find(|uid| uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'))
}

/// What one server wrote down.
fn written(folder: &Path, pod: &str, event: &str) -> Option<u64> {
    let text = std::fs::read_to_string(folder.join(format!("{pod}.jsonl"))).ok()?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == event).find_map(|line| line["monotonic_ns"].as_u64())
}

/// As [`crate::experiments::digits`], with servers that write down what happens to them.
fn servers(space: &Namespace<'_>, folder: &Path) {
    golden_set(space, "digits");
    // Users ask its samples; a replay would be a server's first answer, and no user's.
    space.kubectl(&["patch", "goldenset/digits", "--type=merge", "-p", r#"{"spec":{"selector":{"matchLabels":{"app":"nobody"}}}}"#]).expect("patched");
    space.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: digits}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: digits}}}}
  template:
    metadata: {{labels: {{app: digits}}}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations:
        - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}}
        - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}}
      topologySpreadConstraints: [{{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: digits}}}}}}]
      volumes: [{{name: truth, hostPath: {{path: {}}}}}]
      containers:
        - name: server
          image: {IMAGE}
          imagePullPolicy: Never
          env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
          args: [serve, /golden-sets/digits, --host, 0.0.0.0, --port, '8000', --load-seconds, '0.4', --truth-file, /truth/$(POD).jsonl]
          volumeMounts: [{{name: truth, mountPath: /truth}}]
          ports: [{{name: http, containerPort: 8000}}]
          readinessProbe: {{httpGet: {{path: /v2/health/ready, port: http}}, periodSeconds: 1}}
          resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: digits}}
spec: {{selector: {{app: digits}}, ports: [{{name: http, port: 80, targetPort: http}}]}}
",
        folder.display()
    ));
    space.wait_ready("app=digits", 3);
}

#[derive(Default)]
struct Table {
    /// Mark − truth, in milliseconds.
    errors: BTreeMap<Mark, Vec<f64>>,
    missing: Vec<String>,
}

impl Table {
    fn add(&mut self, outage: &Outage, mark: Mark, truth: Option<f64>) {
        match (outage.marks.get(mark), truth) {
            (Some(at), Some(truth)) => self.errors.entry(mark).or_default().push(at - truth),
            (at, truth) => self.missing.push(format!("{mark:?} of {}: report {at:?}, truth {truth:?}", outage.pod)),
        }
    }

    /// Prints it; the marks that are further from the truth than users ask.
    fn judge(&mut self, what: &str) -> Vec<String> {
        println!("{:<24} {:>5} {:>9} {:>9} {:>9} {:>9}   ms, mark − truth, {what}", "mark", "n", "min", "p50", "p95 |·|", "max");
        let mut wrong = std::mem::take(&mut self.missing);
        for (mark, errors) in &mut self.errors {
            errors.sort_by(f64::total_cmp);
            let mut far: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
            far.sort_by(f64::total_cmp);
            let p95 = far[(far.len() * 95).div_ceil(100) - 1];
            let p50 = errors[errors.len() / 2];
            println!("{:<24} {:>5} {:>9.2} {p50:>9.2} {p95:>9.2} {:>9.2}", format!("{mark:?}"), errors.len(), errors[0], errors[errors.len() - 1]);
            // Of a few, one that came late because the machine was busy says nothing: there the median is judged.
            let judged = if full() { p95 } else { far[far.len() / 2] };
            let allowed = match (mark, full()) {
                (Mark::FirstFailure, _) => 5.0 * INTERVAL_MS,
                (_, true) => INTERVAL_MS,
                (_, false) => SHORT_INTERVALS * INTERVAL_MS,
            };
            if *mark != Mark::ContainerStarted && judged > allowed {
                wrong.push(format!("{mark:?} is {judged:.1} ms from the truth, which is more than {allowed} ms, and a pod is asked every {INTERVAL_MS} ms"));
            }
        }
        wrong
    }
}

fn measure(cluster: &Cluster, space: &Namespace<'_>, folder: &Path, text: &str, station: &PowerStation) -> (Report, Table) {
    let observer = Observer::start(cluster, space);
    // Until it watches, which kubectl does not tell.
    thread::sleep(Duration::from_secs(2));
    // t0 is when it was asked for.
    let asked_before = space.deletion_takes().as_secs_f64() * 1e3;
    println!("the API server takes {asked_before:.1} ms at most to delete a pod");
    let ended = run(cluster, space, text);
    let firsts = observer.end();
    let report = ended.report.unwrap_or_else(|| panic!("{}", ended.said));
    let zero = report.run.started_monotonic_ns.expect("the run's zero");
    let ms = |at: u64| (at as f64 - zero as f64) / 1e6;
    let mut table = Table::default();
    for outage in &report.outages {
        let new = outage.replacement.as_deref().unwrap_or_default();
        let seen = |what: &'static str, whom: &str| firsts.get(&(what, whom.to_owned())).copied().map(ms);
        let t0 = outage.marks.get(Mark::Fault).expect("t0");
        let first_after = |what: &str, whom: &str| {
            let those = firsts.iter().filter(|((kind, name), _)| *kind == what && name.split(' ').next() == Some(whom)).map(|(_, at)| ms(*at));
            those.filter(|at| *at > t0).min_by(f64::total_cmp)
        };
        let powered = station.switched().into_iter().filter(|(node, ..)| *node == outage.node).map(|(_, from, until)| (ms(from), ms(until)));
        // By node: the switch that is nearest.
        let switch = powered.min_by(|a, b| (a.0 - t0).abs().total_cmp(&(b.0 - t0).abs())).filter(|_| text.contains("nodeFailure"));
        let (fault, detected) = if let Some((from, until)) = switch {
            (Some(t0.clamp(from, until)), first_after("lost", &outage.node))
        } else {
            let heard = seen("deleted", &outage.uid);
            (heard.map(|heard| t0.clamp(heard - asked_before, heard)), heard)
        };
        table.add(outage, Mark::Fault, fault);
        if let Some((from, until)) = switch {
            // Nobody answered from then on: users know first.
            table.add(outage, Mark::FirstFailure, outage.marks.get(Mark::FirstFailure).map(|first| first.clamp(from, until)));
        }
        table.add(outage, Mark::Detected, detected);
        table.add(outage, Mark::EndpointRemoved, seen("removed", &outage.uid));
        table.add(outage, Mark::ReplacementCreated, seen("created", new));
        table.add(outage, Mark::Scheduled, seen("scheduled", new));
        let uid = report.pods.iter().find(|pod| pod.name == new).map(|pod| pod.uid.as_str()).unwrap_or_default();
        table.add(outage, Mark::Initialized, seen("sidecar", uid));
        let wrote = |event: &str| written(folder, new, event).map(ms);
        table.add(outage, Mark::ContainerStarted, wrote("started"));
        table.add(outage, Mark::ModelLoaded, wrote("ready"));
        table.add(outage, Mark::Ready, seen("ready", new));
        table.add(outage, Mark::EndpointAdded, seen("added", new));
        table.add(outage, Mark::FirstGoodResponse, wrote("firstAnswer"));
        table.add(outage, Mark::FirstCorrectPrediction, wrote("firstRightAnswer"));
        table.add(outage, Mark::Sustained, wrote("firstAnswer"));
    }
    (report, table)
}

#[test]
fn every_mark_of_killed_pods_is_within_one_request_interval_of_the_truth() {
    let count = if full() { 50 } else { 3 };
    hold(count, "{name: killed, podKill: {pods: {mode: one}}}", &format!("{count} pods killed"));
}

#[test]
fn every_mark_of_nodes_without_power_is_within_one_request_interval_of_the_truth() {
    if full() {
        hold(5, "{name: lost, nodeFailure: {nodes: {mode: one}}, for: 75s}", "5 nodes without power");
    } else {
        eprintln!("not run: it takes 8 minutes; `just truth` runs it, and a test of watches switches one node off");
    }
}

fn full() -> bool {
    std::env::var("STEADFAST_TRUTH").as_deref() == Ok("full")
}

fn hold(rounds: usize, step: &str, what: &str) {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if cluster.is_elsewhere() {
        eprintln!("not run: the processes of this cluster cannot be seen from here");
        return;
    }
    let nodes = cluster.nodes();
    let _power: Vec<_> = nodes.iter().filter_map(|node| cluster.power(node)).collect();
    let station = PowerStation::start(&cluster);
    // Who measures must not wait for a processor while containers start beside it.
    let _installed = install_with(&cluster, &["failures.nodes=true", &format!("powerHook.url={}", station.url()), "resources.requests.cpu=500m"]);
    let _allowed = NodesAllowed::new(&cluster);
    let folder = tempfile::TempDir::new_in("/var/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("its owner");
    let space = cluster.namespace_with("truth", ASKS);
    servers(&space, folder.path());
    let spec = format!("  baseline: 3s\n  steps: [{step}]\n  stable: {{within: 3m, hold: 2s}}\n  rounds: {rounds}\n  seed: 5\n");
    let text = test("truth", &spec);
    let (report, mut table) = measure(&cluster, &space, folder.path(), &text, &station);
    assert!(report.outages.len() >= rounds && report.recovery.censored == 0, "{:?}", report.verdict);
    let wrong = table.judge(what);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
