//! CPU pressure on a node: a short-lived pod that is pinned to it and holds a share of every core busy, with the burner that the sidecars have.
//!
//! It needs no privilege. It requests next to nothing, so that the node's scheduler gives it what others leave and its fair share of the rest; it ends by itself, and should
//! it not, kubelet ends it (`activeDeadlineSeconds`, which counts the pulling of its image too), whoever made it is still there or not. What it burned it says in its last line.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, LogParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use steadfast_api::{Percent, Span};

use super::{FailureError, GivenUp, Means, undo::Outcome};
use crate::{platform::burned::Burned, reconcile::resource::MANAGER, webhook::patch::pod_security};

/// Pulling its image is the longest part.
const RUNS_WITHIN: Duration = Duration::from_secs(60);
/// Kubelet heeds a deadline within some seconds.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn api(means: &Means) -> Api<Pod> {
    Api::namespaced(means.prompt.clone(), &means.namespace)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Returns once it burns.
pub(super) async fn start(means: &Means, name: &str, node: &str, load: Percent, lasts: Span, given_up: &GivenUp) -> Result<(), FailureError> {
    let what = || format!("burner pod {name} on node {node}");
    let seconds = lasts.get().as_secs().max(1);
    let pod = json!({
        "metadata": { "name": name, "labels": { "app.kubernetes.io/managed-by": "steadfast", "steadfast.dev/burner": "true", "steadfast.dev/inject": "false" } },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds + RUNS_WITHIN.as_secs(),
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "imagePullSecrets": means.image_pull_secrets,
            "tolerations": [{ "operator": "Exists" }],
            "securityContext": pod_security(means.run_as_user),
            "containers": [{
                "name": "burner",
                "image": means.image,
                "imagePullPolicy": means.image_pull_policy,
                "args": ["burn", "--load", load.to_string(), "--for", format!("{seconds}s")],
                "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).map_err(|error| FailureError::new(what(), error))?;
    let api = api(means);
    api.create(&PostParams::default(), &pod).await.map_err(|error| FailureError::api(what(), &error))?;
    given_up.or(runs(&api, name, &what())).await
}

/// Waits until it runs.
async fn runs(api: &Api<Pod>, name: &str, what: &str) -> Result<(), FailureError> {
    let deadline = Instant::now() + RUNS_WITHIN;
    loop {
        let pod = api.get(name).await.map_err(|error| FailureError::api(what, &error))?;
        let status = pod.status.as_ref();
        let waiting = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default().iter().find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            Some(format!("{}: {}", waiting.reason.as_deref().unwrap_or_default(), waiting.message.as_deref().unwrap_or_default()))
        });
        match phase(&pod) {
            "Running" => return Ok(()),
            "Failed" => return Err(FailureError::new(what, status.and_then(|status| status.message.clone()).unwrap_or_else(|| "it failed".to_owned()))),
            _ if Instant::now() >= deadline => {
                return Err(FailureError::new(
                    what,
                    format!("does not run after {RUNS_WITHIN:?}: {}", waiting.unwrap_or_else(|| "kubelet has not taken it up".to_owned())),
                ));
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Ends it, and says what it burned.
pub(super) async fn end(means: &Means, name: &str, node: &str) -> Result<Outcome, FailureError> {
    let what = || format!("burner pod {name} on node {node}");
    let api = api(means);
    // Where it could not be made for want of a right, that to change it is missing too.
    if api.get_opt(name).await.map_err(|error| FailureError::api(what(), &error))?.is_none() {
        return Ok(Outcome::NotMade);
    }
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(name, &parameters, &Patch::Merge(json!({ "spec": { "activeDeadlineSeconds": 1 } }))).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Outcome::NotMade),
        Err(error) => return Err(FailureError::api(what(), &error)),
    }
    let deadline = Instant::now() + ENDS_WITHIN;
    while Instant::now() < deadline && !api.get(name).await.is_ok_and(|pod| matches!(phase(&pod), "Failed" | "Succeeded")) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let said = api.logs(name, &LogParams { tail_lines: Some(1), ..LogParams::default() }).await.unwrap_or_default();
    match api.delete(name, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(FailureError::api(what(), &error)),
    }
    let Ok(burned) = Burned::read(&said) else {
        return Ok(Outcome::Unproven(format!("{} did not say what it burned; its last line: {said:?}", what())));
    };
    Ok(burned.judged(node, "every core").map_or_else(Outcome::Unproven, Outcome::Undone))
}
