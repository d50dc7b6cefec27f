//! What the API server asks about each new pod, and the answer. No pod is ever refused: one that cannot get the sidecar starts without it, and is told of.
//!
//! The two webhooks of one configuration divide the question by selectors, so that nothing has to be looked up: pods of namespaces that ask (`/inject/namespace`), and pods
//! that ask for themselves, or say what means nothing (`/inject/pod`). Where pods may be redirected, both have a second address, at which only pods that ask for that are dealt with: whoever is
//! asked about there is asked about at the first address too, which tells what could not be done.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    decide::{Decision, INJECT_LABEL, INTERCEPTION_ANNOTATION, REDIRECT, Skip, decide},
    patch::{SidecarSettings, patch},
};

/// Where pods of namespaces that ask are sent.
pub const NAMESPACE_PATH: &str = "/inject/namespace";
/// Where pods that ask for themselves are sent.
pub const POD_PATH: &str = "/inject/pod";

/// At the end of either: the chart allows redirection, and PodSecurity of the namespace does not stand against it.
pub const MAY_REDIRECT: &str = "/redirect";

/// `AdmissionReview` of `admission.k8s.io/v1`, as far as it matters here.
#[derive(Deserialize)]
struct Review {
    #[serde(rename = "apiVersion")]
    api_version: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    object: Value,
}

/// What came of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Injected,
    /// It is there already, or the pod does not want it.
    Nothing,
    Skipped(Skip),
    /// The pod is of a form that this version does not know.
    Unreadable(String),
}

impl Outcome {
    /// As a label of metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Nothing => "nothing",
            Self::Skipped(_) => "skipped",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// An answer, and what to tell others.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The `AdmissionReview` that goes back.
    pub review: Value,
    pub outcome: Outcome,
    /// It is counted. Not in a dry run, which must leave no trace, nor where somebody asks a second time about one pod.
    pub counts: bool,
    /// What an Event about the outcome is about: the pod, or, since it may have no name yet, what made it. `None` where nothing is counted.
    pub about: Option<ObjectReference>,
}

/// Answers the `AdmissionReview` in `body`; `path` says who asked for the sidecar.
///
/// # Errors
/// When `body` is none; the API server then goes on without us.
pub fn answer(path: &str, body: &[u8], settings: &SidecarSettings) -> Result<Answer, String> {
    let review: Review = serde_json::from_slice(body).map_err(|error| format!("the body is no AdmissionReview: {error}"))?;
    if review.api_version != "admission.k8s.io/v1" {
        return Err(format!("apiVersion: {:?} is not understood: send admission.k8s.io/v1", review.api_version));
    }
    let request = review.request.ok_or("request: missing")?;
    let (path, may_redirect) = path.strip_suffix(MAY_REDIRECT).map_or((path, false), |path| (path, true));
    let namespace: BTreeMap<String, String> = if path == NAMESPACE_PATH { [(INJECT_LABEL.to_owned(), "true".to_owned())].into() } else { BTreeMap::new() };
    let mut response = json!({ "uid": request.uid, "allowed": true });
    let mut counts = !request.dry_run;
    let (outcome, about) = match serde_json::from_value::<Pod>(request.object) {
        Err(_) if may_redirect => (second(&mut counts), None),
        Err(error) => (Outcome::Unreadable(error.to_string()), None),
        Ok(pod) => {
            let asks = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(INTERCEPTION_ANNOTATION)).is_some_and(|word| word == REDIRECT);
            let outcome = match decide(&pod, &request.namespace, &namespace, may_redirect && settings.redirect.is_some()) {
                Decision::Inject(_) | Decision::Skip(_) if may_redirect && !asks => second(&mut counts),
                Decision::Skip(_) if may_redirect => second(&mut counts),
                Decision::Already => second(&mut counts),
                Decision::NotAsked => Outcome::Nothing,
                Decision::Skip(skip) => Outcome::Skipped(skip),
                Decision::Inject(plan) => {
                    let patch = serde_json::to_vec(&patch(&pod, &plan, settings)).map_err(|error| error.to_string())?;
                    response["patchType"] = "JSONPatch".into();
                    response["patch"] = STANDARD.encode(patch).into();
                    Outcome::Injected
                }
            };
            (outcome, counts.then(|| about(&pod, &request.namespace)))
        }
    };
    let warning = match &outcome {
        Outcome::Skipped(skip) => Some(format!("steadfast: no sidecar for this pod: {skip}")),
        Outcome::Unreadable(why) => Some(format!("steadfast: no sidecar for this pod, which this version cannot read: {why}")),
        Outcome::Injected | Outcome::Nothing => None,
    };
    if let Some(warning) = warning {
        response["warnings"] = json!([warning]);
    }
    response["auditAnnotations"] = json!({ "sidecar": outcome.name() });
    Ok(Answer { review: json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }), outcome, counts, about })
}

/// Not the one time that counts for a pod.
const fn second(counts: &mut bool) -> Outcome {
    *counts = false;
    Outcome::Nothing
}

fn about(pod: &Pod, namespace: &str) -> ObjectReference {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let namespace = Some(namespace.to_owned());
    match (owner, &pod.metadata.name) {
        (Some(owner), _) => ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace,
            ..ObjectReference::default()
        },
        (None, name) => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: name.clone().or_else(|| pod.metadata.generate_name.clone()),
            namespace,
            ..ObjectReference::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::{
        flags::RunAsUser,
        patch::{LEAVE_SECONDS, RedirectSettings, SidecarResources},
    };

    fn settings() -> SidecarSettings {
        SidecarSettings {
            image: "proxy:1".into(),
            image_pull_policy: None,
            run_as_user: RunAsUser::DEFAULT,
            controller: None,
            resources: SidecarResources::default(),
            leave_seconds: LEAVE_SECONDS,
            redirect: Some(RedirectSettings { image: "agent:1".into(), image_pull_policy: None }),
        }
    }

    fn ask(path: &str, change: impl FnOnce(&mut Value)) -> Answer {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "namespace": "models", "operation": "CREATE", "dryRun": false,
                "object": {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {
                        "generateName": "recommender-", "labels": { "steadfast.dev/inject": "true" },
                        "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "recommender-1", "uid": "r-1", "controller": true }],
                    },
                    "spec": { "containers": [{ "name": "server", "image": "x", "ports": [{ "name": "http", "containerPort": 8000 }] }] },
                },
            },
        });
        change(&mut review["request"]);
        answer(path, &serde_json::to_vec(&review).unwrap(), &settings()).unwrap()
    }

    #[test]
    fn a_pod_that_asks_gets_a_patch_that_can_be_applied() {
        let answer = ask(POD_PATH, |_| {});
        let response = &answer.review["response"];
        assert_eq!((&response["uid"], &response["allowed"], &response["patchType"]), (&json!("u-1"), &json!(true), &json!("JSONPatch")));
        let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap();
        assert!(patch.0.len() >= 4);
        assert_eq!(answer.outcome, Outcome::Injected);
    }

    #[test]
    fn a_pod_that_cannot_have_it_is_let_in_with_a_warning_about_what_made_it() {
        let answer = ask(POD_PATH, |request| request["object"]["spec"]["hostNetwork"] = true.into());
        let response = &answer.review["response"];
        assert!(response["allowed"] == true && response.get("patch").is_none());
        assert!(response["warnings"][0].as_str().unwrap().contains("hostNetwork"), "{response}");
        assert_eq!(answer.outcome, Outcome::Skipped(Skip::HostNetwork));
        let about = answer.about.unwrap();
        assert_eq!((about.kind.as_deref(), about.name.as_deref(), about.uid.as_deref()), (Some("ReplicaSet"), Some("recommender-1"), Some("r-1")));
        assert_eq!(ask(POD_PATH, |request| request["dryRun"] = true.into()).about, None, "a dry run leaves no trace");
    }

    #[test]
    fn the_path_says_who_asked_and_a_pod_may_decline() {
        let no_label = |request: &mut Value| request["object"]["metadata"]["labels"] = json!({});
        assert_eq!(ask(POD_PATH, no_label).outcome, Outcome::Nothing);
        assert_eq!(ask(NAMESPACE_PATH, no_label).outcome, Outcome::Injected);
        let declines = |request: &mut Value| request["object"]["metadata"]["labels"] = json!({ "steadfast.dev/inject": "false" });
        assert_eq!(ask(NAMESPACE_PATH, declines).outcome, Outcome::Nothing);
        let answer = ask(POD_PATH, |request| request["object"]["metadata"]["labels"] = json!({ "steadfast.dev/inject": "yes" }));
        assert!(answer.review["response"]["warnings"][0].as_str().unwrap().contains("\"yes\"") && answer.about.is_some(), "{answer:?}");
    }

    #[test]
    fn a_pod_is_redirected_only_where_the_path_says_that_it_may() {
        let asks = |request: &mut Value| request["object"]["metadata"]["annotations"] = json!({ "steadfast.dev/interception": "redirect" });
        assert_eq!(ask(POD_PATH, asks).outcome, Outcome::Skipped(Skip::RedirectNotAllowed));
        assert_eq!(ask(&format!("{POD_PATH}{MAY_REDIRECT}"), asks).outcome, Outcome::Injected);
        assert_eq!(ask(&format!("{NAMESPACE_PATH}{MAY_REDIRECT}"), asks).outcome, Outcome::Injected);
    }

    #[test]
    fn a_pod_counts_once_however_often_is_asked_about_it() {
        let second = format!("{POD_PATH}{MAY_REDIRECT}");
        // Who does not ask to be redirected is dealt with at the other address, and so is who cannot have a sidecar at all.
        let host = |request: &mut Value| {
            request["object"]["metadata"]["annotations"] = json!({ "steadfast.dev/interception": "redirect" });
            request["object"]["spec"]["hostNetwork"] = true.into();
        };
        for answer in [ask(&second, |_| {}), ask(&second, host)] {
            assert!(answer.outcome == Outcome::Nothing && !answer.counts && answer.about.is_none(), "{answer:?}");
            assert!(answer.review["response"].get("warnings").is_none() && answer.review["response"].get("patch").is_none());
        }
        let answer = ask(POD_PATH, host);
        assert!(answer.outcome == Outcome::Skipped(Skip::HostNetwork) && answer.counts, "and by its own reason: {answer:?}");
        let injected = ask(POD_PATH, |_| {});
        assert!(injected.counts);
        let again = ask(POD_PATH, |request| {
            let patch = STANDARD.decode(injected.review["response"]["patch"].as_str().unwrap()).unwrap();
            let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
            json_patch::patch(&mut request["object"], &patch).unwrap();
        });
        assert!(again.outcome == Outcome::Nothing && !again.counts, "{again:?}");
        assert!(!ask(POD_PATH, |request| request["dryRun"] = true.into()).counts);
    }

    #[test]
    fn what_is_not_understood_is_let_in_or_said() {
        let answer = ask(POD_PATH, |request| request["object"]["spec"]["containers"] = "many".into());
        assert!(answer.review["response"]["allowed"] == true && matches!(answer.outcome, Outcome::Unreadable(_)));
        let refused = |body: &str| super::answer(POD_PATH, body.as_bytes(), &settings()).unwrap_err();
        assert!(refused("{").contains("AdmissionReview"));
        assert!(refused(r#"{"apiVersion": "admission.k8s.io/v1beta1"}"#).contains("v1beta1"));
        assert!(refused(r#"{"apiVersion": "admission.k8s.io/v1"}"#).contains("request"));
    }
}
