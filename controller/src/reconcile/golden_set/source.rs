//! The files of GoldenSets, as far as sidecars may fetch them: looked at again and again, read when they have changed, given out only with the right digest.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt};
use steadfast_api::{policy::GOLDEN_BYTES_MAX, resource::GoldenSetSpec};
use steadfast_golden_sets::set::archive;
use tokio::time::timeout;

use crate::{
    golden::{self, SourceError},
    serve::sets::SetStore,
};

/// A source that was read is looked at again after so long, and one that could not be read.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_IF_BAD: Duration = Duration::from_secs(5);
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// What is known of one GoldenSet's source.
#[derive(Debug, Default)]
pub struct Source {
    looked: Option<Instant>,
    /// Of the GoldenSet.
    generation: Option<i64>,
    /// Of the ConfigMaps.
    versions: Vec<Option<String>>,
    found: Option<Result<String, SourceError>>,
}

impl Source {
    /// The digest of what is held for the sidecars now, after a look where one is due.
    ///
    /// # Errors
    /// Why there is nothing. While the API server does not answer, what was there before stays.
    pub async fn look(
        &mut self,
        client: &Client,
        namespace: &str,
        uid: &str,
        generation: Option<i64>,
        spec: &GoldenSetSpec,
        sets: &SetStore,
    ) -> Result<String, SourceError> {
        let again = if matches!(self.found, Some(Ok(_))) { AGAIN } else { AGAIN_IF_BAD };
        let due = self.looked.is_none_or(|looked| looked.elapsed() >= again) || self.generation != generation;
        if let Some(found) = self.found.as_ref().filter(|_| !due) {
            return found.clone();
        }
        self.looked = Some(Instant::now());
        let read = timeout(ASKED_WITHIN, self.read(client, namespace, uid, generation, spec, sets)).await;
        let read = read.unwrap_or_else(|_| Err(SourceError::Unavailable(format!("the API server did not answer within {ASKED_WITHIN:?}"))));
        match (&read, &self.found) {
            // What was there may well be there still.
            (Err(SourceError::Unavailable(why)), Some(Ok(digest))) if self.generation == generation => {
                tracing::warn!(namespace, why, "the source of a golden set cannot be looked at; what was read stays");
                return Ok(digest.clone());
            }
            _ => {}
        }
        self.generation = generation;
        self.found = Some(read.clone());
        read
    }

    async fn read(
        &mut self,
        client: &Client,
        namespace: &str,
        uid: &str,
        generation: Option<i64>,
        spec: &GoldenSetSpec,
        sets: &SetStore,
    ) -> Result<String, SourceError> {
        let names = golden::config_maps_of(&spec.source)?;
        if let Some(Ok(digest)) = &self.found
            && self.generation == generation
            && sets.get(digest).is_some()
        {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let mut now = Vec::new();
            for name in &names {
                let found = maps.get_metadata_opt(name).await.map_err(|error| SourceError::Unavailable(format!("ConfigMap {name}: {error}")))?;
                now.push(found.and_then(|found| found.resource_version()));
            }
            if now == self.versions {
                return Ok(digest.clone());
            }
        }
        let maps = golden::config_maps(client, namespace, &names).await?;
        let folder = Folder(std::env::temp_dir().join(format!("steadfast-golden-{uid}")));
        let set = golden::unpack(&maps, spec, &folder.0)?;
        let broken = |why: String| SourceError::Broken(format!("ConfigMap {}: {why}", names.join(", ")));
        let tar = archive::pack(&set).map_err(|error| broken(error.to_string()))?;
        if tar.len() > GOLDEN_BYTES_MAX {
            return Err(broken(format!("{} bytes are too many for a sidecar to hold: at most {GOLDEN_BYTES_MAX}; take fewer samples", tar.len())));
        }
        let digest = set.digest().to_string();
        sets.insert(&digest, tar).map_err(|error| broken(error.to_string()))?;
        self.versions = maps.iter().map(ResourceExt::resource_version).collect();
        Ok(digest)
    }
}

/// Removed with all it holds.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
