//! What was seen, and what follows from it: pure data structures, fed with platform changes, sidecars' evidence and users' requests. No input or output, no
//! clock of its own.
//!
//! [`History`] takes everything in while the run goes on and answers what has to be known at once ([`live`], [`open`]). At the end, [`History::seal`] puts it in order,
//! and the figures are computed from it: [`marks`] and [`recovery`] (outages), [`availability`] (availability, latency and consistency over any stretch),
//! [`series`] (over time), [`endpoints`] (the pods' states). Who watches on without an end takes out what lies behind from time to time (`window`). Every log has a bound, and what is dropped is counted.
//!
//! Times inside are microseconds since the epoch that the history was made with, on the machine's monotonic clock.

pub mod availability;
pub mod endpoints;
pub mod live;
pub mod marks;
pub mod open;
pub mod recovery;
pub mod replays;
pub mod requests;
pub mod series;
#[cfg(test)]
pub(crate) mod testing;
mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use steadfast_api::{golden::Outcome, report::Service, sidecar};

use self::{
    availability::Measured,
    endpoints::Fleet,
    live::Live,
    marks::{Answer, Fact, Planned, SILENT_AFTER, Terms, Traffic},
    replays::Replays,
    requests::{Kind, PodName, Request, Requests},
};
use crate::{
    load::Record,
    platform::{Change, What},
    serve::Seen,
};

/// Everything that was seen.
pub struct History {
    epoch: Instant,
    pub fleet: Fleet,
    pub requests: Requests,
    pub replays: Replays,
    pub live: Live,
    facts: Vec<(i64, Fact)>,
    dropped_facts: u64,
    /// When each sidecar of the fleet was heard last, by UID.
    heard: HashMap<String, i64>,
    silences: Vec<Silence>,
    /// When watching began, where it began with a target that had been there before.
    watched_from: Option<i64>,
    /// Pods that were in the Service then, and whose sidecars have not been heard since: by UID.
    unheard: HashSet<String>,
    look_back: i64,
}

/// A sidecar said nothing between two moments.
#[derive(Clone, Debug)]
struct Silence {
    uid: String,
    from: i64,
    until: i64,
}

impl History {
    const FACTS_MAX: usize = 1 << 20;
    const SILENCES_MAX: usize = 1 << 16;
    /// What a cluster takes to call a node lost, unless it is told otherwise.
    const NODE_GRACE: Duration = Duration::from_secs(50);
    /// Beyond that, until everybody has heard of it.
    const NOTICED_WITHIN: Duration = Duration::from_secs(15);

    /// `keep_us`: how far back [`live`] will be asked, in microseconds.
    pub fn new(epoch: Instant, keep_us: i64) -> Self {
        Self {
            epoch,
            fleet: Fleet::default(),
            requests: Requests::default(),
            replays: Replays::default(),
            live: Live::new(keep_us),
            facts: Vec::new(),
            dropped_facts: 0,
            heard: HashMap::new(),
            silences: Vec::new(),
            watched_from: None,
            unheard: HashSet::new(),
            look_back: (Self::NODE_GRACE + Self::NOTICED_WITHIN).as_micros() as i64,
        }
    }

    /// How long the platform takes to call a silent node lost.
    pub fn node_grace(&mut self, grace: Duration) {
        self.look_back = (grace + Self::NOTICED_WITHIN).as_micros() as i64;
    }

    /// Microseconds since the epoch, negative before it.
    pub fn us(&self, at: Instant) -> i64 {
        match at.checked_duration_since(self.epoch) {
            Some(since) => since.as_micros() as i64,
            None => -(self.epoch.duration_since(at).as_micros() as i64),
        }
    }

    pub fn change(&mut self, change: &Change) {
        let at = self.us(change.at);
        self.fleet.change(at, &change.what);
        if let What::Endpoint { uid, present: false } | What::Gone { uid, .. } | What::BackOff { uid, .. } = &change.what {
            self.out_of_service(uid);
        }
        self.fact(at, Fact::Change(change.what.clone()));
    }

    pub fn seen(&mut self, seen: &Seen) {
        let at = self.us(seen.at);
        let uid = &seen.pod.uid;
        let pod = self.fleet.find(uid).map(|index| index as u32);
        if pod.is_some() {
            self.hear(at, uid);
        }
        match &seen.what {
            sidecar::What::Upstream { ready } => {
                self.fleet.upstream(at, uid, *ready);
                self.fact(at, Fact::Upstream { uid: uid.clone(), ready: *ready });
            }
            sidecar::What::Golden(replay) => {
                if replay.outcome == Outcome::Mismatch {
                    self.live.wrong(at);
                }
                if let Some(pod) = pod {
                    self.replays.replayed(at, pod, replay);
                }
            }
            sidecar::What::GoldenVerdict { set, verdict, .. } => {
                if let Some(pod) = pod {
                    self.replays.judged(at, pod, set, *verdict);
                }
            }
            // The platform counts what was injected and proves it when a fault is undone; users see the requests themselves.
            sidecar::What::Policy { .. } | sidecar::What::Requests(_) => (),
        }
    }

    pub fn record(&mut self, record: &Record) {
        let pod = record.pod.as_ref().map_or(PodName::NONE, |name| self.requests.name(name));
        let request = Request::new(self.us(record.due), self.us(record.sent), self.us(record.ended), pod, Kind::of(record.end));
        self.live.request(&request);
        self.requests.push(request);
    }

    /// A sidecar spoke: it does so every second, whatever happens.
    fn hear(&mut self, at: i64, uid: &str) {
        self.unheard.remove(uid);
        let Some(last) = self.heard.get_mut(uid) else {
            self.heard.insert(uid.to_owned(), at);
            return;
        };
        if at - *last >= SILENT_AFTER {
            if self.silences.len() < Self::SILENCES_MAX {
                self.silences.push(Silence { uid: uid.to_owned(), from: *last, until: at });
            } else {
                self.dropped_facts += 1;
            }
        }
        *last = at.max(*last);
    }

    /// Watching begins with a target that has been there before, well or not. Of `wanted` pods so many are down as are not in the Service: their outages began before.
    pub fn watched_from(&mut self, at: i64, wanted: usize) {
        self.watched_from = Some(at);
        self.unheard = self.fleet.serving().map(|pod| pod.uid.clone()).filter(|uid| !self.heard.contains_key(uid)).collect();
        let missing = wanted.saturating_sub(self.fleet.serving().count());
        let uids: Vec<String> = self.fleet.out_of_service().take(missing).map(|pod| pod.uid.clone()).collect();
        if !uids.is_empty() {
            self.fact(at, Fact::Down { uids });
        }
    }

    /// Since when a pod in the Service has had a sidecar that said nothing, if one has; who has not spoken since watching began and gave no answer, since then.
    pub fn silent_since(&self, now: i64) -> Option<i64> {
        let since = |pod: &endpoints::Track| match (self.heard.get(&pod.uid), self.watched_from) {
            (Some(heard), _) => Some(*heard).filter(|heard| now - heard >= SILENT_AFTER),
            (None, Some(from)) => {
                let answered = || self.requests.find(&pod.name).and_then(|name| self.live.first_good(name)).is_some();
                // Were it lost, it would have been called that by then.
                Some(from).filter(|from| now - from <= self.look_back && self.unheard.contains(&pod.uid) && !answered())
            }
            (None, None) => None,
        };
        self.fleet.serving().filter_map(since).min()
    }

    /// A planned fault was asked for at `at`; `planned.since` is when it took hold.
    pub fn fault(&mut self, at: i64, planned: Planned) {
        if planned.takes {
            for node in &planned.nodes {
                self.fleet.node(planned.since, node, true);
            }
            let hit = |pod: &&endpoints::Track| planned.pods.contains(&pod.name) || planned.nodes.contains(&pod.node);
            let names: Vec<Arc<str>> = self.fleet.pods().iter().filter(hit).map(|pod| pod.name.as_str().into()).collect();
            for name in names {
                let name = self.requests.name(&name);
                self.live.out_of_service(name);
            }
        }
        self.fact(at, Fact::Fault(planned));
    }

    /// The fault `index` was over at `until`; nodes that it had silenced are heard again.
    pub fn fault_over(&mut self, index: u32, until: i64) {
        let mut heard = Vec::new();
        for (_, fact) in &mut self.facts {
            if let Fact::Fault(planned) = fact
                && planned.index == index
            {
                planned.until = Some(until);
                heard = if planned.takes { planned.nodes.clone() } else { Vec::new() };
            }
        }
        for node in heard {
            self.fleet.node(until, &node, false);
        }
    }

    /// Since when all is well: `expected` pods are in the Service and, where there are users, have answered one; no request failed and no answer was wrong.
    /// `None` while it is not.
    pub fn well_since(&self, expected: usize, users: bool) -> Option<i64> {
        let mut since = self.live.last_trouble().unwrap_or(i64::MIN);
        let mut serving = 0;
        for pod in self.fleet.serving() {
            serving += 1;
            since = since.max(pod.endpoint_since?);
            if users {
                since = since.max(self.live.first_good(self.requests.find(&pod.name)?)?);
            }
        }
        (serving >= expected).then_some(since)
    }

    /// Every pod in the Service has answered a golden replay rightly.
    pub fn replays_matched_on_all(&self) -> bool {
        self.fleet.serving().all(|pod| {
            let index = self.fleet.find(&pod.uid).map(|index| index as u32);
            self.replays.log.iter().any(|replay| Some(replay.pod) == index && replay.outcome == Outcome::Match)
        })
    }

    /// The run was over at `at`: what was undone after that is no part of it.
    pub fn cut(&mut self, at: Instant) {
        let at = self.us(at);
        self.requests.cut(at);
    }

    /// Puts everything in order; from then on the logs answer questions about any stretch of time.
    pub fn seal(&mut self) {
        self.facts.sort_by_key(|(at, _)| *at);
        self.requests.seal();
        self.replays.seal();
    }

    /// What users and golden replays saw in the given stretches of time, which must not overlap.
    pub fn measure(&self, stretches: &[(i64, i64)]) -> Measured {
        let mut measured = Measured::default();
        for (from, until) in stretches {
            for request in self.requests.due_in(*from, *until) {
                measured.request(request);
            }
            for replay in self.replays.between(*from, *until) {
                measured.replay(replay.outcome);
            }
        }
        measured
    }

    /// The same by pod, in the order of the fleet.
    pub fn measure_pods(&self, from: i64, until: i64) -> Vec<Service> {
        let names = self.names();
        let mut requests: HashMap<&str, Vec<&Request>> = HashMap::new();
        for request in self.requests.due_in(from, until) {
            if let Some(uid) = self.requests.text(request.pod).and_then(|name| bearer(&names, name, request.sent())) {
                requests.entry(uid).or_default().push(request);
            }
        }
        let mut replays: HashMap<u32, Vec<Outcome>> = HashMap::new();
        for replay in self.replays.between(from, until) {
            replays.entry(replay.pod).or_default().push(replay.outcome);
        }
        let pods = self.fleet.pods().iter().enumerate();
        pods.map(|(index, pod)| {
            // One at a time: a histogram is much larger than what becomes of it.
            let mut measured = Measured::default();
            for request in requests.get(pod.uid.as_str()).into_iter().flatten() {
                measured.request(request);
            }
            for outcome in replays.get(&(index as u32)).into_iter().flatten() {
                measured.replay(*outcome);
            }
            measured.service()
        })
        .collect()
    }

    /// Outages of a sealed history between `begin` and `end`; `hold` is how long good service must last, in microseconds. What showed before `begin` is evidence, too.
    pub fn outages(&self, hold: i64, begin: i64, end: i64) -> Vec<marks::Lost> {
        marks::outages(&self.facts, &self.traffic(), self.terms(hold), begin, end)
    }

    const fn terms(&self, hold: i64) -> Terms {
        Terms { hold, look_back: self.look_back, watched_from: self.watched_from }
    }

    /// What was dropped because a bound was reached, in words.
    pub fn dropped(&self) -> Vec<String> {
        let counts = [
            (self.requests.dropped(), "requests"),
            (self.replays.dropped(), "golden replays"),
            (self.dropped_facts, "platform changes"),
            (self.fleet.dropped(), "pods"),
        ];
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what} were more than is kept, and are in no figure")).collect()
    }

    /// Who had which name since when, in order.
    fn names(&self) -> BTreeMap<&str, Vec<(i64, &str)>> {
        let mut names: BTreeMap<&str, Vec<(i64, &str)>> = BTreeMap::new();
        for pod in self.fleet.pods() {
            let since = pod.states.first().map_or(i64::MIN, |(since, _)| *since);
            names.entry(&pod.name).or_default().push((since, &pod.uid));
        }
        names
    }

    fn traffic(&self) -> Traffic {
        let names = self.names();
        let mut traffic = Traffic { unheard: self.unheard.clone(), ..Traffic::default() };
        for request in self.requests.all() {
            let answer = Answer { sent: request.sent(), ended: request.ended(), kind: request.kind };
            match self.requests.text(request.pod) {
                Some(name) => {
                    let uid = bearer(&names, name, answer.sent).unwrap_or(name);
                    match traffic.by_pod.get_mut(uid) {
                        Some(answers) => answers.push(answer),
                        None => drop(traffic.by_pod.insert(uid.to_owned(), vec![answer])),
                    }
                }
                None => traffic.nowhere.push(answer),
            }
        }
        let over = self.silences.iter().map(|silence| (&silence.uid, silence.from, silence.until));
        for (uid, from, until) in over.chain(self.heard.iter().map(|(uid, last)| (uid, *last, i64::MAX))) {
            traffic.silences.entry(uid.clone()).or_default().push((from, until));
        }
        for answers in traffic.by_pod.values_mut().chain([&mut traffic.nowhere]) {
            answers.sort_by_key(|answer| answer.ended);
        }
        for replay in self.replays.log.iter().filter(|replay| replay.outcome == Outcome::Match) {
            if let Some(pod) = self.fleet.pods().get(replay.pod as usize) {
                traffic.matches.entry(pod.uid.clone()).or_default().push(replay.at);
            }
        }
        traffic
    }

    fn out_of_service(&mut self, uid: &str) {
        if let Some(index) = self.fleet.find(uid) {
            let name = self.requests.name(&self.fleet.pods()[index].name.as_str().into());
            self.live.out_of_service(name);
        }
    }

    fn fact(&mut self, at: i64, fact: Fact) {
        if self.facts.len() < Self::FACTS_MAX { self.facts.push((at, fact)) } else { self.dropped_facts += 1 }
    }
}

/// UID of the pod that had this name then: of a StatefulSet's pods one after the other has it.
fn bearer<'a>(names: &BTreeMap<&str, Vec<(i64, &'a str)>>, name: &str, at: i64) -> Option<&'a str> {
    let bearers = names.get(name)?;
    let after = bearers.partition_point(|(since, _)| *since <= at);
    bearers.get(after.saturating_sub(1)).map(|(_, uid)| *uid)
}
