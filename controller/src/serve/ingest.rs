//! Evidence of the sidecars: each report once, placed on this process's clock, passed on without ever waiting for whoever reads it.
//!
//! Readers subscribe to what they want: a run to its target's pods, the golden sets to verdicts of all. Evidence that nobody wants is counted and gone, so what a
//! sidecar costs here does not depend on how much it has said.
//!
//! A sidecar's times count from its own start. What one message says of that start is `received − sent_ns`, too late by the time that the message
//! travelled; the smallest of the last one to two minutes is the truth to within the fastest message's travel (well under a millisecond on one machine), and
//! looking back no further lets two machines' clocks drift apart without harm.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use steadfast_api::{
    FaultKind,
    sidecar::{PodIdentity, SidecarReport, What},
};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
    },
    time::timeout,
};

use super::{
    Seen,
    clock::OneWay,
    policy::{PODS_MAX, PolicyHub},
};

/// Names of policies counted for one pod; more are not counted apart.
const POLICIES_MAX: usize = 1_000;
/// A sidecar that said nothing for so long makes room for another when there is none left.
const SILENT_FOR: Duration = Duration::from_mins(1);

/// What is remembered of one sidecar: some hundred bytes, whatever it reports.
#[derive(Debug)]
struct Sidecar {
    /// Of the last report taken; 0: none yet.
    sequence: u64,
    received: Instant,
    zero: Option<OneWay>,
    injected: BTreeMap<(String, FaultKind), u64>,
    /// CPU time by policy, in nanoseconds.
    burned: BTreeMap<String, u64>,
    /// End of the last window of requests.
    window: Option<Instant>,
}

impl Sidecar {
    const fn new(received: Instant) -> Self {
        Self { sequence: 0, received, zero: None, injected: BTreeMap::new(), burned: BTreeMap::new(), window: None }
    }

    fn starts(&mut self) {
        self.sequence = 0;
        self.zero = None;
    }
}

/// Which evidence a subscriber wants.
type Wanted = Box<dyn Fn(&PodIdentity, &What) -> bool + Send + Sync>;

struct Subscriber {
    wanted: Wanted,
    sink: mpsc::Sender<Seen>,
    dropped: Arc<AtomicU64>,
}

/// Evidence for one reader; dropping it ends the subscription.
#[derive(Debug)]
pub struct Evidence {
    seen: mpsc::Receiver<Seen>,
    dropped: Arc<AtomicU64>,
}

impl Evidence {
    /// The next piece; `None` once the ingest is gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Seen> {
        self.seen.recv().await
    }

    /// Evidence that this reader did not take in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The bare channel, for readers that count nothing.
    pub fn into_receiver(self) -> mpsc::Receiver<Seen> {
        self.seen
    }
}

/// See the module.
pub struct Ingest {
    hub: Arc<PolicyHub>,
    subscribers: Mutex<Vec<Subscriber>>,
    sidecars: Mutex<HashMap<String, Sidecar>>,
    windows: Notify,
    reports: AtomicU64,
    dropped: AtomicU64,
    lost_by_sidecars: AtomicU64,
    not_understood: AtomicU64,
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest").field("sidecars", &self.sidecars().len()).field("reports", &self.reports).finish_non_exhaustive()
    }
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
    /// Confirmed policies go to `hub`.
    pub fn new(hub: Arc<PolicyHub>) -> Self {
        Self {
            hub,
            subscribers: Mutex::default(),
            sidecars: Mutex::default(),
            windows: Notify::new(),
            reports: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            lost_by_sidecars: AtomicU64::new(0),
            not_understood: AtomicU64::new(0),
        }
    }

    fn sidecars(&self) -> MutexGuard<'_, HashMap<String, Sidecar>> {
        self.sidecars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, every piece of evidence for which `wanted` says yes; it is asked on the way of every report, so it must be quick. At most `bound` pieces wait for
    /// their reader: what comes beyond is dropped and counted.
    pub fn subscribe(&self, bound: usize, wanted: impl Fn(&PodIdentity, &What) -> bool + Send + Sync + 'static) -> Evidence {
        let (sink, seen) = mpsc::channel(bound);
        let dropped = Arc::<AtomicU64>::default();
        self.subscribers().push(Subscriber { wanted: Box::new(wanted), sink, dropped: Arc::clone(&dropped) });
        Evidence { seen, dropped }
    }

    fn publish(&self, subscribers: &mut Vec<Subscriber>, at: Instant, pod: &PodIdentity, what: What) {
        let mut ended = false;
        for subscriber in subscribers.iter().filter(|subscriber| (subscriber.wanted)(pod, &what)) {
            match subscriber.sink.try_reserve() {
                Ok(place) => place.send(Seen { at, pod: pod.clone(), what: what.clone() }),
                Err(TrySendError::Full(())) => {
                    subscriber.dropped.fetch_add(1, Ordering::Relaxed);
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
                Err(TrySendError::Closed(())) => ended = true,
            }
        }
        if ended {
            subscribers.retain(|subscriber| !subscriber.sink.is_closed());
        }
    }

    /// Takes a report that was `received` then.
    pub fn take(&self, received: Instant, report: SidecarReport) -> Taken {
        let mut sidecars = self.sidecars();
        if sidecars.len() >= PODS_MAX && !sidecars.contains_key(&report.pod.uid) {
            sidecars.retain(|_, sidecar| received.saturating_duration_since(sidecar.received) < SILENT_FOR);
            if sidecars.len() >= PODS_MAX {
                return Taken::Refused;
            }
        }
        // A time before this machine's own clock began is nonsense; the moment of receipt is then the best that is known.
        let seen = received.checked_sub(Duration::from_nanos(report.sent_ns)).unwrap_or(received);
        if !sidecars.contains_key(&report.pod.uid) {
            sidecars.insert(report.pod.uid.clone(), Sidecar::new(received));
        }
        let Some(sidecar) = sidecars.get_mut(&report.pod.uid) else { return Taken::Refused };
        if report.sequence <= sidecar.sequence {
            // Numbers begin anew with a sidecar whose clock was zero after the last of its predecessor's reports came in.
            if seen <= sidecar.received {
                return Taken::Before;
            }
            sidecar.starts();
            self.hub.sidecar_starts(&report.pod.uid);
        }
        sidecar.sequence = report.sequence;
        sidecar.received = received;
        self.reports.fetch_add(1, Ordering::Relaxed);
        self.lost_by_sidecars.fetch_add(report.dropped, Ordering::Relaxed);
        let zero = sidecar.zero.get_or_insert_with(|| OneWay::new(seen, received));
        zero.learn(seen, received);
        let zero = zero.get();
        let mut window_ended = false;
        let mut subscribers = self.subscribers();
        for evidence in report.evidence {
            let at = zero.checked_add(Duration::from_nanos(evidence.at_ns)).unwrap_or(received).min(received);
            match &evidence.what {
                What::Policy { generation, refused, .. } => self.hub.confirm(&report.pod.uid, *generation, refused, at),
                What::Requests(window) => {
                    for injected in &window.injected {
                        let key = (injected.policy.clone(), injected.kind);
                        if sidecar.injected.len() < POLICIES_MAX || sidecar.injected.contains_key(&key) {
                            *sidecar.injected.entry(key).or_default() += injected.count;
                        }
                    }
                    for burned in &window.burned {
                        if sidecar.burned.len() < POLICIES_MAX || sidecar.burned.contains_key(&burned.policy) {
                            *sidecar.burned.entry(burned.policy.clone()).or_default() += burned.cpu_ns;
                        }
                    }
                    sidecar.window = Some(at);
                    window_ended = true;
                }
                _ => {}
            }
            self.publish(&mut subscribers, at, &report.pod, evidence.what);
        }
        drop((subscribers, sidecars));
        if window_ended {
            self.windows.notify_waiters();
        }
        Taken::Now
    }

    /// The sidecar of this pod starts anew: new clock, sequence from 1. Where nobody can tell that (on a cluster), it is seen from the report itself.
    pub fn sidecar_starts(&self, uid: &str) {
        if let Some(sidecar) = self.sidecars().get_mut(uid) {
            sidecar.starts();
        }
        self.hub.sidecar_starts(uid);
    }

    /// How often this pod's sidecar injected faults of this policy, as far as it reported.
    pub fn injected(&self, uid: &str, policy: &str) -> BTreeMap<FaultKind, u64> {
        let sidecars = self.sidecars();
        let counts = sidecars.get(uid).into_iter().flat_map(|sidecar| &sidecar.injected);
        counts.filter(|((name, _), _)| name == policy).map(|((_, kind), count)| (*kind, *count)).collect()
    }

    /// CPU time that this pod's sidecar took for a policy with `cpuPressure`, as far as it reported.
    pub fn burned(&self, uid: &str, policy: &str) -> Duration {
        let sidecars = self.sidecars();
        Duration::from_nanos(sidecars.get(uid).and_then(|sidecar| sidecar.burned.get(policy)).copied().unwrap_or(0))
    }

    /// Waits until this pod's sidecar has reported its requests up to `until`. False: it did not do so in time, or never reported anything.
    pub async fn requests_until(&self, uid: &str, until: Instant, within: Duration) -> bool {
        let reported = async {
            loop {
                let mut next = std::pin::pin!(self.windows.notified());
                // From here on no window is missed.
                next.as_mut().enable();
                match self.sidecars().get(uid).map(|sidecar| sidecar.window) {
                    None => return false,
                    Some(window) if window.is_some_and(|at| at >= until) => return true,
                    Some(_) => {}
                }
                next.await;
            }
        };
        timeout(within, reported).await.unwrap_or(false)
    }

    /// When this pod's sidecar was last heard.
    pub fn heard(&self, uid: &str) -> Option<Instant> {
        self.sidecars().get(uid).map(|sidecar| sidecar.received)
    }

    /// The pod is gone; a late report of it would be a new pod's, so its sequence stays until the place is needed.
    pub fn forget(&self, uid: &str) {
        let mut sidecars = self.sidecars();
        if sidecars.len() > PODS_MAX / 2 {
            sidecars.remove(uid);
        }
        drop(sidecars);
        self.hub.remove_pod(uid);
    }

    /// Reports taken so far.
    pub fn reports(&self) -> u64 {
        self.reports.load(Ordering::Relaxed)
    }

    /// Evidence that a subscriber did not take in time, over all of them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Something that a sidecar of another version said was passed over.
    pub fn not_understood(&self, count: u64) {
        self.not_understood.fetch_add(count, Ordering::Relaxed);
    }

    /// How often that was so.
    pub fn passed_over(&self) -> u64 {
        self.not_understood.load(Ordering::Relaxed)
    }

    /// Evidence that sidecars dropped because they could not deliver it in time.
    pub fn lost_by_sidecars(&self) -> u64 {
        self.lost_by_sidecars.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::sidecar::{self, BurnedTime, InjectedCount, RequestWindow};

    use super::*;

    const MS: u64 = 1_000_000;

    fn report(sequence: u64, sent_ns: u64, evidence: Vec<sidecar::Evidence>) -> SidecarReport {
        SidecarReport {
            pod: PodIdentity { name: "p".into(), uid: "u".into(), node: "n".into(), namespace: String::new() },
            sequence,
            sent_ns,
            evidence,
            dropped: 0,
        }
    }

    fn ready(at_ns: u64) -> sidecar::Evidence {
        sidecar::Evidence { at_ns, what: What::Upstream { ready: true } }
    }

    fn ingest(bound: usize) -> (Ingest, mpsc::Receiver<Seen>) {
        let ingest = Ingest::new(Arc::default());
        let seen = ingest.subscribe(bound, |_, _| true).into_receiver();
        (ingest, seen)
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
    fn a_sidecar_that_starts_anew_in_its_pod_is_heard_from_its_first_report() {
        let (ingest, mut seen) = ingest(8);
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        ingest.take(at(5_000), report(7, 5_000 * MS, vec![ready(0)]));
        assert_eq!(ingest.take(at(5_200), report(7, 5_100 * MS, vec![ready(0)])), Taken::Before, "sent again, and slow to come");
        // Its container was restarted: its clock was zero at 6 s.
        assert_eq!(ingest.take(at(6_100), report(1, 100 * MS, vec![ready(50 * MS)])), Taken::Now);
        assert_eq!(ingest.take(at(6_200), report(2, 200 * MS, vec![ready(150 * MS)])), Taken::Now);
        let placed: Vec<_> = std::iter::from_fn(|| seen.try_recv().ok()).map(|seen| seen.at).collect();
        assert_eq!(placed, [at(0), at(6_050), at(6_150)]);
    }

    #[test]
    fn each_subscriber_gets_what_it_wants_and_one_that_left_costs_nothing() {
        let ingest = Ingest::new(Arc::default());
        let mut mine = ingest.subscribe(8, |pod, _| pod.uid == "u").into_receiver();
        let mut others = ingest.subscribe(8, |pod, _| pod.uid != "u").into_receiver();
        ingest.take(Instant::now(), report(1, 0, vec![ready(0), ready(1)]));
        assert_eq!(std::iter::from_fn(|| mine.try_recv().ok()).count(), 2);
        assert!(others.try_recv().is_err());
        drop(mine);
        ingest.take(Instant::now(), report(2, 0, vec![ready(0)]));
        assert_eq!((ingest.dropped(), ingest.subscribers().len()), (0, 1));
    }

    #[test]
    fn sidecars_are_bounded_and_silent_ones_make_room() {
        let (ingest, _seen) = ingest(1);
        let start = Instant::now();
        let from = |uid: usize| SidecarReport { pod: PodIdentity { uid: uid.to_string(), ..PodIdentity::default() }, ..report(1, 0, vec![]) };
        for uid in 0..PODS_MAX {
            assert_eq!(ingest.take(start, from(uid)), Taken::Now);
        }
        assert_eq!(ingest.take(start, from(PODS_MAX)), Taken::Refused);
        assert_eq!(ingest.take(start + SILENT_FOR, from(PODS_MAX)), Taken::Now);
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
            let burned = vec![BurnedTime { policy: "step-1".into(), cpu_ns: 500_000_000 }];
            vec![sidecar::Evidence { at_ns: 0, what: What::Requests(RequestWindow { injected, burned, ..Default::default() }) }]
        };
        let now = Instant::now();
        ingest.take(now, report(1, 0, window(3)));
        ingest.take(now, report(2, 0, window(4)));
        assert_eq!(ingest.injected("u", "step-1"), BTreeMap::from([(FaultKind::Delay, 7)]));
        assert_eq!(ingest.injected("u", "step-2"), BTreeMap::new());
        assert_eq!((ingest.burned("u", "step-1"), ingest.burned("u", "step-2")), (Duration::from_secs(1), Duration::ZERO));
        assert!(ingest.requests_until("u", now, Duration::from_secs(1)).await);
        assert!(!ingest.requests_until("u", now + Duration::from_secs(9), Duration::from_millis(1)).await);
    }
}
