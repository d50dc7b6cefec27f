//! Tensors in JSON: the `data` of every output of the Open Inference Protocol; in any other JSON every array (but `shape`) whose leaves are all numbers.

use rand::Rng;
use serde_json::{Number, Value};
use steadfast_api::fault::TensorChange;

use super::values::{Change, Values, is_real, limits};

/// Whether anything changed.
pub fn change(json: &mut Value, change: Change, rng: &mut impl Rng) -> bool {
    if let Some(outputs) = json.get_mut("outputs").and_then(Value::as_array_mut)
        && outputs.iter().all(|output| output.get("datatype").is_some())
    {
        let mut changed = false;
        for output in outputs {
            let datatype = output.get("datatype").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(data) = output.get_mut("data") {
                changed |= tensor(data, &datatype, change, rng);
            }
        }
        return changed;
    }
    arrays(json, change, rng)
}

/// Finds arrays of numbers anywhere.
fn arrays(json: &mut Value, change: Change, rng: &mut impl Rng) -> bool {
    match json {
        Value::Array(_) if numeric(json) => {
            let datatype = if any_real(json) { "FP64" } else { "INT64" };
            tensor(json, datatype, change, rng)
        }
        Value::Array(values) => values.iter_mut().fold(false, |changed, value| arrays(value, change, rng) | changed),
        Value::Object(fields) => fields.iter_mut().filter(|(name, _)| *name != "shape").fold(false, |changed, (_, value)| arrays(value, change, rng) | changed),
        _ => false,
    }
}

fn numeric(json: &Value) -> bool {
    match json {
        Value::Array(values) => values.iter().all(numeric),
        other => other.is_number(),
    }
}

fn any_real(json: &Value) -> bool {
    match json {
        Value::Array(values) => values.iter().any(any_real),
        other => other.is_f64(),
    }
}

fn leaves<'a>(json: &'a mut Value, into: &mut Vec<&'a mut Value>) {
    match json {
        Value::Array(values) => values.iter_mut().for_each(|value| leaves(value, into)),
        other => into.push(other),
    }
}

fn tensor(data: &mut Value, datatype: &str, change: Change, rng: &mut impl Rng) -> bool {
    let mut places = Vec::new();
    leaves(data, &mut places);
    if is_real(datatype) {
        // Texts such as "NaN" stay where they are.
        places.retain(|place| place.is_number());
    }
    let Some((mut values, write)) = read(&places, datatype) else {
        // Of several kinds: they can change places, and nothing else.
        let moves = matches!(change.how, TensorChange::Shift | TensorChange::Permute) && places.windows(2).any(|pair| pair[0] != pair[1]);
        if moves {
            let mut taken: Vec<Value> = places.iter_mut().map(|place| std::mem::take(&mut **place)).collect();
            taken.rotate_left(1);
            places.into_iter().zip(taken).for_each(|(place, value)| *place = value);
        }
        return moves;
    };
    let changed = values.change(change, rng);
    if changed {
        places.into_iter().zip(write(values)).for_each(|(place, value)| *place = value);
    }
    changed
}

type Write = fn(Values) -> Vec<Value>;

/// The values of a tensor, and how they are written again.
fn read(places: &[&mut Value], datatype: &str) -> Option<(Values, Write)> {
    fn all<T>(places: &[&mut Value], one: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        places.iter().map(|place| one(place)).collect()
    }
    if is_real(datatype) {
        // What JSON has no number for is null, as servers in Python write it.
        let write: Write = |values| match values {
            Values::Reals(values) => values.into_iter().map(|value| Number::from_f64(value).map_or(Value::Null, Value::Number)).collect(),
            _ => Vec::new(),
        };
        return Some((Values::Reals(all(places, Value::as_f64)?), write));
    }
    if let Some(values) = all(places, |value| value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))) {
        let mut limits = limits(datatype);
        if values.iter().any(|value| *value > limits.1) {
            limits.1 = u64::MAX.into();
        }
        let write: Write = |values| match values {
            Values::Wholes(values, _) => values.into_iter().map(|value| i64::try_from(value).map_or_else(|_| Value::from(value as u64), Value::from)).collect(),
            _ => Vec::new(),
        };
        return Some((Values::Wholes(values, limits), write));
    }
    if let Some(flags) = all(places, Value::as_bool) {
        let write: Write = |values| match values {
            Values::Flags(flags) => flags.into_iter().map(Value::Bool).collect(),
            _ => Vec::new(),
        };
        return Some((Values::Flags(flags), write));
    }
    let texts = all(places, |value| value.as_str().map(|text| text.as_bytes().to_vec()))?;
    // Whole texts change places and only ASCII becomes other ASCII, so they stay UTF-8.
    let write: Write = |values| match values {
        Values::Texts(texts) => texts.into_iter().map(|text| Value::String(String::from_utf8_lossy(&text).into_owned())).collect(),
        _ => Vec::new(),
    };
    Some((Values::Texts(texts), write))
}
