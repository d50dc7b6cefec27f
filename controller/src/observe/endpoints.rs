//! The pods of the run: where they stood, who replaced whom, and what state each was in when.
//!
//! Fed with platform changes and with the sidecars' word that a model is loaded. Pods that replace each other share a lane.

use std::collections::{BTreeSet, HashMap};

use steadfast_api::report::PodState;

use crate::platform::What;

/// One pod.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own; `settle` makes the one state of them")]
pub struct Track {
    pub name: String,
    pub uid: String,
    pub node: String,
    pub lane: u32,
    /// Since when, in microseconds since the epoch; every state differs from the one before it.
    pub states: Vec<(i64, PodState)>,
    /// In the Service since then.
    pub endpoint_since: Option<i64>,
    /// How often its server ended by itself, and how the last time.
    pub deaths: u32,
    pub last_death: Option<String>,
    running: bool,
    loaded: bool,
    waiting: bool,
    terminating: bool,
    gone: bool,
}

impl Track {
    pub fn state(&self) -> PodState {
        self.states.last().map_or(PodState::Pending, |(_, state)| *state)
    }

    pub const fn is_gone(&self) -> bool {
        self.gone
    }

    /// At that moment; nothing before it was heard of.
    pub fn state_at(&self, at: i64) -> Option<PodState> {
        self.states.iter().rev().find(|(since, _)| *since <= at).map(|(_, state)| *state)
    }

    fn settle(&mut self, at: i64, silent: bool) {
        let state = if self.gone {
            PodState::Gone
        } else if self.terminating {
            PodState::Terminating
        } else if silent {
            PodState::Silent
        } else if self.waiting {
            PodState::BackOff
        } else if self.endpoint_since.is_some() {
            PodState::Serving
        } else if self.loaded {
            PodState::NotReady
        } else if self.running {
            PodState::Loading
        } else {
            PodState::Pending
        };
        if self.states.last().is_none_or(|(_, last)| *last != state) {
            // Two sources on two threads: a state never begins before the one that it follows.
            let at = self.states.last().map_or(at, |(last, _)| at.max(*last));
            self.states.push((at, state));
        }
    }
}

/// All pods.
#[derive(Debug, Default)]
pub struct Fleet {
    pods: Vec<Track>,
    by_uid: HashMap<String, usize>,
    silent: BTreeSet<String>,
    lanes: u32,
    dropped: u64,
}

impl Fleet {
    /// Names of pods in the request log are 16 bits.
    const MAX: usize = 65_000;

    /// In order of creation.
    pub fn pods(&self) -> &[Track] {
        &self.pods
    }

    pub fn find(&self, uid: &str) -> Option<usize> {
        self.by_uid.get(uid).copied()
    }

    /// Pods that are in the Service and heard from.
    pub fn serving(&self) -> impl Iterator<Item = &Track> {
        self.pods.iter().filter(|pod| pod.state() == PodState::Serving)
    }

    /// Those that are not, and whose place nobody else has taken: first those that may come, then those that are on their way out; in order of creation.
    pub fn out_of_service(&self) -> impl Iterator<Item = &Track> {
        let last = |index: usize| self.pods[index + 1..].iter().all(|later| later.lane != self.pods[index].lane);
        let out = |pod: &Track, terminating: bool| !pod.gone && pod.endpoint_since.is_none() && pod.terminating == terminating;
        let of = move |terminating| self.pods.iter().enumerate().filter(move |(index, pod)| out(pod, terminating) && last(*index)).map(|(_, pod)| pod);
        of(false).chain(of(true))
    }

    /// Pods that were too many to keep.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes out the fleet as it is; in this one stay those that were not gone then, with their states from `at` on. What was the index of each is told.
    pub fn before(&mut self, at: i64) -> (Self, HashMap<u32, u32>) {
        let earlier = std::mem::take(self);
        let mut kept = HashMap::new();
        for (was, pod) in earlier.pods.iter().enumerate().filter(|(_, pod)| pod.state_at(at) != Some(PodState::Gone)) {
            let mut pod = pod.clone();
            let first = pod.states.iter().rposition(|(since, _)| *since <= at).unwrap_or(0);
            pod.states.drain(..first);
            kept.insert(was as u32, self.pods.len() as u32);
            self.by_uid.insert(pod.uid.clone(), self.pods.len());
            self.pods.push(pod);
        }
        self.silent.clone_from(&earlier.silent);
        // Lanes of those that have gone are free again.
        let mut lanes: Vec<u32> = self.pods.iter().map(|pod| pod.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        for pod in &mut self.pods {
            pod.lane = lanes.partition_point(|lane| *lane < pod.lane) as u32;
        }
        self.lanes = lanes.len() as u32;
        (earlier, kept)
    }

    /// The sidecar's word on its model server.
    pub fn upstream(&mut self, at: i64, uid: &str, ready: bool) {
        self.with(at, uid, |pod| pod.loaded = ready);
    }

    /// Nobody hears from the node any more, or does again.
    pub fn node(&mut self, at: i64, node: &str, silent: bool) {
        let changed = if silent { self.silent.insert(node.to_owned()) } else { self.silent.remove(node) };
        if changed {
            for pod in self.pods.iter_mut().filter(|pod| pod.node == node) {
                pod.settle(at, silent);
            }
        }
    }

    pub fn change(&mut self, at: i64, what: &What) {
        match what {
            What::Created { pod, replaces } => {
                if self.pods.len() >= Self::MAX {
                    self.dropped += 1;
                    return;
                }
                let lane = replaces.as_ref().and_then(|uid| self.find(uid)).map(|index| self.pods[index].lane);
                let lane = lane.unwrap_or_else(|| {
                    self.lanes += 1;
                    self.lanes - 1
                });
                let mut track = Track {
                    name: pod.name.clone(),
                    uid: pod.uid.clone(),
                    node: pod.node.clone(),
                    lane,
                    states: Vec::new(),
                    endpoint_since: None,
                    deaths: 0,
                    last_death: None,
                    running: false,
                    loaded: false,
                    waiting: false,
                    terminating: false,
                    gone: false,
                };
                track.settle(at, false);
                self.by_uid.insert(pod.uid.clone(), self.pods.len());
                self.pods.push(track);
            }
            What::Scheduled { uid, node } => self.with(at, uid, |pod| pod.node.clone_from(node)),
            What::Initialized { uid } | What::Ready { uid, .. } | What::Detected { uid, .. } | What::HeldOut { uid, .. } | What::Retired { uid } => {
                self.with(at, uid, |_| ());
            }
            What::ContainerStarted { uid, .. } => self.with(at, uid, |pod| {
                pod.running = true;
                pod.waiting = false;
                pod.loaded = false;
            }),
            What::Endpoint { uid, present } => self.with(at, uid, |pod| {
                pod.endpoint_since = present.then(|| pod.endpoint_since.unwrap_or(at));
                // Whoever came later than its sidecar's word knows it by this.
                pod.loaded |= *present;
            }),
            What::BackOff { uid, reason, .. } => self.with(at, uid, |pod| {
                pod.deaths += 1;
                pod.last_death = Some(reason.clone());
                pod.waiting = true;
                pod.running = false;
                pod.loaded = false;
            }),
            What::Terminating { uid } => self.with(at, uid, |pod| pod.terminating = true),
            What::Gone { uid, .. } => self.with(at, uid, |pod| {
                pod.gone = true;
                pod.endpoint_since = None;
            }),
            What::Node { node, ready } => self.node(at, node, !ready),
        }
    }

    fn with(&mut self, at: i64, uid: &str, change: impl FnOnce(&mut Track)) {
        if let Some(index) = self.find(uid) {
            let pod = &mut self.pods[index];
            change(pod);
            let silent = self.silent.contains(&pod.node);
            pod.settle(at, silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::testing::pod;

    #[test]
    fn a_pod_goes_through_its_states_in_order_and_its_successor_shares_its_lane() {
        let mut fleet = Fleet::default();
        let uid = || "u1".to_owned();
        fleet.change(0, &What::Created { pod: pod("a", "u1", "node-1"), replaces: None });
        fleet.change(1, &What::Scheduled { uid: uid(), node: "node-1".to_owned() });
        fleet.change(2, &What::ContainerStarted { uid: uid(), restarts: 0 });
        fleet.upstream(3, "u1", true);
        fleet.change(4, &What::Ready { uid: uid(), ready: true });
        fleet.change(5, &What::Endpoint { uid: uid(), present: true });
        fleet.node(6, "node-1", true);
        fleet.change(7, &What::Node { node: "node-1".to_owned(), ready: false });
        fleet.change(8, &What::Endpoint { uid: uid(), present: false });
        fleet.change(9, &What::Created { pod: pod("b", "u2", "node-2"), replaces: Some(uid()) });
        fleet.change(10, &What::Gone { uid: uid(), reason: String::new() });
        let states: Vec<_> = fleet.pods()[0].states.clone();
        assert_eq!(
            states,
            [(0, PodState::Pending), (2, PodState::Loading), (3, PodState::NotReady), (5, PodState::Serving), (6, PodState::Silent), (10, PodState::Gone)]
        );
        assert_eq!((fleet.pods()[1].lane, fleet.pods()[0].lane), (0, 0));
        assert_eq!(fleet.serving().count(), 0);
    }

    #[test]
    fn a_pod_that_has_served_and_is_kept_out_does_not_load() {
        let mut fleet = Fleet::default();
        let uid = || "u1".to_owned();
        fleet.change(0, &What::Created { pod: pod("a", "u1", "node-1"), replaces: None });
        fleet.change(1, &What::ContainerStarted { uid: uid(), restarts: 0 });
        fleet.change(2, &What::Endpoint { uid: uid(), present: true });
        fleet.change(3, &What::Endpoint { uid: uid(), present: false });
        assert_eq!(fleet.pods()[0].state(), PodState::NotReady);
        fleet.change(4, &What::ContainerStarted { uid: uid(), restarts: 1 });
        assert_eq!(fleet.pods()[0].state(), PodState::Loading);
    }
}
