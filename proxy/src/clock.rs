//! One clock for everything in the sidecar: nanoseconds of `CLOCK_MONOTONIC`. Deadlines are kept in it because a `timerfd` takes them as they are.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    // The clock always exists on Linux; a kernel without it could not have started tokio either.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

static START_NS: OnceLock<u64> = OnceLock::new();

/// Nanoseconds since the sidecar started (since this was first asked): the clock of its reports.
pub fn since_start_ns() -> u64 {
    now_ns().saturating_sub(*START_NS.get_or_init(now_ns))
}

/// A length of time in nanoseconds; half a millennium at most.
pub fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// The same moment as an [`Instant`], for interfaces that want one.
pub fn instant(at_ns: u64) -> Instant {
    let (now, instant) = (now_ns(), Instant::now());
    if at_ns >= now { instant + Duration::from_nanos(at_ns - now) } else { instant.checked_sub(Duration::from_nanos(now - at_ns)).unwrap_or(instant) }
}
