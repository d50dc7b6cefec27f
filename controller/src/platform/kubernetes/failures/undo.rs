//! How each change is taken back: only where it is still ours, and exactly.

use kube::Client;

use super::{
    FailureError, Means, burner,
    ledger::{self, ClusterChange, Ledger, Undo},
    node_faults, nodes,
    workload::Workload,
};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it was; in words that prove that it had been otherwise.
    Undone(String),
    /// As it was, and nobody said what it had been.
    Silent,
    /// Written down and never made, or undone before.
    NotMade,
    /// Somebody else changed it meanwhile, and it was left alone; in words.
    NotOurs(String),
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// In words, one for each change.
    pub undone: Vec<String>,
    /// Left to whoever changed it.
    pub not_ours: Vec<String>,
    /// Could not be undone; it stays in the ledger.
    pub failed: Vec<String>,
}

impl Summary {
    fn add(&mut self, outcome: Result<Outcome, FailureError>) {
        match outcome {
            Ok(Outcome::Undone(words)) => self.undone.push(words),
            Ok(Outcome::NotOurs(words)) => self.not_ours.push(words),
            Ok(Outcome::NotMade | Outcome::Silent) => {}
            Err(error) => self.failed.push(error.to_string()),
        }
    }

    fn join(&mut self, other: Self) {
        self.undone.extend(other.undone);
        self.not_ours.extend(other.not_ours);
        self.failed.extend(other.failed);
    }
}

/// Takes one change back. `test`: `namespace/name`.
async fn undo(means: &Means, test: &str, change: &ClusterChange) -> Result<Outcome, FailureError> {
    let client: &Client = &means.client;
    let outcome = match change {
        ClusterChange::Burner { pod, node } => burner::end(means, pod, node).await,
        ClusterChange::Cordoned { node } => nodes::uncordon(client, node, test).await,
        ClusterChange::Tainted { node, key, value, effect } => nodes::untaint(client, node, key, value, effect).await,
        ClusterChange::Scaled { kind, namespace, name, replicas, to } => {
            Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }.scale_back(client, *replicas, *to).await
        }
        ClusterChange::RolledOut { kind, namespace, name, container, image, to } => {
            Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }.roll_back(client, container, image, to).await
        }
        ClusterChange::NodeFault { name, .. } => node_faults::end(client, &means.namespace, name).await,
        ClusterChange::PoweredOff { node } => match &means.power {
            Some(hook) => {
                let seen = nodes::readiness(client, node).await;
                hook.switch(node, true)
                    .await
                    .map(|()| Outcome::Undone(format!("node {node} was switched off by the power hook ({seen}), and is switched on again")))
            }
            None => Err(FailureError::new(
                format!("node {node}"),
                "was switched off by the power hook, and this controller has none now: switch it on, or set powerHook.url in the chart's values",
            )),
        },
    };
    match outcome {
        // What is gone needs no undoing.
        Err(error) if error.gone => Ok(Outcome::NotMade),
        other => other,
    }
}

/// Takes these entries back, the youngest first, so that what was built on another goes before it. What fails stays in the ledger.
pub async fn entries(means: &Means, ledger: &Ledger, mut entries: Vec<Undo>) -> Summary {
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.id));
    let mut summary = Summary::default();
    for entry in entries {
        let outcome = undo(means, ledger.test(), &entry.change).await;
        let done = outcome.is_ok();
        summary.add(outcome);
        if done && let Err(error) = ledger.strike(entry.id).await {
            summary.failed.push(error.to_string());
        }
    }
    summary
}

/// Takes back what any run has in force: before the chart is removed, and by a leader between its runs.
///
/// # Errors
/// When the ledgers cannot be read.
pub async fn everything(means: &Means) -> Result<Summary, FailureError> {
    let mut summary = Summary::default();
    for (ledger, found) in ledger::all(&means.client, &means.namespace).await? {
        summary.join(entries(means, &ledger, found).await);
    }
    Ok(summary)
}
