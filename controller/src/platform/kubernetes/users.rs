//! Users in a pod of their own, away from the target's pods and from the nodes that the run may hit: what loads those nodes does not load the users, and a node that is
//! lost takes none of them with it.
//!
//! The pod is this controller's own image in its own namespace, has no right of any kind, and proves by its token which pod it is. It is written into the run's ledger
//! before it is made, belongs to the leader's pod, ends itself when it hears nothing of its controller, and is ended by kubelet after a day. One that dies is made anew;
//! what nobody asked meanwhile is told, and in no figure. Where there can be none, users are in this process, and the report says why.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{Api, ResourceExt, api::PostParams};
use rand::RngExt;
use serde_json::{Value, json};
use steadfast_api::Span;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Inner,
    failures::{
        FailureError, Means,
        ledger::{ClusterChange, Undo},
        undo,
    },
};
use crate::{
    load::{
        Asked, Record,
        generator::Generator,
        here,
        pod::ALONE_FOR,
        wire::{Begin, Wanted},
    },
    platform::{PlatformError, Users, stop_all},
    serve::{
        sets::SetStore,
        users::{Expected, Heard, Name},
    },
    webhook::patch::{CA_VARIABLE, SidecarSettings, TOKEN_DIRECTORY, pod_security, token_volume},
};

/// Pulling its image is the longest part.
const ASKS_WITHIN: Duration = Duration::from_secs(60);
/// A scheduler that finds no place finds none a moment later either, as a rule.
const PLACED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A pod that was not heard for so long is lost. Shorter than it takes to end itself: what it tells later is heard by nobody.
const LOST_AFTER: Duration = Duration::from_secs(10);
const _: () = assert!(LOST_AFTER.as_secs() < ALONE_FOR.as_secs());
/// Kubelet's own deadline, for when nobody else is there.
const ENDS_AFTER: Duration = Duration::from_hours(24);
/// Beyond the users' own patience, until what was under way is on record.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// A pod that lived no longer is no better than none; after so many of them in a row users are in this process.
const SHORT_LIFE: Duration = Duration::from_mins(1);
const SHORT_LIVES_MAX: u32 = 3;
/// Nodes that are named in one pod; beyond that the scheduler is not told of them.
const NODES_MAX: usize = 256;
/// Gaps that are told one by one.
const GAPS_MAX: usize = 5;
/// Kubelet will not try these again with another outcome.
const HOPELESS: [&str; 4] = ["ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError", "RunContainerError"];

/// On the pods.
const LABEL: &str = "steadfast.dev/part";
const USERS: &str = "users";
/// Whether a pod is one of these, by its labels; it is made anew wherever its node goes.
pub(super) fn are(labels: &BTreeMap<String, String>) -> bool {
    labels.get(LABEL).is_some_and(|part| part == USERS)
}

/// What is needed to make them, where this controller may.
#[derive(Clone)]
pub struct UsersPods {
    /// Where they dial in.
    pub settings: Arc<ArcSwap<SidecarSettings>>,
    /// The golden sets that they fetch.
    pub sets: Arc<SetStore>,
    /// Name and UID of this process's own pod, to which they belong.
    pub leader: (String, String),
    pub cpu: String,
    pub memory: String,
    pub memory_limit: String,
}

/// Where the users of a run are, for its report.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts(Arc<Mutex<Where>>);

#[derive(Clone, Debug, Default)]
struct Where {
    at: At,
    /// Since when nobody asked, and until when; told once.
    gaps: Vec<(Timestamp, Timestamp, String)>,
    /// What else is to be told once.
    more: Vec<String>,
    /// The worst that was known of how exact moments are.
    uncertain: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Controller,
    /// Although a pod was wanted.
    ControllerSince(String),
    Pod {
        name: String,
        node: String,
    },
}

impl Whereabouts {
    fn with<T>(&self, work: impl FnOnce(&mut Where) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The node of the users' pod, while there is one.
    pub(super) fn node(&self) -> Option<String> {
        self.with(|now| if let At::Pod { node, .. } = &now.at { Some(node.clone()) } else { None })
    }

    fn is_in(&self, name: &str, node: &str) {
        self.with(|now| now.at = At::Pod { name: name.to_owned(), node: node.to_owned() });
    }

    fn is_here(&self, why: String) {
        self.with(|now| now.at = At::ControllerSince(why));
    }

    fn gap(&self, from: Timestamp, why: String) {
        self.with(|now| now.gaps.push((from, Timestamp::now(), why)));
    }

    fn saw(&self, heard: &Heard) {
        if let Some(uncertain) = heard.uncertain {
            self.with(|now| now.uncertain = now.uncertain.max(Some(uncertain)));
        }
    }

    /// For a report; gaps are told once. `here`: the controller's node; `of_target`: nodes that hold or held pods of the target.
    pub(super) fn notes(&self, asks: &str, here: &str, of_target: &[String]) -> Vec<String> {
        let now = self.with(|now| {
            let told = now.clone();
            (now.gaps, now.more, now.uncertain) = (Vec::new(), Vec::new(), None);
            told
        });
        let beside = |node: &str| of_target.iter().any(|of_target| of_target == node);
        let process = || {
            let beside = if beside(here) {
                ", where pods of the target are too: what loads that node loads the users, and it is never cut off or switched off"
            } else {
                ""
            };
            format!("from the controller's process on node {here}{beside}")
        };
        let mut notes = vec![match &now.at {
            At::Controller => format!("{asks}, {}.", process()),
            At::ControllerSince(why) => format!("{asks}, {}; not from a pod of their own, because {why}.", process()),
            At::Pod { name, node } => {
                let beside = if beside(node) {
                    ", where pods of the target are or were too: what loads that node loads the users"
                } else {
                    ", where no pod of the target is"
                };
                let exact = now.uncertain.map(|uncertain| {
                    format!(" What they did is placed on the controller's clock to within {:.2} ms, at worst.", uncertain.as_secs_f64() * 1e3)
                });
                format!("{asks}, from pod {name} on node {node}{beside}.{}", exact.unwrap_or_default())
            }
        }];
        let seconds = |from: &Timestamp, until: &Timestamp| until.duration_since(*from).as_secs_f64();
        for (from, until, why) in now.gaps.iter().take(GAPS_MAX) {
            notes.push(format!(
                "Nobody asked for {:.1} s from {from:.1} on, which is in no figure: the users' pod was lost ({why}), and made anew.",
                seconds(from, until)
            ));
        }
        if let Some(more) = now.gaps.get(GAPS_MAX..).filter(|more| !more.is_empty()) {
            let all: f64 = more.iter().map(|(from, until, _)| seconds(from, until)).sum();
            notes.push(format!("Nor for {all:.1} s in all, {} times more.", more.len()));
        }
        notes.extend(now.more);
        notes
    }
}

/// Users in a pod of their own, made anew for as long as they are wanted.
#[derive(Debug)]
pub struct InPod {
    stop: watch::Sender<bool>,
    kept: JoinHandle<u64>,
}

impl InPod {
    /// As [`Users::stop`]; the pod is gone then.
    pub(in crate::platform) async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        self.kept.await.unwrap_or_default()
    }
}

/// Has users ask: in a pod of their own where that can be, else in this process.
pub(super) async fn begin(inner: &Arc<Inner>, begin: Begin, asked: Vec<Asked>, records: mpsc::Sender<Record>) -> Result<Users, PlatformError> {
    let crew = Crew { inner: Arc::clone(inner), begin, asked, records };
    if crew.inner.users_pods.is_none() {
        return crew.here().map(Users::Here);
    }
    match crew.pod(None).await {
        Ok(pod) => {
            let (stop, stopped) = watch::channel(false);
            Ok(Users::InPod(InPod { stop, kept: tokio::spawn(crew.keep(pod, stopped)) }))
        }
        Err(error) if *crew.inner.giving_up.borrow() => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "users have no pod of their own");
            crew.inner.whereabouts.is_here(error.to_string());
            crew.here().map(Users::Here)
        }
    }
}

struct Crew {
    inner: Arc<Inner>,
    begin: Begin,
    asked: Vec<Asked>,
    records: mpsc::Sender<Record>,
}

/// A pod that asks.
struct OnePod {
    name: Name,
    node: String,
    expected: Expected,
    written: Undo,
    since: Instant,
}

/// Who asks now.
enum Asking {
    Pod(Box<OnePod>),
    Here(Vec<Generator>),
}

impl Crew {
    fn here(&self) -> Result<Vec<Generator>, PlatformError> {
        let started = here(self.begin.target, self.begin.keep_alive, &self.asked, &self.records);
        started.map_err(|error| PlatformError::new(format!("load {:?}", error.load), error.why))
    }

    /// Until it is told to stop; requests in no record.
    async fn keep(self, pod: OnePod, mut stop: watch::Receiver<bool>) -> u64 {
        let (mut dropped, mut short_lives) = (0, 0);
        let mut asking = Asking::Pod(Box::new(pod));
        loop {
            let pod = match asking {
                Asking::Pod(pod) => pod,
                Asking::Here(loads) => {
                    let _ = stop.wait_for(|stop| *stop).await;
                    return dropped + stop_all(loads).await;
                }
            };
            let mut heard = pod.expected.heard();
            let lost = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => None,
                why = self.lost(&pod, &mut heard) => Some(why),
            };
            let Some(why) = lost else {
                dropped += self.end(*pod, heard).await;
                return dropped;
            };
            let silent = heard.borrow().last.map_or(Duration::ZERO, |last| last.elapsed());
            let since = Timestamp::now().checked_sub(jiff::SignedDuration::try_from(silent).unwrap_or_default()).unwrap_or_else(|_| Timestamp::now());
            tracing::warn!(pod = pod.name.name, node = pod.node, why, "the users' pod is lost");
            dropped += heard.borrow().dropped;
            short_lives = if pod.since.elapsed() < SHORT_LIFE { short_lives + 1 } else { 0 };
            let node = pod.node.clone();
            self.remove(*pod).await;
            let anew = async {
                if short_lives >= SHORT_LIVES_MAX {
                    return Err(FailureError::new("users", format!("{short_lives} pods in a row were lost within {SHORT_LIFE:?} each, the last: {why}")));
                }
                self.pod(Some(&node)).await
            };
            let anew = tokio::select! {
                anew = anew => anew,
                _ = stop.wait_for(|stop| *stop) => return dropped,
            };
            asking = match anew {
                Ok(pod) => Asking::Pod(Box::new(pod)),
                Err(error) => {
                    self.inner.whereabouts.is_here(error.to_string());
                    match self.here() {
                        Ok(loads) => Asking::Here(loads),
                        // They did start in the pod.
                        Err(error) => {
                            tracing::error!(%error, "nobody asks any more");
                            return dropped;
                        }
                    }
                }
            };
            self.inner.whereabouts.gap(since, why);
        }
    }

    /// Makes one that asks. `lost`: the node of the one before. What was made of one that does not come to ask is taken away.
    async fn pod(&self, lost: Option<&str>) -> Result<OnePod, FailureError> {
        let inner = &self.inner;
        let pods = inner.users_pods.as_ref().ok_or_else(|| FailureError::new("users", "this controller makes no pods for them"))?;
        for wanted in &self.begin.loads {
            if pods.sets.get(&wanted.digest).is_none() {
                return Err(FailureError::new(format!("golden set {}", wanted.digest), "is not held for a pod to fetch: there is no room for it"));
            }
        }
        let name = format!("steadfast-users-{}-{:05x}", inner.run, rand::rng().random_range(0..0x10_0000));
        let awaited = &inner.means.users;
        let name = awaited.name(name).map_err(|why| FailureError::new("users", why))?;
        let change = ClusterChange::Users { pod: name.name.clone() };
        let id = inner.ledger.record(change.clone(), Span::new(ENDS_AFTER)).await?;
        let written = Undo { id, expires_at: String::new(), change };
        let made = async {
            let place = Place { lost, of_target: inner.facts().nodes(), leader: &inner.means.node, hits_nodes: inner.hits_nodes };
            let object = object(&name.name, &inner.means, pods, &place)?;
            let api: Api<Pod> = Api::namespaced(inner.means.prompt.clone(), &inner.means.namespace);
            let what = || format!("users' pod {}", name.name);
            let made = api.create(&PostParams::default(), &object).await.map_err(|error| not_made(what(), &error))?;
            let uid = made.uid().unwrap_or_default();
            let expected = awaited.expect(&uid, self.begin.clone(), self.records.clone());
            let node = inner.given_up().or(asks(&api, &name.name, &uid, expected.heard(), &what())).await?;
            Ok((expected, node))
        };
        match made.await {
            Ok((expected, node)) => {
                tracing::info!(pod = name.name, node, "users ask");
                inner.whereabouts.is_in(&name.name, &node);
                Ok(OnePod { name, node, expected, written, since: Instant::now() })
            }
            Err(error) => {
                undo::entries(&inner.means, &inner.ledger, vec![written]).await;
                Err(error)
            }
        }
    }

    /// Returns when it is, with why.
    async fn lost(&self, pod: &OnePod, heard: &mut watch::Receiver<Heard>) -> String {
        let api: Api<Pod> = Api::namespaced(self.inner.means.prompt.clone(), &self.inner.means.namespace);
        loop {
            let now = heard.borrow_and_update().clone();
            self.inner.whereabouts.saw(&now);
            if let Some(why) = now.failed {
                return why;
            }
            let silent = now.last.map_or(Duration::ZERO, |last| last.elapsed());
            // It tells ten times a second: of one that does not, its pod is looked at.
            if silent >= Duration::from_secs(1) {
                match api.get_opt(&pod.name.name).await {
                    Ok(None) => return "somebody deleted it".to_owned(),
                    Ok(Some(object)) if is_over(&object) => return ended(&object.status.unwrap_or_default()),
                    _ if silent >= LOST_AFTER => return format!("it was silent for {LOST_AFTER:?}"),
                    _ => {}
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Has it end, and takes it away; requests in no record.
    async fn end(&self, pod: OnePod, mut heard: watch::Receiver<Heard>) -> u64 {
        pod.expected.stop();
        let patience = self.asked.iter().map(|asked| asked.load.timeout.get()).max().unwrap_or_default() + TOLD_WITHIN;
        let told = timeout(patience, heard.wait_for(|heard| heard.ended || heard.failed.is_some())).await.is_ok();
        let last = heard.borrow().clone();
        self.inner.whereabouts.saw(&last);
        if !told {
            let silent = last.last.map_or(Duration::ZERO, |last| last.elapsed());
            let words = format!("What users saw in the last {:.1} s is in no figure: their pod did not tell it.", silent.as_secs_f64());
            self.inner.whereabouts.with(|now| now.more.push(words));
        }
        tracing::info!(pod = pod.name.name, uncertain = ?last.uncertain, apart_ns = ?last.apart_ns, "users ask no more");
        self.remove(pod).await;
        last.dropped
    }

    /// What cannot be removed now stays in the ledger, and is by whoever looks there next.
    async fn remove(&self, pod: OnePod) {
        drop(pod.expected);
        let (summary, _) = undo::entries(&self.inner.means, &self.inner.ledger, vec![pod.written]).await;
        for why in summary.failed {
            tracing::warn!(why, "the users' pod stays for now");
        }
    }
}

/// Waits until it asks; its node.
async fn asks(api: &Api<Pod>, name: &str, uid: &str, mut heard: watch::Receiver<Heard>, what: &str) -> Result<String, FailureError> {
    let began = Instant::now();
    let mut keeps = "kubelet has not taken it up".to_owned();
    loop {
        let now = heard.borrow_and_update().clone();
        if let Some(why) = now.failed {
            return Err(FailureError::new(what, why));
        }
        let pod = match api.get_opt(name).await {
            Ok(pod) => pod.filter(|pod| pod.uid().as_deref() == Some(uid)).ok_or_else(|| FailureError::new(what, "somebody deleted it"))?,
            Err(error) if began.elapsed() >= ASKS_WITHIN => return Err(FailureError::api(what, &error)),
            Err(_) => {
                sleep(LOOK_EVERY).await;
                continue;
            }
        };
        if now.last.is_some() {
            return Ok(pod.spec.and_then(|spec| spec.node_name).unwrap_or_default());
        }
        if is_over(&pod) {
            return Err(FailureError::new(what, ended(&pod.status.unwrap_or_default())));
        }
        let status = pod.status.unwrap_or_default();
        if let Some((why, hopeless)) = waits_for(&status) {
            let after = began.elapsed();
            if hopeless || (after >= PLACED_WITHIN && is_unplaced(&status)) {
                return Err(FailureError::new(what, why));
            }
            keeps = why;
        }
        if began.elapsed() >= ASKS_WITHIN {
            return Err(FailureError::new(what, format!("does not ask after {ASKS_WITHIN:?}: {keeps}")));
        }
        let _ = timeout(LOOK_EVERY, heard.changed()).await;
    }
}

fn not_made(what: String, error: &kube::Error) -> FailureError {
    match error {
        kube::Error::Api(status) if status.code == 403 && status.message.contains("cannot create resource") => {
            let why = "the controller may not make it: the right comes, on Kubernetes 1.30 or later, with deploy/manifests/admission.yaml, and with the chart where users.ownPod and \
                       admissionPolicies.enabled are true";
            FailureError::new(what, why)
        }
        error => FailureError::api(what, error),
    }
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded"))
}

fn is_unplaced(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
}

/// What keeps it from running, and whether that stays so.
fn waits_for(status: &PodStatus) -> Option<(String, bool)> {
    let unplaced = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unplaced {
        return Some((condition.message.clone().unwrap_or_else(|| "no node takes it".to_owned()), false));
    }
    status.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or("it waits");
        let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        Some((format!("{reason}{message}"), HOPELESS.contains(&reason)))
    })
}

/// Why it has ended.
fn ended(status: &PodStatus) -> String {
    let container = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.terminated.as_ref());
    let said = container.map(|ended| ended.message.clone().or_else(|| ended.reason.clone()).unwrap_or_else(|| format!("it ended with {}", ended.exit_code)));
    said.or_else(|| status.message.clone()).unwrap_or_else(|| "it ended".to_owned()).trim().to_owned()
}

/// What decides where it may stand.
struct Place<'a> {
    /// The node of the pod before.
    lost: Option<&'a str>,
    /// Nodes that hold, or held, pods of the target.
    of_target: Vec<String>,
    /// The controller's node: no failure takes it away.
    leader: &'a str,
    /// Some step takes nodes away, or burns their processors.
    hits_nodes: bool,
}

/// Nodes by their names; the scheduler takes one a requirement.
fn other_than<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Value {
    let one = |node: &str| json!({ "key": "metadata.name", "operator": "NotIn", "values": [node] });
    json!({ "matchFields": nodes.into_iter().map(one).collect::<Vec<_>>() })
}

/// A run that may hit nodes has its users on none that it could: those with pods of the target, but for the controller's, which is not hit. Of the others those
/// without the target are preferred, and of these those without the controller.
fn affinity(place: &Place<'_>) -> Value {
    let of_target: BTreeSet<&str> = place.of_target.iter().map(String::as_str).collect();
    let mut not: BTreeSet<&str> = place.lost.into_iter().collect();
    if place.hits_nodes {
        not.extend(of_target.iter().filter(|node| **node != place.leader));
    }
    let mut affinity = json!({});
    if (1..=NODES_MAX).contains(&not.len()) {
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = json!({ "nodeSelectorTerms": [other_than(not)] });
    }
    let mut preferred = Vec::new();
    if (1..=NODES_MAX).contains(&of_target.len()) {
        preferred.push(json!({ "weight": 100, "preference": other_than(of_target) }));
    }
    if !place.leader.is_empty() {
        preferred.push(json!({ "weight": 10, "preference": other_than([place.leader]) }));
    }
    if !preferred.is_empty() {
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred.into();
    }
    affinity
}

fn object(name: &str, means: &Means, pods: &UsersPods, place: &Place<'_>) -> Result<Pod, FailureError> {
    let what = || format!("users' pod {name}");
    let settings = pods.settings.load();
    let Some(controller) = &settings.controller else { return Err(FailureError::new(what(), "this controller has no address for it")) };
    let token = token_volume();
    let pod = json!({
        "metadata": {
            "name": name,
            "labels": { "app.kubernetes.io/managed-by": "steadfast", LABEL: USERS, "steadfast.dev/inject": "false" },
            // An autoscaler may take its node away, and `kubectl drain` may empty it: it is made anew.
            "annotations": { "cluster-autoscaler.kubernetes.io/safe-to-evict": "true" },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": pods.leader.0, "uid": pods.leader.1, "controller": true }],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": ENDS_AFTER.as_secs(),
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "imagePullSecrets": means.image_pull_secrets,
            "nodeSelector": { "kubernetes.io/os": "linux" },
            "affinity": { "nodeAffinity": affinity(place) },
            "securityContext": pod_security(settings.run_as_user),
            "containers": [{
                "name": USERS,
                "image": means.image,
                "imagePullPolicy": means.image_pull_policy,
                "args": ["users", format!("--controller={}", controller.url), format!("--token-file={TOKEN_DIRECTORY}/token")],
                "env": [{ "name": CA_VARIABLE, "value": controller.ca }],
                "volumeMounts": [{ "name": token["name"], "mountPath": TOKEN_DIRECTORY, "readOnly": true }],
                "resources": { "requests": { "cpu": pods.cpu, "memory": pods.memory }, "limits": { "memory": pods.memory_limit } },
                "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }],
            "volumes": [token],
        },
    });
    serde_json::from_value(pod).map_err(|error| FailureError::new(what(), error))
}

/// What the pod is told.
pub(super) fn wanted(asked: &[Asked]) -> Vec<Wanted> {
    asked.iter().map(|asked| Wanted { load: asked.load.clone(), digest: asked.set.digest().to_string(), seed: asked.seed }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place<'a>(of_target: &[&str], hits_nodes: bool, lost: Option<&'a str>) -> Place<'a> {
        Place { lost, of_target: of_target.iter().map(|node| (*node).to_owned()).collect(), leader: "n1", hits_nodes }
    }

    /// The names that a term keeps away from.
    fn names(term: &Value) -> Vec<&str> {
        term["matchFields"].as_array().unwrap().iter().map(|field| field["values"][0].as_str().unwrap()).collect()
    }

    #[test]
    fn users_stand_on_no_node_that_the_run_may_hit_and_away_from_the_target_where_they_can() {
        let required = |place: &Place<'_>| {
            let affinity = affinity(place);
            let terms = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
            terms.get(0).map_or_else(Vec::new, |term| names(term).into_iter().map(str::to_owned).collect())
        };
        assert_eq!(required(&place(&["n1", "n2", "n3"], true, None)), ["n2", "n3"], "the controller's is not hit");
        assert_eq!(required(&place(&["n2"], false, None)), Vec::<String>::new());
        assert_eq!(required(&place(&["n2"], false, Some("n4"))), ["n4"], "a node that was just lost is not known to be for a while");
        let many: Vec<String> = (0..=NODES_MAX).map(|number| number.to_string()).collect();
        assert_eq!(required(&place(&many.iter().map(String::as_str).collect::<Vec<_>>(), true, None)), Vec::<String>::new());
        let affinity = affinity(&place(&["n2", "n3"], false, None));
        let preferred: Vec<_> =
            affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array().unwrap().iter().map(|term| names(&term["preference"])).collect();
        assert_eq!(preferred, [vec!["n2", "n3"], vec!["n1"]]);
    }

    #[test]
    fn what_keeps_users_from_asking_is_told_in_kubelets_or_the_schedulers_words() {
        let status = |yaml: &str| -> PodStatus { serde_saphyr::from_str(yaml).unwrap() };
        let unplaced = status("conditions: [{type: PodScheduled, status: 'False', message: '0/3 nodes are available'}]\nphase: Pending");
        assert!(is_unplaced(&unplaced) && waits_for(&unplaced) == Some(("0/3 nodes are available".to_owned(), false)));
        let container =
            |state: &str| status(&format!("containerStatuses: [{{name: users, image: x, imageID: x, ready: false, restartCount: 0, state: {state}}}]"));
        let pulling = container("{waiting: {reason: ErrImagePull, message: no such image}}");
        assert_eq!(waits_for(&pulling), Some(("ErrImagePull: no such image".to_owned(), false)));
        assert!(waits_for(&container("{waiting: {reason: ErrImageNeverPull}}")).unwrap().1);
        assert_eq!(ended(&container("{terminated: {exitCode: 137, reason: OOMKilled}}")), "OOMKilled");
        assert_eq!(ended(&container("{terminated: {exitCode: 1, message: 'no way to the controller\n'}}")), "no way to the controller");
        assert_eq!(ended(&status("{phase: Failed, message: DeadlineExceeded}")), "DeadlineExceeded");
    }

    #[test]
    fn a_report_says_where_users_were_how_exactly_they_are_known_and_when_nobody_asked() {
        let whereabouts = Whereabouts::default();
        let notes = || whereabouts.notes("Users ask", "n1", &["n1".to_owned(), "n2".to_owned()]);
        assert!(notes()[0].starts_with("Users ask, from the controller's process on node n1, where pods of the target are too"), "{:?}", notes());
        whereabouts.is_here("it cannot be".to_owned());
        assert!(notes()[0].ends_with("; not from a pod of their own, because it cannot be."), "{:?}", notes());
        whereabouts.is_in("p", "n3");
        whereabouts.saw(&Heard { uncertain: Some(Duration::from_micros(340)), ..Heard::default() });
        whereabouts.saw(&Heard { uncertain: Some(Duration::from_micros(120)), ..Heard::default() });
        let at = Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(4)).unwrap();
        for _ in 0..=GAPS_MAX {
            whereabouts.gap(at, "its node is gone".to_owned());
        }
        let told = notes();
        assert!(told[0].contains("from pod p on node n3, where no pod of the target is. ") && told[0].contains("within 0.34 ms"), "{told:?}");
        assert!(told.len() == 2 + GAPS_MAX && told[1].contains("Nobody asked for 4.0 s") && told[1].contains("its node is gone"), "{told:?}");
        assert_eq!((whereabouts.node().as_deref(), notes().len()), (Some("n3"), 1), "a gap is told once");
        whereabouts.is_in("p", "n2");
        assert!(notes()[0].contains("are or were too"), "{:?}", notes());
    }
}
