//! Tests without steps: what nobody planned is seen, told and measured, for as long as the test stands.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use steadfast_api::{
    mark::{Mark, Outage},
    report::{Report, RunOutcome},
};

use crate::{
    experiments::{digits, run, test},
    harness::{Cluster, Installation, Namespace, Power, STEADFAST, cluster_alone},
    install::install,
    truth::now,
};

pub(crate) fn report(space: &Namespace<'_>, name: &str) -> Report {
    let map = space.get(&format!("configmap/{name}")).unwrap_or_else(|| panic!("no ConfigMap {name}"));
    let packed = STANDARD.decode(map["binaryData"]["report.json.gz"].as_str().expect("a report")).expect("base64");
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("a report")
}

/// The status once `is_so`.
fn status(space: &Namespace<'_>, seconds: u64, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    space.wait(seconds, what, || {
        let status = space.get("resiliencetest/watch")?["status"].clone();
        is_so(&status).then_some(status)
    })
}

/// The pod that leads, and its node.
fn leader(cluster: &Cluster, system: &str) -> (String, String) {
    let holder = cluster.kubectl(&["--namespace", system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"]).expect("a lease");
    let node = cluster.kubectl(&["--namespace", system, "get", "pod", holder.trim(), "-o", "jsonpath={.spec.nodeName}"]).expect("the leader");
    (holder.trim().to_owned(), node.trim().to_owned())
}

pub(crate) fn metrics(cluster: &Cluster, system: &str) -> String {
    let (pod, _) = leader(cluster, system);
    cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{system}/pods/{pod}:8080/proxy/metrics")]).expect("metrics")
}

/// A node with pods of the target that lost its power between two moments of CLOCK_MONOTONIC, in nanoseconds.
struct WithoutPower<'a> {
    _power: Power<'a>,
    node: String,
    pods: u64,
    /// The users' pod stood there too: nobody asks until there is another one.
    users_too: bool,
    from: u64,
    until: u64,
}

/// A node goes off that holds pods of the target: the leader's, or another.
fn without_power<'a>(cluster: &'a Cluster, space: &Namespace<'_>, system: &str, with_leader: bool) -> Option<WithoutPower<'a>> {
    space.kubectl(&["scale", "deployment/digits", "--replicas=3"]).expect("scaled");
    space.wait_ready("app=digits", 3);
    let (_, of_leader) = leader(cluster, system);
    let pods = space.list("pods");
    let stands = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && (pod["spec"]["nodeName"] == of_leader.as_str()) == with_leader;
    let users = cluster.objects("pods", Some(system), "steadfast.dev/part=users");
    let of_users = |node: &Value| users.iter().any(|pod| pod["spec"]["nodeName"] == *node);
    let elsewhere = pods.iter().filter(stands).find(|pod| !of_users(&pod["spec"]["nodeName"]));
    let pod = elsewhere.or_else(|| pods.iter().find(stands)).unwrap_or_else(|| panic!("no pod on such a node; the leader's is {of_leader}"));
    let node = pod["spec"]["nodeName"].as_str().expect("it has a node").to_owned();
    let on_it = pods.iter().filter(stands).filter(|pod| pod["spec"]["nodeName"] == node.as_str()).count() as u64;
    let users_too = of_users(&pod["spec"]["nodeName"]);
    let power = cluster.power(&node)?;
    let from = now();
    power.off();
    Some(WithoutPower { _power: power, node, pods: on_it, users_too, from, until: now() })
}

impl WithoutPower<'_> {
    /// The outage that the report tells of: of one of its pods.
    fn outage<'r>(&self, report: &'r Report) -> &'r Outage {
        report.outages.iter().find(|outage| outage.node == self.node).unwrap_or_else(|| panic!("{:?}", report.outages))
    }

    fn check(&self, report: &Report) {
        let outage = self.outage(report);
        let zero = report.run.started_monotonic_ns.expect("the window's zero");
        let [from, until] = [self.from, self.until].map(|at| (at as f64 - zero as f64) / 1e6);
        println!("a node without power, from {from:.0} to {until:.0} ms: {outage:#?}");
        // One of three is asked 17 times a second, at random.
        let told = report.run.notes.iter().any(|note| note.starts_with("Nobody asked for"));
        assert!(told || !self.users_too, "{:?}", report.run.notes);
        let marks = if self.users_too { &[Mark::Fault][..] } else { &[Mark::Fault, Mark::FirstFailure] };
        for mark in marks {
            let at = outage.marks.get(*mark).unwrap_or_else(|| panic!("no {mark:?}: {outage:?}"));
            assert!(at >= from - 50.0 && at <= until + 500.0, "{mark:?} at {at}, and the power went from {from} to {until}: {outage:?}");
        }
        let (least, _) = report.run.timers.as_ref().expect("timers").node_called_lost();
        let detected = outage.marks.between(Mark::Fault, Mark::Detected).expect("the cluster noticed");
        assert!(outage.node_lost && outage.fault.is_none() && detected + 1000.0 >= least.get().as_secs_f64() * 1000.0, "{outage:?}");
        let unasked = if self.users_too { 20_000.0 } else { 2000.0 };
        assert!(outage.routing_outage_ms.is_some_and(|outage| outage >= detected - unasked), "users met nobody until then: {outage:?}");
    }

    /// The leader went with it: the next one cannot know when that was, and says so.
    fn check_bounds(&self, report: &Report) {
        let outage = self.outage(report);
        let zero = report.run.started_monotonic_ns.expect("the window's zero");
        let from = (self.from as f64 - zero as f64) / 1e6;
        println!("the leader's node without power, from {from:.0} ms: {outage:#?}\n{:?}", report.verdict);
        assert!(outage.began_before && outage.node_lost && outage.cause.ends_with("(since before anybody watched)"), "{outage:?}");
        // From the moment on at which somebody watched again, which is the begin of the window.
        let [begun, failed] = [Mark::Fault, Mark::FirstFailure].map(|mark| outage.marks.get(mark).unwrap_or_else(|| panic!("no {mark:?}: {outage:?}")));
        assert!(from < 0.0 && begun.abs() < 1.0 && failed < 2000.0, "{outage:?}");
        let detected = outage.marks.between(Mark::Fault, Mark::Detected).expect("the cluster noticed");
        let (least, most) = report.run.timers.as_ref().expect("timers").node_called_lost();
        let after_power = detected - from;
        assert!(after_power + 1000.0 >= least.get().as_secs_f64() * 1000.0 && after_power <= most.get().as_secs_f64() * 1000.0 + 15_000.0, "{outage:?}");
        assert!(outage.routing_outage_ms.is_some_and(|outage| outage >= detected - 2000.0), "users met nobody until then: {outage:?}");
        let availability = report.total.availability.ratio.expect("users asked");
        assert!(availability < 1.0 && report.verdict.outcome == RunOutcome::Inconclusive, "{availability}: {:?}", report.verdict);
    }
}

#[test]
fn what_nobody_planned_is_seen_for_as_long_as_the_test_stands() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    let installed = install(&cluster);
    // Nobody has leave to break anything here.
    let space = cluster.namespace_with("watch", "steadfast.dev/inject: 'true'");
    digits(&space, 3);
    // A node may take all three pods with it, for half of a window or more, and that must not be enough to fail it.
    space.apply(&test("watch", "  window: 11s\n  stable: {within: 60s, hold: 3s}\n  hypothesis: [{availability: {atLeast: 5%}}]\n"));
    status(&space, 60, "a watch", |status| status["progress"].as_str().is_some_and(|words| words.starts_with("watching")));
    let quiet = status(&space, 60, "a window", |status| status["windows"] == 1);
    assert_eq!((&quiet["verdict"], &quiet["outages"], &quiet["phase"]), (&"pass".into(), &0.into(), &"Running".into()), "{quiet:#}");

    let lost = space.pods("app=digits").swap_remove(0);
    space.kubectl(&["delete", "pod", &lost, "--wait=false", "--grace-period=0", "--force"]).expect("deleted");
    let told = status(&space, 90, "news of the outage", |status| status["outages"] == 1);
    let words = told["lastOutage"].as_str().unwrap_or_default();
    assert!(words.starts_with(&format!("{lost} on ")) && words.contains("first right prediction after"), "{words}");
    assert!(told["recovery"].as_str().is_some_and(|words| words.ends_with('s')), "{told:#}");
    let seen = report(&space, "steadfast-outage-watch");
    let outage = seen.outages.first().expect("it is in the report");
    assert_eq!((seen.outages.len(), outage.pod.as_str(), outage.fault, outage.censored), (1, lost.as_str(), None, false), "{:?}", seen.outages);
    for mark in
        [Mark::Detected, Mark::EndpointRemoved, Mark::ReplacementCreated, Mark::ModelLoaded, Mark::EndpointAdded, Mark::FirstCorrectPrediction, Mark::Sustained]
    {
        assert!(outage.marks.get(mark).is_some(), "{mark:?} of {outage:?}");
    }
    let of = "involvedObject.name=watch,reason=Outage";
    space.wait(20, "the Event", || space.kubectl(&["get", "events", "--field-selector", of, "-o", "name"]).ok().filter(|names| !names.trim().is_empty()));

    let folder = tempfile::TempDir::new().expect("a folder");
    let page = folder.path().join("outage.html");
    let drawn =
        cluster.command(STEADFAST).args(["report", "--test", "watch", "--outage", "--namespace", space.name(), "--html"]).arg(&page).output().expect("it runs");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    assert!(std::fs::read_to_string(&page).expect("a page").contains(&lost), "the page tells of it");
    let none = cluster.command(STEADFAST).args(["report", "--test", "nobody", "--namespace", space.name()]).output().expect("it runs");
    assert!(none.status.code() == Some(2) && String::from_utf8_lossy(&none.stderr).contains("there is no ResilienceTest nobody"), "{none:?}");

    // What somebody asked for is no outage: fewer pods, and all of them anew.
    space.kubectl(&["scale", "deployment/digits", "--replicas=2"]).expect("scaled");
    space.kubectl(&["rollout", "restart", "deployment/digits"]).expect("restarted");
    space.kubectl(&["rollout", "status", "deployment/digits", "--timeout=90s"]).expect("rolled over");
    let windows = |status: &Value| status["windows"].as_u64().unwrap_or_default();
    let at = windows(&status(&space, 1, "the status", |_| true));
    let after = status(&space, 120, "two more windows", |status| windows(status) >= at + 2);
    assert_eq!(after["outages"], 1, "{after:#}");

    // Its controller dies: the next one goes on.
    let (leader, _) = leader(&cluster, &installed.system);
    cluster.kubectl(&["--namespace", &installed.system, "delete", "pod", &leader, "--grace-period=0", "--force"]).expect("killed");
    let at = windows(&after);
    let after = status(&space, 120, "a window of the next leader", |status| windows(status) > at);
    assert_eq!((&after["phase"], &after["outages"]), (&"Running".into(), &1.into()), "{after:#}");

    // Another spec is what it goes on with.
    space.kubectl(&["patch", "resiliencetest/watch", "--type=merge", "--patch", r#"{"spec": {"window": "10s"}}"#]).expect("patched");
    let at = windows(&after);
    let after = status(&space, 90, "two windows by the new spec", |status| status["observedGeneration"] == 2 && windows(status) >= at + 2);
    assert_eq!((&after["phase"], &after["outages"]), (&"Running".into(), &1.into()), "{after:#}");

    // An experiment runs beside it, and its outage is one that the watch sees.
    cluster.kubectl(&["label", "namespace", space.name(), "steadfast.dev/faults=allowed"]).expect("labelled");
    let text = test("beside", "  baseline: 3s\n  steps: [{name: killed, podKill: {pods: {mode: one}}}]\n  stable: {within: 60s, hold: 3s}\n");
    let ended = run(&cluster, &space, &text);
    let beside = ended.report.as_ref().unwrap_or_else(|| panic!("{}\n{}", ended.said, installed.state()));
    assert_eq!((beside.verdict.outcome, beside.outages.len()), (RunOutcome::Pass, 1), "{}", ended.said);
    status(&space, 60, "the second outage", |status| status["outages"] == 2);

    // So is that of a node without power, from that moment on: the cluster itself hears of it most of a minute later.
    let lost = without_power(&cluster, &space, &installed.system, false);
    let outages = if let Some(lost) = lost.as_ref() {
        let told = status(&space, 150, "news of the lost node", |status| status["outages"] == 2 + lost.pods);
        assert!(told["lastOutage"].as_str().is_some_and(|words| words.contains(&format!("node {} was lost", lost.node))), "{told:#}");
        lost.check(&report(&space, "steadfast-outage-watch"));
        2 + lost.pods
    } else {
        2
    };
    // Whoever leads now counts what it has seen itself.
    let counted = metrics(&cluster, &installed.system);
    let counter = format!("steadfast_watched_outages_total{{target_namespace=\"{}\",test=\"watch\"}} {}", space.name(), outages - 1);
    assert!(counted.contains(&counter), "{counter} of\n{counted}");

    // And where it is the leader's: nobody watched when it went, so nothing is said to be known that is not.
    let with_power = lost.is_some();
    drop(lost);
    if with_power && let Some(lost) = without_power(&cluster, &space, &installed.system, true) {
        let told = status(&space, 180, "news of the leader's node", |status| {
            status["lastOutage"].as_str().is_some_and(|words| words.contains(&format!("node {} was lost", lost.node)))
        });
        let words = told["lastOutage"].as_str().unwrap_or_default();
        assert!(words.contains("users saw failures for at least"), "{words}");
        lost.check_bounds(&report(&space, "steadfast-outage-watch"));
        drop(lost);
        space.wait_ready("app=digits", 3);
        let at = windows(&status(&space, 1, "the status", |_| true));
        status(&space, 180, "a window of a service that is well", |status| windows(status) > at && status["verdict"] == "pass");
    }

    space.kubectl(&["annotate", "resiliencetest/watch", "steadfast.dev/stop=now"]).expect("annotated");
    let ended = status(&space, 30, "its end", |status| status["phase"] == "Finished");
    assert!(ended["verdict"] == "pass" && ended["finishedAt"].is_string(), "{ended:#}");
}
