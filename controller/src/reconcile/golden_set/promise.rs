//! From what a GoldenSet promises to what a sidecar is told.
//!
//! `falseAlarms: {atMost: N, per: P}` is a promise about all the time that a pod is watched, and a pod is watched for ever. An e-process that is begun once and looked
//! at for ever raises a false alarm with probability at most α in its whole life (Ville's inequality): α bounds a life, not a year. But an e-process that has seen a
//! year of right answers needs nearly as many wrong ones to change its mind, so tests must be begun again and again, and each may be wrong once with probability α.
//! What is promised is then kept when
//!
//! > tests begun in P × α ≤ N.
//!
//! Sidecars begin one with every sample (the Shiryaev–Roberts e-detector of `golden_sets::sequential`: the sum of all tests begun so far against 1/α), which is P / `every`
//! tests, so α = N × `every` / P. Then false alarms are at least 1/α samples apart on average, and at most N are expected in P, however often somebody looks.
//! `share` and load only make samples rarer. After a server has become ready samples come faster until the first right answer, which a right server gives at once.

use std::time::Duration;

use steadfast_api::{
    policy::GoldenAssignment,
    resource::{FalseAlarms, GoldenSetSpec},
};
use steadfast_golden_sets::sequential::Settings;

/// A set's name is a metric's label.
pub const NAME_MAX: usize = 63;
/// More often is a load, not a check.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// What every matching pod is assigned.
///
/// # Errors
/// The field, what stands there and what would be right.
pub fn assignment(name: &str, digest: &str, spec: &GoldenSetSpec) -> Result<GoldenAssignment, String> {
    if name.len() > NAME_MAX {
        return Err(format!("metadata.name: {} characters are too many, it is a label of metrics: give it {NAME_MAX} at most", name.len()));
    }
    let schedule = &spec.schedule;
    if schedule.every.get() < EVERY_MIN {
        return Err(format!("spec.schedule.every: {} is too often: at least 10ms, such as 1s", schedule.every));
    }
    if schedule.share.ppm() == 0 {
        return Err("spec.schedule.share: 0% of the pod's requests is never: more than 0%, such as 1%".to_owned());
    }
    let alpha = alpha(&spec.verdict.false_alarms, schedule.every.get());
    let settings = settings(spec, alpha);
    settings.check().map_err(|error| match error.field {
        "runLength" => format!(
            "spec.verdict.falseAlarms: {} per {} at one sample every {} cannot be promised: at least 1, and at most one in ten samples",
            spec.verdict.false_alarms.at_most, spec.verdict.false_alarms.per, schedule.every
        ),
        "detect" | "tolerated" => format!("spec.verdict.detect: {} is out of range: more than 0%, and at most 90%", spec.verdict.detect),
        _ => error.to_string(),
    })?;
    Ok(GoldenAssignment {
        name: name.to_owned(),
        digest: digest.to_owned(),
        every: schedule.every,
        share: schedule.share,
        alpha: format!("{alpha:e}"),
        detect: spec.verdict.detect,
    })
}

/// What the sidecar judges by.
pub fn settings(spec: &GoldenSetSpec, alpha: f64) -> Settings {
    Settings::monitor(alpha, spec.verdict.detect.ratio())
}

/// See the module.
pub fn alpha(promise: &FalseAlarms, every: Duration) -> f64 {
    f64::from(promise.at_most) * every.as_secs_f64() / promise.per.get().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> GoldenSetSpec {
        serde_saphyr::from_str(&format!("{{source: {{configMap: {{name: x}}}}, {yaml}}}")).unwrap()
    }

    #[test]
    fn a_year_of_samples_and_their_alpha_make_one_false_alarm() {
        let assignment = assignment("digits", "sha256:0", &spec("")).unwrap();
        let alpha: f64 = assignment.alpha.parse().unwrap();
        assert!((alpha * 365.0 * 86_400.0 - 1.0).abs() < 1e-9, "{alpha}");
        assert!(assignment.alpha.parse::<steadfast_api::golden::Decimal>().is_ok(), "{}", assignment.alpha);
        let rarer = spec("schedule: {every: 10s}, verdict: {falseAlarms: {atMost: 2, per: 30d}}");
        let alpha = super::alpha(&rarer.verdict.false_alarms, rarer.schedule.every.get());
        assert!((alpha * 30.0 * 8_640.0 - 2.0).abs() < 1e-9, "{alpha}");
    }

    #[test]
    fn what_cannot_be_promised_says_which_field() {
        for (yaml, says) in [
            ("verdict: {falseAlarms: {atMost: 1, per: 5s}}", "spec.verdict.falseAlarms"),
            ("verdict: {falseAlarms: {atMost: 0, per: 1d}}", "spec.verdict.falseAlarms"),
            ("verdict: {detect: 100%}", "spec.verdict.detect: 100%"),
            ("verdict: {detect: 0%}", "spec.verdict.detect: 0%"),
            ("schedule: {every: 1ms}", "spec.schedule.every: 1ms"),
            ("schedule: {share: 0%}", "spec.schedule.share: 0%"),
        ] {
            let why = assignment("digits", "sha256:0", &spec(yaml)).unwrap_err();
            assert!(why.contains(says), "{yaml}: {why}");
        }
        assert!(assignment(&"x".repeat(64), "sha256:0", &spec("")).unwrap_err().contains("63"));
    }
}
