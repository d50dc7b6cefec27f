//! `steadfast burn`: holds a share of some cores busy for a while. The local platform's CPU pressure; ends by itself, and at SIGTERM or SIGINT.

use std::{process::ExitCode, time::Duration};

use steadfast_api::{Percent, Span};
use steadfast_proxy::fault::cpu::{Burn, Target};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit;

mod busy;

/// Hold cores busy.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast burn --load 90% --cores 0,1 --for 60s")]
pub struct Args {
    /// Share of each core, such as 90%.
    #[arg(long, value_name = "SHARE")]
    load: Percent,
    /// Numbers of the cores, such as 0,1. Without them: as many threads as there are cores, wherever the kernel puts them.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    cores: Vec<usize>,
    /// How long, such as 60s.
    #[arg(long = "for", value_name = "TIME")]
    duration: Span,
}

pub fn main(args: Args) -> ExitCode {
    if args.load == Percent::ZERO {
        return exit::bad_input("--load 0%: give more than 0%, such as 90%");
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    runtime.block_on(async {
        // Before the burn begins, so that no signal finds the default action.
        let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => return exit::failed(format!("signals cannot be caught: {error}")),
        };
        let before = busy::read(&args.cores);
        let burn = match Burn::start(&Target { load: args.load.ratio(), threads, pin: args.cores.clone(), duration: args.duration.get() }) {
            Ok(burn) => burn,
            Err(error) => return exit::bad_input(error),
        };
        let over = async {
            while !burn.is_over() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = over => {}
        }
        let busy = before.zip(busy::read(&args.cores)).and_then(|(before, after)| after.since(&before));
        let outcome = burn.stop();
        let mut line = serde_json::json!({ "asked": outcome.asked, "achieved": outcome.achieved, "seconds": outcome.seconds });
        if let Some(limited_by) = outcome.limited_by {
            line["limitedBy"] = limited_by.into();
        }
        // Who had the cores that the burner did not get.
        if let Some(busy) = busy {
            line["busy"] = busy.into();
        }
        println!("{line}");
        ExitCode::SUCCESS
    })
}
