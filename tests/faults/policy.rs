//! Armed policies: what falls on whom, how much at most, until when.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Server, Sidecar, ask, client, get};

fn policy(name: &str, expires: &str, budget: &str, rules: &str) -> String {
    format!("name: {name}\nspec:\n  expiresAfter: {expires}\n  budget: {budget}\n  rules: {rules}\n")
}

const PLENTY: &str = "{concurrent: 1000, share: 100%}";

#[tokio::test]
async fn only_what_matches_is_faulted_and_disarming_ends_it() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar
        .arm(&policy("team", "1h", PLENTY, "[{match: {methods: [GET], path: {prefix: /a}, headers: {x-team: blue}}, faults: [{abort: {httpStatus: 429}}]}]"))
        .await;
    let client = client();
    assert_eq!(ask(&client, get(&sidecar.url("/a/b"), &[("x-team", "blue")])).await.status, 429);
    assert_eq!(ask(&client, get(&sidecar.url("/a/b"), &[("x-team", "red")])).await.status, 200);
    assert_eq!(ask(&client, get(&sidecar.url("/b"), &[("x-team", "blue")])).await.status, 200);
    let listed = sidecar.admin("GET", "/policy", "").await.json();
    assert_eq!((listed["policies"][0]["name"].as_str(), listed["policies"][0]["source"].as_str()), (Some("team"), Some("manual")));
    assert_eq!(sidecar.admin("DELETE", "/policy", "").await.status, 200);
    assert_eq!(ask(&client, get(&sidecar.url("/a/b"), &[("x-team", "blue")])).await.status, 200);
}

#[tokio::test]
async fn a_policy_ends_by_itself() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let armed = Instant::now();
    sidecar.arm(&policy("short", "300ms", PLENTY, "[{faults: [{abort: {httpStatus: 503}}]}]")).await;
    let client = client();
    assert_eq!(ask(&client, get(&sidecar.url("/"), &[])).await.status, 503);
    loop {
        let asked = armed.elapsed();
        let status = ask(&client, get(&sidecar.url("/"), &[])).await.status;
        if status == 200 {
            break;
        }
        assert!(asked < Duration::from_millis(800), "still faulted after {asked:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(armed.elapsed() >= Duration::from_millis(300));
    assert_eq!(sidecar.admin("GET", "/policy", "").await.json()["policies"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn what_cannot_be_armed_is_a_400_that_names_the_field() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    for (body, says) in [
        (policy("p", "soon", PLENTY, "[]"), "spec.expiresAfter"),
        (policy("p", "1h", "{concurrent: 0, share: 1%}", "[]"), "concurrent"),
        (policy("p", "1h", PLENTY, "[{faults: [{abort: {httpStatus: 700}}]}]"), "spec.rules[0].faults[0]"),
        ("{generation: 1, policies: [{name: a}]}".to_owned(), "policies[0]"),
        ("not: a policy".to_owned(), "unknown field"),
    ] {
        let reply = sidecar.admin("PUT", "/policy", &body).await;
        assert_eq!(reply.status, 400);
        assert!(reply.text().contains(says), "{} does not say {says}", reply.text());
    }
    assert_eq!(sidecar.admin("GET", "/policy", "").await.json()["policies"].as_array().map(Vec::len), Some(0));
    assert_eq!(sidecar.admin("POST", "/policy", "").await.status, 405);
}

#[tokio::test]
async fn never_more_faults_at_once_than_the_budget_and_the_rest_passes_unharmed() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--threads", "2"]);
    sidecar.arm(&policy("five", "1h", "{concurrent: 5, share: 100%}", "[{faults: [{delay: {fixed: 800ms}}]}]")).await;
    let client = client();
    let asked: Vec<_> = (0..40)
        .map(|_| {
            let (client, url) = (client.clone(), sidecar.url("/"));
            tokio::spawn(async move {
                let begun = Instant::now();
                let reply = ask(&client, get(&url, &[])).await;
                (reply.status, reply.header("steadfast-injected").to_owned(), begun.elapsed())
            })
        })
        .collect();
    let mut delayed = 0;
    for asked in asked {
        let (status, injected, took) = asked.await.unwrap();
        assert_eq!(status, 200);
        if !injected.is_empty() {
            assert!(took >= Duration::from_millis(800));
            delayed += 1;
        }
    }
    assert_eq!(delayed, 5);
    sidecar.metric_reaches("steadfast_over_budget_total", &[r#"policy="five""#], 35).await;
    // Every place has been given back: as many again.
    let mut again = 0;
    for asked in (0..10)
        .map(|_| {
            tokio::spawn({
                let (client, url) = (client.clone(), sidecar.url("/"));
                async move { ask(&client, get(&url, &[])).await }
            })
        })
        .collect::<Vec<_>>()
    {
        again += usize::from(!asked.await.unwrap().header("steadfast-injected").is_empty());
    }
    assert_eq!(again, 5);
}

#[tokio::test]
async fn a_client_that_leaves_during_a_delay_gives_its_place_back() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(&policy("one", "1h", "{concurrent: 1, share: 100%}", "[{match: {path: {exact: /d}}, faults: [{delay: {fixed: 30s}}]}]")).await;
    let given_up = tokio::time::timeout(Duration::from_millis(200), ask(&client(), get(&sidecar.url("/d"), &[]))).await;
    assert!(given_up.is_err());
    let begun = Instant::now();
    while sidecar.admin("GET", "/policy", "").await.json()["policies"][0]["active"] != 0 {
        assert!(begun.elapsed() < PATIENCE, "the place in the budget leaked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.seen.requests.load(std::sync::atomic::Ordering::Acquire), 0);
}

#[tokio::test]
async fn the_share_of_requests_that_is_faulted_keeps_within_the_budget() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--seed", "7"]);
    sidecar.arm(&policy("half", "1h", "{concurrent: 10, share: 20%}", "[{share: 50%, faults: [{abort: {httpStatus: 503}}]}]")).await;
    let client = client();
    let mut faulted = 0;
    for _ in 0..1000 {
        faulted += usize::from(ask(&client, get(&sidecar.url("/"), &[])).await.status == 503);
    }
    // Half is wanted, a fifth is allowed: all of it is used.
    assert!((190..=200).contains(&faulted), "{faulted}");
}

#[tokio::test]
async fn cpu_pressure_burns_while_armed_and_stops_with_it() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let burned = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sidecar.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    };
    sidecar.arm("name: busy\nspec: {expiresAfter: 1h, budget: {concurrent: 1, share: 0%}, cpuPressure: {load: 30%}}").await;
    let before = burned();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let while_armed = burned() - before;
    sidecar.metric_reaches("steadfast_cpu_burn_threads", &[], 1).await;
    sidecar.admin("DELETE", "/policy", "").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = burned();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let after = burned() - before;
    // Clock ticks of 10 ms: 30 % of 1.5 s are 45.
    assert!((25.0..=70.0).contains(&while_armed) && after <= 10.0, "{while_armed} ticks while armed, {after} after");
}
