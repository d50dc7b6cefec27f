//! The sidecar's connection to the controller: policies down, numbered evidence up. The words are in `steadfast_api::sidecar`.
//! JSON lines, by TLS on a cluster; the sidecar dials, and if the controller is away traffic flows on and policies expire by themselves.

pub mod address;
pub mod connection;
pub mod report;

use std::time::Duration;

use http::{Response, StatusCode};
use rand::RngExt;
use steadfast_api::sidecar::{PROTOCOL_HEADER, PROTOCOL_MAJOR};

/// In words, when the controller is too old or too new to be spoken to.
pub(crate) fn speaks_another_protocol<B>(response: &Response<B>) -> Option<String> {
    if response.status() != StatusCode::UPGRADE_REQUIRED {
        return None;
    }
    let theirs = response.headers().get(PROTOCOL_HEADER).and_then(|named| named.to_str().ok()).unwrap_or("another one");
    Some(format!(
        "the controller speaks protocol {theirs} and this sidecar {PROTOCOL_MAJOR}: traffic goes on and what is armed expires by itself; start the pod anew for the sidecar of the controller's release"
    ))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_of_another_protocol_is_named_with_what_to_do() {
        let answer = |status: u16| Response::builder().status(status).header(PROTOCOL_HEADER, "7").body(()).unwrap();
        let why = speaks_another_protocol(&answer(426)).unwrap();
        assert!(why.contains("protocol 7 and this sidecar 1") && why.contains("start the pod anew"), "{why}");
        assert_eq!(speaks_another_protocol(&answer(200)), None);
    }
}
