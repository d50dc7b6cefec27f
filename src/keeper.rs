//! `steadfast keeper`: cleans up after a local run whose runner is gone. See `steadfast_controller::platform::local::keeper`.

use std::{path::PathBuf, process::ExitCode};

use steadfast_controller::platform::local::keeper;

use crate::exit;

/// Wait for standard input to end, then kill every process of a run and remove its folder.
#[derive(clap::Args)]
pub struct Args {
    /// The run, as its processes name it in `STEADFAST_RUN`.
    #[arg(long, value_name = "ID")]
    run: String,
    /// The run's folder; removed only if its file `run` holds the run's ID.
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

pub fn main(args: Args) -> ExitCode {
    match keeper::watch(&args.run, &args.dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(error),
    }
}
