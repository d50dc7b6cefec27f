//! What may be hit. Asked at the moment of the failure and not before, because labels and pods change.
//!
//! - A namespace opts in by the label `steadfast.dev/faults: allowed`. `kube-system`, its kin and the controller's own namespace cannot.
//! - A node opts in by the same label; without it, every pod on it (those of DaemonSets and static ones apart) must belong to a namespace that has opted in,
//!   and it must not be a node of the control plane.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectList},
};

use super::FailureError;

/// Label by which a namespace or a node allows faults.
pub const OPT_IN_LABEL: &str = "steadfast.dev/faults";
pub const OPT_IN_VALUE: &str = "allowed";
/// Namespaces of the cluster itself.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// Pods of a node that are looked at; no kubelet runs more.
const PODS_MAX: u32 = 2_000;

fn opted_in(labels: &BTreeMap<String, String>) -> bool {
    labels.get(OPT_IN_LABEL).is_some_and(|value| value == OPT_IN_VALUE)
}

/// Who asks, and what is out of bounds for everybody.
#[derive(Clone, Debug)]
pub struct Guard {
    client: Client,
    /// Where the controller runs.
    controller_namespace: String,
}

impl Guard {
    pub fn new(client: Client, controller_namespace: impl Into<String>) -> Self {
        Self { client, controller_namespace: controller_namespace.into() }
    }

    /// # Errors
    /// When pods of this namespace must not be hit, with what would allow it.
    pub async fn namespace(&self, name: &str) -> Result<(), FailureError> {
        let what = || format!("namespace {name}");
        if SYSTEM.contains(&name) || name == self.controller_namespace {
            return Err(FailureError::new(what(), "belongs to the cluster or to the controller, and is never hit"));
        }
        let namespace = Api::<Namespace>::all(self.client.clone()).get(name).await.map_err(|error| FailureError::api(what(), &error))?;
        if opted_in(namespace.labels()) {
            return Ok(());
        }
        Err(FailureError::new(
            what(),
            format!("does not allow faults: whoever may label it does so by `kubectl label namespace {name} {OPT_IN_LABEL}={OPT_IN_VALUE}`"),
        ))
    }

    /// # Errors
    /// When this node must not be hit, with what would allow it. `harms_pods`: what is done to the node reaches the pods on it.
    pub async fn node(&self, name: &str, harms_pods: bool) -> Result<(), FailureError> {
        let what = || format!("node {name}");
        let allow = format!("`kubectl label node {name} {OPT_IN_LABEL}={OPT_IN_VALUE}` allows it all the same");
        let node = Api::<Node>::all(self.client.clone()).get(name).await.map_err(|error| FailureError::api(what(), &error))?;
        if opted_in(node.labels()) {
            return Ok(());
        }
        let tainted = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default().iter().any(|taint| CONTROL_PLANE.contains(&taint.key.as_str()));
        if tainted || CONTROL_PLANE.iter().any(|label| node.labels().contains_key(*label)) {
            return Err(FailureError::new(what(), format!("is one of the control plane; {allow}")));
        }
        if !harms_pods {
            return Ok(());
        }
        let mut allowed: BTreeMap<String, bool> = BTreeMap::new();
        let mut others: BTreeSet<String> = BTreeSet::new();
        for pod in pods_on(&self.client, name).await? {
            let namespace = pod.namespace().unwrap_or_default();
            if stays(&pod) {
                continue;
            }
            if !allowed.contains_key(&namespace) {
                let may = self.namespace(&namespace).await.is_ok();
                allowed.insert(namespace.clone(), may);
            }
            if allowed.get(&namespace) != Some(&true) {
                others.insert(format!("{namespace}/{}", pod.name_any()));
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = others.iter().take(3).map(String::as_str).collect();
        let more = others.len().saturating_sub(shown.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(FailureError::new(what(), format!("runs pods of namespaces that do not allow faults ({}{more}); {allow}", shown.join(", "))))
    }
}

/// All pods of a node that have not ended.
pub(super) async fn pods_on(client: &Client, node: &str) -> Result<Vec<Pod>, FailureError> {
    let parameters = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PODS_MAX);
    let pods: ObjectList<Pod> =
        Api::all(client.clone()).list(&parameters).await.map_err(|error| FailureError::api(format!("the pods of node {node}"), &error))?;
    let lives = |pod: &Pod| !matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    Ok(pods.items.into_iter().filter(lives).collect())
}

/// Pods that a drain leaves: those of DaemonSets, and static ones.
pub(super) fn stays(pod: &Pod) -> bool {
    let daemon = pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
    daemon || pod.annotations().contains_key("kubernetes.io/config.mirror")
}
