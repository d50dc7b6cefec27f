//! Objects of a cluster as they are now: listed once, then watched, for as long as anybody holds the handle. Only what is looked at is kept of each.

use std::{fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, Store},
        utils::Backoff,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// Objects that a list brings at once.
const PAGE: u32 = 500;
/// After so long the API server ends a watch, which then goes on where it was. One that is not ended by then hangs: whoever spoke at its other end may be gone.
pub const WATCH_SECONDS: u32 = 60;
/// Of an API server that cannot be asked, longest wait until it is asked again. It was away for a reason, and what is in force waits for its return.
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);
/// Of several namespaces, one that cannot be listed by then is not waited for.
const LISTED_WITHIN: Duration = Duration::from_secs(10);

/// When a watch that failed is begun again: as kube does, but never later than [`AGAIN_AT_MOST`].
#[derive(Default)]
pub struct Again(DefaultBackoff);

impl Iterator for Again {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|wait| wait.min(AGAIN_AT_MOST))
    }
}

impl Backoff for Again {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// A watch. Dropping it ends the watch.
pub struct Watched<K: Lookup + Clone + 'static>
where
    K::DynamicType: Hash + Eq + Clone,
{
    /// One of each API that is asked.
    stores: Vec<Store<K>>,
    changed: watch::Receiver<u64>,
    tasks: Vec<JoinHandle<()>>,
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Each object after `trim` has taken away what nobody here reads. Of `PartialObjectMeta` the API server sends metadata alone.
    pub fn objects(api: Api<K>, config: watcher::Config, trim: fn(&mut K)) -> Self {
        Self::within(vec![api], config, trim)
    }

    /// The same of several namespaces, each by an API of its own.
    pub fn within(apis: Vec<Api<K>>, config: watcher::Config, trim: fn(&mut K)) -> Self {
        let config = config.page_size(PAGE).timeout(WATCH_SECONDS);
        Self::of(apis.into_iter().map(|api| watcher(api, config.clone())), trim)
    }
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    fn of<S>(sources: impl Iterator<Item = S>, trim: fn(&mut K)) -> Self
    where
        S: Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    {
        let (change, changed) = watch::channel(0);
        let change = Arc::new(change);
        let (mut stores, mut tasks) = (Vec::new(), Vec::new());
        for events in sources {
            let (store, writer) = reflector::store();
            let what = K::kind(&()).into_owned();
            let events = events.backoff(Again::default()).modify(move |object| {
                object.managed_fields_mut().clear();
                trim(object);
            });
            let change = Arc::clone(&change);
            tasks.push(tokio::spawn(async move {
                let mut events = std::pin::pin!(events.reflect(writer));
                while let Some(event) = events.next().await {
                    match event {
                        // The old ones stay until the whole new list is there.
                        Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                        Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)) => change.send_modify(|count| *count += 1),
                        Err(error) => tracing::warn!(what, %error, "cannot be watched now"),
                    }
                }
            }));
            stores.push(store);
        }
        Self { stores, changed, tasks }
    }

    /// Returns once everything has been listed.
    pub async fn listed(&self) {
        // The other end is held by the task, which ends with this handle.
        if let [store] = self.stores.as_slice() {
            let _ = store.wait_until_ready().await;
            return;
        }
        // A namespace that is gone, and its rights with it, holds the others up no longer than this.
        let all = futures_util::future::join_all(self.stores.iter().map(Store::wait_until_ready));
        if timeout(LISTED_WITHIN, all).await.is_err() {
            tracing::warn!(what = %K::kind(&K::DynamicType::default()), "not every namespace can be listed; the others are looked at");
        }
    }

    /// Every object as it is now.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.stores.iter().flat_map(Store::state).collect()
    }

    /// `namespace`: of those that have one.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        let object = reflector::ObjectRef::new(name);
        let object = match namespace {
            Some(namespace) => object.within(namespace),
            None => object,
        };
        self.stores.iter().find_map(|store| store.get(&object))
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
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
