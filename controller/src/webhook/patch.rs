//! How a pod changes: operations on single fields of the JSON that came, so that whatever this version does not know of stays as it is.
//!
//! - The name of each taken port moves to a new port of the same container, which is the sidecar's. (Containers of a pod share its network, and a declared port only
//!   gives a number a name. Declared on the sidecar itself it would be unknown to EndpointSlices before Kubernetes 1.33.)
//! - Probes and hooks that meant the server by that name get its number: they go on asking the server itself, and no fault can reach them.
//! - A server with no preStop hook of its own gets one that sleeps for as long as endpoints take to be withdrawn everywhere, and the pod's grace period grows by
//!   that: a server that stops listening at SIGTERM would otherwise turn away those who have not heard yet, with or without a sidecar.
//! - Where a pod asks to be redirected, an init container with NET_ADMIN leads whoever dials a server's number to the sidecar, and probes get a number of their own
//!   that leads to the server: who asks is told by where he dials, and not by an address that each network gives its nodes differently.
//! - The sidecar is the last init container, with `restartPolicy: Always`: it runs before the server and ends after it, and a finished Job is not kept alive by it.
//! - Nothing waits for the sidecar's start, which takes a few milliseconds: kubelet starts the server as soon as it sees that the sidecar runs. A startup probe would let
//!   it see that a second later, since kubelet probes once a second, and a hook half a second later; and before the sidecar listens, a pod is not ready anyway.
//! - Kubelet runs a hook of the sidecar's own program in its container (`proxy/src/hook.rs`) as soon as the pod ends, which has clients come by other connections while the
//!   server still serves: kubelet stops the sidecar itself only after the server.

use std::borrow::Cow;

use json_patch::{Patch, PatchOperation};
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod, PodSpec, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};
use steadfast_api::sidecar::TOKEN_AUDIENCE;

use super::{
    decide::{ADMIN_PORT, HEALTH_PORT, INJECTED_ANNOTATION, LEFT_ANNOTATION, Plan, ROUTES_ANNOTATION, Route, SIDECAR, port_number},
    flags::RunAsUser,
    resources::{Class, least, most_cpu},
};

/// Where the sidecar finds its token.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/steadfast.dev";
/// The sidecar's program, as every image of it has it: an image has no other way to say what its hook runs.
const PROGRAM: &str = "/bin/steadfast-proxy";
/// The init container that redirects.
pub const REDIRECTOR: &str = "steadfast-redirect";
/// Where its token is mounted from.
pub const TOKEN_VOLUME: &str = "steadfast-token";
/// Kubelet renews the token when four fifths of this are over.
const TOKEN_SECONDS: u32 = 3600;
/// Where sidecars and readers find the controller's authorities.
pub const CA_VARIABLE: &str = "STEADFAST_CONTROLLER_CA";

/// What every sidecar of this installation is given.
#[derive(Clone, Debug)]
pub struct SidecarSettings {
    pub image: String,
    /// Absent: Kubernetes' own rule.
    pub image_pull_policy: Option<String>,
    pub run_as_user: RunAsUser,
    /// Where sidecars dial in; absent: they stand alone, and take policies by hand.
    pub controller: Option<ControllerAddress>,
    pub resources: SidecarResources,
    /// How long a server without a preStop hook goes on before it is told to stop, in seconds; 0: no hook. Needs Kubernetes 1.30.
    pub leave_seconds: u32,
    /// Absent: no pod may be redirected.
    pub redirect: Option<RedirectSettings>,
}

/// What redirects pods that ask for it.
#[derive(Clone, Debug)]
pub struct RedirectSettings {
    /// `steadfast` with the program nft.
    pub image: String,
    pub image_pull_policy: Option<String>,
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

/// Quantities of Kubernetes. Requests let autoscalers reckon; there is no limit on CPU, since a throttled sidecar would be a fault that nobody asked for, but in a pod of
/// the class Guaranteed, which would lose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarResources {
    pub cpu: String,
    /// Requested too, in pods of the class Guaranteed; nowhere else.
    pub cpu_limit: String,
    pub memory: String,
    pub memory_limit: String,
}

impl Default for SidecarResources {
    fn default() -> Self {
        Self { cpu: "50m".to_owned(), cpu_limit: "1".to_owned(), memory: "64Mi".to_owned(), memory_limit: "256Mi".to_owned() }
    }
}

/// The operations that inject the sidecar into `pod`, whose plan this is.
pub fn patch(pod: &Pod, plan: &Plan, settings: &SidecarSettings) -> Patch {
    let mut operations = Vec::new();
    let spec = pod.spec.clone().unwrap_or_default();
    for route in plan.routes.iter().filter(|route| route.is_named) {
        operations.extend(hand_over(&spec, route));
    }
    for (index, container) in spec.containers.iter().enumerate() {
        for place in ports_asked(container) {
            if let Some(port) = meant(&plan.routes, index, container, &place) {
                operations.push(json!({ "op": "replace", "path": format!("/spec/containers/{index}{}", place.path), "value": port }));
            }
        }
    }
    // Those that go on running beside the server; a name there is never the server's.
    let beside = spec.init_containers.iter().flatten().enumerate().filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
    for (index, container) in beside {
        for place in ports_asked(container) {
            if let Some(port) = redirected(&plan.routes, container, &place) {
                operations.push(json!({ "op": "replace", "path": format!("/spec/initContainers/{index}{}", place.path), "value": port }));
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
    let resources = &resources(plan, &spec, &settings.resources);
    let mut has_inits = spec.init_containers.as_ref().is_some_and(|containers| !containers.is_empty());
    if let Some(redirect) = settings.redirect.as_ref().filter(|_| plan.routes.iter().any(|route| route.probes.is_some())) {
        append("/spec/initContainers", has_inits, redirector(plan, redirect, resources));
        has_inits = true;
    }
    append("/spec/initContainers", has_inits, sidecar(plan, &spec, settings, resources));
    if pod.metadata.annotations.is_none() {
        operations.push(json!({ "op": "add", "path": "/metadata/annotations", "value": {} }));
    }
    let routes: Vec<String> = plan.routes.iter().map(|route| format!("{}={}:{}", route.name, route.sidecar, route.server)).collect();
    let left: Vec<String> = plan.left.iter().map(|(name, port)| format!("{name}:{port}")).collect();
    for (name, value) in [(INJECTED_ANNOTATION, env!("CARGO_PKG_VERSION")), (ROUTES_ANNOTATION, &routes.join(",")), (LEFT_ANNOTATION, &left.join(","))] {
        operations.push(json!({ "op": "add", "path": format!("/metadata/annotations/{}", name.replace('/', "~1")), "value": value }));
    }
    // Every one is of the shape that it is read by.
    Patch(operations.into_iter().filter_map(|operation| serde_json::from_value::<PatchOperation>(operation).ok()).collect())
}

/// The name goes to the sidecar's port; so does a port of the node that leads to the server, unless the server is reached by redirection anyway.
fn hand_over(spec: &PodSpec, route: &Route) -> Vec<Value> {
    let ports = format!("/spec/containers/{}/ports", route.container);
    let mut moved = json!({ "name": route.name, "containerPort": route.sidecar, "protocol": "TCP" });
    let mut operations = vec![json!({ "op": "remove", "path": format!("{ports}/{}/name", route.port) })];
    let declared = spec.containers.get(route.container).and_then(|container| container.ports.as_ref()?.get(route.port));
    if let Some(declared) = declared.filter(|_| route.probes.is_none()) {
        let fields = [("hostPort", declared.host_port.map(Value::from)), ("hostIP", declared.host_ip.clone().map(Value::from))];
        for (field, value) in fields.into_iter().filter_map(|(field, value)| Some((field, value?))) {
            operations.push(json!({ "op": "remove", "path": format!("{ports}/{}/{field}", route.port) }));
            moved[field] = value;
        }
    }
    operations.push(json!({ "op": "add", "path": format!("{ports}/-"), "value": moved }));
    operations
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

/// A port that kubelet asks, in a probe or hook.
struct Asked<'a> {
    /// Within the container.
    path: String,
    port: Cow<'a, IntOrString>,
}

/// The number that `place` has to be; `None`: it stays.
fn meant(routes: &[Route], index: usize, container: &Container, place: &Asked<'_>) -> Option<i32> {
    let by_name = |route: &&Route| route.is_named && route.container == index && matches!(&*place.port, IntOrString::String(name) if *name == route.name);
    if let Some(route) = routes.iter().find(by_name) {
        return Some(route.probes.unwrap_or(route.server));
    }
    redirected(routes, container, place)
}

/// Redirected is a number, whichever container gives it.
fn redirected(routes: &[Route], container: &Container, place: &Asked<'_>) -> Option<i32> {
    let number = port_number(container, &place.port)?;
    routes.iter().find(|route| route.server == number)?.probes
}

fn ports_asked(container: &Container) -> Vec<Asked<'_>> {
    let mut found = Vec::new();
    let probes: [(&str, &Option<Probe>); 3] =
        [("startupProbe", &container.startup_probe), ("readinessProbe", &container.readiness_probe), ("livenessProbe", &container.liveness_probe)];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        push(&mut found, &format!("/{name}"), probe.http_get.as_ref(), probe.tcp_socket.as_ref());
        if let Some(grpc) = &probe.grpc {
            found.push(Asked { path: format!("/{name}/grpc/port"), port: Cow::Owned(IntOrString::Int(grpc.port)) });
        }
    }
    let lifecycle = container.lifecycle.as_ref();
    let hooks: [(&str, Option<&LifecycleHandler>); 2] = [
        ("postStart", lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())),
        ("preStop", lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())),
    ];
    for (name, hook) in hooks {
        let Some(hook) = hook else { continue };
        push(&mut found, &format!("/lifecycle/{name}"), hook.http_get.as_ref(), hook.tcp_socket.as_ref());
    }
    found
}

fn push<'a>(found: &mut Vec<Asked<'a>>, path: &str, http: Option<&'a HTTPGetAction>, tcp: Option<&'a TCPSocketAction>) {
    let http = http.map(|http| ("httpGet", &http.port, &http.host));
    let tcp = tcp.map(|tcp| ("tcpSocket", &tcp.port, &tcp.host));
    for (kind, port, host) in http.into_iter().chain(tcp) {
        // Another host's number is no business of this pod's; a name is the container's own.
        if host.is_none() || matches!(port, IntOrString::String(_)) {
            found.push(Asked { path: format!("{path}/{kind}/port"), port: Cow::Borrowed(port) });
        }
    }
}

/// Routes to different places: a number that is declared twice is one.
fn distinct(plan: &Plan) -> impl Iterator<Item = &Route> {
    plan.routes.iter().enumerate().filter(|(at, route)| plan.routes[..*at].iter().all(|other| other.sidecar != route.sidecar)).map(|(_, route)| route)
}

/// A Guaranteed pod's sidecar needs no more CPU than its largest container has, and what is more might be refused by a LimitRange that lets that one pass.
fn resources(plan: &Plan, spec: &PodSpec, of_all: &SidecarResources) -> SidecarResources {
    let cpu_limit = match plan.class {
        Class::Guaranteed => most_cpu(spec).map_or(of_all.cpu_limit.as_str(), |most| least(&of_all.cpu_limit, most)),
        Class::OfItsOwn | Class::Other => &of_all.cpu_limit,
    };
    SidecarResources { cpu: least(&of_all.cpu, cpu_limit).to_owned(), cpu_limit: cpu_limit.to_owned(), ..of_all.clone() }.with(&plan.resources)
}

fn redirector(plan: &Plan, settings: &RedirectSettings, resources: &SidecarResources) -> Value {
    let mut args = vec!["redirect".to_owned()];
    for route in distinct(plan) {
        args.push(format!("--route={}={}", route.server, route.sidecar));
        args.extend(route.probes.map(|probes| format!("--probes={probes}={}", route.server)));
    }
    let resources = match plan.class {
        // It ends before the server starts, so what it asks for takes nothing from anybody.
        Class::Guaranteed => {
            let both = json!({ "cpu": resources.cpu_limit, "memory": "32Mi" });
            json!({ "requests": both, "limits": both })
        }
        Class::OfItsOwn => json!({}),
        Class::Other => {
            let limit = plan.resources.cpu_limit.as_deref();
            let mut all = json!({ "requests": { "cpu": limit.map_or("10m", |limit| least("10m", limit)), "memory": "32Mi" }, "limits": { "memory": "32Mi" } });
            if let Some(limit) = limit {
                all["limits"]["cpu"] = limit.into();
            }
            all
        }
    };
    let mut container = json!({
        "name": REDIRECTOR,
        "image": settings.image,
        "args": args,
        "resources": resources,
        // Rules are for root with this one capability to set; a capability does not reach another user.
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(policy) = &settings.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    container
}

/// Of pods that no privilege is needed for.
pub fn pod_security(user: RunAsUser) -> Value {
    let mut context = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    if let Some(user) = user.0 {
        (context["runAsUser"], context["runAsGroup"]) = (user.into(), user.into());
    }
    context
}

/// The token by which a pod proves to the controller which one it is.
pub fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": { "sources": [{ "serviceAccountToken": { "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token" } }] },
    })
}

fn sidecar(plan: &Plan, spec: &PodSpec, settings: &SidecarSettings, resources: &SidecarResources) -> Value {
    let mut args: Vec<String> = distinct(plan).map(|route| format!("--route={}={}", route.sidecar, route.server)).collect();
    args.push(format!("--admin=127.0.0.1:{ADMIN_PORT}"));
    args.push(format!("--health={HEALTH_PORT}"));
    let readiness = &plan.readiness;
    args.push(format!("--ready-port={}", readiness.port));
    args.push(readiness.path.as_ref().map_or_else(|| "--ready-tcp".to_owned(), |path| format!("--ready-path={path}")));
    args.push(format!("--ready-timeout={}s", readiness.timeout_seconds));
    args.push(format!("--ready-patience={}s", readiness.patience_seconds));
    // Without a space, as flags are written.
    args.extend(plan.timeouts.iter().map(|(flag, span)| format!("--{flag}={}", span.to_string().replace(' ', ""))));
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
    let SidecarResources { cpu, cpu_limit, memory, memory_limit } = resources;
    let resources = match plan.class {
        Class::Guaranteed => {
            let both = json!({ "cpu": cpu_limit, "memory": memory_limit });
            json!({ "requests": both, "limits": both })
        }
        // Of what the pod has it takes what it was told to.
        Class::OfItsOwn => {
            let mut all = json!({});
            let said = &plan.resources;
            let fields = [
                ("requests", "cpu", &said.cpu),
                ("limits", "cpu", &said.cpu_limit),
                ("requests", "memory", &said.memory),
                ("limits", "memory", &said.memory_limit),
            ];
            for (list, name, value) in fields.into_iter().filter_map(|(list, name, value)| Some((list, name, value.as_ref()?))) {
                all[list][name] = value.as_str().into();
            }
            all
        }
        Class::Other => {
            let mut all = json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "memory": memory_limit } });
            if plan.resources.cpu_limit.is_some() {
                all["limits"]["cpu"] = cpu_limit.as_str().into();
            }
            all
        }
    };
    let mut container = json!({
        "name": SIDECAR,
        "image": settings.image,
        "restartPolicy": "Always",
        "ports": [{ "name": "sf-health", "containerPort": HEALTH_PORT, "protocol": "TCP" }],
        "resources": resources,
        "lifecycle": { "preStop": { "exec": { "command": [PROGRAM, "leave", format!("--admin=127.0.0.1:{ADMIN_PORT}")] } } },
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": HEALTH_PORT }, "periodSeconds": 1, "failureThreshold": 2 },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    // Of a pod that says root the sidecar would be root too, and kubelet would not start it.
    let is_root = spec.security_context.as_ref().is_some_and(|context| context.run_as_user == Some(0));
    if let Some(user) = settings.run_as_user.0.or(RunAsUser::DEFAULT.0.filter(|_| is_root)) {
        container["securityContext"]["runAsUser"] = user.into();
    }
    if let Some(policy) = &settings.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    if let Some(controller) = &settings.controller {
        args.push(format!("--controller={}", controller.url));
        args.push(format!("--token-file={TOKEN_DIRECTORY}/token"));
        env.push(json!({ "name": CA_VARIABLE, "value": controller.ca }));
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
            run_as_user: RunAsUser::DEFAULT,
            controller: Some(controller),
            resources: SidecarResources::default(),
            leave_seconds: LEAVE_SECONDS,
            redirect: Some(RedirectSettings { image: "agent:1".into(), image_pull_policy: None }),
        }
    }

    fn injected(yaml: &str) -> (Value, Value) {
        let before: Value = serde_saphyr::from_str(yaml).unwrap();
        let pod: Pod = serde_json::from_value(before.clone()).unwrap();
        let Decision::Inject(plan) = decide(&pod, "default", &BTreeMap::new(), true) else { panic!("{yaml}") };
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
        assert!(args.contains(&"--ready-timeout=1s") && args.contains(&"--ready-patience=30s"), "{args:?}");
    }

    #[test]
    fn the_server_does_not_wait_for_the_sidecar_and_clients_are_sent_away_when_the_pod_ends() {
        let (_, after) = injected(POD);
        let sidecar = &after["spec"]["initContainers"][0];
        let leave = json!({ "preStop": { "exec": { "command": ["/bin/steadfast-proxy", "leave", "--admin=127.0.0.1:4178"] } } });
        assert_eq!(sidecar["lifecycle"], leave, "kubelet would run a hook for the start before the server's container");
        assert!(sidecar["startupProbe"].is_null(), "it would be looked at once a second, and its answer once a second");
    }

    #[test]
    fn a_port_of_the_node_leads_to_the_sidecar() {
        let on_node = POD.replace("{name: http, containerPort: 8000}", "{name: http, containerPort: 8000, hostPort: 80, hostIP: 10.0.0.1}");
        let (_, after) = injected(&on_node);
        let ports = &after["spec"]["containers"][0]["ports"];
        assert_eq!(ports[0], json!({ "containerPort": 8000 }));
        assert_eq!(ports[2], json!({ "name": "http", "containerPort": 4180, "protocol": "TCP", "hostPort": 80, "hostIP": "10.0.0.1" }));
        let (_, after) = injected(&on_node.replace("metadata: {name: x", "metadata: {name: x, annotations: {steadfast.dev/interception: redirect}"));
        assert_eq!(after["spec"]["containers"][0]["ports"][0]["hostPort"], 80, "who is redirected is met there too");
    }

    #[test]
    fn a_number_that_is_declared_twice_is_redirected_once() {
        let twice = POD.replace("{name: http, containerPort: 8000}", "{name: http, containerPort: 8000}, {name: grpc, containerPort: 8000}");
        let (_, after) = injected(&twice.replace("metadata: {name: x", "metadata: {name: x, annotations: {steadfast.dev/interception: redirect}"));
        let inits = &after["spec"]["initContainers"];
        assert_eq!(inits[0]["args"], json!(["redirect", "--route=8000=4180", "--probes=4200=8000", "--route=80=4181", "--probes=4201=80"]));
        assert_eq!((&inits[1]["args"][0], &inits[1]["args"][1]), (&json!("--route=4180=8000"), &json!("--route=4181=80")));
        assert_eq!(after["metadata"]["annotations"][ROUTES_ANNOTATION], "http=4180:8000,grpc=4180:8000,web=4181:80");
    }

    #[test]
    fn a_pod_with_resources_of_its_own_has_to_make_room_for_nobody() {
        let (_, after) = injected(&POD.replace("spec:\n", "spec:\n  resources: {limits: {cpu: 1, memory: 1Gi}}\n"));
        assert_eq!(after["spec"]["initContainers"][0]["resources"], json!({}));
    }

    #[test]
    fn who_is_redirected_has_probes_at_a_number_of_their_own() {
        let redirected = POD.replace("metadata: {name: x", "metadata: {name: x, annotations: {steadfast.dev/interception: redirect}");
        let redirected = redirected.replace("livenessProbe: {httpGet: {path: /live, port: metrics}}", "livenessProbe: {grpc: {port: 8000}}");
        let redirected = redirected.replace("readinessProbe: {httpGet: {path: /, port: http}}", "readinessProbe: {tcpSocket: {port: 8000}}");
        let (_, after) = injected(&redirected);
        let (server, other) = (&after["spec"]["containers"][0], &after["spec"]["containers"][1]);
        let ports = [
            &server["startupProbe"]["tcpSocket"],
            &server["readinessProbe"]["httpGet"],
            &server["livenessProbe"]["grpc"],
            &other["readinessProbe"]["tcpSocket"],
        ];
        assert_eq!(ports.map(|probe| probe["port"].clone()), [4200, 4200, 4200, 4200].map(Value::from));
        assert_eq!(server["lifecycle"]["preStop"]["httpGet"]["port"], 4200);
        let inits = after["spec"]["initContainers"].as_array().unwrap();
        assert_eq!(inits.iter().map(|init| init["name"].as_str().unwrap()).collect::<Vec<_>>(), [REDIRECTOR, SIDECAR]);
        assert_eq!(inits[0]["args"], json!(["redirect", "--route=8000=4180", "--probes=4200=8000", "--route=80=4181", "--probes=4201=80"]));
        assert_eq!(inits[0]["securityContext"]["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }));
        assert!(inits[1]["securityContext"]["capabilities"].get("add").is_none(), "the sidecar itself has none");
        let (_, plain) = injected(POD);
        assert_eq!(plain["spec"]["initContainers"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn probes_of_containers_that_run_beside_the_server_are_not_led_to_the_sidecar_either() {
        let init = |policy: &str| {
            format!(
                "initContainers: [{{name: cache, image: c{policy}, ports: [{{name: own, containerPort: 8000}}], livenessProbe: {{tcpSocket: {{port: 8000}}}}, startupProbe: {{httpGet: {{port: own}}}}}}]"
            )
        };
        let with = |policy: &str| POD.replace("  containers:\n", &format!("  {}\n  containers:\n", init(policy)));
        let redirected = |yaml: &str| yaml.replace("metadata: {name: x", "metadata: {name: x, annotations: {steadfast.dev/interception: redirect}");
        let ports = |yaml: &str| {
            let (_, after) = injected(yaml);
            let init = after["spec"]["initContainers"][0].clone();
            [init["livenessProbe"]["tcpSocket"]["port"].clone(), init["startupProbe"]["httpGet"]["port"].clone()]
        };
        let beside = with(", restartPolicy: Always");
        assert_eq!(ports(&redirected(&beside)), [json!(4200), json!(4200)]);
        assert_eq!(ports(&beside), [json!(8000), json!("own")], "nothing leads such a number anywhere else");
        assert_eq!(ports(&redirected(&with(""))), [json!(8000), json!("own")], "who is over is asked nothing");
    }

    #[test]
    fn what_is_not_known_here_and_not_touched_stays() {
        let (before, mut after) = injected(POD);
        assert_eq!(after["spec"]["futureField"], before["spec"]["futureField"]);
        assert_eq!(after["spec"]["containers"][1]["futureField"], 1);
        assert_eq!(
            after["metadata"]["annotations"],
            json!({ INJECTED_ANNOTATION: env!("CARGO_PKG_VERSION"), ROUTES_ANNOTATION: "http=4180:8000,web=4181:80", LEFT_ANNOTATION: "metrics:8002" })
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
        assert_eq!(decide(&pod, "default", &BTreeMap::new(), true), Decision::Already);
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
        assert_eq!(resources["limits"]["cpu"], "1", "what it is throttled at there is not what it asks for elsewhere");
        let (_, after) = injected(POD);
        let resources = &after["spec"]["initContainers"][0]["resources"];
        assert!(resources["limits"]["cpu"].is_null() && resources["requests"]["cpu"].is_string(), "{resources}");
    }

    #[test]
    fn a_guaranteed_pods_sidecar_asks_for_no_more_cpu_than_its_largest_container_and_annotations_count_more() {
        let guaranteed = POD
            .replace("image: x", "image: x\n      resources: {limits: {cpu: 500m, memory: 1Gi}}")
            .replace("image: z", "image: z\n      resources: {limits: {cpu: 200m, memory: 1Gi}}");
        let of = |yaml: &str, annotations: &str| {
            let (_, after) = injected(&yaml.replace("metadata: {name: x", &format!("metadata: {{name: x, annotations: {{{annotations}}}")));
            after["spec"]["initContainers"].as_array().unwrap().iter().map(|init| init["resources"].clone()).collect::<Vec<_>>()
        };
        let both = |cpu: &str, memory: &str| json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": cpu, "memory": memory } });
        assert_eq!(of(&guaranteed, ""), [both("500m", "256Mi")]);
        assert_eq!(of(&guaranteed, "steadfast.dev/interception: redirect"), [both("500m", "32Mi"), both("500m", "256Mi")]);
        assert_eq!(of(&guaranteed, "steadfast.dev/proxy-cpu-limit: '2', steadfast.dev/proxy-memory-limit: 96Mi"), [both("2", "96Mi")]);
        // A quota of limits.cpu wants one of every container.
        let limited = json!({ "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "cpu": "2", "memory": "256Mi" } });
        assert_eq!(of(POD, "steadfast.dev/proxy-cpu-limit: '2'"), [limited]);
        let redirected = of(POD, "steadfast.dev/interception: redirect, steadfast.dev/proxy-cpu-limit: 5m");
        assert_eq!((&redirected[0]["limits"]["cpu"], &redirected[0]["requests"]["cpu"]), (&json!("5m"), &json!("5m")));
        let of_its_own = POD.replace("spec:\n", "spec:\n  resources: {limits: {cpu: 1, memory: 1Gi}}\n");
        assert_eq!(of(&of_its_own, "steadfast.dev/proxy-cpu: 10m"), [json!({ "requests": { "cpu": "10m" } })]);
    }

    #[test]
    fn the_sidecar_waits_as_long_as_its_pod_says() {
        let annotated =
            POD.replace("metadata: {name: x", "metadata: {name: x, annotations: {steadfast.dev/upstream-timeout: 1h 30m, steadfast.dev/header-timeout: 11m}");
        let (_, after) = injected(&annotated);
        let args: Vec<&str> = after["spec"]["initContainers"][0]["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(args.contains(&"--upstream-timeout=1h30m") && args.contains(&"--header-timeout=11m"), "{args:?}");
    }

    #[test]
    fn the_user_is_the_one_that_was_said_or_the_platforms() {
        let user = |user: &str, yaml: &str| {
            let pod: Pod = serde_saphyr::from_str(yaml).unwrap();
            let Decision::Inject(plan) = decide(&pod, "default", &BTreeMap::new(), true) else { panic!() };
            let mut value = serde_json::to_value(&pod).unwrap();
            json_patch::patch(&mut value, &patch(&pod, &plan, &SidecarSettings { run_as_user: user.parse().unwrap(), ..settings() })).unwrap();
            value["spec"]["initContainers"][0]["securityContext"]["runAsUser"].clone()
        };
        assert_eq!((user("65532", POD), user("1000680000", POD), user("none", POD)), (json!(65532), json!(1_000_680_000), Value::Null));
        let of_root = POD.replace("spec:\n", "spec:\n  securityContext: {runAsUser: 0}\n");
        assert_eq!(user("none", &of_root), 65532, "as root kubelet would not start it");
        assert_eq!(pod_security("7".parse().unwrap())["runAsGroup"], 7);
        assert!(pod_security("none".parse().unwrap()).as_object().unwrap().keys().all(|field| !field.starts_with("runAsU") && !field.starts_with("runAsG")));
    }

    #[test]
    fn a_sidecar_alone_needs_no_token() {
        let pod: Pod = serde_saphyr::from_str(POD).unwrap();
        let Decision::Inject(plan) = decide(&pod, "default", &BTreeMap::new(), true) else { panic!() };
        let alone = patch(&pod, &plan, &SidecarSettings { controller: None, ..settings() });
        let said = serde_json::to_string(&alone).unwrap();
        assert!(!said.contains("serviceAccountToken") && !said.contains("--controller"), "{said}");
    }
}
