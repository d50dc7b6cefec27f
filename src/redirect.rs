//! `steadfast redirect`: the whole work of the init container in pods that ask to be redirected.

use std::process::ExitCode;

use steadfast_controller::agent::redirect::{self, Lead};

use crate::exit;

/// Lead whoever dials a server's port from outside this network namespace to another port, by nftables rules; what an injected init container runs.
#[derive(clap::Args)]
#[command(after_help = "Example (in a network namespace of its own):\n  steadfast redirect --route 8000=4180 --probes 4200=8000")]
pub(crate) struct Args {
    /// SERVER=SIDECAR: users of the first port reach the second.
    #[arg(long, value_name = "PORT=PORT", required = true)]
    route: Vec<Lead>,
    /// PORT=SERVER: probes at the first port reach the server, past the sidecar.
    #[arg(long, value_name = "PORT=PORT")]
    probes: Vec<Lead>,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(error),
    };
    match runtime.block_on(redirect::set(&args.route, &args.probes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => exit::failed(why),
    }
}
