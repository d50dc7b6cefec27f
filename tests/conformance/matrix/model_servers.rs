//! Model servers as people run them: MLServer, and Triton where the full matrix is asked for, since to install it takes a while.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use super::{
    curl::curl,
    peers::{PATIENCE, Pod, Process, folder, free_port, output, program, script},
    table::Table,
};

fn wait_until_ready(server: SocketAddr) {
    let begun = Instant::now();
    while !curl(server, "http", "/v2/models/double/ready", &[]).starts_with("200") {
        assert!(begun.elapsed() < PATIENCE * 3, "the server never became ready");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const DATA: &str = r#"{"id":"7","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}"#;

/// What both servers speak: the Open Inference Protocol v2 by HTTP.
fn oip(table: &mut Table, pod: &Pod, model: &str) {
    let infer = format!("/v2/models/{model}/infer");
    let json = ["--header", "content-type: application/json"];
    table.same(pod, "readiness, liveness, metadata", |way| {
        let metadata = format!("/v2/models/{model}");
        ["/v2/health/ready", "/v2/health/live", "/v2", &metadata].map(|path| curl(way, "http", path, &[])).join("\n")
    });
    table.same(pod, "inference in JSON", |way| curl(way, "http", &infer, &[&json[..], &["--data-binary", DATA]].concat()));
    table.same(pod, "inference, the request in chunks", |way| {
        curl(way, "http", &infer, &[&json[..], &["--data-binary", DATA, "--header", "transfer-encoding: chunked"]].concat())
    });
    table.same(pod, "an unknown model", |way| curl(way, "http", "/v2/models/nothing/infer", &[&json[..], &["--data-binary", DATA]].concat()));
    table.same(pod, "what is no JSON", |way| curl(way, "http", &infer, &[&json[..], &["--data-binary", "{"]].concat()));
    table.same(pod, "200 requests by 8 connections", |way| {
        let url = format!("http://{way}/v2/models/{model}/ready");
        let (_, said) = output(std::process::Command::new("h2load").args(["--h1", "-n200", "-c8", &url]));
        said.lines().filter(|line| line.starts_with("status codes:")).collect()
    });
}

#[test]
fn mlserver_is_the_same() {
    let Some(python) = std::env::var_os("STEADFAST_MLSERVER_PYTHON") else {
        println!("not run: conformance with MLServer, because STEADFAST_MLSERVER_PYTHON does not name a python with tests/golden/requirements-mlserver.txt");
        return;
    };
    if program("curl").is_none() || program("h2load").is_none() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    std::fs::copy(folder().join("mlserver_model.py"), work.path().join("mlserver_model.py")).unwrap();
    let (http, grpc, metrics) = (free_port(), free_port(), free_port());
    let write = |name: &str, value: serde_json::Value| std::fs::write(work.path().join(name), value.to_string()).unwrap();
    write("model-settings.json", serde_json::json!({"name": "double", "implementation": "mlserver_model.Double"}));
    write("settings.json", serde_json::json!({"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0}));
    let mut command = std::process::Command::new(std::path::Path::new(&python).with_file_name("mlserver"));
    command.arg("start").arg(work.path()).current_dir(&work).stdout(Stdio::null()).stderr(Stdio::null());
    let pod = Pod::at(http, Process::start(&mut command));
    wait_until_ready(pod.server);
    let mut table = Table::of("curl and h2load, and MLServer");
    oip(&mut table, &pod, "double");
    pod.engines_were_used();
    table.must_be_on_the_page();
}

#[test]
fn triton_is_the_same() {
    if program("curl").is_none() || program("h2load").is_none() {
        return;
    }
    let Some(python) = std::env::var_os("STEADFAST_TRITON_PYTHON") else {
        println!("not run: conformance with Triton, because STEADFAST_TRITON_PYTHON does not name a python with tests/conformance/requirements-triton.txt");
        return;
    };
    let (http, grpc) = (free_port(), free_port());
    let mut command = std::process::Command::new(python);
    command.arg(folder().join("triton_server.py")).args([http.to_string(), grpc.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let pod = Pod::at(http, Process::start(&mut command).asked_to_end());
    wait_until_ready(pod.server);
    let mut table = Table::of("curl, h2load and grpcio, and Triton");
    oip(&mut table, &pod, "double");
    // Its gRPC port has sidecars of its own.
    if script("triton_client.py", "Triton by gRPC").is_some() {
        let calls = Pod::around(([127, 0, 0, 1], grpc).into());
        super::grpc::rows(&mut table, &calls, "triton_client.py", false);
    }
    pod.engines_were_used();
    table.must_be_on_the_page();
}
