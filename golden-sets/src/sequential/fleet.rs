//! One verdict over many servers that replay the same set. E-values may be averaged whatever depends on whatever, which p-values may not.

use super::log_sum;

/// log of the average of e-values given as logs: evidence that some server of the fleet drifts. `None` for no servers.
pub fn average(log_values: &[f64]) -> Option<f64> {
    (!log_values.is_empty()).then(|| log_sum(log_values.iter().copied()) - (log_values.len() as f64).ln())
}

/// Which servers drift, so that at most a share `false_discoveries` of those named is wrong on average (e-BH; Wang and Ramdas 2022). Indices, strongest first.
pub fn discoveries(log_values: &[f64], false_discoveries: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..log_values.len()).collect();
    order.sort_by(|a, b| log_values[*b].total_cmp(&log_values[*a]));
    let servers = log_values.len() as f64;
    let count = (1..=order.len()).rev().find(|k| log_values[order[k - 1]] >= (servers / (*k as f64 * false_discoveries)).ln());
    order.truncate(count.unwrap_or(0));
    order
}
