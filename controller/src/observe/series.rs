//! Time series over the run in equal buckets, for all requests and by pod. Requests lie in the bucket in which they were due.

use std::collections::BTreeMap;

use steadfast_api::report::{Bucket, Series};

use super::{
    availability::Latencies,
    requests::{Kind, PodName, Request, Requests},
};

/// At most this many buckets, whatever the run's length.
pub const BUCKETS_MAX: u64 = 600;
/// Pods with a series of their own; those with most requests come first.
pub const PODS_MAX: usize = 128;
/// Name of the series of requests that reached no pod.
pub const NO_POD: &str = "none";

/// Bucket length for a run of `us` microseconds: a round number, so that axes read well.
pub fn bucket_us(us: i64) -> i64 {
    const ROUND: [i64; 5] = [1, 2, 5, 10, 25];
    // In units of 100 ms, then 1 s, then 10 s and so on.
    let shortest = (us.max(1) as u64).div_ceil(BUCKETS_MAX) as i64;
    let mut unit = 100_000;
    loop {
        if let Some(length) = ROUND.iter().map(|factor| factor * unit).find(|length| *length >= shortest) {
            return length;
        }
        unit *= 10;
    }
}

/// Series of a sealed log from `begin` to `end`, and how many pods have none.
pub fn series(requests: &Requests, begin: i64, end: i64) -> (Series, usize) {
    let bucket = bucket_us(end - begin);
    let count = ((end - begin).max(1) as u64).div_ceil(bucket as u64) as usize;
    let due = requests.due_in(begin, end);

    let mut by_pod: BTreeMap<PodName, Vec<Request>> = BTreeMap::new();
    for request in due {
        by_pod.entry(request.pod).or_default().push(*request);
    }
    let mut pods: Vec<_> = by_pod.into_iter().collect();
    pods.sort_by_key(|(pod, requests)| (*pod != PodName::NONE, std::cmp::Reverse(requests.len())));
    let left_out = pods.len().saturating_sub(PODS_MAX);
    pods.truncate(PODS_MAX);

    let mut latencies = Latencies::default();
    let mut buckets = |requests: &[Request]| -> Vec<Bucket> {
        let mut rest = requests;
        (0..count as i64)
            .map(|index| {
                let (now, later) = rest.split_at(rest.partition_point(|request| request.due < begin + (index + 1) * bucket));
                rest = later;
                fill(now, &mut latencies)
            })
            .collect()
    };
    let all = buckets(due);
    let pods = pods.iter().map(|(pod, requests_of)| (requests.text(*pod).unwrap_or(NO_POD).to_owned(), buckets(requests_of))).collect();
    (Series { bucket_ms: bucket as f64 / 1000.0, all, pods }, left_out)
}

fn fill(requests: &[Request], latencies: &mut Latencies) -> Bucket {
    let mut bucket = Bucket::default();
    if requests.is_empty() {
        return bucket;
    }
    latencies.clear();
    for request in requests {
        bucket.attempted += 1;
        latencies.record(request.latency());
        match request.kind {
            Kind::Right => bucket.good += 1,
            Kind::Wrong => {
                bucket.good += 1;
                bucket.wrong += 1;
            }
            Kind::Upstream => bucket.failed_upstream += 1,
            Kind::Injected => bucket.failed_injected += 1,
            Kind::Proxy => bucket.failed_proxy += 1,
            Kind::Silence => bucket.failed_silence += 1,
        }
    }
    bucket.p50_ms = latencies.quantile_ms(0.5).map(|ms| ms as f32);
    bucket.p99_ms = latencies.quantile_ms(0.99).map(|ms| ms as f32);
    bucket.max_ms = latencies.max_ms().map(|ms| ms as f32);
    bucket
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_round_and_never_too_many() {
        for (seconds, ms) in [(1, 100), (60, 100), (90, 200), (300, 500), (600, 1000), (3600, 10_000), (86_400, 250_000)] {
            assert_eq!(bucket_us(seconds * 1_000_000), ms * 1000, "{seconds} s");
        }
    }

    proptest! {
        #[test]
        fn buckets_sum_to_the_totals(
            requests in prop::collection::vec((0_i64..40_000_000, 0_i64..3_000_000, 0_u8..4, 0_u8..6), 0..400),
            length in 1_i64..40_000_000,
        ) {
            let mut log = Requests::default();
            for (due, took, pod, kind) in requests {
                let pod = if pod == 0 { PodName::NONE } else { log.name(&format!("pod-{pod}").into()) };
                let kind = [Kind::Right, Kind::Wrong, Kind::Upstream, Kind::Injected, Kind::Proxy, Kind::Silence][usize::from(kind)];
                log.push(Request::new(due, due, due + took, pod, kind));
            }
            log.seal();
            let (series, left_out) = series(&log, 0, length);
            let due = log.due_in(0, length);
            prop_assert_eq!(left_out, 0);
            prop_assert!(series.all.len() as u64 <= BUCKETS_MAX);
            prop_assert_eq!(series.all.iter().map(|bucket| bucket.attempted as usize).sum::<usize>(), due.len());
            let of_pods: usize = series.pods.values().flatten().map(|bucket| bucket.attempted as usize).sum();
            prop_assert_eq!(of_pods, due.len());
            for bucket in &series.all {
                let ended = bucket.good + bucket.failed_upstream + bucket.failed_injected + bucket.failed_proxy + bucket.failed_silence;
                prop_assert_eq!(ended, bucket.attempted);
                prop_assert!(bucket.wrong <= bucket.good && bucket.p50_ms <= bucket.p99_ms && bucket.p99_ms <= bucket.max_ms);
            }
        }
    }
}
