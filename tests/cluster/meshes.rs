//! Beside another mesh's injector: a second mutating webhook, called before ours and after it, each called again when the other has changed the pod.
//!
//! It is served by the test itself and does what such injectors do: it adds a container with a port of its own, and rewrites the server's port and the probe that
//! means it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use steadfast_controller::{
    http::{self, Identity},
    webhook::certificate::{Certificates, Lifetimes},
};
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    harness::{Cluster, IMAGE, Namespace, cluster},
    install::install,
};

/// This machine in the cluster's network.
const HERE: &str = "10.77.0.254";

/// The patch that the other injector asks for; empty once all is as it wants it.
fn patch(pod: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    for (index, container) in containers.iter().enumerate() {
        for (port, declared) in container["ports"].as_array().into_iter().flatten().enumerate() {
            if declared["name"] == "web" {
                operations.push(json!({ "op": "replace", "path": format!("/spec/containers/{index}/ports/{port}/name"), "value": "http" }));
            }
        }
        if container["readinessProbe"]["httpGet"]["port"] == "web" {
            operations.push(json!({ "op": "replace", "path": format!("/spec/containers/{index}/readinessProbe/httpGet/port"), "value": "http" }));
        }
    }
    if containers.iter().all(|container| container["name"] != "istio-proxy") {
        let ports = json!([{ "name": "mesh", "containerPort": 15021 }]);
        let args = ["serve", "/golden-sets/digits", "--host", "0.0.0.0", "--port", "15021"];
        let container = json!({ "name": "istio-proxy", "image": IMAGE, "imagePullPolicy": "Never", "args": args, "ports": ports });
        operations.push(json!({ "op": "add", "path": "/spec/containers/-", "value": container }));
    }
    operations
}

struct Injector<'a> {
    cluster: &'a Cluster,
    name: String,
    calls: Arc<AtomicU32>,
    _stop: oneshot::Sender<()>,
}

impl Drop for Injector<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", &self.name]);
    }
}

/// Serves it here and lets the API server call it for pods of `space`, in the order of `name`.
fn injector<'a>(cluster: &'static Cluster, space: &Namespace<'a>, name: &str) -> Injector<'a> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let certificates = Certificates::make(&[format!("mesh.{}.svc", space.name())], now, &Lifetimes::default()).expect("certificates");
    let identity = Identity::new(&certificates.server().certificate, &certificates.server().key).expect("a certificate");
    let (calls, (ready, address), (stop, stopped)) = (Arc::<AtomicU32>::default(), std::sync::mpsc::channel::<SocketAddr>(), oneshot::channel::<()>());
    let counted = Arc::clone(&calls);
    thread::spawn(move || {
        cluster.inside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind((HERE, 0)).await.expect("a port");
                ready.send(listener.local_addr().expect("its address")).expect("the test waits");
                let handler = move |request: ::http::Request<hyper::body::Incoming>| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    async move {
                        let body = request.into_body().collect().await.expect("a body").to_bytes();
                        let review: Value = serde_json::from_slice(&body).expect("an AdmissionReview");
                        let patch = STANDARD.encode(Value::from(patch(&review["request"]["object"])).to_string());
                        let response = json!({ "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch });
                        let text = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }).to_string();
                        ::http::Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed())
                    }
                };
                tokio::select! {
                    () = http::serve(listener, Some(identity.acceptor()), 16, handler) => {}
                    _ = stopped => {}
                }
            });
        });
    });
    let address = address.recv().expect("it listens");
    // Before 1.34 the API server looks webhooks up in Endpoints, and slices are made from them in every version.
    space.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: mesh}}, spec: {{ports: [{{port: 443, targetPort: {port}}}]}}}}
---
{{apiVersion: v1, kind: Endpoints, metadata: {{name: mesh}}, subsets: [{{addresses: [{{ip: {HERE}}}], ports: [{{port: {port}}}]}}]}}
",
        port = address.port()
    ));
    cluster.apply(&format!(
        "apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: {name}}}
webhooks:
  - name: mesh.test.steadfast.dev
    admissionReviewVersions: [v1]
    clientConfig: {{service: {{name: mesh, namespace: {space}, path: /}}, caBundle: {trust}}}
    rules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}}]
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {space}}}}}
    failurePolicy: Fail
    reinvocationPolicy: IfNeeded
    sideEffects: None
",
        space = space.name(),
        trust = STANDARD.encode(certificates.trust())
    ));
    Injector { cluster: space.cluster(), name: name.to_owned(), calls, _stop: stop }
}

#[test]
fn beside_another_injector_the_order_makes_no_difference() {
    let Some(shared) = cluster() else { return };
    if shared.is_elsewhere() {
        eprintln!("not run: the API server of this cluster cannot dial this machine");
        return;
    }
    let _installed = install(&shared);
    let mut seen = Vec::new();
    // They are called in the order of their names, and ours is `steadfast`.
    for (order, calls) in [("a", 2), ("z", 1)] {
        let space = shared.namespace_with(&format!("mesh-{order}"), "steadfast.dev/inject: 'true'");
        let other = injector(shared.everywhere(), &space, &format!("{order}-{}", space.name()));
        // The API server hears of a new webhook a moment later.
        let probe = "{apiVersion: v1, kind: Pod, metadata: {name: probe}, spec: {containers: [{name: x, image: x}]}}";
        space.wait(20, "a call of the other injector", || {
            let mut create = shared.command("kubectl");
            create.args(["--namespace", space.name(), "create", "--dry-run=server", "-o", "json", "-f", "-"]);
            crate::harness::output(&mut create, Some(probe)).ok().filter(|pod| pod.contains("istio-proxy"))
        });
        other.calls.store(0, Ordering::Relaxed);
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: server, labels: {{app: server}}}}, spec: {{terminationGracePeriodSeconds: 2, containers: [{{name: server, image: \
             '{IMAGE}', imagePullPolicy: Never, args: [serve, /golden-sets/digits, --host, 0.0.0.0, --port, '8000'], ports: [{{name: web, containerPort: 8000}}], \
             readinessProbe: {{httpGet: {{path: /v2/health/ready, port: web}}, periodSeconds: 1}}}}]}}}}"
        ));
        assert!(other.calls.load(Ordering::Relaxed) >= calls, "{order}: called {} times", other.calls.load(Ordering::Relaxed));
        space.apply("{apiVersion: v1, kind: Service, metadata: {name: server}, spec: {selector: {app: server}, ports: [{port: 80, targetPort: http}]}}");
        space.wait_ready("app=server", 1);
        space.wait(20, "an answer by the Service", || space.ask("server:80", "/v2/models/digits").ok());
        let metrics = space.ask("pod/server:4179", "/metrics").expect("the sidecar's metrics");
        assert!(metrics.contains("steadfast_requests_total{"), "users go through the sidecar: {metrics}");
        let pod = space.get("pod/server").expect("it is there");
        let ports = |name: &str| {
            let all = pod["spec"]["containers"].as_array().into_iter().flatten();
            let of = all.filter(|container| container["name"] == name).flat_map(|container| container["ports"].as_array().cloned().unwrap_or_default());
            of.map(|port| format!("{}={}", port["name"].as_str().unwrap_or("-"), port["containerPort"])).collect::<Vec<_>>()
        };
        assert_eq!(ports("server"), ["-=8000", "http=4180"], "{order}");
        assert_eq!(ports("istio-proxy"), ["mesh=15021"], "{order}: what the mesh declares is its own");
        let count = |list: &str, name: &str| pod["spec"][list].as_array().into_iter().flatten().filter(|container| container["name"] == name).count();
        assert_eq!((count("containers", "istio-proxy"), count("initContainers", "steadfast-proxy")), (1, 1), "{order}");
        let server = &pod["spec"]["containers"][0];
        seen.push((server["readinessProbe"]["httpGet"]["port"].clone(), server["lifecycle"].clone(), pod["spec"]["terminationGracePeriodSeconds"].clone()));
    }
    assert_eq!(seen[0], seen[1], "whoever comes first");
    assert_eq!(seen[0].0, 8000, "the server's own probe stays with the server");
}
