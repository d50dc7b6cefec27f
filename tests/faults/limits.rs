//! What has a limit, and what a client hears that goes beyond it, on both engines; and what keeps its promises when the machine has nothing left.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    floods::{PREFACE, frame},
    harness::{Http, PATIENCE, Server, Sidecar, ask, client, client_h2, get, rest, try_ask},
    seam::WAITING,
};

const EXCEEDED: &str = "steadfast_limits_exceeded_total";

#[tokio::test]
async fn a_half_sent_head_is_answered_and_silence_is_not() {
    let server = Server::start().await;
    for armed in [false, true] {
        let sidecar = Sidecar::start(server.address, &["--header-timeout", "300ms"]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        let mut half = TcpStream::connect(sidecar.data).await.unwrap();
        half.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\nX-Slow").await.unwrap();
        let mut idle = TcpStream::connect(sidecar.data).await.unwrap();
        idle.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (half, idle) = tokio::join!(rest(&mut half), rest(&mut idle));
        assert!(half.starts_with("HTTP/1.1 408 ") && half.contains("steadfast-origin: proxy") && half.contains("request-timeout"), "{armed}: {half}");
        assert!(idle.starts_with("HTTP/1.1 200 ") && idle.ends_with("hello"), "{armed}: {idle}");
        for limit in ["head-time", "idle-time"] {
            sidecar.metric_reaches(EXCEEDED, &[&format!(r#"limit="{limit}""#)], 1).await;
        }
    }
}

#[tokio::test]
async fn a_header_block_that_does_not_end_ends_its_connection() {
    let server = Server::start().await;
    for armed in [false, true] {
        let sidecar = Sidecar::start(server.address, &["--header-timeout", "300ms"]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        // HEADERS of a GET without END_HEADERS; and the same with half of its payload to come.
        let block = b"\x82\x84\x86\x41\x01a";
        let whole = frame(1, 1, 1, block);
        for bytes in [&whole[..], &whole[..whole.len() - 2]] {
            let begun = Instant::now();
            let mut slow = TcpStream::connect(sidecar.data).await.unwrap();
            slow.write_all(&[PREFACE, &frame(4, 0, 0, &[])[..], bytes].concat()).await.unwrap();
            rest(&mut slow).await;
            assert!(begun.elapsed() >= Duration::from_millis(290) && begun.elapsed() < Duration::from_secs(5), "armed: {armed}: {:?}", begun.elapsed());
        }
        sidecar.metric_reaches(EXCEEDED, &[r#"limit="head-time""#], 2).await;
    }
}

#[tokio::test]
async fn a_stream_without_an_answer_gets_one_in_time_and_the_connection_goes_on() {
    let server = Server::start().await;
    for armed in [false, true] {
        let sidecar = Sidecar::start(server.address, &["--upstream-timeout", "300ms"]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        let (client, url) = (client_h2(), sidecar.url("/slow?20000"));
        let before = server.seen.cancelled.load(Ordering::Acquire);
        let begun = Instant::now();
        let (slow, quick) = tokio::join!(ask(&client, get(&url, &[])), async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            ask(&client, get(&sidecar.url("/x"), &[])).await
        });
        let took = begun.elapsed();
        assert_eq!((slow.status, slow.header("steadfast-origin"), quick.status), (504, "proxy", 200));
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(5), "{took:?}");
        let grpc = Request::post(&url).header("content-type", "application/grpc").header("te", "trailers").body(Full::new(Bytes::new())).unwrap();
        let call = ask(&client, grpc).await;
        assert_eq!((call.status, call.header("grpc-status"), call.header("content-type")), (200, "14", "application/grpc"), "{:?}", call.headers);
        while server.seen.cancelled.load(Ordering::Acquire) < before + 2 {
            assert!(begun.elapsed() < PATIENCE, "the server works on, armed: {armed}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ask(&client, get(&sidecar.url("/x"), &[])).await.status, 200);
        sidecar.metric_reaches("steadfast_requests_total", &[r#"origin="proxy""#, r#"code="504""#], 1).await;
        sidecar.metric_reaches("steadfast_grpc_responses_total", &[r#"code="14""#], 1).await;
        assert_eq!(sidecar.metric("steadfast_requests_in_progress", &[]).await, 0);
        assert_eq!(sidecar.metric("steadfast_connections", &[]).await, 1, "all by one connection");
    }
}

#[tokio::test]
async fn a_server_that_takes_a_connection_and_never_speaks_is_answered_for() {
    let _server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    for armed in [false, true] {
        let sidecar = Sidecar::start(address, &["--upstream-timeout", "200ms", "--ready-tcp"]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        for client in [client(), client_h2()] {
            let reply = ask(&client, get(&sidecar.url("/x"), &[])).await;
            assert_eq!((reply.status, reply.header("steadfast-origin")), (504, "proxy"), "armed: {armed}");
        }
        sidecar.metric_reaches("steadfast_requests_total", &[r#"origin="proxy""#, r#"code="504""#], 2).await;
    }
}

/// A client of HTTP/2 that answers PINGs, and otherwise goes its way whatever it is told.
#[tokio::test]
async fn a_client_that_stays_although_it_was_told_to_go_is_refused_after_a_while() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--drain-timeout", "1s"]);
    let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
    stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])[..], &frame(4, 1, 0, &[])].concat()).await.unwrap();
    let (mut bytes, mut number, mut told, mut refused, mut answered) = (Vec::new(), 1, None, None, 0);
    let mut every = tokio::time::interval(Duration::from_millis(20));
    let begun = Instant::now();
    'open: loop {
        assert!(begun.elapsed() < PATIENCE, "{number} streams, told: {told:?}, refused: {refused:?}");
        tokio::select! {
            _ = every.tick() => {
                if number == 11 {
                    sidecar.arm(WAITING).await;
                }
                if stream.write_all(&frame(1, 5, number, b"\x82\x86\x04\x09/slow?300\x01\x01a")).await.is_err() {
                    break;
                }
                number += 2;
            }
            read = stream.read_buf(&mut bytes) => {
                if !matches!(read, Ok(1..)) {
                    break;
                }
                while let Some(head) = bytes.first_chunk::<9>().copied() {
                    let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    if bytes.len() < 9 + size {
                        break;
                    }
                    let payload = bytes[9..9 + size].to_vec();
                    bytes.drain(..9 + size);
                    match (head[3], head[4] & 1) {
                        (6, 0) => stream.write_all(&frame(6, 1, 0, &payload)).await.unwrap_or_default(),
                        (7, _) if told.is_none() => told = Some(Instant::now()),
                        (3, _) if payload == 7_u32.to_be_bytes() && refused.is_none() => refused = Some(Instant::now()),
                        (1, _) => answered += 1,
                        _ => {}
                    }
                    if refused.is_some_and(|at| at.elapsed() > Duration::from_secs(2)) {
                        break 'open;
                    }
                }
            }
        }
    }
    let (told, ended) = (told.expect("it is told to go"), Instant::now());
    let stayed = ended - told;
    assert!(stayed > Duration::from_millis(800) && stayed < Duration::from_secs(4), "it stayed for {stayed:?}");
    assert!(answered > 20, "those that it began meanwhile are answered: {answered} of {}", number / 2);
    assert_eq!(sidecar.metric(EXCEEDED, &[r#"limit="http2-going""#]).await, 1);
}

/// A server that hangs makes its clients give up, and that is no attack.
#[tokio::test]
async fn clients_that_give_up_at_their_deadlines_keep_their_connection() {
    let server = Server::start().await;
    for armed in [false, true] {
        let sidecar = Sidecar::start(server.address, &[]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        let (client, url) = (client_h2(), sidecar.url("/slow?60000"));
        for _ in 0..8 {
            let asked: Vec<_> = (0..200).map(|_| give_up(client.clone(), url.clone())).collect();
            for asked in futures(asked).await {
                assert_eq!(asked, Err("given up".to_owned()), "armed: {armed}");
            }
        }
        assert_eq!(ask(&client, get(&sidecar.url("/x"), &[])).await.status, 200);
        assert_eq!(sidecar.metric(EXCEEDED, &["http2-"]).await, 0, "armed: {armed}");
        assert_eq!(sidecar.metric("steadfast_connections", &[]).await, 1, "armed: {armed}");
    }
}

async fn give_up(client: Http, url: String) -> Result<(), String> {
    let asked = tokio::time::timeout(Duration::from_millis(700), try_ask(&client, get(&url, &[]))).await;
    asked.map_or(Err("given up".to_owned()), |reply| reply.map(drop))
}

/// All of them at once.
async fn futures<F: Future<Output: Send + 'static> + Send + 'static>(all: Vec<F>) -> Vec<F::Output> {
    let tasks: Vec<_> = all.into_iter().map(tokio::spawn).collect();
    let mut outputs = Vec::new();
    for task in tasks {
        outputs.push(task.await.unwrap());
    }
    outputs
}

#[tokio::test]
async fn who_waits_because_too_many_are_there_is_counted() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--max-connections", "1"]);
    let first = TcpStream::connect(sidecar.data).await.unwrap();
    sidecar.metric_reaches(EXCEEDED, &[r#"limit="connections""#], 1).await;
    drop(first);
}

/// Asks by `stream` and reads the answer, if one comes in time.
async fn answered(stream: &mut TcpStream, within: Duration) -> bool {
    let _ = stream.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(b"hello") {
            if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                return false;
            }
        }
        bytes.starts_with(b"HTTP/1.1 200")
    };
    tokio::time::timeout(within, read).await.unwrap_or(false)
}

#[tokio::test]
async fn without_descriptors_it_serves_whom_it_has_and_takes_others_when_there_are_some_again() {
    let server = Server::start().await;
    // Enough for 16 connections.
    let sidecar = Sidecar::start_with_descriptors(64, server.address, &[]);
    let mut open = Vec::new();
    for number in 0..16 {
        let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
        assert!(answered(&mut stream, PATIENCE).await, "connection {number}");
        open.push(stream);
    }
    let mut more = TcpStream::connect(sidecar.data).await.unwrap();
    assert!(!answered(&mut more, Duration::from_millis(300)).await, "it waits");
    sidecar.metric_reaches(EXCEEDED, &[r#"limit="connections""#], 1).await;
    // Somebody takes those that are kept for others.
    let mut taken = Vec::new();
    for _ in 0..50 {
        taken.push(TcpStream::connect(sidecar.admin).await.unwrap());
    }
    drop(open.split_off(8));
    let (_, cpu) = sidecar.usage();
    for stream in &mut open {
        assert!(answered(stream, PATIENCE).await, "who is served goes on being served");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let burnt = sidecar.usage().1.saturating_sub(cpu);
    assert!(burnt < Duration::from_millis(500), "{burnt:?} of CPU for waiting");
    drop(taken);
    let begun = Instant::now();
    let mut fresh = TcpStream::connect(sidecar.data).await.unwrap();
    assert!(answered(&mut fresh, PATIENCE).await, "it takes others again");
    for stream in &mut open {
        assert!(answered(stream, PATIENCE).await);
    }
    eprintln!("{burnt:?} of CPU in a second without descriptors; a new client was served after {:?}", begun.elapsed());
}

#[tokio::test]
async fn nothing_of_the_admin_port_is_reached_by_the_data_port() {
    let server = Server::start().await;
    for armed in [false, true] {
        let sidecar = Sidecar::start(server.address, &[]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        let (admin, before) = (sidecar.admin, sidecar.admin("GET", "/policy", "").await.json()["policies"].as_array().map(Vec::len));
        for head in [
            "GET /policy HTTP/1.1\r\nHost: a".to_owned(),
            format!("GET /policy HTTP/1.1\r\nHost: {admin}"),
            format!("GET http://{admin}/policy HTTP/1.1\r\nHost: {admin}"),
            format!("DELETE /policy HTTP/1.1\r\nHost: {admin}"),
            format!("PUT /policy HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0"),
            format!("GET /x HTTP/1.1\r\nHost: {admin}\r\nX-Forwarded-Host: {admin}\r\nForwarded: host={admin}"),
            format!("GET /leave HTTP/1.1\r\nHost: {admin}"),
            "GET /metrics HTTP/1.1\r\nHost: a".to_owned(),
        ] {
            let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
            let seen = server.seen.requests.load(Ordering::Acquire);
            stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{head}: {answer}");
            assert_eq!(server.seen.requests.load(Ordering::Acquire), seen + 1, "it is the model server's to answer: {head}");
        }
        let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
        stream.write_all(format!("CONNECT {admin} HTTP/1.1\r\nHost: {admin}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 501");
        assert_eq!(sidecar.admin("GET", "/policy", "").await.json()["policies"].as_array().map(Vec::len), before);
    }
}

#[tokio::test]
async fn a_server_that_ends_while_it_is_asked_is_asked_once() {
    let _server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = std::sync::Arc::clone(&count);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                // The first request of a connection is answered, the second is the end of it.
                for answer in [true, false] {
                    while !bytes.ends_with(b"\r\n\r\n") {
                        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                            return;
                        }
                    }
                    if !bytes.starts_with(b"GET /v2") {
                        count.fetch_add(1, Ordering::AcqRel);
                    }
                    bytes.clear();
                    if answer {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                }
            });
        }
    });
    for armed in [false, true] {
        let sidecar = Sidecar::start(address, &["--ready-tcp"]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        let client = client();
        let before = asked.load(Ordering::Acquire);
        let post = || Request::post(sidecar.url("/x")).body(Full::new(Bytes::new())).unwrap();
        assert_eq!(ask(&client, post()).await.status, 200);
        let second = try_ask(&client, post()).await.expect("an answer of ours");
        assert_eq!((second.status, second.header("steadfast-origin")), (502, "proxy"), "armed: {armed}");
        assert_eq!(asked.load(Ordering::Acquire) - before, 2, "a request that may have had an effect is not repeated");
    }
}

#[tokio::test]
async fn an_armed_policy_costs_little_memory() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(WAITING).await;
    for _ in 0..50 {
        assert_eq!(ask(&client(), get(&sidecar.url("/x"), &[])).await.status, 200);
    }
    let (before, _) = sidecar.usage();
    let policy = |number: usize| {
        let rule = |rule: usize| {
            format!("{{match: {{path: {{regex: '/v2/models/m{rule}/.*'}}, headers: {{x-user: u{rule}}}}}, faults: [{{abort: {{httpStatus: 503}}}}]}}")
        };
        let rules: Vec<_> = (0..16).map(rule).collect();
        format!("- {{name: p{number}, spec: {{expiresAfter: 1h, budget: {{concurrent: 9, share: 100%}}, rules: [{}]}}}}\n", rules.join(", "))
    };
    let all: String = (0..32).map(policy).collect();
    sidecar.arm(&format!("policies:\n{all}")).await;
    for _ in 0..50 {
        assert_eq!(ask(&client(), get(&sidecar.url("/x"), &[])).await.status, 200);
    }
    let each = (sidecar.usage().0.saturating_sub(before)) / 32;
    eprintln!("{each} kB for a policy of 16 rules");
    assert!(each < 512, "{each} kB for each policy");
}
