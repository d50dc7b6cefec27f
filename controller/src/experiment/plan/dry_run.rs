//! `steadfast run --dry-run`: the file with every default written out, and what would happen.

use std::fmt::Write as _;

use rand::{SeedableRng, rngs::StdRng};
use steadfast_api::{Span, read::to_yaml, test::Selection};

use super::{super::select, Plan, Target};

/// YAML that is the same test, followed by the plan as comments.
///
/// # Errors
/// When the test cannot be written as YAML.
pub fn dry_run(plan: &Plan, target: Target) -> Result<String, String> {
    let mut text = to_yaml(&plan.test)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let spec = &plan.test.spec;
    let (expected, most) = plan.estimate();
    let whole = |duration: std::time::Duration| Span::from_secs(duration.as_secs_f64().ceil() as u64);
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# {args}");
    };
    line(format_args!(""));
    if spec.steps.is_empty() {
        line(format_args!("The plan: nothing is broken; the target is watched until somebody ends it (Ctrl-C)."));
        line(format_args!("On a cluster there is a report after every outage, and every {} at the latest.", spec.window()));
        return Ok(text);
    }
    line(format_args!("The plan: about {}, at most {}, and some seconds for warm-up and clean-up.", whole(expected), whole(most)));
    line(format_args!("Baseline of {}.", spec.baseline));
    let mut rng = StdRng::seed_from_u64(spec.seed);
    let (nodes, pods) = spec.local.as_ref().map_or((0, 0), |local| (local.nodes as usize, local.pods.replicas as usize));
    for round in 1..=spec.rounds {
        for step in &spec.steps {
            let (selection, candidates, kind) = match (step.action.nodes(), step.action.pods()) {
                (Some(selection), _) => (selection, nodes.min(pods), "node"),
                (None, pods_selected) => (pods_selected.unwrap_or(Selection::All), pods, "pod"),
            };
            let numbers: Vec<usize> = (1..=candidates).collect();
            let chosen: Vec<String> = select::draw(selection, &numbers, &mut rng).iter().map(ToString::to_string).collect();
            let chosen = match target {
                Target::Local => format!("{kind} {} of {candidates}", chosen.join(", ")),
                // How many there are, the cluster knows.
                Target::Cluster => format!("{} {kind}s", share(selection)),
            };
            let lasts = if step.duration.is_zero() { "at once".to_owned() } else { format!("for {}", step.duration) };
            if round <= ROUNDS_SHOWN {
                line(format_args!(
                    "Round {round}, {:?}: {} {lasts} on {chosen}; then analysis until stable for {}, at most {}.",
                    step.name,
                    step.action.name(),
                    spec.stable.hold,
                    spec.stable.within
                ));
            }
        }
    }
    if spec.rounds > ROUNDS_SHOWN {
        line(format_args!("And so on, for {} rounds.", spec.rounds));
    }
    if target == Target::Local && spec.steps.iter().any(|step| step.action.takes_pods()) {
        line(format_args!("Nodes and pods are numbered among those that can be chosen when the step begins: pods in service in order of creation, and nodes"));
        line(format_args!("that hold one. The draw is the seed's; where an earlier step has changed who is there, it falls on others."));
    }
    Ok(text)
}

const ROUNDS_SHOWN: u32 = 10;

/// How many of those that there are.
fn share(selection: Selection) -> String {
    match selection {
        Selection::One => "one of the".to_owned(),
        Selection::All => "all".to_owned(),
        Selection::Fixed(count) => format!("{count} of the"),
        Selection::FixedPercent(share) => format!("{share} of the"),
        Selection::RandomMaxPercent(share) => format!("at most {share} of the"),
    }
}
