//! The measured process from outside: orders to it, and what the kernel says of it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{SysconfVar, sysconf},
};

use crate::{Failure, clock, controller::Hello, io};

/// Lets this process, and what it starts, have so many files open.
pub(crate) fn allow_files(count: u64) -> Result<(), Failure> {
    let fail = |error: nix::Error| Failure::Other(format!("{count} open files are needed and not allowed ({error}): ulimit -n {count}"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fail)?;
    if soft >= count { Ok(()) } else { setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).map_err(fail) }
}

/// The controller. Dropping it ends it.
pub(crate) struct Controller {
    child: Child,
    orders: ChildStdin,
    pub(crate) hello: Hello,
}

impl Controller {
    pub(crate) fn start() -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(io("this program"))?;
        let mut child = Command::new(program).arg("--controller").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(io("the controller"))?;
        let gone = || Failure::Other("the controller has no standard streams".to_owned());
        let (orders, mut answers) = (child.stdin.take().ok_or_else(gone)?, BufReader::new(child.stdout.take().ok_or_else(gone)?));
        let mut line = String::new();
        answers.read_line(&mut line).map_err(io("the controller"))?;
        let hello = serde_json::from_str(&line).map_err(|error| Failure::Other(format!("the controller said {line:?}: {error}")))?;
        Ok(Self { child, orders, hello })
    }

    /// Asks for a policy for the pods of these numbers; returns the moment before.
    pub(crate) fn arm(&mut self, from: usize, to: usize, name: &str) -> Result<u64, Failure> {
        let asked = clock::now();
        writeln!(self.orders, "{from} {to} {name}").map_err(io("the controller"))?;
        Ok(asked)
    }

    /// CPU time that it has used, user and system.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        let stat = self.read("stat")?;
        // The name of the program stands in brackets and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks: u64 = [11, 12].iter().filter_map(|index| fields.get(*index)?.parse::<u64>().ok()).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as u64;
        Ok(Duration::from_nanos(ticks * 1_000_000_000 / per_second))
    }

    /// Bytes that it holds in memory.
    pub(crate) fn rss(&self) -> Result<u64, Failure> {
        let status = self.read("status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| Failure::Other("the kernel does not tell the controller's memory".to_owned()))
    }

    fn read(&self, file: &str) -> Result<String, Failure> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).map_err(io("the controller is gone"))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
