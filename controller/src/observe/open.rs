//! Which outages are open at this moment: known seconds after they began, where [`super::marks`] tells of them when they are over.
//!
//! A place is open whose pod has left the Service and that nobody serves well yet, by the same rules. Before the platform has noticed anything, so is one whose pod
//! shows no sign of life: its sidecar is silent, and no user got an answer from it lately.

use steadfast_api::report::PodState;

use super::{
    History,
    marks::{self, SILENT_AFTER, Terms, Traffic},
};

/// What is younger may yet turn out to be a pod that is not wanted any more: see [`marks`].
const OLD_ENOUGH: i64 = 5_000_000;
/// No answer for so long, and a silent sidecar: no sign of life.
const ANSWERED_WITHIN: i64 = 5_000_000;

/// An outage that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub pod: String,
    pub node: String,
    pub cause: String,
    /// Microseconds since the epoch.
    pub since: i64,
}

impl History {
    /// Those that are open at `now`, in order of their begin; good service must last for `hold` microseconds for one to be over.
    pub fn open(&self, now: i64, hold: i64) -> Vec<Open> {
        let mut open = Vec::new();
        let mut told = Vec::new();
        if self.may_be_open() {
            let mut facts: Vec<_> = self.facts.iter().collect();
            facts.sort_by_key(|(at, _)| *at);
            // What users see is not looked through every few seconds: it would tell when exactly an outage began.
            for ongoing in marks::ongoing(facts, &Traffic::default(), Terms { hold, look_back: 0, watched_from: None }, now) {
                told.extend(ongoing.uids().map(str::to_owned));
                open.extend(ongoing.open());
            }
        }
        let answered = self.live.answered_since(now - ANSWERED_WITHIN);
        for pod in self.fleet.pods().iter().filter(|pod| !told.contains(&pod.uid)) {
            let heard = self.heard.get(&pod.uid).copied();
            let since = match pod.state() {
                PodState::Silent => pod.states.last().map(|(since, _)| *since),
                PodState::Serving => heard.filter(|heard| now - heard >= SILENT_AFTER),
                _ => None,
            };
            let answers = self.requests.find(&pod.name).is_some_and(|name| answered.contains(&name));
            if let Some(since) = since.filter(|_| !answers) {
                let cause =
                    if pod.state() == PodState::Silent { "its node is not heard from" } else { "its sidecar is silent, and nobody got an answer from it" };
                open.push(Open { pod: pod.name.clone(), node: pod.node.clone(), cause: cause.to_owned(), since });
            }
        }
        open.retain(|open| now - open.since >= OLD_ENOUGH);
        open.sort_by_key(|open| open.since);
        open
    }

    /// Whether anything was heard of that opens an outage, or went on from the history before.
    fn may_be_open(&self) -> bool {
        self.lost_since(i64::MIN) || self.facts.iter().any(|(_, fact)| matches!(fact, marks::Fact::Ongoing(_)))
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::sidecar::{self, PodIdentity};

    use crate::{
        load::End,
        observe::testing::{Told, pod, uid},
        platform::What,
        serve::Seen,
    };

    const SECOND: i64 = 1_000_000;

    /// In seconds.
    struct Run(Told);

    impl Run {
        fn new() -> Self {
            Self(Told::of(&["a", "b"]))
        }

        fn change(&mut self, second: u64, what: What) {
            self.0.change(second * 1000, what);
        }

        fn hear(&mut self, second: u64, name: &str) {
            let pod = PodIdentity { name: name.into(), uid: uid(name), ..PodIdentity::default() };
            self.0.history.seen(&Seen { at: self.0.at(second * 1000), pod, what: sidecar::What::Upstream { ready: true } });
        }

        fn answered(&mut self, second: u64, name: &str) {
            self.0.asked(second * 1000, 0, Some(name), End::Answered { right: true });
        }

        fn open(&self, second: i64) -> Vec<(String, i64)> {
            self.0.history.open(second * SECOND, 2 * SECOND).into_iter().map(|open| (open.pod, open.since / SECOND)).collect()
        }
    }

    #[test]
    fn a_pod_that_left_the_service_is_an_open_outage_until_its_successor_has_served_for_a_while() {
        let mut run = Run::new();
        run.change(10, What::Terminating { uid: uid("a") });
        run.change(10, What::Endpoint { uid: uid("a"), present: false });
        assert_eq!(run.open(12), [], "too young to be told from a pod that is not wanted any more");
        assert_eq!(run.open(16), [("a".to_owned(), 10)]);
        run.change(17, What::Gone { uid: uid("a"), reason: "deleted".into() });
        run.change(18, What::Created { pod: pod("c", &uid("c"), "n1"), replaces: Some(uid("a")) });
        assert_eq!(run.open(20), [("a".to_owned(), 10)]);
        run.change(21, What::Endpoint { uid: uid("c"), present: true });
        assert_eq!(run.open(22), [("a".to_owned(), 10)]);
        assert_eq!(run.open(24), []);
    }

    #[test]
    fn a_pod_that_is_not_wanted_any_more_is_no_outage() {
        let mut run = Run::new();
        run.change(10, What::Endpoint { uid: uid("a"), present: false });
        run.change(11, What::Retired { uid: uid("a") });
        assert_eq!(run.open(30), []);
    }

    #[test]
    fn an_outage_stays_open_over_the_end_of_a_window() {
        let mut run = Run::new();
        run.change(10, What::Endpoint { uid: uid("a"), present: false });
        let _ = run.0.history.before(20 * SECOND, false, SECOND);
        assert_eq!(run.open(30), [("a".to_owned(), 10)]);
    }

    #[test]
    fn before_the_cluster_has_noticed_a_silent_sidecar_of_which_nobody_got_an_answer_is_one() {
        let mut run = Run::new();
        for name in ["a", "b"] {
            run.hear(1, name);
        }
        run.hear(30, "b");
        assert_eq!(run.open(32), [("a".to_owned(), 1)]);
        run.answered(31, "a");
        assert_eq!(run.open(32), [], "it answers: it cannot be heard for other reasons");
        run.change(40, What::Node { node: "n1".into(), ready: false });
        let silent: Vec<String> = run.open(60).into_iter().map(|(pod, _)| pod).collect();
        assert_eq!(silent, ["a", "b"], "each once, heard of in whatever way");
    }
}
