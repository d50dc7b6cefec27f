//! Finds the processes of a run by their environment, whoever started them: a model server's own children, and children of those, inherit it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// In the environment of every process of a run.
pub const RUN_VARIABLE: &str = "STEADFAST_RUN";

const PAUSE: Duration = Duration::from_millis(10);

/// Processes of this user whose environment names `run`, except this one.
pub fn processes_of(run: &str) -> Vec<Pid> {
    let wanted = format!("{RUN_VARIABLE}={run}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // A process that ended between listing and reading, and one of another user, cannot be read; neither is of this run.
    let is_of_run = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
    };
    pids.filter(|pid| *pid != std::process::id() as i32).filter(is_of_run).map(Pid::from_raw).collect()
}

/// Kills the processes of `run` until none is left, for at most `within`. Returns what is left then.
///
/// A process that is just being started carries its parent's environment until it runs its own program, so nothing found must be true twice.
pub fn kill_all(run: &str, within: Duration) -> Vec<Pid> {
    let deadline = Instant::now() + within;
    let mut none_found = 0;
    loop {
        let found = processes_of(run);
        none_found = if found.is_empty() { none_found + 1 } else { 0 };
        if none_found == 2 {
            return Vec::new();
        }
        if Instant::now() >= deadline {
            return found;
        }
        for pid in found {
            // It may have ended meanwhile.
            let _ = kill(pid, Signal::SIGKILL);
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn children_of_children_are_found_and_killed() {
        let run = format!("scan-test-{}", std::process::id());
        // The grandchild is in a session of its own: no process group and no parent would lead to it.
        let mut child = Command::new("sh").args(["-c", "setsid sleep 60 & exec sleep 60"]).env(RUN_VARIABLE, &run).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        // A process shows no environment for the moment in which it becomes another program.
        let mut found = 0;
        while found < 2 && Instant::now() < deadline {
            thread::sleep(PAUSE);
            found = processes_of(&run).len();
        }
        assert_eq!(found, 2);
        assert_eq!(kill_all(&run, Duration::from_secs(5)), []);
        child.wait().unwrap();
        assert_eq!(processes_of(&run), []);
    }
}
