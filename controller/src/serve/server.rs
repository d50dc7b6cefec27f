//! The HTTP side: who may speak, and lines in and out. HTTP/1.1 and HTTP/2 with prior knowledge, on loopback.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use sha2::{Digest, Sha256};
use steadfast_api::sidecar::SidecarReport;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};

use super::{
    Seen,
    answer::{Body, no_content, problem},
    ingest::{Ingest, Taken},
    policy::PolicyHub,
};
use crate::runtime::OwnThread;

/// Connections at once; a sidecar needs two.
const CONNECTIONS_MAX: usize = 4_096;
/// One report as a line.
const LINE_MAX: usize = 1 << 20;
/// Evidence that waits for its reader.
const SEEN_MAX: usize = 65_536;
/// A client that has not sent a whole request head by then is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// The controller's side of the sidecars' connection, on a thread of its own. Dropping it ends every stream.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    hub: Arc<PolicyHub>,
    ingest: Arc<Ingest>,
    _thread: OwnThread,
}

impl Server {
    /// Listens on a free loopback port for sidecars that know `token`.
    pub fn start(token: &str) -> io::Result<(Self, mpsc::Receiver<Seen>)> {
        let thread = OwnThread::start("sidecars")?;
        let (sink, seen) = mpsc::channel(SEEN_MAX);
        let hub = Arc::new(PolicyHub::default());
        let ingest = Arc::new(Ingest::new(Arc::clone(&hub), sink));
        let listener = {
            let _runtime = thread.handle().enter();
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        };
        let address = listener.local_addr()?;
        let service = Service { token: Token::new(token), hub: Arc::clone(&hub), ingest: Arc::clone(&ingest) };
        thread.handle().spawn(accept(listener, Arc::new(service)));
        Ok((Self { address, hub, ingest, _thread: thread }, seen))
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub const fn hub(&self) -> &Arc<PolicyHub> {
        &self.hub
    }

    pub const fn ingest(&self) -> &Arc<Ingest> {
        &self.ingest
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: other connections must end first.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it a lone snapshot could wait 40 ms for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let (builder, service) = (builder.clone(), Arc::clone(&service));
        tokio::spawn(async move {
            let handler = service_fn(|request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), handler).await {
                tracing::debug!(error, "a sidecar's connection ended");
            }
            drop(permit);
        });
    }
}

/// The run's secret. Only digests are compared, every byte of them, so the time taken tells nothing.
struct Token([u8; 32]);

impl Token {
    fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let given: [u8; 32] = Sha256::digest(given.unwrap_or_default()).into();
        self.0.iter().zip(given).fold(0, |difference, (right, given)| difference | (right ^ given)) == 0
    }
}

struct Service {
    token: Token,
    hub: Arc<PolicyHub>,
    ingest: Arc<Ingest>,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.token.admits(request.headers()) {
            let mut refused = problem(StatusCode::UNAUTHORIZED, "send the run's token: Authorization: Bearer …");
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return refused;
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1alpha1/policies") => self.policies(request.uri().query().unwrap_or_default()),
            (&Method::POST, "/v1alpha1/reports") => self.reports(request.into_body()).await,
            (_, "/v1alpha1/policies") => problem(StatusCode::METHOD_NOT_ALLOWED, "policies are read: GET"),
            (_, "/v1alpha1/reports") => problem(StatusCode::METHOD_NOT_ALLOWED, "reports are sent: POST"),
            _ => problem(StatusCode::NOT_FOUND, "ask for GET /v1alpha1/policies?uid=… or POST /v1alpha1/reports"),
        }
    }

    fn policies(&self, query: &str) -> Response<Body> {
        let uid = query.split('&').find_map(|pair| pair.strip_prefix("uid=")).filter(|uid| !uid.is_empty());
        let Some(uid) = uid else {
            return problem(StatusCode::BAD_REQUEST, "say whose policies: /v1alpha1/policies?uid=POD-UID");
        };
        let snapshots = match self.hub.subscribe(uid) {
            Ok(snapshots) => snapshots,
            Err(error) => return problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
        let lines = stream::unfold(snapshots, |mut snapshots| async move {
            snapshots.changed().await.ok()?;
            let mut line = serde_json::to_vec(&**snapshots.borrow_and_update()).ok()?;
            line.push(b'\n');
            Some((Ok(Frame::data(Bytes::from(line))), snapshots))
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response
    }

    async fn reports(&self, mut body: Incoming) -> Response<Body> {
        let mut buffer = BytesMut::new();
        let mut line = 1_u64;
        loop {
            let frame = match body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return problem(StatusCode::BAD_REQUEST, &format!("the body ended early: {error}")),
                None => break,
            };
            let received = Instant::now();
            buffer.extend_from_slice(frame.data_ref().map_or(&[], Bytes::as_ref));
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let text = buffer.split_to(end);
                buffer.advance(1);
                if let Err(refused) = self.report(received, line, &text) {
                    return *refused;
                }
                line += 1;
            }
            if buffer.len() > LINE_MAX {
                return problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("line {line} is longer than {LINE_MAX} bytes: send less evidence in one report"));
            }
        }
        // The last line may come without its end.
        match self.report(Instant::now(), line, &buffer) {
            Ok(()) => no_content(),
            Err(refused) => *refused,
        }
    }

    fn report(&self, received: Instant, line: u64, text: &[u8]) -> Result<(), Box<Response<Body>>> {
        if text.trim_ascii().is_empty() {
            return Ok(());
        }
        let report: SidecarReport =
            serde_json::from_slice(text).map_err(|error| Box::new(problem(StatusCode::BAD_REQUEST, &format!("line {line} is not a report: {error}"))))?;
        match self.ingest.take(received, report) {
            Taken::Now | Taken::Before => Ok(()),
            Taken::Refused => Err(Box::new(problem(StatusCode::SERVICE_UNAVAILABLE, "too many pods report"))),
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
