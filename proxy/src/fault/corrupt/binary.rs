//! Tensors as bytes, little-endian: behind the JSON of the Open Inference Protocol's binary extension, and in gRPC's `raw_output_contents`. Lengths never change.

use rand::Rng;
use steadfast_golden_sets::DataType;

use super::{
    half,
    values::{Change, Values, is_real, limits},
};

/// Whether anything changed. `false` too where the bytes are no tensor of `datatype`.
pub fn change(tensor: &mut [u8], datatype: &str, change: Change, rng: &mut impl Rng) -> bool {
    let Some(mut values) = read(tensor, datatype) else { return false };
    let changed = values.change(change, rng);
    if changed {
        write(tensor, datatype, &values);
    }
    changed
}

fn width(datatype: &str) -> Option<usize> {
    match datatype {
        "FP16" | "BF16" => Some(2),
        name => DataType::from_name(name).and_then(DataType::width),
    }
}

fn read(tensor: &[u8], datatype: &str) -> Option<Values> {
    if datatype == "BYTES" {
        return texts(tensor).map(Values::Texts);
    }
    let width = width(datatype)?;
    if tensor.is_empty() || !tensor.len().is_multiple_of(width) {
        return None;
    }
    let words = tensor.chunks_exact(width).map(|bytes| bytes.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
    Some(match datatype {
        "BOOL" => Values::Flags(words.map(|word| word != 0).collect()),
        "FP32" => Values::Reals(words.map(|word| f64::from(f32::from_bits(word as u32))).collect()),
        "FP64" => Values::Reals(words.map(f64::from_bits).collect()),
        "FP16" => Values::Reals(words.map(|word| half::read(word as u16)).collect()),
        "BF16" => Values::Reals(words.map(|word| f64::from(f32::from_bits((word as u32) << 16))).collect()),
        name => {
            let (least, most) = limits(name);
            // The sign stands in the word's highest bit.
            let value = |word: u64| if least < 0 && i128::from(word) > most { i128::from(word) + 2 * least } else { i128::from(word) };
            Values::Wholes(words.map(value).collect(), (least, most))
        }
    })
}

fn write(tensor: &mut [u8], datatype: &str, values: &Values) {
    if let Values::Texts(texts) = values {
        let written: Vec<u8> = texts.iter().flat_map(|text| (text.len() as u32).to_le_bytes().into_iter().chain(text.iter().copied())).collect();
        // Texts change places and letters, and so are as long together as they were.
        tensor.copy_from_slice(&written);
        return;
    }
    let Some(width) = width(datatype) else { return };
    let words: Vec<u64> = match values {
        Values::Reals(values) if is_real(datatype) => values
            .iter()
            .map(|value| match datatype {
                "FP64" => value.to_bits(),
                "FP16" => half::write(*value).into(),
                "BF16" => ((*value as f32).to_bits() >> 16).into(),
                _ => (*value as f32).to_bits().into(),
            })
            .collect(),
        Values::Wholes(values, _) => values.iter().map(|value| *value as u64).collect(),
        Values::Flags(flags) => flags.iter().map(|flag| u64::from(*flag)).collect(),
        Values::Reals(_) | Values::Texts(_) => return,
    };
    for (place, word) in tensor.chunks_exact_mut(width).zip(words) {
        place.copy_from_slice(&word.to_le_bytes()[..width]);
    }
}

/// Texts, each behind its length in four bytes.
fn texts(tensor: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut texts = Vec::new();
    let mut rest = tensor;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        texts.push(text.to_vec());
        rest = after;
    }
    rest.is_empty().then_some(texts)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use steadfast_api::fault::TensorChange;

    use super::*;

    #[test]
    fn every_type_is_read_and_written_as_it_was() {
        let bytes: Vec<u8> = (0..48_u8).map(|i| i.wrapping_mul(37)).collect();
        for datatype in ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64", "BF16"] {
            let mut again = bytes.clone();
            write(&mut again, datatype, &read(&bytes, datatype).unwrap());
            assert_eq!(again, bytes, "{datatype}");
        }
        assert_eq!(read(&[0xff, 0x7f], "INT8"), Some(Values::Wholes(vec![-1, 127], (-128, 127))));
        assert!(read(&bytes[..47], "INT16").is_none() && read(&bytes, "INT128").is_none() && read(&[], "FP32").is_none());
    }

    #[test]
    fn halves_and_whole_numbers_scale() {
        let scale = Change { how: TensorChange::Scale, magnitude: 0.5 };
        let mut rng = StdRng::seed_from_u64(1);
        // 1.0 becomes 1.5.
        for (datatype, mut tensor, right) in
            [("FP16", vec![0x00, 0x3c], vec![0x00, 0x3e]), ("BF16", vec![0x80, 0x3f], vec![0xc0, 0x3f]), ("INT16", vec![0xf6, 0xff], vec![0xf1, 0xff])]
        {
            assert!(change(&mut tensor, datatype, scale, &mut rng));
            assert_eq!(tensor, right, "{datatype}");
        }
    }
}
