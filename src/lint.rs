//! `steadfast lint`: everything that is wrong with an experiment file, with line, column, field and what would be right.

use std::{path::PathBuf, process::ExitCode};

use steadfast_controller::experiment::{Plan, plan::Target};

use crate::{exit, run};

/// Check experiment files without running them.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast lint examples/*.yaml\n\nExit status: 0 when all are right, 2 when one is not.")]
pub(crate) struct Args {
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Folder that holds golden sets by name [default: golden-sets/sets, here or where Steadfast was built].
    #[arg(long, value_name = "DIR")]
    golden_sets: Option<PathBuf>,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let finder = match run::finder(args.golden_sets.as_deref()) {
        Ok(finder) => finder,
        Err(error) => return exit::failed(error),
    };
    let mut worst = ExitCode::SUCCESS;
    for file in &args.files {
        match run::read(file) {
            Err(error) => worst = exit::bad_input(error),
            Ok((name, text)) => match Plan::read(&name, &text, Target::Local, &finder) {
                Ok(_) => println!("{name}: ok"),
                Err(errors) => worst = run::refuse(&errors),
            },
        }
    }
    worst
}
