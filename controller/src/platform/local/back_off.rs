//! When a container that ended is started again, as kubelet does it: the first time at once, then after a wait that doubles up to a limit; forgotten once
//! the container has run for twice that limit.

use std::time::Duration;

use steadfast_api::test::Timers;

#[derive(Clone, Debug)]
pub(super) struct BackOff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl BackOff {
    pub(super) const fn new(timers: &Timers) -> Self {
        Self { first: timers.back_off.get(), max: timers.back_off_max.get(), next: Duration::ZERO }
    }

    /// The wait after a container ended that had run for `ran`.
    pub(super) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= self.max * 2 {
            self.next = Duration::ZERO;
        }
        let wait = self.next;
        self.next = if wait.is_zero() { self.first } else { wait * 2 }.min(self.max);
        wait
    }

    /// A machine that starts anew has forgotten.
    pub(super) const fn forget(&mut self) {
        self.next = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_are_forgotten_after_a_long_run() {
        let mut back_off = BackOff::new(&Timers::default());
        let waits: Vec<_> = (0..8).map(|_| back_off.after(Duration::from_millis(100)).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(back_off.after(Duration::from_secs(59)).as_secs(), 30);
        assert_eq!(back_off.after(Duration::from_mins(1)).as_secs(), 0);
        assert_eq!(back_off.after(Duration::ZERO).as_secs(), 1);
    }
}
