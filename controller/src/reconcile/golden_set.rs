//! GoldenSets: replayed in every matching pod for as long as they exist, judged pod by pod, told of in their status; and pods that answer wrong leave their Service
//! where that was asked for.
//!
//! ```text
//!  GoldenSet, ConfigMap ─▶ [source] ─▶ SetStore ─▶ sidecars fetch by digest
//!  claim, image, objects ─▶ [reader] ─┘
//!            │ [promise]                              │ verdicts
//!            ▼                                        ▼
//!     PolicyHub: what is assigned  ◀── [gate] ◀── [verdicts] ─▶ [status], Events, metrics
//! ```
//!
//! Level-triggered, as FaultPolicies: after every change, and every two seconds, all sets are held against all pods. Nothing here is needed to go on replaying: a
//! sidecar that lost its controller replays what it was assigned last. A pod is out for [`OUT_FOR`] by its own clock, and is told again long before that: so whatever
//! is asked of an API server here is asked for many sets at once, and a look is over in time whether or not it answers.
//!
//! A new leader takes over from the status what is replayed, and who is out, as far as names stand there (ten); others who belong out leave again when their
//! sidecars say so, with the next sample. Nothing that is still to be read delays that, or the faults and runs of others.

mod before;
pub mod gate;
mod promise;
pub mod reader;
mod readiness;
pub mod runs;
mod source;
pub mod status;
pub mod verdicts;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use steadfast_api::{
    Percent, Span,
    golden::Verdict,
    policy::{GOLDEN_SETS_MAX, GoldenAssignment, Unready},
    resource::{GoldenReadiness, GoldenSetSpec, GoldenSetStatus},
};
use tokio::time::{sleep, timeout};

use self::{
    before::{BELIEVED_FOR, Before},
    gate::{Decision, Matched, Standing},
    reader::Readers,
    readiness::Readiness,
    runs::Runs,
    source::{About as Where, Source},
    status::{About, NAMES_MAX, Ready},
    verdicts::{Verdicts, of_service},
};
use super::{
    pods::{PodFacts, Pods},
    resource::{API_VERSION, GoldenSet, MANAGER},
    watched::Watched,
};
use crate::{
    events::Events,
    metrics::{Metrics, POD_STATES},
    serve::{ingest::Ingest, policy::PolicyHub, sets::SetStore},
};

/// GoldenSets that are replayed, those made first before others.
const SETS_MAX: usize = 1_000;
/// A burst of changes is looked at once.
const SETTLE: Duration = Duration::from_millis(10);
/// Everything is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Statuses change at most so often while only counts of pods do.
const COUNTS_EVERY: SignedDuration = SignedDuration::from_secs(10);
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// A look asks for sources, and then who is ready, for so long each: both together much less than [`SAY_AGAIN`].
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// A new leader waits no longer for either before it speaks to sidecars, and for what others have asked of it.
const FIRST_WITHIN: Duration = Duration::from_millis(500);
/// Sets of which something is asked or written at once.
const AT_ONCE: usize = 16;
/// A pod returns by itself when nobody has said for so long that it is to stay out.
const OUT_FOR: Duration = Duration::from_secs(30);
/// It is said again when less than this is left.
const SAY_AGAIN: Duration = Duration::from_secs(20);
/// A sidecar that was not heard for so long says nothing of its pod.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// What is remembered of one GoldenSet.
#[derive(Default)]
struct Held {
    source: Source,
    /// The generation that each pod has to confirm, by UID.
    assigned: HashMap<String, u64>,
    /// Pods that are out, and until when they were told.
    out: BTreeMap<String, Instant>,
    /// Pods that are asked without regard to the set's share of their requests: see [`gate`].
    hurried: BTreeSet<String>,
    /// What was told of each pod, by UID.
    told: HashMap<String, Verdict>,
    written: Option<(GoldenSetStatus, Timestamp)>,
    /// What the leader before said, while not every pod has spoken to this one.
    before: Option<Before>,
}

impl Held {
    /// What was told of a pod before, and whether this is news.
    fn hear(&mut self, uid: &str, verdict: Verdict) -> (Option<Verdict>, bool) {
        let told = self.told.insert(uid.to_owned(), verdict);
        let passed = self.before.as_mut().is_some_and(|before| before.passed.remove(uid)) && told.is_none() && verdict == Verdict::Pass;
        (told, told != Some(verdict) && !passed)
    }
}

/// One set in the middle of a look.
struct Asked {
    object: Arc<GoldenSet>,
    owner: String,
    namespace: String,
    name: String,
    judged: Result<(GoldenSetSpec, GoldenAssignment), Ready>,
    pods: Vec<Matched>,
    /// Matching pods that ask for a sidecar and have none.
    without: usize,
    /// Why some could not be told.
    refused: Option<String>,
    standing: Standing,
}

impl Asked {
    fn recovered_after(spec: &GoldenSetSpec, assignment: &GoldenAssignment) -> u32 {
        let alpha = promise::alpha(&spec.verdict.false_alarms, assignment.every.get());
        promise::settings(spec, alpha).recovered_after()
    }

    fn needs_ready(&self) -> bool {
        self.judged.as_ref().is_ok_and(|(spec, assignment)| gate::needs_ready(&self.pods, &spec.readiness, Self::recovered_after(spec, assignment)))
    }
}

/// One set as it stands after a look.
struct Looked {
    object: Arc<GoldenSet>,
    owner: String,
    ready: Ready,
    gate: Standing,
    readiness: GoldenReadiness,
    status: GoldenSetStatus,
    broken: Vec<String>,
}

/// See the module. Wants `list` and `watch` on goldensets, `patch` on their status, `get` on ConfigMaps, `list` on pods, and for
/// [readers](reader) `create` on pods.
pub struct GoldenSets {
    client: Client,
    objects: Watched<GoldenSet>,
    pods: Arc<Pods>,
    hub: Arc<PolicyHub>,
    ingest: Arc<Ingest>,
    sets: Arc<SetStore>,
    readers: Readers,
    runs: Arc<Runs>,
    verdicts: Verdicts,
    events: Events,
    metrics: Metrics,
    readiness: Readiness,
    /// Namespaces and names of the sets that metrics tell of.
    measured: BTreeSet<(String, String)>,
    /// By owner in the hub.
    held: HashMap<String, Held>,
    /// The same of runs: UIDs of their pods.
    of_runs: HashMap<String, HashSet<String>>,
}

/// What of the cluster GoldenSets work with.
pub struct Parts {
    pub client: Client,
    pub pods: Arc<Pods>,
    pub hub: Arc<PolicyHub>,
    pub ingest: Arc<Ingest>,
    pub sets: Arc<SetStore>,
    pub readers: Readers,
    pub runs: Arc<Runs>,
    pub events: Events,
    pub metrics: Metrics,
}

impl GoldenSets {
    pub fn new(parts: Parts) -> Self {
        let Parts { client, pods, hub, ingest, sets, readers, runs, events, metrics } = parts;
        let objects = Watched::within(pods.scope().apis(&client), watcher::Config::default(), |_| {});
        let verdicts = Verdicts::follow(&ingest);
        let (readiness, measured) = (Readiness::default(), BTreeSet::new());
        let (held, of_runs) = (HashMap::new(), HashMap::new());
        Self { client, objects, pods, hub, ingest, sets, readers, runs, verdicts, events, metrics, readiness, measured, held, of_runs }
    }

    /// Returns once what is asked for now is in the hub, as far as it is known by then.
    pub async fn first(&mut self) {
        self.pods.listed().await;
        self.objects.listed().await;
        self.look(FIRST_WITHIN).await;
    }

    /// Never returns.
    pub async fn run(mut self) {
        let [mut pods, _] = self.pods.changes();
        let (mut objects, mut verdicts, mut runs) = (self.objects.changes(), self.verdicts.changes(), self.runs.changes());
        let mut brought = self.readers.handed.changes();
        loop {
            let looked = self.look(ASKED_WITHIN).await;
            self.write(looked).await;
            tokio::select! {
                _ = objects.changed() => {}
                _ = pods.changed() => {}
                _ = verdicts.changed() => {}
                _ = runs.changed() => {}
                _ = brought.changed() => {}
                () = sleep(LOOK_EVERY) => {}
            }
            sleep(SETTLE).await;
        }
    }

    /// Holds every set, and every run's, against every pod; whoever is asked has so long to answer.
    async fn look(&mut self, within: Duration) -> Vec<Looked> {
        let mut by_namespace: HashMap<String, Vec<PodFacts>> = HashMap::new();
        for pod in self.pods.all() {
            by_namespace.entry(pod.namespace.clone()).or_default().push(pod);
        }
        self.verdicts.retain(&by_namespace.values().flatten().map(|pod| pod.uid.as_str()).collect());
        let none = Vec::new();
        self.look_at_runs(&by_namespace);
        let mut objects = self.objects.all();
        objects.retain(|object| object.metadata.deletion_timestamp.is_none());
        objects.sort_by_key(|object| (object.metadata.creation_timestamp.as_ref().map(|created| created.0), object.namespace(), object.name_any()));
        let pods_of = |object: &GoldenSet| by_namespace.get(&object.namespace().unwrap_or_default()).unwrap_or(&none);
        for object in &objects {
            self.held.entry(owner_of(object)).or_insert_with(|| taken_over(object, pods_of(object)));
        }
        let judged = self.judge(&objects, within).await;
        let mut asked: Vec<Asked> = objects.iter().zip(judged).map(|(object, judged)| self.ask(object, judged, pods_of(object))).collect();
        self.keep_gates(&mut asked, within).await;
        let all: Vec<Looked> = asked.into_iter().map(|asked| self.tell(asked, &by_namespace)).collect();
        let digests: BTreeSet<String> = all.iter().filter_map(|looked| looked.status.digest.clone()).collect();
        let owners: HashSet<&str> = all.iter().map(|looked| looked.owner.as_str()).collect();
        let gone: Vec<String> = self.held.keys().filter(|owner| !owners.contains(owner.as_str())).cloned().collect();
        for owner in gone {
            self.hub.clear(&owner);
            if let Some(mut held) = self.held.remove(&owner) {
                held.source.end(&self.readers).await;
            }
        }
        self.runs.keep_sets(digests);
        self.tell_metrics(&all);
        all
    }

    fn look_at_runs(&mut self, pods: &HashMap<String, Vec<PodFacts>>) {
        let runs = self.runs.all();
        self.of_runs.retain(|owner, _| {
            runs.contains_key(owner) || {
                self.hub.clear(owner);
                false
            }
        });
        for (owner, run) in runs {
            let matched = pods.get(&run.namespace).into_iter().flatten().filter(|pod| pod.has_sidecar && run.selector.matches(&pod.labels));
            let matched: HashSet<String> = matched.map(|pod| pod.uid.clone()).collect();
            let before = self.of_runs.entry(owner.clone()).or_default();
            for uid in before.difference(&matched) {
                let _ = self.hub.set_golden(&owner, uid, Vec::new());
            }
            for uid in &matched {
                if let Err(error) = self.hub.set_golden(&owner, uid, run.golden.clone()) {
                    tracing::warn!(owner, uid, %error, "a pod of a run cannot be told its golden sets");
                }
            }
            *before = matched;
        }
    }

    /// What is to be replayed of each, or why nothing is.
    async fn judge(&mut self, objects: &[Arc<GoldenSet>], within: Duration) -> Vec<Result<(GoldenSetSpec, GoldenAssignment), Ready>> {
        let began = Instant::now();
        let mut work = Vec::new();
        for (number, object) in objects.iter().enumerate() {
            let spec = wanted(object, number);
            let source = self.held.get_mut(&owner_of(object)).map(|held| std::mem::take(&mut held.source)).unwrap_or_default();
            work.push((object, spec, source));
        }
        let this = &*self;
        let looks = stream::iter(work).map(|(object, spec, mut source)| async move {
            let spec = match spec {
                Ok(spec) => spec,
                Err(why) => return (source, Err(why)),
            };
            let (namespace, name, uid) = (object.namespace().unwrap_or_default(), object.name_any(), object.uid().unwrap_or_default());
            let about = Where {
                client: &this.client,
                readers: &this.readers,
                sets: &this.sets,
                namespace: &namespace,
                name: &name,
                uid: &uid,
                generation: object.metadata.generation,
                spec,
            };
            let digest = timeout(within.saturating_sub(began.elapsed()), source.look(&about)).await;
            let digest = digest.unwrap_or_else(|_| source.so_far()).map_err(Ready::Source);
            let judged = digest.and_then(|digest| Ok((spec.clone(), promise::assignment(&name, &digest, spec).map_err(Ready::Invalid)?)));
            (source, judged)
        });
        let looked: Vec<_> = looks.buffered(AT_ONCE).collect().await;
        let mut all = Vec::new();
        for (object, (source, judged)) in objects.iter().zip(looked) {
            self.held.entry(owner_of(object)).or_default().source = source;
            all.push(judged);
        }
        all
    }

    /// Assigns a set to its pods, and gathers what they say.
    fn ask(&mut self, object: &Arc<GoldenSet>, judged: Result<(GoldenSetSpec, GoldenAssignment), Ready>, pods: &[PodFacts]) -> Asked {
        let (namespace, name, owner) = (object.namespace().unwrap_or_default(), object.name_any(), owner_of(object));
        let mut asked =
            Asked { object: Arc::clone(object), owner, namespace, name, judged, pods: Vec::new(), without: 0, refused: None, standing: Standing::Off };
        match &asked.judged {
            Err(_) => self.drop_all(&asked.owner),
            Ok((spec, assignment)) => {
                let matching = |pod: &&PodFacts| spec.selector.matches(&pod.labels);
                let (matched, without): (Vec<&PodFacts>, Vec<&PodFacts>) = pods.iter().filter(matching).partition(|pod| pod.has_sidecar);
                // Whoever asks for none is not missed.
                asked.without = without.iter().filter(|pod| pod.asks).count();
                asked.refused = self.assign(&asked.owner, &matched, assignment);
                asked.pods = self.what_they_say(&asked.owner, assignment, &matched);
            }
        }
        asked
    }

    /// One set's status, and Events about its pods.
    fn tell(&mut self, asked: Asked, by_namespace: &HashMap<String, Vec<PodFacts>>) -> Looked {
        let mut status = GoldenSetStatus { observed_generation: asked.object.metadata.generation, ..GoldenSetStatus::default() };
        let (spec, assignment) = match asked.judged {
            Ok(judged) => judged,
            Err(ready) => {
                let (object, owner) = (asked.object, asked.owner);
                return Looked { object, owner, ready, gate: Standing::Off, readiness: GoldenReadiness::default(), status, broken: Vec::new() };
            }
        };
        self.tell_pods(&asked.owner, &asked.namespace, &asked.name, &asked.pods);
        let pods = &asked.pods;
        let held = self.held.entry(asked.owner.clone()).or_default();
        // Whoever waits for an edit waits until what it names is replayed.
        status.observed_generation = held.source.in_force();
        status.digest = Some(assignment.digest);
        status.verdict = of_service(pods.iter().map(|pod| pod.said.map(|said| said.verdict)));
        let count = |verdict| pods.iter().filter(|pod| pod.said.is_some_and(|said| said.verdict == verdict)).count() as u32;
        (status.pods_matched, status.pods_passing, status.pods_failing) = (pods.len() as u32, count(Verdict::Pass), count(Verdict::Fail));
        status.pods_gated = held.out.len() as u32;
        let created: HashMap<&str, Option<Timestamp>> =
            by_namespace.get(&asked.namespace).into_iter().flatten().map(|pod| (pod.uid.as_str(), pod.created)).collect();
        let names = |which: &dyn Fn(&Matched) -> bool| {
            let mut named: Vec<_> =
                pods.iter().filter(|pod| which(pod)).map(|pod| (Reverse(created.get(pod.uid.as_str()).copied().flatten()), &pod.name)).collect();
            named.sort();
            named.into_iter().map(|(_, name)| name.clone()).take(NAMES_MAX).collect()
        };
        status.gated = names(&|pod| held.out.contains_key(&pod.uid));
        status.failing = names(&|pod| held.out.contains_key(&pod.uid) || pod.said.is_some_and(|said| said.verdict == Verdict::Fail));
        let youngest = pods.iter().filter_map(|pod| created.get(pod.uid.as_str()).copied().flatten()).max();
        let kept = held.before.as_ref().is_some_and(|before| before.keep(&mut status, pods, youngest, Instant::now()));
        if !kept && held.before.as_ref().is_some_and(|before| before.passed.is_empty()) {
            held.before = None;
        }
        let broken = pods.iter().filter(|pod| pod.said.is_some_and(|said| said.verdict == Verdict::ReferenceBroken)).map(|pod| pod.name.clone()).collect();
        let answered = pods.iter().filter(|pod| pod.said.is_some()).count();
        let without = asked.without;
        let ready = match asked.refused {
            Some(why) => Ready::NotTold(why),
            None if pods.is_empty() => Ready::NoPods { without },
            None if answered < pods.len() && !(kept && held.before.as_ref().is_some_and(Before::was_replaying)) => Ready::Starting(answered),
            None => Ready::Replaying { without },
        };
        Looked { object: asked.object, owner: asked.owner, ready, gate: asked.standing, readiness: spec.readiness, status, broken }
    }

    /// Assigns it to these pods and to no others; tells why some could not be told.
    fn assign(&mut self, owner: &str, matched: &[&PodFacts], assignment: &GoldenAssignment) -> Option<String> {
        let held = self.held.entry(owner.to_owned()).or_default();
        let uids: HashSet<&str> = matched.iter().map(|pod| pod.uid.as_str()).collect();
        for uid in held.assigned.keys().filter(|uid| !uids.contains(uid.as_str())) {
            let _ = self.hub.set_golden(owner, uid, Vec::new());
            let _ = self.hub.set_unready(owner, uid, None);
        }
        held.assigned.retain(|uid, _| uids.contains(uid.as_str()));
        held.out.retain(|uid, _| uids.contains(uid.as_str()));
        held.told.retain(|uid, _| uids.contains(uid.as_str()));
        if let Some(before) = &mut held.before {
            before.passed.retain(|uid| uids.contains(uid.as_str()));
        }
        let (mut refused, mut left_out) = (None, 0);
        for uid in uids {
            match self.hub.set_golden(owner, uid, vec![paced(assignment, held.hurried.contains(uid))]) {
                Ok(generation) => {
                    held.assigned.insert(uid.to_owned(), generation);
                    if self.hub.leaves_out(owner, uid) {
                        left_out += 1;
                    }
                }
                Err(error) => refused = Some(error.to_string()),
            }
        }
        if left_out > 0 {
            refused = Some(format!(
                "{left_out} of {} pods are assigned more golden sets than the {GOLDEN_SETS_MAX} that a sidecar replays, and this one is left out there: those of runs come first, then by \
                 name; delete some, or narrow their selectors",
                matched.len()
            ));
        }
        refused
    }

    fn what_they_say(&self, owner: &str, assignment: &GoldenAssignment, matched: &[&PodFacts]) -> Vec<Matched> {
        let out = self.held.get(owner).map(|held| &held.out);
        let now = Instant::now();
        let said = |uid: &str| {
            let heard = self.ingest.heard(uid)?;
            let silent = now.saturating_duration_since(heard) >= SILENT_FOR;
            // Nor does one that replays it no more.
            self.verdicts.of(uid, &assignment.name, &assignment.digest).filter(|_| !silent && !self.hub.leaves_out(owner, uid))
        };
        let one = |pod: &&PodFacts| Matched {
            said: said(&pod.uid),
            out: out.is_some_and(|out| out.contains_key(&pod.uid)),
            uid: pod.uid.clone(),
            name: pod.name.clone(),
        };
        matched.iter().map(one).collect()
    }

    /// Decides for all sets of a namespace together who is out.
    async fn keep_gates(&mut self, asked: &mut [Asked], within: Duration) {
        let needed: BTreeSet<String> = asked.iter().filter(|asked| asked.needs_ready()).map(|asked| asked.namespace.clone()).collect();
        self.readiness.learn(&self.client, &needed, within).await;
        let mut by_namespace: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, one) in asked.iter().enumerate() {
            by_namespace.entry(&one.namespace).or_default().push(index);
        }
        let mut decided = Vec::new();
        for (namespace, indices) in by_namespace {
            let judged = indices.into_iter().filter_map(|index| Some((index, asked[index].judged.as_ref().ok()?)));
            let (indices, sets): (Vec<usize>, Vec<gate::Set<'_>>) = judged
                .map(|(index, (spec, assignment))| {
                    let (recovered_after, ready) = (Asked::recovered_after(spec, assignment), self.readiness.of(namespace, &spec.selector));
                    (index, gate::Set { pods: &asked[index].pods, rule: &spec.readiness, recovered_after, ready })
                })
                .unzip();
            decided.extend(indices.into_iter().zip(gate::decide(&sets)));
        }
        for (index, decision) in decided {
            self.carry_out(&asked[index], &decision);
            self.hurry(&asked[index], decision.hurried);
            asked[index].standing = decision.standing;
        }
    }

    /// Told at once: a pod that answers wrong is in service for so long.
    fn hurry(&mut self, asked: &Asked, hurried: BTreeSet<String>) {
        let Ok((_, assignment)) = &asked.judged else { return };
        let held = self.held.entry(asked.owner.clone()).or_default();
        let before = std::mem::replace(&mut held.hurried, hurried);
        let others = before.symmetric_difference(&held.hurried).filter(|uid| held.assigned.contains_key(*uid)).cloned().collect::<Vec<_>>();
        for uid in others {
            // What cannot be told is told, and said, by the next look.
            if let Ok(generation) = self.hub.set_golden(&asked.owner, &uid, vec![paced(assignment, held.hurried.contains(&uid))]) {
                held.assigned.insert(uid, generation);
            }
        }
    }

    /// Takes out who belongs out, and lets return who belongs in.
    fn carry_out(&mut self, asked: &Asked, decision: &Decision) {
        let Asked { owner, namespace, name, pods, .. } = asked;
        let held = self.held.entry(owner.clone()).or_default();
        let now = Instant::now();
        for pod in pods {
            let about = || pod_reference(namespace, &pod.name, &pod.uid);
            if decision.out.contains(&pod.uid) {
                if held.out.get(&pod.uid).is_some_and(|until| until.saturating_duration_since(now) >= SAY_AGAIN) {
                    continue;
                }
                let unready = Unready { reason: format!("golden set {name} says that its answers are wrong"), expires_after: Span::new(OUT_FOR) };
                if let Err(error) = self.hub.set_unready(owner, &pod.uid, Some(unready)) {
                    tracing::warn!(pod = pod.name, %error, "cannot be taken out of its Service");
                    continue;
                }
                if held.out.insert(pod.uid.clone(), now + OUT_FOR).is_none() && !pod.out {
                    self.events.warn(
                        about(),
                        "LeftService",
                        "Gate",
                        &format!("GoldenSet {name}: its answers are wrong, so it is not ready until they are right again"),
                    );
                }
            } else if held.out.remove(&pod.uid).is_some() {
                let _ = self.hub.set_unready(owner, &pod.uid, None);
                let why = match &decision.standing {
                    Standing::ReferenceBroken | Standing::MostFail { .. } => "it may be the set that is wrong",
                    Standing::AtCap { .. } | Standing::HeldByOthers { .. } => "more pods are out than may be",
                    Standing::LastReady => "no other pod is ready",
                    _ => "its answers are right again",
                };
                self.events.say(about(), "ReturnedToService", "Gate", &format!("GoldenSet {name}: {why}"));
            }
        }
    }

    fn tell_pods(&mut self, owner: &str, namespace: &str, name: &str, pods: &[Matched]) {
        let held = self.held.entry(owner.to_owned()).or_default();
        for pod in pods {
            let Some(said) = pod.said else { continue };
            let (before, is_news) = held.hear(&pod.uid, said.verdict);
            if !is_news {
                continue;
            }
            let about = || pod_reference(namespace, &pod.name, &pod.uid);
            match (before, said.verdict) {
                (_, Verdict::Fail) => {
                    let note = format!("GoldenSet {name}: {} of {} answers were wrong, more than chance allows", said.mismatches, said.samples);
                    self.events.warn(about(), "GoldenFail", "Replay", &note);
                }
                (_, Verdict::ReferenceBroken) => {
                    let note = format!("GoldenSet {name}: nothing can be said of this pod, the sidecar's log tells why");
                    self.events.warn(about(), "GoldenReferenceBroken", "Replay", &note);
                }
                (Some(Verdict::Fail), _) => {
                    self.events.say(about(), "GoldenRecovered", "Replay", &format!("GoldenSet {name}: its last {} answers were right", said.samples));
                }
                (_, Verdict::Pass) => {
                    let note = format!("GoldenSet {name}: {} of {} answers were wrong, no more than is tolerated", said.mismatches, said.samples);
                    self.events.say(about(), "GoldenPass", "Replay", &note);
                }
                (_, Verdict::Inconclusive) => {}
            }
        }
    }

    fn drop_all(&mut self, owner: &str) {
        let Some(held) = self.held.get_mut(owner) else { return };
        if !held.assigned.is_empty() || !held.out.is_empty() {
            self.hub.clear(owner);
        }
        held.assigned.clear();
        held.out.clear();
        held.hurried.clear();
        held.told.clear();
        held.before = None;
    }

    fn tell_metrics(&mut self, all: &[Looked]) {
        // Never all at once: somebody may read in between.
        let now = all.iter().take(SETS_MAX).map(|looked| (looked.object.namespace().unwrap_or_default(), looked.object.name_any())).collect();
        for (namespace, set) in std::mem::replace(&mut self.measured, now).difference(&self.measured) {
            self.metrics.forget_golden_set(namespace, set);
        }
        self.metrics.sidecars_connected.set(self.hub.connections() as i64);
        self.metrics.not_understood.set(self.ingest.passed_over() as i64);
        for looked in all.iter().take(SETS_MAX) {
            let (namespace, set) = (looked.object.namespace().unwrap_or_default(), looked.object.name_any());
            let labels = [namespace.as_str(), set.as_str()];
            let status = &looked.status;
            for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::ReferenceBroken] {
                let gauge = self.metrics.golden_verdict.with_label_values(&[&namespace, &set, &verdict.to_string()]);
                gauge.set(i64::from(status.verdict == Some(verdict)));
            }
            let counts = [status.pods_matched, status.pods_passing, status.pods_failing, status.pods_gated];
            for (state, count) in POD_STATES.into_iter().zip(counts) {
                self.metrics.golden_pods.with_label_values(&[namespace.as_str(), &set, state]).set(count.into());
            }
            self.metrics.golden_ready.with_label_values(&labels).set(i64::from(matches!(looked.ready, Ready::Replaying { .. })));
            self.metrics.golden_gate_blocked.with_label_values(&labels).set(i64::from(looked.gate.is_blocked()));
        }
    }

    async fn write(&mut self, all: Vec<Looked>) {
        let now = Timestamp::now();
        let mut news = Vec::new();
        for looked in all {
            let Looked { object, owner, ready, gate, readiness, mut status, broken } = looked;
            let held = self.held.entry(owner.clone()).or_default();
            let before = held.written.as_ref().map(|(status, _)| status).or(object.status.as_ref());
            let about = About { ready: &ready, gate: &gate, readiness: &readiness, generation: status.observed_generation, broken: &broken };
            status.conditions = status::conditions(before.map(|before| before.conditions.as_slice()).unwrap_or_default(), &status, &about, now);
            if let Some((written, at)) = &held.written
                && (*written == status || (only_counts_differ(written, &status) && now.duration_since(*at) < COUNTS_EVERY))
            {
                continue;
            }
            let verdict_before = before.and_then(|before| before.verdict);
            news.push((object, owner, verdict_before, status));
        }
        let began = Instant::now();
        let client = &self.client;
        let writes = stream::iter(news).map(|(object, owner, verdict_before, status)| async move {
            let written = write_one(client, &object, &status, WRITTEN_WITHIN.saturating_sub(began.elapsed())).await;
            (object, owner, verdict_before, status, written)
        });
        let written: Vec<_> = writes.buffer_unordered(AT_ONCE).collect().await;
        for (object, owner, verdict_before, status, _) in written.into_iter().filter(|(.., written)| *written) {
            if status.verdict != verdict_before
                && let (Some(verdict), Some(condition)) = (status.verdict, status.conditions.get(1))
            {
                let reason = format!("Golden{verdict}");
                match verdict {
                    Verdict::Fail | Verdict::ReferenceBroken => self.events.warn(object.object_ref(&()), &reason, "Replay", &condition.message),
                    Verdict::Pass | Verdict::Inconclusive => self.events.say(object.object_ref(&()), &reason, "Replay", &condition.message),
                }
            }
            self.held.entry(owner).or_default().written = Some((status, now));
        }
    }
}

/// Whether it was.
async fn write_one(client: &Client, object: &GoldenSet, status: &GoldenSetStatus, within: Duration) -> bool {
    let namespace = object.namespace().unwrap_or_default();
    let patch = json!({
        "apiVersion": API_VERSION, "kind": GoldenSet::KIND,
        "metadata": { "name": object.name_any(), "namespace": namespace },
        "status": super::status::fit(status),
    });
    let api: Api<GoldenSet> = Api::namespaced(client.clone(), &namespace);
    match timeout(within, api.patch_status(&object.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))).await {
        Ok(Ok(_)) => return true,
        // Deleted meanwhile.
        Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => {}
        Ok(Err(error)) => tracing::warn!(set = %object, %error, "its status could not be written"),
        Err(_) => tracing::warn!(set = %object, "its status could not be written in time"),
    }
    false
}

fn owner_of(object: &GoldenSet) -> String {
    format!("goldenset/{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// What it asks for, where that makes sense: before anything is fetched. `number`: so many were made before it.
fn wanted(object: &GoldenSet, number: usize) -> Result<&GoldenSetSpec, Ready> {
    let spec = object.spec.get().map_err(|why| Ready::Invalid(format!("spec: {why}")))?;
    if number >= SETS_MAX {
        return Err(Ready::Invalid(format!("there are more than {SETS_MAX} GoldenSets on this cluster: those made last are not replayed")));
    }
    promise::assignment(&object.name_any(), "", spec).map_err(Ready::Invalid)?;
    Ok(spec)
}

/// What a pod is assigned: at its share of requests, or at `every` where somebody waits for what it says.
fn paced(assignment: &GoldenAssignment, is_hurried: bool) -> GoldenAssignment {
    GoldenAssignment { share: if is_hurried { Percent::HUNDRED } else { assignment.share }, ..assignment.clone() }
}

/// What the leader before left in the status: what is replayed, who is out, who was told to fail, and what it said of all together.
fn taken_over(object: &GoldenSet, pods: &[PodFacts]) -> Held {
    let mut held = Held::default();
    let Some(status) = &object.status else { return held };
    if let Some(digest) = &status.digest {
        held.source = Source::taken_over(digest, status.observed_generation);
    }
    let uid_of = |name: &String| pods.iter().find(|pod| pod.name == *name).map(|pod| pod.uid.clone());
    // Told again at once.
    held.out.extend(status.gated.iter().filter_map(uid_of).map(|uid| (uid, Instant::now())));
    held.told.extend(status.failing.iter().filter_map(uid_of).map(|uid| (uid, Verdict::Fail)));
    let passed = pods.iter().filter(|pod| status.pods_passing > 0 && !held.told.contains_key(&pod.uid)).map(|pod| pod.uid.clone()).collect();
    held.before = Some(Before { until: Instant::now() + BELIEVED_FOR, status: status.clone(), passed });
    held
}

/// Whether everything that somebody might wait for is the same. Messages count pods.
fn only_counts_differ(one: &GoldenSetStatus, other: &GoldenSetStatus) -> bool {
    let standing = |status: &GoldenSetStatus| {
        let conditions: Vec<_> = status.conditions.iter().map(|c| (c.kind.clone(), c.status.clone(), c.reason.clone())).collect();
        (conditions, status.observed_generation, status.digest.clone(), status.verdict, status.failing.clone(), status.gated.clone(), status.pods_gated)
    };
    standing(one) == standing(other)
}

fn pod_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_leader_knows_who_is_out_and_does_not_tell_it_again() {
        let object: GoldenSet = serde_saphyr::from_str(
            "{metadata: {name: s}, spec: {source: {configMap: {name: s}}}, status: {observedGeneration: 3, digest: 'sha256:1', podsMatched: 4, podsPassing: 1, podsFailing: 2, podsGated: 1, \
             failing: [b, a, gone], gated: [a]}}",
        )
        .unwrap();
        let pod = |name: &str| PodFacts {
            namespace: "models".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            created: None,
            labels: BTreeMap::new(),
            has_sidecar: true,
            asks: true,
            faults_allowed: false,
            ports: crate::webhook::past::PodPorts::default(),
        };
        let mut held = taken_over(&object, &[pod("a"), pod("b"), pod("c")]);
        assert_eq!(held.out.keys().collect::<Vec<_>>(), ["uid-a"]);
        assert_eq!(held.told.len(), 2);
        assert_eq!((held.source.so_far(), held.source.in_force()), (Ok("sha256:1".to_owned()), Some(3)), "and what is replayed");
        assert_eq!(held.hear("uid-c", Verdict::Pass), (None, false), "nobody is told again that it passes");
        assert_eq!(held.hear("uid-c", Verdict::Fail), (Some(Verdict::Pass), true));
        assert_eq!(held.hear("uid-c", Verdict::Pass), (Some(Verdict::Fail), true));
        assert_eq!(held.hear("uid-new", Verdict::Pass), (None, true));
        assert_eq!((held.hear("uid-a", Verdict::Fail).1, held.hear("uid-b", Verdict::Pass).1), (false, true));
        assert!(held.before.is_some_and(|before| before.passed.is_empty()));
    }

    #[test]
    fn who_is_waited_for_is_asked_at_every_and_promises_the_same() {
        let spec: GoldenSetSpec = serde_saphyr::from_str("{source: {configMap: {name: s}}, schedule: {every: 1s, share: 1%}}").unwrap();
        let assignment = promise::assignment("s", "sha256:0", &spec).unwrap();
        let hurried = paced(&assignment, true);
        assert_eq!((hurried.share, paced(&assignment, false)), (Percent::HUNDRED, assignment.clone()));
        assert_eq!((hurried.every, hurried.alpha, hurried.detect), (assignment.every, assignment.alpha, assignment.detect));
    }

    #[test]
    fn counts_may_wait_and_names_may_not() {
        let one = GoldenSetStatus { pods_passing: 1, ..GoldenSetStatus::default() };
        let counted = GoldenSetStatus { pods_passing: 2, ..GoldenSetStatus::default() };
        let named = GoldenSetStatus { failing: vec!["a".into()], ..one.clone() };
        assert!(only_counts_differ(&one, &counted) && !only_counts_differ(&one, &named));
    }
}
