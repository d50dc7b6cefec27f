//! Whom rules mean, how often, and what is known of it afterwards.

use std::time::Duration;

use http::Request;
use http_body_util::Full;

use crate::harness::{Server, Sidecar, TRUSTING, ask, client, client_h2, get, try_ask};

fn policy(more: &str) -> String {
    format!("{{name: p, spec: {{expiresAfter: 1h, budget: {{concurrent: 1000, share: 100%}}, {more}}}}}")
}

#[tokio::test]
async fn rules_mean_requests_by_everything_that_can_be_known_of_them() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let client = client();
    for (matches, path, header, hit) in [
        ("path: {regex: '/v[12]/.*x'}", "/v1/abx", ("a", "b"), true),
        ("path: {regex: '/v[12]/.*x'}", "/v1/abxy", ("a", "b"), false),
        ("query: {user: 'a b'}", "/?user=a+b", ("a", "b"), true),
        ("query: {user: 'a b'}", "/?user=ab", ("a", "b"), false),
        ("model: m, version: '3'", "/v2/models/m/versions/3/infer", ("a", "b"), true),
        ("model: m, version: '3'", "/v2/models/m/infer", ("a", "b"), false),
        ("clients: [127.0.0.0/8]", "/", ("a", "b"), true),
        ("clients: [10.0.0.0/8]", "/", ("a", "b"), false),
        ("identity: {header: x-client, anyOf: [load, tests]}", "/", ("x-client", "tests"), true),
        ("identity: {header: x-client, anyOf: [load, tests]}", "/", ("x-client", "users"), false),
    ] {
        sidecar.arm(&policy(&format!("rules: [{{match: {{{matches}}}, faults: [{{abort: {{httpStatus: 418}}}}]}}]"))).await;
        let status = ask(&client, get(&sidecar.url(path), &[header])).await.status;
        assert_eq!(status == 418, hit, "{matches} {path} {header:?}: {status}");
    }
    sidecar.arm(&policy("rules: [{match: {grpc: {service: small.Frames}}, faults: [{abort: {grpcCode: 5}}]}]")).await;
    let call = |path: &str| Request::post(sidecar.url(path)).header("content-type", "application/grpc").body(Full::default()).unwrap();
    assert_eq!(ask(&client_h2(), call("/small.Frames/Some?1x1")).await.header("grpc-status"), "5");
    assert_eq!(ask(&client_h2(), call("/other.Service/Some")).await.header("grpc-status"), "");
}

#[tokio::test]
async fn a_model_that_stands_in_the_body_is_meant_as_well() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let post =
        |path: &str, content_type: &str, body: Vec<u8>| Request::post(sidecar.url(path)).header("content-type", content_type).body(Full::from(body)).unwrap();
    let embed = |body: &str| post("/v1/embeddings", "application/json", body.as_bytes().to_vec());
    // ModelInferRequest: a name, a version, and 10 KB of input.
    let infer = |name: &str, version: &str| {
        let input = vec![7; 10_000];
        let message = [&[0x0a, name.len() as u8], name.as_bytes(), &[0x12, version.len() as u8], version.as_bytes(), &[0x3a, 0x90, 0x4e], &input].concat();
        post("/inference.GRPCInferenceService/ModelInfer", "application/grpc", [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat())
    };
    sidecar.arm(&policy("rules: [{match: {model: tiny}, faults: [{abort: {httpStatus: 418, grpcCode: 5}}]}]")).await;
    let behind = format!(r#"{{"input": "{}", "model": "tiny"}}"#, "x".repeat(100_000));
    for client in [client(), client_h2()] {
        assert_eq!(ask(&client, embed(&behind)).await.status, 418);
        for other in [r#"{"input": "the \"model\": tiny", "model": "large"}"#, r#"{"input": "tiny"}"#, "tiny"] {
            let reply = ask(&client, embed(other)).await;
            assert_eq!((reply.status, reply.text().as_str()), (200, other), "its body goes up as it came");
        }
    }
    assert_eq!(ask(&client_h2(), infer("tiny", "2")).await.header("grpc-status"), "5");
    let other = ask(&client_h2(), infer("large", "2")).await;
    assert!(other.status == 200 && other.body.len() > 10_000 && other.header("grpc-status").is_empty());
    sidecar.metric_reaches("steadfast_model_unknown_total", &[r#"reason="unreadable""#], 2).await;
    sidecar.arm(&policy("rules: [{match: {version: '2'}, faults: [{abort: {grpcCode: 6}}]}]")).await;
    assert_eq!(ask(&client_h2(), infer("any", "2")).await.header("grpc-status"), "6");
    assert_eq!(ask(&client_h2(), infer("any", "")).await.header("grpc-status"), "");
}

#[tokio::test]
async fn what_took_place_is_counted_exactly_and_the_last_hundred_are_shown() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--threads", "2"]);
    let rules = "[{match: {path: {prefix: /a}}, every: 3, faults: [{abort: {httpStatus: 503}}]}, {match: {path: {prefix: /b}}, first: 7, faults: [{truncate: {afterBytes: 2}}]}]";
    sidecar.arm(&policy(&format!("rules: {rules}"))).await;
    let client = client();
    let mut aborted = 0;
    for i in 0..360 {
        aborted += usize::from(ask(&client, get(&sidecar.url(&format!("/a/{i}?secret=1")), &[])).await.status == 503);
    }
    let mut cut = 0;
    for _ in 0..10 {
        cut += usize::from(try_ask(&client, get(&sidecar.url("/b"), &[])).await.is_err());
    }
    assert_eq!((aborted, cut), (120, 7));
    let shown = sidecar.admin("GET", "/policy", "").await.json();
    assert_eq!(shown["policies"][0]["injected"], serde_json::json!({ "abort": 120, "truncate": 7 }));
    let last = shown["injections"].as_array().unwrap();
    assert_eq!((last.len(), &last[99]["number"], &last[99]["fault"], &last[99]["policy"]), (100, &127.into(), &"truncate".into(), &"p".into()));
    assert_eq!((&last[92]["path"], &last[92]["method"], &last[92]["client"]), (&"/a/359".into(), &"GET".into(), &"127.0.0.1".into()), "and no query");
}

#[tokio::test]
async fn a_user_keeps_one_fate() {
    let server = Server::start().await;
    let (one, other) = (Sidecar::start(server.address, &[]), Sidecar::start(server.address, &["--threads", "2"]));
    let client = client();
    let mut fates = Vec::new();
    for sidecar in [&one, &one, &other] {
        sidecar.arm(&policy("rules: [{share: 50%, shareByHeader: x-user, faults: [{abort: {httpStatus: 503}}]}]")).await;
        let mut fate = Vec::new();
        for user in 0..40 {
            fate.push(ask(&client, get(&sidecar.url("/"), &[("x-user", &format!("user-{user}"))])).await.status == 503);
        }
        assert_eq!(ask(&client, get(&sidecar.url("/"), &[])).await.status, 200, "nobody in particular");
        fates.push(fate);
    }
    assert!(fates[0] == fates[1] && fates[0] == fates[2], "{fates:?}");
    assert!((8..=32).contains(&fates[0].iter().filter(|faulted| **faulted).count()), "{fates:?}");
}

#[tokio::test]
async fn a_budget_by_the_second_and_in_all() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let client = client();
    for (budget, most) in [("perSecond: 5", 5), ("total: 3", 3)] {
        let spec = format!("{{expiresAfter: 1h, budget: {{concurrent: 10, share: 100%, {budget}}}, rules: [{{faults: [{{abort: {{httpStatus: 503}}}}]}}]}}");
        sidecar.arm(&format!("{{name: p, spec: {spec}}}")).await;
        let begun = std::time::Instant::now();
        let mut aborted = 0;
        for _ in 0..20 {
            aborted += usize::from(ask(&client, get(&sidecar.url("/"), &[])).await.status == 503);
        }
        // A slow machine may need more than the second.
        assert!(aborted == most || begun.elapsed() >= Duration::from_secs(1), "{budget}: {aborted}");
    }
}

#[tokio::test]
async fn envoys_headers_count_where_a_policy_takes_them_and_pass_where_none_does() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let client = client();
    let asks = |headers: &[(&str, &str)]| ask(&client, get(&sidecar.url("/x"), headers));
    let seen = || server.seen.headers.lock().unwrap().contains_key("x-envoy-fault-delay-request");
    sidecar.arm(TRUSTING).await;
    assert_eq!(asks(&[("x-envoy-fault-delay-request", "50")]).await.header("steadfast-injected"), "");
    assert!(seen(), "a header like any other");
    sidecar.arm(&TRUSTING.replace("maxDelay", "envoyHeaders: true\n    maxDelay")).await;
    let reply = asks(&[("x-envoy-fault-delay-request", "50"), ("x-envoy-fault-throughput-response", "64")]).await;
    assert_eq!(reply.header("steadfast-injected"), "delay;ms=50, throttle;bps=65536");
    assert!(!seen());
    assert_eq!(asks(&[("x-envoy-fault-abort-request", "504")]).await.status, 504);
    let reply = asks(&[("x-envoy-fault-abort-request", "999")]).await;
    assert_eq!((reply.status, reply.json()["key"].as_str()), (400, Some("x-envoy-fault-abort-request")));
    let reply = asks(&[("steadfast-fault", "abort=418"), ("x-envoy-fault-abort-request", "504")]).await;
    assert_eq!(reply.status, 418, "ours goes before");
}

#[tokio::test]
async fn connections_are_reset_or_never_heard_or_the_port_is_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--threads", "2"]);
    let open = ask(&client(), get(&sidecar.url("/"), &[])).await;
    assert_eq!(open.status, 200);
    sidecar.arm(&policy("connections: [{clients: [10.0.0.0/8], fault: blackhole}, {fault: reset}]")).await;
    let error = try_ask(&client(), get(&sidecar.url("/"), &[])).await.unwrap_err();
    assert!(!error.contains("no answer in time"), "{error}");
    assert!(sidecar.admin("GET", "/policy", "").await.json()["policies"][0]["injected"]["reset"].as_u64() >= Some(1));
    sidecar.arm(&policy("connections: [{fault: blackhole}]")).await;
    let mut stream = tokio::net::TcpStream::connect(sidecar.data).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err(), "it is never heard");
    let shown = sidecar.admin("GET", "/policy", "").await.json();
    assert_eq!((&shown["policies"][0]["injected"]["blackhole"], &shown["policies"][0]["active"]), (&1.into(), &1.into()));
    sidecar.admin("DELETE", "/policy", "").await;
    tokio::time::timeout(Duration::from_secs(2), stream.read(&mut byte)).await.expect("it ends with its policy").ok();
    // One that is open goes on while the port is closed.
    let mut kept = tokio::net::TcpStream::connect(sidecar.data).await.unwrap();
    let mut asks = async || {
        kept.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut bytes = [0; 1000];
        let size = kept.read(&mut bytes).await.unwrap();
        assert!(bytes[..size].starts_with(b"HTTP/1.1 200"));
    };
    asks().await;
    sidecar.arm(&policy("refuse: true")).await;
    let begun = std::time::Instant::now();
    while tokio::net::TcpStream::connect(sidecar.data).await.map(drop).map_err(|error| error.kind()) != Err(std::io::ErrorKind::ConnectionRefused) {
        assert!(begun.elapsed() < Duration::from_secs(5), "the port stays open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asks().await;
    sidecar.admin("DELETE", "/policy", "").await;
    let begun = std::time::Instant::now();
    while tokio::net::TcpStream::connect(sidecar.data).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the port stays closed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 200);
}
