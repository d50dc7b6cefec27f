//! `steadfast-proxy`: the sidecar as a program of its own, for containers. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use steadfast_proxy::{RunError, config::Args, run};

/// Stand in front of one model server: measure, inject faults when armed, replay golden inputs.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    match run(Cli::parse().args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steadfast-proxy: {error}");
            let bad_input = matches!(error, RunError::Flag(_) | RunError::Policy(_) | RunError::Golden(_) | RunError::Listen { .. });
            if bad_input { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
