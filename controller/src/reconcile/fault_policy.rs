//! FaultPolicies: armed in the pods that they select, told of in their status, and gone when they are deleted or expire.
//!
//! What is written down counts, never what changed: after every change, and every two seconds, all policies are held against all pods. A policy's deadline is its object's
//! creation and `expiresAfter`, so neither a new pod nor a new leader makes it last longer; it runs on each sidecar's own clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use steadfast_api::{
    Span,
    policy::{FaultPolicySpec, NamedPolicy},
    resource::{Condition, FaultPolicyStatus},
};
use tokio::time::{sleep, timeout};

use super::{
    pods::{FAULTS_ALLOWED, FAULTS_LABEL, PodFacts, Pods},
    resource::{API_VERSION, FaultPolicy, MANAGER},
    watched::Watched,
};
use crate::{
    events::Events,
    serve::{ingest::Ingest, policy::PolicyHub},
};

/// A burst of changes is looked at once.
const SETTLE: Duration = Duration::from_millis(10);
/// What sidecars confirmed and injected is read so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Statuses change at most so often, unless a condition does: counts are for reading.
const COUNTS_EVERY: SignedDuration = SignedDuration::from_secs(10);
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// A policy's name is a metric's label.
const NAME_MAX: usize = 63;

/// See the module. Wants `list` and `watch` on faultpolicies, `patch` on their status.
pub struct FaultPolicies {
    client: Client,
    policies: Watched<FaultPolicy>,
    pods: Arc<Pods>,
    hub: Arc<PolicyHub>,
    ingest: Arc<Ingest>,
    events: Events,
    /// By owner: the generation that each pod has to confirm.
    set: HashMap<String, HashMap<String, u64>>,
    /// By UID: what was last written, and when.
    written: HashMap<String, (FaultPolicyStatus, Timestamp)>,
}

/// Where a policy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Invalid(String),
    Expired,
    NotAllowed,
    NoPods,
    /// So many sidecars do not understand it.
    SidecarTooOld(usize),
    Arming,
    Armed,
}

impl Standing {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "Invalid",
            Self::Expired => "Expired",
            Self::NotAllowed => "NotAllowed",
            Self::NoPods => "NoPods",
            Self::SidecarTooOld(_) => "SidecarTooOld",
            Self::Arming => "Arming",
            Self::Armed => "Armed",
        }
    }

    fn message(&self, namespace: &str, status: &FaultPolicyStatus) -> String {
        match self {
            Self::Invalid(why) => why.clone(),
            Self::Expired => "its time is over; nothing is armed".to_owned(),
            Self::NotAllowed => {
                format!("namespace {namespace} does not allow faults: kubectl label namespace {namespace} {FAULTS_LABEL}={FAULTS_ALLOWED}")
            }
            Self::NoPods => "no pod with a sidecar has the labels of its selector".to_owned(),
            Self::SidecarTooOld(count) => {
                format!("{count} of {} sidecars are too old for what it says, and have not armed it: start their pods anew", status.pods_matched)
            }
            Self::Arming => format!("{} of {} sidecars have it in force", status.pods_armed, status.pods_matched),
            Self::Armed => format!("in force in {} pods", status.pods_armed),
        }
    }
}

impl FaultPolicies {
    pub fn new(client: Client, pods: Arc<Pods>, hub: Arc<PolicyHub>, ingest: Arc<Ingest>, events: Events) -> Self {
        let policies = Watched::within(pods.scope().apis(&client), watcher::Config::default(), |_| {});
        Self { client, policies, pods, hub, ingest, events, set: HashMap::new(), written: HashMap::new() }
    }

    /// Returns once what is asked for now is in the hub.
    pub async fn first(&mut self) {
        self.pods.listed().await;
        self.policies.listed().await;
        self.arm();
    }

    /// Never returns.
    pub async fn run(mut self) {
        let [mut pods, mut namespaces] = self.pods.changes();
        let mut policies = self.policies.changes();
        loop {
            let statuses = self.arm();
            self.write(statuses).await;
            tokio::select! {
                _ = policies.changed() => {}
                _ = pods.changed() => {}
                _ = namespaces.changed() => {}
                () = sleep(LOOK_EVERY) => {}
            }
            sleep(SETTLE).await;
        }
    }

    /// Holds every policy against every pod.
    fn arm(&mut self) -> Vec<(Arc<FaultPolicy>, Standing, FaultPolicyStatus)> {
        let now = Timestamp::now();
        let mut by_namespace: HashMap<String, Vec<PodFacts>> = HashMap::new();
        for pod in self.pods.all().into_iter().filter(|pod| pod.has_sidecar) {
            by_namespace.entry(pod.namespace.clone()).or_default().push(pod);
        }
        let mut owners = HashSet::new();
        let mut statuses = Vec::new();
        for policy in self.policies.all() {
            if policy.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let (namespace, name) = (policy.namespace().unwrap_or_default(), policy.name_any());
            let owner = format!("faultpolicy/{namespace}/{name}");
            owners.insert(owner.clone());
            let pods = by_namespace.get(&namespace).map(Vec::as_slice).unwrap_or_default();
            let (standing, status) = self.arm_one(&policy, &owner, &namespace, &name, pods, now);
            statuses.push((policy, standing, status));
        }
        let gone: Vec<String> = self.set.keys().filter(|owner| !owners.contains(*owner)).cloned().collect();
        for owner in gone {
            self.hub.clear(&owner);
            self.set.remove(&owner);
        }
        statuses
    }

    fn arm_one(&mut self, policy: &FaultPolicy, owner: &str, namespace: &str, name: &str, pods: &[PodFacts], now: Timestamp) -> (Standing, FaultPolicyStatus) {
        let mut status = FaultPolicyStatus { observed_generation: policy.metadata.generation, ..FaultPolicyStatus::default() };
        let judged = judge(policy, name, now);
        if let Ok((_, expires_at, _)) = &judged {
            status.expires_at = Some(expires_at.to_string());
        }
        let allowed = self.pods.allowed_in(namespace);
        let (spec, left) = match judged {
            Ok((spec, _, Some(left))) if allowed => (spec, left),
            other => {
                if self.set.remove(owner).is_some() {
                    self.hub.clear(owner);
                }
                let standing = match other {
                    Err(why) => Standing::Invalid(why),
                    Ok((_, _, None)) => Standing::Expired,
                    Ok(_) => Standing::NotAllowed,
                };
                return (standing, status);
            }
        };
        let matched: HashMap<&str, &PodFacts> = pods.iter().filter(|pod| spec.selector.matches(&pod.labels)).map(|pod| (pod.uid.as_str(), pod)).collect();
        let set = self.set.entry(owner.to_owned()).or_default();
        for uid in set.keys().filter(|uid| !matched.contains_key(uid.as_str())) {
            let _ = self.hub.set_policies(owner, uid, Vec::new());
        }
        set.retain(|uid, _| matched.contains_key(uid.as_str()));
        let mut refused = None;
        for uid in matched.keys() {
            let spec = FaultPolicySpec { expires_after: left, ..spec.clone() };
            match self.hub.set_policies(owner, uid, vec![NamedPolicy { name: name.to_owned(), spec }]) {
                Ok(generation) => drop(set.insert((*uid).to_owned(), generation)),
                Err(error) => refused = Some(error.to_string()),
            }
        }
        status.pods_matched = matched.len() as u32;
        let too_old = set.keys().filter(|uid| self.hub.refuses(uid, name)).count();
        status.pods_armed = set.iter().filter(|(uid, generation)| self.hub.confirmed(uid, **generation) && !self.hub.refuses(uid, name)).count() as u32;
        status.injected = matched.keys().flat_map(|uid| self.ingest.injected(uid, name).into_values()).sum();
        let standing = match refused {
            Some(why) => Standing::Invalid(why),
            None if matched.is_empty() => Standing::NoPods,
            None if too_old > 0 => Standing::SidecarTooOld(too_old),
            None if status.pods_armed < status.pods_matched => Standing::Arming,
            None => Standing::Armed,
        };
        (standing, status)
    }

    async fn write(&mut self, statuses: Vec<(Arc<FaultPolicy>, Standing, FaultPolicyStatus)>) {
        let now = Timestamp::now();
        let there: HashSet<String> = statuses.iter().filter_map(|(policy, ..)| policy.uid()).collect();
        self.written.retain(|uid, _| there.contains(uid));
        let without = self.pods.without();
        for (policy, standing, mut status) in statuses {
            let (uid, namespace) = (policy.uid().unwrap_or_default(), policy.namespace().unwrap_or_default());
            let before = self.written.get(&uid).map(|(status, _)| status).or(policy.status.as_ref());
            let message = standing.message(&namespace, &status) + &missed(&policy, &namespace, &without);
            status.conditions = vec![condition(before.map(|before| before.conditions.as_slice()), &standing, message, policy.metadata.generation, now)];
            if let Some((written, at)) = self.written.get(&uid) {
                let same = *written == status;
                let only_counts = written.conditions == status.conditions && written.observed_generation == status.observed_generation;
                if same || (only_counts && now.duration_since(*at) < COUNTS_EVERY) {
                    continue;
                }
            }
            let changed = before.is_none_or(|before| before.conditions.first().map(|condition| condition.reason.as_str()) != Some(standing.reason()));
            let patch = json!({
                "apiVersion": API_VERSION, "kind": FaultPolicy::KIND,
                "metadata": { "name": policy.name_any(), "namespace": namespace },
                "status": status,
            });
            let api: Api<FaultPolicy> = Api::namespaced(self.client.clone(), &namespace);
            let params = PatchParams::apply(MANAGER).force();
            match timeout(WRITTEN_WITHIN, api.patch_status(&policy.name_any(), &params, &Patch::Apply(&patch))).await {
                Ok(Ok(_)) => {
                    if changed {
                        let (about, reason, message) = (policy.object_ref(&()), standing.reason(), &status.conditions[0].message);
                        match standing {
                            Standing::Armed => self.events.say(about, reason, "Arm", message),
                            Standing::Expired => self.events.say(about, reason, "Disarm", message),
                            Standing::Invalid(_) | Standing::NotAllowed | Standing::SidecarTooOld(_) => self.events.warn(about, reason, "Arm", message),
                            Standing::NoPods | Standing::Arming => {}
                        }
                    }
                    self.written.insert(uid, (status, now));
                }
                // Deleted meanwhile.
                Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => {}
                Ok(Err(error)) => tracing::warn!(policy = %policy, %error, "its status could not be written"),
                Err(_) => tracing::warn!(policy = %policy, "its status could not be written in time"),
            }
        }
    }
}

/// What a condition adds about pods that the policy means and that have no sidecar though they ask for one.
fn missed(policy: &FaultPolicy, namespace: &str, without: &[(PodFacts, &'static str)]) -> String {
    let Ok(spec) = policy.spec.get() else { return String::new() };
    let meant = without.iter().filter(|(pod, _)| pod.namespace == namespace && spec.selector.matches(&pod.labels));
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    meant.for_each(|(_, reason)| *reasons.entry(*reason).or_default() += 1);
    let total: usize = reasons.values().sum();
    let each: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if total == 0 { String::new() } else { format!("; pods that it means and that have no sidecar: {total} ({}), see their Events", each.join(", ")) }
}

/// The policy, when it ends, and what is left of it (`None`: nothing).
fn judge<'a>(policy: &'a FaultPolicy, name: &str, now: Timestamp) -> Result<(&'a FaultPolicySpec, Timestamp, Option<Span>), String> {
    let spec = policy.spec.get().map_err(|why| format!("spec: {why}"))?;
    if name.len() > NAME_MAX {
        return Err(format!("metadata.name: {} characters are too many, it is a label of metrics: give it {NAME_MAX} at most", name.len()));
    }
    let created = policy.metadata.creation_timestamp.as_ref().map_or(now, |created| created.0);
    let expires_after = SignedDuration::try_from(spec.expires_after.get()).map_err(|error| format!("spec.expiresAfter: {error}"))?;
    let expires_at = created.checked_add(expires_after).map_err(|error| format!("spec.expiresAfter: {error}"))?;
    let left = Duration::try_from(expires_at.duration_since(now)).ok().filter(|left| !left.is_zero()).map(Span::new);
    Ok((spec, expires_at, left))
}

fn condition(before: Option<&[Condition]>, standing: &Standing, message: String, generation: Option<i64>, now: Timestamp) -> Condition {
    let status = if *standing == Standing::Armed { "True" } else { "False" };
    let known = before.and_then(|before| before.iter().find(|condition| condition.kind == "Ready"));
    // In seconds, as everywhere in Kubernetes.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let since = known.filter(|known| known.status == status).map_or(now, |known| known.last_transition_time.clone());
    Condition {
        kind: "Ready".to_owned(),
        status: status.to_owned(),
        reason: standing.reason().to_owned(),
        message,
        last_transition_time: since,
        observed_generation: generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(yaml: &str, created: &str) -> FaultPolicy {
        let yaml = format!("metadata: {{name: p, creationTimestamp: {created}}}\nspec: {yaml}");
        serde_saphyr::from_str(&yaml).unwrap()
    }

    #[test]
    fn a_policy_ends_by_its_creation_whoever_looks() {
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let good = policy("{expiresAfter: 10m, budget: {concurrent: 1, share: 1%}}", "'2026-01-01T00:00:00Z'");
        let (_, expires_at, left) = judge(&good, "p", now).unwrap();
        assert_eq!((expires_at.to_string().as_str(), left), ("2026-01-01T00:10:00Z", Some(Span::from_secs(300))));
        let later: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        assert_eq!(judge(&good, "p", later).unwrap().2, None);
        let bad = policy("{expiresAfter: soon}", "'2026-01-01T00:00:00Z'");
        assert!(judge(&bad, "p", now).unwrap_err().contains("such as 500ms"));
        assert!(judge(&good, &"p".repeat(64), now).unwrap_err().contains("63"));
    }

    #[test]
    fn pods_without_a_sidecar_that_a_policy_means_are_told_by_reason() {
        let pod = |namespace: &str, app: &str| PodFacts {
            namespace: namespace.into(),
            name: app.into(),
            uid: app.into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            has_sidecar: false,
            asks: true,
            faults_allowed: true,
            ports: crate::reconcile::pods::PodPorts::default(),
        };
        let without = [
            (pod("a", "x"), "HostNetwork"),
            (pod("a", "x"), "NotInjected"),
            (pod("a", "x"), "HostNetwork"),
            (pod("a", "y"), "Windows"),
            (pod("b", "x"), "Windows"),
        ];
        let told = |app: &str| {
            missed(
                &policy(
                    &format!("{{selector: {{matchLabels: {{app: {app}}}}}, expiresAfter: 10m, budget: {{concurrent: 1, share: 1%}}}}"),
                    "'2026-01-01T00:00:00Z'",
                ),
                "a",
                &without,
            )
        };
        assert_eq!(told("x"), "; pods that it means and that have no sidecar: 3 (HostNetwork 2, NotInjected 1), see their Events");
        assert_eq!(told("z"), "");
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let (one, two) = ("2026-01-01T00:00:00Z".parse().unwrap(), "2026-01-01T00:01:00Z".parse().unwrap());
        let first = condition(None, &Standing::Arming, String::new(), Some(1), one);
        let second = condition(Some(std::slice::from_ref(&first)), &Standing::NoPods, "x".into(), Some(1), two);
        assert_eq!((second.last_transition_time.as_str(), second.reason.as_str()), ("2026-01-01T00:00:00Z", "NoPods"));
        let third = condition(Some(std::slice::from_ref(&second)), &Standing::Armed, String::new(), Some(1), two);
        assert_eq!((third.last_transition_time.as_str(), third.status.as_str()), ("2026-01-01T00:01:00Z", "True"));
    }

    #[test]
    fn every_standing_says_what_to_do_next() {
        let status = FaultPolicyStatus { pods_matched: 3, pods_armed: 1, ..FaultPolicyStatus::default() };
        assert!(Standing::NotAllowed.message("models", &status).contains("kubectl label namespace models steadfast.dev/faults=allowed"));
        assert!(Standing::Arming.message("models", &status).contains("1 of 3"));
        let used: BTreeMap<&str, Standing> = [Standing::Expired, Standing::NoPods, Standing::Armed].into_iter().map(|s| (s.reason(), s)).collect();
        assert_eq!(used.len(), 3);
    }
}
