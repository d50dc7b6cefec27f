//! Nothing of a run outlives it, however it ends.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use steadfast_api::{Percent, Span, test::NodeFailureBy};
use steadfast_controller::platform::{Order, Platform, local::scan};

use crate::stage::{ONE, SERVE, STEADFAST, Stage, file, processes_with};

#[tokio::test(flavor = "multi_thread")]
async fn closing_in_the_middle_of_everything_leaves_no_process_port_or_file() {
    let stage = Stage::serving(3, 3).await;
    let service = stage.platform.service();
    let burn = Order::Burn { nodes: vec!["node-2".into()], load: Percent::from_ratio(0.2) };
    stage.platform.apply(burn, Span::from_secs(60)).await.unwrap();
    stage
        .platform
        .apply(Order::LoseNodes { nodes: vec!["node-2".into(), "node-1".into()], by: NodeFailureBy::Auto, lasts: Span::from_secs(60) }, Span::from_secs(60))
        .await
        .unwrap();
    let closing = Instant::now();
    assert_eq!(stage.platform.close().await, Vec::<String>::new());
    println!("closed in {:?}", closing.elapsed());
    assert_eq!(scan::processes_of(&stage.run), []);
    assert!(!stage.run_dir.exists());
    assert!(TcpStream::connect(service).is_err(), "the gateway's port is closed");
    while stage.platform.next_change().await.is_some() {}
    assert_eq!(stage.platform.close().await, Vec::<String>::new(), "a second time there is nothing to do");
}

/// A run by the command line in a folder of its own. Killed with the test, should that fail.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Runner {
    /// Returns once its pods' processes run, with the run's ID.
    fn start(folder: &Path) -> (Self, String) {
        let test = folder.join("test.yaml");
        fs::write(&test, file(2, 2, SERVE).replace("  steps: []\n", "  baseline: 60s\n  steps: [{name: lost, nodeFailure: {nodes: {mode: one}}, for: 60s}]\n"))
            .unwrap();
        let mut command = Command::new(STEADFAST);
        command.arg("run").arg(&test).arg("--report-dir").arg(folder.join("report")).current_dir(env!("CARGO_MANIFEST_DIR"));
        let runner = Self(command.env("TMPDIR", folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            // Two sidecars and two servers.
            if let Some(run) = children_run(runner.0.id()).filter(|run| scan::processes_of(run).len() >= 4) {
                return (runner, run);
            }
            assert!(Instant::now() < deadline, "the runner does not start its pods");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The run that the children of `parent` belong to.
fn children_run(parent: u32) -> Option<String> {
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|ppid| ppid.trim() == parent.to_string()))
    })
    .find_map(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        environment.split(|byte| *byte == 0).find_map(|entry| Some(String::from_utf8_lossy(entry.strip_prefix(b"STEADFAST_RUN=")?).into_owned()))
    })
}

fn run_folders(folder: &Path) -> Vec<PathBuf> {
    let run_dirs = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    run_dirs.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("steadfast-"))).collect()
}

#[test]
fn sigkill_of_the_runner_leaves_no_process_and_no_file() {
    let _one = ONE.blocking_lock();
    let folder = tempfile::tempdir().unwrap();
    let (mut runner, run) = Runner::start(folder.path());
    assert_eq!(run_folders(folder.path()).len(), 1);
    // As on a node that is lost: nobody there can act on anything any more.
    for pid in processes_with(&format!("STEADFAST_RUN={run}"), "proxy") {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    let killed = Instant::now();
    runner.0.kill().unwrap();
    runner.0.wait().unwrap();
    while !(scan::processes_of(&run).is_empty() && run_folders(folder.path()).is_empty()) {
        assert!(killed.elapsed() < Duration::from_secs(5), "left: {:?}, {:?}", scan::processes_of(&run), run_folders(folder.path()));
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("nothing left {:?} after SIGKILL", killed.elapsed());
}
