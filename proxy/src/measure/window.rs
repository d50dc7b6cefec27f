//! What passed since the last report.

use std::{collections::HashMap, sync::Arc};

use hdrhistogram::Histogram;
use steadfast_api::{
    FaultKind,
    policy::Origin,
    sidecar::{InjectedCount, RequestWindow, ResponseCount},
};

use crate::clock;

/// Latencies from a microsecond to an hour, to two digits.
fn latencies() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1_000, 3_600_000_000_000, 2).expect("constant bounds are valid");
    histogram.auto(false);
    histogram
}

/// Counts of one window of time.
pub struct Window {
    begun_ns: u64,
    responses: HashMap<(Origin, u16), u64>,
    injected: HashMap<(Arc<str>, FaultKind), u64>,
    pub over_budget: u64,
    latency: Histogram<u64>,
    /// Responses that were taken in, over all windows.
    pub total: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

impl Window {
    pub fn new() -> Self {
        Self { begun_ns: clock::now_ns(), responses: HashMap::new(), injected: HashMap::new(), over_budget: 0, latency: latencies(), total: 0 }
    }

    pub fn response(&mut self, origin: Origin, status: u16, latency_ns: u64) {
        *self.responses.entry((origin, status)).or_default() += 1;
        self.latency.saturating_record(latency_ns);
    }

    pub fn injected(&mut self, policy: &Arc<str>, kind: FaultKind) {
        *self.injected.entry((Arc::clone(policy), kind)).or_default() += 1;
    }

    /// Adds `other`, which is empty afterwards.
    pub fn take_in(&mut self, other: &mut Self) {
        if other.responses.is_empty() && other.injected.is_empty() && other.over_budget == 0 {
            return;
        }
        for (key, count) in other.responses.drain() {
            *self.responses.entry(key).or_default() += count;
            self.total += count;
        }
        for (key, count) in other.injected.drain() {
            *self.injected.entry(key).or_default() += count;
        }
        self.over_budget += std::mem::take(&mut other.over_budget);
        // Both have the same bounds.
        let _ = self.latency.add(&other.latency);
        other.latency.reset();
    }

    /// The window as it is reported; a new one begins.
    pub fn report(&mut self) -> RequestWindow {
        let now = clock::now_ns();
        let mut responses: Vec<_> = self.responses.drain().map(|((origin, status), count)| ResponseCount { origin, status, count }).collect();
        responses.sort_by_key(|count| (count.origin, count.status));
        let mut injected: Vec<_> = self.injected.drain().map(|((policy, kind), count)| InjectedCount { policy: policy.to_string(), kind, count }).collect();
        injected.sort_by(|a, b| (&a.policy, a.kind).cmp(&(&b.policy, b.kind)));
        let quantile = |q| if self.latency.is_empty() { 0 } else { self.latency.value_at_quantile(q) };
        let report = RequestWindow {
            window_ns: now - self.begun_ns,
            responses,
            injected,
            over_budget: std::mem::take(&mut self.over_budget),
            latency_p50_ns: quantile(0.5),
            latency_p99_ns: quantile(0.99),
            burned: Vec::new(),
        };
        self.begun_ns = now;
        self.latency.reset();
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_threads_add_up_and_begin_anew() {
        let (mut all, mut one) = (Window::new(), Window::new());
        for latency in 1..=100 {
            one.response(Origin::Upstream, 200, latency * 1_000_000);
        }
        one.injected(&"slow".into(), FaultKind::Delay);
        all.response(Origin::Proxy, 503, 1_000_000);
        all.take_in(&mut one);
        let report = all.report();
        assert_eq!(report.responses.iter().map(|count| (count.origin, count.count)).collect::<Vec<_>>(), [(Origin::Upstream, 100), (Origin::Proxy, 1)]);
        assert!((49_000_000..=51_000_000).contains(&report.latency_p50_ns), "{report:?}");
        assert_eq!(report.injected[0].count, 1);
        all.take_in(&mut one);
        let empty = all.report();
        assert_eq!(all.total, 100, "what was taken in stays counted");
        assert!(empty.responses.is_empty() && empty.injected.is_empty() && empty.latency_p99_ns == 0);
    }
}
