//! Faults that a request asks for itself.

use std::time::{Duration, Instant};

use crate::harness::{Server, Sidecar, TRUSTING, ask, client, get};

#[tokio::test]
async fn a_trusted_header_gets_what_it_asks_for_and_the_server_never_sees_it() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    let client = client();

    let begun = Instant::now();
    let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", "delay=120")])).await;
    assert!(begun.elapsed() >= Duration::from_millis(120));
    assert_eq!((reply.status, reply.header("steadfast-injected"), reply.header("steadfast-origin")), (200, "delay;ms=120", ""));
    assert!(!server.seen.headers.lock().unwrap().contains_key("steadfast-fault"));

    let before = server.seen.requests.load(std::sync::atomic::Ordering::Acquire);
    let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", "delay=5, abort=503")])).await;
    assert_eq!((reply.status, reply.header("steadfast-injected"), reply.header("steadfast-origin")), (503, "delay;ms=5, abort;status=503", "injected"));
    assert_eq!(reply.header("content-type"), "application/problem+json");
    let reply = ask(&client, get(&sidecar.url("/v2/models/m/infer"), &[("steadfast-fault", "abort=500")])).await;
    assert!(reply.status == 500 && reply.json()["error"].is_string(), "{}", reply.text());
    assert_eq!(server.seen.requests.load(std::sync::atomic::Ordering::Acquire), before, "an aborted request reached the server");

    let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", "cpu=0.2;for=100")])).await;
    assert_eq!((reply.status, reply.header("steadfast-injected")), (200, "cpu;load=0.2;cores=1;for=100"));

    sidecar.metric_reaches("steadfast_requests_total", &[r#"origin="upstream""#, r#"code="200""#], 2).await;
    sidecar.metric_reaches("steadfast_requests_total", &[r#"origin="injected""#], 2).await;
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"policy="header""#, r#"kind="delay""#], 2).await;
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"policy="header""#, r#"kind="abort""#], 2).await;
}

/// An abort is answered without the model server, but not before the request was read: what is left of a body must not become the next request.
#[tokio::test]
async fn an_abort_whose_body_comes_later_leaves_the_connection_whole() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    let mut stream = tokio::net::TcpStream::connect(sidecar.data).await.unwrap();
    let mut answer = async |request: &[u8]| {
        stream.write_all(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(b"GET /smuggled HTTP/1.1\r\n\r\n").await.unwrap();
        let mut bytes = vec![0; 4096];
        let size = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut bytes)).await.expect("an answer in time").unwrap();
        String::from_utf8_lossy(&bytes[..size]).into_owned()
    };
    for header in ["steadfast-fault: abort=503", "steadfast-fault: abort=0"] {
        let expected = if header.ends_with("503") { "HTTP/1.1 503" } else { "HTTP/1.1 400" };
        for _ in 0..2 {
            let text = answer(format!("POST /x HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: 26\r\n\r\n").as_bytes()).await;
            assert!(text.starts_with(expected) && !text.to_ascii_lowercase().contains("connection: close"), "{text}");
        }
    }
    assert_eq!(server.seen.requests.load(std::sync::atomic::Ordering::Acquire), 0, "the body was taken for a request");
}

#[tokio::test]
async fn a_bad_header_is_a_400_that_says_what_would_be_right() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    let client = client();
    for (header, key, value) in [
        ("delay=soon", "delay", "soon"),
        ("abort=999", "abort", "999"),
        ("delay=2500", "delay", "2500"),
        ("cpu=0.5", "cpu;for", "nothing"),
        ("latency=5", "latency", "latency"),
        ("delay=1;q=2", "delay;q", "2"),
    ] {
        let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", header)])).await;
        assert_eq!((reply.status, reply.header("content-type"), reply.header("steadfast-origin")), (400, "application/problem+json", "proxy"), "{header}");
        let problem = reply.json();
        assert_eq!((problem["key"].as_str(), problem["value"].as_str()), (Some(key), Some(value)), "{problem}");
        assert!(problem["expected"].as_str().is_some_and(|expected| expected.len() > 5), "{problem}");
    }
    sidecar.metric_reaches("steadfast_fault_headers_rejected_total", &[], 6).await;
    assert_eq!(server.seen.requests.load(std::sync::atomic::Ordering::Acquire), 0);
}

#[tokio::test]
async fn an_untrusted_header_is_stripped_and_counted_whatever_it_says() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let client = client();
    for policy in [None, Some(TRUSTING.replace("127.0.0.0/8", "10.0.0.0/8"))] {
        if let Some(policy) = policy {
            sidecar.arm(&policy).await;
        }
        for header in ["abort=503", "not a header at all ("] {
            let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", header)])).await;
            assert_eq!((reply.status, reply.header("steadfast-injected")), (200, ""), "{header}");
            assert!(!server.seen.headers.lock().unwrap().contains_key("steadfast-fault"));
        }
    }
    sidecar.metric_reaches("steadfast_fault_headers_stripped_total", &[r#"reason="untrusted""#], 4).await;
}

#[tokio::test]
async fn probes_are_never_faulted() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(&TRUSTING.replace("budget:", "rules: [{faults: [{abort: {httpStatus: 503}}]}]\n  budget:")).await;
    let client = client();
    assert_eq!(ask(&client, get(&sidecar.url("/x"), &[])).await.status, 503);
    for path in ["/v2/health/ready", "/v2/health/live", "/v2/models/m/ready", "/v2/models/m/versions/1/ready"] {
        let reply = ask(&client, get(&sidecar.url(path), &[("steadfast-fault", "abort=500")])).await;
        assert_eq!(reply.status, 200, "{path}");
    }
}
