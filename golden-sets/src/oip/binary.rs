//! Values as the binary tensor extension carries them: little-endian, row-major, one byte a BOOL; each of BYTES behind its length in four bytes.

use bytes::BufMut;

use super::wire::WireType;
use crate::tensor::{DataType, Values};

/// Bytes that [`write`] will append.
pub(super) fn size(values: &Values) -> usize {
    match (values, values.datatype().width()) {
        (Values::Bytes(values), _) => values.iter().map(|value| value.len().saturating_add(4)).fold(0, usize::saturating_add),
        (_, width) => values.len().saturating_mul(width.unwrap_or(0)),
    }
}

pub(super) fn write(values: &Values, into: &mut Vec<u8>) {
    match values {
        Values::Bool(v) => into.extend(v.iter().map(|v| u8::from(*v))),
        Values::U8(v) => into.put_slice(v),
        Values::U16(v) => v.iter().for_each(|v| into.put_u16_le(*v)),
        Values::U32(v) => v.iter().for_each(|v| into.put_u32_le(*v)),
        Values::U64(v) => v.iter().for_each(|v| into.put_u64_le(*v)),
        Values::I8(v) => v.iter().for_each(|v| into.put_i8(*v)),
        Values::I16(v) => v.iter().for_each(|v| into.put_i16_le(*v)),
        Values::I32(v) => v.iter().for_each(|v| into.put_i32_le(*v)),
        Values::I64(v) => v.iter().for_each(|v| into.put_i64_le(*v)),
        Values::F32(v) => v.iter().for_each(|v| into.put_f32_le(*v)),
        Values::F64(v) => v.iter().for_each(|v| into.put_f64_le(*v)),
        Values::Bytes(v) => v.iter().for_each(|v| {
            // A message is at most `BODY_MAX` long, so a length always fits.
            into.put_u32_le(v.len() as u32);
            into.put_slice(v);
        }),
    }
}

/// Reads exactly `count` values that fill `bytes` exactly.
pub(super) fn read(bytes: &[u8], datatype: &WireType, count: usize) -> Result<Values, String> {
    let width = match datatype {
        WireType::Half | WireType::Brain => Some(2),
        WireType::Plain(datatype) => datatype.width(),
    };
    // `count` is at most `ELEMENTS_MAX`: no overflow.
    if let Some(width) = width.filter(|width| bytes.len() != count * width) {
        return Err(format!("binary_data_size is {}, but {count} values of {width} bytes take {}", bytes.len(), count * width));
    }
    macro_rules! little_endian {
        ($variant:ident, $type:ty) => {
            Values::$variant(bytes.chunks_exact(size_of::<$type>()).filter_map(|chunk| Some(<$type>::from_le_bytes(chunk.try_into().ok()?))).collect())
        };
    }
    let halves = || bytes.chunks_exact(2).map(|pair| u16::from(pair[0]) | u16::from(pair[1]) << 8);
    Ok(match datatype {
        WireType::Half => Values::F32(halves().map(half).collect()),
        WireType::Brain => Values::F32(halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
        WireType::Plain(datatype) => match datatype {
            DataType::Bool => match bytes.iter().position(|byte| *byte > 1) {
                Some(index) => return Err(format!("byte {index} is {}; a BOOL is 0 or 1", bytes[index])),
                None => Values::Bool(bytes.iter().map(|byte| *byte == 1).collect()),
            },
            DataType::U8 => Values::U8(bytes.to_vec()),
            DataType::U16 => little_endian!(U16, u16),
            DataType::U32 => little_endian!(U32, u32),
            DataType::U64 => little_endian!(U64, u64),
            DataType::I8 => little_endian!(I8, i8),
            DataType::I16 => little_endian!(I16, i16),
            DataType::I32 => little_endian!(I32, i32),
            DataType::I64 => little_endian!(I64, i64),
            DataType::F32 => little_endian!(F32, f32),
            DataType::F64 => little_endian!(F64, f64),
            DataType::Bytes => Values::Bytes(texts(bytes, count)?),
        },
    })
}

fn texts(mut bytes: &[u8], count: usize) -> Result<Vec<Vec<u8>>, String> {
    // Each has at least its length; so a false count allocates nothing.
    if count > bytes.len() / 4 {
        return Err(format!("{count} values of BYTES take at least {} bytes; binary_data_size is {}", count.saturating_mul(4), bytes.len()));
    }
    let mut values = Vec::with_capacity(count);
    for index in 0..count {
        let (value, rest) = (bytes.split_first_chunk::<4>())
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize))
            .ok_or_else(|| format!("value {index} of {count} ends beyond binary_data_size"))?;
        values.push(value.to_vec());
        bytes = rest;
    }
    if bytes.is_empty() { Ok(values) } else { Err(format!("binary_data_size is {} bytes more than the {count} values of BYTES take", bytes.len())) }
}

/// IEEE 754 half precision; exact.
fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 0x1f), bits & 0x3ff);
    let magnitude = match exponent {
        0 => f32::from(fraction) * 2_f32.powi(-24),
        31 if fraction == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => f32::from(fraction | 0x400) * 2_f32.powi(exponent - 25),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_read_exactly() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 5.960_464_5e-8), (0x3555, 0.333_251_95), (0x7c00, f32::INFINITY), (0x8000, -0.0)]
        {
            assert_eq!(half(bits).to_bits(), f32::to_bits(value), "{bits:#x}");
        }
        assert!(half(0x7e00).is_nan());
    }

    #[test]
    fn a_false_length_allocates_nothing() {
        assert!(texts(&[0xff; 8], 1).unwrap_err().contains("value 0 of 1"));
        assert!(texts(&[0; 8], 60_000_000).unwrap_err().contains("at least"));
        assert!(texts(&[0; 9], 2).unwrap_err().contains("1 bytes more"));
    }
}
