//! Tensors in gRPC: `inference.ModelInferResponse` and `ModelStreamInferResponse` of the Open Inference Protocol (grpc_predict_v2.proto, and Triton's grpc_service.proto for
//! streams). Everything but values stays byte for byte, fields that are not known here included, so messages are walked and not decoded.

use rand::Rng;

use super::{
    binary,
    values::{Change, Values, is_real, limits},
};
use crate::{fault::model::Said, sanitize::NamedModel};

/// The calls whose answers are understood: one message, and a stream of them.
pub const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

// Fields of ModelInferRequest.
const MODEL_NAME: u32 = 1;
const MODEL_VERSION: u32 = 2;
/// Field of ModelStreamInferResponse.
const INFER_RESPONSE: u32 = 2;

// Fields of ModelInferResponse.
const OUTPUTS: u32 = 5;
const RAW_OUTPUT_CONTENTS: u32 = 6;
// Fields of InferOutputTensor.
const DATATYPE: u32 = 2;
const CONTENTS: u32 = 5;
/// Fields of InferTensorContents.
const BOOLS: u32 = 1;
const INTS: u32 = 2;
const INT64S: u32 = 3;
const UINTS: u32 = 4;
const UINT64S: u32 = 5;
const FP32S: u32 = 6;
const FP64S: u32 = 7;
const BYTES: u32 = 8;

const LENGTH_DELIMITED: u8 = 2;

/// A unary answer: one message behind its compression flag and length. `None`: nothing changed, or it is none of these.
pub fn change(body: &[u8], change: Change, rng: &mut impl Rng) -> Option<Vec<u8>> {
    framed(&response(message(body)?, change, rng)?)
}

/// One message of a streamed answer; otherwise as [`change`].
pub fn change_streamed(body: &[u8], change: Change, rng: &mut impl Rng) -> Option<Vec<u8>> {
    let streamed = message(body)?;
    let (mut made, mut changed) = (Vec::with_capacity(streamed.len()), false);
    for field in fields(streamed)? {
        match (field.number == INFER_RESPONSE && field.wire == LENGTH_DELIMITED).then(|| response(field.value, change, rng)).flatten() {
            Some(response) => {
                changed = true;
                write_field(INFER_RESPONSE, &response, &mut made);
            }
            None => made.extend_from_slice(field.whole),
        }
    }
    changed.then(|| framed(&made)).flatten()
}

/// The message behind its compression flag and length; `None`: it is compressed, or not whole.
fn message(body: &[u8]) -> Option<&[u8]> {
    let ([flag, length @ ..], message) = body.split_first_chunk::<5>()?;
    (*flag == 0 && u32::from_be_bytes(*length) as usize == message.len()).then_some(message)
}

fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(message.len()).ok()?;
    Some([&[0][..], &length.to_be_bytes(), message].concat())
}

/// The model that the first bytes of a request name; `ended`: that is all of it.
pub fn model(body: &[u8], ended: bool) -> Said {
    let more = if ended { Said::Unreadable } else { Said::More };
    let Some(([flag, length @ ..], rest)) = body.split_first_chunk::<5>() else { return more };
    if *flag != 0 {
        return Said::Unreadable;
    }
    let length = u32::from_be_bytes(*length) as usize;
    let mut rest = rest.get(..length).unwrap_or(rest);
    let whole = rest.len() == length;
    let mut model = NamedModel::default();
    while !rest.is_empty() {
        let Some((field, after)) = field(rest) else { return if whole { Said::Unreadable } else { more } };
        let text = (field.wire == LENGTH_DELIMITED).then(|| String::from_utf8_lossy(field.value).into_owned());
        match field.number {
            MODEL_NAME => model.name = text,
            MODEL_VERSION => model.version = text.filter(|version| !version.is_empty()),
            // Serializers write fields in the order of their numbers.
            _ if model.name.is_some() => return Said::Model(model),
            _ => {}
        }
        rest = after;
    }
    if whole { Said::Model(model) } else { more }
}

/// A field as it stands in a message.
struct Field<'a> {
    number: u32,
    wire: u8,
    /// With its tag and length.
    whole: &'a [u8],
    /// What is behind them.
    value: &'a [u8],
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

fn write_varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// The first field, and what is behind it.
fn field(message: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (tag, after) = varint(message)?;
    let wire = (tag & 7) as u8;
    let (value, after) = match wire {
        0 => {
            let (_, left) = varint(after)?;
            after.split_at(after.len() - left.len())
        }
        1 => after.split_at_checked(8)?,
        LENGTH_DELIMITED => {
            let (length, after) = varint(after)?;
            after.split_at_checked(usize::try_from(length).ok()?)?
        }
        5 => after.split_at_checked(4)?,
        _ => return None,
    };
    Some((Field { number: u32::try_from(tag >> 3).ok()?, wire, whole: &message[..message.len() - after.len()], value }, after))
}

fn fields(message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (field, after) = field(rest)?;
        fields.push(field);
        rest = after;
    }
    Some(fields)
}

fn write_field(number: u32, value: &[u8], into: &mut Vec<u8>) {
    write_varint(u64::from(number) << 3 | u64::from(LENGTH_DELIMITED), into);
    write_varint(value.len() as u64, into);
    into.extend_from_slice(value);
}

fn response(message: &[u8], change: Change, rng: &mut impl Rng) -> Option<Vec<u8>> {
    let fields = fields(message)?;
    let is = |field: &Field<'_>, number| field.number == number && field.wire == LENGTH_DELIMITED;
    // Raw contents come in the order of outputs, for those that have none of their own.
    let mut datatypes = Vec::new();
    for output in fields.iter().filter(|field| is(field, OUTPUTS)) {
        datatypes.push(datatype(output.value)?);
    }
    let raw = fields.iter().any(|field| is(field, RAW_OUTPUT_CONTENTS));
    let (mut made, mut changed, mut next) = (Vec::with_capacity(message.len()), false, 0);
    for field in &fields {
        if is(field, RAW_OUTPUT_CONTENTS) {
            let mut tensor = field.value.to_vec();
            changed |= binary::change(&mut tensor, datatypes.get(next).map_or("", String::as_str), change, rng);
            next += 1;
            write_field(RAW_OUTPUT_CONTENTS, &tensor, &mut made);
        } else if is(field, OUTPUTS) && !raw {
            match output(field.value, change, rng) {
                Some(output) => {
                    changed = true;
                    write_field(OUTPUTS, &output, &mut made);
                }
                None => made.extend_from_slice(field.whole),
            }
        } else {
            made.extend_from_slice(field.whole);
        }
    }
    changed.then_some(made)
}

fn datatype(output: &[u8]) -> Option<String> {
    let fields = fields(output)?;
    let datatype = fields.iter().rev().find(|field| field.number == DATATYPE && field.wire == LENGTH_DELIMITED);
    Some(datatype.map(|field| String::from_utf8_lossy(field.value).into_owned()).unwrap_or_default())
}

/// `None`: nothing changed.
fn output(output: &[u8], change: Change, rng: &mut impl Rng) -> Option<Vec<u8>> {
    let datatype = datatype(output)?;
    let (mut made, mut changed) = (Vec::with_capacity(output.len()), false);
    for field in fields(output)? {
        match (field.number == CONTENTS && field.wire == LENGTH_DELIMITED).then(|| contents(field.value, &datatype, change, rng)).flatten() {
            Some(contents) => {
                changed = true;
                write_field(CONTENTS, &contents, &mut made);
            }
            None => made.extend_from_slice(field.whole),
        }
    }
    changed.then_some(made)
}

/// The values of one tensor: one field, whose values are packed or not, or texts, each a field. `None`: nothing changed.
fn contents(message: &[u8], datatype: &str, change: Change, rng: &mut impl Rng) -> Option<Vec<u8>> {
    let fields = fields(message)?;
    let number = fields.first()?.number;
    if fields.iter().any(|field| field.number != number) {
        return None;
    }
    let mut values = match number {
        BOOLS => Values::Flags(varints(&fields)?.into_iter().map(|value| value != 0).collect()),
        // Negative numbers are written as 64 bits, whatever their type.
        INTS | INT64S => Values::Wholes(varints(&fields)?.into_iter().map(|value| i128::from(value as i64)).collect(), limits(datatype)),
        UINTS | UINT64S => Values::Wholes(varints(&fields)?.into_iter().map(i128::from).collect(), limits(datatype)),
        FP32S if is_real(datatype) => Values::Reals(fixed::<4>(&fields)?.into_iter().map(|bytes| f32::from_le_bytes(bytes).into()).collect()),
        FP64S if is_real(datatype) => Values::Reals(fixed::<8>(&fields)?.into_iter().map(f64::from_le_bytes).collect()),
        BYTES => Values::Texts(fields.iter().map(|field| field.value.to_vec()).collect()),
        _ => return None,
    };
    if !values.change(change, rng) {
        return None;
    }
    let mut packed = Vec::new();
    match &values {
        Values::Flags(flags) => packed.extend(flags.iter().map(|flag| u8::from(*flag))),
        Values::Wholes(values, _) => values.iter().for_each(|value| write_varint(*value as u64, &mut packed)),
        Values::Reals(values) if number == FP32S => packed.extend(values.iter().flat_map(|value| (*value as f32).to_le_bytes())),
        Values::Reals(values) => packed.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Values::Texts(texts) => {
            let mut made = Vec::new();
            for text in texts {
                write_field(number, text, &mut made);
            }
            return Some(made);
        }
    }
    let mut made = Vec::new();
    write_field(number, &packed, &mut made);
    Some(made)
}

fn varints(fields: &[Field<'_>]) -> Option<Vec<u64>> {
    let mut values = Vec::new();
    for field in fields {
        let mut rest = field.value;
        while !rest.is_empty() {
            let (value, after) = varint(rest)?;
            values.push(value);
            rest = after;
        }
    }
    Some(values)
}

fn fixed<const N: usize>(fields: &[Field<'_>]) -> Option<Vec<[u8; N]>> {
    let mut values = Vec::new();
    for field in fields {
        let (words, rest) = field.value.as_chunks::<N>();
        if !rest.is_empty() {
            return None;
        }
        values.extend_from_slice(words);
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};
    use steadfast_api::fault::TensorChange;

    use super::*;

    fn field(number: u32, value: &[u8]) -> Vec<u8> {
        let mut made = Vec::new();
        write_field(number, value, &mut made);
        made
    }

    fn tensor(datatype: &str, contents: &[u8]) -> Vec<u8> {
        let contents = if contents.is_empty() { Vec::new() } else { field(CONTENTS, contents) };
        field(OUTPUTS, &[field(1, b"name"), field(DATATYPE, datatype.as_bytes()), field(3, &[1, 2]), contents].concat())
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        super::framed(message).unwrap()
    }

    fn changed(message: &[u8], how: TensorChange) -> Option<Vec<u8>> {
        change(&framed(message), Change { how, magnitude: 0.5 }, &mut StdRng::seed_from_u64(1)).map(|body| {
            assert_eq!(body.len() - 5, u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize);
            body[5..].to_vec()
        })
    }

    #[test]
    fn values_change_in_either_form_and_everything_else_stays() {
        let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        // A field that nobody knows, of every wire type.
        let unknown = [&[0xa0, 0x06, 0x96, 0x01][..], &[0xa5, 0x06, 1, 2, 3, 4], &[0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8], &field(100, b"x")].concat();
        let model = field(1, b"digits");
        let raw = |tensor_bytes: &[u8], ids: &[u8]| {
            [&model[..], &tensor("FP32", &[]), &unknown, &tensor("INT16", &[]), &field(RAW_OUTPUT_CONTENTS, tensor_bytes), &field(RAW_OUTPUT_CONTENTS, ids)]
                .concat()
        };
        assert_eq!(changed(&raw(&floats(&[1.0, 2.0]), &[4, 0, 0, 1]), TensorChange::Scale), Some(raw(&floats(&[1.5, 3.0]), &[6, 0, 0x80, 1])),);
        let typed = |values: &[u8], ids: &[u8]| [&model[..], &tensor("FP32", &field(FP32S, values)), &tensor("INT64", &field(INT64S, ids)), &unknown].concat();
        let minus = [0xff; 9].iter().copied().chain([1]).collect::<Vec<u8>>();
        let ids = [&[0x80, 0x02][..], &minus].concat();
        let made = changed(&typed(&floats(&[1.0, 2.0]), &ids), TensorChange::Permute).unwrap();
        assert_eq!(made, typed(&floats(&[2.0, 1.0]), &[&minus[..], &[0x80, 0x02]].concat()));
        let texts = |first: &[u8], second: &[u8]| tensor("BYTES", &[field(BYTES, first), field(BYTES, second)].concat());
        assert_eq!(changed(&texts(b"cat", b"horse"), TensorChange::Shift), Some(texts(b"horse", b"cat")));
    }

    #[test]
    fn a_streamed_answer_is_changed_in_its_envelope() {
        let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let streamed = |values: &[f32]| [field(INFER_RESPONSE, &tensor("FP32", &field(FP32S, &floats(values)))), field(9, b"unknown")].concat();
        let scale = Change { how: TensorChange::Scale, magnitude: 0.5 };
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(change_streamed(&framed(&streamed(&[1.0, 2.0])), scale, &mut rng), Some(framed(&streamed(&[1.5, 3.0]))));
        assert_eq!(change_streamed(&framed(&field(1, b"an error")), scale, &mut rng), None);
    }

    #[test]
    fn the_model_is_read_from_as_little_as_tells_it() {
        let request = framed(&[field(MODEL_NAME, b"digits"), field(MODEL_VERSION, b"3"), field(3, b"id"), field(7, &[0; 100])].concat());
        let told = (0..=request.len()).find(|size| matches!(model(&request[..*size], false), Said::Model(_))).unwrap();
        assert!(told < 25, "{told}");
        let Said::Model(found) = model(&request[..told], false) else { panic!() };
        assert_eq!((found.name.as_deref(), found.version.as_deref()), (Some("digits"), Some("3")));
        let unordered = framed(&[field(7, &[0; 100]), field(MODEL_NAME, b"digits")].concat());
        assert!(matches!(model(&unordered, true), Said::Model(found) if found.name.as_deref() == Some("digits") && found.version.is_none()));
        assert!(matches!(model(&framed(b""), true), Said::Model(found) if found == NamedModel::default()));
        for bad in [&b""[..], b"\0\0\0\0\x05\x0a", b"\x01\0\0\0\0", b"\0\0\0\0\x01\x07"] {
            assert!(matches!(model(bad, true), Said::Unreadable), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_answer_or_has_no_values_is_left_alone() {
        assert_eq!(changed(&field(1, b"digits"), TensorChange::Shift), None);
        let whole = framed(&tensor("FP32", &field(FP32S, &1.0_f32.to_le_bytes())));
        let shift = Change { how: TensorChange::Shift, magnitude: 0.1 };
        let mut rng = StdRng::seed_from_u64(1);
        assert!(change(&whole, shift, &mut rng).is_some());
        let mut compressed = whole.clone();
        compressed[0] = 1;
        for bad in [&compressed[..], &whole[..whole.len() - 1], &[whole.clone(), whole.clone()].concat(), b"", b"\0\0\0\0\x01\x07"] {
            assert_eq!(change(bad, shift, &mut rng), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for (how, _) in TensorChange::ALL {
                let _ = change(&framed(&body), Change { how, magnitude: 0.1 }, &mut StdRng::seed_from_u64(1));
                let _ = change_streamed(&framed(&body), Change { how, magnitude: 0.1 }, &mut StdRng::seed_from_u64(1));
            }
            let (whole, cut) = (model(&framed(&body), true), model(&body, false));
            prop_assert!(!matches!(whole, Said::More) && !matches!((body.is_empty(), cut), (true, Said::Model(_))));
        }
    }
}
