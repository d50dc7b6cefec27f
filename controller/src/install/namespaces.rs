//! Namespaces: the controller's own, and those of model servers. Pods are tried in them by dry run, so that PodSecurity, quotas, limits and other webhooks answer
//! for themselves.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{Finding, Options, objects::may, words};
use crate::{
    reconcile::pods::{ENFORCE_LABEL as ENFORCE, FAULTS_ALLOWED, FAULTS_LABEL, is_privileged},
    webhook::{
        allowed::{self, CutOff, Servers},
        decide::{Decision, INJECT_LABEL, decide, is_meaningless},
        flags::RunAsUser,
        past::{self, Taken},
        patch::{SidecarResources, SidecarSettings, patch},
        resources::Overrides,
    },
};

/// The Deployment of the chart and of the plain manifests.
const CONTROLLER: &str = "steadfast-controller";
/// Of pods that are tried; none is made.
const POD: &str = "steadfast-install-check";
/// Namespaces of model servers that are looked at.
const TARGETS_MAX: usize = 50;
/// Pods of one of them.
const PODS_MAX: u32 = 500;
/// Network policies of all namespaces.
const POLICIES_MAX: u32 = 5_000;

/// A namespace, as far as it can be seen.
pub(super) enum Seen {
    There(Box<Namespace>),
    Absent,
    Unknown(String),
}

impl Seen {
    /// What cannot be seen is taken to be there: what is tried in it then tells.
    pub const fn is_there(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}

pub(super) async fn get(client: &Client, name: &str) -> Seen {
    match Api::<Namespace>::all(client.clone()).get_opt(name).await {
        Ok(Some(namespace)) => Seen::There(Box::new(namespace)),
        Ok(None) => Seen::Absent,
        Err(error) => Seen::Unknown(words(&error)),
    }
}

/// Whether the pods of the controller, and of the node agent, would be let in.
pub(super) async fn of_controller(client: &Client, seen: &Seen, objects: &[DynamicObject], options: &Options) -> Vec<Finding> {
    let name = &options.namespace;
    let namespace = match seen {
        Seen::Absent => return vec![Finding::ok("namespace", format!("{name} is not there yet: it is made with the installation"))],
        Seen::Unknown(why) => {
            return vec![Finding::warning("namespace", format!("{name} could not be looked at: {why}"), "ask as somebody who may get namespaces")];
        }
        Seen::There(namespace) => namespace,
    };
    let level = namespace.labels().get(ENFORCE).map(String::as_str);
    if options.node_agent
        && let Some(level) = level.filter(|level| *level != "privileged")
    {
        return vec![Finding::blocked(
            "namespace",
            format!("{name} enforces PodSecurity level {level}, which refuses the node agent: it uses its node's network"),
            format!("kubectl label namespace {name} {ENFORCE}=privileged --overwrite, or leave the node agent out"),
        )];
    }
    if !may(client, "create", "", "pods", Some(name)).await.unwrap_or(false) {
        return vec![Finding::warning(
            "namespace",
            format!("whether {name} lets the controller's pods in could not be tried: you may not create pods there"),
            "look at its quotas and limits: the controller asks for no limit on CPU",
        )];
    }
    let workloads = objects.iter().filter(|object| object.types.as_ref().is_some_and(|types| ["Deployment", "DaemonSet"].contains(&types.kind.as_str())));
    let mut findings = Vec::new();
    for workload in workloads {
        let mut pod = workload.data["spec"]["template"].clone();
        // Its account is made with it.
        pod["spec"]["serviceAccountName"] = "default".into();
        run_as(&mut pod, options.run_as_user);
        if let Err(error) = admit(client, name, pod).await {
            let why = words(&error);
            let next = if why.contains("runAsUser") {
                remedy(&why)
            } else {
                "change that rule, give the namespace a LimitRange with defaults, or take another namespace (--namespace)".to_owned()
            };
            findings.push(Finding::blocked("namespace", format!("{name} would refuse the pods of {}: {why}", workload.name_any()), next));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("namespace", format!("{name} is there and lets the controller's pods in")));
    }
    findings
}

/// A pod of the chart's as it would be with another `runAsUser`, where it names one.
fn run_as(pod: &mut Value, user: Option<RunAsUser>) {
    let context = pod["spec"]["securityContext"].as_object_mut().filter(|context| context.contains_key("runAsUser"));
    match context.zip(user) {
        Some((context, RunAsUser(Some(user)))) => drop(context.insert("runAsUser".to_owned(), user.into())),
        Some((context, RunAsUser(None))) => drop(context.remove("runAsUser")),
        None => {}
    }
}

/// Tries a pod. Its name and labels are ours, so that no webhook of an earlier installation takes it for a server.
async fn admit(client: &Client, namespace: &str, mut pod: Value) -> Result<(), kube::Error> {
    pod["metadata"]["name"] = POD.into();
    pod["metadata"]["labels"][INJECT_LABEL] = "false".into();
    let pod: Pod = serde_json::from_value(pod).map_err(kube::Error::SerdeError)?;
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    Api::namespaced(client.clone(), namespace).create(&parameters, &pod).await.map(drop)
}

pub(super) async fn of_targets(client: &Client, options: &Options) -> Vec<Finding> {
    let mut targets = Vec::new();
    if options.targets.is_empty() {
        match Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await {
            Ok(all) => targets.extend(all.items.into_iter().filter(|namespace| {
                namespace.labels().get(INJECT_LABEL).is_some_and(|asks| asks != "false")
                    || namespace.labels().get(FAULTS_LABEL).is_some_and(|allowed| allowed == FAULTS_ALLOWED)
            })),
            Err(error) => {
                return vec![Finding::warning(
                    "targets",
                    format!("namespaces could not be listed: {}", words(&error)),
                    "name those of your model servers: --target NAME",
                )];
            }
        }
    }
    let mut findings = Vec::new();
    for name in &options.targets {
        match get(client, name).await {
            Seen::There(namespace) => targets.push(*namespace),
            Seen::Absent => findings.push(Finding::warning("targets", format!("there is no namespace {name}"), format!("kubectl create namespace {name}"))),
            Seen::Unknown(why) => {
                findings.push(Finding::warning("targets", format!("{name} could not be looked at: {why}"), "ask as somebody who may get namespaces"));
            }
        }
    }
    if targets.len() > TARGETS_MAX {
        findings.push(Finding::warning(
            "targets",
            format!("{} namespaces opt in; {TARGETS_MAX} were looked at", targets.len()),
            "name those that matter: --target NAME",
        ));
        targets.truncate(TARGETS_MAX);
    }
    if targets.is_empty() && findings.is_empty() {
        findings.push(Finding::ok("targets", "no namespace opts in yet; --target NAME looks at one before it does"));
    }
    let installed = Installed::ask(client, options).await;
    // Clients are in any namespace; who may not see them all sees those of the target's own.
    let policies = Api::<NetworkPolicy>::all(client.clone()).list(&ListParams::default().limit(POLICIES_MAX)).await.map(|all| all.items).unwrap_or_default();
    for target in &targets {
        findings.extend(mislabelled(target));
        findings.extend(left_out(&target.name_any(), &installed.watched));
        findings.extend(of_target(client, target, &policies, &installed, &options.namespace).await);
    }
    findings
}

/// What a controller that is there gives its sidecars, and where it looks; without one, or where it cannot be seen: what would be installed.
#[derive(Debug)]
struct Installed {
    resources: SidecarResources,
    run_as_user: RunAsUser,
    /// Pods may be redirected.
    redirects: bool,
    /// The namespaces that it looks at; none: all of them.
    watched: Vec<String>,
}

impl Installed {
    async fn ask(client: &Client, options: &Options) -> Self {
        let deployment = Api::<Deployment>::namespaced(client.clone(), &options.namespace).get_opt(CONTROLLER).await.ok().flatten();
        let containers = deployment.and_then(|deployment| deployment.spec).and_then(|spec| spec.template.spec).map(|spec| spec.containers).unwrap_or_default();
        Self::read(&containers.iter().flat_map(|container| container.args.iter().flatten()).map(String::as_str).collect::<Vec<_>>(), options)
    }

    /// Of the controller's arguments; what was said to us counts more.
    fn read(args: &[&str], options: &Options) -> Self {
        let value = |flag: &str| args.iter().find_map(|arg| arg.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('='));
        let quantity = |flag: &str| value(flag).map(str::to_owned);
        let there = Overrides {
            cpu: quantity("proxy-cpu"),
            cpu_limit: quantity("proxy-cpu-limit"),
            memory: quantity("proxy-memory"),
            memory_limit: quantity("proxy-memory-limit"),
        };
        Self {
            resources: SidecarResources::default().with(&there).with(&options.proxy),
            run_as_user: options.run_as_user.or_else(|| value("run-as-user")?.parse().ok()).unwrap_or(RunAsUser::DEFAULT),
            redirects: value("redirect-image").is_some(),
            watched: value("watch-namespaces").into_iter().flat_map(|names| names.split(',')).map(str::to_owned).collect(),
        }
    }

    fn may_redirect(&self, target: &Namespace) -> bool {
        self.redirects && is_privileged(target.labels())
    }
}

fn mislabelled(target: &Namespace) -> Option<Finding> {
    let value = target.labels().get(INJECT_LABEL).filter(|value| is_meaningless(value))?;
    let name = target.name_any();
    Some(Finding::warning(
        "targets",
        format!("label {INJECT_LABEL} of {name} is {value:?}, which means nothing: its pods are given no sidecar"),
        format!("kubectl label namespace {name} {INJECT_LABEL}=true --overwrite, or take the label away"),
    ))
}

fn left_out(target: &str, watched: &[String]) -> Option<Finding> {
    if watched.is_empty() || watched.iter().any(|name| name == target) {
        return None;
    }
    let mut all = watched.to_vec();
    all.push(target.to_owned());
    Some(Finding::warning(
        "targets",
        format!(
            "the controller that is there does not look at {target}, but at {} alone (watchNamespaces): no sidecar, policy or test comes to anything there",
            watched.join(", ")
        ),
        format!("helm upgrade with --reuse-values --set 'watchNamespaces={{{}}}'", all.join(",")),
    ))
}

async fn of_target(client: &Client, target: &Namespace, everywhere: &[NetworkPolicy], installed: &Installed, system: &str) -> Vec<Finding> {
    let name = &target.name_any();
    let mut findings = Vec::new();
    match may(client, "create", "", "pods", Some(name)).await {
        Ok(true) => findings.extend(sidecar(client, name, installed).await),
        Ok(false) => findings.push(Finding::warning(
            "targets",
            format!("whether {name} lets the sidecar in could not be tried: you may not create pods there"),
            "ask somebody who may, or look at its quotas and limits: the sidecar asks for no limit on CPU",
        )),
        Err(error) => findings.push(Finding::warning("targets", format!("rights in {name} could not be asked for: {}", words(&error)), "ask again")),
    }
    let pods = Api::<Pod>::namespaced(client.clone(), name).list(&ListParams::default().limit(PODS_MAX)).await;
    if let Ok(policies) = Api::<NetworkPolicy>::namespaced(client.clone(), name).list(&ListParams::default()).await {
        let pods = pods.as_ref().map_or(&[][..], |pods| &pods.items);
        findings.extend(cut_off(name, &policies.items, pods));
        let elsewhere = everywhere.iter().filter(|policy| policy.namespace().as_deref() != Some(name));
        let clients: Vec<&NetworkPolicy> = policies.items.iter().chain(elsewhere).collect();
        findings.extend(kept_from(target, &clients, pods));
        let egress: Vec<String> = policies.items.iter().filter(|policy| narrows_egress(policy)).map(ResourceExt::name_any).collect();
        if !egress.is_empty() {
            findings.push(Finding::warning(
                "targets",
                format!("network policies of {name} say whom its pods may dial: {}", egress.join(", ")),
                format!("let pods with sidecars dial namespace {system}, port 4193, or no policy and no verdict reaches them"),
            ));
        }
    }
    if let Ok(pods) = pods {
        findings.extend(skipped(name, &pods.items, installed.may_redirect(target)));
    }
    findings
}

fn narrows_egress(policy: &NetworkPolicy) -> bool {
    let spec = policy.spec.clone().unwrap_or_default();
    spec.policy_types.iter().flatten().any(|kind| kind == "Egress") || spec.egress.is_some()
}

/// The ports of a pod that a sidecar takes over by their names, or has taken over.
fn taken(namespace: &str, pod: &Pod) -> Vec<Taken> {
    match decide(pod, namespace, &asks(), false) {
        Decision::Inject(plan) => {
            let by_name = plan.routes.into_iter().filter(|route| route.is_named && route.probes.is_none());
            by_name.map(|route| Taken { name: route.name, sidecar: route.sidecar, server: route.server }).collect()
        }
        Decision::Already if !past::is_redirected(pod.annotations()) => past::taken(pod.annotations()),
        Decision::Already | Decision::NotAsked | Decision::Skip(_) => Vec::new(),
    }
}

/// Policies that let users in by a server's number: with the sidecar they come by another, and would be cut off.
fn cut_off(namespace: &str, policies: &[NetworkPolicy], pods: &[Pod]) -> Vec<Finding> {
    let pods: Vec<_> = pods.iter().map(|pod| (pod, taken(namespace, pod))).collect();
    let mut findings = Vec::new();
    for policy in policies {
        let selected = pods.iter().filter(|(pod, _)| allowed::selects(policy, pod.labels()));
        let cut: BTreeMap<CutOff, String> =
            selected.flat_map(|(pod, taken)| allowed::cut_off(policy, taken).into_iter().map(|cut| (cut, pod.name_any()))).collect();
        let name = policy.name_any();
        findings.extend(cut.into_iter().map(|(CutOff { rule, number, name: port }, pod)| {
            Finding::warning(
                "targets",
                format!("network policy {name} of {namespace} lets users in by number {number}; at a pod with the sidecar, such as {pod}, they arrive by the port named {port}, and are cut off"),
                format!("add {{port: {port}, protocol: TCP}} to spec.ingress[{rule}].ports of {name}, beside the number; `steadfast inject` does it in manifests"),
            )
        }));
    }
    findings
}

/// Policies that let clients dial a server's number alone, wherever the clients are.
fn kept_from(target: &Namespace, policies: &[&NetworkPolicy], pods: &[Pod]) -> Vec<Finding> {
    let namespace = target.name_any();
    let pods: Vec<_> = pods.iter().map(|pod| (pod, taken(&namespace, pod))).collect();
    let mut findings = Vec::new();
    for policy in policies {
        let (name, of) = (policy.name_any(), policy.namespace().unwrap_or_default());
        let kept: BTreeMap<CutOff, String> = pods
            .iter()
            .flat_map(|(pod, taken)| {
                let servers = Servers { is_here: of == namespace, namespace_labels: target.labels(), labels: pod.labels(), taken };
                allowed::kept_from(policy, &servers).into_iter().map(|cut| (cut, pod.name_any()))
            })
            .collect();
        findings.extend(kept.into_iter().map(|(CutOff { rule, number, name: port }, pod)| {
            Finding::warning(
                "targets",
                format!("network policy {name} of {of} lets its pods dial number {number}; a pod with the sidecar, such as {pod} of {namespace}, is dialled by the port named {port}, and they are cut off"),
                format!("add {{port: {port}, protocol: TCP}} to spec.egress[{rule}].ports of {name}, beside the number; `steadfast inject` does it in manifests"),
            )
        }));
    }
    findings
}

/// Labels of a namespace that asks.
fn asks() -> BTreeMap<String, String> {
    BTreeMap::from([(INJECT_LABEL.to_owned(), "true".to_owned())])
}

/// A server as the restricted standard wants it, with limits enough for every quota that asks for some.
fn server() -> Pod {
    let pod = json!({
        "metadata": { "name": POD, "labels": { INJECT_LABEL: "true" } },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "server", "image": POD, "ports": [{ "name": "http", "containerPort": 8000 }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "200m", "memory": "256Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    serde_json::from_value(pod).unwrap_or_default()
}

/// The same pod as kubelet calls Guaranteed.
fn guaranteed() -> Pod {
    let mut pod = server();
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        container.resources = serde_json::from_value(json!({ "limits": { "cpu": "200m", "memory": "256Mi" } })).ok();
    }
    pod
}

/// A pod with the sidecar in it.
fn injected(pod: &Pod, installed: &Installed) -> Option<Value> {
    let Decision::Inject(plan) = decide(pod, POD, &BTreeMap::new(), false) else { return None };
    let settings = SidecarSettings {
        image: POD.to_owned(),
        image_pull_policy: None,
        run_as_user: installed.run_as_user,
        controller: None,
        resources: installed.resources.clone(),
        leave_seconds: 0,
        redirect: None,
    };
    let mut value = serde_json::to_value(pod).ok()?;
    json_patch::patch(&mut value, &patch(pod, &plan, &settings)).ok()?;
    Some(value)
}

/// Pods of both classes that the sidecar's resources differ in.
async fn sidecar(client: &Client, name: &str, installed: &Installed) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (kind, pod) in [("a small pod", server()), ("a small pod of the class Guaranteed", guaranteed())] {
        let Some(with) = injected(&pod, installed) else {
            return vec![Finding::warning("targets", "no pod could be made up to try", "this is a mistake in this program")];
        };
        let Err(refused) = admit(client, name, with).await else { continue };
        let alone = serde_json::to_value(pod).unwrap_or_default();
        findings.push(match admit(client, name, alone).await {
            Ok(()) => {
                let why = words(&refused);
                Finding::blocked("targets", format!("{name} lets {kind} in, but not with the sidecar: {why}"), remedy(&why))
            }
            Err(error) => {
                let SidecarResources { cpu, memory, memory_limit, .. } = &installed.resources;
                Finding::warning(
                    "targets",
                    format!("{name} refuses {kind} even without the sidecar: {}", words(&error)),
                    format!("look whether that concerns your model servers; the sidecar asks for {cpu} of CPU and {memory} of memory, {memory_limit} at most, and no privilege"),
                )
            }
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok("targets", format!("{name} lets a pod with the sidecar in, also of the class Guaranteed")));
    }
    findings
}

/// What helps against the API server's complaint about a sidecar.
fn remedy(why: &str) -> String {
    if why.contains("limits.cpu") {
        return "the sidecar has no limit of CPU, and a quota of limits.cpu wants one: give the namespace a LimitRange with a default for containers, or the pods the annotation steadfast.dev/proxy-cpu-limit"
            .to_owned();
    }
    if why.contains("runAsUser") {
        return "install with --set runAsUser=null (an installation that is there: helm upgrade with --reuse-values and it): they then have the user that the platform draws; --run-as-user none tries it here"
            .to_owned();
    }
    "other values of the chart's proxy.cpu, proxy.cpuLimit, proxy.memory and proxy.memoryLimit (--proxy-cpu and so on try them here; an installation that is there: helm upgrade with --reuse-values), \
     the annotations steadfast.dev/proxy-cpu and so on for single pods, or another rule in the namespace"
        .to_owned()
}

/// Pods that are there and would not have the sidecar, by reason.
fn skipped(namespace: &str, pods: &[Pod], may_redirect: bool) -> Vec<Finding> {
    let asks = asks();
    let mut reasons: BTreeMap<&'static str, (usize, String, String)> = BTreeMap::new();
    for pod in pods {
        if let Decision::Skip(skip) = decide(pod, namespace, &asks, may_redirect) {
            reasons.entry(skip.reason()).or_insert_with(|| (0, pod.name_any(), skip.to_string())).0 += 1;
        }
    }
    let finding = |(reason, (count, example, why)): (&str, (usize, String, String))| {
        let (message, next) = why.split_once(": ").unwrap_or((&why, "leave them without"));
        Finding::warning("targets", format!("{count} pods of {namespace} would be left without the sidecar ({reason}), such as {example}: {message}"), next)
    };
    reasons.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;

    fn options() -> Options {
        Options {
            namespace: "steadfast-system".into(),
            node_agent: false,
            targets: Vec::new(),
            proxy: Overrides::default(),
            run_as_user: None,
            access: Access::default(),
        }
    }

    #[test]
    fn what_is_tried_is_what_is_installed_unless_something_else_was_said() {
        let args = ["controller", "--proxy-cpu=20m", "--proxy-cpu-limit=300m", "--run-as-user=none", "--redirect-image=a", "--watch-namespaces=models,more"];
        let there = Installed::read(&args, &options());
        assert_eq!((there.resources.cpu.as_str(), there.resources.cpu_limit.as_str(), there.resources.memory.as_str()), ("20m", "300m", "64Mi"));
        assert_eq!((there.run_as_user, &there.watched[..]), (RunAsUser(None), &["models".to_owned(), "more".to_owned()][..]));
        let namespace = |labels: Value| -> Namespace { serde_json::from_value(json!({ "metadata": { "name": "models", "labels": labels } })).unwrap() };
        assert!(there.may_redirect(&namespace(json!({}))) && !there.may_redirect(&namespace(json!({ ENFORCE: "baseline" }))));
        let said = Options { proxy: Overrides { cpu: Some("5m".into()), ..Overrides::default() }, run_as_user: Some(RunAsUser::DEFAULT), ..options() };
        let tried = Installed::read(&args, &said);
        assert_eq!((tried.resources.cpu.as_str(), tried.run_as_user), ("5m", RunAsUser::DEFAULT));
        let none = Installed::read(&[], &options());
        assert!(none.resources == SidecarResources::default() && none.watched.is_empty() && !none.may_redirect(&namespace(json!({}))));
    }

    #[test]
    fn a_target_whose_label_means_nothing_is_told_of() {
        let target =
            |value: &str| -> Namespace { serde_json::from_value(json!({ "metadata": { "name": "models", "labels": { INJECT_LABEL: value } } })).unwrap() };
        assert!(mislabelled(&target("yes")).is_some_and(|finding| finding.message.contains("\"yes\"") && finding.next.unwrap().contains("--overwrite")));
        assert_eq!((mislabelled(&target("true")), mislabelled(&target("false"))), (None, None));
    }

    #[test]
    fn the_controllers_pods_are_tried_as_the_user_that_was_said() {
        let tried = |user: Option<&str>, context: Value| {
            let mut pod = json!({ "spec": { "securityContext": context } });
            run_as(&mut pod, user.map(|user| user.parse().unwrap()));
            pod["spec"]["securityContext"].clone()
        };
        let named = json!({ "runAsNonRoot": true, "runAsUser": 65532 });
        assert_eq!(tried(None, named.clone()), named);
        assert_eq!(tried(Some("7"), named.clone()), json!({ "runAsNonRoot": true, "runAsUser": 7 }));
        assert_eq!(tried(Some("none"), named), json!({ "runAsNonRoot": true }));
        assert_eq!(tried(Some("7"), json!({})), json!({}), "the agent is root");
    }

    #[test]
    fn a_refusal_is_told_with_what_helps_against_it() {
        assert!(remedy("failed quota: q: must specify limits.cpu for: steadfast-proxy").contains("steadfast.dev/proxy-cpu-limit"));
        assert!(remedy(".initContainers[0].runAsUser: Invalid value: 65532").contains("runAsUser=null"));
        let other = remedy("maximum memory usage per Container is 128Mi");
        assert!(other.contains("--proxy-cpu") && other.contains("--reuse-values") && other.contains("proxy.memoryLimit"), "{other}");
    }

    #[test]
    fn a_pod_that_asks_to_be_redirected_where_it_may_is_not_told_of() {
        let container = json!({ "name": "a", "ports": [{ "name": "http", "containerPort": 8000 }] });
        let annotations = json!({ "steadfast.dev/interception": "redirect" });
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "p", "annotations": annotations }, "spec": { "containers": [container] } })).unwrap();
        assert_eq!(skipped("models", std::slice::from_ref(&pod), true), []);
        assert!(skipped("models", &[pod], false)[0].message.contains("RedirectNotAllowed"));
    }

    #[test]
    fn the_pod_that_is_tried_has_the_sidecar() {
        let sidecar = |pod: &Pod| {
            let pod = injected(pod, &Installed::read(&[], &options())).expect("it can be injected");
            assert_eq!(pod["spec"]["initContainers"][0]["name"], "steadfast-proxy");
            pod["spec"]["initContainers"][0]["resources"].clone()
        };
        assert_eq!(sidecar(&server())["limits"]["cpu"], Value::Null);
        let resources = sidecar(&guaranteed());
        assert!(resources["requests"] == resources["limits"] && resources["limits"]["cpu"].is_string(), "{resources}");
    }

    #[test]
    fn a_policy_that_knows_a_number_alone_is_told_with_what_to_add_to_it() {
        let pod = |name: &str, more: Value| -> Pod {
            let mut pod = json!({ "metadata": { "name": name, "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "a", "ports": [{ "name": "http", "containerPort": 8000 }] }] } });
            json_patch::merge(&mut pod, &more);
            serde_json::from_value(pod).unwrap()
        };
        let policy = |port: Value| -> NetworkPolicy {
            let rule = json!({ "ports": [{ "port": port }] });
            serde_json::from_value(json!({ "metadata": { "name": "api" }, "spec": { "podSelector": { "matchLabels": { "app": "x" } }, "ingress": [rule] } }))
                .unwrap()
        };
        let told = |port: Value, pods: &[Pod]| cut_off("models", &[policy(port)], pods);
        let findings = told(json!(8000), &[pod("p", json!({})), pod("q", json!({}))]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].message.contains("api of models") && findings[0].message.contains("8000"), "{findings:?}");
        assert!(findings[0].next.as_deref().is_some_and(|next| next.contains("{port: http, protocol: TCP} to spec.ingress[0].ports of api")), "{findings:?}");
        let annotations = json!({ "steadfast.dev/injected": "0", "steadfast.dev/routes": "http=4180:8000" });
        let injected = json!({ "metadata": { "annotations": annotations }, "spec": { "initContainers": [{ "name": "steadfast-proxy" }] } });
        assert_eq!(told(json!(8000), &[pod("p", injected)]).len(), 1, "it is cut off already");
        assert_eq!(told(json!("http"), &[pod("p", json!({}))]), []);
        for other in [json!({ "metadata": { "labels": { "app": "y" } } }), json!({ "metadata": { "labels": { INJECT_LABEL: "false" } } })] {
            assert_eq!(told(json!(8000), &[pod("p", other)]), []);
        }
    }

    #[test]
    fn a_policy_of_clients_that_knows_a_number_alone_is_told_of_wherever_they_are() {
        let pod = json!({ "metadata": { "name": "p", "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "a", "ports": [{ "name": "http", "containerPort": 8000 }] }] } });
        let pods: Vec<Pod> = vec![serde_json::from_value(pod).unwrap()];
        let target: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": "models", "labels": { "kubernetes.io/metadata.name": "models" } } })).unwrap();
        let policy = |namespace: &str, to: Value| -> NetworkPolicy {
            let rule = json!({ "to": [to], "ports": [{ "port": 8000 }] });
            let spec = json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [rule] });
            serde_json::from_value(json!({ "metadata": { "name": "out", "namespace": namespace }, "spec": spec })).unwrap()
        };
        let told = |namespace: &str, to: Value| kept_from(&target, &[&policy(namespace, to)], &pods);
        let findings = told("models", json!({ "podSelector": { "matchLabels": { "app": "x" } } }));
        assert!(findings.len() == 1 && findings[0].message.contains("out of models") && findings[0].message.contains("8000"), "{findings:?}");
        assert!(findings[0].next.as_deref().is_some_and(|next| next.contains("to spec.egress[0].ports of out")), "{findings:?}");
        assert_eq!(told("web", json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "models" } } })).len(), 1);
        assert_eq!(told("web", json!({ "podSelector": {} })), []);
    }

    #[test]
    fn a_target_that_the_controller_does_not_look_at_is_told_of() {
        let watched = ["models".to_owned(), "more".to_owned()];
        assert_eq!((left_out("models", &watched), left_out("mix", &[])), (None, None));
        let finding = left_out("mix", &watched).expect("it is ignored");
        assert!(
            finding.severity == super::super::Severity::Warning && finding.message.contains("does not look at mix, but at models, more alone"),
            "{finding:?}"
        );
        assert_eq!(finding.next.as_deref(), Some("helm upgrade with --reuse-values --set 'watchNamespaces={models,more,mix}'"));
    }

    #[test]
    fn pods_that_would_be_skipped_are_told_by_reason_with_what_would_be_right() {
        let pod = |spec: Value| -> Pod { serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap() };
        let taken = json!({ "containers": [{ "name": "a", "ports": [{ "name": "http", "containerPort": 8000 }, { "containerPort": 4179 }] }] });
        let host = json!({ "hostNetwork": true, "containers": [{ "name": "a" }] });
        let good = json!({ "containers": [{ "name": "a", "ports": [{ "name": "http", "containerPort": 8000 }] }] });
        let findings = skipped("models", &[pod(taken), pod(host.clone()), pod(host), pod(good)], false);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].message.starts_with("2 pods") && findings[0].message.contains("HostNetwork"), "{findings:?}");
        assert!(findings[1].message.contains("4179") && findings[1].next.as_deref().is_some_and(|next| next.contains("another port")), "{findings:?}");
    }
}
