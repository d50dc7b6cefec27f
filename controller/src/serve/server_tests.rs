use bytes::Bytes;
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use steadfast_api::{
    policy::{NamedPolicy, PolicySnapshot},
    sidecar::Answer,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::Instant,
};

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

fn dial(server: &Server, uid: &str, token: &str) -> Request<Full<Bytes>> {
    let request = Request::get(format!("http://{}{CONNECTION_PATH}?uid={uid}", server.address())).header("authorization", format!("Bearer {token}"));
    request.header("connection", "upgrade").header("upgrade", CONNECTION_UPGRADE).body(Full::default()).unwrap()
}

/// A sidecar's connection.
struct Line(BufReader<TokioIo<hyper::upgrade::Upgraded>>);

impl Line {
    async fn open(server: &Server, uid: &str) -> Self {
        let answer = client().request(dial(server, uid, "secret")).await.unwrap();
        assert_eq!((answer.status(), &answer.headers()[PROTOCOL_HEADER]), (StatusCode::SWITCHING_PROTOCOLS, &HeaderValue::from(PROTOCOL_MAJOR)));
        Self(BufReader::new(TokioIo::new(hyper::upgrade::on(answer).await.unwrap())))
    }

    async fn tell(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> T {
        let mut line = String::new();
        timeout(SOON, self.0.read_line(&mut line)).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    async fn refused(mut self) -> String {
        let Answer::Refused(why) = self.hear().await else { panic!("it was taken") };
        assert_eq!(timeout(SOON, self.0.read(&mut [0])).await.unwrap().unwrap(), 0, "it ends with that");
        why
    }
}

fn report(uid: &str, sequence: u64) -> String {
    let evidence = r#"[{"atNs":1,"tokens":{"perSecond":3}},{"atNs":2,"upstream":{"ready":true}}]"#;
    let pod = format!(r#"{{"name":"p","uid":"{uid}","node":"n","zone":"z"}}"#);
    format!("{{\"pod\":{pod},\"sequence\":{sequence},\"sentNs\":10000000000,\"evidence\":{evidence},\"dropped\":0,\"mood\":\"good\"}}\n")
}

#[tokio::test]
async fn nobody_speaks_without_the_token_and_without_saying_for_whom() {
    let (server, _seen) = Server::start("secret").unwrap();
    for token in ["", "secre", "secrets", "SECRET"] {
        assert_eq!(client().request(dial(&server, "a", token)).await.unwrap().status(), 401, "{token}");
    }
    let mut bare = dial(&server, "a", "secret");
    bare.headers_mut().remove("authorization");
    assert_eq!(client().request(bare).await.unwrap().status(), 401);
    let said = async |request| {
        let answer = client().request(request).await.unwrap();
        (answer.status().as_u16(), String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).into_owned())
    };
    let mut no_upgrade = dial(&server, "a", "secret");
    no_upgrade.headers_mut().remove("upgrade");
    for (request, advice) in [(no_upgrade, "Upgrade: steadfast-sidecar"), (dial(&server, "", "secret"), "?uid=POD-UID")] {
        let (status, why) = said(request).await;
        assert!(status == 400 && why.contains(advice), "{status} {why}");
    }
}

#[tokio::test]
async fn a_change_of_policy_arrives_within_100_ms() {
    let (server, _seen) = Server::start("secret").unwrap();
    let mut line = Line::open(&server, "a").await;
    let first: PolicySnapshot = line.hear().await;
    assert_eq!((first.epoch.as_str(), first.policies.len()), (server.hub().epoch(), 0), "the current one comes at once");
    for round in 1..=20 {
        let policy: NamedPolicy =
            serde_json::from_value(serde_json::json!({ "name": "p", "spec": { "expiresAfter": "1m", "budget": { "concurrent": 1, "share": "1%" } } })).unwrap();
        let set = Instant::now();
        let generation = server.hub().set_policies(&format!("owner-{round}"), "a", vec![policy]).unwrap();
        let snapshot: PolicySnapshot = line.hear().await;
        assert!(set.elapsed() < Duration::from_millis(100), "{:?}", set.elapsed());
        assert_eq!((snapshot.generation, snapshot.policies.len()), (generation, round));
    }
}

#[tokio::test]
async fn reports_are_acknowledged_counted_once_and_a_bad_one_is_named() {
    let (server, mut seen) = Server::start("secret").unwrap();
    let mut line = Line::open(&server, "u").await;
    let _: PolicySnapshot = line.hear().await;
    line.tell(&format!("{}{}", report("u", 1), report("u", 2))).await;
    let taken: Answer = line.hear().await;
    if taken == Answer::Acknowledged(1) {
        assert_eq!(line.hear::<Answer>().await, Answer::Acknowledged(2));
    } else {
        assert_eq!(taken, Answer::Acknowledged(2));
    }
    // Cut anywhere, it is one line.
    let third = report("u", 3);
    let (head, tail) = third.split_at(40);
    line.tell(head).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    line.tell(tail).await;
    assert_eq!(line.hear::<Answer>().await, Answer::Acknowledged(3));
    line.tell(&report("u", 3)).await;
    assert_eq!(line.hear::<Answer>().await, Answer::Acknowledged(3), "what came before is thanked for");
    for sequence in 1..=3 {
        let one = seen.try_recv().unwrap();
        assert!(matches!(one.what, steadfast_api::sidecar::What::Upstream { ready: true }), "{sequence}: {one:?}");
    }
    assert!(seen.try_recv().is_err(), "and not counted");
    assert_eq!(server.ingest().passed_over(), 4, "evidence of a newer sidecar, each time");

    line.tell("nonsense\n").await;
    assert!(line.refused().await.contains("not a report"));
    let mut other = Line::open(&server, "u").await;
    let _: PolicySnapshot = other.hear().await;
    other.tell(&report("v", 1)).await;
    let why = other.refused().await;
    assert!(why.contains("pod u") && why.contains("pod v"), "{why}");
    let mut long = Line::open(&server, "u").await;
    let _: PolicySnapshot = long.hear().await;
    long.tell(&"x".repeat((1 << 20) + 1)).await;
    assert!(long.refused().await.contains("longer than"));
}

#[tokio::test]
async fn one_pod_takes_few_places_and_its_newest_connections_stay() {
    let (server, _seen) = Server::start("secret").unwrap();
    let mut other = Line::open(&server, "v").await;
    let mut lines = Vec::new();
    for _ in 0..6 {
        let mut line = Line::open(&server, "u").await;
        let _: PolicySnapshot = line.hear().await;
        lines.push(line);
    }
    for (number, line) in lines.iter_mut().enumerate() {
        if number < 2 {
            assert_eq!(timeout(SOON, line.0.read(&mut [0])).await.unwrap().unwrap(), 0, "{number} is one of the oldest");
        } else {
            line.tell(&report("u", number as u64)).await;
            assert_eq!(line.hear::<Answer>().await, Answer::Acknowledged(number as u64));
        }
    }
    let _: PolicySnapshot = other.hear().await;
    other.tell(&report("v", 1)).await;
    assert_eq!(other.hear::<Answer>().await, Answer::Acknowledged(1));
}

#[tokio::test]
async fn who_leads_no_more_acknowledges_nothing() {
    let (server, mut seen) = Server::start("secret").unwrap();
    let mut line = Line::open(&server, "u").await;
    let _: PolicySnapshot = line.hear().await;
    server.hub().end();
    // It may be closed before this is written.
    let _ = line.0.write_all(report("u", 1).as_bytes()).await;
    let _ = line.0.flush().await;
    let mut rest = Vec::new();
    let _ = timeout(SOON, line.0.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty() && seen.try_recv().is_err(), "{:?}", String::from_utf8_lossy(&rest));
    assert_eq!(client().request(dial(&server, "u", "secret")).await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_sidecar_of_another_protocol_is_told_what_to_do() {
    let (server, _seen) = Server::start("secret").unwrap();
    for (protocol, advice) in [("0", "start the pod anew"), ("2", "upgrade the controller")] {
        let mut request = dial(&server, "u", "secret");
        request.headers_mut().insert(PROTOCOL_HEADER, protocol.parse().unwrap());
        let refused = client().request(request).await.unwrap();
        assert_eq!(refused.status(), StatusCode::UPGRADE_REQUIRED);
        let body = refused.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(advice), "{body:?}");
    }
    assert_eq!(server.ingest().passed_over(), 2);
    let mut minor = dial(&server, "u", "secret");
    minor.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static("1.9"));
    assert_eq!(client().request(minor).await.unwrap().status(), StatusCode::SWITCHING_PROTOCOLS);
}

/// An API server that knows tokens of pods: `token-UID` for the audience of sidecars, `kubernetes-UID` for its own, `account` of no pod.
fn reviewer() -> kube::Client {
    let answer = |request: Request<kube::client::Body>| async move {
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let asked: serde_json::Value = serde_json::from_slice(&asked).unwrap();
        let token = asked["spec"]["token"].as_str().unwrap().to_owned();
        let extra =
            |uid: &str| serde_json::json!({ "authentication.kubernetes.io/pod-name": [format!("web-{uid}")], "authentication.kubernetes.io/pod-uid": [uid] });
        let status = match token.split_once('-') {
            Some(("token", uid)) => serde_json::json!({ "authenticated": true, "audiences": asked["spec"]["audiences"],
                "user": { "username": "system:serviceaccount:shop:default", "extra": extra(uid) } }),
            Some(("kubernetes", _)) => {
                serde_json::json!({ "authenticated": false, "error": "token audiences [\"https://kubernetes.default.svc\"] is invalid for the target audiences" })
            }
            _ if token == "account" => {
                serde_json::json!({ "authenticated": true, "audiences": asked["spec"]["audiences"], "user": { "username": "system:serviceaccount:shop:default" } })
            }
            _ => serde_json::json!({ "authenticated": false }),
        };
        let review =
            serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": asked["spec"], "status": status });
        Ok::<_, std::convert::Infallible>(Response::builder().status(201).body(kube::client::Body::from(review.to_string().into_bytes())).unwrap())
    };
    kube::Client::new(tower::service_fn(answer), "default")
}

/// What a request came to: its status and its words.
async fn said(request: Request<Full<Bytes>>) -> (u16, String) {
    let answer = client().request(request).await.unwrap();
    let status = answer.status().as_u16();
    if status == 101 {
        return (status, String::new());
    }
    (status, String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).into_owned())
}

#[tokio::test]
async fn on_a_cluster_a_token_opens_the_connection_and_the_sets_of_its_own_pod_alone() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let sidecars = Sidecars::new(PolicyHub::default());
    tokio::spawn(serve(listener, None, Auth::tokens(reviewer()), sidecars.clone()));
    let ask = |path: String, token: &str| {
        let request = Request::get(format!("http://{address}{path}")).header("authorization", format!("Bearer {token}"));
        request.header("connection", "upgrade").header("upgrade", CONNECTION_UPGRADE).body(Full::<Bytes>::default()).unwrap()
    };
    let dial = |uid: &str, token: &str| ask(format!("{CONNECTION_PATH}?uid={uid}"), token);
    assert_eq!(said(dial("a", "token-a")).await.0, 101);
    let (status, why) = said(dial("b", "token-a")).await;
    assert!(status == 403 && why.contains("shop/web-a") && why.contains("not for pod b"), "{status} {why}");
    for (token, wanted) in [("kubernetes-a", 401), ("account", 403), ("nonsense", 401), ("", 401)] {
        let (status, why) = said(dial("a", token)).await;
        assert_eq!(status, wanted, "{token}: {why}");
    }
    // Of golden sets it is given those that are assigned to it; being there is not enough.
    let tar = Bytes::from_static(b"a tar");
    let digest = steadfast_golden_sets::set::sha256(&tar).to_string();
    sidecars.sets.insert(&digest, tar).unwrap();
    let (status, why) = said(ask(format!("{GOLDEN_SETS}{digest}"), "token-b")).await;
    assert!(status == 403 && why.contains("not assigned to pod shop/web-b"), "{status} {why}");
    // And nobody hears a golden set that was not asked for.
    let mut brings = ask(READ_SET.to_owned(), "token-a");
    *brings.method_mut() = Method::POST;
    let (status, why) = said(brings).await;
    assert!(status == 403 && why.contains("nobody waits"), "{status} {why}");
}

#[tokio::test]
async fn a_report_in_another_pods_name_ends_the_connection_of_the_pod_that_sent_it() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let sidecars = Sidecars::new(PolicyHub::default());
    let seen = sidecars.ingest.subscribe(16, |_, _| true).into_receiver();
    tokio::spawn(serve(listener, None, Auth::tokens(reviewer()), sidecars));
    let request = Request::get(format!("http://{address}{CONNECTION_PATH}?uid=a")).header("authorization", "Bearer token-a");
    let request = request.header("connection", "upgrade").header("upgrade", CONNECTION_UPGRADE).body(Full::<Bytes>::default()).unwrap();
    let answer = client().request(request).await.unwrap();
    let mut line = Line(BufReader::new(TokioIo::new(hyper::upgrade::on(answer).await.unwrap())));
    let _: PolicySnapshot = line.hear().await;
    line.tell(&report("b", 1)).await;
    assert!(line.refused().await.contains("pod b"));
    assert!(seen.is_empty(), "nothing of it counts");
}
