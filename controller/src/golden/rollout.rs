//! Which pods of a selector belong to the newest version of their workload, and whether that version is rolled out.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use steadfast_api::policy::LabelSelector;

use super::gate::GateError;
use crate::webhook::decide::INJECTED_ANNOTATION;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "controller-revision-hash";

/// A pod with a sidecar that is neither over nor on its way out.
#[derive(Clone, Debug)]
pub struct PodNow {
    pub name: String,
    pub created: Option<Timestamp>,
    /// Of its workload's newest version; pods without a workload are.
    pub newest: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Rollout {
    pub pods: Vec<PodNow>,
    /// A workload was changed, and its newest version is not made yet, in words: nobody can say which pods are of it.
    pub changed: Option<String>,
    /// What is not rolled out yet, in words.
    pub under_way: Option<String>,
}

fn unavailable(error: kube::Error) -> GateError {
    match error {
        kube::Error::Api(answer) if answer.code == 403 => GateError::Refused(answer.message),
        error => GateError::Unavailable(error.to_string()),
    }
}

/// As it stands now. A pod that is on its way out means that a roll-out is under way.
pub async fn of(client: &Client, namespace: &str, selector: &LabelSelector) -> Result<Rollout, GateError> {
    let (pods, versions) = look(client, namespace, selector).await?;
    let (mut changed, mut under_way) = (None, None);
    for (kind, name) in versions.workloads(&pods) {
        match standing(client, namespace, &kind, &name).await? {
            Unfinished::No => {}
            Unfinished::Changed(words) => changed = changed.or(Some(words)),
            Unfinished::UnderWay(words) => under_way = under_way.or(Some(words)),
        }
    }
    // Pods and versions as they are since: a workload that has seen its change has made its version.
    let (pods, versions) = look(client, namespace, selector).await?;
    let leaving = pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_some()).map(|pod| format!("pod {} is on its way out", pod.name_any()));
    let now = |pod: &Pod| PodNow { name: pod.name_any(), created: pod.metadata.creation_timestamp.as_ref().map(|at| at.0), newest: versions.is_newest(pod) };
    let pods = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(now).collect();
    Ok(Rollout { pods, changed, under_way: under_way.or(leaving) })
}

/// Pods with a sidecar that are not over, and the versions of their workloads.
async fn look(client: &Client, namespace: &str, selector: &LabelSelector) -> Result<(Vec<Pod>, Versions), GateError> {
    let labels = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&ListParams::default().labels(&labels)).await.map_err(unavailable)?.items;
    let over = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let pods: Vec<Pod> = pods.into_iter().filter(|pod| pod.annotations().contains_key(INJECTED_ANNOTATION) && !over(pod)).collect();
    let owners: BTreeSet<&str> = pods.iter().filter_map(|pod| controller(&pod.metadata)).map(|owner| owner.kind.as_str()).collect();
    let mut versions = Versions::default();
    if owners.contains("ReplicaSet") {
        let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
        versions.replica_sets(&sets.list(&ListParams::default()).await.map_err(unavailable)?.items);
    }
    if owners.contains("StatefulSet") || owners.contains("DaemonSet") {
        let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        versions.revisions(&revisions.list(&ListParams::default()).await.map_err(unavailable)?.items);
    }
    Ok((pods, versions))
}

/// How far a workload is from what is asked of it, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unfinished {
    No,
    Changed(String),
    UnderWay(String),
}

fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The newest version of each workload, by its UID.
#[derive(Debug, Default)]
struct Versions {
    /// Revision and UID of the newest ReplicaSet.
    deployments: HashMap<String, (i64, String)>,
    /// By UID of a ReplicaSet: UID and name of its Deployment.
    deployment_of: HashMap<String, (String, String)>,
    /// Number and name of the newest ControllerRevision.
    others: HashMap<String, (i64, String)>,
}

impl Versions {
    fn replica_sets(&mut self, sets: &[ReplicaSet]) {
        for set in sets {
            let (Some(owner), Some(uid)) = (controller(&set.metadata), set.uid()) else { continue };
            let revision = set.annotations().get(REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0);
            self.deployment_of.insert(uid.clone(), (owner.uid.clone(), owner.name.clone()));
            let newest = self.deployments.entry(owner.uid.clone()).or_insert((revision, uid.clone()));
            if revision > newest.0 {
                *newest = (revision, uid);
            }
        }
    }

    fn revisions(&mut self, revisions: &[ControllerRevision]) {
        for revision in revisions {
            let Some(owner) = controller(&revision.metadata) else { continue };
            let newest = self.others.entry(owner.uid.clone()).or_insert((revision.revision, revision.name_any()));
            if revision.revision > newest.0 {
                *newest = (revision.revision, revision.name_any());
            }
        }
    }

    fn is_newest(&self, pod: &Pod) -> bool {
        let Some(owner) = controller(&pod.metadata) else { return true };
        if let Some((deployment, _)) = self.deployment_of.get(&owner.uid) {
            return self.deployments.get(deployment).is_none_or(|(_, newest)| *newest == owner.uid);
        }
        let Some((_, newest)) = self.others.get(&owner.uid) else { return true };
        // A StatefulSet's pods carry the revision's name, a DaemonSet's the end of it.
        pod.labels().get(HASH).is_none_or(|hash| newest == hash || newest.ends_with(&format!("-{hash}")))
    }

    /// Kind and name of every workload whose roll-out can be seen.
    fn workloads(&self, pods: &[Pod]) -> BTreeSet<(String, String)> {
        let of = |pod: &Pod| {
            let owner = controller(&pod.metadata)?;
            match owner.kind.as_str() {
                "ReplicaSet" => self.deployment_of.get(&owner.uid).map(|(_, name)| ("Deployment".to_owned(), name.clone())),
                "StatefulSet" | "DaemonSet" => Some((owner.kind.clone(), owner.name.clone())),
                _ => None,
            }
        };
        pods.iter().filter_map(of).collect()
    }
}

/// Pods of a workload: how many there shall be, are, are of the newest version, and are ready for users.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    wanted: i32,
    there: i32,
    updated: i32,
}

async fn standing(client: &Client, namespace: &str, kind: &str, name: &str) -> Result<Unfinished, GateError> {
    let zero = |count: Option<i32>| count.unwrap_or(0);
    let (generation, observed, counts) = match kind {
        "Deployment" => {
            let Some(it) = Api::<Deployment>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(unavailable)? else {
                return Ok(Unfinished::No);
            };
            let (spec, status) = (it.spec.unwrap_or_default(), it.status.unwrap_or_default());
            let counts = Counts { wanted: spec.replicas.unwrap_or(1), there: zero(status.replicas), updated: zero(status.updated_replicas) };
            (it.metadata.generation, status.observed_generation, counts)
        }
        "StatefulSet" => {
            let Some(it) = Api::<StatefulSet>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(unavailable)? else {
                return Ok(Unfinished::No);
            };
            let (spec, status) = (it.spec.unwrap_or_default(), it.status.unwrap_or_default());
            let counts = Counts { wanted: spec.replicas.unwrap_or(1), there: status.replicas, updated: zero(status.updated_replicas) };
            (it.metadata.generation, status.observed_generation, counts)
        }
        _ => {
            let Some(it) = Api::<DaemonSet>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(unavailable)? else { return Ok(Unfinished::No) };
            let status = it.status.unwrap_or_default();
            let counts =
                Counts { wanted: status.desired_number_scheduled, there: status.current_number_scheduled, updated: zero(status.updated_number_scheduled) };
            (it.metadata.generation, status.observed_generation, counts)
        }
    };
    Ok(words(kind, name, generation, observed, counts))
}

fn words(kind: &str, name: &str, generation: Option<i64>, observed: Option<i64>, counts: Counts) -> Unfinished {
    let Counts { wanted, there, updated } = counts;
    if observed < generation {
        return Unfinished::Changed(format!("{kind} {name} was changed and is about to roll out"));
    }
    if updated < wanted || there != updated {
        return Unfinished::UnderWay(format!("{kind} {name} rolls out: {updated} of {wanted} pods are of the newest version, {there} are there"));
    }
    Unfinished::No
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn owned(kind: &str, name: &str, uid: &str) -> String {
        format!("ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: {uid}, controller: true}}]")
    }

    #[test]
    fn a_pods_version_is_that_of_its_workloads_newest_revision() {
        let mut versions = Versions::default();
        let set = |uid: &str, revision: u32| -> ReplicaSet {
            read(&format!("metadata: {{name: {uid}, uid: {uid}, annotations: {{{REVISION}: '{revision}'}}, {}}}", owned("Deployment", "web", "d")))
        };
        versions.replica_sets(&[set("r9", 9), set("r10", 10)]);
        let revision = |name: &str, number: u32, owner: &str, kind: &str| -> ControllerRevision {
            read(&format!("{{metadata: {{name: {name}, {}}}, revision: {number}}}", owned(kind, owner, owner)))
        };
        versions.revisions(&[
            revision("db-aaa", 1, "db", "StatefulSet"),
            revision("db-bbb", 2, "db", "StatefulSet"),
            revision("log-ccc", 3, "log", "DaemonSet"),
        ]);
        let pod = |kind: &str, uid: &str, labels: &str| -> Pod { read(&format!("metadata: {{name: p, labels: {{{labels}}}, {}}}", owned(kind, uid, uid))) };
        assert!(versions.is_newest(&pod("ReplicaSet", "r10", "")) && !versions.is_newest(&pod("ReplicaSet", "r9", "")));
        assert!(versions.is_newest(&pod("StatefulSet", "db", "controller-revision-hash: db-bbb")));
        assert!(!versions.is_newest(&pod("StatefulSet", "db", "controller-revision-hash: db-aaa")));
        assert!(versions.is_newest(&pod("DaemonSet", "log", "controller-revision-hash: ccc")));
        let bare: Pod = read("metadata: {name: p}");
        assert!(versions.is_newest(&bare));
        let workloads = versions.workloads(&[pod("ReplicaSet", "r9", ""), pod("StatefulSet", "db", ""), bare]);
        assert_eq!(workloads.into_iter().map(|(kind, name)| format!("{kind}/{name}")).collect::<Vec<_>>(), ["Deployment/web", "StatefulSet/db"]);
    }

    #[test]
    fn a_rollout_is_over_when_all_that_is_there_is_new() {
        let at = |wanted, there, updated| words("Deployment", "web", Some(2), Some(2), Counts { wanted, there, updated });
        assert_eq!(at(3, 3, 3), Unfinished::No);
        assert!(matches!(at(3, 4, 3), Unfinished::UnderWay(words) if words.contains("3 of 3 pods are of the newest version, 4 are there")));
        assert!(matches!(at(3, 3, 1), Unfinished::UnderWay(_)));
        let changed = words("Deployment", "web", Some(3), Some(2), Counts { wanted: 3, there: 3, updated: 3 });
        assert!(matches!(changed, Unfinished::Changed(words) if words.contains("about to roll out")));
    }
}
