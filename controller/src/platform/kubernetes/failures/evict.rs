//! Evictions, as far as disruption budgets allow.
//!
//! A budget's refusal is an answer (429), and asking again is this module's own business: a client that repeats requests behind its back would hold a run for minutes, in
//! which it hears of no halt.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod as Object;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, EvictParams, Preconditions},
};
use tokio::time::{sleep, timeout};

use super::{FailureError, GivenUp, guard};
use crate::{
    reconcile::resource::MANAGER,
    words::{NAMES_MAX, some},
};

/// What a disruption budget refused is asked for again so often, as a drain does.
pub(super) const AGAIN: Duration = Duration::from_secs(2);
/// A step asks for so long in all: a budget that counts pods which come back just then lets go within it.
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The pod with this UID, and no other of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Meant {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl std::fmt::Display for Meant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What became of evictions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Evictions {
    pub evicted: BTreeSet<Meant>,
    /// With the words of whoever refused.
    pub refused: BTreeMap<Meant, String>,
    /// Gone before it was their turn.
    pub gone: BTreeSet<Meant>,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Evicted {
    Yes,
    Refused(String),
    Gone,
}

/// Evicts each of them, and those that a budget refused again, for seconds; or for once only, where it is `given_up`. `client` must not repeat requests by itself.
pub(in super::super) async fn evict(client: &Client, pods: BTreeSet<Meant>, given_up: &GivenUp) -> Result<Evictions, FailureError> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = once(client, pods).await?;
    while !all.refused.is_empty() && Instant::now() + AGAIN <= deadline && given_up.or_slept(AGAIN).await {
        let next = once(client, all.refused.into_keys().collect()).await?;
        all.evicted.extend(next.evicted);
        all.gone.extend(next.gone);
        all.refused = next.refused;
    }
    Ok(all)
}

/// Asks once for each of them.
pub(super) async fn once(client: &Client, pods: BTreeSet<Meant>) -> Result<Evictions, FailureError> {
    let mut all = Evictions::default();
    for pod in pods {
        match one(client, &pod).await? {
            Evicted::Yes => drop(all.evicted.insert(pod)),
            Evicted::Gone => drop(all.gone.insert(pod)),
            Evicted::Refused(words) => drop(all.refused.insert(pod, words)),
        }
    }
    Ok(all)
}

/// Goes on until all are evicted or gone.
pub(super) async fn on_and_on(client: Client, mut left: BTreeSet<Meant>, say: impl Fn(String)) {
    while !left.is_empty() {
        sleep(AGAIN).await;
        match once(&client, left.clone()).await {
            Ok(next) => {
                next.evicted.iter().for_each(|pod| say(format!("{pod} evicted")));
                left = next.refused.into_keys().collect();
            }
            Err(error) => tracing::info!(%error, "an eviction is tried again"),
        }
    }
}

async fn one(client: &Client, pod: &Meant) -> Result<Evicted, FailureError> {
    let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    let parameters = EvictParams { delete_options: Some(DeleteParams::default().preconditions(preconditions)), ..EvictParams::default() };
    let api: Api<Object> = Api::namespaced(client.clone(), &pod.namespace);
    match timeout(ANSWERS_WITHIN, api.evict(&pod.name, &parameters)).await {
        Err(_) => Ok(Evicted::Refused(format!("the API server did not answer within {ANSWERS_WITHIN:?}"))),
        Ok(Ok(_)) => Ok(Evicted::Yes),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => Ok(Evicted::Gone),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 429 | 503 | 504) => {
            let causes: Vec<String> = status.details.iter().flat_map(|details| &details.causes).map(|cause| cause.message.clone()).collect();
            Ok(Evicted::Refused(if causes.is_empty() { status.message.clone() } else { causes.join("; ") }))
        }
        Ok(Err(error)) => Err(FailureError::api(format!("the eviction of pod {pod}"), &error)),
    }
}

/// The pods of a node that a drain moves. `empties`: those with `emptyDir` volumes too, which lose what is in them.
///
/// # Errors
/// When one of them would never come back, or would lose what is in its volumes and may not, with which: `kubectl drain` refuses them too.
pub(super) fn movable(node: &str, on_node: &[Object], empties: bool) -> Result<BTreeSet<Meant>, FailureError> {
    let moves = || on_node.iter().filter(|pod| !guard::stays(pod) && pod.metadata.deletion_timestamp.is_none());
    let name = |pod: &Object| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let bare: Vec<String> = moves().filter(|pod| pod.owner_references().iter().all(|owner| owner.controller != Some(true))).map(name).collect();
    if !bare.is_empty() {
        let why = format!(
            "runs pods that belong to no workload, so that nobody would make them again: {}; delete them, or drain another node",
            some(&bare, NAMES_MAX)
        );
        return Err(FailureError::new(format!("node {node}"), why));
    }
    let has_volume = |pod: &&Object| pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.empty_dir.is_some());
    // What the controller keeps in its own volume it fetches again.
    let is_ours = |pod: &&Object| pod.labels().get("app.kubernetes.io/name").is_some_and(|name| name == MANAGER);
    let losing: Vec<String> = if empties { Vec::new() } else { moves().filter(has_volume).filter(|pod| !is_ours(pod)).map(name).collect() };
    if !losing.is_empty() {
        let why = format!(
            "runs pods that would lose what is in their emptyDir volumes: {}; write `deleteEmptyDirData: true` in the step if they may, or drain another node",
            some(&losing, NAMES_MAX)
        );
        return Err(FailureError::new(format!("node {node}"), why));
    }
    let meant = |pod: &Object| Meant { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any(), uid: pod.uid().unwrap_or_default() };
    Ok(moves().map(meant).collect())
}
