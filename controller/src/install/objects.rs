//! What is installed, read from the manifests that are published, and whether the caller may make it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    apimachinery::pkg::apis::meta::v1::APIResourceList,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};

use super::{Finding, is_forbidden, words};
use crate::webhook::manifest;

/// Where the published manifests put everything.
pub const NAMESPACE: &str = "steadfast-system";
const DEFINITIONS: &str = include_str!("../../../deploy/manifests/crds.yaml");
const SYSTEM: &str = include_str!("../../../deploy/manifests/00-namespace.yaml");
const CONTROLLER: &str = include_str!("../../../deploy/manifests/steadfast.yaml");
const ADMISSION: &str = include_str!("../../../deploy/manifests/admission.yaml");
const NODE_AGENT: &str = include_str!("../../../deploy/manifests/opt-in/node-agent.yaml");
/// Kinds that came with 1.30; on older clusters they are left out.
const POLICIES: &str = "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy";
/// What `helm` and `kubectl apply` do with each object.
const VERBS: [&str; 3] = ["create", "get", "patch"];
/// Of what is tried; nothing is kept.
const TRIED_AS: &str = "steadfast-install-check";

/// Every object of an installation in `namespace`.
pub(super) fn all(namespace: &str, node_agent: bool) -> Vec<DynamicObject> {
    let files = [SYSTEM, DEFINITIONS, CONTROLLER, ADMISSION].into_iter().chain(node_agent.then_some(NODE_AGENT));
    let texts = files.flat_map(manifest::split).map(|(_, text)| text);
    // The only name in them that depends on where they go.
    texts.filter_map(|text| serde_saphyr::from_str(&text.replace(NAMESPACE, namespace)).ok()).collect()
}

/// An object with what the API server calls its kind.
pub(super) struct Placed {
    pub object: DynamicObject,
    pub resource: ApiResource,
    pub api: Api<DynamicObject>,
    pub namespace: Option<String>,
}

impl Placed {
    /// `ClusterRole steadfast-view`.
    pub fn shown(&self) -> String {
        format!("{} {}", self.resource.kind, self.object.name_any())
    }
}

/// The objects whose kinds this cluster serves, and the kinds that it does not.
#[derive(Default)]
pub(super) struct Known {
    pub placed: Vec<Placed>,
    unknown: BTreeSet<String>,
    failed: Option<String>,
}

impl Known {
    pub async fn ask(client: &Client, objects: &[DynamicObject]) -> Self {
        let mut served: BTreeMap<String, Option<APIResourceList>> = BTreeMap::new();
        let mut known = Self::default();
        for object in objects {
            let Some(types) = &object.types else { continue };
            let version = &types.api_version;
            if !served.contains_key(version) {
                let list = if version.contains('/') { client.list_api_group_resources(version).await } else { client.list_core_api_resources(version).await };
                if let Err(error) = &list
                    && !matches!(error, kube::Error::Api(answer) if answer.code == 404)
                {
                    known.failed = Some(words(error));
                }
                served.insert(version.clone(), list.ok());
            }
            let found = served[version].as_ref().and_then(|list| list.resources.iter().find(|one| one.kind == types.kind && !one.name.contains('/')));
            let Some(found) = found else {
                known.unknown.insert(format!("{version} {}", types.kind));
                continue;
            };
            let (group, short) = version.split_once('/').unwrap_or(("", version));
            let resource = ApiResource {
                group: group.to_owned(),
                version: short.to_owned(),
                api_version: version.clone(),
                kind: types.kind.clone(),
                plural: found.name.clone(),
            };
            let namespace = found.namespaced.then(|| object.namespace().unwrap_or_default());
            let api = match &namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            known.placed.push(Placed { object: object.clone(), resource, api, namespace });
        }
        known
    }
}

/// What one may do, if the API server says.
pub(super) async fn may(client: &Client, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Result<bool, kube::Error> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

pub(super) async fn permissions(client: &Client, known: &Known, namespace: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(why) = &known.failed {
        findings.push(Finding::warning("kinds", format!("what this cluster serves could not be asked: {why}"), "ask again as somebody who may log in"));
    }
    let (newer, kinds): (Vec<&str>, Vec<&str>) = known.unknown.iter().map(String::as_str).partition(|kind| kind.starts_with(POLICIES));
    if !newer.is_empty() && known.failed.is_none() {
        findings.push(Finding::warning(
            "kinds",
            "this API server serves no ValidatingAdmissionPolicies: what the controller may do is limited by its roles alone",
            "read what they cannot say in docs/security.md; Kubernetes 1.30 has the policies",
        ));
    }
    if !kinds.is_empty() && known.failed.is_none() {
        findings.push(Finding::blocked(
            "kinds",
            format!("this API server does not serve {}", kinds.join(", ")),
            "it is no conformant Kubernetes 1.29 or later",
        ));
    }
    let mut kinds: BTreeMap<(&str, &str, Option<&str>), &Placed> = BTreeMap::new();
    for placed in &known.placed {
        kinds.insert((&placed.resource.group, &placed.resource.plural, placed.namespace.as_deref()), placed);
    }
    let mut missing = 0;
    for (group, resource, within) in kinds.keys().copied() {
        let mut refused = Vec::new();
        for verb in VERBS {
            match may(client, verb, group, resource, within).await {
                Ok(true) => {}
                Ok(false) => refused.push(verb),
                Err(error) => {
                    findings.push(Finding::warning("permissions", format!("rights could not be asked for: {}", words(&error)), "ask again"));
                    return findings;
                }
            }
        }
        if !refused.is_empty() {
            missing += 1;
            let full = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
            let place = within.map_or("cluster-wide".to_owned(), |namespace| format!("in namespace {namespace}"));
            findings.push(Finding::blocked(
                "permissions",
                format!("you may not {} {full} {place}", refused.join(", ")),
                "let a cluster administrator install it; whoever may `edit` a namespace can use it afterwards",
            ));
        }
    }
    if missing == 0 && !kinds.is_empty() {
        findings.push(Finding::ok("permissions", format!("you may make, read and change all {} kinds of objects that are installed", kinds.len())));
    }
    if matches!(may(client, "create", "", "secrets", Some(namespace)).await, Ok(false)) {
        findings.push(Finding::warning(
            "permissions",
            format!("Helm keeps its releases in Secrets, which you may not create in {namespace}"),
            "use the plain manifests in deploy/manifests",
        ));
    }
    findings
}

/// Tries every object as `kubectl apply --server-side --dry-run=server` would.
pub(super) async fn tried(known: &Known, namespace: &str, exists: bool) -> Vec<Finding> {
    let (mut findings, mut good) = (Vec::new(), 0);
    let parameters = PatchParams { dry_run: true, ..PatchParams::apply(TRIED_AS).force() };
    for placed in &known.placed {
        // Nothing can be tried in a namespace that is not there.
        if placed.namespace.as_deref() == Some(namespace) && !exists {
            continue;
        }
        match placed.api.patch(&placed.object.name_any(), &parameters, &Patch::Apply(&placed.object)).await {
            Ok(_) => good += 1,
            // A binding's role was only tried as well; and rights were asked for already, but for those that a role hands on.
            Err(kube::Error::Api(answer)) if answer.code == 404 => {}
            Err(error) if is_forbidden(&error) && !words(&error).contains("attempting to grant") => {}
            Err(error) if is_forbidden(&error) => findings.push(Finding::blocked(
                "permissions",
                format!("{}: it hands on rights that you do not have: {}", placed.shown(), words(&error)),
                "let somebody install it who has these rights, or the right to `escalate` and `bind` roles",
            )),
            Err(error) if words(&error).contains("does not support dry run") => findings.push(Finding::warning(
                "admission",
                format!("{} could not be tried: {}", placed.shown(), words(&error)),
                "look at that webhook's own rules: it may refuse what is installed",
            )),
            Err(error) => findings.push(Finding::blocked(
                "admission",
                format!("{} would be refused: {}", placed.shown(), words(&error)),
                "whoever keeps that rule can except it; the message names it",
            )),
        }
    }
    if findings.is_empty() && good > 0 {
        let rest = if exists { "" } else { "; what goes into the namespace is tried once it is there" };
        findings.push(Finding::ok("admission", format!("{good} objects were tried by dry run and let in{rest}")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_read_from_the_published_manifests_and_goes_where_it_is_told() {
        let objects = all("elsewhere", false);
        let kinds: BTreeSet<&str> = objects.iter().filter_map(|object| Some(object.types.as_ref()?.kind.as_str())).collect();
        for kind in ["Namespace", "Deployment", "ClusterRole", "MutatingWebhookConfiguration", "CustomResourceDefinition", "Secret"] {
            assert!(kinds.contains(kind), "{kind}: {kinds:?}");
        }
        assert!(!kinds.contains("DaemonSet"));
        assert!(objects.iter().filter_map(ResourceExt::namespace).all(|namespace| namespace == "elsewhere"));
        assert!(objects.iter().any(|object| object.name_any() == "elsewhere"), "the namespace itself");
        let documents = [SYSTEM, DEFINITIONS, CONTROLLER, ADMISSION].into_iter().flat_map(manifest::split).count();
        assert_eq!(objects.len(), documents, "every document is an object");
        assert!(all("x", true).iter().any(|object| object.types.as_ref().is_some_and(|types| types.kind == "DaemonSet")));
    }
}
