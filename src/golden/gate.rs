//! `steadfast golden gate`: a step of a roll-out that goes on when the pods answer right.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use serde_json::json;
use steadfast_api::Span;
use steadfast_controller::{
    access::Access,
    golden::gate::{Gate, GateError, Looked, Standing},
};

use super::{Output, inconclusive, print_json};
use crate::exit;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// An API server that does not answer is asked again for so long.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// Wait until a GoldenSet of the cluster passes for all matching pods of the version that is rolled out, or until it cannot.
///
/// A server that is always right passes after several hundred samples: with `schedule.every: 1s` and `verdict.detect: 1%` that takes twelve minutes.
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  kubectl -n models set image deployment/recommender server=registry.example/recommender:2\n  steadfast golden gate recommender --namespace models --timeout 20m || kubectl -n models rollout undo deployment/recommender\n\nExit status: 0 Pass, 1 Fail or ReferenceBroken, 2 bad input, 3 not known in time."
)]
pub(super) struct Args {
    /// Name of the GoldenSet.
    #[arg(value_name = "NAME")]
    name: String,
    /// Its namespace [default: that of kubectl's context].
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    access: Access,
    /// Longest wait.
    #[arg(long, value_name = "TIME", default_value = "15m")]
    timeout: Span,
    /// Print text or JSON.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) async fn main(args: &Args) -> Result<ExitCode, ExitCode> {
    let gate = Gate::connect(&args.access, &args.name, args.namespace.clone()).await.map_err(code)?;
    let began = Instant::now();
    let looked = wait(args, &gate, began).await?;
    let (word, status) = match looked.verdict {
        Standing::Pass => ("Pass", ExitCode::SUCCESS),
        Standing::Fail => ("Fail", ExitCode::FAILURE),
        Standing::ReferenceBroken => ("ReferenceBroken", ExitCode::FAILURE),
        Standing::Waiting => ("not known in time", ExitCode::from(3)),
    };
    match args.output {
        Output::Text => {
            println!("{word}: {}", looked.reason);
            println!("  GoldenSet {}/{}, {} pods, after {} s", gate.namespace(), args.name, looked.status.pods_matched, began.elapsed().as_secs());
        }
        Output::Json => print_json(&json!({
            "verdict": if looked.verdict == Standing::Waiting { json!(null) } else { json!(word) }, "reason": looked.reason,
            "namespace": gate.namespace(), "set": args.name, "digest": looked.status.digest, "waitedSeconds": began.elapsed().as_secs(),
            "podsMatched": looked.status.pods_matched, "podsPassing": looked.status.pods_passing, "podsFailing": looked.status.pods_failing,
            "podsGated": looked.status.pods_gated, "failing": looked.status.failing,
        })),
    }
    Ok(status)
}

/// The last look: one that decides, or the one at which time was over.
async fn wait(args: &Args, gate: &Gate, began: Instant) -> Result<Looked, ExitCode> {
    let (mut heard, mut said) = (Instant::now(), String::new());
    loop {
        let left = args.timeout.get().saturating_sub(began.elapsed());
        match gate.look().await {
            Ok(looked) if looked.verdict != Standing::Waiting || left.is_zero() => return Ok(looked),
            Ok(looked) => {
                heard = Instant::now();
                if looked.reason != said {
                    eprintln!("{}", looked.reason);
                    said = looked.reason;
                }
            }
            Err(GateError::Unavailable(why)) if heard.elapsed() < LOST_AFTER && !left.is_zero() => eprintln!("steadfast: asked again soon: {why}"),
            Err(error) => return Err(code(error)),
        }
        tokio::time::sleep(LOOK_EVERY.min(left)).await;
    }
}

fn code(error: GateError) -> ExitCode {
    match error {
        GateError::NoCluster(_) | GateError::Refused(_) => exit::bad_input(error),
        GateError::Unavailable(_) => inconclusive(error),
    }
}
