//! Half floats (IEEE 754 binary16), which Rust does not have yet: five bits of exponent, ten of fraction.

/// Exact.
pub fn read(bits: u16) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    if sign == 1 { -size } else { size }
}

/// To the nearest, ties to even; what is too large is infinite.
pub fn write(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let size = value.abs();
    if size.is_nan() {
        return sign | 0x7e00;
    }
    if size == 0.0 {
        return sign;
    }
    // The exponent of the last bit of the fraction.
    let last = (((size.to_bits() >> 52) as i32 - 1023).max(-14) - 10).min(100);
    let steps = (size / 2_f64.powi(last)).round_ties_even();
    // 2048 steps are the next exponent's 1024; adding them up lets the carry do it.
    let bits = f64::from(last + 24) * 1024.0 + steps;
    if bits >= f64::from(0x7c00_u16) { sign | 0x7c00 } else { sign | bits as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_read_and_written_as_it_was() {
        for bits in 0..=u16::MAX {
            let value = read(bits);
            if value.is_nan() {
                assert!(read(write(value)).is_nan());
            } else {
                assert_eq!(write(value), bits, "{value}");
            }
        }
        for (value, bits) in
            [(1.0, 0x3c00), (-2.0, 0xc000), (65504.0, 0x7bff), (65520.0, 0x7c00), (1e300, 0x7c00), (1e-300, 0), (2049.0, 0x6800), (2051.0, 0x6802)]
        {
            assert_eq!(write(value), bits, "{value}");
        }
    }
}
