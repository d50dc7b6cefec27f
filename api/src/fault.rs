//! The faults: what can be done to a request, and how much. Both the `steadfast-fault` header and policies end as these types.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Span};

/// A kind of fault, as it is named in headers, policies, metrics and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    Delay,
    Abort,
    Cpu,
    Corrupt,
}

impl FaultKind {
    pub const ALL: [Self; 4] = [Self::Delay, Self::Abort, Self::Cpu, Self::Corrupt];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Cpu => "cpu",
            Self::Corrupt => "corrupt",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One fault. On the wire a one-of by key: `{delay: {fixed: 250ms}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    Delay(Delay),
    Abort(Abort),
    Cpu(Cpu),
    Corrupt(Corrupt),
}

impl Fault {
    pub const fn kind(&self) -> FaultKind {
        match self {
            Self::Delay(_) => FaultKind::Delay,
            Self::Abort(_) => FaultKind::Abort,
            Self::Cpu(_) => FaultKind::Cpu,
            Self::Corrupt(_) => FaultKind::Corrupt,
        }
    }
}

/// Hold the request back before it goes to the model server: `fixed`, plus a uniform draw from 0 to `jitter`. Never less than `fixed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    pub fixed: Span,
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub jitter: Span,
}

/// Answer with an HTTP error instead of asking the model server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    pub http_status: HttpAbort,
}

/// Burn CPU beside the model server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cpu {
    /// Share of each core.
    pub load: Percent,
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub cores: u16,
    /// How long the burn lasts after the request that started it. Without it, as long as the policy is armed (policies only).
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
}

const fn one() -> u16 {
    1
}

/// Answer well-formed but wrong: real numbers move by `magnitude` of their size (at least of 1), whole numbers change places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Corrupt {
    #[serde(default = "ten_percent")]
    pub magnitude: Percent,
}

fn ten_percent() -> Percent {
    Percent::from_ratio(0.1)
}

/// An HTTP status that a fault may answer with: 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16", into = "u16")]
pub struct HttpAbort(#[schemars(range(min = 200, max = 599))] u16);

impl HttpAbort {
    /// 503: what a request to a pod that cannot be reached ends with.
    pub const UNAVAILABLE: Self = Self(503);

    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for HttpAbort {
    type Error = String;

    fn try_from(status: u16) -> Result<Self, String> {
        if (200..=599).contains(&status) { Ok(Self(status)) } else { Err(format!("{status} is not a status that a fault can answer with: write 200 to 599")) }
    }
}

impl From<HttpAbort> for u16 {
    fn from(abort: HttpAbort) -> Self {
        abort.0
    }
}
