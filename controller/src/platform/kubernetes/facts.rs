//! What the API server's objects say, told as changes: each the moment it was heard of, once, in order.
//!
//! Kubelet writes times in whole seconds; so the moment is that of the watch, and where a sidecar or a user knows better, their word bounds it later (see `observe::marks`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use k8s_openapi::{
    api::{
        core::v1::{Container, ContainerStatus, Pod as Object},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use steadfast_api::Span;
use tokio::sync::mpsc;

use crate::{
    platform::{Change, Pod, What},
    webhook::decide::{ROUTES_ANNOTATION, SIDECAR},
};

/// One pod of the target as it was last seen.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Known {
    pod: Pod,
    replaces: Option<String>,
    initialized: bool,
    /// Restarts of the server that runs now.
    running: Option<u32>,
    ready: bool,
    held_out: bool,
    terminating: bool,
}

/// What makes pods: how many it shall keep, and by which labels it knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) replicas: usize,
}

/// The target's pods. Plain data; changes go out by a channel.
pub(super) struct Facts {
    /// Of the pods, where the target's Service leads.
    port: IntOrString,
    pods: HashMap<String, Known>,
    /// UIDs in order of creation.
    order: Vec<String>,
    /// Pods that are on their way out, or gone, and whose place nobody has taken yet, the oldest first.
    vacant: VecDeque<(String, String)>,
    endpoints: BTreeSet<String>,
    nodes: BTreeMap<String, bool>,
    /// How many pods a test scaled the workload to.
    scaled: Option<usize>,
    workloads: Vec<Workload>,
    /// Until it is closed.
    tell: Option<mpsc::UnboundedSender<Change>>,
}

impl Facts {
    /// Of the pods, to which their Service leads.
    pub(super) const fn port(&self) -> &IntOrString {
        &self.port
    }

    pub(super) fn new(tell: mpsc::UnboundedSender<Change>, port: IntOrString) -> Self {
        Self {
            port,
            pods: HashMap::new(),
            order: Vec::new(),
            vacant: VecDeque::new(),
            endpoints: BTreeSet::new(),
            nodes: BTreeMap::new(),
            scaled: None,
            workloads: Vec::new(),
            tell: Some(tell),
        }
    }

    /// Pods that are not gone, in order of creation.
    pub(super) fn pods(&self) -> Vec<Pod> {
        self.order.iter().filter_map(|uid| self.pods.get(uid)).filter(|known| !known.terminating).map(|known| known.pod.clone()).collect()
    }

    /// Of a pod that is not being deleted.
    pub(super) fn uid(&self, name: &str) -> Option<&str> {
        self.order.iter().rev().find(|uid| self.pods.get(*uid).is_some_and(|known| known.pod.name == name && !known.terminating)).map(String::as_str)
    }

    /// Whether users are led to it.
    pub(super) fn serves(&self, uid: &str) -> bool {
        self.endpoints.contains(uid)
    }

    pub(super) fn uids(&self) -> Vec<String> {
        self.order.clone()
    }

    /// UID of the pod whose place this one took.
    pub(super) fn replaces(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid)?.replaces.as_deref()
    }

    /// The workload is being scaled to this many pods; nothing: it is no business of a test any more.
    pub(super) const fn scaled(&mut self, wanted: Option<usize>) {
        self.scaled = wanted;
    }

    /// How many pods are asked for: those beyond are not lost but not wanted. Unknown while there is a pod that no workload answers for.
    pub(super) fn wanted(&self) -> Option<usize> {
        if self.scaled.is_some() {
            return self.scaled;
        }
        let makes = |workload: &&Workload, known: &Known| workload.labels.iter().all(|(key, value)| known.pod.labels.get(key) == Some(value));
        let unmade = |known: &&Known| !known.terminating && !self.workloads.iter().any(|workload| makes(&workload, known));
        if self.pods.values().any(|known| unmade(&known)) {
            return None;
        }
        let mut makers = self.workloads.iter().filter(|workload| self.pods.values().any(|known| makes(workload, known))).peekable();
        makers.peek()?;
        Some(makers.map(|workload| workload.replicas).sum())
    }

    /// The workloads of the namespace as they are now.
    pub(super) fn workloads(&mut self, at: Instant, workloads: Vec<Workload>) {
        self.workloads = workloads;
        // A pod's end may be heard of before the reason for it.
        let Some(wanted) = self.wanted() else { return };
        let live = self.pods.values().filter(|known| !known.terminating).count();
        for _ in wanted..(live + self.vacant.len()).max(wanted) {
            if let Some((uid, _)) = self.vacant.pop_back() {
                self.tell(at, What::Retired { uid });
            }
        }
    }

    /// Nothing is told any more: whoever waits for changes hears the end.
    pub(super) fn close(&mut self) {
        self.tell = None;
    }

    /// Names of nodes that hold, or held, pods of the target.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    fn tell(&self, at: Instant, what: What) {
        if let Some(tell) = &self.tell {
            // Whoever listened has gone: the run is over.
            let _ = tell.send(Change { at, what });
        }
    }

    /// A pod as it is now. Returns its UID when it is new.
    pub(super) fn pod(&mut self, at: Instant, object: &Object) -> Option<String> {
        let uid = object.uid()?;
        if let Some(why) = over(object) {
            // Its object may stay for hours, and is nobody's pod: an evicted one leaves its place at once.
            self.lost(at, &uid, why);
            return None;
        }
        let new = !self.pods.contains_key(&uid);
        if new {
            self.created(at, &uid, object);
        }
        let mut known = self.pods.get(&uid)?.clone();
        let node = object.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        if known.pod.node.is_empty() && !node.is_empty() {
            known.pod.node.clone_from(&node);
            self.nodes.entry(node.clone()).or_insert(true);
            self.tell(at, What::Scheduled { uid: uid.clone(), node });
        }
        let seen = Seen::of(object, &self.port);
        if seen.sidecar_up && !known.initialized {
            known.initialized = true;
            self.tell(at, What::Initialized { uid: uid.clone() });
        }
        if seen.running != known.running {
            // Kubelet may tell of the end and of the new start at once: a start that nobody left for would be none of an outage.
            if seen.running.is_none() || known.running.is_some() {
                let reason = seen.ended.unwrap_or_else(|| "its server ended".to_owned());
                self.tell(at, What::BackOff { uid: uid.clone(), reason, wait: Span::ZERO });
            }
            if let Some(restarts) = seen.running {
                self.tell(at, What::ContainerStarted { uid: uid.clone(), restarts });
            }
            known.running = seen.running;
        }
        if seen.ready != known.ready {
            known.ready = seen.ready;
            self.tell(at, What::Ready { uid: uid.clone(), ready: seen.ready });
            if !seen.ready && object.metadata.deletion_timestamp.is_none() {
                self.tell(at, What::Detected { uid: uid.clone(), reason: "not ready any more".to_owned() });
            }
        }
        if object.metadata.deletion_timestamp.is_some() && !known.terminating {
            known.terminating = true;
            let live = self.pods.values().filter(|known| !known.terminating).count();
            if self.wanted().is_some_and(|wanted| live > wanted) {
                self.tell(at, What::Retired { uid: uid.clone() });
            } else {
                self.tell(at, What::Detected { uid: uid.clone(), reason: "deleted".to_owned() });
                self.tell(at, What::Terminating { uid: uid.clone() });
                self.vacant.push_back((uid.clone(), known.pod.name.clone()));
            }
        }
        self.pods.insert(uid.clone(), known);
        new.then_some(uid)
    }

    fn created(&mut self, at: Instant, uid: &str, object: &Object) {
        let name = object.name_any();
        // A StatefulSet's pod takes the place of its name's last holder; any other the place that has been free for longest.
        let place = self.vacant.iter().position(|(_, before)| *before == name).or((!self.vacant.is_empty()).then_some(0));
        let replaces = place.and_then(|place| self.vacant.remove(place)).map(|(uid, _)| uid);
        let in_service = self.endpoints.contains(uid);
        let pod = Pod { name, uid: uid.to_owned(), node: String::new(), labels: object.labels().clone(), in_service };
        self.order.push(uid.to_owned());
        self.pods.insert(
            uid.to_owned(),
            Known { pod: pod.clone(), replaces: replaces.clone(), initialized: false, running: None, ready: false, held_out: false, terminating: false },
        );
        self.tell(at, What::Created { pod, replaces });
        if in_service {
            // Its slice was heard of first.
            self.tell(at, What::Endpoint { uid: uid.to_owned(), present: true });
        }
    }

    /// Why this pod is kept out of the Service on purpose, if it is.
    pub(super) fn held_out(&mut self, at: Instant, uid: &str, why: Option<String>) {
        let Some(known) = self.pods.get_mut(uid) else { return };
        let was = std::mem::replace(&mut known.held_out, why.is_some());
        if let Some(why) = why.filter(|_| !was) {
            self.tell(at, What::HeldOut { uid: uid.to_owned(), why });
        }
    }

    /// The object is gone.
    pub(super) fn gone(&mut self, at: Instant, uid: &str) {
        self.lost(at, uid, "deleted".to_owned());
    }

    fn lost(&mut self, at: Instant, uid: &str, reason: String) {
        let Some(known) = self.pods.remove(uid) else { return };
        self.order.retain(|other| other != uid);
        if !known.terminating {
            self.vacant.push_back((uid.to_owned(), known.pod.name));
        }
        self.tell(at, What::Gone { uid: uid.to_owned(), reason });
    }

    /// The Service's endpoints that are ready now, of all its slices.
    pub(super) fn endpoints(&mut self, at: Instant, slices: &[impl AsRef<EndpointSlice>]) {
        let now = ready_endpoints(slices);
        for uid in self.endpoints.difference(&now).cloned().collect::<Vec<_>>() {
            self.in_service(&uid, false);
            self.tell(at, What::Endpoint { uid, present: false });
        }
        for uid in now.difference(&self.endpoints).cloned().collect::<Vec<_>>() {
            self.in_service(&uid, true);
            self.tell(at, What::Endpoint { uid, present: true });
        }
        self.endpoints = now;
    }

    fn in_service(&mut self, uid: &str, in_service: bool) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.pod.in_service = in_service;
        }
    }

    /// What the node controller says of a node that holds pods of the target.
    pub(super) fn node(&mut self, at: Instant, name: &str, ready: bool) {
        if let Some(known) = self.nodes.get_mut(name)
            && *known != ready
        {
            *known = ready;
            self.tell(at, What::Node { node: name.to_owned(), ready });
        }
    }
}

/// UIDs of pods that are ready in any of the slices.
fn ready_endpoints(slices: &[impl AsRef<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|slice| &slice.as_ref().endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true)));
    ready.filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.clone()).collect()
}

/// How a pod ended whose containers never start again.
fn over(object: &Object) -> Option<String> {
    let status = object.status.as_ref()?;
    let phase = status.phase.as_deref().filter(|phase| matches!(*phase, "Failed" | "Succeeded"))?;
    let words: Vec<&str> = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten().map(str::trim).collect();
    Some(if words.is_empty() { format!("its pod ended ({phase})") } else { words.join(": ") })
}

/// The container of the model server: the one behind the port to which the Service leads. Of an injected pod that port's name is the sidecar's, and its annotation says
/// which port of which number the sidecar stands in front of. Where nothing tells, it is the first.
pub(super) fn server<'a>(pod: &'a Object, port: &IntOrString) -> Option<&'a Container> {
    let containers = pod.spec.as_ref()?.containers.as_slice();
    let declares = |number: i32| containers.iter().find(|container| container.ports.iter().flatten().any(|port| port.container_port == number));
    let of_name = |name: &str| containers.iter().find(|container| container.ports.iter().flatten().any(|port| port.name.as_deref() == Some(name)));
    let routes: Vec<(&str, i32, i32)> = pod.annotations().get(ROUTES_ANNOTATION).into_iter().flat_map(|routes| routes.split(',')).filter_map(route).collect();
    let behind = |is_it: &dyn Fn(&(&str, i32, i32)) -> bool| routes.iter().find(|route| is_it(route)).and_then(|(.., server)| declares(*server));
    let owner = match port {
        IntOrString::String(name) => behind(&|(route, ..)| route == name).or_else(|| of_name(name)),
        IntOrString::Int(number) => behind(&|(_, sidecar, _)| sidecar == number).or_else(|| declares(*number)),
    };
    owner.or_else(|| behind(&|_| true)).or_else(|| containers.first())
}

/// `NAME=SIDECAR-PORT:SERVER-PORT`.
fn route(text: &str) -> Option<(&str, i32, i32)> {
    let (name, ports) = text.trim().split_once('=')?;
    let (sidecar, server) = ports.split_once(':')?;
    Some((name, sidecar.parse().ok()?, server.parse().ok()?))
}

/// What a pod's status says.
struct Seen {
    sidecar_up: bool,
    /// Restarts of the server, while it runs.
    running: Option<u32>,
    /// How it ended, when it does not.
    ended: Option<String>,
    ready: bool,
}

impl Seen {
    fn of(object: &Object, port: &IntOrString) -> Self {
        let status = object.status.as_ref();
        let statuses = |list: fn(&k8s_openapi::api::core::v1::PodStatus) -> Option<&Vec<ContainerStatus>>| status.and_then(list).into_iter().flatten();
        let sidecar = statuses(|status| status.init_container_statuses.as_ref()).find(|container| container.name == SIDECAR);
        let name = server(object, port).map(|container| container.name.as_str());
        let server = statuses(|status| status.container_statuses.as_ref()).find(|container| Some(container.name.as_str()) == name);
        let running = server.filter(|server| server.state.as_ref().is_some_and(|state| state.running.is_some()));
        Self {
            // Without a sidecar there is nothing to wait for.
            sidecar_up: sidecar.map_or(server.is_some(), |sidecar| sidecar.started == Some(true)),
            running: running.map(|server| server.restart_count.unsigned_abs()),
            ended: server.and_then(ended),
            ready: is_ready(object),
        }
    }
}

pub(super) fn is_ready(object: &Object) -> bool {
    let mut conditions = object.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn ended(server: &ContainerStatus) -> Option<String> {
    let last = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let terminated = last(&server.state).or_else(|| last(&server.last_state))?;
    let reason = terminated.reason.filter(|reason| reason != "Error").map(|reason| format!(" ({reason})")).unwrap_or_default();
    let said = terminated.message.map(|message| format!("; its last words: {}", message.trim())).unwrap_or_default();
    Some(format!("exited with status {}{reason}{said}", terminated.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> (Facts, mpsc::UnboundedReceiver<Change>) {
        let (tell, told) = mpsc::unbounded_channel();
        (Facts::new(tell, IntOrString::String("http".to_owned())), told)
    }

    fn object(yaml: &str) -> Object {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn pod(name: &str, more: &str) -> Object {
        object(&format!("metadata: {{name: {name}, uid: u-{name}, {}}}\n{}", more.split('|').next().unwrap(), more.split('|').nth(1).unwrap_or_default()))
    }

    const SPEC: &str = "spec: {nodeName: n1, containers: [{name: server}]}\n";

    fn up(name: &str, restarts: u32, ready: &str) -> Object {
        pod(
            name,
            &format!(
                "|{SPEC}status:\n  initContainerStatuses: [{{name: {SIDECAR}, image: x, imageID: x, ready: true, restartCount: 0, started: true}}]\n  containerStatuses: [{{name: server, \
                 image: x, imageID: x, ready: true, restartCount: {restarts}, state: {{running: {{}}}}}}]\n  conditions: [{{type: Ready, status: '{ready}'}}]\n"
            ),
        )
    }

    fn heard(told: &mut mpsc::UnboundedReceiver<Change>) -> Vec<String> {
        let mut words = Vec::new();
        while let Ok(change) = told.try_recv() {
            let word = match change.what {
                What::Created { pod, replaces } => format!("created {} for {}", pod.name, replaces.unwrap_or_else(|| "nobody".into())),
                other => format!("{other:?}").split([' ', '{']).next().unwrap_or_default().to_lowercase(),
            };
            words.push(word);
        }
        words
    }

    #[test]
    fn a_pod_comes_up_step_by_step_and_nothing_is_told_twice() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        assert_eq!(facts.pod(now, &pod("a", "")).as_deref(), Some("u-a"));
        assert_eq!(facts.pod(now, &pod("a", &format!("|{SPEC}"))), None);
        facts.pod(now, &up("a", 0, "False"));
        facts.pod(now, &up("a", 0, "True"));
        facts.pod(now, &up("a", 0, "True"));
        assert_eq!(heard(&mut told), ["created a for nobody", "scheduled", "initialized", "containerstarted", "ready"]);
        assert_eq!(facts.nodes(), ["n1"]);
    }

    #[test]
    fn a_new_pod_takes_the_place_of_the_one_that_has_been_leaving_for_longest_or_of_its_own_name() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        for name in ["a", "b", "web-0"] {
            facts.pod(now, &pod(name, ""));
        }
        for name in ["b", "web-0", "a"] {
            facts.pod(now, &pod(name, "deletionTimestamp: '2026-01-01T00:00:00Z'"));
        }
        heard(&mut told);
        facts.pod(now, &object("metadata: {name: c, uid: u-c}"));
        facts.gone(now, "u-web-0");
        facts.pod(now, &object("metadata: {name: web-0, uid: u-web-0-again}"));
        facts.pod(now, &object("metadata: {name: d, uid: u-d}"));
        facts.pod(now, &object("metadata: {name: e, uid: u-e}"));
        assert_eq!(heard(&mut told), ["created c for u-b", "gone", "created web-0 for u-web-0", "created d for u-a", "created e for nobody"]);
        let names: Vec<_> = facts.pods().into_iter().map(|pod| pod.name).collect();
        assert_eq!(names, ["c", "web-0", "d", "e"], "those that leave are not the target's any more");
        assert_eq!(facts.uid("web-0"), Some("u-web-0-again"));
    }

    #[test]
    fn a_server_that_died_says_how() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.pod(now, &up("a", 0, "True"));
        heard(&mut told);
        let dead = pod(
            "a",
            &format!(
                "|{SPEC}status:\n  containerStatuses: [{{name: server, image: x, imageID: x, ready: false, restartCount: 0, state: {{terminated: {{exitCode: 3, reason: Error, message: no model}}}}}}]\n"
            ),
        );
        facts.pod(now, &dead);
        let mut reasons = Vec::new();
        while let Ok(change) = told.try_recv() {
            if let What::BackOff { reason, .. } = change.what {
                reasons.push(reason);
            }
        }
        assert_eq!(reasons, ["exited with status 3; its last words: no model"]);
        facts.pod(now, &up("a", 1, "True"));
        assert!(matches!(told.try_recv().unwrap().what, What::ContainerStarted { restarts: 1, .. }));
    }

    /// A helper may stand first, and ends for its own reasons.
    #[test]
    fn the_server_is_the_container_behind_the_services_port() {
        let named = |port: &IntOrString, annotations: &str| {
            let pod = object(&format!(
                "metadata: {{name: a, annotations: {{{annotations}}}}}\nspec: {{containers: [{{name: helper, ports: [{{containerPort: 9000, name: metrics}}]}}, {{name: first, ports: \
                 [{{containerPort: 8001}}]}}, {{name: second, ports: [{{containerPort: 8002, name: plain}}]}}]}}"
            ));
            server(&pod, port).map(|container| container.name.clone())
        };
        let (name, number) = (|name: &str| IntOrString::String(name.to_owned()), IntOrString::Int);
        let routes = "steadfast.dev/routes: 'grpc=4180:8001,http=4181:8002'";
        for (port, annotations, container) in [
            (name("http"), routes, "second"),
            (name("grpc"), routes, "first"),
            (number(4180), routes, "first"),
            (number(8002), routes, "second"),
            (name("plain"), "", "second"),
            (name("unknown"), routes, "first"),
            (name("http"), "steadfast.dev/routes: nonsense", "helper"),
        ] {
            assert_eq!(named(&port, annotations).as_deref(), Some(container), "{port:?} of {annotations:?}");
        }

        let (mut facts, mut told) = facts();
        let status = |helper: &str, server: &str| {
            object(&format!(
                "metadata: {{name: a, uid: u-a, annotations: {{steadfast.dev/routes: 'http=4180:8000'}}}}\nspec: {{nodeName: n1, containers: [{{name: helper}}, {{name: server, ports: \
                 [{{containerPort: 8000}}]}}]}}\nstatus: {{containerStatuses: [{{name: helper, image: x, imageID: x, ready: true, restartCount: 0, state: {{{helper}}}}}, {{name: server, image: \
                 x, imageID: x, ready: true, restartCount: 0, state: {{{server}}}}}]}}"
            ))
        };
        let now = Instant::now();
        facts.pod(now, &status("running: {}", "running: {}"));
        heard(&mut told);
        facts.pod(now, &status("terminated: {exitCode: 1}", "running: {}"));
        assert_eq!(heard(&mut told), Vec::<String>::new(), "nobody's server");
        facts.pod(now, &status("running: {}", "terminated: {exitCode: 137}"));
        assert!(matches!(told.try_recv().unwrap().what, What::BackOff { reason, .. } if reason == "exited with status 137"));
    }

    #[test]
    fn a_server_whose_end_and_new_start_are_told_at_once_was_gone_all_the_same() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.pod(now, &up("a", 0, "True"));
        heard(&mut told);
        facts.pod(now, &up("a", 1, "True"));
        assert!(matches!(told.try_recv().unwrap().what, What::BackOff { reason, .. } if reason == "its server ended"));
        assert!(matches!(told.try_recv().unwrap().what, What::ContainerStarted { restarts: 1, .. }));
        assert!(told.try_recv().is_err());
    }

    /// Its object stays until somebody collects it.
    #[test]
    fn a_pod_that_is_evicted_by_its_kubelet_leaves_its_place_and_is_none_of_the_targets_any_more() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.pod(now, &up("a", 0, "True"));
        heard(&mut told);
        let evicted = pod("a", &format!("|{SPEC}status: {{phase: Failed, reason: Evicted, message: 'The node was low on resource: memory. '}}\n"));
        assert_eq!(facts.pod(now, &evicted), None);
        assert!(matches!(told.try_recv().unwrap().what, What::Gone { reason, .. } if reason == "Evicted: The node was low on resource: memory."));
        facts.pod(now, &pod("b", ""));
        facts.pod(now, &evicted);
        facts.gone(now, "u-a");
        assert_eq!(heard(&mut told), ["created b for u-a"], "nothing is told of it again");
        assert_eq!(facts.pods().into_iter().map(|pod| pod.name).collect::<Vec<_>>(), ["b"]);
        // Those that ended before anybody looked.
        facts.pod(now, &pod("c", &format!("|{SPEC}status: {{phase: Succeeded}}\n")));
        assert_eq!((facts.pods().len(), heard(&mut told).len()), (1, 0));
    }

    #[test]
    fn that_a_pod_is_kept_out_is_told_once_each_time() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.pod(now, &up("a", 0, "True"));
        facts.held_out(now, "u-a", None);
        heard(&mut told);
        for why in [Some("wrong"), Some("wrong"), None, Some("wrong")] {
            facts.held_out(now, "u-a", why.map(str::to_owned));
        }
        facts.held_out(now, "u-b", Some("nobody's".to_owned()));
        assert_eq!(heard(&mut told), ["heldout", "heldout"]);
    }

    #[test]
    fn endpoints_come_and_go_once() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.pod(now, &pod("a", ""));
        heard(&mut told);
        let slices = |yaml: &str| vec![std::sync::Arc::new(serde_saphyr::from_str::<EndpointSlice>(&format!("addressType: IPv4\nendpoints: {yaml}")).unwrap())];
        let there = slices("[{addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, uid: u-a}}]");
        facts.endpoints(now, &there);
        facts.endpoints(now, &there);
        assert!(facts.pods()[0].in_service);
        facts.endpoints(
            now,
            &slices("[{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}, targetRef: {kind: Pod, uid: u-a}}]"),
        );
        assert!(!facts.pods()[0].in_service);
        assert_eq!(heard(&mut told), ["endpoint", "endpoint"]);
    }

    #[test]
    fn pods_that_a_test_scaled_away_are_not_lost() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        for name in ["a", "b"] {
            facts.pod(now, &pod(name, ""));
        }
        heard(&mut told);
        facts.scaled(Some(1));
        for name in ["a", "b"] {
            facts.pod(now, &pod(name, "deletionTimestamp: '2026-01-01T00:00:00Z'"));
        }
        facts.scaled(None);
        facts.pod(now, &pod("c", ""));
        assert_eq!(heard(&mut told), ["retired", "detected", "terminating", "created c for u-b"], "one was not wanted, the other was lost");
    }

    #[test]
    fn a_workload_that_wants_fewer_pods_loses_none_whichever_is_heard_of_first() {
        let labelled = |name: &str, more: &str| object(&format!("metadata: {{name: {name}, uid: u-{name}, labels: {{app: x}}{more}}}\n"));
        let makes = |replicas: usize| vec![Workload { labels: [("app".to_owned(), "x".to_owned())].into(), replicas }];
        let leaves = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.workloads(now, makes(4));
        assert_eq!(facts.wanted(), None, "it makes no pod of the target");
        for name in ["a", "b", "c", "d"] {
            facts.pod(now, &labelled(name, ""));
        }
        assert_eq!(facts.wanted(), Some(4));
        heard(&mut told);
        facts.workloads(now, makes(3));
        facts.pod(now, &labelled("d", leaves));
        assert_eq!(heard(&mut told), ["retired"], "the wish was heard of first");
        facts.pod(now, &labelled("c", leaves));
        facts.workloads(now, makes(2));
        assert_eq!(heard(&mut told), ["detected", "terminating", "retired"], "the end was heard of first");
        facts.pod(now, &labelled("b", leaves));
        facts.pod(now, &labelled("e", ""));
        assert_eq!(heard(&mut told), ["detected", "terminating", "created e for u-b"], "two are wanted, so one was lost");
        // A rollout that starts the new pod before it ends the old one takes nothing away.
        facts.pod(now, &labelled("f", ""));
        facts.pod(now, &labelled("a", leaves));
        assert_eq!(heard(&mut told), ["created f for nobody", "retired"]);
        facts.pod(now, &pod("stranger", ""));
        assert_eq!(facts.wanted(), None, "nobody answers for it");
    }

    #[test]
    fn nodes_of_others_are_nobodys_business() {
        let (mut facts, mut told) = facts();
        let now = Instant::now();
        facts.pod(now, &pod("a", &format!("|{SPEC}")));
        heard(&mut told);
        facts.node(now, "n2", false);
        facts.node(now, "n1", true);
        facts.node(now, "n1", false);
        facts.node(now, "n1", false);
        assert_eq!(heard(&mut told), ["node"]);
    }
}
