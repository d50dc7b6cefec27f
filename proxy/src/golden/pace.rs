//! How much a pod may be asked beside its users: a share of their requests while there are any, and freely while there are none.
//!
//! Every request of a user earns `share` of a replay, and a replay spends one. A pod that no user has asked for [`IDLE_AFTER`] is idle: replays cost nobody anything
//! there, so they go on at their own pace, and a pod without traffic is checked like any other.

use std::time::{Duration, Instant};

use steadfast_api::Percent;

/// A pod that no user has asked for so long is idle.
pub const IDLE_AFTER: Duration = Duration::from_secs(10);
/// Replays that are saved up at most, so that a burst of users is not followed by a burst of replays.
const EARNED_MAX: f64 = 2.0;

/// What was earned and not yet spent.
#[derive(Debug, Default)]
pub struct Allowance {
    earned: f64,
    answered: u64,
    asked_at: Option<Instant>,
}

impl Allowance {
    /// Whether a replay may go out now. `answered`: requests of users so far.
    pub fn spend(&mut self, share: Option<Percent>, answered: u64, now: Instant) -> bool {
        let Some(share) = share else { return true };
        let new = answered.saturating_sub(self.answered);
        self.answered = answered;
        if new > 0 {
            self.asked_at = Some(now);
            self.earned = (self.earned + new as f64 * share.ratio()).min(EARNED_MAX);
        }
        if self.asked_at.is_none_or(|at| now.saturating_duration_since(at) >= IDLE_AFTER) {
            return true;
        }
        if self.earned < 1.0 {
            return false;
        }
        self.earned -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_percent() -> Option<Percent> {
        "1%".parse().ok()
    }

    #[test]
    fn replays_are_a_share_of_the_requests() {
        let (mut allowance, began) = (Allowance::default(), Instant::now());
        // Ten requests a second for a thousand seconds, and a replay due every second.
        let allowed = (1..=1_000_u64).filter(|second| allowance.spend(one_percent(), second * 10, began + Duration::from_secs(*second))).count();
        assert!((99..=100).contains(&allowed), "{allowed}");
    }

    #[test]
    fn an_idle_pod_is_asked_freely_and_a_burst_is_not_followed_by_one() {
        let (mut allowance, began) = (Allowance::default(), Instant::now());
        let mut at = |second: u64, answered: u64| allowance.spend(one_percent(), answered, began + Duration::from_secs(second));
        assert!((1..=10).all(|second| at(second, 0)), "nobody has asked");
        assert_eq!((11..=15).map(|second| at(second, 100_000)).filter(|may| *may).count(), 2);
        assert!(!at(20, 100_000) && at(21, 100_000) && at(22, 100_000), "idle again");
        let mut by_hand = Allowance::default();
        assert!((1..=100).all(|answered| by_hand.spend(None, answered, began)), "without a share there is no bound");
    }
}
