//! Deletion and eviction of pods. Neither needs to be undone: workloads make new pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, EvictParams, Preconditions},
};

use super::FailureError;

/// What became of an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    Yes,
    /// A disruption budget refused; its words.
    Refused(String),
    /// It was gone already.
    Gone,
}

/// Deletes the pod with this UID, and no other of its name.
pub(super) async fn delete(client: &Client, namespace: &str, name: &str, uid: &str, grace: Duration) -> Result<(), FailureError> {
    let parameters = DeleteParams::default()
        .grace_period(grace.as_secs_f64().ceil() as u32)
        .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match api.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) => Err(FailureError::api(format!("pod {name}"), &error)),
    }
}

/// Evicts the pod with this UID, if the disruption budgets allow it.
pub(super) async fn evict(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<Evicted, FailureError> {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters = EvictParams { delete_options: Some(DeleteParams::default().preconditions(preconditions)), ..EvictParams::default() };
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match api.evict(name, &parameters).await {
        Ok(_) => Ok(Evicted::Yes),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Evicted::Gone),
        Err(kube::Error::Api(status)) if status.code == 429 => {
            let causes = status.details.iter().flat_map(|details| &details.causes).map(|cause| cause.message.clone()).collect::<Vec<_>>();
            Ok(Evicted::Refused(if causes.is_empty() { status.message.clone() } else { causes.join("; ") }))
        }
        Err(error) => Err(FailureError::api(format!("the eviction of pod {name}"), &error)),
    }
}
