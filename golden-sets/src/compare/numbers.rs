//! Rules for numbers: regression, classification, embedding.

use super::{Difference, row_length, short, unravel};
use crate::tensor::Tensor;

/// |a − b| with NaN equal to NaN and infinities equal to themselves. Integers are compared exactly, beyond 2^53 too.
#[expect(clippy::float_cmp, reason = "infinities are near nothing but themselves")]
fn distance(reference: &Tensor, live: &Tensor, index: usize) -> f64 {
    if let (Some(a), Some(b)) = (live.values.integer(index), reference.values.integer(index)) {
        return (a - b).unsigned_abs() as f64;
    }
    let (Some(a), Some(b)) = (live.values.number(index), reference.values.number(index)) else { return f64::INFINITY };
    if a == b || (a.is_nan() && b.is_nan()) {
        0.0
    } else if a.is_finite() && b.is_finite() {
        (a - b).abs()
    } else {
        f64::INFINITY
    }
}

/// Where answers are furthest apart, in units of what is allowed there.
struct Worst {
    index: usize,
    distance: f64,
    allowed: f64,
    excess: f64,
    largest: f64,
}

fn worst(reference: &Tensor, live: &Tensor, absolute: f64, relative: f64) -> Option<Worst> {
    let mut worst: Option<Worst> = None;
    for index in 0..reference.len() {
        let distance = distance(reference, live, index);
        let magnitude = reference.values.number(index).unwrap_or(0.0).abs();
        let allowed = if magnitude.is_finite() { absolute + relative * magnitude } else { absolute };
        // 0 ÷ 0 counts as no excess (equal, and nothing allowed), ∞ ÷ ∞ as all of it.
        let excess = if distance == 0.0 || distance.is_infinite() { distance } else { distance / allowed };
        let largest = worst.as_ref().map_or(0.0, |worst| worst.largest).max(distance);
        if worst.as_ref().is_none_or(|worst| excess > worst.excess) {
            worst = Some(Worst { index, distance, allowed, excess, largest });
        } else if let Some(worst) = &mut worst {
            worst.largest = largest;
        }
    }
    worst
}

/// Largest ‖a − b‖₂ ÷ ‖b‖₂ over rows, with the row's number and its cosine.
fn relative_length(reference: &Tensor, live: &Tensor) -> (f64, usize, f64) {
    let length = row_length(reference);
    let mut worst = (0.0, 0, 1.0);
    for row in 0..reference.len() / length {
        let (mut difference, mut norm, mut other, mut dot) = (0.0, 0.0, 0.0, 0.0);
        for index in row * length..(row + 1) * length {
            let (a, b) = (live.values.number(index).unwrap_or(f64::NAN), reference.values.number(index).unwrap_or(f64::NAN));
            let distance = distance(reference, live, index);
            difference += distance * distance;
            if a.is_finite() && b.is_finite() {
                norm += b * b;
                other += a * a;
                dot += a * b;
            }
        }
        let relative = if difference == 0.0 { 0.0 } else { difference.sqrt() / norm.sqrt() };
        if relative > worst.0 {
            worst = (relative, row, dot / (norm.sqrt() * other.sqrt()));
        }
    }
    worst
}

fn difference(reference: &Tensor, live: &Tensor, worst: Option<&Worst>, matches: bool, line: String) -> Difference {
    Difference {
        output: reference.name.clone(),
        matches,
        absolute: worst.map_or(0.0, |worst| worst.largest),
        relative: relative_length(reference, live).0,
        at: worst.map(|worst| unravel(worst.index, &reference.shape)),
        line,
    }
}

fn describe(reference: &Tensor, live: &Tensor, worst: Option<&Worst>) -> String {
    let Some(worst) = worst else { return "is empty on both sides".into() };
    let at = unravel(worst.index, &reference.shape);
    let (got, wanted) = (live.values.show(worst.index), reference.values.show(worst.index));
    format!("at {at:?} is {got} where {wanted} is expected: {} apart, {} allowed", short(worst.distance), short(worst.allowed))
}

/// |a − b| ≤ absolute + relative × |b|, b the reference.
pub(super) fn regression(reference: &Tensor, live: &Tensor, absolute: f64, relative: f64) -> Difference {
    let worst = worst(reference, live, absolute, relative);
    let matches = worst.as_ref().is_none_or(|worst| worst.excess <= 1.0);
    let line = describe(reference, live, worst.as_ref());
    difference(reference, live, worst.as_ref(), matches, line)
}

/// |a − b| ≤ absolute everywhere, which implies that no label flips where the reference's margin exceeds 2 × absolute; flips beyond that are named.
pub(super) fn classification(reference: &Tensor, live: &Tensor, absolute: f64) -> Difference {
    let worst = worst(reference, live, absolute, 0.0);
    let matches = worst.as_ref().is_none_or(|worst| worst.excess <= 1.0);
    let mut line = describe(reference, live, worst.as_ref());
    let length = row_length(reference);
    let rows = reference.len() / length;
    let flips: Vec<_> = (0..rows).filter_map(|row| flip(reference, live, row, length, absolute)).collect();
    if let Some((row, label, expected, margin)) = flips.first() {
        line = format!("labels {} of {rows} rows differently: row {row} is class {label} where {expected} leads by {}; {line}", flips.len(), short(*margin));
    }
    difference(reference, live, worst.as_ref(), matches && flips.is_empty(), line)
}

/// The label of a row changed although the reference's margin is more than both sides' tolerance.
fn flip(reference: &Tensor, live: &Tensor, row: usize, length: usize, absolute: f64) -> Option<(usize, usize, usize, f64)> {
    let lead = |tensor: &Tensor| {
        let value = |class: usize| tensor.values.number(row * length + class).unwrap_or(f64::NAN);
        let first = (0..length).reduce(|best, class| if value(class) > value(best) { class } else { best })?;
        let second = (0..length).filter(|class| *class != first).map(value).fold(f64::NEG_INFINITY, f64::max);
        Some((first, value(first) - second))
    };
    let (expected, margin) = lead(reference)?;
    let (label, _) = lead(live)?;
    (label != expected && margin > 2.0 * absolute).then_some((row, label, expected, margin))
}

/// Every value within `absolute`, and each row's ‖a − b‖₂ within `relative` × ‖b‖₂.
pub(super) fn embedding(reference: &Tensor, live: &Tensor, absolute: f64, relative: f64) -> Difference {
    let worst = worst(reference, live, absolute, 0.0);
    let (length, row, cosine) = relative_length(reference, live);
    let near = worst.as_ref().is_none_or(|worst| worst.excess <= 1.0);
    let mut line = describe(reference, live, worst.as_ref());
    if length > 0.0 {
        line = format!("row {row} is {} of its length away, {} allowed (cosine {cosine:.6}); {line}", short(length), short(relative));
    }
    difference(reference, live, worst.as_ref(), near && length <= relative, line)
}
