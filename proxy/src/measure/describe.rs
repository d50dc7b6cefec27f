//! The page on the sidecar's metrics, made from the code that counts them: `docs/metrics.md`.

use std::fmt::Write;

use super::Metrics;
use crate::admin::GAUGES;

/// The page.
pub fn page() -> String {
    let mut text = String::from(
        "# Metrics of a sidecar\n\nAt `/metrics` of the admin port and of the health port (4179 in a pod), in Prometheus' text format. This page is made from the code \
         (`STEADFAST_WRITE_METRICS=1 cargo test -p steadfast-proxy the_page_on_metrics`), and a test holds it against it. Labels are bounded: of policies and golden sets the \
         first 64 names are told apart, later ones count as `other`.\n\n| Metric | Type | Labels | What it says |\n|---|---|---|---|\n",
    );
    let mut rows: Vec<(String, String, String)> = Metrics::new()
        .described
        .iter()
        .map(|metric| {
            let labels: Vec<_> = metric.variable_labels.iter().map(|label| format!("`{label}`")).collect();
            (metric.fq_name.clone(), labels.join(", "), metric.help.clone())
        })
        .collect();
    rows.extend(GAUGES.map(|(name, help)| (name.to_owned(), String::new(), help.to_owned())));
    rows.sort();
    for (name, labels, help) in rows {
        // The naming rules of Prometheus, which a test of ours keeps.
        let kind = if name.ends_with("_total") {
            "counter"
        } else if name.ends_with("_seconds") {
            "histogram"
        } else {
            "gauge"
        };
        // A String takes everything.
        let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_on_metrics_is_what_the_code_counts() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if std::env::var("STEADFAST_WRITE_METRICS").as_deref() == Ok("1") {
            std::fs::write(&file, page()).unwrap();
        }
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(written == page(), "docs/metrics.md is not what the code counts: STEADFAST_WRITE_METRICS=1 cargo test -p steadfast-proxy the_page_on_metrics");
    }

    #[test]
    fn every_metric_is_of_the_type_that_its_name_says() {
        let metrics = Metrics::new();
        metrics.requests.with_label_values(&["upstream", "200"]).inc();
        metrics.duration.with_label_values(&["upstream"]).observe(1.0);
        metrics.golden_verdict.with_label_values(&["set", "Pass"]).set(1);
        for family in metrics.registry.gather() {
            let kind = match family.get_field_type() {
                prometheus::proto::MetricType::COUNTER => "counter",
                prometheus::proto::MetricType::HISTOGRAM => "histogram",
                _ => "gauge",
            };
            assert!(page().contains(&format!("| `{}` | {kind} |", family.name())), "{} is a {kind}", family.name());
        }
    }
}
