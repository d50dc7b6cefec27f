//! From the file to a plan that can work: what is wrong is told with line, column, field and what would be right, all of it at once.

mod check;
mod dry_run;

use std::time::Duration;

use steadfast_api::{
    read::{BadFile, Places, from_yaml},
    test::{Action, ResilienceTest, ResilienceTestSpec},
};

use super::sets::{Finder, Sets};

pub use check::Problem;
pub use dry_run::dry_run;

/// Where the file shall run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Local,
    /// A Kubernetes cluster; `local` is not looked at.
    Cluster,
}

/// A test that has been checked, with its golden sets.
#[derive(Clone, Debug)]
pub struct Plan {
    pub test: ResilienceTest,
    pub sets: Sets,
}

impl Plan {
    /// Reads and checks a file. `file` is its name for messages.
    ///
    /// # Errors
    /// Everything that is wrong, in the order in which it stands in the file: one error if the text cannot be read as a test at all.
    pub fn read(file: &str, text: &str, target: Target, finder: &Finder) -> Result<Self, Vec<BadFile>> {
        let test: ResilienceTest = from_yaml(file, text).map_err(|error| vec![error])?;
        Self::new(test, target, finder).map_err(|problems| {
            let places = Places::of(text);
            let place = |problem: Problem| {
                let (line, column) = places.as_ref().map_or((0, 0), |places| places.find(&problem.field));
                BadFile { file: file.to_owned(), line, column, field: problem.field, message: problem.message }
            };
            let mut errors: Vec<BadFile> = problems.into_iter().map(place).collect();
            errors.sort_by_key(|error| (error.line, error.column));
            errors
        })
    }

    /// Checks a test that stands in no file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(test: ResilienceTest, target: Target, finder: &Finder) -> Result<Self, Vec<Problem>> {
        let (sets, problems) = check::check(&test, target, finder);
        if problems.is_empty() { Ok(Self { test, sets }) } else { Err(problems) }
    }

    /// How long the run will take if everything recovers as fast as it can, and at most; without warm-up and clean-up.
    pub fn estimate(&self) -> (Duration, Duration) {
        estimate(&self.test.spec)
    }
}

fn estimate(spec: &ResilienceTestSpec) -> (Duration, Duration) {
    let (hold, within) = (spec.stable.hold.get(), spec.stable.within.get());
    if spec.steps.is_empty() {
        // One window; a watch has no end.
        return (spec.window().get(), spec.window().get() + within);
    }
    let faults: Duration = spec.steps.iter().map(|step| step.duration.get()).sum();
    let steps = spec.steps.len() as u32;
    let expected = spec.steps.iter().map(|step| expected_recovery(spec, &step.action)).sum::<Duration>() + hold * steps;
    (spec.baseline.get() + (faults + expected) * spec.rounds, spec.baseline.get() + (faults + within * steps) * spec.rounds)
}

/// From the end of the fault to the begin of `hold`: nothing for what only slows down, some seconds where pods have to come up again.
fn expected_recovery(spec: &ResilienceTestSpec, action: &Action) -> Duration {
    let come_up = Duration::from_secs(3);
    match action {
        Action::PodKill(_) | Action::Evict(_) | Action::ContainerKill(_) | Action::Drain(_) | Action::Scale(_) | Action::Rollout(_) => come_up,
        Action::NodeFailure(_) => spec.local.as_ref().map_or(come_up, |_| Duration::from_secs(1)),
        Action::PodHoldDown(_) => Duration::from_secs(1),
        Action::NetworkLatency(_)
        | Action::NetworkLoss(_)
        | Action::NetworkPartition(_)
        | Action::Cordon(_)
        | Action::Taint(_)
        | Action::CpuPressure(_)
        | Action::Corrupt(_) => Duration::from_millis(500),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// `docs/failures.md` is what people copy from.
    #[test]
    fn every_failure_of_the_page_can_be_run_on_a_cluster_and_is_told_of_where_it_cannot_on_one_machine() {
        let page = include_str!("../../../docs/failures.md");
        let rows = page.lines().filter_map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().try_into().ok());
        let finder = Finder { shelves: Vec::new(), work_dir: PathBuf::from("/") };
        let mut actions = std::collections::BTreeSet::new();
        for [_, _, example, local, cluster, _, _] in rows.filter(|row: &[&str; 7]| row[2].starts_with('`')) {
            let action = example.trim_matches('`');
            let name = action.split(':').next().unwrap_or_default();
            let lasts = if ["podKill", "evict", "containerKill"].contains(&name) { "" } else { ", for: 10s" };
            let local_part = "local: {nodes: 3, pods: {replicas: 3, labels: {app: x}, command: [steadfast, serve, m, --port, $(PORT)]}}";
            let text = format!(
                "apiVersion: steadfast.dev/v1alpha1\nkind: ResilienceTest\nmetadata: {{name: t}}\nspec:\n  target: {{selector: {{matchLabels: {{app: x}}}}}}\n  {local_part}\n  steps: [{{name: s, {action}{lasts}}}]\n"
            );
            for (target, says) in [(Target::Local, local), (Target::Cluster, cluster)] {
                let works = Plan::read("page", &text, target, &finder).map(drop);
                assert_eq!(works.is_ok(), says == "yes", "{example} {target:?}: {works:?}");
            }
            actions.insert(name.to_owned());
        }
        assert_eq!(actions.len(), 15, "one of every action: {actions:?}");
    }
}
