//! `steadfast`: one command line for experiments, sidecars and golden sets.
//!
//! Child processes of the local platform are this same program (`steadfast proxy`, `serve`, `burn`, `keeper`), so one build runs everything.

mod agent;
mod burn;
mod controller;
mod demo;
mod exit;
mod fault;
mod golden;
mod inject;
mod install;
mod keeper;
mod lint;
mod progress;
mod proxy;
mod redirect;
mod report;
mod run;
mod schema;
mod serve;
mod undo;
mod users;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
    Fault(fault::Args),
    Inject(inject::Args),
    Install(install::Args),
    Proxy(proxy::Args),
    Serve(serve::Args),
    #[command(hide = true)]
    Redirect(redirect::Args),
    #[command(hide = true)]
    Burn(burn::Args),
    #[command(hide = true)]
    Keeper(keeper::Args),
    #[command(hide = true)]
    Users(users::Args),
}

/// `kubectl` finds its plugins by name: as `kubectl-steadfast` on PATH this program is `kubectl steadfast`.
const PLUGIN: &str = "kubectl-steadfast";

/// What was asked for; help and usage say the words by which this program was called.
fn parse() -> Cli {
    let called = std::env::args_os().next().unwrap_or_default();
    let mut command = Cli::command();
    if std::path::Path::new(&called).file_stem().is_some_and(|name| name == PLUGIN) {
        command = as_plugin(command.bin_name("kubectl steadfast"));
    }
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn as_plugin(command: clap::Command) -> clap::Command {
    let examples = command.get_after_help().map(|text| text.to_string().replace("  steadfast ", "  kubectl steadfast "));
    let command = if let Some(examples) = examples { command.after_help(examples) } else { command };
    command.mut_subcommands(as_plugin)
}

fn main() -> ExitCode {
    match parse().command {
        Command::Demo(args) => demo::main(args),
        Command::Run(args) => run::main(args),
        Command::Lint(args) => lint::main(args),
        Command::Report(args) => report::main(args),
        Command::Schema(args) => schema::main(args),
        Command::Controller(args) => controller::main(args),
        Command::Agent(args) => agent::main(args),
        Command::Undo(args) => undo::main(args),
        Command::Golden(args) => golden::main(args),
        Command::Fault(args) => fault::main(args),
        Command::Inject(args) => inject::main(args),
        Command::Install(args) => install::main(args),
        Command::Proxy(args) => proxy::main(args),
        Command::Serve(args) => serve::main(args),
        Command::Redirect(args) => redirect::main(args),
        Command::Burn(args) => burn::main(args),
        Command::Keeper(args) => keeper::main(args),
        Command::Users(args) => users::main(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn as_a_plugin_every_usage_and_every_example_says_so() {
        fn walk(command: &mut clap::Command) {
            let (name, help) = (command.get_name().to_owned(), command.render_long_help().to_string());
            assert!(help.contains("Usage: kubectl steadfast"), "{name}: {help}");
            assert!(!help.lines().any(|line| line.starts_with("  steadfast ")), "{name}: {help}");
            command.get_subcommands_mut().for_each(walk);
        }
        let mut command = as_plugin(Cli::command().bin_name("kubectl steadfast"));
        command.build();
        walk(&mut command);
    }
}
