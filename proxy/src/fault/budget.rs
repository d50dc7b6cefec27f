//! How much a policy may do at once. What exceeds it passes unharmed and is counted by whoever asked.
//!
//! Invariants: never more than `concurrent` [`ActiveFault`]s exist for one budget, over all threads, and each gives its place back exactly once, when it is
//! dropped; of the last [`WINDOW`] requests never more than `share` (rounded up) were faulted. No locks: several threads draw on one budget.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use steadfast_api::{Percent, policy};

/// Requests that the share is kept over.
pub const WINDOW: usize = 1_000;

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

    /// A place for one more fault in progress; `None` when `concurrent` are.
    pub fn begin(self: &Arc<Self>) -> Option<ActiveFault> {
        let free = |active: u32| (active < self.concurrent_max).then_some(active + 1);
        self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(ActiveFault { budget: Arc::clone(self) })
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
        Budget::new(&policy::Budget { concurrent, share: share.parse().unwrap() })
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
                        match budget.begin() {
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
        let all: Vec<_> = (0..7).map(|_| budget.begin().unwrap()).collect();
        assert!(budget.begin().is_none());
        drop(all);
        assert!(budget.begin().is_some());
    }

    proptest! {
        #[test]
        fn of_any_thousand_requests_in_a_row_no_more_than_the_share_is_faulted(share in 0_u32..=1_000_000, wants in prop::collection::vec(any::<bool>(), 0..3_000)) {
            let share = Percent::from_ppm(share).unwrap();
            let budget = Budget::new(&policy::Budget { concurrent: 1, share });
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
