//! Which nodes may be hit. Asked at the moment of the failure and not before, because labels and pods change.
//!
//! A node opts in by the label `steadfast.dev/faults: allowed`: whoever sets it answers for every pod on the node, whose namespaces are asked no more. Without it, every
//! pod on it (those of DaemonSets and static ones apart) must belong to a namespace that has opted in by the same label, and it must not be a node of the control plane.
//! That holds for a cordon or a taint that only keeps new pods away too: a node that takes no pods is missed by those that would have come.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectList},
};

use super::{super::users, FailureError, Means};
use crate::reconcile::pods::{FAULTS_ALLOWED, FAULTS_LABEL};

const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// Pods of a node that are looked at; no kubelet runs more.
const PODS_MAX: u32 = 2_000;

fn opted_in(labels: &BTreeMap<String, String>) -> bool {
    labels.get(FAULTS_LABEL).is_some_and(|value| value == FAULTS_ALLOWED)
}

/// # Errors
/// When this node must not be hit, with what would allow it.
pub(super) async fn node(means: &Means, name: &str) -> Result<(), FailureError> {
    let what = || format!("node {name}");
    let allow = format!("`kubectl label node {name} {FAULTS_LABEL}={FAULTS_ALLOWED}` allows it all the same");
    let node = Api::<Node>::all(means.prompt.clone()).get(name).await.map_err(|error| FailureError::api(what(), &error))?;
    if opted_in(node.labels()) {
        return Ok(());
    }
    let tainted =
        node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default().iter().any(|taint| CONTROL_PLANE.contains(&taint.key.as_str()));
    if tainted || CONTROL_PLANE.iter().any(|label| node.labels().contains_key(*label)) {
        return Err(FailureError::new(what(), format!("is one of the control plane; {allow}")));
    }
    let others: BTreeSet<String> = on_node(means, name)
        .await?
        .iter()
        .filter(|pod| !stays(pod) && !is_users(means, pod) && !means.pods.allowed_in(&pod.namespace().unwrap_or_default()))
        .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = others.iter().take(3).map(String::as_str).collect();
    let more = others.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(FailureError::new(what(), format!("runs pods of namespaces that do not allow faults ({}{more}); {allow}", shown.join(", "))))
}

/// The users of another test (this one's node is not chosen): they are made anew elsewhere.
fn is_users(means: &Means, pod: &Pod) -> bool {
    pod.namespace().as_deref() == Some(&means.namespace) && users::are(pod.labels())
}

/// All pods of a node that have not ended.
pub(super) async fn on_node(means: &Means, node: &str) -> Result<Vec<Pod>, FailureError> {
    let parameters = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PODS_MAX);
    let pods: ObjectList<Pod> =
        Api::all(means.prompt.clone()).list(&parameters).await.map_err(|error| FailureError::api(format!("the pods of node {node}"), &error))?;
    let lives = |pod: &Pod| !matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    Ok(pods.items.into_iter().filter(lives).collect())
}

/// Pods that a drain leaves: those of DaemonSets, and static ones.
pub(super) fn stays(pod: &Pod) -> bool {
    let daemon = pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
    daemon || pod.annotations().contains_key("kubernetes.io/config.mirror")
}
