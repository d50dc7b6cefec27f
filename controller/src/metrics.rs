//! What this controller counts, in Prometheus' text format.

use http::StatusCode;
use prometheus::{Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use steadfast_api::golden::Verdict;

/// Of `steadfast_golden_set_pods`.
pub const POD_STATES: [&str; 4] = ["matched", "passing", "failing", "gated"];
/// Seconds; admission should be over in milliseconds.
const ADMISSION_SECONDS: [f64; 9] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0];

/// Handles to every metric.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    pub admissions: IntCounterVec,
    pub admission_duration: Histogram,
    pub skipped: IntCounterVec,
    pub missing_sidecar: IntGaugeVec,
    pub bypassing: IntGauge,
    pub events_dropped: IntCounter,
    pub sidecars_connected: IntGauge,
    pub not_understood: IntGauge,
    pub golden_verdict: IntGaugeVec,
    pub golden_pods: IntGaugeVec,
    pub golden_ready: IntGaugeVec,
    pub golden_gate_blocked: IntGaugeVec,
    pub leader: IntGauge,
    pub scheduled: IntCounterVec,
    pub outages: IntCounterVec,
    pub availability: GaugeVec,
    pub live_availability: GaugeVec,
    pub open_outages: IntGaugeVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// # Panics
    /// Never: names and labels are constants, and registered once.
    pub fn new() -> Self {
        fn kept<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
            let made = made.expect("constant names are valid");
            registry.register(Box::new(made.clone())).expect("each is registered once");
            made
        }
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(name, help);
        Self {
            admissions: kept(&registry, IntCounterVec::new(opts("steadfast_admissions_total", "Pods that the API server asked about."), &["outcome"])),
            admission_duration: kept(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("steadfast_admission_duration_seconds", "From a question of the API server's to its answer.")
                        .buckets(ADMISSION_SECONDS.to_vec()),
                ),
            ),
            skipped: kept(
                &registry,
                IntCounterVec::new(opts("steadfast_injection_skipped_total", "Pods that asked for the sidecar and started without."), &["reason"]),
            ),
            missing_sidecar: kept(
                &registry,
                IntGaugeVec::new(opts("steadfast_pods_missing_sidecar", "Pods that ask for the sidecar and run without it."), &["target_namespace"]),
            ),
            bypassing: kept(&registry, IntGauge::new("steadfast_services_bypassing_sidecar", "Services by which users go past the sidecar.")),
            events_dropped: kept(&registry, IntCounter::new("steadfast_events_dropped_total", "Events that were not told for want of room.")),
            sidecars_connected: kept(&registry, IntGauge::new("steadfast_sidecars_connected", "Sidecars that listen to this replica.")),
            not_understood: kept(
                &registry,
                IntGauge::new("steadfast_sidecars_not_understood", "What sidecars of another version said and this one passed over, since it leads."),
            ),
            golden_verdict: kept(
                &registry,
                IntGaugeVec::new(
                    opts("steadfast_golden_set_verdict", "1 for the verdict that a GoldenSet's pods have together."),
                    &["target_namespace", "set", "verdict"],
                ),
            ),
            golden_pods: kept(
                &registry,
                IntGaugeVec::new(opts("steadfast_golden_set_pods", "Pods of a GoldenSet by state."), &["target_namespace", "set", "state"]),
            ),
            golden_ready: kept(
                &registry,
                IntGaugeVec::new(opts("steadfast_golden_set_ready", "1 while every matching pod replays the GoldenSet."), &["target_namespace", "set"]),
            ),
            golden_gate_blocked: kept(
                &registry,
                IntGaugeVec::new(
                    opts(
                        "steadfast_golden_set_gate_blocked",
                        "1 while pods that answer wrong stay in the Service, since they may not leave; the condition `Gated` says why.",
                    ),
                    &["target_namespace", "set"],
                ),
            ),
            leader: kept(&registry, IntGauge::new("steadfast_leader", "1 while this replica leads.")),
            scheduled: kept(
                &registry,
                IntCounterVec::new(opts("steadfast_scheduled_moments_total", "Moments of ResilienceSchedules: Started, or why nothing was run."), &["outcome"]),
            ),
            outages: kept(
                &registry,
                IntCounterVec::new(
                    opts("steadfast_watched_outages_total", "Outages that ResilienceTests without steps have seen."),
                    &["target_namespace", "test"],
                ),
            ),
            availability: kept(
                &registry,
                GaugeVec::new(
                    opts("steadfast_watched_availability_ratio", "Of the last window of a ResilienceTest without steps."),
                    &["target_namespace", "test"],
                ),
            ),
            live_availability: kept(
                &registry,
                GaugeVec::new(
                    opts("steadfast_watched_live_availability_ratio", "Over the last five seconds of a ResilienceTest without steps."),
                    &["target_namespace", "test"],
                ),
            ),
            open_outages: kept(
                &registry,
                IntGaugeVec::new(
                    opts("steadfast_watched_open_outages", "Outages that a ResilienceTest without steps sees now and that are not over."),
                    &["target_namespace", "test"],
                ),
            ),
            registry,
        }
    }

    /// How a watch stands now; `None`: nobody knows, and nothing is told.
    pub fn watch_now(&self, namespace: &str, test: &str, availability: Option<f64>, open: Option<usize>) {
        let labels = [namespace, test];
        match availability {
            Some(ratio) => self.live_availability.with_label_values(&labels).set(ratio),
            None => drop(self.live_availability.remove_label_values(&labels)),
        }
        match open {
            Some(open) => self.open_outages.with_label_values(&labels).set(open as i64),
            None => drop(self.open_outages.remove_label_values(&labels)),
        }
    }

    /// A watch is over: its labels go.
    pub fn forget_watch(&self, namespace: &str, test: &str) {
        self.watch_now(namespace, test, None, None);
        let _ = self.outages.remove_label_values(&[namespace, test]);
        let _ = self.availability.remove_label_values(&[namespace, test]);
    }

    /// A GoldenSet is gone: its labels go.
    pub fn forget_golden_set(&self, namespace: &str, set: &str) {
        for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::ReferenceBroken] {
            let _ = self.golden_verdict.remove_label_values(&[namespace, set, &verdict.to_string()]);
        }
        for state in POD_STATES {
            let _ = self.golden_pods.remove_label_values(&[namespace, set, state]);
        }
        let _ = self.golden_ready.remove_label_values(&[namespace, set]);
        let _ = self.golden_gate_blocked.remove_label_values(&[namespace, set]);
    }

    /// Everything, as Prometheus reads it.
    pub fn text(&self) -> (StatusCode, Vec<u8>) {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_told_with_its_help() {
        let metrics = Metrics::new();
        metrics.skipped.with_label_values(&["HostNetwork"]).inc();
        metrics.admission_duration.observe(0.001);
        let (status, text) = metrics.text();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(status, 200);
        for line in ["steadfast_injection_skipped_total{reason=\"HostNetwork\"} 1", "# HELP steadfast_leader", "steadfast_admission_duration_seconds_count 1"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn what_nobody_knows_of_a_watch_is_not_told() {
        let metrics = Metrics::new();
        let told = || {
            let text = String::from_utf8(metrics.text().1).unwrap();
            text.lines().filter(|line| line.starts_with("steadfast_watched")).map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.watch_now("n", "t", Some(0.48), Some(2));
        let (ratio, open) = ("steadfast_watched_live_availability_ratio", "steadfast_watched_open_outages");
        let labels = "{target_namespace=\"n\",test=\"t\"}";
        assert_eq!(told(), [format!("{ratio}{labels} 0.48"), format!("{open}{labels} 2")]);
        metrics.watch_now("n", "t", None, Some(0));
        assert_eq!(told(), [format!("{open}{labels} 0")]);
        metrics.forget_watch("n", "t");
        assert_eq!(told(), [""; 0]);
    }

    /// Those that have labels and no value yet are not in what Prometheus reads, so the names are taken from this file.
    #[test]
    fn every_metric_stands_on_the_page_and_no_other() {
        let page = include_str!("../../docs/controller-metrics.md");
        let program = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let names: Vec<&str> = program.split('"').filter(|text| text.starts_with("steadfast_")).collect();
        for name in &names {
            assert!(page.contains(&format!("\n| `{name}` |")), "docs/controller-metrics.md has no row for {name}");
        }
        assert_eq!(page.matches("\n| `steadfast_").count(), names.len(), "docs/controller-metrics.md has a row for what is not counted");
    }
}
