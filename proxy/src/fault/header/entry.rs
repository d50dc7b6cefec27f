//! One entry of the header: its value and its parameters, each read into what a fault takes.

use std::time::Duration;

use sfv::{BareItem, Parameters};
use steadfast_api::{
    FaultKind, Percent, Size, Span,
    fault::{
        Abort, Before, Blackhole, Corrupt, Cpu, DelayFault, EventChange, Fault, GrpcCode, Http2Code, HttpAbort, Memory, Reset, Slice, Stall, StallAt,
        TensorChange, Throttle, Truncate,
    },
};

use crate::{fault::check::check_fault, problem::BadField};

#[expect(clippy::needless_pass_by_value, reason = "callers hand over numbers and texts alike")]
pub fn field(kind: FaultKind, parameter: Option<&str>, value: impl ToString, expected: impl Into<String>) -> BadField {
    let key = parameter.map_or_else(|| kind.name().to_owned(), |parameter| format!("{kind};{parameter}"));
    BadField { key, value: value.to_string(), expected: expected.into() }
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

const BYTES: &str = "a whole number of bytes, such as 512";

/// What an entry or one of its parameters takes.
pub fn wanted(kind: FaultKind, parameter: Option<&str>) -> String {
    let text = match (parameter, kind) {
        (Some("p"), _) => "a number from 0 to 1, such as 0.25",
        (Some("cores"), _) => "a whole number from 1 to 1024",
        (Some("share"), _) => "a number above 0 and at most 1, such as 0.1",
        (Some("grpc"), _) => "a gRPC code from 1 to 16, such as 14",
        (Some("code"), _) => "an error code of HTTP/2 from 0 to 13, such as 8",
        (Some("before"), _) => "request or response",
        (Some("tensors"), _) => return words(&TensorChange::ALL),
        (Some("events"), _) => return words(&EventChange::ALL),
        (Some("at"), _) => return words(&StallAt::ALL),
        (Some("after"), _) | (None, FaultKind::Truncate | FaultKind::Throttle | FaultKind::Slice | FaultKind::Memory) => BYTES,
        (Some(_), _) | (None, FaultKind::Delay | FaultKind::Stall | FaultKind::Blackhole) => "milliseconds from 0 to 3600000 without a unit, such as 250",
        (None, FaultKind::Abort) => "a status from 200 to 599, such as 503",
        (None, FaultKind::Cpu | FaultKind::Corrupt) => "a number above 0 and at most 1, such as 0.8",
        (None, FaultKind::Reset) => "no value: write reset, or reset;after=512",
    };
    text.to_owned()
}

fn words<T>(all: &[(T, &str)]) -> String {
    let names: Vec<_> = all.iter().map(|(_, name)| *name).collect();
    format!("one of {}", names.join(", "))
}

fn show(item: &BareItem) -> String {
    match item {
        BareItem::Integer(v) => i64::from(*v).to_string(),
        BareItem::Decimal(v) => f64::from(*v).to_string(),
        BareItem::Boolean(v) => if *v { "nothing (true)" } else { "?0" }.to_owned(),
        BareItem::String(v) => format!("{:?}", v.as_str()),
        BareItem::Token(v) => v.as_str().to_owned(),
        BareItem::Date(_) => "a date".to_owned(),
        BareItem::ByteSequence(_) => "bytes".to_owned(),
        BareItem::DisplayString(v) => format!("{v:?}"),
    }
}

fn number(item: &BareItem) -> Option<f64> {
    match item {
        BareItem::Integer(v) => Some(i64::from(*v) as f64),
        BareItem::Decimal(v) => Some(f64::from(*v)),
        _ => None,
    }
}

fn whole(item: &BareItem) -> Option<u64> {
    if let BareItem::Integer(v) = item { u64::try_from(i64::from(*v)).ok() } else { None }
}

/// Nothing was given: `reset` alone is `reset=?1`.
const fn is_nothing(item: &BareItem) -> bool {
    matches!(item, BareItem::Boolean(true))
}

/// One of the dictionary's entries with its parameters.
struct Entry<'a> {
    kind: FaultKind,
    parameters: &'a Parameters,
}

impl Entry<'_> {
    fn refuse(&self, parameter: Option<&str>, item: &BareItem) -> BadField {
        field(self.kind, parameter, show(item), wanted(self.kind, parameter))
    }

    fn milliseconds(&self, parameter: Option<&str>, item: &BareItem) -> Result<Span, BadField> {
        // An hour, as in policies; caps of the policy come on top.
        let value = number(item).filter(|value| (0.0..=3_600_000.0).contains(value)).ok_or_else(|| self.refuse(parameter, item))?;
        Ok(Span::new(Duration::from_nanos((value * 1e6).round() as u64)))
    }

    fn share(&self, parameter: Option<&str>, item: &BareItem) -> Result<Percent, BadField> {
        // A fault of nothing is a mistake; a probability of nothing is a way to switch it off.
        let zero = parameter == Some("p");
        let value = number(item).filter(|value| (0.0..=1.0).contains(value) && (zero || *value > 0.0));
        value.map(Percent::from_ratio).filter(|share| zero || *share > Percent::ZERO).ok_or_else(|| self.refuse(parameter, item))
    }

    fn bytes(&self, parameter: Option<&str>, item: &BareItem) -> Result<Size, BadField> {
        whole(item).and_then(Size::from_bytes).ok_or_else(|| self.refuse(parameter, item))
    }

    fn small<T: TryFrom<u16>>(&self, parameter: Option<&str>, item: &BareItem) -> Result<T, BadField> {
        let value = whole(item).and_then(|value| u16::try_from(value).ok()).and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| self.refuse(parameter, item))
    }

    fn word<T: Copy>(&self, parameter: &str, all: &[(T, &str)], item: &BareItem) -> Result<T, BadField> {
        let word = if let BareItem::Token(word) = item { Some(word.as_str()) } else { None };
        all.iter().find(|(_, name)| Some(*name) == word).map(|(value, _)| *value).ok_or_else(|| self.refuse(Some(parameter), item))
    }

    fn get<T>(&self, parameter: &str, read: impl FnOnce(&BareItem) -> Result<T, BadField>) -> Result<Option<T>, BadField> {
        self.parameters.iter().find(|(key, _)| key.as_str() == parameter).map(|(_, item)| read(item)).transpose()
    }

    fn only(&self, known: &[&str]) -> Result<(), BadField> {
        match self.parameters.iter().find(|(key, _)| !known.contains(&key.as_str()) && key.as_str() != "p") {
            None => Ok(()),
            Some((key, value)) => {
                let names = [known, &["p"]].concat().join(", ");
                Err(field(self.kind, Some(key.as_str()), show(value), format!("a parameter of {}: {names}", self.kind)))
            }
        }
    }

    fn span(&self, parameter: &str) -> Result<Option<Span>, BadField> {
        self.get(parameter, |item| self.milliseconds(Some(parameter), item))
    }

    fn delay(&self, value: &BareItem) -> Result<DelayFault, BadField> {
        self.only(&["jitter", "to", "sd", "p99", "most", "before"])?;
        let first = self.milliseconds(None, value)?;
        let before = self.get("before", |item| self.word("before", &[(Before::Request, "request"), (Before::Response, "response")], item))?.unwrap_or_default();
        // Read as a policy's delay is, so that both mean the same and are refused alike.
        let mut fields = serde_json::Map::new();
        let text = |span: Span| serde_json::Value::from(span.to_string());
        let (to, deviation, p99) = (self.span("to")?, self.span("sd")?, self.span("p99")?);
        if let Some(to) = to {
            fields.insert("uniform".to_owned(), serde_json::json!({ "from": text(first), "to": text(to) }));
        }
        if let Some(deviation) = deviation {
            fields.insert("normal".to_owned(), serde_json::json!({ "mean": text(first), "deviation": text(deviation) }));
        }
        if let Some(p99) = p99 {
            fields.insert("pareto".to_owned(), serde_json::json!({ "atLeast": text(first), "p99": text(p99) }));
        }
        let jitter = self.span("jitter")?;
        if fields.is_empty() || jitter.is_some() {
            fields.insert("fixed".to_owned(), text(first));
        }
        if let Some(jitter) = jitter {
            fields.insert("jitter".to_owned(), text(jitter));
        }
        if let Some(most) = self.span("most")? {
            fields.insert("atMost".to_owned(), text(most));
        }
        let mut delay: DelayFault = serde_json::from_value(fields.into()).map_err(|error| field(self.kind, None, show(value), error.to_string()))?;
        delay.before = before;
        Ok(delay)
    }
}

/// The fault that an entry asks for, and its probability.
pub fn read(kind: FaultKind, value: &BareItem, parameters: &Parameters) -> Result<(Fault, Percent), BadField> {
    let entry = Entry { kind, parameters };
    let fault = match kind {
        FaultKind::Delay => Fault::Delay(entry.delay(value)?),
        FaultKind::Abort => {
            entry.only(&["grpc"])?;
            let code = entry.get("grpc", |item| entry.small::<GrpcCode>(Some("grpc"), item))?;
            let status = if is_nothing(value) && code.is_some() { None } else { Some(entry.small::<HttpAbort>(None, value)?) };
            Fault::Abort(Abort::new(status, code).ok_or_else(|| entry.refuse(None, value))?)
        }
        FaultKind::Cpu => {
            entry.only(&["cores", "for"])?;
            let cores = |item: &BareItem| {
                let cores = entry.small::<u16>(Some("cores"), item)?;
                if (1..=crate::fault::cpu::THREADS_MAX).contains(&usize::from(cores)) { Ok(cores) } else { Err(entry.refuse(Some("cores"), item)) }
            };
            Fault::Cpu(Cpu { load: entry.share(None, value)?, cores: entry.get("cores", cores)?.unwrap_or(1), duration: entry.span("for")? })
        }
        FaultKind::Memory => {
            entry.only(&["for"])?;
            Fault::Memory(Memory { bytes: entry.bytes(None, value)?, duration: entry.span("for")? })
        }
        FaultKind::Corrupt => {
            entry.only(&["tensors", "events", "share"])?;
            let tensors = entry.get("tensors", |item| entry.word("tensors", &TensorChange::ALL, item))?;
            let events = entry.get("events", |item| entry.word("events", &EventChange::ALL, item))?;
            // Without a magnitude it is a tenth, where something says what is meant.
            let mut corrupt = Corrupt::shift(Percent::from_ratio(0.1));
            if !(is_nothing(value) && (tensors.is_some() || events.is_some())) {
                corrupt.magnitude = entry.share(None, value)?;
            }
            if let Some(share) = entry.get("share", |item| entry.share(Some("share"), item))? {
                corrupt.event_share = share;
            }
            Fault::Corrupt(Corrupt { tensors, events, ..corrupt })
        }
        FaultKind::Reset => {
            entry.only(&["after", "code"])?;
            if !is_nothing(value) {
                return Err(entry.refuse(None, value));
            }
            let after_bytes = entry.get("after", |item| entry.bytes(Some("after"), item))?;
            let http2_code = entry.get("code", |item| entry.small::<Http2Code>(Some("code"), item))?.unwrap_or_default();
            Fault::Reset(Reset { after_bytes, http2_code })
        }
        FaultKind::Truncate => {
            entry.only(&[])?;
            Fault::Truncate(Truncate { after_bytes: entry.bytes(None, value)? })
        }
        FaultKind::Throttle => {
            entry.only(&[])?;
            Fault::Throttle(Throttle { bytes_per_second: entry.bytes(None, value)? })
        }
        FaultKind::Stall => {
            entry.only(&["at"])?;
            let at = entry.get("at", |item| entry.word("at", &StallAt::ALL, item))?.unwrap_or_default();
            Fault::Stall(Stall { duration: entry.milliseconds(None, value)?, at })
        }
        FaultKind::Slice => {
            entry.only(&["pause"])?;
            Fault::Slice(Slice { bytes: entry.bytes(None, value)?, pause: entry.span("pause")?.unwrap_or_default() })
        }
        FaultKind::Blackhole => {
            entry.only(&[])?;
            Fault::Blackhole(Blackhole { duration: Some(entry.milliseconds(None, value)?) })
        }
    };
    // The bounds of policies. Their keys begin with a dot here, where nothing stands before the fault.
    check_fault(&fault, "").map_err(|bad| BadField { key: bad.key.trim_start_matches('.').to_owned(), ..bad })?;
    let probability = entry.get("p", |item| entry.share(Some("p"), item))?.unwrap_or(Percent::HUNDRED);
    Ok((fault, probability))
}
