//! HPACK's Huffman code (RFC 7541 appendix B). It is canonical, so the lengths are all of it.

use std::sync::LazyLock;

use super::hpack::Malformed;

#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const LONGEST: usize = 30;

struct Code {
    /// Of each length: its first code, and where its symbols begin.
    first: [u32; LONGEST + 1],
    at: [usize; LONGEST + 1],
    count: [u32; LONGEST + 1],
    symbols: Vec<u8>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut code = Code { first: [0; LONGEST + 1], at: [0; LONGEST + 1], count: [0; LONGEST + 1], symbols: Vec::with_capacity(256) };
    let mut next = 0;
    for length in 1..=LONGEST {
        next <<= 1;
        (code.first[length], code.at[length]) = (next, code.symbols.len());
        code.symbols.extend((0..=255_u8).filter(|symbol| usize::from(LENGTHS[usize::from(*symbol)]) == length));
        code.count[length] = (code.symbols.len() - code.at[length]) as u32;
        next += code.count[length];
    }
    code
});

/// Appends what `coded` says to `plain`.
pub fn decode(coded: &[u8], plain: &mut Vec<u8>) -> Result<(), Malformed> {
    let code = &*CODE;
    let (mut value, mut length) = (0_u32, 0);
    for bit in coded.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        value = value << 1 | u32::from(bit);
        length += 1;
        if length > LONGEST {
            return Err(Malformed);
        }
        let offset = value.wrapping_sub(code.first[length]);
        if offset < code.count[length] {
            plain.push(code.symbols[code.at[length] + offset as usize]);
            (value, length) = (0, 0);
        }
    }
    // Filled up with the first bits of the end's code, all ones, and with less than a byte of them.
    if length < 8 && value == (1 << length) - 1 { Ok(()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_read_as_it_says() {
        for (coded, plain) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            let mut found = Vec::new();
            assert_eq!(decode(coded, &mut found), Ok(()));
            assert_eq!(String::from_utf8(found).unwrap(), plain);
        }
    }

    #[test]
    fn padding_is_short_and_all_ones() {
        for coded in [&[0x64][..], &[0xff], &[0x1f, 0xff], &[0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(decode(coded, &mut Vec::new()), Err(Malformed), "{coded:?}");
        }
    }
}
