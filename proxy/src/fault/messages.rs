//! Streams of gRPC messages (each behind a flag and its length), as far as faults need them: where one ends and the next begins.
//!
//! Invariant: put together again, the pieces are the stream, byte for byte.

use bytes::{Buf, Bytes, BytesMut};

/// Flag and length.
const PREFIX: usize = 5;

/// What of a stream stands together.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// One message behind its prefix.
    Message(Bytes),
    /// Bytes of a message that is too large to be kept until its end comes; `first`: its first ones.
    Part { bytes: Bytes, first: bool },
}

/// Cuts a stream behind every message.
#[derive(Debug)]
pub struct Splitter {
    kept: BytesMut,
    /// Bytes of a message that is too large which have not come yet.
    passing: usize,
    most: usize,
}

impl Splitter {
    /// `most`: bytes of a message, with its prefix, that are kept until its end comes.
    pub fn new(most: usize) -> Self {
        Self { kept: BytesMut::new(), passing: 0, most: most.max(PREFIX) }
    }

    /// What `bytes` complete.
    pub fn push(&mut self, mut bytes: Bytes) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.passing > 0 {
            let part = bytes.split_to(self.passing.min(bytes.len()));
            self.passing -= part.len();
            if !part.is_empty() {
                pieces.push(Piece::Part { bytes: part, first: false });
            }
        }
        self.kept.extend_from_slice(&bytes);
        while let Some(size) = self.size() {
            if size > self.most {
                let bytes = self.kept.split_to(size.min(self.kept.len())).freeze();
                self.passing = size - bytes.len();
                pieces.push(Piece::Part { bytes, first: true });
            } else if size <= self.kept.len() {
                pieces.push(Piece::Message(self.kept.split_to(size).freeze()));
            } else {
                break;
            }
        }
        pieces
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// What is left when the stream ends.
    pub fn finish(&mut self) -> Option<Piece> {
        self.kept.has_remaining().then(|| Piece::Part { bytes: self.kept.split().freeze(), first: false })
    }

    /// Of the message that begins `kept`, as soon as it is known.
    fn size(&self) -> Option<usize> {
        let [_, length @ ..] = self.kept.first_chunk::<PREFIX>()?;
        Some(PREFIX + u32::from_be_bytes(*length) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(size: usize) -> Vec<u8> {
        [&[0][..], &(size as u32).to_be_bytes(), &vec![7; size]].concat()
    }

    fn split(stream: &[u8], size: usize, most: usize) -> Vec<Piece> {
        let mut splitter = Splitter::new(most);
        let mut pieces: Vec<_> = stream.chunks(size).flat_map(|bytes| splitter.push(Bytes::copy_from_slice(bytes))).collect();
        pieces.extend(splitter.finish());
        pieces
    }

    #[test]
    fn messages_come_whole_however_they_arrive_but_for_those_that_are_too_large() {
        let stream = [message(0), message(10), message(100), message(3)].concat();
        for size in 1..stream.len() {
            let pieces = split(&stream, size, 50);
            let whole: Vec<_> = pieces.iter().filter_map(|piece| if let Piece::Message(bytes) = piece { Some(bytes.len() - PREFIX) } else { None }).collect();
            assert_eq!(whole, [0, 10, 3], "in pieces of {size}");
            assert_eq!(pieces.iter().filter(|piece| matches!(piece, Piece::Part { first: true, .. })).count(), 1);
        }
    }

    proptest! {
        #[test]
        fn the_pieces_together_are_the_stream(
            sizes in prop::collection::vec(0_usize..60, 0..6), rest in prop::collection::vec(any::<u8>(), 0..8), size in 1_usize..40, most in 0_usize..80,
        ) {
            let stream: Vec<u8> = sizes.into_iter().flat_map(message).chain(rest).collect();
            let pieces = split(&stream, size, most);
            let together: Vec<u8> = pieces.into_iter().flat_map(|piece| match piece { Piece::Message(bytes) | Piece::Part { bytes, .. } => bytes }).collect();
            prop_assert_eq!(together, stream);
        }
    }
}
