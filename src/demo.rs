//! `steadfast demo`: the case study of the literature on a real recommender, on this machine, from one command.

use std::{process::ExitCode, time::Duration};

use steadfast_api::{
    Span,
    read::from_yaml,
    test::{Local, ResilienceTest},
};
use steadfast_controller::experiment::{Plan, plan::Target};

use crate::{
    exit,
    run::{self, Common},
};

/// The same file that `steadfast run examples/case-study.yaml` runs.
const CASE_STUDY: &str = include_str!("../examples/case-study.yaml");
/// As the file writes it: from the root of the repository.
const MODEL_DIR: &str = "golden-sets/sets/recommender";
const SET: &str = "recommender";
/// `--quick` divides baseline and faults by this.
const QUICK: u32 = 4;

/// Run the case study on this machine: a slow network, a lost node, a busy CPU.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast demo --quick\n\nExit status: 0 pass, 1 fail, 2 bad input, 3 inconclusive, 4 halted.")]
pub(crate) struct Args {
    /// A quarter of the time: under 90 seconds instead of about 5 minutes.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let finder = match run::finder(args.common.golden_sets.as_deref()) {
        Ok(finder) => finder,
        Err(error) => return exit::failed(error),
    };
    let model = match finder.find(SET) {
        Ok(directory) => directory,
        Err(error) => return exit::bad_input(format!("the demo needs the golden set {SET:?}: {error}")),
    };
    let mut test: ResilienceTest = match from_yaml("case-study.yaml", CASE_STUDY) {
        Ok(test) => test,
        Err(error) => return exit::failed(error),
    };
    if let Some(local) = &mut test.spec.local {
        serve_from(local, &model.display().to_string());
    }
    if args.quick {
        quicken(&mut test);
    }
    let plan = match Plan::new(test, Target::Local, &finder) {
        Ok(plan) => plan,
        Err(problems) => return run::refuse(&problems),
    };
    let rerun = if args.quick { "steadfast demo --quick" } else { "steadfast demo" };
    run::lead(&plan, rerun.to_owned(), finder.work_dir, &args.common)
}

/// The demo runs from anywhere, the file from the root of the repository.
fn serve_from(local: &mut Local, directory: &str) {
    for argument in local.pods.command.iter_mut().filter(|argument| *argument == MODEL_DIR) {
        directory.clone_into(argument);
    }
}

fn quicken(test: &mut ResilienceTest) {
    let shorter = |span: Span| Span::new((span.get() / QUICK).max(Duration::from_secs(1)));
    let spec = &mut test.spec;
    spec.baseline = shorter(spec.baseline);
    spec.stable.hold = shorter(spec.stable.hold);
    for step in spec.steps.iter_mut().filter(|step| !step.duration.is_zero()) {
        step.duration = shorter(step.duration);
    }
    test.metadata.name.push_str("-quick");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo(quick: bool) -> Plan {
        let mut test: ResilienceTest = from_yaml("case-study.yaml", CASE_STUDY).unwrap();
        if quick {
            quicken(&mut test);
        }
        let finder = run::finder(None).unwrap();
        Plan::new(test, Target::Local, &finder).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    #[test]
    fn the_demo_takes_about_five_minutes_and_the_quick_one_well_under_ninety_seconds() {
        let (whole, quick) = (demo(false).estimate().0.as_secs(), demo(true).estimate().0.as_secs());
        assert!((200..=300).contains(&whole), "{whole} s");
        assert!(quick <= 75, "{quick} s leave no time for warm-up and clean-up");
    }

    #[test]
    fn the_models_directory_is_found_in_the_command() {
        let mut test = demo(false).test;
        serve_from(test.spec.local.as_mut().unwrap(), "/elsewhere");
        assert!(test.spec.local.unwrap().pods.command.contains(&"/elsewhere".to_owned()));
    }
}
