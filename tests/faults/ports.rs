//! Several ports of one model server, and the port that kubelet and Prometheus ask.

use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt::Ipv6V6Only};

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

#[tokio::test]
async fn a_server_that_listens_by_ipv6_alone_is_reached_and_ready() {
    let raw = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&raw, Ipv6V6Only, &true).unwrap();
    bind(raw.as_raw_fd(), &SockaddrIn6::from("[::]:0".parse::<std::net::SocketAddrV6>().unwrap())).unwrap();
    listen(&raw, Backlog::new(128).unwrap()).unwrap();
    let listener = tokio::net::TcpListener::from_std(raw.into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "by IPv4 nobody is there");
    let server = Server::on(listener).await;
    // What an injected sidecar is told.
    let sidecar = Sidecar::start_bare(&["--route", &format!("127.0.0.1:0={port}")], "");
    let begun = Instant::now();
    while sidecar.admin("GET", "/readyz", "").await.status != 200 {
        assert!(begun.elapsed() < PATIENCE, "never ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 200, "by the relay");
    sidecar.arm(TRUSTING).await;
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 200, "by the stack");
    drop(server);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_where_it_is_looked_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let sidecar = Sidecar::start(address, &[]);
    let text = sidecar.admin("GET", "/readyz", "").await.text();
    assert!(text.contains(&address.to_string()) && text.contains("loopback or of all addresses"), "{text}");
}
