//! One process of a pod or node: in a process group of its own, on its node's cores, and dead as soon as its runner is.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Instant,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::{Pid, getppid},
};
use tokio::process::{Child, ChildStdout, Command};

use super::{log::Log, scan::RUN_VARIABLE};

/// What to start.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub variables: Vec<(String, String)>,
    pub run: String,
    pub folder: PathBuf,
    /// Empty: any.
    pub cores: Vec<usize>,
    /// Standard output comes to us instead of going to the log.
    pub speaks: bool,
}

/// A process that was started, with whatever it starts in turn. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Pid,
    pub started: Instant,
    ended: bool,
}

impl Launch {
    /// Starts it. Call from a thread that lives as long as the run: the kernel kills the process when that thread ends.
    #[allow(unsafe_code)]
    pub(super) fn start(&self, log: &Log) -> io::Result<Process> {
        let mut cores = CpuSet::new();
        for core in &self.cores {
            cores.set(*core)?;
        }
        let pinned = !self.cores.is_empty();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.folder).env(RUN_VARIABLE, &self.run).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stderr(log.input()?).stdout(if self.speaks { Stdio::piped() } else { log.input()? });
        command.process_group(0).kill_on_drop(true);
        let runner = Pid::this();
        // SAFETY: between fork and exec only system calls are made, on data that was made before; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                // The runner may have ended before the line above.
                if getppid() != runner {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if pinned {
                    sched_setaffinity(Pid::from_raw(0), &cores)?;
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let started = Instant::now();
        // A child that was just started and not waited for has a process ID.
        let group = child.id().map(|id| Pid::from_raw(id as i32)).ok_or_else(|| io::Error::other("the process has no ID"))?;
        Ok(Process { child, group, started, ended: false })
    }
}

impl Process {
    pub(super) const fn pid(&self) -> Pid {
        self.group
    }

    /// Its standard output, once, if it [speaks](Launch::speaks).
    pub(super) const fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// To the process and everything it started in its group. A group that is gone is none to signal.
    pub(super) fn signal(&self, signal: Signal) {
        if !self.ended {
            let _ = killpg(self.group, signal);
        }
    }

    /// Returns when the process has ended; what it started and left behind is killed then, as with the first process of a container. Says how it ended.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, io::Error> {
        let status = self.child.wait().await;
        if !self.ended {
            let _ = killpg(self.group, Signal::SIGKILL);
            self.ended = true;
        }
        status
    }

    /// Kills and waits.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.ended().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// How a process ended, in words.
pub(super) fn in_words(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => {
                let name = Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned());
                format!("killed by {name}")
            }
            (None, None) => "ended".to_owned(),
        },
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

/// Largest resident memory of a process so far, in bytes.
pub(super) fn peak_memory(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
