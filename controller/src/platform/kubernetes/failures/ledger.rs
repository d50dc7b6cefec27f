//! What a run has changed in the cluster and not yet undone: written into the test's `status.inForce` *before* it is changed, struck out after it was undone.
//!
//! So whoever comes next (a new leader, the deletion of the test, the end of the installation) finds it and takes it back. An entry says how to undo and until
//! when the change may last at most. Nothing is changed that could not be written down first.
//!
//! Writes carry the resource version that they were made from, so that two writers never lose each other's entries.

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::json;
use steadfast_api::{
    Span,
    resource::{ClusterChange, Undo},
};

use super::{FIELD_MANAGER, FailureError};

/// Changes of one run in force at once.
pub const ENTRIES_MAX: usize = 1_000;
/// Writes that lost against another writer are made again this often.
const TRIES: u32 = 20;

/// The test that a ledger belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl std::fmt::Display for TestRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `ResilienceTest`, as the API server knows it.
pub fn resilience_tests() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("steadfast.dev", "v1alpha1", "ResilienceTest"), "resiliencetests")
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Ledger {
    api: Api<DynamicObject>,
    test: TestRef,
}

impl Ledger {
    pub fn new(client: Client, test: TestRef) -> Self {
        Self { api: Api::namespaced_with(client, &test.namespace, &resilience_tests()), test }
    }

    pub const fn test(&self) -> &TestRef {
        &self.test
    }

    /// Everything in force, as it is written.
    ///
    /// # Errors
    /// When the test cannot be read, or is gone.
    pub async fn entries(&self) -> Result<Vec<Undo>, FailureError> {
        let test = self.api.get(&self.test.name).await.map_err(|error| FailureError::api(format!("test {}", self.test), &error))?;
        entries_of(&test)
    }

    /// Writes down what is about to be changed, for `lasts` at most. Returns the entry's id.
    ///
    /// # Errors
    /// When it cannot be written: then nothing may be changed.
    pub async fn record(&self, change: ClusterChange, lasts: Span) -> Result<u64, FailureError> {
        let expires_at = rfc3339_in(lasts);
        let mut id = 0;
        self.edit(|entries| {
            if entries.len() >= ENTRIES_MAX {
                return Err(FailureError::new(format!("test {}", self.test), format!("has {ENTRIES_MAX} changes in force already: undo some first")));
            }
            id = entries.iter().map(|entry| entry.id).max().unwrap_or(0) + 1;
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
        match self.edit(|entries| {
            entries.retain(|entry| entry.id != id);
            Ok(())
        })
        .await
        {
            // The test is gone and its ledger with it.
            Err(error) if error.gone => Ok(()),
            other => other,
        }
    }

    async fn edit(&self, mut edit: impl FnMut(&mut Vec<Undo>) -> Result<(), FailureError>) -> Result<(), FailureError> {
        let what = || format!("the ledger of test {}", self.test);
        for _ in 0..TRIES {
            let test = self.api.get(&self.test.name).await.map_err(|error| FailureError::api(what(), &error))?;
            if test.metadata.uid.as_deref() != Some(&self.test.uid) {
                return Err(FailureError { gone: true, ..FailureError::new(what(), "the test was deleted and made anew meanwhile") });
            }
            let before = entries_of(&test)?;
            let mut entries = before.clone();
            edit(&mut entries)?;
            if entries == before {
                return Ok(());
            }
            let patch = json!({ "metadata": { "resourceVersion": test.metadata.resource_version }, "status": { "inForce": entries } });
            let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            match self.api.patch_status(&self.test.name, &parameters, &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                Err(error) => return Err(FailureError::api(what(), &error)),
            }
        }
        Err(FailureError::new(what(), format!("somebody else wrote it {TRIES} times in a row meanwhile")))
    }
}

/// The entries of a test's status.
///
/// # Errors
/// When `status.inForce` is there and not to be understood: then nobody must believe that nothing is in force.
pub fn entries_of(test: &DynamicObject) -> Result<Vec<Undo>, FailureError> {
    let Some(entries) = test.data.pointer("/status/inForce") else { return Ok(Vec::new()) };
    serde_json::from_value(entries.clone()).map_err(|error| {
        let name = test.metadata.name.as_deref().unwrap_or_default();
        FailureError::new(format!("status.inForce of test {name}"), format!("cannot be understood ({error}); a newer controller may have written it"))
    })
}

/// The moment so far from now, as Kubernetes writes it.
pub(super) fn rfc3339_in(span: Span) -> String {
    let now = jiff::Timestamp::now();
    now.checked_add(jiff::SignedDuration::try_from(span.get()).unwrap_or(jiff::SignedDuration::MAX)).unwrap_or(now).to_string()
}

/// The moment is past, or is none.
pub(super) fn is_past(rfc3339: &str) -> bool {
    rfc3339.parse::<jiff::Timestamp>().map_or(true, |moment| moment <= jiff::Timestamp::now())
}
