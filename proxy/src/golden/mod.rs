//! Golden replays: known inputs sent to the model server on the path that users' requests take, and the answers compared.
//!
//! Sets come from the command line, and from the controller ([`assigned`]), side by side. One thread of its own for all of them, because the reference engine
//! computes on it; requests of users never wait for it.

pub mod assigned;
pub mod pace;
pub mod replay;
pub mod schedule;

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use steadfast_golden_sets::{GoldenSet, SetError, enrol::Enrolment};
use tokio::{sync::watch, task::LocalSet};

use self::schedule::{Question, Terms};
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
    Loaded::new(set, enrolment).ok_or_else(|| SetError::Broken { file: directory.to_owned(), why: "has no samples: give at least one".into() })
}

impl Loaded {
    /// `None`: it has no samples.
    pub fn new(set: GoldenSet, enrolment: Option<Enrolment>) -> Option<Self> {
        let samples = NonZeroUsize::new(set.samples().len())?;
        Some(Self { set, enrolment, samples })
    }

    /// The name under which a set of the command line is reported: its directory's, or its model's.
    fn name(&self) -> String {
        let directory = self.set.directory().and_then(|directory| directory.canonicalize().ok());
        let directory = directory.as_deref().and_then(|directory| directory.file_name()).map(|name| name.to_string_lossy().into_owned());
        directory.unwrap_or_else(|| self.set.manifest().model.clone())
    }
}

/// Replays `sets`, and what the controller assigns, on the calling thread until the sidecar leaves.
pub fn run(shared: &Arc<Shared>, sets: Vec<Loaded>, index: u64) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let worker = Worker::new(Arc::clone(shared), index)?;
        let config = &shared.config;
        for (index, loaded) in sets.into_iter().enumerate() {
            let (terms, receiver) = watch::channel(Terms::by_hand(config.golden_every));
            let question = Question { name: loaded.name().into(), digest: None, loaded, terms: receiver, seed: config.golden_seed.wrapping_add(index as u64) };
            let worker = worker.clone();
            tokio::task::spawn_local(async move {
                schedule::run(worker, question).await;
                drop(terms);
            });
        }
        if let Some(controller) = config.controller.clone() {
            tokio::task::spawn_local(assigned::follow(worker.clone(), controller));
        }
        let mut drain = shared.drain.subscribe();
        crate::drain::reached(&mut drain, Phase::Grace).await;
        Ok(())
    })
}
