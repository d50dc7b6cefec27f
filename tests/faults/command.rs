//! `steadfast fault` against a running sidecar.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::harness::{Server, Sidecar, ask, client, get};

fn fault(sidecar: &Sidecar, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.arg("fault").args(args).args(["--admin", &sidecar.admin.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(sidecar: &Sidecar, args: &[&str]) -> Output {
    let mut command = fault(sidecar, args);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn written(folder: &Path, name: &str, rest: &str) -> String {
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, format!("name: {name}\nspec: {{expiresAfter: 1h, budget: {{concurrent: 9, share: 100%}}{rest}}}\n")).unwrap();
    file.display().to_string()
}

#[tokio::test]
async fn faults_are_armed_listed_watched_and_disarmed_by_name_or_all() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let folder = tempfile::tempdir().unwrap();
    let aborts = written(folder.path(), "aborts", ", rules: [{faults: [{abort: {httpStatus: 418}}]}]");
    let other = written(folder.path(), "other", "");
    assert_eq!(text(&run(&sidecar, &["list"]).await.stdout), "nothing is armed\n");
    let armed = run(&sidecar, &["arm", &aborts, &other]).await;
    assert!(armed.status.success() && text(&armed.stdout).contains("aborts") && text(&armed.stdout).contains("other"), "{armed:?}");
    let watching = fault(&sidecar, &["watch", "--for", "3s"]).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(ask(&client(), get(&sidecar.url("/seen"), &[])).await.status, 418);
    let watched = tokio::task::spawn_blocking(move || watching.wait_with_output().unwrap()).await.unwrap();
    let line = text(&watched.stdout);
    assert!(line.starts_with("abort ") && line.contains("aborts") && line.trim_end().ends_with("GET /seen"), "{line:?}");
    let listed = run(&sidecar, &["list", "--output", "json"]).await;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["policies"][0]["injected"]["abort"], 1);
    let left = run(&sidecar, &["disarm", "aborts"]).await;
    assert!(text(&left.stdout).contains("other") && !text(&left.stdout).contains("aborts"), "{left:?}");
    assert_eq!(ask(&client(), get(&sidecar.url("/seen"), &[])).await.status, 200);
    assert_eq!(text(&run(&sidecar, &["disarm"]).await.stdout), "nothing is armed\n");
    let lasting = written(folder.path(), "lasting", ", refuse: true, cpuPressure: {load: 5%}");
    let armed = run(&sidecar, &["arm", &lasting]).await;
    assert!(text(&armed.stdout).contains("port closed, burns CPU"), "{armed:?}");
}

#[tokio::test]
async fn what_cannot_be_done_says_why_and_what_would_be_right() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let folder = tempfile::tempdir().unwrap();
    let bad = written(folder.path(), "bad", ", rules: [{faults: [{stall: {for: 0s}}]}]");
    let unread = written(folder.path(), "unread", ", rules: [{faults: [{melt: {}}]}]");
    for (args, code, says) in [
        (&["arm", &bad][..], 2, "spec.rules[0].faults[0].stall.for"),
        (&["arm", &unread], 2, "melt"),
        (&["arm", "/nowhere.yaml"], 2, "/nowhere.yaml"),
        (&["disarm", "nobody"], 2, "nobody"),
    ] {
        let ran = run(&sidecar, args).await;
        assert!(ran.status.code() == Some(code) && text(&ran.stderr).contains(says), "{args:?}: {ran:?}");
    }
    // The port for users is not the admin port.
    for (admin, says) in [(sidecar.data.to_string(), "admin port"), ("127.0.0.1:1".to_owned(), "is a sidecar running there")] {
        let list = move || Command::new(env!("CARGO_BIN_EXE_steadfast")).args(["fault", "list", "--admin", &admin]).output().unwrap();
        let ran = tokio::task::spawn_blocking(list).await.unwrap();
        assert!(ran.status.code() == Some(1) && text(&ran.stderr).contains(says), "{ran:?}");
    }
}
