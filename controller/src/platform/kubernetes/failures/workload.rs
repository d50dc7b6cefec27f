//! The workload that owns the target's pods: scaled and rolled out, and put back exactly as it was, unless somebody changed it meanwhile.

use std::time::{Duration, Instant};

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{FailureError, undo::Outcome};
use crate::reconcile::resource::MANAGER;

/// A new ReplicaSet is there well within this.
const ROLLED_OUT_WITHIN: Duration = Duration::from_secs(10);

/// A Deployment, StatefulSet, DaemonSet or bare ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Workload {
    /// The one owner of the pods with these labels.
    pub(super) async fn of_pods(client: &Client, namespace: &str, selector: &str) -> Result<Self, FailureError> {
        let what = || format!("the workload of pods {selector} in {namespace}");
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let pods = pods.list(&ListParams::default().labels(selector).limit(1_000)).await.map_err(|error| FailureError::api(what(), &error))?;
        let mut found: Option<Self> = None;
        for pod in pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let Some(owner) = pod.owner_references().iter().find(|owner| owner.controller == Some(true)) else {
                return Err(FailureError::new(what(), format!("pod {} belongs to no workload: there is nothing to scale or to roll out", pod.name_any())));
            };
            let mut workload = Self { kind: owner.kind.clone(), namespace: namespace.to_owned(), name: owner.name.clone() };
            if owner.kind == "ReplicaSet" {
                let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
                let set = sets.get(&owner.name).await.map_err(|error| FailureError::api(what(), &error))?;
                if let Some(owner) = set.owner_references().iter().find(|owner| owner.controller == Some(true)) {
                    workload.kind.clone_from(&owner.kind);
                    workload.name.clone_from(&owner.name);
                }
            }
            match &found {
                Some(other) if *other != workload => {
                    return Err(FailureError::new(what(), format!("there are two, {other} and {workload}: select one by its labels")));
                }
                _ => found = Some(workload),
            }
        }
        found.ok_or_else(|| FailureError::new(what(), "there is no pod"))
    }

    fn resource(&self) -> ApiResource {
        ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", &self.kind))
    }

    fn api(&self, client: &Client) -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), &self.namespace, &self.resource())
    }

    async fn get(&self, client: &Client) -> Result<DynamicObject, FailureError> {
        if !matches!(self.kind.as_str(), "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") {
            return Err(FailureError::new(
                self.to_string(),
                "is of a kind that Steadfast does not know how to change: Deployments, StatefulSets and DaemonSets it does",
            ));
        }
        self.api(client).get(&self.name).await.map_err(|error| FailureError::api(self.to_string(), &error))
    }

    pub(super) async fn replicas(&self, client: &Client) -> Result<i32, FailureError> {
        let object = self.get(client).await?;
        let replicas = object.data.pointer("/spec/replicas").and_then(Value::as_i64);
        replicas.and_then(|replicas| i32::try_from(replicas).ok()).ok_or_else(|| FailureError::new(self.to_string(), "has no replicas, so it cannot be scaled"))
    }

    pub(super) async fn scale(&self, client: &Client, replicas: i32) -> Result<(), FailureError> {
        let patch = json!({ "spec": { "replicas": replicas } });
        self.api(client)
            .patch_scale(&self.name, &parameters(), &Patch::Merge(&patch))
            .await
            .map(|_| ())
            .map_err(|error| FailureError::api(self.to_string(), &error))
    }

    /// Back to `before`, if it is still at `to`.
    pub(super) async fn scale_back(&self, client: &Client, before: i32, to: i32) -> Result<Outcome, FailureError> {
        let now = self.replicas(client).await?;
        if now == before {
            return Ok(Outcome::NotMade);
        }
        if now != to {
            return Ok(Outcome::NotOurs(format!("{self} was scaled to {now} by somebody else: it stays so (it had {before}, and the test wanted {to})")));
        }
        self.scale(client, before).await?;
        Ok(Outcome::Undone(format!("{self} is scaled back from {to} to {before}")))
    }

    /// The image of a container or init container, with the list that it stands in.
    async fn image_of(&self, client: &Client, container: &str) -> Result<(&'static str, String), FailureError> {
        let object = self.get(client).await?;
        let mut names = Vec::new();
        for list in ["containers", "initContainers"] {
            let containers = object.data.pointer(&format!("/spec/template/spec/{list}")).and_then(Value::as_array);
            for found in containers.into_iter().flatten() {
                if found["name"] == container {
                    return Ok((list, found["image"].as_str().unwrap_or_default().to_owned()));
                }
                names.push(found["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        Err(FailureError { gone: true, ..FailureError::new(self.to_string(), format!("has no container {container}: there are {}", names.join(", "))) })
    }

    pub(super) async fn image(&self, client: &Client, container: &str) -> Result<String, FailureError> {
        Ok(self.image_of(client, container).await?.1)
    }

    pub(super) async fn roll_out(&self, client: &Client, container: &str, image: &str) -> Result<(), FailureError> {
        let (list, _) = self.image_of(client, container).await?;
        let patch = json!({ "spec": { "template": { "spec": { list: [{ "name": container, "image": image }] } } } });
        // A merge of lists by name, which leaves the other containers as they are.
        self.api(client)
            .patch(&self.name, &parameters(), &Patch::Strategic(&patch))
            .await
            .map(|_| ())
            .map_err(|error| FailureError::api(self.to_string(), &error))
    }

    pub(super) async fn roll_back(&self, client: &Client, container: &str, before: &str, to: &str) -> Result<Outcome, FailureError> {
        let now = self.image(client, container).await?;
        if now == before {
            return Ok(Outcome::NotMade);
        }
        if now != to {
            return Ok(Outcome::NotOurs(format!("{self} was given {now} by somebody else: it stays (it had {before}, and the test rolled out {to})")));
        }
        self.roll_out(client, container, before).await?;
        Ok(Outcome::Undone(format!("{self} has {before} again in container {container}")))
    }

    /// Waits until the workload's controller has taken the change up, and tells how many pods it wants now of the new kind.
    pub(super) async fn observed(&self, client: &Client) -> Result<String, FailureError> {
        let deadline = Instant::now() + ROLLED_OUT_WITHIN;
        loop {
            let object = self.get(client).await?;
            let status = |field: &str| object.data.pointer(&format!("/status/{field}")).and_then(Value::as_i64);
            if status("observedGeneration") >= object.metadata.generation {
                let count = |field| status(field).unwrap_or(0);
                return Ok(format!(
                    "{self}: {} pods, {} of them of the new template, {} ready",
                    count("replicas"),
                    count("updatedReplicas"),
                    count("readyReplicas")
                ));
            }
            if Instant::now() >= deadline {
                return Err(FailureError::new(self.to_string(), format!("its controller did not take the change up within {ROLLED_OUT_WITHIN:?}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn parameters() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}
