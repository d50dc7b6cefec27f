//! From a request to its answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, RETRY_AFTER},
    request::Parts,
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use steadfast_golden_sets::{
    engine::EngineError,
    oip::{self, ErrorBody, InferRequest, ModelMetadata, ResponseHead, Route, ServerMetadata, TensorMetadata},
    onnx::graph::Port,
    tensor::{Tensor, Values},
};
use tokio::sync::Semaphore;

use super::{
    life::{Life, Phase},
    model::Found,
    worker::Loaded,
};

/// A body must arrive within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of the body of a request that is refused without it.
const DISCARD_MAX: usize = 1 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Server {
    life: Arc<Life>,
    model: String,
    version: String,
    room: Semaphore,
    max_concurrency: u32,
    max_body: u64,
}

/// An error answer: status, text, and one header that some statuses need.
struct Refusal {
    status: StatusCode,
    why: String,
    header: Option<(http::HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), header: None }
    }

    fn bad(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    fn unavailable(why: impl Into<String>) -> Self {
        Self { header: Some((RETRY_AFTER, HeaderValue::from_static("1"))), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }
}

type Answer = Result<Response<Full<Bytes>>, Refusal>;

impl Server {
    pub(super) fn new(life: Arc<Life>, found: &Found, max_concurrency: u32, max_body: u64) -> Self {
        let (model, version) = (found.name.clone(), found.version.clone());
        Self { life, model, version, room: Semaphore::new(max_concurrency as usize), max_concurrency, max_body }
    }

    pub(super) fn drain(&self) {
        self.life.drain();
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (request, mut body) = request.into_parts();
        match self.route(&request, &mut body).await {
            Ok(response) => response,
            Err(Refusal { status, why, header }) => {
                // A client that waits to be told to send its body is not told to.
                if !request.headers.contains_key(EXPECT) {
                    discard(&mut body).await;
                }
                let mut response = json(status, &ErrorBody { error: why });
                response.headers_mut().extend(header);
                response
            }
        }
    }

    async fn route(&self, request: &Parts, body: &mut Incoming) -> Answer {
        let path = request.uri.path();
        let route = Route::parse(path).ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("{path} is not part of the Open Inference Protocol")))?;
        let allowed: &[Method] = if matches!(route, Route::Infer { .. }) { &[Method::POST] } else { &[Method::GET, Method::HEAD] };
        if !allowed.contains(&request.method) {
            let allow = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let why = format!("{} is not for {path}; use {allow}", request.method);
            let header = HeaderValue::from_str(&allow).ok().map(|allow| (ALLOW, allow));
            return Err(Refusal { header, ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why) });
        }
        match route {
            Route::Server => Ok(json(
                StatusCode::OK,
                &ServerMetadata { name: "steadfast serve".into(), version: env!("CARGO_PKG_VERSION").into(), extensions: vec![oip::BINARY_EXTENSION.into()] },
            )),
            Route::Live => Ok(json(StatusCode::OK, &Live { live: true })),
            Route::Ready => self.ready(),
            Route::ModelReady { model, version } => {
                self.check(&model, &version)?;
                self.ready()
            }
            Route::Model { model, version } => {
                self.check(&model, &version)?;
                match self.life.phase() {
                    Phase::Loading => Err(self.loading()),
                    Phase::Ready(loaded) | Phase::Draining(loaded) => Ok(json(StatusCode::OK, &self.metadata(loaded))),
                }
            }
            Route::Infer { model, version } => {
                self.check(&model, &version)?;
                self.infer(request, body).await
            }
        }
    }

    fn check(&self, model: &str, version: &str) -> Result<(), Refusal> {
        if model != self.model {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no model {model:?} here; the one served is {:?}", self.model)));
        }
        if !version.is_empty() && version != self.version {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("model {model:?} has no version {version:?}; the one served is {:?}", self.version)));
        }
        Ok(())
    }

    fn loading(&self) -> Refusal {
        Refusal::unavailable(format!("model {:?} is loading", self.model))
    }

    fn ready(&self) -> Answer {
        match self.life.phase() {
            Phase::Ready(_) if !self.life.is_draining() => Ok(json(StatusCode::OK, &Ready { name: &self.model, ready: true })),
            Phase::Loading => Err(self.loading()),
            Phase::Ready(_) | Phase::Draining(_) => Err(Refusal::unavailable("the server is draining: it was told to end")),
        }
    }

    fn metadata(&self, loaded: &Loaded) -> ModelMetadata {
        let tensors = |ports: &[Port]| {
            ports.iter().map(|port| TensorMetadata { name: port.name.clone(), datatype: port.datatype.name().into(), shape: port.shape.clone() }).collect()
        };
        ModelMetadata {
            name: self.model.clone(),
            versions: vec![self.version.clone()],
            platform: format!("onnx ({})", loaded.engine),
            inputs: tensors(&loaded.signature.inputs),
            outputs: tensors(&loaded.signature.outputs),
        }
    }

    async fn infer(&self, request: &Parts, body: &mut Incoming) -> Answer {
        self.life.request();
        let loaded = match self.life.phase() {
            Phase::Loading => return Err(self.loading()),
            Phase::Ready(loaded) | Phase::Draining(loaded) => loaded,
        };
        // Taken before the body is read: what waits in memory is bounded as well.
        let _inside = self.room.try_acquire().map_err(|_| Refusal::unavailable(format!("{} requests are inside already; try again", self.max_concurrency)))?;
        let header = self.check_headers(request)?;
        let body = self.body(body).await?;
        let asked = oip::decode_request(header, &body).map_err(|error| Refusal::bad(error.to_string()))?;
        drop(body);
        check_tensors(&asked, loaded)?;
        let InferRequest { inputs, .. } = &asked;
        let mut outputs = loaded.compute(inputs.clone()).await.map_err(|error| match error {
            EngineError::Input { .. } => Refusal::bad(error.to_string()),
            other => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, other.to_string()),
        })?;
        outputs.retain(|output| asked.wants(&output.name));
        let wrong = self.life.answers_wrong();
        if wrong {
            outputs.iter_mut().for_each(spoil);
        }
        let head = ResponseHead { model: &self.model, version: &self.version, id: &asked.id };
        let message = oip::encode_response(head, &outputs, |name| asked.wants_binary(name))
            .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let mut response = Response::new(Full::new(message.body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(message.content_type));
        if let Some(length) = message.inference_header_length {
            response.headers_mut().insert(oip::INFERENCE_HEADER_LENGTH, HeaderValue::from(length));
        }
        self.life.answer(!wrong);
        Ok(response)
    }

    /// The length of the body's JSON part, if it was sent; refuses what is no message of the protocol, and what is known to be too large.
    fn check_headers(&self, request: &Parts) -> Result<Option<usize>, Refusal> {
        let unsupported = |why: String| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
        let text = |name: http::HeaderName| request.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if let Some(coding) = text(CONTENT_ENCODING).filter(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return Err(unsupported(format!("content-encoding {coding:?} is not understood; send the body as it is")));
        }
        if let Some(kind) = text(CONTENT_TYPE) {
            let essence = kind.split(';').next().unwrap_or_default().trim();
            if ![oip::JSON, oip::BINARY].iter().any(|known| known.eq_ignore_ascii_case(essence)) {
                return Err(unsupported(format!("content-type {kind:?} is not understood; send {} or {}", oip::JSON, oip::BINARY)));
            }
        }
        if let Some(length) = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()).filter(|length| *length > self.max_body) {
            return Err(self.too_large(&format!("has {length} bytes")));
        }
        let header = request.headers.get(oip::INFERENCE_HEADER_LENGTH);
        let length = header.map(|value| value.to_str().ok().and_then(|value| value.trim().parse().ok()));
        match length {
            Some(None) => Err(Refusal::bad(format!("the header {} is no number of bytes", oip::INFERENCE_HEADER_LENGTH))),
            known => Ok(known.flatten()),
        }
    }

    fn too_large(&self, what: &str) -> Refusal {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body {what}; at most {} are taken (--max-body)", self.max_body))
    }

    async fn body(&self, body: &mut Incoming) -> Result<Bytes, Refusal> {
        let limited = Limited::new(body, usize::try_from(self.max_body).unwrap_or(usize::MAX));
        match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(self.too_large("is too long")),
            Ok(Err(error)) => Err(Refusal::bad(format!("the body could not be read: {error}"))),
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()))),
        }
    }
}

/// Takes in what is left of a refused request's body, as far as that is cheap. HTTP/1.1 closes a connection with an unread body, and the reset that may
/// follow can reach the client before the answer does.
async fn discard(body: &mut Incoming) {
    let all = async {
        let mut left = DISCARD_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Too slow or too long: the connection closes then.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, all).await;
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready<'a> {
    name: &'a str,
    ready: bool,
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    // Every body here has text keys and finite numbers: writing it cannot fail.
    let mut response = Response::new(Full::new(serde_json::to_vec(body).unwrap_or_default().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(oip::JSON));
    response
}

/// Whether the request's tensors are those of the model.
fn check_tensors(request: &InferRequest, loaded: &Loaded) -> Result<(), Refusal> {
    let names = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect::<Vec<_>>();
    let ports = &loaded.signature;
    for input in &request.inputs {
        let Some(port) = ports.inputs.iter().find(|port| port.name == input.name) else {
            return Err(Refusal::bad(format!("input {:?}: the model has no such input; its inputs are {:?}", input.name, names(&ports.inputs))));
        };
        if input.datatype() != port.datatype {
            return Err(Refusal::bad(format!("input {:?}: datatype: is {}, but the model takes {}", input.name, input.datatype(), port.datatype)));
        }
        let fits = input.shape.len() == port.shape.len() && input.shape.iter().zip(&port.shape).all(|(axis, wanted)| *wanted < 0 || *axis as i64 == *wanted);
        if !fits {
            return Err(Refusal::bad(format!("input {:?}: shape: is {:?}, but the model takes {:?}", input.name, input.shape, port.shape)));
        }
    }
    if let Some(port) = ports.inputs.iter().find(|port| request.inputs.iter().all(|input| input.name != port.name)) {
        return Err(Refusal::bad(format!("input {:?}: is missing; the model takes {:?}", port.name, names(&ports.inputs))));
    }
    if let Some(output) = request.outputs.iter().find(|output| ports.outputs.iter().all(|port| port.name != output.name)) {
        return Err(Refusal::bad(format!("output {:?}: the model has no such output; its outputs are {:?}", output.name, names(&ports.outputs))));
    }
    Ok(())
}

/// Makes an answer wrong and leaves it well-formed: numbers move by a tenth of their size and a little more, everything else stands in reverse order.
fn spoil(tensor: &mut Tensor) {
    match &mut tensor.values {
        Values::F32(v) => v.iter_mut().for_each(|v| *v = *v * 1.1 + 0.1),
        Values::F64(v) => v.iter_mut().for_each(|v| *v = *v * 1.1 + 0.1),
        Values::Bool(v) => v.iter_mut().for_each(|v| *v = !*v),
        Values::U8(v) => v.reverse(),
        Values::U16(v) => v.reverse(),
        Values::U32(v) => v.reverse(),
        Values::U64(v) => v.reverse(),
        Values::I8(v) => v.reverse(),
        Values::I16(v) => v.reverse(),
        Values::I32(v) => v.reverse(),
        Values::I64(v) => v.reverse(),
        Values::Bytes(v) => v.reverse(),
    }
}
