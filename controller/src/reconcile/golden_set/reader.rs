//! Reader pods: short-lived pods in a GoldenSet's namespace that mount what the controller cannot, and bring the set to the sidecars' port.
//!
//! A reader has no right of any kind: a token that proves which pod it is, its volume (read only) or its Secret, and nobody dials it. It is the GoldenSet's own object,
//! ends by kubelet's deadline and is removed as soon as it has spoken; one that a controller left behind is removed by the next before it makes another. Names
//! come from the GoldenSet's UID, so there is at most one for each.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use steadfast_api::resource::GoldenSource;

use super::{super::resource::GoldenSet, source::About};
use crate::{
    golden::SourceError,
    reconcile::resource::API_VERSION,
    serve::handed::{Brought, Handed, READERS_MAX},
    webhook::patch::{CA_VARIABLE, ControllerAddress, SidecarSettings, TOKEN_DIRECTORY, pod_security, token_volume},
};

/// Pulling images and attaching volumes are the longest part.
const READ_WITHIN: Duration = Duration::from_secs(120);
/// Kubelet's own deadline, for when nobody else is there.
const ENDS_AFTER: u32 = 180;
/// A reader's pod is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const MOUNT: &str = "/source";

/// Makes readers, and takes them away.
#[derive(Clone)]
pub struct Readers {
    pub client: Client,
    pub handed: Arc<Handed>,
    /// Where readers dial in.
    pub settings: Arc<ArcSwap<SidecarSettings>>,
    /// The program `steadfast`.
    pub image: String,
    pub image_pull_policy: Option<String>,
}

/// A reader under way.
#[derive(Debug)]
pub struct Reading {
    namespace: String,
    pod: String,
    uid: String,
    began: Instant,
    looked: Instant,
    is_of_image: bool,
    /// What it waits for.
    pub why: String,
}

impl Readers {
    /// Wants `create` and `delete` on pods of the namespace.
    ///
    /// # Errors
    /// [`SourceError::Reading`] when it has to wait for others; else why there is no reader.
    pub async fn begin(&self, about: &About<'_>) -> Result<Reading, SourceError> {
        if !self.handed.has_room() {
            return Err(SourceError::Reading(format!("waits for other golden sets: {READERS_MAX} are read at a time")));
        }
        let settings = self.settings.load();
        let Some(controller) = &settings.controller else { return Err(SourceError::Unavailable("this controller has no address for readers".to_owned())) };
        let name = format!("steadfast-golden-{}", about.uid);
        let pod = pod(&name, about, self, &settings, controller);
        let pod: Pod = serde_json::from_value(pod).map_err(|error| SourceError::Broken(format!("its reader pod cannot be made: {error}")))?;
        let api = self.pods(about.namespace);
        let made = match api.create(&PostParams::default(), &pod).await {
            Ok(made) => made,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.remove_old(&api, &name, about.uid).await;
                return Err(SourceError::Reading(format!("waits for pod {name} of an earlier time to be removed")));
            }
            Err(error) => return Err(not_made(about, error)),
        };
        let now = Instant::now();
        let uid = made.uid().unwrap_or_default();
        let reading = Reading {
            namespace: about.namespace.to_owned(),
            pod: name,
            uid: uid.clone(),
            began: now,
            looked: now,
            is_of_image: matches!(about.spec.source, GoldenSource::Image(_)),
            why: "has just been made".to_owned(),
        };
        self.handed.expect(&uid);
        if reading.is_of_image && !has_image_volume(&made) {
            self.end(&reading).await;
            return Err(no_image_volumes());
        }
        Ok(reading)
    }

    /// What it brought; `None` as long as it may still come.
    pub async fn look(&self, reading: &mut Reading) -> Option<Result<Bytes, SourceError>> {
        if let Some(brought) = self.brought(reading) {
            return Some(brought.map_err(SourceError::Broken));
        }
        if reading.looked.elapsed() < LOOK_EVERY {
            return None;
        }
        reading.looked = Instant::now();
        let failed = |why: &str| Some(Err(SourceError::Unavailable(format!("reader pod {} brought no golden set: {why}", reading.pod))));
        let pod = match self.pods(&reading.namespace).get_opt(&reading.pod).await {
            Ok(pod) => pod.filter(|pod| pod.uid().as_deref() == Some(&reading.uid)),
            Err(error) if reading.began.elapsed() >= READ_WITHIN => return failed(&error.to_string()),
            Err(_) => return None,
        };
        // It may have spoken while it was looked at.
        if let Some(brought) = self.brought(reading) {
            return Some(brought.map_err(SourceError::Broken));
        }
        let Some(pod) = pod else { return failed("somebody removed it") };
        let status = pod.status.unwrap_or_default();
        match status.phase.as_deref() {
            Some("Failed" | "Succeeded") => return failed(&ended(&status)),
            _ if reading.began.elapsed() >= READ_WITHIN => {
                let why = waits_for(&status).unwrap_or_else(|| reading.why.clone());
                return failed(&format!("it was given {READ_WITHIN:?}; {why}{}", if reading.is_of_image { of_its_node(&why) } else { "" }));
            }
            _ => {}
        }
        if let Some(why) = waits_for(&status) {
            reading.why = why;
        }
        None
    }

    fn brought(&self, reading: &Reading) -> Option<Brought> {
        self.handed.take(&reading.uid)
    }

    /// Takes it away.
    pub async fn end(&self, reading: &Reading) {
        self.handed.forget(&reading.uid);
        delete(&self.pods(&reading.namespace), &reading.pod, &reading.uid).await;
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn remove_old(&self, api: &Api<Pod>, name: &str, owner: &str) {
        if let Ok(Some(pod)) = api.get_opt(name).await
            && pod.owner_references().iter().any(|of| of.uid == owner)
            && let Some(uid) = pod.uid()
        {
            delete(api, name, &uid).await;
        }
    }
}

async fn delete(api: &Api<Pod>, name: &str, uid: &str) {
    let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    match api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) }).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        // Its deadline ends it, and it goes with its GoldenSet.
        Err(error) => tracing::warn!(pod = name, %error, "a reader of a golden set could not be removed"),
    }
}

fn no_image_volumes() -> SourceError {
    SourceError::NotSupported(
        "spec.source.image: this cluster's API server takes no image volumes: they need Kubernetes 1.33 or newer with the feature gate ImageVolume (at the API server and \
         at kubelets), and a container runtime that has them (containerd 2.1, CRI-O 1.31); take persistentVolumeClaim, objectStore or configMap instead"
            .to_owned(),
    )
}

/// A kubelet or a runtime without image volumes says nothing that tells of it: the container is never made.
fn of_its_node(why: &str) -> &'static str {
    if why.starts_with("ContainerCreating") || why.starts_with("CreateContainer") {
        "; image volumes need the feature gate ImageVolume at the node's kubelet too, and a container runtime that has them (containerd 2.1, CRI-O 1.31)"
    } else {
        ""
    }
}

fn not_made(about: &About<'_>, error: kube::Error) -> SourceError {
    let kube::Error::Api(status) = error else { return SourceError::Unavailable(error.to_string()) };
    if status.code == 403 && status.message.contains("cannot create resource") {
        return SourceError::NotAllowed(format!(
            "the controller may not make reader pods in namespace {0}: add it to the chart's value goldenSets.readerNamespaces (a role that lets it create pods there)",
            about.namespace
        ));
    }
    // The API server drops a field that it does not know, and misses it then.
    if status.code == 422 && matches!(about.spec.source, GoldenSource::Image(_)) && status.message.contains("must specify a volume type") {
        return no_image_volumes();
    }
    SourceError::Unavailable(format!("no reader pod: {}", status.message))
}

fn has_image_volume(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.image.is_some())
}

/// Why it has ended.
fn ended(status: &PodStatus) -> String {
    let container = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.terminated.as_ref());
    let said = container.map(|ended| ended.message.clone().unwrap_or_else(|| format!("it ended with {}", ended.exit_code)));
    said.or_else(|| status.message.clone()).unwrap_or_else(|| "it ended".to_owned()).trim().to_owned()
}

/// What keeps it from running.
fn waits_for(status: &PodStatus) -> Option<String> {
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        Some(format!("{}{message}", waiting.reason.as_deref().unwrap_or("waiting")))
    });
    let unscheduled = || {
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
        condition.message.clone()
    };
    unscheduled().or(waiting)
}

fn pod(name: &str, about: &About<'_>, readers: &Readers, settings: &SidecarSettings, controller: &ControllerAddress) -> Value {
    let mut volumes = vec![token_volume(), json!({ "name": "tmp", "emptyDir": { "sizeLimit": "128Mi" } })];
    let mut mounts = vec![json!({ "name": volumes[0]["name"], "mountPath": TOKEN_DIRECTORY, "readOnly": true }), json!({ "name": "tmp", "mountPath": "/tmp" })];
    let mut mount = |volume: Value, path: &str| {
        volumes.push(volume);
        mounts.push(json!({ "name": "source", "mountPath": MOUNT, "readOnly": true }));
        format!("{MOUNT}/{}", path.trim_matches('/'))
    };
    let (mut account, mut secret) = (None, None);
    let source = match &about.spec.source {
        GoldenSource::PersistentVolumeClaim(claim) => {
            mount(json!({ "name": "source", "persistentVolumeClaim": { "claimName": claim.claim_name, "readOnly": true } }), &claim.path)
        }
        GoldenSource::Image(image) => {
            mount(json!({ "name": "source", "image": { "reference": image.reference, "pullPolicy": image.pull_policy } }), &image.path)
        }
        GoldenSource::ObjectStore(store) => {
            (account, secret) = (store.service_account_name.clone(), store.secret_name.clone());
            store.url.clone()
        }
        GoldenSource::ConfigMap(map) => map.name.clone(),
    };
    let mut pod = json!({
        "metadata": {
            "name": name,
            "labels": { "app.kubernetes.io/managed-by": "steadfast", "steadfast.dev/part": "golden-reader", "steadfast.dev/inject": "false" },
            "ownerReferences": [{ "apiVersion": API_VERSION, "kind": GoldenSet::kind(&()), "name": about.name, "uid": about.uid }],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": ENDS_AFTER,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": pod_security(settings.run_as_user),
            "containers": [{
                "name": "reader",
                "image": readers.image,
                "imagePullPolicy": readers.image_pull_policy,
                "args": ["golden", "bring", source, format!("--controller={}", controller.url), format!("--token-file={TOKEN_DIRECTORY}/token")],
                "env": [{ "name": CA_VARIABLE, "value": controller.ca }],
                "volumeMounts": mounts,
                "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }],
            "volumes": volumes,
        },
    });
    if let Some(account) = account {
        pod["spec"]["serviceAccountName"] = account.into();
    }
    if let Some(secret) = secret {
        pod["spec"]["containers"][0]["envFrom"] = json!([{ "secretRef": { "name": secret } }]);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_reader_is_told_in_kubelets_or_the_schedulers_words() {
        let status = |yaml: &str| -> PodStatus { serde_saphyr::from_str(yaml).unwrap() };
        let unscheduled = status("conditions: [{type: PodScheduled, status: 'False', message: 'persistentvolumeclaim \"models\" not found'}]\nphase: Pending");
        assert!(waits_for(&unscheduled).unwrap().contains("models"));
        let container =
            |state: &str| status(&format!("containerStatuses: [{{name: reader, image: x, imageID: x, ready: false, restartCount: 0, state: {state}}}]"));
        let pulling = container("{waiting: {reason: ErrImagePull, message: no such image}}");
        assert_eq!(waits_for(&pulling).unwrap(), "ErrImagePull: no such image");
        assert!(of_its_node(&waits_for(&container("{waiting: {reason: ContainerCreating}}")).unwrap()).contains("kubelet"));
        assert_eq!(of_its_node(&waits_for(&pulling).unwrap()), "");
        assert_eq!(ended(&container("{terminated: {exitCode: 3, message: 'no way to the controller\n'}}")), "no way to the controller");
        assert_eq!(ended(&status("{phase: Failed, message: DeadlineExceeded}")), "DeadlineExceeded");
    }
}
