//! Messages that two readers could read in two ways. Each has one answer, the same whether something is armed or not, and none reaches the model server as anything but one
//! plain message; `docs/limits.md` has the table.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{PATIENCE, Server, Sidecar},
    seam::WAITING,
};

/// What is sent, and what comes of it: the statuses of the answers, and whether the connection is closed behind the last one.
struct Case {
    what: &'static str,
    sent: String,
    answers: &'static str,
}

fn case(what: &'static str, sent: impl Into<String>, answers: &'static str) -> Case {
    Case { what, sent: sent.into(), answers }
}

/// A POST of five bytes with these fields.
fn fields(fields: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello")
}

/// A POST in chunks, with these fields.
fn coded(fields: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
}

/// A POST with this body.
fn chunks(body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn get(head: &str) -> String {
    format!("{head}\r\n\r\n")
}

const REFUSED: &str = "400 closed";
const PASSES: &str = "200";

fn corpus() -> Vec<Case> {
    vec![
        // Lengths.
        case("one length", fields("Content-Length: 5"), PASSES),
        case("a length with zeros before it", fields("Content-Length: 0005"), PASSES),
        case("white space around a length", fields("Content-Length: \t5 \t"), PASSES),
        case("the same length twice", fields("Content-Length: 5\r\nContent-Length: 5"), PASSES),
        case("two lengths", fields("Content-Length: 5\r\nContent-Length: 6"), REFUSED),
        case("a list of one length", fields("Content-Length: 5, 5"), REFUSED),
        case("a list of lengths", fields("Content-Length: 5, 6"), REFUSED),
        case("a length with a sign", fields("Content-Length: +5"), REFUSED),
        case("a negative length", fields("Content-Length: -5"), REFUSED),
        case("a hexadecimal length", fields("Content-Length: 0x5"), REFUSED),
        case("a length with a fraction", fields("Content-Length: 5.0"), REFUSED),
        case("a length with a letter", fields("Content-Length: 5a"), REFUSED),
        case("an empty length", fields("Content-Length:"), REFUSED),
        case("a length in other digits", fields("Content-Length: \u{665}"), REFUSED),
        case("a length beyond 64 bits", fields("Content-Length: 18446744073709551621"), REFUSED),
        case("a space before a length's colon", fields("Content-Length : 5"), REFUSED),
        case("a tab before a length's colon", fields("Content-Length\t: 5"), REFUSED),
        case("a vertical tab before a length", fields("Content-Length:\u{b}5"), REFUSED),
        case("a length named in Connection", fields("Content-Length: 5\r\nConnection: content-length"), PASSES),
        case(
            "a GET with a body that looks like a request",
            "GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 37\r\n\r\nGET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n",
            "200",
        ),
        case("two requests one behind the other", get("GET /x HTTP/1.1\r\nHost: a").repeat(2), "200 200"),
        // Codings.
        case("chunked", coded("Transfer-Encoding: chunked"), PASSES),
        case("CHUNKED", coded("TRANSFER-ENCODING: CHUNKED"), PASSES),
        case("a length before a coding", coded("Content-Length: 5\r\nTransfer-Encoding: chunked"), REFUSED),
        case("a length behind a coding", coded("Transfer-Encoding: chunked\r\nContent-Length: 5"), REFUSED),
        case("chunked twice in one field", coded("Transfer-Encoding: chunked, chunked"), REFUSED),
        case("chunked twice", coded("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), REFUSED),
        case("chunked, then identity", coded("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"), REFUSED),
        case("identity, then chunked", coded("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"), REFUSED),
        case("another coding and chunked", coded("Transfer-Encoding: gzip, chunked"), REFUSED),
        case("chunked and another coding", coded("Transfer-Encoding: chunked, gzip"), REFUSED),
        case("identity", coded("Transfer-Encoding: identity"), REFUSED),
        case("an unknown coding", coded("Transfer-Encoding: xchunked"), REFUSED),
        case("an empty coding", coded("Transfer-Encoding:"), REFUSED),
        case("a comma before chunked", coded("Transfer-Encoding: , chunked"), REFUSED),
        case("chunked in quotes", coded("Transfer-Encoding: \"chunked\""), REFUSED),
        case("chunked with a parameter", coded("Transfer-Encoding: chunked;q=1"), REFUSED),
        case("a vertical tab before chunked", coded("Transfer-Encoding: \u{b}chunked"), REFUSED),
        case("a space before a coding's colon", coded("Transfer-Encoding : chunked"), REFUSED),
        case("a coding on a line of its own", coded("Transfer-Encoding:\r\n chunked"), REFUSED),
        case("a coding behind a lone LF", coded("X: y\nTransfer-Encoding: chunked"), REFUSED),
        case("a coding with an underscore, which is another field", coded("Transfer_Encoding: chunked"), "200 400 closed"),
        case("a coding in HTTP/1.0", "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", REFUSED),
        // Chunks.
        case("chunks with extensions and trailers", chunks("5;a=\"b\" ;c\r\nhello\r\n000\r\nx: y\r\n\r\n"), PASSES),
        case("white space behind a size", chunks("5 \t\r\nhello\r\n0\r\n\r\n"), PASSES),
        case("white space before a size", chunks(" 5\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("two sizes", chunks("5 5\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("a size with a sign", chunks("+5\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("a size with 0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("no size", chunks("\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("a size beyond 64 bits", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("a lone LF behind a size", chunks("5\nhello\r\n0\r\n\r\n"), REFUSED),
        case("a lone LF behind the data", chunks("5\r\nhello\n0\r\n\r\n"), REFUSED),
        case("a lone CR behind a size", chunks("5\rhello\r\n0\r\n\r\n"), REFUSED),
        case("data that is longer than its size", chunks("5\r\nhello!\r\n0\r\n\r\n"), REFUSED),
        case("a lone LF in an extension", chunks("5;a\nb\r\nhello\r\n0\r\n\r\n"), REFUSED),
        case("endless extensions", chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000))), REFUSED),
        case("a lone LF at the end", chunks("5\r\nhello\r\n0\r\n\n"), REFUSED),
        case("a length as a trailer", chunks("5\r\nhello\r\n0\r\nContent-Length: 7\r\n\r\n"), PASSES),
        case("a trailer that is no field", chunks("5\r\nhello\r\n0\r\nno field\r\n\r\n"), REFUSED),
        case("a space before a trailer's colon", chunks("5\r\nhello\r\n0\r\nx : y\r\n\r\n"), REFUSED),
        case("endless trailers", chunks(&format!("5\r\nhello\r\n0\r\nx: {}\r\n\r\n", "y".repeat(20_000))), REFUSED),
        // Lines.
        case("empty lines before a request", get("\r\n\r\nGET /x HTTP/1.1\r\nHost: a"), PASSES),
        case("lone LFs", "GET /x HTTP/1.1\nHost: a\n\n", REFUSED),
        case("a lone LF behind a field", get("GET /x HTTP/1.1\r\nHost: a\nX: y"), REFUSED),
        case("a lone LF at the end of the head", "GET /x HTTP/1.1\r\nHost: a\r\n\n", REFUSED),
        case("a lone CR in a field", get("GET /x HTTP/1.1\r\nHost: a\r\nX: y\rZ: 1"), REFUSED),
        case("CR CR LF", get("GET /x HTTP/1.1\r\r\nHost: a"), REFUSED),
        case("a field that goes on on the next line", get("GET /x HTTP/1.1\r\nHost: a\r\nX: y\r\n z"), REFUSED),
        case("a first field that begins with a space", get("GET /x HTTP/1.1\r\n Host: a"), REFUSED),
        case("a NUL in a field", get("GET /x HTTP/1.1\r\nHost: a\r\nX: y\0z"), REFUSED),
        case("a NUL in a name", get("GET /x HTTP/1.1\r\nHost: a\r\nX\0Y: z"), REFUSED),
        case("a field without a colon", get("GET /x HTTP/1.1\r\nHost: a\r\nX"), REFUSED),
        case("a field without a name", get("GET /x HTTP/1.1\r\nHost: a\r\n: x"), REFUSED),
        case("a name with a character that none has", get("GET /x HTTP/1.1\r\nHost: a\r\nX@Y: z"), REFUSED),
        case("a field in other letters", get("GET /x HTTP/1.1\r\nHost: a\r\nX: \u{e9}"), PASSES),
        // The request line.
        case("two spaces", get("GET  /x HTTP/1.1\r\nHost: a"), REFUSED),
        case("tabs instead of spaces", get("GET\t/x\tHTTP/1.1\r\nHost: a"), REFUSED),
        case("a space behind the version", get("GET /x HTTP/1.1 \r\nHost: a"), REFUSED),
        case("a space in the target", get("GET /x y HTTP/1.1\r\nHost: a"), REFUSED),
        case("a NUL in the target", get("GET /x\0 HTTP/1.1\r\nHost: a"), REFUSED),
        case("no version", get("GET /x\r\nHost: a"), REFUSED),
        case("HTTP/0.9", get("GET /x HTTP/0.9\r\nHost: a"), REFUSED),
        case("HTTP/1.2", get("GET /x HTTP/1.2\r\nHost: a"), REFUSED),
        case("HTTP/2.0 in the manner of 1.1", get("GET /x HTTP/2.0\r\nHost: a"), REFUSED),
        case("a version in small letters", get("GET /x http/1.1\r\nHost: a"), REFUSED),
        case("a method of one's own", get("get-it /x HTTP/1.1\r\nHost: a"), PASSES),
        case("CONNECT", get("CONNECT a:1 HTTP/1.1\r\nHost: a:1"), "501"),
        // The target and the host.
        case("a whole URL", get("GET http://a/x HTTP/1.1\r\nHost: a"), PASSES),
        case("a whole URL of another host", get("GET http://b/x HTTP/1.1\r\nHost: a"), PASSES),
        case("a target that is no path", get("GET x HTTP/1.1\r\nHost: a"), REFUSED),
        case("an authority as the target", get("GET a:1 HTTP/1.1\r\nHost: a:1"), REFUSED),
        case("OPTIONS *", get("OPTIONS * HTTP/1.1\r\nHost: a"), PASSES),
        case("no host", get("GET /x HTTP/1.1\r\nX: y"), "400"),
        case("two hosts", get("GET /x HTTP/1.1\r\nHost: a\r\nHost: b"), "400"),
        case("the same host twice", get("GET /x HTTP/1.1\r\nHost: a\r\nHost: a"), "400"),
        case("two hosts in one field", get("GET /x HTTP/1.1\r\nHost: a, b"), REFUSED),
        case("a host with a path", get("GET /x HTTP/1.1\r\nHost: a/b"), REFUSED),
        case("a host with a user", get("GET /x HTTP/1.1\r\nHost: u@a"), REFUSED),
        case("a host with a space", get("GET /x HTTP/1.1\r\nHost: a b"), REFUSED),
        case("a port that is no number", get("GET /x HTTP/1.1\r\nHost: a:b"), REFUSED),
        case("an address of IPv6 and a port", get("GET /x HTTP/1.1\r\nHost: [::1]:80"), PASSES),
        case("an empty host", get("GET /x HTTP/1.1\r\nHost:"), PASSES),
        case("a space before the host's colon", get("GET /x HTTP/1.1\r\nHost : a"), REFUSED),
        case("no host in HTTP/1.0", get("GET /x HTTP/1.0\r\nConnection: keep-alive"), PASSES),
        // Other protocols.
        case(
            "an upgrade to HTTP/2, which is passed over",
            get("GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"),
            PASSES,
        ),
        // Size.
        case("a field of 100 kB", get(&format!("GET /x HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(100_000))), "431 closed"),
        case("a target of 100 kB", get(&format!("GET /{} HTTP/1.1\r\nHost: a", "y".repeat(100_000))), "431 closed"),
        case("129 fields", get(&format!("GET /x HTTP/1.1\r\nHost: a{}", "\r\nX: y".repeat(128))), "431 closed"),
    ]
}

/// A model server that takes nothing but plain messages, answers each, and keeps what it got.
#[derive(Clone, Default)]
struct Strict {
    heads: Arc<Mutex<Vec<String>>>,
    odd: Arc<Mutex<Vec<String>>>,
}

impl Strict {
    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(self.clone().connection(stream));
        }
    }

    async fn connection(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            while let Some(size) = self.message(&bytes) {
                bytes.drain(..size);
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
            if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Bytes of the message at the start of `bytes`, if it is whole.
    fn message(&self, bytes: &[u8]) -> Option<usize> {
        let empty = bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        let end = empty + bytes[empty..].windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let odd = |why: &str| self.odd.lock().unwrap().push(format!("{why}: {head:?}"));
        let text = head.trim_start_matches("\r\n");
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let words: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
        if words.len() != 3 || !["HTTP/1.1", "HTTP/1.0"].contains(&words[2]) || text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
            odd("a request line");
        }
        let fields: Vec<_> = lines.map(|line| line.split_once(':').unwrap_or((line, ""))).collect();
        let of = |name: &str| fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect::<Vec<_>>();
        if fields.iter().any(|(name, _)| name.is_empty() || name.contains([' ', '\t'])) {
            odd("a field");
        }
        let size = match (&of("content-length")[..], &of("transfer-encoding")[..]) {
            ([], []) => Some(0),
            ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => length.parse().ok(),
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => {
                let body = &bytes[end..];
                let ends = body.windows(5).position(|five| five == b"0\r\n\r\n").map(|at| at + 5);
                // The only trailers that there are end so.
                ends.or_else(|| body.windows(5).position(|five| five == b"7\r\n\r\n" || five == b"y\r\n\r\n").map(|at| at + 5))
            }
            _ => {
                odd("lengths");
                Some(0)
            }
        }?;
        if of("host").len() > 1 {
            odd("hosts");
        }
        (bytes.len() >= end + size).then(|| {
            if !text.starts_with("GET /v2/health") {
                self.heads.lock().unwrap().push(text.to_owned());
            }
            end + size
        })
    }
}

/// The statuses of the answers to `sent`, and `closed` where the connection is closed behind them.
async fn answers(sidecar: &Sidecar, case: &Case) -> String {
    let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
    // A refusal may come while it is being sent.
    let _ = stream.write_all(case.sent.as_bytes()).await;
    let (mut got, due) = (Vec::new(), case.answers.split(' ').filter(|word| word.parse::<u16>().is_ok()).count());
    let mut said = String::new();
    loop {
        let text = String::from_utf8_lossy(&got);
        let statuses: Vec<_> =
            text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12).filter(|status| status.parse::<u16>().is_ok())).collect();
        said = if statuses.is_empty() { said } else { statuses.join(" ") };
        // One more than is due would come at once.
        let wait = if statuses.len() >= due { Duration::from_millis(60) } else { PATIENCE };
        match tokio::time::timeout(wait, stream.read_buf(&mut got)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => {
                let _ = write!(said, " closed");
                return said;
            }
            Err(_) => return said,
        }
    }
}

#[tokio::test]
async fn a_message_that_could_be_read_in_two_ways_has_one_answer_and_never_reaches_the_server_as_two() {
    // Nobody measures meanwhile.
    let _server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, strict) = (listener.local_addr().unwrap(), Strict::default());
    tokio::spawn(strict.clone().serve(listener));
    let [relay, stack] = [Sidecar::start(address, &["--ready-tcp"]), Sidecar::start(address, &["--ready-tcp"])];
    stack.arm(WAITING).await;
    let mut wrong = Vec::new();
    for case in corpus() {
        for (engine, sidecar) in [("relay", &relay), ("stack", &stack)] {
            strict.heads.lock().unwrap().clear();
            let said = answers(sidecar, &case).await;
            let (heads, odd) = (std::mem::take(&mut *strict.heads.lock().unwrap()), std::mem::take(&mut *strict.odd.lock().unwrap()));
            let passed = case.answers.split(' ').filter(|status| *status == "200").count();
            if said != case.answers || heads.len() != passed || !odd.is_empty() {
                let heads: Vec<_> = heads.iter().map(|head| head.get(..200).unwrap_or(head)).collect();
                wrong.push(format!("{} ({engine}): {said}, and not {}; {heads:?} {odd:?}", case.what, case.answers));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(relay.metric("steadfast_opaque_connections_total", &[]).await, 0, "nothing passed unread");
    for sidecar in [&relay, &stack] {
        assert!(sidecar.metric("steadfast_requests_malformed_total", &[]).await > 40);
        assert_eq!(sidecar.metric("steadfast_limits_exceeded_total", &["head-size"]).await, 3);
    }
}

/// `docs/limits.md` says of each case what this file says.
#[test]
fn the_page_on_limits_has_every_case() {
    let page = include_str!("../../docs/limits.md");
    let missing: Vec<_> =
        corpus().iter().map(|case| format!("| {} | {} |", case.what, case.answers)).filter(|row| !page.lines().any(|line| line == row)).collect();
    assert!(missing.is_empty(), "docs/limits.md lacks\n{}", missing.join("\n"));
}
