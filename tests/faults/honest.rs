//! What is counted is what took place, and who only looks whether the server is there is left alone.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::harness::{PATIENCE, Server, Sidecar, TRUSTING, ask, client, client_h2, get, rest};

const ALL: &str =
    "{name: all, spec: {expiresAfter: 1h, budget: {concurrent: 1000, share: 100%}, rules: [{faults: [{abort: {httpStatus: 503, grpcCode: 14}}]}]}}";

#[tokio::test]
async fn a_status_without_content_has_none() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    for client in [client(), client_h2()] {
        for status in [204, 205, 304] {
            let reply = ask(&client, get(&sidecar.url("/x"), &[("steadfast-fault", &format!("abort={status}"))])).await;
            assert_eq!((reply.status, reply.body.len(), reply.header("content-type")), (status, 0, ""));
            assert!(["", "0"].contains(&reply.header("content-length")), "{:?}", reply.headers);
        }
    }
}

#[tokio::test]
async fn a_delay_counts_for_a_client_that_does_not_wait_for_its_end() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    for fault in ["delay=2000", "delay=2000;before=response"] {
        let asked = timeout(Duration::from_millis(200), ask(&client(), get(&sidecar.url("/x"), &[("steadfast-fault", fault)]))).await;
        assert!(asked.is_err(), "{fault}");
    }
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="delay""#], 2).await;
    sidecar.metric_reaches("steadfast_requests_cancelled_total", &[], 2).await;
}

#[tokio::test]
async fn an_answer_that_came_whole_did_not_break_off() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    let (one, two) = (client(), client_h2());
    let faults = ["throttle=100000", "stall=5", "stall=5;at=chunks", "slice=10", "slice=100", "truncate=200", "truncate=100", "reset;after=100"];
    for (client, path, size) in [(&one, "/bytes?100", 100), (&two, "/bytes?100", 100), (&one, "/pieces?10x10", 100)] {
        for fault in faults {
            let reply = ask(client, get(&sidecar.url(path), &[("steadfast-fault", fault)])).await;
            assert_eq!(reply.body.len(), size, "{fault}");
        }
    }
    sidecar.metric_reaches("steadfast_requests_total", &[r#"code="200""#], 3 * faults.len() as u64).await;
    assert_eq!(sidecar.metric("steadfast_responses_truncated_total", &[]).await, 0);
}

#[tokio::test]
async fn probes_of_every_kind_are_left_alone() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--ready-path", "/alive"]);
    sidecar.arm(ALL).await;
    for path in ["/v2/health/ready", "/v2/health/live", "/v2/models/m/ready", "/alive"] {
        assert_eq!(ask(&client(), get(&sidecar.url(path), &[])).await.status, 200, "{path}");
    }
    for (path, grpc_status) in [
        ("/grpc.health.v1.Health/Check", ""),
        ("/inference.GRPCInferenceService/ServerReady", ""),
        ("/inference.GRPCInferenceService/ModelReady", ""),
        ("/inference.GRPCInferenceService/ModelInfer", "14"),
    ] {
        let call = Request::post(sidecar.url(path)).header("content-type", "application/grpc").body(Full::new(Bytes::new())).unwrap();
        assert_eq!(ask(&client_h2(), call).await.header("grpc-status"), grpc_status, "{path}");
    }
    for path in ["/v2/health/whatever/infer", "/x"] {
        assert_eq!(ask(&client(), get(&sidecar.url(path), &[])).await.status, 503, "{path}");
    }
    let posted = Request::post(sidecar.url("/alive")).body(Full::new(Bytes::new())).unwrap();
    assert_eq!(ask(&client(), posted).await.status, 503, "nobody asks for readiness by POST");
}

#[tokio::test]
async fn a_client_that_ends_its_half_while_its_answer_is_held_up_has_left() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    let mut leaving = TcpStream::connect(sidecar.data).await.unwrap();
    leaving.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\nsteadfast-fault: delay=2000;before=response\r\n\r\n").await.unwrap();
    // Counted when the answer has come, and waits.
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="delay""#], 1).await;
    let begun = Instant::now();
    leaving.shutdown().await.unwrap();
    sidecar.metric_reaches("steadfast_requests_cancelled_total", &[], 1).await;
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_nobody_understands_ends_when_something_is_armed() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let sidecar = Sidecar::start(address, &["--ready-tcp"]);
    let mut odd = TcpStream::connect(sidecar.data).await.unwrap();
    odd.write_all(b"\0what is this?").await.unwrap();
    sidecar.metric_reaches("steadfast_opaque_connections_total", &[], 1).await;
    let mut tls = TcpStream::connect(sidecar.data).await.unwrap();
    tls.write_all(b"\x16\x03\x01\0\x05hello").await.unwrap();
    sidecar.metric_reaches("steadfast_opaque_connections_total", &[], 2).await;
    sidecar.arm(ALL).await;
    assert_eq!(rest(&mut odd).await, "\0what is this?");
    tls.write_all(b"more").await.unwrap();
    let mut back = [0; 14];
    timeout(PATIENCE, tls.read_exact(&mut back)).await.expect("TLS goes on").unwrap();
    assert_eq!(&back, b"\x16\x03\x01\0\x05hellomore");
}
