//! Tests without steps: what nobody planned is seen, told and measured, for as long as the test stands.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use steadfast_api::{
    mark::Mark,
    report::{Report, RunOutcome},
};

use crate::{
    experiments::{digits, run, test},
    harness::{Namespace, STEADFAST, cluster_alone},
    install::install,
};

fn report(space: &Namespace<'_>, name: &str) -> Report {
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

#[test]
fn what_nobody_planned_is_seen_for_as_long_as_the_test_stands() {
    let Some(cluster) = cluster_alone() else { return };
    let installed = install(&cluster);
    // Nobody has leave to break anything here.
    let space = cluster.namespace_with("watch", "steadfast.dev/inject: 'true'");
    digits(&space, 3);
    space.apply(&test("watch", "  window: 15s\n  stable: {within: 60s, hold: 3s}\n  hypothesis: [{availability: {atLeast: 50%}}]\n"));
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
    let leader = cluster.kubectl(&["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"]).expect("a lease");
    cluster.kubectl(&["--namespace", &installed.system, "delete", "pod", leader.trim(), "--grace-period=0", "--force"]).expect("killed");
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

    space.kubectl(&["annotate", "resiliencetest/watch", "steadfast.dev/stop=now"]).expect("annotated");
    let ended = status(&space, 30, "its end", |status| status["phase"] == "Finished");
    assert!(ended["verdict"] == "pass" && ended["finishedAt"].is_string(), "{ended:#}");
}
