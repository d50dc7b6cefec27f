//! Which pods get the sidecar, and what it stands in front of. Nothing here asks anybody: a pod and its namespace's labels decide, in the cluster and offline alike.
//!
//! A pod that is asked for and cannot be injected is skipped with a [`Skip`], which its owner reads in an Event, a metric and the admission's warning. A skip never
//! refuses the pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, HTTPGetAction, Pod, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use steadfast_api::Span;

use super::{
    flags,
    past::{self, Taken},
    patch::{REDIRECTOR, SidecarResources, TOKEN_VOLUME},
    resources::{Class, Overrides, class},
};

/// On pods and namespaces: `"true"` asks for the sidecar, `"false"` on a pod overrules its namespace.
pub const INJECT_LABEL: &str = "steadfast.dev/inject";
/// On injected pods: the version that injected them.
pub const INJECTED_ANNOTATION: &str = "steadfast.dev/injected";
/// On injected pods: what the sidecar stands in front of, as `NAME=SIDECAR-PORT:SERVER-PORT`, separated by commas.
pub const ROUTES_ANNOTATION: &str = "steadfast.dev/routes";
/// On injected pods: named ports that lead past the sidecar because they were meant to, as `NAME:PORT`, separated by commas. It is there even when there are
/// none: a pod without it was injected by a version that did not tell.
pub const LEFT_ANNOTATION: &str = "steadfast.dev/left";
/// On pods: names of the ports to take over, separated by commas. Without it: every named TCP port that users dial, unless its name or a probe says that it
/// speaks something other than plain HTTP.
pub const PORTS_ANNOTATION: &str = "steadfast.dev/ports";
/// On pods: `redirect` has an init container lead whoever dials a server's number to the sidecar; `handover`, the default, needs no privilege.
pub const INTERCEPTION_ANNOTATION: &str = "steadfast.dev/interception";
/// Its value.
pub const REDIRECT: &str = "redirect";
/// On pods: what the sidecar requests, and is limited to, in place of the installation's `proxy.*`.
pub const CPU_ANNOTATION: &str = "steadfast.dev/proxy-cpu";
pub const CPU_LIMIT_ANNOTATION: &str = "steadfast.dev/proxy-cpu-limit";
pub const MEMORY_ANNOTATION: &str = "steadfast.dev/proxy-memory";
pub const MEMORY_LIMIT_ANNOTATION: &str = "steadfast.dev/proxy-memory-limit";
/// On pods: how long the sidecar waits, in place of its own time; by the flag that says so.
pub const TIMEOUT_ANNOTATIONS: [(&str, &str); 2] = [("header-timeout", "steadfast.dev/header-timeout"), ("upstream-timeout", "steadfast.dev/upstream-timeout")];
/// Of these times: what is written by mistake is found out.
const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
/// For a pod that shall have none.
const LABEL_IT: &str = "label the pod steadfast.dev/inject: \"false\"";
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
    /// A container or volume of this name is there, and not by our hand.
    NameTaken(&'static str, &'static str),
    PortTaken(i32),
    /// It is a copy of an injected pod, without the sidecar: this port was the sidecar's.
    Copied(Taken),
    /// A port of the annotation that no container names.
    NoSuchPort(String),
    NoNamedPort,
    /// No TCP port is declared at all.
    NoPort,
    /// There are some, of these names, and none that speaks HTTP to users.
    NoHttpPort(Vec<String>),
    TooManyPorts(usize),
    /// A mirror of a static pod: kubelet runs it whatever is admitted.
    StaticPod,
    /// Two containers name a port so.
    PortTwice(String),
    /// The pod asks to be redirected where nobody allowed it, or PodSecurity would refuse it.
    RedirectNotAllowed,
    /// A word of the annotation that means nothing.
    NoSuchInterception(String),
    /// A value of the label that means nothing.
    NoSuchLabel(String),
    /// What an annotation says of the sidecar's resources is no quantity, or contradicts another; in words.
    BadResources(String),
    /// An annotation names no time that the sidecar could wait.
    BadTimeout(String),
}

impl Skip {
    /// The reason of [`Skip::NoHttpPort`].
    pub const NO_HTTP_PORT: &'static str = "NoHttpPort";
    /// The reason of [`Skip::NoPort`].
    pub const NO_PORT: &'static str = "NoPort";
    /// The reason of [`Skip::NoSuchLabel`].
    pub const NO_SUCH_LABEL: &'static str = "NoSuchLabel";

    /// For who injects manifests himself, by the flags that he has.
    pub fn offline(&self) -> String {
        match self {
            Self::NoNamedPort | Self::NoPort => "no container declares a TCP port for users with a name, and no Service of these manifests targets one by its number: where users dial it, give the server's port a name \
                                  such as http and let the Service's targetPort be that name; where nobody does, there is nothing to stand in front of"
                .to_owned(),
            Self::RedirectNotAllowed => format!(
                "annotation {INTERCEPTION_ANNOTATION} asks for {REDIRECT}, which takes an init container with NET_ADMIN: name its image by --redirect-image, or leave the annotation out"
            ),
            Self::StaticPod => "annotation kubernetes.io/config.mirror says that it mirrors a static pod: inject the file that kubelet reads, which has no such annotation".to_owned(),
            other => other.to_string(),
        }
    }

    /// CamelCase, for Events and as a label of the metric.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::SystemNamespace(_) => "SystemNamespace",
            Self::HostNetwork => "HostNetwork",
            Self::Windows => "Windows",
            Self::NameTaken(..) => "NameTaken",
            Self::PortTaken(_) => "PortTaken",
            Self::Copied(_) => "CopiedWithoutSidecar",
            Self::NoSuchPort(_) => "NoSuchPort",
            Self::NoNamedPort => "NoNamedPort",
            Self::NoPort => Self::NO_PORT,
            Self::NoHttpPort(_) => Self::NO_HTTP_PORT,
            Self::TooManyPorts(_) => "TooManyPorts",
            Self::StaticPod => "StaticPod",
            Self::PortTwice(_) => "PortTwice",
            Self::RedirectNotAllowed => "RedirectNotAllowed",
            Self::NoSuchInterception(_) => "NoSuchInterception",
            Self::NoSuchLabel(_) => Self::NO_SUCH_LABEL,
            Self::BadResources(_) => "BadResources",
            Self::BadTimeout(_) => "BadTimeout",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SystemNamespace(namespace) => write!(f, "namespace {namespace} belongs to the cluster itself; nothing in it is injected"),
            Self::HostNetwork => {
                write!(
                    f,
                    "the pod uses its node's network, whose ports the sidecar could not take over for this pod alone: leave hostNetwork out, or {LABEL_IT}"
                )
            }
            Self::Windows => write!(f, "the pod runs Windows, for which there is no sidecar: {LABEL_IT}"),
            Self::NameTaken(kind, name) => write!(f, "the pod has a {kind} {name} of its own, which the sidecar would bring: give it another name"),
            Self::PortTaken(port) => write!(f, "a container of the pod listens on {port}, which the sidecar needs: give the container another port"),
            Self::Copied(Taken { name, sidecar, server }) => write!(
                f,
                "the pod was copied from an injected one without its sidecar, and nothing would listen on port {name}, {sidecar}: copy the workload's own template, or let {name} be {server} again and leave \
                 out the annotations {INJECTED_ANNOTATION}, {ROUTES_ANNOTATION} and {LEFT_ANNOTATION}"
            ),
            Self::NoSuchPort(name) => {
                write!(f, "annotation {PORTS_ANNOTATION} names port {name:?}, and no container of the pod declares a TCP port of that name")
            }
            Self::NoNamedPort => write!(
                f,
                "no container declares a TCP port for users with a name, so no Service can reach the sidecar by it: give the server's port a name such as http and let the Service's targetPort be that \
                 name (`steadfast inject` does both in manifests); or, where nobody dials it, {LABEL_IT}"
            ),
            Self::NoPort => write!(
                f,
                "no container declares a TCP port, so there is nothing to stand in front of: where users dial one, declare it with a name such as http and let the Service's targetPort be that name; else \
                 {LABEL_IT}"
            ),
            Self::NoHttpPort(names) => write!(
                f,
                "port {} is for no user or speaks no plain HTTP, by its name or its probe, and the pod names no other: if it does after all, name it in annotation {PORTS_ANNOTATION}; else {LABEL_IT}",
                names.join(", ")
            ),
            Self::TooManyPorts(count) => {
                write!(f, "{count} ports are more than the {ROUTES_MAX} that a sidecar takes over: name those that matter in annotation {PORTS_ANNOTATION}")
            }
            Self::StaticPod => write!(f, "kubelet runs static pods from its own files: add the sidecar there by `steadfast inject`, or {LABEL_IT}"),
            Self::PortTwice(name) => {
                write!(f, "two containers declare a port {name:?}: name them apart, or name the other ports in annotation {PORTS_ANNOTATION}")
            }
            Self::RedirectNotAllowed => write!(
                f,
                "annotation {INTERCEPTION_ANNOTATION} asks for {REDIRECT}, which takes an init container with NET_ADMIN: the chart's value redirect.allowed must be true, and the \
                 namespace's label pod-security.kubernetes.io/enforce absent or privileged; or leave the annotation out, or {LABEL_IT}"
            ),
            Self::NoSuchInterception(word) => write!(f, "annotation {INTERCEPTION_ANNOTATION} is {word:?}: write {REDIRECT} or handover"),
            Self::NoSuchLabel(value) => {
                write!(f, "label {INJECT_LABEL} is {value:?}, which means nothing: write \"true\", or \"false\" for a pod that shall have no sidecar")
            }
            Self::BadResources(why) | Self::BadTimeout(why) => f.write_str(why),
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

/// How the sidecar finds out that the server is ready: as the server's own readiness probe does, and no stricter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub port: i32,
    /// Begins with a slash and can stand in a request as it is. `None`: the server is ready when it takes connections, as its own probe is of a kind that only kubelet
    /// can ask, or there is none.
    pub path: Option<String>,
    /// For one look.
    pub timeout_seconds: i32,
    /// For so long kubelet would go on calling a server ready that is not any more.
    pub patience_seconds: i32,
}

/// What is done to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub routes: Vec<Route>,
    /// Named ports that are not taken over: they are not for users, or speak something else, or others were chosen.
    pub left: Vec<(String, i32)>,
    pub readiness: Readiness,
    pub class: Class,
    /// What its annotations say.
    pub resources: Overrides,
    /// By the sidecar's flags.
    pub timeouts: Vec<(&'static str, Span)>,
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

/// Whether a value of the label means nothing: it counts as a no, and is told of.
pub fn is_meaningless(value: &str) -> bool {
    !["true", "false"].contains(&value)
}

/// Decides on a pod of `namespace` with these labels; `may_redirect`: a pod that asks for it may be redirected.
pub fn decide(pod: &Pod, namespace: &str, namespace_labels: &BTreeMap<String, String>, may_redirect: bool) -> Decision {
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let has_sidecar = containers(pod).any(|container| container.name == SIDECAR);
    let is_injected = has_sidecar && annotations.contains_key(INJECTED_ANNOTATION);
    if let Some(value) = labels.get(INJECT_LABEL).filter(|value| !is_injected && is_meaningless(value)) {
        return Decision::Skip(Skip::NoSuchLabel(value.clone()));
    }
    if !asked(labels, namespace_labels) {
        return Decision::NotAsked;
    }
    if is_injected {
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

fn declared(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    containers(pod).flat_map(|container| container.ports.iter().flatten())
}

fn plan(pod: &Pod, namespace: &str, annotations: &BTreeMap<String, String>, has_sidecar: bool, may_redirect: bool) -> Result<Plan, Skip> {
    let Some(spec) = &pod.spec else { return Err(Skip::NoPort) };
    if SYSTEM.contains(&namespace) {
        return Err(Skip::SystemNamespace(namespace.to_owned()));
    }
    if annotations.contains_key("kubernetes.io/config.mirror") {
        return Err(Skip::StaticPod);
    }
    if spec.host_network == Some(true) {
        return Err(Skip::HostNetwork);
    }
    if is_windows(spec) {
        return Err(Skip::Windows);
    }
    let is_copied = annotations.contains_key(INJECTED_ANNOTATION) && !has_sidecar;
    let left_behind = |port: &Taken| declared(pod).any(|declared| declared.container_port == port.sidecar && declared.name.as_ref() == Some(&port.name));
    if let Some(port) = past::taken(annotations).into_iter().find(|port| is_copied && left_behind(port)) {
        return Err(Skip::Copied(port));
    }
    let redirects = match annotations.get(INTERCEPTION_ANNOTATION).map(String::as_str) {
        None | Some("handover") => false,
        Some(REDIRECT) => true,
        Some(other) => return Err(Skip::NoSuchInterception(other.to_owned())),
    };
    let has_redirector = redirects && containers(pod).any(|container| container.name == REDIRECTOR);
    let has_token = spec.volumes.iter().flatten().any(|volume| volume.name == TOKEN_VOLUME);
    let names = [(has_sidecar, "container", SIDECAR), (has_redirector, "container", REDIRECTOR), (has_token, "volume", TOKEN_VOLUME)];
    if let Some((_, kind, name)) = names.into_iter().find(|(is_taken, ..)| *is_taken) {
        return Err(Skip::NameTaken(kind, name));
    }
    let used: BTreeSet<i32> = declared(pod).map(|port| port.container_port).collect();
    if let Some(port) = [ADMIN_PORT, HEALTH_PORT].into_iter().find(|port| used.contains(port)) {
        return Err(Skip::PortTaken(port));
    }
    let (routes, left) = routes(&spec.containers, annotations.get(PORTS_ANNOTATION), &used, redirects)?;
    let Some(first) = routes.first() else {
        let tcp: Vec<&ContainerPort> = spec.containers.iter().flat_map(|container| container.ports.iter().flatten()).filter(|port| is_tcp(port)).collect();
        return Err(if tcp.is_empty() {
            Skip::NoPort
        } else if left.is_empty() || tcp.iter().any(|port| port.name.is_none()) {
            Skip::NoNamedPort
        } else {
            Skip::NoHttpPort(left.into_iter().map(|(name, _)| name).collect())
        });
    };
    let (resources, timeouts) = (overrides(annotations)?, timeouts(annotations)?);
    // Last of all, so that who could not be redirected anyway hears of that.
    if redirects && !may_redirect {
        return Err(Skip::RedirectNotAllowed);
    }
    let server = &spec.containers[first.container];
    Ok(Plan { readiness: readiness(server, first.server), class: class(spec), resources, timeouts, routes, left })
}

fn timeouts(annotations: &BTreeMap<String, String>) -> Result<Vec<(&'static str, Span)>, Skip> {
    let mut timeouts = Vec::new();
    for (flag, name) in TIMEOUT_ANNOTATIONS {
        let Some(text) = annotations.get(name) else { continue };
        let span = text.parse::<Span>().ok().filter(|span| TIMEOUTS.contains(&span.get()));
        let bad = || Skip::BadTimeout(format!("annotation {name} is {text:?}: write 1s to 24h, such as 10m"));
        timeouts.push((flag, span.ok_or_else(bad)?));
    }
    Ok(timeouts)
}

fn overrides(annotations: &BTreeMap<String, String>) -> Result<Overrides, Skip> {
    let quantity = |name: &str, read: fn(&str) -> Result<String, String>| {
        let value = annotations.get(name).map(|text| read(text).map_err(|why| Skip::BadResources(format!("annotation {name} is {text:?}: {why}"))));
        value.transpose()
    };
    let overrides = Overrides {
        cpu: quantity(CPU_ANNOTATION, flags::cpu)?,
        cpu_limit: quantity(CPU_LIMIT_ANNOTATION, flags::cpu)?,
        memory: quantity(MEMORY_ANNOTATION, flags::memory)?,
        memory_limit: quantity(MEMORY_LIMIT_ANNOTATION, flags::memory)?,
    };
    flags::within_limits(&SidecarResources::default().with(&overrides), "annotation steadfast.dev/proxy-").map_err(Skip::BadResources)?;
    Ok(overrides)
}

/// By the three ways in which a pod can say so.
fn is_windows(spec: &PodSpec) -> bool {
    const LABEL: &str = "kubernetes.io/os";
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let selected = spec.node_selector.as_ref().and_then(|selector| selector.get(LABEL)).map(String::as_str);
    let required = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    let terms = required.map_or(&[][..], |required| &required.node_selector_terms);
    // Any of the terms is enough for a node.
    let all_terms = !terms.is_empty()
        && terms.iter().all(|term| {
            term.match_expressions.iter().flatten().any(|expression| {
                expression.key == LABEL
                    && expression.operator == "In"
                    && expression.values.as_ref().is_some_and(|values| values.iter().all(|value| value == "windows"))
            })
        });
    let of_pod = spec.security_context.as_ref().and_then(|context| context.windows_options.as_ref());
    let of_containers = spec.containers.iter().filter_map(|container| container.security_context.as_ref()?.windows_options.as_ref());
    let is_host_process = of_pod.into_iter().chain(of_containers).any(|options| options.host_process == Some(true));
    os == Some("windows") || selected == Some("windows") || all_terms || is_host_process
}

pub(super) fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

/// Ports that a sidecar does not stand in front of unless it is told to, by the words of their names: what Prometheus, kubelet and people read (Knative's queue-proxy
/// has `http-autometric`, `http-usermetric` and `http-queueadm`), what speaks TLS, and what speaks another protocol than HTTP. Names follow the convention of Istio and
/// Kubernetes, `PROTOCOL` or `PROTOCOL-WORDS`, so one that begins with HTTP's or gRPC's is taken at its word; a name that says no protocol is that of a model server.
pub fn is_apart(name: &str) -> bool {
    const NOT_FOR_USERS: [&str; 10] = ["prometheus", "prom", "admin", "debug", "health", "healthz", "readiness", "liveness", "https", "tls"];
    const HTTP: [&str; 4] = ["http", "h2c", "grpc", "web"];
    const OTHERS: &[&str] = &[
        "tcp",
        "udp",
        "sctp",
        "grpcs",
        "ssl",
        "tds",
        "redis",
        "rediss",
        "valkey",
        "sentinel",
        "postgres",
        "postgresql",
        "pg",
        "pgsql",
        "pgbouncer",
        "psql",
        "mysql",
        "mysqlx",
        "mariadb",
        "mssql",
        "oracle",
        "mongo",
        "mongodb",
        "cassandra",
        "cql",
        "thrift",
        "memcache",
        "memcached",
        "kafka",
        "amqp",
        "amqps",
        "mqtt",
        "mqtts",
        "stomp",
        "nats",
        "zookeeper",
        "zk",
        "zmq",
        "etcd",
        "ldap",
        "ldaps",
        "smtp",
        "smtps",
        "imap",
        "ftp",
        "ssh",
        "dns",
        "rtsp",
        "gossip",
        "raft",
    ];
    let words: Vec<&str> = name.split('-').map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit())).collect();
    let for_others = |word: &&str| NOT_FOR_USERS.contains(word) || ["metric", "metrics", "adm"].iter().any(|end| word.ends_with(end));
    let other_protocol = !words.first().is_some_and(|first| HTTP.contains(first)) && words.iter().any(|word| OTHERS.contains(word));
    words.iter().any(for_others) || other_protocol
}

/// Whether a probe of the container asks this port by TLS.
fn speaks_tls(container: &Container, number: i32) -> bool {
    let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
    let asks = probes.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref());
    asks.filter(|http| http.scheme.as_deref() == Some("HTTPS") && http.host.is_none()).any(|http| port_number(container, &http.port) == Some(number))
}

/// What is taken over, and what of a name is left.
type Ports = (Vec<Route>, Vec<(String, i32)>);

fn routes(containers: &[Container], wanted: Option<&String>, used: &BTreeSet<i32>, redirects: bool) -> Result<Ports, Skip> {
    let wanted: Option<Vec<&str>> = wanted.map(|names| names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect());
    let mut free = (FIRST_PORT..FIRST_PORT + 2 * ROUTES_MAX as i32).filter(|port| !used.contains(port));
    let mut for_probes = (FIRST_PROBE_PORT..FIRST_PROBE_PORT + 2 * ROUTES_MAX as i32).filter(|port| redirects && !used.contains(port));
    let (mut routes, mut left): (Vec<Route>, Vec<_>) = (Vec::new(), Vec::new());
    for (index, container) in containers.iter().enumerate().filter(|(_, container)| wanted.is_some() || !MESHES.contains(&container.name.as_str())) {
        for (port, declared) in container.ports.iter().flatten().enumerate() {
            let server = declared.container_port;
            let number = server.to_string();
            let name = match declared.name.as_deref() {
                _ if !is_tcp(declared) => continue,
                Some(name) => name,
                // Only who redirects needs no name.
                None if redirects => number.as_str(),
                None => continue,
            };
            let takes = wanted.as_ref().map_or_else(|| !is_apart(name) && !speaks_tls(container, server), |wanted| wanted.contains(&name));
            if !takes {
                left.extend(declared.name.clone().map(|name| (name, server)));
                continue;
            }
            if routes.iter().any(|route| route.name == name) {
                return Err(Skip::PortTwice(name.to_owned()));
            }
            // A number that is declared twice leads to one place.
            let known = routes.iter().find(|route| redirects && route.server == server).map(|route| (route.sidecar, route.probes));
            let (sidecar, probes) = if let Some(known) = known {
                known
            } else {
                let sidecar = free.next().filter(|_| routes.len() < ROUTES_MAX).ok_or_else(|| Skip::TooManyPorts(routes.len() + 1))?;
                (sidecar, for_probes.next())
            };
            routes.push(Route { name: name.to_owned(), is_named: declared.name.is_some(), container: index, port, server, sidecar, probes });
        }
    }
    match wanted.into_iter().flatten().find(|name| !routes.iter().any(|route| route.name == **name)) {
        Some(missing) => Err(Skip::NoSuchPort(missing.to_owned())),
        None => Ok((routes, left)),
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
    let probe = server.readiness_probe.as_ref();
    // TLS, other hosts and fields of a request are kubelet's business.
    let plain = |http: &&HTTPGetAction| http.scheme.as_deref().is_none_or(|scheme| scheme == "HTTP") && http.host.is_none() && http.http_headers.is_none();
    let http = probe.and_then(|probe| probe.http_get.as_ref()).filter(plain).and_then(|http| Some((port_number(server, &http.port)?, target(http))));
    let tcp = probe.and_then(|probe| port_number(server, &probe.tcp_socket.as_ref()?.port));
    // Kubelet's own defaults.
    let seconds = |field: fn(&Probe) -> Option<i32>, default: i32| probe.and_then(field).filter(|seconds| *seconds > 0).unwrap_or(default);
    let (failures, period) = (seconds(|probe| probe.failure_threshold, 3), seconds(|probe| probe.period_seconds, 10));
    let (port, path) = http.map_or((tcp.unwrap_or(port), None), |(port, path)| (port, Some(path)));
    // The sidecar's flags take no more than a year.
    let patience_seconds = failures.saturating_mul(period).min(86_400);
    Readiness { port, path, timeout_seconds: seconds(|probe| probe.timeout_seconds, 1).min(3_600), patience_seconds }
}

/// The path of a probe as kubelet asks for it: with a slash before it, without a fragment, and with what may not stand in a request escaped.
fn target(http: &HTTPGetAction) -> String {
    let path = http.path.as_deref().unwrap_or_default();
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    let bytes = path.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let is_escape = || bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        // Of a variable, `$(NAME)`, Kubernetes would put the value into the sidecar's flag.
        let passes = match byte {
            b'%' => is_escape(),
            b'$' => bytes.get(at + 1) != Some(&b'('),
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => false,
            _ => byte.is_ascii_graphic(),
        };
        if passes {
            target.push(char::from(*byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(target, "%{byte:02X}");
        }
    }
    target
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
        for value in ["yes", "True", ""] {
            let skip = skipped(&SERVER.replace("steadfast.dev/inject: \"true\"", &format!("steadfast.dev/inject: '{value}'")));
            assert!(skip == Skip::NoSuchLabel(value.into()) && skip.to_string().contains(&format!("{value:?}")), "{skip}");
        }
    }

    #[test]
    fn named_ports_that_users_dial_are_taken_over_in_order() {
        let Decision::Inject(plan) = decided(SERVER) else { panic!() };
        let routes: Vec<_> = plan.routes.iter().map(|route| (route.name.as_str(), route.server, route.sidecar)).collect();
        assert_eq!(routes, [("http", 8000, 4180), ("grpc", 8001, 4181)]);
        assert_eq!(plan.readiness, Readiness { port: 8000, path: Some("/v2/health/ready".into()), timeout_seconds: 1, patience_seconds: 30 });
        assert_eq!((plan.left, plan.class), (vec![("http-metrics".to_owned(), 8002)], Class::Other));
    }

    #[test]
    fn the_annotation_chooses_ports_and_one_that_is_not_there_is_named() {
        let with = |ports: &str| SERVER.replace("metadata: {", &format!("metadata: {{annotations: {{{PORTS_ANNOTATION}: '{ports}'}}, "));
        let Decision::Inject(plan) = decided(&with("grpc, http-metrics")) else { panic!() };
        assert_eq!(plan.routes.iter().map(|route| route.server).collect::<Vec<_>>(), [8001, 8002]);
        assert_eq!(skipped(&with("grpc,web")), Skip::NoSuchPort("web".into()));
    }

    #[test]
    fn a_copy_of_an_injected_pod_without_its_sidecar_is_told_so() {
        let copy = |port: &str| {
            let annotations = "annotations: {steadfast.dev/injected: 0.1.0, steadfast.dev/routes: 'http=4180:8000'}";
            let ports = format!("[{{containerPort: 8000}}, {{name: http, containerPort: {port}}}]");
            format!(
                "metadata: {{labels: {{{INJECT_LABEL}: 'true'}}, {annotations}}}\nspec: {{containers: [{{name: s, ports: {ports}}}], volumes: [{{name: steadfast-token}}]}}"
            )
        };
        let skip = skipped(&copy("4180"));
        assert_eq!(skip.reason(), "CopiedWithoutSidecar");
        assert!(skip.to_string().contains("let http be 8000 again") && skip.to_string().contains(ROUTES_ANNOTATION), "{skip}");
        assert_eq!(skipped(&copy("9000")), Skip::NameTaken("volume", TOKEN_VOLUME));
        assert!(matches!(decided(&copy("9000").replace("{name: steadfast-token}", "{name: x}")), Decision::Inject(_)), "the annotations alone harm nobody");
    }

    #[test]
    fn what_annotations_say_of_the_sidecars_times_is_a_time_or_told() {
        let with = |annotations: &str| SERVER.replace("metadata: {", &format!("metadata: {{annotations: {{{annotations}}}, "));
        let Decision::Inject(plan) = decided(&with("steadfast.dev/upstream-timeout: 1h 30m")) else { panic!() };
        assert_eq!(plan.timeouts, [("upstream-timeout", "90m".parse().unwrap())]);
        for (annotation, text) in [("header-timeout", "0s"), ("upstream-timeout", "ever"), ("upstream-timeout", "30d")] {
            let skip = skipped(&with(&format!("steadfast.dev/{annotation}: {text}")));
            assert!(skip.reason() == "BadTimeout" && skip.to_string().contains(annotation) && skip.to_string().contains("such as 10m"), "{skip}");
        }
    }

    #[test]
    fn what_annotations_say_of_the_sidecars_resources_is_a_quantity_or_told() {
        let with = |annotations: &str| SERVER.replace("metadata: {", &format!("metadata: {{annotations: {{{annotations}}}, "));
        let Decision::Inject(plan) = decided(&with("steadfast.dev/proxy-cpu: 10m, steadfast.dev/proxy-memory-limit: 1Gi")) else { panic!() };
        let said = Overrides { cpu: Some("10m".into()), memory_limit: Some("1Gi".into()), ..Overrides::default() };
        assert_eq!(plan.resources, said);
        for (annotations, words) in [
            ("steadfast.dev/proxy-cpu: much", ["annotation steadfast.dev/proxy-cpu is \"much\"", "50m"]),
            ("steadfast.dev/proxy-memory-limit: 1GB", ["annotation steadfast.dev/proxy-memory-limit is \"1GB\"", "64Mi"]),
            ("steadfast.dev/proxy-cpu: '2', steadfast.dev/proxy-cpu-limit: '1'", ["steadfast.dev/proxy-cpu 2 is more than", "steadfast.dev/proxy-cpu-limit 1"]),
        ] {
            let skip = skipped(&with(annotations));
            assert!(skip.reason() == "BadResources" && words.iter().all(|word| skip.to_string().contains(word)), "{skip}");
        }
    }

    #[test]
    fn a_pod_that_declares_no_port_is_told_apart_and_may_be_left_out_by_its_label() {
        let of = |ports: &str| skipped(&format!("metadata: {{labels: {{{INJECT_LABEL}: 'true'}}}}\nspec: {{containers: [{{name: worker{ports}}}]}}"));
        assert_eq!((of(""), of(", ports: [{name: dns, containerPort: 53, protocol: UDP}]")), (Skip::NoPort, Skip::NoPort));
        assert_eq!(of(", ports: [{containerPort: 8000}]"), Skip::NoNamedPort);
        for skip in [
            Skip::NoPort,
            Skip::NoNamedPort,
            Skip::NoHttpPort(vec!["redis".into()]),
            Skip::HostNetwork,
            Skip::Windows,
            Skip::StaticPod,
            Skip::RedirectNotAllowed,
        ] {
            assert!(skip.to_string().contains("steadfast.dev/inject: \"false\""), "{skip}");
        }
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
        let affinity = |values: &str| {
            let term = format!("{{matchExpressions: [{{key: kubernetes.io/os, operator: In, values: [{values}]}}]}}");
            format!("spec:\n  affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{term}]}}}}}}")
        };
        assert_eq!(with("spec:", &affinity("windows")), Skip::Windows);
        assert!(matches!(decided(&SERVER.replace("spec:", &affinity("windows, linux"))), Decision::Inject(_)));
        assert_eq!(with("spec:", "spec:\n  securityContext: {windowsOptions: {hostProcess: true}}"), Skip::Windows);
        assert_eq!(with("image: x", "image: x\n      securityContext: {windowsOptions: {hostProcess: true}}"), Skip::Windows);
        assert_eq!(with("name: server", "name: steadfast-proxy"), Skip::NameTaken("container", SIDECAR));
        assert_eq!(with("spec:", "spec:\n  volumes: [{name: steadfast-token, emptyDir: {}}]"), Skip::NameTaken("volume", TOKEN_VOLUME));
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
        let mut taken = with(REDIRECT);
        taken.spec.as_mut().unwrap().init_containers = Some(vec![Container { name: REDIRECTOR.to_owned(), ..Container::default() }]);
        assert_eq!(decide(&taken, "default", &BTreeMap::new(), true), Decision::Skip(Skip::NameTaken("container", REDIRECTOR)));
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
        for (probe, port, path) in [
            ("{tcpSocket: {port: grpc}}", 8001, None),
            ("{exec: {command: [x]}}", 8000, None),
            ("{grpc: {port: 8001}}", 8000, None),
            ("{httpGet: {port: 8001, scheme: HTTPS}}", 8000, None),
            ("{httpGet: {port: 8000, host: example.com}}", 8000, None),
            ("{httpGet: {port: 8002}}", 8002, Some("/")),
        ] {
            let readiness = looked(probe);
            assert_eq!((readiness.port, readiness.path.as_deref()), (port, path), "{probe}");
        }
    }

    fn looked(probe: &str) -> Readiness {
        let Decision::Inject(plan) = decided(&SERVER.replace("{httpGet: {path: /v2/health/ready, port: http}}", probe)) else { panic!() };
        plan.readiness
    }

    #[test]
    fn the_sidecar_is_as_patient_as_the_probe() {
        for (probe, seconds) in [
            ("{httpGet: {port: http}}", (1, 30)),
            ("{httpGet: {port: http}, timeoutSeconds: 5, failureThreshold: 6, periodSeconds: 2}", (5, 12)),
            ("{exec: {command: [x]}, timeoutSeconds: 7, failureThreshold: 1, periodSeconds: 5}", (7, 5)),
            ("{httpGet: {port: http}, timeoutSeconds: 100000, failureThreshold: 2147483647, periodSeconds: 2}", (3_600, 86_400)),
        ] {
            let readiness = looked(probe);
            assert_eq!((readiness.timeout_seconds, readiness.patience_seconds), seconds, "{probe}");
        }
    }

    #[test]
    fn a_path_is_asked_for_as_kubelet_does() {
        for (path, target) in [
            ("ready", "/ready"),
            ("/ready?model=a&b=%20", "/ready?model=a&b=%20"),
            ("my path", "/my%20path"),
            ("/100%", "/100%25"),
            ("/a#b", "/a"),
            ("/ü", "/%C3%BC"),
            ("/$(POD_NAME)", "/%24(POD_NAME)"),
            ("/{x}|y", "/%7Bx%7D%7Cy"),
        ] {
            let path = looked(&format!("{{httpGet: {{port: http, path: {path:?}}}}}")).path.unwrap();
            assert_eq!(path, target);
            assert_eq!(path.parse::<http::uri::PathAndQuery>().unwrap(), *target, "the sidecar takes it");
        }
    }

    #[test]
    fn ports_that_speak_something_else_are_left_alone_unless_they_are_chosen() {
        let named = |name: &str, more: &str| {
            format!(
                "metadata: {{labels: {{{INJECT_LABEL}: 'true'}}{more}}}\nspec: {{containers: [{{name: s, ports: [{{name: {name}, containerPort: 6379}}]}}]}}"
            )
        };
        for name in ["redis", "tcp-redis", "postgres", "mysql0", "kafka-broker", "amqp", "tls-web", "grpcs", "client-etcd"] {
            assert_eq!(skipped(&named(name, "")), Skip::NoHttpPort(vec![name.to_owned()]));
            let chosen = format!(", annotations: {{{PORTS_ANNOTATION}: {name}}}");
            assert!(matches!(decided(&named(name, &chosen)), Decision::Inject(_)), "{name}");
        }
        for name in [
            "http",
            "http-redis",
            "http1",
            "http2-kafka",
            "grpc",
            "h2c",
            "web",
            "rest",
            "predict",
            "api",
            "inference",
            "queue-port",
            "user-port",
            "server-http",
        ] {
            assert!(matches!(decided(&named(name, "")), Decision::Inject(_)), "{name}");
        }
        let said = skipped(&named("redis", "")).to_string();
        assert!(said.contains("redis") && said.contains(PORTS_ANNOTATION), "{said}");
        let by_tls = "{httpGet: {path: /, port: http, scheme: HTTPS}}";
        let Decision::Inject(plan) = decided(&SERVER.replace("{httpGet: {path: /v2/health/ready, port: http}}", by_tls)) else { panic!() };
        assert_eq!(plan.routes.iter().map(|route| route.name.as_str()).collect::<Vec<_>>(), ["grpc"]);
        assert_eq!(plan.left, [("http".to_owned(), 8000), ("http-metrics".to_owned(), 8002)]);
    }

    #[test]
    fn names_that_stand_for_two_ports_and_too_many_are_not_taken() {
        let twice = "    - {name: other, image: x, ports: [{name: http, containerPort: 9000}]}\n";
        assert_eq!(skipped(&format!("{SERVER}{twice}")), Skip::PortTwice("http".into()));
        let ports = |count: i32| (0..count).map(|at| format!("{{name: http-{at}x, containerPort: {}}}", 9000 + at)).collect::<Vec<_>>().join(", ");
        let many = |count: i32| format!("metadata: {{labels: {{{INJECT_LABEL}: 'true'}}}}\nspec: {{containers: [{{name: s, ports: [{}]}}]}}", ports(count));
        assert!(matches!(decided(&many(10)), Decision::Inject(_)));
        assert_eq!(skipped(&many(11)), Skip::TooManyPorts(11));
        let said = skipped(&many(11)).to_string();
        assert!(said.contains("11") && said.contains(PORTS_ANNOTATION), "{said}");
    }

    #[test]
    fn a_number_that_is_declared_twice_leads_to_one_place_when_it_is_redirected() {
        let twice = SERVER.replace("8001", "8000").replace("metadata: {", &format!("metadata: {{annotations: {{{INTERCEPTION_ANNOTATION}: {REDIRECT}}}, "));
        let Decision::Inject(plan) = decide(&pod(&twice), "default", &BTreeMap::new(), true) else { panic!() };
        let routes: Vec<_> = plan.routes.iter().map(|route| (route.name.as_str(), route.server, route.sidecar, route.probes)).collect();
        assert_eq!(routes, [("http", 8000, 4180, Some(4200)), ("grpc", 8000, 4180, Some(4200))]);
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
}
