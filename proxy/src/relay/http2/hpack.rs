//! Reads header blocks along (RFC 7541): of all fields only the few that the relay measures by are kept, of the others only their size, which the table must know.
//!
//! Invariants: a table holds at most [`TABLE_MAX`] bytes by the standard's own count, of which 32 stand for each entry, so memory is bounded by what the standard
//! calls its size; how large it may be at a moment the block itself says.

use std::collections::VecDeque;

use super::huffman;

/// A larger table than this nobody asks for; a peer that does is not understood.
const TABLE_MAX: usize = 64 << 10;
/// The size of a table of which nobody has said anything.
const TABLE_DEFAULT: usize = 4096;

/// Not a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What a field is to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Status,
    GrpcStatus,
    /// `steadfast-pod`.
    Pod,
    ContentType,
    Other,
}

/// What a block said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    /// Asks which pod this is.
    pub asks_pod: bool,
    /// Its content type is gRPC's.
    pub grpc: bool,
    /// Of all its fields, as the standard counts it (§4.1).
    pub size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: Name,
    /// The number that the value is, or 1 for a yes.
    value: Option<u16>,
    name_size: usize,
    /// As the standard counts it.
    size: usize,
}

/// One direction's table.
#[derive(Debug)]
pub struct Decoder {
    /// Newest first.
    table: VecDeque<Field>,
    size: usize,
    most: usize,
    scratch: Vec<u8>,
}

/// Lengths of the static table's names, from index 1 on.
#[rustfmt::skip]
const STATIC_NAMES: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17,
    13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3, 16,
];
/// Lengths of the static table's values, as far as there are any.
#[rustfmt::skip]
const STATIC_VALUES: [u8; 16] = [0, 3, 4, 1, 11, 4, 5, 3, 3, 3, 3, 3, 3, 3, 0, 13];
const STATIC_CONTENT_TYPE: usize = 31;
/// `:status` in the static table.
const STATIC_STATUS: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, most: TABLE_DEFAULT, scratch: Vec::new() }
    }
}

impl Decoder {
    /// Reads a whole block.
    pub fn read(&mut self, mut block: &[u8]) -> Result<Said, Malformed> {
        let mut said = Said::default();
        while let Some(first) = block.first() {
            let field = match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    self.indexed(index)?
                }
                0x40..=0x7f => {
                    let field = self.literal(&mut block, 6)?;
                    self.insert(field);
                    field
                }
                0x20..=0x3f => {
                    let most = integer(&mut block, 5)?;
                    if most > TABLE_MAX {
                        return Err(Malformed);
                    }
                    self.most = most;
                    self.evict(0);
                    continue;
                }
                _ => self.literal(&mut block, 4)?,
            };
            match field.name {
                Name::Status => said.status = field.value,
                Name::GrpcStatus => said.grpc_status = Some(field.value.unwrap_or(u16::MAX)),
                Name::Pod => said.asks_pod = field.value == Some(1),
                Name::ContentType => said.grpc = field.value == Some(1),
                Name::Other => {}
            }
            said.size = said.size.saturating_add(field.size);
        }
        Ok(said)
    }

    fn indexed(&self, index: usize) -> Result<Field, Malformed> {
        match index {
            0 => Err(Malformed),
            8..=14 => Ok(Field { name: Name::Status, value: Some(STATIC_STATUS[index - 8]), name_size: 7, size: 42 }),
            1..=61 => {
                let name = if index == STATIC_CONTENT_TYPE { Name::ContentType } else { Name::Other };
                let name_size = usize::from(STATIC_NAMES[index - 1]);
                let value_size = STATIC_VALUES.get(index - 1).copied().map_or(0, usize::from);
                Ok(Field { name, value: None, name_size, size: name_size + value_size + 32 })
            }
            _ => self.table.get(index - 62).copied().ok_or(Malformed),
        }
    }

    fn literal(&mut self, block: &mut &[u8], prefix: u32) -> Result<Field, Malformed> {
        let index = integer(block, prefix)?;
        let (name, name_size) = if index == 0 {
            string(block, &mut self.scratch)?;
            let name = match &self.scratch[..] {
                b"grpc-status" => Name::GrpcStatus,
                b"steadfast-pod" => Name::Pod,
                b":status" => Name::Status,
                b"content-type" => Name::ContentType,
                _ => Name::Other,
            };
            (name, self.scratch.len())
        } else {
            let known = self.indexed(index)?;
            (known.name, known.name_size)
        };
        string(block, &mut self.scratch)?;
        let value = match name {
            Name::Other => None,
            Name::Pod => (self.scratch == b"?1").then_some(1),
            Name::ContentType => self.scratch.starts_with(b"application/grpc").then_some(1),
            Name::Status | Name::GrpcStatus => std::str::from_utf8(&self.scratch).ok().and_then(|text| text.parse().ok()),
        };
        Ok(Field { name, value, name_size, size: name_size + self.scratch.len() + 32 })
    }

    fn insert(&mut self, field: Field) {
        self.evict(field.size);
        // One that is larger than the table empties it, and is not an error.
        if field.size <= self.most {
            self.size += field.size;
            self.table.push_front(field);
        }
    }

    /// Makes room for `coming` bytes.
    fn evict(&mut self, coming: usize) {
        while self.size + coming > self.most {
            let Some(oldest) = self.table.pop_back() else { return };
            self.size -= oldest.size;
        }
    }
}

/// An integer of `prefix` bits (§5.1), small enough for anything that a block can mean.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, mut rest) = block.split_first().ok_or(Malformed)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21] {
            let (byte, behind) = rest.split_first().ok_or(Malformed)?;
            rest = behind;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(Malformed);
    }
    *block = rest;
    Ok(value)
}

/// A string (§5.2), into `plain`.
fn string(block: &mut &[u8], plain: &mut Vec<u8>) -> Result<(), Malformed> {
    plain.clear();
    let coded = block.first().ok_or(Malformed)? & 0x80 != 0;
    let size = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(size).ok_or(Malformed)?;
    *block = rest;
    if coded {
        return huffman::decode(text, plain);
    }
    plain.extend_from_slice(text);
    Ok(())
}

/// A field that changes no table: any block may have it at its end. `None`: it is longer than anything of ours is.
pub fn never_indexed(name: &str, value: &str) -> Option<Vec<u8>> {
    let (name_size, size) = (u8::try_from(name.len()).ok().filter(|size| *size < 127)?, u8::try_from(value.len()).ok().filter(|size| *size < 127)?);
    Some([&[0x10, name_size], name.as_bytes(), &[size], value.as_bytes()].concat())
}

/// `:status`, likewise.
pub fn status(status: u16) -> Vec<u8> {
    [&[0x18, 3], status.to_string().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// RFC 7541 appendix C.6: three answers, Huffman, a table of 256 bytes.
    #[test]
    fn the_answers_of_the_standard_leave_the_table_as_it_says() {
        let mut decoder = Decoder { most: 256, ..Decoder::default() };
        for (block, status, size) in [
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                302,
                222,
            ),
            ("4883 640e ffc1 c0bf", 307, 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                200,
                215,
            ),
        ] {
            let said = decoder.read(&bytes(block)).unwrap();
            assert_eq!((said.status, decoder.size), (Some(status), size));
        }
    }

    #[test]
    fn what_the_relay_measures_by_is_found_literal_and_indexed() {
        let mut decoder = Decoder::default();
        let literal = [b"\x40\x0bgrpc-status\x0214".as_slice(), b"\x00\x0dsteadfast-pod\x02?1"].concat();
        let said = decoder.read(&literal).unwrap();
        assert_eq!((said.grpc_status, said.asks_pod), (Some(14), true));
        assert_eq!(decoder.read(&[0xbe]).unwrap(), Said { grpc_status: Some(14), size: 45, ..Said::default() });
        assert_eq!(decoder.read(b"\x08\x03503").unwrap().status, Some(503), "an indexed name");
        let typed = [b"\x5f\x16application/grpc+proto".as_slice(), b"\x83\xbe"].concat();
        assert_eq!(decoder.read(&typed).unwrap(), Said { grpc: true, size: 2 * (12 + 22 + 32) + 7 + 4 + 32, ..Said::default() });
        assert_eq!(decoder.read(&status(504)).unwrap().status, Some(504));
        let own = never_indexed("steadfast-pod", "?1").unwrap();
        let before = decoder.size;
        assert!(decoder.read(&own).unwrap().asks_pod && decoder.size == before);
    }

    #[test]
    fn a_table_shrinks_when_it_is_told_to_and_never_grows_beyond_its_bound() {
        let mut decoder = Decoder::default();
        decoder.read(b"\x40\x01a\x01b").unwrap();
        assert_eq!(decoder.size, 34);
        decoder.read(&[0x20]).unwrap();
        assert_eq!((decoder.size, decoder.table.len()), (0, 0));
        assert_eq!(decoder.read(&[0xbe]), Err(Malformed));
        assert_eq!(decoder.read(&[0x3f, 0xff, 0xff, 0xff, 0x7f]), Err(Malformed), "256 MiB");
    }

    #[test]
    fn what_is_no_block_is_malformed() {
        for block in [&[0x80][..], &[0xbe], &[0x40], b"\x40\x05a", b"\x00\x01a\x7f", &[0xff, 0xff, 0xff, 0xff, 0xff, 0x01]] {
            assert_eq!(Decoder::default().read(block), Err(Malformed), "{block:?}");
        }
    }

    proptest! {
        #[test]
        fn no_block_breaks_it_or_fills_memory(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoder.read(&block);
                prop_assert!(decoder.size <= TABLE_MAX && decoder.table.len() <= TABLE_MAX / 32);
            }
        }
    }
}
