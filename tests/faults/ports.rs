//! Several ports of one model server, and the port that kubelet and Prometheus ask.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Server, Sidecar, TRUSTING, ask, client, get};

#[tokio::test]
async fn each_route_leads_to_its_own_port_and_faults_fall_on_all() {
    let (first, second) = (Server::start().await, Server::start().await);
    let route = |server: &Server| format!("127.0.0.1:0={}", server.address);
    let sidecar = Sidecar::start_bare(&["--route", &route(&first), "--route", &route(&second), "--threads", "2"], "");
    let [one, two] = sidecar.routes[..] else { panic!("{:?}", sidecar.routes) };
    assert_eq!((one, sidecar.data.port() == two.port()), (sidecar.data, false));
    for (address, requests) in [(one, 3), (two, 5)] {
        for _ in 0..requests {
            assert_eq!(ask(&client(), get(&format!("http://{address}/"), &[])).await.status, 200);
        }
    }
    let seen = |server: &Server| server.seen.requests.load(std::sync::atomic::Ordering::Acquire);
    assert_eq!((seen(&first), seen(&second)), (3, 5));
    sidecar.arm(TRUSTING).await;
    for address in [one, two] {
        let reply = ask(&client(), get(&format!("http://{address}/"), &[("steadfast-fault", "abort=503")])).await;
        assert_eq!(reply.status, 503, "{}", reply.text());
    }
}

#[tokio::test]
async fn the_health_port_tells_everybody_and_changes_nothing() {
    let server = Server::start().await;
    let flags = ["--upstream", &server.address.to_string(), "--health", "0", "--ready-tcp"];
    let sidecar = Sidecar::start_bare(&flags, "");
    let port = sidecar.health.expect("a health port").port();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let begun = Instant::now();
    // By any name: kubelet asks the pod's address.
    while ask(&client(), get(&url("/readyz"), &[("host", "10.1.2.3:4179")])).await.status != 200 {
        assert!(begun.elapsed() < PATIENCE, "never ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&client(), get(&url("/healthz"), &[])).await.text(), "ok\n");
    assert!(ask(&client(), get(&url("/metrics"), &[])).await.text().contains("steadfast_upstream_ready 1"));
    let policy = ask(&client(), get(&url("/policy"), &[])).await;
    assert!(policy.status == 404 && policy.text().contains("/metrics, /healthz, /readyz"), "{}", policy.text());
}

#[tokio::test]
async fn a_server_without_http_is_ready_when_it_takes_connections() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--ready-tcp", "--ready-port", &port]);
    assert_eq!(sidecar.admin("GET", "/readyz", "").await.status, 503);
    let _listener = std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let begun = Instant::now();
    while sidecar.admin("GET", "/readyz", "").await.status != 200 {
        assert!(begun.elapsed() < PATIENCE, "never ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
