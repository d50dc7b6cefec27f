//! The files of GoldenSets, as far as sidecars may fetch them: looked at again and again, read when they have changed, given out only with the right digest.
//!
//! What was read stays in force until what takes its place has been read: an edited GoldenSet goes on with the old content meanwhile, and a new leader with the one that
//! its predecessor named in the status, which the sidecars have. So nobody who is out of his Service returns because something is being read.
//!
//! ConfigMaps are read here; everything else is brought by a [reader](super::reader).

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt};
use steadfast_api::{
    policy::GOLDEN_BYTES_MAX,
    resource::{ConfigMapSource, GoldenSetSpec, GoldenSource},
};
use steadfast_golden_sets::{GoldenSet as Set, set::archive};
use tokio::time::timeout;

use super::reader::{Readers, Reading};
use crate::{
    golden::{self, SourceError},
    serve::sets::SetStore,
};

/// ConfigMaps that were read are looked at again after so long, and those that could not be read.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_IF_BAD: Duration = Duration::from_secs(5);
/// What takes a pod to read is read again after so long where no digest says that it cannot have changed, and where it could not be read.
const READ_AGAIN: Duration = Duration::from_mins(10);
const READ_AGAIN_IF_BAD: Duration = Duration::from_secs(30);
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// Which GoldenSet, and where what is read goes.
pub struct About<'a> {
    pub client: &'a Client,
    pub readers: &'a Readers,
    pub sets: &'a SetStore,
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub generation: Option<i64>,
    pub spec: &'a GoldenSetSpec,
}

/// What is known of one GoldenSet's source.
#[derive(Debug, Default)]
pub struct Source {
    looked: Option<Instant>,
    /// Of the GoldenSet that is looked at.
    generation: Option<i64>,
    /// Of the GoldenSet that `found` is about.
    in_force: Option<i64>,
    /// Where that lies, and which digest it has to have.
    of: Option<(GoldenSource, Option<String>)>,
    /// Of the ConfigMaps.
    versions: Vec<Option<String>>,
    reading: Option<Reading>,
    found: Option<Result<String, SourceError>>,
}

impl Source {
    /// What the leader before had read, of that generation: sidecars have it, and it is read again at once.
    pub fn taken_over(digest: &str, generation: Option<i64>) -> Self {
        Self { in_force: generation, found: Some(Ok(digest.to_owned())), ..Self::default() }
    }

    /// Generation of the GoldenSet whose source is in force.
    pub const fn in_force(&self) -> Option<i64> {
        self.in_force
    }

    /// The digest of what is held for the sidecars now, after a look where one is due.
    ///
    /// # Errors
    /// Why there is nothing. While nobody can say, what was there before stays.
    pub async fn look(&mut self, about: &About<'_>) -> Result<String, SourceError> {
        if self.generation != about.generation {
            self.end(about.readers).await;
            self.edited(about.generation, about.spec);
        }
        if let GoldenSource::ConfigMap(source) = &about.spec.source { self.by_config_maps(about, source).await } else { self.by_reader(about).await }
    }

    /// What was found stays until the source as it is now has been read, which takes no reading where it is the same.
    fn edited(&mut self, generation: Option<i64>, spec: &GoldenSetSpec) {
        self.generation = generation;
        let of = (spec.source.clone(), spec.digest.clone());
        let same = self.of.as_ref() == Some(&of) || matches!((&self.found, &of.1), (Some(Ok(found)), Some(digest)) if found == digest);
        self.of = Some(of);
        if same {
            self.in_force = generation;
        } else {
            (self.looked, self.versions) = (None, Vec::new());
            self.found.take_if(|found| found.is_err());
        }
    }

    /// Takes away what is under way.
    pub async fn end(&mut self, readers: &Readers) {
        if let Some(reading) = self.reading.take()
            && timeout(ASKED_WITHIN, readers.end(&reading)).await.is_err()
        {
            tracing::warn!("a reader of a golden set could not be removed in time; its deadline ends it");
        }
    }

    fn keep(&mut self, namespace: &str, found: Result<String, SourceError>) -> Result<String, SourceError> {
        self.looked = Some(Instant::now());
        // What was there may well be there still.
        if let (Err(SourceError::Unavailable(why)), Some(Ok(digest))) = (&found, &self.found) {
            tracing::warn!(namespace, why, "the source of a golden set cannot be looked at; what was read stays");
            return Ok(digest.clone());
        }
        self.in_force = self.generation;
        self.found = Some(found.clone());
        found
    }

    async fn by_reader(&mut self, about: &About<'_>) -> Result<String, SourceError> {
        if let Some(reading) = &mut self.reading {
            let Ok(Some(brought)) = timeout(ASKED_WITHIN, about.readers.look(reading)).await else { return self.so_far() };
            let found = self.keep(about.namespace, brought.and_then(|tar| accept(about, &tar)));
            self.end(about.readers).await;
            return found;
        }
        let since = self.looked.map_or(Duration::MAX, |looked| looked.elapsed());
        let due = match &self.found {
            None => true,
            Some(Ok(digest)) if self.in_force != about.generation || about.sets.get(digest).is_none() => since >= READ_AGAIN_IF_BAD,
            Some(Ok(_)) => about.spec.digest.is_none() && since >= READ_AGAIN,
            Some(Err(_)) => since >= READ_AGAIN_IF_BAD,
        };
        if due {
            let late = || Err(SourceError::Unavailable(format!("the API server did not answer within {ASKED_WITHIN:?}")));
            match timeout(ASKED_WITHIN, about.readers.begin(about)).await.unwrap_or_else(|_| late()) {
                Ok(reading) => self.reading = Some(reading),
                // It is its turn soon.
                Err(error @ SourceError::Reading(_)) => return self.found.clone().filter(Result::is_ok).unwrap_or(Err(error)),
                Err(error) => return self.keep(about.namespace, Err(error)),
            }
        }
        self.so_far()
    }

    /// Without a look.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub fn so_far(&self) -> Result<String, SourceError> {
        let reading = || self.reading.as_ref().map_or_else(|| "it has not been read yet".to_owned(), |reading| format!("a pod reads it: {}", reading.why));
        self.found.clone().unwrap_or_else(|| Err(SourceError::Reading(reading())))
    }

    async fn by_config_maps(&mut self, about: &About<'_>, source: &ConfigMapSource) -> Result<String, SourceError> {
        let again = if matches!(self.found, Some(Ok(_))) { AGAIN } else { AGAIN_IF_BAD };
        let due = self.looked.is_none_or(|looked| looked.elapsed() >= again);
        if let Some(found) = self.found.as_ref().filter(|_| !due) {
            return found.clone();
        }
        let read = timeout(ASKED_WITHIN, self.read(about, source)).await;
        let read = read.unwrap_or_else(|_| Err(SourceError::Unavailable(format!("the API server did not answer within {ASKED_WITHIN:?}"))));
        self.keep(about.namespace, read)
    }

    async fn read(&mut self, about: &About<'_>, source: &ConfigMapSource) -> Result<String, SourceError> {
        let names = golden::config_maps_of(source)?;
        if let Some(Ok(digest)) = &self.found
            && about.sets.get(digest).is_some()
        {
            let maps: Api<ConfigMap> = Api::namespaced(about.client.clone(), about.namespace);
            let mut now = Vec::new();
            for name in &names {
                let found = maps.get_metadata_opt(name).await.map_err(|error| SourceError::Unavailable(format!("ConfigMap {name}: {error}")))?;
                now.push(found.and_then(|found| found.resource_version()));
            }
            if now == self.versions {
                return Ok(digest.clone());
            }
        }
        let maps = golden::config_maps(about.client, about.namespace, &names).await?;
        let folder = Folder(std::env::temp_dir().join(format!("steadfast-golden-{}", about.uid)));
        let set = golden::unpack(&maps, about.spec, &folder.0)?;
        let digest = hold(about.sets, &set).map_err(|why| SourceError::Broken(format!("ConfigMap {}: {why}", names.join(", "))))?;
        self.versions = maps.iter().map(ResourceExt::resource_version).collect();
        Ok(digest)
    }
}

/// Holds what a reader brought, when it is what was meant.
fn accept(about: &About<'_>, tar: &Bytes) -> Result<String, SourceError> {
    let set = archive::unpack(tar).map_err(|error| SourceError::Broken(error.to_string()))?;
    hold(about.sets, &golden::meant(set, about.spec)?).map_err(SourceError::Broken)
}

fn hold(sets: &SetStore, set: &Set) -> Result<String, String> {
    let tar = archive::pack(set).map_err(|error| error.to_string())?;
    if tar.len() > GOLDEN_BYTES_MAX {
        return Err(format!("{} bytes are too many for a sidecar to hold: at most {GOLDEN_BYTES_MAX}; take fewer samples", tar.len()));
    }
    let digest = set.digest().to_string();
    sets.insert(&digest, tar).map_err(|error| error.to_string())?;
    Ok(digest)
}

/// Removed with all it holds.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(source: &str) -> GoldenSetSpec {
        serde_saphyr::from_str(&format!("{{{source}}}")).unwrap()
    }

    /// The source after an edit, and whether it is looked at anew.
    fn after(mut source: Source, spec: &GoldenSetSpec, generation: i64) -> (Result<String, SourceError>, Option<i64>, bool) {
        source.edited(generation.into(), spec);
        (source.so_far(), source.in_force(), source.looked.is_none())
    }

    #[test]
    fn what_was_read_stays_in_force_until_an_edited_source_has_been_read() {
        let claim = |name: &str, more: &str| spec(&format!("source: {{persistentVolumeClaim: {{claimName: {name}}}}}{more}"));
        let read = |spec: &GoldenSetSpec| {
            let mut source = Source::default();
            source.edited(Some(1), spec);
            assert_eq!(source.keep("models", Ok("sha256:1".into())).as_deref(), Ok("sha256:1"));
            source
        };
        let old = || Ok("sha256:1".to_owned());
        assert_eq!(after(read(&claim("a", "")), &claim("b", ""), 2), (old(), Some(1), true), "another claim is read, and the old set replayed meanwhile");
        assert_eq!(after(read(&claim("a", "")), &claim("a", ", schedule: {every: 5s}"), 2), (old(), Some(2), false), "nothing of the source is another");
        assert_eq!(after(read(&claim("a", "")), &claim("b", ", digest: 'sha256:1'"), 2), (old(), Some(2), false), "it is known already what comes");
        assert_eq!(after(read(&claim("a", "")), &claim("a", ", digest: 'sha256:2'"), 2), (old(), Some(1), true));
        let mut moved = read(&claim("a", ""));
        moved.edited(Some(2), &claim("b", ""));
        assert_eq!(moved.keep("models", Ok("sha256:2".into())), Ok("sha256:2".into()));
        assert_eq!(moved.in_force(), Some(2));
    }

    #[test]
    fn a_new_leader_goes_on_with_what_the_status_names_and_reads_it_at_once() {
        let spec = spec("source: {persistentVolumeClaim: {claimName: a}}");
        assert_eq!(after(Source::taken_over("sha256:1", Some(3)), &spec, 3), (Ok("sha256:1".into()), Some(3), true));
        assert_eq!(after(Source::taken_over("sha256:1", Some(2)), &spec, 3), (Ok("sha256:1".into()), Some(2), true), "edited while nobody led");
        let mut broken = Source::default();
        broken.edited(Some(1), &spec);
        let _ = broken.keep("models", Err(SourceError::NotFound("nothing".into())));
        assert!(matches!(after(broken, &spec, 2).0, Err(SourceError::NotFound(_))), "as long as nothing of it is another");
    }
}
