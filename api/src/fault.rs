//! The faults: what can be done to a request, and how much. Both the `steadfast-fault` header and policies end as these types.

mod answer;
mod delay;
mod load;
mod stream;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use answer::{Abort, Corrupt, EventChange, GrpcCode, HttpAbort, TensorChange};
pub use delay::{Before, Delay, DelayFault, Length, Normal, Pareto, Uniform};
pub use load::{Cpu, Memory};
pub use stream::{Blackhole, Http2Code, Reset, Slice, Stall, StallAt, Throttle, Truncate};

/// A kind of fault, as it is named in headers, policies, metrics and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    Delay,
    Abort,
    Cpu,
    Corrupt,
    Reset,
    Truncate,
    Throttle,
    Stall,
    Slice,
    Blackhole,
    Memory,
}

impl FaultKind {
    pub const ALL: [Self; 11] = [
        Self::Delay,
        Self::Abort,
        Self::Cpu,
        Self::Corrupt,
        Self::Reset,
        Self::Truncate,
        Self::Throttle,
        Self::Stall,
        Self::Slice,
        Self::Blackhole,
        Self::Memory,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Cpu => "cpu",
            Self::Corrupt => "corrupt",
            Self::Reset => "reset",
            Self::Truncate => "truncate",
            Self::Throttle => "throttle",
            Self::Stall => "stall",
            Self::Slice => "slice",
            Self::Blackhole => "blackhole",
            Self::Memory => "memory",
        }
    }

    /// All names, for messages: `delay, abort, …`.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
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
    Delay(DelayFault),
    Abort(Abort),
    Cpu(Cpu),
    Corrupt(Corrupt),
    Reset(Reset),
    Truncate(Truncate),
    Throttle(Throttle),
    Stall(Stall),
    Slice(Slice),
    Blackhole(Blackhole),
    Memory(Memory),
}

impl Fault {
    pub const fn kind(&self) -> FaultKind {
        match self {
            Self::Delay(_) => FaultKind::Delay,
            Self::Abort(_) => FaultKind::Abort,
            Self::Cpu(_) => FaultKind::Cpu,
            Self::Corrupt(_) => FaultKind::Corrupt,
            Self::Reset(_) => FaultKind::Reset,
            Self::Truncate(_) => FaultKind::Truncate,
            Self::Throttle(_) => FaultKind::Throttle,
            Self::Stall(_) => FaultKind::Stall,
            Self::Slice(_) => FaultKind::Slice,
            Self::Blackhole(_) => FaultKind::Blackhole,
            Self::Memory(_) => FaultKind::Memory,
        }
    }
}
