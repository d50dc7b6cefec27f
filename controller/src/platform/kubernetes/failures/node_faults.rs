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

use super::{FailureError, GivenUp, error::patiently, nodes, undo::Outcome};
use crate::reconcile::resource::{MANAGER, NodeFault};

/// An agent that is there answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// From an agent's healing to its word on it: a node that was cut off must find the API server again.
const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// Clocks of a cluster differ by less.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);
/// A node that is taken out of the cluster is not waited for.
const LOOK_FOR_NODE_EVERY: Duration = Duration::from_secs(2);
/// Between two looks. The moment at which an agent begins is known as well as this.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Asks the node's agent, and returns once it says that it begins (or, for what is done in an instant, that it has done it).
pub(super) async fn ask(
    client: &Client,
    namespace: &str,
    name: &str,
    node: &str,
    fault: NodeFaultKind,
    lasts: Span,
    given_up: &GivenUp,
) -> Result<(), FailureError> {
    let what = format!("{} on node {node}", fault.name());
    let instant = matches!(fault, NodeFaultKind::ContainerKill { .. });
    let now = Timestamp::now();
    let not_after = now.checked_add(SignedDuration::try_from(ANSWERS_WITHIN).unwrap_or_default()).unwrap_or(now).to_string();
    let spec = NodeFaultSpec { node: node.to_owned(), fault, lasts: lasts.min(LASTS_MAX), not_after, ended: false };
    let api: Api<NodeFault> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &NodeFault::new(name, spec)).await.map_err(|error| FailureError::api(what.clone(), &error))?;
    given_up.or(begins(&api, name, what, instant)).await
}

/// Waits until the agent says that it begins.
async fn begins(api: &Api<NodeFault>, name: &str, what: String, instant: bool) -> Result<(), FailureError> {
    let deadline = Instant::now() + ANSWERS_WITHIN;
    loop {
        let answer = patiently(|| api.get(name)).await.map_err(|error| FailureError::api(what.clone(), &error))?;
        let NodeFaultStatus { phase, message, .. } = answer.status.unwrap_or_default();
        match phase {
            NodeFaultPhase::Healed => return Ok(()),
            NodeFaultPhase::InForce if !instant => return Ok(()),
            NodeFaultPhase::Refused => return Err(FailureError::new(what, format!("the node's agent refused: {}", message.unwrap_or_default()))),
            _ if Instant::now() >= deadline => {
                let hint = "is the node agent installed (nodeAgent.enabled in the chart's values), and its pod there Ready?";
                return Err(FailureError::new(what, format!("no agent of that node answered within {ANSWERS_WITHIN:?}: {hint}")));
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Ends it, or waits until it has ended by itself where nothing reaches the node: the kernel's own timer needs no agent, and a node that is gone has nothing to heal.
pub(super) async fn end(client: &Client, namespace: &str, name: &str, on: &str) -> Result<Outcome, FailureError> {
    let what = || format!("node fault {name} of node {on}");
    let api: Api<NodeFault> = Api::namespaced(client.clone(), namespace);
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let ended = Patch::Merge(json!({ "spec": { "ended": true } }));
    let asked = match patiently(|| api.patch(name, &parameters, &ended)).await {
        Ok(asked) => asked,
        // Of a kind that this cluster does not have any more, or deleted: agents end what has no object.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::NotMade),
        Err(error) => return Err(FailureError::api(what(), &error)),
    };
    let spec = asked.spec.get().map_err(|why| FailureError::new(what(), why))?;
    let (kind, lasts) = (spec.fault.name(), spec.lasts.get());
    let made = asked.metadata.creation_timestamp.as_ref().map(|made| made.0);
    let deadline = Instant::now() + left(lasts, made, Timestamp::now());
    let mut looked_for_node = Instant::now();
    let outcome = loop {
        match api.get(name).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::Unproven(format!("{kind} on node {on} was ended by somebody else"))),
            Err(error) if Instant::now() >= deadline => return Err(FailureError::api(what(), &error)),
            Err(_) => {}
            Ok(object) => {
                if let Some(outcome) = over(object.status.unwrap_or_default(), kind, on, Instant::now() >= deadline) {
                    break outcome;
                }
                if looked_for_node.elapsed() >= LOOK_FOR_NODE_EVERY {
                    looked_for_node = Instant::now();
                    if !nodes::exists(client, on).await? {
                        break Outcome::Unproven(format!("node {on}, which suffered a {kind}, is no node of the cluster any more"));
                    }
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

/// How long its agent may still be waited for. `made`: by the API server's clock, which need not be `now`'s: beyond a minute nobody's clock is believed.
fn left(lasts: Duration, made: Option<Timestamp>, now: Timestamp) -> Duration {
    let whole = lasts + HEALED_WITHIN;
    let Some(age) = made.and_then(|made| Duration::try_from(now.duration_since(made)).ok()) else { return whole };
    (ANSWERS_WITHIN + whole + CLOCKS_DIFFER).saturating_sub(age).min(whole)
}

/// What became of it, once that can be said. `late`: longer than it could last.
fn over(status: NodeFaultStatus, kind: &str, on: &str, late: bool) -> Option<Outcome> {
    let NodeFaultStatus { phase, message, seen } = status;
    let message = message.unwrap_or_else(|| format!("{kind} on node {on}"));
    match phase {
        NodeFaultPhase::Healed if seen.is_some_and(|seen| seen > 0) => Some(Outcome::Undone(message)),
        NodeFaultPhase::Healed => Some(Outcome::Unproven(message)),
        // It began and could not go on, or never began: either way nothing of it is there.
        NodeFaultPhase::Refused => Some(Outcome::Unproven(format!("{kind} on node {on}: the node's agent refused: {message}"))),
        // Asked to end before it began: no agent begins what has ended.
        NodeFaultPhase::Pending if late => Some(Outcome::NotMade),
        NodeFaultPhase::InForce if late => Some(Outcome::Unproven(format!(
            "{kind} on node {on}: its agent has been silent for longer than it could last; the kernel's own timer has ended it, and nobody counted what it did"
        ))),
        NodeFaultPhase::Pending | NodeFaultPhase::InForce => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: NodeFaultPhase, seen: Option<u64>) -> NodeFaultStatus {
        NodeFaultStatus { phase, message: Some("said".to_owned()), seen }
    }

    #[test]
    fn a_silent_agent_is_not_waited_for_beyond_the_kernels_timer() {
        let of = |phase, late| over(status(phase, None), "partition", "n1", late);
        assert_eq!(of(NodeFaultPhase::InForce, false), None);
        assert!(matches!(of(NodeFaultPhase::InForce, true), Some(Outcome::Unproven(words)) if words.contains("kernel's own timer")));
        assert_eq!(of(NodeFaultPhase::Pending, true), Some(Outcome::NotMade));
        let (lasts, made): (_, Timestamp) = (Duration::from_secs(60), "2026-01-01T00:00:00Z".parse().unwrap());
        let at = |seconds: i64| left(lasts, Some(made), made + SignedDuration::from_secs(seconds));
        assert_eq!(at(0), lasts + HEALED_WITHIN, "never longer than if it began now");
        assert_eq!(at(-3600), lasts + HEALED_WITHIN, "a clock that is behind");
        assert_eq!(at(3600), Duration::ZERO, "whoever comes an hour later waits for nobody");
        assert_eq!(left(lasts, None, made), lasts + HEALED_WITHIN);
    }

    #[test]
    fn what_hit_nothing_proves_nothing() {
        let of = |phase, seen| over(status(phase, seen), "partition", "n1", false);
        assert_eq!(of(NodeFaultPhase::Healed, Some(3)), Some(Outcome::Undone("said".to_owned())));
        assert_eq!(of(NodeFaultPhase::Healed, Some(0)), Some(Outcome::Unproven("said".to_owned())));
        assert!(matches!(of(NodeFaultPhase::Refused, None), Some(Outcome::Unproven(words)) if words.contains("refused: said")));
    }
}
