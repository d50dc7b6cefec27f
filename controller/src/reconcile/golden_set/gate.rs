//! Which pods leave their Service because of what they answer. Pure: from what is known now to who is out.
//!
//! A service must not fall because somebody's idea of a right answer is wrong, so:
//! - Nobody is out while any sidecar says that the reference is broken.
//! - Nobody is out while more pods fail than are known to answer right: if most fail alike, it is the set or the roll-out that is wrong, and those who are left would
//!   be no better. While too few have answered to know, nobody leaves, and who is out stays.
//! - At most `maxUnavailable` of the matching pods are out, rounded down; and never the last one that is ready.
//!
//! Several sets may speak of the same pods, so all of a namespace are decided together: whoever is out by any of them is out for the cap of each that it matches, and
//! is nobody's last ready one.
//!
//! While too few have answered for somebody to leave, those of whom too little is known are asked without regard to the set's share of their requests
//! ([`Decision::hurried`]): a pod that answers wrong is in service meanwhile.
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
    /// See the module; somebody belongs out.
    ReferenceBroken,
    MostFail {
        failing: usize,
        right: usize,
    },
    /// Pods that other sets hold out leave it no room.
    HeldByOthers {
        belong: usize,
    },
    /// Nobody else is ready, or nobody knows who is.
    LastReady,
}

impl Standing {
    /// Somebody belongs out and may not leave.
    pub const fn is_blocked(&self) -> bool {
        match self {
            Self::Off | Self::Open | Self::Gating => false,
            Self::AtCap { .. } | Self::Waiting | Self::ReferenceBroken | Self::MostFail { .. } | Self::HeldByOthers { .. } | Self::LastReady => true,
        }
    }
}

/// Who is out from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// UIDs.
    pub out: BTreeSet<String>,
    pub standing: Standing,
    /// UIDs of pods of whom too little is known, while somebody waits for it.
    pub hurried: BTreeSet<String>,
}

/// Whether [`decide`] needs to know which pods are ready.
pub fn needs_ready(pods: &[Matched], rule: &GoldenReadiness, recovered_after: u32) -> bool {
    rule.gate && pods.iter().any(|pod| pod.belongs_out(recovered_after))
}

/// One set of a namespace.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    pub pods: &'a [Matched],
    pub rule: &'a GoldenReadiness,
    pub recovered_after: u32,
    /// UIDs of the matching pods that are ready now, with or without a sidecar; `None`: the API server did not say.
    pub ready: Option<BTreeSet<String>>,
}

/// Who belongs out of one set's pods.
struct Wish<'a> {
    /// Who is out stays before somebody else goes.
    belong: Vec<&'a Matched>,
    /// Enough is known of the others for somebody to leave.
    known: bool,
    unknown: Vec<&'a Matched>,
}

impl<'a> Set<'a> {
    fn cap(&self) -> usize {
        (self.pods.len() as u64 * u64::from(self.rule.max_unavailable.ppm()) / 1_000_000) as usize
    }

    /// Where nobody is out whatever the others do, it says why.
    fn wish(&self) -> Result<Wish<'a>, Standing> {
        if !self.rule.gate {
            return Err(Standing::Off);
        }
        let mut belong: Vec<&Matched> = self.pods.iter().filter(|pod| pod.belongs_out(self.recovered_after)).collect();
        belong.sort_by(|a, b| (!a.out, &a.name).cmp(&(!b.out, &b.name)));
        if belong.is_empty() {
            return Err(Standing::Open);
        }
        if self.pods.iter().any(|pod| pod.said.is_some_and(|said| said.verdict == Verdict::ReferenceBroken)) {
            return Err(Standing::ReferenceBroken);
        }
        let right = self.pods.iter().filter(|pod| !pod.belongs_out(self.recovered_after) && pod.is_right()).count();
        let unknown: Vec<&Matched> = self.pods.iter().filter(|pod| !pod.belongs_out(self.recovered_after) && !pod.is_right()).collect();
        if right + unknown.len() < belong.len() {
            return Err(Standing::MostFail { failing: belong.len(), right });
        }
        Ok(Wish { known: right >= belong.len(), belong, unknown })
    }

    fn has(&self, uid: &str) -> bool {
        self.pods.iter().any(|pod| pod.uid == uid)
    }
}

/// See the module: one decision for each set of a namespace, in their order, those that come first before others.
pub fn decide(sets: &[Set<'_>]) -> Vec<Decision> {
    let wishes: Vec<Result<Wish<'_>, Standing>> = sets.iter().map(Set::wish).collect();
    let mut all: BTreeSet<&str> = BTreeSet::new();
    let mut of = vec![BTreeSet::new(); sets.len()];
    let (mut last, mut no_room) = (vec![false; sets.len()], vec![false; sets.len()]);
    for stays in [true, false] {
        for (index, wish) in wishes.iter().enumerate() {
            let Ok(wish) = wish else { continue };
            for pod in wish.belong.iter().filter(|pod| pod.out == stays && (stays || wish.known)) {
                let uid = pod.uid.as_str();
                if !all.contains(uid) {
                    let mut bound = sets.iter().filter(|set| set.rule.gate && set.has(uid));
                    if bound.clone().any(|set| set.pods.iter().filter(|pod| all.contains(pod.uid.as_str())).count() >= set.cap()) {
                        no_room[index] = true;
                        continue;
                    }
                    // Not knowing who is ready is a reason not to send somebody out, and none to bring somebody back.
                    let others = |ready: &BTreeSet<String>| ready.iter().any(|other| other != uid && !all.contains(other.as_str()));
                    if !bound.all(|set| set.ready.as_ref().map_or(stays, others)) {
                        last[index] = true;
                        continue;
                    }
                    all.insert(uid);
                }
                of[index].insert(pod.uid.clone());
            }
        }
    }
    let decided = wishes.iter().zip(sets).zip(of).enumerate();
    let decided = decided.map(|(index, ((wish, set), out))| {
        let standing = match wish {
            Err(standing) => standing.clone(),
            Ok(wish) if out.len() == wish.belong.len() => Standing::Gating,
            Ok(_) if last[index] => Standing::LastReady,
            Ok(wish) if out.len() >= set.cap() => Standing::AtCap { belong: wish.belong.len(), cap: set.cap() },
            Ok(wish) if no_room[index] => Standing::HeldByOthers { belong: wish.belong.len() },
            Ok(_) => Standing::Waiting,
        };
        let waits = wish.as_ref().ok().filter(|wish| standing == Standing::Waiting && !wish.known);
        let hurried = waits.into_iter().flat_map(|wish| &wish.unknown).map(|pod| pod.uid.clone()).collect();
        Decision { out, standing, hurried }
    });
    decided.collect()
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

    fn decide(pods: &[Matched], rule: &GoldenReadiness, recovered_after: u32, ready: Option<&BTreeSet<String>>) -> Decision {
        super::decide(&[Set { pods, rule, recovered_after, ready: ready.cloned() }]).remove(0)
    }

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
        let well = [pod("a", Pass, 800, false), pod("b", ReferenceBroken, 0, false), pod("c", Pass, 900, false)];
        let (gone, standing) = out(&well, "34%", &["a", "c"]);
        assert!(gone.is_empty() && standing == Standing::Open && !standing.is_blocked(), "nobody answers wrong, so nobody is kept from leaving");
        let mut off = rule("100%");
        off.gate = false;
        assert_eq!(decide(&first, &off, AFTER, None).standing, Standing::Off);
    }

    #[test]
    fn those_of_whom_too_little_is_known_are_hurried_while_a_wrong_pod_waits_for_them() {
        let hurried =
            |pods: &[Matched], share: &str| -> Vec<String> { decide(pods, &rule(share), AFTER, Some(&ready(&["a", "b", "c"]))).hurried.into_iter().collect() };
        let mut silent = pod("c", Inconclusive, 0, false);
        silent.said = None;
        let waiting = [pod("a", Fail, 3, false), pod("b", Inconclusive, 2, false), silent];
        assert_eq!(hurried(&waiting, "34%"), ["b", "c"]);
        assert_eq!(hurried(&waiting, "0%"), [""; 0], "nobody would leave whatever they said");
        let known = [pod("a", Fail, 3, false), pod("b", Inconclusive, 10, false), pod("c", Inconclusive, 2, false)];
        assert_eq!(hurried(&known, "34%"), [""; 0], "one that is right is enough for one that is not");
        let well = [pod("a", Inconclusive, 3, false), pod("b", Inconclusive, 2, false), pod("c", Pass, 800, false)];
        assert_eq!(hurried(&well, "34%"), [""; 0], "nobody waits");
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

    #[test]
    fn two_sets_that_gate_the_same_pods_share_one_cap_and_one_last_ready_pod() {
        let pods = |wrong: &str, out: bool| -> Vec<Matched> {
            let one = |name: &&str| if *name == wrong { pod(name, Fail, 3, out) } else { pod(name, Pass, 800, false) };
            ["a", "b", "c"].iter().map(one).collect()
        };
        let decided = |first: &[Matched], second: &[Matched], share: &str, who: &[&str]| -> Vec<(Vec<String>, Standing)> {
            let (rule, ready) = (rule(share), ready(who));
            let sets = [first, second].map(|pods| Set { pods, rule: &rule, recovered_after: AFTER, ready: Some(ready.clone()) });
            super::decide(&sets).into_iter().map(|decision| (decision.out.into_iter().collect(), decision.standing)).collect()
        };
        let (a, b, none) = (vec!["a".to_owned()], vec!["b".to_owned()], vec![]);
        assert_eq!(
            decided(&pods("a", false), &pods("b", false), "34%", &["a", "b", "c"]),
            [(a.clone(), Standing::Gating), (none.clone(), Standing::HeldByOthers { belong: 1 })]
        );
        // Who is out stays, whichever set is older.
        assert_eq!(decided(&pods("a", false), &pods("b", true), "34%", &["a", "c"])[1], (b.clone(), Standing::Gating));
        assert_eq!(decided(&pods("a", false), &pods("a", false), "34%", &["a", "b", "c"]), [(a.clone(), Standing::Gating), (a.clone(), Standing::Gating)]);
        // The first has just been told to leave, and is ready still.
        assert_eq!(decided(&pods("a", true), &pods("b", false), "100%", &["a", "b"]), [(a, Standing::Gating), (none, Standing::LastReady)]);
    }

    fn told(states: &[(u8, u64, bool, bool)], set: &str) -> Vec<Matched> {
        let one = |(index, (verdict, samples, out, _)): (usize, &(u8, u64, bool, bool))| {
            let verdict = [Pass, Fail, Inconclusive, ReferenceBroken, Fail][usize::from(*verdict)];
            pod(&format!("{set}{index}"), verdict, *samples, *out)
        };
        states.iter().enumerate().map(one).collect()
    }

    fn states() -> impl Strategy<Value = Vec<(u8, u64, bool, bool)>> {
        prop::collection::vec((0..5_u8, 0..40_u64, any::<bool>(), any::<bool>()), 0..12)
    }

    proptest! {
        /// Pods 0 to 2 of the second set are the last three of the first.
        #[test]
        fn what_two_sets_hold_out_together_is_within_the_cap_of_each_and_leaves_each_a_ready_pod(
            first in states(), second in states(), ppm in (0..=1_000_000_u32, 0..=1_000_000_u32), who in prop::collection::vec(any::<bool>(), 24),
        ) {
            let mut sets = [told(&first, "p"), told(&second, "q")];
            let shared: Vec<String> = sets[0].iter().rev().take(3).map(|pod| pod.uid.clone()).collect();
            for (pod, uid) in sets[1].iter_mut().zip(shared) {
                (pod.name, pod.uid) = (uid.clone(), uid);
            }
            let uids: BTreeSet<String> = sets.iter().flatten().map(|pod| pod.uid.clone()).collect();
            let now: BTreeSet<String> = uids.iter().zip(&who).filter(|(_, ready)| **ready).map(|(uid, _)| uid.clone()).collect();
            let ready_of = |pods: &[Matched]| pods.iter().map(|pod| pod.uid.clone()).filter(|uid| now.contains(uid)).collect::<BTreeSet<String>>();
            let rules = [ppm.0, ppm.1].map(|ppm| GoldenReadiness { gate: true, max_unavailable: steadfast_api::Percent::from_ppm(ppm).unwrap() });
            let asked: Vec<Set<'_>> =
                sets.iter().zip(&rules).map(|(pods, rule)| Set { pods, rule, recovered_after: AFTER, ready: Some(ready_of(pods)) }).collect();
            let decisions = super::decide(&asked);
            let all: BTreeSet<&String> = decisions.iter().flat_map(|decision| &decision.out).collect();
            for (set, decision) in asked.iter().zip(&decisions) {
                let out = set.pods.iter().filter(|pod| all.contains(&pod.uid)).count();
                prop_assert!(out as u64 * 1_000_000 <= set.pods.len() as u64 * u64::from(set.rule.max_unavailable.ppm()), "{decisions:?}");
                prop_assert!(out == 0 || set.ready.iter().flatten().any(|uid| !all.contains(uid)), "{decisions:?}");
                prop_assert!(decision.out.iter().all(|uid| set.pods.iter().any(|pod| pod.uid == *uid && (pod.failed() || pod.out))));
            }
        }

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
