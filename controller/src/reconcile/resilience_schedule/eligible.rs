//! Whether a run may begin now: asked at the moment itself, of the API server and not of what was known before. The first thing that speaks against it is told.

use std::fmt::Write as _;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta},
};
use steadfast_api::{
    resource::{ResilienceScheduleSpec, RunPhase},
    test::ResilienceTestSpec,
};

use super::SCHEDULE_LABEL;
use crate::reconcile::{
    pods::{FAULTS_ALLOWED, FAULTS_LABEL, Pods},
    resource::{API_VERSION, ResilienceSchedule, ResilienceTest},
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
                let labels = test.spec.get().map(|spec| spec.target.selector.match_labels.clone()).unwrap_or_default();
                let selector = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
                let targets = Api::<Pod>::namespaced(client.clone(), self.namespace).list(&ListParams::default().labels(&selector)).await?;
                of_pods(&targets.items, &selector).map_or(Ok(test), Err)
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

fn of_pods(pods: &[Pod], selector: &str) -> Option<Skip> {
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
    if unready.is_empty() {
        return None;
    }
    let mut message = format!("{} of {} pods of the target are not ready: {}", unready.len(), there.len(), unready[..unready.len().min(NAMES_MAX)].join(", "));
    if unready.len() > NAMES_MAX {
        let _ = write!(message, " and {} more", unready.len() - NAMES_MAX);
    }
    Some(Skip::new("UnreadyPods", message))
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
        assert_eq!(of_pods(&[], "app=x").unwrap().reason, "NoPods");
        assert_eq!(of_pods(&[pod("a", "True", ""), pod("b", "False", "phase: Succeeded")], "app=x"), None);
        let skip = of_pods(&[pod("a", "True", ""), pod("b", "False", "")], "app=x").unwrap();
        assert_eq!(skip, Skip::new("UnreadyPods", "1 of 2 pods of the target are not ready: b"));
        let many: Vec<Pod> = (0..8).map(|n| pod(&format!("p{n}"), "False", "")).collect();
        assert!(of_pods(&many, "").unwrap().message.ends_with("p4 and 3 more"));
    }
}
