//! `steadfast`: one command line for experiments, sidecars and golden sets.
//!
//! Child processes of the local platform are this same program (`steadfast proxy`, `serve`, `burn`, `keeper`), so one build runs everything.

mod agent;
mod burn;
mod controller;
mod demo;
mod exit;
mod golden;
mod inject;
mod keeper;
mod lint;
mod progress;
mod proxy;
mod report;
mod run;
mod schema;
mod serve;
mod undo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Does your model service keep giving right answers, on time, while things break?
///
/// Steadfast runs experiments on model services: it kills pods, loses nodes, slows the network and saturates CPUs, and reports availability, recovery time,
/// consistency of predictions and latency, with a verdict.
#[derive(Parser)]
#[command(
    version,
    after_help = "Start here:\n  steadfast demo --quick        the case study on this machine, in under 90 seconds\n  steadfast run FILE            an experiment of your own\n\nExit status: 0 pass, 1 fail, 2 bad input, 3 inconclusive, 4 halted."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // one value a process
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Lint(lint::Args),
    Report(report::Args),
    Schema(schema::Args),
    Controller(controller::Args),
    Agent(agent::Args),
    Undo(undo::Args),
    Golden(golden::Args),
    Inject(inject::Args),
    Proxy(proxy::Args),
    Serve(serve::Args),
    #[command(hide = true)]
    Burn(burn::Args),
    #[command(hide = true)]
    Keeper(keeper::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo(args) => demo::main(args),
        Command::Run(args) => run::main(args),
        Command::Lint(args) => lint::main(args),
        Command::Report(args) => report::main(args),
        Command::Schema(args) => schema::main(args),
        Command::Controller(args) => controller::main(args),
        Command::Agent(args) => agent::main(args),
        Command::Undo(args) => undo::main(args),
        Command::Golden(args) => golden::main(args),
        Command::Inject(args) => inject::main(args),
        Command::Proxy(args) => proxy::main(args),
        Command::Serve(args) => serve::main(args),
        Command::Burn(args) => burn::main(args),
        Command::Keeper(args) => keeper::main(args),
    }
}
