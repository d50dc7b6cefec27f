//! Recovery over all outages. A censored outage counts as longer than every recovered one, and so does one whose begin nobody saw: a quantile that falls among them is
//! absent, never flattering.

use steadfast_api::{
    mark::{Mark, Outage},
    report::RecoverySummary,
};

/// Quantiles over `outages`.
pub fn summary(outages: &[Outage]) -> RecoverySummary {
    let known = |outage: &Outage, ms: Option<f64>| ms.filter(|_| !outage.began_before);
    let took = |mark| middle_and_largest(outages.iter().map(|outage| known(outage, until(outage, mark))).collect());
    let (first_correct_p50_ms, first_correct_max_ms) = took(Mark::FirstCorrectPrediction);
    let (sustained_p50_ms, sustained_max_ms) = took(Mark::Sustained);
    // An outage that no client noticed has no routing outage: it is left out, not counted as infinite.
    let (routing_p50_ms, routing_max_ms) =
        middle_and_largest(outages.iter().filter_map(|outage| Some(known(outage, Some(outage.routing_outage_ms?)))).collect());
    RecoverySummary {
        outages: outages.len() as u32,
        censored: outages.iter().filter(|outage| outage.censored).count() as u32,
        first_correct_p50_ms,
        first_correct_max_ms,
        sustained_p50_ms,
        sustained_max_ms,
        routing_p50_ms,
        routing_max_ms,
    }
}

/// From t0 to `mark`, in milliseconds; `None` when it was never reached.
pub fn until(outage: &Outage, mark: Mark) -> Option<f64> {
    outage.marks.between(Mark::Fault, mark)
}

/// Lower median and maximum, `None` being longer than everything.
fn middle_and_largest(mut values: Vec<Option<f64>>) -> (Option<f64>, Option<f64>) {
    values.sort_by(|a, b| a.unwrap_or(f64::INFINITY).total_cmp(&b.unwrap_or(f64::INFINITY)));
    let middle = values.len().checked_sub(1).and_then(|last| values[last / 2]);
    (middle, values.last().copied().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_recovered_is_longer_than_everything() {
        assert_eq!(middle_and_largest(vec![None, Some(2.0), Some(1.0)]), (Some(2.0), None));
        assert_eq!(middle_and_largest(vec![None, None, Some(1.0)]), (None, None));
        assert_eq!(middle_and_largest(vec![Some(3.0), Some(1.0)]), (Some(1.0), Some(3.0)));
        assert_eq!(middle_and_largest(Vec::new()), (None, None));
    }
}
