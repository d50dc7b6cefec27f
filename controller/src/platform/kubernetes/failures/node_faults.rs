//! What the node agents are asked, as `NodeFault` objects in the controller's namespace; the agent of the node does the rest (see [`crate::agent`]).

use std::time::{Duration, Instant};

use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Object, PostParams},
};
use steadfast_api::{
    Span,
    node::{LASTS_MAX, NodeFaultKind, NodeFaultPhase, NodeFaultSpec, NodeFaultStatus},
};

use super::{FailureError, ledger::rfc3339_in, undo::Outcome};
use crate::agent::resource::{NODE_LABEL, node_faults};

pub(super) type NodeFault = Object<NodeFaultSpec, NodeFaultStatus>;

/// An agent that is there answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// From an agent's healing to its word on it.
const HEALED_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn api(client: &Client, namespace: &str) -> Api<NodeFault> {
    Api::namespaced_with(client.clone(), namespace, &node_faults())
}

/// Asks the node's agent, and returns once it says that it begins (or, for what is done in an instant, that it has done it), with its words.
pub(super) async fn ask(client: &Client, namespace: &str, name: &str, node: &str, fault: NodeFaultKind, lasts: Span) -> Result<String, FailureError> {
    let what = format!("{} on node {node}", fault.name());
    let lasts = lasts.min(LASTS_MAX);
    let spec = NodeFaultSpec { node: node.to_owned(), fault, lasts, not_after: rfc3339_in(Span::new(ANSWERS_WITHIN)) };
    let mut object = NodeFault::new(name, &node_faults(), spec);
    object.metadata.labels = Some([(NODE_LABEL.to_owned(), node.to_owned())].into());
    let api = api(client, namespace);
    api.create(&PostParams::default(), &object).await.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 404 => FailureError::new(what.clone(), "the node agent is not installed: it is an option of the chart (nodeAgent.enabled)"),
        error => FailureError::api(what.clone(), &error),
    })?;
    let deadline = Instant::now() + ANSWERS_WITHIN;
    loop {
        let object = api.get(name).await.map_err(|error| FailureError::api(what.clone(), &error))?;
        let status = object.status.unwrap_or_default();
        let message = status.message.unwrap_or_default();
        match status.phase {
            NodeFaultPhase::InForce | NodeFaultPhase::Healed => return Ok(message),
            NodeFaultPhase::Refused => return Err(FailureError::new(what, format!("the node's agent refused: {message}"))),
            NodeFaultPhase::Pending if Instant::now() >= deadline => {
                return Err(FailureError::new(what, format!("no agent of that node answered within {ANSWERS_WITHIN:?}: is its DaemonSet there and Ready?")));
            }
            NodeFaultPhase::Pending => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Ends it, or waits until it has ended by itself where nothing reaches the node; `within` bounds the wait.
pub(super) async fn end(client: &Client, namespace: &str, name: &str, within: Duration) -> Result<Outcome, FailureError> {
    let what = || format!("node fault {name}");
    let api = api(client, namespace);
    let object = match api.get(name).await {
        Ok(object) => object,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::NotMade),
        Err(error) => return Err(FailureError::api(what(), &error)),
    };
    let node = object.spec.node.clone();
    let kind = object.spec.fault.name();
    // The agent takes the finalizer off once the node is as it was.
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(FailureError::api(what(), &error)),
    }
    let deadline = Instant::now() + within + HEALED_WITHIN;
    loop {
        match api.get(name).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::Undone(format!("{kind} on node {node} is healed, says its agent"))),
            Ok(object) if object.finalizers().is_empty() => {}
            Ok(_) => {}
            Err(error) if Instant::now() >= deadline => return Err(FailureError::api(what(), &error)),
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(FailureError::new(what(), format!("the agent of node {node} did not say that it is healed; it heals by its own timer within {within:?}")));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
