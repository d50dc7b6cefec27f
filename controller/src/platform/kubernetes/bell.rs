//! Faults as Events: of the test, and of each pod or node that one hits, so that whoever is on call sees that a loss was asked for.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::ObjectReference;

use crate::{
    events::Events,
    platform::StepFault,
    words::{NAMES_MAX, some},
};

/// Pods or nodes of one fault that have Events of their own.
const HIT_MAX: usize = NAMES_MAX;

/// Events of one test.
#[derive(Debug)]
pub struct Bell {
    events: Events,
    test: ObjectReference,
    /// By step: what the fault in force hits, since a pod's end leaves nobody to ask for its UID.
    hit: Mutex<BTreeMap<String, Vec<ObjectReference>>>,
}

impl Bell {
    pub fn new(events: Events, test: ObjectReference) -> Self {
        Self { events, test, hit: Mutex::default() }
    }

    pub(super) fn ring(&self, fault: StepFault<'_>, begins: bool, namespace: &str, uid: impl Fn(&str) -> Option<String>) {
        let mut hit = self.hit.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = if begins {
            let objects = objects(fault, namespace, uid);
            hit.insert(fault.step.to_owned(), objects.clone());
            objects
        } else {
            hit.remove(fault.step).unwrap_or_default()
        };
        drop(hit);
        let (reason, note) = words(fault, begins, namespace, self.test.name.as_deref().unwrap_or_default());
        let action = capital(fault.action);
        for object in &objects {
            self.events.related(object.clone(), self.test.clone(), begins, reason, &action, &note);
        }
        let related = objects.first().cloned().unwrap_or_else(|| self.test.clone());
        self.events.related(self.test.clone(), related, begins, reason, &action, &note);
    }
}

/// What Events are of. `kubectl describe` looks for those of nodes by their names, as kubelets write them.
fn objects(fault: StepFault<'_>, namespace: &str, uid: impl Fn(&str) -> Option<String>) -> Vec<ObjectReference> {
    let object = |kind: &str, name: &str| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    };
    let node = |name: &String| ObjectReference { uid: Some(name.clone()), ..object("Node", name) };
    let pod = |name: &String| ObjectReference { uid: uid(name), namespace: Some(namespace.to_owned()), ..object("Pod", name) };
    if fault.nodes.is_empty() { fault.pods.iter().take(HIT_MAX).map(pod).collect() } else { fault.nodes.iter().take(HIT_MAX).map(node).collect() }
}

fn words(fault: StepFault<'_>, begins: bool, namespace: &str, test: &str) -> (&'static str, String) {
    let StepFault { step, action, nodes, pods } = fault;
    let on = if nodes.is_empty() { format!("pods {}", some(pods, NAMES_MAX)) } else { format!("nodes {}", some(nodes, NAMES_MAX)) };
    let of = format!("step {step:?} of ResilienceTest {namespace}/{test}: {action} on {on}");
    if begins {
        ("FaultBegan", format!("{of}; kubectl -n {namespace} annotate resiliencetest {test} steadfast.dev/stop=now ends it"))
    } else {
        ("FaultEnded", of)
    }
}

/// `podKill` as an action of an Event, `PodKill`.
fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_on_call_for_a_node_or_a_pod_reads_whose_test_it_is() {
        let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
        let (nodes, pods) = (names(12), names(1));
        let of_nodes = StepFault { step: "node lost", action: "nodeFailure", nodes: &nodes, pods: &[] };
        let hit = objects(of_nodes, "models", |_| None);
        assert_eq!((hit.len(), hit[0].uid.as_deref(), hit[0].namespace.as_deref()), (HIT_MAX, Some("n0"), None));
        let hit = objects(StepFault { nodes: &[], pods: &pods, ..of_nodes }, "models", |name| Some(format!("uid of {name}")));
        assert_eq!((hit[0].uid.as_deref(), hit[0].namespace.as_deref()), (Some("uid of n0"), Some("models")));
        let (reason, note) = words(of_nodes, true, "models", "t-1");
        assert!(reason == "FaultBegan" && note.starts_with("step \"node lost\" of ResilienceTest models/t-1: nodeFailure on nodes n0, n1,"), "{note}");
        assert!(note.contains("n9 and 2 more; kubectl -n models annotate resiliencetest t-1 steadfast.dev/stop=now"), "{note}");
        assert_eq!((words(of_nodes, false, "models", "t-1").0, capital("podKill").as_str()), ("FaultEnded", "PodKill"));
    }
}
