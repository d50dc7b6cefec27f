//! What a head says about where its message ends, and whether the relay may pass it: read along, never changed.
//!
//! A request that could be read in two ways is refused, by the stack, whoever has met it ([`Guarded`](super::Guarded)); one that has a meaning which the relay should not decide on
//! is the stack's. So relay and stack give one answer to it.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig, Status};

use super::chunked::{Chunked, Malformed};

/// Bytes of one head.
pub const HEAD_MAX: usize = 64 << 10;
/// Fields of one request head, as in the stack; a response may have more.
pub const FIELDS_MAX: usize = 128;
const RESPONSE_FIELDS_MAX: usize = 256;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked(Chunked),
    /// With the connection.
    UntilClose,
}

impl Framing {
    pub const NONE: Self = Self::Length(0);

    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_end(),
            Self::UntilClose => false,
        }
    }

    /// Reads `bytes` along. How many of them belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let here = (*left).min(bytes.len() as u64);
                *left -= here;
                Ok(here as usize)
            }
            Self::Chunked(chunked) => chunked.take(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }
}

/// A head, as far as it has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Read<T> {
    Whole(T),
    Partial,
    /// Longer than it may be, or with more fields.
    Long,
    /// Not understood.
    Odd,
}

/// What the relay needs to know of a request.
#[expect(clippy::struct_excessive_bools, reason = "facts do not exclude each other")]
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub size: usize,
    pub framing: Framing,
    /// HEAD: its response has no body.
    pub head: bool,
    /// It asks for another protocol.
    pub upgrade: bool,
    /// The connection may be used again after it.
    pub persistent: bool,
    /// Its path belongs to the Open Inference Protocol.
    pub oip: bool,
    /// It has one length and one meaning, but that is for the stack to find: it asks the sidecar itself, or says twice what is to be said once.
    pub stack: bool,
}

/// Reads a request's head at the start of `bytes`. Whatever is not plainly one message is [`Read::Odd`].
pub fn request(bytes: &[u8]) -> Read<RequestHead> {
    let mut fields = [MaybeUninit::uninit(); FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let size = match ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(Status::Complete(size)) => size,
        Ok(Status::Partial) if bytes.len() < HEAD_MAX => return Read::Partial,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Read::Long,
        Err(_) => return Read::Odd,
    };
    if size > HEAD_MAX {
        return Read::Long;
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else { return Read::Odd };
    read_request(method, target, minor, parsed.headers, &bytes[..size]).map_or(Read::Odd, Read::Whole)
}

fn read_request(method: &str, target: &str, minor: u8, fields: &[Header<'_>], head: &[u8]) -> Option<RequestHead> {
    if !ends_lines_with_crlf(head) {
        return None;
    }
    let (mut host, mut length, mut chunked, mut upgrade) = (None, None, false, false);
    // A tunnel is refused in words.
    let mut stack = method == "CONNECT";
    let mut persists = Persists::default();
    for Header { name, value } in fields {
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                if !is_host(value) {
                    return None;
                }
                stack |= host.replace(*value).is_some();
            }
            7 if name.eq_ignore_ascii_case("upgrade") => {
                // Behind this nobody would look into the connection any more; the stack goes on as if it had not been asked.
                stack |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"h2c"));
                upgrade = true;
            }
            10 if name.eq_ignore_ascii_case("connection") => persists.read(value),
            14 if name.eq_ignore_ascii_case("content-length") => {
                let number = number(value)?;
                if let Some(before) = length.replace(number) {
                    if before != number {
                        return None;
                    }
                    stack = true;
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || minor == 0 || !value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                chunked = true;
            }
            // What the sidecar is asked itself, it answers in the stack: which pod it is, a fault. The model server sees neither.
            11.. if name.as_bytes()[..10].eq_ignore_ascii_case(b"steadfast-") => stack = true,
            _ => {}
        }
    }
    let path = match (target.as_bytes()[0], target.find("://")) {
        (b'/', _) => target,
        (b'*', _) if target == "*" => target,
        (_, Some(at)) => {
            // An absolute target and a Host that disagree are two hosts.
            let rest = &target[at + 3..];
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            stack |= host != Some(authority.as_bytes());
            path
        }
        _ if method == "CONNECT" => target,
        // Neither a path nor a URL.
        _ => return None,
    };
    stack |= minor == 1 && host.is_none();
    if chunked && length.is_some() {
        return None;
    }
    let framing = if chunked { Framing::Chunked(Chunked::default()) } else { Framing::Length(length.unwrap_or(0)) };
    let oip = path == "/v2" || path.starts_with("/v2/") || path.starts_with("/v2?");
    let persistent = persists.is_so(minor);
    Some(RequestHead { size: head.len(), framing, head: method == "HEAD", upgrade, persistent, oip, stack })
}

/// What the relay needs to know of a response.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub size: usize,
    pub status: u16,
    pub framing: Framing,
    pub persistent: bool,
}

impl ResponseHead {
    /// The answer itself comes behind it.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Reads a response's head at the start of `bytes`; `head`: in answer to HEAD.
pub fn response(bytes: &[u8], head: bool) -> Read<ResponseHead> {
    let mut fields = [MaybeUninit::uninit(); RESPONSE_FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let size = match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(Status::Complete(size)) => size,
        Ok(Status::Partial) if bytes.len() < HEAD_MAX => return Read::Partial,
        Ok(Status::Partial) | Err(_) => return Read::Odd,
    };
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else { return Read::Odd };
    let (mut length, mut coding, mut chunked) = (None, false, false);
    let mut persists = Persists::default();
    for Header { name, value } in parsed.headers.iter() {
        match name.len() {
            10 if name.eq_ignore_ascii_case("connection") => persists.read(value),
            14 if name.eq_ignore_ascii_case("content-length") => {
                let Some(number) = number(value) else { return Read::Odd };
                if length.replace(number).is_some_and(|before| before != number) {
                    return Read::Odd;
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                coding = true;
                chunked = tokens(value).last().is_some_and(|token| token.eq_ignore_ascii_case(b"chunked"));
            }
            _ => {}
        }
    }
    let framing = match (status, length) {
        _ if head => Framing::NONE,
        (100..=199 | 204 | 304, _) => Framing::NONE,
        _ if chunked => Framing::Chunked(Chunked::default()),
        _ if coding => Framing::UntilClose,
        (_, Some(length)) => Framing::Length(length),
        (_, None) => Framing::UntilClose,
    };
    // A length beside a coding is somebody's mistake: what follows on this connection is not to be believed.
    let persistent = persists.is_so(minor) && framing != Framing::UntilClose && !(coding && length.is_some()) && ends_lines_with_crlf(&bytes[..size]);
    Read::Whole(ResponseHead { size, status, framing, persistent })
}

/// A lone LF is a line's end to some and not to others. A lone CR the parser has refused already.
#[expect(clippy::naive_bytecount, reason = "heads are short")]
fn ends_lines_with_crlf(head: &[u8]) -> bool {
    let count = |byte: u8| head.iter().filter(|found| **found == byte).count();
    count(b'\r') == count(b'\n')
}

/// Whether `value` is what a Host field may say (RFC 9112 §3.2): a host as in a URL, with a port or without; nothing, where a target has none.
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        // An address of IPv6 has colons of its own.
        Some(at) if !value[at..].contains(&b']') => (&value[..at], &value[at + 1..]),
        _ => (value, &[][..]),
    };
    let of_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    host.iter().all(of_host) && port.iter().all(u8::is_ascii_digit)
}

/// Digits and nothing else, few enough to be a number of bytes.
fn number(value: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// What all `Connection` fields of a message say together.
#[derive(Default)]
struct Persists {
    close: bool,
    keep_alive: bool,
}

impl Persists {
    fn read(&mut self, value: &[u8]) {
        self.close |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"close"));
        // In letters that no token has, others may not find it, and end the connection.
        let plain = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
        self.keep_alive |= plain && tokens(value).any(|token| token.eq_ignore_ascii_case(b"keep-alive"));
    }

    /// `close` wins, wherever it stands.
    const fn is_so(&self, minor: u8) -> bool {
        !self.close && (minor == 1 || self.keep_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole<T: std::fmt::Debug>(read: Read<T>) -> T {
        match read {
            Read::Whole(head) => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn odd_but_legal_requests_pass() {
        for (head, framing, persistent) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Framing::NONE, true),
            ("\r\nGET / HTTP/1.1\r\nHoSt:\ta \r\n\r\n", Framing::NONE, true),
            ("GET /?a=://b HTTP/1.1\r\nhost:\r\n\r\n", Framing::NONE, true),
            ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", Framing::NONE, true),
            ("GET http://a:80/x HTTP/1.1\r\nhost: a:80\r\n\r\n", Framing::NONE, true),
            ("GET / HTTP/1.0\r\n\r\n", Framing::NONE, false),
            ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", Framing::NONE, true),
            ("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nconnection: keep-alive\r\n\r\n", Framing::NONE, false),
            ("M-SEARCH / HTTP/1.1\r\nhost: a\r\nx: é\r\nconnection: te, close\r\n\r\n", Framing::NONE, false),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 007\r\n\r\n", Framing::Length(7), true),
            ("PUT / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked(Chunked::default()), true),
        ] {
            let read = whole(request([head.as_bytes(), b"GET"].concat().as_slice()));
            assert_eq!((read.size, read.framing, read.persistent), (head.len(), framing, persistent), "{head:?}");
        }
    }

    #[test]
    fn what_has_one_meaning_that_the_relay_should_not_decide_on_is_the_stacks() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nupgrade: x, h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nSteadfast-Pod: ?1\r\n\r\n",
        ] {
            let read = whole(request(head.as_bytes()));
            assert!(read.stack && read.size == head.len(), "{head:?}");
        }
        assert!(!whole(request(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")).stack);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_nobodys() {
        for head in [
            "GET a HTTP/1.1\r\nhost: b\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\nx: 1\r\n content-length: 1\r\n\r\n",
            "GET / HTTP/1.1\nhost: a\n\n",
            "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\rx: y\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n",
            "GET / HTTP/2.0\r\nhost: a\r\n\r\n",
        ] {
            assert_eq!(request(head.as_bytes()), Read::Odd, "{head:?}");
        }
        assert_eq!(request(b"GET / HTTP/1.1\r\nhost: "), Read::Partial);
        assert_eq!(request(&[b"GET / HTTP/1.1\r\nx: ".as_slice(), &vec![b'x'; HEAD_MAX]].concat()), Read::Long, "bounded");
        assert_eq!(request(format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(FIELDS_MAX + 1)).as_bytes()), Read::Long, "bounded");
    }

    #[test]
    fn a_response_ends_as_the_standard_says() {
        for (text, head, status, framing, persistent) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", false, 200, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true, 200, Framing::NONE, true),
            ("HTTP/1.1 304 \r\ncontent-length: 5\r\n\r\n", false, 304, Framing::NONE, true),
            ("HTTP/1.1 204\r\n\r\n", false, 204, Framing::NONE, true),
            ("HTTP/1.1 100 Continue\r\n\r\n", false, 100, Framing::NONE, true),
            ("HTTP/1.1 200 OK\r\n\r\n", false, 200, Framing::UntilClose, false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", false, 200, Framing::Length(1), false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", false, 200, Framing::Chunked(Chunked::default()), true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n", false, 200, Framing::Chunked(Chunked::default()), false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", false, 200, Framing::UntilClose, false),
            ("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nconnection: close\r\ncontent-length: 1\r\n\r\n", false, 200, Framing::Length(1), false),
        ] {
            let read = whole(response(text.as_bytes(), head));
            assert_eq!((read.size, read.status, read.framing, read.persistent), (text.len(), status, framing, persistent), "{text:?}");
        }
        assert_eq!(response(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", false), Read::Odd);
        assert_eq!(response(b"ICY 200 OK\r\n\r\n", false), Read::Odd);
    }
}
