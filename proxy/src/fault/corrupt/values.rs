//! A tensor's values, whatever they are written in, and what happens to them. The one place that says what each change means.

use rand::{Rng, RngExt};
use steadfast_api::fault::{Corrupt, TensorChange};

use crate::fault::{draw, inject::Number};

/// What happens, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub how: TensorChange,
    pub magnitude: f64,
}

impl Change {
    /// What `corrupt` says of tensors, if anything.
    pub fn of(corrupt: &Corrupt) -> Option<Self> {
        corrupt.of_tensors().map(|how| Self { how, magnitude: corrupt.magnitude.ratio() })
    }

    /// As `steadfast-injected` names it.
    pub fn note(self) -> String {
        let name = TensorChange::ALL.iter().find(|(other, _)| *other == self.how).map_or("", |(_, name)| name);
        let magnitude = Number(self.magnitude);
        if self.how == TensorChange::Shift { format!("corrupt;magnitude={magnitude}") } else { format!("corrupt;magnitude={magnitude};tensors={name}") }
    }
}

/// The values of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    Reals(Vec<f64>),
    /// With the least and the greatest that their type has.
    Wholes(Vec<i128>, Limits),
    Flags(Vec<bool>),
    Texts(Vec<Vec<u8>>),
}

/// The least and the greatest value of a type.
pub type Limits = (i128, i128);

/// Those of the protocol's whole numbers; of any other type, those that JSON readers agree on.
pub fn limits(datatype: &str) -> Limits {
    match datatype {
        "INT8" => (i8::MIN.into(), i8::MAX.into()),
        "INT16" => (i16::MIN.into(), i16::MAX.into()),
        "INT32" => (i32::MIN.into(), i32::MAX.into()),
        "UINT8" => (0, u8::MAX.into()),
        "UINT16" => (0, u16::MAX.into()),
        "UINT32" => (0, u32::MAX.into()),
        "UINT64" => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

/// Whether a tensor of this type holds real numbers.
pub fn is_real(datatype: &str) -> bool {
    datatype.starts_with("FP") || datatype == "BF16"
}

impl Values {
    /// Whether anything changed.
    pub fn change(&mut self, change: Change, rng: &mut impl Rng) -> bool {
        match self {
            Self::Reals(values) => reals(values, change, rng),
            Self::Wholes(values, limits) => wholes(values, *limits, change, rng),
            Self::Flags(values) => match change.how {
                TensorChange::Shift => move_or(values, |flag| *flag = !*flag),
                TensorChange::Permute => rotate(values),
                TensorChange::Constant => set(values, &false),
                TensorChange::Scale | TensorChange::Noise | TensorChange::Nan => false,
            },
            Self::Texts(values) => match change.how {
                TensorChange::Shift if !rotate(values) => values.iter_mut().fold(false, |changed, text| other_letter(text) | changed),
                TensorChange::Shift => true,
                TensorChange::Permute => rotate(values),
                TensorChange::Scale | TensorChange::Noise | TensorChange::Nan | TensorChange::Constant => false,
            },
        }
    }
}

fn reals(values: &mut [f64], change: Change, rng: &mut impl Rng) -> bool {
    let magnitude = change.magnitude;
    match change.how {
        TensorChange::Permute => rotate(values),
        TensorChange::Constant => set(values, &0.0),
        TensorChange::Nan => {
            let some = values.iter().any(|value| !value.is_nan());
            values.fill(f64::NAN);
            some
        }
        TensorChange::Shift => each(values, |value| {
            let by = magnitude * value.abs().max(1.0);
            if rng.random::<bool>() { value + by } else { value - by }
        }),
        TensorChange::Scale => each(values, |value| value * (1.0 + magnitude)),
        TensorChange::Noise => each(values, |value| value + magnitude * value.abs().max(1.0) * draw::normal(rng)),
    }
}

fn wholes(values: &mut [i128], (least, most): Limits, change: Change, rng: &mut impl Rng) -> bool {
    let magnitude = change.magnitude;
    match change.how {
        TensorChange::Shift => move_or(values, |value| *value = if *value >= most { least } else { *value + 1 }),
        TensorChange::Permute => rotate(values),
        TensorChange::Constant => set(values, &0),
        TensorChange::Nan => false,
        // By one at least: a tenth of three would be nothing.
        TensorChange::Scale => each(values, |value| (value + value.signum() * ((value.abs() as f64 * magnitude).round() as i128).max(1)).clamp(least, most)),
        TensorChange::Noise => each(values, |value| {
            let by = magnitude * (value.abs() as f64).max(1.0) * draw::normal(rng);
            (value + by.round() as i128).clamp(least, most)
        }),
    }
}

fn each<T: Copy + PartialEq>(values: &mut [T], mut changed: impl FnMut(T) -> T) -> bool {
    let mut some = false;
    for value in values {
        let new = changed(*value);
        some |= new != *value;
        *value = new;
    }
    some
}

fn set<T: Clone + PartialEq>(values: &mut [T], to: &T) -> bool {
    let some = values.iter().any(|value| value != to);
    values.fill(to.clone());
    some
}

/// Every value takes its neighbour's place. `false` where all are equal.
fn rotate<T: PartialEq>(values: &mut [T]) -> bool {
    let differ = values.windows(2).any(|pair| pair[0] != pair[1]);
    if differ {
        values.rotate_left(1);
    }
    differ
}

/// [`rotate`], or `grow` for each where all are equal.
fn move_or<T: PartialEq>(values: &mut [T], grow: impl FnMut(&mut T)) -> bool {
    if !rotate(values) {
        values.iter_mut().for_each(grow);
    }
    !values.is_empty()
}

/// Another ASCII letter or digit at the end.
fn other_letter(text: &mut [u8]) -> bool {
    match text.last_mut() {
        Some(last) if last.is_ascii_alphanumeric() => {
            *last = if *last == b'x' { b'y' } else { b'x' };
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn changed(mut values: Values, how: TensorChange) -> (bool, Values) {
        let some = values.change(Change { how, magnitude: 0.1 }, &mut StdRng::seed_from_u64(1));
        (some, values)
    }

    #[test]
    fn each_change_means_what_it_says() {
        use TensorChange::{Constant, Nan, Noise, Permute, Scale, Shift};
        use Values::{Flags, Reals, Texts, Wholes};
        let limits = limits("UINT8");
        let wholes = |values: &[i128]| Wholes(values.to_vec(), limits);
        let text = |values: &[&str]| Texts(values.iter().map(|text| text.as_bytes().to_vec()).collect());
        for (values, how, right) in [
            (wholes(&[1, 2, 2]), Shift, Some(wholes(&[2, 2, 1]))),
            (wholes(&[255, 255]), Shift, Some(wholes(&[0, 0]))),
            (wholes(&[3, 0, 250]), Scale, Some(wholes(&[4, 0, 255]))),
            (wholes(&[3, 0]), Permute, Some(wholes(&[0, 3]))),
            (wholes(&[3, 3]), Permute, None),
            (wholes(&[3, 0]), Constant, Some(wholes(&[0, 0]))),
            (wholes(&[3]), Nan, None),
            (Reals(vec![1.0, -20.0]), Scale, Some(Reals(vec![1.1, -22.0]))),
            (Reals(vec![1.0, 2.0]), Permute, Some(Reals(vec![2.0, 1.0]))),
            (Reals(vec![1.0, 0.0]), Constant, Some(Reals(vec![0.0, 0.0]))),
            (Reals(vec![0.0]), Constant, None),
            (Flags(vec![true]), Shift, Some(Flags(vec![false]))),
            (Flags(vec![true, false]), Permute, Some(Flags(vec![false, true]))),
            (Flags(vec![true]), Constant, Some(Flags(vec![false]))),
            (Flags(vec![true]), Noise, None),
            (text(&["cat", "dog"]), Shift, Some(text(&["dog", "cat"]))),
            (text(&["cat"]), Shift, Some(text(&["cax"]))),
            (text(&["cat"]), Permute, None),
            (text(&["?"]), Shift, None),
            (Reals(vec![]), Shift, None),
        ] {
            let (some, made) = changed(values.clone(), how);
            let (expected, there) = (right.clone().unwrap_or_else(|| values.clone()), right.is_some());
            assert!(some == there && made == expected, "{values:?} {how:?}: {some} {made:?}");
        }
        let (some, made) = changed(Reals(vec![1.0, 2.0]), Nan);
        assert!(some && matches!(made, Reals(values) if values.iter().all(|value| value.is_nan())));
    }

    #[test]
    fn a_shift_is_exactly_the_magnitude_and_noise_is_spread_by_it() {
        let (_, Values::Reals(made)) = changed(Values::Reals(vec![0.5, -20.0]), TensorChange::Shift) else { panic!() };
        assert!(((made[0] - 0.5).abs() - 0.1).abs() < 1e-9 && ((made[1] + 20.0).abs() - 2.0).abs() < 1e-9, "{made:?}");
        let (_, Values::Reals(made)) = changed(Values::Reals(vec![10.0; 10_000]), TensorChange::Noise) else { panic!() };
        let mean = made.iter().sum::<f64>() / 1e4;
        let deviation = (made.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e4).sqrt();
        assert!((mean - 10.0).abs() < 0.05 && (deviation - 1.0).abs() < 0.05, "{mean} {deviation}");
    }
}
