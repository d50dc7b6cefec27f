//! Promises of enrolment and of the three-way check.

use steadfast_api::golden::Outcome;

use super::*;
use crate::{Values, check::Checker, testing};

fn server() -> Server {
    Server { name: "test-server".into(), version: "1.0".into(), hardware: String::new() }
}

const NOW: &str = "2026-11-01T12:00:00Z";

/// The stored answer to a sample with `shift` added to every probability.
fn shifted(answer: &[Tensor], shift: f32) -> Vec<Tensor> {
    let shift = |tensor: &Tensor| {
        let values = match &tensor.values {
            Values::F32(values) => Values::F32(values.iter().map(|value| value + shift).collect()),
            other => other.clone(),
        };
        Tensor { values, ..tensor.clone() }
    };
    answer.iter().map(shift).collect()
}

fn enrolled(set: &GoldenSet, offset: f32, noise: f32) -> Enrolment {
    let mut enroller = Enroller::new(set, true);
    for replay in 0..REPLAYS_MIN {
        for (index, sample) in set.samples().iter().enumerate() {
            let noise = if replay % 2 == 1 { noise } else { 0.0 };
            enroller.answer(index, &shifted(&sample.outputs, offset + noise)).unwrap();
        }
    }
    enroller.finish(server(), NOW.into()).unwrap()
}

#[test]
fn tolerance_is_the_default_or_four_times_the_noise() {
    let set = testing::classifier_set();
    let tolerance = |enrolment: &Enrolment| match &enrolment.manifest().outputs[0].compare {
        Compare::Classification { absolute } => absolute.value(),
        other => panic!("{other:?}"),
    };
    let steady = enrolled(&set, 0.0, 0.0);
    assert!(steady.deterministic());
    assert_eq!(steady.manifest().outputs[0].compare, set.manifest().outputs[0].compare);
    let noisy = enrolled(&set, 0.0, 0.001);
    assert!(!noisy.deterministic());
    assert!((tolerance(&noisy) - 0.004).abs() < 1e-5, "{}", tolerance(&noisy));
}

#[test]
fn an_enrolment_is_read_back_and_renewed_whole() {
    let set = testing::classifier_set();
    let directory = tempfile::tempdir().unwrap();
    let first = enrolled(&set, 0.0, 0.0);
    first.write(directory.path(), "cpu-a").unwrap();
    let second = enrolled(&set, 0.01, 0.0);
    second.write(directory.path(), "cpu-a").unwrap();
    let read = Enrolment::read(&set, directory.path(), "cpu-a").unwrap();
    assert_eq!((read.answers(), &read.manifest().outputs, read.manifest().time.as_str()), (second.answers(), &second.manifest().outputs, NOW));
    let left: Vec<_> = fs::read_dir(directory.path().join("enrolled/cpu-a")).unwrap().collect();
    assert_eq!(left.len(), 2, "enrolled.yaml and one folder of answers: {left:?}");
    assert_eq!(Enrolment::names(directory.path()).unwrap(), ["cpu-a"]);
    assert!(first.write(directory.path(), "../outside").unwrap_err().to_string().contains("no name"));
    let other = testing::recommender_set();
    let stale = Enrolment::read(&other, directory.path(), "cpu-a").unwrap_err().to_string();
    assert!(stale.contains("enrol the server anew"), "{stale}");
}

#[test]
fn a_half_written_enrolment_is_never_seen() {
    let set = testing::classifier_set();
    let directory = tempfile::tempdir().unwrap();
    let good = enrolled(&set, 0.0, 0.0);
    good.write(directory.path(), "a").unwrap();
    // What a crash between the two steps of a renewal leaves: fresh answers that nothing names yet.
    fs::create_dir_all(directory.path().join("enrolled/a/.answers-1-2/0")).unwrap();
    fs::create_dir_all(directory.path().join("enrolled/a/answers-3")).unwrap();
    assert_eq!(Enrolment::read(&set, directory.path(), "a").unwrap().answers(), good.answers());
    good.write(directory.path(), "a").unwrap();
    assert_eq!(fs::read_dir(directory.path().join("enrolled/a")).unwrap().count(), 2, "and the next renewal clears it away");
}

#[test]
fn too_few_replays_and_wrong_servers_are_refused() {
    let set = testing::classifier_set();
    let mut few = Enroller::new(&set, false);
    few.answer(0, &set.samples()[0].outputs).unwrap();
    assert!(matches!(few.finish(server(), NOW.into()), Err(EnrolError::TooFew { replays: 1, .. })));
    let mut strict = Enroller::new(&set, false);
    let wrong = strict.answer(1, &shifted(&set.samples()[1].outputs, 0.1)).unwrap_err().to_string();
    assert!(wrong.contains("\"s1\"") && wrong.contains("accepted"), "{wrong}");
    assert!(strict.answer(0, &[]).is_err());
    assert!(strict.answer(99, &[]).is_err());
    let mut lenient = Enroller::new(&set, true);
    assert!(lenient.answer(0, &shifted(&set.samples()[0].outputs, f32::NAN)).is_err(), "NaN is no difference to accept");
}

#[test]
fn the_check_is_three_way() {
    let set = testing::classifier_set();
    let sample = &set.samples()[0];
    let enrolment = enrolled(&set, 0.01, 0.0);
    let checker = Checker::new(&set, Some(&enrolment));
    let as_enrolled = shifted(&sample.outputs, 0.01);
    let check = checker.check(0, sample, &as_enrolled, Some(&sample.outputs));
    assert_eq!((check.outcome(), check.stored.matches(), check.reference_broken()), (Outcome::Match, false, false));
    assert!(check.line().starts_with("as enrolled"), "{}", check.line());
    let drifted = checker.check(0, sample, &sample.outputs, None);
    assert_eq!((drifted.outcome(), drifted.stored.matches()), (Outcome::Mismatch, true));
    assert!(drifted.line().starts_with("as the reference, though not as enrolled"), "{}", drifted.line());
    let broken = checker.check(0, sample, &as_enrolled, Some(&shifted(&sample.outputs, 0.5)));
    assert!(broken.reference_broken() && broken.line().contains("does not reproduce"), "{}", broken.line());
    let alone = Checker::new(&set, None).check(0, sample, &as_enrolled, None);
    assert_eq!(alone.outcome(), Outcome::Mismatch);
}

#[test]
fn answers_under_other_names_and_wider_types_enrol() {
    let set = testing::classifier_set();
    let sample = &set.samples()[0];
    let wide = vec![sample.outputs[0].cast(crate::DataType::F64).unwrap().renamed("predict")];
    let mut enroller = Enroller::new(&set, false);
    enroller.answer(0, &wide).unwrap();
    assert_eq!(enroller.first[0].as_deref(), Some(sample.outputs.as_slice()));
}
