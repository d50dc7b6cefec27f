//! `steadfast golden enrol`: learns what one live server answers to a set, and how much its answers vary.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Args as ClapArgs;
use serde_json::json;
use steadfast_api::golden::Server;
use steadfast_golden_sets::{
    GoldenSet, Sample, Tensor,
    engine::EngineChoice,
    enrol::{EnrolError, Enroller, Enrolment, REPLAYS_MIN},
    oip::EncodedMessage,
};
use tokio::task::JoinSet;

use super::{
    Output, ServerArgs, SetArgs, batch,
    client::{AskError, Peer},
    count, inconclusive, print_json,
    progress::Progress,
    reference::{self, Reference},
    short,
};
use crate::exit;

/// The enrolment that `golden check` compares with when nothing else is said.
pub(super) const DEFAULT_NAME: &str = "default";
/// Requests in flight, round by round.
const CONCURRENCY: [usize; 5] = [1, 2, 4, 8, 16];
/// Samples a request, in every third round.
const BATCHES: [usize; 3] = [2, 4, batch::BATCH_MAX];
/// How often a request that brought no answer is tried, with a growing pause between.
const TRIES: u32 = 5;

/// Learn a server's own answers and how much they vary, and keep them beside the set.
///
/// Every sample is replayed many times, with varied concurrency and, where the model's first dimension is free, in batches. What varied becomes the tolerance
/// (four times the largest difference, never below the set's own), so that a later `golden check` sees smaller drift without false alarms.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  steadfast golden enrol golden-sets/sets/digits --server http://127.0.0.1:8080\n\nExit status: 0 enrolled, 1 the server does not answer as the reference does, 2 bad input, 3 the server gave no answer."
)]
pub(super) struct Args {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// How often each sample is replayed.
    #[arg(long, value_name = "N", default_value_t = REPLAYS_MIN, value_parser = clap::value_parser!(u32).range(i64::from(REPLAYS_MIN)..=10_000))]
    replays: u32,
    /// Name of the enrolment. Answers may depend on the kind of CPU: enrol a mixed fleet once per kind, each under its own name.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Kind of CPU or accelerator that answers; found out where the server is on this machine.
    #[arg(long, value_name = "TEXT")]
    hardware: Option<String>,
    /// Enrol a server whose answers are not the reference's, such as one of lower precision. Its distance is recorded.
    #[arg(long)]
    accept_difference: bool,
    /// What recomputes the reference first: auto, rten or onnxruntime.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Print text or JSON.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Why replays stopped.
enum Stop {
    Ask { sample: String, error: AskError },
    Enrol(EnrolError),
}

pub(super) async fn main(args: &Args) -> Result<ExitCode, ExitCode> {
    let set = args.set.read()?;
    let peer = args.server.connect(&set).await?;
    let reference = reference::ask(&set, args.engine);
    if let Reference::Broken { .. } = reference {
        return Err(inconclusive(format!("the set cannot be enrolled, because its reference is broken: {}", reference.line())));
    }
    let mut enroller = Enroller::new(&set, args.accept_difference);
    let batches = match replay(&set, &peer, &mut enroller, args.replays).await {
        Ok(batches) => batches,
        Err(Stop::Ask { sample, error }) => return Err(inconclusive(format!("not enrolled: sample {sample:?}: {error}"))),
        Err(Stop::Enrol(error)) => {
            let hint = if matches!(error, EnrolError::Differs { .. }) { " (--accept-difference)" } else { "" };
            return Err(exit::failed(format!("not enrolled: {error}{hint}")));
        }
    };
    let hardware = args.hardware.clone().or_else(|| if peer.is_local() { processor() } else { None }).unwrap_or_default();
    let server = Server { name: named(&peer), version: peer.server.version.clone(), hardware };
    let enrolment = enroller.finish(server, now()).map_err(exit::failed)?;
    enrolment.write(&args.set.directory, &args.name).map_err(exit::bad_input)?;
    match args.output {
        Output::Text => print_text(args, &set, &peer, &enrolment, &reference, &batches),
        Output::Json => {
            let outputs: Vec<_> = (enrolment.manifest().outputs.iter())
                .map(|output| json!({"name": output.name, "noise": output.noise, "offset": output.offset, "compare": output.compare}))
                .collect();
            print_json(&json!({
                "set": set.manifest().model, "digest": set.digest(), "server": enrolment.manifest().server, "address": peer.base(), "enrolment": args.name,
                "samples": set.samples().len(), "replays": enrolment.manifest().replays, "batches": batches.json(),
                "deterministic": enrolment.deterministic(), "outputs": outputs, "reference": reference.json(),
            }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_text(args: &Args, set: &GoldenSet, peer: &Peer, enrolment: &Enrolment, reference: &Reference, batches: &Batches) {
    let manifest = enrolment.manifest();
    println!("{}: enrolled {} of {} ({}) as {:?}", set.manifest().model, count(set.samples().len(), "sample"), peer.base(), peer.describe(), args.name);
    println!("reference: {}", reference.line());
    println!("replays:   {} of each sample, 1 to {} in flight; {}", manifest.replays, CONCURRENCY[CONCURRENCY.len() - 1], batches.line());
    if !manifest.server.hardware.is_empty() {
        println!("hardware:  {}", manifest.server.hardware);
    }
    println!("\n{:<24} {:>14} {:>18}  compared as", "output", "noise", "from the reference");
    for output in &manifest.outputs {
        let (noise, offset) = (output.noise.absolute.value(), output.offset.absolute.value());
        println!("{:<24} {:>14} {:>18}  {}", output.name, short(noise), short(offset), super::show::rule(&output.compare));
    }
    println!(
        "\n{}",
        if enrolment.deterministic() {
            "This server never varied: one confirmed wrong answer will be proof."
        } else {
            "Tolerances are four times the noise, where that is more than the set's own."
        }
    );
    println!("Next: steadfast golden check {} --server {}", args.set.directory.display(), args.server.url);
}

/// The server's own name, as enrolments keep it.
pub(super) fn named(peer: &Peer) -> String {
    if peer.server.name.is_empty() { "unknown".to_owned() } else { peer.server.name.clone() }
}

/// Whether batches were part of it.
enum Batches {
    Sent(usize),
    Not(String),
}

impl Batches {
    fn line(&self) -> String {
        match self {
            Self::Sent(number) => format!("{number} in batches of 2 to {}", batch::BATCH_MAX),
            Self::Not(why) => format!("no batches: {why}"),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Sent(number) => json!({"answers": number}),
            Self::Not(why) => json!({"answers": 0, "why": why}),
        }
    }
}

/// One request with the samples in it.
struct Request {
    samples: Vec<usize>,
    message: EncodedMessage,
}

async fn replay(set: &GoldenSet, peer: &Peer, enroller: &mut Enroller<'_>, replays: u32) -> Result<Batches, Stop> {
    let stop = |index: usize| move |error| Stop::Ask { sample: set.samples()[index].name.clone(), error };
    let mut singles = Vec::with_capacity(set.samples().len());
    for (index, sample) in set.samples().iter().enumerate() {
        singles.push(Arc::new(Request { samples: vec![index], message: peer.write(&sample.inputs).map_err(stop(index))? }));
    }
    let mut batches = if batch::is_possible(set) { Batches::Sent(0) } else { Batches::Not("the first dimension of the model is fixed".into()) };
    let mut progress = Progress::new("enrolling", u64::from(replays) * singles.len() as u64);
    let rules = set.rules();
    for round in 0..replays {
        let concurrency = CONCURRENCY[round as usize % CONCURRENCY.len()];
        let grouped = match &batches {
            Batches::Sent(_) if round % 3 == 2 => groups(set, peer, BATCHES[round as usize / 3 % BATCHES.len()], &singles),
            _ => singles.clone(),
        };
        let mut answers = ask_all(peer, grouped, concurrency);
        let mut again = Vec::new();
        let mut done = u64::from(round) * singles.len() as u64;
        while let Some((request, answer)) = answers.next().await {
            if let [index] = request.samples[..] {
                enroller.answer(index, &answer.map_err(stop(index))?).map_err(Stop::Enrol)?;
            } else {
                let samples: Vec<&Sample> = request.samples.iter().map(|index| &set.samples()[*index]).collect();
                match unbatched(&samples, answer, |sample, part| rules.compare(&sample.outputs, part).mismatch().map(ToString::to_string)) {
                    Ok(parts) => {
                        for (index, part) in request.samples.iter().zip(parts) {
                            enroller.answer(*index, &part).map_err(Stop::Enrol)?;
                        }
                        if let Batches::Sent(number) = &mut batches {
                            *number += request.samples.len();
                        }
                    }
                    // A server may take no batches, or a first dimension may be none; its single answers count all the same.
                    Err(why) => {
                        batches = Batches::Not(why);
                        again.extend(request.samples.iter().map(|index| singles[*index].clone()));
                    }
                }
            }
            done += request.samples.len() as u64;
            progress.at(done, &format!("{concurrency} in flight"));
        }
        let mut answers = ask_all(peer, again, concurrency);
        while let Some((request, answer)) = answers.next().await {
            let index = request.samples[0];
            enroller.answer(index, &answer.map_err(stop(index))?).map_err(Stop::Enrol)?;
        }
    }
    Ok(batches)
}

/// The parts of a batch's answer, or why it is none.
fn unbatched(
    samples: &[&Sample],
    answer: Result<Vec<Tensor>, AskError>,
    differs: impl Fn(&Sample, &[Tensor]) -> Option<String>,
) -> Result<Vec<Vec<Tensor>>, String> {
    let answer = answer.map_err(|error| format!("the server answers a batch of {}: {error}", samples.len()))?;
    let parts = batch::split(samples, &answer).ok_or_else(|| format!("a batch of {} is answered with another number of rows", samples.len()))?;
    match samples.iter().zip(&parts).find_map(|(sample, part)| differs(sample, part).map(|why| (sample, why))) {
        Some((sample, why)) => Err(format!("in a batch of {} sample {:?} is answered differently: {why}", samples.len(), sample.name)),
        None => Ok(parts),
    }
}

/// All samples in requests of `size` neighbours; alone where they do not fit together.
fn groups(set: &GoldenSet, peer: &Peer, size: usize, singles: &[Arc<Request>]) -> Vec<Arc<Request>> {
    let mut requests = Vec::new();
    for chunk in singles.chunks(size) {
        let indices: Vec<usize> = chunk.iter().flat_map(|request| request.samples.clone()).collect();
        let samples: Vec<&Sample> = indices.iter().map(|index| &set.samples()[*index]).collect();
        let joined = Some(samples).filter(|samples| samples.len() > 1).and_then(|samples| batch::join(&samples)).and_then(|inputs| peer.write(&inputs).ok());
        match joined {
            Some(message) => requests.push(Arc::new(Request { samples: indices, message })),
            None => requests.extend(chunk.iter().cloned()),
        }
    }
    requests
}

/// A request with its answer.
type Answered = (Arc<Request>, Result<Vec<Tensor>, AskError>);

/// Requests in flight, so many at once.
struct InFlight {
    peer: Peer,
    waiting: std::vec::IntoIter<Arc<Request>>,
    running: JoinSet<Answered>,
    concurrency: usize,
}

fn ask_all(peer: &Peer, requests: Vec<Arc<Request>>, concurrency: usize) -> InFlight {
    InFlight { peer: peer.clone(), waiting: requests.into_iter(), running: JoinSet::new(), concurrency }
}

impl InFlight {
    async fn next(&mut self) -> Option<Answered> {
        while self.running.len() < self.concurrency {
            let Some(request) = self.waiting.next() else { break };
            let peer = self.peer.clone();
            self.running.spawn(async move {
                let answer = patient(&peer, &request.message).await;
                (request, answer)
            });
        }
        // A task ends in an error only by a panic, which is this program's own fault and must not pass in silence.
        self.running.join_next().await.map(|joined| joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
    }
}

/// Asks again after a pause where a server is busy: enrolment is about what it answers, not when.
async fn patient(peer: &Peer, message: &EncodedMessage) -> Result<Vec<Tensor>, AskError> {
    let mut pause = Duration::from_millis(100);
    for _ in 1..TRIES {
        match peer.ask(message).await {
            Err(AskError::NoAnswer(_)) => tokio::time::sleep(pause).await,
            other => return other,
        }
        pause *= 2;
    }
    peer.ask(message).await
}

fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string()
}

/// This machine's kind of CPU.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned());
    field("model name").or_else(|| field("CPU part").map(|part| format!("{} CPU part {part}", std::env::consts::ARCH)))
}
