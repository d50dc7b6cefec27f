use proptest::prelude::*;

use super::*;
use crate::tensor::{DataType, Tensor, Values};

/// Values of every type; floats are any bits, so NaNs, infinities and subnormals are among them.
fn any_values() -> impl Strategy<Value = Values> {
    use proptest::collection::vec;
    let f32s = any::<u32>().prop_map(|bits| Some(f32::from_bits(bits)).filter(|v| !v.is_nan()).unwrap_or(f32::NAN));
    let f64s = any::<u64>().prop_map(|bits| Some(f64::from_bits(bits)).filter(|v| !v.is_nan()).unwrap_or(f64::NAN));
    prop_oneof![
        vec(any::<bool>(), 0..20).prop_map(Values::Bool),
        vec(any::<u8>(), 0..20).prop_map(Values::U8),
        vec(any::<u16>(), 0..20).prop_map(Values::U16),
        vec(any::<u32>(), 0..20).prop_map(Values::U32),
        vec(any::<u64>(), 0..20).prop_map(Values::U64),
        vec(any::<i8>(), 0..20).prop_map(Values::I8),
        vec(any::<i16>(), 0..20).prop_map(Values::I16),
        vec(any::<i32>(), 0..20).prop_map(Values::I32),
        vec(any::<i64>(), 0..20).prop_map(Values::I64),
        vec(f32s, 0..20).prop_map(Values::F32),
        vec(f64s, 0..20).prop_map(Values::F64),
        vec("\\PC{0,5}|NaN|Infinity".prop_map(String::into_bytes), 0..20).prop_map(Values::Bytes),
    ]
}

fn any_tensors() -> impl Strategy<Value = Vec<Tensor>> {
    proptest::collection::vec((any_values(), "\\PC{0,4}"), 0..4).prop_map(|all| {
        let named = |(index, (values, name)): (usize, (Values, String))| Tensor::new(format!("{name}{index}"), [1, values.len()], values).unwrap();
        all.into_iter().enumerate().map(named).collect()
    })
}

/// NaN is not equal to itself, so bits are compared.
fn bits(tensors: &[Tensor]) -> Vec<(String, Vec<usize>, String, Vec<u8>)> {
    let one = |tensor: &Tensor| {
        let mut bytes = Vec::new();
        binary::write(&tensor.values, &mut bytes);
        (tensor.name.clone(), tensor.shape.clone(), tensor.datatype().to_string(), bytes)
    };
    tensors.iter().map(one).collect()
}

proptest! {
    #[test]
    fn a_request_reads_back_as_it_was_written(inputs in any_tensors(), binary in any::<bool>(), id in "\\PC{0,8}", outputs in proptest::collection::hash_set("[a-z]{1,3}", 0..3)) {
        let options = RequestOptions { id: id.clone(), binary, outputs: outputs.into_iter().collect() };
        let message = encode_request(&inputs, &options).unwrap();
        let request = decode_request(message.inference_header_length, &message.body).unwrap();
        prop_assert_eq!(bits(&request.inputs), bits(&inputs));
        prop_assert_eq!(request.id, id);
        prop_assert_eq!(request.outputs.iter().map(|output| output.name.clone()).collect::<Vec<_>>(), options.outputs);
        prop_assert!(request.outputs.iter().all(|output| output.binary == binary) && request.binary_default == binary);
    }

    #[test]
    fn a_response_reads_back_as_it_was_written(outputs in any_tensors(), binary in any::<bool>()) {
        let head = ResponseHead { model: "m", version: "2", id: "7" };
        let message = encode_response(head, &outputs, |_| binary).unwrap();
        let response = decode_response(message.inference_header_length, &message.body, &[]).unwrap();
        prop_assert_eq!(bits(&response.outputs), bits(&outputs));
        prop_assert_eq!((response.model.as_str(), response.version.as_str(), response.id.as_str()), ("m", "2", "7"));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..300), length in proptest::option::of(0_usize..400)) {
        drop(decode_request(length, &body));
        drop(decode_response(length, &body, &[("a", DataType::F32)]));
    }

    /// Damage to a real message reaches deeper than noise does.
    #[test]
    fn no_damage_makes_the_reader_panic(
        inputs in any_tensors(), binary in any::<bool>(), at in any::<prop::sample::Index>(), with in any::<u8>(), shorter in 0_usize..8, longer in 0_usize..8,
    ) {
        let message = encode_request(&inputs, &RequestOptions { binary, ..RequestOptions::default() }).unwrap();
        let mut body = message.body.to_vec();
        let index = at.index(body.len());
        body[index] = with;
        body.truncate(body.len().saturating_sub(shorter));
        drop(decode_request(message.inference_header_length.map(|length| length + longer), &body));
    }

    #[test]
    fn nested_data_is_the_same_as_flat(rows in 1_usize..4, columns in 1_usize..4, planes in 1_usize..3) {
        let count = rows * columns * planes;
        let nested: Vec<Vec<Vec<usize>>> = (0..rows).map(|r| (0..columns).map(|c| (0..planes).map(|p| (r * columns + c) * planes + p).collect()).collect()).collect();
        let body = serde_json::json!({"inputs": [{"name": "x", "shape": [rows, columns, planes], "datatype": "INT32", "data": nested}]}).to_string();
        let request = decode_request(None, body.as_bytes()).unwrap();
        prop_assert_eq!(&request.inputs[0].values, &Values::I32((0..count as i32).collect()));
    }
}

fn one(tensor: &str) -> Result<Tensor, String> {
    let body = format!(r#"{{"inputs": [{tensor}]}}"#);
    decode_request(None, body.as_bytes()).map(|mut request| request.inputs.remove(0)).map_err(|error| error.to_string())
}

#[test]
fn what_is_wrong_is_named_with_what_would_be_right() {
    for (tensor, says) in [
        (r#"{"name":"x","shape":[2],"datatype":"FP32","data":[1,2,3]}"#, r#"input "x": data: has 3 values, but shape [2] takes 2"#),
        (r#"{"name":"x","shape":[3,2],"datatype":"FP32","data":[[1,2,3],[4,5,6]]}"#, r#"input "x": data: is nested as [2, 3], but shape is [3, 2]"#),
        (r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3]]}"#, "ragged"),
        (r#"{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}"#, "shape: [-1] has a negative dimension"),
        (r#"{"name":"x","shape":[4611686018427387904,4],"datatype":"FP32","data":[]}"#, "more than 67108864 values"),
        (r#"{"name":"x","shape":[2],"datatype":"FLOAT","data":[1,2]}"#, r#"datatype: "FLOAT" is not a type of the protocol: BOOL"#),
        (r#"{"name":"x","shape":[1],"datatype":"UINT8","data":[256]}"#, "value 0 is 256, beyond UINT8"),
        (r#"{"name":"x","shape":[1],"datatype":"INT64","data":[1.5]}"#, "value 0 is 1.5, which is no INT64"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1e39]}"#, "value 0 is 1e39, beyond FP32"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":["one"]}"#, "holds text, which are no FP32"),
        (r#"{"name":"x","shape":[2],"datatype":"FP32","data":[1,"one"]}"#, "value 1 is text among whole numbers"),
        (r#"{"name":"x","shape":[1],"datatype":"BYTES","data":[1]}"#, "holds whole numbers, which are no BYTES"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":[{}]}"#, "value 0 is an object"),
        (r#"{"name":"x","shape":[],"datatype":"FP32","data":1}"#, "is not a list"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32"}"#, "data: is missing"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}"#, "needs the header inference-header-content-length"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":"4"}}"#, r#"binary_data_size is "4"; write a number of bytes"#),
        (r#"{"shape":[1],"datatype":"FP32","data":[1]}"#, "missing field `name`"),
        (r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]},{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#, "name: stands twice"),
    ] {
        let error = one(tensor).expect_err(tensor);
        assert!(error.contains(says), "{tensor}\n  {error}\n  {says}");
    }
}

#[test]
fn binary_parts_must_fill_the_body_exactly() {
    let json = r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}}]}"#;
    let body = |tail: &[u8]| [json.as_bytes(), tail].concat();
    let read = |length: usize, tail: &[u8]| {
        decode_request(Some(length), &body(tail)).map(|request| request.inputs[0].values.clone()).map_err(|error| error.to_string())
    };
    assert_eq!(read(json.len(), &[0, 0x3c, 0, 0xc0]), Ok(Values::F32(vec![1.0, -2.0])));
    assert!(read(json.len(), &[0, 0x3c]).unwrap_err().contains("binary_data_size is 4, but 2 bytes are left"));
    assert!(read(json.len(), &[0; 6]).unwrap_err().contains("2 bytes more"));
    assert!(read(json.len() + 9, &[0; 4]).unwrap_err().contains("the body has"));
    assert!(read(0, &[0; 4]).unwrap_err().contains("is 0"));
}

#[test]
fn numbers_that_json_lacks_are_read_in_every_spelling() {
    let spelled = [r"[1, NaN, Infinity, -Infinity]", r#"[1, "NaN", "Infinity", "-Infinity"]"#];
    for data in spelled {
        let tensor = one(&format!(r#"{{"name":"NaN \" Infinity","shape":[4],"datatype":"FP64","data":{data}}}"#)).unwrap();
        let Values::F64(values) = &tensor.values else { panic!("{tensor:?}") };
        assert_eq!(tensor.name, "NaN \" Infinity");
        assert!(values[1].is_nan() && values[2] == f64::INFINITY && values[3] == f64::NEG_INFINITY, "{values:?}");
    }
    assert!(
        matches!(&one(r#"{"name":"x","shape":[2],"datatype":"FP32","data":[null, 2]}"#).unwrap().values, Values::F32(v) if v[0].is_nan() && v[1].to_bits() == 2_f32.to_bits())
    );
    assert!(one(r#"{"name":"x","shape":[1],"datatype":"INT32","data":[null]}"#).is_err());
    let text = one(r#"{"name":"x","shape":[1],"datatype":"BYTES","data":["NaN"]}"#).unwrap();
    assert_eq!(text.values, Values::Bytes(vec![b"NaN".to_vec()]));
}

#[test]
fn answers_are_cast_to_the_declared_type_where_they_fit() {
    let body = br#"{"model_name":"m","model_version":null,"id":null,"parameters":null,"outputs":[
        {"name":"p","shape":[2],"datatype":"FP64","parameters":{"content_type":"np","x":null,"y":[1]},"data":[0.1,0.9]},
        {"name":"q","shape":[1],"datatype":"FP64","data":[0.5]},{"name":"r","shape":[1],"datatype":"FP64","data":[3.0]}]}"#;
    let response = decode_response(None, body, &[("p", DataType::F32), ("q", DataType::I64), ("r", DataType::I64)]).unwrap();
    assert_eq!(response.outputs[0].values, Values::F32(vec![0.1, 0.9]));
    assert_eq!(response.outputs[1].values, Values::F64(vec![0.5]), "a value that does not fit stays what it was");
    assert_eq!(response.outputs[2].values, Values::I64(vec![3]));
}

#[test]
fn text_that_json_cannot_carry_goes_as_a_binary_tensor_only() {
    let tensor = Tensor::new("image", [1], Values::Bytes(vec![vec![0xff, 0xfe]])).unwrap();
    let error = encode_request(std::slice::from_ref(&tensor), &RequestOptions::default()).unwrap_err();
    assert!(error.to_string().contains(r#"input "image": data: value 0 is not UTF-8"#), "{error}");
    let binary = encode_request(std::slice::from_ref(&tensor), &RequestOptions { binary: true, ..RequestOptions::default() }).unwrap();
    assert_eq!(decode_request(binary.inference_header_length, &binary.body).unwrap().inputs, [tensor]);
}

#[test]
fn outputs_say_themselves_whether_they_come_binary() {
    let body = br#"{"inputs":[],"parameters":{"binary_data_output":true},"outputs":[{"name":"a"},{"name":"b","parameters":{"binary_data":false}}]}"#;
    let request = decode_request(None, body).unwrap();
    assert!(request.wants("a") && request.wants_binary("a") && !request.wants_binary("b") && !request.wants("c"));
    assert!(InferRequest::default().wants("anything"));
}

#[test]
fn lists_are_bounded_while_they_are_read() {
    let many = format!(r#"{{"inputs":[{}]}}"#, vec![r#"{"name":"","shape":[],"datatype":"","data":[]}"#; TENSORS_MAX + 1].join(","));
    assert!(decode_request(None, many.as_bytes()).unwrap_err().to_string().contains("more than 256"));
    let deep = format!(r#"{{"name":"x","shape":[1],"datatype":"FP32","data":{}1{}}}"#, "[".repeat(20), "]".repeat(20));
    assert!(one(&deep).unwrap_err().contains("nested more than 16 deep"));
}

#[test]
fn errors_of_other_servers_are_read() {
    for (body, text) in [(r#"{"error":"no"}"#, "no"), (r#"{"detail":[{"msg":"no"}]}"#, r#"[{"msg":"no"}]"#)] {
        assert_eq!(serde_json::from_str::<ErrorBody>(body).unwrap().error, text);
    }
}
