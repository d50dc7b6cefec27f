//! Does what was decided: load beside, hold back, break off, answer instead, change the answer, or hold it up on its way. Then says so in `steadfast-injected`.
//!
//! `steadfast-origin` says whose doing the *status* was: a delayed or corrupted answer of the model server stays `upstream` (and has no such header);
//! an abort is `injected`. What happens to a body is told before it happens, since heads come first; counted is only what took place.

use std::{convert::Infallible, fmt::Write, rc::Rc, sync::Arc};

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body::Body;
use steadfast_api::{
    FaultKind,
    fault::{Abort, Before, Fault, Http2Code, Reset},
    policy::{INJECTED_HEADER, Origin},
};
use tower::{Service, ServiceExt};

use super::{
    corrupt::{
        answer::{Asked, corrupt_answer},
        grpc::MODEL_STREAM_INFER,
    },
    decide::{FaultPlan, Planned},
    envoy, events,
    link::NoAnswer,
    policy::CompiledPolicy,
    ring::About,
    shape::{Shape, Shaped, Units},
};
use crate::{
    body::{RequestBody, Source},
    clock,
    forward::Answer,
    problem::{Dialect, Problem},
    sanitize::Sanitized,
    worker::Worker,
};

/// What took place, as an RFC 9651 list.
#[derive(Default)]
pub struct Injected(String);

impl Injected {
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        // A String takes everything.
        let _ = self.0.write_fmt(what);
    }

    fn note_parameter(&mut self, what: std::fmt::Arguments<'_>) {
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

/// Where faults that took place are counted, and what they fell on.
#[derive(Clone)]
pub struct Told {
    pub worker: Rc<Worker>,
    about: Arc<About>,
}

impl Told {
    pub fn new(worker: &Rc<Worker>, about: About) -> Self {
        Self { worker: Rc::clone(worker), about: Arc::new(about) }
    }

    /// A fault took place.
    pub fn injected(&self, planned: &Planned) {
        self.of(&planned.by, &planned.policy, planned.fault.kind());
    }

    pub fn of(&self, by: &Arc<str>, policy: &CompiledPolicy, kind: FaultKind) {
        self.worker.meter.injected(by, kind);
        policy.count(kind);
        self.worker.shared.store.ring.push(clock::now_ns(), Arc::clone(by), kind, Arc::clone(&self.about));
    }

    /// A fault could not be done, for want of room.
    pub fn over_budget(&self, planned: &Planned) {
        self.worker.meter.over_budget(&planned.by, 1);
    }
}

/// Does `plan` to `request`.
pub async fn inject<S>(worker: &Rc<Worker>, mut request: Sanitized<Request<RequestBody>>, mut plan: FaultPlan, inner: S) -> Result<Answer, Infallible>
where
    S: Service<Sanitized<Request<RequestBody>>, Response = Answer, Error = Infallible>,
{
    if plan.strip_envoy {
        request.remove_headers(envoy::PREFIX);
    }
    let told = Told::new(worker, About::new(request.facts.caller.address(), request.method(), request.path()));
    let (dialect, head, http2, link) = (request.facts.dialect, request.facts.head, request.facts.http2, request.facts.link.clone());
    let mut injected = Injected::default();
    if let Some(cpu) = plan.take(FaultKind::Cpu) {
        burn(&told, cpu, &mut injected);
    }
    if let Some(memory) = plan.take(FaultKind::Memory) {
        hold_memory(&told, memory, &mut injected);
    }
    let before = |moment| move |fault: &Fault| matches!(fault, Fault::Delay(delay) if delay.before == moment);
    if let Some(delay) = plan.take_if(FaultKind::Delay, before(Before::Request)) {
        let begun_ns = delay.since_ns;
        hold_back(&told, delay, begun_ns, &mut injected).await;
    }
    if let Some(planned) = plan.take(FaultKind::Blackhole) {
        told.injected(&planned);
        let until_ns = match &planned.fault {
            Fault::Blackhole(hole) => hole.duration.map_or(planned.policy.expires_ns, |duration| clock::now_ns().saturating_add(clock::ns(duration.get()))),
            _ => 0,
        };
        if let Some(sleep) = worker.timer.sleep_until(until_ns) {
            unless_over(sleep, &planned.policy).await;
        }
        return Ok(no_answer(&request, Http2Code::CANCEL));
    }
    if let Some(planned) = plan.take_if(FaultKind::Reset, |fault| matches!(fault, Fault::Reset(Reset { after_bytes: None, .. })))
        && let Fault::Reset(reset) = &planned.fault
    {
        told.injected(&planned);
        if let Some(link) = link.as_ref().filter(|_| !http2) {
            link.reset();
        }
        return Ok(no_answer(&request, reset.http2_code));
    }
    if let Some(planned) = plan.take(FaultKind::Abort)
        && let Fault::Abort(abort) = &planned.fault
    {
        told.injected(&planned);
        match abort.grpc_code().filter(|_| dialect == Dialect::Grpc) {
            Some(code) => injected.note(format_args!("abort;grpc={}", code.get())),
            None => injected.note(format_args!("abort;status={}", abort.http_status().get())),
        }
        let mut answer = Answer::own(&problem(abort, &planned.by), dialect, head, Origin::Injected);
        injected.write(answer.response.headers_mut());
        answer.active = Some(planned.active);
        return Ok(answer.without_reading(request.into_parts().0.into_body()).await);
    }
    let mut shape = Shape::take(&mut plan);
    let corrupt = plan.take(FaultKind::Corrupt);
    if corrupt.is_some() {
        request.want_identity();
    }
    // An answer that is held up fills the windows of whatever connection it comes by.
    request.facts.apart = dialect == Dialect::Grpc && !shape.is_empty();
    let path = request.path().to_owned();
    let mut answer = inner.oneshot(request).await?;
    shape.units = if events::is_event_stream(answer.response.headers()) {
        Units::Events
    } else if dialect == Dialect::Grpc {
        Units::Messages
    } else {
        Units::Pieces
    };
    if let Some(planned) = corrupt {
        let of_stream = match &planned.fault {
            Fault::Corrupt(corrupt) => match shape.units {
                Units::Events => corrupt.events.is_some(),
                Units::Messages => path == MODEL_STREAM_INFER && corrupt.of_tensors().is_some(),
                Units::Pieces => false,
            },
            _ => false,
        };
        if of_stream && answer.origin == Origin::Upstream {
            shape.corrupt = Some(planned);
        } else {
            answer = corrupt_answer(&told, answer, planned, &Asked { path: &path, dialect, head }, &mut injected).await;
        }
    }
    if let Some(delay) = plan.take(FaultKind::Delay) {
        if let Some(link) = &link {
            link.half().held();
        }
        hold_back(&told, delay, clock::now_ns(), &mut injected).await;
    }
    if !shape.is_empty() {
        answer = shaped(&told, answer, shape, link, http2, head, &mut injected);
    }
    injected.write(answer.response.headers_mut());
    Ok(answer)
}

/// Until the timer rings, or until the policy is in force no more. How late it rang, if it did.
async fn unless_over(sleep: impl Future<Output = u64>, policy: &CompiledPolicy) -> Option<u64> {
    tokio::select! {
        late_ns = sleep => Some(late_ns),
        () = policy.over() => None,
    }
}

async fn hold_back(told: &Told, planned: Planned, begun_ns: u64, injected: &mut Injected) {
    let Some(sleep) = told.worker.timer.sleep_until(begun_ns + planned.length_ns) else { return told.over_budget(&planned) };
    // Counted when it begins: a client that does not wait for its end has met it, too.
    told.injected(&planned);
    if let Some(late_ns) = unless_over(sleep, &planned.policy).await {
        told.worker.meter.metrics.lateness.observe(late_ns as f64 / 1e9);
    }
    // Shorter than drawn where its policy ended first.
    let length_ns = planned.length_ns.min(clock::now_ns().saturating_sub(begun_ns));
    injected.note(format_args!("delay;ms={}", Number(length_ns as f64 / 1e6)));
}

/// The connection or stream shall end without an answer.
fn no_answer(request: &Sanitized<Request<RequestBody>>, code: Http2Code) -> Answer {
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "injected", "Injected fault", "broken off by an injected fault");
    let mut answer = Answer::own(&problem, request.facts.dialect, true, Origin::Injected);
    answer.response.extensions_mut().insert(NoAnswer(code));
    answer
}

fn problem(abort: &Abort, by: &str) -> Problem {
    // 200 to 599 are all statuses to this type.
    let status = StatusCode::from_u16(abort.http_status().get()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let problem = Problem::new(status, "injected", "Injected fault", format!("this answer was injected by {by}: the model server was not asked"));
    Problem { grpc_code: abort.grpc_code().map(steadfast_api::fault::GrpcCode::get), ..problem }
}

fn burn(told: &Told, planned: Planned, injected: &mut Injected) {
    let Fault::Cpu(cpu) = planned.fault else { return };
    let (by, policy) = (planned.by, planned.policy);
    if told.worker.shared.store.burners.request(&policy, &cpu, planned.active) {
        told.of(&by, &policy, FaultKind::Cpu);
        injected.note(format_args!("cpu;load={};cores={}", Number(cpu.load.ratio()), cpu.cores));
        if let Some(duration) = cpu.duration {
            injected.note_parameter(format_args!(";for={}", Number(duration.get().as_secs_f64() * 1e3)));
        }
    } else {
        told.worker.meter.over_budget(&by, 1);
    }
}

fn hold_memory(told: &Told, planned: Planned, injected: &mut Injected) {
    let Fault::Memory(memory) = planned.fault else { return };
    let (worker, by, policy) = (&told.worker, planned.by, planned.policy);
    let Some(mut ballast) = worker.shared.store.memory.reserve(&policy, memory.bytes.get(), Some(planned.active)) else {
        worker.meter.over_budget(&by, 1);
        return;
    };
    told.of(&by, &policy, FaultKind::Memory);
    injected.note(format_args!("memory;bytes={}", memory.bytes.get()));
    let until_ns = memory.duration.map_or(policy.expires_ns, |duration| clock::now_ns().saturating_add(clock::ns(duration.get())));
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let filled = tokio::task::spawn_blocking(move || {
            ballast.fill();
            ballast
        });
        let Ok(_held) = filled.await else { return };
        if let Some(sleep) = worker.timer.sleep_until(until_ns) {
            unless_over(sleep, &policy).await;
        }
    });
}

fn shaped(told: &Told, answer: Answer, shape: Shape, link: Option<super::link::Link>, http2: bool, head: bool, injected: &mut Injected) -> Answer {
    let Answer { response, origin, active } = answer;
    let (mut parts, source) = response.into_parts();
    if head || source.is_end_stream() || parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Answer { response: http::Response::from_parts(parts, source), origin, active };
    }
    for note in shape.notes() {
        injected.note(format_args!("{note}"));
    }
    if shape.corrupt.is_some() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let body = Shaped::new(source, shape, told.clone(), link, http2);
    Answer { response: http::Response::from_parts(parts, Source::Shaped(Box::new(body))), origin, active }
}

/// Three decimals at most, and none where there are none: an RFC 9651 number.
pub struct Number(pub f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.3}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
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
