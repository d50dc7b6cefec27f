//! Objects of a cluster as they are now: listed once, then watched, for as long as anybody holds the handle. Only what is looked at is kept of each.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures_util::{Stream, StreamExt};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, task::JoinHandle};

/// Objects that a list brings at once.
const PAGE: u32 = 500;

/// A watch. Dropping it ends the watch.
pub struct Watched<K: Lookup + Clone + 'static>
where
    K::DynamicType: Hash + Eq + Clone,
{
    store: Store<K>,
    changed: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Each object after `trim` has taken away what nobody here reads. Of `PartialObjectMeta` the API server sends metadata alone.
    pub fn objects(api: Api<K>, config: watcher::Config, trim: fn(&mut K)) -> Self {
        Self::of(watcher(api, config.page_size(PAGE)), trim)
    }
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    fn of(events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static, trim: fn(&mut K)) -> Self {
        let (store, writer) = reflector::store();
        let (change, changed) = watch::channel(0);
        let what = K::kind(&()).into_owned();
        let events = events.default_backoff().modify(move |object| {
            object.managed_fields_mut().clear();
            trim(object);
        });
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(events.reflect(writer));
            while let Some(event) = events.next().await {
                match event {
                    // The old ones stay until the whole new list is there.
                    Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                    Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)) => change.send_modify(|count| *count += 1),
                    Err(error) => tracing::warn!(what, %error, "cannot be watched now"),
                }
            }
        });
        Self { store, changed, task }
    }

    /// Returns once everything has been listed.
    pub async fn listed(&self) {
        // The other end is held by the task, which ends with this handle.
        let _ = self.store.wait_until_ready().await;
    }

    /// Every object as it is now.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// `namespace`: of those that have one.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        let object = reflector::ObjectRef::new(name);
        self.store.get(&match namespace {
            Some(namespace) => object.within(namespace),
            None => object,
        })
    }

    /// Tells of changes; several may be told as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}

impl<K: Lookup + Clone + 'static> Drop for Watched<K>
where
    K::DynamicType: Hash + Eq + Clone,
{
    fn drop(&mut self) {
        self.task.abort();
    }
}
