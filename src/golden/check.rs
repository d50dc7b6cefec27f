//! `steadfast golden check`: does a live server still answer as it must?
//!
//! Three ways: live against what was enrolled from this server (where it was), live against the set's stored answers, and the reference recomputed against
//! those. The verdict comes from an e-process, so that stopping as soon as there is one breaks no promise.

use std::{collections::BTreeMap, num::NonZeroUsize, process::ExitCode, time::Duration};

use clap::Args as ClapArgs;
use serde_json::json;
use steadfast_api::Percent;
use steadfast_golden_sets::{
    GoldenSet, Outcome, Tensor, Verdict,
    check::Checker,
    compare::Comparison,
    engine::EngineChoice,
    enrol::Enrolment,
    oip::EncodedMessage,
    sequential::{Draw, Judge, Next, Settings},
};

use super::{
    Output, ServerArgs, SetArgs,
    client::{AskError, Peer},
    count, enrol, print_json,
    progress::Progress,
    reference::{self, Reference},
    short,
};
use crate::exit;

/// Replays without an answer in a row after which asking on tells nothing more.
const UNANSWERED_MAX: u32 = 10;
/// Immediate repetitions that confirm a mismatch of a server that never varied.
const RETRIES: u32 = 2;
/// Wrong samples that are listed.
const LISTED_MAX: usize = 10;

/// Check a live server's answers against a golden set: Pass, Fail, Inconclusive or ReferenceBroken.
///
/// Samples are drawn at random until the evidence is strong enough either way, so a server that is right needs several hundred samples and one that is wrong
/// throughout needs two. A slow or busy server is Inconclusive, never Fail.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  steadfast golden check golden-sets/sets/recommender --server http://127.0.0.1:8080\n  steadfast golden check golden-sets/sets/digits --server http://127.0.0.1:8000 --ask-for predict_proba   # MLServer\n\nExit status: 0 Pass, 1 Fail, 2 bad input, 3 Inconclusive or ReferenceBroken."
)]
pub(super) struct Args {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Probability of a false Fail, and of a false Pass.
    #[arg(long, value_name = "P", default_value_t = 0.001)]
    alpha: f64,
    /// The share of wrong answers that must not go unseen.
    #[arg(long, value_name = "SHARE", default_value = "1%")]
    detect: Percent,
    /// Give up as Inconclusive after so many samples.
    #[arg(long, value_name = "N", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..))]
    max_samples: u64,
    /// Which enrolment to compare with; by default the one named "default", if there is one, else the stored answers alone.
    #[arg(long, value_name = "NAME")]
    enrolment: Option<String>,
    /// What recomputes the reference: auto, rten or onnxruntime.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Seed of the draws; a random one without it.
    #[arg(long)]
    seed: Option<u64>,
    /// Print text or JSON.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What was seen of one output.
#[derive(Default)]
struct Worst {
    difference: f64,
    sample: String,
    line: String,
    mismatches: u64,
}

/// What was seen of one sample.
#[derive(Default)]
struct Tally {
    asked: u64,
    wrong: u64,
    unanswered: u64,
    line: String,
}

/// Everything that a check saw.
struct Seen {
    outputs: Vec<(String, Worst)>,
    samples: BTreeMap<usize, Tally>,
    no_answer: Option<String>,
}

pub(super) async fn main(args: &Args) -> Result<ExitCode, ExitCode> {
    let set = args.set.read()?;
    let settings = Settings { false_alarms: args.alpha, detect: args.detect.ratio(), ..Settings::default() };
    let mut judge = Judge::gate(settings).map_err(|error| exit::bad_input(format!("--alpha or --detect: {error}")))?;
    let found = enrolment(args, &set)?;
    let peer = args.server.connect(&set).await?;
    let (enrolment, other) = match found {
        Some((name, enrolment)) if args.enrolment.is_none() && !is_of(&enrolment, &peer) => (None, Some((name, enrolment.manifest().server.name.clone()))),
        found => (found, None),
    };
    if enrolment.as_ref().is_some_and(|(_, enrolment)| enrolment.deterministic()) {
        judge = judge.deterministic(RETRIES);
    }
    let reference = reference::wanted(&set, args.engine).map_err(exit::bad_input)?;
    let seed = args.seed.unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64));
    let mut seen = Seen {
        outputs: set.manifest().outputs.iter().map(|output| (output.name.clone(), Worst::default())).collect(),
        samples: BTreeMap::new(),
        no_answer: None,
    };
    let mut stopped = None;
    if let Reference::Broken { .. } = reference {
        judge.set_reference_broken(true);
    } else {
        let checker = Checker::new(&set, enrolment.as_ref().map(|(_, enrolment)| enrolment));
        let messages: Vec<EncodedMessage> = set.samples().iter().map(|sample| peer.write(&sample.inputs)).collect::<Result<_, _>>().map_err(exit::bad_input)?;
        stopped = ask(args, &set, &peer, &checker, &messages, &mut judge, &mut seen, seed).await?;
    }
    let verdict = judge.verdict();
    let report =
        Report { args, set: &set, peer: &peer, reference: &reference, enrolment: enrolment.as_ref(), other, judge: &judge, seen: &seen, seed, stopped };
    match args.output {
        Output::Text => report.text(),
        Output::Json => print_json(&report.json()),
    }
    Ok(match verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::FAILURE,
        Verdict::Inconclusive | Verdict::ReferenceBroken => ExitCode::from(3),
    })
}

/// What to compare with, if anything, beside the stored answers.
fn enrolment(args: &Args, set: &GoldenSet) -> Result<Option<(String, Enrolment)>, ExitCode> {
    let names = Enrolment::names(&args.set.directory).map_err(exit::bad_input)?;
    let name = match &args.enrolment {
        Some(name) if names.contains(name) => name.clone(),
        Some(name) => return Err(exit::bad_input(format!("--enrolment {name:?}: there is none of this name; there are {names:?}"))),
        None if names.iter().any(|name| name == enrol::DEFAULT_NAME) => enrol::DEFAULT_NAME.to_owned(),
        None => return Ok(None),
    };
    let enrolment = Enrolment::read(set, &args.set.directory, &name).map_err(exit::bad_input)?;
    Ok(Some((name, enrolment)))
}

/// An enrolment that was not asked for by name is another server's when the names differ; it would hold this one to its last digits.
fn is_of(enrolment: &Enrolment, peer: &Peer) -> bool {
    enrolment.manifest().server.name == enrol::named(peer)
}

/// Replays until there is a verdict; otherwise tells why it stopped.
#[allow(clippy::too_many_arguments, reason = "one loop that everything meets in")]
async fn ask(
    args: &Args,
    set: &GoldenSet,
    peer: &Peer,
    checker: &Checker,
    messages: &[EncodedMessage],
    judge: &mut Judge,
    seen: &mut Seen,
    seed: u64,
) -> Result<Option<String>, ExitCode> {
    let Some(samples) = NonZeroUsize::new(set.samples().len()) else {
        return Ok(Some("the set has no samples".to_owned()));
    };
    let mut draw = Draw::new(seed, samples);
    let mut progress = Progress::new("checking", args.max_samples);
    let (mut next, mut index, mut in_a_row) = (Next::Draw, 0, 0_u32);
    while judge.verdict() == Verdict::Inconclusive {
        // A retry that is due is always done: it decides.
        if judge.samples() >= args.max_samples && next == Next::Draw {
            return Ok(Some(format!("stopped after {} (--max-samples)", count(args.max_samples as usize, "sample"))));
        }
        if next == Next::Draw {
            index = draw.next().unwrap_or(0);
        }
        let outcome = one(set, peer, checker, messages, index, seen).await?;
        next = judge.observe(outcome);
        if outcome == Outcome::NoAnswer {
            in_a_row += 1;
            if in_a_row == UNANSWERED_MAX {
                return Ok(Some(format!("stopped after {UNANSWERED_MAX} requests in a row without answer")));
            }
            tokio::time::sleep(Duration::from_millis(50 << in_a_row.min(5))).await;
        } else {
            in_a_row = 0;
        }
        progress.at(judge.samples(), &format!("{} wrong, {} without answer", judge.mismatches(), judge.unanswered()));
    }
    if judge.verdict() == Verdict::Fail {
        // Which samples are wrong? One look at each, for people; no evidence comes of it.
        let mut progress = Progress::new("looking at every sample once", samples.get() as u64);
        for index in 0..samples.get() {
            if !seen.samples.contains_key(&index) && one(set, peer, checker, messages, index, seen).await? == Outcome::NoAnswer {
                break;
            }
            progress.at(index as u64, "");
        }
    }
    Ok(None)
}

/// One replay, entered into what was seen.
async fn one(set: &GoldenSet, peer: &Peer, checker: &Checker, messages: &[EncodedMessage], index: usize, seen: &mut Seen) -> Result<Outcome, ExitCode> {
    let sample = &set.samples()[index];
    let tally = seen.samples.entry(index).or_default();
    tally.asked += 1;
    let live: Vec<Tensor> = match peer.ask(&messages[index]).await {
        Ok(live) => live,
        Err(AskError::Refused { status, why }) if status == http::StatusCode::NOT_FOUND => {
            return Err(exit::bad_input(format!("{} has no model {:?} to ask any more: {why}", peer.base(), set.manifest().model)));
        }
        // It answered, and the answer is not right whatever it is.
        Err(error @ AskError::Unreadable(_)) => {
            tally.wrong += 1;
            tally.line = error.to_string();
            return Ok(Outcome::Mismatch);
        }
        Err(error) => {
            tally.unanswered += 1;
            tally.line = error.to_string();
            seen.no_answer = Some(error.to_string());
            return Ok(Outcome::NoAnswer);
        }
    };
    let check = checker.check(index, sample, &live, None);
    let deciding: &Comparison = check.enrolled.as_ref().unwrap_or(&check.stored);
    for (difference, (_, worst)) in deciding.outputs.iter().zip(&mut seen.outputs) {
        worst.mismatches += u64::from(!difference.matches);
        if worst.line.is_empty() || difference.absolute > worst.difference {
            *worst = Worst { difference: difference.absolute, sample: sample.name.clone(), line: difference.line.clone(), mismatches: worst.mismatches };
        }
    }
    let outcome = check.outcome();
    if outcome == Outcome::Mismatch {
        tally.wrong += 1;
        tally.line = check.line();
    }
    Ok(outcome)
}

/// A check as it is told.
struct Report<'a> {
    args: &'a Args,
    set: &'a GoldenSet,
    peer: &'a Peer,
    reference: &'a Reference,
    enrolment: Option<&'a (String, Enrolment)>,
    /// An enrolment that was left aside, and the server that it is of.
    other: Option<(String, String)>,
    judge: &'a Judge,
    seen: &'a Seen,
    seed: u64,
    stopped: Option<String>,
}

impl Report<'_> {
    fn reason(&self) -> String {
        let mut reason = self.judge.reason();
        if let Some(stopped) = &self.stopped {
            reason = format!("{reason}; {stopped}");
        }
        if let Some(no_answer) = self.seen.no_answer.as_ref().filter(|_| self.judge.verdict() == Verdict::Inconclusive) {
            reason = format!("{reason}; the last was: {no_answer}");
        }
        reason
    }

    fn wrong(&self) -> impl Iterator<Item = (&str, &Tally)> {
        self.seen.samples.iter().filter(|(_, tally)| tally.wrong > 0).map(|(index, tally)| (self.set.samples()[*index].name.as_str(), tally))
    }

    fn text(&self) {
        let Self { set, peer, args, .. } = self;
        println!("{}: {} against {} ({})", set.manifest().model, count(set.samples().len(), "sample"), peer.base(), peer.describe());
        println!("reference: {}", self.reference.line());
        match self.enrolment {
            Some((name, enrolment)) => {
                let manifest = enrolment.manifest();
                println!("compared:  with what was enrolled from {} {} as {name:?} on {}", manifest.server.name, manifest.server.version, manifest.time);
            }
            None => match &self.other {
                Some((name, server)) => println!(
                    "compared:  with the set's stored answers (the enrolment {name:?} is of another server, {server}; --enrolment {name} would use it)"
                ),
                None => println!("compared:  with the set's stored answers; `steadfast golden enrol` would let smaller drift be seen"),
            },
        }
        if !self.seen.samples.is_empty() {
            println!("\n{:<24} {:>16} {:>8}  where", "output", "worst difference", "wrong");
            for (name, worst) in &self.seen.outputs {
                let place = if worst.difference == 0.0 { String::new() } else { format!("{}: {}", worst.sample, worst.line) };
                println!("{name:<24} {:>16} {:>8}  {place}", short(worst.difference), worst.mismatches);
            }
        }
        let wrong: Vec<_> = self.wrong().collect();
        if !wrong.is_empty() {
            println!("\nwrong samples: {} of {} that were asked", wrong.len(), self.seen.samples.len());
            for (name, tally) in wrong.iter().take(LISTED_MAX) {
                println!("  {name}  {} of {} answers wrong: {}", tally.wrong, tally.asked, tally.line);
            }
            if wrong.len() > LISTED_MAX {
                println!("  … and {} more (--output json lists all)", wrong.len() - LISTED_MAX);
            }
        }
        println!("\nverdict: {}\n  {}", self.judge.verdict(), self.reason());
        if self.args.server.ask_for.is_empty()
            && wrong.len() == self.seen.samples.len()
            && self.seen.outputs.iter().any(|(_, worst)| worst.difference.is_infinite())
        {
            println!("  No answer can be compared at all. Where a server has other outputs than the set, --ask-for names the right ones.");
        }
        if self.judge.verdict() == Verdict::ReferenceBroken {
            println!("  Nothing is said of the server. The set: {}", args.set.directory.display());
        }
    }

    fn json(&self) -> serde_json::Value {
        // JSON has no infinity: what cannot be compared has no difference.
        let finite = |value: f64| value.is_finite().then_some(value);
        let outputs: Vec<_> = (self.seen.outputs.iter())
            .map(|(name, worst)| json!({"name": name, "worstDifference": finite(worst.difference), "sample": worst.sample, "line": worst.line, "mismatches": worst.mismatches}))
            .collect();
        let failures: Vec<_> = (self.seen.samples.iter().filter(|(_, tally)| tally.wrong + tally.unanswered > 0))
            .map(|(index, tally)| {
                let sample = &self.set.samples()[*index];
                json!({"name": sample.name, "tags": sample.tags, "asked": tally.asked, "wrong": tally.wrong, "unanswered": tally.unanswered, "line": tally.line})
            })
            .collect();
        json!({
            "verdict": self.judge.verdict(), "reason": self.reason(), "set": self.set.manifest().model, "digest": self.set.digest(),
            "address": self.peer.base(), "server": {"name": self.peer.server.name, "version": self.peer.server.version, "binary": self.peer.binary},
            "reference": self.reference.json(), "enrolment": self.enrolment.map(|(name, _)| name),
            "alpha": self.args.alpha, "detect": self.args.detect, "seed": self.seed,
            "samples": self.judge.samples(), "mismatches": self.judge.mismatches(), "unanswered": self.judge.unanswered(),
            "logEvidence": finite(self.judge.log_evidence()), "outputs": outputs, "failures": failures,
        })
    }
}
