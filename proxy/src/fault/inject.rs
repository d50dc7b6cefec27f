//! Does what was decided: burn beside, hold back, answer instead, or change the answer. Then says so in `steadfast-injected`.
//!
//! `steadfast-origin` says whose doing the *status* was: a delayed or corrupted answer of the model server stays `upstream` (and has no such header);
//! an abort is `injected`.

use std::{collections::VecDeque, convert::Infallible, fmt::Write, pin::Pin, rc::Rc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use steadfast_api::{
    FaultKind,
    fault::Cpu,
    policy::{INJECTED_HEADER, Origin},
};
use tower::{Service, ServiceExt};

use super::{
    corrupt,
    decide::{FaultPlan, Planned},
};
use crate::{
    body::{RequestBody, Source, UpstreamBody},
    forward::{Answer, ForwardError},
    problem::{Dialect, Problem},
    sanitize::Sanitized,
    worker::Worker,
};

/// What took place, as an RFC 9651 list.
#[derive(Default)]
struct Injected(String);

impl Injected {
    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        // A String takes everything.
        let _ = self.0.write_fmt(what);
    }

    fn write(self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.0)
            && !value.is_empty()
        {
            headers.append(INJECTED_HEADER, value);
        }
    }
}

/// Does `plan` to `request`.
pub async fn inject<S>(worker: &Rc<Worker>, mut request: Sanitized<Request<RequestBody>>, plan: FaultPlan, inner: S) -> Result<Answer, Infallible>
where
    S: Service<Sanitized<Request<RequestBody>>, Response = Answer, Error = Infallible>,
{
    let mut injected = Injected::default();
    if let Some(cpu) = plan.cpu {
        burn(worker, cpu, &mut injected);
    }
    if let Some(Planned { what: delay, by, active, .. }) = plan.delay {
        match worker.timer.sleep_until(delay.deadline_ns) {
            Some(sleep) => {
                let late_ns = sleep.await;
                worker.meter.metrics.lateness.observe(late_ns as f64 / 1e9);
                worker.meter.injected(&by, FaultKind::Delay);
                injected.note(format_args!("delay;ms={}", Number(delay.length_ns as f64 / 1e6)));
            }
            None => worker.meter.over_budget(&by, 1),
        }
        drop(active);
    }
    if let Some(Planned { what: status, by, active, .. }) = plan.abort {
        worker.meter.injected(&by, FaultKind::Abort);
        injected.note(format_args!("abort;status={}", status.get()));
        let (dialect, head) = (request.facts.dialect, request.facts.head);
        let mut answer = Answer::own(&abort(status.get(), &by), dialect, head, Origin::Injected);
        injected.write(answer.response.headers_mut());
        answer.active = Some(active);
        return Ok(answer.without_reading(request.into_parts().0.into_body()).await);
    }
    let head = request.facts.head;
    let dialect = request.facts.dialect;
    if plan.corrupt.is_some() {
        request.want_identity();
    }
    let mut answer = inner.oneshot(request).await?;
    if let Some(planned) = plan.corrupt {
        answer = corrupt_answer(worker, answer, planned, dialect, head, &mut injected).await;
    }
    injected.write(answer.response.headers_mut());
    Ok(answer)
}

fn abort(status: u16, by: &str) -> Problem {
    // 200 to 599 are all statuses to this type.
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    Problem::new(status, "injected", "Injected fault", format!("this answer was injected by {by}: the model server was not asked"))
}

fn burn(worker: &Rc<Worker>, planned: Planned<Cpu>, injected: &mut Injected) {
    let Planned { what: cpu, by, policy, active } = planned;
    if worker.shared.store.burners.request(&policy, &cpu, active) {
        worker.meter.injected(&by, FaultKind::Cpu);
        injected.note(format_args!("cpu;load={};cores={}", Number(cpu.load.ratio()), cpu.cores));
        if let Some(duration) = cpu.duration {
            injected.note_parameter(format_args!(";for={}", Number(duration.get().as_secs_f64() * 1e3)));
        }
    } else {
        worker.meter.over_budget(&by, 1);
    }
}

impl Injected {
    fn note_parameter(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(what);
    }
}

/// Three decimals at most, and none where there are none: an RFC 9651 number.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.3}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

async fn corrupt_answer(
    worker: &Rc<Worker>,
    answer: Answer,
    planned: Planned<steadfast_api::Percent>,
    dialect: Dialect,
    head: bool,
    injected: &mut Injected,
) -> Answer {
    let skipped = |reason: &str| worker.meter.metrics.corrupt_skipped.with_label_values(&[reason]).inc();
    let Answer { response, origin, active } = answer;
    let (mut parts, source) = response.into_parts();
    let whole = |parts, source| Answer { response: http::Response::from_parts(parts, source), origin, active: None };
    let body = match source {
        Source::Upstream(body) if origin == Origin::Upstream && parts.status.is_success() && !head => body,
        other => {
            skipped("not-an-answer");
            return Answer { active, ..whole(parts, other) };
        }
    };
    let coded = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let kind = if coded { None } else { corrupt::kind(&parts.headers) };
    let Some(kind) = kind else {
        skipped(if coded { "content-encoding" } else { "content-type" });
        return whole(parts, Source::Upstream(body));
    };
    let gathered = match gather(body, worker.shared.config.corrupt_max_bytes).await {
        Ok(gathered) => gathered,
        Err(error) => return Answer::own(&ForwardError::Broken(error).problem(), dialect, head, Origin::Proxy),
    };
    let (bytes, trailers) = match gathered {
        Gathered::All(bytes, trailers) => (bytes, trailers),
        Gathered::TooLarge(read, rest) => {
            skipped("too-large");
            return whole(parts, Source::Resumed(read, rest));
        }
    };
    let changed = corrupt::corrupt(&kind, &bytes, planned.what.ratio(), &mut *worker.rng.borrow_mut());
    let Some(changed) = changed else {
        skipped("no-values");
        return whole(parts, own(bytes, trailers));
    };
    if parts.headers.contains_key(header::CONTENT_LENGTH) {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(changed.bytes.len()));
    }
    if let (Some(length), Some(header)) = (changed.json_length, parts.headers.get_mut(corrupt::JSON_LENGTH)) {
        *header = HeaderValue::from(length);
    }
    // A digest or validator of the answer as it was would tell on us by accident and make the answer malformed.
    for name in ["content-digest", "repr-digest", "digest", "content-md5", "etag"] {
        parts.headers.remove(name);
    }
    worker.meter.injected(&planned.by, FaultKind::Corrupt);
    injected.note(format_args!("corrupt;magnitude={}", Number(planned.what.ratio())));
    Answer { active: Some(planned.active), ..whole(parts, own(changed.bytes, trailers)) }
}

fn own(bytes: Bytes, trailers: Option<HeaderMap>) -> Source {
    if trailers.is_none() { Source::Own(bytes) } else { Source::WithTrailers(bytes, trailers) }
}

enum Gathered {
    All(Bytes, Option<HeaderMap>),
    /// What was read, and the rest.
    TooLarge(VecDeque<Frame<Bytes>>, UpstreamBody),
}

/// Reads the whole body, at most `most` bytes of it.
async fn gather(mut body: UpstreamBody, most: usize) -> Result<Gathered, hyper::Error> {
    let mut frames: VecDeque<Frame<Bytes>> = VecDeque::new();
    let mut size = 0;
    if body.size_hint().lower() > most as u64 {
        return Ok(Gathered::TooLarge(frames, body));
    }
    let mut trailers = None;
    while let Some(frame) = Pin::new(&mut body).frame().await.transpose()? {
        match frame.into_data() {
            Ok(bytes) => {
                size += bytes.len();
                frames.push_back(Frame::data(bytes));
                if size > most {
                    return Ok(Gathered::TooLarge(frames, body));
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let mut all = BytesMut::with_capacity(size);
    for frame in &frames {
        all.extend_from_slice(frame.data_ref().map_or(&[], |bytes| &bytes[..]));
    }
    Ok(Gathered::All(all.freeze(), trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in [(250.0, "250"), (0.1, "0.1"), (12.345_678, "12.346"), (0.0, "0"), (100.0, "100")] {
            assert_eq!(Number(number).to_string(), text);
        }
    }

    #[test]
    fn everything_that_was_injected_is_named() {
        let mut injected = Injected::default();
        injected.note(format_args!("delay;ms=250"));
        injected.note(format_args!("abort;status=503"));
        let mut headers = HeaderMap::new();
        injected.write(&mut headers);
        assert_eq!(headers[INJECTED_HEADER], "delay;ms=250, abort;status=503");
        Injected::default().write(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
