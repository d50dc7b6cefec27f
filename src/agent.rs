//! `steadfast agent`: the node agent of a cluster, in the same program as everything else.

use std::process::ExitCode;

pub(crate) use steadfast_controller::agent::Args;

use crate::exit;

pub(crate) fn main(args: Args) -> ExitCode {
    match steadfast_controller::agent::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(error),
    }
}
