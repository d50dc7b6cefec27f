//! Which pods get the sidecar, and what it stands in front of. Nothing here asks anybody: a pod and its namespace's labels decide, in the cluster and offline alike.
//!
//! A pod that is asked for and cannot be injected is skipped with a [`Skip`], which its owner reads in an Event, a metric and the admission's warning. A skip never
//! refuses the pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, Pod, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// On pods and namespaces: `"true"` asks for the sidecar, `"false"` on a pod overrules its namespace.
pub const INJECT_LABEL: &str = "steadfast.dev/inject";
/// On injected pods: the version that injected them.
pub const INJECTED_ANNOTATION: &str = "steadfast.dev/injected";
/// On injected pods: what the sidecar stands in front of, as `NAME=SIDECAR-PORT:SERVER-PORT`, separated by commas.
pub const ROUTES_ANNOTATION: &str = "steadfast.dev/routes";
/// On pods: names of the ports to take over, separated by commas. Without it: every named TCP port that users dial.
pub const PORTS_ANNOTATION: &str = "steadfast.dev/ports";
/// On pods: `redirect` has an init container lead whoever dials a server's number to the sidecar; `handover`, the default, needs no privilege.
pub const INTERCEPTION_ANNOTATION: &str = "steadfast.dev/interception";
/// Its value.
pub const REDIRECT: &str = "redirect";
/// Name of the injected container.
pub const SIDECAR: &str = "steadfast-proxy";
/// First port that sidecars listen on in place of a server's port.
pub const FIRST_PORT: i32 = 4180;
/// First port by which kubelet's probes reach a server whose own port is redirected.
pub const FIRST_PROBE_PORT: i32 = 4200;
/// Metrics, health and `/policy` on loopback. (4140, 4143, 4190 and 4191 are Linkerd's.)
pub const ADMIN_PORT: i32 = 4178;
/// Health and metrics for kubelet and Prometheus.
pub const HEALTH_PORT: i32 = 4179;
/// Containers of other meshes: what they declare is for themselves, whichever injector comes first.
const MESHES: [&str; 4] = ["istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane"];
/// Ports taken over in one pod.
const ROUTES_MAX: usize = 10;
/// Namespaces of the cluster itself.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Why a pod that was asked for does not get the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    SystemNamespace(String),
    HostNetwork,
    Windows,
    /// A container of this name is there, and not by our hand.
    NameTaken,
    PortTaken(i32),
    /// A port of the annotation that no container names.
    NoSuchPort(String),
    NoNamedPort,
    TooManyPorts(usize),
    /// A mirror of a static pod: kubelet runs it whatever is admitted.
    StaticPod,
    /// Two containers name a port so.
    PortTwice(String),
    /// The pod asks to be redirected where nobody allowed it, or PodSecurity would refuse it.
    RedirectNotAllowed,
    /// A word of the annotation that means nothing.
    NoSuchInterception(String),
}

impl Skip {
    /// CamelCase, for Events and as a label of the metric.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::SystemNamespace(_) => "SystemNamespace",
            Self::HostNetwork => "HostNetwork",
            Self::Windows => "Windows",
            Self::NameTaken => "NameTaken",
            Self::PortTaken(_) => "PortTaken",
            Self::NoSuchPort(_) => "NoSuchPort",
            Self::NoNamedPort => "NoNamedPort",
            Self::TooManyPorts(_) => "TooManyPorts",
            Self::StaticPod => "StaticPod",
            Self::PortTwice(_) => "PortTwice",
            Self::RedirectNotAllowed => "RedirectNotAllowed",
            Self::NoSuchInterception(_) => "NoSuchInterception",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SystemNamespace(namespace) => write!(f, "namespace {namespace} belongs to the cluster itself; nothing in it is injected"),
            Self::HostNetwork => {
                f.write_str("the pod uses its node's network, whose ports the sidecar could not take over for this pod alone: leave hostNetwork out")
            }
            Self::Windows => f.write_str("the pod runs Windows; there is no sidecar for it"),
            Self::NameTaken => write!(f, "the pod has a container {SIDECAR} of its own: give it another name"),
            Self::PortTaken(port) => write!(f, "a container of the pod listens on {port}, which the sidecar needs: give the container another port"),
            Self::NoSuchPort(name) => {
                write!(f, "annotation {PORTS_ANNOTATION} names port {name:?}, and no container of the pod declares a TCP port of that name")
            }
            Self::NoNamedPort => write!(
                f,
                "no container declares a TCP port with a name, so no Service can reach the sidecar by it: give the server's port a name such as http and let the Service's targetPort be that \
                 name (`steadfast inject` does both in manifests)"
            ),
            Self::TooManyPorts(count) => {
                write!(f, "{count} ports are more than the {ROUTES_MAX} that a sidecar takes over: name those that matter in annotation {PORTS_ANNOTATION}")
            }
            Self::StaticPod => f.write_str("kubelet runs static pods from its own files: add the sidecar there by `steadfast inject`"),
            Self::PortTwice(name) => {
                write!(f, "two containers declare a port {name:?}: name them apart, or name the other ports in annotation {PORTS_ANNOTATION}")
            }
            Self::RedirectNotAllowed => write!(
                f,
                "annotation {INTERCEPTION_ANNOTATION} asks for {REDIRECT}, which takes an init container with NET_ADMIN: the chart's value redirect.allowed must be true, and the \
                 namespace's label pod-security.kubernetes.io/enforce absent or privileged; or leave the annotation out"
            ),
            Self::NoSuchInterception(word) => write!(f, "annotation {INTERCEPTION_ANNOTATION} is {word:?}: write {REDIRECT} or handover"),
        }
    }
}

/// A port that the sidecar takes over, by its name or by redirection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The declared name; where there is none, the number.
    pub name: String,
    pub is_named: bool,
    /// Index in `spec.containers`, and in its `ports`.
    pub container: usize,
    pub port: usize,
    /// Where the server listens.
    pub server: i32,
    /// Where the sidecar does.
    pub sidecar: i32,
    /// Where probes go when users are redirected.
    pub probes: Option<i32>,
}

/// How the sidecar finds out that the server is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// As the server's own readiness probe asks.
    Http { port: i32, path: String },
    /// It takes connections: its own probe is of a kind that only kubelet can ask, or there is none.
    Tcp { port: i32 },
}

/// What is done to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub routes: Vec<Route>,
    pub readiness: Readiness,
    /// Requests and limits of every container are equal; the sidecar's must be as well, or the pod would lose its class.
    pub guaranteed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody asked for it.
    NotAsked,
    /// It is there already.
    Already,
    Skip(Skip),
    Inject(Box<Plan>),
}

/// Whether labels of a pod and of its namespace ask for the sidecar.
pub fn asked(pod: &BTreeMap<String, String>, namespace: &BTreeMap<String, String>) -> bool {
    match (pod.get(INJECT_LABEL).map(String::as_str), namespace.get(INJECT_LABEL).map(String::as_str)) {
        (Some(of_pod), _) => of_pod == "true",
        (None, of_namespace) => of_namespace == Some("true"),
    }
}

/// Decides on a pod of `namespace` with these labels; `may_redirect`: a pod that asks for it may be redirected.
pub fn decide(pod: &Pod, namespace: &str, namespace_labels: &BTreeMap<String, String>, may_redirect: bool) -> Decision {
    let none = BTreeMap::new();
    if !asked(pod.metadata.labels.as_ref().unwrap_or(&none), namespace_labels) {
        return Decision::NotAsked;
    }
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let has_sidecar = containers(pod).any(|container| container.name == SIDECAR);
    if has_sidecar && annotations.contains_key(INJECTED_ANNOTATION) {
        return Decision::Already;
    }
    match plan(pod, namespace, annotations, has_sidecar, may_redirect) {
        Ok(plan) => Decision::Inject(Box::new(plan)),
        Err(skip) => Decision::Skip(skip),
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

fn plan(pod: &Pod, namespace: &str, annotations: &BTreeMap<String, String>, has_sidecar: bool, may_redirect: bool) -> Result<Plan, Skip> {
    let Some(spec) = &pod.spec else { return Err(Skip::NoNamedPort) };
    if SYSTEM.contains(&namespace) {
        return Err(Skip::SystemNamespace(namespace.to_owned()));
    }
    if annotations.contains_key("kubernetes.io/config.mirror") {
        return Err(Skip::StaticPod);
    }
    if spec.host_network == Some(true) {
        return Err(Skip::HostNetwork);
    }
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let selected = spec.node_selector.as_ref().and_then(|selector| selector.get("kubernetes.io/os")).map(String::as_str);
    if os == Some("windows") || selected == Some("windows") {
        return Err(Skip::Windows);
    }
    if has_sidecar {
        return Err(Skip::NameTaken);
    }
    let redirects = match annotations.get(INTERCEPTION_ANNOTATION).map(String::as_str) {
        None | Some("handover") => false,
        Some(REDIRECT) if may_redirect => true,
        Some(REDIRECT) => return Err(Skip::RedirectNotAllowed),
        Some(other) => return Err(Skip::NoSuchInterception(other.to_owned())),
    };
    let used: BTreeSet<i32> = containers(pod).flat_map(|container| container.ports.iter().flatten()).map(|port| port.container_port).collect();
    if let Some(port) = [ADMIN_PORT, HEALTH_PORT].into_iter().find(|port| used.contains(port)) {
        return Err(Skip::PortTaken(port));
    }
    let routes = routes(&spec.containers, annotations.get(PORTS_ANNOTATION), &used, redirects)?;
    let Some(first) = routes.first() else { return Err(Skip::NoNamedPort) };
    let server = &spec.containers[first.container];
    Ok(Plan { readiness: readiness(server, first.server), guaranteed: spec.containers.iter().all(is_guaranteed), routes })
}

fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

/// Ports that users do not dial, by the words of their names: what Prometheus, kubelet and people read (Knative's queue-proxy has `http-autometric`,
/// `http-usermetric` and `http-queueadm`), and what speaks TLS, which the sidecar does not.
fn is_apart(name: &str) -> bool {
    const WORDS: [&str; 10] = ["prometheus", "prom", "admin", "debug", "health", "healthz", "readiness", "liveness", "https", "tls"];
    name.split('-').any(|word| WORDS.contains(&word) || ["metric", "metrics", "adm"].iter().any(|end| word.ends_with(end)))
}

fn routes(containers: &[Container], wanted: Option<&String>, used: &BTreeSet<i32>, redirects: bool) -> Result<Vec<Route>, Skip> {
    let wanted: Option<Vec<&str>> = wanted.map(|names| names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect());
    let mut free = (FIRST_PORT..FIRST_PORT + 2 * ROUTES_MAX as i32).filter(|port| !used.contains(port));
    let mut for_probes = (FIRST_PROBE_PORT..FIRST_PROBE_PORT + 2 * ROUTES_MAX as i32).filter(|port| redirects && !used.contains(port));
    let mut routes: Vec<Route> = Vec::new();
    for (container, declared) in containers.iter().enumerate().filter(|(_, container)| wanted.is_some() || !MESHES.contains(&container.name.as_str())) {
        for (port, declared) in declared.ports.iter().flatten().enumerate() {
            let number = declared.container_port.to_string();
            let name = match declared.name.as_deref() {
                _ if !is_tcp(declared) => continue,
                Some(name) => name,
                // Only who redirects needs no name.
                None if redirects => number.as_str(),
                None => continue,
            };
            let takes = wanted.as_ref().map_or_else(|| !is_apart(name), |wanted| wanted.contains(&name));
            if !takes {
                continue;
            }
            if routes.iter().any(|route| route.name == name) {
                return Err(Skip::PortTwice(name.to_owned()));
            }
            let sidecar = free.next().filter(|_| routes.len() < ROUTES_MAX).ok_or_else(|| Skip::TooManyPorts(routes.len() + 1))?;
            let is_named = declared.name.is_some();
            routes.push(Route { name: name.to_owned(), is_named, container, port, server: declared.container_port, sidecar, probes: for_probes.next() });
        }
    }
    match wanted.into_iter().flatten().find(|name| !routes.iter().any(|route| route.name == **name)) {
        Some(missing) => Err(Skip::NoSuchPort(missing.to_owned())),
        None => Ok(routes),
    }
}

/// The number of a port that a probe gives by name or number.
pub fn port_number(container: &Container, port: &IntOrString) -> Option<i32> {
    match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|declared| declared.name.as_deref() == Some(name))
            .map(|declared| declared.container_port)
            .or_else(|| name.parse().ok()),
    }
}

fn readiness(server: &Container, port: i32) -> Readiness {
    let http = |probe: &Probe| {
        let http = probe.http_get.as_ref()?;
        // TLS and other hosts are kubelet's business.
        let plain = http.scheme.as_deref().is_none_or(|scheme| scheme == "HTTP") && http.host.is_none() && http.http_headers.is_none();
        let port = port_number(server, &http.port).filter(|_| plain)?;
        Some(Readiness::Http { port, path: http.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()) })
    };
    let tcp = |probe: &Probe| Some(Readiness::Tcp { port: port_number(server, &probe.tcp_socket.as_ref()?.port)? });
    server.readiness_probe.as_ref().and_then(|probe| http(probe).or_else(|| tcp(probe))).unwrap_or(Readiness::Tcp { port })
}

fn is_guaranteed(container: &Container) -> bool {
    let Some(limits) = container.resources.as_ref().and_then(|resources| resources.limits.as_ref()) else { return false };
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    ["cpu", "memory"].into_iter().all(|name| {
        // What is not requested is requested as limited.
        limits.get(name).is_some_and(|limit| requests.and_then(|requests| requests.get(name)).is_none_or(|request| request == limit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn decided(yaml: &str) -> Decision {
        decide(&pod(yaml), "default", &BTreeMap::new(), false)
    }

    fn skipped(yaml: &str) -> Skip {
        match decided(yaml) {
            Decision::Skip(skip) => skip,
            other => panic!("{other:?}"),
        }
    }

    const SERVER: &str = r#"
metadata: {labels: {app: x, steadfast.dev/inject: "true"}}
spec:
  containers:
    - name: server
      image: x
      ports: [{name: http, containerPort: 8000}, {name: grpc, containerPort: 8001}, {name: http-metrics, containerPort: 8002}]
      readinessProbe: {httpGet: {path: /v2/health/ready, port: http}}
"#;

    #[test]
    fn labels_ask_and_a_pods_own_word_counts_more() {
        let labels = |value: &str| BTreeMap::from([(INJECT_LABEL.to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        assert!(asked(&labels("true"), &none) && asked(&none, &labels("true")) && asked(&labels("true"), &labels("false")));
        assert!(!asked(&none, &none) && !asked(&labels("false"), &labels("true")) && !asked(&labels("yes"), &none));
        assert_eq!(decided("{metadata: {}, spec: {containers: []}}"), Decision::NotAsked);
    }

    #[test]
    fn named_ports_that_users_dial_are_taken_over_in_order() {
        let Decision::Inject(plan) = decided(SERVER) else { panic!() };
        let routes: Vec<_> = plan.routes.iter().map(|route| (route.name.as_str(), route.server, route.sidecar)).collect();
        assert_eq!(routes, [("http", 8000, 4180), ("grpc", 8001, 4181)]);
        assert_eq!(plan.readiness, Readiness::Http { port: 8000, path: "/v2/health/ready".into() });
        assert!(!plan.guaranteed);
    }

    #[test]
    fn the_annotation_chooses_ports_and_one_that_is_not_there_is_named() {
        let with = |ports: &str| SERVER.replace("metadata: {", &format!("metadata: {{annotations: {{{PORTS_ANNOTATION}: '{ports}'}}, "));
        let Decision::Inject(plan) = decided(&with("grpc, http-metrics")) else { panic!() };
        assert_eq!(plan.routes.iter().map(|route| route.server).collect::<Vec<_>>(), [8001, 8002]);
        assert_eq!(skipped(&with("grpc,web")), Skip::NoSuchPort("web".into()));
    }

    #[test]
    fn what_cannot_be_injected_is_skipped_with_a_reason() {
        let with = |from: &str, to: &str| {
            assert!(SERVER.contains(from), "{from}");
            skipped(&SERVER.replacen(from, to, 1))
        };
        assert_eq!(with("spec:", "spec:\n  hostNetwork: true"), Skip::HostNetwork);
        assert_eq!(with("spec:", "spec:\n  os: {name: windows}"), Skip::Windows);
        assert_eq!(with("spec:", "spec:\n  nodeSelector: {kubernetes.io/os: windows}"), Skip::Windows);
        assert_eq!(with("name: server", "name: steadfast-proxy"), Skip::NameTaken);
        assert_eq!(with("8002", "4179"), Skip::PortTaken(4179));
        assert_eq!(with("[{name: http, containerPort: 8000}, {name: grpc, containerPort: 8001}, ", "[{containerPort: 8000}, "), Skip::NoNamedPort);
        assert_eq!(with("metadata: {", "metadata: {annotations: {kubernetes.io/config.mirror: x}, "), Skip::StaticPod);
        assert_eq!(decide(&pod(SERVER), "kube-system", &BTreeMap::new(), false), Decision::Skip(Skip::SystemNamespace("kube-system".into())));
    }

    #[test]
    fn who_asks_to_be_redirected_needs_no_name_and_is_skipped_where_it_is_not_allowed() {
        let with = |word: &str| {
            let unnamed = SERVER.replace("{name: grpc, containerPort: 8001}", "{containerPort: 8001}");
            pod(&unnamed.replace("metadata: {", &format!("metadata: {{annotations: {{{INTERCEPTION_ANNOTATION}: {word}}}, ")))
        };
        let decided = |word: &str, may: bool| decide(&with(word), "default", &BTreeMap::new(), may);
        let Decision::Inject(plan) = decided(REDIRECT, true) else { panic!() };
        let routes: Vec<_> = plan.routes.iter().map(|route| (route.name.as_str(), route.is_named, route.server, route.sidecar, route.probes)).collect();
        assert_eq!(routes, [("http", true, 8000, 4180, Some(4200)), ("8001", false, 8001, 4181, Some(4201))]);
        assert_eq!(decided(REDIRECT, false), Decision::Skip(Skip::RedirectNotAllowed));
        assert_eq!(decided("tproxy", true), Decision::Skip(Skip::NoSuchInterception("tproxy".into())));
        let Decision::Inject(plan) = decided("handover", true) else { panic!() };
        assert_eq!(plan.routes.iter().map(|route| (route.server, route.probes)).collect::<Vec<_>>(), [(8000, None)]);
    }

    #[test]
    fn a_port_that_the_server_uses_is_left_to_it() {
        let Decision::Inject(plan) = decided(&SERVER.replace("8002", "4180")) else { panic!() };
        assert_eq!(plan.routes[0].sidecar, 4181);
    }

    #[test]
    fn probes_that_only_kubelet_can_ask_become_a_connection() {
        for (probe, readiness) in [
            ("{tcpSocket: {port: grpc}}", Readiness::Tcp { port: 8001 }),
            ("{exec: {command: [x]}}", Readiness::Tcp { port: 8000 }),
            ("{grpc: {port: 8001}}", Readiness::Tcp { port: 8000 }),
            ("{httpGet: {port: 8001, scheme: HTTPS}}", Readiness::Tcp { port: 8000 }),
            ("{httpGet: {port: 8002}}", Readiness::Http { port: 8002, path: "/".into() }),
        ] {
            let Decision::Inject(plan) = decided(&SERVER.replace("{httpGet: {path: /v2/health/ready, port: http}}", probe)) else { panic!() };
            assert_eq!(plan.readiness, readiness, "{probe}");
        }
    }

    #[test]
    fn what_other_meshes_declare_is_for_themselves() {
        let mesh = "    - {name: linkerd-proxy, image: x, ports: [{name: linkerd-proxy, containerPort: 4143}, {name: linkerd-admin, containerPort: 4191}]}\n";
        let Decision::Inject(plan) = decided(&format!("{SERVER}{mesh}")) else { panic!() };
        assert_eq!(plan.routes.iter().map(|route| route.server).collect::<Vec<_>>(), [8000, 8001]);
        for (name, apart) in
            [("https-port", true), ("http-usermetric", true), ("http-queueadm", true), ("readiness-port", true), ("queue-port", false), ("http1", false)]
        {
            assert_eq!(is_apart(name), apart, "{name}");
        }
    }

    #[test]
    fn a_pod_keeps_its_class() {
        let with = |resources: &str| SERVER.replace("image: x", &format!("image: x\n      resources: {resources}"));
        for (resources, guaranteed) in [
            ("{limits: {cpu: 1, memory: 1Gi}}", true),
            ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}", true),
            ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}", false),
            ("{limits: {memory: 1Gi}}", false),
        ] {
            let Decision::Inject(plan) = decided(&with(resources)) else { panic!() };
            assert_eq!(plan.guaranteed, guaranteed, "{resources}");
        }
    }
}
