//! Faults that sidecars carry out: the policy that an order becomes, and what sidecars prove of it afterwards. The same on every platform.

use std::{collections::BTreeMap, time::Duration};

use steadfast_api::{
    FaultKind, Percent, Span,
    fault::Cpu,
    policy::{Budget, DrawnFault, FaultPolicySpec, LabelSelector, Match, Rule},
};

use super::{Order, PlatformError};
use crate::{experiment::hypothesis::thousands, serve::ingest::Ingest};

/// What the sidecars of `pods`, and of all pods of `nodes`, shall do. `concurrent`: faults in progress at once; its expiry is the caller's to set.
pub(super) fn policy(order: Order, concurrent: u32) -> Result<(FaultPolicySpec, Vec<String>, Vec<String>), PlatformError> {
    let mut spec = FaultPolicySpec {
        selector: LabelSelector::default(),
        expires_after: Span::ZERO,
        // The load itself is the bound: a fault can hold back no more than is under way.
        budget: Budget { concurrent, share: Percent::HUNDRED },
        golden_replays: false,
        rules: Vec::new(),
        headers: None,
        cpu_pressure: None,
        held_down: false,
    };
    let (pods, nodes) = match order {
        Order::Requests { pods, nodes, fault, share } => {
            // A wrong answer is wrong for everybody; any other fault would look like drift.
            spec.golden_replays = fault.kind() == FaultKind::Corrupt;
            spec.rules = vec![Rule { matches: Match::default(), share, faults: vec![DrawnFault { fault, share: Percent::HUNDRED }] }];
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
    Ok((spec, pods, nodes))
}

/// What the sidecars of `covered` (names by UID) reported of `policy`, which was in force for `lasted`.
pub(super) fn evidence(ingest: &Ingest, policy: &str, spec: &FaultPolicySpec, covered: &BTreeMap<String, String>, lasted: Duration) -> Vec<String> {
    let mut counts: BTreeMap<FaultKind, Vec<(&str, u64)>> = BTreeMap::new();
    for (uid, name) in covered {
        for (kind, count) in ingest.injected(uid, policy).into_iter().filter(|(_, count)| *count > 0) {
            counts.entry(kind).or_default().push((name, count));
        }
    }
    let injected = counts.into_iter().map(|(kind, pods)| {
        let all: u64 = pods.iter().map(|(_, count)| count).sum();
        let each: Vec<_> = pods.iter().map(|(name, count)| format!("{name}: {}", thousands(*count))).collect();
        format!("{kind} injected {} time{} ({})", thousands(all), if all == 1 { "" } else { "s" }, each.join(", "))
    });
    let mut evidence: Vec<String> = injected.collect();
    let names = || covered.values().cloned().collect::<Vec<_>>().join(", ");
    let (seconds, sidecars) = (lasted.as_secs_f64(), if covered.len() == 1 { "its sidecar".to_owned() } else { format!("their {} sidecars", covered.len()) });
    if spec.held_down {
        evidence.push(format!("{} held down for {seconds:.1} s, as {sidecars} confirmed", names()));
    }
    if let Some(cpu) = &spec.cpu_pressure {
        // Measured: what was asked for proves nothing.
        for (uid, name) in covered {
            let burned = ingest.burned(uid, policy).as_secs_f64();
            if burned > 0.0 {
                let share = burned / seconds.max(0.001) / f64::from(cpu.cores) * 100.0;
                evidence.push(format!("{name}: {burned:.1} s of CPU burnt in {seconds:.1} s, {share:.0} % of a core ({} asked)", cpu.load));
            }
        }
    }
    evidence
}
