//! How each change is taken back: only where it is still ours, and exactly.

use std::time::Duration;

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use steadfast_api::resource::{ClusterChange, Undo};

use super::{
    FailureError, Means,
    ledger::{Ledger, TestRef, entries_of, is_past, resilience_tests},
    node_faults, nodes,
    workload::Workload,
};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it was; in words.
    Undone(String),
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
    pub(super) fn add(&mut self, outcome: Result<Outcome, FailureError>) {
        match outcome {
            Ok(Outcome::Undone(words)) => self.undone.push(words),
            Ok(Outcome::NotOurs(words)) => self.not_ours.push(words),
            Ok(Outcome::NotMade) => {}
            Err(error) => self.failed.push(error.to_string()),
        }
    }

    fn join(&mut self, other: Self) {
        self.undone.extend(other.undone);
        self.not_ours.extend(other.not_ours);
        self.failed.extend(other.failed);
    }
}

/// Takes one change back. `within` bounds how long a node may take that heals by itself.
pub(super) async fn undo(means: &Means, test: &TestRef, change: &ClusterChange, within: Duration) -> Result<Outcome, FailureError> {
    let client = &means.client;
    // What is gone needs no undoing.
    let gone = |outcome: Result<Outcome, FailureError>| match outcome {
        Err(error) if error.gone => Ok(Outcome::NotMade),
        other => other,
    };
    gone(match change {
        ClusterChange::Made { api_version, kind, namespace, name } => remove(means, api_version, kind, namespace.as_deref(), name).await,
        ClusterChange::Cordoned { node } => nodes::uncordon(client, node, &test.to_string()).await,
        ClusterChange::Tainted { node, key, value, effect } => nodes::untaint(client, node, key, value, effect).await,
        ClusterChange::Scaled { kind, namespace, name, replicas, to } => {
            Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }.scale_back(client, *replicas, *to).await
        }
        ClusterChange::RolledOut { kind, namespace, name, container, image, to } => {
            Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }.roll_back(client, container, image, to).await
        }
        ClusterChange::NodeFault { what, .. } => node_faults::end(client, &means.namespace, what, within).await,
        ClusterChange::PoweredOff { node } => match &means.power {
            Some(hook) => hook.switch(node, true).await.map(|()| Outcome::Undone(format!("node {node} is switched on again"))),
            None => Err(FailureError::new(format!("node {node}"), "was switched off by the power hook, and this controller has none: start it with --power-hook")),
        },
    })
}

async fn remove(means: &Means, api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Result<Outcome, FailureError> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(means.client.clone(), namespace, &resource),
        None => Api::all_with(means.client.clone(), &resource),
    };
    match api.delete(name, &DeleteParams::background().grace_period(0)).await {
        Ok(_) => Ok(Outcome::Undone(format!("{kind} {name} is removed"))),
        Err(error) => Err(FailureError::api(format!("{kind} {name}"), &error)),
    }
}

/// Takes back everything that a test has in force: for a new leader, a halt, the deletion of the test. What fails stays in the ledger.
///
/// # Errors
/// When the ledger itself cannot be read.
pub async fn undo_all(means: &Means, test: &TestRef) -> Result<Summary, FailureError> {
    let ledger = Ledger::new(means.client.clone(), test.clone());
    let entries = match ledger.entries().await {
        Err(error) if error.gone => return Ok(Summary::default()),
        entries => entries?,
    };
    Ok(undo_entries(means, &ledger, entries).await)
}

/// The youngest first, so that what was built on another goes before it.
async fn undo_entries(means: &Means, ledger: &Ledger, mut entries: Vec<Undo>) -> Summary {
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.id));
    let mut summary = Summary::default();
    for entry in entries {
        let outcome = undo(means, ledger.test(), &entry.change, means.patience).await;
        let done = outcome.is_ok();
        summary.add(outcome);
        if done && let Err(error) = ledger.strike(entry.id).await {
            summary.failed.push(error.to_string());
        }
    }
    summary
}

/// Every test with something in force.
async fn tests_in_force(means: &Means) -> Result<Vec<(TestRef, Vec<Undo>)>, FailureError> {
    let api: Api<DynamicObject> = Api::all_with(means.client.clone(), &resilience_tests());
    let tests = match api.list(&ListParams::default()).await {
        Ok(tests) => tests,
        // The custom resource is not there (any more): nothing can be in force.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(FailureError::api("the tests of all namespaces", &error)),
    };
    let mut found = Vec::new();
    for test in tests.items {
        let entries = entries_of(&test)?;
        if !entries.is_empty() {
            let reference = TestRef { namespace: test.namespace().unwrap_or_default(), name: test.name_any(), uid: test.uid().unwrap_or_default() };
            found.push((reference, entries));
        }
    }
    Ok(found)
}

/// Takes back everything that any test has in force: before the chart is removed.
///
/// # Errors
/// When the tests cannot be listed.
pub async fn undo_everything(means: &Means) -> Result<Summary, FailureError> {
    let mut summary = Summary::default();
    for (test, entries) in tests_in_force(means).await? {
        summary.join(undo_entries(means, &Ledger::new(means.client.clone(), test), entries).await);
    }
    Ok(summary)
}

/// Takes back what is in force beyond its time, whatever became of its maker. The leader calls this every few seconds.
///
/// # Errors
/// When the tests cannot be listed.
pub async fn undo_expired(means: &Means) -> Result<Summary, FailureError> {
    let mut summary = Summary::default();
    for (test, entries) in tests_in_force(means).await? {
        let expired: Vec<Undo> = entries.into_iter().filter(|entry| is_past(&entry.expires_at)).collect();
        if !expired.is_empty() {
            summary.join(undo_entries(means, &Ledger::new(means.client.clone(), test), expired).await);
        }
    }
    Ok(summary)
}
