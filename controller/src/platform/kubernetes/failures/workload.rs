//! The workload that owns the target's pods: scaled and rolled out, and put back exactly as it was, unless somebody changed it meanwhile.

use std::time::{Duration, Instant};

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{FailureError, error::patiently, owner, undo::Outcome};
use crate::reconcile::resource::MANAGER;

/// A new ReplicaSet is there well within this.
const ROLLED_OUT_WITHIN: Duration = Duration::from_secs(10);

/// A Deployment, StatefulSet, DaemonSet or bare ReplicaSet. One of the same name and another UID is another one; without a UID any of the name is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
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
            let mut workload = Self { kind: owner.kind.clone(), namespace: namespace.to_owned(), name: owner.name.clone(), uid: owner.uid.clone() };
            if owner.kind == "ReplicaSet" {
                let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
                let set = sets.get(&owner.name).await.map_err(|error| FailureError::api(what(), &error))?;
                if let Some(owner) = set.owner_references().iter().find(|owner| owner.controller == Some(true)) {
                    workload.kind.clone_from(&owner.kind);
                    workload.name.clone_from(&owner.name);
                    workload.uid.clone_from(&owner.uid);
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
        let api = self.api(client);
        let object = patiently(|| api.get(&self.name)).await.map_err(|error| FailureError::api(self.to_string(), &error))?;
        if !self.uid.is_empty() && object.uid().is_some_and(|uid| uid != self.uid) {
            return Err(FailureError { gone: true, ..FailureError::new(self.to_string(), "was deleted, and made anew by somebody") });
        }
        Ok(object)
    }

    pub(super) async fn replicas(&self, client: &Client) -> Result<i32, FailureError> {
        let object = self.get(client).await?;
        let replicas = object.data.pointer("/spec/replicas").and_then(Value::as_i64);
        replicas.and_then(|replicas| i32::try_from(replicas).ok()).ok_or_else(|| FailureError::new(self.to_string(), "has no replicas, so it cannot be scaled"))
    }

    pub(super) async fn scale(&self, client: &Client, replicas: i32) -> Result<(), FailureError> {
        let patch = json!({ "spec": { "replicas": replicas } });
        let (api, parameters, patch) = (self.api(client), parameters(), Patch::Merge(&patch));
        patiently(|| api.patch_scale(&self.name, &parameters, &patch)).await.map(drop).map_err(|error| FailureError::api(self.to_string(), &error))
    }

    /// Back to `before`, if it is still at `to`.
    pub(super) async fn scale_back(&self, client: &Client, before: i32, to: i32) -> Result<Outcome, FailureError> {
        let now = self.replicas(client).await?;
        if now == before {
            // Whoever put it back may have come no further than to here.
            owner::let_go(&self.api(client), &self.name).await;
            return Ok(Outcome::NotMade);
        }
        if now != to {
            return Ok(Outcome::NotOurs(format!("{self} was scaled to {now} by somebody else: it stays so (it had {before}, and the test wanted {to})")));
        }
        self.scale(client, before).await?;
        owner::let_go(&self.api(client), &self.name).await;
        // That it was asked for is no proof that pods came or went: see `shows_replicas`.
        Ok(Outcome::Restored(format!("{self} is scaled back from {to} to {before}")))
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
        let (api, parameters, patch) = (self.api(client), parameters(), Patch::Strategic(&patch));
        patiently(|| api.patch(&self.name, &parameters, &patch)).await.map(drop).map_err(|error| FailureError::api(self.to_string(), &error))
    }

    pub(super) async fn roll_back(&self, client: &Client, container: &str, before: &str, to: &str) -> Result<Outcome, FailureError> {
        let now = self.image(client, container).await?;
        if now != before {
            if now != to {
                return Ok(Outcome::NotOurs(format!("{self} was given {now} by somebody else: it stays (it had {before}, and the test rolled out {to})")));
            }
            self.roll_out(client, container, before).await?;
        }
        // Also where whoever put it back came no further than to here.
        owner::let_go(&self.api(client), &self.name).await;
        let kept = self.free(client, container, to).await?;
        if !kept.is_empty() {
            let (waiting, namespace) = (kept.join(" "), &self.namespace);
            return Ok(Outcome::NotOurs(format!(
                "{self} has {before} again in container {container}, and waits for pods that wait for {to}; this controller may not delete pods in {namespace} any more: \
                 kubectl delete pod --namespace {namespace} {waiting}"
            )));
        }
        Ok(if now == before { Outcome::NotMade } else { Outcome::Restored(format!("{self} has {before} again in container {container}")) })
    }

    /// A StatefulSet waits for ever for a pod of the bad image to become ready before it puts the next one right (kubernetes #67250), and one whose strategy is OnDelete for
    /// somebody to delete it. So those that are not ready are deleted. Returns those that may not be, where the leave for that was taken back.
    async fn free(&self, client: &Client, container: &str, to: &str) -> Result<Vec<String>, FailureError> {
        let mut kept = Vec::new();
        if self.kind != "StatefulSet" {
            return Ok(kept);
        }
        let stuck = |pods: Vec<Pod>| pods.into_iter().filter(|pod| has_image(pod, container, to) && !is_ready(pod)).collect::<Vec<_>>();
        if stuck(self.pods(client).await?).is_empty() {
            return Ok(kept);
        }
        // Deleted any earlier, it could be made again by the template of before.
        self.observed(client).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        for pod in stuck(self.pods(client).await?) {
            let only = DeleteParams::default().preconditions(Preconditions { uid: pod.uid(), resource_version: None });
            match pods.delete(&pod.name_any(), &only).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
                // By a role, or by an admission policy.
                Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => kept.push(pod.name_any()),
                Err(error) => return Err(FailureError::api(format!("pod {} of {self}, which waits for {to}", pod.name_any()), &error)),
            }
        }
        Ok(kept)
    }

    /// Its pods that are not being deleted.
    async fn pods(&self, client: &Client) -> Result<Vec<Pod>, FailureError> {
        let object = self.get(client).await?;
        let labels = object.data.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
        let selector: Vec<String> = labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let asked = ListParams::default().labels(&selector.join(",")).limit(1_000);
        let pods = patiently(|| pods.list(&asked)).await.map_err(|error| FailureError::api(format!("the pods of {self}"), &error))?;
        Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// In words: how many of its pods were made with this image; as an error why that is none.
    pub(super) async fn shows_image(&self, client: &Client, container: &str, image: &str) -> Result<Result<String, String>, FailureError> {
        let pods = self.pods(client).await?;
        let (all, with) = (pods.len(), pods.iter().filter(|pod| has_image(pod, container, image)).count());
        if with > 0 {
            return Ok(Ok(format!("{self} was given {image} in container {container}: {with} of {all} pods were made with it")));
        }
        let object = self.get(client).await?;
        let status = |field: &str| object.data.pointer(&format!("/status/{field}")).and_then(Value::as_i64);
        // Where admission writes another name for the same image.
        let updated = status("updatedReplicas").or(status("updatedNumberScheduled")).filter(|updated| *updated > 0);
        if let Some(updated) = updated.filter(|_| status("observedGeneration") >= object.metadata.generation) {
            return Ok(Ok(format!("{self} was given {image} in container {container}: {updated} of {all} pods are of the new template")));
        }
        let on_delete = object.data.pointer("/spec/updateStrategy/type").and_then(Value::as_str) == Some("OnDelete");
        let why =
            if on_delete { "its updateStrategy is OnDelete, so nothing is rolled out until somebody deletes pods" } else { "its controller had made none yet" };
        Ok(Err(format!("{self} was given {image} in container {container}, and no pod of it: {why}")))
    }

    /// In words: that it came to so many pods, or towards it; as an error why not.
    pub(super) async fn shows_replicas(&self, client: &Client, before: i32, to: i32) -> Result<Result<String, String>, FailureError> {
        let object = self.get(client).await?;
        let now = object.data.pointer("/status/replicas").and_then(Value::as_i64).unwrap_or(0);
        let said = format!("{self} was scaled from {before} to {to}, and had {now} pods when it was scaled back");
        Ok(if now == i64::from(before) { Err(format!("{said}: its controller had done nothing yet")) } else { Ok(said) })
    }

    /// Waits until the workload's controller has taken the change up.
    pub(super) async fn observed(&self, client: &Client) -> Result<(), FailureError> {
        let deadline = Instant::now() + ROLLED_OUT_WITHIN;
        loop {
            let object = self.get(client).await?;
            if object.data.pointer("/status/observedGeneration").and_then(Value::as_i64) >= object.metadata.generation {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(FailureError::new(self.to_string(), format!("its controller did not take the change up within {ROLLED_OUT_WITHIN:?}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn has_image(pod: &Pod, container: &str, image: &str) -> bool {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    all.filter(|it| it.name == container).any(|it| it.image.as_deref() == Some(image))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn parameters() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}
