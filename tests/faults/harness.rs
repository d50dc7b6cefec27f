//! A model server of our own making, the sidecar's process in front of it, and clients.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io::{BufRead, BufReader},
    net::SocketAddr,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedRwLockReadGuard, RwLock},
};

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the server saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicUsize,
    /// Requests to `/slow` that were given up before they were answered.
    pub(crate) cancelled: AtomicUsize,
    /// How often each request came that has a name (`x-name`).
    pub(crate) named: Mutex<HashMap<String, usize>>,
    /// Headers of the last request.
    pub(crate) headers: Mutex<HeaderMap>,
}

/// Tests that measure time take this alone; every other test shares it.
pub(crate) static QUIET: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

pub(crate) struct Server {
    _not_quiet: OwnedRwLockReadGuard<()>,
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

type Body = BoxBody<Bytes, hyper::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body that comes piece by piece, without a length.
struct Pieces(VecDeque<Bytes>, Option<HeaderMap>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let trailers = self.1.is_some();
        Poll::Ready(match self.0.pop_front() {
            Some(piece) => Some(Ok(Frame::data(piece))),
            None if trailers => self.1.take().map(|trailers| Ok(Frame::trailers(trailers))),
            None => None,
        })
    }
}

fn pieces(pieces: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    Pieces(pieces.into(), trailers).boxed()
}

struct CountsWhenDropped<'a>(Option<&'a AtomicUsize>);

impl Drop for CountsWhenDropped<'_> {
    fn drop(&mut self) {
        if let Some(counter) = self.0 {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }
}

async fn answer(seen: Arc<Seen>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/v2/health/") {
        return Ok(Response::new(full("")));
    }
    seen.requests.fetch_add(1, Ordering::AcqRel);
    *seen.headers.lock().unwrap() = request.headers().clone();
    if let Some(name) = request.headers().get("x-name") {
        *seen.named.lock().unwrap().entry(name.to_str().unwrap().to_owned()).or_default() += 1;
    }
    let response = match path.as_str() {
        "/echo" | "/v1/embeddings" | "/inference.GRPCInferenceService/ModelInfer" | "/inference.GRPCInferenceService/ModelStreamInfer" => {
            let content_type = request.headers().get("content-type").cloned();
            let mut response = Response::new(request.into_body().boxed());
            if let Some(content_type) = content_type {
                response.headers_mut().insert("content-type", content_type);
            }
            response
        }
        "/slow" => {
            let mut guard = CountsWhenDropped(Some(&seen.cancelled));
            tokio::time::sleep(Duration::from_millis(request.uri().query().and_then(|ms| ms.parse().ok()).unwrap_or(50))).await;
            guard.0 = None;
            Response::new(full("slow"))
        }
        "/refuse" => {
            let mut response = Response::new(full("no"));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        }
        "/bytes" => {
            let size = request.uri().query().and_then(|size| size.parse().ok()).unwrap_or(1000);
            Response::new(full((0..size).map(|i: u32| i as u8).collect::<Vec<u8>>()))
        }
        // The query says how many pieces of how many bytes.
        "/pieces" | "/small.Frames/Some" | "/small.Frames/Stalled" => {
            let (count, size) = request.uri().query().and_then(|query| query.split_once('x')).expect("such as 10x5");
            let piece = Bytes::from(vec![b'x'; size.parse().unwrap()]);
            let grpc = path.starts_with("/small");
            let trailers = grpc.then(|| HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]));
            let mut response = Response::new(pieces(vec![piece; count.parse().unwrap()], trailers));
            if grpc {
                response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            }
            response
        }
        "/v1/chat/completions" => {
            let tokens = (0..10).map(|i| Bytes::from(format!("data: {{\"token\":\"number {i}\"}}\n\n")));
            let mut response = Response::new(pieces(tokens.chain([Bytes::from_static(b"data: [DONE]\n\n")]).collect(), None));
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        "/v2/models/m/infer" => infer(request.headers().contains_key("x-binary")),
        _ => {
            let mut response = Response::new(full("hello"));
            response.headers_mut().insert("x-server", "real".parse().unwrap());
            response.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
            response
        }
    };
    Ok(response)
}

/// One answer of the Open Inference Protocol.
fn infer(binary: bool) -> Response<Body> {
    let outputs = |data: bool| {
        let tensor = |name: &str, datatype: &str, shape: Value, values: Value, size: usize| {
            let mut tensor = serde_json::json!({"name": name, "datatype": datatype, "shape": shape});
            if data {
                tensor["data"] = values;
            } else {
                tensor["parameters"] = serde_json::json!({"binary_data_size": size});
            }
            tensor
        };
        serde_json::json!({"model_name": "m", "outputs": [
            tensor("ids", "INT64", serde_json::json!([1, 3]), serde_json::json!([11, 22, 33]), 24),
            tensor("scores", "FP32", serde_json::json!([1, 3]), serde_json::json!([0.5, 0.25, 8.0]), 12),
        ]})
    };
    let mut body = outputs(!binary).to_string().into_bytes();
    let length = body.len();
    if binary {
        body.extend([11_i64, 22, 33].iter().flat_map(|value| value.to_le_bytes()));
        body.extend([0.5_f32, 0.25, 8.0].iter().flat_map(|value| value.to_le_bytes()));
    }
    let mut response = Response::new(full(body));
    response.headers_mut().insert("content-type", if binary { "application/octet-stream" } else { "application/json" }.parse().unwrap());
    if binary {
        response.headers_mut().insert("inference-header-content-length", length.into());
    }
    response
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    pub(crate) async fn on(listener: TcpListener) -> Self {
        let not_quiet = Arc::clone(&QUIET).read_owned().await;
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let seen = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&seen), request));
                    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { _not_quiet: not_quiet, address, seen }
    }
}

/// The sidecar's process. Killed when dropped.
pub(crate) struct Sidecar {
    child: Child,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Addresses of all routes, where there are several, and of the health port.
    pub(crate) routes: Vec<SocketAddr>,
    pub(crate) health: Option<SocketAddr>,
}

impl Sidecar {
    pub(crate) fn start(upstream: SocketAddr, flags: &[&str]) -> Self {
        Self::start_with_token(upstream, flags, "")
    }

    /// `token`: for the controller.
    pub(crate) fn start_with_token(upstream: SocketAddr, flags: &[&str], token: &str) -> Self {
        Self::start_bare(&[&["--upstream", &upstream.to_string()], flags].concat(), token)
    }

    pub(crate) fn start_bare(flags: &[&str], token: &str) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_steadfast")), flags, token)
    }

    /// With no more than so many file descriptors.
    pub(crate) fn start_with_descriptors(most: u32, upstream: SocketAddr, flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_steadfast")]);
        Self::run(command, &[&["--upstream", &upstream.to_string()], flags].concat(), "")
    }

    fn run(mut command: Command, flags: &[&str], token: &str) -> Self {
        let mut child = command
            .arg("proxy")
            .args(if flags.contains(&"--threads") { &[][..] } else { &["--threads", "1"] })
            .args(flags)
            .env("STEADFAST_CONTROLLER_TOKEN", token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addresses: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let address = |value: &Value| value.as_str().unwrap().parse().unwrap();
        let routes = addresses["routes"].as_array().map(|routes| routes.iter().map(address).collect()).unwrap_or_default();
        let health = addresses.get("health").map(address);
        Self { data: address(&addresses["data"]), admin: address(&addresses["admin"]), routes, health, child }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.data)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn terminate(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
    }

    /// Exit status, waited for.
    pub(crate) async fn ended(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(begun.elapsed() < PATIENCE, "the sidecar does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A request to the admin port.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: &str) -> Reply {
        ask(&client(), Request::builder().method(method).uri(format!("http://{}{path}", self.admin)).body(Full::new(Bytes::from(body.to_owned()))).unwrap())
            .await
    }

    /// Arms `policy` by hand.
    pub(crate) async fn arm(&self, policy: &str) {
        let reply = self.admin("PUT", "/policy", policy).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// The sum of all lines of a metric that contain every one of `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.admin("GET", "/metrics", "").await.text();
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Waits until a metric has reached `value`: a response is counted when its last byte is out, which a client may see first.
    pub(crate) async fn metric_reaches(&self, name: &str, labels: &[&str], value: u64) {
        let begun = Instant::now();
        loop {
            let now = self.metric(name, labels).await;
            if now == value {
                return;
            }
            assert!(begun.elapsed() < PATIENCE && now < value, "{name}{labels:?} is {now} and not {value}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that comes until the connection ends.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the connection ends in time");
    String::from_utf8_lossy(&all).into_owned()
}

pub(crate) type Http = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn client() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// HTTP/2 with prior knowledge.
pub(crate) fn client_h2() -> Http {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) async fn try_ask(client: &Http, request: Request<Full<Bytes>>) -> Result<Reply, String> {
    let asked = async {
        let (parts, body) = client.request(request).await.map_err(|error| format!("{error:?}"))?.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    };
    tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "no answer in time".to_owned())?
}

pub(crate) async fn ask(client: &Http, request: Request<Full<Bytes>>) -> Reply {
    try_ask(client, request).await.unwrap()
}

pub(crate) fn get(url: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

/// A policy that trusts this machine's header faults, all kinds.
pub(crate) const TRUSTING: &str = r"
name: tests
spec:
  expiresAfter: 1h
  budget: {concurrent: 1000, share: 100%, memory: 8Mi}
  headers:
    trust: {addresses: [127.0.0.0/8]}
    allow: [delay, abort, cpu, corrupt, reset, truncate, throttle, stall, slice, blackhole, memory]
    maxDelay: 2s
    maxCpuDuration: 5s
";
