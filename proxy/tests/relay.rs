//! Disarmed, what passes is what a plain copy would pass: byte for byte, both ways, however it is cut. Every case runs twice, once through the relay and once through a
//! copy, between a client and a server that follow one script.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use clap::Parser;
use proptest::{collection::vec, prelude::*, sample::select};
use steadfast_proxy::{
    accept,
    config::{Args, Config},
    control::report::Evidence,
    measure::gather,
    worker::{Shared, Worker},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// The client sends `asks`; when the server has so many bytes, it sends `answers`.
#[derive(Clone, Debug)]
struct Turn {
    asks: Vec<u8>,
    answers: Vec<u8>,
}

fn turn(asks: impl AsRef<[u8]>, answers: impl AsRef<[u8]>) -> Turn {
    Turn { asks: asks.as_ref().to_vec(), answers: answers.as_ref().to_vec() }
}

/// How a script is played.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Bytes of one write.
    piece: usize,
    /// The client does not wait for answers.
    pipelined: bool,
    /// Who closes at the end: the server, or the client its own side.
    server_closes: bool,
}

/// What each side has got.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    server: Vec<u8>,
    client: Vec<u8>,
}

async fn write_in_pieces(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
}

async fn serve(listener: TcpListener, script: Vec<Turn>, way: Way) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut got, mut due) = (Vec::new(), 0);
    for turn in &script {
        due += turn.asks.len();
        while got.len() < due {
            if stream.read_buf(&mut got).await.unwrap() == 0 {
                return got;
            }
        }
        write_in_pieces(&mut stream, &turn.answers, way.piece).await;
    }
    if !way.server_closes {
        // The connection may outlive its client, for another one.
        let _ = tokio::time::timeout(Duration::from_millis(3), stream.read_to_end(&mut got)).await;
    }
    stream.shutdown().await.unwrap();
    got
}

async fn ask(address: SocketAddr, script: Vec<Turn>, way: Way) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut read, mut write) = stream.split();
    let (mut got, total) = (Vec::new(), script.iter().map(|turn| turn.answers.len()).sum::<usize>());
    if way.pipelined {
        let asks: Vec<u8> = script.iter().flat_map(|turn| turn.asks.clone()).collect();
        let reading = async { while got.len() < total && read.read_buf(&mut got).await.unwrap() > 0 {} };
        tokio::join!(write_in_pieces(&mut write, &asks, way.piece), reading);
    } else {
        let mut due = 0;
        for turn in &script {
            due += turn.answers.len();
            let reading = async { while got.len() < due && read.read_buf(&mut got).await.unwrap() > 0 {} };
            tokio::join!(write_in_pieces(&mut write, &turn.asks, way.piece), reading);
        }
    }
    if !way.server_closes {
        write.shutdown().await.unwrap();
    }
    read.read_to_end(&mut got).await.unwrap();
    got
}

async fn copy(listener: TcpListener, upstream: SocketAddr) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut upstream = TcpStream::connect(upstream).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
}

/// Plays `script` through the relay or a copy; for the relay also what its metrics say.
fn play(script: &[Turn], way: Way, relayed: bool) -> (Got, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = upstream.local_addr().unwrap();
        let mut metrics = None;
        let address = if relayed {
            let args = Line::try_parse_from(["proxy", "--threads", "1", "--upstream", &behind.to_string()]).unwrap().args;
            let shared = Shared::new(Config::new(args, |_| None).unwrap(), Evidence::new(10));
            let worker = Worker::new(shared, 0).unwrap();
            let (address, mut sockets) = accept::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
            metrics = Some(Rc::clone(&worker));
            tokio::task::spawn_local(accept::accept(worker, accept::listen(sockets.remove(0)).unwrap(), 0));
            address
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::task::spawn_local(copy(listener, behind));
            address
        };
        let server = tokio::task::spawn_local(serve(upstream, script.to_vec(), way));
        let played = async { Got { client: ask(address, script.to_vec(), way).await, server: server.await.unwrap() } };
        let got = tokio::time::timeout(PATIENCE, played).await.unwrap_or_else(|_| panic!("{script:?} {way:?} hangs, relayed: {relayed}"));
        (got, metrics.map_or_else(String::new, |worker| gather::text(&worker.shared.all_metrics())))
    })
}

#[track_caller]
fn same(script: &[Turn], way: Way) -> String {
    let (copied, _) = play(script, way, false);
    let (relayed, metrics) = play(script, way, true);
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    assert_eq!(text(&relayed.server), text(&copied.server), "the server got something else: {way:?}");
    assert_eq!(text(&relayed.client), text(&copied.client), "the client got something else: {way:?}");
    metrics
}

const WAYS: [Way; 4] = [
    Way { piece: 100_000, pipelined: false, server_closes: false },
    Way { piece: 100_000, pipelined: true, server_closes: false },
    Way { piece: 1, pipelined: false, server_closes: false },
    Way { piece: 7, pipelined: true, server_closes: false },
];
const ENDED_BY_SERVER: [Way; 2] = [Way { piece: 100_000, pipelined: false, server_closes: true }, Way { piece: 1, pipelined: true, server_closes: true }];

fn count(metrics: &str, line: &str) -> u64 {
    let found = metrics.lines().find(|found| found.starts_with(line));
    found.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn odd_but_legal_messages_pass_as_they_are_and_are_counted() {
    let get = "GET /a%00?b=://c HTTP/1.1\r\nhOsT:a\r\nX-Odd:\t \x01\r\nx-empty:\r\nCONNECTION: x-odd\r\n\r\n".replace('\u{1}', "!");
    let script = [
        turn(&get, "HTTP/1.1 200 \r\nContent-Length: 5\r\nkeep-alive: timeout=5\r\n\r\nhello"),
        turn("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        turn("\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 204 No Content\r\n\r\n"),
        turn("GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: x\r\n\r\n", "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"),
        turn(
            "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n5;e=\"f\"\r\nhello\r\n00\r\nt: 1\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nA \r\n0123456789\r\n0\r\nt: 2\r\n\r\n",
        ),
        turn("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        turn("GET http://a/ HTTP/1.1\r\nHost: a\r\nSteadfast: 1\r\n\r\n", "HTTP/1.1 418 \r\ncontent-length: 0\r\n\r\n"),
    ];
    for way in WAYS {
        let metrics = same(&script, way);
        for (code, expected) in [("200", 3), ("204", 1), ("304", 1), ("500", 1), ("418", 1)] {
            let line = format!(r#"steadfast_requests_total{{code="{code}",origin="upstream"}}"#);
            assert_eq!(count(&metrics, &line), expected, "{code} {way:?}\n{metrics}");
        }
        assert_eq!((count(&metrics, "steadfast_requests_in_progress"), count(&metrics, "steadfast_requests_cancelled_total")), (0, 0), "{metrics}");
        assert_eq!(count(&metrics, "steadfast_opaque_bytes_total"), 0);
        assert_eq!(count(&metrics, r#"steadfast_response_first_byte_seconds_count{origin="upstream"}"#), 7);
    }
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    for (asks, answers) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nanything"),
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Type: x\r\n\r\n"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n\x1f"),
    ] {
        for way in ENDED_BY_SERVER {
            assert_eq!(count(&same(&[turn(asks, answers)], way), r#"steadfast_requests_total{code="200",origin="upstream"}"#), 1, "{asks:?}");
        }
    }
}

#[test]
fn another_protocol_passes_both_ways_once_it_is_agreed_on() {
    let asks = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let script =
        [turn(asks, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\x02"), turn([0_u8, 255, 3], b"GET"), turn("abc", [7_u8; 3000])];
    for way in WAYS.into_iter().chain(ENDED_BY_SERVER) {
        let metrics = same(&script, way);
        assert_eq!(count(&metrics, r#"steadfast_requests_total{code="101",origin="upstream"}"#), 1, "{metrics}");
        assert_eq!(count(&metrics, "steadfast_opaque_bytes_total"), 0);
    }
}

#[test]
fn what_is_not_understood_passes_and_is_counted() {
    let tls = [turn([0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5], [0x16_u8, 3, 3, 0, 1, 9]), turn([0x17, 3, 3], vec![0_u8; 20_000])];
    let odd_answer = [turn("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "ICY 200 OK\r\n\r\nmusic"), turn("more", "music")];
    for script in [&tls, &odd_answer] {
        for way in WAYS.into_iter().chain(ENDED_BY_SERVER) {
            let metrics = same(script, way);
            assert_eq!(count(&metrics, "steadfast_opaque_connections_total"), 1, "{metrics}");
            assert!(count(&metrics, "steadfast_opaque_bytes_total") >= 10);
            assert_eq!(count(&metrics, "steadfast_requests_in_progress"), 0);
        }
    }
}

mod http2 {
    //! Frames as they are written by hand, with header blocks that use the table.

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
    }

    /// `:method`, `:scheme`, `:path` and a field that goes into the table (first) or comes from it.
    pub(crate) fn asks(first: bool) -> Vec<u8> {
        let field: &[u8] = if first { b"\x40\x04te-x\x08trailers" } else { &[0xbe] };
        [&[0x83, 0x86, 0x84][..], field].concat()
    }

    pub(crate) fn answers(first: bool) -> Vec<u8> {
        if first { b"\x88\x40\x0bgrpc-status\x0214".to_vec() } else { b"\x88\xbe".to_vec() }
    }
}

#[test]
fn http2_passes_frame_by_frame_and_is_counted_with_its_trailers() {
    use http2::{answers, asks, frame};
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]), &frame(1, 5, 1, &asks(true))].concat();
    let first = [frame(4, 0, 0, &[]), frame(4, 1, 0, &[]), frame(1, 4, 1, b"\x88"), frame(0, 0, 1, &[9; 500]), frame(1, 5, 1, &answers(true)[1..])].concat();
    // Padding, priority, a block in three pieces, an unknown frame, PING both ways, a request with a body.
    let (block, padded) = (asks(false), [&[3][..], &[0, 0, 0, 0, 16], &asks(false)[..2], &[0; 3]].concat());
    let second = [
        frame(4, 1, 0, &[]),
        frame(6, 0, 0, b"12345678"),
        frame(1, 0x28, 3, &padded),
        frame(9, 0, 3, &[]),
        frame(9, 4, 3, &block[2..]),
        frame(200, 7, 3, b"??"),
        frame(8, 0, 0, &[0, 0, 1, 0]),
        frame(0, 1, 3, b"body"),
    ]
    .concat();
    let answer = [frame(6, 1, 0, b"12345678"), frame(1, 4, 3, &answers(false)[..1]), frame(0, 0, 3, b"x"), frame(1, 5, 3, &answers(false)[1..])].concat();
    // An answer before the request's end, and a stream that the server gives up.
    let third = [frame(1, 4, 5, &asks(false)), frame(1, 5, 7, &asks(false))].concat();
    let early = [frame(1, 5, 5, b"\x8d"), frame(3, 0, 5, &[0; 4]), frame(3, 0, 7, &[0, 0, 0, 2])].concat();
    let script = [turn(preface, first), turn(second, answer), turn(third, early)];
    for way in WAYS.into_iter().chain(ENDED_BY_SERVER) {
        let metrics = same(&script, way);
        assert_eq!(count(&metrics, r#"steadfast_requests_total{code="200",origin="upstream"}"#), 2, "{metrics}");
        assert_eq!(count(&metrics, r#"steadfast_requests_total{code="404",origin="upstream"}"#), 1, "{metrics}");
        assert_eq!(count(&metrics, r#"steadfast_requests_total{code="502",origin="upstream"}"#), 1, "given up: {metrics}");
        assert_eq!(count(&metrics, r#"steadfast_grpc_responses_total{code="14"}"#), 2, "{metrics}");
        assert_eq!((count(&metrics, "steadfast_requests_in_progress"), count(&metrics, "steadfast_opaque_connections_total")), (0, 0), "{metrics}");
    }
}

#[test]
fn what_is_no_http2_behind_its_preface_passes_and_is_counted() {
    use http2::{asks, frame};
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[]), &frame(1, 5, 1, &asks(true))].concat();
    // A block that refers to an entry that is not there; a frame inside a block.
    for odd in [frame(1, 5, 3, &[0xff, 0x10]), [frame(1, 1, 3, &asks(false)), frame(0, 0, 3, b"?")].concat()] {
        let script = [turn(&begin, frame(4, 0, 0, &[])), turn([odd, frame(0, 0, 9, b"on")].concat(), "and on")];
        for way in WAYS {
            assert_eq!(count(&same(&script, way), "steadfast_opaque_connections_total"), 1);
        }
    }
}

fn body() -> impl Strategy<Value = (String, Vec<u8>)> {
    let length = vec(any::<u8>(), 0..400).prop_map(|body| (format!("content-length: {}\r\n", body.len()), body));
    let chunked = (vec(vec(any::<u8>(), 1..60), 0..6), "(;[a-z]{0,5})?", "(x: [a-z]{0,9}\r\n){0,2}").prop_map(|(chunks, extension, trailers)| {
        let mut body = Vec::new();
        for chunk in chunks {
            body.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(&chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        ("Transfer-Encoding: chunked\r\n".to_owned(), body)
    });
    prop_oneof![Just((String::new(), Vec::new())), length, chunked]
}

fn an_exchange() -> impl Strategy<Value = Turn> {
    let fields = || {
        "([A-Za-z!#$%&'*+.^_`|~-]{1,12}:[ \t]{0,2}[!-~]{0,20}\r\n){0,4}".prop_filter("fields that mean something", |fields| {
            let fields = fields.to_ascii_lowercase();
            !["host", "upgrade", "connection", "content-length", "transfer-encoding", "steadfast"].iter().any(|name| fields.contains(name))
        })
    };
    let request = (select(vec!["GET", "POST", "HEAD", "DELETE", "PATCH", "x-odd"]), "/[!-~]{0,30}", fields(), body());
    let response = (select(vec![200_u16, 201, 204, 304, 404, 500, 599]), "[ -~]{0,10}", fields(), body(), any::<bool>());
    (request, response).prop_map(|((method, target, fields, (framing, body)), (status, reason, more, (length, content), interim))| {
        let asks = [format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}{framing}\r\n").into_bytes(), body].concat();
        let none = method == "HEAD" || status == 204 || status == 304;
        let length = if length.is_empty() && !none { "content-length: 0\r\n".to_owned() } else { length };
        let before = if interim { "HTTP/1.1 100 Continue\r\n\r\n" } else { "" };
        let answers = [format!("{before}HTTP/1.1 {status} {reason}\r\n{more}{length}\r\n").into_bytes(), if none { Vec::new() } else { content }].concat();
        Turn { asks, answers }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_exchanges_in_any_pieces_pass_as_through_a_copy(script in vec(an_exchange(), 1..6), piece in 1_usize..300, pipelined in any::<bool>()) {
        let metrics = same(&script, Way { piece, pipelined, server_closes: false });
        let answered: u64 = metrics.lines().filter(|line| line.starts_with("steadfast_requests_total{")).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
        prop_assert_eq!(answered, script.len() as u64, "{}", metrics);
        prop_assert_eq!(count(&metrics, "steadfast_opaque_connections_total"), 0);
    }

    #[test]
    fn any_bytes_in_any_pieces_pass_as_through_a_copy(asks in vec(any::<u8>(), 1..2000), answers in vec(any::<u8>(), 0..2000), more in vec(any::<u8>(), 0..500), piece in 1_usize..300, pipelined in any::<bool>()) {
        // Anything but HTTP.
        let asks = [&[0x16, 3][..], &asks].concat();
        same(&[turn(asks, answers), turn(more, b"end")], Way { piece, pipelined, server_closes: false });
    }

    #[test]
    fn any_frames_in_any_pieces_pass_as_through_a_copy(
        frames in vec((select(vec![0_u8, 2, 3, 4, 6, 8, 99]), any::<u8>(), 0_u32..9, vec(any::<u8>(), 0..80)), 0..12),
        piece in 1_usize..300,
    ) {
        use http2::{asks, frame};
        let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[]), &frame(1, 4, 1, &asks(true))].concat();
        let all: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
        same(&[turn(begin, frame(4, 0, 0, &[])), turn(&all, &all)], Way { piece, pipelined: false, server_closes: false });
    }
}
