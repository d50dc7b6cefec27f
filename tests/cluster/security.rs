//! What docs/security.md claims of rights and ports, asked of a real API server and a real pod.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    experiments::{ASKS, digits},
    harness::{Cluster, cluster, cluster_alone},
    install::{install, install_with},
};

fn may(cluster: &Cluster, who: &str, namespace: &str, verb: &str, what: &str) -> bool {
    // After a slash kubectl expects a name.
    let (resource, part) = what.split_once('/').unwrap_or((what, ""));
    let part = format!("--subresource={part}");
    // The answer is also its exit status.
    cluster.kubectl(&["auth", "can-i", verb, resource, &part, "--namespace", namespace, "--as", who]).is_ok()
}

#[test]
fn nobody_has_a_right_that_was_not_asked_for() {
    let Some(cluster) = cluster_alone() else { return };
    let space = cluster.namespace("rights");
    for (values, granted) in [(&[][..], false), (&["nodeAgent.enabled=true", "failures.nodes=true", "failures.workloads=true"][..], true)] {
        let installed = install_with(&cluster, if granted { values } else { &["failures.workloads=false"] });
        let account = |name: &str| format!("system:serviceaccount:{}:{name}", installed.system);
        let controller = account("steadfast-controller");
        let others = space.name();
        for (verb, what, wanted) in [
            ("delete", "pods", true),
            ("create", "pods", false),
            ("create", "pods/exec", false),
            ("get", "secrets", false),
            ("list", "secrets", false),
            ("create", "clusterrolebindings.rbac.authorization.k8s.io", false),
            ("patch", "nodes", granted),
            ("patch", "deployments.apps", granted),
            ("delete", "deployments.apps", false),
            ("create", "nodefaults.steadfast.dev", false),
        ] {
            assert_eq!(may(&cluster, &controller, others, verb, what), wanted, "the controller in other namespaces, values {values:?}: {verb} {what}");
        }
        assert!(may(&cluster, &controller, &installed.system, "create", "nodefaults.steadfast.dev"));
        assert!(!may(&cluster, &controller, &installed.system, "list", "secrets"), "of its own namespace it reads the one that holds its certificates");
        let agent = account("steadfast-agent");
        for (verb, what, wanted) in [
            ("list", "nodefaults.steadfast.dev", granted),
            ("create", "nodefaults.steadfast.dev", false),
            ("patch", "nodefaults.steadfast.dev", false),
            ("get", "secrets", false),
            ("delete", "pods", false),
        ] {
            assert_eq!(may(&cluster, &agent, &installed.system, verb, what), wanted, "the agent, values {values:?}: {verb} {what}");
        }
    }
    // Pods that read golden sets are made where that is granted, and nowhere else.
    {
        let ungranted = cluster.namespace("ungranted");
        let installed = install_with(&cluster, &[&format!("goldenSets.readerNamespaces={{{}}}", space.name())]);
        let controller = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
        for (namespace, verb, what, wanted) in
            [(&space, "create", "pods", true), (&space, "get", "secrets", false), (&space, "create", "pods/exec", false), (&ungranted, "create", "pods", false)]
        {
            assert_eq!(may(&cluster, &controller, namespace.name(), verb, what), wanted, "readers, in {}: {verb} {what}", namespace.name());
        }
    }
    // People, by Kubernetes' own roles.
    let _installed = install(&cluster);
    for role in ["edit", "view"] {
        space.kubectl(&["create", "rolebinding", role, &format!("--clusterrole={role}"), &format!("--user={role}or")]).expect("bound");
    }
    let elsewhere = cluster.namespace("elsewhere");
    space.wait(20, "aggregated roles", || may(&cluster, "editor", space.name(), "create", "resiliencetests.steadfast.dev").then_some(()));
    for (who, namespace, verb, what, wanted) in [
        ("editor", &space, "create", "faultpolicies.steadfast.dev", true),
        ("editor", &space, "create", "nodefaults.steadfast.dev", false),
        ("editor", &elsewhere, "create", "resiliencetests.steadfast.dev", false),
        ("viewor", &space, "get", "resiliencetests.steadfast.dev", true),
        ("viewor", &space, "create", "resiliencetests.steadfast.dev", false),
    ] {
        assert_eq!(may(&cluster, who, namespace.name(), verb, what), wanted, "{who} in {}: {verb} {what}", namespace.name());
    }
}

#[test]
fn the_admin_port_is_reached_from_its_own_pod_alone() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("ports", ASKS);
    digits(&space, 1);
    let pods = space.list("pods");
    let address = pods[0]["status"]["podIP"].as_str().expect("an address").to_owned();
    let reached = |port: u16| {
        let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        cluster.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok())
    };
    if !cluster.is_elsewhere() {
        assert!(reached(4180) && reached(4179), "users and kubelet get in");
        assert!(!reached(4178), "the admin port listens on loopback alone");
    }
    // Neither does the way of users lead there.
    let said = space.ask("digits:80", "/policy");
    assert!(said.as_ref().map_or(true, |text| !text.contains("policies")), "{said:?}");
}
