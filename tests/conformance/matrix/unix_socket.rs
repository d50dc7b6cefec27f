//! A model server that listens on a Unix socket: what every other test does by TCP, in short.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    http2::htdocs,
    origin::Origin,
    peers::{PATIENCE, Process, Sidecar, free_port, output, program},
    raw::{plain, talk},
};
use crate::process::{Server, set};

/// Joins the socket at `path` to a server that listens on TCP: the server itself is the one of the other tests.
fn listen(path: &Path, server: std::net::SocketAddr) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let up = TcpStream::connect(server).unwrap();
            let (mut from_sidecar, mut to_server) = (stream.try_clone().unwrap(), up.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_sidecar, &mut to_server);
                let _ = to_server.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                let (mut up, mut stream): (TcpStream, UnixStream) = (up, stream);
                let _ = std::io::copy(&mut up, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
}

fn wait_until_ready(sidecar: &Sidecar) {
    let begun = Instant::now();
    while sidecar.get("/readyz").0 != 200 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", sidecar.get("/readyz"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_on_a_unix_socket_is_served_by_both_engines() {
    let (folder, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let path = folder.path().join("http.sock");
    listen(&path, origin.address);
    for armed in [false, true] {
        let sidecar = Sidecar::before(&format!("unix:{}", path.display()), armed, &["--ready-path", "/hello"]);
        wait_until_ready(&sidecar);
        for request in [
            "GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET /204 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            "GET /hello HTTP/1.0\r\n\r\n",
        ] {
            let [directly, through] = [origin.address, sidecar.data].map(|address| plain(&talk(address, request.as_bytes())));
            assert_eq!(through, directly, "armed: {armed}");
        }
        let mut stream = super::raw::connect(sidecar.data);
        stream.write_all(b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("heard the end"), "armed: {armed}: {answer}");
        assert!(sidecar.metric("steadfast_requests_total", r#"code="200""#) >= 4);
    }
}

/// Golden replays and faults go the same way as users' requests.
#[test]
fn golden_sets_are_replayed_and_faults_fall_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::ready(&set("digits"), &["--engine", "rten"]);
    let path = folder.path().join("oip.sock");
    listen(&path, ([127, 0, 0, 1], server.port).into());
    let policy = folder.path().join("policy.yaml");
    let rules = "[{match: {path: {exact: /v2}}, faults: [{delay: {fixed: 100ms}}, {abort: {httpStatus: 503}}]}, {match: {path: {exact: /v2/models/digits}}, faults: [{truncate: {afterBytes: 5}}]}]";
    std::fs::write(&policy, format!("name: some\nspec: {{expiresAfter: 1h, budget: {{concurrent: 10, share: 100%}}, rules: {rules}}}")).unwrap();
    let (golden, policy) = (set("digits").display().to_string(), policy.display().to_string());
    let flags = ["--golden", &golden, "--golden-every", "50ms", "--engine", "rten", "--policy", &policy];
    let sidecar = Sidecar::before(&format!("unix:{}", path.display()), false, &flags);
    wait_until_ready(&sidecar);
    sidecar.metric_reaches("steadfast_golden_replays_total", r#"outcome="match""#, 5);
    assert_eq!(sidecar.metric("steadfast_golden_replays_total", r#"outcome="no-answer""#), 0);
    let get = |path: &str| talk(sidecar.data, format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes());
    let begun = Instant::now();
    let aborted = get("/v2");
    assert!(aborted.starts_with("HTTP/1.1 503") && begun.elapsed() >= Duration::from_millis(100), "{aborted}");
    let cut = get("/v2/models/digits");
    assert!(cut.starts_with("HTTP/1.1 200") && cut.split_once("\r\n\r\n").is_some_and(|(_, body)| body.len() == 5), "{cut}");
    assert!(get("/v2/health/live").starts_with("HTTP/1.1 200"));
}

#[test]
fn http2_goes_by_a_unix_socket_too() {
    let folder = htdocs();
    if program("curl").is_none() {
        return;
    }
    let Some(mut server) = program("nghttpd") else { return };
    let (port, path) = (free_port(), folder.path().join("h2.sock"));
    let _server = Process::start(server.args(["--no-tls", "--address", "127.0.0.1", "--htdocs"]).arg(folder.path()).arg(port.to_string()));
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    listen(&path, ([127, 0, 0, 1], port).into());
    for armed in [false, true] {
        let sidecar = Sidecar::before(&format!("unix:{}", path.display()), armed, &["--ready-tcp"]);
        let (_, said) = output(std::process::Command::new("curl").args(["--silent", "--http2-prior-knowledge", &format!("http://{}/small", sidecar.data)]));
        assert_eq!(said, "hello", "armed: {armed}");
    }
}

#[test]
fn a_path_that_cannot_be_a_socket_is_refused_with_what_would_be_right() {
    let long = format!("unix:/{}", "x".repeat(200));
    for (upstream, says) in [("unix:model.sock", "unix:/run/model/http.sock"), ("unix:", "begins at the root"), (long.as_str(), "107 bytes at most")] {
        let (succeeded, said) = output(std::process::Command::new(env!("CARGO_BIN_EXE_steadfast")).args(["proxy", "--upstream", upstream]));
        assert!(!succeeded && said.contains(says) && said.contains("--upstream"), "{said}");
    }
}

/// Nobody is behind a path of which the file is there: the answer says which path.
#[test]
fn a_socket_that_nobody_listens_on_is_named_in_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("left.sock");
    drop(UnixListener::bind(&path).unwrap());
    let sidecar = Sidecar::before(&format!("unix:{}", path.display()), false, &["--connect-timeout", "100ms"]);
    let answer = talk(sidecar.data, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("left.sock") && answer.contains("steadfast-origin: proxy"), "{answer}");
}
