//! Whoever makes a failure, or takes it back, is killed at each of its requests, before the API server got it and after; whoever comes next takes everything back.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use kube::client::Body;
use serde_json::{Value, json};
use steadfast_api::fault::Delay;
use tokio::sync::Notify;

use super::*;
use crate::reconcile::scope::Scope;

const SYSTEM: &str = "steadfast";

/// An API server as far as failures ask it, with the controllers, the kubelet and the agents that they need: each does at once what it is there for.
struct Fake {
    objects: Mutex<BTreeMap<String, Value>>,
    version: AtomicUsize,
    /// Requests that change something.
    changes: AtomicUsize,
    /// Evictions that a disruption budget refuses before it lets go.
    refusals: AtomicUsize,
    /// The namespace has taken its leave back: an admission policy keeps its pods.
    keeps_pods: AtomicBool,
}

/// Of the process that asks.
#[derive(Clone)]
struct Killed {
    /// At this change.
    at: usize,
    /// The API server still got it.
    after: bool,
    done: Arc<Notify>,
}

impl Fake {
    fn new() -> Arc<Self> {
        let fake = Self {
            objects: Mutex::default(),
            version: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            keeps_pods: AtomicBool::new(false),
        };
        let owned = |kind: &str, name: &str| json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true }]);
        let applied = json!([{ "manager": "kubectl", "operation": "Apply" }]);
        for node in ["n1", "n2"] {
            let node = json!({ "metadata": { "name": node, "uid": node, "managedFields": applied }, "spec": {} });
            fake.put(&format!("/api/v1/nodes/{}", node["metadata"]["name"].as_str().unwrap()), node);
        }
        for (kind, plural, name) in [("Deployment", "deployments", "web"), ("StatefulSet", "statefulsets", "db")] {
            let labels = json!({ "app": name });
            let template = json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "server", "image": "good" }] } });
            let spec = json!({ "replicas": 2, "selector": { "matchLabels": labels }, "template": template });
            let workload = json!({ "metadata": { "name": name, "namespace": "models", "uid": format!("uid-{name}"), "generation": 1, "managedFields": applied }, "spec": spec });
            fake.put(&format!("/apis/apps/v1/namespaces/models/{plural}/{name}"), workload);
            for number in 0..2 {
                let pod = json!({
                    "metadata": { "name": format!("{name}-{number}"), "namespace": "models", "uid": format!("uid-{name}-{number}"), "labels": labels, "ownerReferences": owned(kind, name) },
                    "spec": { "nodeName": format!("n{}", number + 1), "containers": [{ "name": "server", "image": "good" }] },
                    "status": {
                        "phase": "Running",
                        "conditions": [{ "type": "Ready", "status": "True" }],
                        "containerStatuses": [{ "name": "server", "image": "good", "imageID": "", "ready": true, "restartCount": 0, "containerID": "containerd://c", "state": { "running": {} } }],
                    },
                });
                fake.put(&format!("/api/v1/namespaces/models/pods/{name}-{number}"), pod);
            }
        }
        Arc::new(fake)
    }

    fn put(&self, path: &str, mut object: Value) -> Value {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        lock(&self.objects).insert(path.to_owned(), object.clone());
        object
    }

    fn get(&self, path: &str) -> Option<Value> {
        lock(&self.objects).get(path).cloned()
    }

    /// Everything but versions.
    fn state(&self) -> BTreeMap<String, Value> {
        let mut objects = lock(&self.objects).clone();
        for object in objects.values_mut() {
            for field in ["resourceVersion", "generation"] {
                object["metadata"].as_object_mut().unwrap().remove(field);
            }
            object.as_object_mut().unwrap().remove("status");
            // As clients read it.
            for (field, none) in [("annotations", json!({})), ("taints", json!([]))] {
                for part in ["metadata", "spec"] {
                    if object[part][field] == none {
                        object[part].as_object_mut().unwrap().remove(field);
                    }
                }
            }
        }
        objects.retain(|path, _| !path.contains("/pods/web-") && !path.contains("/pods/db-"));
        objects
    }

    fn client(self: &Arc<Self>, killed: Option<Killed>) -> Client {
        let (fake, changes) = (Arc::clone(self), Arc::new(AtomicUsize::new(0)));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (fake, killed, changes) = (Arc::clone(&fake), killed.clone(), Arc::clone(&changes));
            async move {
                let dies = request.method() != Method::GET && {
                    let number = changes.fetch_add(1, Ordering::Relaxed) + 1;
                    killed.as_ref().is_some_and(|killed| number >= killed.at)
                };
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap_or_default();
                if parts.uri.query().is_some_and(|query| query.contains("watch=")) {
                    std::future::pending::<()>().await;
                }
                let answer = if dies && !killed.as_ref().is_some_and(|killed| killed.after) { None } else { Some(fake.answer(&parts, &body)) };
                if let Some(killed) = killed.filter(|_| dies) {
                    killed.done.notify_one();
                    std::future::pending::<()>().await;
                }
                let (code, value) = answer.unwrap_or((StatusCode::IM_A_TEAPOT, Value::Null));
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Ok::<_, Infallible>(Response::builder().status(code).body(Full::new(Bytes::from(text))).unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, request: &http::request::Parts, body: &[u8]) -> (StatusCode, Value) {
        let (path, query) = (request.uri.path(), request.uri.query().unwrap_or_default());
        let refused = |code: StatusCode, why: &str| {
            let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "Conflict" };
            (code, json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": why, "reason": reason, "code": code.as_u16() }))
        };
        let gone = || refused(StatusCode::NOT_FOUND, "not found");
        let changed: Value = serde_json::from_slice(body).unwrap_or_default();
        if request.method != Method::GET {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        let base = path.trim_end_matches("/status").trim_end_matches("/scale").trim_end_matches("/log").to_owned();
        match request.method {
            Method::GET if path.ends_with("/log") => (StatusCode::OK, json!("{\"asked\": 0.2, \"achieved\": 0.2, \"seconds\": 1.0}")),
            Method::GET if ["nodes", "pods", "configmaps", "namespaces", "nodefaults"].iter().any(|plural| path.ends_with(&format!("/{plural}"))) => {
                let node = query.strip_prefix("&").unwrap_or(query).split('&').find_map(|part| part.strip_prefix("fieldSelector=spec.nodeName%3D"));
                let app = query.split('&').find_map(|part| part.strip_prefix("labelSelector=app%3D"));
                let plural = path.rsplit('/').next().unwrap_or_default();
                let within = path.strip_suffix(plural).unwrap_or(path);
                let items: Vec<Value> = lock(&self.objects)
                    .iter()
                    .filter(|(key, _)| key.starts_with(within) && key.contains(&format!("/{plural}/")))
                    .map(|(_, object)| object.clone())
                    .filter(|object| node.is_none_or(|node| object["spec"]["nodeName"] == node))
                    .filter(|object| app.is_none_or(|app| object["metadata"]["labels"]["app"] == app))
                    .collect();
                (StatusCode::OK, json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "1" }, "items": items }))
            }
            Method::GET => self.get(&base).map_or_else(gone, |object| (StatusCode::OK, object)),
            Method::POST if path.ends_with("/eviction") => {
                if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    return refused(StatusCode::TOO_MANY_REQUESTS, "the budget needs 2 healthy pods");
                }
                lock(&self.objects).remove(path.trim_end_matches("/eviction"));
                (StatusCode::CREATED, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
            }
            Method::POST => {
                let path = format!("{path}/{}", changed["metadata"]["name"].as_str().unwrap_or_default());
                if self.get(&path).is_some() {
                    return refused(StatusCode::CONFLICT, "already there");
                }
                let mut object = changed;
                object["metadata"]["uid"] = json!(format!("uid-{path}"));
                if path.contains("/nodefaults/") {
                    let instant = object["spec"].to_string().contains("containerKill");
                    object["status"] = if instant { json!({ "phase": "Healed", "message": "killed", "seen": 1 }) } else { json!({ "phase": "InForce" }) };
                }
                if path.contains("/pods/") {
                    object["status"] = json!({ "phase": "Running" });
                }
                (StatusCode::CREATED, self.put(&path, object))
            }
            Method::DELETE if path.contains("/namespaces/models/pods/") && self.keeps_pods.load(Ordering::Relaxed) => {
                refused(StatusCode::UNPROCESSABLE_ENTITY, "deletes pods only in namespaces that are labelled")
            }
            Method::DELETE => match lock(&self.objects).remove(path) {
                Some(_) => (StatusCode::OK, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })),
                None => gone(),
            },
            _ => {
                let Some(before) = self.get(&base) else { return gone() };
                let version = &changed["metadata"]["resourceVersion"];
                if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
                    return refused(StatusCode::CONFLICT, "conflict");
                }
                let now = self.changed(&base, &before, &changed, request);
                (StatusCode::OK, self.put(&base, now))
            }
        }
    }

    fn changed(&self, path: &str, before: &Value, change: &Value, request: &http::request::Parts) -> Value {
        if request.method == Method::PUT {
            return change.clone();
        }
        let mut now = before.clone();
        let containers = change.pointer("/spec/template/spec/containers").and_then(Value::as_array);
        if let Some(containers) = containers {
            now["spec"]["template"]["spec"]["containers"][0]["image"] = containers[0]["image"].clone();
        } else {
            json_patch::merge(&mut now, change);
        }
        if request.uri.query().is_some_and(|query| query.contains("fieldManager=steadfast")) && now["spec"] != before["spec"] {
            let fields = now["metadata"]["managedFields"].as_array_mut();
            if let Some(fields) = fields.filter(|fields| fields.iter().all(|entry| entry["manager"] != "steadfast")) {
                fields.push(json!({ "manager": "steadfast", "operation": "Update" }));
            }
        }
        if path.contains("/nodefaults/") && now["spec"]["ended"] == true {
            now["status"] = json!({ "phase": "Healed", "message": "7 packets were dropped", "seen": 7 });
        }
        if path.contains("/pods/") && now["spec"]["activeDeadlineSeconds"] == 1 {
            now["status"] = json!({ "phase": "Failed" });
        }
        if path.contains("/apis/apps/") && now["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            now["metadata"]["generation"] = json!(generation);
            let image = now["spec"]["template"]["spec"]["containers"][0]["image"].clone();
            let updated = i64::from(image != "good");
            now["status"] = json!({ "observedGeneration": generation, "replicas": now["spec"]["replicas"], "updatedReplicas": updated });
            // A StatefulSet has one pod of the bad image, which it waits for.
            if path.contains("/statefulsets/") && image != "good" {
                let mut pod = self.get("/api/v1/namespaces/models/pods/db-1").unwrap_or_default();
                pod["spec"]["containers"][0]["image"] = image;
                pod["status"]["conditions"][0]["status"] = json!("False");
                self.put("/api/v1/namespaces/models/pods/db-1", pod);
            }
        }
        now
    }
}

fn means(prompt: Client) -> Arc<Means> {
    Arc::new(Means {
        pods: Arc::new(Pods::watch(&prompt, Scope::default())),
        client: prompt.clone(),
        prompt,
        namespace: SYSTEM.to_owned(),
        node: "n9".to_owned(),
        users: Arc::default(),
        image: "steadfast".to_owned(),
        image_pull_policy: None,
        run_as_user: RunAsUser::DEFAULT,
        image_pull_secrets: Vec::new(),
        power: None,
        budget: Budget { nodes: UnavailableMax::Percent(50), pods: UnavailableMax::Percent(50) },
    })
}

fn orders() -> Vec<(&'static str, Order)> {
    let nodes = || vec!["n1".to_owned()];
    let key = "steadfast.dev/taint".to_owned();
    vec![
        ("app=web", Order::Cordon { nodes: vec!["n1".to_owned()] }),
        ("app=web", Order::Taint { nodes: nodes(), key: key.clone(), value: "x".to_owned(), effect: TaintEffect::NoSchedule }),
        ("app=web", Order::Taint { nodes: nodes(), key, value: String::new(), effect: TaintEffect::NoExecute }),
        ("app=web", Order::Scale { replicas: 1 }),
        ("app=web", Order::RollOut { container: "server".to_owned(), image: "bad".to_owned() }),
        ("app=db", Order::RollOut { container: "server".to_owned(), image: "bad".to_owned() }),
        ("app=web", Order::Drain { nodes: nodes(), empties: false }),
        ("app=web", Order::Burn { nodes: nodes(), load: "20%".parse().expect("a share") }),
        ("app=web", Order::LoseNodes { nodes: nodes(), by: NodeFailureBy::Agent, lasts: Span::from_secs(60) }),
        ("app=web", Order::LoseNodes { nodes: nodes(), by: NodeFailureBy::Kubelet, lasts: Span::from_secs(60) }),
        ("app=web", Order::DelayNodes { nodes: nodes(), delay: Delay { fixed: Span::from_secs(1), jitter: Span::ZERO }, lasts: Span::from_secs(60) }),
        ("app=web", Order::KillContainers { pods: vec!["web-0".to_owned(), "web-1".to_owned()], container: None }),
    ]
}

/// Makes the failure and takes it back.
async fn whole(means: &Arc<Means>, selector: &str, order: Order) -> Result<Undone, FailureError> {
    let (_keep, given_up) = watch::channel(false);
    let given_up = GivenUp(given_up);
    let target = Target { namespace: "models", selector, port: &IntOrString::Int(8000), prefix: "steadfast-run-1", given_up: &given_up };
    let ledger = Ledger::new(means.prompt.clone(), SYSTEM, "run", "models/test");
    let failure = carry_out(means, &ledger, &target, order, Span::from_secs(60)).await?;
    Ok(take_back(means, &ledger, &failure).await)
}

#[tokio::test]
async fn whoever_is_killed_at_any_request_of_any_failure_leaves_nothing_to_whoever_comes_next() {
    let mut kills = 0;
    for (selector, order) in orders() {
        let fake = Fake::new();
        let before = fake.state();
        let undone = whole(&means(fake.client(None)), selector, order.clone()).await.unwrap_or_else(|error| panic!("{order:?}: {error}"));
        assert!(!undone.evidence.is_empty() && undone.left_behind.is_empty(), "{order:?}: {undone:?}");
        assert_eq!(fake.state(), before, "{order:?}: undone, and nobody owns a field who did not before");
        let changes = fake.changes.load(Ordering::Relaxed);
        for (at, after) in (1..=changes).flat_map(|at| [(at, false), (at, true)]) {
            let fake = Fake::new();
            let killed = Killed { at, after, done: Arc::default() };
            let doomed = means(fake.client(Some(killed.clone())));
            tokio::select! {
                ended = whole(&doomed, selector, order.clone()) => panic!("{order:?} came to its end, though it was killed at change {at}: {ended:?}"),
                () = killed.done.notified() => {}
            }
            let summary = undo::everything(&means(fake.client(None)), false).await.expect("read");
            assert!(summary.failed.is_empty(), "{order:?}, killed at change {at}: {summary:?}");
            assert_eq!(fake.state(), before, "{order:?}, killed {} change {at}", if after { "after" } else { "before" });
            let stuck = fake.get("/api/v1/namespaces/models/pods/db-1").is_some_and(|pod| pod["spec"]["containers"][0]["image"] == "bad");
            assert!(!stuck, "{order:?}, killed at change {at}: a StatefulSet waits for a pod of the bad image");
            kills += 1;
        }
    }
    assert!(kills >= 100, "{kills}");
}

#[tokio::test]
async fn what_a_budget_refuses_is_asked_for_again_for_seconds_and_told_in_its_words() {
    let fake = Fake::new();
    let pods = || BTreeSet::from(["web-0", "web-1"].map(|name| Meant { namespace: "models".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") }));
    let (give_up, given_up) = watch::channel(false);
    fake.refusals.store(1, Ordering::Relaxed);
    let began = Instant::now();
    let Evictions { evicted, refused, .. } = evict(&fake.client(None), pods(), &GivenUp(given_up.clone())).await.unwrap();
    assert!(evicted.len() == 2 && refused.is_empty() && began.elapsed() >= evict::AGAIN, "the budget let go: {evicted:?} {refused:?}");
    let fake = Fake::new();
    fake.refusals.store(100, Ordering::Relaxed);
    give_up.send_replace(true);
    let began = Instant::now();
    let Evictions { evicted, refused, .. } = evict(&fake.client(None), pods(), &GivenUp(given_up)).await.unwrap();
    assert!(evicted.is_empty() && refused.len() == 2 && refused.values().all(|words| words.contains("2 healthy pods")), "{refused:?}");
    assert!(began.elapsed() < evict::AGAIN && fake.changes.load(Ordering::Relaxed) == 2, "asked once, since the run ends");
}

#[tokio::test]
async fn what_has_no_effect_proves_nothing_and_says_why() {
    let fake = Fake::new();
    let mut node = fake.get("/api/v1/nodes/n1").unwrap();
    node["spec"]["unschedulable"] = json!(true);
    fake.put("/api/v1/nodes/n1", node.clone());
    let undone = whole(&means(fake.client(None)), "app=web", Order::Cordon { nodes: vec!["n1".to_owned()] }).await.unwrap();
    assert!(undone.evidence.is_empty() && undone.doubts[0].contains("cordoned by somebody else"), "{undone:?}");
    node["spec"]["unschedulable"] = json!(false);
    fake.put("/api/v1/nodes/n1", node);
    fake.refusals.store(1000, Ordering::Relaxed);
    let undone = whole(&means(fake.client(None)), "app=web", Order::Drain { nodes: vec!["n2".to_owned()], empties: false }).await.unwrap();
    assert!(undone.evidence.is_empty() && undone.doubts.iter().any(|doubt| doubt.contains("2 healthy pods")), "{undone:?}");
    let mut set = fake.get("/apis/apps/v1/namespaces/models/statefulsets/db").unwrap();
    set["spec"]["updateStrategy"] = json!({ "type": "OnDelete" });
    set["status"] = json!({ "observedGeneration": 1 });
    fake.put("/apis/apps/v1/namespaces/models/statefulsets/db", set);
    let workload = Workload { kind: "StatefulSet".to_owned(), namespace: "models".to_owned(), name: "db".to_owned(), uid: "uid-db".to_owned() };
    let shown = workload.shows_image(&fake.client(None), "server", "bad").await.unwrap();
    assert!(shown.unwrap_err().contains("OnDelete"));
    let other = Workload { uid: "another".to_owned(), ..workload };
    assert!(other.scale_back(&fake.client(None), 1, 2).await.unwrap_err().gone, "one of the same name is left alone");
}

#[tokio::test]
async fn a_drain_refuses_pods_that_nobody_would_make_again_and_more_nodes_than_allowed() {
    let fake = Fake::new();
    let drain = |nodes: &[&str], empties| Order::Drain { nodes: nodes.iter().map(|node| (*node).to_owned()).collect(), empties };
    let why = whole(&means(fake.client(None)), "app=web", drain(&["n1", "n2"], false)).await.unwrap_err().why;
    assert!(why.contains("2 of 2 nodes") && why.contains("maxUnavailableNodes"), "{why}");
    fake.put(
        "/api/v1/namespaces/models/pods/bare",
        json!({ "metadata": { "name": "bare", "namespace": "models", "uid": "b" }, "spec": { "nodeName": "n1", "containers": [] } }),
    );
    let before = fake.state();
    let why = whole(&means(fake.client(None)), "app=web", drain(&["n1"], false)).await.unwrap_err().why;
    assert!(why.contains("models/bare"), "{why}");
    assert_eq!(fake.state(), before, "nothing was begun");
    lock(&fake.objects).remove("/api/v1/namespaces/models/pods/bare");
    let mut pod = fake.get("/api/v1/namespaces/models/pods/web-0").unwrap();
    pod["spec"]["volumes"] = json!([{ "name": "cache", "emptyDir": {} }]);
    fake.put("/api/v1/namespaces/models/pods/web-0", pod);
    let before = fake.state();
    let why = whole(&means(fake.client(None)), "app=web", drain(&["n1"], false)).await.unwrap_err().why;
    assert!(why.contains("models/web-0") && why.contains("deleteEmptyDirData: true"), "{why}");
    assert_eq!(fake.state(), before, "nothing was begun");
    assert!(whole(&means(fake.client(None)), "app=web", drain(&["n1"], true)).await.is_ok());
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_tried_again_until_somebody_asks_to_forget_it() {
    let fake = Fake::new();
    let ledger = Ledger::new(fake.client(None), SYSTEM, "run", "models/test");
    let mut node = fake.get("/api/v1/nodes/n1").unwrap();
    node["status"] = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
    fake.put("/api/v1/nodes/n1", node);
    let first = ledger.record(ClusterChange::PoweredOff { node: "n1".to_owned() }, Span::from_secs(1)).await.unwrap();
    let means = means(fake.client(None));
    for _ in 0..2 {
        let summary = undo::everything(&means, false).await.unwrap();
        assert!(summary.failed[0].contains("--forget"), "{summary:?}");
    }
    let summary = undo::everything(&means, true).await.unwrap();
    assert!(summary.failed.is_empty() && summary.forgotten.len() == 1, "{summary:?}");
    assert!(ledger.entries().await.unwrap().is_empty());
    // Whoever strikes it out late hits nobody else's.
    let second = ledger.record(ClusterChange::PoweredOff { node: "n7".to_owned() }, Span::from_secs(1)).await.unwrap();
    assert!(second > first);
    ledger.strike(first).await.unwrap();
    assert_eq!(ledger.entries().await.unwrap().len(), 1);
    // No such node any more: nothing waits for it.
    let summary = undo::everything(&means, false).await.unwrap();
    assert!(summary.failed.is_empty() && summary.unproven[0].contains("no node of the cluster"), "{summary:?}");
}

#[tokio::test]
async fn a_namespace_that_took_its_leave_back_gets_its_image_back_and_is_told_which_pods_to_delete() {
    let fake = Fake::new();
    let means = means(fake.client(None));
    let workload = Workload { kind: "StatefulSet".to_owned(), namespace: "models".to_owned(), name: "db".to_owned(), uid: "uid-db".to_owned() };
    let ledger = Ledger::new(means.prompt.clone(), SYSTEM, "run", "models/test");
    let change = ClusterChange::RolledOut {
        kind: workload.kind.clone(),
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        uid: workload.uid.clone(),
        container: "server".to_owned(),
        image: "good".to_owned(),
        to: "bad".to_owned(),
    };
    ledger.record(change, Span::from_secs(60)).await.unwrap();
    workload.roll_out(&means.prompt, "server", "bad").await.unwrap();
    fake.keeps_pods.store(true, Ordering::Relaxed);
    let summary = undo::everything(&means, false).await.unwrap();
    assert!(summary.failed.is_empty() && summary.not_ours[0].ends_with("kubectl delete pod --namespace models db-1"), "{summary:?}");
    assert_eq!(workload.image(&means.prompt, "server").await.unwrap(), "good");
    assert!(ledger.entries().await.unwrap().is_empty(), "no other run waits for it");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_understood_keeps_none_of_the_others() {
    let fake = Fake::new();
    let means = means(fake.client(None));
    let of_newer = format!("/api/v1/namespaces/{SYSTEM}/configmaps/steadfast-in-force-newer");
    fake.put(
        &of_newer,
        json!({ "metadata": { "name": "steadfast-in-force-newer", "namespace": SYSTEM, "labels": { "steadfast.dev/ledger": "true" } }, "data": { "inForce.json": "[{\"id\": 1}]", "test": "a/b" } }),
    );
    let ledger = Ledger::new(means.prompt.clone(), SYSTEM, "run", "models/test");
    ledger
        .record(
            ClusterChange::Scaled {
                kind: "Deployment".to_owned(),
                namespace: "models".to_owned(),
                name: "web".to_owned(),
                uid: "uid-web".to_owned(),
                replicas: 2,
                to: 1,
            },
            Span::from_secs(60),
        )
        .await
        .unwrap();
    let summary = undo::everything(&means, false).await.unwrap();
    assert!(summary.failed.len() == 1 && summary.failed[0].contains("steadfast-in-force-newer") && summary.failed[0].contains("--forget"), "{summary:?}");
    assert!(ledger.entries().await.unwrap().is_empty() && fake.get(&of_newer).is_some());
    let summary = undo::everything(&means, true).await.unwrap();
    assert!(summary.failed.is_empty() && summary.forgotten.len() == 1 && fake.get(&of_newer).is_none(), "{summary:?}");
}

#[tokio::test]
async fn a_users_pod_that_was_left_behind_is_removed_and_one_that_is_in_use_stays() {
    let fake = Fake::new();
    let before = fake.state();
    let (ledger, means) = (Ledger::new(fake.client(None), SYSTEM, "watch", "models/test"), means(fake.client(None)));
    let in_use = means.users.name("users-1".to_owned()).unwrap();
    for pod in ["users-1", "users-2", "users-3"] {
        ledger.record(ClusterChange::Users { pod: pod.to_owned() }, Span::from_secs(60)).await.unwrap();
    }
    // The third was written down and never made.
    for pod in ["users-1", "users-2"] {
        fake.put(&format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}"), json!({ "metadata": { "name": pod, "namespace": SYSTEM }, "spec": { "containers": [] } }));
    }
    let summary = undo::everything(&means, false).await.unwrap();
    assert_eq!((summary.restored.as_slice(), summary.failed.as_slice()), (&["users' pod users-2 removed".to_owned()][..], &[][..]));
    assert!(fake.get(&format!("/api/v1/namespaces/{SYSTEM}/pods/users-1")).is_some() && ledger.entries().await.unwrap().len() == 1);
    drop(in_use);
    undo::everything(&means, false).await.unwrap();
    assert_eq!(fake.state(), before);
}

#[tokio::test]
async fn no_failure_takes_the_node_of_the_controller_or_of_the_users() {
    let fake = Fake::new();
    for node in ["n3", "n9"] {
        fake.put(&format!("/api/v1/nodes/{node}"), json!({ "metadata": { "name": node, "uid": node }, "spec": {} }));
    }
    for node in ["n1", "n3", "n9"] {
        let mut labelled = fake.get(&format!("/api/v1/nodes/{node}")).unwrap();
        labelled["metadata"]["labels"] = json!({ "steadfast.dev/faults": "allowed" });
        fake.put(&format!("/api/v1/nodes/{node}"), labelled);
    }
    let means = means(fake.client(None));
    let may = async |action: &str, nodes: &[&str], users: Option<&str>| {
        let action: Action = serde_saphyr::from_str(action).unwrap();
        choosable(&means, &action, nodes.iter().map(|node| (*node).to_owned()).collect(), users).await.map_err(|error| error.why)
    };
    let (lost, burned) = ("nodeFailure: {nodes: {mode: one}}", "cpuPressure: {nodes: {mode: one}, load: 90%}");
    assert_eq!(may(lost, &["n1", "n3", "n9"], Some("n3")).await.unwrap(), ["n1"]);
    assert_eq!(may(burned, &["n1", "n3", "n9"], Some("n3")).await.unwrap(), ["n1"]);
    assert_eq!(may(burned, &["n3", "n9"], Some("n3")).await.unwrap(), ["n3", "n9"], "where there is no other");
    assert_eq!(may(lost, &["n1", "n3", "n9"], None).await.unwrap(), ["n1", "n3"], "users are where the controller is");
    let why = may(lost, &["n3"], Some("n3")).await.unwrap_err();
    assert!(why.contains("holds the users of this run"), "{why}");
    let why = may(lost, &["n9"], Some("n3")).await.unwrap_err();
    assert!(why.contains("holds the controller that leads: no failure"), "{why}");
}
