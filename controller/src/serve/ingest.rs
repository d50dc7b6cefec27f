//! Evidence of the sidecars: each report once, placed on this process's clock, passed on without ever waiting for whoever reads it.
//!
//! A sidecar's times count from its own start. What one message says of that start is `received − sent_ns`, too late by the time that the message
//! travelled; the smallest of the last one to two minutes is the truth to within the fastest message's travel (well under a millisecond on one machine), and
//! looking back no further lets two machines' clocks drift apart without harm.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use steadfast_api::{
    FaultKind,
    sidecar::{SidecarReport, What},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Seen,
    policy::{PODS_MAX, PolicyHub},
};

/// Names of policies counted for one pod; more are not counted apart.
const POLICIES_MAX: usize = 1_000;
/// How far back a sidecar's fastest message is remembered: this long at least, twice as long at most.
const OFFSET_MEMORY: Duration = Duration::from_mins(1);

/// When a sidecar's clock was zero, on this process's clock.
#[derive(Clone, Copy, Debug)]
struct ClockZero {
    /// Smallest of the running minute, and of the one before.
    current: Instant,
    before: Option<Instant>,
    since: Instant,
}

impl ClockZero {
    const fn new(seen: Instant, received: Instant) -> Self {
        Self { current: seen, before: None, since: received }
    }

    fn learn(&mut self, seen: Instant, received: Instant) {
        if received.saturating_duration_since(self.since) >= OFFSET_MEMORY {
            *self = Self { current: seen, before: Some(self.current), since: received };
        } else {
            self.current = self.current.min(seen);
        }
    }

    fn get(&self) -> Instant {
        self.before.map_or(self.current, |before| before.min(self.current))
    }
}

#[derive(Debug)]
struct Sidecar {
    /// Of the last report taken; 0: none yet.
    sequence: u64,
    zero: Option<ClockZero>,
    injected: BTreeMap<(String, FaultKind), u64>,
    /// End of the last window of requests.
    window: watch::Sender<Option<Instant>>,
}

impl Default for Sidecar {
    fn default() -> Self {
        Self { sequence: 0, zero: None, injected: BTreeMap::new(), window: watch::Sender::new(None) }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ingest {
    hub: Arc<PolicyHub>,
    sink: mpsc::Sender<Seen>,
    sidecars: Mutex<HashMap<String, Sidecar>>,
    dropped: AtomicU64,
    lost_by_sidecars: AtomicU64,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Now,
    /// Its sequence number was there already.
    Before,
    /// Too many pods report.
    Refused,
}

impl Ingest {
    /// Confirmed policies go to `hub`, all evidence to `sink`.
    pub fn new(hub: Arc<PolicyHub>, sink: mpsc::Sender<Seen>) -> Self {
        Self { hub, sink, sidecars: Mutex::default(), dropped: AtomicU64::new(0), lost_by_sidecars: AtomicU64::new(0) }
    }

    fn sidecars(&self) -> MutexGuard<'_, HashMap<String, Sidecar>> {
        self.sidecars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report that was `received` then.
    pub fn take(&self, received: Instant, report: SidecarReport) -> Taken {
        let mut sidecars = self.sidecars();
        if sidecars.len() >= PODS_MAX && !sidecars.contains_key(&report.pod.uid) {
            return Taken::Refused;
        }
        let sidecar = sidecars.entry(report.pod.uid.clone()).or_default();
        if report.sequence <= sidecar.sequence {
            return Taken::Before;
        }
        sidecar.sequence = report.sequence;
        self.lost_by_sidecars.fetch_add(report.dropped, Ordering::Relaxed);
        // A time before this machine's own clock began is nonsense; the moment of receipt is then the best that is known.
        let seen = received.checked_sub(Duration::from_nanos(report.sent_ns)).unwrap_or(received);
        let zero = sidecar.zero.get_or_insert(ClockZero::new(seen, received));
        zero.learn(seen, received);
        let zero = zero.get();
        for evidence in report.evidence {
            let at = zero.checked_add(Duration::from_nanos(evidence.at_ns)).unwrap_or(received).min(received);
            match &evidence.what {
                What::Policy { generation, .. } => self.hub.confirm(&report.pod.uid, *generation, at),
                What::Requests(window) => {
                    for injected in &window.injected {
                        let key = (injected.policy.clone(), injected.kind);
                        if sidecar.injected.len() < POLICIES_MAX || sidecar.injected.contains_key(&key) {
                            *sidecar.injected.entry(key).or_default() += injected.count;
                        }
                    }
                    sidecar.window.send_replace(Some(at));
                }
                _ => {}
            }
            if self.sink.try_send(Seen { at, pod: report.pod.clone(), what: evidence.what }).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Taken::Now
    }

    /// The sidecar of this pod starts anew: new clock, sequence from 1.
    pub fn sidecar_starts(&self, uid: &str) {
        if let Some(sidecar) = self.sidecars().get_mut(uid) {
            sidecar.sequence = 0;
            sidecar.zero = None;
        }
        self.hub.sidecar_starts(uid);
    }

    /// How often this pod's sidecar injected faults of this policy, as far as it reported.
    pub fn injected(&self, uid: &str, policy: &str) -> BTreeMap<FaultKind, u64> {
        let sidecars = self.sidecars();
        let counts = sidecars.get(uid).into_iter().flat_map(|sidecar| &sidecar.injected);
        counts.filter(|((name, _), _)| name == policy).map(|((_, kind), count)| (*kind, *count)).collect()
    }

    /// Waits until this pod's sidecar has reported its requests up to `until`. False: it did not do so in time.
    pub async fn requests_until(&self, uid: &str, until: Instant, within: Duration) -> bool {
        let Some(mut window) = self.sidecars().get(uid).map(|sidecar| sidecar.window.subscribe()) else { return false };
        matches!(timeout(within, window.wait_for(|at| at.is_some_and(|at| at >= until))).await, Ok(Ok(_)))
    }

    /// The pod is gone; a late report of it would be a new pod's, so only its sequence stays until the place is needed.
    pub fn forget(&self, uid: &str) {
        let mut sidecars = self.sidecars();
        if sidecars.len() > PODS_MAX / 2 {
            sidecars.remove(uid);
        }
        drop(sidecars);
        self.hub.forget(uid);
    }

    /// Evidence that nobody took in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Evidence that sidecars dropped because they could not deliver it in time.
    pub fn lost_by_sidecars(&self) -> u64 {
        self.lost_by_sidecars.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::sidecar::{Evidence, InjectedCount, PodIdentity, RequestWindow};

    use super::*;

    const MS: u64 = 1_000_000;

    fn report(sequence: u64, sent_ns: u64, evidence: Vec<Evidence>) -> SidecarReport {
        SidecarReport { pod: PodIdentity { name: "p".into(), uid: "u".into(), node: "n".into(), namespace: String::new() }, sequence, sent_ns, evidence, dropped: 0 }
    }

    fn ready(at_ns: u64) -> Evidence {
        Evidence { at_ns, what: What::Upstream { ready: true } }
    }

    fn ingest(bound: usize) -> (Ingest, mpsc::Receiver<Seen>) {
        let (sink, seen) = mpsc::channel(bound);
        (Ingest::new(Arc::default(), sink), seen)
    }

    #[test]
    fn evidence_is_placed_by_the_fastest_message() {
        let (ingest, mut seen) = ingest(8);
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        // 40 ms on the way, then 1 ms, then 25 ms: the last is placed by the second.
        ingest.take(at(140), report(1, 100 * MS, vec![ready(90 * MS)]));
        ingest.take(at(201), report(2, 200 * MS, vec![ready(190 * MS)]));
        ingest.take(at(325), report(3, 300 * MS, vec![ready(290 * MS)]));
        let placed: Vec<_> = std::iter::from_fn(|| seen.try_recv().ok()).map(|seen| seen.at).collect();
        assert_eq!(placed, [at(130), at(191), at(291)]);
    }

    #[test]
    fn clocks_that_drift_apart_are_followed() {
        let start = Instant::now();
        let mut zero = ClockZero::new(start, start);
        // The other clock runs slow: its zero seems to move on by 10 ms a minute.
        for minute in 1..=60 {
            let later = start + Duration::from_mins(minute);
            zero.learn(start + Duration::from_millis(10 * minute), later);
        }
        assert!(zero.get() >= start + Duration::from_millis(580), "{:?}", zero.get() - start);
    }

    #[test]
    fn a_report_counts_once_until_the_sidecar_starts_anew() {
        let (ingest, mut seen) = ingest(8);
        let now = Instant::now();
        assert_eq!(ingest.take(now, report(1, 0, vec![ready(0)])), Taken::Now);
        assert_eq!(ingest.take(now, report(1, 0, vec![ready(0)])), Taken::Before);
        ingest.sidecar_starts("u");
        assert_eq!(ingest.take(now, report(1, 0, vec![ready(0)])), Taken::Now);
        assert_eq!(std::iter::from_fn(|| seen.try_recv().ok()).count(), 2);
    }

    #[test]
    fn nobody_waits_for_a_slow_reader_and_what_is_dropped_is_counted() {
        let (ingest, _seen) = ingest(2);
        ingest.take(Instant::now(), report(1, 0, (0..5).map(ready).collect()));
        assert_eq!(ingest.dropped(), 3);
    }

    #[tokio::test]
    async fn injected_faults_add_up_by_policy_and_pod() {
        let (ingest, _seen) = ingest(8);
        let window = |count| {
            let injected = vec![InjectedCount { policy: "step-1".into(), kind: FaultKind::Delay, count }];
            vec![Evidence { at_ns: 0, what: What::Requests(RequestWindow { injected, ..Default::default() }) }]
        };
        let now = Instant::now();
        ingest.take(now, report(1, 0, window(3)));
        ingest.take(now, report(2, 0, window(4)));
        assert_eq!(ingest.injected("u", "step-1"), BTreeMap::from([(FaultKind::Delay, 7)]));
        assert_eq!(ingest.injected("u", "step-2"), BTreeMap::new());
        assert!(ingest.requests_until("u", now, Duration::from_secs(1)).await);
        assert!(!ingest.requests_until("u", now + Duration::from_secs(9), Duration::from_millis(1)).await);
    }
}
