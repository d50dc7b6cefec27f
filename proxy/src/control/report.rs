//! Evidence on its way to the controller: a bounded queue, numbered reports, at least once.
//!
//! Invariants: evidence leaves in the order in which it came; a report that was not acknowledged is sent again under the same number before any later one;
//! the queue never has more than its bound, the oldest goes first, and every loss is counted in the next report.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use steadfast_api::sidecar::{self, SidecarReport, What};
use tokio::sync::Notify;

use crate::{clock, worker::Shared};

/// Evidence of one report.
const REPORT_MAX: usize = 512;

/// The queue. Clones share it.
#[derive(Clone)]
pub struct Evidence(Arc<Inner>);

struct Inner {
    most: usize,
    queue: Mutex<Queue>,
    urgent: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<sidecar::Evidence>,
    dropped: u64,
}

impl Evidence {
    /// Keeps at most `most`.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most, queue: Mutex::default(), urgent: Notify::new() }))
    }

    /// To be sent at once.
    pub fn urgent(&self, what: What) {
        self.push(what);
        self.0.urgent.notify_one();
    }

    /// To be sent with whatever is next.
    pub fn push(&self, what: What) {
        let evidence = sidecar::Evidence { at_ns: clock::since_start_ns(), what };
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.len() >= self.0.most {
            queue.waiting.pop_front();
            queue.dropped += 1;
        }
        queue.waiting.push_back(evidence);
    }

    /// Returns once there is something that shall not wait.
    pub async fn some(&self) {
        self.0.urgent.notified().await;
    }

    fn take(&self) -> (Vec<sidecar::Evidence>, u64) {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = queue.waiting.len().min(REPORT_MAX);
        let evidence = queue.waiting.drain(..count).collect();
        (evidence, std::mem::take(&mut queue.dropped))
    }

    /// What waits.
    #[cfg(test)]
    pub fn all(&self) -> Vec<What> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.iter().map(|evidence| evidence.what.clone()).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.is_empty()
    }
}

/// Closes the window of requests every second, and reports it.
pub async fn windows(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.tick().await;
    loop {
        every.tick().await;
        close_window(&shared);
    }
}

/// Reports what passed since the last window.
pub fn close_window(shared: &Shared) {
    let mut window = shared.window.lock().unwrap_or_else(PoisonError::into_inner).report();
    window.burned = shared.store.burners.burned();
    shared.evidence.urgent(What::Requests(window));
}

/// Numbers reports, and keeps the last until it was taken.
#[derive(Default)]
pub struct Unsent {
    sequence: u64,
    report: Option<SidecarReport>,
}

impl Unsent {
    /// What was not taken comes again, before anything else.
    pub fn next(&mut self, shared: &Shared) -> Option<&mut SidecarReport> {
        if self.report.is_none() && !shared.evidence.is_empty() {
            let (evidence, dropped) = shared.evidence.take();
            self.sequence += 1;
            self.report = Some(SidecarReport { pod: shared.config.pod.clone(), sequence: self.sequence, sent_ns: 0, evidence, dropped });
        }
        self.report.as_mut()
    }

    pub fn taken(&mut self) {
        self.report = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_keeps_its_bound_and_counts_what_it_loses() {
        let evidence = Evidence::new(3);
        for i in 0..5 {
            evidence.push(What::Policy { generation: i, armed: true, refused: Vec::new() });
        }
        let (taken, dropped) = evidence.take();
        let generations: Vec<_> = taken.iter().map(|evidence| if let What::Policy { generation, .. } = evidence.what { generation } else { 99 }).collect();
        assert_eq!((generations, dropped), (vec![2, 3, 4], 2));
        assert_eq!(evidence.take().1, 0);
    }
}
