//! When a schedule's window is open, in a time zone that changes its clocks.
//!
//! A window is what a clock on the wall shows. Where clocks go forward, a time that is never shown is the moment of the change; where they go back, a time that is
//! shown twice opens the window the second time and closes it the first time, so that a run never begins while the clock shows a time outside. Only a window that
//! lies within the repeated hour has no other choice than the second showing.

use std::collections::BTreeSet;

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime, Time},
    tz::{AmbiguousOffset, TimeZone},
};
use steadfast_api::resource::{ResilienceScheduleSpec, Weekday};

const DAY: u16 = 24 * 60;
/// A window that does not open within so many days never does.
const DAYS_MAX: usize = 3_660;

/// A window and the dates on which it stays shut.
#[derive(Clone, Debug)]
pub struct Calendar {
    zone: TimeZone,
    /// From Monday.
    days: [bool; 7],
    /// Minutes of a day: 0 to 1439, and 1 to 1440.
    from: u16,
    to: u16,
    shut: BTreeSet<Date>,
}

impl Calendar {
    /// # Errors
    /// The field, its value, and what would be right.
    pub fn new(spec: &ResilienceScheduleSpec) -> Result<Self, String> {
        let window = &spec.window;
        let zone = TimeZone::get(&window.time_zone)
            .map_err(|_| format!("spec.window.timeZone: {:?} is no time zone: write an IANA name such as Europe/Berlin or UTC", window.time_zone))?;
        let minutes = |field: &str, text: &str| {
            let bad = || format!("spec.window.{field}: {text:?} is no time of day: write one such as 09:30");
            let (hours, minutes) = text.split_once(':').ok_or_else(bad)?;
            let number = |digits: &str| digits.parse::<u16>().ok().filter(|_| digits.len() == 2);
            let at = number(hours).zip(number(minutes)).filter(|(_, minutes)| *minutes < 60).map(|(hours, minutes)| hours * 60 + minutes);
            at.filter(|at| *at < DAY || (*at == DAY && field == "to")).ok_or_else(bad)
        };
        let (from, to) = (minutes("from", &window.from)?, minutes("to", &window.to)?);
        if from == to {
            return Err(format!("spec.window: from and to are both {}, so it is never open: all day is from 00:00 to 24:00", window.from));
        }
        // A window that closes at midnight does not go over it.
        let to = if to == 0 { DAY } else { to };
        let mut days = [false; 7];
        for day in &window.days {
            days[*day as usize] = true;
        }
        let date = |text: &String| text.parse::<Date>().map_err(|_| format!("spec.blackoutDates: {text:?} is no date: write one such as 2026-12-24"));
        Ok(Self { zone, days, from, to, shut: spec.blackout_dates.iter().map(date).collect::<Result<_, _>>()? })
    }

    /// Share of a week for which it is open, leaving out the dates on which it is not; 0 to 1.
    pub fn share(&self) -> f64 {
        let minutes = if self.from < self.to { self.to - self.from } else { DAY - self.from + self.to };
        let days = self.days.iter().filter(|open| **open).count();
        f64::from(minutes) * days as f64 / (7.0 * f64::from(DAY))
    }

    /// Whether a run may begin at this moment.
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.pieces(at.to_zoned(self.zone.clone()).date()).iter().any(|(from, to)| *from <= at && at < *to)
    }

    /// The second in which it will have been open for `open` since `start`; `None`: not within ten years.
    pub fn after(&self, start: Timestamp, open: SignedDuration) -> Option<Timestamp> {
        let mut left = open.max(SignedDuration::from_secs(1));
        let mut date = start.to_zoned(self.zone.clone()).date();
        for _ in 0..DAYS_MAX {
            for (from, to) in self.pieces(date) {
                let from = from.max(start);
                let length = to.duration_since(from);
                if left < length {
                    let at = from.checked_add(left).ok()?;
                    return Timestamp::from_second(at.as_second()).ok();
                }
                left -= length.max(SignedDuration::ZERO);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// When it is open on a date, in order.
    fn pieces(&self, date: Date) -> Vec<(Timestamp, Timestamp)> {
        if self.shut.contains(&date) {
            return Vec::new();
        }
        let opens = |date: Option<Date>| date.is_some_and(|date| self.days[date.weekday().to_monday_zero_offset() as usize]);
        let (today, yesterday) = (opens(Some(date)), opens(date.yesterday().ok()));
        let pieces = if self.from < self.to {
            [today.then_some((self.from, self.to)), None]
        } else {
            [yesterday.then_some((0, self.to)), today.then_some((self.from, DAY))]
        };
        pieces.into_iter().flatten().filter_map(|(from, to)| self.piece(date, from, to)).filter(|(from, to)| from < to).collect()
    }

    fn piece(&self, date: Date, from: u16, to: u16) -> Option<(Timestamp, Timestamp)> {
        let opens = if from == 0 { self.midnight(date)? } else { self.shown(at(date, from)?, Showing::Second)? };
        if to == DAY {
            return Some((opens, self.midnight(date.tomorrow().ok()?)?));
        }
        let closes = self.shown(at(date, to)?, Showing::First)?;
        // Both within the hour that is shown twice.
        Some((opens, if closes < opens { self.shown(at(date, to)?, Showing::Second)? } else { closes }))
    }

    /// The first moment of a date.
    fn midnight(&self, date: Date) -> Option<Timestamp> {
        Some(date.to_zoned(self.zone.clone()).ok()?.timestamp())
    }

    /// When the clock shows this time; when it goes forward over it, the moment at which it does.
    fn shown(&self, time: DateTime, which: Showing) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(time);
        match (ambiguous.offset(), which) {
            (AmbiguousOffset::Gap { .. }, _) => {
                let before = ambiguous.earlier().ok()?;
                self.zone.following(before).next().map(|change| change.timestamp())
            }
            (_, Showing::First) => ambiguous.earlier().ok(),
            (_, Showing::Second) => ambiguous.later().ok(),
        }
    }
}

#[derive(Clone, Copy)]
enum Showing {
    First,
    Second,
}

fn at(date: Date, minutes: u16) -> Option<DateTime> {
    Some(date.to_datetime(Time::new((minutes / 60) as i8, (minutes % 60) as i8, 0, 0).ok()?))
}

const _: () = assert!(Weekday::Mon as usize == 0 && Weekday::Sun as usize == 6);

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn spec(yaml: &str) -> ResilienceScheduleSpec {
        steadfast_api::read::from_yaml("schedule", &format!("{{test: {{name: t}}, {yaml}}}")).unwrap()
    }

    fn calendar(days: &str, from: &str, to: &str, zone: &str, shut: &str) -> Calendar {
        let window = format!("{{days: [{days}], from: '{from}', to: '{to}', timeZone: {zone}}}");
        Calendar::new(&spec(&format!("meanTimeBetween: 2d, window: {window}, blackoutDates: [{shut}]"))).unwrap()
    }

    const ALL: &str = "Mon, Tue, Wed, Thu, Fri, Sat, Sun";

    fn pieces(calendar: &Calendar, date: &str) -> Vec<String> {
        calendar.pieces(date.parse().unwrap()).iter().map(|(from, to)| format!("{from} {to}")).collect()
    }

    #[test]
    fn a_window_is_open_on_its_days_and_over_midnight_belongs_to_the_day_it_opens_on() {
        let office = calendar("Mon, Tue", "10:00", "16:00", "Europe/Berlin", "");
        assert_eq!(pieces(&office, "2026-06-01"), ["2026-06-01T08:00:00Z 2026-06-01T14:00:00Z"], "a Monday");
        assert_eq!(pieces(&office, "2026-06-03"), [""; 0], "a Wednesday");
        let night = calendar("Fri", "22:00", "02:00", "UTC", "");
        assert_eq!(pieces(&night, "2026-06-05"), ["2026-06-05T22:00:00Z 2026-06-06T00:00:00Z"]);
        assert_eq!(pieces(&night, "2026-06-06"), ["2026-06-06T00:00:00Z 2026-06-06T02:00:00Z"], "Friday's night");
        assert_eq!(pieces(&calendar("Fri", "22:00", "02:00", "UTC", "2026-06-06"), "2026-06-06"), [""; 0]);
        assert_eq!(pieces(&calendar(ALL, "22:00", "00:00", "UTC", ""), "2026-06-05"), ["2026-06-05T22:00:00Z 2026-06-06T00:00:00Z"]);
        assert_eq!(calendar(ALL, "00:00", "24:00", "UTC", "").share(), 1.0);
        assert_eq!(night.share(), 4.0 / 168.0);
    }

    #[test]
    fn where_clocks_go_forward_times_that_are_never_shown_are_the_moment_of_the_change() {
        // 29 March 2026, Berlin: 02:00 becomes 03:00 at 01:00Z.
        let date = "2026-03-29";
        for (from, to, open) in [
            ("02:30", "03:30", vec!["2026-03-29T01:00:00Z 2026-03-29T01:30:00Z"]),
            ("01:00", "02:30", vec!["2026-03-29T00:00:00Z 2026-03-29T01:00:00Z"]),
            ("02:15", "02:45", vec![]),
            ("01:00", "04:00", vec!["2026-03-29T00:00:00Z 2026-03-29T02:00:00Z"]),
        ] {
            assert_eq!(pieces(&calendar(ALL, from, to, "Europe/Berlin", ""), date), open, "{from} {to}");
        }
        // Beirut goes forward at midnight: the day begins at 01:00.
        assert_eq!(pieces(&calendar(ALL, "00:00", "02:00", "Asia/Beirut", ""), "2026-03-29"), ["2026-03-28T22:00:00Z 2026-03-28T23:00:00Z"]);
    }

    #[test]
    fn where_clocks_go_back_no_run_begins_while_the_clock_shows_a_time_outside() {
        // 25 October 2026, Berlin: 03:00 becomes 02:00 at 01:00Z.
        let date = "2026-10-25";
        for (from, to, open) in [
            ("02:30", "03:30", "2026-10-25T01:30:00Z 2026-10-25T02:30:00Z"),
            ("01:00", "02:30", "2026-10-24T23:00:00Z 2026-10-25T00:30:00Z"),
            ("02:15", "02:45", "2026-10-25T01:15:00Z 2026-10-25T01:45:00Z"),
            ("01:00", "04:00", "2026-10-24T23:00:00Z 2026-10-25T03:00:00Z"),
        ] {
            assert_eq!(pieces(&calendar(ALL, from, to, "Europe/Berlin", ""), date), [open], "{from} {to}");
        }
    }

    #[test]
    fn mistakes_are_told_with_what_would_be_right() {
        let good = "meanTimeBetween: 2d, window: {days: [Mon], from: '09:00', to: '16:00', timeZone: UTC}, blackoutDates: ['2026-12-24']";
        for (right, wrong, says) in [
            ("UTC", "Mars/Olympus", "such as Europe/Berlin"),
            ("'09:00'", "'9:00'", "spec.window.from: \"9:00\" is no time of day"),
            ("'09:00'", "'24:00'", "spec.window.from"),
            ("'16:00'", "'24:01'", "spec.window.to"),
            ("'16:00'", "'09:00'", "never open"),
            ("2026-12-24", "2026-02-30", "no date: write one such as 2026-12-24"),
        ] {
            let refused = Calendar::new(&spec(&good.replace(right, wrong))).unwrap_err();
            assert!(refused.contains(says), "{wrong}: {refused}");
        }
        assert!(Calendar::new(&spec(good)).is_ok());
    }

    #[test]
    fn a_window_that_never_opens_has_no_moment() {
        let gone = calendar("Mon", "02:15", "02:45", "UTC", "");
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert!(gone.after(start, SignedDuration::from_hours(1)).is_some());
        assert_eq!(gone.after(start, SignedDuration::from_hours(2_000)), None, "30 minutes a week for ten years are 261 hours");
    }

    const ZONES: [&str; 6] = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "Africa/Casablanca", "UTC"];

    proptest! {
        #[test]
        fn every_moment_is_inside_and_the_clock_on_the_wall_says_so(
            zone in 0..ZONES.len(), from in 0..1440_u16, to in 1..=1440_u16, days in 1..128_u8, start in 1_700_000_000..1_900_000_000_i64, open in 1..2_000_000_i64,
        ) {
            prop_assume!(from != to);
            let text = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
            let names: Vec<&str> = ALL.split(", ").enumerate().filter(|(day, _)| days & (1 << day) != 0).map(|(_, name)| name).collect();
            let calendar = calendar(&names.join(","), &text(from), &text(to), ZONES[zone], "2026-03-29, 2026-10-25");
            let start = Timestamp::from_second(start).unwrap();
            let Some(at) = calendar.after(start, SignedDuration::from_secs(open)) else { return Ok(()) };
            prop_assert!(at > start && calendar.is_open(at));
            let wall = at.to_zoned(calendar.zone.clone());
            let minute = wall.hour() as u16 * 60 + wall.minute() as u16;
            let opened = |date: Date| calendar.days[date.weekday().to_monday_zero_offset() as usize];
            let inside = if from < to {
                opened(wall.date()) && (from..to).contains(&minute)
            } else {
                (opened(wall.date()) && minute >= from) || (opened(wall.date().yesterday().unwrap()) && minute < to)
            };
            prop_assert!(inside, "{wall}");
            prop_assert!(!["2026-03-29", "2026-10-25"].contains(&wall.date().to_string().as_str()));
        }
    }
}
