//! Wrong but well-formed answers: every length, shape, name and type stays, only values change. What a change means says `values`; where values stand in an answer
//! say `json`, `binary` (with `half`) and `grpc`; `answer` does it to a response.

pub mod answer;
mod binary;
pub mod grpc;
mod half;
mod json;
pub mod values;

use bytes::Bytes;
use http::{HeaderMap, header};
use rand::Rng;
use serde_json::Value;
use steadfast_golden_sets::oip::INFERENCE_HEADER_LENGTH;

use values::Change;

/// Header with the length of the JSON part.
pub const JSON_LENGTH: &str = INFERENCE_HEADER_LENGTH;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Json,
    /// JSON of this many bytes, then binary tensors.
    Binary(usize),
    /// One message of gRPC.
    Grpc,
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
pub fn corrupt(kind: &Kind, body: &[u8], change: Change, rng: &mut impl Rng) -> Option<Changed> {
    match kind {
        Kind::Json => {
            let mut json: Value = serde_json::from_slice(body).ok()?;
            json::change(&mut json, change, rng).then(|| Changed { bytes: json.to_string().into(), json_length: None })
        }
        Kind::Binary(length) => {
            let (head, tail) = body.split_at_checked(*length)?;
            let mut json: Value = serde_json::from_slice(head).ok()?;
            let mut tail = tail.to_vec();
            let binary = change_binary(&json, &mut tail, change, rng)?;
            let in_json = json::change(&mut json, change, rng);
            // The JSON part stays byte for byte where no output in it carries data.
            let head = if in_json { json.to_string().into_bytes() } else { head.to_vec() };
            let json_length = Some(head.len());
            (binary || in_json).then(|| Changed { bytes: [head, tail].concat().into(), json_length })
        }
        Kind::Grpc => grpc::change(body, change, rng).map(|bytes| Changed { bytes: bytes.into(), json_length: None }),
    }
}

/// Changes the binary tensors of `json`'s outputs in `tail`; `None` when they do not lie in it as announced.
fn change_binary(json: &Value, tail: &mut [u8], change: Change, rng: &mut impl Rng) -> Option<bool> {
    let mut rest = tail;
    let mut changed = false;
    for output in json.get("outputs")?.as_array()? {
        let Some(size) = output.get("parameters").and_then(|parameters| parameters.get("binary_data_size")) else { continue };
        let (tensor, after) = rest.split_at_mut_checked(usize::try_from(size.as_u64()?).ok()?)?;
        rest = after;
        changed |= binary::change(tensor, output.get("datatype")?.as_str()?, change, rng);
    }
    Some(changed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};
    use serde_json::json;

    use steadfast_api::fault::TensorChange;

    use super::*;

    const fn shift(magnitude: f64) -> Change {
        Change { how: TensorChange::Shift, magnitude }
    }

    fn json(body: &Value, magnitude: f64) -> Option<Value> {
        let changed = corrupt(&Kind::Json, body.to_string().as_bytes(), shift(magnitude), &mut StdRng::seed_from_u64(1))?;
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
    fn every_change_keeps_the_form_of_json() {
        let answer = json!({"outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [2], "data": [0.5, 4]},
            {"name": "ids", "datatype": "UINT8", "shape": [2], "data": [250, 7]},
        ]});
        let made = |how| {
            let change = Change { how, magnitude: 0.5 };
            let changed = corrupt(&Kind::Json, answer.to_string().as_bytes(), change, &mut StdRng::seed_from_u64(1)).unwrap();
            let json: Value = serde_json::from_slice(&changed.bytes).unwrap();
            (json["outputs"][0]["data"].clone(), json["outputs"][1]["data"].clone())
        };
        assert_eq!(made(TensorChange::Scale), (json!([0.75, 6.0]), json!([255, 11])));
        assert_eq!(made(TensorChange::Permute), (json!([4.0, 0.5]), json!([7, 250])));
        assert_eq!(made(TensorChange::Nan), (json!([null, null]), json!([250, 7])));
        assert_eq!(made(TensorChange::Constant), (json!([0.0, 0.0]), json!([0, 0])));
    }

    #[test]
    fn other_json_loses_its_arrays_of_numbers() {
        let wrong = json(&json!({"predictions": [[0.5, 1]], "shape": [1, 2], "labels": ["a"], "n": 3}), 0.5).unwrap();
        assert_ne!(wrong["predictions"], json!([[0.5, 1]]));
        assert_eq!((&wrong["shape"], &wrong["labels"], &wrong["n"]), (&json!([1, 2]), &json!(["a"]), &json!(3)));
        assert!(json(&json!({"ok": true}), 0.5).is_none() && json(&json!({"outputs": []}), 0.5).is_none());
        assert!(corrupt(&Kind::Json, b"not json", shift(0.5), &mut StdRng::seed_from_u64(1)).is_none());
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
        let changed = corrupt(&Kind::Binary(head.len()), &body, shift(0.1), &mut StdRng::seed_from_u64(1)).unwrap();
        let (same, tail) = changed.bytes.split_at(head.len());
        assert_eq!((same, changed.json_length, changed.bytes.len()), (head.as_bytes(), Some(head.len()), body.len()));
        let float = |i: usize| f32::from_le_bytes(tail[i * 4..i * 4 + 4].try_into().unwrap());
        assert!(((float(0) - 1.0).abs() - 0.1).abs() < 1e-6 && ((float(1) - 30.0).abs() - 3.0).abs() < 1e-5);
        assert_eq!((&tail[8..16], &tail[24..]), (&8_i64.to_le_bytes()[..], &b"\x02\0\0\0bc\x01\0\0\0a"[..]));
        assert!(corrupt(&Kind::Binary(head.len()), &body[..body.len() - 1], shift(0.1), &mut StdRng::seed_from_u64(1)).is_none());
    }

    proptest! {
        #[test]
        fn no_body_breaks_it(body in prop::collection::vec(any::<u8>(), 0..200), length in 0_usize..220, size in any::<u64>(), datatype in "FP32|FP64|BYTES|BOOL|INT16|FP16|X") {
            let mut rng = StdRng::seed_from_u64(1);
            let _ = corrupt(&Kind::Json, &body, shift(0.1), &mut rng);
            let _ = corrupt(&Kind::Binary(length), &body, shift(0.1), &mut rng);
            let head = json!({"outputs": [{"datatype": datatype, "parameters": {"binary_data_size": size % 256}}]}).to_string();
            let whole = [head.as_bytes(), &body].concat();
            if let Some(changed) = corrupt(&Kind::Binary(head.len()), &whole, shift(0.1), &mut rng) {
                prop_assert_eq!(changed.bytes.len(), whole.len());
            }
        }
    }
}
