//! Disarmed, on the relay: what the sidecar does itself although it only passes bytes on.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{PATIENCE, Server, Sidecar, ask, client, client_h2, get},
    seam::WAITING,
};

async fn read_until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut bytes)).await.expect("an answer in time").unwrap();
        assert!(read > 0, "it ended with {:?}", String::from_utf8_lossy(&bytes));
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_is_heard_by_the_server_within_50_ms() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for (number, made) in [client(), client_h2()].into_iter().enumerate() {
        let url = sidecar.url("/slow?30000");
        let asked = tokio::spawn(async move { ask(&made, get(&url, &[])).await });
        while server.seen.requests.load(Ordering::Acquire) <= number {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        asked.abort();
        let left = Instant::now();
        while server.seen.cancelled.load(Ordering::Acquire) <= number {
            assert!(left.elapsed() < PATIENCE, "the server still works for a client that has left");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Twice as long as promised: two processes share the machine with every other test.
        assert!(left.elapsed() < Duration::from_millis(100), "{:?}", left.elapsed());
    }
    sidecar.metric_reaches("steadfast_requests_cancelled_total", &[], 2).await;
    sidecar.metric_reaches("steadfast_requests_in_progress", &[], 0).await;
}

/// Every answer goes out whole and says that it is not the server's, on a connection that ends with it.
#[tokio::test]
async fn a_server_that_breaks_off_is_answered_for_at_any_point() {
    let _server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for armed in [false, true] {
        let sidecar = Sidecar::start(listener.local_addr().unwrap(), &[]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        for (says, status, cut) in [
            ("", "HTTP/1.1 502", 0),
            ("HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 502", 0),
            ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "HTTP/1.1 200", 1),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhe", "HTTP/1.1 200", 2),
        ] {
            let serving = async {
                loop {
                    // Readiness probes have a connection of their own.
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut head = vec![0; 1000];
                    let read = stream.read(&mut head).await.unwrap();
                    if head[..read].starts_with(b"GET /it") {
                        stream.write_all(says.as_bytes()).await.unwrap();
                        return;
                    }
                }
            };
            let asking = async {
                let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
                stream.write_all(b"GET /it HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("the connection ends").unwrap();
                answer
            };
            let (answer, ()) = tokio::join!(asking, serving);
            assert!(answer.starts_with(status), "{says:?}: {answer}");
            assert_eq!(answer.contains("steadfast-origin: proxy") && answer.contains("upstream-broken"), status.ends_with("502"), "{answer}");
            assert_eq!(sidecar.metric("steadfast_responses_truncated_total", &[r#"by="upstream""#]).await, cut);
        }
        assert_eq!(sidecar.metric("steadfast_requests_total", &[r#"origin="proxy""#, r#"code="502""#]).await, 2);
    }
}

#[tokio::test]
async fn an_armed_policy_falls_on_the_next_request_of_an_open_connection_and_a_disarmed_one_does_not() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
    let policy = "name: no\nspec: {expiresAfter: 1h, budget: {concurrent: 9, share: 100%}, rules: [{faults: [{abort: {httpStatus: 503}}]}]}";
    for _ in 0..3 {
        for (armed, status) in [(false, "HTTP/1.1 200"), (true, "HTTP/1.1 503")] {
            if armed {
                sidecar.arm(policy).await;
            } else {
                sidecar.admin("DELETE", "/policy", "").await;
            }
            for _ in 0..2 {
                stream.write_all(b"GET /v2/x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                let answer = read_until(&mut stream, if armed { b"}" } else { b"hello" }).await;
                // The first one after disarming may still be answered by the stack, as what it is.
                assert!(answer.starts_with(status) && !answer.to_lowercase().contains("connection: close"), "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn a_policy_that_touches_no_request_keeps_nobody_from_the_relay() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm("name: busy\nspec: {expiresAfter: 1h, budget: {concurrent: 1, share: 1%}, cpuPressure: {load: 1%, cores: 1}}").await;
    assert_eq!(ask(&client(), get(&sidecar.url("/x"), &[])).await.header("keep-alive"), "timeout=5", "the stack would have taken it out");
    assert_eq!(sidecar.metric("steadfast_connections_moved_total", &[]).await, 0);
}

#[tokio::test]
async fn a_server_without_http2_is_served_to_http2_clients_by_the_stack() {
    let _server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = hyper::service::service_fn(async |_| Ok::<_, std::convert::Infallible>(http::Response::new("one".to_owned())));
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    let sidecar = Sidecar::start(address, &[]);
    for _ in 0..2 {
        let client = client_h2();
        for _ in 0..3 {
            let reply = ask(&client, get(&sidecar.url("/x"), &[])).await;
            assert_eq!((reply.status, reply.text().as_str()), (200, "one"));
        }
    }
    sidecar.metric_reaches("steadfast_requests_total", &[r#"code="200""#], 6).await;
}

#[tokio::test]
async fn who_asks_over_http2_is_told_which_pod_answered() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--pod-name", "recommender-7"]);
    let client = client_h2();
    for _ in 0..3 {
        assert_eq!(ask(&client, get(&sidecar.url("/x"), &[("steadfast-pod", "?1")])).await.header("steadfast-pod"), "recommender-7");
        assert_eq!(ask(&client, get(&sidecar.url("/x"), &[])).await.header("steadfast-pod"), "");
    }
}

/// A client that connects anew for each request does not cost the server a connection each.
#[tokio::test]
async fn connections_to_the_server_outlive_their_clients() {
    let _server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::AcqRel);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(async |_| Ok::<_, std::convert::Infallible>(http::Response::new("one".to_owned())));
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    let sidecar = Sidecar::start(address, &["--ready-tcp"]);
    let before = accepted.load(Ordering::Acquire);
    for _ in 0..50 {
        let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        read_until(&mut stream, b"one").await;
    }
    let dialled = accepted.load(Ordering::Acquire) - before;
    assert!(dialled < 15, "{dialled} connections for 50 clients");
}

/// What 2,000 idle connections cost, as the kernel counts it.
#[tokio::test]
async fn two_thousand_open_connections_cost_little_memory() {
    let server = Server::start().await;
    for (armed, most) in [(false, 4 << 10), (true, 24 << 10)] {
        let sidecar = Sidecar::start(server.address, &[]);
        if armed {
            sidecar.arm(WAITING).await;
        }
        let resident = || sidecar.usage().0;
        assert_eq!(ask(&client(), get(&sidecar.url("/x"), &[])).await.status, 200);
        let before = resident();
        let mut open = Vec::new();
        for _ in 0..2000 {
            let mut stream = TcpStream::connect(sidecar.data).await.unwrap();
            stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            read_until(&mut stream, b"hello").await;
            open.push(stream);
        }
        let each = (resident() - before) * 1024 / 2000;
        eprintln!("armed: {armed}: {before} kB idle, {} kB with 2,000 connections: {each} bytes each", resident());
        assert!(each < most, "{each} bytes a connection, armed: {armed}");
    }
}
