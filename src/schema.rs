//! `steadfast schema`: the JSON schemas of what Steadfast reads and writes.

use std::process::ExitCode;

use clap::ValueEnum;
use steadfast_controller::{reconcile::crd, report::json};

use crate::exit;

/// Print a JSON schema.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast schema test > resilience-test.schema.json")]
pub(crate) struct Args {
    #[arg(value_enum)]
    of: Of,
}

#[derive(Clone, Copy, ValueEnum)]
enum Of {
    /// report.json
    Report,
    /// An experiment file.
    Test,
    /// A policy that a sidecar takes by hand (`steadfast proxy --policy`, `PUT /policy`).
    Policy,
    /// The CustomResourceDefinitions of Kubernetes, as YAML documents for `kubectl apply -f -`.
    Crds,
}

pub(crate) fn main(args: Args) -> ExitCode {
    match args.of {
        Of::Report => println!("{:#}", json::report_schema()),
        Of::Test => println!("{:#}", json::test_schema()),
        Of::Policy => println!("{:#}", json::policy_schema()),
        Of::Crds => {
            for (_, crd) in crd::all() {
                match crd::yaml(&crd) {
                    Ok(yaml) => print!("---\n{yaml}"),
                    Err(error) => return exit::failed(error),
                }
            }
        }
    }
    ExitCode::SUCCESS
}
