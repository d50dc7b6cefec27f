//! Servers and engines that are not part of this build. Each test runs where it is told of one, and else says that it did not run.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    copy,
    process::{self, Server, golden},
};

/// MLServer serving the very pipeline that the digits model was converted from. It answers FP64 in JSON, names its output `predict_proba`, and tells neither
/// shapes nor versions.
#[test]
fn mlserver_is_enrolled_and_checked() {
    let Some(python) = std::env::var_os("STEADFAST_MLSERVER_PYTHON") else {
        println!("not run: golden sets against MLServer, because STEADFAST_MLSERVER_PYTHON does not name a python with tests/golden/requirements-mlserver.txt");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("digits.joblib");
    let trained = Command::new(&python).arg(process::set("digits").join("train.py")).arg("--sklearn").arg(&pipeline).stdout(Stdio::null()).status();
    assert!(trained.is_ok_and(|status| status.success()), "train.py --sklearn");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (http, grpc, metrics) = (free(), free(), free());
    let write = |name: &str, value: serde_json::Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    write(
        "model-settings.json",
        serde_json::json!({"name": "digits", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": pipeline, "version": "1"}}),
    );
    write("settings.json", serde_json::json!({"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0}));
    let mut command = Command::new(Path::new(&python).with_file_name("mlserver"));
    command.arg("start").arg(folder.path()).current_dir(folder.path());
    let server = Server::listen(command, move |line| line.contains(&format!("http://127.0.0.1:{http}")).then_some(http));
    server.wait_until_ready();

    let set = copy("digits", folder.path()).display().to_string();
    let url = server.url();
    let peer = ["--server", &url, "--ask-for", "predict_proba", "--engine", "rten", "--output", "json"];
    let run = |verb: &str| golden([verb, &set].into_iter().chain(peer));
    let first = run("check");
    assert_eq!((first.code, first.json()["verdict"].as_str()), (Some(0), Some("Pass")), "{first:?}");
    assert_eq!(first.json()["server"]["binary"], false);
    let enrolled = run("enrol");
    assert_eq!(enrolled.code, Some(0), "{enrolled:?}");
    assert!(enrolled.json()["batches"]["answers"].as_u64() > Some(0), "{enrolled:?}");
    let second = run("check");
    assert_eq!((second.code, second.json()["enrolment"].as_str()), (Some(0), Some("default")), "{second:?}");
    // Without the name it answers labels, which are not what the set holds.
    let labels = golden(["check", &set, "--server", &url, "--engine", "rten"]);
    assert_eq!(labels.code, Some(1), "{labels:?}");
    assert!(labels.stdout.contains("--ask-for"), "{labels:?}");
}

/// ONNX Runtime proves the sets and serves them; rten, which recorded nothing of them, agrees.
#[test]
fn onnx_runtime_reproduces_the_sets_and_agrees_with_rten() {
    if std::env::var_os("ORT_DYLIB_PATH").is_none_or(|path| path.is_empty()) {
        println!("not run: golden sets on ONNX Runtime, because ORT_DYLIB_PATH does not name its shared library");
        return;
    }
    for name in ["recommender", "digits"] {
        let set = process::set(name).display().to_string();
        let shown = golden(["show", &set, "--output", "json"]).json();
        assert_eq!(shown["engines"]["ONNX Runtime"]["state"], "proven", "{shown}");
        let server = Server::ready(&process::set(name), &["--engine", "onnxruntime"]);
        for engine in ["onnxruntime", "rten"] {
            let ended = golden(["check", &set, "--server", &server.url(), "--engine", engine, "--output", "json"]);
            let report = ended.json();
            assert_eq!((ended.code, report["verdict"].as_str()), (Some(0), Some("Pass")), "{ended:?}");
            assert_eq!(report["reference"]["engine"], engine);
        }
    }
}
