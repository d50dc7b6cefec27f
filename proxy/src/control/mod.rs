//! The sidecar's connection to the controller: policies down, numbered evidence up. The words are in `steadfast_api::sidecar`.
//! HTTP/1.1 with JSON lines, by TLS on a cluster; the sidecar dials, and if the controller is away traffic flows on and policies expire by themselves.

pub mod address;
pub mod report;
pub mod watch;

use std::time::Duration;

use rand::RngExt;

/// Waits between attempts: doubled from 50 ms to 2 s, and each drawn from half of it to all of it, so that sidecars do not come back together.
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self::between(Duration::from_millis(50), Duration::from_secs(2))
    }

    /// For what no request waits for, and many ask at the same time.
    pub(crate) const fn between(first: Duration, last: Duration) -> Self {
        Self { next: first, first, last }
    }

    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }

    pub(crate) async fn wait(&mut self) {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.last);
        tokio::time::sleep(pause).await;
    }
}
