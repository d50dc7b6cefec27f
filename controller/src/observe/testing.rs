//! Synthetic histories for the tests of this module and of what reads it: told in milliseconds.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    History,
    marks::{Answer, Fact, Lost, Planned, Terms, Traffic, outages},
    requests::Kind,
};
use crate::{
    load::{End, Record},
    platform::{Change, Pod, What},
};

pub(crate) fn pod(name: &str, uid: &str, node: &str) -> Pod {
    Pod { name: name.to_owned(), uid: uid.to_owned(), node: node.to_owned(), labels: BTreeMap::new(), in_service: false }
}

/// A story; UIDs are `uid-` and the pod's name.
#[derive(Default)]
pub(crate) struct Story {
    pub facts: Vec<(i64, Fact)>,
    pub traffic: Traffic,
    pub watched_from: Option<i64>,
}

pub(crate) fn uid(name: &str) -> String {
    format!("uid-{name}")
}

/// A history as a run keeps it.
pub(crate) struct Told {
    pub history: History,
    epoch: Instant,
}

impl Told {
    /// These pods are in service from the begin on.
    pub(crate) fn of(names: &[&str]) -> Self {
        let epoch = Instant::now();
        let mut told = Self { history: History::new(epoch, 10_000_000), epoch };
        for name in names {
            told.up(0, name, None);
        }
        told
    }

    pub(crate) fn at(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    pub(crate) fn change(&mut self, ms: u64, what: What) {
        self.history.change(&Change { at: self.at(ms), what });
    }

    pub(crate) fn up(&mut self, ms: u64, name: &str, replaces: Option<&str>) {
        self.change(ms, What::Created { pod: pod(name, &uid(name), "n1"), replaces: replaces.map(uid) });
        self.change(ms, What::Endpoint { uid: uid(name), present: true });
    }

    /// A request that took so long; `None`: it reached no pod.
    pub(crate) fn asked(&mut self, ms: u64, took: u64, pod: Option<&str>, end: End) {
        let (at, ended) = (self.at(ms), self.at(ms + took));
        self.history.record(&Record { due: at, sent: at, ended, pod: pod.map(Arc::from), end });
    }
}

impl Story {
    pub(crate) fn change(&mut self, ms: i64, what: What) -> &mut Self {
        self.facts.push((ms * 1000, Fact::Change(what)));
        self
    }

    pub(crate) fn created(&mut self, ms: i64, name: &str, node: &str, replaces: Option<&str>) -> &mut Self {
        self.change(ms, What::Created { pod: pod(name, &uid(name), node), replaces: replaces.map(uid) })
    }

    pub(crate) fn endpoint(&mut self, ms: i64, name: &str, present: bool) -> &mut Self {
        self.change(ms, What::Endpoint { uid: uid(name), present })
    }

    /// Scheduled, initialised, started, loaded, ready and in the Service, 10 ms apart from `ms` on.
    pub(crate) fn comes_up(&mut self, ms: i64, name: &str, node: &str) -> &mut Self {
        self.change(ms, What::Scheduled { uid: uid(name), node: node.to_owned() });
        self.change(ms + 10, What::Initialized { uid: uid(name) });
        self.change(ms + 20, What::ContainerStarted { uid: uid(name), restarts: 0 });
        self.upstream(ms + 30, name, true);
        self.change(ms + 40, What::Ready { uid: uid(name), ready: true });
        self.endpoint(ms + 50, name, true)
    }

    pub(crate) fn upstream(&mut self, ms: i64, name: &str, ready: bool) -> &mut Self {
        self.facts.push((ms * 1000, Fact::Upstream { uid: uid(name), ready }));
        self
    }

    pub(crate) fn kill(&mut self, ms: i64, index: u32, pods: &[&str]) -> &mut Self {
        self.planned(ms, index, true, pods, &[])
    }

    pub(crate) fn planned(&mut self, ms: i64, index: u32, takes: bool, pods: &[&str], nodes: &[&str]) -> &mut Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let planned = Planned { index, since: ms * 1000, until: None, takes, pods: owned(pods), nodes: owned(nodes), cause: format!("fault {index}") };
        self.facts.push((ms * 1000, Fact::Fault(planned)));
        self
    }

    /// The sidecar's last word before a silence that lasts.
    pub(crate) fn silent(&mut self, ms: i64, name: &str) -> &mut Self {
        self.traffic.silences.entry(uid(name)).or_default().push((ms * 1000, i64::MAX));
        self
    }

    /// Requests every `every` ms from `from` to `until`, answered after 1 ms. An empty name: they reached no pod.
    pub(crate) fn requests(&mut self, from: i64, until: i64, every: usize, name: &str, kind: Kind) -> &mut Self {
        let answers = if name.is_empty() { &mut self.traffic.nowhere } else { self.traffic.by_pod.entry(uid(name)).or_default() };
        answers.extend((from..until).step_by(every).map(|ms| Answer { sent: ms * 1000, ended: (ms + 1) * 1000, kind }));
        answers.sort_by_key(|answer| answer.ended);
        self
    }

    /// Outages with the run's zero at 0.
    pub(crate) fn outages(&mut self, hold_ms: i64, end_ms: i64) -> Vec<Lost> {
        self.facts.sort_by_key(|(at, _)| *at);
        outages(&self.facts, &self.traffic, Terms { hold: hold_ms * 1000, look_back: 65_000_000, watched_from: self.watched_from }, 0, end_ms * 1000)
    }
}
