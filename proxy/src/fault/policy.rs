//! Policies as the request path uses them: checked, with names in the right case, budgets shared by all threads, and a deadline on the sidecar's own clock.
//!
//! Data comes from the controller, from `PUT /policy` and from `--policy`; all end here, and an illegal policy cannot become a [`CompiledPolicy`].

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::HeaderMap;
use steadfast_api::{
    FaultKind,
    fault::Fault,
    policy::{HeaderTrust, NamedPolicy},
};
use tokio::sync::watch;

use super::{
    budget::Budget,
    check::{bad, check_cpu, check_memory},
    matching::{CompiledIdentity, CompiledRule, within},
};
use crate::{clock, problem::BadField};

const RULES_MAX: usize = 64;
const CONNECTION_RULES_MAX: usize = 16;
const PER_SECOND_MAX: u32 = 10_000;
const CONCURRENT_MAX: u32 = 100_000;
/// A policy's name is a metric's label.
const NAME_MAX: usize = 63;

/// What a sidecar would refuse of `policy`: whoever hands policies on asks this first. Fields are named from the policy's `spec` on.
pub fn check(policy: &NamedPolicy) -> Result<(), BadField> {
    CompiledPolicy::new(policy.clone(), "", 0).map(drop)
}

/// A policy in force.
#[derive(Debug)]
pub struct CompiledPolicy {
    pub name: Arc<str>,
    pub expires_ns: u64,
    pub budget: Arc<Budget>,
    pub rules: Vec<CompiledRule>,
    pub headers: Option<HeaderTrust>,
    /// Of those whom [`HeaderTrust`] trusts by address, whom it means.
    identity: Option<CompiledIdentity>,
    pub golden_replays: bool,
    /// Faults that took place, by kind.
    counts: [AtomicU64; FaultKind::ALL.len()],
    /// It has expired or was disarmed.
    over: watch::Sender<bool>,
    /// As it was given, so that an unchanged policy in the next snapshot goes on instead of starting anew.
    pub source: NamedPolicy,
}

impl CompiledPolicy {
    /// Checks `source`, which is `field` of whatever was read; the policy expires `expiresAfter` from `now_ns` on.
    pub fn new(source: NamedPolicy, field: &str, now_ns: u64) -> Result<Self, BadField> {
        let spec = &source.spec;
        let at = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
        if source.name.is_empty() || source.name.len() > NAME_MAX || !source.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(bad(at("name"), format!("{:?}", source.name), "1 to 63 letters, digits, dashes, dots and underscores"));
        }
        if spec.expires_after.is_zero() {
            return Err(bad(at("spec.expiresAfter"), spec.expires_after, "more than zero, such as 10m: nothing is armed without an end"));
        }
        if !(1..=CONCURRENT_MAX).contains(&spec.budget.concurrent) {
            return Err(bad(at("spec.budget.concurrent"), spec.budget.concurrent, "1 to 100000"));
        }
        if let Some(rate) = spec.budget.per_second.filter(|rate| !(1..=PER_SECOND_MAX).contains(rate)) {
            return Err(bad(at("spec.budget.perSecond"), rate, "1 to 10000"));
        }
        if spec.budget.total == Some(0) {
            return Err(bad(at("spec.budget.total"), 0, "1 or more"));
        }
        if spec.rules.len() > RULES_MAX {
            return Err(bad(at("spec.rules"), format!("{} rules", spec.rules.len()), "at most 64"));
        }
        if spec.connections.len() > CONNECTION_RULES_MAX {
            return Err(bad(at("spec.connections"), format!("{} rules", spec.connections.len()), "at most 16"));
        }
        if let Some(cpu) = &spec.cpu_pressure {
            check_cpu(cpu, &at("spec.cpuPressure"))?;
        }
        let allowed = spec.budget.memory.unwrap_or_default();
        if let Some(memory) = &spec.memory_pressure {
            check_memory(memory, &at("spec.memoryPressure"))?;
            if memory.duration.is_some() {
                return Err(bad(at("spec.memoryPressure.for"), "a length", "nothing: it lasts as long as the policy is armed"));
            }
            if memory.bytes > allowed {
                return Err(bad(at("spec.memoryPressure.bytes"), memory.bytes, format!("at most what spec.budget.memory allows, {allowed}")));
            }
        }
        let name: Arc<str> = source.name.as_str().into();
        let compile = |(i, rule)| CompiledRule::new(rule, &at(&format!("spec.rules[{i}]")), &name, i);
        let rules = spec.rules.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        for (i, rule) in spec.rules.iter().enumerate() {
            for (j, drawn) in rule.faults.iter().enumerate() {
                if let Fault::Memory(memory) = &drawn.fault
                    && memory.bytes > allowed
                {
                    let key = at(&format!("spec.rules[{i}].faults[{j}].memory.bytes"));
                    return Err(bad(key, memory.bytes, format!("at most what spec.budget.memory allows, {allowed}")));
                }
            }
        }
        let identity = spec.headers.as_ref().and_then(|headers| headers.trust.identity.as_ref());
        let identity = identity.map(|identity| CompiledIdentity::new(identity, &at("spec.headers.trust.identity"))).transpose()?;
        Ok(Self {
            name,
            identity,
            counts: Default::default(),
            over: watch::Sender::new(false),
            expires_ns: now_ns.saturating_add(clock::ns(spec.expires_after.get())),
            budget: Budget::new(&spec.budget),
            rules,
            headers: spec.headers.clone(),
            golden_replays: spec.golden_replays,
            source,
        })
    }

    /// Whether a rule means requests by the model that they name.
    pub fn asks_for_model(&self) -> bool {
        self.rules.iter().any(CompiledRule::asks_for_model)
    }

    pub const fn is_expired(&self, now_ns: u64) -> bool {
        now_ns >= self.expires_ns
    }

    /// Whether a client at `address` that sent `headers` may ask for faults by header.
    pub fn trusts(&self, address: IpAddr, headers: &HeaderMap) -> Option<&HeaderTrust> {
        let trust = self.headers.as_ref().filter(|trust| within(&trust.trust.addresses, address))?;
        self.identity.as_ref().is_none_or(|identity| identity.names(headers)).then_some(trust)
    }

    /// Counts a fault that took place.
    pub fn count(&self, kind: FaultKind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Faults that took place since the policy was armed, those that did.
    pub fn counted(&self) -> BTreeMap<&'static str, u64> {
        let counts = FaultKind::ALL.into_iter().map(|kind| (kind.name(), self.counts[kind as usize].load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// It is in force no more, and never will be again.
    pub fn end(&self) {
        self.over.send_replace(true);
    }

    pub fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Returns once it is in force no more.
    pub async fn over(&self) {
        // The sender is here, so it cannot be gone.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::read::from_yaml;

    use super::*;

    const POLICY: &str = r"
name: slow
spec:
  expiresAfter: 10m
  budget: {concurrent: 100, share: 20%}
  rules:
    - match: {methods: [POST], path: {prefix: /v2/models/}, model: recommender, headers: {X-Team: blue}}
      share: 10%
      faults: [{delay: {fixed: 250ms, jitter: 50ms}}, {abort: {httpStatus: 503}, share: 25%}]
  headers: {trust: {addresses: [10.0.0.0/8]}, allow: [delay]}
";

    fn compile(text: &str) -> Result<CompiledPolicy, BadField> {
        CompiledPolicy::new(from_yaml("policy", text).unwrap(), "policies[0]", 5)
    }

    #[test]
    fn the_example_can_be_armed() {
        let text = include_str!("../../../examples/policies/slow-and-refused.yaml");
        let policy = CompiledPolicy::new(from_yaml("example", text).unwrap(), "", 0).unwrap();
        assert!(policy.rules.len() == 1 && policy.trusts("127.0.0.1".parse().unwrap(), &HeaderMap::new()).is_some());
    }

    #[test]
    fn trust_is_by_network_and_ipv4_is_ipv4_on_any_socket() {
        let policy = compile(POLICY).unwrap();
        assert!(policy.trusts("10.1.2.3".parse().unwrap(), &HeaderMap::new()).is_some());
        assert!(policy.trusts("::ffff:10.1.2.3".parse().unwrap(), &HeaderMap::new()).is_some());
        assert!(policy.trusts("127.0.0.1".parse().unwrap(), &HeaderMap::new()).is_none());
        let named = compile(&POLICY.replace("[10.0.0.0/8]", "[10.0.0.0/8], identity: {header: x-client, anyOf: [tests]}")).unwrap();
        let mut headers = HeaderMap::new();
        assert!(named.trusts("10.1.2.3".parse().unwrap(), &headers).is_none());
        headers.insert("x-client", http::HeaderValue::from_static("tests"));
        assert!(named.trusts("10.1.2.3".parse().unwrap(), &headers).is_some() && named.trusts("127.0.0.1".parse().unwrap(), &headers).is_none());
    }

    #[test]
    fn what_cannot_be_is_refused_by_field_and_value() {
        for (right, wrong, key, value) in [
            ("name: slow", "name: 'a b'", "policies[0].name", "a b"),
            ("expiresAfter: 10m", "expiresAfter: 0s", "policies[0].spec.expiresAfter", "0s"),
            ("concurrent: 100", "concurrent: 0", "policies[0].spec.budget.concurrent", "0"),
            ("[POST]", "[post]", "policies[0].spec.rules[0].match.methods[0]", "post"),
            ("/v2/models/", "v2", "policies[0].spec.rules[0].match.path", "v2"),
            ("X-Team", "'X Team'", "policies[0].spec.rules[0].match.headers.X Team", "X Team"),
            ("fixed: 250ms", "fixed: 2h", "policies[0].spec.rules[0].faults[0].delay", "2h"),
            ("concurrent: 100", "concurrent: 100, perSecond: 0", "policies[0].spec.budget.perSecond", "0"),
            ("concurrent: 100", "concurrent: 100, total: 0", "policies[0].spec.budget.total", "0"),
            ("abort: {httpStatus: 503}", "stall: {for: 0s}", "policies[0].spec.rules[0].faults[1].stall.for", "0s"),
            ("abort: {httpStatus: 503}", "throttle: {bytesPerSecond: 0}", "policies[0].spec.rules[0].faults[1].throttle.bytesPerSecond", "0"),
            ("abort: {httpStatus: 503}", "slice: {bytes: 2Gi}", "policies[0].spec.rules[0].faults[1].slice.bytes", "2Gi"),
            ("abort: {httpStatus: 503}", "memory: {bytes: 1Mi}", "policies[0].spec.rules[0].faults[1].memory.bytes", "1Mi"),
            ("abort: {httpStatus: 503}", "delay: {uniform: {from: 1s, to: 2h}}", "policies[0].spec.rules[0].faults[1].delay.uniform.to", "2h"),
            ("  headers:", "  memoryPressure: {bytes: 32Mi}\n  headers:", "policies[0].spec.memoryPressure.bytes", "32Mi"),
            ("  headers:", "  cpuPressure: {load: 0%}\n  headers:", "policies[0].spec.cpuPressure.load", "0%"),
        ] {
            let error = compile(&POLICY.replacen(right, wrong, 1)).unwrap_err();
            assert!(error.key == key && error.value.contains(value) && !error.expected.is_empty(), "{error:?}");
        }
    }

    #[test]
    fn expiry_is_counted_from_arming() {
        let policy = compile(POLICY).unwrap();
        assert!(!policy.is_expired(600_000_000_004) && policy.is_expired(600_000_000_005));
    }
}
