use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use steadfast_api::policy::{NamedPolicy, PolicySnapshot};

use super::*;

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

fn request(method: &str, server: &Server, path: &str, token: &str, body: &str) -> Request<Full<Bytes>> {
    let uri = format!("http://{}{path}", server.address());
    let builder = Request::builder().method(method).uri(uri).header("authorization", format!("Bearer {token}"));
    builder.body(Full::from(body.to_owned())).unwrap()
}

async fn line(body: &mut Incoming) -> PolicySnapshot {
    let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap().unwrap().unwrap();
    serde_json::from_slice(frame.data_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn nobody_speaks_without_the_token() {
    let (server, _seen) = Server::start("secret").unwrap();
    for token in ["", "secre", "secrets", "SECRET"] {
        let answer = client().request(request("GET", &server, "/v1alpha1/policies?uid=a", token, "")).await.unwrap();
        assert_eq!(answer.status(), 401, "{token}");
    }
    let bare = Request::get(format!("http://{}/v1alpha1/policies?uid=a", server.address())).body(Full::default()).unwrap();
    assert_eq!(client().request(bare).await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_change_of_policy_arrives_within_100_ms() {
    let (server, _seen) = Server::start("secret").unwrap();
    let answer = client().request(request("GET", &server, "/v1alpha1/policies?uid=a", "secret", "")).await.unwrap();
    let mut body = answer.into_body();
    let first = line(&mut body).await;
    assert_eq!((first.epoch.as_str(), first.policies.len()), (server.hub().epoch(), 0), "the current one comes at once");
    for round in 1..=20 {
        let policy: NamedPolicy =
            serde_json::from_value(serde_json::json!({ "name": "p", "spec": { "expiresAfter": "1m", "budget": { "concurrent": 1, "share": "1%" } } })).unwrap();
        let set = Instant::now();
        let generation = server.hub().set_policies(&format!("owner-{round}"), "a", vec![policy]).unwrap();
        let snapshot = line(&mut body).await;
        assert!(set.elapsed() < Duration::from_millis(100), "{:?}", set.elapsed());
        assert_eq!((snapshot.generation, snapshot.policies.len()), (generation, round));
    }
}

#[tokio::test]
async fn reports_are_lines_and_a_bad_one_is_named() {
    let (server, mut seen) = Server::start("secret").unwrap();
    let report = |sequence: u64| {
        format!(
            r#"{{"pod":{{"name":"p","uid":"u","node":"n"}},"sequence":{sequence},"sentNs":10000000000,"evidence":[{{"atNs":1,"upstream":{{"ready":true}}}}],"dropped":0}}"#
        )
    };
    let send = |body: String| client().request(request("POST", &server, "/v1alpha1/reports", "secret", &body));
    assert_eq!(send(format!("{}\n{}", report(1), report(2))).await.unwrap().status(), 204);
    assert_eq!(send(report(2)).await.unwrap().status(), 204, "what came before is thanked for and not counted");
    for sequence in 1..=2 {
        assert!(seen.try_recv().is_ok(), "{sequence}");
    }
    assert!(seen.try_recv().is_err());
    let refused = send(format!("{}\nnonsense", report(3))).await.unwrap();
    assert_eq!(refused.status(), 400);
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("line 2 is not a report"), "{body:?}");
    let long = send("x".repeat(LINE_MAX + 1)).await.unwrap();
    assert_eq!(long.status(), 413);
}
