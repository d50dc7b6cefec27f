//! A real cluster as a platform: watches become changes, orders become policies and API calls, and everything ends by itself should this process be gone.
//!
//! ```text
//!  users ─▶ Service (ClusterIP) ─▶ sidecar ─▶ model server     pods, endpoints, nodes: watched by [facts]
//!                                     │
//!                                     ▼ policies, evidence
//!                                crate::serve                  [orders]: faults in force     [failures]: of nodes and workloads
//! ```
//!
//! What a run changes here is a policy in sidecars, which expires on their own clocks, or a pod deleted, which its workload replaces: neither outlives the run. What
//! could outlive it ([`failures`]) is written down before it is done, and taken back by whoever finds it.

mod bell;
mod facts;
pub mod failures;
mod orders;
mod timers;
mod users;

pub use bell::Bell;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Node, Pod as Object, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector as LabelSelectorOfApi, util::intstr::IntOrString},
};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    runtime::{WatchStreamExt, watcher},
};
use steadfast_api::{
    Span,
    policy::LabelSelector,
    report::PlatformTimers,
    test::{Action, Target},
};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{sleep, timeout},
};

pub use self::users::{InPod, UsersPods};
use self::{
    facts::{Facts, Workload},
    failures::{GivenUp, Means, ledger::Ledger},
    orders::Orders,
    users::Whereabouts,
};
use super::{Change, InForce, Order, Platform, PlatformError, Pod, StepFault, Undone, Users};
use crate::{
    load::{Asked, Record, wire::Begin},
    reconcile::{
        pods::PodFacts,
        resilience_schedule::MayBreak,
        watched::{Again, WATCH_SECONDS, Watched},
    },
    serve::{ingest::Ingest, policy::PolicyHub},
    words::{NAMES_MAX, some},
};

/// Everything is listed well within this, or there is no API server.
const LISTED_WITHIN: Duration = Duration::from_secs(30);
/// And who makes them, where that may be read.
const WORKLOADS_WITHIN: Duration = Duration::from_secs(5);
/// Slices and nodes change together in bursts.
const SETTLE: Duration = Duration::from_millis(5);

/// What a run on a cluster needs to start.
pub struct KubernetesOptions {
    pub means: Arc<Means>,
    pub hub: Arc<PolicyHub>,
    pub ingest: Arc<Ingest>,
    /// Unique among the runs of this controller: owns what is armed.
    pub run: String,
    /// Name of the test.
    pub test: String,
    /// Namespace of the test, and so of its target.
    pub namespace: String,
    pub target: Target,
    /// Who is asked before each fault, if anybody need be.
    pub leave: Option<MayBreak>,
    /// Whoever is on call reads there of faults.
    pub bell: Bell,
    /// Users may have a pod of their own.
    pub users_pods: Option<UsersPods>,
    /// What its steps do.
    pub actions: Vec<Action>,
}

struct Inner {
    client: Client,
    means: Arc<Means>,
    ledger: Ledger,
    hub: Arc<PolicyHub>,
    ingest: Arc<Ingest>,
    run: String,
    namespace: String,
    selector: LabelSelector,
    facts: Mutex<Facts>,
    orders: Orders,
    /// What is being carried out shall be given up.
    giving_up: tokio::sync::watch::Sender<bool>,
    users_pods: Option<UsersPods>,
    /// Some step takes nodes away, or burns their processors.
    hits_nodes: bool,
    whereabouts: Whereabouts,
}

/// See the module. Dropping it ends the watches.
pub struct KubernetesPlatform {
    inner: Arc<Inner>,
    changes: tokio::sync::Mutex<mpsc::UnboundedReceiver<Change>>,
    address: SocketAddr,
    service: String,
    timers: Option<PlatformTimers>,
    leave: Option<MayBreak>,
    bell: Bell,
    tasks: Vec<AbortHandle>,
}

impl KubernetesPlatform {
    /// Finds the target's Service and watches its pods. Returns once all of them are known. Wants `list` and `watch` on pods, Services, EndpointSlices, nodes and
    /// workloads, `delete` on pods, `create` on evictions, and for each kind of failure what the chart's `failures` say.
    pub async fn start(options: KubernetesOptions) -> Result<Self, PlatformError> {
        let KubernetesOptions { means, hub, ingest, run, test, namespace, target, leave, bell, users_pods, actions } = options;
        let client = means.client.clone();
        let Found { service, address, port } = service(&client, &namespace, &target).await?;
        let (tell, changes) = mpsc::unbounded_channel();
        let facts = Mutex::new(Facts::new(tell, port.clone()));
        let ledger = Ledger::new(means.prompt.clone(), &means.namespace, &run, &format!("{namespace}/{test}"));
        let selector = target.selector.clone();
        let (orders, giving_up) = (Orders::default(), tokio::sync::watch::Sender::new(false));
        let whereabouts = Whereabouts::default();
        let inner = Inner {
            client,
            means,
            ledger,
            hub,
            ingest,
            run,
            namespace,
            selector,
            facts,
            orders,
            giving_up,
            users_pods,
            hits_nodes: actions.iter().any(failures::hits_nodes),
            whereabouts,
        };
        let inner = Arc::new(inner);
        let [(pods, mut pods_are), (endpoints, mut endpoints_are), (workloads, mut workloads_are)] = [(); 3].map(|()| tokio::sync::watch::channel(false));
        let tasks = vec![
            tokio::spawn(watch_pods(Arc::clone(&inner), labels(&target.selector), pods)).abort_handle(),
            tokio::spawn(watch_endpoints(Arc::clone(&inner), service.clone(), endpoints)).abort_handle(),
            tokio::spawn(watch_nodes(Arc::clone(&inner))).abort_handle(),
            tokio::spawn(watch_workloads(Arc::clone(&inner), workloads)).abort_handle(),
        ];
        let mut platform = Self { inner, changes: tokio::sync::Mutex::new(changes), address, service, timers: None, leave, bell, tasks };
        let listed = async { pods_are.wait_for(|listed| *listed).await.is_ok() && endpoints_are.wait_for(|listed| *listed).await.is_ok() };
        if !matches!(timeout(LISTED_WITHIN, listed).await, Ok(true)) {
            let why = format!("were not listed within {LISTED_WITHIN:?}: the API server does not answer");
            return Err(PlatformError::new("the target's pods and endpoints", why));
        }
        let _ = timeout(WORKLOADS_WITHIN, workloads_are.wait_for(|listed| *listed)).await;
        if platform.inner.facts().pods().is_empty() {
            return Err(PlatformError::new("spec.target.selector", format!("selects no pod in namespace {}", platform.inner.namespace)));
        }
        let without = platform.inner.without_sidecar();
        if !without.is_empty() {
            let why = format!(
                "selects pods without a sidecar: {}; delete them, and those that take their place will have it (kubectl describe says why it is not there)",
                some(&without, NAMES_MAX)
            );
            return Err(PlatformError::new("spec.target.selector", why));
        }
        let one = platform.inner.facts().pods().first().map(|pod| pod.name.clone()).unwrap_or_default();
        if let Ok(pod) = Api::<Object>::namespaced(platform.inner.client.clone(), &platform.inner.namespace).get(&one).await {
            platform.timers = timers::timers(&platform.inner.client, &pod, &port).await;
        }
        Ok(platform)
    }

    /// What a reader of the report must know of this platform.
    pub fn notes(&self) -> Vec<String> {
        let asks = format!("Users ask by Service {}/{} at {}, each request on a connection of its own", self.inner.namespace, self.service, self.address);
        let of_target = self.inner.facts().nodes();
        let mut notes = self.inner.whereabouts.notes(&asks, &self.inner.means.node, &of_target);
        notes.push(
            "Kubelet tells of containers and readiness about a second late at most; where a sidecar or a user knew better, their word counts.".to_owned(),
        );
        notes
    }
}

impl Drop for KubernetesPlatform {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Inner {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given_up(&self) -> GivenUp {
        GivenUp(self.giving_up.subscribe())
    }

    /// Names of the target's pods that nobody can speak for.
    fn without_sidecar(&self) -> Vec<String> {
        let of_target = |pod: &PodFacts| !pod.has_sidecar && pod.namespace == self.namespace && self.selector.matches(&pod.labels);
        self.means.pods.all().into_iter().filter(of_target).map(|pod| pod.name).collect()
    }

    fn saw(&self, object: &Object) {
        let uid = object.uid().unwrap_or_default();
        // Of a ready pod nobody need ask.
        let held_out = if facts::is_ready(object) { None } else { self.hub.snapshot(&uid).unready.map(|unready| unready.reason) };
        let new = {
            let (mut facts, now) = (self.facts(), Instant::now());
            let new = facts.pod(now, object).is_some();
            facts.held_out(now, &uid, held_out);
            new
        };
        // It may stand where a fault reaches: from its first moment, or from when it got its node.
        if new || object.status.as_ref().is_none_or(|status| status.phase.as_deref() == Some("Pending")) {
            self.orders.cover(self);
        }
    }
}

fn labels(selector: &LabelSelector) -> String {
    selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

async fn watch_pods(inner: Arc<Inner>, selector: String, listed: tokio::sync::watch::Sender<bool>) {
    let api: Api<Object> = Api::namespaced(inner.client.clone(), &inner.namespace);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default().labels(&selector).timeout(WATCH_SECONDS)).backoff(Again::default()));
    let mut anew: Vec<String> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => anew.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                anew.extend(object.uid());
                inner.saw(&object);
            }
            Ok(watcher::Event::InitDone) => {
                // Whoever went while nobody watched.
                let gone: Vec<String> = inner.facts().uids().into_iter().filter(|uid| !anew.contains(uid)).collect();
                for uid in gone {
                    inner.facts().gone(Instant::now(), &uid);
                }
                listed.send_replace(true);
            }
            Ok(watcher::Event::Apply(object)) => inner.saw(&object),
            Ok(watcher::Event::Delete(object)) => {
                if let Some(uid) = object.uid() {
                    inner.facts().gone(Instant::now(), &uid);
                }
            }
            Err(error) => tracing::warn!(%error, "the target's pods cannot be watched now"),
        }
    }
}

async fn watch_endpoints(inner: Arc<Inner>, service: String, listed: tokio::sync::watch::Sender<bool>) {
    let api: Api<EndpointSlice> = Api::namespaced(inner.client.clone(), &inner.namespace);
    let slices = Watched::objects(api, watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}")), |_| {});
    let mut changes = slices.changes();
    slices.listed().await;
    loop {
        let at = Instant::now();
        inner.facts().endpoints(at, &slices.all());
        listed.send_replace(true);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_nodes(inner: Arc<Inner>) {
    fn trim(node: &mut Node) {
        node.spec = None;
        node.annotations_mut().clear();
        node.status = node.status.take().map(|status| k8s_openapi::api::core::v1::NodeStatus { conditions: status.conditions, ..Default::default() });
    }
    let nodes = Watched::objects(Api::<Node>::all(inner.client.clone()), watcher::Config::default(), trim);
    let mut changes = nodes.changes();
    nodes.listed().await;
    loop {
        let at = Instant::now();
        for node in nodes.all() {
            let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            let ready = conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
            inner.facts().node(at, &node.name_any(), ready);
        }
        if changes.changed().await.is_err() {
            return;
        }
        sleep(SETTLE).await;
    }
}

/// Who makes the pods, and how many.
async fn watch_workloads(inner: Arc<Inner>, listed: tokio::sync::watch::Sender<bool>) {
    fn bare<T: ResourceExt>(object: &T) -> bool {
        object.owner_references().iter().all(|owner| owner.controller != Some(true))
    }
    let config = watcher::Config::default;
    let deployments = Watched::objects(Api::<Deployment>::namespaced(inner.client.clone(), &inner.namespace), config(), |object| object.status = None);
    let stateful_sets = Watched::objects(Api::<StatefulSet>::namespaced(inner.client.clone(), &inner.namespace), config(), |object| object.status = None);
    let replica_sets = Watched::objects(Api::<ReplicaSet>::namespaced(inner.client.clone(), &inner.namespace), config(), |object| object.status = None);
    let mut changes = (deployments.changes(), stateful_sets.changes(), replica_sets.changes());
    tokio::join!(deployments.listed(), stateful_sets.listed(), replica_sets.listed());
    loop {
        let at = Instant::now();
        let mut workloads = Vec::new();
        let mut add = |selector: Option<&LabelSelectorOfApi>, replicas: Option<i32>| {
            // One that selects by expressions, or everything, is nobody that this can count with.
            let labels = selector.filter(|selector| selector.match_expressions.as_ref().is_none_or(Vec::is_empty));
            if let Some(labels) = labels.and_then(|selector| selector.match_labels.clone()).filter(|labels| !labels.is_empty()) {
                workloads.push(Workload { labels, replicas: usize::try_from(replicas.unwrap_or(1)).unwrap_or_default() });
            }
        };
        for object in deployments.all() {
            add(object.spec.as_ref().map(|spec| &spec.selector), object.spec.as_ref().and_then(|spec| spec.replicas));
        }
        for object in stateful_sets.all() {
            add(object.spec.as_ref().map(|spec| &spec.selector), object.spec.as_ref().and_then(|spec| spec.replicas));
        }
        for object in replica_sets.all().iter().filter(|object| bare(object.as_ref())) {
            add(object.spec.as_ref().map(|spec| &spec.selector), object.spec.as_ref().and_then(|spec| spec.replicas));
        }
        inner.facts().workloads(at, workloads);
        listed.send_replace(true);
        let changed = tokio::select! {
            changed = changes.0.changed() => changed,
            changed = changes.1.changed() => changed,
            changed = changes.2.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The Service that leads users to the target.
#[derive(Clone)]
struct Found {
    service: String,
    address: SocketAddr,
    /// Of the pods, where it leads.
    port: IntOrString,
}

async fn service(client: &Client, namespace: &str, target: &Target) -> Result<Found, PlatformError> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let services = services.list(&ListParams::default()).await.map_err(|error| PlatformError::new("Services", error))?;
    let found: Vec<Found> = services.items.iter().filter_map(|service| leads_to(service, target)).collect();
    let labels = labels(&target.selector);
    match found.as_slice() {
        [] => Err(PlatformError::new(
            "spec.target",
            format!(
                "no Service of namespace {namespace} with a cluster IP selects pods by {labels} and has a port {:?}: name that port of the Service, or its targetPort",
                target.port
            ),
        )),
        [one] => Ok(one.clone()),
        several => {
            let names: Vec<_> = several.iter().map(|found| found.service.as_str()).collect();
            Err(PlatformError::new(
                "spec.target",
                format!("Services {} all lead to pods with {labels} by a port {:?}: make the port's name tell them apart", names.join(", "), target.port),
            ))
        }
    }
}

fn leads_to(service: &Service, target: &Target) -> Option<Found> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    if !selector.iter().all(|(key, value)| target.selector.match_labels.get(key) == Some(value)) {
        return None;
    }
    let is_it = |port: &&k8s_openapi::api::core::v1::ServicePort| {
        port.name.as_deref() == Some(&target.port) || port.target_port == Some(IntOrString::String(target.port.clone()))
    };
    let port = spec.ports.iter().flatten().find(is_it)?;
    let address: IpAddr = spec.cluster_ip.as_deref()?.parse().ok()?;
    let address = SocketAddr::new(address, u16::try_from(port.port).ok()?);
    // Where it says nothing, its own number.
    Some(Found { service: service.name_any(), address, port: port.target_port.clone().unwrap_or(IntOrString::Int(port.port)) })
}

impl Platform for KubernetesPlatform {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn nodes(&self) -> Vec<String> {
        self.inner.facts().nodes()
    }

    async fn choosable(&self, action: &Action) -> Result<Vec<String>, PlatformError> {
        Ok(failures::choosable(&self.inner.means, action, self.nodes(), self.inner.whereabouts.node().as_deref()).await?)
    }

    async fn may_break(&self) -> Result<(), String> {
        match &self.leave {
            Some(leave) => leave().await,
            None => Ok(()),
        }
    }

    fn pods(&self) -> Vec<Pod> {
        self.inner.facts().pods()
    }

    fn wanted(&self) -> usize {
        let facts = self.inner.facts();
        facts.wanted().unwrap_or_else(|| facts.pods().len())
    }

    fn service(&self) -> SocketAddr {
        self.address
    }

    fn starts_target(&self) -> bool {
        false
    }

    fn keep_alive(&self) -> bool {
        false
    }

    async fn users(&self, asked: Vec<Asked>, records: mpsc::Sender<Record>) -> Result<Users, PlatformError> {
        let begin = Begin { target: self.address, keep_alive: self.keep_alive(), loads: users::wanted(&asked) };
        Box::pin(users::begin(&self.inner, begin, asked, records)).await
    }

    fn timers(&self) -> Option<PlatformTimers> {
        self.timers.clone()
    }

    async fn next_change(&self) -> Option<Change> {
        self.changes.lock().await.recv().await
    }

    async fn apply(&self, order: Order, expires_after: Span) -> Result<InForce, PlatformError> {
        Orders::apply(&self.inner, order, expires_after).await
    }

    fn tell(&self, fault: StepFault<'_>, begins: bool) {
        let namespace = &self.inner.namespace;
        self.bell.ring(fault, begins, namespace, |pod| self.inner.facts().uid(pod).map(str::to_owned));
    }

    fn give_up(&self) {
        self.inner.giving_up.send_replace(true);
    }

    async fn undo(&self, order: InForce) -> Undone {
        Orders::undo(&self.inner, &order).await
    }

    fn sidecar_rss(&self) -> BTreeMap<String, u64> {
        // Kubelet's metrics would tell; the sidecars do not.
        BTreeMap::new()
    }

    async fn close(&self) -> Vec<String> {
        let left = Orders::close(&self.inner).await;
        for task in &self.tasks {
            task.abort();
        }
        self.inner.facts().close();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_found_by_its_selector_and_the_ports_name_or_target() {
        let target: Target = steadfast_api::read::from_yaml("t", "{selector: {matchLabels: {app: x, tier: models}}, port: http}").unwrap();
        let leads =
            |spec: &str| leads_to(&serde_saphyr::from_str(&format!("spec: {spec}")).unwrap(), &target).map(|found| (found.address.to_string(), found.port));
        let by_name = |name: &str| IntOrString::String(name.to_owned());
        for (spec, address, port) in [
            ("{clusterIP: 10.0.0.7, selector: {app: x}, ports: [{name: http, port: 80, targetPort: 8000}]}", "10.0.0.7:80", IntOrString::Int(8000)),
            ("{clusterIP: 10.0.0.7, selector: {app: x}, ports: [{name: http, port: 80}]}", "10.0.0.7:80", IntOrString::Int(80)),
            ("{clusterIP: 'fd00::7', selector: {app: x}, ports: [{port: 81, targetPort: http}]}", "[fd00::7]:81", by_name("http")),
        ] {
            assert_eq!(leads(spec), Some((address.to_owned(), port)), "{spec}");
        }
        for none in [
            "{clusterIP: None, selector: {app: x}, ports: [{name: http, port: 80}]}",
            "{clusterIP: 10.0.0.7, selector: {app: y}, ports: [{name: http, port: 80}]}",
            "{clusterIP: 10.0.0.7, selector: {app: x}, ports: [{name: grpc, port: 80}]}",
            "{clusterIP: 10.0.0.7, ports: [{name: http, port: 80}]}",
        ] {
            assert_eq!(leads(none), None, "{none}");
        }
    }
}
