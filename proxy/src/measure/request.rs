//! The outermost layer behind `sanitize`: every answer, whoever gave it, is counted here when its last byte is out.

use std::rc::Rc;

use http::{HeaderValue, Response, StatusCode, header};
use steadfast_api::policy::{Origin, POD_HEADER};

use crate::{body::ResponseBody, clock, drain::Phase, forward::Answer, worker::Worker};

/// A request in progress. Dropped without an answer, it counts as cancelled by its client.
pub struct Begun {
    worker: Rc<Worker>,
    since_ns: u64,
    answered: bool,
}

impl Begun {
    pub fn new(worker: &Rc<Worker>) -> Self {
        worker.meter.metrics.in_progress.inc();
        Self { worker: Rc::clone(worker), since_ns: clock::now_ns(), answered: false }
    }

    pub const fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// Somebody else begins it anew, or nobody can tell any more how it ended: it counts as neither answered nor cancelled.
    pub fn left_to_others(mut self) {
        self.answered = true;
    }

    /// Its answer's head has gone by on the relay.
    pub fn relayed(self, origin: Origin, status: u16) -> Record {
        self.head(origin, status)
    }

    fn head(mut self, origin: Origin, status: u16) -> Record {
        self.answered = true;
        self.worker.meter.first_byte(origin, clock::now_ns() - self.since_ns);
        Record { begun: self, origin, status, ended: false }
    }

    /// Says which pod this is.
    pub fn name_pod(&self, answer: &mut Answer) {
        if let Ok(name) = HeaderValue::from_str(&self.worker.shared.config.pod.name) {
            answer.response.headers_mut().insert(POD_HEADER, name);
        }
    }

    /// Wraps the answer's body, once.
    pub fn answer(self, mut answer: Answer) -> Response<ResponseBody> {
        if self.worker.drain.has_reached(Phase::Parting) && answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // hyper closes an HTTP/1 connection that says so and leaves it out in HTTP/2, where GOAWAY says it.
            answer.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let (parts, source) = answer.response.into_parts();
        let grpc = grpc_status(&parts.headers);
        let record = self.head(answer.origin, parts.status.as_u16());
        if let Some(code) = grpc {
            record.grpc(code);
        }
        Response::from_parts(parts, ResponseBody::new(source, answer.active, record))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let metrics = &self.worker.meter.metrics;
        metrics.in_progress.dec();
        if !self.answered {
            metrics.cancelled.inc();
        }
    }
}

/// An answer on its way out. Counted once: when it ends, or when it breaks off.
pub struct Record {
    begun: Begun,
    origin: Origin,
    status: u16,
    ended: bool,
}

impl Record {
    pub fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let duration_ns = clock::now_ns() - self.begun.since_ns;
            self.begun.worker.meter.response(self.origin, self.status, duration_ns);
        }
    }

    /// The answer's own status behind or beside HTTP's.
    pub fn grpc(&self, code: u16) {
        self.begun.worker.meter.grpc(code);
    }

    /// It broke off: `by` is upstream, fault or client.
    pub fn cut_by(&mut self, by: &str) {
        if !self.ended {
            self.begun.worker.meter.metrics.truncated.with_label_values(&[by]).inc();
        }
        self.finish();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.cut_by("client");
    }
}

/// `grpc-status`, of a head or of trailers.
pub fn grpc_status(fields: &http::HeaderMap) -> Option<u16> {
    let code = fields.get("grpc-status")?;
    Some(code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(u16::MAX))
}
