//! How a pod changes: operations on single fields of the JSON that came, so that whatever this version does not know of stays as it is.
//!
//! - The name of each taken port moves to a new port of the same container, which is the sidecar's. (Containers of a pod share its network, and a declared port only
//!   gives a number a name. Declared on the sidecar itself it would be unknown to EndpointSlices before Kubernetes 1.32.)
//! - Probes and hooks that meant the server by that name get its number: they go on asking the server itself, and no fault can reach them.
//! - A server with no preStop hook of its own gets one that sleeps for as long as endpoints take to be withdrawn everywhere, and the pod's grace period grows by
//!   that: a server that stops listening at SIGTERM would otherwise turn away those who have not heard yet, with or without a sidecar.
//! - The sidecar is the last init container, with `restartPolicy: Always`: it runs before the server and ends after it, and a finished Job is not kept alive by it.

use json_patch::{Patch, PatchOperation};
use k8s_openapi::{
    api::core::v1::{Container, LifecycleHandler, Pod, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};
use steadfast_api::sidecar::TOKEN_AUDIENCE;

use super::decide::{ADMIN_PORT, HEALTH_PORT, INJECTED_ANNOTATION, Plan, ROUTES_ANNOTATION, Readiness, Route, SIDECAR};

/// Where the sidecar finds its token.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/steadfast.dev";
const TOKEN_VOLUME: &str = "steadfast-token";
/// Kubelet renews the token when four fifths of this are over.
const TOKEN_SECONDS: u32 = 3600;
/// Any user but root will do; images of ours name this one too.
const USER: u32 = 65532;

/// What every sidecar of this installation is given.
#[derive(Clone, Debug)]
pub struct SidecarSettings {
    pub image: String,
    /// Absent: Kubernetes' own rule.
    pub image_pull_policy: Option<String>,
    /// Where sidecars dial in; absent: they stand alone, and take policies by hand.
    pub controller: Option<ControllerAddress>,
    pub resources: SidecarResources,
    /// How long a server without a preStop hook goes on before it is told to stop, in seconds; 0: no hook. Needs Kubernetes 1.30.
    pub leave_seconds: u32,
}

/// Endpoints are withdrawn everywhere within about a second; this leaves room for a slow node.
pub const LEAVE_SECONDS: u32 = 5;
/// Kubernetes' own grace period.
const GRACE_SECONDS: i64 = 30;

#[derive(Clone, Debug)]
pub struct ControllerAddress {
    /// `https://SERVICE.NAMESPACE.svc:PORT`.
    pub url: String,
    /// Certificates by which it proves itself, PEM.
    pub ca: String,
}

/// Quantities of Kubernetes. Requests let autoscalers reckon; there is no limit on CPU, since a throttled sidecar would be a fault that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarResources {
    pub cpu: String,
    pub memory: String,
    pub memory_limit: String,
}

impl Default for SidecarResources {
    fn default() -> Self {
        Self { cpu: "50m".to_owned(), memory: "64Mi".to_owned(), memory_limit: "256Mi".to_owned() }
    }
}

/// The operations that inject the sidecar into `pod`, whose plan this is.
pub fn patch(pod: &Pod, plan: &Plan, settings: &SidecarSettings) -> Patch {
    let mut operations = Vec::new();
    let spec = pod.spec.clone().unwrap_or_default();
    for route in &plan.routes {
        let ports = format!("/spec/containers/{}/ports", route.container);
        operations.push(json!({ "op": "remove", "path": format!("{ports}/{}/name", route.port) }));
        operations
            .push(json!({ "op": "add", "path": format!("{ports}/-"), "value": { "name": route.name, "containerPort": route.sidecar, "protocol": "TCP" } }));
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let routes: Vec<&Route> = plan.routes.iter().filter(|route| route.container == index).collect();
        for place in named_ports(container) {
            if let Some(route) = routes.iter().find(|route| route.name == place.name) {
                operations.push(json!({ "op": "replace", "path": format!("/spec/containers/{index}{}", place.path), "value": route.server }));
            }
        }
    }
    if settings.leave_seconds > 0 {
        operations.extend(leave_slowly(&spec, plan, settings.leave_seconds));
    }
    let mut append = |list: &str, exists: bool, value: Value| {
        operations.push(if exists {
            json!({ "op": "add", "path": format!("{list}/-"), "value": value })
        } else {
            json!({ "op": "add", "path": list, "value": [value] })
        });
    };
    if settings.controller.is_some() {
        append("/spec/volumes", spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()), token_volume());
    }
    append("/spec/initContainers", spec.init_containers.as_ref().is_some_and(|containers| !containers.is_empty()), sidecar(plan, settings));
    if pod.metadata.annotations.is_none() {
        operations.push(json!({ "op": "add", "path": "/metadata/annotations", "value": {} }));
    }
    let routes: Vec<String> = plan.routes.iter().map(|route| format!("{}={}:{}", route.name, route.sidecar, route.server)).collect();
    for (name, value) in [(INJECTED_ANNOTATION, env!("CARGO_PKG_VERSION")), (ROUTES_ANNOTATION, &routes.join(","))] {
        operations.push(json!({ "op": "add", "path": format!("/metadata/annotations/{}", name.replace('/', "~1")), "value": value }));
    }
    // Every one is of the shape that it is read by.
    Patch(operations.into_iter().filter_map(|operation| serde_json::from_value::<PatchOperation>(operation).ok()).collect())
}

/// Hooks for the servers that have none, and the time that they take.
fn leave_slowly(spec: &PodSpec, plan: &Plan, seconds: u32) -> Vec<Value> {
    let hook = json!({ "sleep": { "seconds": seconds } });
    let mut operations = Vec::new();
    for (index, container) in spec.containers.iter().enumerate() {
        if !plan.routes.iter().any(|route| route.container == index) {
            continue;
        }
        let path = format!("/spec/containers/{index}/lifecycle");
        match &container.lifecycle {
            None => operations.push(json!({ "op": "add", "path": path, "value": { "preStop": hook } })),
            Some(lifecycle) if lifecycle.pre_stop.is_none() => operations.push(json!({ "op": "add", "path": format!("{path}/preStop"), "value": hook })),
            Some(_) => {}
        }
    }
    if !operations.is_empty() {
        let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS).saturating_add(seconds.into());
        operations.push(json!({ "op": "add", "path": "/spec/terminationGracePeriodSeconds", "value": grace }));
    }
    operations
}

/// A port given by name in a probe or hook.
struct NamedPort<'a> {
    /// Within the container.
    path: String,
    name: &'a str,
}

fn named_ports(container: &Container) -> Vec<NamedPort<'_>> {
    let mut found = Vec::new();
    let probes: [(&str, &Option<Probe>); 3] =
        [("startupProbe", &container.startup_probe), ("readinessProbe", &container.readiness_probe), ("livenessProbe", &container.liveness_probe)];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        let http = probe.http_get.as_ref().map(|http| ("httpGet", &http.port));
        let tcp = probe.tcp_socket.as_ref().map(|tcp| ("tcpSocket", &tcp.port));
        push(&mut found, &format!("/{name}"), http.into_iter().chain(tcp));
    }
    let lifecycle = container.lifecycle.as_ref();
    let hooks: [(&str, Option<&LifecycleHandler>); 2] = [
        ("postStart", lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())),
        ("preStop", lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())),
    ];
    for (name, hook) in hooks {
        let Some(hook) = hook else { continue };
        let http = hook.http_get.as_ref().map(|http| ("httpGet", &http.port));
        let tcp = hook.tcp_socket.as_ref().map(|tcp| ("tcpSocket", &tcp.port));
        push(&mut found, &format!("/lifecycle/{name}"), http.into_iter().chain(tcp));
    }
    found
}

fn push<'a>(found: &mut Vec<NamedPort<'a>>, path: &str, handlers: impl Iterator<Item = (&'static str, &'a IntOrString)>) {
    for (kind, port) in handlers {
        if let IntOrString::String(name) = port {
            found.push(NamedPort { path: format!("{path}/{kind}/port"), name });
        }
    }
}

fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": { "sources": [{ "serviceAccountToken": { "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token" } }] },
    })
}

fn sidecar(plan: &Plan, settings: &SidecarSettings) -> Value {
    let mut args: Vec<String> = plan.routes.iter().map(|route| format!("--route={}={}", route.sidecar, route.server)).collect();
    args.push(format!("--admin=127.0.0.1:{ADMIN_PORT}"));
    args.push(format!("--health={HEALTH_PORT}"));
    match &plan.readiness {
        Readiness::Http { port, path } => args.extend([format!("--ready-port={port}"), format!("--ready-path={path}")]),
        Readiness::Tcp { port } => args.extend([format!("--ready-port={port}"), "--ready-tcp".to_owned()]),
    }
    for (flag, variable) in [("pod-name", "POD_NAME"), ("pod-uid", "POD_UID"), ("node-name", "NODE_NAME"), ("namespace", "POD_NAMESPACE")] {
        args.push(format!("--{flag}=$({variable})"));
    }
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_UID", "metadata.uid"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("NODE_NAME", "spec.nodeName"),
    ];
    let resources = &settings.resources;
    let limits = if plan.guaranteed { json!({ "cpu": resources.cpu, "memory": resources.memory_limit }) } else { json!({ "memory": resources.memory_limit }) };
    let memory = if plan.guaranteed { &resources.memory_limit } else { &resources.memory };
    let probe = |path: &str, failures: u32| json!({ "httpGet": { "path": path, "port": HEALTH_PORT }, "periodSeconds": 1, "failureThreshold": failures });
    let mut container = json!({
        "name": SIDECAR,
        "image": settings.image,
        "restartPolicy": "Always",
        "ports": [{ "name": "sf-health", "containerPort": HEALTH_PORT, "protocol": "TCP" }],
        "resources": { "requests": { "cpu": resources.cpu, "memory": memory }, "limits": limits },
        "startupProbe": probe("/healthz", 60),
        "readinessProbe": probe("/readyz", 2),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(policy) = &settings.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    if let Some(controller) = &settings.controller {
        args.push(format!("--controller={}", controller.url));
        args.push(format!("--token-file={TOKEN_DIRECTORY}/token"));
        env.push(json!({ "name": "STEADFAST_CONTROLLER_CA", "value": controller.ca }));
        container["volumeMounts"] = json!([{ "name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true }]);
    }
    container["args"] = args.into();
    container["env"] = env.into();
    container
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::webhook::decide::{Decision, decide};

    fn settings() -> SidecarSettings {
        let controller = ControllerAddress { url: "https://steadfast-sidecars.steadfast.svc:4193".into(), ca: "PEM".into() };
        SidecarSettings {
            image: "proxy:1".into(),
            image_pull_policy: None,
            controller: Some(controller),
            resources: SidecarResources::default(),
            leave_seconds: LEAVE_SECONDS,
        }
    }

    fn injected(yaml: &str) -> (Value, Value) {
        let before: Value = serde_saphyr::from_str(yaml).unwrap();
        let pod: Pod = serde_json::from_value(before.clone()).unwrap();
        let Decision::Inject(plan) = decide(&pod, "default", &BTreeMap::new()) else { panic!("{yaml}") };
        let mut after = before.clone();
        json_patch::patch(&mut after, &patch(&pod, &plan, &settings())).unwrap();
        (before, after)
    }

    const POD: &str = r#"
metadata: {name: x, labels: {steadfast.dev/inject: "true"}}
spec:
  futureField: {kept: true}
  containers:
    - name: server
      image: x
      ports: [{name: http, containerPort: 8000}, {name: metrics, containerPort: 8002}]
      startupProbe: {tcpSocket: {port: http}}
      readinessProbe: {httpGet: {path: /ready, port: http}}
      livenessProbe: {httpGet: {path: /live, port: metrics}}
      lifecycle: {preStop: {httpGet: {path: /stop, port: http}}}
    - name: other
      image: z
      futureField: 1
      readinessProbe: {httpGet: {path: /, port: http}}
      ports: [{name: web, containerPort: 80, protocol: TCP}]
"#;

    #[test]
    fn the_name_moves_to_the_sidecar_and_probes_stay_with_the_server() {
        let (_, after) = injected(POD);
        let server = &after["spec"]["containers"][0];
        assert_eq!(
            server["ports"],
            json!([{ "containerPort": 8000 }, { "name": "metrics", "containerPort": 8002 }, { "name": "http", "containerPort": 4180, "protocol": "TCP" }])
        );
        assert_eq!(server["startupProbe"]["tcpSocket"]["port"], 8000);
        assert_eq!(server["readinessProbe"]["httpGet"], json!({ "path": "/ready", "port": 8000 }));
        assert_eq!(server["livenessProbe"]["httpGet"]["port"], "metrics");
        assert_eq!(server["lifecycle"]["preStop"]["httpGet"]["port"], 8000);
        assert_eq!(after["spec"]["containers"][1]["readinessProbe"]["httpGet"]["port"], "http", "a name counts within its own container");
        let sidecar = &after["spec"]["initContainers"][0];
        let args: Vec<&str> = sidecar["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(args[..2], ["--route=4180=8000", "--route=4181=80"]);
        assert!(args.contains(&"--ready-path=/ready") && args.contains(&"--ready-port=8000"), "{args:?}");
    }

    #[test]
    fn what_is_not_known_here_and_not_touched_stays() {
        let (before, mut after) = injected(POD);
        assert_eq!(after["spec"]["futureField"], before["spec"]["futureField"]);
        assert_eq!(after["spec"]["containers"][1]["futureField"], 1);
        assert_eq!(
            after["metadata"]["annotations"],
            json!({ INJECTED_ANNOTATION: env!("CARGO_PKG_VERSION"), ROUTES_ANNOTATION: "http=4180:8000,web=4181:80" })
        );
        // Undone by hand, nothing else is different.
        let spec = after["spec"].as_object_mut().unwrap();
        spec.remove("initContainers");
        spec.remove("volumes");
        spec.remove("terminationGracePeriodSeconds");
        after["metadata"].as_object_mut().unwrap().remove("annotations");
        after["spec"]["containers"] = before["spec"]["containers"].clone();
        assert_eq!(after, before);
    }

    #[test]
    fn a_server_without_a_hook_leaves_slowly_and_keeps_its_grace_period() {
        let (_, after) = injected(&POD.replace("spec:\n", "spec:\n  terminationGracePeriodSeconds: 60\n"));
        assert_eq!(after["spec"]["terminationGracePeriodSeconds"], 65);
        assert!(after["spec"]["containers"][0]["lifecycle"]["preStop"].get("sleep").is_none(), "its own hook stays");
        assert_eq!(after["spec"]["containers"][1]["lifecycle"]["preStop"], json!({ "sleep": { "seconds": 5 } }));
        let (_, after) = injected(&POD.replace("lifecycle: {preStop: {httpGet: {path: /stop, port: http}}}", "lifecycle: {postStart: {exec: {command: [x]}}}"));
        let lifecycle = &after["spec"]["containers"][0]["lifecycle"];
        assert!(lifecycle["preStop"]["sleep"]["seconds"] == 5 && lifecycle["postStart"]["exec"].is_object(), "{lifecycle}");
        assert_eq!(after["spec"]["terminationGracePeriodSeconds"], 35);
    }

    #[test]
    fn injecting_twice_is_injecting_once() {
        let (_, after) = injected(POD);
        let pod: Pod = serde_json::from_value(after).unwrap();
        assert_eq!(decide(&pod, "default", &BTreeMap::new()), Decision::Already);
    }

    #[test]
    fn it_stands_after_what_is_there() {
        let yaml = POD.replace(
            "  containers:",
            "  volumes: [{name: v, emptyDir: {}}]\n  initContainers: [{name: mesh, image: m, restartPolicy: Always}, {name: fetch, image: f}]\n  containers:",
        );
        let (_, after) = injected(&yaml.replace("metadata: {", "metadata: {annotations: {a: b}, "));
        let names: Vec<_> = after["spec"]["initContainers"].as_array().unwrap().iter().map(|container| container["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["mesh", "fetch", SIDECAR]);
        assert_eq!(after["spec"]["volumes"][0]["name"], "v");
        assert_eq!(after["metadata"]["annotations"]["a"], "b");
    }

    #[test]
    fn a_guaranteed_pod_gets_equal_requests_and_limits() {
        let (_, after) = injected(
            &POD.replace("image: x", "image: x\n      resources: {limits: {cpu: 1, memory: 1Gi}}")
                .replace("image: z", "image: z\n      resources: {limits: {cpu: 1, memory: 1Gi}}"),
        );
        let resources = &after["spec"]["initContainers"][0]["resources"];
        assert_eq!(resources["requests"], resources["limits"]);
        let (_, after) = injected(POD);
        let resources = &after["spec"]["initContainers"][0]["resources"];
        assert!(resources["limits"]["cpu"].is_null() && resources["requests"]["cpu"].is_string(), "{resources}");
    }

    #[test]
    fn a_sidecar_alone_needs_no_token() {
        let pod: Pod = serde_saphyr::from_str(POD).unwrap();
        let Decision::Inject(plan) = decide(&pod, "default", &BTreeMap::new()) else { panic!() };
        let alone = patch(&pod, &plan, &SidecarSettings { controller: None, ..settings() });
        let said = serde_json::to_string(&alone).unwrap();
        assert!(!said.contains("serviceAccountToken") && !said.contains("--controller"), "{said}");
    }
}
