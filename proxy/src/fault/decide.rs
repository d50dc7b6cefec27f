//! What falls on a request: decided once, before anything happens to it.
//!
//! - Probes are never faulted. Golden replays are, only by policies that say `goldenReplays: true`.
//! - A `steadfast-fault` header (or Envoy's, where the policy takes them) counts if a policy in force trusts the client; the first such policy caps it and pays for
//!   it from its budget, and no rules fall on that request besides: who asks for something exact gets it. A header that nobody trusts is stripped, counted, and has
//!   no effect.
//! - Otherwise each policy in force lets its first matching rule draw; faults of one rule are drawn independently. Of each kind at most one falls on a
//!   request: that of the policy armed first.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use http::{Method, Request, StatusCode};
use steadfast_api::{FaultKind, Percent, fault::Fault, policy::FAULT_HEADER};

use super::{budget::ActiveFault, draw, envoy, header, matching::draw_each, policy::CompiledPolicy};
use crate::{
    body::RequestBody,
    clock,
    problem::{BadField, Problem},
    sanitize::{Caller, Sanitized},
    worker::Worker,
};

/// Name under which faults count that a header asked for.
static BY_HEADER: LazyLock<Arc<str>> = LazyLock::new(|| "header".into());

/// What was decided. Made once per request, used up by doing it.
#[derive(Default)]
pub struct FaultPlan {
    /// At most one of a kind.
    faults: Vec<Planned>,
    /// Envoy's headers count here, so the model server shall not see them.
    pub strip_envoy: bool,
}

/// A fault with its place in the budget.
pub struct Planned {
    pub fault: Fault,
    /// Of a delay, as drawn.
    pub length_ns: u64,
    /// When it was decided, on [`crate::clock`].
    pub since_ns: u64,
    /// The policy's name, or `header`.
    pub by: Arc<str>,
    pub policy: Arc<CompiledPolicy>,
    pub active: ActiveFault,
}

impl FaultPlan {
    pub const fn is_empty(&self) -> bool {
        self.faults.is_empty() && !self.strip_envoy
    }

    pub fn has(&self, kind: FaultKind) -> bool {
        self.faults.iter().any(|planned| planned.fault.kind() == kind)
    }

    /// The fault of this kind, to be done now.
    pub fn take(&mut self, kind: FaultKind) -> Option<Planned> {
        let at = self.faults.iter().position(|planned| planned.fault.kind() == kind)?;
        Some(self.faults.swap_remove(at))
    }

    /// The fault of this kind, if `now` is its time.
    pub fn take_if(&mut self, kind: FaultKind, now: impl FnOnce(&Fault) -> bool) -> Option<Planned> {
        let planned = self.faults.iter().find(|planned| planned.fault.kind() == kind)?;
        if now(&planned.fault) { self.take(kind) } else { None }
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
    let probe = is_probe(worker, request);
    let asked = match facts.caller {
        Caller::User(peer) => asked(worker, request, probe, in_force(), peer, &mut plan)?,
        Caller::Replay => None,
    };
    if probe {
        return Ok(plan);
    }
    let looked = request.looked();
    let mut rng = worker.rng.borrow_mut();
    for policy in in_force() {
        if facts.caller == Caller::Replay && !policy.golden_replays {
            continue;
        }
        let place = policy.budget.request();
        let (drawn, by) = match &asked {
            Some((trusting, faults)) if Arc::ptr_eq(trusting, policy) => (draw_each(&mut *rng, faults), &*BY_HEADER),
            Some(_) => continue,
            None => {
                let Some(rule) = policy.rules.iter().find(|rule| rule.matches(&looked)) else { continue };
                (rule.draw(&mut *rng, request.headers()), &policy.name)
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
            let Some(active) = policy.budget.begin(now_ns) else { continue };
            begun += 1;
            let length_ns = if let Fault::Delay(delay) = fault { draw::length_ns(delay, &mut *rng) } else { 0 };
            plan.faults.push(Planned { fault: (*fault).clone(), length_ns, since_ns: now_ns, by: Arc::clone(by), policy: Arc::clone(policy), active });
        }
        if begun == 0 {
            policy.budget.return_share(&place);
        }
        worker.meter.over_budget(by, wanted.len() as u64 - begun);
    }
    Ok(plan)
}

/// Whether somebody asks only whether the model server is there: by the protocol's own paths or calls, or by the path that was configured.
fn is_probe(worker: &Worker, request: &Sanitized<Request<RequestBody>>) -> bool {
    request.facts.probe || (matches!(*request.method(), Method::GET | Method::HEAD) && worker.shared.config.is_ready_path(request.path()))
}

type Asked = Option<(Arc<CompiledPolicy>, Vec<(Fault, Percent)>)>;

/// What the request's own headers ask for, and the policy that trusts them.
fn asked<'a>(
    worker: &Worker,
    request: &Sanitized<Request<RequestBody>>,
    probe: bool,
    mut in_force: impl Iterator<Item = &'a Arc<CompiledPolicy>>,
    peer: IpAddr,
    plan: &mut FaultPlan,
) -> Result<Asked, Problem> {
    let (metrics, facts) = (&worker.meter.metrics, &request.facts);
    let own = !facts.fault_header.is_empty();
    let by_envoy = !own && envoy::asks(request.headers());
    if !own && !by_envoy {
        return Ok(None);
    }
    let trusting = in_force.find_map(|policy| Some((policy, policy.trusts(peer, request.headers()).filter(|trust| own || trust.envoy_headers)?)));
    let Some((policy, trust)) = trusting else {
        // Envoy's headers are nobody's here, and pass like any other.
        if own {
            metrics.headers_stripped.with_label_values(&["untrusted"]).inc();
        }
        return Ok(None);
    };
    plan.strip_envoy = trust.envoy_headers && envoy::asks(request.headers());
    if probe {
        metrics.headers_stripped.with_label_values(&["probe"]).inc();
        return Ok(None);
    }
    let faults = if own { header::parse(&facts.fault_header) } else { envoy::parse(request.headers()) };
    let faults =
        faults.and_then(|faults| header::cap(&faults, trust).map(|()| faults)).and_then(|faults| afford(&faults, &policy.source.spec.budget).map(|()| faults));
    let faults = faults.map_err(|field| refused(worker, if own { field } else { envoy::by_header(field) }))?;
    Ok(Some((Arc::clone(policy), faults)))
}

/// Memory that a budget never has room for is a mistake, and not a fault that comes too early.
fn afford(faults: &[(Fault, Percent)], budget: &steadfast_api::policy::Budget) -> Result<(), BadField> {
    let most = budget.memory.unwrap_or_default();
    match faults.iter().find_map(|(fault, _)| if let Fault::Memory(memory) = fault { Some(memory.bytes) } else { None }) {
        Some(bytes) if bytes > most => Err(BadField {
            key: FaultKind::Memory.name().into(),
            value: bytes.to_string(),
            expected: format!("at most {} bytes, as the policy's budget says", most.get()),
        }),
        _ => Ok(()),
    }
}

fn refused(worker: &Worker, field: BadField) -> Problem {
    let kind = FaultKind::ALL.into_iter().find(|kind| field.key.split([';', '.']).next() == Some(kind.name()));
    worker.meter.metrics.headers_rejected.with_label_values(&[kind.map_or("syntax", FaultKind::name)]).inc();
    let of = if field.key == FAULT_HEADER || field.key.starts_with(envoy::PREFIX) { "" } else { "steadfast-fault: " };
    let detail = format!("{of}{}: {} cannot be: give {}", field.key, field.value, field.expected);
    Problem { field: Some(Box::new(field)), ..Problem::new(StatusCode::BAD_REQUEST, "fault-header", "Fault header refused", detail) }
}
