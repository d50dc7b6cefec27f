//! `steadfast-controller`: runs one experiment file on the local platform and prints the report as JSON, for images that hold no command line.
//!
//! `steadfast run` does the same with live progress, a summary and the report's other forms.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use steadfast_controller::{
    experiment::{
        Plan, Progress,
        local::{Options, run_local},
        plan::Target,
        sets::Finder,
    },
    report::json,
};
use tokio::sync::watch;

/// Run an experiment file on this machine and print report.json.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// A ResilienceTest in YAML.
    file: PathBuf,
    /// The `steadfast` program, which is every child process [default: beside this one].
    #[arg(long, value_name = "FILE")]
    exe: Option<PathBuf>,
    /// Folder that holds golden sets by name.
    #[arg(long, value_name = "DIR", default_value = "golden-sets/sets")]
    golden_sets: PathBuf,
}

fn main() -> ExitCode {
    lead(Args::parse()).unwrap_or_else(|(status, errors)| {
        for error in errors {
            eprintln!("steadfast-controller: {error}");
        }
        ExitCode::from(status)
    })
}

fn lead(args: Args) -> Result<ExitCode, (u8, Vec<String>)> {
    let bad = |error: String| (2, vec![error]);
    let failed = |error: String| (3, vec![error]);
    let name = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file).map_err(|error| bad(format!("{name}: {error}")))?;
    let work_dir = std::env::current_dir().map_err(|error| failed(error.to_string()))?;
    let exe = match args.exe {
        Some(exe) => exe,
        None => std::env::current_exe().map_err(|error| failed(error.to_string()))?.with_file_name("steadfast"),
    };
    if !exe.is_file() {
        return Err(bad(format!("there is no {}: name the steadfast program with --exe", exe.display())));
    }
    let finder = Finder { shelves: vec![work_dir.join(args.golden_sets)], work_dir: work_dir.clone() };
    let plan = Plan::read(&name, &text, Target::Local, &finder).map_err(|errors| (2, errors.iter().map(ToString::to_string).collect()))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(error.to_string()))?;
    let report = runtime.block_on(async {
        let (asked, interrupt) = watch::channel(false);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                asked.send_replace(true);
            }
            // Whoever asks twice means at once; the keeper cleans up.
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
        let (progress, _) = watch::channel(Progress::default());
        run_local(&plan, Options { exe, work_dir, rerun: format!("steadfast run {name}") }, interrupt, &progress).await
    });
    let report = report.map_err(|error| failed(error.to_string()))?;
    print!("{}", json::render(&report).map_err(|error| failed(error.to_string()))?);
    Ok(ExitCode::from(report.verdict.outcome.exit_code()))
}
