//! What a sidecar costs its machine.

use std::time::Duration;

use crate::harness::Sidecar;

impl Sidecar {
    /// What the kernel says that it has: kilobytes of memory, and CPU time.
    pub(crate) fn usage(&self) -> (u64, Duration) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok()).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let ticks: u64 = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        // The kernel tells it in hundredths of a second.
        (memory, Duration::from_millis(ticks * 10))
    }
}
