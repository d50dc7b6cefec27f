//! What is there already: earlier installations, their webhook, their CustomResourceDefinitions, and other webhooks that see pods.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, RuleWithOperations},
    core::v1::Namespace,
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::Value;

use super::{Finding, is_forbidden, objects::Known, words};

const WEBHOOK: &str = "steadfast";
const SERVICE: &str = "steadfast-webhook";
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";
const RELEASE_NAME: &str = "meta.helm.sh/release-name";
const DEFINITION: &str = "CustomResourceDefinition";

/// Of the objects that a cluster has once: whose they are.
pub(super) async fn installs(client: &Client, known: &Known, namespace: &str) -> Vec<Finding> {
    let (mut releases, mut plain, mut hidden) = (BTreeSet::new(), Vec::new(), false);
    for placed in known.placed.iter().filter(|placed| placed.namespace.is_none() && !["Namespace", DEFINITION].contains(&placed.resource.kind.as_str())) {
        let object = match placed.api.get_opt(&placed.object.name_any()).await {
            Ok(Some(object)) => object,
            Ok(None) => continue,
            Err(_) => {
                hidden = true;
                continue;
            }
        };
        match (object.annotations().get(RELEASE_NAME), object.annotations().get(RELEASE_NAMESPACE)) {
            (Some(name), Some(namespace)) => {
                releases.insert((namespace.clone(), name.clone()));
            }
            _ => plain.push(placed.shown()),
        }
    }
    let mut findings = Vec::new();
    for (of, name) in &releases {
        findings.push(if of == namespace {
            Finding::ok("earlier", format!("release {name} is in namespace {of}: `helm upgrade` brings this version"))
        } else {
            Finding::blocked(
                "earlier",
                format!("release {name} is in namespace {of}, and a cluster takes one: both would own the same roles and webhooks"),
                format!("upgrade that one (--namespace {of}), or `helm uninstall {name} --namespace {of}` first"),
            )
        });
    }
    if !plain.is_empty() {
        findings.push(Finding::warning(
            "earlier",
            format!("there already, and of no Helm release: {}", plain.join(", ")),
            "apply deploy/manifests again to upgrade it; Helm takes it over with --take-ownership",
        ));
    }
    findings.extend(webhooks(client, namespace).await);
    if releases.is_empty() && plain.is_empty() {
        findings.push(if hidden {
            Finding::warning(
                "earlier",
                "whether there is an earlier installation could not be seen",
                "ask as somebody who may get clusterroles: kubectl get clusterrole steadfast-controller",
            )
        } else {
            Finding::ok("earlier", "no earlier installation was found")
        });
    }
    findings
}

async fn webhooks(client: &Client, namespace: &str) -> Vec<Finding> {
    let all = match Api::<MutatingWebhookConfiguration>::all(client.clone()).list(&ListParams::default()).await {
        Ok(all) => all.items,
        Err(error) => {
            return vec![Finding::warning(
                "webhooks",
                format!("webhooks could not be looked at: {}", words(&error)),
                "ask somebody who may list mutatingwebhookconfigurations whether one is left of an earlier installation: kubectl get mutatingwebhookconfiguration steadfast",
            )];
        }
    };
    let mut findings = Vec::new();
    for configuration in all.iter().filter(|configuration| configuration.name_any() == WEBHOOK) {
        findings.push(ours(client, configuration, namespace).await);
    }
    let others: Vec<String> = all.iter().filter(|one| one.name_any() != WEBHOOK && sees_pods(one)).map(ResourceExt::name_any).collect();
    if !others.is_empty() {
        findings.push(Finding::ok("webhooks", format!("others change pods too, which Steadfast stands beside in either order: {}", others.join(", "))));
    }
    findings
}

fn sees_pods(configuration: &MutatingWebhookConfiguration) -> bool {
    let has = |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|one| one == word || one == "*");
    let rule = |rule: &RuleWithOperations| has(&rule.resources, "pods") && has(&rule.operations, "CREATE");
    configuration.webhooks.iter().flatten().flat_map(|webhook| webhook.rules.iter().flatten()).any(rule)
}

/// Whether somebody answers for the webhook that is there.
async fn ours(client: &Client, configuration: &MutatingWebhookConfiguration, namespace: &str) -> Finding {
    let first = configuration.webhooks.iter().flatten().next();
    let service = first.and_then(|webhook| webhook.client_config.service.as_ref());
    let of = service.map_or(namespace, |service| service.namespace.as_str());
    let fails = configuration.webhooks.iter().flatten().any(|webhook| webhook.failure_policy.as_deref() == Some("Fail"));
    let slices =
        Api::<EndpointSlice>::namespaced(client.clone(), of).list(&ListParams::default().labels(&format!("kubernetes.io/service-name={SERVICE}"))).await;
    let answers = match slices {
        Ok(slices) => slices
            .items
            .iter()
            .flat_map(|slice| slice.endpoints.iter())
            .any(|endpoint| endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))),
        Err(error) => {
            return Finding::warning(
                "webhooks",
                format!("the webhook {WEBHOOK} calls namespace {of}, and whether somebody answers there could not be asked: {}", words(&error)),
                "ask as somebody who may list endpointslices there",
            );
        }
    };
    let lives = !matches!(Api::<Namespace>::all(client.clone()).get_opt(of).await, Ok(None));
    if answers {
        return Finding::ok("webhooks", format!("the webhook {WEBHOOK} is there, and answered in namespace {of}"));
    }
    let left = format!(
        "the webhook {WEBHOOK} is left from an earlier installation in namespace {of}{}, and nobody answers",
        if lives { "" } else { ", which is gone" }
    );
    let next = "kubectl delete mutatingwebhookconfiguration steadfast; what is installed makes its own".to_owned();
    if fails {
        Finding::blocked("webhooks", format!("{left}: pods that ask for sidecars cannot start (failurePolicy Fail)"), next)
    } else {
        Finding::warning("webhooks", left, next)
    }
}

/// Definitions that are there, against those of this version.
pub(super) async fn definitions(known: &Known, namespace: &str) -> Vec<Finding> {
    let (mut findings, mut same, mut absent) = (Vec::new(), 0, 0);
    let mut kept: BTreeMap<String, usize> = BTreeMap::new();
    for placed in known.placed.iter().filter(|placed| placed.resource.kind == DEFINITION) {
        let name = placed.object.name_any();
        let there = match placed.api.get_opt(&name).await {
            Ok(Some(there)) => there,
            Ok(None) => {
                absent += 1;
                continue;
            }
            Err(error) => {
                if findings.is_empty() {
                    let why = if is_forbidden(&error) { "you may not read them".to_owned() } else { words(&error) };
                    findings.push(Finding::warning(
                        "definitions",
                        format!("CustomResourceDefinitions could not be looked at: {why}"),
                        "ask as somebody who may",
                    ));
                }
                continue;
            }
        };
        if let Some(whose) = of_others(there.annotations(), namespace) {
            *kept.entry(whose).or_default() += 1;
        }
        match differ(&placed.object.data, &there.data) {
            Difference::None => same += 1,
            Difference::Identity(what) => findings.push(Finding::blocked(
                "definitions",
                format!("{name} is there, and somebody else's: its {what} is another"),
                "two programs cannot share a kind: remove the other one's definition, with all of its objects",
            )),
            Difference::Schema(versions) => findings.push(Finding::warning(
                "definitions",
                format!("{name} is there from another version of Steadfast (it serves {versions}); objects that it let in may have fields that this one does not know"),
                "helm upgrade, or kubectl apply --server-side -f deploy/manifests/crds.yaml, brings this version's",
            )),
        }
    }
    if same > 0 {
        findings.push(Finding::ok("definitions", format!("{same} CustomResourceDefinitions are there, as this version has them")));
    }
    findings.extend(kept.into_iter().map(|(whose, count)| taken_over(&whose, count)));
    if absent > 0 {
        findings.push(Finding::ok("definitions", format!("{absent} CustomResourceDefinitions are not there yet")));
    }
    findings
}

/// Whose a definition is, in words, unless it is of a release in this namespace.
fn of_others(annotations: &BTreeMap<String, String>, namespace: &str) -> Option<String> {
    match (annotations.get(RELEASE_NAME), annotations.get(RELEASE_NAMESPACE)) {
        (Some(_), Some(of)) if of == namespace => None,
        (Some(name), Some(of)) => Some(format!("kept from release {name} of namespace {of}")),
        _ => Some("of no Helm release".to_owned()),
    }
}

/// `helm install` refuses what it did not make itself.
fn taken_over(whose: &str, count: usize) -> Finding {
    Finding::warning(
        "definitions",
        format!("{count} CustomResourceDefinitions are {whose}: `helm install` stops at them"),
        "helm install … --take-ownership (Helm 3.17 or later) makes them this release's; --set crds.install=false leaves them as they are",
    )
}

#[derive(Debug, PartialEq, Eq)]
enum Difference {
    None,
    /// What cannot be changed.
    Identity(&'static str),
    /// Which versions are served there.
    Schema(String),
}

fn differ(wanted: &Value, there: &Value) -> Difference {
    for (what, path) in [("group", "/spec/group"), ("kind", "/spec/names/kind"), ("scope", "/spec/scope")] {
        if wanted.pointer(path) != there.pointer(path) {
            return Difference::Identity(what);
        }
    }
    // The API server adds to a definition what is not written; what is written it keeps.
    if holds(&there["spec"]["versions"], &wanted["spec"]["versions"]) {
        return Difference::None;
    }
    let served = there["spec"]["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true);
    Difference::Schema(served.filter_map(|version| version["name"].as_str()).collect::<Vec<_>>().join(", "))
}

/// Whether `there` has all that `wanted` says. Lists must be equally long.
fn holds(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted.iter().all(|(key, value)| there.get(key).is_some_and(|there| holds(there, value))),
        (Value::Array(there), Value::Array(wanted)) => there.len() == wanted.len() && there.iter().zip(wanted).all(|(there, wanted)| holds(there, wanted)),
        // 1 and 1.0 are one number on the wire.
        (Value::Number(there), Value::Number(wanted)) => there.as_f64() == wanted.as_f64(),
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(kind: &str, properties: Value) -> Value {
        json!({ "spec": { "group": "steadfast.dev", "scope": "Namespaced", "names": { "kind": kind },
            "versions": [{ "name": "v1alpha1", "served": true, "schema": { "openAPIV3Schema": { "properties": properties } } }] } })
    }

    #[test]
    fn definitions_of_another_release_are_told_of_since_helm_stops_at_them() {
        let of = |annotations: &[(&str, &str)]| annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>();
        let ours = of(&[(RELEASE_NAME, "steadfast"), (RELEASE_NAMESPACE, "here")]);
        assert_eq!(of_others(&ours, "here"), None);
        let told = taken_over(&of_others(&ours, "elsewhere").expect("another's"), 5);
        assert!(told.severity == crate::install::Severity::Warning && told.message.contains("release steadfast of namespace here"), "{told:?}");
        assert!(told.next.as_deref().is_some_and(|next| next.contains("--take-ownership")), "{told:?}");
        assert!(of_others(&of(&[]), "here").is_some_and(|whose| whose.contains("no Helm release")));
    }

    #[test]
    fn a_definition_is_the_same_when_it_has_all_that_this_version_says() {
        let wanted = definition("GoldenSet", json!({ "a": { "type": "string" } }));
        let mut defaulted = wanted.clone();
        defaulted["spec"]["conversion"] = json!({ "strategy": "None" });
        defaulted["spec"]["versions"][0]["storage"] = json!(true);
        assert_eq!(differ(&wanted, &defaulted), Difference::None);
        assert_eq!(differ(&wanted, &definition("GoldenSet", json!({ "b": {} }))), Difference::Schema("v1alpha1".into()));
        assert_eq!(differ(&wanted, &definition("Other", json!({}))), Difference::Identity("kind"));
    }
}
