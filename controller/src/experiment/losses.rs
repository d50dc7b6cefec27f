//! What requests and replays say of each outage beyond its marks, for advice: whether it would have helped.

use std::collections::HashMap;

use steadfast_api::{golden::Outcome, mark::Mark, report::PodState};

use crate::observe::{
    History,
    marks::Lost,
    requests::{Kind, Request},
};

/// Of one outage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OfOutage {
    /// Wrong answers and replays of whoever took the place, from its first good answer (or from its endpoint, where no user came by) to its first right one.
    pub wrong_at_first: u64,
    /// From the endpoint's end to the last request that was sent to the lost pod all the same, while another one was in service; in milliseconds.
    pub late_ms: Option<f64>,
}

/// Of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// In the order of the outages.
    pub outages: Vec<OfOutage>,
    /// Requests that ended without the model server's answer while another pod was in service.
    pub retriable: u64,
}

/// Between two requests that went to a lost pod, at most: what comes later has another reason.
const LATE_GAP: i64 = 1_000_000;

/// Of a sealed history, between `begin` and `end`.
pub fn losses(history: &History, lost: &[Lost], begin: i64, end: i64) -> Losses {
    let service = InService::new(history, lost, end);
    let failed = history.requests.due_in(begin, end).iter().filter(|request| unanswered(request));
    let retriable = failed.filter(|request| service.another(request.sent(), history.requests.text(request.pod))).count() as u64;
    let outages = lost.iter().map(|lost| OfOutage { wrong_at_first: wrong_at_first(history, lost), late_ms: late(history, lost, &service, end) }).collect();
    Losses { outages, retriable }
}

/// Nobody knows what a model server would have said.
const fn unanswered(request: &Request) -> bool {
    matches!(request.kind, Kind::Proxy | Kind::Silence)
}

fn wrong_at_first(history: &History, lost: &Lost) -> u64 {
    let at = |mark: Mark| lost.at.get(&mark).copied();
    let (Some(holder), Some(until)) = (lost.outage.replacement.as_deref(), at(Mark::FirstCorrectPrediction)) else { return 0 };
    let Some(from) = at(Mark::FirstGoodResponse).or_else(|| at(Mark::EndpointAdded)).filter(|from| *from < until) else { return 0 };
    let within = |at: i64| (from..=until).contains(&at);
    let name = history.requests.find(holder);
    // Whoever answers has the name at that time; a request may have been due some time before.
    let asked = history.requests.all().iter().filter(|request| Some(request.pod) == name && request.kind == Kind::Wrong && within(request.ended()));
    let is_holder = |pod: u32| history.fleet.pods().get(pod as usize).is_some_and(|pod| pod.name == holder);
    let replayed = history.replays.log.iter().filter(|replay| replay.outcome == Outcome::Mismatch && within(replay.at) && is_holder(replay.pod));
    (asked.count() + replayed.count()) as u64
}

fn late(history: &History, lost: &Lost, service: &InService, end: i64) -> Option<f64> {
    let removed = *lost.at.get(&Mark::EndpointRemoved)?;
    // Of a StatefulSet's pods the next one has the name.
    let same_name = lost.outage.replacement.as_deref() == Some(lost.outage.pod.as_str());
    let mine_until = lost.at.get(&Mark::EndpointAdded).copied().filter(|_| same_name).unwrap_or(end);
    let until = lost.at.get(&Mark::Sustained).copied().unwrap_or(end);
    let mut last = None;
    for request in history.requests.due_in(removed, end).iter().filter(|request| !request.kind.good() && request.sent() > removed) {
        let sent = request.sent();
        let gone_there = match history.requests.text(request.pod) {
            Some(name) => name == lost.outage.pod && sent < mine_until,
            // Nobody said which pod it was; had there been no other, it would be no wrong turn.
            None => unanswered(request) && sent < until && service.any(sent) && sent - last.unwrap_or(removed) <= LATE_GAP,
        };
        if gone_there {
            last = Some(sent);
        }
    }
    last.map(|last| (last - removed) as f64 / 1000.0)
}

/// When which pods were in service and no outage of theirs was open.
struct InService {
    /// By name.
    pods: HashMap<String, Vec<(i64, i64)>>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    /// When any outage was open.
    outages: Vec<(i64, i64)>,
}

impl InService {
    fn new(history: &History, lost: &[Lost], end: i64) -> Self {
        let mut pods: HashMap<String, Vec<(i64, i64)>> = HashMap::new();
        let mut outages: HashMap<&str, Vec<(i64, i64)>> = HashMap::new();
        for lost in lost {
            let began = lost.at.get(&Mark::Fault).copied().unwrap_or(i64::MIN);
            let over = lost.at.get(&Mark::EndpointAdded).copied().filter(|_| lost.outage.replacement.as_deref() == Some(lost.outage.pod.as_str()));
            outages.entry(&lost.outage.uid).or_default().push((began, over.unwrap_or(end)));
        }
        for pod in history.fleet.pods() {
            let until = pod.states.iter().skip(1).map(|(at, _)| *at).chain([end.max(pod.states.last().map_or(end, |(at, _)| *at))]);
            for ((from, _), until) in pod.states.iter().zip(until).filter(|((_, state), _)| *state == PodState::Serving) {
                let mut served = vec![(*from, until)];
                // Before anybody noticed it was in the Service, and served nobody.
                for (began, over) in outages.get(pod.uid.as_str()).into_iter().flatten() {
                    served = served
                        .into_iter()
                        .flat_map(|(from, until)| [(from, until.min(*began)), (from.max(*over), until)])
                        .filter(|(from, until)| from < until)
                        .collect();
                }
                pods.entry(pod.name.clone()).or_default().extend(served);
            }
        }
        let mut starts: Vec<i64> = pods.values().flatten().map(|(from, _)| *from).collect();
        let mut ends: Vec<i64> = pods.values().flatten().map(|(_, until)| *until).collect();
        starts.sort_unstable();
        ends.sort_unstable();
        let outages = outages.into_values().flatten().collect();
        Self { pods, starts, ends, outages }
    }

    fn count(&self, at: i64) -> usize {
        self.starts.partition_point(|from| *from <= at).saturating_sub(self.ends.partition_point(|until| *until <= at))
    }

    fn any(&self, at: i64) -> bool {
        self.count(at) > 0
    }

    /// Whether a pod was in service other than the one that was asked then. Where nobody says which that was, it was a lost one if there was any.
    fn another(&self, at: i64, asked: Option<&str>) -> bool {
        let within = |stretch: &(i64, i64)| stretch.0 <= at && at < stretch.1;
        let asked_one_of_them = match asked {
            Some(name) => self.pods.get(name).is_some_and(|stretches| stretches.iter().any(within)),
            None => !self.outages.iter().any(within),
        };
        self.count(at) > usize::from(asked_one_of_them)
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::{golden::Outcome, sidecar::GoldenReplay};

    use super::*;
    use crate::{
        load::End,
        observe::testing::{Told, uid},
        platform::What,
    };

    const SECOND: i64 = 1_000_000;

    struct Run(Told);

    impl Run {
        fn of(names: &[&str]) -> Self {
            Self(Told::of(names))
        }

        fn up(&mut self, ms: u64, name: &str, replaces: Option<&str>) {
            self.0.up(ms, name, replaces);
        }

        fn down(&mut self, ms: u64, name: &str) {
            self.0.change(ms, What::Endpoint { uid: uid(name), present: false });
            self.0.change(ms, What::Gone { uid: uid(name), reason: "deleted".into() });
        }

        fn asked(&mut self, ms: u64, pod: Option<&str>, end: End) {
            self.0.asked(ms, 5, pod, end);
        }

        fn losses(self) -> Losses {
            let mut history = self.0.history;
            history.seal();
            let lost = history.outages(SECOND / 10, 0, 20 * SECOND);
            losses(&history, &lost, 0, 20 * SECOND)
        }
    }

    const RIGHT: End = End::Answered { right: true };
    const WRONG: End = End::Answered { right: false };

    #[test]
    fn wrong_answers_at_first_are_those_of_the_successor_before_its_first_right_one() {
        let story = |first: End| {
            let mut run = Run::of(&["a"]);
            run.asked(500, Some("a"), WRONG);
            run.down(1000, "a");
            run.up(2000, "b", Some("a"));
            run.asked(2500, Some("b"), first);
            run.asked(3500, Some("b"), RIGHT);
            run.asked(5000, Some("b"), WRONG);
            run.losses().outages[0].wrong_at_first
        };
        assert_eq!((story(RIGHT), story(WRONG)), (0, 1));
    }

    #[test]
    fn a_replay_that_mismatched_before_the_first_that_matched_counts_where_no_user_came_by() {
        let mut run = Run::of(&["a"]);
        run.down(1000, "a");
        run.up(2000, "b", Some("a"));
        for (at, outcome) in [(3, Outcome::Mismatch), (4, Outcome::Match), (5, Outcome::Mismatch)] {
            run.0.history.replays.replayed(at * SECOND, 1, &GoldenReplay { set: "s".into(), sample: "x".into(), outcome, detail: None, latency_ns: 0 });
        }
        assert_eq!(run.losses().outages[0].wrong_at_first, 1);
    }

    #[test]
    fn requests_are_late_only_while_another_pod_is_in_service_and_one_after_the_other() {
        let late = |names: &[&str], until: u64| {
            let mut run = Run::of(names);
            run.asked(500, Some("a"), RIGHT);
            run.down(1000, "a");
            for ms in (1100..=until).step_by(100) {
                run.asked(ms, None, End::Silence);
            }
            // Ten seconds after: something else.
            run.asked(until + 10_000, None, End::Silence);
            run.losses().outages[0].late_ms
        };
        assert_eq!(late(&["a", "b"], 2500), Some(1500.0));
        assert_eq!(late(&["a"], 2500), None, "there was nobody else to send to");
    }

    #[test]
    fn a_failure_can_be_asked_again_where_another_pod_serves() {
        let retriable = |names: &[&str], asked: Option<&str>, ms: u64| {
            let mut run = Run::of(names);
            run.down(1000, "a");
            run.asked(ms, asked, End::Silence);
            run.losses().retriable
        };
        assert_eq!(retriable(&["a", "b"], Some("a"), 500), 1, "before anything was lost, b served too");
        assert_eq!(retriable(&["a", "b"], None, 1500), 1, "it went to the lost one");
        assert_eq!(retriable(&["a"], None, 1500), 0, "no endpoint at all");
        assert_eq!(retriable(&["a", "b"], Some("b"), 1500), 0, "the only one was asked");
        assert_eq!(retriable(&["a"], None, 500), 0, "the only one was asked, whoever says so");
    }
}
