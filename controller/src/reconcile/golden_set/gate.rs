//! Which pods leave their Service because of what they answer. Pure: from what is known now to who is out.
//!
//! A service must not fall because somebody's idea of a right answer is wrong, so:
//! - Nobody is out while any sidecar says that the reference is broken.
//! - Nobody is out while more pods fail than are known to answer right: if most fail alike, it is the set or the roll-out that is wrong, and those who are left would
//!   be no better. While too few have answered to know, nobody leaves, and who is out stays.
//! - At most `maxUnavailable` of the matching pods are out, rounded down; and never the last one that is ready.
//!
//! A pod returns when its sidecar says Pass, or has seen so many right answers, and no wrong one, that a server which still answers the share `detect` wrong would have
//! given them with a probability of one in twenty at most (`golden_sets::sequential::Settings::recovered_after`). A sidecar or server that starts anew
//! has to show the same.

use std::collections::BTreeSet;

use steadfast_api::{golden::Verdict, resource::GoldenReadiness};

use super::verdicts::Said;

/// Samples after which a pod that has not failed counts as one that answers right.
const RIGHT_AFTER: u64 = 10;

/// A matching pod.
#[derive(Clone, Debug)]
pub struct Matched {
    pub uid: String,
    pub name: String,
    pub said: Option<Said>,
    /// It is out now.
    pub out: bool,
}

impl Matched {
    fn failed(&self) -> bool {
        self.said.is_some_and(|said| said.verdict == Verdict::Fail)
    }

    /// Out of the Service if that were possible.
    fn belongs_out(&self, recovered_after: u32) -> bool {
        self.failed() || (self.out && !self.said.is_some_and(|said| returns(said, recovered_after)))
    }

    fn is_right(&self) -> bool {
        self.said.is_some_and(|said| match said.verdict {
            Verdict::Pass => true,
            Verdict::Inconclusive => said.samples >= RIGHT_AFTER && said.mismatches * 10 <= said.samples,
            Verdict::Fail | Verdict::ReferenceBroken => false,
        })
    }
}

fn returns(said: Said, recovered_after: u32) -> bool {
    match said.verdict {
        Verdict::Pass => true,
        Verdict::Inconclusive => said.mismatches == 0 && said.samples >= u64::from(recovered_after),
        Verdict::Fail | Verdict::ReferenceBroken => false,
    }
}

/// Where the gate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody asked for it.
    Off,
    /// Nobody belongs out.
    Open,
    /// Everybody who belongs out is.
    Gating,
    /// More belong out than may be.
    AtCap {
        belong: usize,
        cap: usize,
    },
    /// Too little is known of the others.
    Waiting,
    /// See the module.
    ReferenceBroken,
    MostFail {
        failing: usize,
        right: usize,
    },
    /// Nobody else is ready, or nobody knows who is.
    LastReady,
}

/// Who is out from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// UIDs.
    pub out: BTreeSet<String>,
    pub standing: Standing,
}

/// Whether [`decide`] needs to know which pods are ready.
pub fn needs_ready(pods: &[Matched], rule: &GoldenReadiness, recovered_after: u32) -> bool {
    rule.gate && pods.iter().any(|pod| pod.belongs_out(recovered_after))
}

/// See the module. `ready`: UIDs of the matching pods that are ready now, whoever is out not being; `None`: the API server did not say.
pub fn decide(pods: &[Matched], rule: &GoldenReadiness, recovered_after: u32, ready: Option<&BTreeSet<String>>) -> Decision {
    let nobody = |standing| Decision { out: BTreeSet::new(), standing };
    if !rule.gate {
        return nobody(Standing::Off);
    }
    if pods.iter().any(|pod| pod.said.is_some_and(|said| said.verdict == Verdict::ReferenceBroken)) {
        return nobody(Standing::ReferenceBroken);
    }
    // Who is out stays before somebody else goes.
    let mut belong: Vec<&Matched> = pods.iter().filter(|pod| pod.belongs_out(recovered_after)).collect();
    belong.sort_by(|a, b| (!a.out, &a.name).cmp(&(!b.out, &b.name)));
    if belong.is_empty() {
        return nobody(Standing::Open);
    }
    let right = pods.iter().filter(|pod| !pod.belongs_out(recovered_after) && pod.is_right()).count();
    let unknown = pods.len() - belong.len() - right;
    if right + unknown < belong.len() {
        return nobody(Standing::MostFail { failing: belong.len(), right });
    }
    let known = right >= belong.len();
    let cap = (pods.len() as u64 * u64::from(rule.max_unavailable.ppm()) / 1_000_000) as usize;
    let others_ready = |out: &BTreeSet<String>, pod: &Matched| ready.is_some_and(|ready| ready.iter().any(|uid| *uid != pod.uid && !out.contains(uid)));
    let mut out = BTreeSet::new();
    let mut last = false;
    for pod in &belong {
        if out.len() >= cap || (!known && !pod.out) {
            continue;
        }
        // Not knowing who is ready is a reason not to send somebody out, and none to bring somebody back.
        if others_ready(&out, pod) || (pod.out && ready.is_none()) {
            out.insert(pod.uid.clone());
        } else {
            last = true;
        }
    }
    let standing = if out.len() == belong.len() {
        Standing::Gating
    } else if last {
        Standing::LastReady
    } else if out.len() >= cap {
        Standing::AtCap { belong: belong.len(), cap }
    } else {
        Standing::Waiting
    };
    Decision { out, standing }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFTER: u32 = 29;

    fn pod(name: &str, verdict: Verdict, samples: u64, out: bool) -> Matched {
        let mismatches = if verdict == Verdict::Fail { samples } else { 0 };
        Matched { uid: name.to_owned(), name: name.to_owned(), said: Some(Said { verdict, samples, mismatches }), out }
    }

    fn rule(share: &str) -> GoldenReadiness {
        GoldenReadiness { gate: true, max_unavailable: share.parse().unwrap() }
    }

    fn ready(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    use Verdict::{Fail, Inconclusive, Pass, ReferenceBroken};

    fn out(pods: &[Matched], share: &str, who: &[&str]) -> (Vec<String>, Standing) {
        let decision = decide(pods, &rule(share), AFTER, Some(&ready(who)));
        (decision.out.into_iter().collect(), decision.standing)
    }

    #[test]
    fn one_wrong_pod_of_three_leaves_and_returns_when_it_has_been_right_for_long_enough() {
        let others = || vec![pod("b", Pass, 728, false), pod("c", Inconclusive, 12, false)];
        let with = |first: Matched| [vec![first], others()].concat();
        assert_eq!(out(&with(pod("a", Fail, 3, false)), "34%", &["a", "b", "c"]), (vec!["a".to_owned()], Standing::Gating));
        // Its sidecar started anew and knows little.
        assert_eq!(out(&with(pod("a", Inconclusive, 5, true)), "34%", &["b", "c"]).0, ["a"]);
        assert_eq!(out(&with(pod("a", Inconclusive, 29, true)), "34%", &["b", "c"]), (vec![], Standing::Open));
        assert_eq!(out(&with(pod("a", Pass, 800, true)), "34%", &["b", "c"]).0, [""; 0]);
        let mut silent = pod("a", Fail, 3, true);
        silent.said = None;
        assert_eq!(out(&with(silent), "34%", &["b", "c"]).0, ["a"], "who is out and says nothing stays out");
    }

    #[test]
    fn nobody_leaves_for_a_reference_that_is_broken_or_an_answer_that_most_share() {
        let all = [pod("a", Fail, 3, true), pod("b", Fail, 3, false), pod("c", Fail, 3, false)];
        assert_eq!(out(&all, "100%", &["b", "c"]), (vec![], Standing::MostFail { failing: 3, right: 0 }));
        let first = [pod("a", Fail, 3, false), pod("b", Inconclusive, 2, false), pod("c", Inconclusive, 2, false)];
        assert_eq!(out(&first, "34%", &["a", "b", "c"]), (vec![], Standing::Waiting), "the others may be as wrong");
        let broken = [pod("a", Fail, 3, true), pod("b", ReferenceBroken, 0, false), pod("c", Pass, 900, false)];
        assert_eq!(out(&broken, "34%", &["b", "c"]), (vec![], Standing::ReferenceBroken));
        let mut off = rule("100%");
        off.gate = false;
        assert_eq!(decide(&first, &off, AFTER, None).standing, Standing::Off);
    }

    #[test]
    fn the_cap_is_rounded_down_and_who_is_out_keeps_his_place() {
        let pods = [pod("a", Fail, 3, false), pod("b", Fail, 3, true), pod("c", Pass, 800, false), pod("d", Pass, 800, false)];
        assert_eq!(out(&pods, "49%", &["a", "c", "d"]), (vec!["b".to_owned()], Standing::AtCap { belong: 2, cap: 1 }));
        assert_eq!(out(&pods, "50%", &["a", "c", "d"]).0, ["a", "b"]);
        let three = [pod("a", Fail, 3, false), pod("b", Pass, 800, false), pod("c", Pass, 800, false)];
        assert_eq!(out(&three, "25%", &["a", "b", "c"]), (vec![], Standing::AtCap { belong: 1, cap: 0 }));
    }

    #[test]
    fn the_last_ready_pod_stays_and_a_pod_that_is_out_returns_when_there_is_no_other() {
        let pods = [pod("a", Fail, 3, false), pod("b", Pass, 800, false)];
        assert_eq!(out(&pods, "50%", &["a"]), (vec![], Standing::LastReady));
        let pods = [pod("a", Fail, 3, true), pod("b", Pass, 800, false)];
        assert_eq!(out(&pods, "50%", &[]), (vec![], Standing::LastReady));
        let unknown = decide(&pods, &rule("50%"), AFTER, None);
        assert_eq!(unknown.out.len(), 1, "who is out stays while nobody knows");
        let pods = [pod("a", Fail, 3, false), pod("b", Pass, 800, false)];
        assert!(decide(&pods, &rule("50%"), AFTER, None).out.is_empty());
    }

    proptest! {
        #[test]
        fn never_more_than_the_cap_and_never_the_last_ready_one(
            states in prop::collection::vec((0..5_u8, 0..40_u64, any::<bool>(), any::<bool>()), 0..12),
            ppm in 0..=1_000_000_u32,
        ) {
            let pods: Vec<Matched> = states.iter().enumerate().map(|(index, (verdict, samples, out, _))| {
                let verdict = [Pass, Fail, Inconclusive, ReferenceBroken, Fail][usize::from(*verdict)];
                pod(&format!("p{index}"), verdict, *samples, *out)
            }).collect();
            let ready: BTreeSet<String> = pods.iter().zip(&states).filter(|(pod, (.., is))| *is && !pod.out).map(|(pod, _)| pod.uid.clone()).collect();
            let rule = GoldenReadiness { gate: true, max_unavailable: steadfast_api::Percent::from_ppm(ppm).unwrap() };
            let decision = decide(&pods, &rule, AFTER, Some(&ready));
            prop_assert!(decision.out.len() as u64 * 1_000_000 <= pods.len() as u64 * u64::from(ppm));
            if !decision.out.is_empty() {
                prop_assert!(ready.iter().any(|uid| !decision.out.contains(uid)), "{decision:?}");
                prop_assert!(pods.iter().all(|pod| pod.said.is_none_or(|said| said.verdict != ReferenceBroken)));
            }
            prop_assert!(pods.iter().filter(|pod| decision.out.contains(&pod.uid)).all(|pod| pod.failed() || pod.out));
        }
    }
}
