//! Versions of the API server and of kubelets, and what differs by them.

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::version::Info};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::{Finding, words};

/// Native sidecars, on by default.
const OLDEST: u32 = 29;
/// A preStop hook that sleeps, on by default.
const SLEEPING_HOOK: u32 = 30;
/// Newest that the tests of this version ran on.
const TESTED: u32 = 34;
const NODES_MAX: u32 = 5_000;

/// `1.34+` of a cloud is 34.
fn minor(of: &str) -> Option<u32> {
    of.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}

/// The minor version in `v1.34.4-gke.1`.
fn minor_of_git(version: &str) -> Option<u32> {
    minor(version.strip_prefix("v1.")?.split('.').next()?)
}

/// Whether a preStop hook may sleep, by what an API server calls itself; one whose words are not understood is taken for a new one.
pub(crate) fn hooks_sleep(info: &Info) -> bool {
    info.major != "1" || minor(&info.minor).is_none_or(|minor| minor >= SLEEPING_HOOK)
}

pub(super) fn of_server(info: &Info) -> Finding {
    let version = &info.git_version;
    let (Some(minor), "1") = (minor(&info.minor), info.major.as_str()) else {
        return Finding::warning("version", format!("the API server calls itself {version}, which is no version of Kubernetes 1"), "1.29 or later is needed");
    };
    match minor {
        ..OLDEST => Finding::blocked(
            "version",
            format!("Kubernetes {version} has no native sidecars: the sidecar would start, and the model server after it never"),
            "upgrade the cluster to 1.29 or later",
        ),
        OLDEST..SLEEPING_HOOK => Finding::warning(
            "version",
            format!("Kubernetes {version} has native sidecars, and no preStop hook that sleeps: pods that end may lose requests, with or without Steadfast"),
            "give model servers a preStop hook of their own, or upgrade to 1.30; the controller leaves its hook out here (`steadfast inject`: --leave-seconds 0)",
        ),
        SLEEPING_HOOK..=TESTED => Finding::ok("version", format!("Kubernetes {version} has all that is needed")),
        _ => Finding::ok("version", format!("Kubernetes {version} has all that is needed; it is newer than the newest that was tested, 1.{TESTED}")),
    }
}

pub(super) async fn of_nodes(client: &Client) -> Vec<Finding> {
    let nodes = match Api::<Node>::all(client.clone()).list_metadata(&ListParams::default().limit(1)).await {
        Ok(_) => Api::<Node>::all(client.clone()).list(&ListParams::default().limit(NODES_MAX)).await,
        Err(error) => Err(error),
    };
    match nodes {
        Ok(nodes) => judge(&nodes.items),
        Err(error) => vec![Finding::warning(
            "nodes",
            format!("nodes could not be looked at: {}", words(&error)),
            "ask somebody who may list nodes whether every kubelet is 1.29 or later",
        )],
    }
}

fn judge(nodes: &[Node]) -> Vec<Finding> {
    let info = |node: &Node| node.status.as_ref().and_then(|status| status.node_info.clone()).unwrap_or_default();
    let (linux, others): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| info(node).operating_system == "linux");
    let old: Vec<String> = linux
        .iter()
        .filter(|node| minor_of_git(&info(node).kubelet_version).is_some_and(|minor| minor < OLDEST))
        .map(|node| format!("{} ({})", node.name_any(), info(node).kubelet_version))
        .collect();
    let mut findings = Vec::new();
    if linux.is_empty() {
        findings.push(Finding::blocked("nodes", "there is no Linux node, and Steadfast runs on nothing else", "add a Linux node"));
    } else if old.is_empty() {
        findings.push(Finding::ok("nodes", format!("{} Linux nodes, every kubelet is 1.{OLDEST} or later", linux.len())));
    } else {
        findings.push(Finding::blocked(
            "nodes",
            format!("kubelets without native sidecars, on which an injected pod would never start: {}", old.join(", ")),
            "upgrade these nodes to 1.29 or later, or keep injected pods off them",
        ));
    }
    if !others.is_empty() {
        findings.push(Finding::ok("nodes", format!("{} nodes do not run Linux: pods that ask for them are not injected", others.len())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeStatus, NodeSystemInfo};

    use super::*;
    use crate::install::Severity;

    fn info(git: &str, minor: &str) -> Info {
        Info { major: "1".into(), minor: minor.into(), git_version: git.into(), ..Info::default() }
    }

    fn server(git: &str, minor: &str) -> Severity {
        of_server(&info(git, minor)).severity
    }

    #[test]
    fn no_hook_sleeps_before_it_is_known_how() {
        for (minor, sleeps) in [("29", false), ("29+", false), ("30", true), ("34+", true), ("x", true)] {
            assert_eq!(hooks_sleep(&info("", minor)), sleeps, "{minor}");
        }
    }

    #[test]
    fn versions_are_judged_by_what_they_can_do_however_clouds_write_them() {
        assert_eq!(server("v1.28.15", "28"), Severity::Blocked);
        assert_eq!(server("v1.29.7-gke.1008000", "29+"), Severity::Warning);
        assert_eq!(server("v1.30.0-eks-0", "30+"), Severity::Ok);
        assert_eq!(server("v1.99.0", "99"), Severity::Ok);
        assert_eq!(server("custom", "x"), Severity::Warning);
    }

    #[test]
    fn the_newest_tested_version_is_that_of_the_test_cluster() {
        let modules = include_str!("../../../tests/cluster/go.mod");
        let line = modules.lines().find(|line| line.trim().starts_with("k8s.io/kubernetes v")).expect("it is built from Kubernetes");
        assert_eq!(minor_of_git(line.trim().trim_start_matches("k8s.io/kubernetes ")), Some(TESTED));
    }

    #[test]
    fn an_old_kubelet_blocks_and_a_node_without_linux_does_not() {
        let node = |name: &str, system: &str, version: &str| {
            let info = NodeSystemInfo { operating_system: system.into(), kubelet_version: version.into(), ..NodeSystemInfo::default() };
            let mut node = Node { status: Some(NodeStatus { node_info: Some(info), ..NodeStatus::default() }), ..Node::default() };
            node.metadata.name = Some(name.into());
            node
        };
        let worst = |nodes: &[Node]| judge(nodes).iter().map(|finding| finding.severity).max();
        assert_eq!(worst(&[node("a", "linux", "v1.31.0"), node("w", "windows", "v1.27.0")]), Some(Severity::Ok));
        let old = judge(&[node("a", "linux", "v1.31.0"), node("b", "linux", "v1.28.3-eks-1")]);
        assert!(old[0].severity == Severity::Blocked && old[0].message.contains("b (v1.28.3-eks-1)") && !old[0].message.contains("a ("), "{old:?}");
        assert_eq!(worst(&[]), Some(Severity::Blocked));
    }
}
