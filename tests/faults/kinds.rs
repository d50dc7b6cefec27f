//! What each kind of fault looks like to a client, over HTTP/1.1 and HTTP/2.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Http, PATIENCE, Server, Sidecar, TRUSTING, ask, client, client_h2, get, try_ask};

async fn trusting() -> (Server, Sidecar) {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    (server, sidecar)
}

/// Everything that comes by one connection until it ends, and how it ends.
async fn raw(sidecar: &Sidecar, path: &str, fault: &str) -> (String, std::io::Result<()>) {
    let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nsteadfast-fault: {fault}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        match timeout(PATIENCE, stream.read(&mut bytes)).await.expect("the connection ends in time") {
            Ok(0) => return (String::from_utf8_lossy(&all).into_owned(), Ok(())),
            Ok(size) => all.extend_from_slice(&bytes[..size]),
            Err(error) => return (String::from_utf8_lossy(&all).into_owned(), Err(error)),
        }
    }
}

fn body(text: &str) -> &str {
    text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn a_reset_is_a_tcp_reset_before_an_answer_after_its_head_and_within_its_body() {
    let (server, sidecar) = trusting().await;
    let (text, end) = raw(&sidecar, "/bytes?1000", "reset").await;
    assert_eq!((text.as_str(), end.unwrap_err().kind()), ("", ErrorKind::ConnectionReset));
    assert_eq!(server.seen.requests.load(std::sync::atomic::Ordering::Acquire), 0, "the model server is not asked");
    let (text, end) = raw(&sidecar, "/bytes?1000", "reset;after=0").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("steadfast-injected: reset;after=0") && body(&text).is_empty(), "{text:?}");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    for (path, chunked) in [("/bytes?1000", false), ("/pieces?100x10", true)] {
        let (text, end) = raw(&sidecar, path, "reset;after=300").await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        // Bytes that are no text are shown as one character each.
        let got = if chunked { body(&text).matches('x').count() } else { body(&text).chars().count() };
        assert!(got <= 300, "{got} bytes of {path}");
    }
    // A shorter body passes whole.
    let reply = ask(&client(), get(&sidecar.url("/bytes?300"), &[("steadfast-fault", "reset;after=300")])).await;
    assert_eq!(reply.body.len(), 300);
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="reset""#], 4).await;
    sidecar.metric_reaches("steadfast_responses_truncated_total", &[r#"by="fault""#], 3).await;
}

#[tokio::test]
async fn over_http2_a_reset_ends_its_stream_with_the_code_that_was_asked_for_and_no_other() {
    let (_server, sidecar) = trusting().await;
    let client = client_h2();
    for (fault, code) in
        [("reset", "INTERNAL_ERROR"), ("reset;code=8", "CANCEL"), ("reset;after=10;code=11", "ENHANCE_YOUR_CALM"), ("reset;after=0;code=7", "REFUSED_STREAM")]
    {
        let slow = tokio::spawn({
            let (client, url) = (client.clone(), sidecar.url("/slow?150"));
            async move { ask(&client, get(&url, &[])).await }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        let error = try_ask(&client, get(&sidecar.url("/pieces?100x10"), &[("steadfast-fault", fault)])).await.unwrap_err();
        assert!(error.contains(code), "{fault}: {error}");
        assert_eq!(slow.await.unwrap().text(), "slow", "its sibling on the same connection");
    }
}

#[tokio::test]
async fn a_truncated_answer_ends_exactly_where_it_was_told_to() {
    let (_server, sidecar) = trusting().await;
    // By its length a client knows that something is missing; in chunks, by the last one.
    let (text, end) = raw(&sidecar, "/bytes?100", "truncate=30").await;
    assert!(end.is_ok() && text.contains("content-length: 100") && text.contains("steadfast-injected: truncate;after=30"), "{text:?}");
    assert_eq!(text.len() - text.find("\r\n\r\n").unwrap() - 4, 30);
    let (text, end) = raw(&sidecar, "/pieces?10x10", "truncate=35").await;
    assert!(end.is_ok() && body(&text).matches('x').count() == 35 && !text.ends_with("0\r\n\r\n"), "{text:?}");
    let reply = ask(&client_h2(), get(&sidecar.url("/pieces?10x10"), &[("steadfast-fault", "truncate=35")])).await;
    assert_eq!((reply.status, reply.body.len()), (200, 35));
    let whole = ask(&client(), get(&sidecar.url("/bytes?100"), &[("steadfast-fault", "truncate=100")])).await;
    assert_eq!(whole.body.len(), 100);
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="truncate""#], 3).await;
    sidecar.metric_reaches("steadfast_responses_truncated_total", &[r#"by="fault""#], 3).await;
}

#[tokio::test]
async fn a_throttled_answer_comes_no_faster_and_whole() {
    let (_server, sidecar) = trusting().await;
    for client in [client(), client_h2()] {
        let begun = Instant::now();
        let reply = ask(&client, get(&sidecar.url("/bytes?20000"), &[("steadfast-fault", "throttle=40000")])).await;
        let took = begun.elapsed();
        // The last piece is a fiftieth of a second's, and goes when the one before has had its time.
        assert!(took >= Duration::from_millis(480) && took < Duration::from_secs(5), "{took:?}");
        assert!(reply.body.iter().enumerate().all(|(i, byte)| *byte == i as u8) && reply.body.len() == 20_000);
        assert_eq!(reply.header("steadfast-injected"), "throttle;bps=40000");
    }
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="throttle""#], 2).await;
}

/// When each piece of an answer came, after its head.
async fn arrivals(client: &Http, url: &str, fault: &str) -> (Duration, Vec<(Duration, Bytes)>) {
    let begun = Instant::now();
    let response = client.request(get(url, &[("steadfast-fault", fault)])).await.unwrap();
    let head = begun.elapsed();
    let mut body = response.into_body();
    let mut pieces = Vec::new();
    while let Some(frame) = timeout(PATIENCE, body.frame()).await.expect("in time") {
        // HTTP/2 may end a stream with a frame of nothing.
        if let Some(bytes) = frame.unwrap().into_data().ok().filter(|bytes| !bytes.is_empty()) {
            pieces.push((begun.elapsed(), bytes));
        }
    }
    (head, pieces)
}

#[tokio::test]
async fn a_stall_holds_back_the_first_byte_or_what_comes_between_chunks_or_between_tokens() {
    let (_server, sidecar) = trusting().await;
    for client in [client(), client_h2()] {
        let (head, pieces) = arrivals(&client, &sidecar.url("/bytes?10"), "stall=300").await;
        assert!(head < Duration::from_millis(300) && pieces[0].0 >= Duration::from_millis(300), "{head:?} {:?}", pieces[0].0);
        let (_, pieces) = arrivals(&client, &sidecar.url("/v1/chat/completions"), "stall=40;at=tokens").await;
        assert!(pieces.len() == 11 && pieces[10].1 == "data: [DONE]\n\n", "{pieces:?}");
        assert!(pieces[0].0 + Duration::from_millis(390) < pieces[10].0, "{pieces:?}");
        assert!(pieces.windows(2).all(|pair| pair[1].0 >= pair[0].0 + Duration::from_millis(20)), "{pieces:?}");
    }
    let begun = Instant::now();
    let reply = ask(&client(), get(&sidecar.url("/pieces?5x10"), &[("steadfast-fault", "stall=1;at=chunks")])).await;
    assert_eq!(reply.body.len(), 50);
    assert!(begun.elapsed() < Duration::from_secs(5));
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="stall""#], 5).await;
}

#[tokio::test]
async fn a_sliced_answer_comes_in_pieces_of_that_size_and_whole() {
    let (_server, sidecar) = trusting().await;
    for client in [client(), client_h2()] {
        let (_, pieces) = arrivals(&client, &sidecar.url("/bytes?95"), "slice=10;pause=15").await;
        let sizes: Vec<_> = pieces.iter().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(sizes, [10, 10, 10, 10, 10, 10, 10, 10, 10, 5]);
        assert!(pieces[9].0 >= pieces[0].0 + Duration::from_millis(130), "{pieces:?}");
    }
    let reply = ask(&client(), get(&sidecar.url("/bytes?3000"), &[("steadfast-fault", "slice=7")])).await;
    assert!(reply.body.iter().enumerate().all(|(i, byte)| *byte == i as u8) && reply.body.len() == 3000);
}

#[tokio::test]
async fn a_blackhole_never_answers_and_ends_with_its_time_or_its_policy() {
    let (server, sidecar) = trusting().await;
    let begun = Instant::now();
    let (text, end) = raw(&sidecar, "/x", "blackhole=200").await;
    assert!(text.is_empty() && end.is_ok() && begun.elapsed() >= Duration::from_millis(200), "{text:?} {end:?}");
    let error = try_ask(&client_h2(), get(&sidecar.url("/x"), &[("steadfast-fault", "blackhole=50")])).await.unwrap_err();
    assert!(error.contains("CANCEL"), "{error}");
    sidecar.arm("{name: hole, spec: {expiresAfter: 1h, budget: {concurrent: 9, share: 100%}, rules: [{faults: [{blackhole: {}}]}]}}").await;
    let waiting = tokio::spawn({
        let url = sidecar.url("/x");
        async move { try_ask(&client(), get(&url, &[])).await }
    });
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"policy="hole""#], 1).await;
    assert!(!waiting.is_finished());
    sidecar.admin("DELETE", "/policy", "").await;
    assert!(timeout(Duration::from_secs(2), waiting).await.expect("it ends with its policy").unwrap().is_err());
    assert_eq!(server.seen.requests.load(std::sync::atomic::Ordering::Acquire), 0);
}

#[tokio::test]
async fn what_waits_passes_on_when_its_policy_is_disarmed() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for fault in [
        "{delay: {fixed: 30s}}",
        "{delay: {fixed: 30s, before: response}}",
        "{stall: {for: 30s}}",
        "{throttle: {bytesPerSecond: 1}}",
        "{slice: {bytes: 1, pause: 30s}}",
    ] {
        sidecar.arm(&format!("{{name: p, spec: {{expiresAfter: 1h, budget: {{concurrent: 9, share: 100%}}, rules: [{{faults: [{fault}]}}]}}}}")).await;
        let begun = Instant::now();
        let waiting = tokio::spawn({
            let url = sidecar.url("/bytes?100");
            async move { ask(&client(), get(&url, &[])).await }
        });
        while sidecar.admin("GET", "/policy", "").await.json()["policies"][0]["active"] == 0 {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "{fault}");
        sidecar.admin("DELETE", "/policy", "").await;
        assert_eq!(waiting.await.unwrap().body.len(), 100, "{fault}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{fault}");
    }
}

#[tokio::test]
async fn memory_is_held_for_its_time_within_the_budget_and_given_back() {
    let (_server, sidecar) = trusting().await;
    let client = client();
    let asks = |fault: &'static str| ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", fault)]));
    assert_eq!(asks("memory=6291456;for=4000").await.header("steadfast-injected"), "memory;bytes=6291456");
    assert_eq!(sidecar.metric("steadfast_memory_held_bytes", &[]).await, 6 << 20);
    let reply = asks("memory=6291456;for=4000").await;
    assert_eq!((reply.status, reply.header("steadfast-injected")), (200, ""), "it would be more than the budget has");
    let reply = asks("memory=16777216;for=4000").await;
    assert!(reply.status == 400 && reply.text().contains("8388608"), "{}", reply.text());
    let begun = Instant::now();
    while sidecar.metric("steadfast_memory_held_bytes", &[]).await > 0 {
        assert!(begun.elapsed() < PATIENCE, "it is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_abort_speaks_as_the_path_does() {
    let (_server, sidecar) = trusting().await;
    let post = |path: &str, content_type: &str, fault: &str| {
        Request::post(sidecar.url(path)).header("content-type", content_type).header("steadfast-fault", fault).body(Full::default()).unwrap()
    };
    let client = client();
    let reply = ask(&client, post("/v1/chat/completions", "application/json", "abort=429")).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str(), reply.header("steadfast-origin")), (429, Some("rate_limit_exceeded"), "injected"));
    let reply = ask(&client, post("/inference.GRPCInferenceService/ModelInfer", "application/json", "abort;grpc=14")).await;
    assert_eq!((reply.status, reply.json()["code"].as_u64(), reply.header("steadfast-injected")), (503, Some(14), "abort;status=503"));
    let reply = ask(&client, post("/v2/models/m/infer", "application/json", "abort=500")).await;
    assert!(reply.status == 500 && reply.json()["error"].is_string());
    // Trailers-only: the status stands in the only block of headers, and there is no body.
    let response = client_h2().request(post("/inference.GRPCInferenceService/ModelInfer", "application/grpc", "abort;grpc=8")).await.unwrap();
    assert!(hyper::body::Body::is_end_stream(response.body()), "a block of headers that ends the stream");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"], &response.headers()["steadfast-injected"]),
        (200, &"8".parse().unwrap(), &"abort;grpc=8".parse().unwrap())
    );
}

#[tokio::test]
async fn tokens_are_dropped_sent_twice_garbled_or_the_end_is_missing() {
    let (_server, sidecar) = trusting().await;
    let client = client();
    let asks = async |fault: &'static str| ask(&client, get(&sidecar.url("/v1/chat/completions"), &[("steadfast-fault", fault)])).await;
    let right = ask(&client, get(&sidecar.url("/v1/chat/completions"), &[])).await.text();
    assert_eq!(right.matches("data: ").count(), 11);
    let dropped = asks("corrupt;events=drop;share=1").await;
    assert_eq!((dropped.text().as_str(), dropped.header("steadfast-injected")), ("data: [DONE]\n\n", "corrupt;events=drop"));
    assert_eq!(asks("corrupt;events=duplicate;share=1").await.text().matches("data: ").count(), 21);
    let garbled = asks("corrupt;events=malformed;share=1").await.text();
    let unreadable =
        garbled.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).filter(|data| serde_json::from_str::<serde_json::Value>(data).is_err());
    assert_eq!(unreadable.count(), 11, "ten tokens, and the end, which never was JSON: {garbled}");
    assert_eq!(asks("corrupt;events=noEnd").await.text(), right.strip_suffix("data: [DONE]\n\n").unwrap());
    assert_eq!(asks("corrupt;events=drop;p=0").await.text(), right);
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="corrupt""#], 4).await;
}

/// Ten answers of two megabytes each are more than a connection's window, and two thousand frames of ten bytes are what HTTP/2 libraries take for an attack if nobody
/// reads them: neither may reach the streams beside them.
#[tokio::test]
async fn a_stalled_http2_stream_leaves_its_siblings_at_full_speed() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let rule = "{match: {grpc: {service: small.Frames, method: Stalled}}, faults: [{stall: {for: 1h, at: chunks}}]}";
    sidecar.arm(&format!("{{name: p, spec: {{expiresAfter: 1h, budget: {{concurrent: 99, share: 100%}}, rules: [{rule}]}}}}")).await;
    let client = client_h2();
    let call = |path: &str| Request::post(sidecar.url(path)).header("content-type", "application/grpc").body(Full::default()).unwrap();
    let sibling = async || {
        let begun = Instant::now();
        for path in ["/small.Frames/Some?2000x10", "/small.Frames/Some?20x50000"] {
            for _ in 0..10 {
                let reply = ask(&client, call(path)).await;
                assert!(reply.status == 200 && reply.body.len() > 10_000);
            }
        }
        begun.elapsed()
    };
    let alone = sibling().await;
    let stalled: Vec<_> = ["/small.Frames/Stalled?400x10", "/small.Frames/Stalled?40x50000"]
        .into_iter()
        .cycle()
        .take(20)
        .map(|path| tokio::spawn(client.request(call(path))))
        .collect();
    let mut bodies = Vec::new();
    for stalled in stalled {
        bodies.push(timeout(PATIENCE, stalled).await.expect("the head comes").unwrap().unwrap().into_body());
    }
    let beside = sibling().await;
    assert!(beside < alone * 4 + Duration::from_secs(1), "{alone:?} alone, {beside:?} beside twenty that are stalled");
    assert_eq!(sidecar.admin("GET", "/policy", "").await.json()["policies"][0]["active"], 20, "all are stalled still");
    // Disarmed, they go on where they were. Of small frames so many that the client does not take them for an attack.
    let read: Vec<_> = bodies.into_iter().map(|body| tokio::spawn(timeout(PATIENCE, body.collect()))).collect();
    sidecar.admin("DELETE", "/policy", "").await;
    for (i, read) in read.into_iter().enumerate() {
        let size = read.await.unwrap().expect("in time").unwrap().to_bytes().len();
        assert_eq!(size, if i % 2 == 0 { 4_000 } else { 2_000_000 });
    }
}
