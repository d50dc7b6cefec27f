//! One machine: from a file to a report on the local platform.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use steadfast_api::report::Report;
use tokio::sync::watch;

use super::{
    conclude::{About, conclude},
    plan::Plan,
    progress::Progress,
    run::run,
};
use crate::platform::{
    PlatformError,
    local::{LocalOptions, LocalPlatform},
};

/// What a run on this machine needs beside the plan.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `steadfast` binary, which is every child process.
    pub exe: PathBuf,
    /// Where the pods' command lines run.
    pub work_dir: PathBuf,
    /// Command that runs it again.
    pub rerun: String,
}

/// Runs `plan`, and leaves nothing behind but the report.
///
/// # Errors
/// When the platform cannot start.
pub async fn run_local(plan: &Plan, options: Options, interrupt: watch::Receiver<bool>, progress: &watch::Sender<Progress>) -> Result<Report, PlatformError> {
    let run_id = run_id();
    let golden = plan.test.spec.golden.iter().filter_map(|golden| plan.sets.get(&golden.set)).map(|loaded| loaded.directory.clone()).collect();
    let (platform, seen) = LocalPlatform::start(LocalOptions {
        exe: options.exe,
        test: plan.test.clone(),
        golden,
        run_id: run_id.clone(),
        run_dir: std::env::temp_dir().join(format!("steadfast-{run_id}")),
        work_dir: options.work_dir,
    })
    .await?;
    let platform = Arc::new(platform);
    let (mut course, history) = run(plan, Arc::clone(&platform), seen, interrupt, progress, None).await;
    course.notes.extend(platform.notes());
    let dropped = platform.evidence_dropped();
    if dropped > 0 {
        course.notes.push(format!("{dropped} pieces of the sidecars' evidence came faster than they could be read, and are in no figure"));
    }
    Ok(conclude(plan, course, &history, About { run_id, rerun: options.rerun, golden_sets: Vec::new() }))
}

/// Unique among the runs of this machine.
fn run_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", now.as_millis(), std::process::id())
}
