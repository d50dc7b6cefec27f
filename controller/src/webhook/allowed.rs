//! NetworkPolicies that let users in by a server's number, or clients out to it: with the sidecar they come by its number, and would be cut off. The port's name goes along.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::{Selector, SelectorExt};

use super::past::Taken;

/// A rule that users of a port do not pass any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CutOff {
    /// Index in the policy's `ingress`, or `egress`.
    pub rule: usize,
    /// The server's.
    pub number: i32,
    /// By which they would pass.
    pub name: String,
}

/// Pods whose ports are taken over, as policies of their clients can mean them.
#[derive(Clone, Copy, Debug)]
pub struct Servers<'a> {
    /// In the policy's own namespace.
    pub is_here: bool,
    /// As far as they are known.
    pub namespace_labels: &'a BTreeMap<String, String>,
    pub labels: &'a BTreeMap<String, String>,
    pub taken: &'a [Taken],
}

/// Whether a policy says who may reach pods with these labels.
pub fn selects(policy: &NetworkPolicy, labels: &BTreeMap<String, String>) -> bool {
    let spec = policy.spec.clone().unwrap_or_default();
    let is_ingress = spec.policy_types.as_ref().is_none_or(|kinds| kinds.iter().any(|kind| kind == "Ingress"));
    is_ingress && Selector::try_from(spec.pod_selector.unwrap_or_default()).is_ok_and(|selector| selector.matches(labels))
}

/// The rules of a policy that cut users off from a pod whose ports are taken over so.
pub fn cut_off(policy: &NetworkPolicy, taken: &[Taken]) -> Vec<CutOff> {
    let rules = policy.spec.iter().flat_map(|spec| spec.ingress.iter().flatten()).enumerate();
    by_number_alone(rules.map(|(rule, says)| (rule, says.ports.as_ref())), taken)
}

/// The rules by which the clients that a policy selects do not reach these pods any more. Policies are asked after a Service's address has become a pod's, and so about
/// the sidecar's number.
pub fn kept_from(policy: &NetworkPolicy, servers: &Servers<'_>) -> Vec<CutOff> {
    let is_egress = |kinds: &Vec<String>| kinds.iter().any(|kind| kind == "Egress");
    let spec = policy.spec.as_ref().filter(|spec| spec.policy_types.as_ref().is_none_or(is_egress));
    let rules = spec.into_iter().flat_map(|spec| spec.egress.iter().flatten()).enumerate();
    let meant = rules.filter(|(_, says)| says.to.as_ref().is_none_or(|to| to.is_empty() || to.iter().any(|peer| is_meant(peer, servers))));
    by_number_alone(meant.map(|(rule, says)| (rule, says.ports.as_ref())), servers.taken)
}

/// Whether a peer is these pods. A block of addresses is not known to be theirs.
fn is_meant(peer: &NetworkPolicyPeer, servers: &Servers<'_>) -> bool {
    let selects =
        |selector: &LabelSelector, labels: &BTreeMap<String, String>| Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels));
    peer.ip_block.is_none()
        && peer.namespace_selector.as_ref().map_or(servers.is_here, |selector| selects(selector, servers.namespace_labels))
        && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, servers.labels))
}

fn by_number_alone<'a>(rules: impl Iterator<Item = (usize, Option<&'a Vec<NetworkPolicyPort>>)>, taken: &[Taken]) -> Vec<CutOff> {
    let mut found: Vec<CutOff> = rules
        // Without ports a rule lets everybody through by every port.
        .filter_map(|(rule, ports)| ports.filter(|ports| !ports.is_empty()).map(|ports| (rule, ports)))
        .flat_map(|(rule, ports)| {
            let cut = |port: &&Taken| {
                let by_number = |number: i32| ports.iter().any(|allowed| is_number(allowed, number));
                by_number(port.server) && !by_number(port.sidecar) && !ports.iter().any(|allowed| is_name(allowed, &port.name))
            };
            taken.iter().filter(cut).map(move |port| CutOff { rule, number: port.server, name: port.name.clone() }).collect::<Vec<_>>()
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn is_tcp(allowed: &NetworkPolicyPort) -> bool {
    allowed.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

fn is_number(allowed: &NetworkPolicyPort, number: i32) -> bool {
    is_tcp(allowed)
        && match &allowed.port {
            None => true,
            Some(IntOrString::Int(first)) => (*first..=allowed.end_port.unwrap_or(*first)).contains(&number),
            Some(IntOrString::String(_)) => false,
        }
}

fn is_name(allowed: &NetworkPolicyPort, name: &str) -> bool {
    is_tcp(allowed) && matches!(&allowed.port, Some(IntOrString::String(allowed)) if allowed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &str) -> NetworkPolicy {
        serde_saphyr::from_str(&format!("spec: {spec}")).unwrap()
    }

    #[test]
    fn a_rule_by_number_cuts_users_off_unless_the_name_or_the_sidecar_is_let_in_too() {
        let taken = [Taken { name: "http".into(), sidecar: 4180, server: 8000 }, Taken { name: "grpc".into(), sidecar: 4181, server: 8001 }];
        let found = |rules: &str| cut_off(&policy(&format!("{{podSelector: {{}}, ingress: {rules}}}")), &taken);
        let cut = |rule: usize, number: i32, name: &str| CutOff { rule, number, name: name.into() };
        assert_eq!(found("[{ports: [{port: 8000}]}]"), [cut(0, 8000, "http")]);
        assert_eq!(found("[{from: []}, {ports: [{port: 8000, protocol: TCP}, {port: 8001}]}]"), [cut(1, 8000, "http"), cut(1, 8001, "grpc")]);
        assert_eq!(found("[{ports: [{port: 7000, endPort: 8000}]}]"), [cut(0, 8000, "http")]);
        for right in [
            "[]",
            "[{}]",
            "[{ports: []}]",
            "[{ports: [{protocol: TCP}]}]",
            "[{ports: [{port: http}]}]",
            "[{ports: [{port: 8000}, {port: http}]}]",
            "[{ports: [{port: 8000}, {port: 4180}]}]",
            "[{ports: [{port: 4000, endPort: 9000}]}]",
            "[{ports: [{port: 8000, protocol: UDP}]}]",
            "[{ports: [{port: 9000}]}]",
        ] {
            assert_eq!(found(right), [], "{right}");
        }
    }

    #[test]
    fn clients_who_may_dial_the_number_alone_are_cut_off_where_the_rule_means_these_pods() {
        let labels = |yaml: &str| -> BTreeMap<String, String> { serde_saphyr::from_str(yaml).unwrap() };
        let (namespace, pod) = (labels("{kubernetes.io/metadata.name: models}"), labels("{app: x}"));
        let taken = [Taken { name: "http".into(), sidecar: 4180, server: 8000 }];
        let found = |is_here: bool, spec: &str| {
            kept_from(&policy(&format!("{{podSelector: {{}}, {spec}}}")), &Servers { is_here, namespace_labels: &namespace, labels: &pod, taken: &taken }).len()
        };
        let to = |is_here: bool, peers: &str| found(is_here, &format!("egress: [{{to: [{peers}], ports: [{{port: 8000}}]}}]"));
        for (peers, here, elsewhere) in [
            ("", 1, 1),
            ("{podSelector: {matchLabels: {app: x}}}", 1, 0),
            ("{podSelector: {matchLabels: {app: y}}}", 0, 0),
            ("{namespaceSelector: {}}", 1, 1),
            ("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: models}}, podSelector: {matchLabels: {app: x}}}", 1, 1),
            ("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}", 0, 0),
            ("{ipBlock: {cidr: 10.0.0.0/8}}", 0, 0),
            ("{podSelector: {matchLabels: {app: y}}}, {podSelector: {}}", 1, 0),
        ] {
            assert_eq!((to(true, peers), to(false, peers)), (here, elsewhere), "{peers}");
        }
        for (spec, cut) in [
            ("egress: [{ports: [{port: 8000}, {port: http}]}]", 0),
            ("egress: [{}]", 0),
            ("policyTypes: [Ingress], egress: [{ports: [{port: 8000}]}]", 0),
            ("ingress: [{ports: [{port: 8000}]}]", 0),
            ("policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}, {ports: [{port: 8000}]}]", 1),
        ] {
            assert_eq!(found(true, spec), cut, "{spec}");
        }
    }

    #[test]
    fn a_policy_speaks_for_the_pods_that_it_selects_and_of_those_who_come_in() {
        let labels: BTreeMap<_, _> = [("app".to_owned(), "x".to_owned())].into();
        for (spec, says) in [
            ("{podSelector: {}}", true),
            ("{podSelector: {matchLabels: {app: x}}}", true),
            ("{podSelector: {matchLabels: {app: y}}}", false),
            ("{podSelector: {matchExpressions: [{key: app, operator: In, values: [x, y]}]}}", true),
            ("{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}", false),
            ("{podSelector: {}, policyTypes: [Egress]}", false),
            ("{podSelector: {}, policyTypes: [Egress, Ingress]}", true),
        ] {
            assert_eq!(selects(&policy(spec), &labels), says, "{spec}");
        }
    }
}
