//! A step for a roll-out: is the set right for every matching pod of the version that is being rolled out?
//!
//! The GoldenSet's status speaks of all matching pods at some moment; a roll-out changes them. So a Pass counts only when it is about the pods that are there now: the
//! roll-out is complete, the status counts as many pods as there are, and the verdict became Pass after the youngest of them was made. A Fail counts when a
//! pod of the newest version is named by it (the status names those made last first) and the workload has made that version; what pods on their way out answer is
//! what the roll-out may be about to mend.

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use steadfast_api::{
    golden::Verdict,
    resource::{Condition, GoldenSetStatus},
};

use super::rollout::{self, Rollout};
use crate::{
    access::{Access, NoCluster},
    reconcile::resource::GoldenSet,
};

/// Reasons of the condition `Ready` that do not go away by waiting.
const HOPELESS: [&str; 5] = ["Invalid", "SourceNotSupported", "SourceNotAllowed", "SourceBroken", "DigestMismatch"];

/// Why the gate cannot look.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error(transparent)]
    NoCluster(#[from] NoCluster),
    /// What was asked for makes no sense there.
    #[error("{0}")]
    Refused(String),
    /// It may be otherwise in a moment.
    #[error("{0}")]
    Unavailable(String),
}

/// What a look came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    Pass,
    Fail,
    ReferenceBroken,
    Waiting,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Looked {
    pub verdict: Standing,
    /// One sentence.
    pub reason: String,
    pub status: GoldenSetStatus,
}

/// One GoldenSet of a cluster.
pub struct Gate {
    client: Client,
    namespace: String,
    name: String,
}

impl Gate {
    /// In its context's namespace unless one is given.
    pub async fn connect(access: &Access, name: &str, namespace: Option<String>) -> Result<Self, GateError> {
        let client = access.client().await?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { client, namespace, name: name.to_owned() })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How it stands now. Wants `get` on goldensets, `list` on pods, ReplicaSets and ControllerRevisions, `get` on Deployments, StatefulSets and DaemonSets.
    pub async fn look(&self) -> Result<Looked, GateError> {
        let sets: Api<GoldenSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let set = match sets.get_opt(&self.name).await {
            Ok(Some(set)) => set,
            Ok(None) => {
                return Err(GateError::Refused(format!(
                    "there is no GoldenSet {} in namespace {}: kubectl get goldensets --all-namespaces",
                    self.name, self.namespace
                )));
            }
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                return Err(GateError::Refused("this cluster knows no GoldenSet: install the chart in deploy/chart".to_owned()));
            }
            Err(kube::Error::Api(answer)) if answer.code == 403 => return Err(GateError::Refused(answer.message)),
            Err(error) => return Err(GateError::Unavailable(error.to_string())),
        };
        let spec = set.spec.get().map_err(|why| GateError::Refused(format!("GoldenSet {}: spec: {why}", self.name)))?;
        let rollout = rollout::of(&self.client, &self.namespace, &spec.selector).await?;
        let (generation, status) = (set.metadata.generation, set.status.clone().unwrap_or_default());
        let (verdict, reason) = judge(generation, &status, &rollout)?;
        tracing::debug!(set = set.name_any(), ?verdict, reason, "gate");
        Ok(Looked { verdict, reason, status })
    }
}

fn judge(generation: Option<i64>, status: &GoldenSetStatus, rollout: &Rollout) -> Result<(Standing, String), GateError> {
    let wait = |reason: String| Ok((Standing::Waiting, reason));
    if status.observed_generation != generation {
        return wait("the controller has not read this GoldenSet as it is now; is Steadfast installed?".to_owned());
    }
    let condition = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind);
    if let Some(ready) = condition("Ready").filter(|ready| ready.status == "False" && HOPELESS.contains(&ready.reason.as_str())) {
        return Err(GateError::Refused(format!("the GoldenSet is not replayed ({}): {}", ready.reason, ready.message)));
    }
    let told = condition("Verdict").map(|condition| condition.message.clone()).unwrap_or_default();
    match (status.verdict, &rollout.changed, &rollout.under_way) {
        (Some(Verdict::ReferenceBroken), ..) => Ok((Standing::ReferenceBroken, told)),
        // What is called the newest version now may be the one that the change mends.
        (_, Some(changed), _) => wait(changed.clone()),
        (Some(Verdict::Fail), ..) => {
            let named: Vec<&str> = rollout.pods.iter().filter(|pod| pod.newest && status.failing.contains(&pod.name)).map(|pod| pod.name.as_str()).collect();
            if named.is_empty() { wait(format!("pods that are on their way out answer wrong: {told}")) } else { Ok((Standing::Fail, told)) }
        }
        (_, _, Some(under_way)) => wait(under_way.clone()),
        (Some(Verdict::Pass), ..) => passed(status, condition("Verdict"), rollout, told),
        (Some(Verdict::Inconclusive) | None, ..) => wait(told),
    }
}

fn passed(status: &GoldenSetStatus, verdict: Option<&Condition>, rollout: &Rollout, told: String) -> Result<(Standing, String), GateError> {
    let wait = |reason: String| Ok((Standing::Waiting, reason));
    if rollout.pods.len() != status.pods_matched as usize || rollout.pods.is_empty() {
        return wait(format!("{} pods with a sidecar match, and the verdict is about {}", rollout.pods.len(), status.pods_matched));
    }
    let since: Option<Timestamp> = verdict.filter(|verdict| verdict.status == "True").and_then(|verdict| verdict.last_transition_time.parse().ok());
    let youngest = rollout.pods.iter().filter_map(|pod| pod.created).max();
    // Both are whole seconds; nobody passes within the second in which he was made.
    if since.is_none_or(|since| youngest.is_some_and(|youngest| since <= youngest)) {
        return wait("the verdict is older than the youngest pod".to_owned());
    }
    Ok((Standing::Pass, told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::rollout::PodNow;

    fn rollout(pods: &[(&str, bool)], under_way: Option<&str>) -> Rollout {
        let pod = |(name, newest): &(&str, bool)| PodNow { name: (*name).to_owned(), created: "2026-01-01T00:00:00Z".parse().ok(), newest: *newest };
        Rollout { pods: pods.iter().map(pod).collect(), changed: None, under_way: under_way.map(str::to_owned) }
    }

    fn status(verdict: Verdict, since: &str, failing: &[&str]) -> GoldenSetStatus {
        let is = if verdict == Verdict::Pass { "True" } else { "False" };
        let condition = |kind: &str, is: &str| Condition {
            kind: kind.into(),
            status: is.into(),
            reason: verdict.to_string(),
            message: "told".into(),
            last_transition_time: since.into(),
            observed_generation: Some(1),
        };
        GoldenSetStatus {
            observed_generation: Some(1),
            conditions: vec![condition("Ready", "True"), condition("Verdict", is)],
            verdict: Some(verdict),
            pods_matched: 2,
            failing: failing.iter().map(|name| (*name).to_owned()).collect(),
            ..GoldenSetStatus::default()
        }
    }

    const LATER: &str = "2026-01-01T00:10:00Z";

    fn standing(status: &GoldenSetStatus, rollout: &Rollout) -> Standing {
        judge(Some(1), status, rollout).unwrap().0
    }

    #[test]
    fn a_pass_counts_when_it_is_about_the_pods_that_are_there_now() {
        let (now, pass) = (rollout(&[("a", true), ("b", true)], None), status(Verdict::Pass, LATER, &[]));
        assert_eq!(standing(&pass, &now), Standing::Pass);
        assert_eq!(standing(&pass, &rollout(&[("a", true), ("b", false)], Some("1 of 2"))), Standing::Waiting, "a roll-out is under way");
        assert_eq!(standing(&pass, &rollout(&[("a", true)], None)), Standing::Waiting, "the status is about other pods");
        assert_eq!(standing(&status(Verdict::Pass, "2026-01-01T00:00:00Z", &[]), &now), Standing::Waiting, "it is older than the pods");
        assert_eq!(judge(Some(2), &pass, &now).unwrap().0, Standing::Waiting, "the set was changed since");
    }

    #[test]
    fn a_fail_counts_when_it_names_a_pod_of_the_newest_version_also_while_it_is_rolled_out() {
        let under_way = rollout(&[("new", true), ("old", false)], Some("1 of 2"));
        assert_eq!(standing(&status(Verdict::Fail, LATER, &["old"]), &under_way), Standing::Waiting);
        assert_eq!(standing(&status(Verdict::Fail, LATER, &["new"]), &under_way), Standing::Fail);
        assert_eq!(standing(&status(Verdict::ReferenceBroken, LATER, &[]), &under_way), Standing::ReferenceBroken);
    }

    #[test]
    fn a_fail_of_the_version_before_does_not_end_the_roll_out_that_mends_it() {
        let fail = status(Verdict::Fail, LATER, &["a"]);
        let mut now = rollout(&[("a", true), ("b", true)], None);
        assert_eq!(standing(&fail, &now), Standing::Fail);
        now.changed = Some("Deployment web was changed and is about to roll out".into());
        assert_eq!(standing(&fail, &now), Standing::Waiting, "its pods are the newest only until the new version is made");
    }

    #[test]
    fn a_set_that_cannot_be_replayed_is_told_at_once() {
        let mut broken = status(Verdict::Inconclusive, LATER, &[]);
        (broken.conditions[0].status, broken.conditions[0].reason) = ("False".into(), "DigestMismatch".into());
        assert!(judge(Some(1), &broken, &rollout(&[], None)).unwrap_err().to_string().contains("DigestMismatch"));
    }
}
