//! A pod held down: of no use to anybody for as long as the policy lasts, and back by itself.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Server, Sidecar, ask, client, get, try_ask};

fn hold(expires: &str) -> String {
    format!("name: down\nspec: {{expiresAfter: {expires}, budget: {{concurrent: 1, share: 100%}}, heldDown: true}}\n")
}

async fn readiness(sidecar: &Sidecar) -> (u16, String) {
    let reply = sidecar.admin("GET", "/readyz", "").await;
    (reply.status, reply.text())
}

/// Waits until the model server was seen ready.
async fn ready(sidecar: &Sidecar) {
    let begun = Instant::now();
    while readiness(sidecar).await.0 != 200 {
        assert!(begun.elapsed() < PATIENCE, "never ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_pod_held_down_refuses_new_connections_closes_open_ones_and_is_not_ready() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--threads", "2"]);
    ready(&sidecar).await;
    let kept = client();
    assert_eq!(ask(&kept, get(&sidecar.url("/"), &[])).await.status, 200);
    let slow = tokio::spawn({
        let url = sidecar.url("/slow");
        async move { try_ask(&client(), get(&url, &[])).await }
    });
    sidecar.metric_reaches("steadfast_requests_in_progress", &[], 1).await;

    sidecar.arm(&hold("1h")).await;
    assert!(slow.await.unwrap().is_err(), "a request in progress is cut off");
    for _ in 0..20 {
        assert!(try_ask(&kept, get(&sidecar.url("/"), &[])).await.is_err() && try_ask(&client(), get(&sidecar.url("/"), &[])).await.is_err());
    }
    let (status, why) = readiness(&sidecar).await;
    assert!(status == 503 && why.contains("held down"), "{status} {why}");

    assert_eq!(sidecar.admin("DELETE", "/policy", "").await.status, 200);
    let begun = Instant::now();
    while try_ask(&client(), get(&sidecar.url("/"), &[])).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "it never came back");
    }
    assert_eq!(readiness(&sidecar).await.0, 200);
}

#[tokio::test]
async fn a_pod_held_down_comes_back_when_the_policy_expires_and_nobody_is_there() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    ready(&sidecar).await;
    let armed = Instant::now();
    sidecar.arm(&hold("400ms")).await;
    assert!(try_ask(&client(), get(&sidecar.url("/"), &[])).await.is_err());
    while try_ask(&client(), get(&sidecar.url("/"), &[])).await.is_err() {
        assert!(armed.elapsed() < PATIENCE, "it never came back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(armed.elapsed() >= Duration::from_millis(400), "{:?}", armed.elapsed());
    assert_eq!(readiness(&sidecar).await.0, 200);
}
