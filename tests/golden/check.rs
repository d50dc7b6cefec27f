//! `golden check` and `golden show`.

use std::{io::Write as _, net::TcpStream, time::Duration};

use nix::sys::signal::Signal;
use steadfast_golden_sets::{GoldenSet, Values, set};

use crate::{
    copy, one_percent_off,
    process::{self, Server, golden, golden_in_background},
};

const RTEN: [&str; 2] = ["--engine", "rten"];

fn check(set: &std::path::Path, url: &str, more: &[&str]) -> process::Ended {
    let set = set.display().to_string();
    golden(["check", set.as_str(), "--server", url, "--output", "json", "--seed", "7", "--engine", "rten"].into_iter().chain(more.iter().copied()))
}

#[test]
fn a_right_server_passes() {
    for name in ["recommender", "digits"] {
        let server = Server::ready(&process::set(name), &RTEN);
        let ended = check(&process::set(name), &server.url(), &[]);
        let report = ended.json();
        assert_eq!((ended.code, report["verdict"].as_str()), (Some(0), Some("Pass")), "{ended:?}");
        assert_eq!((report["mismatches"].as_u64(), report["unanswered"].as_u64()), (Some(0), Some(0)));
        assert_eq!(report["reference"]["state"], "proven");
        assert!(report["samples"].as_u64() > Some(500), "excluding 1 % takes several hundred samples: {report}");
        assert_eq!(report["server"]["binary"], true);
    }
}

#[test]
fn a_weight_one_percent_off_fails() {
    for name in ["recommender", "digits"] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::ready(&one_percent_off(name, folder.path()), &RTEN);
        let ended = check(&process::set(name), &server.url(), &[]);
        let report = ended.json();
        assert_eq!((ended.code, report["verdict"].as_str()), (Some(1), Some("Fail")), "{ended:?}");
        assert!(report["samples"].as_u64() < Some(60), "{report}");
        let failure = &report["failures"][0];
        assert!(failure["wrong"].as_u64() > Some(0) && !failure["line"].as_str().unwrap_or_default().is_empty(), "{failure}");
        assert_eq!(report["reference"]["state"], "proven", "the server is wrong, not the reference");
    }
}

#[test]
fn a_well_formed_wrong_answer_fails() {
    let server = Server::ready(&process::set("digits"), &["--engine", "rten", "--wrong-seconds", "3600"]);
    let ended = check(&process::set("digits"), &server.url(), &[]);
    assert_eq!((ended.code, ended.json()["verdict"].as_str()), (Some(1), Some("Fail")));
}

#[test]
fn a_set_whose_stored_answers_are_not_the_models_is_the_sets_fault() {
    let folder = tempfile::tempdir().unwrap();
    let sound = set::read(process::set("digits")).unwrap();
    let mut samples = sound.samples().to_vec();
    let Values::F32(values) = &mut samples[5].outputs[0].values else { panic!("probabilities are FP32") };
    values.reverse();
    let broken = folder.path().join("broken");
    set::write(&GoldenSet::new(sound.manifest().clone(), sound.model().clone(), samples).unwrap(), &broken).unwrap();
    let server = Server::ready(&process::set("digits"), &RTEN);
    let ended = check(&broken, &server.url(), &[]);
    assert_eq!((ended.code, ended.json()["verdict"].as_str()), (Some(3), Some("ReferenceBroken")), "{ended:?}");
}

#[test]
fn a_server_without_the_model_is_bad_input() {
    let server = Server::ready(&process::set("digits"), &RTEN);
    let ended = check(&process::set("recommender"), &server.url(), &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains(r#"has no model "recommender""#) && ended.stderr.contains("golden.yaml"), "{ended:?}");
}

#[test]
fn an_address_that_cannot_be_is_bad_input() {
    for (url, says) in [("https://127.0.0.1:1", "https is not supported"), ("127.0.0.1", "http://")] {
        let ended = check(&process::set("digits"), url, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(says), "{ended:?}");
    }
    let ended = check(&process::set("no-such-set"), "http://127.0.0.1:1", &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[test]
fn a_server_that_is_down_or_loading_is_inconclusive() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = check(&process::set("digits"), &format!("http://{free}"), &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("is the server running?"), "{ended:?}");
    let server = Server::start(&process::set("digits"), &["--engine", "rten", "--load-seconds", "3600"]);
    let ended = check(&process::set("digits"), &server.url(), &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("is not ready") && ended.stderr.contains("loading"), "{ended:?}");
}

#[test]
fn a_busy_server_is_inconclusive_and_never_fails() {
    let server = Server::ready(&process::set("digits"), &["--engine", "rten", "--max-concurrency", "1"]);
    // A request whose body does not come holds the only place.
    let mut holder = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    write!(holder, "POST /v2/models/digits/infer HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n").unwrap();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        let ended = check(&process::set("digits"), &server.url(), &[]);
        let report = ended.json();
        assert_ne!(ended.code, Some(1), "{ended:?}");
        // The holder may not have been taken in yet.
        if ended.code == Some(3) {
            assert_eq!((report["verdict"].as_str(), report["mismatches"].as_u64()), (Some("Inconclusive"), Some(0)), "{ended:?}");
            assert!(report["reason"].as_str().unwrap_or_default().contains("503"), "{report}");
            return;
        }
    }
    panic!("the server was never busy");
}

#[test]
fn a_server_that_stops_answering_is_inconclusive_and_never_fails() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth");
    let server = Server::ready(&process::set("recommender"), &["--engine", "rten", "--truth-file", &truth.display().to_string()]);
    let set = process::set("recommender").display().to_string();
    let url = server.url();
    // As many samples as the strictest question takes: it cannot be through before the server is stopped.
    let asking = golden_in_background([
        "check",
        &set,
        "--server",
        &url,
        "--output",
        "json",
        "--engine",
        "rten",
        "--detect",
        "0.2%",
        "--max-samples",
        "100000",
        "--timeout",
        "0.2",
    ]);
    let began = std::time::Instant::now();
    while !std::fs::read_to_string(&truth).unwrap_or_default().contains("firstAnswer") {
        assert!(began.elapsed() < Duration::from_mins(1), "the check never asked");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.signal(Signal::SIGSTOP);
    let ended = asking.end();
    server.signal(Signal::SIGCONT);
    let report = ended.json();
    assert_eq!((ended.code, report["verdict"].as_str()), (Some(3), Some("Inconclusive")), "{ended:?}");
    assert_eq!((report["mismatches"].as_u64(), report["unanswered"].as_u64()), (Some(0), Some(10)), "{report}");
}

#[test]
fn show_tells_what_a_set_holds_and_who_can_compute_it() {
    let set = process::set("recommender").display().to_string();
    let ended = golden(["show", &set, "--output", "json"]);
    let shown = ended.json();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(shown["engines"]["rten"]["state"], "proven");
    assert!(shown["samples"]["count"].as_u64() >= Some(200), "{shown}");
    assert!(shown["samples"]["tags"]["cold"].as_u64() > Some(0), "{shown}");
    let text = golden(["show", &set]).stdout;
    assert!(text.contains("rten") && text.contains("item_ids") && text.contains("enrolments: none"), "{text}");
}

#[test]
fn stored_answers_decide_where_the_enrolment_is_of_another_server() {
    let folder = tempfile::tempdir().unwrap();
    let set = copy("digits", folder.path());
    let server = Server::ready(&process::set("digits"), &RTEN);
    let ended = golden(["enrol", &set.display().to_string(), "--server", &server.url(), "--engine", "rten"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(check(&set, &server.url(), &[]).json()["enrolment"], "default");
    let manifest = set.join("enrolled/default/enrolled.yaml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("steadfast serve", "another")).unwrap();
    assert_eq!(check(&set, &server.url(), &[]).json()["enrolment"], serde_json::Value::Null);
    assert_eq!(check(&set, &server.url(), &["--enrolment", "default"]).json()["enrolment"], "default");
}
