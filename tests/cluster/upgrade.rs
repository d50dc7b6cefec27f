//! From one version to the next: the controller is rolled out anew under load, no request is lost, what is armed stays, and the new one is in charge.

use std::time::{Duration, Instant};

use crate::{
    experiments::ASKS,
    harness::{Installation, Namespace, cluster_alone},
    injection::{Users, ask, service},
    install::install_anew,
};

/// The policy `slow`, for the model and the app of one name.
pub(crate) fn slow(model: &str) -> String {
    format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: FaultPolicy
metadata: {{name: slow}}
spec:
  selector: {{matchLabels: {{app: {model}}}}}
  expiresAfter: 10m
  budget: {{concurrent: 100, share: 100%}}
  rules: [{{match: {{model: {model}}}, faults: [{{delay: {{fixed: 300ms}}}}]}}]
"
    )
}

/// What stands about the policy `slow`.
pub(crate) fn standing(space: &Namespace<'_>) -> Option<String> {
    Some(space.get("faultpolicy/slow")?["status"]["conditions"][0]["reason"].as_str()?.to_owned())
}

#[test]
fn an_upgrade_under_load_loses_no_request_and_what_is_armed_stays_armed() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_anew(&cluster, &[]);
    let space = cluster.namespace_with("upgrade", ASKS);
    let pods = space.recommender("recommender", 2, "");
    let to = service(&space, "recommender");
    space.apply(&slow("recommender"));
    space.wait(20, "a policy in force", || (standing(&space)? == "Armed").then_some(()));
    let controllers = || {
        let names = cluster.kubectl(&["--namespace", &installed.system, "get", "pods", "--selector", "app.kubernetes.io/name=steadfast", "-o", "name"]);
        let mut names: Vec<String> = names.expect("listed").lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    let before = controllers();

    let users = Users::start(cluster.everywhere(), to);
    // A value that changes the pods of the controller, as another image would.
    installed.upgrade(&["resources.requests.cpu=51m"]);
    // Whoever led has handed over by then, or the Lease has run out.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        let asked = Instant::now();
        cluster.inside(|| ask(to)).expect("an answer");
        assert!(asked.elapsed() >= Duration::from_millis(300), "what was armed stays, whoever leads");
    }
    let (good, failed) = users.stop();
    println!("{good} requests answered during and after the upgrade");
    assert!(good > 50, "{good}");
    assert_eq!(failed, []);
    assert!(controllers().iter().all(|pod| !before.contains(pod)), "every pod of the controller is a new one");
    assert_eq!(space.pods("app=recommender"), pods, "and every sidecar the old one");
    // The new controller is in charge of the old sidecars.
    space.kubectl(&["delete", "faultpolicy/slow"]).expect("deleted");
    space.wait(30, "quick answers", || {
        let asked = Instant::now();
        cluster.inside(|| ask(to)).expect("an answer");
        (asked.elapsed() < Duration::from_millis(250)).then_some(())
    });
}
