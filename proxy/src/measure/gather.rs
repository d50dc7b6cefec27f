//! All threads' registries as one text: metrics of the same name and labels are added up.

use std::collections::BTreeMap;

use prometheus::{
    Encoder, TextEncoder,
    proto::{Bucket, Histogram, Metric, MetricFamily, MetricType},
};

use super::Metrics;

/// Content type of [`text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The metrics of all threads in Prometheus' text format.
pub fn text(threads: &[Metrics]) -> String {
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    for family in threads.iter().flat_map(|thread| thread.registry.gather()) {
        match families.get_mut(family.name()) {
            None => drop(families.insert(family.name().to_owned(), family)),
            Some(sum) => add(sum, family),
        }
    }
    let families: Vec<_> = families.into_values().collect();
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::error!(%error, "metrics could not be written");
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn add(sum: &mut MetricFamily, mut other: MetricFamily) {
    let kind = sum.get_field_type();
    for metric in other.take_metric() {
        match sum.mut_metric().iter_mut().find(|known| known.get_label() == metric.get_label()) {
            None => sum.mut_metric().push(metric),
            Some(known) => add_metric(kind, known, &metric),
        }
    }
}

fn add_metric(kind: MetricType, sum: &mut Metric, other: &Metric) {
    match kind {
        MetricType::COUNTER => {
            let mut counter = sum.get_counter().clone();
            counter.set_value(counter.get_value() + other.get_counter().get_value());
            sum.set_counter(counter);
        }
        MetricType::GAUGE => {
            let mut gauge = sum.get_gauge().clone();
            gauge.set_value(gauge.get_value() + other.get_gauge().get_value());
            sum.set_gauge(gauge);
        }
        MetricType::HISTOGRAM => {
            let (a, b) = (sum.get_histogram(), other.get_histogram());
            let mut both = Histogram::default();
            both.set_sample_count(a.get_sample_count() + b.get_sample_count());
            both.set_sample_sum(a.get_sample_sum() + b.get_sample_sum());
            let buckets = a.get_bucket().iter().zip(b.get_bucket()).map(|(a, b)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(a.upper_bound());
                bucket.set_cumulative_count(a.cumulative_count() + b.cumulative_count());
                bucket
            });
            both.set_bucket(buckets.collect());
            sum.set_histogram(both);
        }
        // Nothing here makes any other kind.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_added_up() {
        let threads = [Metrics::new(), Metrics::new()];
        for (thread, count) in threads.iter().zip([2, 3]) {
            thread.requests.with_label_values(&["upstream", "200"]).inc_by(count);
            thread.duration.with_label_values(&["upstream"]).observe(0.002);
            thread.in_progress.set(1);
        }
        threads[1].requests.with_label_values(&["proxy", "503"]).inc();
        let text = text(&threads);
        for line in [
            r#"steadfast_requests_total{code="200",origin="upstream"} 5"#,
            r#"steadfast_requests_total{code="503",origin="proxy"} 1"#,
            r#"steadfast_request_duration_seconds_bucket{origin="upstream",le="0.0025"} 2"#,
            r#"steadfast_request_duration_seconds_count{origin="upstream"} 2"#,
            "steadfast_requests_in_progress 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
