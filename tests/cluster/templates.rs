//! Pod templates that model servers' own charts and operators make, as files in `templates/`: offline and by the webhook, the ports that users dial are handed over,
//! probes ask what they asked before, and what leads past the sidecar is known.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{
    harness::{Namespace, PROXY_IMAGE, STEADFAST, cluster, output, root},
    install::install,
};

struct Template {
    file: &'static str,
    /// As the annotation on injected pods tells them.
    routes: &'static str,
    /// What the sidecar asks to know that the server is ready.
    ready: &'static [&'static str],
}

const TEMPLATES: [Template; 4] = [
    Template { file: "kserve-standard", routes: "http1=4180:8080", ready: &["--ready-port=8080", "--ready-tcp"] },
    Template { file: "kserve-knative", routes: "user-port=4180:8080,queue-port=4181:8012", ready: &["--ready-port=8080", "--ready-tcp"] },
    Template { file: "seldon-mlserver", routes: "grpc=4180:9501,http=4181:9001", ready: &["--ready-port=9008", "--ready-path=/ready"] },
    Template { file: "triton", routes: "http=4180:8000,grpc=4181:8001", ready: &["--ready-port=8000", "--ready-path=/v2/health/ready"] },
];

fn text(template: &Template) -> String {
    std::fs::read_to_string(root().join(format!("tests/cluster/templates/{}.yaml", template.file))).expect("a template")
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| steadfast_api::read::from_yaml::<Value>("template", document).expect("YAML")).collect()
}

/// The number that a port of a container stands for.
fn number(container: &Value, port: &Value) -> i64 {
    port.as_i64().unwrap_or_else(|| {
        let named = container["ports"].as_array().and_then(|ports| ports.iter().find(|declared| declared["name"] == *port));
        named.unwrap_or_else(|| panic!("no port {port} in {container:#}"))["containerPort"].as_i64().expect("a number")
    })
}

/// Everything that kubelet asks or tells, with ports as numbers: `mlserver.readinessProbe` to its handler.
fn asked(spec: &Value) -> BTreeMap<String, Value> {
    let mut asked = BTreeMap::new();
    for container in spec["containers"].as_array().into_iter().flatten() {
        for place in ["startupProbe", "readinessProbe", "livenessProbe", "lifecycle/postStart", "lifecycle/preStop"] {
            let Some(handler) = container.pointer(&format!("/{place}")).filter(|handler| handler.is_object()) else { continue };
            let mut handler = handler.clone();
            for kind in ["httpGet", "tcpSocket"] {
                if !handler[kind].is_null() {
                    handler[kind]["port"] = number(container, &handler[kind]["port"]).into();
                }
            }
            asked.insert(format!("{}.{place}", container["name"].as_str().unwrap_or_default()), handler);
        }
    }
    asked
}

#[track_caller]
fn check(template: &Template, before: &Value, metadata: &Value, after: &Value) {
    let context = format!("{}\n{after:#}", template.file);
    assert_eq!(metadata["annotations"]["steadfast.dev/routes"], template.routes, "{context}");
    let sidecar = after["initContainers"].as_array().and_then(|all| all.last()).unwrap_or_else(|| panic!("{context}"));
    assert!(sidecar["name"] == "steadfast-proxy" && sidecar["restartPolicy"] == "Always", "{context}");
    let args: Vec<&str> = sidecar["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(template.ready.iter().all(|arg| args.contains(arg)), "{args:?}");
    let (was, is) = (asked(before), asked(after));
    for (place, handler) in &was {
        assert_eq!(is.get(place), Some(handler), "{place} means another thing now: {context}");
    }
    // What is new are hooks that wait, of servers that had none.
    assert!(is.iter().all(|(place, handler)| was.contains_key(place) || handler["sleep"].is_object()), "{context}");
    for route in template.routes.split(',') {
        let (name, ports) = route.split_once('=').expect("a route");
        let (sidecar, server) = ports.split_once(':').expect("a route");
        let all = after["containers"].as_array().into_iter().flatten().flat_map(|container| container["ports"].as_array().into_iter().flatten());
        let of = |number: &str| {
            all.clone().filter(|port| port["containerPort"].as_i64() == number.parse().ok()).map(|port| port["name"].clone()).collect::<Vec<_>>()
        };
        assert_eq!((of(sidecar), of(server)), (vec![Value::from(name)], vec![Value::Null]), "{context}");
    }
}

#[test]
fn offline_and_by_the_webhook_the_ports_that_users_dial_are_handed_over() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("templates", "steadfast.dev/inject: 'true'");
    for template in &TEMPLATES {
        let text = text(template);
        let before = &documents(&text)[0]["spec"]["template"];
        let mut inject = Command::new(STEADFAST);
        let injected = output(inject.args(["inject", "-f", "-", "--image", PROXY_IMAGE]), Some(&text)).expect("manifests with the sidecar");
        let injected = documents(&injected);
        let offline = &injected[0]["spec"]["template"];
        check(template, &before["spec"], &offline["metadata"], &offline["spec"]);
        // Once more is once.
        let again = steadfast_inject(&injected[0].to_string());
        assert_eq!(documents(&again)[0], injected[0], "{}", template.file);

        // The API server fills in what a manifest leaves out, so both are as it would keep them.
        let [plain, made] = ["false", "true"].map(|inject| webhook(&space, template.file, before, inject));
        check(template, &plain["spec"], &made["metadata"], &made["spec"]);
    }
}

fn steadfast_inject(text: &str) -> String {
    output(Command::new(STEADFAST).args(["inject", "-f", "-", "--image", PROXY_IMAGE]), Some(text)).expect("manifests")
}

/// A pod of the template as the API server would keep it.
fn webhook(space: &Namespace<'_>, name: &str, template: &Value, inject: &str) -> Value {
    let mut metadata = template["metadata"].clone();
    metadata["name"] = name.into();
    metadata["labels"]["steadfast.dev/inject"] = inject.into();
    let pod = serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] });
    let mut create = space.cluster().command("kubectl");
    create.args(["--namespace", space.name(), "create", "--dry-run=server", "-o", "json", "-f", "-"]);
    serde_json::from_str(&output(&mut create, Some(&pod.to_string())).expect("a pod that is let in")).expect("JSON")
}

#[test]
fn services_that_lead_past_by_number_are_mended_offline() {
    let targets = |text: &str| -> Vec<String> {
        let documents = documents(text);
        let service = documents.iter().find(|document| document["kind"] == "Service").expect("a Service");
        service["spec"]["ports"].as_array().into_iter().flatten().map(|port| port["targetPort"].to_string()).collect()
    };
    let of = |file: &str| TEMPLATES.iter().find(|template| template.file == file).expect("a template");
    // Of a port that is left, such as the one by which queue-proxy is administered, a number leads where the name would.
    for (file, mended) in [
        ("kserve-standard", vec!["\"http1\""]),
        ("kserve-knative", vec!["\"queue-port\"", "\"http-autometric\"", "\"http-usermetric\"", "8022"]),
        ("triton", vec!["\"http\"", "\"grpc\"", "\"metrics\""]),
    ] {
        assert_eq!(targets(&steadfast_inject(&text(of(file)))), mended, "{file}");
    }
}
