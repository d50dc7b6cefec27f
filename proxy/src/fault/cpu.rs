//! Burning CPU exactly: each thread closes the loop on its own `CLOCK_THREAD_CPUTIME_ID` over 5 ms windows.
//!
//! Invariants: a burn always ends by itself at its deadline; dropping a [`Burn`] ends it sooner, within one window. A burn never fills a cgroup's CPU quota:
//! that would throttle the proxy itself, so the target is lowered to leave [`QUOTA_LEFT`] of it, and the outcome says so.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

const WINDOW: Duration = Duration::from_millis(5);
/// A burner that was kept from its core makes up for at most this much, so that contention now does not become a storm later.
const DEBT_MAX: Duration = Duration::from_millis(50);
/// Share of the cgroup's quota that burners leave to everybody else.
const QUOTA_LEFT: f64 = 0.1;
/// Threads of one burn.
pub const THREADS_MAX: usize = 1024;

/// What to burn.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Share of each core, 0.0 to 1.0.
    pub load: f64,
    /// How many threads. With `pin`, its length.
    pub threads: usize,
    /// Cores to stay on, one thread each; empty: the kernel decides.
    pub pin: Vec<usize>,
    /// It ends then, whatever happens.
    pub duration: Duration,
}

/// How a burn went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Share of each core that was asked for.
    pub asked: f64,
    /// Share that was burned, as a mean over the threads.
    pub achieved: f64,
    pub seconds: f64,
    /// Why `achieved` stayed behind, where it did.
    pub limited_by: Option<String>,
}

/// Why a burn could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BurnError {
    #[error("load {0} is not a share of a core: give more than 0 and at most 1")]
    Load(f64),
    #[error("{0} threads: give 1 to {THREADS_MAX}")]
    Threads(usize),
    #[error("core {core} cannot be used by this process: {why}")]
    Pin { core: usize, why: nix::Error },
    #[error("a burner thread could not start: {0}")]
    Thread(#[from] io::Error),
}

/// A burn under way.
pub struct Burn {
    stop: Arc<AtomicBool>,
    deadline_ns: Arc<AtomicU64>,
    /// CPU time of all threads that nobody has asked for yet.
    burned_ns: Arc<AtomicU64>,
    begun: Instant,
    asked: f64,
    quota_note: Option<String>,
    threads: Vec<JoinHandle<Burned>>,
}

struct Burned {
    cpu: Duration,
    wall: Duration,
}

impl Burn {
    /// Starts the threads. They end at `target.duration`, at [`Burn::stop`] or when this is dropped.
    pub fn start(target: &Target) -> Result<Self, BurnError> {
        Self::start_holding(target, &Arc::new(()))
    }

    /// As [`Burn::start`]; `held` is dropped when the last thread has ended.
    pub fn start_holding<H: Send + Sync + 'static>(target: &Target, held: &Arc<H>) -> Result<Self, BurnError> {
        if !(target.load > 0.0 && target.load <= 1.0) {
            return Err(BurnError::Load(target.load));
        }
        let count = if target.pin.is_empty() { target.threads } else { target.pin.len() };
        if count == 0 || count > THREADS_MAX {
            return Err(BurnError::Threads(count));
        }
        for core in &target.pin {
            cpu_set(*core).map_err(|why| BurnError::Pin { core: *core, why })?;
        }
        let (load, quota_note) = within_quota(target.load, count, quota_cores());
        let stop = Arc::new(AtomicBool::new(false));
        let deadline_ns = Arc::new(AtomicU64::new(crate::clock::now_ns().saturating_add(crate::clock::ns(target.duration))));
        let (begun, burned_ns) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let mut burn = Self {
            stop: Arc::clone(&stop),
            deadline_ns: Arc::clone(&deadline_ns),
            burned_ns: Arc::clone(&burned_ns),
            begun,
            asked: target.load,
            quota_note,
            threads: Vec::new(),
        };
        for index in 0..count {
            let (stop, deadline_ns, burned_ns) = (Arc::clone(&stop), Arc::clone(&deadline_ns), Arc::clone(&burned_ns));
            let (core, held) = (target.pin.get(index).copied(), Arc::clone(held));
            let thread = std::thread::Builder::new().name(format!("burner-{index}")).stack_size(64 * 1024).spawn(move || {
                if let Some(set) = core.and_then(|core| cpu_set(core).ok())
                    && let Err(why) = sched_setaffinity(Pid::from_raw(0), &set)
                {
                    tracing::warn!(core, %why, "burner could not be pinned and runs where the kernel puts it");
                }
                let burned = hold(load, &stop, &deadline_ns, &burned_ns);
                drop(held);
                burned
            })?;
            burn.threads.push(thread);
        }
        Ok(burn)
    }

    /// Lets it last until `deadline_ns` of [`crate::clock`] at least.
    pub fn extend(&self, deadline_ns: u64) {
        self.deadline_ns.fetch_max(deadline_ns, Ordering::Relaxed);
    }

    /// Lets it end at `deadline_ns` of [`crate::clock`] at the latest.
    pub fn shorten(&self, deadline_ns: u64) {
        self.deadline_ns.fetch_min(deadline_ns, Ordering::Relaxed);
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// CPU time of its threads since this was asked last, to a window.
    pub fn burned_ns(&self) -> u64 {
        self.burned_ns.swap(0, Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Ends it and tells how it went.
    pub fn stop(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for its end and tells how it went.
    pub fn join(&mut self) -> Outcome {
        let burned: Vec<Burned> = self.threads.drain(..).filter_map(|thread| thread.join().ok()).collect();
        let wall: f64 = burned.iter().map(|burned| burned.wall.as_secs_f64()).sum();
        let cpu: f64 = burned.iter().map(|burned| burned.cpu.as_secs_f64()).sum();
        let achieved = if wall > 0.0 { cpu / wall } else { 0.0 };
        let limited_by = (self.asked - achieved > 0.005)
            .then(|| self.quota_note.clone().unwrap_or_else(|| "other processes had the cores: the burners could not get them".to_owned()));
        Outcome { asked: self.asked, achieved, seconds: self.begun.elapsed().as_secs_f64(), limited_by }
    }
}

impl Drop for Burn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn cpu_set(core: usize) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(core)?;
    // Asking for a core that this process may not use fails only when the thread asks; look first.
    if nix::sched::sched_getaffinity(Pid::from_raw(0))?.is_set(core)? { Ok(set) } else { Err(nix::Error::EINVAL) }
}

/// The load that leaves some of the quota, and a note when that is less than was asked.
fn within_quota(load: f64, threads: usize, quota: Option<f64>) -> (f64, Option<String>) {
    let Some(quota) = quota else { return (load, None) };
    let allowed = quota * (1.0 - QUOTA_LEFT) / threads as f64;
    if load <= allowed {
        return (load, None);
    }
    let note = format!("the cgroup's CPU quota of {quota:.2} cores: burning more than {allowed:.2} on each of {threads} threads would stall this process too");
    tracing::warn!(load, allowed, quota, "CPU burn lowered to stay within the cgroup's quota");
    (allowed, Some(note))
}

/// CPU quota of this process's cgroup and of those above it, in cores; `None` without one.
pub fn quota_cores() -> Option<f64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<f64> = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            names if names.split(',').any(|name| name == "cpu") => "/sys/fs/cgroup/cpu",
            _ => continue,
        };
        // Inside a container the path may name folders of the host that are not mounted here; its root is, and every ancestor counts.
        for folder in Path::new(path).ancestors() {
            let folder = Path::new(root).join(folder.strip_prefix("/").unwrap_or(folder));
            if let Some(quota) = quota_of(&folder) {
                least = Some(least.map_or(quota, |least| least.min(quota)));
            }
        }
    }
    least
}

fn quota_of(folder: &Path) -> Option<f64> {
    if let Ok(text) = fs::read_to_string(folder.join("cpu.max")) {
        return parse_cpu_max(&text);
    }
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<f64>().ok();
    let (quota, period) = (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// `cpu.max` of cgroup v2: `max 100000` or `50000 100000`.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Burns `load` of one core until told to stop. Works towards `load × time so far`, so an error of one window is made good in the next.
fn hold(load: f64, stop: &AtomicBool, deadline_ns: &AtomicU64, burned_ns: &AtomicU64) -> Burned {
    let (begun, cpu_begun) = (Instant::now(), thread_cpu());
    let burned = || thread_cpu().saturating_sub(cpu_begun);
    let mut window_end = begun;
    let mut told = Duration::ZERO;
    let mut tell = |burned: Duration| burned_ns.fetch_add(crate::clock::ns(burned.saturating_sub(std::mem::replace(&mut told, burned))), Ordering::Relaxed);
    // CPU time that was written off because it could not be had.
    let mut forgiven = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) && crate::clock::now_ns() < deadline_ns.load(Ordering::Relaxed) {
        window_end += WINDOW;
        let due = (window_end - begun).mul_f64(load);
        let debt = due.saturating_sub(burned() + forgiven);
        forgiven += debt.saturating_sub(DEBT_MAX);
        while burned() + forgiven < due && Instant::now() < window_end {
            spin();
        }
        tell(burned());
        let left = window_end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Late already: go on from here rather than run after windows that have passed.
            let late = window_end.elapsed();
            if late > DEBT_MAX {
                forgiven += late.mul_f64(load);
                window_end += late;
            }
        } else {
            std::thread::sleep(left);
        }
    }
    Burned { cpu: burned(), wall: begun.elapsed() }
}

/// About 10 µs of arithmetic that the compiler cannot remove.
fn spin() {
    let mut value = 0.5_f64;
    for _ in 0..2_000 {
        value = std::hint::black_box(value).mul_add(3.7, -value * value * 3.7);
    }
    std::hint::black_box(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burn_never_fills_the_quota() {
        assert_eq!(within_quota(0.9, 2, None), (0.9, None));
        assert_eq!(within_quota(0.4, 2, Some(2.0)), (0.4, None));
        let (load, note) = within_quota(1.0, 2, Some(1.0));
        assert!((load - 0.45).abs() < 1e-9 && note.unwrap().contains("quota of 1.00"));
    }

    #[test]
    fn quotas_are_read_as_cores() {
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(parse_cpu_max("nonsense"), None);
    }

    #[test]
    fn an_impossible_burn_is_refused() {
        let target = |load, threads, pin: &[usize]| Target { load, threads, pin: pin.to_vec(), duration: Duration::from_millis(1) };
        assert!(matches!(Burn::start(&target(0.0, 1, &[])), Err(BurnError::Load(_))));
        assert!(matches!(Burn::start(&target(1.1, 1, &[])), Err(BurnError::Load(_))));
        assert!(matches!(Burn::start(&target(0.5, 0, &[])), Err(BurnError::Threads(0))));
        assert!(matches!(Burn::start(&target(0.5, 1, &[1023])), Err(BurnError::Pin { core: 1023, .. })));
    }

    #[test]
    fn a_burn_ends_by_itself_and_when_it_is_told_to() {
        let target = Target { load: 0.2, threads: 1, pin: vec![], duration: Duration::from_millis(100) };
        let begun = Instant::now();
        let outcome = Burn::start(&target).unwrap().join();
        assert!(begun.elapsed() >= Duration::from_millis(95) && begun.elapsed() < Duration::from_secs(2), "{outcome:?}");
        let begun = Instant::now();
        Burn::start(&Target { duration: Duration::from_mins(1), ..target }).unwrap().stop();
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
