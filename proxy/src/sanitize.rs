//! Makes a client's request fit to be forwarded: one unambiguous meaning, no fields that belong to the client's connection, no `steadfast-fault`.
//!
//! Invariant: only this module makes a [`Sanitized`], and only a `Sanitized` request can be forwarded. What cannot be made unambiguous is refused.

use std::{net::IpAddr, ops::Range};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, uri::PathAndQuery};
use http_body::Body as _;
use steadfast_api::policy::{FAULT_HEADER, POD_HEADER};

use crate::{
    body::RequestBody,
    fault::{link::Link, matching::Looked},
    forward::hop_by_hop,
    problem::{Dialect, Problem},
};

/// What may be forwarded.
pub struct Sanitized<R> {
    request: R,
    pub facts: Facts,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    User(IpAddr),
    /// The sidecar itself, with a golden sample.
    Replay,
}

impl Caller {
    pub const fn address(self) -> Option<IpAddr> {
        match self {
            Self::User(address) => Some(address),
            Self::Replay => None,
        }
    }
}

/// The model that a request names in its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedModel {
    pub name: Option<String>,
    pub version: Option<String>,
}

/// What the layers need to know of a request, found out once.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts do not exclude each other")]
pub struct Facts {
    pub caller: Caller,
    pub dialect: Dialect,
    pub head: bool,
    /// Readiness, liveness and model-ready paths and calls of the Open Inference Protocol, and gRPC's own health checks: never faulted.
    pub probe: bool,
    /// Where the model's name and its version stand in the path.
    model: Option<Range<usize>>,
    version: Option<Range<usize>>,
    /// The one in the body, where somebody has looked for it.
    pub named: NamedModel,
    /// The client speaks HTTP/2.
    pub http2: bool,
    /// The client's connection.
    pub link: Option<Link>,
    /// The answer will be held up on its way: it must not stand in other answers' way.
    pub apart: bool,
    /// The lines of `steadfast-fault`, taken out of the request.
    pub fault_header: Vec<HeaderValue>,
    /// The client wants to know which pod answers.
    pub asks_pod: bool,
    /// The protocol that the client asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// The client sends the body when it is asked for it.
    pub expects: bool,
    /// The client understands what is said before an answer.
    pub informed: bool,
    /// By which of [`Config::routes`](crate::config::Config::routes) it came in.
    pub route: usize,
}

/// A request that cannot be forwarded, and the form in which to say so.
pub struct Refusal {
    pub problem: Problem,
    pub dialect: Dialect,
    pub head: bool,
    pub unread: Box<RequestBody>,
}

impl Sanitized<Request<RequestBody>> {
    /// A user's request.
    pub fn user(request: Request<RequestBody>, peer: IpAddr, route: usize) -> Result<Self, Refusal> {
        let dialect = dialect(request.version(), request.uri().path(), request.headers());
        let head = request.method() == Method::HEAD;
        let (mut parts, body) = request.into_parts();
        let refuse = |unread, status, kind, detail: &str| Refusal {
            problem: Problem::new(status, kind, "Request refused", detail),
            dialect,
            head,
            unread: Box::new(unread),
        };
        if parts.method == Method::CONNECT {
            return Err(refuse(body, StatusCode::NOT_IMPLEMENTED, "connect", "CONNECT asks for a tunnel, and this is no tunnel: send an ordinary request"));
        }
        let authority = match one_authority(&parts.uri, &parts.headers, parts.version) {
            Ok(authority) => authority,
            Err(detail) => return Err(refuse(body, StatusCode::BAD_REQUEST, "host", detail)),
        };
        let http11 = parts.version == Version::HTTP_11;
        let upgrade = if http11 { hop_by_hop::asked_upgrade(&parts.headers) } else { None };
        // With both given, a length would be somebody else's idea of where this body ends.
        if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        hop_by_hop::strip(&mut parts.headers);
        let expected = parts.headers.remove(header::EXPECT);
        // Whether the body is wanted, the model server says; hyper asks the client for it when it is first read.
        let expects = http11 && !body.is_end_stream() && expected.is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let fault_header = match parts.headers.entry(FAULT_HEADER) {
            header::Entry::Occupied(entry) => entry.remove_entry_mult().1.collect(),
            header::Entry::Vacant(_) => Vec::new(),
        };
        let asks_pod = parts.headers.remove(POD_HEADER).is_some_and(|value| value == "?1");
        let http2 = parts.version == Version::HTTP_2;
        if http2 {
            join_cookies(&mut parts.headers);
        }
        if let Some(authority) = authority {
            parts.headers.insert(header::HOST, authority);
        }
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let Oip { probe, model, version } = oip(path.path());
        let probe = match dialect {
            Dialect::Grpc => GRPC_PROBES.contains(&path.path()),
            _ => probe && matches!(parts.method, Method::GET | Method::HEAD),
        };
        parts.uri = path.into();
        parts.version = Version::HTTP_11;
        let caller = Caller::User(peer);
        let facts = Facts {
            caller,
            dialect,
            head,
            probe,
            model,
            version,
            named: NamedModel::default(),
            http2,
            link: None,
            apart: false,
            fault_header,
            asks_pod,
            upgrade,
            expects,
            informed: http11,
            route,
        };
        Ok(Self { request: Request::from_parts(parts, body), facts })
    }

    /// A golden replay: made here, so nothing in it is anybody's trick.
    pub fn replay(request: Request<RequestBody>) -> Self {
        let Oip { probe, model, version } = oip(request.uri().path());
        let dialect = dialect(request.version(), request.uri().path(), request.headers());
        let facts = Facts {
            caller: Caller::Replay,
            dialect,
            head: false,
            probe,
            model,
            version,
            named: NamedModel::default(),
            http2: false,
            link: None,
            apart: false,
            fault_header: Vec::new(),
            asks_pod: false,
            upgrade: None,
            expects: false,
            informed: false,
            route: 0,
        };
        Self { request, facts }
    }

    pub fn method(&self) -> &Method {
        self.request.method()
    }

    pub fn path(&self) -> &str {
        self.request.uri().path()
    }

    /// What rules of policies look at.
    pub fn looked(&self) -> Looked<'_> {
        let path = self.path();
        let grpc = (self.facts.dialect == Dialect::Grpc).then(|| path.strip_prefix('/').and_then(|call| call.rsplit_once('/'))).flatten();
        Looked {
            method: self.method(),
            path,
            query: self.request.uri().query(),
            model: self.facts.model.clone().and_then(|at| path.get(at)).or(self.facts.named.name.as_deref()),
            version: self.facts.version.clone().and_then(|at| path.get(at)).or(self.facts.named.version.as_deref()),
            grpc,
            headers: self.headers(),
            client: self.facts.caller.address(),
        }
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    pub fn body_mut(&mut self) -> &mut RequestBody {
        self.request.body_mut()
    }

    /// Asks for an answer without content coding, in gRPC for messages that are not compressed, so that it can be changed.
    pub fn want_identity(&mut self) {
        let name = if self.facts.dialect == Dialect::Grpc { HeaderName::from_static("grpc-accept-encoding") } else { header::ACCEPT_ENCODING };
        self.request.headers_mut().insert(name, HeaderValue::from_static("identity"));
    }

    /// Takes every header away whose name begins so.
    pub fn remove_headers(&mut self, prefix: &str) {
        let names: Vec<_> = self.headers().keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
        for name in names {
            self.request.headers_mut().remove(name);
        }
    }

    /// For `forward` alone.
    pub(crate) fn into_parts(self) -> (Request<RequestBody>, Facts) {
        (self.request, self.facts)
    }
}

fn dialect(version: Version, path: &str, headers: &HeaderMap) -> Dialect {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let grpc = content_type.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
    if grpc && version == Version::HTTP_2 {
        Dialect::Grpc
    } else if path == "/v2" || path.starts_with("/v2/") {
        Dialect::Oip
    } else if path.strip_prefix("/v1/models/").is_some_and(|rest| rest.contains(':')) {
        // `{model}:predict` of KServe's first protocol and of TensorFlow Serving, whose errors look as those of the second.
        Dialect::Oip
    } else if OPENAI.iter().any(|begin| path.strip_prefix(begin).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))) {
        Dialect::OpenAi
    } else if content_type.starts_with(b"application/json") && is_call(path) {
        Dialect::GrpcJson
    } else {
        Dialect::Http
    }
}

/// Where OpenAI's interface is, and what speaks like it.
const OPENAI: [&str; 9] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/rerank", "/v1/audio", "/v1/images", "/v1/moderations"];

/// `/{package.Service}/{Method}`: a gRPC call as gateways and transcoders take it in JSON.
fn is_call(path: &str) -> bool {
    let name = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let call = path.strip_prefix('/').and_then(|call| call.split_once('/'));
    call.is_some_and(|(service, method)| service.contains('.') && service.split('.').all(name) && name(method))
}

/// Calls that ask whether a server or a model is there.
const GRPC_PROBES: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
];

/// What a path of the Open Inference Protocol says.
struct Oip {
    probe: bool,
    model: Option<Range<usize>>,
    version: Option<Range<usize>>,
}

fn oip(path: &str) -> Oip {
    const MODELS: &str = "/v2/models/";
    const VERSIONS: &str = "versions/";
    let Some(rest) = path.strip_prefix(MODELS) else {
        return Oip { probe: matches!(path, "/v2/health/ready" | "/v2/health/live"), model: None, version: None };
    };
    let (model, tail) = rest.split_once('/').unwrap_or((rest, ""));
    let version = tail.strip_prefix(VERSIONS).map(|rest| rest.split('/').next().unwrap_or_default());
    // `{model}/ready` and `{model}/versions/{version}/ready`.
    let probe = tail == "ready" || (version.is_some() && tail.ends_with("/ready") && tail.matches('/').count() == 2);
    let model = MODELS.len()..MODELS.len() + model.len();
    let version = version.map(|version| model.end + 1 + VERSIONS.len()..model.end + 1 + VERSIONS.len() + version.len());
    Oip { probe, model: (!model.is_empty()).then_some(model), version: version.filter(|version| !version.is_empty()) }
}

/// The one authority that the request is for, when `Host` does not say it already (RFC 9112 §3.2).
fn one_authority(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<Option<HeaderValue>, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err("several Host headers: send one");
    }
    match (uri.authority(), host) {
        (Some(_), _) if uri.scheme().is_none() && version <= Version::HTTP_11 => Err("the target is neither a path nor a whole URL"),
        // What stands in the request line or in `:authority` decides.
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).map(Some).map_err(|_| "the authority cannot stand in a Host header"),
        (None, Some(_)) => Ok(None),
        (None, None) if version == Version::HTTP_11 => Err("no Host header: HTTP/1.1 needs one"),
        (None, None) => Ok(Some(HeaderValue::from_static("localhost"))),
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Result<(Request<RequestBody>, Facts), Refusal> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Sanitized::user(request.body(RequestBody::Empty).unwrap(), "127.0.0.1".parse().unwrap(), 0).map(Sanitized::into_parts)
    }

    #[test]
    fn an_ambiguous_request_is_refused() {
        for (headers, uri) in [(&[][..], "/"), (&[("host", "a"), ("host", "b")], "/"), (&[("host", "a:1")], "a:1")] {
            assert_eq!(request(Version::HTTP_11, uri, headers).err().unwrap().problem.status, 400);
        }
        let connect = Request::builder().method("CONNECT").uri("a:80").body(RequestBody::Empty).unwrap();
        assert_eq!(Sanitized::user(connect, "127.0.0.1".parse().unwrap(), 0).err().unwrap().problem.status, 501);
    }

    #[test]
    fn there_is_one_authority_and_the_target_is_a_path() {
        let (request, _) = request(Version::HTTP_11, "http://right:80/a?b", &[("host", "wrong")]).ok().unwrap();
        assert_eq!((request.uri().to_string(), &request.headers()["host"]), ("/a?b".to_owned(), &HeaderValue::from_static("right:80")));
    }

    #[test]
    fn what_belongs_to_the_hop_and_the_fault_header_do_not_go_on() {
        let headers = [
            ("host", "a"),
            ("connection", "close, x-hop, host, content-type"),
            ("x-hop", "1"),
            ("content-type", "text/plain"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("expect", "100-continue"),
            ("steadfast-fault", "delay=1"),
            ("steadfast-fault", "abort=503"),
            ("te", "trailers"),
            ("x-end", "1"),
        ];
        let (request, facts) = request(Version::HTTP_11, "/", &headers).ok().unwrap();
        let mut left: Vec<_> = request.headers().keys().map(header::HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "host", "x-end"]);
        assert_eq!(facts.fault_header.len(), 2);
    }

    #[test]
    fn cookies_that_http2_split_are_one_again() {
        let (request, _) = request(Version::HTTP_2, "http://a/", &[("cookie", "a=1"), ("cookie", "b=2")]).ok().unwrap();
        assert_eq!(request.headers().get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn errors_are_told_in_the_form_that_the_path_speaks() {
        let of = |path: &str, content_type: &'static str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            dialect(Version::HTTP_11, path, &headers)
        };
        for (path, right) in [
            ("/v2/models/m/infer", Dialect::Oip),
            ("/v1/models/m:predict", Dialect::Oip),
            ("/v1/chat/completions", Dialect::OpenAi),
            ("/v1/models", Dialect::OpenAi),
            ("/v1/models/m", Dialect::OpenAi),
            ("/v1/completionsx", Dialect::Http),
            ("/inference.GRPCInferenceService/ModelInfer", Dialect::GrpcJson),
            ("/a.b/c/d", Dialect::Http),
            ("/favicon.ico", Dialect::Http),
            ("/..a/b", Dialect::Http),
        ] {
            assert_eq!(of(path, "application/json; charset=utf-8"), right, "{path}");
        }
        assert_eq!(of("/pkg.Service/Call", "text/plain"), Dialect::Http);
    }

    #[test]
    fn probes_and_models_are_known_by_their_paths() {
        for (path, probe, model, version) in [
            ("/v2/health/ready", true, None, None),
            ("/v2/health/live", true, None, None),
            ("/v2/models/m/ready", true, Some("m"), None),
            ("/v2/models/m/versions/2/ready", true, Some("m"), Some("2")),
            ("/v2/models/m/versions/20/infer", false, Some("m"), Some("20")),
            ("/v2/models/m/versions/", false, Some("m"), None),
            ("/v2/models/m/infer", false, Some("m"), None),
            ("/v2/models/ready/infer", false, Some("ready"), None),
            ("/v2/models/m", false, Some("m"), None),
            ("/v2/models/", false, None, None),
            ("/v1/x", false, None, None),
        ] {
            let found = oip(path);
            let text = |range: Option<Range<usize>>| range.map(|range| &path[range]);
            assert_eq!((found.probe, text(found.model), text(found.version)), (probe, model, version), "{path}");
        }
    }
}
