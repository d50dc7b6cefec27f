//! `steadfast-fault`: an RFC 9651 dictionary that asks for faults on this one request.
//!
//! `delay=250;jitter=50, abort=503;p=0.25, cpu=0.8;cores=2;for=2000, corrupt=0.1`: times in milliseconds, `p` the probability of this fault (0 to 1, default 1),
//! `cpu` the share of a core, `corrupt` the magnitude. Strict: an unknown key, parameter, type or range is refused by name, never ignored.
//! Several header lines are one dictionary, as the RFC says; of a key given twice the last counts, as the RFC says too.

use std::time::Duration;

use http::HeaderValue;
use sfv::{BareItem, Dictionary, ListEntry, Parameters, Parser};
use steadfast_api::{
    FaultKind, Percent, Span,
    fault::{Abort, Corrupt, Cpu, Delay, Fault, HttpAbort},
    policy::{FAULT_HEADER, HeaderTrust},
};

use crate::problem::BadField;

const LENGTH_MAX: usize = 1024;
const KEYS: &str = "one of delay, abort, cpu, corrupt";

/// Reads the header. The faults come at most one of each kind, with their probabilities.
pub fn parse<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Result<Vec<(Fault, Percent)>, BadField> {
    let mut text = Vec::new();
    for line in lines {
        if !text.is_empty() {
            text.extend_from_slice(b", ");
        }
        text.extend_from_slice(line.as_bytes());
    }
    let shown = || String::from_utf8_lossy(&text[..text.len().min(120)]).into_owned();
    let whole = |expected: String| BadField { key: FAULT_HEADER.into(), value: shown(), expected };
    if text.len() > LENGTH_MAX {
        return Err(whole(format!("at most {LENGTH_MAX} bytes")));
    }
    let dictionary: Dictionary = Parser::new(&text)
        .parse()
        .map_err(|error| misspelt(&text).unwrap_or_else(|| whole(format!("an RFC 9651 dictionary such as delay=250;jitter=50, abort=503;p=0.25 ({error})"))))?;
    if dictionary.is_empty() {
        return Err(whole(KEYS.to_owned()));
    }
    dictionary.iter().map(|(key, entry)| read(key.as_str(), entry)).collect()
}

/// Finds the entry for which a header is no dictionary, such as `delay=50ms`: a number's unit and a percent sign are what people write first.
fn misspelt(text: &[u8]) -> Option<BadField> {
    let reads = |text: &str| Parser::new(text).parse::<Dictionary>().is_ok();
    let text = std::str::from_utf8(text).ok()?;
    let entry = text.split(',').map(str::trim).find(|entry| !reads(entry))?;
    let (value, parameters) = entry.split_once(';').map_or((entry, None), |(value, parameters)| (value, Some(parameters)));
    let (key, value) = value.split_once('=')?;
    let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == key.trim())?;
    if !reads(&format!("{key}={value}")) {
        return Some(field(kind, None, value, wanted(kind, None)));
    }
    let (name, value) =
        parameters?.split(';').filter_map(|parameter| parameter.trim().split_once('=')).find(|(name, value)| !reads(&format!("a;{name}={value}")))?;
    Some(field(kind, Some(name), value, wanted(kind, Some(name))))
}

/// What an entry or one of its parameters takes.
fn wanted(kind: FaultKind, parameter: Option<&str>) -> &'static str {
    match (parameter, kind) {
        (Some("p"), _) => "a number from 0 to 1, such as 0.25",
        (Some("cores"), _) => "a whole number from 1 to 1024",
        (Some(_), _) | (None, FaultKind::Delay) => "milliseconds from 0 to 3600000 without a unit, such as 250",
        (None, FaultKind::Abort) => "a status from 200 to 599, such as 503",
        (None, FaultKind::Cpu | FaultKind::Corrupt) => "a number above 0 and at most 1, such as 0.8",
    }
}

/// Holds what was asked against what the policy allows.
pub fn cap(faults: &[(Fault, Percent)], trust: &HeaderTrust) -> Result<(), BadField> {
    for (fault, _) in faults {
        let kind = fault.kind();
        if !trust.allow.contains(&kind) {
            let allowed: Vec<_> = trust.allow.iter().map(|kind| kind.name()).collect();
            let expected = if allowed.is_empty() {
                "no fault: the policy allows none by header".to_owned()
            } else {
                format!("a fault that the policy allows by header: {}", allowed.join(", "))
            };
            return Err(BadField { key: kind.name().into(), value: kind.name().into(), expected });
        }
        match fault {
            Fault::Delay(delay) => {
                let longest = delay.fixed.get().saturating_add(delay.jitter.get());
                if longest > trust.max_delay.get() {
                    return Err(field(kind, None, ms(longest), format!("at most {} ms with jitter, as the policy says", ms(trust.max_delay.get()))));
                }
            }
            Fault::Cpu(cpu) => {
                let most = ms(trust.max_cpu_duration.get());
                match cpu.duration {
                    None => return Err(field(kind, Some("for"), "nothing", format!("for=MILLISECONDS, at most {most} as the policy says"))),
                    Some(duration) if duration > trust.max_cpu_duration => {
                        return Err(field(kind, Some("for"), ms(duration.get()), format!("at most {most}, as the policy says")));
                    }
                    Some(_) => {}
                }
            }
            Fault::Abort(_) | Fault::Corrupt(_) => {}
        }
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over numbers and texts alike")]
fn field(kind: FaultKind, parameter: Option<&str>, value: impl ToString, expected: impl Into<String>) -> BadField {
    let key = parameter.map_or_else(|| kind.name().to_owned(), |parameter| format!("{kind};{parameter}"));
    BadField { key, value: value.to_string(), expected: expected.into() }
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

/// One of the dictionary's entries with its parameters.
struct Entry<'a> {
    kind: FaultKind,
    parameters: &'a Parameters,
}

fn number(item: &BareItem) -> Option<f64> {
    match item {
        BareItem::Integer(v) => Some(i64::from(*v) as f64),
        BareItem::Decimal(v) => Some(f64::from(*v)),
        _ => None,
    }
}

impl Entry<'_> {
    fn milliseconds(&self, parameter: Option<&str>, item: &BareItem) -> Result<Span, BadField> {
        // An hour, as in policies; caps of the policy come on top.
        let value = number(item).filter(|value| (0.0..=3_600_000.0).contains(value));
        let value = value.ok_or_else(|| field(self.kind, parameter, show(item), wanted(self.kind, parameter)))?;
        Ok(Span::new(Duration::from_nanos((value * 1e6).round() as u64)))
    }

    fn share(&self, parameter: Option<&str>, item: &BareItem) -> Result<Percent, BadField> {
        // A fault of nothing is a mistake; a probability of nothing is a way to switch it off.
        let zero = parameter == Some("p");
        let value = number(item).filter(|value| (0.0..=1.0).contains(value) && (zero || *value > 0.0));
        value.map(Percent::from_ratio).ok_or_else(|| field(self.kind, parameter, show(item), wanted(self.kind, parameter)))
    }

    fn get(&self, parameter: &str) -> Option<&BareItem> {
        self.parameters.iter().find(|(key, _)| key.as_str() == parameter).map(|(_, value)| value)
    }

    fn only(&self, known: &[&str]) -> Result<(), BadField> {
        match self.parameters.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, value)) => Err(field(self.kind, Some(key.as_str()), show(value), format!("a parameter of {}: {}", self.kind, known.join(", ")))),
        }
    }
}

fn read(key: &str, entry: &ListEntry) -> Result<(Fault, Percent), BadField> {
    let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == key);
    let kind = kind.ok_or_else(|| BadField { key: key.to_owned(), value: key.to_owned(), expected: KEYS.to_owned() })?;
    let ListEntry::Item(item) = entry else {
        return Err(field(kind, None, "a list", "one value"));
    };
    let (value, entry) = (&item.bare_item, Entry { kind, parameters: &item.params });
    let fault = match kind {
        FaultKind::Delay => {
            entry.only(&["jitter", "p"])?;
            let jitter = entry.get("jitter").map_or(Ok(Span::ZERO), |jitter| entry.milliseconds(Some("jitter"), jitter))?;
            Fault::Delay(Delay { fixed: entry.milliseconds(None, value)?, jitter })
        }
        FaultKind::Abort => {
            entry.only(&["p"])?;
            let status = if let BareItem::Integer(status) = value { u16::try_from(i64::from(*status)).ok() } else { None };
            let status = status.and_then(|status| HttpAbort::try_from(status).ok());
            Fault::Abort(Abort { http_status: status.ok_or_else(|| field(kind, None, show(value), wanted(kind, None)))? })
        }
        FaultKind::Cpu => {
            entry.only(&["cores", "for", "p"])?;
            let cores = match entry.get("cores") {
                None => 1,
                Some(item) => {
                    let cores = if let BareItem::Integer(cores) = item { u16::try_from(i64::from(*cores)).ok() } else { None };
                    let cores = cores.filter(|cores| (1..=super::cpu::THREADS_MAX).contains(&usize::from(*cores)));
                    cores.ok_or_else(|| field(kind, Some("cores"), show(item), wanted(kind, Some("cores"))))?
                }
            };
            let duration = entry.get("for").map(|item| entry.milliseconds(Some("for"), item)).transpose()?;
            Fault::Cpu(Cpu { load: entry.share(None, value)?, cores, duration })
        }
        FaultKind::Corrupt => {
            entry.only(&["p"])?;
            Fault::Corrupt(Corrupt { magnitude: entry.share(None, value)? })
        }
    };
    let probability = entry.get("p").map_or(Ok(Percent::HUNDRED), |p| entry.share(Some("p"), p))?;
    Ok((fault, probability))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_text(text: &str) -> Result<Vec<(Fault, Percent)>, BadField> {
        parse(&[HeaderValue::from_str(text).unwrap()])
    }

    #[test]
    fn the_documented_example_is_understood() {
        let faults = parse_text("delay=250;jitter=50, abort=503;p=0.25, cpu=0.8;cores=2;for=2000, corrupt=0.1").unwrap();
        let ten = Percent::from_ratio(0.1);
        assert_eq!(
            faults,
            [
                (Fault::Delay(Delay { fixed: Span::from_millis(250), jitter: Span::from_millis(50) }), Percent::HUNDRED),
                (Fault::Abort(Abort { http_status: 503.try_into().unwrap() }), Percent::from_ratio(0.25)),
                (Fault::Cpu(Cpu { load: Percent::from_ratio(0.8), cores: 2, duration: Some(Span::from_secs(2)) }), Percent::HUNDRED),
                (Fault::Corrupt(Corrupt { magnitude: ten }), Percent::HUNDRED),
            ]
        );
        let lines = [HeaderValue::from_static("delay=1"), HeaderValue::from_static("abort=200")];
        assert_eq!(parse(&lines).unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named_with_key_value_and_what_would_be_right() {
        for (text, key, value, expected) in [
            ("", "steadfast-fault", "", "delay"),
            ("delay==1", "delay", "=1", "such as 250"),
            ("delay=1,,", "steadfast-fault", "delay=1,,", "RFC 9651"),
            ("latency=5", "latency", "latency", "one of delay"),
            ("delay=50ms", "delay", "50ms", "without a unit"),
            ("abort=503, delay=50;jitter=5ms", "delay;jitter", "5ms", "without a unit"),
            ("cpu=30%;for=100", "cpu", "30%", "at most 1"),
            ("delay=1;p=50%", "delay;p", "50%", "0 to 1"),
            ("delay=1 abort=503", "delay", "1 abort=503", "without a unit"),
            ("delay", "delay", "true", "milliseconds"),
            ("delay=-1", "delay", "-1", "from 0"),
            ("delay=soon", "delay", "soon", "such as 250"),
            ("delay=(1 2)", "delay", "a list", "one value"),
            ("delay=1;jiter=1", "delay;jiter", "1", "jitter, p"),
            ("delay=1;p=1.5", "delay;p", "1.5", "0 to 1"),
            ("delay=1;p=\"x\"", "delay;p", "\"x\"", "0 to 1"),
            ("abort=999", "abort", "999", "200 to 599"),
            ("abort=503.5", "abort", "503.5", "200 to 599"),
            ("cpu=0", "cpu", "0", "above 0"),
            ("cpu=0.5;cores=0", "cpu;cores", "0", "1 to 1024"),
            ("corrupt=2", "corrupt", "2", "at most 1"),
        ] {
            let error = parse_text(text).unwrap_err();
            assert!(error.key == key && error.value.contains(value) && error.expected.contains(expected), "{text}: {error:?}");
        }
        assert!(parse_text(&format!("delay=1;p={}", "1".repeat(2000))).unwrap_err().expected.contains("1024"));
    }

    #[test]
    fn the_policy_caps_what_a_header_may_ask() {
        let trust: HeaderTrust =
            steadfast_api::read::from_yaml("trust", "{trust: {addresses: []}, allow: [delay, cpu], maxDelay: 1s, maxCpuDuration: 2s}").unwrap();
        let check = |text: &str| cap(&parse_text(text).unwrap(), &trust);
        assert_eq!(check("delay=900;jitter=100, cpu=0.5;for=2000"), Ok(()));
        for (text, key, expected) in [
            ("delay=901;jitter=100", "delay", "1000 ms"),
            ("abort=503", "abort", "delay, cpu"),
            ("cpu=1", "cpu;for", "at most 2000"),
            ("cpu=1;for=2001", "cpu;for", "at most 2000"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.key == key && error.expected.contains(expected), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_parser_and_nothing_illegal_comes_out(text in "[ -~]{0,80}|(delay|abort|cpu|corrupt)=[0-9.;a-z=, -]{0,40}") {
            for (fault, p) in parse_text(&text).unwrap_or_default() {
                prop_assert!(p <= Percent::HUNDRED);
                match fault {
                    Fault::Delay(delay) => prop_assert!(delay.fixed <= Span::from_secs(3600) && delay.jitter <= Span::from_secs(3600)),
                    Fault::Abort(abort) => prop_assert!((200..=599).contains(&abort.http_status.get())),
                    Fault::Cpu(cpu) => prop_assert!(cpu.load > Percent::ZERO && cpu.cores >= 1),
                    Fault::Corrupt(corrupt) => prop_assert!(corrupt.magnitude > Percent::ZERO),
                }
            }
        }
    }
}
