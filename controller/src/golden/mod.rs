//! Golden sets of a cluster: found by the name of their GoldenSet, fetched from where they lie, and believed only when the digest is right.

pub mod config_map;
pub mod gate;
pub mod rollout;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use steadfast_api::resource::{GoldenSetSpec, GoldenSource};
use steadfast_golden_sets::GoldenSet as Set;

use crate::reconcile::resource::GoldenSet;

/// Why a GoldenSet's files cannot be had; each says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("{0}")]
    NotSupported(String),
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

/// Names of the ConfigMaps in which a source lies, in order.
///
/// # Errors
/// When it is another kind of source, or too many.
pub fn config_maps_of(source: &GoldenSource) -> Result<Vec<String>, SourceError> {
    let other = match source {
        GoldenSource::ConfigMap(source) if (1..=config_map::PARTS_MAX).contains(&source.parts) => return Ok(config_map::names(&source.name, source.parts)),
        GoldenSource::ConfigMap(source) => {
            return Err(SourceError::Broken(format!("spec.source.configMap.parts: {} is out of bounds: write 1 to {}", source.parts, config_map::PARTS_MAX)));
        }
        GoldenSource::PersistentVolumeClaim(_) => "persistentVolumeClaim",
        GoldenSource::Image(_) => "image",
        GoldenSource::ObjectStore(_) => "objectStore",
    };
    Err(SourceError::NotSupported(format!(
        "spec.source.{other}: this version reads configMaps alone, at most {} of {} bytes each: `steadfast golden manifest FOLDER` makes them",
        config_map::PARTS_MAX,
        config_map::BYTES_MAX
    )))
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
    match &spec.digest {
        Some(digest) if *digest != set.digest().to_string() => {
            Err(SourceError::DigestMismatch(format!("spec.digest is {digest}, and the set's is {}: it is not the set that was meant", set.digest())))
        }
        _ => Ok(set),
    }
}

/// Fetches the GoldenSet `name` of a namespace into a folder of its own below `under`. Wants `get` on goldensets and on ConfigMaps there.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub async fn fetch(client: &Client, namespace: &str, name: &str, under: &Path) -> Result<PathBuf, String> {
    let sets: Api<GoldenSet> = Api::namespaced(client.clone(), namespace);
    let set = sets.get_opt(name).await.map_err(|error| error.to_string())?;
    let set =
        set.ok_or_else(|| format!("there is no GoldenSet {name} in namespace {namespace}: `steadfast golden manifest FOLDER | kubectl apply -f -` makes one"))?;
    let spec = set.spec.get().map_err(|why| format!("GoldenSet {name}: spec: {why}"))?;
    let wrong = |error: SourceError| format!("GoldenSet {name}: {error}");
    let maps = config_maps(client, namespace, &config_maps_of(&spec.source).map_err(wrong)?).await.map_err(wrong)?;
    // In a folder of its name, so that it is found by it.
    let folder = under.join(name);
    unpack(&maps, spec, &folder).map_err(wrong)?;
    Ok(folder)
}
