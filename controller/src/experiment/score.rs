//! The score, 0 to 100: how far the run stayed from what was asked of it, in parts that can be told apart.
//!
//! | part | out of | points |
//! |---|---|---|
//! | availability | 35 | all while failures stay within the budget, else budget ÷ failures of them |
//! | recovery | 25 | mean over outages: all when recovered within the goal, else goal ÷ time; none when not recovered |
//! | consistency | 25 | all while wrong answers stay within the budget, else budget ÷ wrong answers of them |
//! | performance | 15 | all when p99 over the run stays within the goal, else goal ÷ p99 of them |
//!
//! Budgets and goals come from the strictest hypothesis of that kind; without one: availability and consistency 99.9 %, recovery 30 s. The goal of p99 is four
//! times the baseline's. A budget is never less than 1 in 10,000, so that a goal of 100 % still tells a small miss from a large one. A part without
//! data (no users, no outage) is left out, and the rest is scaled to 100. An outage that recovered, and whose begin nobody saw, is none that could be measured.

use steadfast_api::{
    Percent,
    mark::{Mark, Outage},
    report::{ScorePart, Service},
    test::{Hypothesis, RecoveredAt},
};

use crate::observe::recovery::until;

/// Parts that have data, and the score.
pub fn score(hypothesis: &[Hypothesis], total: &Service, baseline: &Service, outages: &[Outage]) -> (u32, Vec<ScorePart>) {
    let goals = Goals::of(hypothesis, baseline);
    let measured = outages.iter().filter(|outage| outage.censored || !outage.began_before);
    let recovered: Vec<f64> = measured.map(|outage| until(outage, goals.recovered).map_or(0.0, |ms| within(goals.recovery_ms, ms))).collect();
    let mean = (!recovered.is_empty()).then(|| recovered.iter().sum::<f64>() / recovered.len() as f64);
    let parts = [
        ("availability", 35.0, total.availability.ratio.map(|ratio| budget(goals.availability, ratio))),
        ("recovery", 25.0, mean),
        ("consistency", 25.0, total.consistency.ratio.map(|ratio| budget(goals.consistency, ratio))),
        ("performance", 15.0, (total.latency.count > 0).then(|| within(goals.p99_ms, total.latency.p99_ms))),
    ];
    let parts: Vec<ScorePart> = parts
        .into_iter()
        .filter_map(|(name, out_of, share)| share.map(|share| ScorePart { name: name.to_owned(), points: out_of * share.clamp(0.0, 1.0), out_of }))
        .collect();
    let (points, out_of) = parts.iter().fold((0.0, 0.0), |(points, out_of), part| (points + part.points, out_of + part.out_of));
    let score = if out_of > 0.0 { (100.0 * points / out_of).floor().clamp(0.0, 100.0) as u32 } else { 0 };
    (score, parts)
}

struct Goals {
    availability: Percent,
    consistency: Percent,
    recovery_ms: f64,
    recovered: Mark,
    p99_ms: f64,
}

impl Goals {
    fn of(hypothesis: &[Hypothesis], baseline: &Service) -> Self {
        let mut goals = Self {
            availability: Percent::from_ratio(0.999),
            consistency: Percent::from_ratio(0.999),
            recovery_ms: 30_000.0,
            recovered: Mark::Sustained,
            p99_ms: if baseline.latency.count > 0 { 4.0 * baseline.latency.p99_ms } else { f64::INFINITY },
        };
        let (mut availability, mut consistency, mut recovery_ms) = (None, None, None);
        for one in hypothesis {
            match one {
                Hypothesis::Availability(goal) => availability = availability.max(Some(goal.at_least)),
                Hypothesis::Consistency(goal) => consistency = consistency.max(Some(goal.at_least)),
                Hypothesis::Recovery(goal) => {
                    let ms = goal.at_most.get().as_secs_f64() * 1000.0;
                    if recovery_ms.is_none_or(|least| ms < least) {
                        recovery_ms = Some(ms);
                        goals.recovered = mark_of(goal.until);
                    }
                }
                Hypothesis::Latency(_) => (),
            }
        }
        goals.availability = availability.unwrap_or(goals.availability);
        goals.consistency = consistency.unwrap_or(goals.consistency);
        goals.recovery_ms = recovery_ms.unwrap_or(goals.recovery_ms);
        goals
    }
}

/// The mark that counts as recovered.
pub const fn mark_of(until: RecoveredAt) -> Mark {
    match until {
        RecoveredAt::Ready => Mark::Ready,
        RecoveredAt::FirstGoodResponse => Mark::FirstGoodResponse,
        RecoveredAt::FirstCorrectPrediction => Mark::FirstCorrectPrediction,
        RecoveredAt::Sustained => Mark::Sustained,
    }
}

fn budget(goal: Percent, ratio: f64) -> f64 {
    let (allowed, missed) = ((1.0 - goal.ratio()).max(1e-4), 1.0 - ratio);
    // The ratio is of counts: within rounding of the budget is within it.
    if missed <= allowed + 1e-12 { 1.0 } else { allowed / missed }
}

fn within(goal: f64, value: f64) -> f64 {
    if value <= goal { 1.0 } else { goal / value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use steadfast_api::{
        report::{Availability, Consistency, Latency},
        test::{AtLeast, During},
    };

    use super::*;

    fn service(availability: f64, p99_ms: f64) -> Service {
        Service {
            availability: Availability { ratio: Some(availability), ..Availability::default() },
            latency: Latency { count: 1, p99_ms, ..Latency::default() },
            consistency: Consistency { ratio: Some(1.0), ..Consistency::default() },
        }
    }

    #[test]
    fn twice_the_allowed_failures_are_half_the_points() {
        let hypothesis = [Hypothesis::Availability(AtLeast { at_least: "99%".parse().unwrap(), during: During::Run })];
        let (score, parts) = score(&hypothesis, &service(0.98, 4.0), &service(1.0, 1.0), &[]);
        assert_eq!(parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["availability", "consistency", "performance"], "no outage, no part");
        assert!((parts[0].points - 17.5).abs() < 1e-9);
        assert_eq!(score, (100.0_f64 * (17.5 + 25.0 + 15.0) / 75.0) as u32);
    }

    proptest! {
        #[test]
        fn a_score_is_never_over_100_nor_a_part_over_its_share(availability in 0.0..=1.0_f64, p99 in 0.0..1e7_f64, base in 0.0..1e4_f64) {
            let (score, parts) = score(&[], &service(availability, p99), &service(1.0, base), &[]);
            prop_assert!(score <= 100 && parts.iter().all(|part| part.points >= 0.0 && part.points <= part.out_of));
        }
    }
}
