//! Leaving: no request is lost, over either protocol, and readiness goes first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::harness::{Http, Server, Sidecar, client, client_h2, get, try_ask};

/// A pod that ends: while its server still serves, everybody comes by another connection, so that nobody holds one when the server is gone. Its readiness stays.
async fn everybody_is_sent_away(make: fn() -> Http) {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let (client, url) = (make(), sidecar.url("/x"));
    let open = async || sidecar.metric("steadfast_connections", &[]).await;
    for _ in 0..5 {
        assert_eq!(try_ask(&client, get(&url, &[])).await.unwrap().status, 200);
    }
    assert_eq!(open().await, 1, "a connection is kept");
    // Asked before, and answered after.
    let slow = {
        let (client, url) = (client.clone(), sidecar.url("/slow?300"));
        tokio::spawn(async move { try_ask(&client, get(&url, &[])).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(sidecar.admin("POST", "/leave", "").await.status, 200);
    for _ in 0..20 {
        assert_eq!(try_ask(&client, get(&url, &[])).await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    let begun = std::time::Instant::now();
    while open().await > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "a connection is kept");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(sidecar.admin("GET", "/readyz", "").await.status, 200, "the server still serves");
}

#[tokio::test]
async fn a_pod_that_ends_sends_its_clients_away_over_http1() {
    everybody_is_sent_away(client).await;
}

#[tokio::test]
async fn a_pod_that_ends_sends_its_clients_away_over_http2() {
    everybody_is_sent_away(client_h2).await;
}

/// Clients ask without a pause while the sidecar drains. A client stops when it cannot get a new connection: that is told, not lost.
async fn nobody_is_lost(make: fn() -> Http) {
    let server = Server::start().await;
    let mut sidecar = Sidecar::start(server.address, &["--drain-grace", "300ms"]);
    let (answered, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let askers: Vec<_> = (0..8)
        .map(|i| {
            let (client, url, answered, lost) = (make(), sidecar.url(&format!("/slow?{}", 5 + i * 7)), Arc::clone(&answered), Arc::clone(&lost));
            tokio::spawn(async move {
                loop {
                    match try_ask(&client, get(&url, &[])).await {
                        Ok(reply) if reply.status == 200 => drop(answered.fetch_add(1, Ordering::AcqRel)),
                        Ok(reply) => lost.lock().unwrap().push(format!("{} {}", reply.status, reply.text())),
                        Err(error) if error.contains("ConnectionRefused") => return,
                        Err(error) => lost.lock().unwrap().push(error),
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    sidecar.terminate();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(sidecar.admin("GET", "/readyz", "").await.status, 503, "readiness must be off while connections are still taken");
    // Nobody has to notice: clients ask on until they are refused, and the sidecar leaves all the same.
    let begun = std::time::Instant::now();
    assert_eq!(sidecar.ended().await, 0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for asker in askers {
        asker.await.unwrap();
    }
    let lost = lost.lock().unwrap();
    assert!(lost.is_empty() && answered.load(Ordering::Acquire) > 50, "{} answered, lost: {lost:?}", answered.load(Ordering::Acquire));
}

#[tokio::test]
async fn draining_loses_no_request_over_http1() {
    nobody_is_lost(client).await;
}

#[tokio::test]
async fn draining_loses_no_request_over_http2() {
    nobody_is_lost(client_h2).await;
}

#[tokio::test]
async fn a_request_in_progress_is_waited_for_and_an_endless_one_is_not() {
    let server = Server::start().await;
    let mut sidecar = Sidecar::start(server.address, &["--drain-grace", "0s", "--drain-timeout", "700ms"]);
    let (short, long) = (sidecar.url("/slow?400"), sidecar.url("/slow?30000"));
    let asked = tokio::spawn(async move { try_ask(&client(), get(&short, &[])).await });
    let endless = tokio::spawn(async move { try_ask(&client(), get(&long, &[])).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    sidecar.terminate();
    let begun = std::time::Instant::now();
    assert_eq!(sidecar.ended().await, 0);
    assert!((Duration::from_millis(600)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(asked.await.unwrap().unwrap().status, 200);
    assert!(endless.await.unwrap().is_err());
}

#[tokio::test]
async fn an_idle_sidecar_leaves_at_once() {
    let server = Server::start().await;
    let mut sidecar = Sidecar::start(server.address, &["--drain-grace", "0s"]);
    let client = client();
    assert!(try_ask(&client, get(&sidecar.url("/x"), &[])).await.is_ok());
    sidecar.terminate();
    let begun = std::time::Instant::now();
    assert_eq!(sidecar.ended().await, 0);
    assert!(begun.elapsed() < Duration::from_secs(2), "an idle kept-alive connection held it for {:?}", begun.elapsed());
}
