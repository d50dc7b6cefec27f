//! Promises of the comparison rules.

use proptest::prelude::*;
use steadfast_api::{Percent, golden::Compare};

use super::*;
use crate::tensor::Values;

fn rule(name: &str, datatype: DataType, compare: Compare) -> Rule {
    Rule { name: name.into(), datatype, compare }
}

fn decimal(text: &str) -> Decimal {
    text.parse().unwrap()
}

fn regression(absolute: &str, relative: &str) -> Compare {
    Compare::Regression { absolute: decimal(absolute), relative: decimal(relative) }
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(name, shape, Values::F32(values.to_vec())).unwrap()
}

fn one(compare: Compare, reference: &Tensor, live: &Tensor) -> Difference {
    let rules = Rules { outputs: vec![rule(&reference.name, reference.datatype(), compare)] };
    rules.compare(std::slice::from_ref(reference), std::slice::from_ref(live)).outputs.remove(0)
}

#[test]
fn regression_allows_absolute_plus_relative() {
    let reference = floats("y", &[1, 2], &[0.0, 100.0]);
    assert!(one(regression("0.01", "0.001"), &reference, &floats("y", &[1, 2], &[0.01, 100.1])).matches);
    let beyond = one(regression("0.01", "0.001"), &reference, &floats("y", &[1, 2], &[0.0, 100.2]));
    assert!(!beyond.matches);
    assert_eq!(beyond.at, Some(vec![0, 1]));
    assert!(beyond.to_string().starts_with("y at [0, 1] is 100.2 where 100 is expected: 0.2 apart, 0.11 allowed"), "{beyond}");
}

#[test]
fn nan_and_infinity_equal_only_themselves() {
    let odd = floats("y", &[3], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    for compare in [regression("1", "1"), Compare::Embedding { absolute: decimal("1"), relative: decimal("1") }, Compare::Exact {}] {
        assert!(one(compare.clone(), &odd, &odd).matches);
        for changed in [[0.0, f32::INFINITY, f32::NEG_INFINITY], [f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY], [f32::NAN, f32::INFINITY, f32::NAN]] {
            let difference = one(compare.clone(), &odd, &floats("y", &[3], &changed));
            assert!(!difference.matches && difference.absolute > 0.0, "{compare:?} {changed:?}");
        }
    }
    let finite = floats("y", &[1], &[1.0]);
    assert!(!one(regression("1e30", "1e30"), &finite, &floats("y", &[1], &[f32::NAN])).matches);
}

#[test]
fn shape_type_and_missing_outputs_are_mismatches() {
    let reference = floats("y", &[1, 2], &[1.0, 2.0]);
    let reshaped = one(regression("1", "1"), &reference, &floats("y", &[2], &[1.0, 2.0]));
    assert!(!reshaped.matches && reshaped.line.contains("shape [2]") && reshaped.absolute.is_infinite());
    let wide = Tensor::new("y", [1, 2], Values::F64(vec![1.0, 2.0])).unwrap();
    assert!(one(regression("0", "0"), &reference, &wide).matches, "FP64 for FP32 is cast first");
    let text = Tensor::new("y", [1, 2], Values::Bytes(vec![b"1".to_vec(), b"2".to_vec()])).unwrap();
    assert!(!one(regression("1", "1"), &reference, &text).matches);
    let rules = Rules { outputs: vec![rule("y", DataType::F32, regression("0", "0")), rule("z", DataType::F32, regression("0", "0"))] };
    let both = [reference.clone(), reference.clone().renamed("z")];
    let missing = rules.compare(&both, &both[..1]);
    assert!(missing.to_string().contains("z is missing"), "{missing}");
    let renamed = [reference.clone().renamed("a"), reference.renamed("b")];
    assert!(rules.compare(&both, &renamed).matches(), "as many under other names: by position");
}

#[test]
fn a_label_flips_only_beyond_the_margin() {
    let compare = Compare::Classification { absolute: decimal("0.01") };
    let near_tie = floats("p", &[1, 3], &[0.500, 0.495, 0.005]);
    assert!(one(compare.clone(), &near_tie, &floats("p", &[1, 3], &[0.497, 0.498, 0.005])).matches);
    let clear = floats("p", &[2, 3], &[0.1, 0.8, 0.1, 0.1, 0.8, 0.1]);
    let flipped = one(compare.clone(), &clear, &floats("p", &[2, 3], &[0.1, 0.8, 0.1, 0.6, 0.3, 0.1]));
    assert!(!flipped.matches && flipped.line.contains("row 1 is class 0 where 1 leads by 0.7"), "{flipped}");
    assert!(!one(compare, &clear, &floats("p", &[2, 3], &[0.1, 0.8, 0.1, 0.1, 0.75, 0.15])).matches, "same label, but too far");
}

#[test]
fn embeddings_are_held_to_value_and_length() {
    let compare = |absolute, relative| Compare::Embedding { absolute: decimal(absolute), relative: decimal(relative) };
    let reference = floats("e", &[1, 4], &[0.5, 0.5, 0.5, 0.5]);
    let shifted = floats("e", &[1, 4], &[0.501, 0.499, 0.501, 0.499]);
    assert!(one(compare("0.002", "0.01"), &reference, &shifted).matches);
    assert!(!one(compare("0.0005", "0.01"), &reference, &shifted).matches);
    let long = one(compare("0.002", "0.001"), &reference, &shifted);
    assert!(!long.matches && long.line.contains("cosine"), "{long}");
}

fn ranked(items: &[i64], scores: &[f32], live_items: &[i64], live_scores: &[f32], overlap: Percent) -> Difference {
    let rules = Rules {
        outputs: vec![
            rule("items", DataType::I64, Compare::Ranking { scores: "scores".into(), overlap }),
            rule("scores", DataType::F32, regression("0.01", "0")),
        ],
    };
    let answer = |items: &[i64], scores: &[f32]| {
        vec![Tensor::new("items", [1, items.len()], Values::I64(items.to_vec())).unwrap(), floats("scores", &[1, scores.len()], scores)]
    };
    rules.compare(&answer(items, scores), &answer(live_items, live_scores)).outputs.remove(0)
}

#[test]
fn ties_may_change_places_and_nothing_else() {
    let (items, scores) = ([1, 2, 3, 4], [0.9, 0.8, 0.795, 0.5]);
    let all = Percent::HUNDRED;
    assert!(ranked(&items, &scores, &items, &scores, all).matches);
    assert!(ranked(&items, &scores, &[1, 3, 2, 4], &[0.9, 0.8, 0.795, 0.5], all).matches, "2 and 3 are level");
    let swapped = ranked(&items, &scores, &[2, 1, 3, 4], &scores, all);
    assert!(!swapped.matches && swapped.line.contains("3 of 4 items"), "{swapped}");
    assert!(ranked(&items, &scores, &[1, 2, 3, 9], &[0.9, 0.8, 0.795, 0.501], all).matches, "9 is as good as 4");
    assert!(!ranked(&items, &scores, &[1, 2, 3, 9], &[0.9, 0.8, 0.795, 0.7], all).matches, "9 is not level with 4");
    assert!(!ranked(&items, &scores, &[9, 2, 3, 4], &scores, all).matches);
    assert!(!ranked(&items, &scores, &[1, 1, 1, 1], &scores, all).matches, "an item counts once");
}

#[test]
fn overlap_tolerates_the_stated_share() {
    let items: Vec<i64> = (0..10).collect();
    let scores: Vec<f32> = (0..10_u8).map(|i| 1.0 - f32::from(i) / 10.0).collect();
    // One newcomer at the top pushes everyone down and the last one out: nine of ten are still in order.
    let pushed: Vec<i64> = std::iter::once(99).chain(0..9).collect();
    assert!(ranked(&items, &scores, &pushed, &scores, "90%".parse().unwrap()).matches);
    assert!(!ranked(&items, &scores, &pushed, &scores, "91%".parse().unwrap()).matches);
}

#[test]
fn exact_counts_what_differs() {
    let reference = Tensor::new("label", [3], Values::Bytes(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()])).unwrap();
    let live = Tensor::new("label", [3], Values::Bytes(vec![b"a".to_vec(), b"x".to_vec(), b"y".to_vec()])).unwrap();
    let difference = one(Compare::Exact {}, &reference, &live);
    assert_eq!(difference.to_string(), r#"label differs in 2 of 3 values; at [1] is "x" where "b" is expected"#);
    let large = |value| Tensor::new("id", [1], Values::I64(vec![value])).unwrap();
    assert!(!one(Compare::Exact {}, &large(i64::MAX), &large(i64::MAX - 1)).matches, "beyond 2^53 too");
    assert!(!one(regression("0", "0"), &large(i64::MAX), &large(i64::MAX - 1)).matches);
}

fn any_pair() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (1_usize..12).prop_flat_map(|n| (prop::collection::vec(-5.0_f32..5.0, n), prop::collection::vec(-5.0_f32..5.0, n)))
}

proptest! {
    #[test]
    fn every_answer_matches_itself(values in prop::collection::vec(any::<f32>(), 0..30)) {
        let tensor = floats("y", &[values.len()], &values);
        for compare in [regression("0", "0"), Compare::Classification { absolute: decimal("0") }, Compare::Embedding { absolute: decimal("0"), relative: decimal("0") }, Compare::Exact {}] {
            let difference = one(compare, &tensor, &tensor);
            prop_assert!(difference.matches && difference.absolute == 0.0 && difference.relative == 0.0);
        }
    }

    #[test]
    fn the_largest_difference_is_the_tolerance_that_just_accepts((a, b) in any_pair()) {
        let (a, b) = (floats("y", &[a.len()], &a), floats("y", &[b.len()], &b));
        let difference = one(regression("0", "0"), &a, &b);
        let noise = difference.noise().unwrap();
        let accepts = Compare::Regression { absolute: noise.absolute.clone(), relative: Decimal::ZERO };
        prop_assert!(one(accepts, &a, &b).matches);
        let accepts = Compare::Embedding { absolute: noise.absolute, relative: noise.relative };
        prop_assert!(one(accepts, &a, &b).matches);
        let less = Compare::Regression { absolute: Decimal::from_f64(difference.absolute * 0.999).unwrap(), relative: Decimal::ZERO };
        prop_assert_eq!(one(less, &a, &b).matches, difference.absolute == 0.0);
    }

    #[test]
    fn a_ranking_matches_itself_and_not_its_reverse(scores in prop::collection::btree_set(0_u16..1000, 2..20)) {
        // Ten apart at least: nothing is level.
        let scores: Vec<f32> = scores.into_iter().rev().map(|score| f32::from(score) * 10.0).collect();
        let items: Vec<i64> = (0..).take(scores.len()).collect();
        let reversed: Vec<i64> = items.iter().rev().copied().collect();
        prop_assert!(ranked(&items, &scores, &items, &scores, Percent::HUNDRED).matches);
        prop_assert!(!ranked(&items, &scores, &reversed, &scores, Percent::HUNDRED).matches);
    }
}
