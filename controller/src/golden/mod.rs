//! Golden sets of a cluster: found by the name of their GoldenSet, fetched from where they lie, and believed only when the digest is right.

pub mod config_map;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use steadfast_api::resource::GoldenSource;

use crate::reconcile::resource::GoldenSet;

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
    let folder = match &spec.source {
        GoldenSource::ConfigMap(source) => {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let map = maps.get_opt(&source.name).await.map_err(|error| error.to_string())?;
            let map = map.ok_or_else(|| format!("GoldenSet {name}: there is no ConfigMap {} in namespace {namespace}", source.name))?;
            // In a folder of its name, so that it is found by it.
            config_map::unpack(&map, &under.join(name)).map_err(|why| format!("GoldenSet {name}: ConfigMap {}: {why}", source.name))?
        }
        GoldenSource::PersistentVolumeClaim(_) | GoldenSource::Image(_) | GoldenSource::ObjectStore(_) => {
            return Err(format!("GoldenSet {name}: spec.source: users' inputs are read from a configMap alone"));
        }
    };
    let read = steadfast_golden_sets::set::read(&folder).map_err(|error| format!("GoldenSet {name}: {error}"))?;
    match &spec.digest {
        Some(digest) if *digest != read.digest().to_string() => {
            Err(format!("GoldenSet {name}: spec.digest is {digest}, and the set's is {}: it is not the set that was meant", read.digest()))
        }
        _ => Ok(folder),
    }
}
