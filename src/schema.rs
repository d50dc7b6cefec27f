//! `steadfast schema`: the JSON schemas of what Steadfast reads and writes.

use std::process::ExitCode;

use clap::ValueEnum;
use steadfast_controller::report::json;

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
}

pub(crate) fn main(args: Args) -> ExitCode {
    let schema = match args.of {
        Of::Report => json::report_schema(),
        Of::Test => json::test_schema(),
    };
    println!("{schema:#}");
    ExitCode::SUCCESS
}
