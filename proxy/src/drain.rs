//! Leaving without losing a request: parting (connections are accepted, every answer ends its connection) → readiness off → grace → leaving (what stands in the
//! queue is served, the port is closed, idle connections closed) → gone when nothing is open, or when the timeout has passed.
//!
//! SIGTERM begins with the grace. Parting is begun by `steadfast-proxy leave` and lasts until then: in a pod that ends, kubelet stops the sidecar only after the server
//! is gone, and whoever still had a connection at that moment would have nobody behind it.

use tokio::sync::watch;

/// How far it has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// The server still serves, and every answer ends its connection: HTTP/1 by `Connection: close`, HTTP/2 by GOAWAY. The pod is as ready as before.
    Parting,
    /// Readiness is off besides.
    Grace,
    /// Connections are asked to end.
    Leaving,
    /// Time is up.
    Gone,
}

/// The sidecar's phase, seen by all threads. It only moves on.
pub struct Drain(watch::Sender<Phase>);

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    pub fn new() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }

    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let later = phase > *current;
            *current = phase.max(*current);
            later
        });
    }

    pub fn has_reached(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
    }

    /// Enters every phase of `other` as it comes, for as long as it is polled. A thread follows the sidecar's phase into one of its own, so that its requests
    /// share no lock with those of other threads.
    pub async fn follow(&self, other: &Self) {
        let mut phases = other.subscribe();
        loop {
            let phase = *phases.borrow_and_update();
            self.enter(phase);
            if phases.changed().await.is_err() {
                return;
            }
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

/// Returns once `phase` is reached. Never, if whoever says so is gone.
pub async fn reached(receiver: &mut watch::Receiver<Phase>, phase: Phase) {
    if receiver.wait_for(|current| *current >= phase).await.is_err() {
        std::future::pending::<()>().await;
    }
}
