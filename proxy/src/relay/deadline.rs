//! The one moment that a connection waits for.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

use crate::clock;

/// Moved without touching the runtime's timer as long as it moves away: a timer that rings too early finds out then, which costs less than setting it for each message.
///
/// Invariant: asked by one task alone, whose waker the timer knows since it was first asked.
#[derive(Default)]
pub struct Deadline {
    at_ns: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// When the timer rings.
    rings_ns: u64,
}

impl Deadline {
    /// By the sidecar's own clock.
    pub fn set(&mut self, at_ns: u64) {
        self.at_ns = Some(at_ns);
    }

    pub fn set_after(&mut self, wait: Duration) {
        self.set(clock::now_ns() + clock::ns(wait));
    }

    /// For as long as something lasts it has so long, from when it was first seen.
    pub fn bound(&mut self, lasts: bool, wait: Duration) {
        if !lasts {
            self.clear();
        } else if !self.is_set() {
            self.set_after(wait);
        }
    }

    pub fn clear(&mut self) {
        self.at_ns = None;
    }

    pub const fn is_set(&self) -> bool {
        self.at_ns.is_some()
    }

    /// Whether it has come, once; otherwise the task of `cx` is woken when it has.
    pub fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at_ns) = self.at_ns else { return false };
        loop {
            let now = clock::now_ns();
            if now >= at_ns {
                self.at_ns = None;
                return true;
            }
            if self.sleep.is_some() && now < self.rings_ns && self.rings_ns <= at_ns {
                return false;
            }
            let due = clock::instant(at_ns).into();
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            sleep.as_mut().reset(due);
            self.rings_ns = at_ns;
            if sleep.as_mut().poll(cx) == Poll::Pending {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Instant};

    use super::*;

    #[tokio::test]
    async fn it_comes_once_when_it_was_set_for_last_and_not_when_it_was_cleared() {
        let mut deadline = Deadline::default();
        let begun = Instant::now();
        deadline.set_after(Duration::from_millis(5));
        assert!(!poll_fn(|cx| Poll::Ready(deadline.is_over(cx))).await);
        for wait in [60, 30] {
            deadline.set_after(Duration::from_millis(wait));
        }
        poll_fn(|cx| if deadline.is_over(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        assert!(begun.elapsed() >= Duration::from_millis(30) && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(!deadline.is_set());
        deadline.set_after(Duration::ZERO);
        deadline.clear();
        assert!(!poll_fn(|cx| Poll::Ready(deadline.is_over(cx))).await);
    }
}
