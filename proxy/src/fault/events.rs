//! Event streams (server-sent events, WHATWG HTML §9.2), as far as faults need them: where one event ends and the next begins, and events that are wrong.
//!
//! Invariant: put together again, the pieces are the stream, byte for byte, as long as nothing is changed.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use rand::Rng;
use steadfast_api::{Percent, fault::EventChange};

use super::draw;

/// Bytes that are kept of an event whose end has not come; a longer one passes in pieces.
const EVENT_MAX: usize = 1 << 20;
/// Names of events that say that a stream is complete.
const END_NAMES: [&[u8]; 3] = [b"message_stop", b"done", b"end"];

pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Cuts a stream behind every event's blank line.
#[derive(Debug, Default)]
pub struct Splitter {
    kept: BytesMut,
    /// Bytes of `kept` in which no end was found.
    looked: usize,
}

impl Splitter {
    /// The events that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        self.kept.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = end_of_event(&self.kept, self.looked) {
            events.push(self.kept.split_to(end).freeze());
            self.looked = 0;
        }
        if self.kept.len() > EVENT_MAX {
            events.push(self.kept.split().freeze());
        }
        // A blank line may be half here: four bytes at most.
        self.looked = self.kept.len().saturating_sub(3);
        events
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// What is left when the stream ends.
    pub fn finish(&mut self) -> Option<Bytes> {
        self.looked = 0;
        (!self.kept.is_empty()).then(|| self.kept.split().freeze())
    }
}

/// Where the first blank line that ends at or behind `from` is over. Lines end by LF, CRLF or CR; a CR at the very end may be half of a CRLF, so it is waited for.
fn end_of_event(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len()).find_map(|i| match bytes[i..] {
        [b'\n' | b'\r', b'\r', b'\n', ..] => Some(i + 3),
        [b'\n', b'\n', ..] | [b'\r', b'\r', _, ..] => Some(i + 2),
        [b'\r', b'\n', b'\r', b'\n', ..] => Some(i + 4),
        _ => None,
    })
}

/// The value of an event's field, without the space that may stand before it.
fn field<'a>(event: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    event.split(|byte| matches!(byte, b'\n' | b'\r')).find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(b":")?;
        Some(value.strip_prefix(b" ").unwrap_or(value))
    })
}

fn is_end(event: &[u8]) -> bool {
    field(event, b"data").is_some_and(|data| data.trim_ascii() == b"[DONE]")
        || field(event, b"event").is_some_and(|name| END_NAMES.contains(&name.trim_ascii()))
}

/// What `change` makes of `event`; `None`: it stays as it is. Comments carry nothing and stay, and what ends the stream is for `noEnd` alone.
pub fn change(event: &Bytes, change: EventChange, share: Percent, rng: &mut impl Rng) -> Option<Vec<Bytes>> {
    let data = field(event, b"data")?;
    if change == EventChange::NoEnd {
        return is_end(event).then(Vec::new);
    }
    if is_end(event) || !draw::happens(rng, share) {
        return None;
    }
    match change {
        EventChange::Drop => Some(Vec::new()),
        EventChange::Duplicate => Some(vec![event.clone(), event.clone()]),
        EventChange::Malformed => {
            // The first half of the data, at a character's end, with everything around it.
            let begins = data.as_ptr() as usize - event.as_ptr() as usize;
            let half = (0..=data.len() / 2).rev().find(|at| data.get(*at).is_none_or(|byte| byte & 0xC0 != 0x80)).unwrap_or(0);
            (!data.is_empty()).then(|| vec![[&event[..begins + half], &event[begins + data.len()..]].concat().into()])
        }
        EventChange::NoEnd => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<Bytes> {
        let mut splitter = Splitter::default();
        let mut events: Vec<Bytes> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
        events.extend(splitter.finish());
        events
    }

    #[test]
    fn events_end_with_a_blank_line_however_lines_end_and_whatever_the_pieces_are() {
        for stream in ["data: a\n\ndata: b\n\nrest", "data: a\r\n\r\ndata: b\r\n\r\nrest", "data: a\r\rdata: b\r\rrest", "data: a\n\r\ndata: b\n\r\nrest"] {
            let bytes = stream.as_bytes();
            for size in 1..bytes.len() {
                let events = split(&bytes.chunks(size).collect::<Vec<_>>());
                assert_eq!(events.len(), 3, "{stream:?} in pieces of {size}: {events:?}");
                assert!(events[0].starts_with(b"data: a") && events[1].starts_with(b"data: b") && events[2] == "rest");
            }
        }
    }

    #[test]
    fn each_change_does_what_it_says_and_the_end_is_for_no_end_alone() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut changed = |event: &'static str, what| change(&Bytes::from_static(event.as_bytes()), what, Percent::HUNDRED, &mut rng);
        let token = "id: 7\ndata: {\"token\":\"hé\"}\n\n";
        assert_eq!(changed(token, EventChange::Drop), Some(vec![]));
        assert_eq!(changed(token, EventChange::Duplicate), Some(vec![Bytes::from_static(token.as_bytes()); 2]));
        assert_eq!(changed(token, EventChange::Malformed), Some(vec![Bytes::from_static(b"id: 7\ndata: {\"token\n\n")]));
        for end in ["data: [DONE]\n\n", "event: message_stop\ndata: {}\n\n"] {
            assert_eq!(changed(end, EventChange::NoEnd), Some(vec![]));
            for other in [EventChange::Drop, EventChange::Duplicate, EventChange::Malformed] {
                assert_eq!(changed(end, other), None);
            }
        }
        assert_eq!(changed(token, EventChange::NoEnd), None);
        assert_eq!(changed(": keep alive\n\n", EventChange::Drop), None);
        assert_eq!(change(&Bytes::from_static(token.as_bytes()), EventChange::Drop, Percent::ZERO, &mut StdRng::seed_from_u64(1)), None);
    }

    proptest! {
        #[test]
        fn the_pieces_together_are_the_stream(stream in "[a\r\n:]{0,200}", size in 1_usize..50) {
            let events = split(&stream.as_bytes().chunks(size).collect::<Vec<_>>());
            prop_assert_eq!(events.concat(), stream.as_bytes());
        }

        #[test]
        fn a_malformed_event_is_the_event_without_the_half_of_its_data(text in "\\PC{1,40}") {
            let event = Bytes::from(format!("data: {text}\n\n"));
            if let Some(made) = change(&event, EventChange::Malformed, Percent::HUNDRED, &mut StdRng::seed_from_u64(1)) {
                let made = String::from_utf8(made.concat()).unwrap();
                prop_assert!(made.starts_with("data: ") && made.ends_with("\n\n") && made.len() < event.len());
            }
        }
    }
}
