//! What can happen to an answer on its way: it breaks off, ends early, comes slowly, in pieces, or never.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Size, Span};

/// Break the connection off: TCP RST in HTTP/1, RST_STREAM with `http2Code` in HTTP/2, whose other streams go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reset {
    /// Bytes of the answer's body that come before; 0: right after the answer's head. Without it, right after the request's head, and the model server is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_bytes: Option<Size>,
    #[serde(default, skip_serializing_if = "Http2Code::is_internal")]
    pub http2_code: Http2Code,
}

/// An error code of HTTP/2 (RFC 9113 §7): 0 to 13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16", into = "u16")]
pub struct Http2Code(#[schemars(range(min = 0, max = 13))] u16);

impl Http2Code {
    pub const CANCEL: Self = Self(8);

    pub const fn get(self) -> u16 {
        self.0
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_internal(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Http2Code {
    /// INTERNAL_ERROR.
    fn default() -> Self {
        Self(2)
    }
}

impl TryFrom<u16> for Http2Code {
    type Error = String;

    fn try_from(code: u16) -> Result<Self, String> {
        if code <= 13 { Ok(Self(code)) } else { Err(format!("{code} is not an error code of HTTP/2: write 0 to 13, such as 8 for CANCEL")) }
    }
}

impl From<Http2Code> for u16 {
    fn from(code: Http2Code) -> Self {
        code.0
    }
}

/// End the answer's body early: in HTTP/1 the connection is closed, in HTTP/2 the stream ends as if that were all. A shorter body passes whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Truncate {
    pub after_bytes: Size,
}

/// Let the answer's body come no faster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Throttle {
    pub bytes_per_second: Size,
}

/// Let the answer's body pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stall {
    /// How long each pause is.
    #[serde(rename = "for")]
    pub duration: Span,
    #[serde(default, skip_serializing_if = "StallAt::is_first_byte")]
    pub at: StallAt,
}

/// Where an answer's body pauses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StallAt {
    /// Once, after the head and before the first byte.
    #[default]
    FirstByte,
    /// Between any two pieces as the model server sent them.
    Chunks,
    /// Between any two events of an event stream or messages of a gRPC call; in other answers as `chunks`.
    Tokens,
}

impl StallAt {
    pub const ALL: [(Self, &str); 3] = [(Self::FirstByte, "firstByte"), (Self::Chunks, "chunks"), (Self::Tokens, "tokens")];

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    const fn is_first_byte(&self) -> bool {
        matches!(self, Self::FirstByte)
    }
}

/// Cut the answer's body into small pieces, each sent on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slice {
    /// Size of a piece.
    pub bytes: Size,
    /// Between two pieces.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub pause: Span,
}

/// Take the request and never answer. The connection ends without an answer when the fault does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blackhole {
    /// For so long. Without it, as long as the policy is armed (policies only).
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
}
