//! Policies as the request path uses them: checked, with names in the right case, budgets shared by all threads, and a deadline on the sidecar's own clock.
//!
//! Data comes from the controller, from `PUT /policy` and from `--policy`; all end here, and an illegal policy cannot become a [`CompiledPolicy`].

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use steadfast_api::{
    Percent,
    fault::Fault,
    policy::{HeaderTrust, Match, NamedPolicy, PathMatch},
};

use super::budget::Budget;
use crate::{clock, problem::BadField};

/// Policies of one snapshot.
pub const POLICIES_MAX: usize = 32;
const RULES_MAX: usize = 64;
const FAULTS_MAX: usize = 16;
const CONCURRENT_MAX: u32 = 100_000;
/// A policy's name is a metric's label.
const NAME_MAX: usize = 63;
const DELAY_MAX: std::time::Duration = std::time::Duration::from_hours(1);

/// A policy in force.
#[derive(Debug)]
pub struct CompiledPolicy {
    pub name: Arc<str>,
    pub expires_ns: u64,
    pub budget: Arc<Budget>,
    pub rules: Vec<CompiledRule>,
    pub headers: Option<HeaderTrust>,
    pub golden_replays: bool,
    /// As it was given, so that an unchanged policy in the next snapshot goes on instead of starting anew.
    pub source: NamedPolicy,
}

/// A rule with everything parsed.
#[derive(Debug)]
pub struct CompiledRule {
    methods: Vec<Method>,
    path: Option<PathMatch>,
    model: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
    pub share: Percent,
    pub faults: Vec<(Fault, Percent)>,
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over numbers, spans and texts alike")]
fn bad(key: String, value: impl ToString, expected: impl Into<String>) -> BadField {
    BadField { key, value: value.to_string(), expected: expected.into() }
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
        if spec.rules.len() > RULES_MAX {
            return Err(bad(at("spec.rules"), format!("{} rules", spec.rules.len()), "at most 64"));
        }
        if let Some(cpu) = &spec.cpu_pressure {
            check_cpu(cpu, &at("spec.cpuPressure"))?;
        }
        let rules = spec.rules.iter().enumerate().map(|(i, rule)| CompiledRule::new(rule, &at(&format!("spec.rules[{i}]")))).collect::<Result<_, _>>()?;
        Ok(Self {
            name: source.name.as_str().into(),
            expires_ns: now_ns.saturating_add(clock::ns(spec.expires_after.get())),
            budget: Budget::new(&spec.budget),
            rules,
            headers: spec.headers.clone(),
            golden_replays: spec.golden_replays,
            source,
        })
    }

    pub const fn is_expired(&self, now_ns: u64) -> bool {
        now_ns >= self.expires_ns
    }

    /// Whether a client at `address` may ask for faults by header.
    pub fn trusts(&self, address: IpAddr) -> Option<&HeaderTrust> {
        // A client that reaches an IPv6 socket over IPv4 is meant by IPv4 networks.
        let address = address.to_canonical();
        self.headers.as_ref().filter(|headers| headers.trust.addresses.iter().any(|network| network.contains(&address)))
    }
}

impl CompiledRule {
    fn new(rule: &steadfast_api::policy::Rule, field: &str) -> Result<Self, BadField> {
        let Match { methods, path, model, headers } = &rule.matches;
        let parse_method = |(i, method): (usize, &String)| {
            let parsed = Method::from_bytes(method.as_bytes()).ok().filter(|_| method.bytes().all(|b| b.is_ascii_uppercase()));
            parsed.ok_or_else(|| bad(format!("{field}.match.methods[{i}]"), format!("{method:?}"), "a method in capital letters, such as POST"))
        };
        let methods = methods.iter().enumerate().map(parse_method).collect::<Result<_, _>>()?;
        if let Some(PathMatch::Exact(text) | PathMatch::Prefix(text)) = path
            && !text.starts_with('/')
        {
            return Err(bad(format!("{field}.match.path"), format!("{text:?}"), "a path that begins with a slash, such as /v2/models/"));
        }
        let parse_header = |(name, value): (&String, &String)| {
            let key = || format!("{field}.match.headers.{name}");
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(key(), format!("{name:?}"), "a header's name"))?;
            Ok((parsed, HeaderValue::from_str(value).map_err(|_| bad(key(), format!("{value:?}"), "a header's value: visible ASCII"))?))
        };
        let headers = headers.iter().map(parse_header).collect::<Result<_, BadField>>()?;
        if rule.faults.is_empty() || rule.faults.len() > FAULTS_MAX {
            return Err(bad(format!("{field}.faults"), format!("{} faults", rule.faults.len()), "1 to 16"));
        }
        for (i, drawn) in rule.faults.iter().enumerate() {
            let field = format!("{field}.faults[{i}]");
            match &drawn.fault {
                Fault::Delay(delay) if delay.fixed.get() + delay.jitter.get() > DELAY_MAX => {
                    return Err(bad(format!("{field}.delay"), delay.fixed, "fixed and jitter of together at most 1h"));
                }
                Fault::Cpu(cpu) => check_cpu(cpu, &format!("{field}.cpu"))?,
                Fault::Delay(_) | Fault::Abort(_) | Fault::Corrupt(_) => {}
            }
        }
        let faults = rule.faults.iter().map(|drawn| (drawn.fault.clone(), drawn.share)).collect();
        Ok(Self { methods, path: path.clone(), model: model.clone(), headers, share: rule.share, faults })
    }

    pub fn matches(&self, method: &Method, path: &str, model: Option<&str>, headers: &HeaderMap) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && match &self.path {
                None => true,
                Some(PathMatch::Exact(exact)) => path == exact,
                Some(PathMatch::Prefix(prefix)) => path.starts_with(prefix.as_str()),
            }
            && self.model.as_deref().is_none_or(|wanted| model == Some(wanted))
            && self.headers.iter().all(|(name, value)| headers.get_all(name).iter().any(|found| found == value))
    }
}

fn check_cpu(cpu: &steadfast_api::fault::Cpu, field: &str) -> Result<(), BadField> {
    if cpu.load == Percent::ZERO {
        return Err(bad(format!("{field}.load"), cpu.load, "more than 0%"));
    }
    if !(1..=super::cpu::THREADS_MAX).contains(&usize::from(cpu.cores)) {
        return Err(bad(format!("{field}.cores"), cpu.cores, "1 to 1024"));
    }
    Ok(())
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
        assert!(policy.rules.len() == 1 && policy.trusts("127.0.0.1".parse().unwrap()).is_some());
    }

    #[test]
    fn a_rule_matches_only_when_every_field_does() {
        let policy = compile(POLICY).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-team", HeaderValue::from_static("blue"));
        let rule = &policy.rules[0];
        let path = "/v2/models/recommender/infer";
        assert!(rule.matches(&Method::POST, path, Some("recommender"), &headers));
        assert!(!rule.matches(&Method::GET, path, Some("recommender"), &headers));
        assert!(!rule.matches(&Method::POST, "/v1", Some("recommender"), &headers));
        assert!(!rule.matches(&Method::POST, path, Some("other"), &headers));
        assert!(!rule.matches(&Method::POST, path, Some("recommender"), &HeaderMap::new()));
    }

    #[test]
    fn trust_is_by_network_and_ipv4_is_ipv4_on_any_socket() {
        let policy = compile(POLICY).unwrap();
        assert!(policy.trusts("10.1.2.3".parse().unwrap()).is_some());
        assert!(policy.trusts("::ffff:10.1.2.3".parse().unwrap()).is_some());
        assert!(policy.trusts("127.0.0.1".parse().unwrap()).is_none());
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
