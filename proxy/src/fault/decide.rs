//! What falls on a request: decided once, before anything happens to it.
//!
//! - Probes are never faulted. Golden replays are, only by policies that say `goldenReplays: true`.
//! - A `steadfast-fault` header counts if a policy in force trusts the client's address; the first such policy caps it and pays for it from its budget, and
//!   no rules fall on that request besides: who asks for something exact gets it. A header that nobody trusts is stripped, counted, and has no effect.
//! - Otherwise each policy in force lets its first matching rule draw; faults of one rule are drawn independently. Of each kind at most one falls on a
//!   request: that of the policy armed first.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use http::{Request, StatusCode};
use rand::{Rng, RngExt};
use steadfast_api::{
    FaultKind, Percent,
    fault::{Cpu, Fault, HttpAbort},
    policy::FAULT_HEADER,
};

use super::{budget::ActiveFault, header, policy::CompiledPolicy};
use crate::{
    body::RequestBody,
    clock,
    problem::Problem,
    sanitize::{Caller, Sanitized},
    worker::Worker,
};

/// Name under which faults count that a header asked for.
static BY_HEADER: LazyLock<Arc<str>> = LazyLock::new(|| "header".into());

/// What was decided. Made once per request, used up by doing it.
#[derive(Default)]
pub struct FaultPlan {
    pub delay: Option<Planned<Delay>>,
    pub abort: Option<Planned<HttpAbort>>,
    pub cpu: Option<Planned<Cpu>>,
    pub corrupt: Option<Planned<Percent>>,
}

/// A fault with its place in the budget.
pub struct Planned<T> {
    pub what: T,
    /// The policy's name, or `header`.
    pub by: Arc<str>,
    pub policy: Arc<CompiledPolicy>,
    pub active: ActiveFault,
}

/// A delay as drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    pub length_ns: u64,
    /// On [`crate::clock`], from the moment of the decision.
    pub deadline_ns: u64,
}

impl FaultPlan {
    pub const fn is_empty(&self) -> bool {
        self.delay.is_none() && self.abort.is_none() && self.cpu.is_none() && self.corrupt.is_none()
    }

    const fn has(&self, kind: FaultKind) -> bool {
        match kind {
            FaultKind::Delay => self.delay.is_some(),
            FaultKind::Abort => self.abort.is_some(),
            FaultKind::Cpu => self.cpu.is_some(),
            FaultKind::Corrupt => self.corrupt.is_some(),
        }
    }
}

/// Decides. An error is a trusted header that cannot be followed.
pub fn decide(worker: &Worker, request: &Sanitized<Request<RequestBody>>) -> Result<FaultPlan, Problem> {
    let mut plan = FaultPlan::default();
    let (armed, facts) = (worker.shared.store.load(), &request.facts);
    if armed.policies.is_empty() && facts.fault_header.is_empty() {
        return Ok(plan);
    }
    let now_ns = clock::now_ns();
    let in_force = || armed.policies.iter().filter(|policy| !policy.is_expired(now_ns));
    let asked = match facts.caller {
        Caller::User(peer) if !facts.fault_header.is_empty() => asked(worker, request, in_force(), peer)?,
        Caller::User(_) | Caller::Replay => None,
    };
    if facts.probe {
        return Ok(plan);
    }
    let mut rng = worker.rng.borrow_mut();
    for policy in in_force() {
        if facts.caller == Caller::Replay && !policy.golden_replays {
            continue;
        }
        let place = policy.budget.request();
        let (drawn, by) = match &asked {
            Some((trusting, faults)) if Arc::ptr_eq(trusting, policy) => (draw(&mut *rng, faults), &*BY_HEADER),
            Some(_) => continue,
            None => {
                let rule = policy.rules.iter().find(|rule| rule.matches(request.method(), request.path(), request.model(), request.headers()));
                let Some(rule) = rule.filter(|rule| happens(&mut *rng, rule.share)) else { continue };
                (draw(&mut *rng, &rule.faults), &policy.name)
            }
        };
        // One of a kind: what an earlier policy or an earlier entry of the list decided stands.
        let mut wanted: Vec<&Fault> = Vec::with_capacity(drawn.len());
        for fault in drawn {
            if !plan.has(fault.kind()) && !wanted.iter().any(|other| other.kind() == fault.kind()) {
                wanted.push(fault);
            }
        }
        if wanted.is_empty() {
            continue;
        }
        if !policy.budget.take_share(&place) {
            worker.meter.over_budget(by, wanted.len() as u64);
            continue;
        }
        let mut begun = 0;
        for fault in &wanted {
            let Some(active) = policy.budget.begin() else { continue };
            begun += 1;
            plan_one(&mut plan, &mut *rng, fault, by, policy, active, now_ns);
        }
        if begun == 0 {
            policy.budget.return_share(&place);
        }
        worker.meter.over_budget(by, wanted.len() as u64 - begun);
    }
    Ok(plan)
}

type Asked = Option<(Arc<CompiledPolicy>, Vec<(Fault, Percent)>)>;

/// What the header asks for, and the policy that trusts it.
fn asked<'a>(
    worker: &Worker,
    request: &Sanitized<Request<RequestBody>>,
    mut in_force: impl Iterator<Item = &'a Arc<CompiledPolicy>>,
    peer: IpAddr,
) -> Result<Asked, Problem> {
    let (metrics, facts) = (&worker.meter.metrics, &request.facts);
    let trusting = in_force.find_map(|policy| Some((policy, policy.trusts(peer)?)));
    let Some((policy, trust)) = trusting else {
        metrics.headers_stripped.with_label_values(&["untrusted"]).inc();
        return Ok(None);
    };
    if facts.probe {
        metrics.headers_stripped.with_label_values(&["probe"]).inc();
        return Ok(None);
    }
    let faults = header::parse(&facts.fault_header).and_then(|faults| header::cap(&faults, trust).map(|()| faults));
    let faults = faults.map_err(|field| {
        let kind = FaultKind::ALL.into_iter().find(|kind| field.key.split(';').next() == Some(kind.name()));
        metrics.headers_rejected.with_label_values(&[kind.map_or("syntax", FaultKind::name)]).inc();
        let of = if field.key == FAULT_HEADER { "" } else { "steadfast-fault: " };
        let detail = format!("{of}{}: {} cannot be: give {}", field.key, field.value, field.expected);
        Problem { field: Some(Box::new(field)), ..Problem::new(StatusCode::BAD_REQUEST, "fault-header", "Fault header refused", detail) }
    })?;
    Ok(Some((Arc::clone(policy), faults)))
}

fn happens(rng: &mut impl Rng, share: Percent) -> bool {
    rng.random_range(0..1_000_000) < share.ppm()
}

fn draw<'a>(rng: &mut impl Rng, faults: &'a [(Fault, Percent)]) -> Vec<&'a Fault> {
    faults.iter().filter(|(_, share)| happens(rng, *share)).map(|(fault, _)| fault).collect()
}

fn plan_one(plan: &mut FaultPlan, rng: &mut impl Rng, fault: &Fault, by: &Arc<str>, policy: &Arc<CompiledPolicy>, active: ActiveFault, now_ns: u64) {
    let (by, policy) = (Arc::clone(by), Arc::clone(policy));
    match fault {
        Fault::Delay(delay) => {
            let length_ns = clock::ns(delay.fixed.get()) + rng.random_range(0..=clock::ns(delay.jitter.get()));
            plan.delay = Some(Planned { what: Delay { length_ns, deadline_ns: now_ns + length_ns }, by, policy, active });
        }
        Fault::Abort(abort) => plan.abort = Some(Planned { what: abort.http_status, by, policy, active }),
        Fault::Cpu(cpu) => plan.cpu = Some(Planned { what: cpu.clone(), by, policy, active }),
        Fault::Corrupt(corrupt) => plan.corrupt = Some(Planned { what: corrupt.magnitude, by, policy, active }),
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use steadfast_api::{Span, fault::Abort};

    use super::*;

    #[test]
    fn faults_of_one_rule_are_drawn_independently() {
        let abort = Fault::Abort(Abort { http_status: 503.try_into().unwrap() });
        let delay = Fault::Delay(steadfast_api::fault::Delay { fixed: Span::from_millis(1), jitter: Span::ZERO });
        let faults = [(abort, Percent::from_ratio(0.5)), (delay, Percent::from_ratio(0.25))];
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = [0_i32; 4];
        for _ in 0..10_000 {
            let drawn = draw(&mut rng, &faults);
            counts[drawn.iter().map(|fault| if fault.kind() == FaultKind::Abort { 1 } else { 2 }).sum::<usize>()] += 1;
        }
        // Neither 3750, abort alone 3750, delay alone 1250, both 1250; six standard deviations are below 300.
        for (count, expected) in counts.iter().zip([3750, 3750, 1250, 1250]) {
            assert!((count - expected).abs() < 300, "{counts:?}");
        }
    }

    #[test]
    fn certain_is_always_and_impossible_is_never() {
        let mut rng = StdRng::seed_from_u64(2);
        assert!((0..1000).all(|_| happens(&mut rng, Percent::HUNDRED) && !happens(&mut rng, Percent::ZERO)));
    }
}
