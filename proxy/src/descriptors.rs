//! File descriptors: as many as the sidecar may have, and no more connections than those are enough for, so that one that is accepted can also be served.

use std::io;

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

/// For everything but users' connections: listeners, timers, runtimes, the admin and health ports, the controller, golden sets.
const RESERVED: u64 = 64;
/// One for a client, one for the model server.
const EACH: u64 = 2;

/// Takes what the hard limit allows, and tells how many connections that is enough for, `asked` at most.
pub fn connections(asked: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return asked };
    // The soft limit protects programs that cannot count further; this one can.
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let enough_for = usize::try_from(within(limit)).unwrap_or(usize::MAX);
    if enough_for < asked {
        tracing::info!(asked, enough_for, descriptors = limit, "fewer connections than --max-connections: file descriptors are not enough for more");
    }
    asked.min(enough_for)
}

/// A small limit is split in halves instead.
fn within(limit: u64) -> u64 {
    (limit.saturating_sub(RESERVED.min(limit / 2)) / EACH).max(1)
}

/// Whether `error` says that there are none left, in this process or in the system.
pub fn are_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_something_for_the_rest() {
        for (limit, enough_for) in [(0, 1), (20, 5), (128, 32), (1024, 480), (1_048_576, 524_256)] {
            assert_eq!(within(limit), enough_for, "{limit}");
        }
    }

    #[test]
    fn one_that_is_missing_is_known() {
        assert!(are_exhausted(&Errno::EMFILE.into()) && !are_exhausted(&Errno::ECONNREFUSED.into()));
    }
}
