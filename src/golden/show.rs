//! `steadfast golden show`: what a set holds, which engine can compute it, and which servers were enrolled.

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args as ClapArgs;
use serde_json::json;
use steadfast_api::golden::Compare;
use steadfast_golden_sets::{GoldenSet, engine::EngineChoice, enrol::Enrolment};

use super::{
    Output, SetArgs, print_json,
    reference::{self, Reference},
    short,
};
use crate::exit;

/// Show a golden set: its samples, which engine reproduces it, and its enrolments.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  steadfast golden show golden-sets/sets/recommender\n\nExit status: 0 an engine reproduces every stored answer, 1 none does, 2 bad input."
)]
pub(super) struct Args {
    #[command(flatten)]
    set: SetArgs,
    /// Print text or JSON.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// An enrolment, or why it cannot be used.
type Enrolled = (String, Result<Enrolment, String>);

pub(super) fn main(args: &Args) -> ExitCode {
    match show(args) {
        Ok(code) | Err(code) => code,
    }
}

fn show(args: &Args) -> Result<ExitCode, ExitCode> {
    let set = args.set.read()?;
    let engines = [("ONNX Runtime", reference::ask(&set, EngineChoice::OnnxRuntime)), ("rten", reference::ask(&set, EngineChoice::Rten))];
    let names = Enrolment::names(&args.set.directory).map_err(exit::bad_input)?;
    let enrolled: Vec<Enrolled> = (names.into_iter())
        .map(|name| {
            let read = Enrolment::read(&set, &args.set.directory, &name).map_err(|error| error.to_string());
            (name, read)
        })
        .collect();
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    for tag in set.samples().iter().flat_map(|sample| &sample.tags) {
        *tags.entry(tag).or_default() += 1;
    }
    match args.output {
        Output::Text => text(&set, &tags, &engines, &enrolled),
        Output::Json => json(&set, &tags, &engines, &enrolled),
    }
    let usable = engines.iter().any(|(_, reference)| matches!(reference, Reference::Proven(_)));
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(set: &GoldenSet, tags: &BTreeMap<&str, usize>, engines: &[(&str, Reference)], enrolled: &[Enrolled]) {
    let manifest = set.manifest();
    println!("{}{}", manifest.model, if manifest.version.is_empty() { String::new() } else { format!(" version {}", manifest.version) });
    if !manifest.description.is_empty() {
        println!("  {}", manifest.description.trim());
    }
    println!("\nset      {}\nmodel    {} ({} bytes)", set.digest(), manifest.onnx.file, set.model().len());
    for input in &manifest.inputs {
        println!("input    {} {} {:?}", input.name, input.datatype, input.shape);
    }
    for output in &manifest.outputs {
        println!("output   {} {} {:?}, {}", output.name, output.datatype, output.shape, rule(&output.compare));
    }
    let tags: Vec<String> = tags.iter().map(|(tag, number)| format!("{number} {tag}")).collect();
    println!("samples  {}{}", set.samples().len(), if tags.is_empty() { String::new() } else { format!(": {}", tags.join(", ")) });
    println!("\nengines (an engine is used only if it reproduces every stored answer)");
    for (name, reference) in engines {
        let mark = if matches!(reference, Reference::Proven(_)) { "usable    " } else { "not usable" };
        println!("  {name:<12} {mark}  {}", reference.line());
    }
    println!("\nenrolments{}", if enrolled.is_empty() { ": none; `steadfast golden enrol` learns a server's own answers and noise" } else { "" });
    for (name, enrolment) in enrolled {
        match enrolment {
            Ok(enrolment) => {
                let manifest = enrolment.manifest();
                let server = &manifest.server;
                let noise: Vec<String> = manifest.outputs.iter().map(|output| format!("{} {}", output.name, short(output.noise.absolute.value()))).collect();
                println!(
                    "  {name}: {} {} on {:?}, {}, {} replays; noise: {}",
                    server.name,
                    server.version,
                    server.hardware,
                    manifest.time,
                    manifest.replays,
                    noise.join(", ")
                );
            }
            Err(why) => println!("  {name}: cannot be used: {why}"),
        }
    }
}

fn json(set: &GoldenSet, tags: &BTreeMap<&str, usize>, engines: &[(&str, Reference)], enrolled: &[Enrolled]) {
    let manifest = set.manifest();
    let engines: serde_json::Map<_, _> = engines.iter().map(|(name, reference)| ((*name).to_owned(), reference.json())).collect();
    let enrolled: serde_json::Map<_, _> = (enrolled.iter())
        .map(|(name, enrolment)| {
            let value = match enrolment {
                Ok(enrolment) => {
                    let manifest = enrolment.manifest();
                    json!({"server": manifest.server, "time": manifest.time, "replays": manifest.replays, "outputs": manifest.outputs, "deterministic": enrolment.deterministic()})
                }
                Err(why) => json!({"unusable": why}),
            };
            (name.clone(), value)
        })
        .collect();
    print_json(&json!({
        "model": manifest.model, "version": manifest.version, "description": manifest.description, "digest": set.digest(), "onnx": manifest.onnx,
        "inputs": manifest.inputs, "outputs": manifest.outputs, "samples": {"count": set.samples().len(), "tags": tags},
        "engines": engines, "enrolments": enrolled,
    }));
}

/// A rule in words.
pub(super) fn rule(compare: &Compare) -> String {
    match compare {
        Compare::Regression { absolute, relative } => format!("numbers within {absolute} + {relative} × |reference|"),
        Compare::Classification { absolute } => format!("class scores within {absolute}, same label"),
        Compare::Ranking { scores, overlap } => format!("ranking, {overlap} of the items in order, ties by {scores}"),
        Compare::Embedding { absolute, relative } => format!("vectors within {absolute} each and {relative} of their length"),
        Compare::Exact {} => "equal".to_owned(),
    }
}
