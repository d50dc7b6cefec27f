//! `TensorProto` to [`Tensor`] and back. Both encodings are read (`raw_data` and the typed fields); `raw_data` is written.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::{OnnxError, TensorProto};
use crate::tensor::{DataType, Tensor, Values, elements};

/// `TensorProto.DataType` numbers that have a name in messages.
const NAMES: [&str; 24] = [
    "UNDEFINED",
    "FLOAT",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "STRING",
    "BOOL",
    "FLOAT16",
    "DOUBLE",
    "UINT32",
    "UINT64",
    "COMPLEX64",
    "COMPLEX128",
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E4M3FNUZ",
    "FLOAT8E5M2",
    "FLOAT8E5M2FNUZ",
    "UINT4",
    "INT4",
    "FLOAT4E2M1",
];

/// ONNX's own name of an element type.
pub fn type_name(number: i32) -> String {
    usize::try_from(number).ok().and_then(|n| NAMES.get(n)).map_or_else(|| format!("element type {number}"), ToString::to_string)
}

/// The element type of this number; `None` for those that no engine here computes in (float16, bfloat16, complex, 8 bits and fewer of float).
pub const fn datatype(number: i32) -> Option<DataType> {
    Some(match number {
        1 => DataType::F32,
        2 => DataType::U8,
        3 => DataType::I8,
        4 => DataType::U16,
        5 => DataType::I16,
        6 => DataType::I32,
        7 => DataType::I64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        11 => DataType::F64,
        12 => DataType::U32,
        13 => DataType::U64,
        _ => return None,
    })
}

/// The `TensorProto.DataType` number of an element type.
pub const fn number(datatype: DataType) -> i32 {
    match datatype {
        DataType::F32 => 1,
        DataType::U8 => 2,
        DataType::I8 => 3,
        DataType::U16 => 4,
        DataType::I16 => 5,
        DataType::I32 => 6,
        DataType::I64 => 7,
        DataType::Bytes => 8,
        DataType::Bool => 9,
        DataType::F64 => 11,
        DataType::U32 => 12,
        DataType::U64 => 13,
    }
}

/// Reads one `.pb` file's bytes.
pub fn decode(bytes: Bytes) -> Result<Tensor, OnnxError> {
    let proto = TensorProto::decode(bytes).map_err(|error| OnnxError::Decode { what: "a TensorProto", why: error.to_string() })?;
    to_tensor(&proto)
}

/// The bytes of one `.pb` file.
pub fn encode(tensor: &Tensor) -> Vec<u8> {
    from_tensor(tensor).encode_to_vec()
}

/// Checks and converts. External data is refused: a sample must be whole in its own file.
pub fn to_tensor(proto: &TensorProto) -> Result<Tensor, OnnxError> {
    let unusable = |why: String| OnnxError::Unusable { at: format!("tensor {:?}", proto.name), why };
    if proto.data_location != 0 || !proto.external_data.is_empty() {
        return Err(unusable("its values are in another file (external data); store them in the tensor itself".into()));
    }
    let Some(datatype) = datatype(proto.data_type) else {
        return Err(unusable(format!("{} values are not supported; convert them to FLOAT or to an integer type", type_name(proto.data_type))));
    };
    let shape = (proto.dims.iter().map(|dim| usize::try_from(*dim)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| unusable(format!("shape {:?} has a negative dimension", proto.dims)))?;
    // Known to be small enough before anything is allocated for it.
    let count = elements(&shape).ok_or_else(|| unusable(format!("shape {shape:?} is too large")))?;
    let values = if proto.raw_data.is_empty() { typed(proto, datatype) } else { raw(&proto.raw_data, datatype, count) };
    let values = values.map_err(unusable)?;
    Tensor::new(proto.name.clone(), shape, values).map_err(|error| OnnxError::Unusable { at: "tensor".into(), why: error.to_string() })
}

/// With `raw_data`, little-endian; strings in `string_data`.
pub fn from_tensor(tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        dims: tensor.shape.iter().map(|dim| *dim as i64).collect(),
        data_type: number(tensor.datatype()),
        name: tensor.name.clone(),
        ..TensorProto::default()
    };
    let mut raw = BytesMut::new();
    match &tensor.values {
        Values::Bool(v) => v.iter().for_each(|v| raw.put_u8(u8::from(*v))),
        Values::U8(v) => raw.put_slice(v),
        Values::U16(v) => v.iter().for_each(|v| raw.put_u16_le(*v)),
        Values::U32(v) => v.iter().for_each(|v| raw.put_u32_le(*v)),
        Values::U64(v) => v.iter().for_each(|v| raw.put_u64_le(*v)),
        Values::I8(v) => v.iter().for_each(|v| raw.put_i8(*v)),
        Values::I16(v) => v.iter().for_each(|v| raw.put_i16_le(*v)),
        Values::I32(v) => v.iter().for_each(|v| raw.put_i32_le(*v)),
        Values::I64(v) => v.iter().for_each(|v| raw.put_i64_le(*v)),
        Values::F32(v) => v.iter().for_each(|v| raw.put_f32_le(*v)),
        Values::F64(v) => v.iter().for_each(|v| raw.put_f64_le(*v)),
        Values::Bytes(v) => proto.string_data = v.iter().map(|v| Bytes::copy_from_slice(v)).collect(),
    }
    proto.raw_data = raw.freeze();
    proto
}

fn raw(data: &[u8], datatype: DataType, count: usize) -> Result<Values, String> {
    let Some(width) = datatype.width() else {
        return Err("strings cannot be in raw_data".into());
    };
    if data.len() != count * width {
        return Err(format!("raw_data holds {} bytes where {count} values of {datatype} take {}", data.len(), count * width));
    }
    macro_rules! little_endian {
        ($variant:ident, $type:ty) => {
            Values::$variant(data.chunks_exact(size_of::<$type>()).filter_map(|chunk| Some(<$type>::from_le_bytes(chunk.try_into().ok()?))).collect())
        };
    }
    Ok(match datatype {
        DataType::Bool => Values::Bool(data.iter().map(|byte| *byte != 0).collect()),
        DataType::U8 => Values::U8(data.to_vec()),
        DataType::U16 => little_endian!(U16, u16),
        DataType::U32 => little_endian!(U32, u32),
        DataType::U64 => little_endian!(U64, u64),
        DataType::I8 => little_endian!(I8, i8),
        DataType::I16 => little_endian!(I16, i16),
        DataType::I32 => little_endian!(I32, i32),
        DataType::I64 => little_endian!(I64, i64),
        DataType::F32 => little_endian!(F32, f32),
        DataType::F64 => little_endian!(F64, f64),
        DataType::Bytes => return Err("strings cannot be in raw_data".into()),
    })
}

fn typed(proto: &TensorProto, datatype: DataType) -> Result<Values, String> {
    // Small types share one field of wider integers; a value that does not fit is a broken file.
    fn narrow<W: Copy + std::fmt::Display, N: TryFrom<W>>(wide: &[W], datatype: DataType) -> Result<Vec<N>, String> {
        wide.iter().map(|value| N::try_from(*value).map_err(|_| format!("value {value} does not fit {datatype}"))).collect()
    }
    Ok(match datatype {
        DataType::Bool => Values::Bool(proto.int32_data.iter().map(|value| *value != 0).collect()),
        DataType::U8 => Values::U8(narrow(&proto.int32_data, datatype)?),
        DataType::U16 => Values::U16(narrow(&proto.int32_data, datatype)?),
        DataType::I8 => Values::I8(narrow(&proto.int32_data, datatype)?),
        DataType::I16 => Values::I16(narrow(&proto.int32_data, datatype)?),
        DataType::I32 => Values::I32(proto.int32_data.clone()),
        DataType::U32 => Values::U32(narrow(&proto.uint64_data, datatype)?),
        DataType::U64 => Values::U64(proto.uint64_data.clone()),
        DataType::I64 => Values::I64(proto.int64_data.clone()),
        DataType::F32 => Values::F32(proto.float_data.clone()),
        DataType::F64 => Values::F64(proto.double_data.clone()),
        DataType::Bytes => Values::Bytes(proto.string_data.iter().map(|value| value.to_vec()).collect()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_values() -> impl Strategy<Value = Values> {
        use proptest::collection::vec;
        prop_oneof![
            vec(any::<bool>(), 0..20).prop_map(Values::Bool),
            vec(any::<u8>(), 0..20).prop_map(Values::U8),
            vec(any::<i8>(), 0..20).prop_map(Values::I8),
            vec(any::<u16>(), 0..20).prop_map(Values::U16),
            vec(any::<i16>(), 0..20).prop_map(Values::I16),
            vec(any::<u32>(), 0..20).prop_map(Values::U32),
            vec(any::<i32>(), 0..20).prop_map(Values::I32),
            vec(any::<u64>(), 0..20).prop_map(Values::U64),
            vec(any::<i64>(), 0..20).prop_map(Values::I64),
            vec(-1e30_f32..1e30, 0..20).prop_map(Values::F32),
            vec(-1e300_f64..1e300, 0..20).prop_map(Values::F64),
            vec(vec(any::<u8>(), 0..5), 0..20).prop_map(Values::Bytes),
        ]
    }

    proptest! {
        #[test]
        fn a_tensor_reads_back_as_it_was_written(values in any_values(), name in "[a-z]{0,8}") {
            let tensor = Tensor::new(name, [values.len()], values).unwrap();
            prop_assert_eq!(decode(encode(&tensor).into()).unwrap(), tensor);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(bytes.into()));
        }
    }

    #[test]
    fn typed_fields_are_read() {
        let proto = TensorProto { dims: vec![2], data_type: 1, float_data: vec![1.0, 2.0], ..TensorProto::default() };
        assert_eq!(to_tensor(&proto).unwrap().values, Values::F32(vec![1.0, 2.0]));
        let proto = TensorProto { dims: vec![2], data_type: 3, int32_data: vec![-1, 127], ..TensorProto::default() };
        assert_eq!(to_tensor(&proto).unwrap().values, Values::I8(vec![-1, 127]));
        let proto = TensorProto { dims: vec![], data_type: 12, uint64_data: vec![7], ..TensorProto::default() };
        assert_eq!(to_tensor(&proto).unwrap().values, Values::U32(vec![7]));
    }

    #[test]
    fn broken_tensors_are_refused_with_what_is_wrong() {
        let refused = |proto: TensorProto| to_tensor(&proto).unwrap_err().to_string();
        let named = |proto: TensorProto| refused(TensorProto { name: "x".into(), ..proto });
        assert!(named(TensorProto { dims: vec![2], data_type: 10, ..TensorProto::default() }).contains("FLOAT16"));
        assert!(named(TensorProto { dims: vec![-2], data_type: 1, ..TensorProto::default() }).contains("negative"));
        assert!(named(TensorProto { dims: vec![1 << 40, 1 << 40], data_type: 1, ..TensorProto::default() }).contains("too large"));
        assert!(named(TensorProto { dims: vec![2], data_type: 1, raw_data: vec![0; 7].into(), ..TensorProto::default() }).contains("7 bytes"));
        assert!(named(TensorProto { dims: vec![1], data_type: 3, int32_data: vec![300], ..TensorProto::default() }).contains("300"));
        assert!(named(TensorProto { dims: vec![2], data_type: 1, data_location: 1, ..TensorProto::default() }).contains("another file"));
        assert!(refused(TensorProto { dims: vec![2], data_type: 1, float_data: vec![1.0], ..TensorProto::default() }).contains("holds 2 values"));
    }
}
