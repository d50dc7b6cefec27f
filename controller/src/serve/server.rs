//! The HTTP side: who may speak for which pod, and who is given a connection of its own. In the clear on loopback only, by TLS elsewhere.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use steadfast_api::{
    policy::GOLDEN_BYTES_MAX,
    sidecar::{CONNECTION_PATH, CONNECTION_UPGRADE, PROTOCOL_HEADER, PROTOCOL_MAJOR},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Seen,
    answer::{Body, no_content, problem, whole},
    auth::{Auth, Owner, Refused, Speaker},
    connection::{Connected, Connection},
    handed::{Handed, NotHeard},
    ingest::Ingest,
    policy::{PODS_MAX, PolicyHub},
    sets::SetStore,
    users::Awaited,
};
use crate::{
    http::{Place, serve as serve_http},
    load::wire::{USERS_PATH, USERS_UPGRADE},
    runtime::OwnThread,
};

/// Connections at once: one a sidecar, and those that fetch a golden set.
const CONNECTIONS_MAX: usize = PODS_MAX + 1024;
const GOLDEN_SETS: &str = "/v1alpha1/golden-sets/";
/// Where reader pods bring golden sets: a tar, or text that says why there is none.
pub const READ_SET: &str = "/v1alpha1/read-golden-set";
const TAR: &str = "application/x-tar";
/// A reader that takes longer begins anew.
const BROUGHT_WITHIN: Duration = Duration::from_secs(60);
/// A reader's words.
const WORDS_MAX: usize = 4 << 10;
/// Evidence that waits for its reader.
const SEEN_MAX: usize = 65_536;

/// What the sidecars' connection is about.
#[derive(Clone, Debug)]
pub struct Sidecars {
    pub hub: Arc<PolicyHub>,
    pub ingest: Arc<Ingest>,
    /// Golden sets that sidecars may fetch.
    pub sets: Arc<SetStore>,
    /// Golden sets that reader pods bring.
    pub handed: Arc<Handed>,
    /// Pods of users.
    pub users: Arc<Awaited>,
}

impl Sidecars {
    pub fn new(hub: PolicyHub) -> Self {
        let hub = Arc::new(hub);
        Self { ingest: Arc::new(Ingest::new(Arc::clone(&hub))), hub, sets: Arc::default(), handed: Arc::default(), users: Arc::default() }
    }
}

/// Answers sidecars on `listener` until it is dropped; by TLS where `tls` is given.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, auth: Auth, sidecars: Sidecars) {
    let service = Arc::new(Service { auth, sidecars, connected: Arc::default() });
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
    connected: Arc<Connected>,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let speaker = match self.auth.admit(request.headers()).await {
            Ok(speaker) => speaker,
            Err(refused) => return refusal(&refused),
        };
        if let Err(refused) = speaks_our_protocol(request.headers()) {
            self.sidecars.ingest.not_understood(1);
            return *refused;
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, CONNECTION_PATH) => self.connect(speaker, request),
            (&Method::GET, path) if path.starts_with(GOLDEN_SETS) => self.golden_set(&speaker, &path[GOLDEN_SETS.len()..]),
            (&Method::GET, USERS_PATH) => self.users(&speaker, request),
            (&Method::POST, READ_SET) => self.read_set(&speaker, request).await,
            _ => problem(StatusCode::NOT_FOUND, "ask for GET /v1alpha1/connection?uid=… or GET /v1alpha1/golden-sets/DIGEST"),
        }
    }

    /// Makes the connection the sidecar's own.
    fn connect(&self, speaker: Speaker, request: Request<Incoming>) -> Response<Body> {
        let uid = request.uri().query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("uid=")).filter(|uid| !uid.is_empty());
        let Some(uid) = uid.map(str::to_owned) else {
            return problem(StatusCode::BAD_REQUEST, &format!("say whose connection it is: {CONNECTION_PATH}?uid=POD-UID"));
        };
        if !asks_for(&request, CONNECTION_UPGRADE) {
            return problem(StatusCode::BAD_REQUEST, &format!("this is no place for single requests: ask by HTTP/1.1 with Upgrade: {CONNECTION_UPGRADE}"));
        }
        if let Some(owner) = speaker.other_than(&uid) {
            return not_yours(owner, &uid);
        }
        let snapshots = match self.sidecars.hub.subscribe(&uid) {
            Ok(snapshots) => snapshots,
            Err(error) => return problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        };
        let connection = Connection { speaker, stay: self.connected.come(uid), snapshots, ingest: Arc::clone(&self.sidecars.ingest) };
        take_over(request, CONNECTION_UPGRADE, |stream| connection.live(stream))
    }

    /// Makes the connection that of users.
    fn users(&self, speaker: &Speaker, request: Request<Incoming>) -> Response<Body> {
        let Speaker::Pod(owner) = speaker else { return problem(StatusCode::FORBIDDEN, "users are pods of a cluster") };
        if !asks_for(&request, USERS_UPGRADE) {
            return problem(StatusCode::BAD_REQUEST, &format!("this is no place for single requests: ask by HTTP/1.1 with Upgrade: {USERS_UPGRADE}"));
        }
        let Some(connection) = self.sidecars.users.hear(&owner.uid) else {
            return problem(StatusCode::FORBIDDEN, &format!("nobody waits for users in pod {}/{}", owner.namespace, owner.name));
        };
        take_over(request, USERS_UPGRADE, |stream| connection.live(stream))
    }

    fn golden_set(&self, speaker: &Speaker, digest: &str) -> Response<Body> {
        if let Speaker::Pod(owner) = speaker
            && !self.sidecars.hub.replays(&owner.uid, digest)
            && !self.sidecars.users.asks(&owner.uid, digest)
        {
            return problem(StatusCode::FORBIDDEN, &format!("golden set {digest} is not assigned to pod {}/{}", owner.namespace, owner.name));
        }
        let Some(tar) = self.sidecars.sets.get(digest) else {
            return problem(StatusCode::NOT_FOUND, &format!("golden set {digest} is not held here; its digest is in the GoldenSet's status"));
        };
        whole(StatusCode::OK, TAR, tar)
    }

    async fn read_set(&self, speaker: &Speaker, request: Request<Incoming>) -> Response<Body> {
        let Speaker::Pod(owner) = speaker else { return problem(StatusCode::FORBIDDEN, "golden sets are brought by reader pods of a cluster") };
        let coming = match self.sidecars.handed.hear(&owner.uid) {
            Ok(coming) => coming,
            Err(NotHeard::Stranger) => {
                return problem(StatusCode::FORBIDDEN, &format!("nobody waits for a golden set from pod {}/{}", owner.namespace, owner.name));
            }
            Err(NotHeard::Busy) => return problem(StatusCode::SERVICE_UNAVAILABLE, "other golden sets are being brought; come again"),
            Err(NotHeard::Twice) => return problem(StatusCode::CONFLICT, &format!("pod {}/{} brings a golden set already", owner.namespace, owner.name)),
        };
        let is_set = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == TAR);
        let most = if is_set { GOLDEN_BYTES_MAX } else { WORDS_MAX };
        let body = match timeout(BROUGHT_WITHIN, Limited::new(request.into_body(), most).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("more than {most} bytes: take fewer samples"));
            }
            Ok(Err(error)) => return problem(StatusCode::BAD_REQUEST, &format!("the body ended early: {error}")),
            Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, &format!("the body did not come within {BROUGHT_WITHIN:?}")),
        };
        coming.brought(if is_set { Ok(body) } else { Err(String::from_utf8_lossy(&body).into_owned()) });
        no_content()
    }
}

fn asks_for(request: &Request<Incoming>, upgrade: &str) -> bool {
    request.version() == Version::HTTP_11 && request.headers().get(header::UPGRADE).is_some_and(|word| word == upgrade)
}

/// Answers 101, and gives the connection to `live`.
fn take_over<F>(mut request: Request<Incoming>, what: &'static str, live: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static) -> Response<Body>
where
    F: Future<Output = ()> + Send,
{
    let (upgrade, place) = (hyper::upgrade::on(&mut request), request.extensions_mut().remove::<Place>());
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => live(TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, what, "a connection was not taken over"),
        }
        drop(place);
    });
    let mut answer = no_content();
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(what));
    answer
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
            let older = if other < PROTOCOL_MAJOR { "start the pod anew, so that it is given this controller's sidecar" } else { "upgrade the controller" };
            let said = format!("this controller speaks protocol {PROTOCOL_MAJOR}, and the sidecar {other}: {older}");
            Err(Box::new(problem(StatusCode::UPGRADE_REQUIRED, &said)))
        }
        None => Err(Box::new(problem(StatusCode::BAD_REQUEST, &format!("{PROTOCOL_HEADER}: {named:?} is not a version: say {PROTOCOL_MAJOR}")))),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
