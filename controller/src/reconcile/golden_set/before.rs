//! What a new leader believes of the one before, until its pods have spoken to it: else conditions would flap and everything would be told again.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use steadfast_api::resource::GoldenSetStatus;

use super::{gate::Matched, verdicts::of_service};

/// Pods that have not spoken to a new leader are what they were, for so long.
pub const BELIEVED_FOR: Duration = Duration::from_mins(2);

/// What the leader before said of a set.
pub struct Before {
    pub until: Instant,
    pub status: GoldenSetStatus,
    /// UIDs of pods whose first word is no news where it is a Pass: some of them were told so, and nobody knows which.
    pub passed: HashSet<String>,
}

impl Before {
    /// Keeps what stood in the status where nothing that was said since speaks against it. `youngest`: when the last of the pods was made.
    pub fn keep(&self, status: &mut GoldenSetStatus, pods: &[Matched], youngest: Option<Timestamp>, now: Instant) -> bool {
        let said = of_service(pods.iter().filter_map(|pod| pod.said).map(|said| Some(said.verdict)));
        let worst = of_service([self.status.verdict, said].into_iter().flatten().map(Some));
        let since: Option<Timestamp> =
            self.status.conditions.iter().find(|condition| condition.kind == "Verdict").and_then(|verdict| verdict.last_transition_time.parse().ok());
        // What was said of other pods, or of another set, says nothing of these.
        let same = status.digest == self.status.digest && status.pods_matched == self.status.pods_matched && since.is_some() && youngest < since;
        let keeps = now < self.until && pods.iter().any(|pod| pod.said.is_none()) && same && self.status.verdict.is_some() && worst == self.status.verdict;
        if keeps {
            let GoldenSetStatus { verdict, pods_passing, pods_failing, failing, .. } = &self.status;
            (status.verdict, status.pods_passing, status.pods_failing) = (*verdict, *pods_passing, *pods_failing);
            status.failing.clone_from(failing);
        }
        keeps
    }

    pub fn was_replaying(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::{golden::Verdict, resource::Condition};

    use super::{super::verdicts::Said, *};

    #[test]
    fn what_a_new_leader_took_over_stands_until_pods_say_otherwise() {
        let condition = |kind: &str| {
            let (kind, is) = (kind.to_owned(), "True".to_owned());
            let last_transition_time = "2026-01-01T00:01:00Z".to_owned();
            Condition { kind, status: is, reason: String::new(), message: String::new(), last_transition_time, observed_generation: None }
        };
        let status = GoldenSetStatus { digest: Some("sha256:1".into()), pods_matched: 2, ..GoldenSetStatus::default() };
        let was =
            GoldenSetStatus { verdict: Some(Verdict::Pass), pods_passing: 2, conditions: vec![condition("Ready"), condition("Verdict")], ..status.clone() };
        let now = Instant::now();
        let before = Before { until: now + BELIEVED_FOR, status: was, passed: HashSet::new() };
        assert!(before.was_replaying());
        let said = |verdict: Option<Verdict>| verdict.map(|verdict| Said { verdict, samples: 1, mismatches: 0 });
        let pods = |verdicts: [Option<Verdict>; 2]| {
            let one = |verdict| Matched { uid: "u".into(), name: "n".into(), said: said(verdict), out: false };
            verdicts.map(one)
        };
        let (made, later): (Option<Timestamp>, Option<Timestamp>) = ("2026-01-01T00:00:00Z".parse().ok(), "2026-01-01T00:02:00Z".parse().ok());
        let keeps = |status: &GoldenSetStatus, verdicts, youngest, at| {
            let mut status = status.clone();
            let keeps = before.keep(&mut status, &pods(verdicts), youngest, at);
            assert_eq!((status.verdict == Some(Verdict::Pass), status.pods_passing == 2), (keeps, keeps));
            keeps
        };
        assert!(keeps(&status, [None, None], made, now) && keeps(&status, [Some(Verdict::Pass), None], made, now));
        assert!(!keeps(&status, [Some(Verdict::Pass), Some(Verdict::Pass)], made, now), "all have spoken");
        assert!(!keeps(&status, [Some(Verdict::Fail), None], made, now) && !keeps(&status, [Some(Verdict::Inconclusive), None], made, now));
        assert!(!keeps(&status, [None, None], made, now + BELIEVED_FOR), "nobody is believed for ever");
        assert!(!keeps(&status, [None, None], later, now), "it was said of other pods");
        assert!(!keeps(&GoldenSetStatus { digest: None, ..status.clone() }, [None, None], made, now));
        assert!(!keeps(&GoldenSetStatus { pods_matched: 3, ..status.clone() }, [None, None], made, now));
    }
}
