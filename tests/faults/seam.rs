//! Arming and disarming under load: every request is answered, once, whichever engine has it.
//!
//! A thousand times over either protocol; `STEADFAST_TEST_MOVES` says otherwise.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::harness::{Http, PATIENCE, Server, Sidecar, ask, client, client_h2, get, try_ask};

/// A policy that could touch every request and touches none of the load's.
pub(crate) const WAITING: &str = r"
name: waiting
spec:
  expiresAfter: 1h
  budget: {concurrent: 1000, share: 100%}
  rules: [{match: {path: {exact: /faulted}}, faults: [{abort: {httpStatus: 599}}]}]
";

fn moves() -> usize {
    std::env::var("STEADFAST_TEST_MOVES").ok().and_then(|moves| moves.parse().ok()).unwrap_or(1000)
}

/// Some requests have a body that is larger than one read, some answers come late, some are streamed back.
fn request(url: &str, number: usize, name: &str) -> (Request<Full<Bytes>>, Bytes) {
    let (path, body) = match number % 4 {
        0 => ("/x", Bytes::new()),
        1 => ("/slow?3", Bytes::new()),
        2 => ("/echo", Bytes::from(vec![number as u8; 300])),
        _ => ("/echo", Bytes::from(vec![number as u8; 70_000])),
    };
    let expected = match number % 4 {
        0 => Bytes::from("hello"),
        1 => Bytes::from("slow"),
        _ => body.clone(),
    };
    let method = if body.is_empty() { "GET" } else { "POST" };
    (Request::builder().method(method).uri(format!("{url}{path}")).header("x-name", name).body(Full::new(body)).unwrap(), expected)
}

async fn none_is_lost_and_none_repeated(make: fn() -> Http) {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--threads", "2"]);
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut askers: Vec<_> = (0..6)
        .map(|asker| {
            // Two share a client, and so an HTTP/2 connection.
            let (client, url, over, asked) = (make(), sidecar.url(""), Arc::clone(&over), Arc::clone(&asked));
            let ask = move |lane: usize| {
                let (client, url, over, asked) = (client.clone(), url.clone(), Arc::clone(&over), Arc::clone(&asked));
                async move {
                    let mut number = lane;
                    while !over.load(Ordering::Acquire) {
                        let name = format!("{asker}-{lane}-{number}");
                        let (request, expected) = request(&url, number, &name);
                        let reply = try_ask(&client, request).await.map_err(|error| format!("{name} is lost: {error}"))?;
                        if reply.status != 200 || reply.body != expected {
                            return Err(format!("{name}: {} and {} bytes", reply.status, reply.body.len()));
                        }
                        asked.fetch_add(1, Ordering::AcqRel);
                        number += 1;
                    }
                    Ok(())
                }
            };
            tokio::spawn(async move { tokio::try_join!(ask(0), ask(1)) })
        })
        .collect();
    let mut faulted = 0;
    for turn in 0..moves() {
        sidecar.arm(WAITING).await;
        if turn % 10 == 0 {
            // What is asked after arming is faulted, on a new connection at the latest.
            faulted += usize::from(ask(&client(), get(&sidecar.url("/faulted"), &[])).await.status == 599);
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
        assert_eq!(sidecar.admin("DELETE", "/policy", "").await.status, 200);
        tokio::time::sleep(Duration::from_millis(4)).await;
        if let Some(stopped) = askers.iter_mut().find(|asker| asker.is_finished()) {
            panic!("after {turn} turns and {} requests: {:?}", asked.load(Ordering::Acquire), stopped.await);
        }
    }
    over.store(true, Ordering::Release);
    for asker in askers {
        tokio::time::timeout(PATIENCE, asker).await.expect("an asker hangs").unwrap().unwrap();
    }
    assert_eq!(faulted, moves().div_ceil(10));
    let (asked, named) = (asked.load(Ordering::Acquire), server.seen.named.lock().unwrap().clone());
    let repeated: Vec<_> = named.iter().filter(|(_, times)| **times != 1).collect();
    assert!(repeated.is_empty() && named.len() == asked, "{asked} answered, {} seen, repeated: {repeated:?}", named.len());
    for to in ["stack", "relay"] {
        let moved = sidecar.metric("steadfast_connections_moved_total", &[&format!(r#"to="{to}""#)]).await as usize;
        assert!(moved > moves(), "{moved} connections moved to the {to} in {} turns, with {asked} requests", moves());
        eprintln!("{asked} requests, {} turns, {moved} connections moved to the {to}", moves());
    }
    sidecar.metric_reaches("steadfast_requests_in_progress", &[], 0).await;
    assert_eq!(sidecar.metric("steadfast_requests_total", &[r#"code="200""#]).await as usize, asked);
    assert_eq!(sidecar.metric("steadfast_requests_cancelled_total", &[]).await, 0);
}

#[tokio::test]
async fn arming_and_disarming_loses_and_repeats_no_request_over_http1() {
    none_is_lost_and_none_repeated(client).await;
}

#[tokio::test]
async fn arming_and_disarming_loses_and_repeats_no_request_over_http2() {
    none_is_lost_and_none_repeated(client_h2).await;
}
