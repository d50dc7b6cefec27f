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

    /// Says which pod this is.
    pub fn name_pod(&self, answer: &mut Answer) {
        if let Ok(name) = HeaderValue::from_str(&self.worker.shared.config.pod.name) {
            answer.response.headers_mut().insert(POD_HEADER, name);
        }
    }

    /// Wraps the answer's body, once.
    pub fn answer(mut self, mut answer: Answer) -> Response<ResponseBody> {
        self.answered = true;
        if self.worker.drain.has_reached(Phase::Parting) && answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // hyper closes an HTTP/1 connection that says so and leaves it out in HTTP/2, where GOAWAY says it.
            answer.response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let (parts, source) = answer.response.into_parts();
        let record = Record { begun: self, origin: answer.origin, status: parts.status.as_u16(), ended: false };
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
