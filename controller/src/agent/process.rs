//! A container's main process, found by the container's id in its cgroup's path, whatever runtime made it.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Kills it (SIGKILL); kubelet starts the container again. Returns what was done, in words.
///
/// # Errors
/// When there is no such process on this node, or it may not be killed.
pub(super) fn kill_container(pod_uid: &str, container_id: &str) -> Result<String, String> {
    if container_id.len() < 12 || !container_id.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(format!("spec.fault.containerKill.containerId: {container_id:?} is not a container's id"));
    }
    let main = main_process(Path::new("/proc"), container_id)
        .ok_or_else(|| format!("no process of container {container_id} (pod {pod_uid}) runs on this node; the agent needs hostPID"))?;
    kill(Pid::from_raw(main), Signal::SIGKILL).map_err(|error| format!("process {main} of container {container_id} cannot be killed: {error}"))?;
    Ok(format!("process {main} of container {} killed by SIGKILL", &container_id[..12]))
}

/// Of the processes in the container's cgroup, the one whose parent is not.
fn main_process(proc: &Path, container_id: &str) -> Option<i32> {
    let pids = fs::read_dir(proc).ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: i32| fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).is_ok_and(|cgroup| cgroup.contains(container_id));
    let members: Vec<i32> = pids.filter(|pid| inside(*pid)).collect();
    let parent = |pid: i32| {
        let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
        // After the name, which may hold anything: state, parent.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    members.iter().copied().filter(|pid| parent(*pid).is_some_and(|parent| !members.contains(&parent))).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_process_is_the_one_whose_parent_is_outside() {
        let proc = tempfile::TempDir::new().unwrap();
        let process = |pid: i32, parent: i32, cgroup: &str| {
            let folder = proc.path().join(pid.to_string());
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
            fs::write(folder.join("stat"), format!("{pid} (a (b) c) S {parent} 1 1")).unwrap();
        };
        let id = "0123456789abcdef";
        process(7, 1, "/other");
        process(90, 7, &format!("/kubepods/pod1/cri-containerd-{id}.scope"));
        process(80, 90, &format!("/kubepods/pod1/cri-containerd-{id}.scope"));
        assert_eq!(main_process(proc.path(), id), Some(90));
        assert_eq!(main_process(proc.path(), "fedcba9876543210"), None);
        assert!(kill_container("u", "../../etc").unwrap_err().contains("not a container's id"));
    }
}
