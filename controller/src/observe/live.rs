//! What has to be known while the run goes on: availability and latency over the last moments, and since when all has been well.
//!
//! Requests count by the moment they ended, because that is when they are known.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    availability::Latencies,
    requests::{Kind, PodName, Request},
};

/// Over the last few seconds.
#[derive(Clone, Debug, Default)]
pub struct Glance {
    /// `None` without a request.
    pub availability: Option<f64>,
    pub p99_ms: Option<f64>,
    pub pods: HashMap<PodName, f64>,
}

#[derive(Clone, Copy)]
struct Ended {
    at: i64,
    latency_us: u32,
    pod: PodName,
    good: bool,
}

/// Requests that ended lately.
#[derive(Default)]
pub struct Live {
    ended: VecDeque<Ended>,
    keep_us: i64,
    last_failure: Option<i64>,
    last_wrong: Option<i64>,
    /// First good answer of a pod since it was last out of service.
    first_good: HashMap<PodName, i64>,
}

impl Live {
    /// At 1,000 requests a second, over four minutes.
    const MAX: usize = 1 << 18;

    /// `keep_us`: how far back questions will reach, in microseconds.
    pub fn new(keep_us: i64) -> Self {
        Self { keep_us, ..Self::default() }
    }

    pub fn request(&mut self, request: &Request) {
        let at = request.ended();
        let good = request.kind.good();
        if !good {
            self.last_failure = self.last_failure.max(Some(at));
        }
        if request.kind == Kind::Wrong {
            self.wrong(at);
        }
        if good && request.pod != PodName::NONE {
            self.first_good.entry(request.pod).or_insert(at);
        }
        self.ended.push_back(Ended { at, latency_us: request.latency() as u32, pod: request.pod, good });
        // Requests end nearly in order: the oldest is old enough as a guide.
        while self.ended.len() > Self::MAX || self.ended.front().is_some_and(|first| first.at < at - self.keep_us) {
            self.ended.pop_front();
        }
    }

    /// A wrong answer, to whomever.
    pub fn wrong(&mut self, at: i64) {
        self.last_wrong = self.last_wrong.max(Some(at));
    }

    /// The pod left the Service: its next good answer is its first.
    pub fn out_of_service(&mut self, pod: PodName) {
        self.first_good.remove(&pod);
    }

    pub fn first_good(&self, pod: PodName) -> Option<i64> {
        self.first_good.get(&pod).copied()
    }

    /// Pods of which somebody got a good answer since `from`.
    pub fn answered_since(&self, from: i64) -> HashSet<PodName> {
        self.ended.iter().filter(|ended| ended.at >= from && ended.good).map(|ended| ended.pod).collect()
    }

    /// Pods have other names from now on; those that have none are forgotten.
    pub fn rename(&mut self, names: &HashMap<PodName, PodName>) {
        for ended in &mut self.ended {
            ended.pod = names.get(&ended.pod).copied().unwrap_or(PodName::NONE);
        }
        self.first_good = self.first_good.iter().filter_map(|(pod, at)| Some((*names.get(pod)?, *at))).collect();
    }

    /// The last moment at which a request failed or an answer was wrong.
    pub fn last_trouble(&self) -> Option<i64> {
        self.last_failure.max(self.last_wrong)
    }

    /// Good ÷ all that ended since `from`, and how many did.
    pub fn availability(&self, from: i64) -> (Option<f64>, u64) {
        let (mut good, mut all) = (0_u64, 0_u64);
        for ended in self.ended.iter().filter(|ended| ended.at >= from) {
            all += 1;
            good += u64::from(ended.good);
        }
        ((all > 0).then(|| good as f64 / all as f64), all)
    }

    pub fn glance(&self, from: i64) -> Glance {
        let mut all = Latencies::default();
        let mut by_pod: HashMap<PodName, Vec<u32>> = HashMap::new();
        for ended in self.ended.iter().filter(|ended| ended.at >= from) {
            all.record(u64::from(ended.latency_us));
            by_pod.entry(ended.pod).or_default().push(ended.latency_us);
        }
        let mut one = Latencies::default();
        let mut pods = HashMap::new();
        for (pod, latencies) in by_pod {
            one.clear();
            for us in latencies {
                one.record(u64::from(us));
            }
            pods.extend(one.quantile_ms(0.99).map(|p99| (pod, p99)));
        }
        Glance { availability: self.availability(from).0, p99_ms: all.quantile_ms(0.99), pods }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glance_sees_only_what_ended_lately() {
        let mut live = Live::new(10_000_000);
        let ended = |at: i64, took: i64, kind| Request::new(at - took, at - took, at, PodName::NONE, kind);
        live.request(&ended(1_000_000, 1000, Kind::Silence));
        for at in 0..100 {
            live.request(&ended(5_000_000 + at * 1000, 2000, Kind::Right));
        }
        live.request(&ended(5_200_000, 1000, Kind::Wrong));
        let glance = live.glance(4_000_000);
        assert_eq!((glance.availability, glance.p99_ms), (Some(1.0), Some(2.0)));
        assert_eq!(live.availability(0), (Some(101.0 / 102.0), 102));
        assert_eq!(live.last_trouble(), Some(5_200_000), "a wrong answer is trouble");
        live.request(&ended(15_000_000, 1000, Kind::Right));
        assert_eq!(live.availability(0), (Some(1.0), 102), "the failure is out of reach and forgotten, the rest is kept");
    }
}
