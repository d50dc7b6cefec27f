//! Wrong but well-formed answers: every length, shape, name and type stays, only values change, in place.
//!
//! - Open Inference Protocol, JSON: the `data` of every output. Binary extension: the bytes behind the JSON, by each output's datatype; the JSON part
//!   stays byte for byte where no output in it carries `data`.
//! - Any other JSON: every array (but `shape`) whose leaves are all numbers counts as a tensor.
//!
//! Real numbers move up or down by `magnitude × max(|x|, 1)`. Everything else (whole numbers, booleans, texts) changes places with its neighbour within the
//! tensor; where all are equal, whole numbers grow by one, booleans flip, and texts get another last letter.

use bytes::Bytes;
use http::{HeaderMap, header};
use rand::{Rng, RngExt};
use serde_json::{Number, Value};
use steadfast_api::golden::DataType;
use steadfast_golden_sets::oip::INFERENCE_HEADER_LENGTH;

/// Header with the length of the JSON part.
pub const JSON_LENGTH: &str = INFERENCE_HEADER_LENGTH;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Json,
    /// JSON of this many bytes, then binary tensors.
    Binary(usize),
}

/// An answer that was changed.
pub struct Changed {
    pub bytes: Bytes,
    /// New length of the JSON part, for [`Kind::Binary`].
    pub json_length: Option<usize>,
}

/// What `headers` say of the body; `None`: nothing that can be changed and stay well-formed.
pub fn kind(headers: &HeaderMap) -> Option<Kind> {
    if let Some(length) = headers.get(JSON_LENGTH) {
        return length.to_str().ok()?.trim().parse().ok().map(Kind::Binary);
    }
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.to_ascii_lowercase();
    let media_type = content_type.split(';').next()?.trim();
    (media_type == "application/json" || media_type.ends_with("+json")).then_some(Kind::Json)
}

/// The answer with wrong values; `None` where there is no value to change or the body is not what its headers say.
pub fn corrupt(kind: &Kind, body: &[u8], magnitude: f64, rng: &mut impl Rng) -> Option<Changed> {
    match kind {
        Kind::Json => {
            let mut json: Value = serde_json::from_slice(body).ok()?;
            change_json(&mut json, magnitude, rng).then(|| Changed { bytes: json.to_string().into(), json_length: None })
        }
        Kind::Binary(length) => {
            let (head, tail) = body.split_at_checked(*length)?;
            let mut json: Value = serde_json::from_slice(head).ok()?;
            let mut tail = tail.to_vec();
            let binary = change_binary(&json, &mut tail, magnitude, rng)?;
            let in_json = change_json(&mut json, magnitude, rng);
            let head = if in_json { json.to_string().into_bytes() } else { head.to_vec() };
            let json_length = Some(head.len());
            (binary || in_json).then(|| Changed { bytes: [head, tail].concat().into(), json_length })
        }
    }
}

fn change_json(json: &mut Value, magnitude: f64, rng: &mut impl Rng) -> bool {
    if let Some(outputs) = json.get_mut("outputs").and_then(Value::as_array_mut)
        && outputs.iter().all(|output| output.get("datatype").is_some())
    {
        let mut changed = false;
        for output in outputs {
            let float = output.get("datatype").and_then(Value::as_str).is_some_and(|datatype| datatype.starts_with("FP") || datatype == "BF16");
            if let Some(data) = output.get_mut("data") {
                changed |= change_tensor(data, float, magnitude, rng);
            }
        }
        return changed;
    }
    change_arrays(json, magnitude, rng)
}

/// Finds arrays of numbers anywhere.
fn change_arrays(json: &mut Value, magnitude: f64, rng: &mut impl Rng) -> bool {
    match json {
        Value::Array(_) if numeric(json) => {
            let float = any_float(json);
            change_tensor(json, float, magnitude, rng)
        }
        Value::Array(values) => values.iter_mut().fold(false, |changed, value| change_arrays(value, magnitude, rng) | changed),
        Value::Object(fields) => {
            fields.iter_mut().filter(|(name, _)| *name != "shape").fold(false, |changed, (_, value)| change_arrays(value, magnitude, rng) | changed)
        }
        _ => false,
    }
}

fn numeric(json: &Value) -> bool {
    match json {
        Value::Array(values) => values.iter().all(numeric),
        other => other.is_number(),
    }
}

fn any_float(json: &Value) -> bool {
    match json {
        Value::Array(values) => values.iter().any(any_float),
        other => other.is_f64(),
    }
}

fn leaves<'a>(json: &'a mut Value, into: &mut Vec<&'a mut Value>) {
    match json {
        Value::Array(values) => values.iter_mut().for_each(|value| leaves(value, into)),
        other => into.push(other),
    }
}

fn change_tensor(data: &mut Value, float: bool, magnitude: f64, rng: &mut impl Rng) -> bool {
    let mut values = Vec::new();
    leaves(data, &mut values);
    if values.is_empty() {
        return false;
    }
    if float {
        let mut changed = false;
        for value in values {
            // Texts such as "NaN" stay.
            let moved = value.as_f64().map(|number| shift(number, magnitude, rng)).and_then(Number::from_f64);
            if let Some(moved) = moved {
                *value = Value::Number(moved);
                changed = true;
            }
        }
        return changed;
    }
    if values.windows(2).all(|pair| pair[0] == pair[1]) {
        values.into_iter().fold(false, |changed, value| grow(value) | changed)
    } else {
        let mut taken: Vec<Value> = values.iter_mut().map(|value| std::mem::take(&mut **value)).collect();
        taken.rotate_left(1);
        values.into_iter().zip(taken).for_each(|(place, value)| *place = value);
        true
    }
}

/// The next value, where all are equal.
fn grow(value: &mut Value) -> bool {
    let grown = match &*value {
        Value::Bool(flag) => Value::Bool(!flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole.checked_add(1).unwrap_or(i64::MIN)),
            (None, Some(whole)) => Value::from(whole.checked_add(1).unwrap_or(0)),
            (None, None) => return false,
        },
        Value::String(text) => {
            let mut bytes = text.clone().into_bytes();
            if !other_letter(&mut bytes) {
                return false;
            }
            String::from_utf8(bytes).map_or(Value::Null, Value::String)
        }
        Value::Null | Value::Array(_) | Value::Object(_) => return false,
    };
    *value = grown;
    true
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

fn shift(number: f64, magnitude: f64, rng: &mut impl Rng) -> f64 {
    let by = magnitude * number.abs().max(1.0);
    if rng.random::<bool>() { number + by } else { number - by }
}

/// Changes the binary tensors of `json`'s outputs in `tail`; `None` when they do not lie in it as announced.
fn change_binary(json: &Value, tail: &mut [u8], magnitude: f64, rng: &mut impl Rng) -> Option<bool> {
    let mut rest = tail;
    let mut changed = false;
    for output in json.get("outputs")?.as_array()? {
        let Some(size) = output.get("parameters").and_then(|parameters| parameters.get("binary_data_size")) else { continue };
        let (tensor, after) = rest.split_at_mut_checked(usize::try_from(size.as_u64()?).ok()?)?;
        rest = after;
        changed |= match output.get("datatype")?.as_str()? {
            "FP32" => change_floats::<4>(tensor, |bytes| (shift(f64::from(f32::from_le_bytes(bytes)), magnitude, rng) as f32).to_le_bytes()),
            "FP64" => change_floats::<8>(tensor, |bytes| shift(f64::from_le_bytes(bytes), magnitude, rng).to_le_bytes()),
            "BYTES" => change_texts(tensor),
            "BOOL" => change_places(tensor, 1, |byte| byte[0] ^= 1),
            // Half floats change places: their arithmetic is nobody's but theirs. All equal, the next larger in size.
            "FP16" | "BF16" => change_places(tensor, 2, add_one),
            name => DataType::from_name(name).and_then(DataType::width).is_some_and(|width| change_places(tensor, width, add_one)),
        };
    }
    Some(changed)
}

fn change_floats<const N: usize>(tensor: &mut [u8], mut moved: impl FnMut([u8; N]) -> [u8; N]) -> bool {
    let (values, _) = tensor.as_chunks_mut::<N>();
    for value in values.iter_mut() {
        *value = moved(*value);
    }
    !values.is_empty()
}

/// Little-endian plus one.
fn add_one(value: &mut [u8]) {
    for byte in value {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            break;
        }
    }
}

fn change_places(tensor: &mut [u8], width: usize, grow: impl FnMut(&mut [u8])) -> bool {
    if tensor.is_empty() || !tensor.len().is_multiple_of(width) {
        return false;
    }
    let all_equal = tensor.chunks_exact(width).all(|value| *value == tensor[..width]);
    if all_equal {
        tensor.chunks_exact_mut(width).for_each(grow);
    } else {
        tensor.rotate_left(width);
    }
    true
}

/// Texts, each behind its length in four bytes, little-endian.
fn change_texts(tensor: &mut [u8]) -> bool {
    let mut texts: Vec<Vec<u8>> = Vec::new();
    let mut rest = &*tensor;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let Some((text, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else { return false };
        texts.push(text.to_vec());
        rest = after;
    }
    if texts.is_empty() || !rest.is_empty() {
        return false;
    }
    if texts.windows(2).all(|pair| pair[0] == pair[1]) {
        if !texts.iter_mut().fold(false, |changed, text| other_letter(text) | changed) {
            return false;
        }
    } else {
        texts.rotate_left(1);
    }
    let written: Vec<u8> = texts.iter().flat_map(|text| (text.len() as u32).to_le_bytes().into_iter().chain(text.iter().copied())).collect();
    tensor.copy_from_slice(&written);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};
    use serde_json::json;

    use super::*;

    fn json(body: &Value, magnitude: f64) -> Option<Value> {
        let changed = corrupt(&Kind::Json, body.to_string().as_bytes(), magnitude, &mut StdRng::seed_from_u64(1))?;
        Some(serde_json::from_slice(&changed.bytes).unwrap())
    }

    #[test]
    fn an_answer_keeps_its_form_and_loses_its_values() {
        let answer = json!({"model_name": "m", "id": "7", "outputs": [
            {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [[1, 2, 2]]},
            {"name": "same", "datatype": "INT64", "shape": [2], "data": [5, 5]},
            {"name": "scores", "datatype": "FP32", "shape": [2], "data": [0.5, -20.0]},
            {"name": "whole", "datatype": "FP32", "shape": [1], "data": [3]},
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["cat", "dog"]},
            {"name": "flag", "datatype": "BOOL", "shape": [1], "data": [true]},
        ]});
        let wrong = json(&answer, 0.1).unwrap();
        let data = |i: usize| &wrong["outputs"][i]["data"];
        assert_eq!((data(0), data(1)), (&json!([[2, 2, 1]]), &json!([6, 6])));
        assert!(((data(2)[0].as_f64().unwrap() - 0.5).abs() - 0.1).abs() < 1e-9 && ((data(2)[1].as_f64().unwrap() + 20.0).abs() - 2.0).abs() < 1e-9, "{wrong}");
        assert!(((data(3)[0].as_f64().unwrap() - 3.0).abs() - 0.3).abs() < 1e-9, "{wrong}");
        assert_eq!((data(4), data(5)), (&json!(["dog", "cat"]), &json!([false])));
        let mut restored = wrong.clone();
        for i in 0..6 {
            restored["outputs"][i]["data"] = answer["outputs"][i]["data"].clone();
        }
        assert_eq!(restored, answer);
    }

    #[test]
    fn other_json_loses_its_arrays_of_numbers() {
        let wrong = json(&json!({"predictions": [[0.5, 1]], "shape": [1, 2], "labels": ["a"], "n": 3}), 0.5).unwrap();
        assert_ne!(wrong["predictions"], json!([[0.5, 1]]));
        assert_eq!((&wrong["shape"], &wrong["labels"], &wrong["n"]), (&json!([1, 2]), &json!(["a"]), &json!(3)));
        assert!(json(&json!({"ok": true}), 0.5).is_none() && json(&json!({"outputs": []}), 0.5).is_none());
        assert!(corrupt(&Kind::Json, b"not json", 0.5, &mut StdRng::seed_from_u64(1)).is_none());
    }

    #[test]
    fn binary_tensors_keep_their_lengths() {
        let head = json!({"outputs": [
            {"name": "s", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
            {"name": "i", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
            {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}},
        ]})
        .to_string();
        let mut body = head.clone().into_bytes();
        body.extend([1.0_f32, 30.0].iter().flat_map(|v| v.to_le_bytes()));
        body.extend([7_i64, 7].iter().flat_map(|v| v.to_le_bytes()));
        body.extend(b"\x01\0\0\0a\x02\0\0\0bc");
        let changed = corrupt(&Kind::Binary(head.len()), &body, 0.1, &mut StdRng::seed_from_u64(1)).unwrap();
        let (same, tail) = changed.bytes.split_at(head.len());
        assert_eq!((same, changed.json_length, changed.bytes.len()), (head.as_bytes(), Some(head.len()), body.len()));
        let float = |i: usize| f32::from_le_bytes(tail[i * 4..i * 4 + 4].try_into().unwrap());
        assert!(((float(0) - 1.0).abs() - 0.1).abs() < 1e-6 && ((float(1) - 30.0).abs() - 3.0).abs() < 1e-5);
        assert_eq!((&tail[8..16], &tail[24..]), (&8_i64.to_le_bytes()[..], &b"\x02\0\0\0bc\x01\0\0\0a"[..]));
        assert!(corrupt(&Kind::Binary(head.len()), &body[..body.len() - 1], 0.1, &mut StdRng::seed_from_u64(1)).is_none());
    }

    proptest! {
        #[test]
        fn no_body_breaks_it(body in prop::collection::vec(any::<u8>(), 0..200), length in 0_usize..220, size in any::<u64>(), datatype in "FP32|FP64|BYTES|BOOL|INT16|FP16|X") {
            let mut rng = StdRng::seed_from_u64(1);
            let _ = corrupt(&Kind::Json, &body, 0.1, &mut rng);
            let _ = corrupt(&Kind::Binary(length), &body, 0.1, &mut rng);
            let head = json!({"outputs": [{"datatype": datatype, "parameters": {"binary_data_size": size % 256}}]}).to_string();
            let whole = [head.as_bytes(), &body].concat();
            if let Some(changed) = corrupt(&Kind::Binary(head.len()), &whole, 0.1, &mut rng) {
                prop_assert_eq!(changed.bytes.len(), whole.len());
            }
        }
    }
}
