//! What sidecar and controller say to each other: numbered evidence up, policy snapshots down, both as JSON lines.
//!
//! `GET /v1alpha1/connection?uid=…` with `Upgrade: steadfast-sidecar` makes an HTTP/1.1 connection the sidecar's own: from the answer 101 on there are lines in both directions
//! and no more HTTP, because ten thousand of them shall fit into a small controller. Down come [`PolicySnapshot`](crate::policy::PolicySnapshot) lines and [`Answer`]s, up go
//! [`SidecarReport`] lines, at least once: the controller drops what it has by (`uid`, `sequence`). `GET /v1alpha1/golden-sets/{digest}` answers a golden set that was
//! assigned to the pod, as a tar. Both want `Authorization: Bearer …`.
//!
//! Times are nanoseconds on the sidecar's own monotonic clock since its start. `sent_ns` beside them lets the receiver place them on its own clock to
//! within the time that the message travelled: nobody's wall clock decides a mark.
//!
//! Sidecars live as long as their pods, so for a while each side is older than the other. Fields that a reader does not know are passed over; evidence and lines of
//! a kind that it does not know are passed over and counted ([`SidecarReport::read`], [`read_snapshot`]). A policy is the exception: a word in it that is not known could be
//! what narrows it, so a policy that is not wholly understood is not armed, and the sidecar says so ([`What::Policy`]). The same goes for one that it understands and that cannot
//! be; the others of the snapshot are armed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::Value;

use crate::{
    FaultKind,
    golden::{Outcome, Verdict},
    policy::{GoldenAssignment, NamedPolicy, Origin, POLICIES_MAX, PolicySnapshot, Unready},
};

/// Where sidecars dial in.
pub const CONNECTION_PATH: &str = "/v1alpha1/connection";
/// What they say in `Upgrade`.
pub const CONNECTION_UPGRADE: &str = "steadfast-sidecar";
/// Request header that says which protocol the sidecar speaks, as `major` or `major.minor`; without it, [`PROTOCOL_MAJOR`] is meant. The controller names its own
/// in every answer, and refuses a major version that it does not speak with 426.
pub const PROTOCOL_HEADER: &str = "steadfast-protocol";
/// Rises when an old sidecar could misunderstand a new controller, or the reverse. New fields and new addresses do not raise it.
pub const PROTOCOL_MAJOR: u32 = 1;
/// Audience of the service-account tokens by which sidecars prove which pod they stand in.
pub const TOKEN_AUDIENCE: &str = "steadfast.dev";

/// Which pod a sidecar stands in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    pub name: String,
    pub uid: String,
    pub node: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// One message of a sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarReport {
    pub pod: PodIdentity,
    /// From 1, without gaps, for as long as the sidecar lives.
    pub sequence: u64,
    /// When this message was written, on the sidecar's clock.
    pub sent_ns: u64,
    pub evidence: Vec<Evidence>,
    /// Evidence that was dropped because the controller was away for longer than the sidecar's bounded memory reaches.
    pub dropped: u64,
}

/// A line of the controller about reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Every report up to this number was taken; the sidecar sends the next.
    Acknowledged(u64),
    /// Why a report was not taken; the connection ends with it.
    Refused(String),
}

/// Something that a sidecar saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    pub at_ns: u64,
    #[serde(flatten)]
    pub what: What,
}

/// The kinds of evidence, a one-of by key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// The model server's readiness changed: `ready` by its readiness path, polled every 20 ms while it is not ready.
    Upstream { ready: bool },
    /// A golden sample was replayed.
    Golden(GoldenReplay),
    /// The sequential verdict of a golden set, after every replay that changed it.
    GoldenVerdict {
        set: String,
        /// Of the set, where a controller assigned it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
        verdict: Verdict,
        samples: u64,
        mismatches: u64,
    },
    /// Which snapshot is in force.
    Policy {
        generation: u64,
        armed: bool,
        /// Names of its policies that this sidecar does not understand, or that cannot be, and so has not armed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        refused: Vec<String>,
    },
    /// What passed since the last such line.
    Requests(RequestWindow),
}

/// One replay of one sample. `at_ns` of its evidence is when the answer had been compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenReplay {
    pub set: String,
    pub sample: String,
    pub outcome: Outcome,
    pub latency_ns: u64,
    /// For a mismatch: what differed, by how much. For no answer: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Counts of one window of time. Golden replays are not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestWindow {
    pub window_ns: u64,
    pub responses: Vec<ResponseCount>,
    pub injected: Vec<InjectedCount>,
    /// Faults that a policy called for and its budget refused.
    pub over_budget: u64,
    pub latency_p50_ns: u64,
    pub latency_p99_ns: u64,
    /// CPU time that policies with `cpuPressure` took, as their threads' own clocks tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub burned: Vec<BurnedTime>,
}

/// CPU time that a policy took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BurnedTime {
    pub policy: String,
    pub cpu_ns: u64,
}

/// Responses by origin and status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseCount {
    pub origin: Origin,
    pub status: u16,
    pub count: u64,
}

/// Faults that took place, by kind and by the policy (or `header`) that asked for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InjectedCount {
    pub policy: String,
    pub kind: FaultKind,
    pub count: u64,
}

impl SidecarReport {
    /// A report, and how many pieces of its evidence are of a kind that this reader does not know.
    ///
    /// # Errors
    /// When it is no report.
    pub fn read(line: &[u8]) -> Result<(Self, u64), serde_json::Error> {
        // Nearly always.
        let error = match serde_json::from_slice::<Self>(line) {
            Ok(report) => return Ok((report, 0)),
            Err(error) => error,
        };
        let mut value: Value = serde_json::from_slice(line)?;
        let Some(Value::Array(evidence)) = value.get_mut("evidence").map(Value::take) else { return Err(error) };
        if !evidence.iter().all(|piece| piece["atNs"].is_u64()) {
            return Err(error);
        }
        let all = evidence.len();
        let known: Vec<Value> = evidence.into_iter().filter(|piece| Evidence::deserialize(piece).is_ok()).collect();
        let unknown = (all - known.len()) as u64;
        value["evidence"] = Value::Array(known);
        Ok((serde_json::from_value(value)?, unknown))
    }
}

/// Longest list of policies that a sidecar names as not armed.
pub const REFUSED_MAX: usize = POLICIES_MAX;

/// What a line of the controller says, as far as its reader understands it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadSnapshot {
    /// `None`: a line of a kind that is not known.
    pub snapshot: Option<PolicySnapshot>,
    /// Parts that were passed over.
    pub unknown: u64,
    /// Names of policies among them.
    pub refused: Vec<String>,
}

/// See the module.
///
/// # Errors
/// When the line is no JSON object, or a snapshot of which not even the generation can be read.
pub fn read_snapshot(line: &[u8]) -> Result<ReadSnapshot, serde_json::Error> {
    if let Ok(snapshot) = serde_json::from_slice::<PolicySnapshot>(line) {
        return Ok(ReadSnapshot { snapshot: Some(snapshot), ..ReadSnapshot::default() });
    }
    let mut value: Value = serde_json::from_slice(line)?;
    let Some(object) = value.as_object_mut() else { return Err(serde_json::Error::custom("a line is an object")) };
    if !object.contains_key("generation") {
        return Ok(ReadSnapshot { unknown: 1, ..ReadSnapshot::default() });
    }
    let mut read = ReadSnapshot::default();
    if let Some(Value::Array(policies)) = object.get_mut("policies") {
        policies.retain(|policy| {
            let known = NamedPolicy::deserialize(policy).is_ok();
            if !known {
                read.unknown += 1;
                read.refused.push(policy["name"].as_str().unwrap_or("without a name").to_owned());
            }
            known
        });
        read.refused.truncate(REFUSED_MAX);
    }
    if let Some(Value::Array(golden)) = object.get_mut("golden") {
        let all = golden.len();
        golden.retain(|assignment| GoldenAssignment::deserialize(assignment).is_ok());
        read.unknown += (all - golden.len()) as u64;
    }
    if object.get("unready").is_some_and(|unready| !unready.is_null() && Unready::deserialize(unready).is_err()) {
        object.remove("unready");
        read.unknown += 1;
    }
    read.snapshot = Some(serde_json::from_value(value)?);
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_of_a_kind_that_is_not_known_is_counted_and_the_rest_of_the_report_is_taken() {
        let report = |evidence: &str| {
            format!(r#"{{"pod":{{"name":"p","uid":"u","node":"n","zone":"z"}},"sequence":7,"sentNs":9,"evidence":[{evidence}],"dropped":0,"weather":"fine"}}"#)
        };
        let known = r#"{"atNs":1,"upstream":{"ready":true,"since":"later"}}"#;
        let (read, unknown) = SidecarReport::read(report(known).as_bytes()).unwrap();
        assert_eq!((read.evidence.len(), unknown), (1, 0), "fields that are not known are passed over");
        let newer = r#"{"atNs":2,"tokens":{"perSecond":7}},{"atNs":3,"golden":{"set":"s","sample":"a","outcome":"Dreamt","latencyNs":1}}"#;
        let (read, unknown) = SidecarReport::read(report(&format!("{known},{newer}")).as_bytes()).unwrap();
        assert_eq!((read.sequence, read.evidence.len(), unknown), (7, 1, 2));
        for bad in [report("7"), report(r#"{"upstream":{"ready":true}}"#), r#"{"sequence":1}"#.to_owned(), "nonsense".to_owned()] {
            assert!(SidecarReport::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_that_is_not_wholly_understood_is_left_out_and_named_and_the_others_stay() {
        let policy = |name: &str, more: &str| format!(r#"{{"name":"{name}","spec":{{"expiresAfter":"1h","budget":{{"concurrent":1,"share":"1%"}}{more}}}}}"#);
        let line = format!(
            r#"{{"generation":5,"epoch":"e","mood":"good","policies":[{},{},{}],"golden":[{{"name":"g"}}],"unready":{{"because":"x"}}}}"#,
            policy("known", ""),
            policy("newer", r#","onlyOnTuesdays":true"#),
            policy("other", r#","rules":[{"faults":[{"teleport":{}}]}]"#),
        );
        let read = read_snapshot(line.as_bytes()).unwrap();
        let snapshot = read.snapshot.unwrap();
        assert_eq!(snapshot.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>(), ["known"]);
        assert_eq!((read.refused, read.unknown, snapshot.generation, snapshot.unready), (vec!["newer".to_owned(), "other".to_owned()], 4, 5, None));
        // Another kind of line altogether.
        assert_eq!(read_snapshot(br#"{"greeting":"hello"}"#).unwrap(), ReadSnapshot { unknown: 1, ..ReadSnapshot::default() });
        assert!(read_snapshot(b"[]").is_err() && read_snapshot(b"nonsense").is_err() && read_snapshot(br#"{"generation":"x"}"#).is_err());
    }
}
