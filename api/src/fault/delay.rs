//! Delays: how long, drawn how, and before what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Span;

/// `fixed`, plus a uniform draw from 0 to `jitter`. Never less than `fixed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    pub fixed: Span,
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub jitter: Span,
}

/// Hold the request back before it goes to the model server, or its answer before it comes from there. How long is exactly one of `fixed` (with `jitter`),
/// `uniform`, `normal` and `pareto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "DelayFields", into = "DelayFields")]
#[schemars(with = "DelayFields")]
pub struct DelayFault {
    pub length: Length,
    /// What is drawn above this counts as this. `None`: nothing is cut but at [`Length::MOST`].
    pub at_most: Option<Span>,
    pub before: Before,
}

/// How a delay's length is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Length {
    Fixed(Delay),
    Uniform(Uniform),
    Normal(Normal),
    Pareto(Pareto),
}

impl Length {
    /// No delay is longer.
    pub const MOST: Span = Span::from_secs(3600);
}

/// Every length between the two is equally likely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Uniform {
    pub from: Span,
    pub to: Span,
}

/// The bell curve; what is drawn below zero counts as no delay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Normal {
    pub mean: Span,
    /// Standard deviation.
    pub deviation: Span,
}

/// A long tail, as networks and garbage collectors have: never less than `atLeast`, and one of a hundred is longer than `p99`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pareto {
    pub at_least: Span,
    pub p99: Span,
}

/// What is held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Before {
    /// The request, before it goes to the model server.
    #[default]
    Request,
    /// The answer, before its head comes from there.
    Response,
}

impl Before {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    const fn is_request(&self) -> bool {
        matches!(self, Self::Request)
    }
}

impl DelayFault {
    /// The longest that can be drawn.
    pub fn longest(&self) -> Span {
        let drawn = match &self.length {
            Length::Fixed(Delay { fixed, jitter }) => Span::new(fixed.get().saturating_add(jitter.get())),
            Length::Uniform(uniform) => uniform.to,
            Length::Normal(_) | Length::Pareto(_) => Length::MOST,
        };
        self.at_most.map_or(drawn, |most| most.min(drawn))
    }
}

impl From<Delay> for DelayFault {
    fn from(delay: Delay) -> Self {
        Self { length: Length::Fixed(delay), at_most: None, before: Before::Request }
    }
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DelayFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fixed: Option<Span>,
    /// A uniform draw from 0 to this is added to `fixed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uniform: Option<Uniform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    normal: Option<Normal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pareto: Option<Pareto>,
    /// What is drawn above this counts as this. At most an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<Span>,
    #[serde(default, skip_serializing_if = "Before::is_request")]
    before: Before,
}

impl TryFrom<DelayFields> for DelayFault {
    type Error = String;

    fn try_from(fields: DelayFields) -> Result<Self, String> {
        let DelayFields { fixed, jitter, uniform, normal, pareto, at_most, before } = fields;
        if jitter.is_some() && fixed.is_none() {
            return Err("jitter is added to fixed, which is not there: give fixed, or uniform instead of both".to_owned());
        }
        let lengths = [
            fixed.map(|fixed| Length::Fixed(Delay { fixed, jitter: jitter.unwrap_or_default() })),
            uniform.map(Length::Uniform),
            normal.map(Length::Normal),
            pareto.map(Length::Pareto),
        ];
        let mut lengths = lengths.into_iter().flatten();
        let (Some(length), None) = (lengths.next(), lengths.next()) else {
            return Err("a delay's length is exactly one of fixed, uniform, normal, pareto".to_owned());
        };
        match &length {
            Length::Uniform(Uniform { from, to }) if from > to => {
                return Err(format!("uniform: from {from} is more than to {to}: give the shorter one first"));
            }
            Length::Pareto(Pareto { at_least, p99 }) if at_least.is_zero() || at_least >= p99 => {
                return Err(format!("pareto: p99 {p99} must be more than atLeast {at_least}, and that more than zero"));
            }
            _ => {}
        }
        Ok(Self { length, at_most, before })
    }
}

impl From<DelayFault> for DelayFields {
    fn from(delay: DelayFault) -> Self {
        let mut fields = Self { at_most: delay.at_most, before: delay.before, ..Self::default() };
        match delay.length {
            Length::Fixed(Delay { fixed, jitter }) => {
                fields.fixed = Some(fixed);
                fields.jitter = (!jitter.is_zero()).then_some(jitter);
            }
            Length::Uniform(uniform) => fields.uniform = Some(uniform),
            Length::Normal(normal) => fields.normal = Some(normal),
            Length::Pareto(pareto) => fields.pareto = Some(pareto),
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{from_yaml, to_yaml};

    #[test]
    fn every_length_survives_writing_and_reading() {
        for text in [
            "{fixed: 250ms}",
            "{fixed: 250ms, jitter: 50ms}",
            "{uniform: {from: 10ms, to: 20ms}, before: response}",
            "{normal: {mean: 100ms, deviation: 20ms}, atMost: 1s}",
            "{pareto: {atLeast: 50ms, p99: 2s}, atMost: 5s}",
        ] {
            let delay: DelayFault = from_yaml("delay", text).unwrap();
            let written = to_yaml(&delay).unwrap();
            assert_eq!(from_yaml::<DelayFault>("again", &written).unwrap(), delay, "{written}");
        }
    }

    #[test]
    fn a_length_is_one_thing_and_makes_sense() {
        for (text, says) in [
            ("{}", "exactly one of fixed"),
            ("{jitter: 5ms}", "give fixed"),
            ("{fixed: 1s, pareto: {atLeast: 1ms, p99: 2ms}}", "exactly one of fixed"),
            ("{uniform: {from: 2s, to: 1s}}", "from 2s is more than to 1s"),
            ("{pareto: {atLeast: 2s, p99: 2s}}", "must be more than atLeast 2s"),
            ("{pareto: {atLeast: 0s, p99: 2s}}", "more than zero"),
            ("{fixed: 1s, before: lunch}", "lunch"),
        ] {
            let error = from_yaml::<DelayFault>("delay", text).unwrap_err();
            assert!(error.message.contains(says), "{text}: {error}");
        }
    }
}
