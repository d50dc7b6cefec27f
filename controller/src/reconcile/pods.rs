//! The pods of a cluster, as far as sidecars and faults concern them: who asks for a sidecar, who has one, and where faults are allowed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, core::PartialObjectMeta, runtime::watcher};
use tokio::sync::watch;

use super::{scope::Scope, watched::Watched};
use crate::webhook::{
    decide::{INJECTED_ANNOTATION, INTERCEPTION_ANNOTATION, LEFT_ANNOTATION, ROUTES_ANNOTATION, asked},
    past::PodPorts,
};

/// The phase is not metadata, so the API server chooses: nothing is armed, replayed or missed in a pod that is over.
const NOT_OVER: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// On namespaces: faults may be armed in their pods. Whoever may label a namespace answers for it.
pub const FAULTS_LABEL: &str = "steadfast.dev/faults";
/// Its value.
pub const FAULTS_ALLOWED: &str = "allowed";

/// On namespaces: the level of PodSecurity that the API server keeps.
pub const ENFORCE_LABEL: &str = "pod-security.kubernetes.io/enforce";

/// A pod that is neither over nor being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
    pub has_sidecar: bool,
    /// It or its namespace asks for one.
    pub asks: bool,
    /// Its namespace allows faults.
    pub faults_allowed: bool,
    pub ports: PodPorts,
}

/// Watches over pods and namespaces. Wants `list` and `watch` on both: on pods where it looks, on namespaces cluster-wide.
pub struct Pods {
    scope: Scope,
    objects: Watched<PartialObjectMeta<Pod>>,
    namespaces: Watched<PartialObjectMeta<Namespace>>,
    /// By UID.
    reasons: Mutex<HashMap<String, &'static str>>,
}

impl Pods {
    pub fn watch(client: &Client, scope: Scope) -> Self {
        // What is left of a pod's metadata is read by somebody here.
        fn trim_pod(pod: &mut PartialObjectMeta<Pod>) {
            let read = [INJECTED_ANNOTATION, ROUTES_ANNOTATION, LEFT_ANNOTATION, INTERCEPTION_ANNOTATION];
            pod.annotations_mut().retain(|name, _| read.contains(&name.as_str()));
            pod.finalizers_mut().clear();
        }
        fn trim_namespace(namespace: &mut PartialObjectMeta<Namespace>) {
            namespace.annotations_mut().clear();
        }
        Self {
            objects: Watched::within(scope.apis(client), watcher::Config::default().fields(NOT_OVER), trim_pod),
            namespaces: Watched::objects(Api::all(client.clone()), watcher::Config::default(), trim_namespace),
            scope,
            reasons: Mutex::default(),
        }
    }

    /// Where the controller looks.
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Returns once all are known.
    pub async fn listed(&self) {
        self.objects.listed().await;
        self.namespaces.listed().await;
    }

    /// Tells of changes of pods, and of namespaces.
    pub fn changes(&self) -> [watch::Receiver<u64>; 2] {
        [self.objects.changes(), self.namespaces.changes()]
    }

    /// UIDs of pods that have a sidecar, those that end among them.
    pub fn with_sidecar(&self) -> HashSet<String> {
        let objects = self.objects.all();
        objects.iter().filter(|pod| pod.annotations().contains_key(INJECTED_ANNOTATION)).filter_map(|pod| pod.uid()).collect()
    }

    /// Every pod that is neither over nor being deleted.
    pub fn all(&self) -> Vec<PodFacts> {
        let namespaces: HashMap<String, Arc<PartialObjectMeta<Namespace>>> =
            self.namespaces.all().into_iter().map(|namespace| (namespace.name_any(), namespace)).collect();
        let none = BTreeMap::new();
        self.objects
            .all()
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(|pod| {
                let namespace = pod.namespace().unwrap_or_default();
                let of_namespace = namespaces.get(&namespace).map_or(&none, |namespace| namespace.labels());
                PodFacts {
                    has_sidecar: pod.annotations().contains_key(INJECTED_ANNOTATION),
                    asks: asked(pod.labels(), of_namespace),
                    faults_allowed: allows_faults(of_namespace),
                    ports: PodPorts::read(pod.annotations()),
                    name: pod.name_any(),
                    uid: pod.uid().unwrap_or_default(),
                    created: pod.metadata.creation_timestamp.as_ref().map(|created| created.0),
                    labels: pod.labels().clone(),
                    namespace,
                }
            })
            .collect()
    }

    /// Takes note of why pods that ask for a sidecar run without, by UID.
    pub fn set_reasons(&self, reasons: HashMap<String, &'static str>) {
        *self.reasons.lock().unwrap_or_else(PoisonError::into_inner) = reasons;
    }

    /// Pods that ask for a sidecar and run without, and why.
    pub fn without(&self) -> Vec<(PodFacts, &'static str)> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if reasons.is_empty() {
            return Vec::new();
        }
        self.all().into_iter().filter(|pod| pod.asks && !pod.has_sidecar).filter_map(|pod| reasons.get(&pod.uid).copied().map(|reason| (pod, reason))).collect()
    }

    /// The namespaces where the controller looks.
    pub fn namespaces(&self) -> Vec<Arc<PartialObjectMeta<Namespace>>> {
        self.namespaces.all().into_iter().filter(|namespace| self.scope.contains(&namespace.name_any())).collect()
    }

    /// Whether PodSecurity lets a pod of a namespace have an init container with NET_ADMIN, as far as the namespace's labels say.
    pub fn privileged_in(&self, namespace: &str) -> bool {
        self.namespaces.get(None, namespace).is_some_and(|known| is_privileged(known.labels()))
    }

    /// Whether faults are allowed in a namespace. In one that is being deleted they are not: pods of a node that is cut off could not end, and the namespace with them.
    pub fn allowed_in(&self, namespace: &str) -> bool {
        self.namespaces.get(None, namespace).is_some_and(|known| known.metadata.deletion_timestamp.is_none() && allows_faults(known.labels()))
    }
}

/// Whether PodSecurity keeps no pod of a namespace with these labels from anything.
pub fn is_privileged(labels: &BTreeMap<String, String>) -> bool {
    labels.get(ENFORCE_LABEL).is_none_or(|level| level == "privileged")
}

fn allows_faults(labels: &BTreeMap<String, String>) -> bool {
    labels.get(FAULTS_LABEL).is_some_and(|value| value == FAULTS_ALLOWED)
}
