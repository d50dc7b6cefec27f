//! Golden replays: known inputs sent to the model server on the path that users' requests take, and the answers compared.
//!
//! One thread of its own, because the reference engine computes on it; requests of users never wait for it.

pub mod replay;
pub mod schedule;

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use steadfast_golden_sets::{GoldenSet, SetError, enrol::Enrolment};
use tokio::task::LocalSet;

use crate::{drain::Phase, worker::Shared, worker::Worker};

/// A set that was read and checked.
pub struct Loaded {
    pub set: GoldenSet,
    /// The one enrolment beside it, if there is exactly one.
    pub enrolment: Option<Enrolment>,
    pub samples: NonZeroUsize,
}

/// Reads a set. Answers of the server are held against its enrolment where the set has exactly one; with several, nobody here knows which server
/// this is, so the stored answers decide.
pub fn load(directory: &Path) -> Result<Loaded, SetError> {
    let set = steadfast_golden_sets::set::read(directory)?;
    let names = Enrolment::names(directory)?;
    let enrolment = match names.as_slice() {
        [name] => Some(Enrolment::read(&set, directory, name)?),
        [] => None,
        several => {
            tracing::warn!(set = %directory.display(), ?several, "several enrolments: the stored answers decide");
            None
        }
    };
    let samples = NonZeroUsize::new(set.samples().len());
    let samples = samples.ok_or_else(|| SetError::Broken { file: directory.to_owned(), why: "has no samples: give at least one".into() })?;
    Ok(Loaded { set, enrolment, samples })
}

/// Replays `sets` on the calling thread until the sidecar leaves.
pub fn run(shared: &Arc<Shared>, sets: Vec<Loaded>, index: u64) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let worker = Worker::new(Arc::clone(shared), index)?;
        for (index, loaded) in sets.into_iter().enumerate() {
            tokio::task::spawn_local(schedule::run(worker.clone(), loaded, index as u64));
        }
        let mut drain = shared.drain.subscribe();
        crate::drain::reached(&mut drain, Phase::Grace).await;
        Ok(())
    })
}
