//! Evidence on its way to the controller: a bounded queue, numbered reports, at least once.
//!
//! Invariants: evidence leaves in the order in which it came; a report that was not acknowledged is sent again under the same number before any later one;
//! the queue never has more than its bound, the oldest goes first, and every loss is counted in the next report.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, header};
use http_body_util::{BodyExt, Full, Limited};
use steadfast_api::sidecar::{self, SidecarReport, What};
use tokio::sync::Notify;

use super::{Backoff, address::Controller};
use crate::{client::Client, clock, worker::Shared};

/// Evidence of one report.
const REPORT_MAX: usize = 512;
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(2);
/// Evidence that comes together travels together.
const GATHER: Duration = Duration::from_millis(1);
/// At the end there is no later: what cannot be sent by then is lost.
const FAREWELL: Duration = Duration::from_millis(500);

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

    fn take(&self) -> (Vec<sidecar::Evidence>, u64) {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = queue.waiting.len().min(REPORT_MAX);
        let evidence = queue.waiting.drain(..count).collect();
        (evidence, std::mem::take(&mut queue.dropped))
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
    let window = shared.window.lock().unwrap_or_else(PoisonError::into_inner).report();
    shared.evidence.urgent(What::Requests(window));
}

/// Sends what comes for as long as it is polled.
pub struct Reporter {
    shared: Arc<Shared>,
    controller: Controller,
    client: Client,
    sequence: u64,
    /// Sent, not acknowledged.
    unacknowledged: Option<SidecarReport>,
}

impl Reporter {
    pub fn new(shared: Arc<Shared>, controller: Controller) -> Self {
        let client = controller.client();
        Self { shared, controller, client, sequence: 0, unacknowledged: None }
    }

    /// Until `last` is told; then what is left, once more.
    pub async fn run(mut self, last: Arc<Notify>) {
        let mut backoff = Backoff::new();
        loop {
            let go_on = async {
                self.shared.evidence.0.urgent.notified().await;
                tokio::time::sleep(GATHER).await;
            };
            tokio::select! {
                () = go_on => {}
                () = last.notified() => {
                    let _ = tokio::time::timeout(FAREWELL, self.send_all()).await;
                    return;
                }
            }
            loop {
                let sent = tokio::select! {
                    sent = self.send_all() => sent,
                    () = last.notified() => {
                        let _ = tokio::time::timeout(FAREWELL, self.send_all()).await;
                        return;
                    }
                };
                match sent {
                    Ok(()) => {
                        backoff.reset();
                        break;
                    }
                    Err(why) => {
                        tracing::info!(why, "the controller did not take a report; it is sent again");
                        tokio::select! {
                            () = backoff.wait() => {}
                            () = last.notified() => {
                                let _ = tokio::time::timeout(FAREWELL, self.send_all()).await;
                                return;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn send_all(&mut self) -> Result<(), String> {
        while self.unacknowledged.is_some() || !self.shared.evidence.is_empty() {
            if self.unacknowledged.is_none() {
                let (evidence, dropped) = self.shared.evidence.take();
                self.sequence += 1;
                let pod = self.shared.config.pod.clone();
                self.unacknowledged = Some(SidecarReport { pod, sequence: self.sequence, sent_ns: 0, evidence, dropped });
            }
            self.send_one().await?;
            self.unacknowledged = None;
        }
        Ok(())
    }

    async fn send_one(&mut self) -> Result<(), String> {
        let Some(report) = &mut self.unacknowledged else { return Ok(()) };
        // Of this attempt: the controller takes from it how long the message travelled.
        report.sent_ns = clock::since_start_ns();
        let mut line = serde_json::to_vec(report).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let request = self
            .controller
            .request()?
            .method(Method::POST)
            .uri("/v1alpha1/reports")
            .header(header::CONTENT_TYPE, "application/jsonl")
            .body(Full::new(Bytes::from(line)))
            .map_err(|error| error.to_string())?;
        let response = self.client.send(request, ACKNOWLEDGED_WITHIN).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let _ = tokio::time::timeout(ACKNOWLEDGED_WITHIN, Limited::new(response.into_body(), 64 << 10).collect()).await;
        if status.is_success() { Ok(()) } else { Err(format!("the controller answered {status}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_keeps_its_bound_and_counts_what_it_loses() {
        let evidence = Evidence::new(3);
        for i in 0..5 {
            evidence.push(What::Policy { generation: i, armed: true });
        }
        let (taken, dropped) = evidence.take();
        let generations: Vec<_> = taken.iter().map(|evidence| if let What::Policy { generation, .. } = evidence.what { generation } else { 99 }).collect();
        assert_eq!((generations, dropped), (vec![2, 3, 4], 2));
        assert_eq!(evidence.take().1, 0);
    }
}
