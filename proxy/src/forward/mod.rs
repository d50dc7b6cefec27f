//! To the model server and back. Only a [`Sanitized`] request gets here.
//!
//! The protocol to the model server is the client's, as it would be without us: HTTP/1.1, or HTTP/2 with prior knowledge. A server that speaks no HTTP/2 is asked in
//! HTTP/1.1 by HTTP/2 clients too, but for gRPC, which cannot live without it.

pub mod hop_by_hop;
pub mod interim;
pub mod pool;
pub mod upgrade;

use std::{rc::Rc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, Version, header, uri::Scheme};
use steadfast_api::policy::Origin;

use interim::Interim;

use crate::{
    body::{RequestBody, Source},
    clock,
    fault::{budget::ActiveFault, link::Link},
    half_close::ClientHalf,
    problem::{Dialect, Problem},
    relay::http2::NO_HTTP2_NS,
    sanitize::{Facts, Sanitized},
    upstream::Upstream,
    worker::Worker,
};

/// A response and whose doing its status was.
pub struct Answer {
    pub response: Response<Source>,
    pub origin: Origin,
    /// A fault that lasts as long as the body.
    pub active: Option<ActiveFault>,
}

impl Answer {
    /// An answer of our own. In answer to HEAD it has no body.
    pub fn own(problem: &Problem, dialect: Dialect, head: bool, origin: Origin) -> Self {
        let mut response = problem.response(dialect, origin);
        // These have no content (RFC 9110 §15.3.5, §15.3.6, §15.4.5).
        let empty = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&response.status());
        if empty {
            response.headers_mut().remove(header::CONTENT_TYPE);
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        let response = response.map(|body| Source::Own(if head || empty { bytes::Bytes::new() } else { body }));
        Self { response, origin, active: None }
    }
}

impl Answer {
    /// The same, to a request whose body nobody has read. It is read away first; where that takes too much, the connection ends with this answer and says so.
    pub async fn without_reading(mut self, unread: RequestBody) -> Self {
        if !unread.discard().await {
            self.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self
    }
}

/// Why the model server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("the model server at {upstream} refused the connection: {why}")]
    Refused { upstream: Upstream, why: std::io::Error },
    #[error("no connection to the model server at {upstream} within {after:?}")]
    ConnectTimeout { upstream: Upstream, after: Duration },
    #[error("all {most} connections to the model server are in use")]
    Exhausted { most: usize },
    #[error("no file descriptor is left for a connection to the model server")]
    Descriptors,
    #[error("the model server sent no response within {after:?}")]
    Timeout { after: Duration },
    #[error("the model server's connection failed before it had answered: {0}")]
    Broken(#[source] hyper::Error),
    #[error("the request's body broke off: {0}")]
    Client(#[source] hyper::Error),
    /// On the relay, where no library says more.
    #[error("the model server's connection ended before it had answered")]
    Ended,
    #[error("the request's body is not in chunks as its head says")]
    Malformed,
}

impl ForwardError {
    /// The one place where these become statuses: 503 try elsewhere, 502 it broke, 504 it took too long.
    pub fn problem(&self) -> Problem {
        let (status, kind, title) = match self {
            Self::Refused { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream-refused", "Model server not there"),
            Self::Exhausted { .. } | Self::Descriptors => (StatusCode::SERVICE_UNAVAILABLE, "upstream-exhausted", "Model server busy"),
            Self::ConnectTimeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "upstream-connect-timeout", "Model server not reached in time"),
            Self::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout", "Model server did not answer in time"),
            Self::Broken(_) | Self::Ended => (StatusCode::BAD_GATEWAY, "upstream-broken", "Model server broke off"),
            Self::Client(_) | Self::Malformed => (StatusCode::BAD_REQUEST, "request-broken", "Request broke off"),
        };
        Problem::new(status, kind, title, self.to_string())
    }
}

/// Sends `request` on and gives the model server's answer, or ours when it gave none.
pub async fn forward(worker: Rc<Worker>, request: Sanitized<Request<RequestBody>>) -> Answer {
    let (request, facts) = request.into_parts();
    let client = facts.link.as_ref().filter(|_| !facts.http2).map(Link::half);
    client.inspect(|client| client.forwarded());
    match exchange(&worker, request, &facts, client).await {
        Ok(response) => Answer { response, origin: Origin::Upstream, active: None },
        Err(ForwardError::Broken(_)) if client.is_some_and(ClientHalf::has_ended) => {
            // The model server takes a client that has ended its half for gone: so do we, and its connection drops this.
            client.inspect(|client| client.leave());
            std::future::pending().await
        }
        Err(error) => {
            // Somebody should look at the model server now rather than at the next poll.
            match error {
                ForwardError::Client(_) => {}
                ForwardError::Descriptors => worker.meter.exceeded("descriptors"),
                _ => worker.shared.suspect.notify_one(),
            }
            tracing::debug!(%error, "no answer from the model server");
            Answer::own(&error.problem(), facts.dialect, facts.head, Origin::Proxy)
        }
    }
}

async fn exchange(
    worker: &Rc<Worker>,
    mut request: Request<RequestBody>,
    facts: &Facts,
    client: Option<&ClientHalf>,
) -> Result<Response<Source>, ForwardError> {
    let grpc = facts.dialect == Dialect::Grpc;
    let on_client = facts.upgrade.clone().map(|protocols| {
        hop_by_hop::ask_upgrade(request.headers_mut(), protocols);
        hyper::upgrade::on(&mut request)
    });
    let pool = &worker.pools[facts.route];
    let over_http2 = grpc || (facts.http2 && Box::pin(speaks_http2(worker, facts.route)).await?);
    if grpc {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if over_http2 {
        with_authority(&mut request);
    }
    let after = worker.shared.config.upstream_timeout;
    // One that was read already, because a rule looks into it, waits for nobody.
    let expects = facts.expects && matches!(request.body(), RequestBody::Client(..));
    let interim = (!over_http2 && client.is_some()).then(|| Interim::of(&mut request, expects));
    if expects && interim.is_some() {
        request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    let sent = pool.send(request, over_http2, facts.apart, client);
    let sent = interim::until(sent, interim, facts.link.as_ref().filter(|_| facts.informed));
    let sent = tokio::time::timeout(after, sent).await;
    let response = sent.map_err(|_| ForwardError::Timeout { after })?;
    if over_http2 && response.is_err() {
        pool.forget_http2();
    }
    let response = response?;
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS
        && let Some(on_client) = on_client
    {
        return Ok(upgrade::join(worker, parts, body, on_client));
    }
    hop_by_hop::strip(&mut parts.headers);
    // hyper writes the client's own version.
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Response::from_parts(parts, Source::Upstream(body)))
}

/// Whether `route`'s model server speaks HTTP/2. One that does not is not asked again for a while.
async fn speaks_http2(worker: &Worker, route: usize) -> Result<bool, ForwardError> {
    if clock::now_ns() < worker.no_http2[route].get() {
        return Ok(false);
    }
    let speaks = worker.pools[route].speaks_http2().await?;
    if !speaks {
        worker.no_http2[route].set(clock::now_ns() + NO_HTTP2_NS);
    }
    Ok(speaks)
}

/// HTTP/2 wants scheme and authority in the target and no `Host`.
fn with_authority(request: &mut Request<RequestBody>) {
    let host = request.headers_mut().remove(header::HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority =
        host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok()).or_else(|| Some(http::uri::Authority::from_static("localhost")));
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
}
