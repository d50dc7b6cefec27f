//! The HTTP side: who may speak for which pod, and lines in and out. HTTP/1.1 and HTTP/2; in the clear on loopback only, by TLS elsewhere.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use steadfast_api::sidecar::{PROTOCOL_HEADER, PROTOCOL_MAJOR, SidecarReport};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Seen,
    answer::{Body, no_content, problem, whole},
    auth::{Auth, Owner, Refused, Speaker},
    ingest::{Ingest, Taken},
    policy::{PODS_MAX, PolicyHub},
    sets::SetStore,
};
use crate::{http::serve as serve_http, runtime::OwnThread};

/// Connections at once; a sidecar needs two.
const CONNECTIONS_MAX: usize = 2 * PODS_MAX;
/// A stream of policies that has nothing to say sends an empty line so often, so that the sidecar can tell silence from a lost connection.
const HEARTBEAT: Duration = Duration::from_secs(5);
const GOLDEN_SETS: &str = "/v1alpha1/golden-sets/";
/// One report as a line.
const LINE_MAX: usize = 1 << 20;
/// Evidence that waits for its reader.
const SEEN_MAX: usize = 65_536;

/// What the sidecars' connection is about.
#[derive(Clone, Debug)]
pub struct Sidecars {
    pub hub: Arc<PolicyHub>,
    pub ingest: Arc<Ingest>,
    /// Golden sets that sidecars may fetch.
    pub sets: Arc<SetStore>,
}

impl Sidecars {
    pub fn new(hub: PolicyHub) -> Self {
        let hub = Arc::new(hub);
        Self { ingest: Arc::new(Ingest::new(Arc::clone(&hub))), hub, sets: Arc::default() }
    }
}

/// Answers sidecars on `listener` until it is dropped; by TLS where `tls` is given.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, auth: Auth, sidecars: Sidecars) {
    let service = Arc::new(Service { auth, sidecars });
    let handler = move |request| {
        let service = Arc::clone(&service);
        async move {
            let mut answer = service.answer(request).await;
            answer.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL_MAJOR));
            answer
        }
    };
    serve_http(listener, tls, CONNECTIONS_MAX, handler).await;
}

/// The controller's side of the sidecars' connection on one machine, on a thread of its own. Dropping it ends every stream.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    sidecars: Sidecars,
    _thread: OwnThread,
}

impl Server {
    /// Listens on a free loopback port for sidecars that know `token`.
    pub fn start(token: &str) -> io::Result<(Self, mpsc::Receiver<Seen>)> {
        let thread = OwnThread::start("sidecars")?;
        let sidecars = Sidecars::new(PolicyHub::default());
        let seen = sidecars.ingest.subscribe(SEEN_MAX, |_, _| true).into_receiver();
        let listener = {
            let _runtime = thread.handle().enter();
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        };
        let address = listener.local_addr()?;
        thread.handle().spawn(serve(listener, None, Auth::secret(token), sidecars.clone()));
        Ok((Self { address, sidecars, _thread: thread }, seen))
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub const fn hub(&self) -> &Arc<PolicyHub> {
        &self.sidecars.hub
    }

    pub const fn ingest(&self) -> &Arc<Ingest> {
        &self.sidecars.ingest
    }
}

struct Service {
    auth: Auth,
    sidecars: Sidecars,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let speaker = match self.auth.admit(request.headers()).await {
            Ok(speaker) => speaker,
            Err(refused) => return refusal(&refused),
        };
        if let Err(refused) = speaks_our_protocol(request.headers()) {
            return *refused;
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1alpha1/policies") => self.policies(&speaker, request.uri().query().unwrap_or_default()),
            (&Method::POST, "/v1alpha1/reports") => self.reports(&speaker, request.into_body()).await,
            (&Method::GET, path) if path.starts_with(GOLDEN_SETS) => self.golden_set(&speaker, &path[GOLDEN_SETS.len()..]),
            (_, "/v1alpha1/policies") => problem(StatusCode::METHOD_NOT_ALLOWED, "policies are read: GET"),
            (_, "/v1alpha1/reports") => problem(StatusCode::METHOD_NOT_ALLOWED, "reports are sent: POST"),
            _ => problem(StatusCode::NOT_FOUND, "ask for GET /v1alpha1/policies?uid=…, GET /v1alpha1/golden-sets/DIGEST or POST /v1alpha1/reports"),
        }
    }

    fn policies(&self, speaker: &Speaker, query: &str) -> Response<Body> {
        let uid = query.split('&').find_map(|pair| pair.strip_prefix("uid=")).filter(|uid| !uid.is_empty());
        let Some(uid) = uid else {
            return problem(StatusCode::BAD_REQUEST, "say whose policies: /v1alpha1/policies?uid=POD-UID");
        };
        if let Some(owner) = speaker.other_than(uid) {
            return not_yours(owner, uid);
        }
        let snapshots = match self.sidecars.hub.subscribe(uid) {
            Ok(snapshots) => snapshots,
            Err(error) => return problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
        let lines = stream::unfold(snapshots, |mut snapshots| async move {
            let mut line = match timeout(HEARTBEAT, snapshots.next()).await {
                Ok(snapshot) => serde_json::to_vec(&snapshot?).ok()?,
                Err(_) => Vec::new(),
            };
            line.push(b'\n');
            Some((Ok(Frame::data(Bytes::from(line))), snapshots))
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response
    }

    fn golden_set(&self, speaker: &Speaker, digest: &str) -> Response<Body> {
        if let Speaker::Pod(owner) = speaker
            && !self.sidecars.hub.replays(&owner.uid, digest)
        {
            return problem(StatusCode::FORBIDDEN, &format!("golden set {digest} is not assigned to pod {}/{}", owner.namespace, owner.name));
        }
        let Some(tar) = self.sidecars.sets.get(digest) else {
            return problem(StatusCode::NOT_FOUND, &format!("golden set {digest} is not held here; its digest is in the GoldenSet's status"));
        };
        whole(StatusCode::OK, "application/x-tar", tar)
    }

    async fn reports(&self, speaker: &Speaker, mut body: Incoming) -> Response<Body> {
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
                if let Err(refused) = self.report(speaker, received, line, &text) {
                    return *refused;
                }
                line += 1;
            }
            if buffer.len() > LINE_MAX {
                return problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("line {line} is longer than {LINE_MAX} bytes: send less evidence in one report"));
            }
        }
        // The last line may come without its end.
        match self.report(speaker, Instant::now(), line, &buffer) {
            Ok(()) => no_content(),
            Err(refused) => *refused,
        }
    }

    fn report(&self, speaker: &Speaker, received: Instant, line: u64, text: &[u8]) -> Result<(), Box<Response<Body>>> {
        if text.trim_ascii().is_empty() {
            return Ok(());
        }
        let mut report: SidecarReport =
            serde_json::from_slice(text).map_err(|error| Box::new(problem(StatusCode::BAD_REQUEST, &format!("line {line} is not a report: {error}"))))?;
        if let Speaker::Pod(owner) = speaker {
            if owner.uid != report.pod.uid {
                return Err(Box::new(not_yours(owner, &report.pod.uid)));
            }
            // What the API server says counts, whatever the pod calls itself.
            report.pod.name.clone_from(&owner.name);
            report.pod.namespace.clone_from(&owner.namespace);
        }
        match self.sidecars.ingest.take(received, report) {
            Taken::Now | Taken::Before => Ok(()),
            Taken::Refused => Err(Box::new(problem(StatusCode::SERVICE_UNAVAILABLE, "too many pods report"))),
        }
    }
}

fn refusal(refused: &Refused) -> Response<Body> {
    let status = match refused {
        Refused::Token(_) => StatusCode::UNAUTHORIZED,
        Refused::NoPod(_) => StatusCode::FORBIDDEN,
        Refused::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = problem(status, &refused.to_string());
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

fn not_yours(owner: &Owner, uid: &str) -> Response<Body> {
    problem(StatusCode::FORBIDDEN, &format!("this token speaks for pod {}/{} ({}), not for pod {uid}", owner.namespace, owner.name, owner.uid))
}

/// A sidecar that does not name its protocol speaks the first.
fn speaks_our_protocol(headers: &HeaderMap) -> Result<(), Box<Response<Body>>> {
    let Some(named) = headers.get(PROTOCOL_HEADER) else { return Ok(()) };
    let major = named.to_str().ok().and_then(|named| named.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(PROTOCOL_MAJOR) => Ok(()),
        Some(other) => {
            let said = format!("this controller speaks protocol {PROTOCOL_MAJOR}, not {other}: run sidecar and controller of one release");
            Err(Box::new(problem(StatusCode::UPGRADE_REQUIRED, &said)))
        }
        None => Err(Box::new(problem(StatusCode::BAD_REQUEST, &format!("{PROTOCOL_HEADER}: {named:?} is not a version: say {PROTOCOL_MAJOR}")))),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
