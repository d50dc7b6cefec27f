//! Processes that are measured: started on their core, looked at from outside, ended when they are dropped.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    unistd::Pid,
};

use crate::{Failure, io};

/// The two cores of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Of whoever is measured.
    pub(crate) proxy: usize,
    /// Of the server and of those who ask.
    pub(crate) load: usize,
}

impl Cores {
    /// The first two that this process may use.
    pub(crate) fn find() -> Result<Self, Failure> {
        let set = sched_getaffinity(Pid::from_raw(0)).map_err(|error| Failure::Other(format!("which cores there are is not told: {error}")))?;
        let mut allowed = (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false));
        match (allowed.next(), allowed.next()) {
            (Some(proxy), Some(load)) => Ok(Self { proxy, load }),
            _ => Err(Failure::Other("two cores are needed: one for the proxy, one for those who ask and answer".to_owned())),
        }
    }
}

/// From here on this thread, and what it starts, stays on `cores`.
pub(crate) fn stay_on(cores: &[usize]) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    let fail = |error: nix::Error| Failure::Other(format!("cores {cores:?} cannot be had: {error}"));
    cores.iter().try_for_each(|core| set.set(*core)).map_err(fail)?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(fail)
}

/// Lets this process, and what it starts, have so many files open.
pub(crate) fn allow_files(count: u64) -> Result<(), Failure> {
    let fail = |error: nix::Error| Failure::Other(format!("{count} open files are needed and not allowed ({error}): ulimit -n {count}"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fail)?;
    if soft >= count { Ok(()) } else { setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).map_err(fail) }
}

/// One process. Dropping it ends it.
pub(crate) struct Process(Child);

impl Process {
    /// Starts `command` on the proxies' core.
    pub(crate) fn start(mut command: Command, cores: Cores) -> Result<Self, Failure> {
        // Nobody is left behind, however this process ends.
        #[expect(unsafe_code, reason = "what runs between fork and exec is for us to vouch for")]
        // SAFETY: one system call, which allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        stay_on(&[cores.proxy])?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        stay_on(&[cores.load])?;
        child.map(Self).map_err(io("a process that is measured"))
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.0.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// CPU time, user's and system's, of all its threads, in nanoseconds as the scheduler counts them: clock ticks are too coarse for runs of seconds.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).map_err(io("a process that is measured is gone"))?;
        let mut all = 0;
        for thread in threads.flatten() {
            // A thread may end while we look.
            let Ok(told) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let ran = told.split(' ').next().and_then(|ran| ran.parse::<u64>().ok());
            all += ran.ok_or_else(|| Failure::Other(format!("the kernel does not tell how long a thread ran: {told:?}")))?;
        }
        Ok(Duration::from_nanos(all))
    }

    /// Bytes that it holds in memory: all, and those that no file stands behind.
    pub(crate) fn memory(&self) -> Result<(u64, u64), Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).map_err(io("a process that is measured is gone"))?;
        let bytes = |name: &str| {
            let kib = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.map(|kib| kib * 1024).ok_or_else(|| Failure::Other(format!("the kernel does not tell {name}")))
        };
        Ok((bytes("VmRSS:")?, bytes("RssAnon:")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
