//! What a ResilienceTest's status says, and how it is written.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use steadfast_api::{
    report::{PhaseKind, Report, RunOutcome},
    resource::{Condition, ReportAddress, ResilienceTestStatus, RunPhase},
};
use tokio::time::{sleep, timeout};

use super::Tests;
use crate::{
    experiment::{
        Progress,
        hypothesis::{millis, share},
        progress::PhaseNow,
    },
    reconcile::{
        resource::{API_VERSION, MANAGER, ResilienceTest},
        status::fit,
    },
    words::{NAMES_MAX, cut, some},
};

const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(1);
/// Characters of what the API server said of a status that it refused.
const BARE_MAX: usize = 512;

/// Of a run that ends.
pub(super) const UNDOING: &str = "undoing everything";
/// Names of what a fault hits in a line that stands in a column: `status.live` has room for all.
const ON_SHOWN: usize = 1;

/// What became of a status that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// Its test is gone, or further on than what was to be said of it.
    Gone,
    No,
}

impl Tests {
    /// Writes the status of `test`; what ends a run with patience.
    pub(super) async fn write(&self, test: &ResilienceTest, status: ResilienceTestStatus) -> Written {
        let (name, namespace) = (test.name_any(), test.namespace().unwrap_or_default());
        let api: Api<ResilienceTest> = Api::namespaced(self.means.client.clone(), &namespace);
        write(&api, &name, test.uid().as_deref(), status).await
    }
}

/// To the object with this UID, and to no other that has taken its name.
async fn write(api: &Api<ResilienceTest>, name: &str, uid: Option<&str>, mut status: ResilienceTestStatus) -> Written {
    // What ends a run must be written; what tells of it can wait for the next time.
    let tries = if matches!(status.phase, RunPhase::Running | RunPhase::Pending) { 2 } else { 30 };
    let mut is_bare = false;
    for _ in 0..tries {
        match timeout(WRITTEN_WITHIN, patch_status(api, name, uid, &status)).await {
            Ok(Ok(true)) => return Written::Yes,
            Ok(Ok(false)) => return Written::Gone,
            // Somebody wrote between reading and writing.
            Ok(Err(kube::Error::Api(answer))) if answer.code == 409 => continue,
            // The same again would be refused again: what matters is said in as few words as there are.
            Ok(Err(kube::Error::Api(answer))) if [400, 413, 422].contains(&answer.code) => {
                tracing::error!(test = name, why = answer.message, is_bare, "the API server refuses its status");
                if is_bare {
                    return Written::No;
                }
                is_bare = true;
                status = bare(status, &answer.message);
                continue;
            }
            Ok(Err(error)) => tracing::warn!(test = name, %error, "its status could not be written"),
            Err(_) => tracing::warn!(test = name, "its status could not be written in time"),
        }
        sleep(AGAIN).await;
    }
    Written::No
}

/// False: there is nothing to write it to.
async fn patch_status(api: &Api<ResilienceTest>, name: &str, uid: Option<&str>, status: &ResilienceTestStatus) -> Result<bool, kube::Error> {
    let Some(now) = api.get_opt(name).await?.filter(|now| now.uid().as_deref() == uid) else { return Ok(false) };
    let before = now.status.clone().unwrap_or_default();
    // Who waits for its turn may have got it meanwhile.
    if status.phase == RunPhase::Pending && before.phase != RunPhase::Pending {
        return Ok(false);
    }
    // A leader that stood still may awake when another has ended its run. One that was refused may be run once it is mended.
    let is_over = match before.phase {
        RunPhase::Finished => true,
        RunPhase::Refused => before.observed_generation >= status.observed_generation,
        RunPhase::Pending | RunPhase::Running => false,
    };
    // Nor is a spec run that was changed while it was looked at.
    let begins = status.phase == RunPhase::Running && before.phase != RunPhase::Running;
    if begins && (is_over || now.metadata.generation > status.observed_generation) {
        return Ok(false);
    }
    let status = ResilienceTestStatus { conditions: conditions(&before.conditions, status), ..status.clone() };
    let patch = json!({
        "apiVersion": API_VERSION, "kind": ResilienceTest::KIND,
        "metadata": { "name": name, "resourceVersion": now.resource_version() },
        "status": fit(&status),
    });
    match api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// How it stands and why no more is said.
fn bare(status: ResilienceTestStatus, why: &str) -> ResilienceTestStatus {
    let ResilienceTestStatus { observed_generation, phase, verdict, report, started_at, finished_at, .. } = status;
    let reason = cut(&format!("The API server refused the rest of this status: {why}"), BARE_MAX);
    ResilienceTestStatus { observed_generation, phase, verdict, report, started_at, finished_at, reason: Some(reason), ..ResilienceTestStatus::default() }
}

/// What a report says at a glance, in the status of its test.
pub(super) fn summary(report: &Report, address: Option<ReportAddress>, before: ResilienceTestStatus) -> ResilienceTestStatus {
    ResilienceTestStatus {
        verdict: Some(report.verdict.outcome),
        reason: Some(report.verdict.reason.clone()),
        score: report.verdict.score,
        availability: report.total.availability.ratio.map(share),
        recovery: match (report.recovery.outages, report.recovery.first_correct_p50_ms) {
            // Of a watch: as of its last outage.
            (0, _) => before.recovery,
            (_, Some(ms)) => Some(millis(ms).replace(' ', "")),
            // Its begin was not seen.
            _ if report.recovery.censored == 0 && report.outages.iter().all(|outage| outage.began_before) => Some("unknown".to_owned()),
            (_, None) => Some("never".to_owned()),
        },
        consistency: report.total.consistency.ratio.map(share),
        stable: Some(report.phases.iter().all(|phase| phase.kind != PhaseKind::Recovery || phase.stable_ms.is_some())),
        report: address,
        ..before
    }
}

/// Of a run that is over; `why` if it left no report.
pub(super) fn finished(status: ResilienceTestStatus, why: Option<String>) -> ResilienceTestStatus {
    let status = match why {
        Some(why) => ResilienceTestStatus { verdict: Some(RunOutcome::Inconclusive), reason: Some(why), ..status },
        None => status,
    };
    ResilienceTestStatus { phase: RunPhase::Finished, progress: None, live: None, finished_at: Some(now()), ..status }
}

pub(super) fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// `before`: as they stand there now. They are about the spec that is run, whatever the object says meanwhile.
fn conditions(before: &[Condition], status: &ResilienceTestStatus) -> Vec<Condition> {
    let generation = status.observed_generation;
    let running = status.phase == RunPhase::Running;
    let passed = match status.verdict {
        Some(RunOutcome::Pass) => "True",
        Some(RunOutcome::Fail) => "False",
        _ => "Unknown",
    };
    let verdict = status.verdict.map_or_else(|| format!("{:?}", status.phase), |verdict| format!("{verdict:?}"));
    let message = status.reason.clone().unwrap_or_default();
    let one = |kind: &str, is: &str, reason: String, message: String| {
        let since =
            before.iter().find(|condition| condition.kind == kind && condition.status == is).map_or_else(now, |known| known.last_transition_time.clone());
        Condition { kind: kind.to_owned(), status: is.to_owned(), reason, message, last_transition_time: since, observed_generation: generation }
    };
    // Of what was refused there is nothing else to say.
    let progress = status.progress.clone().or_else(|| (status.phase == RunPhase::Refused).then(|| message.clone())).unwrap_or_default();
    vec![one("Running", if running { "True" } else { "False" }, format!("{:?}", status.phase), progress), one("Verdict", passed, verdict, message)]
}

/// E.g. `2 of 7: node lost, on n1; 99.2% available, p99 3.1 ms`.
pub(super) fn in_words(progress: &Progress) -> String {
    let phase = match &progress.phase {
        PhaseNow::WarmUp => return "warm-up".to_owned(),
        PhaseNow::CleanUp => return UNDOING.to_owned(),
        PhaseNow::Baseline => "baseline".to_owned(),
        PhaseNow::Watch => "watching".to_owned(),
        PhaseNow::Fault { name, on } => format!("{name} on {}", some(&on.split(", ").collect::<Vec<_>>(), ON_SHOWN)),
        PhaseNow::Recovery { name } => format!("recovery from {name}"),
    };
    let available = progress.availability.map(|ratio| format!("; {} available", share(ratio))).unwrap_or_default();
    let p99 = progress.p99_ms.map(|ms| format!(", p99 {}", millis(ms))).unwrap_or_default();
    let place = if progress.of > 0 { format!("{} of {}: ", progress.number, progress.of) } else { String::new() };
    let open = match progress.outages.as_slice() {
        [] => String::new(),
        outages => {
            let named: Vec<String> = outages.iter().map(|outage| format!("{} on {} ({})", outage.pod, outage.node, outage.cause)).collect();
            let is = if outages.len() == 1 { "outage is" } else { "outages are" };
            format!("; {} {is} open: {}", outages.len(), some(&named, NAMES_MAX))
        }
    };
    format!("{place}{phase}{available}{p99}{open}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::experiment::progress::OutageNow;

    #[test]
    fn conditions_say_whether_it_runs_and_whether_it_held() {
        let running = ResilienceTestStatus { phase: RunPhase::Running, progress: Some("baseline".into()), ..ResilienceTestStatus::default() };
        let first = conditions(&[], &running);
        let words = |conditions: &[Condition]| conditions.iter().map(|c| format!("{} {} {}", c.kind, c.status, c.reason)).collect::<Vec<_>>();
        assert_eq!(words(&first), ["Running True Running", "Verdict Unknown Running"]);
        let done = ResilienceTestStatus { phase: RunPhase::Finished, verdict: Some(RunOutcome::Pass), ..ResilienceTestStatus::default() };
        assert_eq!(words(&conditions(&first, &done)), ["Running False Finished", "Verdict True Pass"]);
        let refused = ResilienceTestStatus { phase: RunPhase::Refused, reason: Some("why".into()), ..ResilienceTestStatus::default() };
        let refused = conditions(&[], &refused);
        assert_eq!(words(&refused), ["Running False Refused", "Verdict Unknown Refused"]);
        assert_eq!((refused[0].message.as_str(), refused[1].message.as_str()), ("why", "why"));
    }

    /// The object, how many writes are refused yet, and how many came.
    type Held = Arc<Mutex<(Value, usize, usize)>>;

    /// An API server that holds one test as it was last applied; the first `refusals` writes of its status are refused.
    fn server(refusals: usize) -> (Api<ResilienceTest>, Held) {
        let object =
            json!({ "apiVersion": API_VERSION, "kind": "ResilienceTest", "metadata": { "name": "t", "uid": "u", "resourceVersion": "1" }, "spec": {} });
        let held = Arc::new(Mutex::new((object, refusals, 0)));
        let shared = Arc::clone(&held);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let held = Arc::clone(&shared);
            async move {
                let is_write = request.method() == http::Method::PATCH;
                let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let mut held = held.lock().unwrap();
                let answer = |code: u16, body: &Value| {
                    let body = kube::client::Body::from(body.to_string().into_bytes());
                    Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
                };
                if is_write {
                    held.2 += 1;
                    if held.1 > 0 {
                        held.1 -= 1;
                        return answer(
                            422,
                            &json!({ "kind": "Status", "status": "Failure", "reason": "Invalid", "message": "status.x: too long", "code": 422 }),
                        );
                    }
                    let patch: Value = serde_json::from_slice(&body).unwrap();
                    held.0["status"] = patch["status"].clone();
                }
                answer(200, &held.0)
            }
        });
        (Api::namespaced(kube::Client::new(service, "n"), "n"), held)
    }

    #[tokio::test]
    async fn a_status_that_is_refused_is_said_in_fewer_words_and_not_for_ever() {
        let ended = ResilienceTestStatus {
            phase: RunPhase::Finished,
            verdict: Some(RunOutcome::Fail),
            availability: Some("99%".into()),
            ..ResilienceTestStatus::default()
        };
        let (api, held) = server(1);
        assert_eq!(write(&api, "t", Some("u"), ended.clone()).await, Written::Yes);
        let (object, _, writes) = held.lock().unwrap().clone();
        let status = &object["status"];
        assert_eq!((&status["phase"], &status["verdict"], writes), (&"Finished".into(), &"fail".into(), 2), "{status}");
        assert!(status["reason"].as_str().unwrap().contains("status.x: too long") && status["availability"].is_null(), "{status}");

        let (api, held) = server(100);
        assert_eq!(write(&api, "t", Some("u"), ended).await, Written::No);
        assert_eq!(held.lock().unwrap().2, 2, "it is not said again and again");
    }

    #[tokio::test]
    async fn the_time_of_a_condition_is_that_of_its_last_change_however_often_it_is_written() {
        let (api, held) = server(0);
        let running = ResilienceTestStatus { phase: RunPhase::Running, ..ResilienceTestStatus::default() };
        write(&api, "t", Some("u"), running.clone()).await;
        // A while ago.
        held.lock().unwrap().0["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z".into();
        write(&api, "t", Some("u"), running).await;
        let since = |index: usize| held.lock().unwrap().0["status"]["conditions"][index]["lastTransitionTime"].as_str().unwrap().to_owned();
        assert_eq!(since(0), "2026-01-01T00:00:00Z");
        write(&api, "t", Some("u"), ResilienceTestStatus { phase: RunPhase::Finished, ..ResilienceTestStatus::default() }).await;
        assert_ne!(since(0), "2026-01-01T00:00:00Z", "it does not run any more");
    }

    #[tokio::test]
    async fn who_waits_for_its_turn_does_not_unsay_that_it_has_come() {
        let (api, held) = server(0);
        let phase = |phase| ResilienceTestStatus { phase, ..ResilienceTestStatus::default() };
        assert_eq!(write(&api, "t", Some("u"), phase(RunPhase::Running)).await, Written::Yes);
        assert_eq!(write(&api, "t", Some("u"), phase(RunPhase::Pending)).await, Written::Gone);
        assert_eq!(write(&api, "t", Some("another"), phase(RunPhase::Finished)).await, Written::Gone);
        assert_eq!(held.lock().unwrap().0["status"]["phase"], "Running");
    }

    #[tokio::test]
    async fn what_was_changed_while_it_was_looked_at_is_not_begun() {
        let (api, held) = server(0);
        held.lock().unwrap().0["metadata"]["generation"] = 2.into();
        let of = |phase, generation| ResilienceTestStatus { phase, observed_generation: Some(generation), ..ResilienceTestStatus::default() };
        assert_eq!(write(&api, "t", Some("u"), of(RunPhase::Running, 1)).await, Written::Gone);
        assert!(held.lock().unwrap().0["status"].is_null());
        assert_eq!(write(&api, "t", Some("u"), of(RunPhase::Running, 2)).await, Written::Yes);
        // What runs may tell of itself, whatever its watch is to go on with.
        held.lock().unwrap().0["metadata"]["generation"] = 3.into();
        assert_eq!(write(&api, "t", Some("u"), of(RunPhase::Running, 2)).await, Written::Yes);
    }

    #[test]
    fn progress_is_one_line() {
        let progress = Progress {
            phase: PhaseNow::Fault { name: "slow".into(), on: "n1".into() },
            number: 2,
            of: 7,
            availability: Some(0.992),
            p99_ms: Some(3.1),
            ..Progress::default()
        };
        assert_eq!(in_words(&progress), "2 of 7: slow on n1; 99.2% available, p99 3.10 ms");
        let many = Progress { phase: PhaseNow::Fault { name: "slow".into(), on: "n1, n2, n3".into() }, ..progress };
        assert!(in_words(&many).starts_with("2 of 7: slow on n1 and 2 more; "), "it stands in a column");
        let outage = OutageNow { pod: "a".into(), node: "n1".into(), cause: "deleted".into(), open_for: Duration::from_secs(7) };
        let watch = Progress { phase: PhaseNow::Watch, outages: vec![outage], ..Progress::default() };
        assert_eq!(in_words(&watch), "watching; 1 outage is open: a on n1 (deleted)");
    }
}
