//! Where a chunked body ends (RFC 9112 §7.1). Strict: a line ends with CRLF, a size is one to sixteen hexadecimal digits, a trailer is a field, and extensions and trailers
//! are bounded, because what is read in two ways here is a request smuggled there. Nothing is taken that the stack would refuse.

use super::head::FIELDS_MAX;
use crate::relay::is_token;

/// Bytes of all extensions, and of all trailers.
const EXTRA_MAX: u32 = 16 << 10;

/// Not a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunked {
    at: At,
    /// Bytes of extensions so far.
    extensions: u32,
    /// Bytes of trailers so far, and lines.
    trailers: u32,
    fields: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Begin,
    Size {
        size: u64,
        digits: u8,
    },
    /// White space behind the size.
    Space(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a line behind the last chunk.
    Line,
    Name,
    Value,
    ValueLf,
    LastLf,
    End,
}

impl Chunked {
    pub fn is_end(self) -> bool {
        self.at == At::End
    }

    /// Reads `bytes` along to the body's end, if it is there. How many of them belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && !self.is_end() {
            if let At::Data(left) = self.at {
                let here = left.min((bytes.len() - at) as u64);
                at += here as usize;
                self.at = if here == left { At::DataCr } else { At::Data(left - here) };
            } else {
                self.at = self.after(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn after(&mut self, byte: u8) -> Result<At, Malformed> {
        let digit = || char::from(byte).to_digit(16).map(u64::from).ok_or(Malformed);
        Ok(match (self.at, byte) {
            (At::Begin, _) => At::Size { size: digit()?, digits: 1 },
            (At::Size { size, .. } | At::Space(size) | At::Extension(size), b'\r') => At::SizeLf(size),
            (At::Size { size, .. } | At::Space(size), b' ' | b'\t') => At::Space(size),
            (At::Size { size, .. } | At::Space(size), b';') => At::Extension(size),
            (At::Size { size, digits }, _) if digits < 16 => At::Size { size: size << 4 | digit()?, digits: digits + 1 },
            (At::Extension(size), _) if byte != b'\n' && byte != b'\0' => {
                self.extensions += 1;
                if self.extensions >= EXTRA_MAX {
                    return Err(Malformed);
                }
                At::Extension(size)
            }
            (At::SizeLf(0), b'\n') => At::Line,
            (At::SizeLf(size), b'\n') => At::Data(size),
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Begin,
            (At::Line, b'\r') => At::LastLf,
            (At::Line, _) => {
                self.fields += 1;
                if usize::from(self.fields) > FIELDS_MAX || !is_token(byte) {
                    return Err(Malformed);
                }
                self.trailer(At::Name)?
            }
            (At::Name, _) if is_token(byte) => self.trailer(At::Name)?,
            (At::Value, b'\r') => self.trailer(At::ValueLf)?,
            (At::Name, b':') | (At::Value, b'\t' | b' '..=b'~' | 0x80..) => self.trailer(At::Value)?,
            (At::ValueLf, b'\n') => self.trailer(At::Line)?,
            (At::LastLf, b'\n') => At::End,
            _ => return Err(Malformed),
        })
    }

    fn trailer(&mut self, at: At) -> Result<At, Malformed> {
        self.trailers += 1;
        // With the two bytes of the last line.
        if self.trailers + 2 < EXTRA_MAX { Ok(at) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_body_ends_where_it_says_and_not_before() {
        for body in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "A;x=\"y\"\r\n0123456789\r\n000\r\nend: 1\r\nmore: 2\r\n\r\n", "ff \r\n"] {
            let mut chunked = Chunked::default();
            let whole = body.len() > 4;
            let bytes = if body.starts_with("ff") { [body.as_bytes(), &[b'x'; 255], b"\r\n0\r\n\r\n"].concat() } else { body.as_bytes().to_vec() };
            let with_next = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(chunked.take(&with_next), Ok(bytes.len()), "{body:?}");
            assert!(whole && chunked.is_end());
        }
    }

    #[test]
    fn what_others_could_read_differently_is_malformed() {
        for body in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n",
            "5\r\nhelloX",
            "1ffffffffffffffff\r\n",
            "5;a\nb\r\n",
            "0\r\n\n",
            "0\r\n x: 1\r\n\r\n",
            "0\r\nx: 1\n\r\n",
            " 5\r\n",
            "5\r\r\n",
            "0\r\n: 1\r\n\r\n",
            "5 5\r\n",
            "5 x\r\n",
            "0\r\nx : 1\r\n\r\n",
            "0\r\nx\r\n\r\n",
            "0\r\nx: \u{1}\r\n\r\n",
        ] {
            assert_eq!(Chunked::default().take(body.as_bytes()), Err(Malformed), "{body:?}");
        }
        let long = format!("5;{}", "x".repeat(20_000));
        assert_eq!(Chunked::default().take(long.as_bytes()), Err(Malformed), "bounded");
        let many = format!("1;{}\r\nx\r\n", "x".repeat(1000)).repeat(20);
        assert_eq!(Chunked::default().take(many.as_bytes()), Err(Malformed), "bounded over all chunks");
        for trailers in [format!("x: {}\r\n", "y".repeat(20_000)), "x: 1\r\n".repeat(FIELDS_MAX + 1)] {
            assert_eq!(Chunked::default().take(format!("0\r\n{trailers}").as_bytes()), Err(Malformed), "bounded");
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_ends_at_the_same_byte(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6), cut in any::<prop::sample::Index>(), junk in "[a-z\r\n]{0,10}") {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nt: 1\r\n\r\n");
            let all = [&body[..], junk.as_bytes()].concat();
            let (first, second) = all.split_at(cut.index(all.len()));
            let mut chunked = Chunked::default();
            let taken = chunked.take(first).unwrap();
            let taken = taken + chunked.take(if chunked.is_end() { &[] } else { second }).unwrap();
            prop_assert!(chunked.is_end());
            prop_assert_eq!(taken, body.len());
        }
    }
}
