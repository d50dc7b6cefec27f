//! `steadfast golden`: does a live server still give the answers that it must give?
//!
//! [`client`] speaks the Open Inference Protocol to any server; [`reference`] asks an ONNX engine whether the set itself is sound; the subcommands
//! [`enrol`], [`check`] and [`show`] are told apart by what they do with the answers. Everything that decides is in the library `golden_sets`; [`manifest`] and
//! [`gate`] are about GoldenSets of a cluster, which the controller checks.

mod batch;
mod bring;
mod check;
mod client;
mod enrol;
mod gate;
mod manifest;
mod progress;
mod reference;
mod show;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use steadfast_golden_sets::{
    GoldenSet,
    engine::{EngineChoice, EngineOptions},
    set,
};

use crate::exit;

/// Golden sets: inputs with known right answers, checked against a live server.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  steadfast serve golden-sets/sets/recommender --port 8080 &\n  steadfast golden show  golden-sets/sets/recommender\n  steadfast golden check golden-sets/sets/recommender --server http://127.0.0.1:8080\n\nA set is a folder: model.onnx, test_data_set_<n>/{input,output}_<i>.pb as in the ONNX model zoo, and golden.yaml (without it, everything is read from the graph)."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(hide = true)]
    Bring(bring::Args),
    Check(check::Args),
    Enrol(enrol::Args),
    Gate(gate::Args),
    Manifest(manifest::Args),
    Show(show::Args),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Which server, for every subcommand that asks one.
#[derive(ClapArgs)]
struct ServerArgs {
    /// Base address of a server that speaks the Open Inference Protocol v2, such as http://127.0.0.1:8080.
    #[arg(long = "server", value_name = "URL")]
    url: String,
    /// How long one answer may take.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Ask for these outputs by name, in the set's order, where the server names them differently (MLServer with scikit-learn: predict_proba).
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    ask_for: Vec<String>,
}

impl ServerArgs {
    /// Finds the server ready to answer the set, or says why not, with the exit status.
    async fn connect(&self, set: &GoldenSet) -> Result<client::Peer, ExitCode> {
        let code = |error: client::ConnectError| if error.is_bad_input() { exit::bad_input(error) } else { inconclusive(error) };
        let outputs = set.manifest().outputs.len();
        if !self.ask_for.is_empty() && self.ask_for.len() != outputs {
            return Err(exit::bad_input(format!("--ask-for names {}, but the set has {}", count(self.ask_for.len(), "output"), count(outputs, "output"))));
        }
        client::Client::new(&self.url, self.timeout).map_err(code)?.connect(set, &self.ask_for).await.map_err(code)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("{text:?} is not a time: write seconds from 0.001 to 3600, such as 2.5"))
}

/// How a set is read and its reference computed.
#[derive(ClapArgs)]
struct SetArgs {
    /// The golden set's folder.
    #[arg(value_name = "SET")]
    directory: PathBuf,
}

impl SetArgs {
    fn read(&self) -> Result<GoldenSet, ExitCode> {
        set::read(&self.directory).map_err(exit::bad_input)
    }
}

fn engine_options(choice: EngineChoice) -> EngineOptions {
    EngineOptions { choice, threads: 1, ..EngineOptions::default() }
}

pub(crate) fn main(args: Args) -> ExitCode {
    let command = match args.command {
        Command::Show(args) => return show::main(&args),
        Command::Manifest(args) => return manifest::main(&args),
        other => other,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(error),
    };
    runtime.block_on(async {
        let outcome = match command {
            Command::Bring(args) => bring::main(args).await,
            Command::Check(args) => check::main(&args).await,
            Command::Enrol(args) => enrol::main(&args).await,
            Command::Gate(args) => gate::main(&args).await,
            Command::Show(args) => Ok(show::main(&args)),
            Command::Manifest(args) => Ok(manifest::main(&args)),
        };
        outcome.unwrap_or_else(|code| code)
    })
}

/// Nothing can be said of the server: exit status 3.
fn inconclusive(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("steadfast: {error}");
    ExitCode::from(3)
}

/// Prints JSON to standard output.
fn print_json(value: &serde_json::Value) {
    // A map with text keys and finite numbers cannot fail to be written.
    println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

/// `1 sample`, `2 samples`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Differences as people compare them with a tolerance.
fn short(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}
