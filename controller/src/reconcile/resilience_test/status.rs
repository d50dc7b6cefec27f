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
    reconcile::resource::{API_VERSION, MANAGER, ResilienceTest},
};

const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

impl Tests {
    /// Writes the status of `test`; what ends a run with patience.
    pub(super) async fn write(&self, test: &ResilienceTest, mut status: ResilienceTestStatus) {
        status.conditions = conditions(test.status.as_ref().map(|before| before.conditions.as_slice()).unwrap_or_default(), &status, test.metadata.generation);
        let (name, namespace) = (test.name_any(), test.namespace().unwrap_or_default());
        let api: Api<ResilienceTest> = Api::namespaced(self.means.client.clone(), &namespace);
        // What ends a run must be written; what tells of it can wait for the next time.
        let tries = if status.phase == RunPhase::Running { 2 } else { 30 };
        for _ in 0..tries {
            match timeout(WRITTEN_WITHIN, patch_status(&api, &name, test.uid().as_deref(), &status)).await {
                Ok(Ok(())) => return,
                // Somebody wrote between reading and writing.
                Ok(Err(kube::Error::Api(answer))) if answer.code == 409 => continue,
                Ok(Err(error)) => tracing::warn!(%test, %error, "its status could not be written"),
                Err(_) => tracing::warn!(%test, "its status could not be written in time"),
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Writes the status of the object with this UID, and of no other that has taken its name.
async fn patch_status(api: &Api<ResilienceTest>, name: &str, uid: Option<&str>, status: &ResilienceTestStatus) -> Result<(), kube::Error> {
    let Some(now) = api.get_opt(name).await?.filter(|now| now.uid().as_deref() == uid) else { return Ok(()) };
    // A leader that stood still may awake when another has ended its run.
    let over = now.status.as_ref().is_some_and(|now| matches!(now.phase, RunPhase::Finished | RunPhase::Refused));
    if over && status.phase == RunPhase::Running {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": API_VERSION, "kind": ResilienceTest::KIND,
        "metadata": { "name": name, "resourceVersion": now.resource_version() },
        "status": status,
    });
    match api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
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

fn conditions(before: &[Condition], status: &ResilienceTestStatus, generation: Option<i64>) -> Vec<Condition> {
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
    vec![
        one("Running", if running { "True" } else { "False" }, format!("{:?}", status.phase), status.progress.clone().unwrap_or_default()),
        one("Verdict", passed, verdict, message),
    ]
}

/// E.g. `2 of 7: node lost, on n1; 99.2% available, p99 3.1 ms`.
pub(super) fn in_words(progress: &Progress) -> String {
    let phase = match &progress.phase {
        PhaseNow::WarmUp => return "warm-up".to_owned(),
        PhaseNow::CleanUp => return "undoing everything".to_owned(),
        PhaseNow::Baseline => "baseline".to_owned(),
        PhaseNow::Watch => "watching".to_owned(),
        PhaseNow::Fault { name, on } => format!("{name} on {on}"),
        PhaseNow::Recovery { name } => format!("recovery from {name}"),
    };
    let available = progress.availability.map(|ratio| format!("; {} available", share(ratio))).unwrap_or_default();
    let p99 = progress.p99_ms.map(|ms| format!(", p99 {}", millis(ms))).unwrap_or_default();
    let place = if progress.of > 0 { format!("{} of {}: ", progress.number, progress.of) } else { String::new() };
    format!("{place}{phase}{available}{p99}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_whether_it_runs_and_whether_it_held() {
        let running = ResilienceTestStatus { phase: RunPhase::Running, progress: Some("baseline".into()), ..ResilienceTestStatus::default() };
        let first = conditions(&[], &running, Some(1));
        let words = |conditions: &[Condition]| conditions.iter().map(|c| format!("{} {} {}", c.kind, c.status, c.reason)).collect::<Vec<_>>();
        assert_eq!(words(&first), ["Running True Running", "Verdict Unknown Running"]);
        let done = ResilienceTestStatus { phase: RunPhase::Finished, verdict: Some(RunOutcome::Pass), ..ResilienceTestStatus::default() };
        assert_eq!(words(&conditions(&first, &done, Some(1))), ["Running False Finished", "Verdict True Pass"]);
        let refused = ResilienceTestStatus { phase: RunPhase::Refused, reason: Some("why".into()), ..ResilienceTestStatus::default() };
        assert_eq!(words(&conditions(&[], &refused, None)), ["Running False Refused", "Verdict Unknown Refused"]);
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
    }
}
