//! The next moment of a schedule: drawn from its seed, its UID and the moment before, and from nothing else, so that every leader draws the same.
//!
//! Times between runs are exponential: however long nothing has happened, the next run is no nearer. They are counted in time for which the window is open, and the
//! mean is scaled by the window's share of a week, so that over a long time runs come as often as `meanTimeBetween` says.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::window::Calendar;

/// What a schedule draws from.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    pub seed: u64,
    pub uid: &'a str,
    /// The moment before, in whole seconds.
    pub from: Timestamp,
}

impl Draw<'_> {
    /// `None`: the window does not open for long enough within ten years.
    pub fn next(&self, mean: Duration, calendar: &Calendar) -> Option<Timestamp> {
        // In (0, 1], so the logarithm is finite.
        let uniform = (self.number("moment") + 1) as f64 / (1_u64 << 53) as f64;
        let open = -uniform.ln() * mean.as_secs_f64() * calendar.share();
        calendar.after(self.from, SignedDuration::try_from_secs_f64(open).ok()?)
    }

    /// Seed of the run at the moment that is drawn from.
    pub fn run_seed(&self) -> u64 {
        self.number("run")
    }

    /// Uniform below 2⁵³, which every reader of JSON takes exactly. A digest, and not a generator of random numbers: those may change with their library's version.
    fn number(&self, what: &str) -> u64 {
        let digest = Sha256::digest(format!("{what}\n{}\n{}\n{}", self.uid, self.seed, self.from.as_second()));
        let first: [u8; 8] = std::array::from_fn(|index| digest[index]);
        u64::from_be_bytes(first) >> 11
    }
}

#[cfg(test)]
mod tests {
    use super::{super::window::tests::spec, *};

    fn chain(calendar: &Calendar, mean: Duration, seed: u64, count: usize) -> Vec<Timestamp> {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let next = |from: &Timestamp| Draw { seed, uid: "uid", from: *from }.next(mean, calendar);
        std::iter::successors(Some(start), next).skip(1).take(count).collect()
    }

    #[test]
    fn runs_come_as_often_as_asked_and_are_exponential() {
        let hours = "window: {days: [Mon, Tue, Wed, Thu], from: '10:00', to: '16:00', timeZone: Europe/Berlin}";
        let calendar = Calendar::new(&spec(&format!("meanTimeBetween: 2d, {hours}"))).unwrap();
        let mean = Duration::from_hours(48);
        let moments = chain(&calendar, mean, 7, 20_000);
        let days = moments[19_999].duration_since(moments[0]).as_secs_f64() / 86_400.0 / 19_999.0;
        // Standard error of the mean: 2 d / √20,000 = 0.014 d.
        assert!((1.95..2.05).contains(&days), "{days} days on average");
        assert!(moments.iter().all(|at| calendar.is_open(*at)));
        // With a window that is always open: exponential in shape as well.
        let always =
            Calendar::new(&spec("meanTimeBetween: 1h, window: {days: [Mon,Tue,Wed,Thu,Fri,Sat,Sun], from: '00:00', to: '24:00', timeZone: UTC}")).unwrap();
        let moments = chain(&always, Duration::from_hours(1), 7, 20_000);
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64() / 3_600.0).collect();
        let longer = |than: f64| gaps.iter().filter(|gap| **gap > than).count() as f64 / gaps.len() as f64;
        for than in [0.1, 0.5, 1.0, 2.0, 4.0_f64] {
            assert!((longer(than) - (-than).exp()).abs() < 0.012, "{than}: {}", longer(than));
        }
    }

    #[test]
    fn moments_are_the_same_for_every_leader_and_others_for_another_seed_or_schedule() {
        let calendar = Calendar::new(&spec("meanTimeBetween: 1d, window: {days: [Mon, Sun], from: '22:00', to: '03:00', timeZone: America/New_York}")).unwrap();
        let from: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let draw = |seed, uid| Draw { seed, uid, from }.next(Duration::from_hours(24), &calendar).unwrap();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert!(draw(1, "a") != draw(2, "a") && draw(1, "a") != draw(1, "b"));
        // Published once: a new version of the program must not move anybody's next run.
        assert_eq!(draw(1, "a").to_string(), "2026-01-05T03:21:15Z");
        assert!(Draw { seed: 1, uid: "a", from }.run_seed() < 1 << 53);
    }

    #[test]
    fn no_moment_is_on_a_blackout_date() {
        let shut: Vec<String> = (1..=31).filter(|day| day % 2 == 0).map(|day| format!("'2026-01-{day:02}'")).collect();
        let window = "window: {days: [Mon,Tue,Wed,Thu,Fri,Sat,Sun], from: '00:00', to: '24:00', timeZone: Asia/Tokyo}";
        let calendar = Calendar::new(&spec(&format!("meanTimeBetween: 1h, {window}, blackoutDates: [{}]", shut.join(",")))).unwrap();
        let moments = chain(&calendar, Duration::from_hours(1), 3, 500);
        let day = |at: &Timestamp| at.in_tz("Asia/Tokyo").unwrap().date();
        let january: Vec<_> = moments.iter().map(day).filter(|date| date.year() == 2026 && date.month() == 1).collect();
        assert!(january.len() > 200 && january.iter().all(|date| date.day() % 2 == 1), "{january:?}");
    }
}
