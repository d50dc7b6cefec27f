//! Memory that faults hold.
//!
//! Invariants: what a policy's faults hold together is within its budget; what all hold is gone when their policies are over; nothing is taken that would be more
//! than half of what the machine, or this process's cgroup, has free, so that the sidecar is not what dies.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::{
    budget::{ActiveFault, HeldBytes},
    policy::CompiledPolicy,
};

/// Memory that is held, and its place in the budgets, until it is dropped.
pub struct Ballast {
    pages: Vec<u8>,
    room: HeldBytes,
    all: Arc<AtomicU64>,
    _active: Option<ActiveFault>,
}

impl Ballast {
    /// Writes every page, which takes about a second for a few gigabytes: not on a thread that forwards requests.
    pub fn fill(&mut self) {
        self.pages = vec![1; usize::try_from(self.room.get()).unwrap_or_default()];
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.all.fetch_sub(self.room.get(), Ordering::AcqRel);
    }
}

/// An armed policy with `memoryPressure`, and what is held for it; `None` while a thread fills it.
type Pressure = (Arc<CompiledPolicy>, Option<Ballast>);

/// All memory that is held.
#[derive(Default)]
pub struct Memory {
    bytes: Arc<AtomicU64>,
    pressure: Arc<Mutex<Vec<Pressure>>>,
}

impl Memory {
    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Room for `bytes` of `policy`, not filled yet; `None` where its budget or the machine has none.
    pub fn reserve(&self, policy: &CompiledPolicy, bytes: u64, active: Option<ActiveFault>) -> Option<Ballast> {
        if bytes > free() / 2 {
            return None;
        }
        let room = policy.budget.take_memory(bytes)?;
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Some(Ballast { pages: Vec::new(), room, all: Arc::clone(&self.bytes), _active: active })
    }

    /// Lets go of what belongs to policies that are not in force, and takes what those want that have come.
    pub fn keep(&self, policies: &[Arc<CompiledPolicy>]) {
        let mut pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        pressure.retain(|(policy, _)| policies.iter().any(|other| Arc::ptr_eq(policy, other)));
        for policy in policies {
            let Some(memory) = &policy.source.spec.memory_pressure else { continue };
            if pressure.iter().any(|(other, _)| Arc::ptr_eq(policy, other)) {
                continue;
            }
            let Some(mut ballast) = self.reserve(policy, memory.bytes.get(), None) else {
                tracing::error!(
                    policy = &*policy.name,
                    bytes = memory.bytes.get(),
                    "there is no room for this memory pressure: it would be more than half of what is free"
                );
                continue;
            };
            pressure.push((Arc::clone(policy), None));
            let (policy, pressure) = (Arc::clone(policy), Arc::clone(&self.pressure));
            let fill = move || {
                ballast.fill();
                let mut pressure = pressure.lock().unwrap_or_else(PoisonError::into_inner);
                // Gone meanwhile: then so is this.
                if let Some((_, held)) = pressure.iter_mut().find(|(other, _)| Arc::ptr_eq(&policy, other)) {
                    *held = Some(ballast);
                }
            };
            if let Err(error) = thread::Builder::new().name("memory".into()).spawn(fill) {
                tracing::error!(%error, "memory pressure could not start");
            }
        }
    }
}

/// What may still be taken on this machine and in this process's cgroup.
fn free() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)).unwrap_or(u64::MAX);
    machine.min(cgroup_free().unwrap_or(u64::MAX))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least of what this process's cgroup (v2) and those above it have left.
fn cgroup_free() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let folder = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let left = |folder: &Path| Some(number(&folder.join("memory.max"))?.saturating_sub(number(&folder.join("memory.current"))?));
    folder.ancestors().take_while(|folder| folder.starts_with("/sys/fs/cgroup")).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use steadfast_api::read::from_yaml;

    use super::*;

    fn policy(more: &str) -> Arc<CompiledPolicy> {
        let text = format!("{{name: p, spec: {{expiresAfter: 1h, budget: {{concurrent: 9, share: 100%, memory: 3Mi}}{more}}}}}");
        Arc::new(CompiledPolicy::new(from_yaml("policy", &text).unwrap(), "", 0).unwrap())
    }

    #[test]
    fn what_is_held_is_within_the_budget_and_comes_back() {
        let (memory, policy) = (Memory::default(), policy(""));
        let first = memory.reserve(&policy, 2 << 20, None).unwrap();
        assert!(memory.reserve(&policy, 2 << 20, None).is_none());
        assert_eq!(memory.held(), 2 << 20);
        drop(first);
        assert_eq!(memory.held(), 0);
        assert!(memory.reserve(&policy, 3 << 20, None).is_some());
    }

    #[test]
    fn nothing_is_taken_that_the_machine_does_not_have() {
        let text = "{name: p, spec: {expiresAfter: 1h, budget: {concurrent: 9, share: 100%, memory: 1024Gi}}}";
        let policy = CompiledPolicy::new(from_yaml("policy", text).unwrap(), "", 0).unwrap();
        assert!(Memory::default().reserve(&policy, 1 << 40, None).is_none());
    }

    #[test]
    fn pressure_is_held_while_its_policy_is_armed() {
        let (memory, policy) = (Memory::default(), policy(", memoryPressure: {bytes: 1Mi}"));
        memory.keep(&[Arc::clone(&policy)]);
        memory.keep(&[Arc::clone(&policy)]);
        assert_eq!(memory.held(), 1 << 20);
        memory.keep(&[]);
        let begun = Instant::now();
        while memory.held() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "it was not let go of");
            thread::yield_now();
        }
    }

    #[test]
    fn what_the_kernel_says_is_free_is_understood() {
        assert_eq!(available("MemTotal:  100 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemTotal:  100 kB\n"), None);
    }
}
