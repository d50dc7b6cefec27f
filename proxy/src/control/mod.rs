//! The sidecar's connection to the controller: policies down, numbered evidence up. The words are in `steadfast_api::sidecar`.
//! HTTP/1.1 with JSON lines, by TLS on a cluster; the sidecar dials, and if the controller is away traffic flows on and policies expire by themselves.

pub mod address;
pub mod report;
pub mod watch;

use std::time::Duration;

use rand::RngExt;

/// Waits between attempts: doubled from 50 ms to 2 s, and each drawn from half of it to all of it, so that sidecars do not come back together.
pub(crate) struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(2);

    pub(crate) const fn new() -> Self {
        Self(Self::FIRST)
    }

    pub(crate) const fn reset(&mut self) {
        self.0 = Self::FIRST;
    }

    pub(crate) async fn wait(&mut self) {
        let pause = self.0.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(Self::LAST);
        tokio::time::sleep(pause).await;
    }
}
