//! What reads bytes that others made, reachable from outside the crate so that it can be fuzzed (`fuzz/`). No interface: it changes with what it leads to.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::{SeedableRng, rngs::StdRng};
use steadfast_api::{
    Percent,
    fault::{EventChange, TensorChange},
    policy::NamedPolicy,
};

use crate::{
    fault::{
        corrupt::{self, Kind, values::Change},
        envoy, events, header,
        policy::CompiledPolicy,
    },
    relay::{self, http1::head, http2},
};

pub use crate::{
    fault::events::Splitter,
    relay::{
        Protocol,
        http1::head::{Framing, Read},
    },
};

/// What a connection speaks by its first bytes.
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    relay::protocol(bytes)
}

/// One message at the start of some bytes, as far as the relay understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub head: usize,
    pub framing: Framing,
    /// The connection may be used again.
    pub persistent: bool,
    /// No other protocol is asked for.
    pub plain: bool,
}

/// A request's head.
pub fn request(bytes: &[u8]) -> Read<Message> {
    match head::request(bytes) {
        Read::Whole(found) => {
            Read::Whole(Message { head: found.size, framing: found.framing, persistent: found.persistent, plain: !found.upgrade && !found.stack })
        }
        Read::Partial => Read::Partial,
        Read::Long => Read::Long,
        Read::Odd => Read::Odd,
    }
}

/// A response's head; `head`: in answer to HEAD.
pub fn response(bytes: &[u8], head: bool) -> Read<Message> {
    match head::response(bytes, head) {
        Read::Whole(found) => Read::Whole(Message { head: found.size, framing: found.framing, persistent: found.persistent, plain: found.status != 101 }),
        Read::Partial => Read::Partial,
        Read::Long => Read::Long,
        Read::Odd => Read::Odd,
    }
}

/// One direction of an HTTP/2 connection: every frame's kind and stream, and what its header block said. `None`: it is not understood.
pub fn frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<(u8, u32, usize)>, bool) {
    http2::read_along(pieces)
}

/// A decoder of header blocks.
#[derive(Default)]
pub struct Hpack(http2::Decoder);

impl Hpack {
    /// `:status` and the size of the list; `None`: not a block.
    pub fn read(&mut self, block: &[u8]) -> Option<(Option<u16>, usize)> {
        self.0.read(block).ok().map(|said| (said.status, said.size))
    }
}

/// What a text in HPACK's Huffman code says.
pub fn huffman(coded: &[u8]) -> Option<Vec<u8>> {
    http2::huffman(coded)
}

/// `steadfast-fault`: how many faults it asks for.
pub fn fault_header(value: &[u8]) -> Option<usize> {
    header::parse([&HeaderValue::from_bytes(value).ok()?]).ok().map(|faults| faults.len())
}

/// Envoy's headers, as lines of a name and a value.
pub fn envoy_headers(lines: &[u8]) -> Option<usize> {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next()?, parts.next().unwrap_or_default());
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    envoy::parse(&headers).ok().map(|faults| faults.len())
}

/// A policy, checked as when it is armed.
pub fn policy(policy: NamedPolicy) -> bool {
    CompiledPolicy::new(policy, "policy", 0).is_ok()
}

/// An answer with wrong values. `json`: length of the JSON part of a binary one; `None` for gRPC with `grpc`, else all JSON.
pub fn corrupt(json: Option<usize>, grpc: bool, body: &[u8], how: TensorChange, seed: u64) -> Option<(Vec<u8>, Option<usize>)> {
    let kind = match json {
        Some(length) => Kind::Binary(length),
        None if grpc => Kind::Grpc,
        None => Kind::Json,
    };
    let changed = corrupt::corrupt(&kind, body, Change { how, magnitude: 0.1 }, &mut StdRng::seed_from_u64(seed))?;
    Some((changed.bytes.to_vec(), changed.json_length))
}

/// What becomes of an event.
pub fn event(event: &[u8], change: EventChange) -> Option<Vec<Vec<u8>>> {
    let changed = events::change(&event.to_vec().into(), change, Percent::HUNDRED, &mut StdRng::seed_from_u64(1))?;
    Some(changed.iter().map(|event| event.to_vec()).collect())
}
