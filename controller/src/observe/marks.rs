//! From facts to outages with their marks t0…t12.
//!
//! The rules, in the order in which they matter:
//!
//! - There is one open outage for each *place* (a pod and its successors) at a time. It opens when the pod that holds the place leaves the Service, or when a
//!   planned fault takes it away. t0 is the moment the fault took hold when it was planned, else the first evidence. The platform's word (the sidecar or the probe
//!   found the server not ready, the process died, the endpoint went) is the last of it: a node without power is called lost 40 s later. So evidence is looked for in
//!   the time before, as far back as the platform may take to notice and no further than the pod's last good sign (an answer, a replay that matched, its sidecar's
//!   word): the first request that failed on the pod, and where its sidecar has been silent since, the first that reached nobody, or the first report that did not come.
//! - An outage closes at t12. A holder that is lost again before that, by itself, prolongs the outage, and the marks of its recovery begin anew; if a planned
//!   fault takes it, the first outage ends there as *censored* (its recovery was cut off) and the fault opens another.
//! - t1 is the moment at which the first request was sent that failed on the lost pod, on its successor or on no pod at all: its user got nothing from then on, whenever
//!   the user gave up. The routing outage lasts from there until the last such request before t12 (on the lost pod: the last of all) was sent.
//! - t11 is the first 2xx that the successor gave to a user, the first correct prediction the first right answer of it to a user or to a golden replay. t12 is
//!   the beginning of the good service that then lasted for `hold`: no failure by this pod, no loss of its endpoint. Without users, t12 is t10.
//! - A place that is not wanted any more (scaled away, rolled over) ends without an outage, also when its pod's end was heard of a moment before the reason.
//! - What happened later is evidence that what must come before it had happened by then: t4 to t11 never run backwards (a sidecar polls every 20 ms, so the
//!   probe may find the model loaded before it does).
//!
//! An outage that has no t12 when the run ends is censored: its length is a lower bound. None is dropped.

use std::collections::{BTreeMap, HashMap};

use steadfast_api::mark::{Mark, Marks, Outage};

use super::requests::Kind;
use crate::platform::What;

/// Something that bears on outages.
#[derive(Clone, Debug)]
pub enum Fact {
    Change(What),
    /// A sidecar's word on its model server.
    Upstream {
        uid: String,
        ready: bool,
    },
    /// A planned fault, placed at the moment when it was asked for.
    Fault(Planned),
    /// From the history before.
    Ongoing(Ongoing),
}

/// A planned fault.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Index into the report's faults.
    pub index: u32,
    /// When it took hold.
    pub since: i64,
    /// When it was over; pods that it touched and that were lost until then were lost by it.
    pub until: Option<i64>,
    /// It takes pods away, rather than making their work harder.
    pub takes: bool,
    pub pods: Vec<String>,
    pub nodes: Vec<String>,
    /// In words, for [`Outage::cause`].
    pub cause: String,
}

/// An answer or its absence, as one pod's user saw it.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub sent: i64,
    pub ended: i64,
    pub kind: Kind,
}

/// What users, golden replays and whoever waits for sidecars saw, by the pod's UID: a StatefulSet's pods have their predecessors' names.
#[derive(Debug, Default)]
pub struct Traffic {
    /// In order of `ended`.
    pub by_pod: HashMap<String, Vec<Answer>>,
    /// Requests that reached no pod, in order of `ended`.
    pub nowhere: Vec<Answer>,
    /// Moments of golden replays that matched, in order.
    pub matches: HashMap<String, Vec<i64>>,
    /// Since when the sidecar said nothing, and until when (`i64::MAX`: it has not spoken since), in order.
    pub silences: HashMap<String, Vec<(i64, i64)>>,
}

impl Traffic {
    fn of(&self, uid: &str) -> &[Answer] {
        self.by_pod.get(uid).map_or(&[], Vec::as_slice)
    }

    /// The last word of a sidecar that was silent at that moment.
    fn silent_since(&self, uid: &str, at: i64) -> Option<i64> {
        let silences = self.silences.get(uid)?;
        silences.iter().find(|(since, until)| *since + SILENT_AFTER <= at && at < *until).map(|(since, _)| *since)
    }

    fn any(&self) -> bool {
        !self.by_pod.is_empty() || !self.nowhere.is_empty()
    }
}

/// An outage, and its marks in microseconds since the epoch.
#[derive(Clone, Debug)]
pub struct Lost {
    pub outage: Outage,
    pub at: BTreeMap<Mark, i64>,
}

/// How outages are told apart from everything else; in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long good service must last.
    pub hold: i64,
    /// How long the platform may take to notice a loss.
    pub look_back: i64,
}

#[derive(Clone, Debug, Default)]
struct Holder {
    name: String,
    uid: String,
    node: String,
}

#[derive(Clone, Debug)]
struct Open {
    lost: Holder,
    fault: Option<u32>,
    cause: String,
    /// When it was heard of: t0 is that or earlier.
    told: i64,
    node_lost: bool,
    at: BTreeMap<Mark, i64>,
    /// When the holder's work on the recovery began: what it did before proves nothing.
    since: i64,
    /// Of an outage that began in the history before: the first and the last request that failed there, and since when all was good at its end.
    continues: bool,
    failed: Option<(i64, i64)>,
    good_since: Option<i64>,
}

/// An outage that goes on when its history ends, with the place that it is of: the next history begins with it.
#[derive(Clone, Debug)]
pub struct Ongoing(Box<Place>);

impl Ongoing {
    /// UIDs of the pod that was lost, and of the one that holds its place now.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        let lost = self.0.open.as_ref().map(|open| open.lost.uid.as_str());
        lost.into_iter().chain([self.0.holder.uid.as_str()])
    }

    pub const fn in_service(&self) -> bool {
        self.0.in_service
    }

    /// What is lost, and since when.
    pub fn open(&self) -> Option<super::open::Open> {
        let open = self.0.open.as_ref()?;
        let Holder { name, node, .. } = open.lost.clone();
        Some(super::open::Open { pod: name, node, cause: open.cause.clone(), since: *open.at.get(&Mark::Fault)? })
    }
}

#[derive(Clone, Debug, Default)]
struct Place {
    holder: Holder,
    in_service: bool,
    /// Since when it has been, or last was.
    served_since: i64,
    /// First sign that something is wrong with a pod in service.
    suspect: Option<i64>,
    /// When the platform noticed that, before it left the Service.
    detected: Option<i64>,
    open: Option<Open>,
}

/// Within so many microseconds of a pod's end it is told why.
const RETIRED_LATE: i64 = 5_000_000;
/// A sidecar reports every second, whatever happens.
const REPORTS_EVERY: i64 = 1_000_000;
/// One that did not for so long is silent.
pub const SILENT_AFTER: i64 = 3_000_000;
/// What an endpoint's end says by itself.
const UNREADY: &str = "left the Service: its readiness probe failed";

/// Marks that a recovery must reach one after the other.
const CHAIN: [Mark; 8] = [
    Mark::ReplacementCreated,
    Mark::Scheduled,
    Mark::Initialized,
    Mark::ContainerStarted,
    Mark::ModelLoaded,
    Mark::Ready,
    Mark::EndpointAdded,
    Mark::FirstGoodResponse,
];

struct Builder<'a> {
    traffic: &'a Traffic,
    terms: Terms,
    end: i64,
    places: Vec<Place>,
    by_uid: HashMap<String, usize>,
    /// Since when nobody hears of them.
    lost_nodes: HashMap<String, i64>,
    plans: Vec<Planned>,
    done: Vec<Lost>,
}

/// Outages in order of t0. `facts` in order of time, those after `end` left out; `begin` is the run's zero, to which the outages' milliseconds refer: one that goes on
/// from the history before began ahead of it.
pub fn outages(facts: &[(i64, Fact)], traffic: &Traffic, terms: Terms, begin: i64, end: i64) -> Vec<Lost> {
    let mut builder = Builder::new(facts, traffic, terms, end);
    for index in 0..builder.places.len() {
        builder.close(index, end);
    }
    let mut lost = builder.done;
    lost.sort_by_key(|lost| lost.at.get(&Mark::Fault).copied());
    for (index, lost) in lost.iter_mut().enumerate() {
        lost.outage.id = index as u32 + 1;
        for (mark, at) in &lost.at {
            lost.outage.marks.set(*mark, (at - begin) as f64 / 1000.0);
        }
    }
    lost
}

/// Outages that have not ended at `end`.
pub fn ongoing<'f>(facts: impl IntoIterator<Item = &'f (i64, Fact)>, traffic: &Traffic, terms: Terms, end: i64) -> Vec<Ongoing> {
    let builder = Builder::new(facts, traffic, terms, end);
    let goes_on = |index: usize| {
        let (lost, failed) = builder.told(index, end).filter(|(lost, _)| lost.outage.censored)?;
        let mut place = builder.places[index].clone();
        let good_since = builder.good_since(index, end);
        let open = place.open.as_mut()?;
        (open.at, open.continues, open.failed, open.good_since) = (lost.at, true, failed, good_since);
        Some(Ongoing(Box::new(place)))
    };
    (0..builder.places.len()).filter_map(goes_on).collect()
}

impl<'a> Builder<'a> {
    fn new<'f>(facts: impl IntoIterator<Item = &'f (i64, Fact)>, traffic: &'a Traffic, terms: Terms, end: i64) -> Self {
        let (places, by_uid, lost_nodes) = (Vec::new(), HashMap::new(), HashMap::new());
        let mut builder = Self { traffic, terms, end, places, by_uid, lost_nodes, plans: Vec::new(), done: Vec::new() };
        for (at, fact) in facts.into_iter().filter(|(at, _)| *at <= end) {
            match fact {
                Fact::Change(what) => builder.change(*at, what),
                Fact::Upstream { uid, ready } => builder.upstream(*at, uid, *ready),
                Fact::Fault(planned) => builder.fault(planned),
                Fact::Ongoing(ongoing) => builder.goes_on(ongoing),
            }
        }
        builder
    }

    fn goes_on(&mut self, ongoing: &Ongoing) {
        for uid in ongoing.uids() {
            self.by_uid.insert(uid.to_owned(), self.places.len());
        }
        self.places.push((*ongoing.0).clone());
    }

    fn fault(&mut self, planned: &Planned) {
        self.plans.push(planned.clone());
        if !planned.takes {
            return;
        }
        for index in 0..self.places.len() {
            let holder = &self.places[index].holder;
            if self.places[index].in_service && (planned.pods.contains(&holder.name) || planned.nodes.contains(&holder.node)) {
                self.close(index, planned.since);
                self.open(index, planned.since, planned.since, Some(planned.index), planned.cause.clone());
            }
        }
    }

    fn change(&mut self, at: i64, what: &What) {
        match what {
            What::Created { pod, replaces } => {
                let holder = Holder { name: pod.name.clone(), uid: pod.uid.clone(), node: pod.node.clone() };
                let index = replaces.as_ref().and_then(|uid| self.by_uid.get(uid).copied()).unwrap_or_else(|| {
                    self.places.push(Place::default());
                    self.places.len() - 1
                });
                self.by_uid.insert(pod.uid.clone(), index);
                if self.places[index].in_service {
                    self.lost(index, at, "replaced while in service");
                }
                let place = &mut self.places[index];
                place.holder = holder;
                (place.suspect, place.detected) = (None, None);
                if let Some(open) = &mut place.open {
                    open.begin_anew(at);
                    open.at.insert(Mark::ReplacementCreated, at);
                }
            }
            What::Scheduled { uid, node } => {
                if let Some(place) = self.held_by(uid) {
                    place.holder.node.clone_from(node);
                    place.mark(Mark::Scheduled, at);
                }
            }
            What::Initialized { uid } => {
                if let Some(place) = self.held_by(uid) {
                    place.mark(Mark::Initialized, at);
                }
            }
            What::ContainerStarted { uid, restarts } => {
                if let Some(place) = self.held_by(uid) {
                    let again = !place.in_service && *restarts > 0;
                    if let Some(open) = place.open.as_mut().filter(|_| again) {
                        open.forget_from(Mark::ContainerStarted);
                        (open.since, open.good_since) = (at, None);
                    }
                    place.mark(Mark::ContainerStarted, at);
                }
            }
            What::Ready { uid, ready } => self.ready(at, uid, *ready),
            What::Endpoint { uid, present: true } => {
                if let Some(place) = self.held_by(uid) {
                    place.mark(Mark::EndpointAdded, at);
                    if !std::mem::replace(&mut place.in_service, true) {
                        place.served_since = at;
                    }
                    (place.suspect, place.detected) = (None, None);
                }
            }
            What::Endpoint { uid, present: false } => {
                self.lost_by_uid(uid, at, UNREADY);
                if let Some(open) = self.lost_pod(uid) {
                    open.at.entry(Mark::EndpointRemoved).or_insert(at);
                }
            }
            What::Detected { uid, .. } => {
                if let Some(open) = self.lost_pod(uid) {
                    open.at.entry(Mark::Detected).or_insert(at);
                } else if let Some(place) = self.held_by(uid).filter(|place| place.in_service) {
                    place.detected.get_or_insert(at);
                }
            }
            What::BackOff { uid, reason, .. } | What::Gone { uid, reason } => self.lost_by_uid(uid, at, reason),
            What::Retired { uid } => {
                if let Some(index) = self.by_uid.get(uid).copied().filter(|index| self.places[*index].holder.uid == *uid) {
                    // The end of its pod may have been heard of before the reason for it.
                    let begun = |open: &Open| open.fault.is_none() && open.at.get(&Mark::Fault).is_some_and(|began| at - began <= RETIRED_LATE);
                    if self.places[index].open.take_if(|open| begun(open)).is_none() {
                        self.close(index, at);
                    }
                    self.places[index].in_service = false;
                }
            }
            What::Terminating { uid } => self.lost_by_uid(uid, at, "deleted"),
            What::Node { node, ready: true } => drop(self.lost_nodes.remove(node)),
            What::Node { node, ready: false } => {
                self.lost_nodes.entry(node.clone()).or_insert(at);
                for open in self.places.iter_mut().filter_map(|place| place.open.as_mut()).filter(|open| open.lost.node == *node) {
                    open.at.entry(Mark::Detected).or_insert(at);
                    // Nodes and endpoints are heard of by two watches.
                    if open.fault.is_some() || at - open.told <= RETIRED_LATE {
                        open.of_lost_node();
                    }
                }
            }
        }
    }

    fn ready(&mut self, at: i64, uid: &str, ready: bool) {
        let Some(place) = self.held_by(uid) else { return };
        if ready {
            (place.suspect, place.detected) = (None, None);
            place.mark(Mark::Ready, at);
        } else if place.in_service {
            place.suspect.get_or_insert(at);
        } else if let Some(open) = &mut place.open {
            open.at.remove(&Mark::Ready);
        }
    }

    fn upstream(&mut self, at: i64, uid: &str, ready: bool) {
        let Some(place) = self.held_by(uid) else { return };
        if place.open.as_ref().is_some_and(|open| open.lost.uid != uid) {
            // It can only tell once it is up, and tells sooner than a kubelet that looks once a second.
            place.mark(Mark::Initialized, at);
        }
        match (&mut place.open, ready) {
            // Also when the probe was faster and the pod is in the Service already: see the last rule of the module.
            (Some(open), true) => {
                open.at.entry(Mark::ModelLoaded).or_insert(at);
            }
            (Some(open), false) if !place.in_service => {
                open.at.remove(&Mark::ModelLoaded);
            }
            _ => (),
        }
        if place.in_service {
            place.suspect = if ready { None } else { Some(place.suspect.unwrap_or(at)) };
        }
    }

    fn held_by(&mut self, uid: &str) -> Option<&mut Place> {
        let index = *self.by_uid.get(uid)?;
        let place = &mut self.places[index];
        (place.holder.uid == uid).then_some(place)
    }

    fn lost_pod(&mut self, uid: &str) -> Option<&mut Open> {
        let index = *self.by_uid.get(uid)?;
        self.places[index].open.as_mut().filter(|open| open.lost.uid == uid)
    }

    fn lost_by_uid(&mut self, uid: &str, at: i64, cause: &str) {
        if let Some(index) = self.by_uid.get(uid).copied().filter(|index| self.places[*index].in_service && self.places[*index].holder.uid == uid) {
            self.lost(index, at, cause);
        }
    }

    /// The holder left the Service, and nobody had planned it.
    fn lost(&mut self, index: usize, at: i64, cause: &str) {
        let told = self.places[index].suspect.unwrap_or(at);
        let Holder { name, node, .. } = &self.places[index].holder;
        // A fault that makes work harder is the cause of what it touched; one that took something else away is not.
        let plan = self
            .plans
            .iter()
            .rev()
            .find(|plan| plan.since <= told && plan.until.is_none_or(|until| told <= until) && (plan.pods.contains(name) || plan.nodes.contains(node)));
        let since = self.first_sign(index, told).max(plan.map_or(i64::MIN, |plan| plan.since));
        let cause = plan.map_or_else(|| cause.to_owned(), |plan| format!("{cause} (while {})", plan.cause));
        let fault = plan.map(|plan| plan.index);
        let node_lost = self.lost_nodes.get(node).copied();
        if self.sustained(index, since).is_none()
            && let Some(open) = &mut self.places[index].open
        {
            open.begin_anew(since);
            self.places[index].in_service = false;
            return;
        }
        self.close(index, since);
        if let Some(known) = node_lost {
            let detected = &mut self.places[index].detected;
            *detected = Some(detected.map_or(known, |detected| detected.min(known)));
        }
        self.open(index, since, told, fault, cause);
        if let Some(open) = self.places[index].open.as_mut().filter(|_| node_lost.is_some()) {
            open.of_lost_node();
        }
    }

    /// When the loss of the holder, which was heard of at `told`, showed first: see the first rule of the module.
    fn first_sign(&self, index: usize, told: i64) -> i64 {
        let place = &self.places[index];
        let uid = &place.holder.uid;
        let answers = self.traffic.of(uid);
        let earliest = (told - self.terms.look_back).max(place.served_since);
        let answered = answers.iter().filter(|answer| answer.kind.good() && answer.ended <= told).map(|answer| answer.ended).max();
        let matched = self.traffic.matches.get(uid).and_then(|matches| matches.iter().copied().filter(|at| *at <= told).max());
        let good = answered.max(matched).unwrap_or(earliest).max(earliest);
        // One that answers well cannot be heard for other reasons.
        let silent = self.traffic.silent_since(uid, told).filter(|since| since + REPORTS_EVERY >= good);
        let good = good.max(silent.unwrap_or(good));
        let failed = |answers: &[Answer]| {
            let since_then = answers.iter().filter(|answer| !answer.kind.good() && answer.sent >= good && answer.sent <= told);
            since_then.map(|answer| answer.sent).min()
        };
        let nobody = silent.and_then(|_| failed(&self.traffic.nowhere));
        let first = failed(answers).into_iter().chain(nobody).chain(silent.map(|since| since + REPORTS_EVERY)).min();
        first.map_or(told, |first| first.clamp(good.min(told), told))
    }

    fn open(&mut self, index: usize, at: i64, told: i64, fault: Option<u32>, cause: String) {
        let place = &mut self.places[index];
        place.in_service = false;
        place.suspect = None;
        let detected = place.detected.take().map(|detected| (Mark::Detected, detected.max(at)));
        let at_first = [(Mark::Fault, at)].into_iter().chain(detected).collect();
        let lost = place.holder.clone();
        place.open = Some(Open { lost, fault, cause, told, node_lost: false, at: at_first, since: at, continues: false, failed: None, good_since: None });
    }

    /// Since when the holder has served well, if that lasted for `hold` before `until`.
    fn sustained(&self, index: usize, until: i64) -> Option<i64> {
        self.good_since(index, until).filter(|begin| until - begin >= self.terms.hold)
    }

    /// The beginning of the good service that lasted for `hold` or goes on.
    fn good_since(&self, index: usize, until: i64) -> Option<i64> {
        let place = &self.places[index];
        let open = place.open.as_ref()?;
        let added = *open.at.get(&Mark::EndpointAdded)?;
        let mut begin = if self.traffic.any() { open.good_since } else { Some(added) };
        for answer in self.traffic.of(&place.holder.uid).iter().filter(|answer| answer.sent >= open.since && answer.ended <= until) {
            if answer.kind.good() {
                begin.get_or_insert(answer.ended);
            } else if begin.take_if(|begin| answer.ended - *begin < self.terms.hold).is_none() && begin.is_some() {
                break;
            }
        }
        begin
    }

    /// Ends the place's open outage at `until`, recovered or not.
    fn close(&mut self, index: usize, until: i64) {
        self.done.extend(self.told(index, until).map(|(lost, _)| lost));
        self.places[index].open = None;
    }

    /// The place's open outage as it stands at `until`; and the first and the last request that failed.
    fn told(&self, index: usize, until: i64) -> Option<(Lost, Option<(i64, i64)>)> {
        let sustained = self.sustained(index, until);
        let Place { holder, open, .. } = &self.places[index];
        let open = open.as_ref()?;
        let mut at = open.at.clone();
        let t0 = at.get(&Mark::Fault).copied().unwrap_or(until);
        let mine = || self.traffic.of(&holder.uid).iter().filter(|answer| answer.sent >= open.since && answer.ended <= until && answer.kind.good());

        if at.contains_key(&Mark::EndpointAdded)
            && let Some(first) = mine().next()
        {
            at.entry(Mark::FirstGoodResponse).or_insert(first.ended);
        }
        let right = mine().find(|answer| answer.kind == Kind::Right).map(|answer| answer.ended);
        let matched = self.traffic.matches.get(&holder.uid).and_then(|matches| matches.iter().copied().find(|at| *at >= open.since && *at <= until));
        if let Some(first) = right.into_iter().chain(matched).min() {
            at.entry(Mark::FirstCorrectPrediction).or_insert(first);
        }
        if let Some(sustained) = sustained {
            at.insert(Mark::Sustained, sustained);
        }
        order(&mut at, t0);

        let window_end = sustained.unwrap_or(until);
        let replaced = holder.uid != open.lost.uid;
        let failures = |answers: &[Answer], until: i64| {
            let within: Vec<i64> =
                answers.iter().filter(|answer| !answer.kind.good() && answer.ended >= t0 && answer.ended <= until).map(|answer| answer.sent.max(t0)).collect();
            within.iter().min().copied().zip(within.iter().max().copied())
        };
        let seen = [
            open.failed,
            failures(self.traffic.of(&open.lost.uid), if replaced { self.end } else { window_end }),
            if replaced { failures(self.traffic.of(&holder.uid), window_end) } else { None },
            failures(&self.traffic.nowhere, window_end),
        ];
        let first = seen.iter().flatten().map(|(first, _)| *first).min();
        let last = seen.iter().flatten().map(|(_, last)| *last).max();
        if let Some(first) = first {
            at.insert(Mark::FirstFailure, first);
        }

        let ms = |us: i64| us as f64 / 1000.0;
        let came_back = at.contains_key(&Mark::ReplacementCreated) || at.contains_key(&Mark::ContainerStarted) || at.contains_key(&Mark::EndpointAdded);
        let outage = Outage {
            id: 0,
            pod: open.lost.name.clone(),
            uid: open.lost.uid.clone(),
            node: open.lost.node.clone(),
            replacement: (replaced || came_back).then(|| holder.name.clone()),
            replacement_node: (replaced || came_back).then(|| holder.node.clone()),
            fault: open.fault,
            cause: if open.continues { format!("{} (since before this window)", open.cause) } else { open.cause.clone() },
            node_lost: open.node_lost,
            continues: open.continues,
            marks: Marks::default(),
            routing_outage_ms: first.zip(last).map(|(first, last)| ms(last - first)),
            capacity_outage_ms: ms(window_end - t0),
            censored: sustained.is_none(),
        };
        Some((Lost { outage, at }, first.zip(last)))
    }
}

impl Place {
    /// Also when the pod is in the Service already, if it took the place of the lost one: pods and endpoints are heard of by two watches, and the last rule of the module
    /// puts what is heard late where it belongs.
    fn mark(&mut self, mark: Mark, at: i64) {
        if let Some(open) = self.open.as_mut().filter(|open| !self.in_service || open.lost.uid != self.holder.uid) {
            open.at.entry(mark).or_insert(at);
        }
    }
}

impl Open {
    fn begin_anew(&mut self, at: i64) {
        self.forget_from(Mark::ReplacementCreated);
        self.since = at;
        self.good_since = None;
    }

    /// The pod was lost with its node, whose probes nobody asks any more.
    fn of_lost_node(&mut self) {
        self.node_lost = true;
        self.cause = self.cause.replacen(UNREADY, &format!("node {} was lost: nobody heard from it", self.lost.node), 1);
    }

    fn forget_from(&mut self, mark: Mark) {
        self.at.retain(|known, _| *known < mark);
    }
}

/// See the module: what came later bounds what must come before, and nothing comes before t0.
fn order(at: &mut BTreeMap<Mark, i64>, t0: i64) {
    for moment in at.values_mut() {
        *moment = (*moment).max(t0);
    }
    let mut latest = at.get(&Mark::Sustained).copied().unwrap_or(i64::MAX);
    for mark in CHAIN.iter().rev() {
        if *mark == Mark::ModelLoaded {
            latest = latest.min(at.get(&Mark::FirstCorrectPrediction).copied().unwrap_or(i64::MAX));
        }
        if let Some(moment) = at.get_mut(mark) {
            *moment = (*moment).min(latest);
            latest = *moment;
        }
    }
}

#[cfg(test)]
#[path = "marks_tests.rs"]
mod tests;
