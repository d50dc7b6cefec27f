//! Readiness behind the sidecar is what the server's own probe would say: no stricter.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{PATIENCE, Sidecar};

/// Answers every look after `after` with the status that is set, and a body of `length` bytes.
async fn server(after: Duration, length: usize) -> (SocketAddr, Arc<AtomicU16>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, status) = (listener.local_addr().unwrap(), Arc::new(AtomicU16::new(200)));
    let shared = Arc::clone(&status);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let status = Arc::clone(&shared);
            tokio::spawn(async move {
                let mut head = [0; 1024];
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    tokio::time::sleep(after).await;
                    let answer = format!("HTTP/1.1 {} x\r\ncontent-length: {length}\r\n\r\n{}", status.load(Ordering::Acquire), "x".repeat(length));
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, status)
}

/// Waits until /readyz answers so, and says how long that took.
async fn answers(sidecar: &Sidecar, status: u16) -> Duration {
    let begun = Instant::now();
    while sidecar.admin("GET", "/readyz", "").await.status != status {
        assert!(begun.elapsed() < PATIENCE, "/readyz does not answer {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

#[tokio::test]
async fn a_server_is_ready_with_a_redirection_and_with_much_to_say() {
    let (address, status) = server(Duration::ZERO, 200 << 10).await;
    status.store(302, Ordering::Release);
    let sidecar = Sidecar::start(address, &[]);
    answers(&sidecar, 200).await;
    status.store(404, Ordering::Release);
    answers(&sidecar, 503).await;
}

#[tokio::test]
async fn a_server_that_takes_its_time_is_ready_within_its_timeout() {
    let (address, _) = server(Duration::from_millis(1200), 2).await;
    let sidecar = Sidecar::start(address, &["--ready-timeout", "5s"]);
    let hasty = Sidecar::start(address, &[]);
    answers(&sidecar, 200).await;
    assert_eq!(hasty.admin("GET", "/readyz", "").await.status, 503, "a second is what a probe has that says nothing else");
}

#[tokio::test]
async fn a_server_that_was_ready_may_fail_for_as_long_as_its_probe_allows() {
    let (address, status) = server(Duration::ZERO, 2).await;
    let sidecar = Sidecar::start(address, &["--ready-patience", "2s"]);
    answers(&sidecar, 200).await;
    status.store(500, Ordering::Release);
    // Seen at once, and kept from users only later.
    let begun = Instant::now();
    while sidecar.metric("steadfast_upstream_ready", &[]).await == 1 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(sidecar.admin("GET", "/readyz", "").await.status, 200);
    let patient = answers(&sidecar, 503).await;
    assert!(patient >= Duration::from_millis(700), "{patient:?}: a look a second ago, and two seconds of patience");
    status.store(200, Ordering::Release);
    assert!(answers(&sidecar, 200).await < Duration::from_secs(1));
}
