//! The controller's side, played by the test: policies down, evidence up, golden replays told as they happen.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use steadfast_api::{
    golden::{Outcome, Verdict},
    sidecar::{PROTOCOL_HEADER, SidecarReport, What},
};
use steadfast_golden_sets::{GoldenSet, oip};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc,
};

use crate::harness::{PATIENCE, Server, Sidecar, ask, client, get};

/// A controller that remembers what it is told, with the time at which it was told.
struct Controller {
    address: SocketAddr,
    reports: Arc<Mutex<Vec<(Instant, SidecarReport)>>>,
    /// Reports to refuse before the next is taken.
    refuse: Arc<AtomicUsize>,
    /// Speaks a protocol that no sidecar knows.
    other_protocol: Arc<AtomicBool>,
    policies: mpsc::Sender<String>,
    /// What it holds, by digest.
    sets: Arc<Mutex<HashMap<String, Bytes>>>,
}

/// One connection, as the controller leads it.
async fn live(
    upgrade: hyper::upgrade::OnUpgrade,
    policies: Arc<tokio::sync::Mutex<mpsc::Receiver<String>>>,
    kept: Arc<Mutex<Vec<(Instant, SidecarReport)>>>,
    refuse: Arc<AtomicUsize>,
) {
    let (hear, mut tell) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
    let (mut reports, mut policies) = (BufReader::new(hear).lines(), policies.lock().await);
    loop {
        let line = tokio::select! {
            report = reports.next_line() => {
                let Ok(Some(report)) = report else { return };
                if refuse.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok() {
                    let _ = tell.write_all(b"{\"refused\":\"not now\"}\n").await;
                    return;
                }
                let report: SidecarReport = serde_json::from_str(&report).unwrap();
                let sequence = report.sequence;
                kept.lock().unwrap().push((Instant::now(), report));
                format!("{{\"acknowledged\":{sequence}}}")
            }
            line = policies.recv() => line.expect("the test lives"),
        };
        if tell.write_all((line + "\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Controller {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (policies, stream) = mpsc::channel(8);
        let (reports, refuse, stream) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicUsize>::default(), Arc::new(tokio::sync::Mutex::new(stream)));
        let sets = Arc::<Mutex<HashMap<String, Bytes>>>::default();
        let (kept, refusing, held) = (Arc::clone(&reports), Arc::clone(&refuse), Arc::clone(&sets));
        let other_protocol = Arc::<AtomicBool>::default();
        let other = Arc::clone(&other_protocol);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (kept, refusing, stream, held) = (Arc::clone(&kept), Arc::clone(&refusing), Arc::clone(&stream), Arc::clone(&held));
                let other = Arc::clone(&other);
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (kept, refusing, stream, held) = (Arc::clone(&kept), Arc::clone(&refusing), Arc::clone(&stream), Arc::clone(&held));
                        let other = other.load(Ordering::Acquire);
                        async move {
                            assert_eq!(request.headers()["authorization"], "Bearer secret");
                            if other {
                                let mut response = Response::new(Full::<Bytes>::default());
                                *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
                                response.headers_mut().insert(PROTOCOL_HEADER, http::HeaderValue::from_static("7"));
                                return Ok(response);
                            }
                            if request.uri().path() == "/v1alpha1/connection" {
                                assert!(request.uri().query() == Some("uid=uid-1") && request.headers()["upgrade"] == "steadfast-sidecar");
                                tokio::spawn(live(hyper::upgrade::on(request), stream, kept, refusing));
                                let mut response = Response::new(Full::default());
                                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                                response.headers_mut().insert("connection", http::HeaderValue::from_static("upgrade"));
                                response.headers_mut().insert("upgrade", http::HeaderValue::from_static("steadfast-sidecar"));
                                return Ok::<_, Infallible>(response);
                            }
                            if let Some(digest) = request.uri().path().strip_prefix("/v1alpha1/golden-sets/") {
                                let tar = held.lock().unwrap().get(digest).cloned();
                                let status = if tar.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
                                let mut response = Response::new(Full::from(tar.unwrap_or_default()));
                                *response.status_mut() = status;
                                return Ok(response);
                            }
                            panic!("nobody asks for {}", request.uri());
                        }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).with_upgrades().await;
                });
            }
        });
        Self { address, reports, refuse, other_protocol, policies, sets }
    }

    fn sidecar(&self, upstream: SocketAddr, flags: &[&str]) -> Sidecar {
        let url = format!("http://{}", self.address);
        let own = ["--controller", &url, "--pod-name", "pod-1", "--pod-uid", "uid-1", "--node-name", "node-1"];
        Sidecar::start_with_token(upstream, &[&own, flags].concat(), "secret")
    }

    /// Waits for evidence, and gives it with the time at which it arrived.
    async fn told<T>(&self, what: &str, wanted: impl Fn(&What) -> Option<T>) -> (Instant, T) {
        let begun = Instant::now();
        loop {
            let found =
                self.reports.lock().unwrap().iter().find_map(|(at, report)| Some((*at, report.evidence.iter().find_map(|evidence| wanted(&evidence.what))?)));
            if let Some(found) = found {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "was never told: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn policies_come_down_and_what_happened_goes_up_without_a_gap() {
    let server = Server::start().await;
    let controller = Controller::start().await;
    let sidecar = controller.sidecar(server.address, &[]);
    controller.told("ready", |what| matches!(what, What::Upstream { ready: true }).then_some(())).await;
    let line = |generation: u64, policies: &str| format!(r#"{{"generation":{generation},"policies":[{policies}]}}"#);
    let abort = r#"{"name":"down","spec":{"expiresAfter":"1h","budget":{"concurrent":9,"share":"100%"},"rules":[{"faults":[{"abort":{"httpStatus":503}}]}]}}"#;
    let sent = Instant::now();
    controller.policies.send(line(3, abort)).await.unwrap();
    let (told, ()) = controller.told("armed", |what| matches!(what, What::Policy { generation: 3, armed: true, .. }).then_some(())).await;
    assert!(told - sent < Duration::from_millis(250), "{:?}", told - sent);
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 503);
    // The next two are never taken; everything must come again.
    controller.refuse.store(2, Ordering::Release);
    controller.policies.send(line(2, "")).await.unwrap();
    controller.policies.send("not json".into()).await.unwrap();
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 503, "an older generation or a bad line disarmed");
    controller.policies.send(line(4, "")).await.unwrap();
    controller.told("disarmed", |what| matches!(what, What::Policy { generation: 4, armed: false, .. }).then_some(())).await;
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 200);
    let counted = |what: &What| match what {
        What::Requests(window) if window.injected.iter().any(|count| count.policy == "down" && count.count >= 1) => Some(window.responses.len()),
        _ => None,
    };
    controller.told("a window with what was injected", counted).await;
    let reports = controller.reports.lock().unwrap();
    let sequences: Vec<u64> = reports.iter().map(|(_, report)| report.sequence).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let (_, first) = &reports[0];
    assert_eq!((first.pod.name.as_str(), first.pod.uid.as_str(), first.pod.node.as_str()), ("pod-1", "uid-1", "node-1"));
    assert!(reports.iter().all(|(_, report)| report.dropped == 0 && report.evidence.iter().all(|evidence| evidence.at_ns <= report.sent_ns)));
}

#[tokio::test]
async fn a_newer_controller_is_followed_as_far_as_it_is_understood() {
    let server = Server::start().await;
    let controller = Controller::start().await;
    let sidecar = controller.sidecar(server.address, &[]);
    let policy = |name: &str, more: &str| {
        format!(r#"{{"name":"{name}","spec":{{"expiresAfter":"1h","budget":{{"concurrent":9,"share":"100%"}},"rules":[{{"faults":[{more}]}}]}}}}"#)
    };
    let line = |generation: u64, policies: &str| format!(r#"{{"generation":{generation},"mood":"good","policies":[{policies}]}}"#);
    controller.policies.send(r#"{"greeting":{"release":"9.0"}}"#.into()).await.unwrap();
    let (known, newer) = (policy("known", r#"{"abort":{"httpStatus":503}}"#), policy("newer", r#"{"teleport":{"to":"moon"}}"#));
    controller.policies.send(line(3, &format!("{newer},{known}"))).await.unwrap();
    let refused = |what: &What| match what {
        What::Policy { generation: 3, armed: true, refused } => Some(refused.clone()),
        _ => None,
    };
    assert_eq!(controller.told("what is in force, and what is not", refused).await.1, ["newer"]);
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 503, "what is understood is armed");
    assert_eq!(sidecar.metric("steadfast_controller_not_understood", &[]).await, 2, "a greeting and a policy");
    controller.policies.send(line(4, "")).await.unwrap();
    controller.told("disarmed", |what| matches!(what, What::Policy { generation: 4, armed: false, .. }).then_some(())).await;
}

#[tokio::test]
async fn a_controller_of_another_protocol_is_left_alone_and_traffic_goes_on() {
    let server = Server::start().await;
    let controller = Controller::start().await;
    controller.other_protocol.store(true, Ordering::Release);
    let sidecar = controller.sidecar(server.address, &[]);
    for _ in 0..20 {
        assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(sidecar.metric("steadfast_controller_connected", &[]).await, 0);
    assert!(controller.reports.lock().unwrap().is_empty());
    // Once it was upgraded, everything goes on by itself.
    controller.other_protocol.store(false, Ordering::Release);
    controller.told("ready", |what| matches!(what, What::Upstream { ready: true }).then_some(())).await;
}

/// A server that knows the set's answers by heart. Not ready before `ready`; `wrong` makes its answers wrong, `broken` gives none.
struct Knows {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    wrong: Arc<AtomicBool>,
    ready_told: Arc<AtomicU64>,
}

impl Knows {
    async fn start(set: GoldenSet) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ready, broken, ready_told) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let wrong = Arc::<AtomicBool>::default();
        let (set, state) = (Arc::new(set), (Arc::clone(&ready), Arc::clone(&broken), Arc::clone(&wrong), Arc::clone(&ready_told)));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (set, (ready, broken, wrong, told)) = (Arc::clone(&set), state.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (set, ready, broken, told) = (Arc::clone(&set), Arc::clone(&ready), Arc::clone(&broken), Arc::clone(&told));
                        let wrong = Arc::clone(&wrong);
                        async move {
                            let mut response = Response::new(Full::<Bytes>::default());
                            if request.uri().path() == "/v2/health/ready" {
                                if ready.load(Ordering::Acquire) {
                                    let _ = told.compare_exchange(0, steadfast_proxy::clock::now_ns(), Ordering::AcqRel, Ordering::Acquire);
                                } else {
                                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                                }
                            } else if broken.load(Ordering::Acquire) {
                                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                            } else {
                                let inputs = oip::decode_request(None, &request.into_body().collect().await.unwrap().to_bytes()).unwrap().inputs;
                                let index = set.samples().iter().position(|sample| sample.inputs == inputs).expect("a sample of the set");
                                // Another sample's answer is well-formed and wrong.
                                let index = (index + usize::from(wrong.load(Ordering::Acquire))) % set.samples().len();
                                let sample = &set.samples()[index];
                                let head = oip::ResponseHead { model: &set.manifest().model, version: "1", id: "" };
                                let message = oip::encode_response(head, &sample.outputs, |_| false).unwrap();
                                response.headers_mut().insert("content-type", message.content_type.parse().unwrap());
                                *response.body_mut() = Full::from(message.body);
                            }
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
                });
            }
        });
        Self { address, ready, broken, wrong, ready_told }
    }
}

const SET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden-sets/sets/digits");

fn corrupting(golden_replays: bool) -> String {
    format!(
        "name: wrong\nspec:\n  expiresAfter: 1h\n  budget: {{concurrent: 100, share: 100%}}\n  goldenReplays: {golden_replays}\n  rules: [{{faults: [{{corrupt: {{magnitude: 50%}}}}]}}]\n"
    )
}

#[tokio::test]
async fn golden_replays_begin_with_readiness_and_tell_wrong_answers_from_none() {
    let _server = Server::start().await;
    let controller = Controller::start().await;
    let server = Knows::start(steadfast_golden_sets::set::read(SET).unwrap()).await;
    let sidecar = controller.sidecar(server.address, &["--golden", SET, "--golden-every", "20ms", "--engine", "rten"]);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(sidecar.metric("steadfast_golden_replays_total", &[]).await, 0, "replayed before the server was ready");

    server.ready.store(true, Ordering::Release);
    let (arrived, ()) = controller.told("a right replay", |what| matches!(what, What::Golden(replay) if replay.outcome == Outcome::Match).then_some(())).await;
    let since_ready = steadfast_proxy::clock::instant(server.ready_told.load(Ordering::Acquire));
    println!("first right replay was told {:?} after the server said that it is ready", arrived - since_ready);
    assert!(arrived - since_ready < Duration::from_secs(1), "{:?}", arrived - since_ready);

    // A fault that replays are not to see changes nothing for them.
    sidecar.arm(&corrupting(false)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sidecar.metric("steadfast_golden_replays_total", &[r#"outcome="mismatch""#]).await, 0);

    // A server that gives no answer is not wrong.
    server.broken.store(true, Ordering::Release);
    let (_, detail) = controller
        .told("no answer", |what| if let What::Golden(replay) = what { (replay.outcome == Outcome::NoAnswer).then(|| replay.detail.clone()) } else { None })
        .await;
    assert!(detail.unwrap().contains("500"));
    server.broken.store(false, Ordering::Release);
    assert_eq!(sidecar.metric("steadfast_golden_replays_total", &[r#"outcome="mismatch""#]).await, 0);

    // One that is wrong for everybody is.
    sidecar.arm(&corrupting(true)).await;
    controller.told("the verdict Fail", |what| matches!(what, What::GoldenVerdict { verdict: Verdict::Fail, .. }).then_some(())).await;
    let (_, detail) = controller
        .told("what differed", |what| if let What::Golden(replay) = what { (replay.outcome == Outcome::Mismatch).then(|| replay.detail.clone()) } else { None })
        .await;
    println!("{}", detail.unwrap());

    // And once it is right again, the question is open again.
    sidecar.admin("DELETE", "/policy", "").await;
    let begun = Instant::now();
    while sidecar.metric("steadfast_golden_verdict", &[r#"verdict="Fail""#]).await > 0 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sidecar.metric("steadfast_requests_total", &[]).await, 0, "replays count as users' requests");
}

#[tokio::test]
async fn an_assigned_set_is_fetched_by_its_digest_and_a_failed_server_recovers_by_what_it_answers() {
    let _server = Server::start().await;
    let controller = Controller::start().await;
    let set = steadfast_golden_sets::set::read(SET).unwrap();
    let digest = set.digest().to_string();
    let server = Knows::start(set.clone()).await;
    server.ready.store(true, Ordering::Release);
    let sidecar = controller.sidecar(server.address, &["--engine", "rten"]);
    let golden = serde_json::json!([{ "name": "production", "digest": digest, "every": "20ms", "share": "100%", "alpha": "1e-7", "detect": "10%" }]);
    let snapshot = |generation: u64, golden: &serde_json::Value, unready: Option<&str>| {
        let unready = unready.map(|after| serde_json::json!({ "reason": "its answers are wrong", "expiresAfter": after }));
        serde_json::json!({ "generation": generation, "golden": golden, "unready": unready }).to_string()
    };
    controller.policies.send(snapshot(1, &golden, None)).await.unwrap();
    let verdict = |is: Verdict| {
        let digest = digest.clone();
        move |what: &What| match what {
            What::GoldenVerdict { digest: Some(of), verdict, samples, mismatches, .. } if *of == digest && *verdict == is => Some((*samples, *mismatches)),
            _ => None,
        }
    };
    // Not there at first; then something else under its name.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let other = GoldenSet::new(set.manifest().clone(), set.model().clone(), set.samples().iter().rev().cloned().collect());
    assert!(other.is_err(), "a manifest names its samples in order");
    let mut manifest = set.manifest().clone();
    manifest.description = "another".to_owned();
    let other = GoldenSet::new(manifest, set.model().clone(), set.samples().to_vec()).unwrap();
    controller.sets.lock().unwrap().insert(digest.clone(), steadfast_golden_sets::set::archive::pack(&other).unwrap());
    controller.told("a set that is not the one that was meant", verdict(Verdict::ReferenceBroken)).await;
    assert_eq!(sidecar.metric("steadfast_golden_replays_total", &[]).await, 0);
    controller.sets.lock().unwrap().insert(digest.clone(), steadfast_golden_sets::set::archive::pack(&set).unwrap());
    controller
        .told("a right replay", |what| matches!(what, What::Golden(replay) if replay.outcome == Outcome::Match && replay.set == "production").then_some(()))
        .await;

    server.wrong.store(true, Ordering::Release);
    controller.told("the verdict Fail", verdict(Verdict::Fail)).await;
    let ready = async || sidecar.admin("GET", "/readyz", "").await.status;
    assert_eq!(ready().await, 200);
    controller.policies.send(snapshot(2, &golden, Some("2s"))).await.unwrap();
    controller.told("the second snapshot", |what| matches!(what, What::Policy { generation: 2, .. }).then_some(())).await;
    assert_eq!((ready().await, sidecar.metric("steadfast_kept_out", &[]).await), (503, 1));
    assert_eq!(ask(&client(), get(&sidecar.url("/v2/health/ready"), &[])).await.status, 200, "who still asks is served");
    let begun = Instant::now();
    while ready().await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(4), "its own clock ends it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Its replays are no share of anybody's requests while it is out.
    controller.policies.send(snapshot(3, &golden, Some("1m"))).await.unwrap();
    controller.told("the third snapshot", |what| matches!(what, What::Policy { generation: 3, .. }).then_some(())).await;
    controller.reports.lock().unwrap().clear();
    server.wrong.store(false, Ordering::Release);
    let mended = Instant::now();
    let (recovered, counts) = controller.told("the question open again", verdict(Verdict::Inconclusive)).await;
    assert_eq!(counts, (29, 0), "0.9^29 is below one in twenty");
    assert!(recovered - mended < Duration::from_secs(5), "{:?}", recovered - mended);
    controller.told("the verdict Pass", verdict(Verdict::Pass)).await;

    controller.policies.send(snapshot(4, &serde_json::json!([]), None)).await.unwrap();
    let begun = Instant::now();
    while sidecar.metric("steadfast_golden_verdict", &[]).await > 0 {
        assert!(begun.elapsed() < PATIENCE, "what is not assigned any more has no verdict");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_controller_that_fell_silent_is_dialled_again_and_what_is_armed_stays() {
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (dialled, mut dials) = mpsc::channel(8);
    // Answers with one snapshot each time, then says nothing and keeps the connection: a machine that froze, or a cable that was cut.
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let dialled = dialled.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                assert!(connection.read(&mut head).await.unwrap_or(0) > 0);
                let abort = r#"{"name":"down","spec":{"expiresAfter":"1h","budget":{"concurrent":9,"share":"100%"},"rules":[{"faults":[{"abort":{"httpStatus":503}}]}]}}"#;
                let snapshot = format!("{{\"generation\":7,\"epoch\":\"e\",\"policies\":[{abort}]}}\n");
                let head_and_line = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: steadfast-sidecar\r\n\r\n{snapshot}");
                let _ = connection.write_all(head_and_line.as_bytes()).await;
                let _ = dialled.send(Instant::now()).await;
                while connection.read(&mut head).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    let sidecar = Sidecar::start_with_token(server.address, &["--controller", &url, "--pod-uid", "uid-1"], "secret");
    let first = dials.recv().await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(30), dials.recv()).await.expect("it dials again").unwrap();
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&(second - first)), "{:?}", second - first);
    assert_eq!(ask(&client(), get(&sidecar.url("/"), &[])).await.status, 503);
}
