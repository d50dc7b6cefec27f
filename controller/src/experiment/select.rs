//! Which nodes or pods a step hits: drawn from the run's seed, at the step's start, among those that are there then.

use rand::{RngExt, rngs::StdRng, seq::index};
use steadfast_api::{Percent, test::Selection};

/// How many of `candidates` the selection takes: at least one and never more than there are. `draw` yields a uniform number from 0 to below 1.
pub fn count(selection: Selection, candidates: usize, draw: impl FnOnce() -> f64) -> usize {
    let share = |share: f64| (share * candidates as f64).ceil() as usize;
    let count = match selection {
        Selection::One => 1,
        Selection::All => candidates,
        Selection::Fixed(count) => count as usize,
        Selection::FixedPercent(percent) => exact_share(percent, candidates),
        Selection::RandomMaxPercent(percent) => share(percent.ratio() * (1.0 - draw())).min(exact_share(percent, candidates)),
    };
    count.max(1).min(candidates)
}

/// Rounded up, in integers: 10 % of 10 is 1 and not 2.
fn exact_share(percent: Percent, candidates: usize) -> usize {
    (candidates as u64 * u64::from(percent.ppm())).div_ceil(1_000_000) as usize
}

/// Draws from `candidates`, and keeps their order.
pub fn draw<T: Clone>(selection: Selection, candidates: &[T], rng: &mut StdRng) -> Vec<T> {
    let count = count(selection, candidates.len(), || rng.random());
    let mut chosen = index::sample(rng, candidates.len(), count).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|index| candidates[index].clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn selection() -> impl Strategy<Value = Selection> {
        let percent = (1_u32..=1_000_000).prop_map(|ppm| Percent::from_ppm(ppm).unwrap());
        prop_oneof![
            Just(Selection::One),
            Just(Selection::All),
            (1_u32..20).prop_map(Selection::Fixed),
            percent.clone().prop_map(Selection::FixedPercent),
            percent.prop_map(Selection::RandomMaxPercent),
        ]
    }

    proptest! {
        #[test]
        fn a_draw_is_never_empty_never_repeats_and_is_the_same_for_the_same_seed(selection in selection(), candidates in 1_usize..40, seed: u64) {
            let candidates: Vec<usize> = (0..candidates).collect();
            let chosen = draw(selection, &candidates, &mut StdRng::seed_from_u64(seed));
            prop_assert!(!chosen.is_empty() && chosen.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(chosen, draw(selection, &candidates, &mut StdRng::seed_from_u64(seed)));
        }
    }

    #[test]
    fn shares_round_up_and_nobody_means_nobody() {
        let percent = |text: &str| Selection::FixedPercent(text.parse().unwrap());
        for (share, candidates, taken) in [("50%", 3, 2), ("10%", 10, 1), ("0.0001%", 5, 1), ("100%", 7, 7), ("50%", 0, 0)] {
            assert_eq!(count(percent(share), candidates, || 0.0), taken, "{share} of {candidates}");
        }
        let up_to = Selection::RandomMaxPercent("50%".parse().unwrap());
        assert_eq!((count(up_to, 10, || 0.0), count(up_to, 10, || 0.999)), (5, 1));
        assert!(draw(Selection::One, &[] as &[u8], &mut StdRng::seed_from_u64(1)).is_empty());
    }
}
