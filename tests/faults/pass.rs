//! What passes through, and how: protocols, streaming, errors, clients that leave.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use crate::harness::{PATIENCE, Server, Sidecar, TRUSTING, ask, client, client_h2, get};

#[tokio::test]
async fn who_asks_is_told_which_pod_answered_and_nobody_else() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--pod-name", "recommender-7"]);
    let client = client();
    let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-pod", "?1")])).await;
    assert_eq!((reply.status, reply.header("steadfast-pod")), (200, "recommender-7"));
    assert!(!server.seen.headers.lock().unwrap().contains_key("steadfast-pod"), "it is no business of the server");
    for asked in [&[][..], &[("steadfast-pod", "?0")][..]] {
        assert_eq!(ask(&client, get(&sidecar.url("/x"), asked)).await.header("steadfast-pod"), "");
    }
}

#[tokio::test]
async fn the_answer_is_the_servers_own_over_both_protocols_armed_and_disarmed() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for armed in [false, true] {
        if armed {
            sidecar.arm(TRUSTING).await;
        }
        for (http2, client) in [(false, client()), (true, client_h2())] {
            let reply = ask(&client, get(&sidecar.url("/hello"), &[("connection-free", "1")])).await;
            assert_eq!((reply.status, reply.text().as_str(), reply.header("x-server")), (200, "hello", "real"));
            let ours = reply.headers.keys().filter(|name| name.as_str().starts_with("steadfast-")).count();
            assert_eq!(ours, 0, "{:?}", reply.headers);
            // Disarmed, HTTP/1 passes as it is; the stack keeps what belongs to the hop.
            assert_eq!(reply.headers.contains_key("keep-alive"), !armed && !http2, "{:?}", reply.headers);
            assert_eq!(ask(&client, get(&sidecar.url("/refuse"), &[])).await.status, 418);
        }
    }
    sidecar.metric_reaches("steadfast_requests_total", &[r#"origin="upstream""#, r#"code="418""#], 4).await;
}

#[tokio::test]
async fn fields_of_the_hop_stay_on_the_hop() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
    stream
        .write_all(b"GET /x HTTP/1.1\r\nHost: model\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let headers = server.seen.headers.lock().unwrap();
    assert_eq!((headers["host"].to_str().unwrap(), headers.contains_key("x-kept")), ("model", true));
    for name in ["connection", "x-secret", "te", "upgrade"] {
        assert!(!headers.contains_key(name), "{name} in {headers:?}");
    }
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for http2 in [false, true] {
        let client: Client<_, Pieces> = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        let (send, receive) = mpsc::channel(1);
        send.send(Frame::data(Bytes::from_static(b"first"))).await.unwrap();
        let response = client.request(Request::post(sidecar.url("/echo")).body(Pieces(receive)).unwrap());
        let response = tokio::time::timeout(PATIENCE, async { response.await.unwrap() }).await;
        let mut echoed = response.expect("no answer begins before the request has ended").into_body();
        // Each piece comes back while the request is still open.
        for piece in ["first", "second", "third"] {
            if piece != "first" {
                send.send(Frame::data(Bytes::from(piece))).await.unwrap();
            }
            let mut got = Vec::new();
            while got.len() < piece.len() {
                let frame = tokio::time::timeout(PATIENCE, echoed.frame()).await.expect("the piece does not come back").unwrap().unwrap();
                got.extend_from_slice(&frame.into_data().unwrap());
            }
            assert_eq!(got, piece.as_bytes());
        }
        drop(send);
        let rest = tokio::time::timeout(PATIENCE, echoed.collect()).await.expect("the answer does not end with the request").unwrap().to_bytes();
        assert!(rest.is_empty(), "{rest:?}");
    }
}

/// A request body that is made of what the test sends.
struct Pieces(mpsc::Receiver<Frame<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

#[tokio::test]
async fn a_large_body_passes_whole() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let body: Bytes = (0..5_000_000_u32).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>().into();
    for client in [client(), client_h2()] {
        let reply = ask(&client, Request::post(sidecar.url("/echo")).body(Full::new(body.clone())).unwrap()).await;
        assert!(reply.status == 200 && reply.body == body, "{} bytes came back", reply.body.len());
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request_at_the_server() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for (number, client) in [client(), client_h2()].into_iter().enumerate() {
        let begun = Instant::now();
        let asked = tokio::spawn(async move {
            let url = sidecar_url(sidecar.data);
            let _ = ask(&client, get(&url, &[])).await;
        });
        while server.seen.requests.load(Ordering::Acquire) <= number {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        asked.abort();
        let left = Instant::now();
        while server.seen.cancelled.load(Ordering::Acquire) <= number {
            assert!(left.elapsed() < Duration::from_secs(5), "the server still works for a client that has left");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn sidecar_url(data: std::net::SocketAddr) -> String {
    format!("http://{data}/slow?30000")
}

#[tokio::test]
async fn without_a_server_the_sidecar_says_so_itself() {
    // A port that was free a moment ago and is bound by nobody.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sidecar = Sidecar::start(free, &[]);
    let reply = ask(&client(), get(&sidecar.url("/x"), &[])).await;
    assert_eq!((reply.status, reply.header("content-type"), reply.header("steadfast-origin")), (503, "application/problem+json", "proxy"));
    let reply = ask(&client(), get(&sidecar.url("/v2/models/m/infer"), &[])).await;
    assert!(reply.status == 503 && reply.json()["error"].is_string());
    assert_eq!(sidecar.admin("GET", "/readyz", "").await.status, 503);
    assert_eq!(sidecar.admin("GET", "/healthz", "").await.status, 200);
    sidecar.metric_reaches("steadfast_requests_total", &[r#"origin="proxy""#, r#"code="503""#], 2).await;
}

#[tokio::test]
async fn a_server_that_is_too_slow_or_breaks_off_is_told_from_one_that_is_not_there() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--upstream-timeout", "100ms"]);
    assert_eq!(ask(&client(), get(&sidecar.url("/slow?5000"), &[])).await.status, 504);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 16]).await;
        }
    });
    let sidecar = Sidecar::start(address, &[]);
    let reply = ask(&client(), get(&sidecar.url("/x"), &[])).await;
    assert_eq!((reply.status, reply.header("steadfast-origin")), (502, "proxy"));
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_only_half_is_closed() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--header-timeout", "300ms"]);
    for start in ["", "PRI * HT", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow"] {
        let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{start:?} keeps its connection");
    }
    assert_eq!(ask(&client(), get(&sidecar.url("/x"), &[])).await.status, 200);
}

#[tokio::test]
async fn no_more_clients_at_once_than_allowed_and_those_in_the_queue_are_served_later() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--max-connections", "2"]);
    let (first, second) = (TcpStream::connect(sidecar.data).await.unwrap(), TcpStream::connect(sidecar.data).await.unwrap());
    let begun = Instant::now();
    while sidecar.metric("steadfast_connections", &[]).await < 2 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = tokio::spawn({
        let url = sidecar.url("/x");
        async move { ask(&client(), get(&url, &[])).await.status }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    drop((first, second));
    assert_eq!(waiting.await.unwrap(), 200);
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused_by_the_sidecar() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for (request, status) in [("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400"), ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n", "501")]
    {
        let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 512];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains("steadfast-origin: proxy"), "{answer}");
    }
    assert_eq!(server.seen.requests.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn a_websocket_passes_through_and_counts_while_draining() {
    let _server = Server::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                if !String::from_utf8_lossy(&head[..read]).to_lowercase().contains("upgrade: websocket") {
                    return stream.write_all(b"HTTP/1.1 400 no\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                }
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let mut sidecar = Sidecar::start(address, &["--drain-grace", "0s"]);
    let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
    stream.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    sidecar.terminate();
    tokio::time::sleep(Duration::from_millis(200)).await;
    for word in [b"ping", b"pong"] {
        stream.write_all(word).await.unwrap();
        let mut echoed = [0; 4];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
        assert_eq!(&echoed, word);
    }
    drop(stream);
    assert_eq!(sidecar.ended().await, 0);
}

#[tokio::test]
async fn grpc_goes_on_as_http2_with_its_trailers() {
    // The echo server answers whatever protocol it is asked in; that it was HTTP/2 shows in the trailers, which HTTP/1.1 would have needed announced.
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let client: Client<_, Pieces> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let (send, receive) = mpsc::channel(2);
    send.send(Frame::data(Bytes::from_static(b"\0\0\0\0\x01a"))).await.unwrap();
    send.send(Frame::trailers(trailers)).await.unwrap();
    drop(send);
    let request = Request::builder()
        .method(Method::POST)
        .uri(sidecar.url("/echo"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Pieces(receive))
        .unwrap();
    let reply = tokio::time::timeout(PATIENCE, client.request(request)).await.unwrap().unwrap();
    assert_eq!(reply.status(), 200);
    let collected = tokio::time::timeout(PATIENCE, reply.into_body().collect()).await.unwrap().unwrap();
    assert_eq!(collected.trailers().map(|trailers| trailers["grpc-status"].to_str().unwrap().to_owned()).as_deref(), Some("0"));
    assert_eq!(server.seen.headers.lock().unwrap()["te"], "trailers");
}
