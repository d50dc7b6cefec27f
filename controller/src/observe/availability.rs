//! Availability, latency and consistency over any stretch of time, from requests and golden replays.
//!
//! Good ÷ attempted, by the moment a request was due. Silence counts as unavailable, a wrong answer as available and inconsistent. Latency runs from due to
//! the last byte, of every request: one that ended in silence counts with the time that its user waited.

use hdrhistogram::Histogram;
use steadfast_api::{
    golden::Outcome,
    report::{Availability, Consistency, Latency, Service},
};

use super::requests::{Kind, Request};

/// 1 µs to 10 minutes with three significant digits; what is longer counts as 10 minutes.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        // Cannot fail: the bounds are in order and the digits between 0 and 5.
        let histogram = Histogram::new_with_bounds(1, 600_000_000, 3).unwrap_or_else(|_| unreachable!("fixed bounds"));
        Self { histogram, max_us: 0 }
    }
}

impl Latencies {
    pub fn record(&mut self, us: u64) {
        self.histogram.saturating_record(us.max(1));
        self.max_us = self.max_us.max(us);
    }

    pub fn clear(&mut self) {
        self.histogram.reset();
        self.max_us = 0;
    }

    /// In milliseconds; `None` without a value.
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        (!self.histogram.is_empty()).then(|| self.histogram.value_at_quantile(quantile).min(self.max_us) as f64 / 1000.0)
    }

    pub fn max_ms(&self) -> Option<f64> {
        (!self.histogram.is_empty()).then_some(self.max_us as f64 / 1000.0)
    }

    fn summary(&self) -> Latency {
        let at = |quantile| self.quantile_ms(quantile).unwrap_or_default();
        Latency {
            count: self.histogram.len(),
            mean_ms: if self.histogram.is_empty() { 0.0 } else { self.histogram.mean() / 1000.0 },
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: self.max_us as f64 / 1000.0,
        }
    }
}

/// Counts as they come in.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    availability: Availability,
    latencies: Latencies,
    consistency: Consistency,
}

impl Measured {
    pub fn request(&mut self, request: &Request) {
        let counts = &mut self.availability;
        counts.attempted += 1;
        match request.kind {
            Kind::Right | Kind::Wrong => {
                counts.good += 1;
                self.consistency.answers_checked += 1;
                self.consistency.answers_right += u64::from(request.kind == Kind::Right);
            }
            Kind::Upstream => counts.failed_upstream += 1,
            Kind::Injected => counts.failed_injected += 1,
            Kind::Proxy => counts.failed_proxy += 1,
            Kind::Silence => counts.failed_silence += 1,
        }
        self.latencies.record(request.latency());
    }

    pub fn replay(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Match => self.consistency.replays_matched += 1,
            Outcome::Mismatch => self.consistency.replays_mismatched += 1,
            Outcome::NoAnswer => self.consistency.replays_unanswered += 1,
        }
    }

    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    pub fn service(&self) -> Service {
        let Self { availability, latencies, consistency } = self;
        let checked = consistency.answers_checked + consistency.replays_matched + consistency.replays_mismatched;
        Service {
            availability: Availability { ratio: ratio(availability.good, availability.attempted), ..availability.clone() },
            latency: latencies.summary(),
            consistency: Consistency { ratio: ratio(consistency.answers_right + consistency.replays_matched, checked), ..consistency.clone() },
        }
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::requests::PodName;

    #[test]
    fn silence_is_unavailable_a_wrong_answer_is_not_and_no_answer_is_never_drift() {
        let mut measured = Measured::default();
        for (kind, ms) in [(Kind::Right, 1), (Kind::Wrong, 2), (Kind::Silence, 2000), (Kind::Proxy, 1), (Kind::Injected, 1), (Kind::Upstream, 1)] {
            measured.request(&Request::new(0, 0, ms * 1000, PodName::NONE, kind));
        }
        for outcome in [Outcome::Match, Outcome::NoAnswer, Outcome::Mismatch] {
            measured.replay(outcome);
        }
        let service = measured.service();
        assert_eq!((service.availability.good, service.availability.attempted, service.availability.failed_silence), (2, 6, 1));
        assert_eq!(service.availability.ratio, Some(2.0 / 6.0));
        assert_eq!(service.consistency.ratio, Some(2.0 / 4.0));
        assert_eq!(service.latency.max_ms, 2000.0);
    }

    #[test]
    fn nothing_attempted_has_no_ratio() {
        let service = Measured::default().service();
        assert_eq!((service.availability.ratio, service.consistency.ratio, service.latency.count), (None, None, 0));
    }

    #[test]
    fn quantiles_are_within_a_thousandth_and_never_above_the_largest() {
        let mut latencies = Latencies::default();
        for us in 1..=100_000 {
            latencies.record(us);
        }
        let p99 = latencies.quantile_ms(0.99).unwrap();
        assert!((p99 - 99.0).abs() < 0.1, "{p99}");
        assert_eq!(latencies.quantile_ms(1.0), Some(100.0));
    }
}
