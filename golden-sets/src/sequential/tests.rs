//! The promises of the verdicts, checked by seeded simulation.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use steadfast_api::golden::{Outcome, Verdict};

use super::*;

fn draw(rng: &mut StdRng, p: f64) -> Outcome {
    if rng.random_bool(p) { Outcome::Mismatch } else { Outcome::Match }
}

/// Observations until the verdict is `wanted`, at most `horizon`.
fn until(judge: &mut Judge, wanted: Verdict, p: f64, horizon: u64, rng: &mut StdRng) -> Option<u64> {
    (1..=horizon).find(|_| {
        judge.observe(draw(rng, p));
        judge.verdict() == wanted
    })
}

fn median(settings: Settings, wanted: Verdict, p: f64, seed: u64) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut times: Vec<u64> = (0..2001).map(|_| until(&mut Judge::gate(settings).unwrap(), wanted, p, 20_000, &mut rng).unwrap_or(u64::MAX)).collect();
    times.sort_unstable();
    times[1000]
}

fn false_alarms(alpha: f64, p: f64, seed: u64) -> usize {
    let settings = Settings { false_alarms: alpha, ..Settings::default() };
    let mut rng = StdRng::seed_from_u64(seed);
    (0..10_000)
        .filter(|_| {
            let mut judge = Judge::gate(settings).unwrap();
            (0..5_000).any(|_| {
                let outcome = draw(&mut rng, p);
                judge.observe(outcome);
                // A Fail can only come with a mismatch, and stays.
                outcome == Outcome::Mismatch && judge.verdict() == Verdict::Fail
            })
        })
        .count()
}

#[test]
fn false_alarms_stay_below_one_in_a_thousand_over_a_long_horizon() {
    let alarms = false_alarms(0.001, 0.001, 1);
    assert!(alarms <= 10, "{alarms} of 10,000");
}

#[test]
fn false_alarms_stay_below_one_in_twenty_over_a_long_horizon() {
    let alarms = false_alarms(0.05, 0.001, 2);
    assert!(alarms <= 500, "{alarms} of 10,000");
}

#[test]
fn drift_is_found_in_few_samples() {
    let settings = Settings::default();
    for (p, at_most) in [(0.01, 600), (0.05, 60), (0.2, 10), (1.0, 2)] {
        let median = median(settings, Verdict::Fail, p, 3);
        assert!(median <= at_most, "{median} samples at {p}");
    }
}

#[test]
fn a_good_server_passes_and_one_at_the_limit_hardly_ever() {
    let settings = Settings::default();
    let mut clean = Judge::gate(settings).unwrap();
    let needed = until(&mut clean, Verdict::Pass, 0.0, 2_000, &mut StdRng::seed_from_u64(4)).unwrap();
    assert!(needed < 800, "{needed}");
    assert!(median(settings, Verdict::Pass, 0.0005, 5) < 1_500);
    let loose = Settings { false_alarms: 0.05, tolerated: 0.001, detect: 0.01, ..settings };
    let mut rng = StdRng::seed_from_u64(6);
    let passed = (0..10_000).filter(|_| until(&mut Judge::gate(loose).unwrap(), Verdict::Pass, 0.01, 2_000, &mut rng).is_some()).count();
    // The promise is nearly used up here (a clean start is all it takes), so chance is allowed three standard deviations.
    assert!(passed <= 565, "{passed} of 10,000 passed at the share that must be seen");
}

#[test]
fn a_monitor_alarms_no_sooner_on_average_than_promised() {
    let settings = Settings { tolerated: 0.02, detect: 0.1, run_length: 1_000.0, ..Settings::default() };
    let mut rng = StdRng::seed_from_u64(7);
    let runs = 1_000_u64;
    let total: u64 = (0..runs).map(|_| until(&mut Judge::monitor(settings).unwrap(), Verdict::Fail, 0.02, 100_000, &mut rng).unwrap_or(100_000)).sum();
    assert!(total / runs >= 1_000, "{}", total / runs);
}

#[test]
fn a_monitor_finds_drift_that_begins_late() {
    let mut rng = StdRng::seed_from_u64(8);
    let mut judge = Judge::monitor(Settings { run_length: 3e7, ..Settings::default() }).unwrap();
    assert_eq!(until(&mut judge, Verdict::Fail, 0.0, 1_000_000, &mut rng), None);
    assert_eq!(judge.verdict(), Verdict::Pass);
    let late = until(&mut judge, Verdict::Fail, 0.2, 1_000, &mut rng).unwrap();
    assert!(late <= 60, "{late}");
    judge.reset();
    assert_eq!((judge.verdict(), judge.samples()), (Verdict::Inconclusive, 0));
}

#[test]
fn no_answer_is_never_drift() {
    for mut judge in [Judge::gate(Settings::default()).unwrap(), Judge::monitor(Settings::default()).unwrap().deterministic(2)] {
        for _ in 0..100_000 {
            assert_eq!(judge.observe(Outcome::NoAnswer), Next::Draw);
        }
        assert_eq!((judge.verdict(), judge.samples(), judge.unanswered()), (Verdict::Inconclusive, 0, 100_000));
    }
}

#[test]
fn a_deterministic_server_fails_on_one_confirmed_mismatch() {
    let mut judge = Judge::monitor(Settings::default()).unwrap().deterministic(3);
    assert_eq!(judge.observe(Outcome::Mismatch), Next::Retry);
    assert_eq!(judge.observe(Outcome::Mismatch), Next::Retry);
    assert_eq!(judge.observe(Outcome::NoAnswer), Next::Retry, "busy: still to be confirmed");
    assert_eq!(judge.observe(Outcome::Mismatch), Next::Retry);
    assert_eq!(judge.verdict(), Verdict::Inconclusive);
    assert_eq!(judge.observe(Outcome::Mismatch), Next::Draw);
    assert_eq!((judge.verdict(), judge.samples()), (Verdict::Fail, 1));
    let mut flaky = Judge::monitor(Settings::default()).unwrap().deterministic(3);
    flaky.observe(Outcome::Mismatch);
    assert_eq!(flaky.observe(Outcome::Match), Next::Draw, "not confirmed: one mismatch among the samples");
    assert_eq!((flaky.verdict(), flaky.mismatches()), (Verdict::Inconclusive, 1));
}

#[test]
fn a_broken_reference_says_nothing_of_the_server() {
    let mut judge = Judge::gate(Settings::default()).unwrap();
    for _ in 0..50 {
        judge.observe(Outcome::Mismatch);
    }
    assert_eq!(judge.verdict(), Verdict::Fail);
    judge.set_reference_broken(true);
    assert_eq!(judge.verdict(), Verdict::ReferenceBroken);
}

#[test]
fn evidence_stays_finite_over_years() {
    let settings = Settings::default();
    let (mut mixture, mut detector, mut exclusion) = (Mixture::new(&settings), Detector::new(&settings), Exclusion::new(&settings));
    for mismatch in [true, false] {
        for _ in 0..2_000_000 {
            mixture.observe(mismatch);
            detector.observe(mismatch);
            exclusion.observe(mismatch);
        }
        for log in [mixture.log_value(), detector.log_value(), exclusion.log_value()] {
            assert!(log.is_finite(), "{log}");
        }
    }
}

#[test]
fn the_first_step_of_every_e_process_has_expectation_one_or_less() {
    // Exact, not simulated: E[e | p at the edge of the null] over both outcomes.
    for tolerated in [1e-6, 0.001, 0.01, 0.2] {
        let settings = Settings { tolerated, detect: tolerated * 3.0, ..Settings::default() };
        let expectation = |p: f64, value: &dyn Fn(bool) -> f64| p * value(true).exp() + (1.0 - p) * value(false).exp();
        let mixture = |mismatch| {
            let mut mixture = Mixture::new(&settings);
            mixture.observe(mismatch);
            mixture.log_value()
        };
        let exclusion = |mismatch| {
            let mut exclusion = Exclusion::new(&settings);
            exclusion.observe(mismatch);
            exclusion.log_value()
        };
        assert!(expectation(tolerated, &mixture) <= 1.0 + 1e-9 && expectation(tolerated / 2.0, &mixture) <= 1.0);
        assert!(expectation(settings.detect, &exclusion) <= 1.0 + 1e-9 && expectation(0.9, &exclusion) <= 1.0);
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |settings: Settings| Judge::gate(settings).map(drop).unwrap_err().to_string();
    let good = Settings::default();
    assert!(refused(Settings { false_alarms: 0.0, ..good }).contains("falseAlarms: 0 is out of range"));
    assert!(refused(Settings { tolerated: f64::NAN, ..good }).contains("tolerated"));
    assert!(refused(Settings { detect: 0.001, ..good }).contains("twice what is tolerated"));
    assert!(refused(good.with_alarms(1.0, 0.0)).contains("runLength"));
}

#[test]
fn a_fleet_is_judged_by_the_average_and_names_the_culprits() {
    let (strong, none) = (20.0, -3.0);
    let average = fleet::average(&[none, strong, none, none]).unwrap();
    assert!((average - (strong - 4_f64.ln())).abs() < 1e-6);
    assert_eq!(fleet::average(&[]), None);
    assert_eq!(fleet::discoveries(&[none, strong, none, 15.0], 0.05), [1, 3]);
    assert!(fleet::discoveries(&[none, 1.0], 0.05).is_empty());
}

#[test]
fn draws_are_uniform_and_follow_their_seed() {
    let samples = std::num::NonZeroUsize::new(7).unwrap();
    let mut counts = [0_u32; 7];
    Draw::new(9, samples).take(70_000).for_each(|index| counts[index] += 1);
    assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    assert!(Draw::new(9, samples).take(50).eq(Draw::new(9, samples).take(50)));
    assert!(!Draw::new(9, samples).take(50).eq(Draw::new(10, samples).take(50)));
}
