//! Fault policies: which requests, which faults, how much at most, until when. Nothing is armed without a budget and an expiry.

mod rule;

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use rule::{ConnectionFault, ConnectionRule, DrawnFault, GrpcMatch, Identity, Match, PathMatch, Rule};

use crate::{
    FaultKind, Percent, Size, Span,
    fault::{Cpu, Memory},
};

/// `FaultPolicy.spec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultPolicySpec {
    /// Which pods. A sidecar that is given a policy directly is meant by it, whatever this says.
    #[serde(default, skip_serializing_if = "LabelSelector::is_empty")]
    pub selector: LabelSelector,
    /// From arming to disarming, by the sidecar's own clock.
    pub expires_after: Span,
    pub budget: Budget,
    /// The first rule that matches a request decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rules: Vec<Rule>,
    /// What happens to connections before anything is read from them. The first that matches decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub connections: Vec<ConnectionRule>,
    /// Who may ask for faults by header. Absent: nobody, and the header is stripped and counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeaderTrust>,
    /// Fault golden replays too. Without it they are exempt, so that a fault does not look like drift.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub golden_replays: bool,
    /// Burn CPU for as long as the policy is armed, whatever is requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_pressure: Option<Cpu>,
    /// Hold memory for as long as the policy is armed, whatever is requested. `budget.memory` must allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pressure: Option<Memory>,
    /// Hold the pod down for as long as the policy is armed: connections are refused and the sidecar is unready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_down: bool,
    /// Close the port for as long as the policy is armed: new connections are refused, open ones go on, and readiness stays as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuse: bool,
}

impl FaultPolicySpec {
    /// A policy that does nothing yet.
    pub fn new(budget: Budget, expires_after: Span) -> Self {
        Self {
            selector: LabelSelector::default(),
            expires_after,
            budget,
            rules: Vec::new(),
            connections: Vec::new(),
            headers: None,
            golden_replays: false,
            cpu_pressure: None,
            memory_pressure: None,
            held_down: false,
            refuse: false,
        }
    }
}

/// Labels that a pod must carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

impl LabelSelector {
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// The most that a policy may do at once. What exceeds it passes unharmed and is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Faults in progress at one moment.
    #[schemars(range(min = 1, max = 100_000))]
    pub concurrent: u32,
    /// Share of all requests that may be faulted, over the last 1,000 requests.
    pub share: Percent,
    /// Faults that may begin within any second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub per_second: Option<u32>,
    /// Faults that may begin for as long as the policy is armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub total: Option<u64>,
    /// Memory that may be held at one moment, in each sidecar. Without it, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
}

impl Budget {
    /// Bounded by these two alone.
    pub const fn new(concurrent: u32, share: Percent) -> Self {
        Self { concurrent, share, per_second: None, total: None, memory: None }
    }
}

/// Whose `steadfast-fault` headers count, and how far they may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderTrust {
    pub trust: Trust,
    pub allow: Vec<FaultKind>,
    /// A longer delay, stall or blackhole is refused with 400.
    #[serde(default = "two_seconds")]
    pub max_delay: Span,
    /// A longer or absent `for` of a CPU burn, or of memory that is held, is refused with 400.
    #[serde(default = "ten_seconds")]
    pub max_cpu_duration: Span,
    /// Envoy's headers `x-envoy-fault-*` are understood too, where `steadfast-fault` is absent. The model server does not see them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub envoy_headers: bool,
}

const fn two_seconds() -> Span {
    Span::from_secs(2)
}

const fn ten_seconds() -> Span {
    Span::from_secs(10)
}

/// Clients whose connection comes from one of these networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trust {
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpNet>,
    /// Of them, those alone whom this header names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// What a sidecar shall have armed from now on, all of it: the next snapshot replaces this one. Empty disarms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")] // a newer controller may say more
pub struct PolicySnapshot {
    /// Rises with every change; a sidecar ignores a generation of the same epoch that is not newer than its own.
    pub generation: u64,
    /// Names the controller's process: generations of another epoch count anew.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub epoch: String,
    #[serde(default)]
    pub policies: Vec<NamedPolicy>,
    /// Golden sets to replay, all of them; fetched from the controller by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<GoldenAssignment>,
    /// Stay out of the Service although the server is ready. Ends by the sidecar's own clock unless it is said again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unready: Option<Unready>,
}

/// Policies of one snapshot: all that is armed in one pod at a time by its controller.
pub const POLICIES_MAX: usize = 32;
/// Golden sets assigned to one pod.
pub const GOLDEN_SETS_MAX: usize = 16;
/// All golden sets assigned to one pod together, as tars: the sidecar holds them in memory, and each costs about three times as much there.
pub const GOLDEN_BYTES_MAX: usize = 32 << 20;

/// A golden set that a sidecar shall replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenAssignment {
    /// Name in metrics and reports.
    pub name: String,
    /// `sha256:…`: the set's content, as a tar at `/v1alpha1/golden-sets/{digest}`.
    pub digest: String,
    pub every: Span,
    /// At most this share of the pod's requests, while it has any.
    pub share: Percent,
    /// Bound on the chance that one test ever raises a false alarm, as decimal text such as `3e-8`. A test begins with every sample, so false alarms are at least
    /// 1/alpha samples apart on average.
    pub alpha: String,
    /// The smallest share of wrong answers that must be seen.
    #[serde(default = "one_percent")]
    pub detect: Percent,
}

fn one_percent() -> Percent {
    Percent::from_ratio(0.01)
}

/// Why a pod shall be unready, and for how long at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unready {
    pub reason: String,
    pub expires_after: Span,
}

/// A policy under the name that metrics and reports use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedPolicy {
    pub name: String,
    pub spec: FaultPolicySpec,
}

/// Whose doing an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// The model server answered.
    Upstream,
    /// A fault that somebody asked for answered.
    Injected,
    /// The sidecar answered: the model server could not be reached, or the request was refused.
    Proxy,
}

impl Origin {
    pub const ALL: [Self; 3] = [Self::Upstream, Self::Injected, Self::Proxy];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Injected => "injected",
            Self::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Response header that names what was injected, e.g. `delay;ms=250`. Its presence says that a fault touched this answer.
pub const INJECTED_HEADER: &str = "steadfast-injected";
/// Response header of answers that the model server did not give: `injected` or `proxy`. Absent on the model server's own answers.
pub const ORIGIN_HEADER: &str = "steadfast-origin";
/// Request header that asks for faults.
pub const FAULT_HEADER: &str = "steadfast-fault";
/// Response header that names the pod. The local platform's gateway always gives it, a sidecar to requests that ask by the same header, `steadfast-pod: ?1`.
pub const POD_HEADER: &str = "steadfast-pod";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{from_yaml, to_yaml};

    const POLICY: &str = r"
selector: {matchLabels: {app: recommender}}
expiresAfter: 10m
budget: {concurrent: 100, share: 20%}
rules:
  - match: {methods: [POST], path: {prefix: /v2/models/}, model: recommender}
    share: 10%
    faults: [{delay: {fixed: 250ms, jitter: 50ms}}, {abort: {httpStatus: 503}, share: 25%}]
headers: {trust: {addresses: [127.0.0.0/8]}, allow: [delay, abort], maxDelay: 2s}
";

    #[test]
    fn a_policy_survives_writing_and_reading() {
        let policy: FaultPolicySpec = from_yaml("policy.yaml", POLICY).unwrap();
        assert_eq!(policy.rules[0].faults[1].share, Percent::from_ratio(0.25));
        let written = to_yaml(&policy).unwrap();
        assert_eq!(from_yaml::<FaultPolicySpec>("again.yaml", &written).unwrap(), policy, "{written}");
    }

    #[test]
    fn a_policy_without_budget_or_expiry_is_refused() {
        for (line, field) in [("expiresAfter: 10m\n", "expiresAfter"), ("budget: {concurrent: 100, share: 20%}\n", "budget")] {
            let error = from_yaml::<FaultPolicySpec>("policy.yaml", &POLICY.replace(line, "")).unwrap_err();
            assert!(error.message.contains(field), "{error}");
        }
    }

    #[test]
    fn a_fault_is_exactly_one_and_within_its_range() {
        for (wrong, says) in [
            ("{abort: {httpStatus: 999}}", "200 to 599"),
            ("{share: 25%}", "exactly one of delay, abort, cpu, corrupt"),
            ("{abort: {}}", "give httpStatus"),
            ("{abort: {httpStatus: 503}, corrupt: {}}", "make them two entries"),
        ] {
            let text = POLICY.replace("{abort: {httpStatus: 503}, share: 25%}", wrong);
            let error = from_yaml::<FaultPolicySpec>("policy.yaml", &text).unwrap_err();
            assert!(error.message.contains(says) && error.line == 8, "{error}");
        }
    }
}
