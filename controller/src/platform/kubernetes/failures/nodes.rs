//! Cordon and taint, and how they are taken back.
//!
//! A cordon is one bit that anybody may set. So ours carries an annotation with the test's name; without it the node was cordoned by somebody else, and stays so.

use std::time::Duration;

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    FailureError,
    error::{is_busy, patiently},
    owner,
    undo::Outcome,
};
use crate::reconcile::resource::MANAGER;

/// On nodes that a run cordoned: the test.
pub const CORDONED_BY: &str = "steadfast.dev/cordoned-by";
/// A kubelet renews its Lease every ten seconds: one that has not for so long is not there.
pub(super) const RENEWS_WITHIN: Duration = Duration::from_secs(15);
/// Nodes are large objects, in tens of kilobytes.
const NODES_AT_ONCE: u32 = 100;
/// A write that lost against another writer is made again this often.
const TRIES: u32 = 20;

fn nodes(client: &Client) -> Api<Node> {
    Api::all(client.clone())
}

/// Since when and why the cluster holds a node for lost, in words; nothing: it does not.
pub(super) async fn seen_lost(client: &Client, name: &str) -> Result<Option<String>, FailureError> {
    let api = nodes(client);
    let node = patiently(|| api.get(name)).await.map_err(|error| FailureError::api(format!("node {name}"), &error))?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let lost = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status != "True");
    Ok(lost.map(|ready| {
        let since = ready.last_transition_time.map(|since| format!(" since {}", since.0)).unwrap_or_default();
        format!("the cluster held it for lost{since}: {}", ready.reason.unwrap_or_default())
    }))
}

/// How many nodes the cluster has, and which of them are not there for new pods: not Ready, or closed.
pub(super) async fn unavailable(client: &Client) -> Result<(usize, Vec<String>), FailureError> {
    let api = nodes(client);
    let (mut all, mut away, mut page) = (0, Vec::new(), ListParams::default().limit(NODES_AT_ONCE));
    loop {
        let nodes = patiently(|| api.list(&page)).await.map_err(|error| FailureError::api("the cluster's nodes", &error))?;
        all += nodes.items.len();
        for node in nodes.items {
            let conditions = node.status.iter().filter_map(|status| status.conditions.as_deref()).flatten();
            let silent = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status != "True");
            if silent || node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
                away.push(node.name_any());
            }
        }
        match nodes.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => page.continue_token = Some(more),
            None => return Ok((all, away)),
        }
    }
}

/// Whether there is such a node in the cluster.
pub(super) async fn exists(client: &Client, name: &str) -> Result<bool, FailureError> {
    let api = nodes(client);
    let found = patiently(|| api.get_metadata_opt(name)).await;
    found.map(|node| node.is_some()).map_err(|error| FailureError::api(format!("node {name}"), &error))
}

/// When the node's kubelet last renewed its Lease, as it wrote it.
pub(super) async fn heard(client: &Client, name: &str) -> Result<String, FailureError> {
    let what = || format!("the Lease of node {name}");
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = patiently(|| leases.get(name)).await.map_err(|error| FailureError::api(what(), &error))?;
    let renewed = lease.spec.and_then(|spec| spec.renew_time).ok_or_else(|| FailureError::new(what(), "says not when it was renewed"))?;
    Ok(renewed.0.to_string())
}

/// Changes a node with the version that it was read in; `change` returns nothing where nothing is to be done.
async fn edit<T>(client: &Client, name: &str, mut change: impl FnMut(&Node) -> (Option<Value>, T)) -> Result<T, FailureError> {
    let (what, api) = (|| format!("node {name}"), nodes(client));
    for _ in 0..TRIES {
        let node = patiently(|| api.get(name)).await.map_err(|error| FailureError::api(what(), &error))?;
        let (patch, result) = change(&node);
        let Some(mut patch) = patch else { return Ok(result) };
        patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match api.patch(name, &parameters, &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(result),
            Err(kube::Error::Api(status)) if status.code == 409 => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(kube::Error::Api(status)) if is_busy(status.code) => tokio::time::sleep(Duration::from_millis(250)).await,
            Err(error) => return Err(FailureError::api(what(), &error)),
        }
    }
    Err(FailureError::new(what(), format!("somebody else wrote it, or the API server was too busy, {TRIES} times in a row")))
}

fn unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// False: somebody else had cordoned it before.
pub(super) async fn cordon(client: &Client, name: &str, by: &str) -> Result<bool, FailureError> {
    edit(client, name, |node| {
        if unschedulable(node) {
            return (None, false);
        }
        (Some(json!({ "metadata": { "annotations": { CORDONED_BY: by } }, "spec": { "unschedulable": true } })), true)
    })
    .await
}

pub(super) async fn uncordon(client: &Client, name: &str, by: &str) -> Result<Outcome, FailureError> {
    let outcome = edit(client, name, |node| {
        let ours = node.annotations().get(CORDONED_BY).is_some_and(|test| test == by);
        let (spec, outcome) = match (ours, unschedulable(node)) {
            (true, true) => (Some(Value::Null), Outcome::Restored(format!("node {name} takes pods again"))),
            (true, false) => (None, Outcome::NotOurs(format!("node {name} was uncordoned by somebody else"))),
            (false, true) => return (None, Outcome::NotOurs(format!("node {name} is cordoned, and not by this test any more: it stays so"))),
            (false, false) => return (None, Outcome::NotMade),
        };
        let mut patch = json!({ "metadata": { "annotations": { CORDONED_BY: null } } });
        if let Some(value) = spec {
            patch["spec"] = json!({ "unschedulable": value });
        }
        (Some(patch), outcome)
    })
    .await?;
    owner::let_go(&nodes(client), name).await;
    Ok(outcome)
}

/// The node's taints, as they are written.
fn taints(node: &Node) -> Vec<Value> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter_map(|taint| serde_json::to_value(taint).ok()).collect()
}

fn is(taint: &Value, key: &str, effect: &str) -> bool {
    taint["key"] == key && taint["effect"] == effect
}

/// Whether it carries such a taint.
pub(super) async fn tainted(client: &Client, name: &str, key: &str, effect: &str) -> Result<bool, FailureError> {
    edit(client, name, |node| (None, taints(node).iter().any(|taint| is(taint, key, effect)))).await
}

/// False: it carries such a taint already.
pub(super) async fn taint(client: &Client, name: &str, key: &str, value: &str, effect: &str) -> Result<bool, FailureError> {
    edit(client, name, |node| {
        let mut taints = taints(node);
        if taints.iter().any(|taint| is(taint, key, effect)) {
            return (None, false);
        }
        let mut new = json!({ "key": key, "effect": effect });
        if !value.is_empty() {
            new["value"] = json!(value);
        }
        taints.push(new);
        (Some(json!({ "spec": { "taints": taints } })), true)
    })
    .await
}

pub(super) async fn untaint(client: &Client, name: &str, key: &str, value: &str, effect: &str) -> Result<Outcome, FailureError> {
    let outcome = edit(client, name, |node| {
        let mut taints = taints(node);
        let Some(index) = taints.iter().position(|taint| is(taint, key, effect)) else { return (None, Outcome::NotMade) };
        if taints[index]["value"].as_str().unwrap_or_default() != value {
            return (None, Outcome::NotOurs(format!("node {name} carries {key} with another value than this test gave it: it stays")));
        }
        taints.remove(index);
        (Some(json!({ "spec": { "taints": taints } })), Outcome::Undone(format!("node {name} is without {key}:{effect} again")))
    })
    .await?;
    owner::let_go(&nodes(client), name).await;
    Ok(outcome)
}
