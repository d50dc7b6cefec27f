//! Rules for items: rankings with ties, and exact equality.

use std::collections::{HashMap, HashSet};

use super::{Difference, row_length, unravel};
use crate::tensor::{Tensor, Values};

/// What orders the items, and how far each score may be off.
pub(super) struct Scores<'a> {
    pub(super) reference: &'a Tensor,
    pub(super) live: &'a Tensor,
    pub(super) absolute: f64,
    pub(super) relative: f64,
}

impl Scores<'_> {
    /// Whether two scores may be the same: each side's tolerance can move one of them. Equal infinities are level.
    #[expect(clippy::float_cmp, reason = "infinities are near nothing but themselves")]
    fn level(&self, a: f64, b: f64) -> bool {
        a == b || (a - b).abs() <= 2.0 * (self.absolute + self.relative * a.abs().max(b.abs()))
    }
}

/// What identifies an item.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Item<'a> {
    Number(i128),
    /// Floats are refused when a set loads; their bits keep this total.
    Bits(u64),
    Text(&'a [u8]),
}

fn item(tensor: &Tensor, index: usize) -> Item<'_> {
    match &tensor.values {
        Values::Bytes(values) => Item::Text(values.get(index).map_or(&[], Vec::as_slice)),
        values => values.integer(index).map_or_else(|| Item::Bits(values.number(index).unwrap_or(f64::NAN).to_bits()), Item::Number),
    }
}

/// The share of the reference's items that `live` has in order, row by row; the worst row must reach `overlap`.
pub(super) fn ranking(reference: &Tensor, live: &Tensor, scores: &Scores<'_>, overlap: f64) -> Difference {
    if scores.reference.shape != reference.shape || scores.live.shape != reference.shape {
        let why = format!("has shape {:?} and its scores {:?}; they must be equal", reference.shape, scores.live.shape);
        return Difference::incomparable(&reference.name, &why);
    }
    let length = row_length(reference);
    let rows = (0..reference.len() / length).map(|row| (row, found_in_row(reference, live, scores, row * length, length)));
    let worst = rows.min_by_key(|(_, (found, _))| *found);
    let Some((_, (found, first_wrong))) = worst else {
        return Difference { output: reference.name.clone(), matches: true, absolute: 0.0, relative: 0.0, at: None, line: "is empty on both sides".into() };
    };
    let share = found as f64 / length as f64;
    let line = match first_wrong {
        None => format!("has all {length} items in order"),
        Some(index) => format!(
            "has {found} of {length} items in order; at {:?} is {} where {} is expected",
            unravel(index, &reference.shape),
            live.values.show(index),
            reference.values.show(index)
        ),
    };
    // Ten items and 90 % must be nine, whatever 9 ÷ 10 rounds to.
    let matches = share + 1e-9 >= overlap;
    Difference {
        output: reference.name.clone(),
        matches,
        absolute: 1.0 - share,
        relative: 0.0,
        at: first_wrong.map(|index| unravel(index, &reference.shape)),
        line,
    }
}

/// How many items of the row starting at `start` are in order, and where the first wrong one is.
fn found_in_row(reference: &Tensor, live: &Tensor, scores: &Scores<'_>, start: usize, length: usize) -> (usize, Option<usize>) {
    let score = |index: usize| scores.reference.values.number(index).unwrap_or(f64::NAN);
    let live_score = |index: usize| scores.live.values.number(index).unwrap_or(f64::NAN);
    // Neighbours that are level form one group; order inside a group says nothing.
    let mut group = vec![0; length];
    for place in 1..length {
        group[place] = group[place - 1] + usize::from(!scores.level(score(start + place - 1), score(start + place)));
    }
    let groups: HashMap<Item<'_>, usize> = (0..length).rev().map(|place| (item(reference, start + place), group[place])).collect();
    let mut seen = HashSet::new();
    let (mut common, mut strangers_level) = (Vec::new(), 0);
    let last = score(start + length - 1);
    for place in 0..length {
        let candidate = item(live, start + place);
        match groups.get(&candidate) {
            // An item given twice counts once.
            Some(group) if seen.insert(candidate) => common.push(*group),
            None if seen.insert(candidate) && scores.level(live_score(start + place), last) => strangers_level += 1,
            _ => {}
        }
    }
    let missing_level = (0..length).filter(|place| group[*place] == group[length - 1] && !seen.contains(&item(reference, start + place))).count();
    let found = longest_in_order(&common) + missing_level.min(strangers_level);
    let wrong = |place: &usize| {
        let theirs = groups.get(&item(live, start + place));
        theirs.is_none_or(|theirs| *theirs != group[*place])
    };
    let first_wrong = if found == length { None } else { (0..length).find(wrong).map(|place| start + place) };
    (found.min(length), first_wrong)
}

/// Length of the longest subsequence that never falls (patience sorting).
fn longest_in_order(groups: &[usize]) -> usize {
    let mut ends: Vec<usize> = Vec::new();
    for group in groups {
        let place = ends.partition_point(|end| end <= group);
        if place == ends.len() {
            ends.push(*group);
        } else {
            ends[place] = *group;
        }
    }
    ends.len()
}

/// Equal, value for value; floats by value, with NaN equal to NaN.
pub(super) fn exact(reference: &Tensor, live: &Tensor) -> Difference {
    let equal = |index: usize| match (&reference.values, &live.values) {
        (Values::F32(_) | Values::F64(_), _) => {
            let (a, b) = (reference.values.number(index), live.values.number(index));
            a == b || matches!((a, b), (Some(a), Some(b)) if a.is_nan() && b.is_nan())
        }
        _ => item(reference, index) == item(live, index),
    };
    let mut differing = (0..reference.len()).filter(|index| !equal(*index));
    let first = differing.next();
    let count = usize::from(first.is_some()) + differing.count();
    let line = first.map_or_else(
        || "is equal".to_owned(),
        |index| {
            let at = unravel(index, &reference.shape);
            format!(
                "differs in {count} of {} values; at {at:?} is {} where {} is expected",
                reference.len(),
                live.values.show(index),
                reference.values.show(index)
            )
        },
    );
    Difference {
        output: reference.name.clone(),
        matches: count == 0,
        absolute: if count == 0 { 0.0 } else { count as f64 / reference.len() as f64 },
        relative: 0.0,
        at: first.map(|index| unravel(index, &reference.shape)),
        line,
    }
}
