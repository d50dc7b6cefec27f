//! Which requests a rule means, with everything parsed beforehand: names in the right case, networks, one compiled regular expression.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use rand::Rng;
use regex::bytes::{Regex, RegexBuilder};
use steadfast_api::{
    Percent,
    fault::Fault,
    policy::{GrpcMatch, Identity, Match, PathMatch, Rule},
};

use super::{
    check::{bad, check_fault},
    draw,
};
use crate::problem::BadField;

const FAULTS_MAX: usize = 16;
/// Memory of one compiled expression, and of what it remembers while it runs.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// What of a request rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Looked<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub model: Option<&'a str>,
    pub version: Option<&'a str>,
    /// Service and method of a gRPC call.
    pub grpc: Option<(&'a str, &'a str)>,
    pub headers: &'a HeaderMap,
    /// `None`: the sidecar itself.
    pub client: Option<IpAddr>,
}

/// A rule with everything parsed.
#[derive(Debug)]
pub struct CompiledRule {
    methods: Vec<Method>,
    path: Option<CompiledPath>,
    query: Vec<(String, String)>,
    model: Option<String>,
    version: Option<String>,
    grpc: Option<GrpcMatch>,
    headers: Vec<(HeaderName, HeaderValue)>,
    identity: Option<CompiledIdentity>,
    clients: Vec<IpNet>,
    share: Percent,
    share_by: Option<HeaderName>,
    first: Option<u64>,
    every: Option<u64>,
    /// Requests that matched, where somebody counts them.
    matched: AtomicU64,
    faults: Vec<(Fault, Percent)>,
    /// Policy's name and the rule's number, which set draws by a header's value apart.
    salt: (Arc<str>, String),
}

#[derive(Debug)]
enum CompiledPath {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

/// A header and the values one of which it must have.
#[derive(Debug)]
pub struct CompiledIdentity {
    header: HeaderName,
    any_of: Vec<HeaderValue>,
}

impl CompiledIdentity {
    pub fn new(identity: &Identity, field: &str) -> Result<Self, BadField> {
        let header = header_name(&identity.header, || format!("{field}.header"))?;
        if identity.any_of.is_empty() {
            return Err(bad(format!("{field}.anyOf"), "[]", "at least one value"));
        }
        let value = |(i, value): (usize, &String)| {
            HeaderValue::from_str(value).map_err(|_| bad(format!("{field}.anyOf[{i}]"), format!("{value:?}"), "a header's value: visible ASCII"))
        };
        Ok(Self { header, any_of: identity.any_of.iter().enumerate().map(value).collect::<Result<_, _>>()? })
    }

    /// Of several fields of the name all must be meant: one that a client added counts no less than the proxy's.
    pub fn names(&self, headers: &HeaderMap) -> bool {
        let mut found = headers.get_all(&self.header).iter().peekable();
        found.peek().is_some() && found.all(|value| self.any_of.contains(value))
    }
}

pub fn header_name(name: &str, key: impl Fn() -> String) -> Result<HeaderName, BadField> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(key(), format!("{name:?}"), "a header's name"))
}

/// Whether one of `networks` has `address`; a client that reaches an IPv6 socket over IPv4 is meant by IPv4 networks.
pub fn within(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

impl CompiledPath {
    fn new(path: &PathMatch, field: &str) -> Result<Self, BadField> {
        match path {
            PathMatch::Exact(text) | PathMatch::Prefix(text) if !text.starts_with('/') => {
                Err(bad(field.to_owned(), format!("{text:?}"), "a path that begins with a slash, such as /v2/models/"))
            }
            PathMatch::Exact(text) => Ok(Self::Exact(text.clone())),
            PathMatch::Prefix(text) => Ok(Self::Prefix(text.clone())),
            PathMatch::Regex(text) => {
                let built = RegexBuilder::new(&format!("^(?:{text})$")).unicode(false).size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).build();
                let why = |error: regex::Error| {
                    let why = error.to_string();
                    let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    bad(format!("{field}.regex"), format!("{text:?}"), format!("a regular expression such as /v[12]/models/.* ({why})"))
                };
                built.map(Self::Regex).map_err(why)
            }
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }
}

impl CompiledRule {
    /// `number`: its place among the rules of `policy`.
    pub fn new(rule: &Rule, field: &str, policy: &Arc<str>, number: usize) -> Result<Self, BadField> {
        let Match { methods, path, query, model, version, grpc, headers, identity, clients } = &rule.matches;
        let parse_method = |(i, method): (usize, &String)| {
            let parsed = Method::from_bytes(method.as_bytes()).ok().filter(|_| method.bytes().all(|b| b.is_ascii_uppercase()));
            parsed.ok_or_else(|| bad(format!("{field}.match.methods[{i}]"), format!("{method:?}"), "a method in capital letters, such as POST"))
        };
        let methods = methods.iter().enumerate().map(parse_method).collect::<Result<_, _>>()?;
        let path = path.as_ref().map(|path| CompiledPath::new(path, &format!("{field}.match.path"))).transpose()?;
        let parse_header = |(name, value): (&String, &String)| {
            let key = || format!("{field}.match.headers.{name}");
            let parsed = header_name(name, key)?;
            Ok((parsed, HeaderValue::from_str(value).map_err(|_| bad(key(), format!("{value:?}"), "a header's value: visible ASCII"))?))
        };
        let headers = headers.iter().map(parse_header).collect::<Result<_, BadField>>()?;
        let identity = identity.as_ref().map(|identity| CompiledIdentity::new(identity, &format!("{field}.match.identity"))).transpose()?;
        let share_by = rule.share_by_header.as_ref().map(|name| header_name(name, || format!("{field}.shareByHeader"))).transpose()?;
        for (name, count) in [("first", rule.first), ("every", rule.every)] {
            if count == Some(0) {
                return Err(bad(format!("{field}.{name}"), 0, "1 or more"));
            }
        }
        if rule.faults.is_empty() || rule.faults.len() > FAULTS_MAX {
            return Err(bad(format!("{field}.faults"), format!("{} faults", rule.faults.len()), "1 to 16"));
        }
        for (i, drawn) in rule.faults.iter().enumerate() {
            check_fault(&drawn.fault, &format!("{field}.faults[{i}]"))?;
        }
        Ok(Self {
            methods,
            path,
            query: query.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            model: model.clone(),
            version: version.clone(),
            grpc: grpc.clone(),
            headers,
            identity,
            clients: clients.clone(),
            share: rule.share,
            share_by,
            first: rule.first,
            every: rule.every,
            matched: AtomicU64::new(0),
            faults: rule.faults.iter().map(|drawn| (drawn.fault.clone(), drawn.share)).collect(),
            salt: (Arc::clone(policy), number.to_string()),
        })
    }

    pub const fn asks_for_model(&self) -> bool {
        self.model.is_some() || self.version.is_some()
    }

    pub fn matches(&self, request: &Looked<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        (self.methods.is_empty() || self.methods.contains(request.method))
            && self.path.as_ref().is_none_or(|path| path.matches(request.path))
            && is(&self.model, request.model)
            && is(&self.version, request.version)
            && self
                .grpc
                .as_ref()
                .is_none_or(|wanted| request.grpc.is_some_and(|(service, method)| is(&wanted.service, Some(service)) && is(&wanted.method, Some(method))))
            && (self.query.is_empty() || self.matches_query(request.query.unwrap_or_default()))
            && self.headers.iter().all(|(name, value)| request.headers.get_all(name).iter().any(|found| found == value))
            && self.identity.as_ref().is_none_or(|identity| identity.names(request.headers))
            && (self.clients.is_empty() || request.client.is_some_and(|client| within(&self.clients, client)))
    }

    fn matches_query(&self, query: &str) -> bool {
        self.query.iter().all(|(name, value)| form_urlencoded::parse(query.as_bytes()).any(|(found, is)| found == *name && is == *value))
    }

    /// The faults that fall on a request that matches.
    pub fn draw<'a>(&'a self, rng: &mut impl Rng, headers: &HeaderMap) -> Vec<&'a Fault> {
        if self.first.is_some() || self.every.is_some() {
            let number = self.matched.fetch_add(1, Ordering::AcqRel) + 1;
            if self.first.is_some_and(|first| number > first) || self.every.is_some_and(|every| !number.is_multiple_of(every)) {
                return Vec::new();
            }
        }
        let Some(header) = &self.share_by else {
            return if draw::happens(rng, self.share) { draw_each(rng, &self.faults) } else { Vec::new() };
        };
        let Some(value) = headers.get(header) else { return Vec::new() };
        let (policy, number) = &self.salt;
        let of = |what: &str| draw::of_value(&[policy.as_bytes(), number.as_bytes(), what.as_bytes()], value.as_bytes());
        if of("") >= self.share.ppm() {
            return Vec::new();
        }
        self.faults.iter().enumerate().filter(|(i, (_, share))| of(&i.to_string()) < share.ppm()).map(|(_, (fault, _))| fault).collect()
    }
}

/// Each fault by its own chance, independently of the others.
pub fn draw_each<'a>(rng: &mut impl Rng, faults: &'a [(Fault, Percent)]) -> Vec<&'a Fault> {
    faults.iter().filter(|(_, share)| draw::happens(rng, *share)).map(|(fault, _)| fault).collect()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use steadfast_api::{
        FaultKind, Span,
        fault::{Abort, Delay, HttpAbort},
        read::from_yaml,
    };

    use super::*;

    fn rule(text: &str) -> CompiledRule {
        try_rule(text).unwrap()
    }

    fn try_rule(text: &str) -> Result<CompiledRule, BadField> {
        let rule = from_yaml("rule", &format!("{{{text}, faults: [{{abort: {{httpStatus: 503}}}}]}}")).unwrap();
        CompiledRule::new(&rule, "rules[0]", &"p".into(), 0)
    }

    #[test]
    fn every_field_that_is_given_must_match() {
        let mut headers = HeaderMap::new();
        headers.insert("x-team", HeaderValue::from_static("blue"));
        headers.insert("x-client", HeaderValue::from_static("tests"));
        let request = Looked {
            method: &Method::POST,
            path: "/v2/models/m/versions/3/infer",
            query: Some("a=1&user=J%C3%BCrgen+M"),
            model: Some("m"),
            version: Some("3"),
            grpc: None,
            headers: &headers,
            client: Some("::ffff:10.1.2.3".parse().unwrap()),
        };
        for (matches, misses) in [
            ("methods: [GET, POST]", "methods: [GET]"),
            ("path: {exact: /v2/models/m/versions/3/infer}", "path: {exact: /v2/models/m}"),
            ("path: {prefix: /v2/models/}", "path: {prefix: /v1/}"),
            ("path: {regex: '/v[12]/.*/infer'}", "path: {regex: '/v[12]/models/m'}"),
            ("query: {a: '1', user: Jürgen M}", "query: {a: '2'}"),
            ("query: {}", "query: {b: ''}"),
            ("model: m", "model: n"),
            ("version: '3'", "version: '2'"),
            ("headers: {X-Team: blue}", "headers: {X-Team: red}"),
            ("identity: {header: x-client, anyOf: [load, tests]}", "identity: {header: x-client, anyOf: [load]}"),
            ("clients: [192.168.0.0/16, 10.0.0.0/8]", "clients: [10.2.0.0/16]"),
            ("{}", "grpc: {}"),
        ] {
            let of = |text: &str| rule(&format!("match: {}", if text == "{}" { text.to_owned() } else { format!("{{{text}}}") }));
            assert!(of(matches).matches(&request), "{matches}");
            assert!(!of(misses).matches(&request), "{misses}");
        }
        let call = Looked { grpc: Some(("inference.GRPCInferenceService", "ModelInfer")), ..request };
        assert!(rule("match: {grpc: {service: inference.GRPCInferenceService}}").matches(&call) && rule("match: {grpc: {}}").matches(&call));
        assert!(!rule("match: {grpc: {method: ModelStreamInfer}}").matches(&call));
        let own = Looked { client: None, ..request };
        assert!(!rule("match: {clients: [0.0.0.0/0]}").matches(&own), "the sidecar's own requests come from nowhere");
    }

    #[test]
    fn an_identity_that_a_client_added_to_the_proxys_is_not_believed() {
        let identity = CompiledIdentity::new(&Identity { header: "x-client".into(), any_of: vec!["tests".into()] }, "").unwrap();
        let mut headers = HeaderMap::new();
        assert!(!identity.names(&headers));
        headers.append("x-client", HeaderValue::from_static("tests"));
        assert!(identity.names(&headers));
        headers.append("x-client", HeaderValue::from_static("somebody"));
        assert!(!identity.names(&headers));
    }

    #[test]
    fn what_cannot_be_matched_is_refused_with_what_would_be_right() {
        for (text, key, expected) in [
            ("match: {path: {regex: '/v2/('}}", "rules[0].match.path.regex", "unclosed group"),
            ("match: {path: {regex: '(((a{100}){100}){100}){100}'}}", "rules[0].match.path.regex", "size limit"),
            ("match: {path: {exact: v2}}", "rules[0].match.path", "slash"),
            ("match: {identity: {header: x, anyOf: []}}", "rules[0].match.identity.anyOf", "at least one"),
            ("match: {identity: {header: 'a b', anyOf: [x]}}", "rules[0].match.identity.header", "a header's name"),
            ("shareByHeader: 'x user'", "rules[0].shareByHeader", "a header's name"),
            ("first: 0", "rules[0].first", "1 or more"),
            ("every: 0", "rules[0].every", "1 or more"),
        ] {
            let error = try_rule(text).unwrap_err();
            assert!(error.key == key && error.expected.to_lowercase().contains(expected), "{text}: {error:?}");
        }
    }

    #[test]
    fn the_first_ones_and_every_so_many_are_counted_exactly() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut hits = |rule: &CompiledRule| -> Vec<usize> { (1..=12).filter(|_| !rule.draw(&mut rng, &HeaderMap::new()).is_empty()).collect() };
        assert_eq!(hits(&rule("first: 3")), [1, 2, 3]);
        assert_eq!(hits(&rule("every: 5")), [5, 10]);
        assert_eq!(hits(&rule("first: 9, every: 4")), [4, 8]);
    }

    #[test]
    fn who_shares_by_a_header_keeps_one_fate() {
        let mut rng = StdRng::seed_from_u64(1);
        let rule = rule("share: 30%, shareByHeader: x-user");
        let mut faulted = 0;
        for user in 0..1000 {
            let mut headers = HeaderMap::new();
            headers.insert("x-user", HeaderValue::from(user));
            let fate = rule.draw(&mut rng, &headers).len();
            assert!((0..5).all(|_| rule.draw(&mut rng, &headers).len() == fate));
            faulted += fate;
        }
        assert!((240..360).contains(&faulted), "{faulted}");
        assert!(rule.draw(&mut rng, &HeaderMap::new()).is_empty(), "without the header there is nothing to draw by");
    }

    #[test]
    fn faults_of_one_rule_are_drawn_independently() {
        let abort = Fault::Abort(Abort::http(HttpAbort::UNAVAILABLE));
        let delay = Fault::Delay(Delay { fixed: Span::from_millis(1), jitter: Span::ZERO }.into());
        let faults = [(abort, Percent::from_ratio(0.5)), (delay, Percent::from_ratio(0.25))];
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = [0_i32; 4];
        for _ in 0..10_000 {
            let drawn = draw_each(&mut rng, &faults);
            counts[drawn.iter().map(|fault| if fault.kind() == FaultKind::Abort { 1 } else { 2 }).sum::<usize>()] += 1;
        }
        // Neither 3750, abort alone 3750, delay alone 1250, both 1250; six standard deviations are below 300.
        for (count, expected) in counts.iter().zip([3750, 3750, 1250, 1250]) {
            assert!((count - expected).abs() < 300, "{counts:?}");
        }
    }
}
