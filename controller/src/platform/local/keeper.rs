//! The keeper: a process that outlives the runner by a moment, so that nothing else of a run does.
//!
//! It holds the other end of a pipe from the runner. When that end closes, because the run is over or because the runner was killed in whatever way, the
//! keeper kills every process of the run and removes the run's folder. It has a session of its own and ignores the signals of a terminal.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{SigHandler, Signal, signal},
    unistd::setsid,
};
use tokio::process::{Child, Command};

use super::scan;

/// File in a run's folder that says whose it is: the keeper removes no other folder.
pub const MARKER: &str = "run";
/// A process that cannot be killed for this long hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_mins(1);
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The keeper's whole life: returns once the run is over and nothing of it is left, with what could not be removed.
///
/// # Errors
/// The folder is not this run's, or could not be removed; processes that could not be killed.
pub fn watch(run: &str, folder: &Path) -> io::Result<()> {
    // Fails only for the leader of a group, who has what it needs already when started by hand.
    let _ = setsid();
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
        ignore(ignored)?;
    }
    let mut nothing = [0; 64];
    // An error on the pipe means the same as its end.
    while matches!(io::stdin().read(&mut nothing), Ok(1..)) {}
    let left = scan::kill_all(run, KILL_WITHIN);
    remove(run, folder)?;
    if left.is_empty() { Ok(()) } else { Err(io::Error::other(format!("processes {left:?} of run {run} cannot be killed"))) }
}

#[allow(unsafe_code)]
fn ignore(which: Signal) -> io::Result<()> {
    // SAFETY: `SigIgn` installs no handler of ours, so nothing runs in signal context.
    unsafe { signal(which, SigHandler::SigIgn) }.map(drop).map_err(io::Error::from)
}

/// Makes the folder of a run.
pub(super) fn make(run: &str, folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::create_dir(folder)?;
    fs::write(folder.join(MARKER), run)
}

/// Removes it with everything in it. One that is gone already is as it should be.
pub(super) fn remove(run: &str, folder: &Path) -> io::Result<()> {
    match fs::read_to_string(folder.join(MARKER)) {
        Ok(owner) if owner == run => fs::remove_dir_all(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(()),
        Ok(_) | Err(_) => Err(io::Error::other(format!("{} is not the folder of run {run}: its file {MARKER:?} does not say so", folder.display()))),
    }
}

/// The runner's end.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
}

impl Keeper {
    pub(super) fn start(exe: &Path, run: &str, folder: &Path) -> io::Result<Self> {
        let mut command = Command::new(exe);
        command.arg("keeper").args(["--run", run]).arg("--dir").arg(folder);
        // Its folder may be removed while it lives, and the runner's terminal may be gone when it has something to say.
        command.current_dir("/").env_remove(scan::RUN_VARIABLE).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: command.spawn()? })
    }

    /// Tells it that the run is over and waits until it has seen for itself. Returns what it could not do.
    pub(super) async fn finish(mut self) -> Option<String> {
        drop(self.child.stdin.take());
        match tokio::time::timeout(FINISH_WITHIN, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => None,
            Ok(Ok(status)) => Some(format!("the keeper ended with {status}")),
            Ok(Err(error)) => Some(format!("the keeper cannot be waited for: {error}")),
            Err(_) => Some("the keeper still finds processes of the run".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_is_removed_that_is_not_the_runs_own() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/run-1");
        make("run-1", &folder).unwrap();
        assert!(make("run-1", &folder).is_err(), "a folder that is there already is somebody's");
        assert!(remove("run-2", &folder).is_err() && folder.exists());
        assert!(remove("run-1", parent.path()).is_err() && parent.path().exists());
        remove("run-1", &folder).unwrap();
        assert!(!folder.exists());
        remove("run-1", &folder).unwrap();
    }
}
