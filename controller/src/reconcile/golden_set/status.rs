//! What a GoldenSet's status says: conditions in one sentence each, with what would be right where something is not.

use k8s_openapi::jiff::Timestamp;
use steadfast_api::{
    golden::Verdict,
    resource::{Condition, GoldenReadiness, GoldenSetStatus},
};

use super::gate::Standing;
use crate::golden::SourceError;

/// Names in a status.
pub const NAMES_MAX: usize = 10;

/// Whether the set is replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    Invalid(String),
    Source(SourceError),
    /// The sidecars cannot be told.
    NotTold(String),
    /// So many matching pods have no sidecar.
    NoPods {
        without: usize,
    },
    /// So many of the pods have been told and answered.
    Starting(usize),
    Replaying {
        without: usize,
    },
}

impl Ready {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "Invalid",
            Self::Source(SourceError::NotSupported(_)) => "SourceNotSupported",
            Self::Source(SourceError::NotAllowed(_)) => "SourceNotAllowed",
            Self::Source(SourceError::Reading(_)) => "SourceReading",
            Self::Source(SourceError::NotFound(_)) => "SourceNotFound",
            Self::Source(SourceError::Broken(_)) => "SourceBroken",
            Self::Source(SourceError::DigestMismatch(_)) => "DigestMismatch",
            Self::Source(SourceError::Unavailable(_)) => "SourceUnavailable",
            Self::NotTold(_) => "NotAssigned",
            Self::NoPods { .. } => "NoPods",
            Self::Starting(_) => "Starting",
            Self::Replaying { .. } => "Replaying",
        }
    }

    fn message(&self, pods: u32) -> String {
        let without = |without: &usize| {
            if *without == 0 {
                String::new()
            } else {
                format!("; {without} more match and have no sidecar, label them or their namespace steadfast.dev/inject=true")
            }
        };
        match self {
            Self::Invalid(why) | Self::NotTold(why) => why.clone(),
            Self::Source(error) => error.to_string(),
            Self::NoPods { without: none } => format!("no pod with a sidecar has the labels of its selector{}", without(none)),
            Self::Starting(answered) => format!("{answered} of {pods} sidecars replay it"),
            Self::Replaying { without: none } => format!("replayed in {pods} pods{}", without(none)),
        }
    }
}

/// What the conditions are made of.
pub struct About<'a> {
    pub ready: &'a Ready,
    pub gate: &'a Standing,
    pub readiness: &'a GoldenReadiness,
    pub generation: Option<i64>,
    /// Names of the pods whose verdict is `ReferenceBroken`.
    pub broken: &'a [String],
}

/// The conditions of a status whose other fields are filled in already; `before`: those that stand there now.
pub fn conditions(before: &[Condition], status: &GoldenSetStatus, about: &About<'_>, now: Timestamp) -> Vec<Condition> {
    // In seconds, as everywhere in Kubernetes.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let one = |kind: &str, is: &str, reason: &str, message: String| {
        let known = before.iter().find(|condition| condition.kind == kind && condition.status == is);
        Condition {
            kind: kind.to_owned(),
            status: is.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: known.map_or_else(|| now.clone(), |known| known.last_transition_time.clone()),
            observed_generation: about.generation,
        }
    };
    let ready = if matches!(about.ready, Ready::Replaying { .. }) { "True" } else { "False" };
    let mut conditions = vec![one("Ready", ready, about.ready.reason(), about.ready.message(status.pods_matched))];
    let (is, reason, message) = verdict(status, about);
    conditions.push(one("Verdict", is, reason, message));
    if *about.gate != Standing::Off {
        let (is, reason, message) = gate(status, about);
        conditions.push(one("Gated", is, reason, message));
    }
    conditions
}

fn verdict(status: &GoldenSetStatus, about: &About<'_>) -> (&'static str, &'static str, String) {
    let (matched, passing, failing) = (status.pods_matched, status.pods_passing, status.pods_failing);
    let names = |names: &[String], all: usize| {
        let more = all.saturating_sub(names.len());
        if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
    };
    match status.verdict {
        None => ("Unknown", "NoPods", "no pod has been asked".to_owned()),
        Some(Verdict::Pass) => ("True", "Pass", format!("all {matched} pods answer right")),
        Some(Verdict::Fail) => {
            ("False", "Fail", format!("{failing} of {matched} pods answer wrong: {}; {passing} pass", names(&status.failing, failing as usize)))
        }
        Some(Verdict::Inconclusive) => ("Unknown", "Inconclusive", format!("{passing} of {matched} pods pass; the others have not been asked often enough")),
        Some(Verdict::ReferenceBroken) => (
            "Unknown",
            "ReferenceBroken",
            format!(
                "nothing can be said of {}: the model of the set does not give the answers that are stored in it, or the set cannot be read there; \
                 `steadfast golden show FOLDER` names the sample, the sidecar's log the reason",
                names(&about.broken[..about.broken.len().min(NAMES_MAX)], about.broken.len())
            ),
        ),
    }
}

fn gate(status: &GoldenSetStatus, about: &About<'_>) -> (&'static str, &'static str, String) {
    let (out, matched, share) = (status.pods_gated, status.pods_matched, about.readiness.max_unavailable);
    let is = if out > 0 { "True" } else { "False" };
    let (reason, message) = match about.gate {
        Standing::Off | Standing::Open => ("Open", "no pod belongs out of the Service".to_owned()),
        Standing::Gating => ("Gating", format!("{out} of {matched} pods are out of the Service until they answer right")),
        Standing::AtCap { belong, cap: 0 } => {
            let least = u64::from(100_u32).div_ceil(u64::from(matched.max(1)));
            ("AtCap", format!("{belong} belong out, and {share} of {matched} pods is less than one: {least}% would let one leave"))
        }
        Standing::AtCap { belong, cap } => ("AtCap", format!("{belong} belong out, and {share} of {matched} pods is {cap}")),
        Standing::HeldByOthers { belong } => {
            ("HeldByOthers", format!("{belong} belong out, and what other golden sets hold out of these pods leaves no room: the cap holds for all together"))
        }
        Standing::Waiting => ("Waiting", "too few pods have answered to tell whether the set or a pod is wrong; nobody else leaves".to_owned()),
        Standing::ReferenceBroken => ("ReferenceBroken", "nobody leaves while the reference is broken".to_owned()),
        Standing::MostFail { failing, right } => {
            ("MostFail", format!("{failing} pods fail and {right} are known to be right: it may be the set or the roll-out that is wrong, so nobody leaves"))
        }
        Standing::LastReady => ("LastReady", "no other pod is known to be ready, so the last one stays".to_owned()),
    };
    (is, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn said(status: &GoldenSetStatus, ready: &Ready, gate: &Standing) -> Vec<Condition> {
        let readiness = GoldenReadiness { gate: true, ..GoldenReadiness::default() };
        let about = About { ready, gate, readiness: &readiness, generation: Some(3), broken: &["c".to_owned()] };
        conditions(&status.conditions, status, &about, at("2026-01-01T00:01:00.5Z"))
    }

    #[test]
    fn conditions_tell_verdict_and_gate_in_words_that_help() {
        let replaying = Ready::Replaying { without: 0 };
        let three = GoldenSetStatus { pods_matched: 3, ..GoldenSetStatus::default() };
        let fail =
            GoldenSetStatus { verdict: Some(Verdict::Fail), pods_passing: 2, pods_failing: 1, failing: vec!["a".into()], pods_gated: 1, ..three.clone() };
        let conditions = said(&fail, &replaying, &Standing::Gating);
        let words: Vec<_> = conditions.iter().map(|c| format!("{} {} {}: {}", c.kind, c.status, c.reason, c.message)).collect();
        assert_eq!(words[0], "Ready True Replaying: replayed in 3 pods");
        assert_eq!(words[1], "Verdict False Fail: 1 of 3 pods answer wrong: a; 2 pass");
        assert!(words[2].starts_with("Gated True Gating: 1 of 3 pods are out"), "{words:?}");
        assert!(conditions.iter().all(|condition| condition.observed_generation == Some(3)));
        let capped = said(&three, &replaying, &Standing::AtCap { belong: 1, cap: 0 });
        assert!(capped[2].message.contains("25% of 3 pods is less than one: 34% would let one leave"), "{}", capped[2].message);
        let off = said(&three, &replaying, &Standing::Off);
        assert_eq!(off.len(), 2, "who asked for no gate reads of none");
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let none = GoldenSetStatus { pods_matched: 1, verdict: Some(Verdict::Inconclusive), ..GoldenSetStatus::default() };
        let ready = Ready::Replaying { without: 0 };
        let mut status = GoldenSetStatus { conditions: said(&none, &ready, &Standing::Off), ..none };
        status.conditions[1].last_transition_time = "2025-12-31T00:00:00Z".to_owned();
        status.verdict = Some(Verdict::ReferenceBroken);
        let broken = said(&status, &ready, &Standing::Off);
        assert_eq!((broken[1].reason.as_str(), broken[1].last_transition_time.as_str()), ("ReferenceBroken", "2025-12-31T00:00:00Z"), "both are Unknown");
        status.verdict = Some(Verdict::Pass);
        assert_eq!(said(&status, &ready, &Standing::Off)[1].last_transition_time, "2026-01-01T00:01:00Z");
    }

    #[test]
    fn what_is_not_ready_says_what_would_be_right() {
        let status = GoldenSetStatus::default();
        let source = Ready::Source(SourceError::NotFound("there is no ConfigMap x".into()));
        for (ready, reason, says) in [
            (source, "SourceNotFound", "no ConfigMap x"),
            (Ready::NoPods { without: 2 }, "NoPods", "steadfast.dev/inject=true"),
            (Ready::Invalid("spec.schedule.every: 1ms".into()), "Invalid", "1ms"),
        ] {
            let conditions = said(&status, &ready, &Standing::Off);
            assert_eq!((conditions[0].status.as_str(), conditions[0].reason.as_str()), ("False", reason));
            assert!(conditions[0].message.contains(says), "{}", conditions[0].message);
            assert_eq!(conditions[1].reason, "NoPods");
        }
    }
}
