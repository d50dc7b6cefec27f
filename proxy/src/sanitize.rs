//! Makes a client's request fit to be forwarded: one unambiguous meaning, no fields that belong to the client's connection, no `steadfast-fault`.
//!
//! Invariant: only this module makes a [`Sanitized`], and only a `Sanitized` request can be forwarded. What cannot be made unambiguous is refused.

use std::{net::IpAddr, ops::Range};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header, uri::PathAndQuery};
use steadfast_api::policy::{FAULT_HEADER, POD_HEADER};

use crate::{
    body::RequestBody,
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

/// What the layers need to know of a request, found out once.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts do not exclude each other")]
pub struct Facts {
    pub caller: Caller,
    pub dialect: Dialect,
    pub head: bool,
    /// Readiness, liveness and model-ready paths of the Open Inference Protocol: never faulted.
    pub probe: bool,
    /// Where the model's name stands in the path.
    model: Option<Range<usize>>,
    /// The lines of `steadfast-fault`, taken out of the request.
    pub fault_header: Vec<HeaderValue>,
    /// The client wants to know which pod answers.
    pub asks_pod: bool,
    /// The client asks to switch to WebSocket.
    pub websocket: bool,
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
        let websocket = parts.version == Version::HTTP_11 && hop_by_hop::asks_for_websocket(&parts.headers);
        // With both given, a length would be somebody else's idea of where this body ends.
        if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        hop_by_hop::strip(&mut parts.headers);
        if let http::header::Entry::Occupied(entry) = parts.headers.entry(header::EXPECT) {
            // Answered by us: hyper sends 100 when the body is first asked for.
            entry.remove();
        }
        let fault_header = match parts.headers.entry(FAULT_HEADER) {
            header::Entry::Occupied(entry) => entry.remove_entry_mult().1.collect(),
            header::Entry::Vacant(_) => Vec::new(),
        };
        let asks_pod = parts.headers.remove(POD_HEADER).is_some_and(|value| value == "?1");
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        if let Some(authority) = authority {
            parts.headers.insert(header::HOST, authority);
        }
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let (probe, model) = oip(path.path());
        parts.uri = path.into();
        parts.version = Version::HTTP_11;
        let facts = Facts { caller: Caller::User(peer), dialect, head, probe, model, fault_header, asks_pod, websocket, route };
        Ok(Self { request: Request::from_parts(parts, body), facts })
    }

    /// A golden replay: made here, so nothing in it is anybody's trick.
    pub fn replay(request: Request<RequestBody>) -> Self {
        let (probe, model) = oip(request.uri().path());
        let dialect = dialect(request.version(), request.uri().path(), request.headers());
        let facts = Facts { caller: Caller::Replay, dialect, head: false, probe, model, fault_header: Vec::new(), asks_pod: false, websocket: false, route: 0 };
        Self { request, facts }
    }

    pub fn method(&self) -> &Method {
        self.request.method()
    }

    pub fn path(&self) -> &str {
        self.request.uri().path()
    }

    /// The model in `/v2/models/{model}/…`.
    pub fn model(&self) -> Option<&str> {
        self.request.uri().path().get(self.facts.model.clone()?)
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// Asks for an answer without content coding, so that it can be changed.
    pub fn want_identity(&mut self) {
        self.request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
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
    } else {
        Dialect::Http
    }
}

/// Whether the path is a probe, and where in it the model's name stands.
fn oip(path: &str) -> (bool, Option<Range<usize>>) {
    const MODELS: &str = "/v2/models/";
    let Some(rest) = path.strip_prefix(MODELS) else {
        return (path.starts_with("/v2/health/"), None);
    };
    let (model, tail) = rest.split_once('/').unwrap_or((rest, ""));
    // `{model}/ready` and `{model}/versions/{version}/ready`.
    let probe = tail == "ready" || (tail.starts_with("versions/") && tail.ends_with("/ready") && tail.matches('/').count() == 2);
    (probe, (!model.is_empty()).then(|| MODELS.len()..MODELS.len() + model.len()))
}

/// The one authority that the request is for, when `Host` does not say it already (RFC 9112 §3.2).
fn one_authority(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<Option<HeaderValue>, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err("several Host headers: send one");
    }
    match (uri.authority(), host) {
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
        for (headers, uri) in [(&[][..], "/"), (&[("host", "a"), ("host", "b")], "/")] {
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
    fn probes_and_models_are_known_by_their_paths() {
        for (path, probe, model) in [
            ("/v2/health/ready", true, None),
            ("/v2/health/live", true, None),
            ("/v2/models/m/ready", true, Some("m")),
            ("/v2/models/m/versions/2/ready", true, Some("m")),
            ("/v2/models/m/infer", false, Some("m")),
            ("/v2/models/ready/infer", false, Some("ready")),
            ("/v2/models/m", false, Some("m")),
            ("/v1/x", false, None),
        ] {
            let (found, range) = oip(path);
            assert_eq!((found, range.map(|range| &path[range])), (probe, model), "{path}");
        }
    }
}
