//! The controller with named namespaces: what it does there it does as ever, and elsewhere it has no right and does nothing.

use crate::{
    harness::{Installation, Namespace, cluster_alone},
    install::install_with,
};

const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed";

fn has_sidecar(space: &Namespace<'_>, pod: &str) -> bool {
    space.get(&format!("pod/{pod}")).expect("it is there")["spec"]["initContainers"][0]["name"] == "steadfast-proxy"
}

#[test]
fn with_named_namespaces_it_works_in_those_and_has_no_right_in_others() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    let (here, too, elsewhere) = (cluster.namespace_with("here", ASKS), cluster.namespace_with("too", ASKS), cluster.namespace_with("elsewhere", ASKS));
    let installed = install_with(&cluster, &[&format!("watchNamespaces={{{},{}}}", here.name(), too.name())]);
    for space in [&here, &too] {
        let pods = space.recommender("recommender", 1, "");
        assert!(has_sidecar(space, &pods[0]));
        space.apply(
            "{apiVersion: steadfast.dev/v1alpha1, kind: FaultPolicy, metadata: {name: slow}, spec: {selector: {matchLabels: {app: recommender}}, expiresAfter: 5m, \
             budget: {concurrent: 9, share: 100%}, rules: [{faults: [{delay: {fixed: 10ms}}]}]}}",
        );
        space.wait(30, format_args!("a policy in force\n{}", installed.state()), || {
            (space.get("faultpolicy/slow")?["status"]["conditions"][0]["reason"] == "Armed").then_some(())
        });
    }
    let pods = elsewhere.recommender("recommender", 1, "");
    assert!(!has_sidecar(&elsewhere, &pods[0]), "though its namespace asks");
    let account = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
    let may =
        |verb: &str, what: &str, space: &Namespace<'_>| cluster.kubectl(&["auth", "can-i", verb, what, "--namespace", space.name(), "--as", &account]).is_ok();
    for (verb, what) in [("list", "pods"), ("delete", "pods"), ("get", "configmaps"), ("patch", "deployments.apps"), ("list", "resiliencetests.steadfast.dev")]
    {
        assert!(may(verb, what, &here) && !may(verb, what, &elsewhere), "{verb} {what}");
    }
    // Nothing is asked for that is not granted.
    let logs = cluster.kubectl(&["--namespace", &installed.system, "logs", "--selector", "app.kubernetes.io/name=steadfast", "--tail=200"]).expect("logs");
    assert!(!logs.contains("forbidden"), "{logs}");
}
