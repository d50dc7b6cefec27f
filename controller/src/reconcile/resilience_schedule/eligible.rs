//! Whether a run may begin now: asked at the moment itself, of the API server and not of what was known before. The first thing that speaks against it is told.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, ObjectMeta},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use steadfast_api::{
    policy::LabelSelector,
    resource::{ResilienceScheduleSpec, RunPhase},
    test::ResilienceTestSpec,
};

use super::SCHEDULE_LABEL;
use crate::{
    reconcile::{
        fault_policy::in_force,
        pods::{FAULTS_ALLOWED, FAULTS_LABEL, Pods},
        resource::{API_VERSION, FaultPolicy, GoldenSet, ResilienceSchedule, ResilienceTest},
    },
    webhook::decide::INJECTED_ANNOTATION,
    words::some,
};

/// Names in a sentence.
const NAMES_MAX: usize = 5;

/// Why nothing is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// One CamelCase word; a metric's label.
    pub reason: &'static str,
    pub message: String,
}

impl Skip {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A schedule whose moment has come.
pub struct Due<'a> {
    pub schedule: &'a ResilienceSchedule,
    pub spec: &'a ResilienceScheduleSpec,
    pub namespace: &'a str,
    /// Of the test that would be made.
    pub name: String,
    pub seed: u64,
}

impl Due<'_> {
    /// The test to make, or why not; with all tests of the cluster, as they were a moment ago.
    ///
    /// # Errors
    /// While the API server does not answer.
    pub async fn judge(&self, client: &Client, pods: &Pods) -> Result<(Result<ResilienceTest, Skip>, Vec<ResilienceTest>), kube::Error> {
        if !pods.allowed_in(self.namespace) {
            return Ok((Err(not_allowed(self.namespace)), Vec::new()));
        }
        let tests = pods.scope().list::<ResilienceTest>(client).await?;
        let judged = match self.of_tests(&tests) {
            Ok(test) => {
                let selector = test.spec.get().map(|spec| spec.target.selector.clone()).unwrap_or_default();
                health(client, self.namespace, &selector, true).await?.map_or(Ok(test), Err)
            }
            Err(skip) => Err(skip),
        };
        Ok((judged, tests))
    }

    fn of_tests(&self, tests: &[ResilienceTest]) -> Result<ResilienceTest, Skip> {
        // The controller runs one test at a time: what waited for another would begin at a moment that nobody has looked at.
        if let Some(other) = tests.iter().find(|test| is_under_way(test) && !(self.owns(test) && test.name_any() == self.name)) {
            return Err(Skip::new("TestRunning", format!("{other} runs or waits to be run")));
        }
        let last = tests.iter().filter(|test| self.owns(test)).max_by_key(|test| test.name_any());
        if let Some(last) = last.filter(|last| last.status.as_ref().is_some_and(|status| status.stable == Some(false))) {
            let (namespace, name) = (self.namespace, last.name_any());
            return Err(Skip::new(
                "LastRunNotStable",
                format!("after {last} the target did not become stable: look at its report, then kubectl -n {namespace} delete resiliencetest {name}"),
            ));
        }
        let wanted = &self.spec.test.name;
        let template = tests.iter().find(|test| test.namespace().as_deref() == Some(self.namespace) && test.name_any() == *wanted);
        let Some(template) = template else {
            return Err(Skip::new("NoTest", format!("spec.test.name: there is no ResilienceTest {wanted} in namespace {}", self.namespace)));
        };
        let spec = template.spec.get().map_err(|why| Skip::new("BadTest", format!("ResilienceTest {wanted}: spec: {why}")))?;
        if spec.steps.is_empty() {
            return Err(Skip::new(
                "BadTest",
                format!("ResilienceTest {wanted} has no steps, and would watch on and never end: name a step, or set suspend: false and delete this schedule"),
            ));
        }
        Ok(self.copy(template, spec.clone()))
    }

    fn copy(&self, template: &ResilienceTest, spec: ResilienceTestSpec) -> ResilienceTest {
        let mut test = ResilienceTest::new(&self.name, ResilienceTestSpec { suspend: false, seed: self.seed, ..spec });
        let mut labels = template.labels().clone();
        labels.insert(SCHEDULE_LABEL.to_owned(), self.schedule.name_any());
        let owner = OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: ResilienceSchedule::KIND.to_owned(),
            name: self.schedule.name_any(),
            uid: self.schedule.uid().unwrap_or_default(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        test.metadata = ObjectMeta { namespace: Some(self.namespace.to_owned()), labels: Some(labels), owner_references: Some(vec![owner]), ..test.metadata };
        test
    }

    /// Whether this schedule made the test.
    pub fn owns(&self, test: &ResilienceTest) -> bool {
        let uid = self.schedule.uid().unwrap_or_default();
        test.owner_references().iter().any(|owner| owner.uid == uid)
    }
}

pub fn not_allowed(namespace: &str) -> Skip {
    let message = format!("namespace {namespace} does not allow faults: kubectl label namespace {namespace} {FAULTS_LABEL}={FAULTS_ALLOWED}");
    Skip::new("NotAllowed", message)
}

/// It runs, or will as soon as the controller comes to it. One that watches is in nobody's way.
fn is_under_way(test: &ResilienceTest) -> bool {
    if test.spec.get().is_ok_and(|spec| spec.steps.is_empty()) {
        return false;
    }
    match test.status.as_ref().map_or(RunPhase::Pending, |status| status.phase) {
        RunPhase::Running => true,
        RunPhase::Pending => !test.is_suspended() && test.metadata.deletion_timestamp.is_none(),
        RunPhase::Finished | RunPhase::Refused => false,
    }
}

/// Whether it has ended, one way or the other.
pub fn has_ended(test: &ResilienceTest) -> bool {
    test.status.as_ref().is_some_and(|status| matches!(status.phase, RunPhase::Finished | RunPhase::Refused))
}

/// What speaks against breaking anything of this target now: it is not whole, or, where `golden` sets are asked too, not right. Those see what a run itself
/// breaks.
///
/// # Errors
/// While the API server does not answer.
pub async fn health(client: &Client, namespace: &str, target: &LabelSelector, golden: bool) -> Result<Option<Skip>, kube::Error> {
    async fn all<K>(client: &Client, namespace: &str, params: &ListParams) -> Result<Vec<K>, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
    {
        Ok(Api::<K>::namespaced(client.clone(), namespace).list(params).await?.items)
    }
    let selector = target.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let every = ListParams::default();
    let pods = all::<Pod>(client, namespace, &ListParams::default().labels(&selector)).await?;
    let mut makers = Vec::new();
    for object in all::<Deployment>(client, namespace, &every).await? {
        makers.extend(object.spec.map(|spec| Maker::new(Some(spec.template), spec.replicas)));
    }
    for object in all::<StatefulSet>(client, namespace, &every).await? {
        makers.extend(object.spec.map(|spec| Maker::new(Some(spec.template), spec.replicas)));
    }
    // Those of Deployments are counted with them.
    for object in all::<ReplicaSet>(client, namespace, &every).await?.into_iter().filter(|object| object.owner_references().is_empty()) {
        makers.extend(object.spec.map(|spec| Maker::new(spec.template, spec.replicas)));
    }
    if let Some(skip) = of_pods(&pods, &selector, wanted(&makers, target)) {
        return Ok(Some(skip));
    }
    if let Some(skip) = of_policies(&all::<FaultPolicy>(client, namespace, &every).await?, &pods, Timestamp::now()) {
        return Ok(Some(skip));
    }
    Ok(if golden { of_golden_sets(&all::<GoldenSet>(client, namespace, &every).await?, &pods) } else { None })
}

/// Who makes pods: their labels, and how many.
struct Maker {
    labels: BTreeMap<String, String>,
    replicas: usize,
}

impl Maker {
    fn new(template: Option<PodTemplateSpec>, replicas: Option<i32>) -> Self {
        let labels = template.and_then(|template| template.metadata).and_then(|metadata| metadata.labels).unwrap_or_default();
        Self { labels, replicas: usize::try_from(replicas.unwrap_or(1)).unwrap_or_default() }
    }
}

/// Pods that the target has when it is whole, as far as its workloads say.
fn wanted(makers: &[Maker], target: &LabelSelector) -> usize {
    makers.iter().filter(|maker| target.matches(&maker.labels)).map(|maker| maker.replicas).sum()
}

/// A run would measure their faults as its own.
fn of_policies(policies: &[FaultPolicy], pods: &[Pod], now: Timestamp) -> Option<Skip> {
    let labels: Vec<_> = pods.iter().filter(|pod| pod.annotations().contains_key(INJECTED_ANNOTATION)).map(ResourceExt::labels).collect();
    let armed = in_force(policies, &labels, now);
    let say = || format!("faults are armed in pods of the target already, by FaultPolicy {}: delete it, or wait until it expires", some(&armed, NAMES_MAX));
    (!armed.is_empty()).then(|| Skip::new("FaultsArmed", say()))
}

fn of_golden_sets(sets: &[GoldenSet], pods: &[Pod]) -> Option<Skip> {
    let fails = |set: &&GoldenSet| {
        let is_theirs = set.spec.get().is_ok_and(|spec| pods.iter().any(|pod| spec.selector.matches(pod.labels())));
        is_theirs && set.status.as_ref().is_some_and(|status| status.pods_failing > 0)
    };
    let failing: Vec<String> = sets.iter().filter(fails).map(ResourceExt::name_any).collect();
    (!failing.is_empty()).then(|| Skip::new("WrongAnswers", format!("pods of the target answer wrong, by GoldenSet {}", some(&failing, NAMES_MAX))))
}

/// `wanted`: how many their workloads ask for.
fn of_pods(pods: &[Pod], selector: &str, wanted: usize) -> Option<Skip> {
    // What has ended, or is on its way out, is nobody's health.
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let there: Vec<&Pod> =
        pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && !["Succeeded", "Failed"].contains(&phase(pod).as_str())).collect();
    if there.is_empty() {
        return Some(Skip::new("NoPods", format!("no pod has the labels of the test's target, {selector}")));
    }
    let ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let unready: Vec<String> = there.iter().filter(|pod| !ready(pod)).map(|pod| pod.name_any()).collect();
    if !unready.is_empty() {
        return Some(Skip::new("UnreadyPods", format!("{} of {} pods of the target are not ready: {}", unready.len(), there.len(), some(&unready, NAMES_MAX))));
    }
    (there.len() < wanted).then(|| Skip::new("MissingPods", format!("there are {} of the {wanted} pods that the target's workloads ask for", there.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, rest: &str) -> ResilienceTest {
        serde_saphyr::from_str(&format!(
            "metadata: {{name: {name}, namespace: models, labels: {{team: a}}}}\nspec: {{suspend: {}, target: {{selector: {{matchLabels: {{app: x}}}}}}, steps: [{}]}}\n{rest}",
            name.contains("template"),
            if name.starts_with("watch") { "" } else { "{name: killed, podKill: {pods: {mode: one}}}" }
        ))
        .unwrap()
    }

    fn owned(name: &str, status: &str) -> ResilienceTest {
        let mut test = test(name, &format!("status: {{{status}}}"));
        test.metadata.owner_references = Some(vec![OwnerReference { uid: "s-1".into(), ..OwnerReference::default() }]);
        test
    }

    fn judged(tests: &[ResilienceTest]) -> Result<ResilienceTest, Skip> {
        let schedule: ResilienceSchedule = serde_saphyr::from_str(
            "metadata: {name: nightly, namespace: models, uid: s-1}\n\
             spec: {test: {name: template}, meanTimeBetween: 1d, window: {days: [Mon], from: '00:00', to: '24:00', timeZone: UTC}}",
        )
        .unwrap();
        let spec = schedule.spec.get().unwrap().clone();
        Due { schedule: &schedule, spec: &spec, namespace: "models", name: "nightly-2".into(), seed: 9 }.of_tests(tests)
    }

    #[test]
    fn a_run_is_a_copy_that_is_not_suspended_and_belongs_to_its_schedule() {
        let made = judged(&[test("template", "")]).unwrap();
        let spec = made.spec.get().unwrap();
        assert_eq!((made.name_any().as_str(), spec.suspend, spec.seed), ("nightly-2", false, 9));
        assert_eq!((made.labels()["team"].as_str(), made.labels()[SCHEDULE_LABEL].as_str()), ("a", "nightly"));
        assert_eq!(made.owner_references()[0].uid, "s-1");
    }

    #[test]
    fn what_speaks_against_a_run_is_told() {
        let reason = |tests: &[ResilienceTest]| judged(tests).map_or_else(|skip| skip.reason, |_| "");
        let template = || test("template", "");
        assert_eq!(reason(&[]), "NoTest");
        assert_eq!(reason(&[template(), test("other", "status: {phase: Running}")]), "TestRunning");
        assert_eq!(reason(&[template(), test("other", "")]), "TestRunning", "it waits its turn");
        assert_eq!(reason(&[template(), test("watch", "status: {phase: Running}")]), "", "a watch breaks nothing");
        assert_eq!(reason(&[template(), test("other", "status: {phase: Finished}")]), "");
        assert_eq!(reason(&[template(), owned("nightly-1", "phase: Finished, stable: false")]), "LastRunNotStable");
        assert_eq!(reason(&[template(), owned("nightly-0", "phase: Finished, stable: false"), owned("nightly-1", "phase: Finished, stable: true")]), "");
        assert_eq!(reason(&[template(), owned("nightly-2", "phase: Running")]), "", "made a moment ago by a leader that is gone");
    }

    #[test]
    fn targets_that_are_not_all_ready_are_left_in_peace() {
        let pod = |name: &str, ready: &str, more: &str| -> Pod {
            serde_saphyr::from_str(&format!("metadata: {{name: {name}}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}], {more}}}")).unwrap()
        };
        assert_eq!(of_pods(&[], "app=x", 0).unwrap().reason, "NoPods");
        assert_eq!(of_pods(&[pod("a", "True", ""), pod("b", "False", "phase: Succeeded")], "app=x", 1), None);
        let skip = of_pods(&[pod("a", "True", ""), pod("b", "False", "")], "app=x", 2).unwrap();
        assert_eq!(skip, Skip::new("UnreadyPods", "1 of 2 pods of the target are not ready: b"));
        let many: Vec<Pod> = (0..8).map(|n| pod(&format!("p{n}"), "False", "")).collect();
        assert!(of_pods(&many, "", 8).unwrap().message.ends_with("p4 and 3 more"));
        let alone = of_pods(&[pod("a", "True", "")], "app=x", 3).unwrap();
        assert_eq!(alone, Skip::new("MissingPods", "there are 1 of the 3 pods that the target's workloads ask for"));
    }

    #[test]
    fn workloads_of_the_target_say_how_many_pods_it_has() {
        let target = LabelSelector { match_labels: BTreeMap::from([("app".to_owned(), "x".to_owned())]) };
        let maker = |labels: &str, replicas| Maker::new(serde_saphyr::from_str(&format!("metadata: {{labels: {labels}}}")).unwrap(), replicas);
        let makers =
            [maker("{app: x, tier: a}", Some(2)), maker("{app: x}", None), maker("{app: y}", Some(9)), maker("{}", Some(9)), maker("{app: x}", Some(0))];
        assert_eq!(wanted(&makers, &target), 3);
    }

    #[test]
    fn targets_whose_pods_have_faults_armed_are_left_in_peace() {
        let armed: FaultPolicy = serde_saphyr::from_str(
            "metadata: {name: slow, creationTimestamp: '2026-01-01T00:00:00Z'}\nspec: {selector: {matchLabels: {app: x}}, expiresAfter: 10m, budget: {concurrent: 1, share: 1%}}",
        )
        .unwrap();
        let pod = |app: &str, annotations: &str| -> Pod {
            serde_saphyr::from_str(&format!("metadata: {{name: p, labels: {{app: {app}}}, annotations: {{{annotations}}}}}")).unwrap()
        };
        let (at, injected) = ("2026-01-01T00:05:00Z".parse().unwrap(), format!("{INJECTED_ANNOTATION}: a"));
        let reason =
            |pod: Pod| of_policies(std::slice::from_ref(&armed), &[pod], at).map(|skip| (skip.reason, skip.message.contains("FaultPolicy slow: delete it")));
        assert_eq!(reason(pod("x", &injected)), Some(("FaultsArmed", true)));
        assert_eq!((reason(pod("y", &injected)), reason(pod("x", ""))), (None, None), "it reaches none of these");
    }

    #[test]
    fn targets_that_answer_wrong_are_left_in_peace() {
        let set = |name: &str, app: &str, failing: u32| -> GoldenSet {
            serde_saphyr::from_str(&format!(
                "metadata: {{name: {name}}}\nspec: {{selector: {{matchLabels: {{app: {app}}}}}, source: {{configMap: {{name: s}}}}}}\nstatus: {{podsFailing: {failing}}}"
            ))
            .unwrap()
        };
        let pods: Vec<Pod> = vec![serde_saphyr::from_str("metadata: {name: p, labels: {app: x}}").unwrap()];
        assert_eq!(of_golden_sets(&[set("good", "x", 0), set("other", "y", 1)], &pods), None);
        let skip = of_golden_sets(&[set("bad", "x", 1)], &pods).unwrap();
        assert!(skip.reason == "WrongAnswers" && skip.message.ends_with("by GoldenSet bad"), "{skip:?}");
    }
}
