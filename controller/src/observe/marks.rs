//! From facts to outages with their marks t0…t12.
//!
//! The rules, in the order in which they matter:
//!
//! - There is one open outage for each *place* (a pod and its successors) at a time. It opens when the pod that holds the place leaves the Service, or when a
//!   planned fault takes it away. t0 is the moment the fault took hold when it was planned, else the first evidence. The platform's word (the sidecar or the probe
//!   found the server not ready, the process died, the endpoint went) is the last of it: a node without power is called lost 40 s later. So evidence is looked for in
//!   the time before, as far back as the platform may take to notice and no further than the pod's last good sign (an answer, a replay that matched, its sidecar's
//!   word): the first request that failed on the pod, and where its sidecar has been silent since, the first that reached nobody, or the first report that did not come.
//! - A watch begins with a target as it is. Who is out of the Service then, or gave no sign of life between then and its loss, was lost *before*: t0 is when watching began,
//!   or the first failure after that; what happened ahead of it has no mark, and all lengths are lower bounds.
//! - An outage closes at t12. A holder that is lost again before that, by itself, prolongs the outage, and the marks of its recovery begin anew; if a planned
//!   fault takes it, the first outage ends there as *censored* (its recovery was cut off) and the fault opens another.
//! - t1 is the moment at which the first request was sent that failed on the lost pod, on its successor or on no pod at all: its user got nothing from then on, whenever
//!   the user gave up. The routing outage lasts from there until the last such request before t12 (on the lost pod: the last of all) was sent. One that reached no pod
//!   belongs to an outage until its endpoint has been withdrawn everywhere; later, to those that go on while nobody is in service or no other outage explains it.
//! - t11 is the first 2xx that the successor gave to a user, the first correct prediction the first right answer of it to a user or to a golden replay. t12 is
//!   the beginning of the good service that then lasted for `hold`: no failure by this pod, no loss of its endpoint. Without users, t12 is t10.
//! - A place that is not wanted any more (scaled away, rolled over) ends without an outage, also when its pod's end was heard of a moment before the reason.
//! - What happened later is evidence that what must come before it had happened by then: t4 to t11 never run backwards (a sidecar polls every 20 ms, so the
//!   probe may find the model loaded before it does), and an endpoint is withdrawn because somebody had noticed: t2 is no later than t3.
//!
//! An outage that has no t12 when the run ends is censored: its length is a lower bound. None is dropped.

use std::collections::{BTreeMap, HashMap, HashSet};

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
    /// These pods were out of the Service when watching began, and missed in it.
    Down {
        uids: Vec<String>,
    },
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
    /// Pods in the Service when watching began, whose sidecars have not been heard since then.
    pub unheard: HashSet<String>,
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
    /// When watching began, where it began with a target that had been there before.
    pub watched_from: Option<i64>,
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
    /// Nobody watched when it began; and its endpoint had gone by then, too.
    before: Option<Before>,
    at: BTreeMap<Mark, i64>,
    /// When the holder's work on the recovery began: what it did before proves nothing.
    since: i64,
    /// Of an outage that began in the history before: the first and the last request that failed there, and since when all was good at its end.
    continues: bool,
    failed: Option<(i64, i64)>,
    good_since: Option<i64>,
}

/// What had happened of an outage before anybody watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Began,
    /// And it was noticed, and its endpoint withdrawn.
    Withdrawn,
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
    /// Why it is kept out of the Service on purpose.
    held_out: Option<String>,
    /// A sidecar's word that the server of a pod in service was gone and came back, in that order: the platform may tell of it later.
    dip: Option<(i64, i64)>,
    /// It said that the server is not ready since that was last told to have started.
    unready: bool,
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
/// What is known of a pod that was out of the Service when watching began.
const DOWN: &str = "was out of the Service when watching began";
/// For so long after an endpoint was withdrawn users may still be led there: the last of the nodes has heard of it by then.
const ROUTES_STALE: i64 = 5_000_000;

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
    /// Places in service, and the stretches in which there was none.
    serving: usize,
    nobody: Vec<(i64, i64)>,
    done: Vec<Told>,
}

/// An outage as it stands, before what reached no pod is told apart.
struct Told {
    lost: Lost,
    /// First and last request that failed on its pods.
    failed: Option<(i64, i64)>,
    /// When its endpoint was withdrawn, if it was.
    withdrawn: Option<i64>,
    /// Its t12, or the end of what was seen of it.
    until: i64,
}

impl Told {
    /// Users were led to the lost pod.
    fn leads_to_nobody(&self) -> (i64, i64) {
        (self.lost.at.get(&Mark::Fault).copied().unwrap_or(self.until), self.withdrawn.map_or(i64::MAX, |at| at.saturating_add(ROUTES_STALE)).min(self.until))
    }
}

/// Outages in order of t0. `facts` in order of time, those after `end` left out; `begin` is the run's zero, to which the outages' milliseconds refer: one that goes on
/// from the history before began ahead of it.
pub fn outages(facts: &[(i64, Fact)], traffic: &Traffic, terms: Terms, begin: i64, end: i64) -> Vec<Lost> {
    let mut builder = Builder::new(facts, traffic, terms, end);
    for index in 0..builder.places.len() {
        builder.close(index, end);
    }
    let done = std::mem::take(&mut builder.done);
    let told = builder.with_failures(done);
    // What was over before is none of the run.
    let is_seen = |lost: &Lost| lost.at.get(&Mark::Sustained).is_none_or(|sustained| sustained.saturating_add(terms.hold) >= begin);
    let mut lost: Vec<Lost> = told.into_iter().map(|(lost, _)| lost).filter(is_seen).collect();
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
    let mut builder = Builder::new(facts, traffic, terms, end);
    let mut all = std::mem::take(&mut builder.done);
    let done = all.len();
    let (open, told): (Vec<usize>, Vec<Told>) = (0..builder.places.len()).filter_map(|index| Some((index, builder.told(index, end)?))).unzip();
    all.extend(told);
    let told = builder.with_failures(all);
    let goes_on = |(index, (lost, failed)): (usize, (Lost, Option<(i64, i64)>))| {
        if !lost.outage.censored {
            return None;
        }
        let good_since = builder.good_since(index, end);
        let mut place = builder.places[index].clone();
        let open = place.open.as_mut()?;
        (open.at, open.continues, open.failed, open.good_since) = (lost.at, true, failed, good_since);
        Some(Ongoing(Box::new(place)))
    };
    open.into_iter().zip(told.into_iter().skip(done)).filter_map(goes_on).collect()
}

impl<'a> Builder<'a> {
    fn new<'f>(facts: impl IntoIterator<Item = &'f (i64, Fact)>, traffic: &'a Traffic, terms: Terms, end: i64) -> Self {
        let (places, by_uid, lost_nodes) = (Vec::new(), HashMap::new(), HashMap::new());
        let nobody = vec![(i64::MIN, i64::MAX)];
        let mut builder = Self { traffic, terms, end, places, by_uid, lost_nodes, plans: Vec::new(), serving: 0, nobody, done: Vec::new() };
        for (at, fact) in facts.into_iter().filter(|(at, _)| *at <= end) {
            match fact {
                Fact::Change(what) => builder.change(*at, what),
                Fact::Upstream { uid, ready } => builder.upstream(*at, uid, *ready),
                Fact::Fault(planned) => builder.fault(planned),
                Fact::Ongoing(ongoing) => builder.goes_on(*at, ongoing),
                Fact::Down { uids } => uids.iter().for_each(|uid| builder.down(*at, uid)),
            }
        }
        builder
    }

    fn goes_on(&mut self, at: i64, ongoing: &Ongoing) {
        for uid in ongoing.uids() {
            self.by_uid.insert(uid.to_owned(), self.places.len());
        }
        self.places.push(Place { in_service: false, ..(*ongoing.0).clone() });
        self.serves(self.places.len() - 1, at, ongoing.0.in_service);
    }

    fn down(&mut self, at: i64, uid: &str) {
        let Some(index) = self.by_uid.get(uid).copied().filter(|index| self.places[*index].holder.uid == uid) else { return };
        if self.places[index].in_service || self.places[index].open.is_some() {
            return;
        }
        let is_node_lost = self.lost_nodes.contains_key(&self.places[index].holder.node);
        let cause = self.places[index].held_out.take().unwrap_or_else(|| DOWN.to_owned());
        self.places[index].detected = None;
        self.open(index, at, at, None, cause);
        if let Some(open) = &mut self.places[index].open {
            open.before = Some(Before::Withdrawn);
            if is_node_lost {
                open.of_lost_node();
            }
        }
    }

    /// Keeps count of who is in service. Returns whether the place was.
    fn serves(&mut self, index: usize, at: i64, serves: bool) -> bool {
        let did = std::mem::replace(&mut self.places[index].in_service, serves);
        // A fault is heard of when it is asked for, and counts from when it took hold.
        let at = self.nobody.last().map_or(at, |(from, until)| at.max(if *until == i64::MAX { *from } else { *until }));
        match (did, serves) {
            (false, true) => {
                if self.serving == 0
                    && let Some((_, until)) = self.nobody.last_mut()
                {
                    *until = at;
                }
                self.serving += 1;
            }
            (true, false) => {
                self.serving -= 1;
                if self.serving == 0 {
                    self.nobody.push((at, i64::MAX));
                }
            }
            _ => (),
        }
        did
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
                place.is_well();
                place.unready = false;
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
                    // The sidecar saw it go, and may have seen it come before a kubelet did.
                    let was_seen = std::mem::take(&mut place.unready);
                    if let Some(open) = place.open.as_mut().filter(|_| again) {
                        let loaded = open.at.get(&Mark::ModelLoaded).copied().filter(|_| was_seen);
                        open.forget_from(Mark::ContainerStarted);
                        (open.since, open.good_since) = (loaded.map_or(at, |loaded| loaded.min(at)), None);
                        open.at.extend(loaded.map(|loaded| (Mark::ModelLoaded, loaded)));
                    }
                    place.mark(Mark::ContainerStarted, at);
                }
            }
            What::Ready { uid, ready } => self.ready(at, uid, *ready),
            What::Endpoint { uid, present: true } => {
                if let Some(place) = self.held_by(uid) {
                    place.mark(Mark::EndpointAdded, at);
                    place.is_well();
                    let index = self.by_uid[uid];
                    if !self.serves(index, at, true) {
                        self.places[index].served_since = at;
                    }
                }
            }
            What::Endpoint { uid, present: false } => {
                let why = self.held_by(uid).and_then(|place| place.held_out.take());
                self.lost_by_uid(uid, at, why.as_deref().unwrap_or(UNREADY));
                if let Some(open) = self.lost_pod(uid).filter(|open| open.before != Some(Before::Withdrawn)) {
                    open.at.entry(Mark::EndpointRemoved).or_insert(at);
                }
            }
            What::Detected { uid, .. } => {
                // One that is in service again may be lost again, while the outage before still stands there.
                if let Some(place) = self.held_by(uid).filter(|place| place.in_service) {
                    place.detected.get_or_insert(at);
                } else if let Some(open) = self.lost_pod(uid).filter(|open| open.before != Some(Before::Withdrawn)) {
                    open.at.entry(Mark::Detected).or_insert(at);
                }
            }
            What::HeldOut { uid, why } => {
                if let Some(place) = self.held_by(uid) {
                    match &mut place.open {
                        // Pods and endpoints are heard of by two watches.
                        Some(open) if !place.in_service && open.lost.uid == *uid && at - open.told <= RETIRED_LATE => open.because(why),
                        _ => place.held_out = Some(why.clone()),
                    }
                }
            }
            What::BackOff { uid, reason, .. } => {
                // The sidecar had seen it end, and be there again.
                let place = self.held_by(uid).filter(|place| place.in_service);
                let dip = place.and_then(|place| {
                    let (gone, back) = place.dip.take().filter(|(gone, _)| at - gone <= RETIRED_LATE)?;
                    place.suspect.get_or_insert(gone);
                    Some((gone, back))
                });
                self.lost_by_uid(uid, at, reason);
                if let Some((gone, back)) = dip
                    && let Some(place) = self.held_by(uid)
                    && let Some(open) = &mut place.open
                {
                    place.unready = true;
                    open.since = gone;
                    open.at.insert(Mark::ModelLoaded, back);
                }
            }
            What::Gone { uid, reason } => self.lost_by_uid(uid, at, reason),
            What::Retired { uid } => {
                if let Some(index) = self.by_uid.get(uid).copied().filter(|index| self.places[*index].holder.uid == *uid) {
                    // The end of its pod may have been heard of before the reason for it.
                    let begun = |open: &Open| open.fault.is_none() && open.at.get(&Mark::Fault).is_some_and(|began| at - began <= RETIRED_LATE);
                    if self.places[index].open.take_if(|open| begun(open)).is_none() {
                        self.close(index, at);
                    }
                    self.serves(index, at, false);
                }
            }
            What::Terminating { uid } => self.lost_by_uid(uid, at, "deleted"),
            What::Node { node, ready: true } => drop(self.lost_nodes.remove(node)),
            What::Node { node, ready: false } => {
                self.lost_nodes.entry(node.clone()).or_insert(at);
                for open in self.places.iter_mut().filter_map(|place| place.open.as_mut()).filter(|open| open.lost.node == *node) {
                    if open.before != Some(Before::Withdrawn) {
                        open.at.entry(Mark::Detected).or_insert(at);
                    }
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
            place.is_well();
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
        place.unready |= !ready;
        if place.in_service {
            if ready {
                place.dip = place.suspect.take().map(|gone| (gone, at));
            } else {
                place.suspect.get_or_insert(at);
                place.dip = None;
            }
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
        let (first, before) = self.first_sign(index, told);
        let since = first.max(plan.map_or(i64::MIN, |plan| plan.since));
        let cause = plan.map_or_else(|| cause.to_owned(), |plan| format!("{cause} (while {})", plan.cause));
        let fault = plan.map(|plan| plan.index);
        let node_lost = self.lost_nodes.get(node).copied();
        if self.sustained(index, since).is_none()
            && let Some(open) = &mut self.places[index].open
        {
            open.begin_anew(since);
            self.serves(index, at, false);
            return;
        }
        self.close(index, since);
        if let Some(known) = node_lost {
            let detected = &mut self.places[index].detected;
            *detected = Some(detected.map_or(known, |detected| detected.min(known)));
        }
        self.open(index, since, told, fault, cause);
        if let Some(open) = &mut self.places[index].open {
            open.before = (before && fault.is_none()).then_some(Before::Began);
            if node_lost.is_some() {
                open.of_lost_node();
            }
        }
    }

    /// When the loss of the holder, which was heard of at `told`, showed first: see the first rule of the module. And whether that was so from when watching began.
    fn first_sign(&self, index: usize, told: i64) -> (i64, bool) {
        let place = &self.places[index];
        let uid = &place.holder.uid;
        let answers = self.traffic.of(uid);
        let earliest = (told - self.terms.look_back).max(place.served_since);
        let answered = answers.iter().filter(|answer| answer.kind.good() && answer.ended <= told).map(|answer| answer.ended).max();
        let matched = self.traffic.matches.get(uid).and_then(|matches| matches.iter().copied().filter(|at| *at <= told).max());
        let sign = answered.max(matched);
        let good = sign.unwrap_or(earliest).max(earliest);
        let watched_from = self.terms.watched_from.filter(|from| sign.is_none() && earliest <= *from);
        let unheard = watched_from.filter(|from| self.traffic.unheard.contains(uid) && *from <= told);
        // One that answers well cannot be heard for other reasons.
        let silent = self.traffic.silent_since(uid, told).filter(|since| since + REPORTS_EVERY >= good);
        let good = good.max(silent.or(unheard).unwrap_or(good));
        let failed = |answers: &[Answer]| {
            let since_then = answers.iter().filter(|answer| !answer.kind.good() && answer.sent >= good && answer.sent <= told);
            since_then.map(|answer| answer.sent).min()
        };
        let nobody = silent.or(unheard).and_then(|_| failed(&self.traffic.nowhere));
        let first = failed(answers).into_iter().chain(nobody).chain(silent.map(|since| since + REPORTS_EVERY)).chain(unheard).min();
        let before = watched_from.is_some() && silent.is_none() && first.is_some();
        (first.map_or(told, |first| first.clamp(good.min(told), told)), before)
    }

    fn open(&mut self, index: usize, at: i64, told: i64, fault: Option<u32>, cause: String) {
        self.serves(index, told, false);
        let place = &mut self.places[index];
        (place.suspect, place.dip) = (None, None);
        let detected = place.detected.take().map(|detected| (Mark::Detected, detected.max(at)));
        let at_first = [(Mark::Fault, at)].into_iter().chain(detected).collect();
        let lost = place.holder.clone();
        let (node_lost, before, continues) = (false, None, false);
        place.open = Some(Open { lost, fault, cause, told, node_lost, before, at: at_first, since: at, continues, failed: None, good_since: None });
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
        self.done.extend(self.told(index, until));
        self.places[index].open = None;
    }

    /// With the failures that users met, and the first and the last of them.
    fn with_failures(&self, told: Vec<Told>) -> Vec<(Lost, Option<(i64, i64)>)> {
        let mut explained: Vec<(i64, i64)> = told.iter().map(Told::leads_to_nobody).collect();
        explained.sort_unstable();
        explained.dedup_by(|next, before| {
            let overlaps = next.0 <= before.1;
            if overlaps {
                before.1 = before.1.max(next.1);
            }
            overlaps
        });
        let within = |stretches: &[(i64, i64)], at: i64| {
            let after = stretches.partition_point(|(from, _)| *from <= at);
            after.checked_sub(1).is_some_and(|last| at <= stretches[last].1)
        };
        let one = |told: Told| {
            let (t0, stale) = told.leads_to_nobody();
            let is_mine = |sent: i64| sent <= stale || within(&self.nobody, sent) || !within(&explained, sent);
            let nowhere = failures(&self.traffic.nowhere, t0, told.until, is_mine);
            let (mut lost, seen) = (told.lost, [told.failed, nowhere]);
            let first = seen.iter().flatten().map(|(first, _)| *first).min();
            let last = seen.iter().flatten().map(|(_, last)| *last).max();
            if let Some(first) = first {
                lost.at.insert(Mark::FirstFailure, first);
            }
            let failed = first.zip(last);
            lost.outage.routing_outage_ms = failed.map(|(first, last)| (last - first) as f64 / 1000.0);
            (lost, failed)
        };
        told.into_iter().map(one).collect()
    }

    /// The place's open outage as it stands at `until`.
    fn told(&self, index: usize, until: i64) -> Option<Told> {
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
        let all = |answers: &[Answer], until: i64| failures(answers, t0, until, |_| true);
        let seen = [
            open.failed,
            all(self.traffic.of(&open.lost.uid), if replaced { self.end } else { window_end }),
            if replaced { all(self.traffic.of(&holder.uid), window_end) } else { None },
        ];
        let first = seen.iter().flatten().map(|(first, _)| *first).min();
        let last = seen.iter().flatten().map(|(_, last)| *last).max();
        let withdrawn = at.get(&Mark::EndpointRemoved).copied().or_else(|| (open.before == Some(Before::Withdrawn)).then_some(t0));

        let cause = match (open.before.is_some(), open.continues) {
            (true, _) => format!("{} (since before anybody watched)", open.cause),
            (false, true) => format!("{} (since before this window)", open.cause),
            (false, false) => open.cause.clone(),
        };
        let came_back = at.contains_key(&Mark::ReplacementCreated) || at.contains_key(&Mark::ContainerStarted) || at.contains_key(&Mark::EndpointAdded);
        let outage = Outage {
            id: 0,
            pod: open.lost.name.clone(),
            uid: open.lost.uid.clone(),
            node: open.lost.node.clone(),
            replacement: (replaced || came_back).then(|| holder.name.clone()),
            replacement_node: (replaced || came_back).then(|| holder.node.clone()),
            fault: open.fault,
            cause,
            node_lost: open.node_lost,
            continues: open.continues,
            began_before: open.before.is_some(),
            marks: Marks::default(),
            routing_outage_ms: None,
            capacity_outage_ms: (window_end - t0) as f64 / 1000.0,
            censored: sustained.is_none(),
        };
        Some(Told { lost: Lost { outage, at }, failed: first.zip(last), withdrawn, until: window_end })
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

    /// What spoke against it is over.
    fn is_well(&mut self) {
        (self.suspect, self.detected, self.held_out) = (None, None, None);
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
        self.because(&format!("node {} was lost: nobody heard from it", self.lost.node));
    }

    /// In place of what says as good as nothing.
    fn because(&mut self, why: &str) {
        self.cause = self.cause.replacen(UNREADY, why, 1).replacen(DOWN, why, 1);
    }

    fn forget_from(&mut self, mark: Mark) {
        self.at.retain(|known, _| *known < mark);
    }
}

/// First and last request that failed from `t0` until `until`, of those that count.
fn failures(answers: &[Answer], t0: i64, until: i64, counts: impl Fn(i64) -> bool) -> Option<(i64, i64)> {
    let failed = answers.iter().filter(|answer| !answer.kind.good() && answer.ended >= t0 && answer.ended <= until).map(|answer| answer.sent.max(t0));
    failed.filter(|sent| counts(*sent)).fold(None, |seen, sent| Some(seen.map_or((sent, sent), |(first, last): (i64, i64)| (first.min(sent), last.max(sent)))))
}

/// See the module: what came later bounds what must come before, and nothing comes before t0.
fn order(at: &mut BTreeMap<Mark, i64>, t0: i64) {
    for moment in at.values_mut() {
        *moment = (*moment).max(t0);
    }
    if let Some(removed) = at.get(&Mark::EndpointRemoved).copied() {
        at.entry(Mark::Detected).and_modify(|detected| *detected = (*detected).min(removed));
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
