//! To the model server and back. Only a [`Sanitized`] request gets here.
//!
//! The protocol to the model server: HTTP/2 with prior knowledge for gRPC (an HTTP/2 request whose content type is `application/grpc`), which cannot live
//! without it; HTTP/1.1 for everything else, whatever the client spoke, because that is what model servers speak on their HTTP ports and trying HTTP/2
//! on a server that has none costs a connection and a guess.

pub mod hop_by_hop;
pub mod pool;
pub mod upgrade;

use std::{rc::Rc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, Version, header, uri::Scheme};
use steadfast_api::policy::Origin;

use crate::{
    body::{RequestBody, Source},
    fault::budget::ActiveFault,
    problem::{Dialect, Problem},
    sanitize::{Facts, Sanitized},
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
        let response = problem.response(dialect, origin).map(|body| if head { Source::Own(bytes::Bytes::new()) } else { Source::Own(body) });
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
    Refused { upstream: std::net::SocketAddr, why: std::io::Error },
    #[error("no connection to the model server at {upstream} within {after:?}")]
    ConnectTimeout { upstream: std::net::SocketAddr, after: Duration },
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
    match exchange(&worker, request, &facts).await {
        Ok(response) => Answer { response, origin: Origin::Upstream, active: None },
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

async fn exchange(worker: &Rc<Worker>, mut request: Request<RequestBody>, facts: &Facts) -> Result<Response<Source>, ForwardError> {
    let grpc = facts.dialect == Dialect::Grpc;
    let on_client = facts.websocket.then(|| {
        hop_by_hop::ask_for_websocket(request.headers_mut());
        hyper::upgrade::on(&mut request)
    });
    if grpc {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        with_authority(&mut request);
    }
    let after = worker.shared.config.upstream_timeout;
    let response =
        tokio::time::timeout(after, worker.pools[facts.route].send(request, grpc, facts.apart)).await.map_err(|_| ForwardError::Timeout { after })??;
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
