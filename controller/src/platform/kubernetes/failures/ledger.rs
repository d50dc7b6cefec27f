//! What runs have changed in the cluster and not yet undone: written down *before* it is changed, struck out after it was undone.
//!
//! So whoever comes next (a new leader, `steadfast undo`, the chart's removal) finds it and takes it back. An entry says how to undo and until when the change
//! may last at most; nothing is changed that could not be written down first. A run's ledger is a ConfigMap in the controller's namespace and not part of the test,
//! so that a test (and its whole namespace) can be deleted at any moment and nothing has to wait for a finalizer.
//!
//! Writes carry the resource version that they were made from, so that two writers never lose each other's entries.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions},
};
use serde::{Deserialize, Serialize};
use steadfast_api::Span;

use super::{
    FailureError,
    error::{is_busy, patiently},
};

/// On every ledger.
const LABEL: &str = "steadfast.dev/ledger";
const KEY: &str = "inForce.json";
/// Whose it is, for people.
const TEST_KEY: &str = "test";
/// Changes of one run in force at once.
pub const ENTRIES_MAX: usize = 1_000;
/// Writes that lost against another writer are made again this often.
const TRIES: u32 = 20;

/// How to take one change of a cluster back. `id` is never given twice: a ledger whose last entry is struck out is gone, and whoever strikes an entry out late must
/// not hit one of the next ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undo {
    pub id: u64,
    /// RFC 3339: the run itself takes it back by then, and whoever finds it later knows that the run is no more.
    pub expires_at: String,
    pub change: ClusterChange,
}

/// A change that outlives its maker unless somebody takes it back. What is not as the run made it is somebody else's by now, and is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ClusterChange {
    /// A pod in the controller's namespace that burns CPU on a node.
    Burner { pod: String, node: String },
    /// A pod in the controller's namespace that plays the users.
    Users { pod: String },
    /// The node was schedulable before.
    Cordoned { node: String },
    /// This taint was not there before.
    Tainted { node: String, key: String, value: String, effect: String },
    /// Replicas before, and what the run set (`to`). `uid`: of the workload; none in ledgers of before.
    Scaled {
        kind: String,
        namespace: String,
        name: String,
        #[serde(default)]
        uid: String,
        replicas: i32,
        to: i32,
    },
    /// A container's image before, and what the run set (`to`). `uid`: of the workload; none in ledgers of before.
    RolledOut {
        kind: String,
        namespace: String,
        name: String,
        #[serde(default)]
        uid: String,
        container: String,
        image: String,
        to: String,
    },
    /// The node's agent was asked by the `NodeFault` of this name; it heals by its own timer as well.
    NodeFault { node: String, name: String },
    /// The power hook switched it off.
    PoweredOff { node: String },
}

/// One run's. See the module. Wants `get`, `list`, `create`, `update` and `delete` on ConfigMaps of the controller's namespace.
#[derive(Clone, Debug)]
pub struct Ledger {
    api: Api<ConfigMap>,
    /// Of the ConfigMap.
    name: String,
    test: String,
}

impl Ledger {
    /// `run` names the run uniquely, `test` is `namespace/name`.
    pub fn new(client: Client, namespace: &str, run: &str, test: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: format!("steadfast-in-force-{run}"), test: test.to_owned() }
    }

    /// `namespace/name` of the test.
    pub fn test(&self) -> &str {
        &self.test
    }

    /// Everything in force, as it is written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn entries(&self) -> Result<Vec<Undo>, FailureError> {
        let map = self.api.get_opt(&self.name).await.map_err(|error| FailureError::api(self.what(), &error))?;
        map.as_ref().map_or_else(|| Ok(Vec::new()), entries_of)
    }

    /// Writes down what is about to be changed, for `lasts` at most. Returns the entry's id.
    ///
    /// # Errors
    /// When it cannot be written: then nothing may be changed.
    pub async fn record(&self, change: ClusterChange, lasts: Span) -> Result<u64, FailureError> {
        let now = Timestamp::now();
        let expires_at = now.checked_add(SignedDuration::try_from(lasts.get()).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX).to_string();
        let mut id = 0;
        self.edit(|entries| {
            if entries.len() >= ENTRIES_MAX {
                return Err(FailureError::new(self.what(), format!("has {ENTRIES_MAX} changes in force already: undo some first")));
            }
            let youngest = entries.iter().map(|entry| entry.id).max().unwrap_or(0);
            id = u64::try_from(now.as_nanosecond()).unwrap_or(0).max(youngest + 1);
            entries.push(Undo { id, expires_at: expires_at.clone(), change: change.clone() });
            Ok(())
        })
        .await?;
        Ok(id)
    }

    /// The change of this id is undone.
    ///
    /// # Errors
    /// When it cannot be struck out. It is then undone once more by whoever comes next, which does nothing.
    pub async fn strike(&self, id: u64) -> Result<(), FailureError> {
        self.edit(|entries| {
            entries.retain(|entry| entry.id != id);
            Ok(())
        })
        .await
    }

    /// Nobody is to undo what it says any more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn forget(&self) -> Result<(), FailureError> {
        let at_once = DeleteParams::default();
        match patiently(|| self.api.delete(&self.name, &at_once)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(FailureError::api(self.what(), &error)),
        }
    }

    fn what(&self) -> String {
        format!("the ledger of test {} (ConfigMap {})", self.test, self.name)
    }

    async fn edit(&self, mut edit: impl FnMut(&mut Vec<Undo>) -> Result<(), FailureError>) -> Result<(), FailureError> {
        for _ in 0..TRIES {
            let map = patiently(|| self.api.get_opt(&self.name)).await.map_err(|error| FailureError::api(self.what(), &error))?;
            let before = map.as_ref().map_or_else(|| Ok(Vec::new()), entries_of)?;
            let mut entries = before.clone();
            edit(&mut entries)?;
            let written = match map {
                _ if entries == before => return Ok(()),
                Some(map) if entries.is_empty() => {
                    let only = Preconditions { uid: map.uid(), resource_version: map.resource_version() };
                    self.api.delete(&self.name, &DeleteParams::default().preconditions(only)).await.map(drop)
                }
                Some(map) => self.api.replace(&self.name, &PostParams::default(), &self.map(map.metadata, &entries)?).await.map(drop),
                None => {
                    let metadata =
                        ObjectMeta { name: Some(self.name.clone()), labels: Some([(LABEL.to_owned(), "true".to_owned())].into()), ..ObjectMeta::default() };
                    self.api.create(&PostParams::default(), &self.map(metadata, &entries)?).await.map(drop)
                }
            };
            match written {
                Ok(()) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                // It may have been written all the same: it is read anew.
                Err(kube::Error::Api(status)) if is_busy(status.code) => tokio::time::sleep(std::time::Duration::from_millis(250)).await,
                Err(error) => return Err(FailureError::api(self.what(), &error)),
            }
        }
        Err(FailureError::new(self.what(), format!("somebody else wrote it, or the API server was too busy, {TRIES} times in a row")))
    }

    fn map(&self, metadata: ObjectMeta, entries: &[Undo]) -> Result<ConfigMap, FailureError> {
        let text = serde_json::to_string_pretty(entries).map_err(|error| FailureError::new(self.what(), error))?;
        let data = [(KEY.to_owned(), text), (TEST_KEY.to_owned(), self.test.clone())].into();
        Ok(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })
    }
}

/// The ledgers of all runs with something in force, with their entries; in place of those why they cannot be understood.
///
/// # Errors
/// When they cannot be listed: then nobody must believe that nothing is in force.
pub async fn all(client: &Client, namespace: &str) -> Result<Vec<(Ledger, Result<Vec<Undo>, FailureError>)>, FailureError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let maps = api.list(&ListParams::default().labels(LABEL)).await.map_err(|error| FailureError::api("the ledgers of runs", &error))?;
    let ledger = |map: ConfigMap| {
        let test = map.data.as_ref().and_then(|data| data.get(TEST_KEY).cloned()).unwrap_or_default();
        (Ledger { api: api.clone(), name: map.name_any(), test }, entries_of(&map))
    };
    Ok(maps.items.into_iter().map(ledger).collect())
}

fn entries_of(map: &ConfigMap) -> Result<Vec<Undo>, FailureError> {
    let Some(text) = map.data.as_ref().and_then(|data| data.get(KEY)) else { return Ok(Vec::new()) };
    serde_json::from_str(text).map_err(|error| {
        let by_newer =
            "a newer controller may have written it: install that one again, which undoes it, or undo by hand what it says and then `steadfast undo --forget`";
        FailureError::new(format!("{KEY} of ConfigMap {}", map.name_any()), format!("cannot be understood ({error}); {by_newer}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written_and_nothing_else_is_taken_for_nothing() {
        let entry = Undo { id: 3, expires_at: "2026-01-01T00:00:00Z".to_owned(), change: ClusterChange::Cordoned { node: "n1".to_owned() } };
        let map = |text: String| ConfigMap { data: Some([(KEY.to_owned(), text)].into()), ..ConfigMap::default() };
        assert_eq!(entries_of(&map(serde_json::to_string(&[&entry]).unwrap())).unwrap(), std::slice::from_ref(&entry));
        assert!(entries_of(&map("[{\"id\": 1, \"change\": {\"melted\": {}}}]".to_owned())).unwrap_err().why.contains("newer controller"));
    }
}
