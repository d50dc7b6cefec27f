//! Stopping everything before Steadfast goes.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use kube::{Client, client::Body};
use serde_json::{Value, json};

use super::*;

/// Tests by name. One that is told to stop while it runs has ended by the next look; `vanishes` is gone before it can be told.
fn api_server(tests: Arc<Mutex<BTreeMap<String, Value>>>) -> Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let mut tests = tests.lock().unwrap_or_else(PoisonError::into_inner);
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let (code, value) = if request.method() == Method::GET {
            let listed =
                json!({ "apiVersion": "steadfast.dev/v1alpha1", "kind": "ResilienceTestList", "metadata": {}, "items": tests.values().collect::<Vec<_>>() });
            for test in tests.values_mut().filter(|test| !test["metadata"]["annotations"].is_null() && test["status"]["phase"] == "Running") {
                test["status"]["phase"] = json!("Finished");
            }
            tests.remove("vanishes");
            (StatusCode::OK, listed)
        } else if let Some(test) = tests.get_mut(&name) {
            test["metadata"]["annotations"] = json!({ STOP_ANNOTATION: "now" });
            (StatusCode::OK, test.clone())
        } else {
            let why = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404 });
            (StatusCode::NOT_FOUND, why)
        };
        let answer = Response::builder().status(code).body(Full::new(Bytes::from(value.to_string()))).expect("an answer");
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    Client::new(service, "default")
}

#[tokio::test]
async fn what_runs_and_what_waits_is_told_to_stop_though_a_test_vanishes_meanwhile() {
    let test = |name: &str, phase: &str, suspended: bool| {
        let spec = json!({ "target": { "selector": { "matchLabels": { "app": "x" } }, "port": "http" }, "steps": [], "suspend": suspended });
        let test = json!({
            "apiVersion": "steadfast.dev/v1alpha1", "kind": "ResilienceTest", "metadata": { "name": name, "namespace": "models" },
            "spec": spec, "status": { "phase": phase },
        });
        (name.to_owned(), test)
    };
    let tests = [
        test("vanishes", "Running", false),
        test("runs", "Running", false),
        test("waits", "Pending", false),
        test("template", "Pending", true),
        test("over", "Finished", false),
    ];
    let tests = Arc::new(Mutex::new(BTreeMap::from(tests)));
    let (told, problems) = stop_all(&api_server(Arc::clone(&tests)), &Scope::default()).await.expect("listed");
    assert_eq!(told, ["ResilienceTest models/runs", "ResilienceTest models/waits"]);
    assert!(problems.is_empty(), "{problems:?}");
    let tests = tests.lock().unwrap_or_else(PoisonError::into_inner);
    let told: Vec<&str> = tests.iter().filter(|(_, test)| !test["metadata"]["annotations"].is_null()).map(|(name, _)| name.as_str()).collect();
    assert_eq!((told, &tests["runs"]["status"]["phase"]), (vec!["runs", "waits"], &json!("Finished")), "those that run are waited for");
}
