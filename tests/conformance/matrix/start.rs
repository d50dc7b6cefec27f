//! A sidecar starts before its model server, and waits for it.

use std::{
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use super::{
    origin::Origin,
    peers::{Sidecar, free_port},
    raw::talk,
};

const ASK: &[u8] = b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// A server at a port of its own choice, as it comes up `after`.
fn comes_up(port: u16, after: Duration) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(after);
        let (listener, behind) = (TcpListener::bind(("127.0.0.1", port)).unwrap(), Origin::start().address);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let up = std::net::TcpStream::connect(behind).unwrap();
                let (mut a, mut b) = (stream.try_clone().unwrap(), up.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut a, &mut b);
                    let _ = b.shutdown(std::net::Shutdown::Write);
                });
                std::thread::spawn(move || {
                    let (mut up, mut stream) = (up, stream);
                    let _ = std::io::copy(&mut up, &mut stream);
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                });
            }
        });
    })
}

#[test]
fn a_request_waits_for_a_server_that_has_not_been_there_yet() {
    for armed in [false, true] {
        let port = free_port();
        let sidecar = Sidecar::before(&format!("127.0.0.1:{port}"), armed, &["--connect-timeout", "20s", "--ready-path", "/hello"]);
        assert_eq!(sidecar.get("/healthz").0, 200, "the sidecar itself is well");
        assert_eq!(sidecar.get("/readyz").0, 503, "and says that nobody is to be sent here");
        let up = comes_up(port, Duration::from_millis(400));
        let begun = Instant::now();
        let asking: Vec<_> = (0..20)
            .map(|_| {
                std::thread::spawn({
                    let data = sidecar.data;
                    move || talk(data, ASK)
                })
            })
            .collect();
        for asked in asking {
            let answer = asked.join().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "armed: {armed}: {answer}");
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(350) && took < Duration::from_secs(5), "{took:?}");
        up.join().unwrap();
        assert_eq!(sidecar.metric("steadfast_requests_total", r#"origin="proxy""#), 0);
    }
}

#[test]
fn a_server_that_never_comes_is_missed_after_the_time_to_connect_and_one_that_went_at_once() {
    for armed in [false, true] {
        let never = Sidecar::before(&format!("127.0.0.1:{}", free_port()), armed, &["--connect-timeout", "300ms"]);
        let (answer, took) = asked(never.data);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("upstream-refused"), "{answer}");
        assert!(took >= Duration::from_millis(300) && took < Duration::from_millis(1500), "{took:?}");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = Sidecar::before(&listener.local_addr().unwrap().to_string(), armed, &["--connect-timeout", "20s", "--ready-tcp"]);
        while gone.get("/readyz").0 != 200 {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(listener);
        let (answer, took) = asked(gone.data);
        assert!(answer.starts_with("HTTP/1.1 503") && took < Duration::from_secs(2), "armed: {armed}: {took:?} {answer}");
    }
}

fn asked(address: SocketAddr) -> (String, Duration) {
    let begun = Instant::now();
    (talk(address, ASK), begun.elapsed())
}
