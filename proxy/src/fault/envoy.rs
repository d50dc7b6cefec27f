//! Envoy's fault headers as another way to say what `steadfast-fault` says, for clients that have them already (Envoy, "HTTP fault injection filter").
//!
//! `x-envoy-fault-delay-request` (milliseconds), `-abort-request` (HTTP status), `-abort-grpc-request` (gRPC code), `-throughput-response` (KiB a second), and the
//! percentages of the delay, the abort and the throughput. Other than Envoy, which passes over what it cannot follow, a value that cannot be is refused by name.

use std::time::Duration;

use http::HeaderMap;
use steadfast_api::{
    Percent, Size, Span,
    fault::{Abort, Delay, Fault, GrpcCode, HttpAbort, Throttle},
};

use crate::problem::BadField;

/// What their names begin with.
pub const PREFIX: &str = "x-envoy-fault-";

const DELAY: &str = "x-envoy-fault-delay-request";
const DELAY_PERCENTAGE: &str = "x-envoy-fault-delay-request-percentage";
const ABORT: &str = "x-envoy-fault-abort-request";
const ABORT_GRPC: &str = "x-envoy-fault-abort-grpc-request";
const ABORT_PERCENTAGE: &str = "x-envoy-fault-abort-request-percentage";
const THROUGHPUT: &str = "x-envoy-fault-throughput-response";
const THROUGHPUT_PERCENTAGE: &str = "x-envoy-fault-throughput-response-percentage";
const ALL: [&str; 7] = [DELAY, DELAY_PERCENTAGE, ABORT, ABORT_GRPC, ABORT_PERCENTAGE, THROUGHPUT, THROUGHPUT_PERCENTAGE];

/// Whether there is any of them.
pub fn asks(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// The faults that they ask for.
pub fn parse(headers: &HeaderMap) -> Result<Vec<(Fault, Percent)>, BadField> {
    if let Some(name) = headers.keys().map(http::HeaderName::as_str).find(|name| name.starts_with(PREFIX) && !ALL.contains(name)) {
        return Err(BadField { key: name.to_owned(), value: "this header".to_owned(), expected: format!("one of {}", ALL.join(", ")) });
    }
    let share = |name| {
        number(headers, name, 0..=100, "a percentage from 0 to 100")
            .map(|share| share.map_or(Percent::HUNDRED, |share| Percent::from_ratio(share as f64 / 100.0)))
    };
    let (of_delay, of_abort, of_throughput) = (share(DELAY_PERCENTAGE)?, share(ABORT_PERCENTAGE)?, share(THROUGHPUT_PERCENTAGE)?);
    let mut faults = Vec::new();
    if let Some(ms) = number(headers, DELAY, 0..=3_600_000, "milliseconds from 0 to 3600000")? {
        let delay = Delay { fixed: Span::new(Duration::from_millis(ms)), jitter: Span::ZERO };
        faults.push((Fault::Delay(delay.into()), of_delay));
    }
    let status = number(headers, ABORT, 200..=599, "a status from 200 to 599")?.and_then(|status| HttpAbort::try_from(status as u16).ok());
    let code = number(headers, ABORT_GRPC, 1..=16, "a gRPC code from 1 to 16")?.and_then(|code| GrpcCode::try_from(code as u16).ok());
    if let Some(abort) = Abort::new(status, code) {
        faults.push((Fault::Abort(abort), of_abort));
    }
    if let Some(kib) = number(headers, THROUGHPUT, 1..=1 << 20, "KiB a second from 1 to 1048576")? {
        let bytes_per_second = Size::from_bytes(kib << 10).unwrap_or_default();
        faults.push((Fault::Throttle(Throttle { bytes_per_second }), of_throughput));
    }
    Ok(faults)
}

/// `field` of what [`parse`] gave, by the name of the header that asked for it.
pub fn by_header(field: BadField) -> BadField {
    let name = match field.key.split(';').next() {
        Some("delay") => DELAY,
        Some("abort") => ABORT,
        Some("throttle") => THROUGHPUT,
        _ => return field,
    };
    BadField { key: name.to_owned(), ..field }
}

fn number(headers: &HeaderMap, name: &'static str, range: std::ops::RangeInclusive<u64>, expected: &str) -> Result<Option<u64>, BadField> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bad = |value: String| BadField { key: name.to_owned(), value, expected: expected.to_owned() };
    if values.next().is_some() {
        return Err(bad("two values".to_owned()));
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|number| digits && range.contains(number))
        .map(Some)
        .ok_or_else(|| bad(format!("{:?}", text.chars().take(120).collect::<String>())))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn parsed(headers: &[(&'static str, &'static str)]) -> Result<Vec<(Fault, Percent)>, BadField> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(asks(&map), !headers.is_empty());
        parse(&map)
    }

    #[test]
    fn every_header_of_envoys_is_understood() {
        let faults =
            parsed(&[(DELAY, "250"), (DELAY_PERCENTAGE, "10"), (ABORT, "503"), (ABORT_GRPC, "14"), (ABORT_PERCENTAGE, "25"), (THROUGHPUT, "64")]).unwrap();
        let abort = Abort::new(HttpAbort::try_from(503).ok(), GrpcCode::try_from(14).ok()).unwrap();
        assert_eq!(
            faults,
            [
                (Fault::Delay(Delay { fixed: Span::from_millis(250), jitter: Span::ZERO }.into()), Percent::from_ratio(0.1)),
                (Fault::Abort(abort), Percent::from_ratio(0.25)),
                (Fault::Throttle(Throttle { bytes_per_second: Size::from_bytes(65536).unwrap() }), Percent::HUNDRED),
            ]
        );
        assert_eq!(parsed(&[(ABORT_PERCENTAGE, "25")]).unwrap(), []);
    }

    #[test]
    fn what_envoy_passes_over_is_refused_by_name() {
        for (headers, key, expected) in [
            (&[(ABORT, "999")][..], ABORT, "200 to 599"),
            (&[(ABORT, "503"), (DELAY_PERCENTAGE, "some")], DELAY_PERCENTAGE, "0 to 100"),
            (&[(ABORT_GRPC, "0")], ABORT_GRPC, "1 to 16"),
            (&[(DELAY, "soon")], DELAY, "milliseconds"),
            (&[(DELAY, "+5")], DELAY, "milliseconds"),
            (&[(DELAY, "5"), (DELAY, "6")], DELAY, "milliseconds"),
            (&[(DELAY, "5"), (DELAY_PERCENTAGE, "101")], DELAY_PERCENTAGE, "0 to 100"),
            (&[(THROUGHPUT, "0")], THROUGHPUT, "KiB"),
            (&[("x-envoy-fault-abort", "503")], "x-envoy-fault-abort", "x-envoy-fault-abort-request"),
        ] {
            let error = parsed(headers).unwrap_err();
            assert!(error.key == key && error.expected.contains(expected), "{error:?}");
        }
    }
}
