//! The gateway: stands in for the Service. One address; each request goes to one of the ready pods, in turn, by pingora's load balancer.
//!
//! As with a Service nothing is tried twice: what a pod does not answer stays unanswered, and the user sees it. (A request that never left, because its
//! kept-alive connection had been closed meanwhile, is sent on a new one, as any HTTP client does.) The gateway adds the header [`POD_HEADER`], so that
//! an answer can be put down to its pod, and answers itself only where there is nobody to ask. It has a thread of its own.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::Scheme};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use pingora_load_balancing::{Backend, Backends, LoadBalancer, discovery::Static, selection::RoundRobin};
use steadfast_api::policy::{ORIGIN_HEADER, Origin, POD_HEADER};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    http::serve as serve_http,
    runtime::OwnThread,
    serve::answer::{Body, problem},
};

const CONNECTIONS_MAX: usize = 16_384;
/// Requests under way, with bodies that are still being read; more are refused.
const REQUESTS_MAX: usize = 65_536;
/// Kept-alive connections to one sidecar that wait for their next request.
const IDLE_MAX: usize = 256;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pods that the load balancer looks at for one request; all of them are ready, so it takes the first.
const LOOKED_AT_MAX: usize = 8;

/// RFC 9110 §7.6.1: these concern one connection and are not passed on.
const HOP_BY_HOP: [HeaderName; 6] =
    [header::CONNECTION, header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE];

/// The pod's name, beside its address.
#[derive(Clone)]
struct PodName(HeaderValue);

/// Where the next request may go.
#[derive(Clone)]
pub(super) struct Routes(Arc<ArcSwap<LoadBalancer<RoundRobin>>>);

impl Routes {
    /// From now on these pods, and no others, are asked.
    pub(super) fn set(&self, pods: &[(SocketAddr, String)]) {
        self.0.store(Arc::new(balancer(pods)));
    }
}

/// See the module. Dropping it closes its port.
pub(super) struct Gateway {
    address: SocketAddr,
    routes: Routes,
    _thread: OwnThread,
}

struct Service {
    routes: Routes,
    /// HTTP/1.1, and HTTP/2 with prior knowledge: a request goes on in the version it came in.
    http1: Client<HttpConnector, Incoming>,
    http2: Client<HttpConnector, Incoming>,
    room: Arc<Semaphore>,
}

/// A load balancer for exactly these pods.
fn balancer(pods: &[(SocketAddr, String)]) -> LoadBalancer<RoundRobin> {
    let backends: BTreeSet<Backend> = pods
        .iter()
        .filter_map(|(address, name)| {
            let mut backend = Backend::new(&address.to_string()).ok()?;
            backend.ext.insert(PodName(HeaderValue::from_str(name).ok()?));
            Some(backend)
        })
        .collect();
    let balancer = LoadBalancer::from_backends(Backends::new(Static::new(backends)));
    // A static list is there at once and cannot fail.
    let _ = balancer.update().now_or_never();
    balancer
}

impl Gateway {
    /// Listens on a free loopback port. Until it is told of pods, everything is answered 503.
    pub(super) fn start() -> io::Result<Self> {
        let thread = OwnThread::start("gateway")?;
        let listener = {
            let _runtime = thread.handle().enter();
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        };
        let address = listener.local_addr()?;
        let routes = Routes(Arc::new(ArcSwap::from_pointee(balancer(&[]))));
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_max_idle_per_host(IDLE_MAX).pool_idle_timeout(IDLE_TIMEOUT).pool_timer(TokioTimer::new());
        let http1 = client.build(connector.clone());
        let http2 = client.http2_only(true).build(connector);
        let service = Service { routes: routes.clone(), http1, http2, room: Arc::new(Semaphore::new(REQUESTS_MAX)) };
        let service = Arc::new(service);
        let handler = move |request| {
            let service = Arc::clone(&service);
            async move { service.pass(request).await }
        };
        thread.handle().spawn(serve_http(listener, None, CONNECTIONS_MAX, handler));
        Ok(Self { address, routes, _thread: thread })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) const fn routes(&self) -> &Routes {
        &self.routes
    }
}

/// An answer of the gateway's own.
fn own(status: StatusCode, detail: &str, pod: Option<&PodName>) -> Response<Body> {
    let mut response = problem(status, detail);
    response.headers_mut().insert(ORIGIN_HEADER, HeaderValue::from_static(Origin::Proxy.name()));
    if let Some(PodName(name)) = pod {
        response.headers_mut().insert(POD_HEADER, name.clone());
    }
    response
}

impl Service {
    async fn pass(&self, mut request: Request<Incoming>) -> Response<Body> {
        if request.method() == Method::CONNECT {
            return own(StatusCode::METHOD_NOT_ALLOWED, "this is no proxy for other hosts: ask for a path", None);
        }
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            return own(StatusCode::SERVICE_UNAVAILABLE, "too many requests are under way", None);
        };
        let Some(backend) = self.routes.0.load().select(b"", LOOKED_AT_MAX) else {
            return own(StatusCode::SERVICE_UNAVAILABLE, "no pod is ready", None);
        };
        let pod = backend.ext.get::<PodName>();
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(backend.addr.to_string()).path_and_query(path).build();
        let Ok(uri) = uri else {
            return own(StatusCode::BAD_REQUEST, "the request's path makes no address", pod);
        };
        *request.uri_mut() = uri;
        let client = if request.version() == Version::HTTP_2 { &self.http2 } else { &self.http1 };
        if request.version() == Version::HTTP_10 {
            // Between gateway and sidecar it is HTTP/1.1; hyper gives the client back what it can read.
            *request.version_mut() = Version::HTTP_11;
        }
        remove_hop_by_hop(request.headers_mut());
        match client.request(request).await {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                remove_hop_by_hop(&mut head.headers);
                if let Some(PodName(name)) = pod {
                    head.headers.insert(POD_HEADER, name.clone());
                }
                let body = body.map_err(move |error| {
                    // Held for as long as the body is.
                    let _permit = &permit;
                    error.into()
                });
                Response::from_parts(head, body.boxed())
            }
            Err(error) if error.is_connect() => own(StatusCode::BAD_GATEWAY, "the pod takes no connection", pod),
            Err(_) => own(StatusCode::BAD_GATEWAY, "the pod closed the connection before it answered", pod),
        }
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').filter_map(|name| HeaderName::try_from(name.trim()).ok()).collect::<Vec<_>>())
        .collect();
    // gRPC asks for trailers by `te: trailers`, which HTTP/2 allows to be passed on.
    let trailers = headers.get(header::TE).filter(|value| value.as_bytes() == b"trailers").cloned();
    for name in HOP_BY_HOP.iter().chain(&nominated).chain(&[HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")]) {
        headers.remove(name);
    }
    if let Some(trailers) = trailers {
        headers.insert(header::TE, trailers);
    }
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
