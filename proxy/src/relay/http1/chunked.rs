//! Where a chunked body ends (RFC 9112 §7.1). Strict: a line ends with CRLF, a size is one to sixteen hexadecimal digits, and extensions and trailers are
//! bounded, because what is read in two ways here is a request smuggled there.

/// Bytes of one chunk's extensions, or of all trailers together.
const LINE_MAX: u32 = 16 << 10;

/// Not a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chunked {
    #[default]
    Begin,
    Size {
        size: u64,
        digits: u8,
    },
    /// White space or extensions behind the size.
    Extension {
        size: u64,
        seen: u32,
    },
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a line behind the last chunk.
    Line {
        seen: u32,
    },
    Trailer {
        seen: u32,
    },
    TrailerLf {
        seen: u32,
    },
    LastLf,
    End,
}

impl Chunked {
    pub fn is_end(self) -> bool {
        self == Self::End
    }

    /// Reads `bytes` along to the body's end, if it is there. How many of them belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && !self.is_end() {
            if let Self::Data(left) = *self {
                let here = left.min((bytes.len() - at) as u64);
                at += here as usize;
                *self = if here == left { Self::DataCr } else { Self::Data(left - here) };
            } else {
                *self = self.after(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn after(self, byte: u8) -> Result<Self, Malformed> {
        let digit = || char::from(byte).to_digit(16).map(u64::from).ok_or(Malformed);
        let more = |seen: u32| if seen < LINE_MAX { Ok(seen + 1) } else { Err(Malformed) };
        Ok(match (self, byte) {
            (Self::Begin, _) => Self::Size { size: digit()?, digits: 1 },
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => Self::SizeLf(size),
            (Self::Size { size, .. }, b';' | b' ' | b'\t') => Self::Extension { size, seen: 0 },
            (Self::Size { size, digits }, _) if digits < 16 => Self::Size { size: size << 4 | digit()?, digits: digits + 1 },
            (Self::Extension { .. } | Self::Trailer { .. }, b'\n' | b'\0') | (Self::Line { .. }, b'\n' | b' ' | b'\t' | b':') => return Err(Malformed),
            (Self::Extension { size, seen }, _) => Self::Extension { size, seen: more(seen)? },
            (Self::SizeLf(0), b'\n') => Self::Line { seen: 0 },
            (Self::SizeLf(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Begin,
            (Self::Line { .. }, b'\r') => Self::LastLf,
            (Self::Trailer { seen }, b'\r') => Self::TrailerLf { seen },
            (Self::Line { seen } | Self::Trailer { seen }, _) => Self::Trailer { seen: more(seen)? },
            (Self::TrailerLf { seen }, b'\n') => Self::Line { seen },
            (Self::LastLf, b'\n') => Self::End,
            _ => return Err(Malformed),
        })
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
        ] {
            assert_eq!(Chunked::default().take(body.as_bytes()), Err(Malformed), "{body:?}");
        }
        let long = format!("5;{}", "x".repeat(20_000));
        assert_eq!(Chunked::default().take(long.as_bytes()), Err(Malformed), "bounded");
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
