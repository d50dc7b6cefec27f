//! A pod that is held down: connections are refused, those that are open are closed, and the sidecar is not ready. A policy asks for it, and it ends with the policy.

use tokio::sync::watch;

/// Whether the pod is held down, seen by all threads.
#[derive(Debug)]
pub struct Hold(watch::Sender<bool>);

impl Default for Hold {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Hold {
    pub fn set(&self, held: bool) {
        self.0.send_if_modified(|current| std::mem::replace(current, held) != held);
    }

    pub fn is_held(&self) -> bool {
        *self.0.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }

    /// Does as `other` does, for as long as it is polled: a thread has its own, so that its connections share no lock with those of other threads.
    pub async fn follow(&self, other: &Self) {
        let mut held = other.subscribe();
        loop {
            let now = *held.borrow_and_update();
            self.set(now);
            if held.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Returns once the pod is held down. Never, if whoever says so is gone.
pub async fn held_down(receiver: &mut watch::Receiver<bool>) {
    if receiver.wait_for(|held| *held).await.is_err() {
        std::future::pending::<()>().await;
    }
}
