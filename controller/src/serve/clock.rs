//! Where another process's clock stands on this one's: when it was zero.
//!
//! What one message says of that is `received − sent`, too late by the time that the message travelled; what a message to the other side says, `sent − heard`, is too early
//! by its own. So the smallest of the first and the largest of the second enclose the truth. Looking back no further than needed lets the clocks of two machines drift
//! apart without harm.

use std::time::{Duration, Instant};

/// The most extreme of what was seen of late: `memory` back at least, twice as far at most.
#[derive(Clone, Copy, Debug)]
struct Extreme {
    better: fn(Instant, Instant) -> Instant,
    memory: Duration,
    /// Of the running period, and of the one before.
    current: Instant,
    before: Option<Instant>,
    since: Instant,
}

impl Extreme {
    fn new(better: fn(Instant, Instant) -> Instant, memory: Duration, seen: Instant, at: Instant) -> Self {
        Self { better, memory, current: seen, before: None, since: at }
    }

    fn learn(&mut self, seen: Instant, at: Instant) {
        if at.saturating_duration_since(self.since) >= self.memory {
            (self.before, self.current, self.since) = (Some(self.current), seen, at);
        } else {
            self.current = (self.better)(self.current, seen);
        }
    }

    fn get(&self) -> Instant {
        self.before.map_or(self.current, |before| (self.better)(before, self.current))
    }
}

/// From what comes in alone: too late by the travel of the fastest message.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneWay(Extreme);

impl OneWay {
    /// How far back the fastest message is remembered.
    const MEMORY: Duration = Duration::from_mins(1);

    pub(super) fn new(seen: Instant, received: Instant) -> Self {
        Self(Extreme::new(Instant::min, Self::MEMORY, seen, received))
    }

    pub(super) fn learn(&mut self, seen: Instant, received: Instant) {
        self.0.learn(seen, received);
    }

    pub(super) fn get(&self) -> Instant {
        self.0.get()
    }
}

/// From messages both ways: the truth to within half of what the fastest of each took together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TwoWays {
    latest: Option<Extreme>,
    earliest: Option<Extreme>,
}

impl TwoWays {
    /// There are ten messages a second each way, and clocks of two machines may drift apart by 50 µs a second.
    const MEMORY: Duration = Duration::from_secs(2);

    /// A message came in at `received`, sent so long after the other clock's zero.
    pub(super) fn came(&mut self, received: Instant, sent: Duration) {
        let Some(seen) = received.checked_sub(sent) else { return };
        self.latest.get_or_insert_with(|| Extreme::new(Instant::min, Self::MEMORY, seen, received)).learn(seen, received);
    }

    /// A message that went out at `sent` was heard so long after the other clock's zero.
    pub(super) fn went(&mut self, sent: Instant, heard: Duration) {
        let Some(seen) = sent.checked_sub(heard) else { return };
        self.earliest.get_or_insert_with(|| Extreme::new(Instant::max, Self::MEMORY, seen, sent)).learn(seen, sent);
    }

    /// The other clock's zero, and how far at most from the truth that is; `None`: nothing came yet, or nothing went.
    pub(super) fn zero(&self) -> Option<(Instant, Option<Duration>)> {
        let latest = self.latest?.get();
        let Some(earliest) = self.earliest.map(|earliest| earliest.get()) else { return Some((latest, None)) };
        // Clocks that drift apart faster than messages travel have each said something else of late.
        let apart = latest.saturating_duration_since(earliest).max(earliest.saturating_duration_since(latest));
        Some((earliest.min(latest) + apart / 2, Some(apart / 2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn clocks_that_drift_apart_are_followed() {
        let start = Instant::now();
        let mut zero = OneWay::new(start, start);
        // The other clock runs slow: its zero seems to move on by 10 ms a minute.
        for minute in 1..=60 {
            let received = start + Duration::from_mins(minute);
            zero.learn(start + ms(10 * minute), received);
            let behind = (start + ms(10 * minute)).saturating_duration_since(zero.get());
            assert!(behind <= ms(20), "{behind:?} after {minute} minutes");
        }
    }

    #[test]
    fn messages_both_ways_enclose_the_truth_and_say_how_narrowly() {
        let earlier = Instant::now();
        let truth = earlier + ms(1);
        let mut clock = TwoWays::default();
        assert!(clock.zero().is_none());
        clock.came(truth + ms(1_040), ms(1_000));
        assert_eq!(clock.zero(), Some((truth + ms(40), None)), "one way alone says nothing of how far that is from the truth");
        clock.went(truth + ms(1_060), ms(1_090));
        assert_eq!(clock.zero(), Some((truth + ms(5), Some(ms(35)))));
        // Faster ones narrow it: 2 ms there, 4 ms back.
        clock.came(truth + ms(1_102), ms(1_100));
        clock.went(truth + ms(1_110), ms(1_114));
        assert_eq!(clock.zero(), Some((earlier, Some(ms(3)))));
        // Slower ones do not widen it while those are remembered; later they are all there is.
        clock.came(truth + ms(1_300), ms(1_200));
        assert_eq!(clock.zero(), Some((earlier, Some(ms(3)))));
        for second in 2..8 {
            clock.came(truth + ms(1_000 * second + 10), ms(1_000 * second));
            clock.went(truth + ms(1_000 * second), ms(1_000 * second + 10));
        }
        assert_eq!(clock.zero(), Some((truth, Some(ms(10)))));
    }
}
