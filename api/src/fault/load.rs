//! Load beside the model server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Percent, Size, Span};

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

/// Hold memory, every page of it written to. It counts as the sidecar's own, so the budget must allow it (`memory`), and no more is taken than half of what is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    pub bytes: Size,
    /// How long it is held after the request that asked for it. Without it, as long as the policy is armed (policies only).
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
}
