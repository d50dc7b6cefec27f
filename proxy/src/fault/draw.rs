//! Draws: by chance, or by a header's value, which then always gives the same; and how long a delay is.

use std::f64::consts::TAU;

use rand::{Rng, RngExt};
use steadfast_api::{
    Percent,
    fault::{Delay, DelayFault, Length},
};

use crate::clock;

/// Whether something with the chance `share` happens.
pub fn happens(rng: &mut impl Rng, share: Percent) -> bool {
    rng.random_range(0..1_000_000) < share.ppm()
}

/// What a header's value falls on, in parts per million: the same in every sidecar and for ever, so that who carries it keeps one fate. `salt` sets the draws of
/// different policies, rules and faults apart. FNV-1a, and the finishing steps of SplitMix64, since FNV's high bits hardly move for short texts.
pub fn of_value(salt: &[&[u8]], value: &[u8]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for part in salt {
        for byte in *part {
            eat(*byte);
        }
        eat(0);
    }
    for byte in value {
        eat(*byte);
    }
    let mut mixed = hash;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed % 1_000_000) as u32
}

/// A standard normal number (Box and Muller).
pub fn normal(rng: &mut impl Rng) -> f64 {
    // (0, 1]: the logarithm of nothing is no number.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (TAU * rng.random::<f64>()).cos()
}

/// Nanoseconds of a delay.
pub fn length_ns(delay: &DelayFault, rng: &mut impl Rng) -> u64 {
    let ns = |span: &steadfast_api::Span| clock::ns(span.get());
    let drawn = match &delay.length {
        Length::Fixed(Delay { fixed, jitter }) => ns(fixed) + rng.random_range(0..=ns(jitter)),
        Length::Uniform(uniform) => rng.random_range(ns(&uniform.from)..=ns(&uniform.to)),
        // Casts saturate, and what is below zero is zero.
        Length::Normal(spread) => (ns(&spread.mean) as f64 + ns(&spread.deviation) as f64 * normal(rng)) as u64,
        Length::Pareto(tail) => {
            let (least, p99) = (ns(&tail.at_least) as f64, ns(&tail.p99) as f64);
            // One of a hundred is longer than p99: (least / p99) ^ shape = 0.01.
            let shape = 100_f64.ln() / (p99 / least).ln();
            (least / (1.0 - rng.random::<f64>()).powf(1.0 / shape)) as u64
        }
    };
    drawn.min(ns(&delay.longest()))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use steadfast_api::read::from_yaml;

    use super::*;

    fn sorted(text: &str) -> Vec<f64> {
        let delay: DelayFault = from_yaml("delay", text).unwrap();
        let mut rng = StdRng::seed_from_u64(3);
        let mut drawn: Vec<f64> = (0..20_000).map(|_| length_ns(&delay, &mut rng) as f64 / 1e6).collect();
        drawn.sort_by(f64::total_cmp);
        drawn
    }

    #[test]
    fn lengths_are_spread_as_they_are_asked_to_be() {
        let at = |drawn: &[f64], quantile: f64| drawn[((drawn.len() - 1) as f64 * quantile) as usize];
        let near = |found: f64, right: f64| assert!((found / right - 1.0).abs() < 0.08, "{found} and not {right}");
        assert!(sorted("{fixed: 250ms}").iter().all(|ms| *ms == 250.0));
        for text in ["{fixed: 100ms, jitter: 200ms}", "{uniform: {from: 100ms, to: 300ms}}"] {
            let drawn = sorted(text);
            assert!(drawn[0] >= 100.0 && drawn[drawn.len() - 1] <= 300.0, "{text}");
            near(at(&drawn, 0.25), 150.0);
            near(at(&drawn, 0.75), 250.0);
        }
        let drawn = sorted("{normal: {mean: 200ms, deviation: 50ms}}");
        near(at(&drawn, 0.5), 200.0);
        near(at(&drawn, 0.8413), 250.0);
        near(at(&drawn, 0.1587), 150.0);
        assert_eq!(sorted("{normal: {mean: 0s, deviation: 50ms}}")[0], 0.0);
        let drawn = sorted("{pareto: {atLeast: 50ms, p99: 2s}, atMost: 5s}");
        assert!(drawn[0] >= 50.0 && drawn[drawn.len() - 1] == 5000.0, "the tail is cut where it is told to be");
        near(at(&drawn, 0.99), 2000.0);
        // shape = ln 100 / ln 40 = 1.2484, so the median is 50 × 2^(1/shape).
        near(at(&drawn, 0.5), 87.1);
    }

    /// These figures are a promise: a user who was faulted yesterday is today, whatever version of the sidecar.
    #[test]
    fn a_value_keeps_its_fate_for_ever_and_values_are_spread_evenly() {
        let seen: Vec<u32> = ["alice", "bob", ""].iter().map(|user| of_value(&[b"policy", b"0"], user.as_bytes())).collect();
        assert_eq!(seen, STABLE);
        let below = (0..10_000).filter(|user| of_value(&[b"p"], format!("user-{user}").as_bytes()) < 100_000).count();
        assert!((900..1100).contains(&below), "{below}");
        let both = (0..10_000).filter(|user| [&b"p"[..], b"q"].iter().all(|salt| of_value(&[*salt], format!("user-{user}").as_bytes()) < 100_000)).count();
        assert!((50..160).contains(&both), "two policies choose independently: {both}");
    }

    const STABLE: [u32; 3] = [907_670, 219_234, 513_525];

    #[test]
    fn certain_is_always_and_impossible_is_never() {
        let mut rng = StdRng::seed_from_u64(2);
        assert!((0..1000).all(|_| happens(&mut rng, Percent::HUNDRED) && !happens(&mut rng, Percent::ZERO)));
    }
}
