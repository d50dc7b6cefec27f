//! The admin port, on loopback: `/metrics`, `/healthz`, `/readyz`, `/policy`, `/leave`; and the health port, on all interfaces, for kubelet and Prometheus: the first
//! three.
//!
//! Loopback keeps other machines out but not web pages in this machine's browser, so a request must name a loopback host (which a rebound DNS name is not),
//! and one that a page sent (it has `Origin`) may change nothing.

use std::{
    convert::Infallible,
    fmt::Write,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use steadfast_api::{
    policy::{NamedPolicy, Origin, PolicySnapshot},
    read,
};
use tokio::net::TcpListener;

use crate::{
    clock,
    drain::Phase,
    fault::armed::Source,
    measure::gather,
    problem::{BadField, Dialect, Problem},
    worker::{Counter, Shared},
};

/// A policy by hand.
const BODY_MAX: usize = 1 << 20;
const CONNECTIONS_MAX: usize = 64;
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Who can reach a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine: everything is there.
    Loopback,
    /// Everybody: nothing can be changed, nor read that says what is armed.
    Network,
}

/// Serves for as long as it is polled.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, reach: Reach) {
    let connections = Rc::<Counter>::default();
    loop {
        connections.below(CONNECTIONS_MAX).await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (shared, open) = (Arc::clone(&shared), connections.enter());
        tokio::task::spawn_local(async move {
            let _open = open;
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, request, reach).await.map(Full::new)) }
            });
            let served = http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>, reach: Reach) -> Response<Bytes> {
    let here: &[&str] = match reach {
        Reach::Loopback => &["/metrics", "/healthz", "/readyz", "/policy", "/leave"],
        Reach::Network => &["/metrics", "/healthz", "/readyz"],
    };
    if reach == Reach::Loopback
        && let Err(problem) = allowed(&request)
    {
        return problem.response(Dialect::Http, Origin::Proxy);
    }
    if !here.contains(&request.uri().path()) {
        let detail = format!("{} is not here: there are {}", request.uri().path(), here.join(", "));
        return Problem::new(StatusCode::NOT_FOUND, "path", "Not found", detail).response(Dialect::Http, Origin::Proxy);
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => text(StatusCode::OK, gather::CONTENT_TYPE, metrics(shared)),
        (&Method::GET, "/healthz") => text(StatusCode::OK, "text/plain", "ok\n"),
        (&Method::GET, "/readyz") => match shared.not_ready() {
            None => text(StatusCode::OK, "text/plain", "ok\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
        },
        (&Method::GET, "/policy") => policies(shared),
        (&Method::PUT, "/policy") => match put(shared, request).await {
            Ok(()) => policies(shared),
            Err(problem) => problem.response(Dialect::Http, Origin::Proxy),
        },
        (&Method::DELETE, "/policy") => match named(request.uri().query()) {
            None => {
                shared.store.disarm();
                policies(shared)
            }
            Some(name) if shared.store.disarm_named(&name) => policies(shared),
            Some(name) => {
                let armed: Vec<_> = shared.store.list().into_iter().map(|(_, policy)| policy.name.to_string()).collect();
                let detail =
                    format!("no policy {name:?} is armed: there {}", if armed.is_empty() { "is none".to_owned() } else { format!("are {}", armed.join(", ")) });
                Problem::new(StatusCode::NOT_FOUND, "policy", "Not armed", detail).response(Dialect::Http, Origin::Proxy)
            }
        },
        (&Method::POST, "/leave") => {
            tracing::info!("the pod ends: every answer ends its connection");
            shared.drain.enter(Phase::Parting);
            text(StatusCode::OK, "text/plain", "ok\n")
        }
        _ => {
            let allow = match request.uri().path() {
                "/policy" => "GET, PUT, DELETE",
                "/leave" => "POST",
                _ => "GET",
            };
            let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "Method not allowed", format!("use {allow}"));
            let mut response = problem.response(Dialect::Http, Origin::Proxy);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            response
        }
    }
}

/// The policy that `?name=` means.
fn named(query: Option<&str>) -> Option<String> {
    form_urlencoded::parse(query?.as_bytes()).find(|(name, _)| name == "name").map(|(_, value)| value.into_owned())
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn allowed<B>(request: &Request<B>) -> Result<(), Problem> {
    let refuse = |detail: String| Problem::new(StatusCode::FORBIDDEN, "host", "Not from here", detail);
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<http::uri::Authority>().ok();
    let name = name.as_ref().map_or("", http::uri::Authority::host).trim_start_matches('[').trim_end_matches(']');
    if name != "localhost" && !name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
        return Err(refuse(format!("Host {host:?} is not this machine's loopback: use 127.0.0.1, [::1] or localhost")));
    }
    if request.method() != Method::GET && request.headers().contains_key(header::ORIGIN) {
        return Err(refuse("web pages may change nothing here: use curl or the command line".to_owned()));
    }
    Ok(())
}

async fn put(shared: &Shared, request: Request<Incoming>) -> Result<(), Problem> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect();
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "policy", "Policy refused", detail);
    let body = tokio::time::timeout(HEAD_WITHIN, body).await.map_err(|_| bad("the body did not come in time".to_owned()))?;
    let body = body.map_err(|error| bad(format!("the body could not be read (at most {BODY_MAX} bytes): {error}")))?.to_bytes();
    let body = std::str::from_utf8(&body).map_err(|_| bad("the body is not UTF-8 text".to_owned()))?;
    arm(shared, "body", body).map_err(|error| Problem { field: error.field, ..bad(error.message) })
}

/// Why policies were not armed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotArmed {
    pub message: String,
    pub field: Option<Box<BadField>>,
}

/// Only which of the two forms it is; everything else is read by the form itself, which knows what would be right.
#[derive(Deserialize)]
struct Form {
    policies: Option<serde::de::IgnoredAny>,
    generation: Option<serde::de::IgnoredAny>,
}

/// Arms what `text` says, YAML or JSON: one named policy, or a snapshot, whose generation does not matter here and may be left out.
pub fn arm(shared: &Shared, file: &str, text: &str) -> Result<(), NotArmed> {
    let unreadable = |error: read::BadFile| {
        let field = BadField { key: error.field.clone(), value: format!("line {}", error.line), expected: error.message.clone() };
        let field = (!error.field.is_empty()).then(|| Box::new(field));
        NotArmed { message: error.to_string(), field }
    };
    let form = read::from_yaml::<Form>(file, text).ok();
    let policies = match form {
        Some(Form { policies: Some(_), generation: None }) => read::from_yaml::<Policies>(file, text).map_err(unreadable)?.policies,
        Some(Form { generation: Some(_), .. }) => read::from_yaml::<PolicySnapshot>(file, text).map_err(unreadable)?.policies,
        _ => vec![read::from_yaml::<NamedPolicy>(file, text).map_err(unreadable)?],
    };
    shared.store.from_hand(policies).map_err(|field| NotArmed { message: field.to_string(), field: Some(Box::new(field)) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policies {
    policies: Vec<NamedPolicy>,
}

fn policies(shared: &Shared) -> Response<Bytes> {
    let now_ns = clock::now_ns();
    let policies: Vec<_> = shared
        .store
        .list()
        .into_iter()
        .map(|(source, policy)| {
            serde_json::json!({
                "name": *policy.name,
                "source": match source { Source::Controller => "controller", Source::Manual => "manual" },
                "expiresInMs": policy.expires_ns.saturating_sub(now_ns) / 1_000_000,
                "active": policy.budget.active(),
                "begun": policy.budget.begun(),
                "injected": policy.counted(),
                "spec": policy.source.spec,
            })
        })
        .collect();
    let injections: Vec<_> = shared
        .store
        .ring
        .all()
        .into_iter()
        .map(|injection| {
            serde_json::json!({
                "number": injection.number,
                "agoMs": now_ns.saturating_sub(injection.at_ns) / 1_000_000,
                "policy": *injection.by,
                "fault": injection.kind,
                "client": injection.about.client,
                "method": injection.about.method,
                "path": injection.about.path,
            })
        })
        .collect();
    let body = serde_json::json!({ "generation": shared.store.load().generation, "policies": policies, "injections": injections });
    text(StatusCode::OK, "application/json", body.to_string())
}

/// What is looked up when somebody asks. The last two only where there is a controller.
pub const GAUGES: [(&str, &str); 8] = [
    ("steadfast_upstream_ready", "1 while the model server is ready by its own path."),
    ("steadfast_policies_armed", "Policies in force."),
    ("steadfast_cpu_burn_threads", "Threads that burn CPU, for policies with cpuPressure and for requests."),
    ("steadfast_memory_held_bytes", "Memory that faults hold."),
    ("steadfast_policy_generation", "Generation of the controller's policies."),
    ("steadfast_kept_out", "1 while the controller keeps this pod out of its Service."),
    ("steadfast_controller_connected", "1 while the controller's policies are heard."),
    ("steadfast_controller_not_understood", "What a newer controller said and this sidecar passed over."),
];

fn metrics(shared: &Shared) -> String {
    let mut text = gather::text(&shared.all_metrics());
    let armed = shared.store.load();
    let mut values = vec![
        u64::from(*shared.readiness.borrow()),
        armed.policies.len() as u64,
        shared.store.burners.threads() as u64,
        shared.store.memory.held(),
        armed.generation,
        u64::from(shared.store.kept_out().is_some()),
    ];
    if shared.config.controller.is_some() {
        values.push(u64::from(shared.controller_connected.load(Ordering::Relaxed)));
        values.push(shared.not_understood.load(Ordering::Relaxed));
    }
    for ((name, help), value) in GAUGES.into_iter().zip(values) {
        // A String takes everything.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_get_in_and_web_pages_change_nothing() {
        let request = |method: &str, host: &str, origin: Option<&str>| {
            let mut request = Request::builder().method(method).uri("/policy").header("host", host);
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            allowed(&request.body(()).unwrap())
        };
        for host in ["127.0.0.1:80", "localhost", "[::1]:9", "127.9.9.9"] {
            assert!(request("PUT", host, None).is_ok(), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "", "localhost.evil.example"] {
            assert_eq!(request("GET", host, None).unwrap_err().status, 403, "{host}");
        }
        assert!(request("PUT", "localhost", Some("http://evil.example")).is_err());
        assert!(request("GET", "localhost", Some("http://evil.example")).is_ok());
    }
}
