//! Golden sets of a cluster: found by the name of their GoldenSet, fetched from where they lie, and believed only when the digest is right.

pub mod config_map;
pub mod gate;
pub mod read;
pub mod rollout;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use steadfast_api::resource::{ConfigMapSource, GoldenSetSpec, GoldenSource};
use steadfast_golden_sets::{GoldenSet as Set, set::archive};
use tokio::time::sleep;

use crate::reconcile::resource::GoldenSet;

/// A run waits for so long for a set that a reader pod is reading, or for an API server that does not answer.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// And for so long for a GoldenSet, or what it is in, that may be applied a moment after the test.
const THERE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a GoldenSet's files cannot be had; each says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("{0}")]
    NotSupported(String),
    /// Nobody granted what it takes.
    #[error("{0}")]
    NotAllowed(String),
    /// It is on its way.
    #[error("{0}")]
    Reading(String),
    #[error("{0}")]
    NotFound(String),
    /// They are there, and are no golden set.
    #[error("{0}")]
    Broken(String),
    #[error("{0}")]
    DigestMismatch(String),
    /// Nobody can say now.
    #[error("{0}")]
    Unavailable(String),
}

impl SourceError {
    /// The same with other words.
    fn map(self, words: impl Fn(&dyn std::fmt::Display) -> String) -> Self {
        let said = words(&self);
        match self {
            Self::NotSupported(_) => Self::NotSupported(said),
            Self::NotAllowed(_) => Self::NotAllowed(said),
            Self::Reading(_) => Self::Reading(said),
            Self::NotFound(_) => Self::NotFound(said),
            Self::Broken(_) => Self::Broken(said),
            Self::DigestMismatch(_) => Self::DigestMismatch(said),
            Self::Unavailable(_) => Self::Unavailable(said),
        }
    }
}

/// Names of the ConfigMaps in which a source lies, in order.
///
/// # Errors
/// When it is none, or too many.
pub fn config_maps_of(source: &ConfigMapSource) -> Result<Vec<String>, SourceError> {
    if !(1..=config_map::PARTS_MAX).contains(&source.parts) {
        return Err(SourceError::Broken(format!("spec.source.configMap.parts: {} is out of bounds: write 1 to {}", source.parts, config_map::PARTS_MAX)));
    }
    Ok(config_map::names(&source.name, source.parts))
}

/// The ConfigMaps of these names. Wants `get` on them.
pub async fn config_maps(client: &Client, namespace: &str, names: &[String]) -> Result<Vec<ConfigMap>, SourceError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut maps = Vec::new();
    for name in names {
        let map = api.get_opt(name).await.map_err(|error| SourceError::Unavailable(format!("ConfigMap {name}: {error}")))?;
        let missing = || SourceError::NotFound(format!("there is no ConfigMap {name} in namespace {namespace}: `steadfast golden manifest FOLDER` makes it"));
        maps.push(map.ok_or_else(missing)?);
    }
    Ok(maps)
}

/// The set in `maps`, unpacked into `folder`, which is made anew; its digest is the one that `spec` names, where it names one.
pub fn unpack(maps: &[ConfigMap], spec: &GoldenSetSpec, folder: &Path) -> Result<Set, SourceError> {
    let name = maps.first().and_then(|map| map.metadata.name.as_deref()).unwrap_or_default();
    let folder = config_map::unpack(maps, folder).map_err(|why| SourceError::Broken(format!("ConfigMap {name}: {why}")))?;
    let set = steadfast_golden_sets::set::read(&folder).map_err(|error| SourceError::Broken(format!("ConfigMap {name}: {error}")))?;
    meant(set, spec)
}

/// The set, unless `spec` names another digest.
pub fn meant(set: Set, spec: &GoldenSetSpec) -> Result<Set, SourceError> {
    match &spec.digest {
        Some(digest) if *digest != set.digest().to_string() => {
            Err(SourceError::DigestMismatch(format!("spec.digest is {digest}, and the set's is {}: it is not the set that was meant", set.digest())))
        }
        _ => Ok(set),
    }
}

/// Sets that the controller holds, as far as somebody has it replayed.
pub trait Held {
    fn get(&self, digest: &str) -> Option<Bytes>;
}

/// Fetches the GoldenSet `name` of a namespace into a folder of its own below `under`; what only reader pods can read is taken from what the controller holds.
/// Wants `get` on goldensets and on ConfigMaps there. What may be there in a moment is waited for.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub async fn fetch(client: &Client, namespace: &str, name: &str, under: &Path, held: &impl Held) -> Result<PathBuf, String> {
    // In a folder of its name, so that it is found by it.
    let folder = under.join(name);
    let began = Instant::now();
    loop {
        let why = match fetch_now(client, namespace, name, &folder, held).await {
            Ok(()) => return Ok(folder),
            Err(why) => why,
        };
        if began.elapsed() >= patience(&why) {
            return Err(why.to_string());
        }
        sleep(LOOK_EVERY).await;
    }
}

/// For how long it may be otherwise in a moment.
const fn patience(why: &SourceError) -> Duration {
    match why {
        SourceError::Reading(_) | SourceError::Unavailable(_) => READ_WITHIN,
        SourceError::NotFound(_) => THERE_WITHIN,
        SourceError::NotSupported(_) | SourceError::NotAllowed(_) | SourceError::Broken(_) | SourceError::DigestMismatch(_) => Duration::ZERO,
    }
}

async fn fetch_now(client: &Client, namespace: &str, name: &str, folder: &Path, held: &impl Held) -> Result<(), SourceError> {
    let sets: Api<GoldenSet> = Api::namespaced(client.clone(), namespace);
    let about = |error: &dyn std::fmt::Display| format!("GoldenSet {name}: {error}");
    let set = sets.get_opt(name).await.map_err(|error| SourceError::Unavailable(about(&error)))?;
    let set = set.ok_or_else(|| {
        let why = format!("there is no GoldenSet {name} in namespace {namespace}: `steadfast golden manifest FOLDER | kubectl apply -f -` makes one");
        SourceError::NotFound(why)
    })?;
    let spec = set.spec.get().map_err(|why| SourceError::Broken(about(&format!("spec: {why}"))))?;
    if let GoldenSource::ConfigMap(source) = &spec.source {
        let maps = config_maps(client, namespace, &config_maps_of(source).map_err(|error| error.map(about))?).await;
        unpack(&maps.map_err(|error| error.map(about))?, spec, folder).map_err(|error| error.map(about))?;
        return Ok(());
    }
    let status = set.status.as_ref().filter(|status| status.observed_generation == set.metadata.generation);
    if let Some(tar) = status.and_then(|status| held.get(status.digest.as_deref()?)) {
        let set = archive::unpack(&tar).map_err(|error| SourceError::Broken(about(&error)))?;
        return steadfast_golden_sets::set::write(&set, folder).map_err(|error| SourceError::Broken(about(&error)));
    }
    let ready = status.and_then(|status| status.conditions.iter().find(|condition| condition.kind == "Ready"));
    Err(SourceError::Reading(about(&ready.map_or("it has not been read yet", |ready| &ready.message))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waiting_may_mend_is_waited_for_and_nothing_else() {
        let why = String::new;
        assert_eq!(patience(&SourceError::Unavailable(why())), READ_WITHIN, "an API server between two leaders");
        assert_eq!(patience(&SourceError::NotFound(why())), THERE_WITHIN, "applied in one go with its test");
        assert_eq!(patience(&SourceError::DigestMismatch(why())), Duration::ZERO);
    }
}
