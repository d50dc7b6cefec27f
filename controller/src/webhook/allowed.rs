//! NetworkPolicies that let users in by a server's number: with the sidecar they come by its number, and would be cut off. The port's name goes along.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::{Selector, SelectorExt};

use super::past::Taken;

/// A rule that users of a port do not pass any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CutOff {
    /// Index in the policy's `ingress`.
    pub rule: usize,
    /// The server's.
    pub number: i32,
    /// By which they would pass.
    pub name: String,
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
    let mut found: Vec<CutOff> = rules
        // Without ports a rule lets users in by every port.
        .filter_map(|(rule, says)| says.ports.as_ref().filter(|ports| !ports.is_empty()).map(|ports| (rule, ports)))
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
