//! Golden sets in an object store: a real server that speaks S3 and checks signatures, asked by what reader pods run.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::process::set;

const KEYS: (&str, &str) = ("steadfast", "right-secret");

/// An S3 server over a folder, each folder in it a bucket.
struct Store {
    child: Child,
    port: u16,
}

impl Store {
    fn start(folder: &Path) -> Option<Self> {
        let Some(program) = std::env::var_os("STEADFAST_S3_SERVER") else {
            assert!(std::env::var("STEADFAST_REQUIRE_S3_SERVER").as_deref() != Ok("1"), "STEADFAST_REQUIRE_S3_SERVER=1, and STEADFAST_S3_SERVER names none");
            eprintln!("not run: STEADFAST_S3_SERVER names no versitygw; tests/run installs it");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let child = Command::new(program)
            .args(["--access", KEYS.0, "--secret", KEYS.1, "--port", &format!("127.0.0.1:{port}"), "posix", "--nometa"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the store starts");
        let store = Self { child, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "the store never listened");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(store)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `steadfast golden bring` brings to whoever waits: kind and bytes.
fn brought(store: &Store, url: &str, secret: &str) -> (String, Vec<u8>) {
    let controller = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = controller.local_addr().expect("bound");
    let folder = tempfile::tempdir().expect("a folder");
    let token = folder.path().join("token");
    std::fs::write(&token, "token").expect("written");
    let mut reader = Command::new(env!("CARGO_BIN_EXE_steadfast"))
        .args(["golden", "bring", url, &format!("--controller=http://{address}"), "--token-file"])
        .arg(&token)
        .env("TMPDIR", folder.path())
        .env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", store.port))
        .envs([("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "us-east-1"), ("AWS_ACCESS_KEY_ID", KEYS.0), ("AWS_SECRET_ACCESS_KEY", secret)])
        .spawn()
        .expect("it starts");
    let (mut connection, _) = controller.accept().expect("it comes");
    let mut from = BufReader::new(connection.try_clone().expect("one more"));
    let (mut kind, mut length) = (String::new(), 0);
    for line in from.by_ref().lines().map(|line| line.expect("text").to_lowercase()).take_while(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some(("content-type", value)) => value.clone_into(&mut kind),
            Some(("content-length", value)) => length = value.parse().expect("a number"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).expect("all of it");
    connection.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("answered");
    assert!(reader.wait().expect("it ends").success());
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing stays on its disk but the token");
    (kind, body)
}

#[test]
fn sets_are_read_from_an_object_store_as_folders_and_as_tars_and_only_with_the_right_keys() {
    let buckets = tempfile::tempdir().expect("a folder");
    let digits = steadfast_golden_sets::set::read(set("digits")).expect("a set");
    std::fs::create_dir_all(buckets.path().join("models/sets")).expect("made");
    steadfast_golden_sets::set::write(&digits, buckets.path().join("models/sets/digits")).expect("written");
    let packed = steadfast_golden_sets::set::archive::pack(&digits).expect("packed");
    std::fs::write(buckets.path().join("models/digits.tar"), &packed).expect("written");
    let Some(store) = Store::start(buckets.path()) else { return };
    for url in ["s3://models/sets/digits", "s3://models/digits.tar"] {
        let (kind, body) = brought(&store, url, KEYS.1);
        assert!(kind == "application/x-tar" && body == packed, "{url}: {kind} {}", String::from_utf8_lossy(&body[..body.len().min(500)]));
    }
    for (url, secret, says) in [
        ("s3://models/sets/digits", "wrong-secret", "SignatureDoesNotMatch"),
        ("s3://models/sets/nothing", KEYS.1, "holds no file of a golden set"),
        ("s3://models/nothing.tar", KEYS.1, "not found"),
        ("s3://nowhere/digits.tar", KEYS.1, "NoSuchBucket"),
    ] {
        let (kind, body) = brought(&store, url, secret);
        let body = String::from_utf8_lossy(&body);
        assert!(kind == "text/plain" && body.contains(url) && body.contains(says), "{url}: {kind} {body}");
    }
}
