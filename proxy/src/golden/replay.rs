//! One replay: a sample to a request, the answer to an outcome. No answer, whatever the reason, is never drift; an answer that cannot be read is a wrong one.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Limited};
use steadfast_api::{golden::Outcome, policy::Origin, sidecar::GoldenReplay};
use steadfast_golden_sets::{
    DataType, GoldenSet,
    check::Checker,
    engine::{self, Engine, EngineOptions},
    enrol::Enrolment,
    oip::{self, EncodedMessage, OipError, RequestOptions},
};
use tower::ServiceExt;

use crate::{body::RequestBody, clock, sanitize::Sanitized, stack, worker::Worker};

/// The reference computes its answer again for one replay in so many, and for every mismatch.
const RECOMPUTE_EVERY: u64 = 100;
/// Text about one replay.
const DETAIL_MAX: usize = 400;

/// A set ready to be replayed: its engine has reproduced every stored answer.
pub struct Replayer {
    pub set: GoldenSet,
    checker: Checker,
    engine: Box<dyn Engine>,
    path: String,
    host: HeaderValue,
    timeout: Duration,
    replays: u64,
}

/// What one replay gave.
pub struct Replayed {
    pub report: GoldenReplay,
    /// The reference was recomputed: whether it still gives its stored answer.
    pub reference: Option<bool>,
}

impl Replayer {
    /// Opens an engine and lets it prove itself; what it cannot reproduce is refused.
    pub fn new(worker: &Worker, set: GoldenSet, enrolment: Option<&Enrolment>) -> Result<Self, String> {
        let config = &worker.shared.config;
        let options = EngineOptions { choice: config.engine, ..EngineOptions::default() };
        let mut engine = engine::open(set.model(), &options).map_err(|error| error.to_string())?;
        let proof = engine::prove(&set, engine.as_mut()).map_err(|refused| refused.to_string())?;
        tracing::info!(set = set.manifest().model, engine = proof.engine, samples = proof.samples, "golden set proven");
        let checker = Checker::new(&set, enrolment);
        let manifest = set.manifest();
        let version = if manifest.version.is_empty() { String::new() } else { format!("/versions/{}", manifest.version) };
        let path = format!("/v2/models/{}{version}/infer", manifest.model);
        path.parse::<http::Uri>().map_err(|error| format!("model {:?} cannot stand in a path: {error}", manifest.model))?;
        let host = HeaderValue::try_from(config.upstream().authority()).map_err(|error| error.to_string())?;
        Ok(Self { checker, engine, path, host, timeout: config.golden_timeout, replays: 0, set })
    }

    /// Sends sample `index` and compares the answer.
    pub async fn replay(&mut self, worker: &Rc<Worker>, set: &str, index: usize) -> Replayed {
        let begun = clock::now_ns();
        let answer = match tokio::time::timeout(self.timeout, self.ask(worker, index)).await {
            Ok(answer) => answer,
            Err(_) => Answer::None(format!("no answer within {:?}", self.timeout)),
        };
        let latency_ns = clock::now_ns() - begun;
        self.replays += 1;
        let sample = &self.set.samples()[index];
        let mut reference = None;
        let (outcome, detail) = match answer {
            Answer::None(why) => (Outcome::NoAnswer, Some(why)),
            Answer::Unreadable(error) => (Outcome::Mismatch, Some(format!("the answer cannot be read: {error}"))),
            Answer::Outputs(outputs) => {
                let mut check = self.checker.check(index, sample, &outputs, None);
                if self.replays % RECOMPUTE_EVERY == 1 || check.outcome() == Outcome::Mismatch {
                    match self.engine.run(&sample.inputs) {
                        Ok(recomputed) => check = self.checker.check(index, sample, &outputs, Some(&recomputed)),
                        Err(error) => tracing::error!(%error, sample = sample.name, "the reference could not be recomputed"),
                    }
                    reference = Some(check.reference.is_some() && !check.reference_broken());
                }
                let outcome = check.outcome();
                (outcome, (outcome == Outcome::Mismatch).then(|| check.line()))
            }
        };
        let detail = detail.map(|detail| detail.chars().take(DETAIL_MAX).collect());
        let report = GoldenReplay { set: set.to_owned(), sample: sample.name.clone(), outcome, latency_ns, detail };
        Replayed { report, reference }
    }

    async fn ask(&self, worker: &Rc<Worker>, index: usize) -> Answer {
        let EncodedMessage { content_type, inference_header_length, body } =
            match oip::encode_request(&self.set.samples()[index].inputs, &RequestOptions::default()) {
                Ok(message) => message,
                Err(error) => return Answer::None(format!("the sample cannot be sent: {error}")),
            };
        let mut request = Request::post(&self.path).header(header::HOST, &self.host).header(header::CONTENT_TYPE, content_type);
        if let Some(length) = inference_header_length {
            request = request.header(oip::INFERENCE_HEADER_LENGTH, length);
        }
        let request = match request.body(RequestBody::Own(body)) {
            Ok(request) => request,
            Err(error) => return Answer::None(error.to_string()),
        };
        let answer = match stack::inside(Rc::clone(worker)).oneshot(Sanitized::replay(request)).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let (origin, status) = (answer.origin, answer.response.status());
        let length = answer.response.headers().get(oip::INFERENCE_HEADER_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse().ok());
        let body = match Limited::new(answer.response.into_body(), oip::BODY_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Answer::None(format!("the answer broke off: {error}")),
        };
        if origin != Origin::Upstream || !status.is_success() {
            return Answer::None(format!("{status} by {origin}: {}", start(&body)));
        }
        let declared: Vec<(&str, DataType)> = self.set.manifest().outputs.iter().map(|output| (output.name.as_str(), output.datatype)).collect();
        match oip::decode_response(length, &body, &declared) {
            Ok(response) => Answer::Outputs(response.outputs),
            Err(error) => Answer::Unreadable(error),
        }
    }
}

enum Answer {
    Outputs(Vec<steadfast_golden_sets::Tensor>),
    Unreadable(OipError),
    None(String),
}

fn start(body: &Bytes) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}
