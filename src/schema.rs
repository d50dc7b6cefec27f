//! `steadfast schema`: the JSON schemas of what Steadfast reads and writes.

use std::process::ExitCode;

use clap::ValueEnum;
use steadfast_controller::{reconcile::crd, report::json};

use crate::{exit, run::print};

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
        Of::Report => print(&format!("{:#}\n", json::report_schema())),
        Of::Test => print(&format!("{:#}\n", json::test_schema())),
        Of::Policy => print(&format!("{:#}\n", json::policy_schema())),
        Of::Crds => match crd::all().iter().map(|(_, crd)| crd::yaml(crd).map(|yaml| format!("---\n{yaml}"))).collect::<Result<String, _>>() {
            Ok(yaml) => print(&yaml),
            Err(error) => exit::failed(error),
        },
    }
}
