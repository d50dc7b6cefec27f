//! Watching without an end: what lies behind is taken out as a history of its own, and what goes on goes on without a gap.

use std::collections::BTreeMap;

use steadfast_api::report::PodState;

use super::{
    History,
    marks::{self, Fact, Ongoing},
};
use crate::platform::{Pod, What};

impl History {
    /// Takes out everything before `at`, in microseconds since the epoch, which must lie so far back that every request that was due then has ended. What stays begins
    /// with the pods as they were at `at`, and with the outages that had not ended then, which go on with the marks that they have (good service must last for `hold`
    /// for them to end); unless all was `well`: then a pod that does not serve is none that is missed. The earlier part is sealed.
    #[must_use]
    pub fn before(&mut self, at: i64, well: bool, hold: i64) -> Self {
        let (fleet, pods) = self.fleet.before(at);
        let stays = &self.fleet;
        let (requests, names) = self.requests.before(at, |name| stays.pods().iter().any(|pod| pod.name == name));
        self.live.rename(&names);
        let (later, facts): (Vec<_>, Vec<_>) = std::mem::take(&mut self.facts).into_iter().partition(|(when, _)| *when >= at);
        let mut earlier = Self::new(self.epoch, 0);
        earlier.replays = self.replays.before(at, &pods);
        (earlier.fleet, earlier.requests, earlier.facts) = (fleet, requests, facts);
        (earlier.look_back, earlier.heard, earlier.silences) = (self.look_back, self.heard.clone(), self.silences.clone());
        (earlier.watched_from, earlier.unheard) = (self.watched_from, self.unheard.clone());
        earlier.dropped_facts = std::mem::take(&mut self.dropped_facts);
        earlier.seal();
        self.heard.retain(|uid, _| stays.find(uid).is_some());
        self.unheard.retain(|uid| stays.find(uid).is_some());
        self.silences.retain(|silence| silence.until >= at && stays.find(&silence.uid).is_some());
        let ongoing = marks::ongoing(&earlier.facts, &earlier.traffic(), earlier.terms(hold), at);
        self.facts = self.begun(at, ongoing.into_iter().filter(|ongoing| !well || ongoing.in_service()).collect());
        self.facts.extend(later);
        earlier
    }

    /// Whether a pod has left the Service since then, or its server has ended.
    pub fn lost_since(&self, from: i64) -> bool {
        let lost = |what: &What| matches!(what, What::Endpoint { present: false, .. } | What::BackOff { .. } | What::Terminating { .. } | What::Gone { .. });
        self.facts.iter().rev().any(|(at, fact)| *at >= from && matches!(fact, Fact::Change(what) if lost(what)))
    }

    /// What must be known at `at` for what follows to make sense.
    fn begun(&self, at: i64, ongoing: Vec<Ongoing>) -> Vec<(i64, Fact)> {
        let mut facts = Vec::new();
        for track in self.fleet.pods().iter().filter(|track| ongoing.iter().all(|ongoing| ongoing.uids().all(|uid| uid != track.uid))) {
            // Whoever came after that tells of itself.
            let Some(state) = track.state_at(at) else { continue };
            // A node's silence takes nobody out of the Service; what follows from it does, and is told.
            let in_service = matches!(state, PodState::Serving | PodState::Silent);
            let pod = Pod { name: track.name.clone(), uid: track.uid.clone(), node: track.node.clone(), labels: BTreeMap::new(), in_service };
            facts.push((at, Fact::Change(What::Created { pod, replaces: None })));
            if in_service {
                facts.push((at, Fact::Change(What::Endpoint { uid: track.uid.clone(), present: true })));
            }
        }
        facts.extend(ongoing.into_iter().map(|ongoing| (at, Fact::Ongoing(ongoing))));
        facts
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use steadfast_api::{
        golden::{Outcome, Verdict},
        mark::Mark,
        sidecar::GoldenReplay,
    };

    use super::*;
    use crate::{
        load::{End, Record},
        observe::testing::{pod, uid},
        platform::Change,
    };

    struct Seen {
        history: History,
        epoch: Instant,
    }

    impl Seen {
        fn new() -> Self {
            let epoch = Instant::now();
            Self { history: History::new(epoch, 10_000_000), epoch }
        }

        fn change(&mut self, ms: u64, what: What) {
            self.history.change(&Change { at: self.epoch + Duration::from_millis(ms), what });
        }

        fn up(&mut self, ms: u64, name: &str, replaces: Option<&str>) {
            self.change(ms, What::Created { pod: pod(name, &uid(name), "n1"), replaces: replaces.map(uid) });
            self.change(ms + 1, What::ContainerStarted { uid: uid(name), restarts: 0 });
            self.change(ms + 2, What::Endpoint { uid: uid(name), present: true });
        }

        fn lost(&mut self, ms: u64, name: &str) {
            self.change(ms, What::Terminating { uid: uid(name) });
            self.change(ms + 1, What::Endpoint { uid: uid(name), present: false });
            self.change(ms + 2, What::Gone { uid: uid(name), reason: "deleted".to_owned() });
        }

        fn asked(&mut self, due: u64, took: u64, pod: &str, right: bool) {
            let at = |ms| self.epoch + Duration::from_millis(ms);
            let end = if right { End::Answered { right } } else { End::Silence };
            self.history.record(&Record { due: at(due), sent: at(due), ended: at(due + took), pod: (!pod.is_empty()).then(|| Arc::from(pod)), end });
        }
    }

    const SECOND: i64 = 1_000_000;

    #[test]
    fn two_windows_hold_together_what_one_would_and_each_outage_is_in_one() {
        let mut seen = Seen::new();
        seen.up(0, "a", None);
        seen.up(10, "b", None);
        seen.history.replays.replayed(
            SECOND / 2,
            1,
            &GoldenReplay { set: "s".into(), sample: "x".into(), outcome: Outcome::Match, detail: None, latency_ns: 0 },
        );
        seen.history.replays.judged(SECOND / 2, 1, "s", Verdict::Pass);
        for due in (100..2000).step_by(10) {
            seen.asked(due, 5, if due < 1000 { "a" } else { "c" }, true);
        }
        seen.lost(1000, "a");
        seen.up(1100, "c", Some("a"));
        // Due before the cut, ended after it: a request of the first window.
        seen.asked(2995, 800, "b", false);
        for due in (4000..8000).step_by(10) {
            seen.asked(due, 5, if due < 5000 { "b" } else { "d" }, true);
        }
        seen.lost(5000, "b");
        seen.up(5100, "d", Some("b"));
        assert!(seen.history.lost_since(0) && seen.history.lost_since(5 * SECOND) && !seen.history.lost_since(6 * SECOND));

        let mut first = seen.history.before(3 * SECOND, true, SECOND / 10);
        let mut second = seen.history;
        first.seal();
        second.seal();
        let all = |history: &History| history.measure(&[(i64::MIN, i64::MAX)]).service().availability;
        assert_eq!((all(&first).attempted, all(&first).failed_silence), (191, 1));
        assert_eq!((all(&second).attempted, all(&second).failed_silence), (400, 0));
        let outages = |history: &History, from: i64, until: i64| -> Vec<(String, Option<f64>)> {
            let lost = history.outages(SECOND / 10, from * SECOND, until * SECOND);
            lost.into_iter().map(|lost| (lost.outage.pod, lost.outage.marks.get(Mark::FirstGoodResponse))).collect()
        };
        assert_eq!(outages(&first, 0, 3), [("a".to_owned(), Some(1105.0))]);
        // Milliseconds since the window's begin.
        assert_eq!(outages(&second, 3, 8), [("b".to_owned(), Some(2105.0))]);
        let names = |history: &History| history.fleet.pods().iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&first), names(&second)), (["a", "b", "c", "d"].map(str::to_owned).to_vec(), ["b", "c", "d"].map(str::to_owned).to_vec()));
        assert_eq!(second.fleet.pods()[1].state_at(3 * SECOND), Some(PodState::Serving), "what began before goes on");
        assert_eq!((first.replays.log.len(), first.replays.verdicts.len(), second.replays.log.len()), (1, 1, 0));
    }

    #[test]
    fn a_verdict_stands_on_in_the_next_window_and_names_stay_with_their_pods() {
        let mut seen = Seen::new();
        seen.up(0, "gone", None);
        seen.up(0, "stays", None);
        seen.history.replays.judged(1000, 1, "s", Verdict::Fail);
        seen.asked(10, 5, "gone", true);
        seen.asked(20, 5, "stays", true);
        seen.lost(1000, "gone");
        let _ = seen.history.before(2 * SECOND, true, SECOND);
        assert_eq!(seen.history.replays.verdict(0), Some(Verdict::Fail), "its index is another now");
        assert_eq!(seen.history.replays.verdicts.iter().map(|judged| (judged.at, judged.pod)).collect::<Vec<_>>(), [(2 * SECOND, 0)]);
        let stays = seen.history.requests.find("stays").expect("its name");
        assert_eq!((seen.history.live.first_good(stays), seen.history.requests.find("gone")), (Some(25_000), None));
        assert!(seen.history.well_since(1, true).is_some(), "it has answered before, and still serves");
    }

    #[test]
    fn an_outage_that_is_cut_in_two_is_one_and_told_of_in_both_windows() {
        let mut seen = Seen::new();
        seen.up(0, "a", None);
        seen.asked(100, 5, "a", true);
        seen.change(1000, What::Endpoint { uid: uid("a"), present: false });
        let mut first = seen.history.before(3 * SECOND, false, SECOND);
        seen.change(5000, What::Endpoint { uid: uid("a"), present: true });
        for due in (5000..8000).step_by(10) {
            seen.asked(due, 5, "a", true);
        }
        first.seal();
        seen.history.seal();
        let first = first.outages(SECOND, 0, 3 * SECOND);
        assert_eq!((first.len(), first[0].outage.censored, first[0].outage.capacity_outage_ms), (1, true, 2000.0));
        let second = seen.history.outages(SECOND, 3 * SECOND, 8 * SECOND);
        assert_eq!((second.len(), second[0].outage.censored, second[0].outage.capacity_outage_ms), (1, false, 4005.0));
        assert_eq!((first[0].outage.continues, second[0].outage.continues, second[0].outage.marks.get(Mark::Fault)), (false, true, Some(-2000.0)));
        assert!(second[0].outage.cause.contains("since before this window"), "{}", second[0].outage.cause);
    }

    #[test]
    fn a_place_that_is_vacant_between_two_windows_is_taken_by_the_successor_in_the_second() {
        let mut seen = Seen::new();
        seen.up(0, "a", None);
        seen.asked(100, 5, "a", true);
        seen.lost(1000, "a");
        seen.asked(2000, 5, "a", false);
        let first = seen.history.before(3 * SECOND, false, SECOND).outages(SECOND, 0, 3 * SECOND);
        let second = seen.history.before(6 * SECOND, false, SECOND).outages(SECOND, 3 * SECOND, 6 * SECOND);
        seen.up(7000, "b", Some("a"));
        for due in (7010..9000).step_by(10) {
            seen.asked(due, 5, "b", true);
        }
        seen.history.seal();
        let third = seen.history.outages(SECOND, 6 * SECOND, 9 * SECOND);
        let told = |lost: &[crate::observe::marks::Lost]| {
            lost.iter().map(|lost| (lost.outage.pod.clone(), lost.outage.continues, lost.outage.censored)).collect::<Vec<_>>()
        };
        assert_eq!((told(&first), told(&second)), (vec![("a".to_owned(), false, true)], vec![("a".to_owned(), true, true)]));
        assert_eq!(told(&third), [("a".to_owned(), true, false)]);
        let outage = &third[0].outage;
        assert_eq!((outage.replacement.as_deref(), outage.capacity_outage_ms), (Some("b"), 6015.0), "from its own beginning");
        assert_eq!(outage.marks.get(Mark::FirstFailure), Some(-4000.0), "which the first window saw");
    }

    /// A leader that was lost with its node is followed by another, which knows nothing of a pod there but that it is in the Service.
    #[test]
    fn who_begins_to_watch_waits_for_a_pod_of_which_nobody_has_heard() {
        let mut seen = Seen::new();
        for name in ["lost", "well", "down"] {
            seen.change(0, What::Created { pod: pod(name, &uid(name), "n1"), replaces: None });
        }
        for name in ["lost", "well"] {
            seen.change(1, What::Endpoint { uid: uid(name), present: true });
        }
        let begin = 10_000;
        seen.history.watched_from(begin, 3);
        assert_eq!(seen.history.silent_since(20_000), Some(begin));
        seen.asked(20, 5, "well", true);
        assert_eq!(seen.history.silent_since(30_000), Some(begin), "one of two answered");
        // Failures that users met from the first moment on.
        seen.asked(40, 500, "", false);
        seen.change(45_000, What::Endpoint { uid: uid("lost"), present: false });
        assert_eq!(seen.history.silent_since(46 * SECOND), None, "it is called lost");
        let mut first = seen.history.before(50 * SECOND, false, SECOND);
        seen.history.seal();
        first.seal();
        let told = |history: &History, from: i64, until: i64| {
            let lost = history.outages(SECOND, from, until);
            lost.into_iter().map(|lost| (lost.outage.pod, lost.outage.began_before, lost.outage.continues, lost.at[&Mark::Fault])).collect::<Vec<_>>()
        };
        assert_eq!(told(&first, begin, 50 * SECOND), [("lost".to_owned(), true, false, begin), ("down".to_owned(), true, false, begin)]);
        assert_eq!(told(&seen.history, 50 * SECOND, 60 * SECOND), [("lost".to_owned(), true, true, begin), ("down".to_owned(), true, true, begin)]);
        // One that nobody misses is not down, and one that nobody ever hears of is called lost in time, or is not.
        let mut seen = Seen::new();
        seen.change(0, What::Created { pod: pod("surge", &uid("surge"), "n1"), replaces: None });
        seen.up(0, "a", None);
        seen.history.watched_from(begin, 1);
        assert_eq!(seen.history.silent_since(200 * SECOND), None);
        assert!(seen.history.outages(SECOND, begin, SECOND).is_empty());
    }

    #[test]
    fn pods_of_one_name_one_after_the_other_are_asked_each_for_itself() {
        let mut seen = Seen::new();
        seen.change(0, What::Created { pod: pod("web-0", "first", "n1"), replaces: None });
        seen.change(1, What::Endpoint { uid: "first".to_owned(), present: true });
        for due in (10..1000).step_by(10) {
            seen.asked(due, 5, "web-0", true);
        }
        seen.change(1000, What::Terminating { uid: "first".to_owned() });
        seen.change(1001, What::Endpoint { uid: "first".to_owned(), present: false });
        seen.asked(1005, 5, "web-0", false);
        seen.asked(1100, 5, "web-0", false);
        seen.change(1200, What::Gone { uid: "first".to_owned(), reason: "deleted".to_owned() });
        seen.change(1300, What::Created { pod: pod("web-0", "second", "n1"), replaces: Some("first".to_owned()) });
        seen.change(1400, What::Endpoint { uid: "second".to_owned(), present: true });
        for due in (1410..8000).step_by(10) {
            seen.asked(due, 5, "web-0", due != 7000);
        }
        seen.history.seal();
        let lost = seen.history.outages(SECOND, 0, 8 * SECOND);
        assert_eq!((lost.len(), lost[0].outage.routing_outage_ms), (1, Some(95.0)), "what the successor fails later is none of it");
        let by_pod: Vec<u64> = seen.history.measure_pods(0, 8 * SECOND).iter().map(|service| service.availability.attempted).collect();
        assert_eq!(by_pod, [101, 659], "each request once");
    }
}
