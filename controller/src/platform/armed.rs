//! Faults that sidecars carry out: the policy that an order becomes, and what sidecars prove of it afterwards. The same on every platform.

use std::{collections::BTreeMap, time::Duration};

use steadfast_api::{
    FaultKind, Percent, Span,
    fault::Cpu,
    policy::{Budget, FaultPolicySpec, NamedPolicy, Rule},
};
use steadfast_proxy::fault::policy as sidecar;

use super::{Order, PlatformError, burned::PROVEN};
use crate::{
    experiment::hypothesis::thousands,
    serve::ingest::Ingest,
    words::{NAMES_MAX, some},
};

/// Faults in progress at once in each sidecar: as many as a policy may have. A network is slow for everybody, the users of others too; what bounds a step is its pods, its
/// time and the share that it says.
const CONCURRENT: u32 = 100_000;

/// What the sidecars of `pods`, and of all pods of `nodes`, shall do. Its expiry is the caller's to set.
pub(super) fn policy(order: Order) -> Result<(FaultPolicySpec, Vec<String>, Vec<String>), PlatformError> {
    let mut spec = FaultPolicySpec::new(Budget::new(CONCURRENT, Percent::HUNDRED), Span::ZERO);
    let (pods, nodes) = match order {
        Order::Requests { pods, nodes, fault, share } => {
            // A wrong answer is wrong for everybody; any other fault would look like drift.
            spec.golden_replays = fault.kind() == FaultKind::Corrupt;
            spec.rules = vec![Rule::of_all(fault, share)];
            (pods, nodes)
        }
        Order::HoldDown { pods } => {
            spec.held_down = true;
            (pods, Vec::new())
        }
        Order::BurnPods { pods, load } => {
            spec.cpu_pressure = Some(Cpu { load, cores: 1, duration: None });
            (pods, Vec::new())
        }
        other => return Err(PlatformError::new(other.name(), "is not a matter of sidecars")),
    };
    let sample = NamedPolicy { name: "step".to_owned(), spec: FaultPolicySpec { expires_after: Span::from_secs(1), ..spec.clone() } };
    sidecar::check(&sample).map_err(|wrong| PlatformError::new("the fault", wrong.to_string()))?;
    Ok((spec, pods, nodes))
}

/// What sidecars had counted before a fault reached their pods, by UID: of earlier runs and steps, and so no proof of this one.
pub(super) type Before = BTreeMap<String, BTreeMap<FaultKind, u64>>;

/// What sidecars said of a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) evidence: Vec<String>,
    /// Of pods in which it hardly happened.
    pub(super) doubts: Vec<String>,
}

/// What the sidecars of `covered` (names by UID) reported of `policy` beyond what they had `before`; it was in force for `lasted`. `serves`: whether users are led to a pod
/// even now.
pub(super) fn evidence(
    ingest: &Ingest,
    policy: &str,
    spec: &FaultPolicySpec,
    covered: &BTreeMap<String, String>,
    before: &Before,
    lasted: Duration,
    serves: impl Fn(&str) -> bool,
) -> Told {
    let mut counts: BTreeMap<FaultKind, Vec<(&str, u64)>> = BTreeMap::new();
    for (uid, name) in covered {
        for (kind, count) in ingest.injected(uid, policy) {
            let known = before.get(uid).and_then(|counts| counts.get(&kind)).copied().unwrap_or(0);
            let new = count.saturating_sub(known);
            if new > 0 {
                counts.entry(kind).or_default().push((name, new));
            }
        }
    }
    let injected = counts.into_iter().map(|(kind, pods)| {
        let all: u64 = pods.iter().map(|(_, count)| count).sum();
        let each: Vec<_> = pods.iter().map(|(name, count)| format!("{name}: {}", thousands(*count))).collect();
        format!("{kind} injected {} time{} ({})", thousands(all), if all == 1 { "" } else { "s" }, each.join(", "))
    });
    let mut evidence: Vec<String> = injected.collect();
    let mut doubts = Vec::new();
    let seconds = lasted.as_secs_f64();
    if spec.held_down {
        // What its sidecar confirmed proves nothing: that users were led elsewhere does.
        let out: Vec<&str> = covered.iter().filter(|(uid, _)| !serves(uid)).map(|(_, name)| name.as_str()).collect();
        if !out.is_empty() {
            evidence.push(format!("{} held down for {seconds:.1} s, and out of the Service at its end", some(&out, NAMES_MAX)));
        }
    }
    if let Some(cpu) = &spec.cpu_pressure {
        // Measured: what was asked for proves nothing.
        for (uid, name) in covered {
            let burned = ingest.burned(uid, policy).as_secs_f64();
            let share = burned / seconds.max(0.001) / f64::from(cpu.cores);
            let said = format!("{name}: {burned:.1} s of CPU burnt in {seconds:.1} s, {:.0} % of a core ({} asked)", share * 100.0, cpu.load);
            if share >= cpu.load.ratio() * PROVEN {
                evidence.push(said);
            } else if burned > 0.0 {
                doubts.push(format!("{said}, less than half: the pod's limit, its node's load or its end kept it from more"));
            }
        }
    }
    Told { evidence, doubts }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use steadfast_api::{
        fault::{Delay, Fault},
        sidecar::{self, InjectedCount, PodIdentity, RequestWindow, SidecarReport, What},
    };

    use super::*;

    #[test]
    fn what_an_earlier_run_injected_under_the_same_name_proves_nothing() {
        let ingest = Ingest::new(std::sync::Arc::default());
        let inject = |sequence, count| {
            let injected = vec![InjectedCount { policy: "step_1".into(), kind: FaultKind::Delay, count }];
            let window = RequestWindow { injected, ..RequestWindow::default() };
            let pod = PodIdentity { name: "p".into(), uid: "u".into(), ..PodIdentity::default() };
            ingest.take(
                Instant::now(),
                SidecarReport { pod, sequence, sent_ns: 0, evidence: vec![sidecar::Evidence { at_ns: 0, what: What::Requests(window) }], dropped: 0 },
            );
        };
        let order = Order::Requests {
            pods: vec!["p".into()],
            nodes: Vec::new(),
            fault: Fault::Delay(Delay { fixed: Span::from_secs(1), jitter: Span::ZERO }.into()),
            share: Percent::HUNDRED,
        };
        let (spec, ..) = policy(order).unwrap();
        let covered = BTreeMap::from([("u".to_owned(), "p".to_owned())]);
        inject(1, 7);
        let before: Before = covered.keys().map(|uid| (uid.clone(), ingest.injected(uid, "step_1"))).collect();
        let proof = || evidence(&ingest, "step_1", &spec, &covered, &before, Duration::ZERO, |_| true).evidence;
        assert_eq!(proof(), [""; 0]);
        inject(2, 3);
        assert_eq!(proof(), ["delay injected 3 times (p: 3)"]);
    }

    #[test]
    fn what_a_sidecar_would_refuse_is_told_before_it_is_asked() {
        let fault = Fault::Delay(Delay { fixed: Span::from_secs(7200), jitter: Span::ZERO }.into());
        let order = Order::Requests { pods: vec!["p".into()], nodes: Vec::new(), fault, share: Percent::HUNDRED };
        let why = policy(order).unwrap_err().to_string();
        assert!(why.contains("spec.rules[0].faults[0].delay") && why.contains("at most 1h"), "{why}");
    }

    #[test]
    fn pressure_that_hardly_reached_a_pod_is_a_doubt() {
        let ingest = Ingest::new(std::sync::Arc::default());
        let (spec, ..) = policy(Order::BurnPods { pods: vec!["p".into()], load: "80%".parse().unwrap() }).unwrap();
        let pod = PodIdentity { name: "p".into(), uid: "u".into(), ..PodIdentity::default() };
        let window = RequestWindow { burned: vec![sidecar::BurnedTime { policy: "step_1".into(), cpu_ns: 3_000_000_000 }], ..RequestWindow::default() };
        let evidence = vec![sidecar::Evidence { at_ns: 0, what: What::Requests(window) }];
        ingest.take(Instant::now(), SidecarReport { pod, sequence: 1, sent_ns: 0, evidence, dropped: 0 });
        let covered = BTreeMap::from([("u".to_owned(), "p".to_owned())]);
        let told = |seconds| evidence_of(&ingest, &spec, &covered, seconds);
        let (most, few) = (told(5), told(10));
        assert!(most.doubts.is_empty() && most.evidence[0].contains("60 % of a core (80% asked)"), "{most:?}");
        assert!(few.evidence.is_empty() && few.doubts[0].contains("30 % of a core (80% asked), less than half"), "{few:?}");
    }

    fn evidence_of(ingest: &Ingest, spec: &FaultPolicySpec, covered: &BTreeMap<String, String>, seconds: u64) -> Told {
        evidence(ingest, "step_1", spec, covered, &Before::new(), Duration::from_secs(seconds), |_| true)
    }
}
