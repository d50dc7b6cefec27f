//! What the webhook could not do, found and told: pods that ask for a sidecar and run without it, and Services that lead past it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, Client, Resource, ResourceExt, runtime::watcher};

use super::{
    pods::{PodFacts, Pods},
    watched::Watched,
};
use crate::{
    events::Events,
    metrics::Metrics,
    webhook::decide::{Decision, INJECT_LABEL, decide},
};

/// A pod is told of when it has been there for so long: the webhook may be about to be asked, and pods that are deleted at once concern nobody.
const SETTLED: Duration = Duration::from_secs(10);
/// The same thing is told again after so long.
const AGAIN: Duration = Duration::from_hours(1);
/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Objects asked for in one look, so that a cluster full of them is not asked for at once.
const ASKED_MAX: usize = 50;

/// See the module. Wants `get` on pods, `list` and `watch` on Services.
pub struct Injection {
    client: Client,
    pods: Arc<Pods>,
    services: Watched<Service>,
    redirects: bool,
    metrics: Metrics,
    events: Events,
    /// By UID: since when it has been without, and when it was last told.
    without: HashMap<String, (Instant, Option<Instant>)>,
    told: HashMap<String, Instant>,
}

impl Injection {
    /// `redirects`: pods may ask to be redirected.
    pub fn new(client: Client, pods: Arc<Pods>, redirects: bool, metrics: Metrics, events: Events) -> Self {
        fn trim(service: &mut Service) {
            service.status = None;
            service.annotations_mut().clear();
        }
        let services = Watched::within(pods.scope().apis(&client), watcher::Config::default(), trim);
        Self { client, pods, services, redirects, metrics, events, without: HashMap::new(), told: HashMap::new() }
    }

    /// Never returns.
    pub async fn run(mut self) {
        self.pods.listed().await;
        self.services.listed().await;
        loop {
            let pods = self.pods.all();
            self.missing(&pods).await;
            self.bypassing(&pods);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn missing(&mut self, pods: &[PodFacts]) {
        let now = Instant::now();
        let without: Vec<&PodFacts> = pods.iter().filter(|pod| pod.asks && !pod.has_sidecar).collect();
        let uids: HashSet<&str> = without.iter().map(|pod| pod.uid.as_str()).collect();
        self.without.retain(|uid, _| uids.contains(uid.as_str()));
        self.metrics.missing_sidecar.reset();
        let mut asked = 0;
        for pod in without {
            let (since, told) = self.without.entry(pod.uid.clone()).or_insert((now, None));
            if now.duration_since(*since) < SETTLED {
                continue;
            }
            self.metrics.missing_sidecar.with_label_values(&[&pod.namespace]).inc();
            if told.is_some_and(|told| now.duration_since(told) < AGAIN) || asked >= ASKED_MAX {
                continue;
            }
            asked += 1;
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
            match api.get_opt(&pod.name).await {
                Ok(Some(whole)) if whole.uid().as_deref() == Some(&pod.uid) => {
                    if let Some((reason, note)) = why(&whole, &pod.namespace, self.redirects && self.pods.privileged_in(&pod.namespace)) {
                        self.events.warn(whole.object_ref(&()), reason, "Inject", &note);
                    }
                    *told = Some(now);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(pod = pod.name, %error, "cannot be read"),
            }
        }
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
            let Some(past) = by_namespace.get(namespace.as_str()).and_then(|pods| past_sidecar(&service, pods)) else { continue };
            count += 1;
            let uid = service.uid().unwrap_or_default();
            seen.insert(uid.clone());
            if self.told.get(&uid).is_none_or(|told| now.duration_since(*told) >= AGAIN) {
                self.told.insert(uid, now);
                let note = format!(
                    "port {} leads to number {}, past the sidecars of the pods behind it: give the server's port a name in the pod template and make it the \
                     targetPort (`steadfast inject` does both in manifests), or annotate the pods steadfast.dev/interception: redirect",
                    past.port, past.target
                );
                self.events.warn(service.object_ref(&()), "BypassesSidecar", "Route", &note);
            }
        }
        self.told.retain(|uid, _| seen.contains(uid));
        self.metrics.bypassing.set(count);
    }
}

/// Why a pod that asks runs without; `None` when it is over, or on its way out.
fn why(pod: &Pod, namespace: &str, may_redirect: bool) -> Option<(&'static str, String)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some() {
        return None;
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

/// A port of a Service, and the number of the server that it leads to.
#[derive(Debug, PartialEq, Eq)]
struct Past {
    port: i32,
    target: i32,
}

fn past_sidecar(service: &Service, pods: &[&PodFacts]) -> Option<Past> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    let behind: Vec<_> = pods.iter().filter(|pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))).collect();
    spec.ports.iter().flatten().find_map(|port| {
        let target = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(_)) => return None,
        };
        behind.iter().any(|pod| pod.server_ports.contains(&target)).then_some(Past { port: port.port, target })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            server_ports: vec![8000],
        }
    }

    #[test]
    fn a_service_leads_past_the_sidecar_when_it_targets_the_servers_number() {
        let pod = pod("{app: x}");
        let past = |spec: &str| past_sidecar(&serde_saphyr::from_str(&format!("spec: {spec}")).unwrap(), &[&pod]);
        assert_eq!(past("{selector: {app: x}, ports: [{port: 80, targetPort: 8000}]}"), Some(Past { port: 80, target: 8000 }));
        assert_eq!(past("{selector: {app: x}, ports: [{port: 8000}]}"), Some(Past { port: 8000, target: 8000 }));
        for right in [
            "{selector: {app: x}, ports: [{port: 80, targetPort: http}]}",
            "{selector: {app: x}, ports: [{port: 80, targetPort: 8002}]}",
            "{selector: {app: y}, ports: [{port: 80, targetPort: 8000}]}",
            "{ports: [{port: 80, targetPort: 8000}]}",
        ] {
            assert_eq!(past(right), None, "{right}");
        }
    }

    #[test]
    fn a_pod_without_a_sidecar_is_told_why_and_one_that_is_over_is_left_alone() {
        let told = |yaml: &str| why(&serde_saphyr::from_str(yaml).unwrap(), "models", false).map(|(reason, _)| reason);
        let spec = "spec: {containers: [{name: s, image: x, ports: [{name: http, containerPort: 8000}]}]}";
        assert_eq!(told(spec), Some("NotInjected"));
        assert_eq!(told("spec: {hostNetwork: true, containers: [{name: s, image: x}]}"), Some("HostNetwork"));
        assert_eq!(told(&format!("{spec}\nstatus: {{phase: Succeeded}}")), None);
        assert_eq!(told(&format!("{spec}\nmetadata: {{labels: {{steadfast.dev/inject: 'false'}}}}")), None);
    }
}
