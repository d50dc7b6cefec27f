//! What the webhook could not do, found and told: pods that ask for a sidecar and run without it, and Services that lead past it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use kube::{Api, Client, Resource, ResourceExt, runtime::watcher};

use super::{
    pods::{PodFacts, Pods},
    watched::Watched,
};
use crate::{
    events::{Events, NOTE_MAX},
    metrics::Metrics,
    webhook::{
        decide::{Decision, INJECT_LABEL, Skip, decide, is_meaningless},
        past,
    },
};

/// A pod is told of when it has been there for so long: the webhook may be about to be asked, and pods that are deleted at once concern nobody.
const SETTLED: Duration = Duration::from_secs(10);
/// The same thing is told again after so long.
const AGAIN: Duration = Duration::from_hours(1);
/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Objects asked for in one look, so that a cluster full of them is not asked for at once.
const ASKED_MAX: usize = 50;

/// A pod that asks and runs without.
struct Without {
    since: Instant,
    told: Option<Instant>,
    reason: Option<&'static str>,
}

/// See the module. Wants `get` on pods, `list` and `watch` on Services.
pub struct Injection {
    client: Client,
    pods: Arc<Pods>,
    services: Watched<Service>,
    /// The controller's own.
    namespace: String,
    redirects: bool,
    metrics: Metrics,
    events: Events,
    /// By UID.
    without: HashMap<String, Without>,
    told: HashMap<String, Instant>,
    /// Namespaces, by UID.
    told_labels: HashMap<String, Instant>,
}

impl Injection {
    /// `namespace`: the controller's own; `redirects`: pods may ask to be redirected.
    pub fn new(client: Client, pods: Arc<Pods>, namespace: &str, redirects: bool, metrics: Metrics, events: Events) -> Self {
        fn trim(service: &mut Service) {
            service.status = None;
            service.annotations_mut().clear();
        }
        let services = Watched::within(pods.scope().apis(&client), watcher::Config::default(), trim);
        Self {
            client,
            pods,
            services,
            namespace: namespace.to_owned(),
            redirects,
            metrics,
            events,
            without: HashMap::new(),
            told: HashMap::new(),
            told_labels: HashMap::new(),
        }
    }

    /// Never returns.
    pub async fn run(mut self) {
        self.pods.listed().await;
        self.services.listed().await;
        loop {
            let pods = self.pods.all();
            self.missing(&pods).await;
            self.bypassing(&pods);
            self.mislabelled();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn missing(&mut self, pods: &[PodFacts]) {
        let now = Instant::now();
        let without: Vec<&PodFacts> = pods.iter().filter(|pod| pod.asks && !pod.has_sidecar).collect();
        let uids: HashSet<&str> = without.iter().map(|pod| pod.uid.as_str()).collect();
        self.without.retain(|uid, _| uids.contains(uid.as_str()));
        let mut asked = 0;
        for pod in without {
            let known = self.without.entry(pod.uid.clone()).or_insert(Without { since: now, told: None, reason: None });
            if now.duration_since(known.since) < SETTLED {
                continue;
            }
            if known.told.is_some_and(|told| now.duration_since(told) < AGAIN) || asked >= ASKED_MAX {
                continue;
            }
            asked += 1;
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
            match api.get_opt(&pod.name).await {
                Ok(Some(whole)) if whole.uid().as_deref() == Some(&pod.uid) => {
                    let may_redirect = self.redirects && self.pods.privileged_in(&pod.namespace);
                    let why = why(&whole, &pod.namespace, &self.namespace, may_redirect);
                    if let Some((reason, note)) = &why {
                        self.events.warn(whole.object_ref(&()), reason, "Inject", note);
                    }
                    (known.told, known.reason) = (Some(now), why.map(|(reason, _)| reason));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(pod = pod.name, %error, "cannot be read"),
            }
        }
        self.metrics.missing_sidecar.reset();
        for pod in pods.iter().filter(|pod| self.without.get(&pod.uid).is_some_and(|without| is_missed(without, pod, now))) {
            self.metrics.missing_sidecar.with_label_values(&[&pod.namespace]).inc();
        }
        self.pods.set_reasons(self.without.iter().filter_map(|(uid, without)| Some((uid.clone(), without.reason?))).collect());
    }

    fn mislabelled(&mut self) {
        let now = Instant::now();
        let mut seen = HashSet::new();
        for namespace in self.pods.namespaces() {
            let Some(note) = mislabelled(namespace.labels()) else { continue };
            let (name, uid) = (namespace.name_any(), namespace.uid().unwrap_or_default());
            seen.insert(uid.clone());
            if self.told_labels.get(&uid).is_none_or(|told| now.duration_since(*told) >= AGAIN) {
                self.told_labels.insert(uid.clone(), now);
                // In the namespace itself, where the controller may write and its people read.
                let about = ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Namespace".to_owned()),
                    namespace: Some(name.clone()),
                    name: Some(name),
                    uid: Some(uid),
                    ..ObjectReference::default()
                };
                self.events.warn(about, Skip::NO_SUCH_LABEL, "Inject", &note);
            }
        }
        self.told_labels.retain(|uid, _| seen.contains(uid));
    }

    fn bypassing(&mut self, pods: &[PodFacts]) {
        let now = Instant::now();
        let mut by_namespace: HashMap<&str, Vec<&PodFacts>> = HashMap::new();
        for pod in pods.iter().filter(|pod| pod.has_sidecar) {
            by_namespace.entry(&pod.namespace).or_default().push(pod);
        }
        let (mut count, mut seen) = (0, HashSet::new());
        for service in self.services.all() {
            let namespace = service.namespace().unwrap_or_default();
            let Some(note) = by_namespace.get(namespace.as_str()).and_then(|pods| past_sidecar(&service, pods)) else { continue };
            count += 1;
            let uid = service.uid().unwrap_or_default();
            seen.insert(uid.clone());
            if self.told.get(&uid).is_none_or(|told| now.duration_since(*told) >= AGAIN) {
                self.told.insert(uid, now);
                self.events.warn(service.object_ref(&()), "BypassesSidecar", "Route", &note);
            }
        }
        self.told.retain(|uid, _| seen.contains(uid));
        self.metrics.bypassing.set(count);
    }
}

/// What is said of a namespace whose label means nothing.
fn mislabelled(labels: &BTreeMap<String, String>) -> Option<String> {
    let value = labels.get(INJECT_LABEL).filter(|value| is_meaningless(value))?;
    Some(format!("no sidecar for pods of this namespace: label {INJECT_LABEL} is {value:?}, which means nothing: write \"true\", or leave it out"))
}

/// Whether somebody should look at it. A database, or a worker that nobody dials, in a namespace that asks for its model servers' sake is as it should be.
fn is_missed(without: &Without, pod: &PodFacts, now: Instant) -> bool {
    let asks_itself = pod.labels.get(INJECT_LABEL).is_some_and(|value| value == "true");
    now.duration_since(without.since) >= SETTLED && (asks_itself || !without.reason.is_some_and(|reason| [Skip::NO_HTTP_PORT, Skip::NO_PORT].contains(&reason)))
}

/// Why a pod that asks runs without; `None` when it is over, or on its way out.
fn why(pod: &Pod, namespace: &str, own: &str, may_redirect: bool) -> Option<(&'static str, String)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if namespace == own {
        let why = "no sidecar: nothing in the controller's own namespace is injected, since the controller could not start before itself; run model servers in another";
        return Some(("OwnNamespace", why.to_owned()));
    }
    // It asks, itself or through its namespace: that is known already.
    let labels = BTreeMap::from([(INJECT_LABEL.to_owned(), "true".to_owned())]);
    match decide(pod, namespace, &labels, may_redirect) {
        Decision::Skip(skip) => Some((skip.reason(), format!("no sidecar: {skip}"))),
        Decision::Inject(_) => Some((
            "NotInjected",
            "no sidecar: the pod started while nobody answered the API server, or before anybody asked for it; delete the pod, and the next one will have it"
                .to_owned(),
        )),
        Decision::Already | Decision::NotAsked => None,
    }
}

/// What is said of a Service by which users come past the sidecars of these pods.
fn past_sidecar(service: &Service, pods: &[&PodFacts]) -> Option<String> {
    let behind: Vec<_> = pods.iter().filter(|pod| past::selects(service, &pod.labels)).map(|pod| &pod.ports).collect();
    let past = past::past(service, &behind);
    let mut note = (!past.is_empty()).then(|| past::note(&past, " (`steadfast inject` does both in manifests)"))?;
    if let Some(command) =
        past::command(&service.name_any(), &service.namespace().unwrap_or_default(), &past).filter(|command| note.len() + command.len() + 2 <= NOTE_MAX)
    {
        note = format!("{note}; {command}");
    }
    Some(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::past::PodPorts;

    fn pod(labels: &str) -> PodFacts {
        PodFacts {
            namespace: "models".into(),
            name: "a".into(),
            uid: "1".into(),
            created: None,
            labels: serde_saphyr::from_str(labels).unwrap(),
            has_sidecar: true,
            asks: true,
            faults_allowed: false,
            ports: PodPorts { sidecar: vec![4180], past: vec![(8000, "http".into())], left: Some(Vec::new()) },
        }
    }

    #[test]
    fn a_pod_without_a_sidecar_is_missed_unless_its_namespace_alone_asked_and_it_speaks_something_else() {
        let since = Instant::now();
        let now = since + SETTLED;
        let missed = |labels: &str, reason: Option<&'static str>| is_missed(&Without { since, told: None, reason }, &pod(labels), now);
        assert!(missed("{app: x}", Some("HostNetwork")) && missed("{app: x}", None) && missed("{steadfast.dev/inject: 'true'}", Some("NoHttpPort")));
        assert!(!missed("{app: x}", Some("NoHttpPort")) && !missed("{app: x}", Some("NoPort")) && missed("{app: x}", Some("NoNamedPort")));
        let fresh = Without { since: now, told: None, reason: None };
        assert!(!is_missed(&fresh, &pod("{app: x}"), now));
    }

    #[test]
    fn a_namespace_whose_label_means_nothing_is_told_so() {
        let of = |value: &str| mislabelled(&BTreeMap::from([(INJECT_LABEL.to_owned(), value.to_owned())]));
        assert!(of("yes").is_some_and(|note| note.contains("\"yes\"") && note.contains("\"true\"")));
        assert_eq!((of("true"), of("false"), mislabelled(&BTreeMap::new())), (None, None, None));
    }

    #[test]
    fn an_event_about_a_service_holds_the_command_that_mends_it_as_long_as_there_is_room() {
        let service: Service =
            serde_saphyr::from_str("{metadata: {name: web, namespace: models}, spec: {selector: {app: x}, ports: [{port: 80, targetPort: 8000}]}}").unwrap();
        let said = past_sidecar(&service, &[&pod("{app: x}")]).unwrap();
        assert!(
            said.contains("set targetPort: http in port 80") && said.ends_with(r#""value":"http"}]'"#) && said.contains("kubectl patch service web -n models"),
            "{said}"
        );
        assert_eq!(past_sidecar(&service, &[&pod("{app: y}")]), None);
        let mut many = service.clone();
        let spec = many.spec.as_mut().unwrap();
        spec.ports = spec.ports.take().map(|ports| vec![ports[0].clone(); 12]);
        let said = past_sidecar(&many, &[&pod("{app: x}")]).unwrap();
        assert!(!said.contains("kubectl"), "half a command is none: {said}");
    }

    #[test]
    fn a_pod_without_a_sidecar_is_told_why_and_one_that_is_over_is_left_alone() {
        let told = |yaml: &str| why(&serde_saphyr::from_str(yaml).unwrap(), "models", "steadfast", false).map(|(reason, _)| reason);
        let spec = "spec: {containers: [{name: s, image: x, ports: [{name: http, containerPort: 8000}]}]}";
        assert_eq!(told(spec), Some("NotInjected"));
        let own = why(&serde_saphyr::from_str(spec).unwrap(), "steadfast", "steadfast", false);
        assert_eq!(own.map(|(reason, _)| reason), Some("OwnNamespace"), "there the next pod would not have it either");
        assert_eq!(told("spec: {hostNetwork: true, containers: [{name: s, image: x}]}"), Some("HostNetwork"));
        assert_eq!(told(&format!("{spec}\nstatus: {{phase: Succeeded}}")), None);
        assert_eq!(told(&format!("{spec}\nmetadata: {{labels: {{steadfast.dev/inject: 'false'}}}}")), None);
    }
}
