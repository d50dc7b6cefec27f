//! When to stop at once: too little availability for too long.

use std::time::Duration;

use steadfast_api::test::Halt;

use crate::observe::live::Live;

/// The longest window that a halt may look at.
pub const WINDOW_MAX: Duration = Duration::from_mins(10);

/// How far back the halts look, in microseconds.
pub fn reach_us(halts: &[Halt]) -> i64 {
    halts.iter().map(|Halt::Availability(halt)| halt.duration.get().as_micros() as i64).max().unwrap_or(0)
}

/// Why the run must stop, if it must. `measured_since` and `now` are microseconds of the history; a window that reaches before `measured_since` is not full.
pub fn reason(halts: &[Halt], live: &Live, measured_since: i64, now: i64) -> Option<String> {
    halts.iter().find_map(|Halt::Availability(halt)| {
        let from = now - halt.duration.get().as_micros() as i64;
        if from < measured_since {
            return None;
        }
        let (availability, requests) = live.availability(from);
        let availability = availability.filter(|availability| *availability < halt.below.ratio())?;
        Some(format!(
            "availability was {:.1}% of {requests} requests that ended in the last {}, below the halt at {}",
            availability * 100.0,
            halt.duration,
            halt.below
        ))
    })
}

#[cfg(test)]
mod tests {
    use steadfast_api::test::BelowFor;

    use super::*;
    use crate::observe::requests::{Kind, PodName, Request};

    #[test]
    fn a_halt_waits_for_its_whole_window() {
        let halts = [Halt::Availability(BelowFor { below: "50%".parse().unwrap(), duration: "2s".parse().unwrap() })];
        let mut live = Live::new(reach_us(&halts));
        let mut request = |ms: i64, kind| live.request(&Request::new(ms * 1000, ms * 1000, ms * 1000, PodName::NONE, kind));
        for ms in (0..3000).step_by(100) {
            request(ms, if ms < 1000 { Kind::Right } else { Kind::Silence });
        }
        assert_eq!(reason(&halts, &live, 2_000_000, 3_000_000), None, "only one second has been measured");
        let says = reason(&halts, &live, 0, 3_000_000).unwrap();
        assert!(says.contains("0.0% of 20 requests that ended in the last 2s, below the halt at 50%"), "{says}");

        let mut half = Live::new(reach_us(&halts));
        for ms in (0..2000).step_by(100) {
            half.request(&Request::new(ms * 1000, ms * 1000, ms * 1000, PodName::NONE, if ms % 200 == 0 { Kind::Wrong } else { Kind::Proxy }));
        }
        assert_eq!(reason(&halts, &half, 0, 2_000_000), None, "half of it was answered, and half is not below half");
    }
}
