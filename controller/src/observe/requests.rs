//! Every request of the run, kept small: 24 bytes each, up to [`Requests::MAX`]; what comes beyond that is counted.
//!
//! Times are microseconds since the history's epoch. After [`Requests::seal`] the log is in the order in which requests were due.

use std::{collections::HashMap, sync::Arc};

use steadfast_api::policy::Origin;

use crate::load::End;

/// How a request ended, as far as figures tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Right,
    Wrong,
    /// Error of the model server itself.
    Upstream,
    /// Error that a fault was asked to give.
    Injected,
    /// Error of sidecar or gateway.
    Proxy,
    Silence,
}

impl Kind {
    pub const fn of(end: End) -> Self {
        match end {
            End::Answered { right: true } => Self::Right,
            End::Answered { right: false } => Self::Wrong,
            End::Error { origin: Origin::Upstream, .. } => Self::Upstream,
            End::Error { origin: Origin::Injected, .. } => Self::Injected,
            End::Error { origin: Origin::Proxy, .. } => Self::Proxy,
            End::Silence => Self::Silence,
        }
    }

    /// Answered; a wrong answer is available and inconsistent.
    pub const fn good(self) -> bool {
        matches!(self, Self::Right | Self::Wrong)
    }
}

/// Index of a pod's name in [`Requests`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName(u16);

impl PodName {
    /// No pod was reached.
    pub const NONE: Self = Self(u16::MAX);
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub due: i64,
    sent_after: u32,
    ended_after: u32,
    pub pod: PodName,
    pub kind: Kind,
}

impl Request {
    /// `due`, `sent` and `ended` in microseconds since the epoch. A request that took longer than 71 minutes counts as that long.
    pub fn new(due: i64, sent: i64, ended: i64, pod: PodName, kind: Kind) -> Self {
        let after = |at: i64| u32::try_from((at - due).max(0)).unwrap_or(u32::MAX);
        Self { due, sent_after: after(sent), ended_after: after(ended), pod, kind }
    }

    pub fn sent(&self) -> i64 {
        self.due + i64::from(self.sent_after)
    }

    pub fn ended(&self) -> i64 {
        self.due + i64::from(self.ended_after)
    }

    /// From due to the last byte, in microseconds.
    pub fn latency(&self) -> u64 {
        u64::from(self.ended_after)
    }
}

/// The log.
#[derive(Debug, Default)]
pub struct Requests {
    log: Vec<Request>,
    names: Vec<Arc<str>>,
    index: HashMap<Arc<str>, PodName>,
    dropped: u64,
}

impl Requests {
    /// 96 MiB.
    pub const MAX: usize = 4 << 20;

    /// Index of a name; [`PodName::NONE`] once 65,535 names are known.
    pub fn name(&mut self, name: &Arc<str>) -> PodName {
        if let Some(known) = self.index.get(name) {
            return *known;
        }
        let Some(next) = u16::try_from(self.names.len()).ok().filter(|next| *next != u16::MAX) else { return PodName::NONE };
        self.names.push(Arc::clone(name));
        self.index.insert(Arc::clone(name), PodName(next));
        PodName(next)
    }

    pub fn find(&self, name: &str) -> Option<PodName> {
        self.index.get(name).copied()
    }

    /// `None` for requests that reached no pod.
    pub fn text(&self, pod: PodName) -> Option<&str> {
        self.names.get(usize::from(pod.0)).map(AsRef::as_ref)
    }

    pub fn push(&mut self, request: Request) {
        if self.log.len() < Self::MAX { self.log.push(request) } else { self.dropped += 1 }
    }

    /// Requests that were not kept.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn all(&self) -> &[Request] {
        &self.log
    }

    /// Whatever had not ended by then, and failed after, is silence until then: what ended it was the end of the run and nobody's failure.
    pub fn cut(&mut self, at: i64) {
        for request in self.log.iter_mut().filter(|request| !request.kind.good() && request.due < at && request.ended() > at) {
            *request = Request::new(request.due, request.sent().min(at), at, request.pod, Kind::Silence);
        }
    }

    /// Takes out what was due before `at`. Of the names only those stay that `keeps` says, and what was the index of each is told, for who holds some.
    pub fn before(&mut self, at: i64, keeps: impl Fn(&str) -> bool) -> (Self, HashMap<PodName, PodName>) {
        let mut earlier = std::mem::take(self);
        let mut kept = HashMap::new();
        for (name, was) in &earlier.index {
            if keeps(name) {
                kept.insert(*was, self.name(name));
            }
        }
        let (later, log): (Vec<_>, Vec<_>) = earlier.log.into_iter().partition(|request| request.due >= at);
        earlier.log = log;
        for request in later {
            let pod = match (kept.get(&request.pod), earlier.names.get(usize::from(request.pod.0))) {
                (Some(pod), _) => *pod,
                // It has gone in the meantime, and still answered after `at`.
                (None, Some(name)) => *kept.entry(request.pod).or_insert_with(|| self.name(name)),
                (None, None) => PodName::NONE,
            };
            self.log.push(Request { pod, ..request });
        }
        (earlier, kept)
    }

    /// Brings the log in order of `due`, which [`Requests::due_in`] relies on.
    pub fn seal(&mut self) {
        self.log.sort_by_key(|request| request.due);
    }

    /// Requests that were due in `from..until`, of a sealed log.
    pub fn due_in(&self, from: i64, until: i64) -> &[Request] {
        let start = self.log.partition_point(|request| request.due < from);
        let end = self.log.partition_point(|request| request.due < until).max(start);
        &self.log[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_end_of_the_run_cut_off_is_silence_until_then() {
        let mut requests = Requests::default();
        let mut push = |due: i64, ended: i64, kind| requests.push(Request::new(due, due + 10, ended, PodName::NONE, kind));
        push(0, 500, Kind::Proxy);
        push(100, 1500, Kind::Proxy);
        push(200, 1500, Kind::Right);
        push(1100, 1500, Kind::Proxy);
        requests.cut(1000);
        let seen: Vec<_> = requests.all().iter().map(|request| (request.kind, request.ended())).collect();
        assert_eq!(seen, [(Kind::Proxy, 500), (Kind::Silence, 1000), (Kind::Right, 1500), (Kind::Proxy, 1500)]);
    }
}
