//! Rules: which requests and connections a policy means, and what happens to them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FaultKind, Percent,
    fault::{Abort, Blackhole, Corrupt, Cpu, DelayFault, Fault, Memory, Reset, Slice, Stall, Throttle, Truncate},
};

/// Requests that match, and what happens to `share` of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    #[serde(default, rename = "match", skip_serializing_if = "Match::is_empty")]
    pub matches: Match,
    #[serde(default = "hundred")]
    pub share: Percent,
    /// Draw by this header's value and not by chance: a user whose requests all carry the same value keeps one fate, in every sidecar. Requests without it are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_by_header: Option<String>,
    /// Only the first so many requests that match, in each sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub first: Option<u64>,
    /// Only one request in so many of those that match, in each sidecar: `every: 5` means the fifth, the tenth and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub every: Option<u64>,
    /// Drawn independently of each other.
    #[schemars(length(min = 1, max = 16))]
    pub faults: Vec<DrawnFault>,
}

const fn hundred() -> Percent {
    Percent::HUNDRED
}

impl Rule {
    /// `fault` for `share` of all requests.
    pub fn of_all(fault: Fault, share: Percent) -> Self {
        let faults = vec![DrawnFault { fault, share: Percent::HUNDRED }];
        Self { matches: Match::default(), share, share_by_header: None, first: None, every: None, faults }
    }
}

/// Every field that is given must match. Readiness and liveness paths of the Open Inference Protocol and golden replays never do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Parameters of the query and the exact values that they must have, decoded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// The model in `/v2/models/{model}/…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The version in `/v2/models/{model}/versions/{version}/…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Calls of gRPC alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcMatch>,
    /// Header names (in any case) and the exact values they must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Who asks, as a header says that a proxy before this one has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Networks one of which the client's connection must come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub clients: Vec<IpNet>,
}

impl Match {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `{exact: /v2}`, `{prefix: /v2/models/}` or `{regex: "/v[12]/.*"}`, which must match the whole path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    Exact(String),
    Prefix(String),
    Regex(String),
}

/// A call's service and method, both as they stand in its path: `/{service}/{method}`. What is not given may be any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// A header that names the client, and the values one of which it must have. Believe it only where a proxy sets it that clients cannot go around.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    pub header: String,
    pub any_of: Vec<String>,
}

/// Connections, and what happens to `share` of them before anything is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionRule {
    /// Networks one of which the connection must come from. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub clients: Vec<IpNet>,
    #[serde(default = "hundred")]
    pub share: Percent,
    pub fault: ConnectionFault,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ConnectionFault {
    /// TCP RST as soon as it is open.
    Reset,
    /// It is taken, and nothing is ever read or answered for as long as the policy is armed.
    Blackhole,
}

impl ConnectionFault {
    pub const fn kind(self) -> FaultKind {
        match self {
            Self::Reset => FaultKind::Reset,
            Self::Blackhole => FaultKind::Blackhole,
        }
    }
}

/// A fault and the share of the rule's requests that it falls on: `{abort: {httpStatus: 503}, share: 25%}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "DrawnFaultFields", into = "DrawnFaultFields")]
#[schemars(with = "DrawnFaultFields")]
pub struct DrawnFault {
    pub fault: Fault,
    pub share: Percent,
}

/// Writes the fields of a one-of and both ways between them and [`DrawnFault`].
macro_rules! one_of {
    ($($field:ident: $kind:ident($type:ty)),*) => {
        #[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct DrawnFaultFields {
            $(
                #[serde(default, skip_serializing_if = "Option::is_none")]
                $field: Option<$type>,
            )*
            #[serde(default, skip_serializing_if = "Option::is_none")]
            share: Option<Percent>,
        }

        impl DrawnFaultFields {
            fn faults(self) -> (Vec<Fault>, Option<Percent>) {
                ([$(self.$field.map(Fault::$kind)),*].into_iter().flatten().collect(), self.share)
            }
        }

        impl From<DrawnFault> for DrawnFaultFields {
            fn from(drawn: DrawnFault) -> Self {
                let mut fields = Self { share: Some(drawn.share), ..Self::default() };
                match drawn.fault {
                    $(Fault::$kind(fault) => fields.$field = Some(fault),)*
                }
                fields
            }
        }
    };
}

one_of! {
    delay: Delay(DelayFault),
    abort: Abort(Abort),
    cpu: Cpu(Cpu),
    corrupt: Corrupt(Corrupt),
    reset: Reset(Reset),
    truncate: Truncate(Truncate),
    throttle: Throttle(Throttle),
    stall: Stall(Stall),
    slice: Slice(Slice),
    blackhole: Blackhole(Blackhole),
    memory: Memory(Memory)
}

impl TryFrom<DrawnFaultFields> for DrawnFault {
    type Error = String;

    fn try_from(fields: DrawnFaultFields) -> Result<Self, String> {
        let (mut faults, share) = fields.faults();
        let names = FaultKind::names();
        match faults.as_slice() {
            [_] => Ok(Self { fault: faults.remove(0), share: share.unwrap_or(Percent::HUNDRED) }),
            [] => Err(format!("a fault names exactly one of {names}; this one names none")),
            [first, second, ..] => {
                Err(format!("a fault names exactly one of {names}; this one names {} and {}: make them two entries of the list", first.kind(), second.kind()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{from_yaml, to_yaml};

    #[test]
    fn every_fault_survives_writing_and_reading() {
        let faults = [
            "{delay: {fixed: 5ms}}",
            "{abort: {grpcCode: 14}}",
            "{cpu: {load: 80%}}",
            "{corrupt: {events: drop, eventShare: 20%}}",
            "{reset: {afterBytes: 1Ki, http2Code: 8}}",
            "{truncate: {afterBytes: 100}}",
            "{throttle: {bytesPerSecond: 64Ki}}",
            "{stall: {for: 2s, at: tokens}, share: 50%}",
            "{slice: {bytes: 10, pause: 5ms}}",
            "{blackhole: {}}",
            "{memory: {bytes: 16Mi, for: 1s}}",
        ];
        for (text, kind) in faults.into_iter().zip(FaultKind::ALL) {
            let drawn: DrawnFault = from_yaml("fault", text).unwrap();
            assert_eq!(drawn.fault.kind(), kind);
            let written = to_yaml(&drawn).unwrap();
            assert_eq!(from_yaml::<DrawnFault>("again", &written).unwrap(), drawn, "{written}");
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn a_rule_survives_writing_and_reading() {
        let text = r#"
match:
  path: {regex: "/v[12]/.*"}
  query: {a: "1"}
  version: "3"
  grpc: {service: inference.GRPCInferenceService}
  identity: {header: x-client, anyOf: [tests]}
  clients: [10.0.0.0/8]
shareByHeader: x-user
first: 10
every: 5
faults: [{blackhole: {}}]
"#;
        let rule: Rule = from_yaml("rule", text).unwrap();
        let written = to_yaml(&rule).unwrap();
        assert_eq!(from_yaml::<Rule>("again", &written).unwrap(), rule, "{written}");
    }
}
