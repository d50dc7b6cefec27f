//! FaultPolicies: armed in the pods that they select, told of in their status, and gone when they are deleted or expire.
//!
//! What is written down counts, never what changed: after every change, and every two seconds, all policies are held against all pods. A policy's deadline is
//! its object's creation and `expiresAfter`, so neither a new pod nor a new leader makes it last longer; it runs on each sidecar's own clock. What is armed
//! never waits for what is written: statuses go out beside it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
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
use steadfast_proxy::fault::policy as sidecar;
use tokio::time::{sleep, timeout};

use super::{
    pods::{FAULTS_ALLOWED, FAULTS_LABEL, PodFacts, Pods},
    resource::{API_VERSION, FaultPolicy, MANAGER},
    status::fit,
    watched::Watched,
};
use crate::{
    events::Events,
    serve::{ingest::Ingest, policy::PolicyHub},
    words::some,
};

/// A burst of changes is looked at once.
const SETTLE: Duration = Duration::from_millis(10);
/// What sidecars confirmed and injected is read so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Statuses change at most so often, unless a condition does: counts are for reading.
const COUNTS_EVERY: SignedDuration = SignedDuration::from_secs(10);
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// Statuses on their way at once.
const WRITES_MAX: usize = 8;
/// What a sidecar that nobody has heard for so long counted last has come in.
const SILENT_FOR: Duration = Duration::from_mins(2);
/// A sidecar dials in as soon as it starts, and to a new leader within seconds.
const DIALS_WITHIN: Duration = Duration::from_secs(30);
/// What is forgotten ends; whoever wants it for longer makes it anew.
const EXPIRES_MAX: Span = Span::from_secs(24 * 3600);
/// Pods in a sentence.
const PODS_NAMED: usize = 3;
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
    /// By UID: what is being written, since when nothing else is.
    writing: HashSet<String>,
    /// By UID: what took place.
    counted: HashMap<String, Counted>,
    /// By UID: what is wrong with it at this generation. Expressions are not compiled anew with every look.
    checked: HashMap<String, (Option<i64>, Result<(), String>)>,
    began: Instant,
}

/// Faults of one policy that took place: of pods that are gone too, and under leaders before this one. It never goes back.
#[derive(Debug, Default)]
struct Counted {
    total: u64,
    /// By UID of the pod: what its sidecar had counted when it was last looked at, which is what policies of this name did.
    seen: HashMap<String, u64>,
}

impl Counted {
    /// `matched`: the pods that it reaches now; what they had counted before they were is not its.
    fn look<'a>(&mut self, matched: impl Iterator<Item = &'a str>, count: impl Fn(&str) -> u64, is_silent: impl Fn(&str) -> bool) -> u64 {
        let mut reached = HashSet::new();
        for uid in matched {
            if !self.seen.contains_key(uid) {
                self.seen.insert(uid.to_owned(), count(uid));
            }
            reached.insert(uid);
        }
        for (uid, before) in &mut self.seen {
            let now = count(uid);
            self.total += now.saturating_sub(*before);
            *before = now;
        }
        // A pod that leaves goes on for a while, and its sidecar counts.
        self.seen.retain(|uid, _| reached.contains(uid.as_str()) || !is_silent(uid));
        self.total
    }
}

/// A status to be written, with what is said once it is.
struct Telling {
    policy: Arc<FaultPolicy>,
    uid: String,
    standing: Standing,
    status: FaultPolicyStatus,
    is_news: bool,
}

/// Where a policy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Invalid(String),
    Expired,
    NotAllowed,
    NoPods,
    /// So many sidecars refuse it.
    SidecarTooOld(usize),
    /// These pods' have never dialled in.
    SidecarsSilent(Vec<String>),
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
            Self::SidecarsSilent(_) => "SidecarsSilent",
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
                format!(
                    "{count} of {} sidecars are of another version and refuse what it says: they have not armed it, start their pods anew",
                    status.pods_matched
                )
            }
            Self::SidecarsSilent(pods) => {
                let (armed, matched) = (status.pods_armed, status.pods_matched);
                format!("{armed} of {matched} sidecars have it in force; {}", silence(pods))
            }
            Self::Arming => format!("{} of {} sidecars have it in force", status.pods_armed, status.pods_matched),
            Self::Armed => format!("in force in {} pods", status.pods_armed),
        }
    }
}

impl FaultPolicies {
    pub fn new(client: Client, pods: Arc<Pods>, hub: Arc<PolicyHub>, ingest: Arc<Ingest>, events: Events) -> Self {
        let policies = Watched::within(pods.scope().apis(&client), watcher::Config::default(), |_| {});
        Self {
            client,
            policies,
            pods,
            hub,
            ingest,
            events,
            set: HashMap::new(),
            written: HashMap::new(),
            writing: HashSet::new(),
            counted: HashMap::new(),
            checked: HashMap::new(),
            began: Instant::now(),
        }
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
        let mut writes: FuturesUnordered<BoxFuture<'static, (Telling, Result<bool, String>)>> = FuturesUnordered::new();
        loop {
            let statuses = self.arm();
            for telling in self.news(statuses, Timestamp::now(), WRITES_MAX.saturating_sub(writes.len())) {
                writes.push(Box::pin(write(self.client.clone(), telling)));
            }
            loop {
                tokio::select! {
                    Some((telling, written)) = writes.next(), if !writes.is_empty() => {
                        self.told(telling, written);
                        continue;
                    }
                    _ = policies.changed() => {}
                    _ = pods.changed() => {}
                    _ = namespaces.changed() => {}
                    () = sleep(LOOK_EVERY) => {}
                }
                break;
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
        let there: HashSet<String> = statuses.iter().filter_map(|(policy, ..)| policy.uid()).collect();
        self.counted.retain(|uid, _| there.contains(uid));
        self.checked.retain(|uid, _| there.contains(uid));
        let gone: Vec<String> = self.set.keys().filter(|owner| !owners.contains(*owner)).cloned().collect();
        for owner in gone {
            self.hub.clear(&owner);
            self.set.remove(&owner);
        }
        statuses
    }

    fn arm_one(&mut self, policy: &FaultPolicy, owner: &str, namespace: &str, name: &str, pods: &[PodFacts], now: Timestamp) -> (Standing, FaultPolicyStatus) {
        let mut status = FaultPolicyStatus { observed_generation: policy.metadata.generation, ..FaultPolicyStatus::default() };
        let judged = self.check(policy, name).and_then(|()| judge(policy, now));
        if let Ok((_, expires_at, _)) = &judged {
            status.expires_at = Some(expires_at.to_string());
        }
        let allowed = self.pods.allowed_in(namespace);
        let reached = policy.spec.get().map(|spec| pods.iter().filter(|pod| spec.selector.matches(&pod.labels))).into_iter().flatten();
        let before = || Counted { total: policy.status.as_ref().map_or(0, |status| status.injected), ..Counted::default() };
        status.injected = self.counted.entry(policy.uid().unwrap_or_default()).or_insert_with(before).look(
            reached.map(|pod| pod.uid.as_str()),
            |uid| self.ingest.injected(uid, name).into_values().sum(),
            |uid| self.ingest.heard(uid).is_none_or(|heard| heard.elapsed() >= SILENT_FOR),
        );
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
        let standing = match refused {
            Some(why) => Standing::Invalid(why),
            None if matched.is_empty() => Standing::NoPods,
            None if too_old > 0 => Standing::SidecarTooOld(too_old),
            None if status.pods_armed < status.pods_matched => {
                let silent = if self.began.elapsed() < DIALS_WITHIN { Vec::new() } else { silent(matched.into_values(), &self.hub, &self.ingest, now) };
                if silent.is_empty() { Standing::Arming } else { Standing::SidecarsSilent(silent) }
            }
            None => Standing::Armed,
        };
        (standing, status)
    }

    /// As [`check`], once for each generation.
    fn check(&mut self, policy: &FaultPolicy, name: &str) -> Result<(), String> {
        let (uid, generation) = (policy.uid().unwrap_or_default(), policy.metadata.generation);
        if let Some((checked, found)) = self.checked.get(&uid)
            && *checked == generation
        {
            return found.clone();
        }
        let found = check(policy, name);
        self.checked.insert(uid, (generation, found.clone()));
        found
    }

    /// What of these is to be written now, `most` at most.
    fn news(&mut self, statuses: Vec<(Arc<FaultPolicy>, Standing, FaultPolicyStatus)>, now: Timestamp, most: usize) -> Vec<Telling> {
        let there: HashSet<String> = statuses.iter().filter_map(|(policy, ..)| policy.uid()).collect();
        self.written.retain(|uid, _| there.contains(uid));
        let without = self.pods.without();
        let mut news = Vec::new();
        for (policy, standing, mut status) in statuses {
            if news.len() >= most {
                break;
            }
            let (uid, namespace) = (policy.uid().unwrap_or_default(), policy.namespace().unwrap_or_default());
            if self.writing.contains(&uid) {
                continue;
            }
            let before = self.written.get(&uid).map(|(status, _)| status).or(policy.status.as_ref());
            let message = standing.message(&namespace, &status) + &missed(&policy, &namespace, &without);
            status.conditions = vec![condition(before.map(|before| before.conditions.as_slice()), &standing, message, policy.metadata.generation, now)];
            if let Some((written, at)) = self.written.get(&uid)
                && (*written == status || (only_counts_differ(written, &status) && now.duration_since(*at) < COUNTS_EVERY))
            {
                continue;
            }
            let is_news = before.is_none_or(|before| before.conditions.first().map(|condition| condition.reason.as_str()) != Some(standing.reason()));
            self.writing.insert(uid.clone());
            news.push(Telling { policy, uid, standing, status, is_news });
        }
        news
    }

    fn told(&mut self, telling: Telling, written: Result<bool, String>) {
        let Telling { policy, uid, standing, status, is_news } = telling;
        self.writing.remove(&uid);
        match written {
            Ok(true) => {
                if is_news {
                    let (about, reason, message) = (policy.object_ref(&()), standing.reason(), &status.conditions[0].message);
                    match standing {
                        Standing::Armed => self.events.say(about, reason, "Arm", message),
                        Standing::Expired => self.events.say(about, reason, "Disarm", message),
                        Standing::Invalid(_) | Standing::NotAllowed | Standing::SidecarTooOld(_) | Standing::SidecarsSilent(_) => {
                            self.events.warn(about, reason, "Arm", message);
                        }
                        Standing::NoPods | Standing::Arming => {}
                    }
                }
                self.written.insert(uid, (status, Timestamp::now()));
            }
            // Deleted meanwhile.
            Ok(false) => {}
            Err(why) => tracing::warn!(policy = %policy, why, "its status could not be written"),
        }
    }
}

/// False: it is not there any more.
async fn write(client: Client, telling: Telling) -> (Telling, Result<bool, String>) {
    let (name, namespace) = (telling.policy.name_any(), telling.policy.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": API_VERSION, "kind": FaultPolicy::KIND,
        "metadata": { "name": name, "namespace": namespace },
        "status": fit(&telling.status),
    });
    let api: Api<FaultPolicy> = Api::namespaced(client, &namespace);
    let written = match timeout(WRITTEN_WITHIN, api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => Ok(false),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the API server did not answer within {WRITTEN_WITHIN:?}")),
    };
    (telling, written)
}

/// Names of those of these pods whose sidecars have never dialled in, though they have had the time.
pub fn silent<'a>(pods: impl Iterator<Item = &'a PodFacts>, hub: &PolicyHub, ingest: &Ingest, now: Timestamp) -> Vec<String> {
    let had_time = |pod: &PodFacts| pod.created.is_some_and(|created| now.duration_since(created) >= SignedDuration::from_secs(DIALS_WITHIN.as_secs() as i64));
    let mut silent: Vec<String> =
        pods.filter(|pod| had_time(pod) && !hub.connected(&pod.uid) && ingest.heard(&pod.uid).is_none()).map(|pod| pod.name.clone()).collect();
    silent.sort();
    silent
}

/// That these pods' sidecars are silent, and what it may come from.
pub fn silence(pods: &[String]) -> String {
    format!(
        "{} have never dialled in, those of {}: not started yet, injected offline without --controller, kept from dialling out by a NetworkPolicy, or given an \
         authority that is not the controller's any more (docs/injection.md)",
        pods.len(),
        some(pods, PODS_NAMED)
    )
}

/// Names of the policies that are, or at some time since then were, to be in force in a pod with one of these sets of labels.
pub fn in_force(policies: &[FaultPolicy], labels: &[&BTreeMap<String, String>], since: Timestamp) -> Vec<String> {
    let is_in_force = |policy: &&FaultPolicy| {
        let Ok((spec, _, Some(_))) = judge(policy, since) else { return false };
        policy.metadata.deletion_timestamp.is_none() && labels.iter().any(|labels| spec.selector.matches(labels)) && check(policy, &policy.name_any()).is_ok()
    };
    policies.iter().filter(is_in_force).map(ResourceExt::name_any).collect()
}

/// Whether everything that somebody might wait for is the same. Messages count pods.
fn only_counts_differ(one: &FaultPolicyStatus, other: &FaultPolicyStatus) -> bool {
    let standing = |status: &FaultPolicyStatus| {
        let conditions: Vec<_> = status.conditions.iter().map(|c| (c.kind.clone(), c.status.clone(), c.reason.clone())).collect();
        (conditions, status.observed_generation, status.expires_at.clone())
    };
    standing(one) == standing(other)
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

/// What sidecars would refuse of it.
fn check(policy: &FaultPolicy, name: &str) -> Result<(), String> {
    let spec = policy.spec.get().map_err(|why| format!("spec: {why}"))?;
    if name.len() > NAME_MAX {
        return Err(format!("metadata.name: {} characters are too many, it is a label of metrics: give it {NAME_MAX} at most", name.len()));
    }
    sidecar::check(&NamedPolicy { name: name.to_owned(), spec: spec.clone() }).map_err(|wrong| wrong.to_string())
}

/// The policy, when it ends, and what is left of it (`None`: nothing).
fn judge(policy: &FaultPolicy, now: Timestamp) -> Result<(&FaultPolicySpec, Timestamp, Option<Span>), String> {
    let spec = policy.spec.get().map_err(|why| format!("spec: {why}"))?;
    if spec.expires_after > EXPIRES_MAX {
        return Err(format!("spec.expiresAfter: {} is too long: write 24h or less", spec.expires_after));
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
        let (_, expires_at, left) = judge(&good, now).unwrap();
        assert_eq!((expires_at.to_string().as_str(), left), ("2026-01-01T00:10:00Z", Some(Span::from_secs(300))));
        let later: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        assert_eq!(judge(&good, later).unwrap().2, None);
        let long = policy("{expiresAfter: 30d, budget: {concurrent: 1, share: 1%}}", "'2026-01-01T00:00:00Z'");
        assert!(judge(&long, now).unwrap_err().starts_with("spec.expiresAfter: 30days is too long: write 24h"));
        let bad = policy("{expiresAfter: soon}", "'2026-01-01T00:00:00Z'");
        assert!(judge(&bad, now).unwrap_err().contains("such as 500ms"));
    }

    #[test]
    fn what_a_sidecar_would_refuse_is_invalid_with_what_would_be_right() {
        let good =
            "{expiresAfter: 10m, budget: {concurrent: 1, share: 1%}, rules: [{match: {methods: [POST], path: {prefix: /v2}}, faults: [{delay: {fixed: 1s}}]}]}";
        let created = "'2026-01-01T00:00:00Z'";
        assert_eq!(check(&policy(good, created), "p"), Ok(()));
        assert!(check(&policy(good, created), &"p".repeat(64)).unwrap_err().contains("63"));
        for (right, wrong, field, says) in [
            ("fixed: 1s", "fixed: 2h", "spec.rules[0].faults[0].delay", "at most 1h"),
            ("[POST]", "[post]", "spec.rules[0].match.methods[0]", "capital letters"),
            ("prefix: /v2", "prefix: v2", "spec.rules[0].match.path", "slash"),
            ("prefix: /v2", "regex: '('", "spec.rules[0].match.path.regex", "unclosed group"),
            ("methods: [POST]", "headers: {'a b': x}", "spec.rules[0].match.headers.a b", "a header's"),
            ("expiresAfter: 10m", "expiresAfter: 10m, cpuPressure: {load: 0%}", "spec.cpuPressure.load", "more than 0%"),
            ("expiresAfter: 10m", "expiresAfter: 10m, memoryPressure: {bytes: 32Mi}", "spec.memoryPressure.bytes", "spec.budget.memory"),
        ] {
            let bad = policy(&good.replace(right, wrong), created);
            let why = check(&bad, "p").unwrap_err();
            assert!(why.starts_with(&format!("{field}: ")) && why.contains(says), "{why}");
            assert!(in_force(&[bad], &[&BTreeMap::new()], "2026-01-01T00:01:00Z".parse().unwrap()).is_empty(), "it is armed nowhere");
        }
    }

    #[test]
    fn a_policy_is_in_force_from_its_creation_until_it_expires_where_it_selects() {
        let good = policy("{selector: {matchLabels: {app: x}}, expiresAfter: 10m, budget: {concurrent: 1, share: 1%}}", "'2026-01-01T00:00:00Z'");
        let labels = |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned())]);
        let (x, y) = (labels("x"), labels("y"));
        let names = |labels: &[&BTreeMap<String, String>], since: &str| in_force(std::slice::from_ref(&good), labels, since.parse().unwrap());
        assert_eq!(names(&[&y, &x], "2026-01-01T00:09:59Z"), ["p"]);
        assert!(names(&[&x], "2026-01-01T00:10:00Z").is_empty(), "it had expired");
        assert!(names(&[&y], "2026-01-01T00:00:00Z").is_empty() && names(&[], "2026-01-01T00:00:00Z").is_empty());
    }

    #[test]
    fn pods_without_a_sidecar_that_a_policy_means_are_told_by_reason() {
        let pod = |namespace: &str, app: &str| PodFacts {
            namespace: namespace.into(),
            name: app.into(),
            uid: app.into(),
            created: None,
            labels: [("app".to_owned(), app.to_owned())].into(),
            has_sidecar: false,
            asks: true,
            faults_allowed: true,
            ports: crate::webhook::past::PodPorts::default(),
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
    fn what_took_place_is_counted_once_and_never_goes_back() {
        let mut counts: HashMap<&str, u64> = HashMap::from([("a", 5)]);
        let mut counted = Counted { total: 100, ..Counted::default() };
        let mut look = |counts: &HashMap<&str, u64>, matched: &[&str], silent: bool| {
            counted.look(matched.iter().copied(), |uid| counts.get(uid).copied().unwrap_or(0), |_| silent)
        };
        assert_eq!(look(&counts, &["a"], false), 100, "what a policy of this name did before this one was made is not its");
        counts.insert("a", 8);
        assert_eq!(look(&counts, &["a", "b"], false), 103);
        counts.insert("b", 4);
        counts.insert("a", 9);
        assert_eq!(look(&counts, &["b"], false), 108, "a leaves, and went on for a while");
        counts.remove("a");
        assert_eq!(look(&counts, &["b"], true), 108, "a is forgotten, and what it did is not");
        counts.insert("b", 5);
        assert_eq!(look(&counts, &[], true), 109);
    }

    #[test]
    fn counts_may_wait_and_what_somebody_waits_for_may_not() {
        let status = |armed: u32, standing: &Standing| {
            let status = FaultPolicyStatus { pods_matched: 3, pods_armed: armed, injected: u64::from(armed), ..FaultPolicyStatus::default() };
            let message = standing.message("models", &status);
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            FaultPolicyStatus { conditions: vec![condition(None, standing, message, Some(1), now)], ..status }
        };
        assert!(only_counts_differ(&status(1, &Standing::Arming), &status(2, &Standing::Arming)), "its message counts pods");
        assert!(!only_counts_differ(&status(2, &Standing::Arming), &status(3, &Standing::Armed)));
    }

    #[test]
    fn every_standing_says_what_to_do_next() {
        let status = FaultPolicyStatus { pods_matched: 3, pods_armed: 1, ..FaultPolicyStatus::default() };
        assert!(Standing::NotAllowed.message("models", &status).contains("kubectl label namespace models steadfast.dev/faults=allowed"));
        assert!(Standing::Arming.message("models", &status).contains("1 of 3"));
        let silent = Standing::SidecarsSilent(vec!["a".into(), "b".into()]).message("models", &status);
        assert!(
            silent.contains("1 of 3 sidecars have it") && silent.contains("2 have never dialled in, those of a, b: ") && silent.contains("--controller"),
            "{silent}"
        );
        let used: BTreeMap<&str, Standing> = [Standing::Expired, Standing::NoPods, Standing::Armed].into_iter().map(|s| (s.reason(), s)).collect();
        assert_eq!(used.len(), 3);
    }
}
