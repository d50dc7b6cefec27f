//! What the node agents are asked, as `NodeFault` objects in the controller's namespace; the agent of the node does the rest (see [`crate::agent`]).

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use steadfast_api::{
    Span,
    node::{LASTS_MAX, NodeFaultKind, NodeFaultPhase, NodeFaultSpec, NodeFaultStatus},
};

use super::{FailureError, undo::Outcome};
use crate::reconcile::resource::{MANAGER, NodeFault};

/// An agent that is there answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// From an agent's healing to its word on it: a node that was cut off must find the API server again.
const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks. The moment at which an agent begins is known as well as this.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Asks the node's agent, and returns once it says that it begins (or, for what is done in an instant, that it has done it), with its words.
pub(super) async fn ask(client: &Client, namespace: &str, name: &str, node: &str, fault: NodeFaultKind, lasts: Span) -> Result<String, FailureError> {
    let what = format!("{} on node {node}", fault.name());
    let instant = matches!(fault, NodeFaultKind::ContainerKill { .. });
    let now = Timestamp::now();
    let not_after = now.checked_add(SignedDuration::try_from(ANSWERS_WITHIN).unwrap_or_default()).unwrap_or(now).to_string();
    let spec = NodeFaultSpec { node: node.to_owned(), fault, lasts: lasts.min(LASTS_MAX), not_after, ended: false };
    let api: Api<NodeFault> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &NodeFault::new(name, spec)).await.map_err(|error| FailureError::api(what.clone(), &error))?;
    let deadline = Instant::now() + ANSWERS_WITHIN;
    loop {
        let NodeFaultStatus { phase, message } = api.get(name).await.map_err(|error| FailureError::api(what.clone(), &error))?.status.unwrap_or_default();
        let message = message.unwrap_or_default();
        match phase {
            NodeFaultPhase::Healed => return Ok(message),
            NodeFaultPhase::InForce if !instant => return Ok(message),
            NodeFaultPhase::Refused => return Err(FailureError::new(what, format!("the node's agent refused: {message}"))),
            _ if Instant::now() >= deadline => {
                let hint = "is the node agent installed (nodeAgent.enabled in the chart's values), and its pod there Ready?";
                return Err(FailureError::new(what, format!("no agent of that node answered within {ANSWERS_WITHIN:?}: {hint}")));
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Ends it, or waits until it has ended by itself where nothing reaches the node.
pub(super) async fn end(client: &Client, namespace: &str, name: &str) -> Result<Outcome, FailureError> {
    let what = || format!("node fault {name}");
    let api: Api<NodeFault> = Api::namespaced(client.clone(), namespace);
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let asked = match api.patch(name, &parameters, &Patch::Merge(json!({ "spec": { "ended": true } }))).await {
        Ok(asked) => asked,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::NotMade),
        Err(error) => return Err(FailureError::api(what(), &error)),
    };
    let spec = asked.spec.get().map_err(|why| FailureError::new(what(), why))?;
    let (node, kind, lasts) = (spec.node.clone(), spec.fault.name(), spec.lasts.get());
    let mut deadline = Instant::now() + lasts + HEALED_WITHIN;
    let outcome = loop {
        match api.get(name).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::Undone(format!("{kind} on node {node} was ended by somebody else"))),
            Err(error) if Instant::now() >= deadline => return Err(FailureError::api(what(), &error)),
            Err(_) => {}
            Ok(object) => {
                let status = object.status.unwrap_or_default();
                match status.phase {
                    NodeFaultPhase::Healed => {
                        break Outcome::Undone(status.message.unwrap_or_else(|| format!("{kind} on node {node} is healed, says its agent")));
                    }
                    NodeFaultPhase::Refused => break Outcome::NotMade,
                    // Asked to end before it began: no agent begins what has ended.
                    NodeFaultPhase::Pending => deadline = deadline.min(Instant::now() + ANSWERS_WITHIN),
                    NodeFaultPhase::InForce => {}
                }
                if Instant::now() >= deadline {
                    if status.phase == NodeFaultPhase::Pending {
                        break Outcome::NotMade;
                    }
                    return Err(FailureError::new(what(), format!("the agent of node {node} did not say that it is healed; the kernel's own timer ended it")));
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(outcome),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(outcome),
        Err(error) => Err(FailureError::api(what(), &error)),
    }
}
