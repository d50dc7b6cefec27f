//! What version 0.1 says and has stored, kept as it was: sidecars outlive the controller that gave them to their pods, and objects every version. A change after which one of
//! these cannot be read, or is written otherwise, breaks whoever runs the other side; then the protocol's major version, or that of the API, has to rise.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    policy::FaultPolicySpec,
    resource::{FaultPolicyStatus, GoldenSetSpec, GoldenSetStatus, ResilienceScheduleSpec, ResilienceScheduleStatus},
    sidecar::{Answer, PROTOCOL_MAJOR, SidecarReport, read_snapshot},
    test::ResilienceTestSpec,
};

const UP: &str = include_str!("frozen/up.jsonl");
const DOWN: &str = include_str!("frozen/down.jsonl");
const OBJECTS: &str = include_str!("frozen/objects.yaml");

/// Whether `now` has all that `before` has. More may be there: what a reader does not know it passes over.
fn holds(now: &Value, before: &Value) -> bool {
    match (now, before) {
        (Value::Object(now), Value::Object(before)) => before.iter().all(|(key, before)| now.get(key).is_some_and(|now| holds(now, before))),
        (Value::Array(now), Value::Array(before)) => now.len() == before.len() && now.iter().zip(before).all(|(now, before)| holds(now, before)),
        (now, before) => now == before,
    }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn reports_of_old_sidecars_are_understood_wholly_and_new_ones_have_all_that_an_old_controller_reads() {
    assert_eq!(PROTOCOL_MAJOR, 1, "keep the lines of protocol 1, and add those of the next beside them");
    for line in UP.lines() {
        let (report, unknown) = SidecarReport::read(line.as_bytes()).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(unknown, 0, "{line}");
        let now = serde_json::to_value(&report).unwrap();
        assert!(holds(&now, &value(line)), "{line}\nis now\n{now}");
    }
}

#[test]
fn lines_of_old_controllers_are_understood_wholly_and_new_policies_have_no_word_that_an_old_sidecar_refuses() {
    for line in DOWN.lines() {
        let before = value(line);
        if before.get("generation").is_none() {
            let answer: Answer = serde_json::from_value(before.clone()).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_eq!(serde_json::to_value(&answer).unwrap(), before);
            continue;
        }
        let read = read_snapshot(line.as_bytes()).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(read.unknown == 0 && read.refused.is_empty(), "{line}: {read:?}");
        let now = serde_json::to_value(read.snapshot.expect("a snapshot")).unwrap();
        assert!(holds(&now, &before), "{line}\nis now\n{now}");
        // A word that an old sidecar does not know could be what narrows a policy: it arms none that has one.
        assert_eq!(now["policies"], before["policies"]);
    }
}

#[test]
fn objects_that_are_stored_are_read_and_written_as_they_were() {
    fn same<T: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(what: &str, before: &Value) {
        let read: T = serde_json::from_value(before.clone()).unwrap_or_else(|error| panic!("{what}: {error}: {before}"));
        let written = serde_json::to_value(&read).unwrap();
        let again: T = serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("{what}: {error}: {written}"));
        assert_eq!(again, read, "{what}: {written}");
    }
    let mut seen = 0;
    for document in OBJECTS.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
        let (kind, spec, status) = (object["kind"].as_str().expect("a kind"), &object["spec"], &object["status"]);
        match kind {
            "FaultPolicy" => same::<FaultPolicySpec>(kind, spec),
            "GoldenSet" => same::<GoldenSetSpec>(kind, spec),
            "ResilienceSchedule" => same::<ResilienceScheduleSpec>(kind, spec),
            "ResilienceTest" => same::<ResilienceTestSpec>(kind, spec),
            other => panic!("{other}"),
        }
        match kind {
            _ if status.is_null() => {}
            "FaultPolicy" => same::<FaultPolicyStatus>(kind, status),
            "GoldenSet" => same::<GoldenSetStatus>(kind, status),
            "ResilienceSchedule" => same::<ResilienceScheduleStatus>(kind, status),
            other => panic!("{other}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 7);
}
