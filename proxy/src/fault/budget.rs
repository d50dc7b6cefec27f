//! How much a policy may do at once. What exceeds it passes unharmed and is counted by whoever asked.
//!
//! Invariants: never more than `concurrent` [`ActiveFault`]s exist for one budget, over all threads, and each gives its place back exactly once, when it is
//! dropped; of the last [`WINDOW`] requests never more than `share` (rounded up) were faulted; within any second never more than `perSecond` begin, and never more
//! than `total` at all. Several threads draw on one budget: without locks, but for `perSecond`, which only faults ask for and not requests.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use steadfast_api::{Percent, policy};

/// Requests that the share is kept over.
pub const WINDOW: usize = 1_000;
const SECOND_NS: u64 = 1_000_000_000;

/// The state of one policy's budget, shared by all threads.
#[derive(Debug)]
pub struct Budget {
    concurrent_max: u32,
    share: Percent,
    active: AtomicU32,
    /// Requests seen so far.
    seen: AtomicU64,
    /// Of the last [`WINDOW`] requests: 1 where one was faulted.
    marks: Box<[AtomicU8]>,
    /// Ones in `marks`.
    faulted: AtomicU32,
    per_second: Option<u32>,
    /// When the faults of the last second began, where that is bounded.
    recent: Mutex<VecDeque<u64>>,
    total: Option<u64>,
    begun: AtomicU64,
    memory_max: u64,
    memory: AtomicU64,
}

/// Bytes of a budget that are in use until this is dropped.
#[derive(Debug)]
pub struct HeldBytes {
    budget: Arc<Budget>,
    bytes: u64,
}

impl HeldBytes {
    pub const fn get(&self) -> u64 {
        self.bytes
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.budget.memory.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A fault in progress. Its place in the budget is free again when it is dropped.
#[derive(Debug)]
pub struct ActiveFault {
    budget: Arc<Budget>,
}

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.budget.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request's place in the window of the last [`WINDOW`] requests.
#[derive(Debug)]
pub struct Place {
    slot: usize,
    /// The most requests of the window that may be faulted, as this request sees it.
    limit: u32,
}

impl Budget {
    pub fn new(budget: &policy::Budget) -> Arc<Self> {
        Arc::new(Self {
            concurrent_max: budget.concurrent,
            share: budget.share,
            active: AtomicU32::new(0),
            seen: AtomicU64::new(0),
            marks: (0..WINDOW).map(|_| AtomicU8::new(0)).collect(),
            faulted: AtomicU32::new(0),
            per_second: budget.per_second,
            recent: Mutex::default(),
            total: budget.total,
            begun: AtomicU64::new(0),
            memory_max: budget.memory.map_or(0, steadfast_api::Size::get),
            memory: AtomicU64::new(0),
        })
    }

    /// Counts a request that the policy looked at. Every such request must be counted, also those that nothing falls on.
    pub fn request(&self) -> Place {
        let seen = self.seen.fetch_add(1, Ordering::AcqRel);
        let slot = (seen % WINDOW as u64) as usize;
        if self.marks[slot].swap(0, Ordering::AcqRel) == 1 {
            self.faulted.fetch_sub(1, Ordering::AcqRel);
        }
        // Rounded up, so that a share above zero lets the first request through and not only the hundredth.
        let window = (seen + 1).min(WINDOW as u64);
        Place { slot, limit: (window * u64::from(self.share.ppm())).div_ceil(1_000_000) as u32 }
    }

    /// Whether `place` may be faulted within the share; if so it counts as faulted from now on.
    pub fn take_share(&self, place: &Place) -> bool {
        let within = self.faulted.fetch_update(Ordering::AcqRel, Ordering::Acquire, |faulted| (faulted < place.limit).then_some(faulted + 1)).is_ok();
        if within && self.marks[place.slot].swap(1, Ordering::AcqRel) == 1 {
            // Another thread came round the whole window meanwhile and marked the same slot.
            self.faulted.fetch_sub(1, Ordering::AcqRel);
        }
        within
    }

    /// Takes the share back where nothing came of it.
    pub fn return_share(&self, place: &Place) {
        if self.marks[place.slot].swap(0, Ordering::AcqRel) == 1 {
            self.faulted.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A place for one more fault that begins at `now_ns`; `None` when as many as may be are in progress, began within the last second, or began at all.
    pub fn begin(self: &Arc<Self>, now_ns: u64) -> Option<ActiveFault> {
        let free = |active: u32| (active < self.concurrent_max).then_some(active + 1);
        self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        // Given back on every way out but the last.
        let active = ActiveFault { budget: Arc::clone(self) };
        let left = |begun: u64| self.total.is_none_or(|total| begun < total).then_some(begun + 1);
        self.begun.fetch_update(Ordering::AcqRel, Ordering::Acquire, left).ok()?;
        if let Some(most) = self.per_second {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            while recent.front().is_some_and(|at_ns| at_ns + SECOND_NS <= now_ns) {
                recent.pop_front();
            }
            if recent.len() >= most as usize {
                self.begun.fetch_sub(1, Ordering::AcqRel);
                return None;
            }
            recent.push_back(now_ns);
        }
        Some(active)
    }

    /// Room for `bytes` of memory; `None` where they would be more than the budget has.
    pub fn take_memory(self: &Arc<Self>, bytes: u64) -> Option<HeldBytes> {
        let room = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.memory_max);
        self.memory.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(HeldBytes { budget: Arc::clone(self), bytes })
    }

    /// Faults that began so far.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Faults in progress.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(concurrent: u32, share: &str) -> Arc<Budget> {
        Budget::new(&policy::Budget::new(concurrent, share.parse().unwrap()))
    }

    #[test]
    fn never_more_faults_at_once_than_the_budget_allows_whichever_thread_asks() {
        let budget = budget(7, "100%");
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut held = Vec::new();
                    for round in 0..20_000 {
                        match budget.begin(0) {
                            Some(active) if round % 3 > 0 => held.push(active),
                            _ => held.truncate(held.len() / 2),
                        }
                        most.fetch_max(budget.active(), Ordering::AcqRel);
                    }
                });
            }
        });
        assert!(most.load(Ordering::Acquire) <= 7, "{most:?} faults at once");
        assert_eq!(budget.active(), 0);
        let all: Vec<_> = (0..7).map(|_| budget.begin(0).unwrap()).collect();
        assert!(budget.begin(0).is_none());
        drop(all);
        assert!(budget.begin(0).is_some());
    }

    proptest! {
        #[test]
        fn of_any_thousand_requests_in_a_row_no_more_than_the_share_is_faulted(share in 0_u32..=1_000_000, wants in prop::collection::vec(any::<bool>(), 0..3_000)) {
            let share = Percent::from_ppm(share).unwrap();
            let budget = Budget::new(&policy::Budget::new(1, share));
            let mut faulted = Vec::new();
            for want in wants {
                let place = budget.request();
                faulted.push(want && budget.take_share(&place));
                let window = &faulted[faulted.len().saturating_sub(WINDOW)..];
                let count = window.iter().filter(|faulted| **faulted).count() as u64;
                let limit = (window.len() as u64 * u64::from(share.ppm())).div_ceil(1_000_000);
                prop_assert!(count <= limit, "{count} of {} at {share}", window.len());
                prop_assert_eq!(count, u64::from(budget.faulted.load(Ordering::Acquire)));
            }
        }
    }

    proptest! {
        #[test]
        fn within_any_second_no_more_begin_than_may_and_all_that_may_do(most in 1_u32..20, gaps in prop::collection::vec(0_u64..400, 1..200)) {
            let budget = Budget::new(&policy::Budget { per_second: Some(most), ..policy::Budget::new(1, Percent::HUNDRED) });
            let (mut now, mut begun) = (0, Vec::<u64>::new());
            for gap in gaps {
                now += gap * 1_000_000;
                let within = begun.iter().filter(|at| now - **at < SECOND_NS).count();
                let began = budget.begin(now).is_some();
                prop_assert_eq!(began, within < most as usize);
                if began {
                    begun.push(now);
                }
            }
            prop_assert_eq!(budget.begun(), begun.len() as u64);
        }
    }

    #[test]
    fn a_total_is_all_there_ever_is_and_memory_comes_back() {
        let spec = policy::Budget { total: Some(3), memory: steadfast_api::Size::from_bytes(100), ..policy::Budget::new(10, Percent::HUNDRED) };
        let budget = Budget::new(&spec);
        assert_eq!((0..10).filter(|_| budget.begin(0).is_some()).count(), 3);
        assert_eq!((budget.begun(), budget.active()), (3, 0));
        let held = budget.take_memory(60).unwrap();
        assert!(budget.take_memory(41).is_none() && budget.take_memory(u64::MAX).is_none());
        drop(held);
        assert_eq!(budget.take_memory(100).unwrap().get(), 100);
    }

    #[test]
    fn a_share_above_zero_lets_the_first_request_through_and_zero_none() {
        let some = budget(1, "0.1%");
        assert!(some.take_share(&some.request()));
        assert!(!some.take_share(&some.request()));
        let none = budget(1, "0%");
        assert!(!none.take_share(&none.request()));
    }

    #[test]
    fn a_share_that_was_not_used_is_free_for_the_next() {
        let budget = budget(1, "0.1%");
        let place = budget.request();
        assert!(budget.take_share(&place));
        budget.return_share(&place);
        assert!(budget.take_share(&budget.request()));
    }
}
