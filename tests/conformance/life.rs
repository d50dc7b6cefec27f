//! Loading, readiness, bounds and the end: what recovery is measured by.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};

use crate::process::{self, Server, get};

const BODY: &str = r#"{"inputs":[{"name":"pixels","shape":[1,64],"datatype":"FP32","data":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}]}"#;

/// One inference over a connection of its own; the whole answer.
fn infer(port: u16) -> String {
    let mut stream = begin(port);
    stream.write_all(BODY.as_bytes()).unwrap();
    read(stream)
}

/// The head of an inference, its body still to come.
fn begin(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(
        stream,
        "POST /v2/models/digits/infer HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        BODY.len()
    )
    .unwrap();
    stream
}

fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn monotonic() -> u128 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_nanos()
}

/// The events of a truth file with their times.
fn truth(file: &std::path::Path) -> Vec<(String, u128)> {
    let text = std::fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        (event["event"].as_str().unwrap().to_owned(), u128::from(event["monotonic_ns"].as_u64().unwrap()))
    };
    text.lines().map(line).collect()
}

#[test]
fn it_listens_at_once_and_answers_when_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("truth");
    let before = monotonic();
    let server = Server::start(
        &process::set("digits"),
        &["--engine", "rten", "--load-seconds", "1.5", "--ready-seconds", "0.3", "--wrong-seconds", "2", "--truth-file", &file.display().to_string()],
    );
    assert_eq!(
        (get(server.port, "/v2/health/live"), get(server.port, "/v2/health/ready"), get(server.port, "/v2/models/digits/ready")),
        (Some(200), Some(503), Some(503))
    );
    let refused = infer(server.port);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1") && refused.contains("loading"), "{refused}");
    server.wait_until_ready();
    let seen_ready = monotonic();
    let wrong = infer(server.port);
    let began = Instant::now();
    while !std::fs::read_to_string(&file).unwrap().contains("correctFrom") {
        assert!(began.elapsed() < Duration::from_secs(20), "it never became correct");
        std::thread::sleep(Duration::from_millis(5));
    }
    let right = infer(server.port);
    assert!(wrong.starts_with("HTTP/1.1 200") && right.starts_with("HTTP/1.1 200"), "{wrong}\n{right}");
    assert_ne!(wrong, right, "until correctFrom answers are well-formed and wrong");
    let events = truth(&file);
    let at = |name: &str| events.iter().find(|(event, _)| event == name).unwrap_or_else(|| panic!("{name}: {events:?}")).1;
    let seconds = |from: &str, to: &str| (at(to) - at(from)) as f64 / 1e9;
    assert!(before <= at("started") && at("ready") <= seen_ready);
    assert!((1.5..3.0).contains(&seconds("started", "loaded")), "{events:?}");
    assert!((0.3..1.5).contains(&seconds("loaded", "ready")), "{events:?}");
    assert!((1.999..2.001).contains(&seconds("ready", "correctFrom")), "{events:?}");
    assert!(at("firstRequest") < at("ready") && at("ready") < at("firstAnswer"), "{events:?}");
    assert!(seen_ready - at("ready") < 5_000_000_000, "ready is told when it can be seen");
}

#[test]
fn what_is_inside_is_bounded_and_the_next_is_told_to_come_again() {
    let server = Server::ready(&process::set("digits"), &["--engine", "rten", "--max-concurrency", "2"]);
    let mut inside = [begin(server.port), begin(server.port)];
    let began = Instant::now();
    let refused = loop {
        let answer = infer(server.port);
        if answer.starts_with("HTTP/1.1 503") {
            break answer;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "two requests are inside and a third was taken: {answer}");
    };
    assert!(refused.contains("2 requests are inside") && refused.contains("retry-after"), "{refused}");
    assert_eq!(get(server.port, "/v2/health/ready"), Some(200), "busy is not down");
    for stream in &mut inside {
        stream.write_all(BODY.as_bytes()).unwrap();
    }
    for stream in inside {
        let answer = read(stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let answer = infer(server.port);
    assert!(answer.starts_with("HTTP/1.1 200"), "a place that was left is free again: {answer}");
}

#[test]
fn told_to_end_it_finishes_what_is_inside() {
    let mut server = Server::ready(&process::set("digits"), &["--engine", "rten"]);
    let mut inside = begin(server.port);
    // The answer to another request shows that the first head was read long since.
    std::thread::sleep(Duration::from_millis(200));
    assert!(infer(server.port).starts_with("HTTP/1.1 200"));
    server.signal(Signal::SIGTERM);
    let began = Instant::now();
    while get(server.port, "/v2/health/ready") == Some(200) {
        assert!(began.elapsed() < Duration::from_secs(10), "a server that was told to end is not ready");
    }
    inside.write_all(BODY.as_bytes()).unwrap();
    let answer = read(inside);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_server_that_is_loading_can_be_told_to_end() {
    let mut server = Server::start(&process::set("digits"), &["--engine", "rten", "--load-seconds", "3600"]);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn what_cannot_be_served_ends_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), "no model").unwrap();
    let mut broken = Server::start(folder.path(), &["--engine", "rten"]);
    assert_eq!(broken.wait(), Some(1));
    std::thread::sleep(Duration::from_millis(50));
    assert!(broken.said().iter().any(|line| line.contains("ONNX model")), "{:?}", broken.said());
}
