//! What a user asks and how the answer is judged: samples of a golden set, encoded once, and the golden answers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use steadfast_api::{
    policy::{ORIGIN_HEADER, Origin, POD_HEADER},
    test::Load,
};
use steadfast_golden_sets::{
    DataType, GoldenSet, Tensor,
    compare::Rules,
    oip::{self, RequestOptions},
};

use super::{End, connect::Connect};

/// Kept-alive connections to the gateway that wait for their next request.
const IDLE_MAX: usize = 256;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Names of pods kept, so that a record costs no allocation; a run beyond it pays for one.
const NAMES_MAX: usize = 4096;

/// Why a set cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the golden set of model {model:?} has no samples: there is nothing to send")]
    Empty { model: String },
    #[error("sample {sample:?} cannot be sent: {why}")]
    Sample { sample: String, why: String },
    #[error("model {model:?}, version {version:?} make no path of a request: {why}")]
    Path { model: String, version: String, why: String },
}

/// An answer, before it is put on record.
pub(super) struct Answer {
    /// When its last byte was there.
    pub ended: Instant,
    pub pod: Option<Arc<str>>,
    pub end: End,
}

struct Sample {
    body: Bytes,
    inference_header_length: Option<HeaderValue>,
    right: Vec<Tensor>,
}

/// See the module.
pub(super) struct Users {
    client: Client<Connect, Full<Bytes>>,
    uri: Uri,
    samples: Vec<Sample>,
    rules: Rules,
    names: Mutex<HashMap<HeaderValue, Arc<str>>>,
}

impl Users {
    pub(super) fn new(target: SocketAddr, keep_alive: bool, load: &Load, set: &GoldenSet) -> Result<Self, Refused> {
        let manifest = set.manifest();
        let samples = set.samples().iter().map(|sample| {
            let refused = |error: oip::OipError| Refused::Sample { sample: sample.name.clone(), why: error.to_string() };
            let message = oip::encode_request(&sample.inputs, &RequestOptions::default()).map_err(refused)?;
            Ok(Sample { body: message.body, inference_header_length: message.inference_header_length.map(HeaderValue::from), right: sample.outputs.clone() })
        });
        let samples: Vec<_> = samples.collect::<Result<_, _>>()?;
        if samples.is_empty() {
            return Err(Refused::Empty { model: manifest.model.clone() });
        }
        let uri = format!("http://{target}{}", oip::route::infer(&manifest.model, &manifest.version));
        let uri = uri.parse().map_err(|error: http::uri::InvalidUri| Refused::Path {
            model: manifest.model.clone(),
            version: manifest.version.clone(),
            why: error.to_string(),
        })?;
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(if keep_alive { IDLE_MAX.min(load.max_in_flight as usize) } else { 0 })
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(Connect { target, in_turn: !keep_alive });
        Ok(Self { client, uri, samples, rules: set.rules(), names: Mutex::default() })
    }

    pub(super) const fn samples(&self) -> usize {
        self.samples.len()
    }

    /// Sends a sample. `None`: no answer came, or not all of it.
    pub(super) async fn ask(&self, sample: usize) -> Option<Answer> {
        let sample = self.samples.get(sample)?;
        let mut request = Request::post(self.uri.clone()).body(Full::new(sample.body.clone())).ok()?;
        let content_type = if sample.inference_header_length.is_some() { oip::BINARY } else { oip::JSON };
        request.headers_mut().insert(POD_HEADER, HeaderValue::from_static("?1"));
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = &sample.inference_header_length {
            request.headers_mut().insert(HeaderName::from_static(oip::INFERENCE_HEADER_LENGTH), length.clone());
        }
        let (head, body) = self.client.request(request).await.ok()?.into_parts();
        let body = Limited::new(body, oip::BODY_MAX).collect().await.ok()?.to_bytes();
        let ended = Instant::now();
        let origin = origin(&head.headers);
        let end = if head.status.is_success() && origin == Origin::Upstream {
            End::Answered { right: self.right(&head.headers, &body, &sample.right) }
        } else {
            End::Error { status: head.status.as_u16(), origin }
        };
        Some(Answer { ended, pod: head.headers.get(POD_HEADER).and_then(|name| self.name(name)), end })
    }

    fn right(&self, headers: &HeaderMap, body: &[u8], right: &[Tensor]) -> bool {
        let length = headers.get(oip::INFERENCE_HEADER_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let declared: Vec<(&str, DataType)> = self.rules.outputs().iter().map(|rule| (rule.name.as_str(), rule.datatype)).collect();
        // What cannot be read is no right answer.
        oip::decode_response(length, body, &declared).is_ok_and(|answer| self.rules.compare(right, &answer.outputs).matches())
    }

    fn name(&self, value: &HeaderValue) -> Option<Arc<str>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(value) {
            return Some(Arc::clone(name));
        }
        let name: Arc<str> = value.to_str().ok()?.into();
        if names.len() < NAMES_MAX {
            names.insert(value.clone(), Arc::clone(&name));
        }
        Some(name)
    }
}

/// Absent on the model server's own answers.
fn origin(headers: &HeaderMap) -> Origin {
    let named = headers.get(ORIGIN_HEADER).and_then(|value| Origin::ALL.into_iter().find(|origin| origin.name().as_bytes() == value.as_bytes()));
    named.unwrap_or(Origin::Upstream)
}
