//! A clock that both processes share: nanoseconds of CLOCK_MONOTONIC.

use nix::time::{ClockId, clock_gettime};

/// Now; 0 should the kernel have no such clock.
pub(crate) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Milliseconds between two of its moments.
pub(crate) fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}
