//! As much of HTTP/2 as a measurement needs, for both ends: frames, and the windows that a sender must keep to. Header blocks are constants, written as a client and a server
//! write them that use the table: whole the first time, one byte a field from then on.

/// What a client says first (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A message of 100 bytes as gRPC frames it.
pub(crate) const MESSAGE: [u8; 105] = {
    let mut message = [b'm'; 105];
    (message[0], message[1], message[2], message[3], message[4]) = (0, 0, 0, 0, 100);
    message
};
/// The window that both sides give for the whole connection, and for each stream.
const WINDOW: u32 = 1 << 30;
/// Bytes that were taken before the connection's window is opened again.
const OPEN_AFTER: usize = 1 << 20;
/// The table that a sender may use where nothing else was said.
const TABLE: u32 = 4096;

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Appends one frame.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Names and values that go into the table in this order, behind `indexed`, which stand in the static one.
struct Block {
    indexed: &'static [u8],
    fields: &'static [(&'static str, &'static str)],
}

const REQUEST: Block = Block {
    // POST, http
    indexed: &[0x83, 0x86],
    fields: &[
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "model.example"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "grpc-c++/1.70.0"),
    ],
};
// 200
const RESPONSE: Block = Block { indexed: &[0x88], fields: &[("content-type", "application/grpc")] };
const TRAILERS: Block = Block { indexed: &[], fields: &[("grpc-status", "0")] };

impl Block {
    /// `first`: the fields' own bytes; later their places, of which `behind` are taken by fields that came after them.
    fn write(&self, first: bool, table: bool, behind: usize) -> Vec<u8> {
        let mut out = self.indexed.to_vec();
        for (at, (name, value)) in self.fields.iter().enumerate() {
            if table && !first {
                out.push(0x80 | (62 + behind + self.fields.len() - 1 - at) as u8);
                continue;
            }
            out.push(if table { 0x40 } else { 0 });
            for text in [name, value] {
                out.push(text.len() as u8);
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }
}

/// What has come, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Everything has been said on this stream.
    Ended(u32),
    /// It was given up.
    Reset(u32),
    /// The other side says goodbye.
    Goes,
}

/// One end of a connection.
#[expect(clippy::struct_excessive_bools, reason = "facts do not exclude each other")]
pub(crate) struct End {
    server: bool,
    /// Bytes that have come and are no whole frame.
    held: Vec<u8>,
    /// To be written.
    pub(crate) out: Vec<u8>,
    /// What may be sent before the other side says more.
    credit: i64,
    taken: usize,
    /// The other side has said what it wants.
    pub(crate) settled: bool,
    table: bool,
    spoken: bool,
    /// Blocks that were cut into several frames are not for us to read, and end with this flag.
    ends_stream: bool,
}

impl End {
    pub(crate) fn new(server: bool) -> Self {
        let mut out = if server { Vec::new() } else { PREFACE.to_vec() };
        let mut settings = Vec::new();
        // No push, many streams, a large window for each.
        for (name, value) in [(2_u16, 0_u32), (3, 1000), (4, WINDOW)].into_iter().skip(usize::from(server)) {
            settings.extend_from_slice(&name.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame(&mut out, kind::SETTINGS, 0, 0, &settings);
        frame(&mut out, kind::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        Self { server, held: Vec::new(), out, credit: 65_535, taken: 0, settled: false, table: true, spoken: false, ends_stream: false }
    }

    /// Whether another message may be sent.
    pub(crate) const fn may_send(&self) -> bool {
        self.settled && self.credit >= MESSAGE.len() as i64
    }

    /// A whole request, or the whole answer to one.
    pub(crate) fn send(&mut self, stream: u32) {
        let first = !std::mem::replace(&mut self.spoken, true);
        let block = if self.server { RESPONSE.write(first, self.table, 1) } else { REQUEST.write(first, self.table, 0) };
        frame(&mut self.out, kind::HEADERS, END_HEADERS, stream, &block);
        frame(&mut self.out, kind::DATA, if self.server { 0 } else { END_STREAM }, stream, &MESSAGE);
        self.credit -= MESSAGE.len() as i64;
        if self.server {
            frame(&mut self.out, kind::HEADERS, END_HEADERS | END_STREAM, stream, &TRAILERS.write(first, self.table, 0));
        }
    }

    /// Reads `bytes` and tells `event` what they say.
    pub(crate) fn heard(&mut self, bytes: &[u8], mut event: impl FnMut(Event)) {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let mut rest = &held[..];
        while let Some((head, after)) = rest.split_first_chunk::<9>() {
            let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, after)) = after.split_at_checked(size) else { break };
            rest = after;
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            self.one(head[3], head[4], stream, payload, &mut event);
        }
        self.held = rest.to_vec();
    }

    fn one(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], event: &mut impl FnMut(Event)) {
        match kind {
            kind::DATA => {
                self.taken += payload.len();
                if self.taken >= OPEN_AFTER {
                    frame(&mut self.out, kind::WINDOW_UPDATE, 0, 0, &(self.taken as u32).to_be_bytes());
                    self.taken = 0;
                }
                if flags & END_STREAM != 0 {
                    event(Event::Ended(stream));
                }
            }
            kind::HEADERS => {
                self.ends_stream = flags & END_STREAM != 0;
                if self.ends_stream && flags & END_HEADERS != 0 {
                    event(Event::Ended(stream));
                }
            }
            // CONTINUATION
            9 if flags & END_HEADERS != 0 && self.ends_stream => event(Event::Ended(stream)),
            kind::RST_STREAM => event(Event::Reset(stream)),
            kind::SETTINGS if flags & ACK == 0 => {
                for setting in payload.as_chunks::<6>().0 {
                    let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                    if setting[..2] == [0, 1] && value < TABLE {
                        self.table = false;
                    }
                }
                self.settled = true;
                frame(&mut self.out, kind::SETTINGS, ACK, 0, &[]);
            }
            kind::PING if flags & ACK == 0 => frame(&mut self.out, kind::PING, ACK, 0, payload),
            kind::WINDOW_UPDATE if stream == 0 => {
                if let Some(more) = payload.first_chunk::<4>() {
                    self.credit += i64::from(u32::from_be_bytes(*more));
                }
            }
            kind::GOAWAY => event(Event::Goes),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ends_understand_each_other_however_the_bytes_are_cut() {
        let (mut client, mut server) = (End::new(false), End::new(true));
        server.heard(&std::mem::take(&mut client.out)[PREFACE.len()..], |_| {});
        client.heard(&std::mem::take(&mut server.out), |_| {});
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        for stream in [1, 3, 5] {
            assert!(client.may_send());
            client.send(stream);
            for byte in std::mem::take(&mut client.out) {
                server.heard(&[byte], |event| asked.push(event));
            }
            server.send(stream);
            for byte in std::mem::take(&mut server.out) {
                client.heard(&[byte], |event| answered.push(event));
            }
        }
        assert_eq!(asked, [Event::Ended(1), Event::Ended(3), Event::Ended(5)]);
        assert_eq!(answered, asked);
    }

    #[test]
    fn a_field_is_named_by_its_place_once_the_table_has_it() {
        assert_eq!(TRAILERS.write(false, true, 0), [0xbe]);
        assert_eq!(RESPONSE.write(false, true, 1), [0x88, 0xbf]);
        assert_eq!(REQUEST.write(false, true, 0), [0x83, 0x86, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
        assert!(RESPONSE.write(true, false, 1).starts_with(&[0x88, 0, 12]));
    }

    #[test]
    fn nothing_is_sent_that_the_window_does_not_hold() {
        let mut client = End::new(false);
        assert!(!client.may_send(), "before the server's settings");
        client.settled = true;
        let mut sent = 0;
        while client.may_send() {
            client.send(2 * sent + 1);
            sent += 1;
        }
        assert_eq!(sent as usize, 65_535 / MESSAGE.len());
        let mut more = Vec::new();
        frame(&mut more, kind::WINDOW_UPDATE, 0, 0, &200_u32.to_be_bytes());
        client.heard(&more, |_| {});
        assert!(client.may_send());
    }
}
