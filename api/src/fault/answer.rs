//! Answers that are not the model server's, or not as it gave them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Percent;

/// Answer with an error instead of asking the model server, in the form that the client understands. At least one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "AbortFields", into = "AbortFields")]
#[schemars(with = "AbortFields")]
pub struct Abort {
    /// The status; in gRPC, where `grpc_code` is not given, gRPC's own translation of it.
    http_status: Option<HttpAbort>,
    /// The code in gRPC; in HTTP, where `http_status` is not given, its usual translation.
    grpc_code: Option<GrpcCode>,
}

impl Abort {
    pub const fn http(status: HttpAbort) -> Self {
        Self { http_status: Some(status), grpc_code: None }
    }

    /// `None` where neither is given.
    pub fn new(http_status: Option<HttpAbort>, grpc_code: Option<GrpcCode>) -> Option<Self> {
        (http_status.is_some() || grpc_code.is_some()).then_some(Self { http_status, grpc_code })
    }

    pub fn http_status(&self) -> HttpAbort {
        self.http_status.or(self.grpc_code.map(GrpcCode::as_http)).unwrap_or(HttpAbort::UNAVAILABLE)
    }

    /// As it was asked for; `None`: what its HTTP status means in gRPC.
    pub const fn grpc_code(&self) -> Option<GrpcCode> {
        self.grpc_code
    }
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AbortFields {
    /// 200 to 599. In gRPC, where grpcCode is not given, gRPC's own translation of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_status: Option<HttpAbort>,
    /// 1 to 16. In HTTP, where httpStatus is not given, its usual translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grpc_code: Option<GrpcCode>,
}

impl TryFrom<AbortFields> for Abort {
    type Error = String;

    fn try_from(fields: AbortFields) -> Result<Self, String> {
        Self::new(fields.http_status, fields.grpc_code)
            .ok_or_else(|| "an abort answers something: give httpStatus, such as 503, or grpcCode, such as 14".to_owned())
    }
}

impl From<Abort> for AbortFields {
    fn from(abort: Abort) -> Self {
        Self { http_status: abort.http_status, grpc_code: abort.grpc_code }
    }
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

/// A gRPC status code that is an error: 1 (CANCELLED) to 16 (UNAUTHENTICATED).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16", into = "u16")]
pub struct GrpcCode(#[schemars(range(min = 1, max = 16))] u16);

impl GrpcCode {
    pub const fn get(self) -> u16 {
        self.0
    }

    /// google/rpc/code.proto says which HTTP status each code is.
    const fn as_http(self) -> HttpAbort {
        HttpAbort(match self.0 {
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        })
    }
}

impl TryFrom<u16> for GrpcCode {
    type Error = String;

    fn try_from(code: u16) -> Result<Self, String> {
        if (1..=16).contains(&code) {
            Ok(Self(code))
        } else {
            Err(format!("{code} is not a gRPC code that is an error: write 1 to 16, such as 14 for UNAVAILABLE"))
        }
    }
}

impl From<GrpcCode> for u16 {
    fn from(code: GrpcCode) -> Self {
        code.0
    }
}

/// Answer wrong: tensors stay well-formed and lose their values; event streams lose or garble events. Without `tensors` and `events`, tensors are shifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Corrupt {
    /// How much, where `tensors` is shift, scale or noise.
    #[serde(default = "ten_percent")]
    pub magnitude: Percent,
    /// What happens to the values of an answer's tensors: Open Inference Protocol in JSON, binary and gRPC, and arrays of numbers in other JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<TensorChange>,
    /// What happens to the events (tokens) of an answer that is an event stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<EventChange>,
    /// Share of an answer's events that it happens to. Not for noEnd.
    #[serde(default = "ten_percent", skip_serializing_if = "is_ten_percent")]
    pub event_share: Percent,
}

impl Corrupt {
    /// Tensors shifted by `magnitude`.
    pub fn shift(magnitude: Percent) -> Self {
        Self { magnitude, tensors: None, events: None, event_share: ten_percent() }
    }

    /// What happens to tensors, if anything does.
    pub const fn of_tensors(&self) -> Option<TensorChange> {
        match (self.tensors, self.events) {
            (None, None) => Some(TensorChange::Shift),
            (tensors, _) => tensors,
        }
    }
}

fn ten_percent() -> Percent {
    Percent::from_ratio(0.1)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_ten_percent(share: &Percent) -> bool {
    *share == ten_percent()
}

/// What happens to a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TensorChange {
    /// Real numbers move up or down by `magnitude` of their size (at least of 1), everything else changes places.
    Shift,
    /// Numbers grow by `magnitude` of their size.
    Scale,
    /// Gaussian noise whose standard deviation is `magnitude` of each number's size (at least of 1) is added to numbers.
    Noise,
    /// Values change places.
    Permute,
    /// Real numbers become NaN (null in JSON).
    Nan,
    /// Numbers become 0 and booleans false.
    Constant,
}

impl TensorChange {
    pub const ALL: [(Self, &str); 6] =
        [(Self::Shift, "shift"), (Self::Scale, "scale"), (Self::Noise, "noise"), (Self::Permute, "permute"), (Self::Nan, "nan"), (Self::Constant, "constant")];
}

/// What happens to the events of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EventChange {
    /// Left out.
    Drop,
    /// Sent twice.
    Duplicate,
    /// Its data loses its second half, so that JSON in it cannot be read.
    Malformed,
    /// The event that says that the stream is complete (data `[DONE]`, or one named message_stop, done or end) is left out.
    NoEnd,
}

impl EventChange {
    pub const ALL: [(Self, &str); 4] = [(Self::Drop, "drop"), (Self::Duplicate, "duplicate"), (Self::Malformed, "malformed"), (Self::NoEnd, "noEnd")];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::from_yaml;

    #[test]
    fn an_abort_answers_in_both_protocols() {
        let abort = |text: &str| from_yaml::<Abort>("abort", text);
        let both = abort("{httpStatus: 429, grpcCode: 8}").unwrap();
        assert_eq!((both.http_status().get(), both.grpc_code().map(GrpcCode::get)), (429, Some(8)));
        for (code, status) in [(1, 499), (3, 400), (4, 504), (5, 404), (8, 429), (13, 500), (14, 503), (16, 401)] {
            assert_eq!(abort(&format!("{{grpcCode: {code}}}")).unwrap().http_status().get(), status, "{code}");
        }
        assert_eq!(abort("{httpStatus: 503}").unwrap(), Abort::http(HttpAbort::UNAVAILABLE));
        for (wrong, says) in [("{}", "give httpStatus"), ("{grpcCode: 0}", "1 to 16"), ("{grpcCode: 17}", "1 to 16"), ("{httpStatus: 199}", "200 to 599")] {
            assert!(abort(wrong).unwrap_err().message.contains(says), "{wrong}");
        }
    }

    #[test]
    fn names_of_changes_are_those_of_policies() {
        for (change, name) in TensorChange::ALL {
            assert_eq!(serde_json::to_value(change).unwrap(), name);
        }
        for (change, name) in EventChange::ALL {
            assert_eq!(serde_json::to_value(change).unwrap(), name);
        }
    }
}
