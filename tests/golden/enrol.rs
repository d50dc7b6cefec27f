//! `golden enrol`: what is learnt, what is refused, and what is left behind.

use crate::{
    copy, one_percent_off,
    process::{self, Server, golden},
};

fn enrol(set: &std::path::Path, url: &str, more: &[&str]) -> process::Ended {
    let set = set.display().to_string();
    golden(["enrol", set.as_str(), "--server", url, "--output", "json", "--engine", "rten"].into_iter().chain(more.iter().copied()))
}

#[test]
fn every_sample_is_replayed_alone_and_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let set = copy("digits", folder.path());
    let server = Server::ready(&process::set("digits"), &["--engine", "rten"]);
    let ended = enrol(&set, &server.url(), &[]);
    let report = ended.json();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(report["replays"], 30);
    assert!(report["batches"]["answers"].as_u64() > Some(0), "the model's first dimension is free: {report}");
    let shown = golden(["show", &set.display().to_string(), "--output", "json"]).json();
    assert_eq!(shown["enrolments"]["default"]["server"]["name"], "steadfast serve", "{shown}");
    assert_ne!(shown["enrolments"]["default"]["server"]["hardware"], "", "the server is on this machine: {shown}");
}

#[test]
fn an_enrolled_server_that_then_changes_fails_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let set = copy("recommender", folder.path());
    let server = Server::ready(&process::set("recommender"), &["--engine", "rten"]);
    let ended = enrol(&set, &server.url(), &["--name", "default"]);
    let report = ended.json();
    assert_eq!((ended.code, report["deterministic"].as_bool()), (Some(0), Some(true)), "{ended:?}");
    assert!(report["batches"]["why"].as_str().unwrap_or_default().contains("fixed"), "{report}");
    drop(server);
    let changed = Server::ready(&one_percent_off("recommender", folder.path()), &["--engine", "rten"]);
    let ended = golden(["check", &set.display().to_string(), "--server", &changed.url(), "--output", "json", "--engine", "rten"]);
    let report = ended.json();
    assert_eq!((ended.code, report["verdict"].as_str()), (Some(1), Some("Fail")), "{ended:?}");
    assert!(report["samples"].as_u64() <= Some(3), "a deterministic server needs one mismatch and its repetition: {report}");
}

#[test]
fn a_server_that_differs_from_its_reference_is_enrolled_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let set = copy("digits", folder.path());
    let server = Server::ready(&one_percent_off("digits", folder.path()), &["--engine", "rten"]);
    let refused = enrol(&set, &server.url(), &[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("does not answer as the reference does") && refused.stderr.contains("--accept-difference"), "{refused:?}");
    assert!(!set.join("enrolled").exists(), "a refused server leaves nothing behind");
    let accepted = enrol(&set, &server.url(), &["--accept-difference"]);
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    let offset: f64 = accepted.json()["outputs"][0]["offset"]["absolute"].as_str().unwrap_or_default().parse().unwrap();
    assert!(offset > 1e-5, "its distance is recorded: {accepted:?}");
}

#[test]
fn a_server_that_gives_no_answer_is_not_enrolled() {
    let folder = tempfile::tempdir().unwrap();
    let set = copy("digits", folder.path());
    let server = Server::start(&process::set("digits"), &["--engine", "rten", "--load-seconds", "3600"]);
    let ended = enrol(&set, &server.url(), &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(!set.join("enrolled").exists());
}
