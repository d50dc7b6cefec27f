//! `steadfast-fault`: an RFC 9651 dictionary that asks for faults on this one request.
//!
//! `delay=250;jitter=50, abort=503;p=0.25, cpu=0.8;cores=2;for=2000, corrupt=0.1`: times in milliseconds, sizes in bytes, `p` the probability of this fault (0 to 1,
//! default 1). Strict: an unknown key, parameter, type or range is refused by name, never ignored. Every fault of policies can be asked for, with the same words in
//! short:
//!
//! - `delay=250`, `;jitter=50`, or `;to=500` (uniform), or `;sd=50` (normal), or `;p99=2000` (pareto, of at least the value); `;most=1000` cuts the tail of these two;
//!   `;before=response`
//! - `abort=503`, `;grpc=14`; `abort;grpc=14` alone is a gRPC code
//! - `cpu=0.8` (share of a core), `;cores=2;for=2000`; `memory=1048576;for=2000`
//! - `corrupt=0.1` (magnitude), `;tensors=noise` (shift, scale, noise, permute, nan, constant); `corrupt;events=drop` (drop, duplicate, malformed, noEnd), `;share=0.1`
//! - `reset` before an answer, `;after=512` bytes of one, `;code=8` in HTTP/2; `truncate=512`; `throttle=65536` (a second); `slice=10`, `;pause=5`
//! - `stall=500`, `;at=firstByte` (firstByte, chunks, tokens); `blackhole=2000`
//!
//! Several header lines are one dictionary, as the RFC says; of a key given twice the last counts, as the RFC says too.

use http::HeaderValue;
use sfv::{Dictionary, ListEntry, Parser};
use steadfast_api::{
    FaultKind, Percent,
    fault::{Blackhole, Cpu, Fault, Length, Memory, Slice, Stall},
    policy::{FAULT_HEADER, HeaderTrust},
};

use crate::problem::BadField;

mod entry;

use entry::{field, ms, read, wanted};

const LENGTH_MAX: usize = 1024;

fn keys() -> String {
    format!("one of {}", FaultKind::names())
}

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
        return Err(whole(keys()));
    }
    dictionary
        .iter()
        .map(|(key, entry)| {
            let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == key.as_str());
            let kind = kind.ok_or_else(|| BadField { key: key.as_str().to_owned(), value: key.as_str().to_owned(), expected: keys() })?;
            match entry {
                ListEntry::Item(item) => read(kind, &item.bare_item, &item.params),
                ListEntry::InnerList(_) => Err(field(kind, None, "a list", "one value")),
            }
        })
        .collect()
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
                let longest = delay.longest().get();
                if longest > trust.max_delay.get() {
                    let tail = matches!(delay.length, Length::Normal(_) | Length::Pareto(_));
                    let most = ms(trust.max_delay.get());
                    return Err(if tail {
                        field(kind, Some("most"), ms(longest), format!("at most {most}, as the policy says, such as most={most}"))
                    } else {
                        field(kind, None, ms(longest), format!("at most {most} ms, jitter included, as the policy says"))
                    });
                }
            }
            Fault::Stall(Stall { duration, .. }) | Fault::Blackhole(Blackhole { duration: Some(duration) }) | Fault::Slice(Slice { pause: duration, .. })
                if *duration > trust.max_delay =>
            {
                let parameter = matches!(fault, Fault::Slice(_)).then_some("pause");
                return Err(field(kind, parameter, ms(duration.get()), format!("at most {} ms, as the policy says", ms(trust.max_delay.get()))));
            }
            Fault::Cpu(Cpu { duration, .. }) | Fault::Memory(Memory { duration, .. }) => {
                let most = ms(trust.max_cpu_duration.get());
                match duration {
                    None => return Err(field(kind, Some("for"), "nothing", format!("for=MILLISECONDS, at most {most} as the policy says"))),
                    Some(duration) if *duration > trust.max_cpu_duration => {
                        return Err(field(kind, Some("for"), ms(duration.get()), format!("at most {most}, as the policy says")));
                    }
                    Some(_) => {}
                }
            }
            Fault::Abort(_)
            | Fault::Corrupt(_)
            | Fault::Reset(_)
            | Fault::Truncate(_)
            | Fault::Throttle(_)
            | Fault::Stall(_)
            | Fault::Slice(_)
            | Fault::Blackhole(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use steadfast_api::{
        Size, Span,
        fault::{
            Abort, Before, Corrupt, Delay, DelayFault, EventChange, GrpcCode, Http2Code, HttpAbort, Normal, Pareto, Reset, StallAt, TensorChange, Throttle,
            Truncate, Uniform,
        },
    };

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
                (Fault::Delay(Delay { fixed: Span::from_millis(250), jitter: Span::from_millis(50) }.into()), Percent::HUNDRED),
                (Fault::Abort(Abort::http(HttpAbort::UNAVAILABLE)), Percent::from_ratio(0.25)),
                (Fault::Cpu(Cpu { load: Percent::from_ratio(0.8), cores: 2, duration: Some(Span::from_secs(2)) }), Percent::HUNDRED),
                (Fault::Corrupt(Corrupt::shift(ten)), Percent::HUNDRED),
            ]
        );
        let lines = [HeaderValue::from_static("delay=1"), HeaderValue::from_static("abort=200")];
        assert_eq!(parse(&lines).unwrap().len(), 2);
    }

    #[test]
    fn every_fault_of_policies_can_be_asked_for() {
        let (ms, size) = (Span::from_millis, |bytes| Size::from_bytes(bytes).unwrap());
        let delay = |length, at_most: Option<u64>| DelayFault { length, at_most: at_most.map(ms), before: Before::Request };
        let corrupt = Corrupt::shift(Percent::from_ratio(0.1));
        for (text, fault) in [
            ("delay=100;to=300", Fault::Delay(delay(Length::Uniform(Uniform { from: ms(100), to: ms(300) }), None))),
            ("delay=100;sd=20;most=200", Fault::Delay(delay(Length::Normal(Normal { mean: ms(100), deviation: ms(20) }), Some(200)))),
            ("delay=50;p99=900;most=1000", Fault::Delay(delay(Length::Pareto(Pareto { at_least: ms(50), p99: ms(900) }), Some(1000)))),
            ("delay=5;before=response", Fault::Delay(DelayFault { before: Before::Response, ..Delay { fixed: ms(5), jitter: Span::ZERO }.into() })),
            ("abort;grpc=14", Fault::Abort(Abort::new(None, GrpcCode::try_from(14).ok()).unwrap())),
            ("abort=429;grpc=8", Fault::Abort(Abort::new(HttpAbort::try_from(429).ok(), GrpcCode::try_from(8).ok()).unwrap())),
            ("memory=1048576;for=500", Fault::Memory(Memory { bytes: size(1 << 20), duration: Some(ms(500)) })),
            ("corrupt=0.1;tensors=noise", Fault::Corrupt(Corrupt { tensors: Some(TensorChange::Noise), ..corrupt.clone() })),
            ("corrupt;events=drop;share=0.5", Fault::Corrupt(Corrupt { events: Some(EventChange::Drop), event_share: Percent::from_ratio(0.5), ..corrupt })),
            ("reset", Fault::Reset(Reset { after_bytes: None, http2_code: Http2Code::default() })),
            ("reset;after=0;code=8", Fault::Reset(Reset { after_bytes: Some(size(0)), http2_code: Http2Code::CANCEL })),
            ("truncate=512", Fault::Truncate(Truncate { after_bytes: size(512) })),
            ("throttle=65536", Fault::Throttle(Throttle { bytes_per_second: size(65536) })),
            ("stall=500;at=tokens", Fault::Stall(Stall { duration: ms(500), at: StallAt::Tokens })),
            ("slice=10;pause=5", Fault::Slice(Slice { bytes: size(10), pause: ms(5) })),
            ("blackhole=2000", Fault::Blackhole(Blackhole { duration: Some(ms(2000)) })),
        ] {
            assert_eq!(parse_text(text).unwrap(), [(fault, Percent::HUNDRED)], "{text}");
        }
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
            ("delay=1;jiter=1", "delay;jiter", "1", "jitter, to"),
            ("delay=1;p=1.5", "delay;p", "1.5", "0 to 1"),
            ("delay=1;p=\"x\"", "delay;p", "\"x\"", "0 to 1"),
            ("abort=999", "abort", "999", "200 to 599"),
            ("abort=503.5", "abort", "503.5", "200 to 599"),
            ("cpu=0", "cpu", "0", "above 0"),
            ("cpu=0.5;cores=0", "cpu;cores", "0", "1 to 1024"),
            ("corrupt=2", "corrupt", "2", "at most 1"),
            ("corrupt=0.1;tensors=melt", "corrupt;tensors", "melt", "shift, scale"),
            ("corrupt;events=7", "corrupt;events", "7", "drop, duplicate"),
            ("corrupt;events=drop;share=0", "corrupt;share", "0", "above 0"),
            ("delay=5;to=4", "delay", "5", "shorter one first"),
            ("delay=5;to=9;sd=4", "delay", "5", "exactly one of"),
            ("delay=5;before=lunch", "delay;before", "lunch", "request or response"),
            ("abort", "abort", "true", "200 to 599"),
            ("abort;grpc=17", "abort;grpc", "17", "1 to 16"),
            ("reset=5", "reset", "5", "no value"),
            ("reset;code=14", "reset;code", "14", "0 to 13"),
            ("truncate=-1", "truncate", "-1", "bytes"),
            ("truncate=1.5", "truncate", "1.5", "bytes"),
            ("throttle=0", "throttle.bytesPerSecond", "0", "1 to 1Gi"),
            ("stall=0", "stall.for", "0s", "more than 0"),
            ("stall=5;at=noon", "stall;at", "noon", "firstByte, chunks, tokens"),
            ("slice=10;pause=5ms", "slice;pause", "5ms", "without a unit"),
            ("blackhole", "blackhole", "true", "milliseconds"),
            ("memory=100;for=10", "memory.bytes", "100", "64Ki"),
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
            ("delay=5;p99=100", "delay;most", "most=1000"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.key == key && error.expected.contains(expected), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_parser_and_nothing_illegal_comes_out(text in "[ -~]{0,80}|(delay|abort|cpu|corrupt|reset|truncate|throttle|stall|slice|blackhole|memory)=?[0-9.;a-zA-Z=, -]{0,40}") {
            for (fault, p) in parse_text(&text).unwrap_or_default() {
                prop_assert!(p <= Percent::HUNDRED);
                prop_assert!(super::super::check::check_fault(&fault, "").is_ok());
                match fault {
                    Fault::Delay(delay) => prop_assert!(delay.longest() <= Span::from_secs(3600)),
                    Fault::Abort(abort) => prop_assert!((200..=599).contains(&abort.http_status().get())),
                    Fault::Cpu(cpu) => prop_assert!(cpu.load > Percent::ZERO && cpu.cores >= 1),
                    Fault::Corrupt(corrupt) => prop_assert!(corrupt.magnitude > Percent::ZERO),
                    _ => {}
                }
            }
        }
    }
}
