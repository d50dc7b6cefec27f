//! Golden sets that the controller assigns: fetched by digest, believed only when the digest is right, held in memory, replayed for as long as they are assigned.
//!
//! Whatever is assigned twice (by a GoldenSet and by a run, say) is replayed once, as often as the one that asks oftenest. When the controller is away, what was
//! assigned goes on.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use steadfast_api::{
    golden::{Decimal, Digest},
    policy::{GOLDEN_BYTES_MAX, GoldenAssignment},
};
use steadfast_golden_sets::{sequential::Settings, set::archive};
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use super::{
    Loaded,
    schedule::{self, Question, TELL_AGAIN, Terms, refuse, tell_refused},
};
use crate::{
    control::{Backoff, address::Controller},
    worker::Worker,
};

const HEAD_WITHIN: Duration = Duration::from_secs(10);
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// Many sidecars are assigned a set at the same moment, and no user waits for it.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Name and digest.
type Key = (String, String);

/// A set that is fetched or replayed; dropping it ends that.
struct Running {
    terms: watch::Sender<Terms>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Replays what is assigned for as long as it is polled.
pub async fn follow(worker: Rc<Worker>, controller: Controller) {
    let mut wanted = worker.shared.store.golden.subscribe();
    let mut running: HashMap<Key, Running> = HashMap::new();
    let room = Rc::<Room>::default();
    let mut seed = worker.shared.config.golden_seed;
    loop {
        let assigned = merged(&wanted.borrow_and_update());
        running.retain(|key, _| assigned.contains_key(key));
        for (key, terms) in assigned {
            let terms = match terms {
                Ok(terms) => terms,
                Err(why) => {
                    refuse(&worker, &key.0, Some(key.1.clone()), &why);
                    running.remove(&key);
                    continue;
                }
            };
            if let Some(running) = running.get(&key) {
                running.terms.send_if_modified(|current| std::mem::replace(current, terms.clone()) != terms);
                continue;
            }
            seed = seed.wrapping_add(1);
            let (sender, receiver) = watch::channel(terms);
            let task = tokio::task::spawn_local(replay(Rc::clone(&worker), controller.clone(), Rc::clone(&room), key.clone(), receiver, seed));
            running.insert(key, Running { terms: sender, task: task.abort_handle() });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// What is assigned, each set once. `Err`: what cannot be promised.
fn merged(assignments: &[GoldenAssignment]) -> BTreeMap<Key, Result<Terms, String>> {
    let mut merged: BTreeMap<Key, Result<Terms, String>> = BTreeMap::new();
    for assignment in assignments {
        let key = (assignment.name.clone(), assignment.digest.clone());
        let together = match (merged.remove(&key), terms(assignment)) {
            (None, terms) => terms,
            (Some(Ok(one)), Ok(other)) => together(&one, &other),
            (Some(Err(why)), _) | (_, Err(why)) => Err(why),
        };
        merged.insert(key, together);
    }
    merged
}

fn terms(assignment: &GoldenAssignment) -> Result<Terms, String> {
    Digest::from_str(&assignment.digest).map_err(|error| error.to_string())?;
    let alpha = Decimal::from_str(&assignment.alpha).map_err(|error| format!("alpha: {error}"))?.value();
    let every = assignment.every.get();
    if every < Duration::from_millis(10) {
        return Err(format!("every: {} is too often: at least 10ms", assignment.every));
    }
    promise(every, Some(assignment.share), alpha, assignment.detect.ratio())
}

fn promise(every: Duration, share: Option<steadfast_api::Percent>, alpha: f64, detect: f64) -> Result<Terms, String> {
    let settings = Settings::monitor(alpha, detect);
    settings.check().map_err(|error| error.to_string())?;
    Ok(Terms { every, share, settings, recovered_after: settings.recovered_after(), lasting: true })
}

/// Both promises kept: the pace of the faster, and false alarms as rare in time as the stricter allows.
fn together(one: &Terms, other: &Terms) -> Result<Terms, String> {
    let every = one.every.min(other.every);
    // False alarms a second.
    let rate = |terms: &Terms| 1.0 / (terms.settings.run_length * terms.every.as_secs_f64());
    let alpha = rate(one).min(rate(other)) * every.as_secs_f64();
    promise(every, one.share.max(other.share), alpha, one.settings.detect.min(other.settings.detect))
}

async fn replay(worker: Rc<Worker>, controller: Controller, room: Rc<Room>, key: Key, terms: watch::Receiver<Terms>, seed: u64) {
    let (name, digest) = key;
    let mut backoff = Backoff::between(RETRY.0, RETRY.1);
    let mut refused = false;
    // Held for as long as the set is.
    let (loaded, _place) = loop {
        match fetch(&controller, &room, &digest).await {
            Ok(fetched) => break fetched,
            Err(NotFetched::Unreachable(why)) => tracing::info!(set = name, digest, why, "golden set not fetched yet"),
            Err(NotFetched::Wrong(why)) => {
                if std::mem::replace(&mut refused, true) {
                    tell_refused(&worker, &name, Some(digest.clone()));
                } else {
                    refuse(&worker, &name, Some(digest.clone()), &why);
                }
            }
        }
        backoff.wait().await;
    };
    tracing::info!(set = name, digest, samples = loaded.samples, "golden set fetched");
    schedule::run(Rc::clone(&worker), Question { name: name.as_str().into(), digest: Some(digest.clone()), loaded, terms, seed }).await;
    // It only ends when its own engine refuses the set.
    loop {
        tokio::time::sleep(TELL_AGAIN).await;
        tell_refused(&worker, &name, Some(digest.clone()));
    }
}

enum NotFetched {
    /// Another time it may be there.
    Unreachable(String),
    /// It is there, and cannot be used.
    Wrong(String),
}

async fn fetch(controller: &Controller, room: &Rc<Room>, digest: &str) -> Result<(Loaded, Place), NotFetched> {
    use NotFetched::{Unreachable, Wrong};
    let request = controller.request().map_err(Unreachable)?.uri(format!("/v1alpha1/golden-sets/{digest}")).body(Full::new(Bytes::new()));
    let request = request.map_err(|error| Wrong(error.to_string()))?;
    let response = controller.client().send(request, HEAD_WITHIN).await.map_err(|error| Unreachable(error.to_string()))?;
    if !response.status().is_success() {
        return Err(Unreachable(format!("the controller answered {}", response.status())));
    }
    let _door = room.door.lock().await;
    let free = room.free();
    let body = timeout(WHOLE_WITHIN, Limited::new(response.into_body(), free).collect()).await;
    let body = body.map_err(|_| Unreachable(format!("it did not come within {WHOLE_WITHIN:?}")))?;
    let tar = match body {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Wrong(format!("is larger than the {free} bytes that are left of {GOLDEN_BYTES_MAX} for all sets of a pod: take fewer samples")));
        }
        Err(error) => return Err(Unreachable(error.to_string())),
    };
    let place = room.take(tar.len());
    let set = archive::unpack(&tar).map_err(|error| Wrong(error.to_string()))?;
    if set.digest().to_string() != digest {
        return Err(Wrong(format!("its digest is {}: it is not the set that was assigned", set.digest())));
    }
    let loaded = Loaded::new(set, None).ok_or_else(|| Wrong("it has no samples".to_owned()))?;
    Ok((loaded, place))
}

/// Bytes of tars that are held.
#[derive(Debug, Default)]
struct Room {
    held: Cell<usize>,
    /// One set at a time comes in, so that what is free stays free meanwhile.
    door: tokio::sync::Mutex<()>,
}

impl Room {
    fn free(&self) -> usize {
        GOLDEN_BYTES_MAX.saturating_sub(self.held.get())
    }

    fn take(self: &Rc<Self>, bytes: usize) -> Place {
        self.held.set(self.held.get() + bytes);
        Place { room: Rc::clone(self), bytes }
    }
}

/// Given back when it is dropped.
struct Place {
    room: Rc<Room>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.held.set(self.room.held.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(every: &str, share: &str, alpha: &str) -> GoldenAssignment {
        let digest = Digest::new([7; 32]).to_string();
        serde_json::from_value(serde_json::json!({ "name": "digits", "digest": digest, "every": every, "share": share, "alpha": alpha })).unwrap()
    }

    #[test]
    fn what_is_assigned_twice_is_replayed_once_and_keeps_both_promises() {
        let year = assignment("10s", "1%", "3e-7");
        let run = assignment("1s", "100%", "1e-7");
        let merged = merged(&[year.clone(), run]);
        let terms = merged.values().next().unwrap().as_ref().unwrap();
        assert_eq!((merged.len(), terms.every, terms.share), (1, Duration::from_secs(1), Some(steadfast_api::Percent::HUNDRED)));
        // 3e-7 a sample at one in ten seconds is 3e-8 at one a second.
        assert!((terms.settings.run_length * 3e-8 - 1.0).abs() < 1e-9, "{:?}", terms.settings);
        let alone = super::merged(&[year]);
        let alone = alone.values().next().unwrap().as_ref().unwrap();
        assert!(alone.lasting && (alone.settings.run_length * 3e-7 - 1.0).abs() < 1e-9);
        assert_eq!(alone.recovered_after, 299, "0.99^299 is below one in twenty");
    }

    #[test]
    fn what_cannot_be_promised_is_refused() {
        for (every, alpha) in [("1s", "0.5"), ("1s", "-1"), ("1s", "often"), ("1ms", "1e-8")] {
            let merged = merged(&[assignment(every, "1%", alpha)]);
            assert!(merged.values().all(Result::is_err), "{every} {alpha}");
        }
        let mut bad = assignment("1s", "1%", "1e-8");
        bad.digest = "../x".to_owned();
        assert!(merged(&[bad]).values().all(Result::is_err));
    }

    #[test]
    fn places_are_given_back() {
        let room = Rc::<Room>::default();
        let place = room.take(GOLDEN_BYTES_MAX - 1);
        assert_eq!(room.free(), 1);
        drop(place);
        assert_eq!(room.free(), GOLDEN_BYTES_MAX);
    }
}
