//! What the sidecars' golden replays said, by pod. Bounded; what comes beyond is counted.

use std::collections::HashMap;

use steadfast_api::{
    golden::{Outcome, Verdict},
    sidecar::GoldenReplay,
};

/// One replay.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Microseconds since the epoch: when the answer had been compared.
    pub at: i64,
    /// Index into the fleet's pods.
    pub pod: u32,
    /// Index into [`Replays::sets`].
    pub set: u16,
    pub outcome: Outcome,
    /// What differed, for mismatches; kept for the first few thousand.
    pub detail: Option<Box<str>>,
}

/// A golden set's verdict on a pod changed.
#[derive(Clone, Debug)]
pub struct Judged {
    pub at: i64,
    pub pod: u32,
    pub set: u16,
    pub verdict: Verdict,
}

/// The log, in order of arrival.
#[derive(Debug, Default)]
pub struct Replays {
    pub log: Vec<Replay>,
    pub verdicts: Vec<Judged>,
    pub sets: Vec<String>,
    latest: HashMap<(u32, u16), Verdict>,
    details: usize,
    dropped: u64,
}

impl Replays {
    const MAX: usize = 1 << 20;
    const VERDICTS_MAX: usize = 1 << 16;
    const DETAILS_MAX: usize = 4096;
    const DETAIL_CHARS_MAX: usize = 400;

    pub fn replayed(&mut self, at: i64, pod: u32, replay: &GoldenReplay) {
        let set = self.set(&replay.set);
        if self.log.len() >= Self::MAX {
            self.dropped += 1;
            return;
        }
        let detail = replay.detail.as_deref().filter(|_| replay.outcome == Outcome::Mismatch && self.details < Self::DETAILS_MAX);
        let detail = detail.map(|detail| format!("{}: {detail}", replay.sample).chars().take(Self::DETAIL_CHARS_MAX).collect::<String>().into_boxed_str());
        self.details += usize::from(detail.is_some());
        self.log.push(Replay { at, pod, set, outcome: replay.outcome, detail });
    }

    /// Keeps the verdict if it is another than before.
    pub fn judged(&mut self, at: i64, pod: u32, set: &str, verdict: Verdict) {
        let set = self.set(set);
        if self.latest.insert((pod, set), verdict) == Some(verdict) {
            return;
        }
        if self.verdicts.len() < Self::VERDICTS_MAX { self.verdicts.push(Judged { at, pod, set, verdict }) } else { self.dropped += 1 }
    }

    /// The worst of the sets' latest verdicts on a pod.
    pub fn verdict(&self, pod: u32) -> Option<Verdict> {
        let badness = |verdict: Verdict| match verdict {
            Verdict::Fail => 3,
            Verdict::ReferenceBroken => 2,
            Verdict::Inconclusive => 1,
            Verdict::Pass => 0,
        };
        self.latest.iter().filter(|((of, _), _)| *of == pod).map(|(_, verdict)| *verdict).max_by_key(|verdict| badness(*verdict))
    }

    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes out what was said before `at`. Pods have other indices from now on; those that have none are forgotten. The latest verdict on each stands at `at`.
    #[must_use]
    pub fn before(&mut self, at: i64, pods: &HashMap<u32, u32>) -> Self {
        let mut earlier = std::mem::take(self);
        self.sets.clone_from(&earlier.sets);
        let mut latest: HashMap<(u32, u16), Verdict> = HashMap::new();
        let (later, verdicts): (Vec<_>, Vec<_>) = std::mem::take(&mut earlier.verdicts).into_iter().partition(|judged| judged.at >= at);
        for judged in &verdicts {
            latest.insert((judged.pod, judged.set), judged.verdict);
        }
        earlier.verdicts = verdicts;
        let mut stands: Vec<Judged> = latest.into_iter().map(|((pod, set), verdict)| Judged { at, pod, set, verdict }).chain(later).collect();
        stands.sort_by_key(|judged| (judged.at, judged.set, judged.pod));
        self.verdicts.extend(stands.into_iter().filter_map(|judged| Some(Judged { pod: *pods.get(&judged.pod)?, ..judged })));
        self.latest = earlier.latest.iter().filter_map(|((pod, set), verdict)| Some(((*pods.get(pod)?, *set), *verdict))).collect();
        let (later, log): (Vec<_>, Vec<_>) = std::mem::take(&mut earlier.log).into_iter().partition(|replay| replay.at >= at);
        earlier.log = log;
        self.log.extend(later.into_iter().filter_map(|replay| Some(Replay { pod: *pods.get(&replay.pod)?, ..replay })));
        self.details = self.log.iter().filter(|replay| replay.detail.is_some()).count();
        earlier
    }

    /// Brings both logs in order of time.
    pub fn seal(&mut self) {
        self.log.sort_by_key(|replay| replay.at);
        self.verdicts.sort_by_key(|judged| judged.at);
    }

    /// Replays of a sealed log in `from..until`.
    pub fn between(&self, from: i64, until: i64) -> &[Replay] {
        let start = self.log.partition_point(|replay| replay.at < from);
        let end = self.log.partition_point(|replay| replay.at < until).max(start);
        &self.log[start..end]
    }

    fn set(&mut self, name: &str) -> u16 {
        // A run has a handful of sets: the plan says which.
        let known = self.sets.iter().position(|set| set == name);
        known.unwrap_or_else(|| {
            self.sets.push(name.to_owned());
            self.sets.len() - 1
        }) as u16
    }
}
