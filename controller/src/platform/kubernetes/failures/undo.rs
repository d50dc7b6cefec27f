//! How each change is taken back: only where it is still ours, and exactly.

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::DeleteParams};

use super::{
    FailureError, Means, burner,
    error::patiently,
    ledger::{self, ClusterChange, Ledger, Undo},
    node_faults, nodes,
    workload::Workload,
};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it was; in words that prove that it had been otherwise.
    Undone(String),
    /// As it was. That it had been otherwise is proved by others, or by nobody.
    Restored(String),
    /// As it was; why nothing proves that it had been otherwise, in words.
    Unproven(String),
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
    /// Undone, which says nothing of what it had done.
    pub restored: Vec<String>,
    /// Undone, or over by itself, without a proof that it had been in force; why.
    pub unproven: Vec<String>,
    /// Left to whoever changed it.
    pub not_ours: Vec<String>,
    /// Could not be undone; it stays in the ledger.
    pub failed: Vec<String>,
    /// Could not be undone, and was struck out of the ledger all the same, as somebody asked.
    pub forgotten: Vec<String>,
}

impl Summary {
    fn add(&mut self, outcome: Result<Outcome, FailureError>) {
        match outcome {
            Ok(Outcome::Undone(words)) => self.undone.push(words),
            Ok(Outcome::Restored(words)) => self.restored.push(words),
            Ok(Outcome::Unproven(words)) => self.unproven.push(words),
            Ok(Outcome::NotOurs(words)) => self.not_ours.push(words),
            Ok(Outcome::NotMade) => {}
            Err(error) => self.failed.push(error.to_string()),
        }
    }

    fn join(&mut self, other: Self) {
        self.undone.extend(other.undone);
        self.restored.extend(other.restored);
        self.unproven.extend(other.unproven);
        self.not_ours.extend(other.not_ours);
        self.failed.extend(other.failed);
        self.forgotten.extend(other.forgotten);
    }
}

/// Takes one change back. `test`: `namespace/name`.
async fn undo(means: &Means, test: &str, change: &ClusterChange) -> Result<Outcome, FailureError> {
    let client: &Client = &means.prompt;
    let outcome = match change {
        ClusterChange::Burner { pod, node } => burner::end(means, pod, node).await,
        ClusterChange::Users { pod } => remove_users(means, pod).await,
        ClusterChange::Cordoned { node } => nodes::uncordon(client, node, test).await,
        ClusterChange::Tainted { node, key, value, effect } => nodes::untaint(client, node, key, value, effect).await,
        ClusterChange::Scaled { kind, namespace, name, uid, replicas, to } => {
            let workload = Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone(), uid: uid.clone() };
            workload.scale_back(client, *replicas, *to).await
        }
        ClusterChange::RolledOut { kind, namespace, name, uid, container, image, to } => {
            let workload = Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone(), uid: uid.clone() };
            workload.roll_back(client, container, image, to).await
        }
        ClusterChange::NodeFault { node, name } => node_faults::end(client, &means.namespace, name, node).await,
        ClusterChange::PoweredOff { node } => power_on(means, node).await,
    };
    match outcome {
        // What is gone needs no undoing.
        Err(error) if error.gone => Ok(Outcome::NotMade),
        other => other,
    }
}

/// A pod that asks and changes nothing; its name is given once.
async fn remove_users(means: &Means, pod: &str) -> Result<Outcome, FailureError> {
    let api: Api<Pod> = Api::namespaced(means.prompt.clone(), &means.namespace);
    let at_once = DeleteParams::default().grace_period(0);
    match patiently(|| api.delete(pod, &at_once)).await {
        Ok(_) => Ok(Outcome::Restored(format!("users' pod {pod} removed"))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::NotMade),
        Err(error) => Err(FailureError::api(format!("users' pod {pod}"), &error)),
    }
}

/// A node that is no object of the cluster any more may be a machine that is off all the same: it is switched on where that can be done, and nothing waits for it where not.
async fn power_on(means: &Means, node: &str) -> Result<Outcome, FailureError> {
    let seen = nodes::seen_lost(&means.prompt, node).await;
    let switched = match &means.power {
        Some(hook) => hook.switch(node, true).await,
        None => Err(FailureError::new(
            format!("node {node}"),
            "was switched off by the power hook, and this controller has none now: switch it on, or set powerHook.url in the chart's values; \
             if the node is to stay off, `steadfast undo --forget`",
        )),
    };
    match (switched, seen) {
        (Ok(()), Ok(Some(lost))) => Ok(Outcome::Undone(format!("node {node} was switched off by the power hook ({lost}), and is switched on again"))),
        (Ok(()), Ok(None)) => Ok(Outcome::Unproven(format!("node {node} is switched on again; until then the cluster had not noticed that it was off"))),
        (Ok(()), Err(error)) => Ok(Outcome::Unproven(format!("node {node} is switched on again; the API server did not tell whether it noticed: {error}"))),
        (Err(why), Err(error)) if error.gone => {
            Ok(Outcome::Unproven(format!("node {node} is no node of the cluster any more, and could not be switched on: {why}")))
        }
        (Err(why), _) => Err(why),
    }
}

/// Takes these entries back, the youngest first, so that what was built on another goes before it. What fails stays in the ledger, and is returned.
pub async fn entries(means: &Means, ledger: &Ledger, entries: Vec<Undo>) -> (Summary, Vec<Undo>) {
    // A silent agent is waited for as long as its fault can last; meanwhile everything else is taken back.
    let (of_agents, mut others): (Vec<Undo>, Vec<Undo>) = entries.into_iter().partition(|entry| matches!(entry.change, ClusterChange::NodeFault { .. }));
    others.sort_by_key(|entry| std::cmp::Reverse(entry.id));
    let one_by_one = async {
        let (mut summary, mut left) = (Summary::default(), Vec::new());
        for entry in others {
            let (of_this, not_done) = one(means, ledger, entry).await;
            summary.join(of_this);
            left.extend(not_done);
        }
        (summary, left)
    };
    let at_once = join_all(of_agents.into_iter().map(|entry| one(means, ledger, entry)));
    let ((mut summary, mut left), of_agents) = tokio::join!(one_by_one, at_once);
    for (of_this, not_done) in of_agents {
        summary.join(of_this);
        left.extend(not_done);
    }
    (summary, left)
}

/// Takes one entry back and strikes it out; returns it where that failed.
async fn one(means: &Means, ledger: &Ledger, entry: Undo) -> (Summary, Option<Undo>) {
    let mut summary = Summary::default();
    let outcome = undo(means, ledger.test(), &entry.change).await;
    let done = outcome.is_ok();
    summary.add(outcome);
    if !done {
        return (summary, Some(entry));
    }
    match ledger.strike(entry.id).await {
        Ok(()) => (summary, None),
        Err(error) => {
            summary.failed.push(error.to_string());
            (summary, Some(entry))
        }
    }
}

/// Takes back what any run has in force: before the chart is removed, and by a leader between its runs. `forget`: what cannot be taken back is struck out all the same.
///
/// # Errors
/// When the ledgers cannot be listed.
pub async fn everything(means: &Means, forget: bool) -> Result<Summary, FailureError> {
    let mut summary = Summary::default();
    let mut ledgers = Vec::new();
    for (ledger, found) in ledger::all(&means.prompt, &means.namespace).await? {
        match found {
            Ok(mut found) => {
                // A watch goes on beside everything else.
                found.retain(|entry| !matches!(&entry.change, ClusterChange::Users { pod } if means.users.uses(pod)));
                ledgers.push((ledger, found));
            }
            Err(why) if !forget => summary.failed.push(why.to_string()),
            Err(why) => match ledger.forget().await {
                Ok(()) => summary.forgotten.push(why.to_string()),
                Err(error) => summary.failed.push(error.to_string()),
            },
        }
    }
    let taken_back = join_all(ledgers.iter().map(|(ledger, found)| entries(means, ledger, found.clone()))).await;
    for ((ledger, _), (mut of_this, left)) in ledgers.iter().zip(taken_back) {
        if forget {
            let failed = std::mem::take(&mut of_this.failed);
            for entry in left {
                if let Err(error) = ledger.strike(entry.id).await {
                    of_this.failed.push(error.to_string());
                }
            }
            of_this.forgotten = failed;
        }
        summary.join(of_this);
    }
    Ok(summary)
}
