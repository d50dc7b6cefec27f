//! `steadfast proxy`: the sidecar, in the same program as everything else. See the crate `steadfast-proxy`.

use std::process::ExitCode;

use steadfast_proxy::RunError;
pub use steadfast_proxy::config::Args;

use crate::exit;

pub fn main(args: Args) -> ExitCode {
    match steadfast_proxy::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (RunError::Flag(_) | RunError::Policy(_) | RunError::Golden(_) | RunError::Listen { .. })) => exit::bad_input(error),
        Err(error) => exit::failed(error),
    }
}
