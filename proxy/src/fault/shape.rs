//! An answer's body on its way through faults: its events changed, its bytes in pieces, paused, slowed down, and cut off.
//!
//! Invariants: without a cut or changed events the bytes are the model server's; a pause ends when its policy does, and what is left then passes as it comes;
//! bytes that stand before a cut have gone out to the kernel when it happens. Nothing is gathered but an event whose end has not come.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use steadfast_api::{
    FaultKind,
    fault::{Fault, Http2Code, StallAt},
};

use super::{
    decide::{FaultPlan, Planned},
    events::{self, Splitter},
    inject::Told,
    link::{Cut, Link},
    policy::CompiledPolicy,
};
use crate::{
    body::{BodyError, Source},
    clock,
    worker::Worker,
};

/// What comes at once of a slowed answer: so many parts of a second.
const THROTTLE_PARTS: u64 = 50;

/// What is to be done to a body.
#[derive(Default)]
pub struct Shape {
    pub stall: Option<Planned>,
    pub slice: Option<Planned>,
    pub throttle: Option<Planned>,
    pub reset: Option<Planned>,
    pub truncate: Option<Planned>,
    /// Corrupt, where it means events.
    pub events: Option<Planned>,
}

impl Shape {
    /// Takes its part of a plan; what has to happen before there is an answer is gone from it already, and `events` shows with the answer.
    pub fn take(plan: &mut FaultPlan) -> Self {
        Self {
            stall: plan.take(FaultKind::Stall),
            slice: plan.take(FaultKind::Slice),
            throttle: plan.take(FaultKind::Throttle),
            reset: plan.take(FaultKind::Reset),
            truncate: plan.take(FaultKind::Truncate),
            events: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.each().is_empty()
    }

    fn each(&self) -> Vec<&Planned> {
        [&self.stall, &self.slice, &self.throttle, &self.reset, &self.truncate, &self.events].into_iter().flatten().collect()
    }

    /// As `steadfast-injected` names it.
    pub fn notes(&self) -> Vec<String> {
        let note = |planned: &&Planned| match &planned.fault {
            Fault::Stall(stall) => format!("stall;ms={};at={}", stall.duration.get().as_millis(), name(&StallAt::ALL, stall.at)),
            Fault::Slice(slice) => format!("slice;bytes={};pause={}", slice.bytes.get(), slice.pause.get().as_millis()),
            Fault::Throttle(throttle) => format!("throttle;bps={}", throttle.bytes_per_second.get()),
            Fault::Reset(reset) => format!("reset;after={}", reset.after_bytes.unwrap_or_default().get()),
            Fault::Truncate(truncate) => format!("truncate;after={}", truncate.after_bytes.get()),
            Fault::Corrupt(corrupt) => {
                corrupt.events.map_or_else(String::new, |change| format!("corrupt;events={}", name(&steadfast_api::fault::EventChange::ALL, change)))
            }
            _ => String::new(),
        };
        self.each().iter().map(note).collect()
    }

    /// Bytes that pass before the answer is cut off, and the fault that does it. Of two the nearer one.
    fn cut(&self) -> Option<(u64, &Planned)> {
        [&self.reset, &self.truncate].into_iter().flatten().map(|planned| (limit(&planned.fault), planned)).min_by_key(|(limit, _)| *limit)
    }

    fn take_cut(&mut self, kind: FaultKind) -> Option<Planned> {
        if kind == FaultKind::Reset { self.reset.take() } else { self.truncate.take() }
    }
}

fn name<T: PartialEq>(all: &[(T, &'static str)], one: T) -> &'static str {
    all.iter().find(|(value, _)| *value == one).map_or("", |(_, name)| name)
}

const fn limit(fault: &Fault) -> u64 {
    match fault {
        Fault::Reset(reset) => match reset.after_bytes {
            Some(bytes) => bytes.get(),
            None => 0,
        },
        Fault::Truncate(truncate) => truncate.after_bytes.get(),
        _ => u64::MAX,
    }
}

type Wait = Pin<Box<dyn Future<Output = ()>>>;

/// Something to wait for before bytes go out.
struct Pause {
    policy: Arc<CompiledPolicy>,
    deadline_ns: u64,
    /// What was sent before has to go out first, so that what follows goes out on its own.
    after: Option<(Link, u64)>,
}

impl Pause {
    /// Ends with its policy.
    fn begin(self, worker: &Rc<Worker>) -> Wait {
        let worker = Rc::clone(worker);
        Box::pin(async move {
            let pause = async {
                if let Some((link, since)) = self.after {
                    poll_fn(|cx| link.poll_flushed(since, cx)).await;
                }
                // Too many at once: then there is no pause.
                if let Some(sleep) = worker.timer.sleep_until(self.deadline_ns) {
                    sleep.await;
                }
            };
            tokio::select! {
                () = pause => {}
                () = self.policy.over() => {}
            }
        })
    }
}

/// A body that passes through faults.
pub struct Shaped {
    source: Source,
    shape: Shape,
    told: Told,
    link: Option<Link>,
    http2: bool,
    splitter: Option<Splitter>,
    /// What came and has not been sent, in the units that stalls lie between.
    units: VecDeque<Bytes>,
    /// The unit that is being sent.
    unit: Bytes,
    trailers: Option<Frame<Bytes>>,
    ended: bool,
    wait: Option<Wait>,
    /// For `unit` everything that has to be waited for before its first byte has been.
    begun: bool,
    /// Kinds that have been counted.
    counted: Vec<FaultKind>,
    since_ns: u64,
    /// Bytes sent, and units that were begun.
    sent: u64,
    units_begun: u64,
    /// How often the connection had sent everything when it was last given something.
    given_at: Option<u64>,
    /// The cut that comes now, once what stands before it has gone out.
    cutting: Option<FaultKind>,
}

impl Shaped {
    /// `events`: the body is an event stream.
    pub fn new(source: Source, shape: Shape, told: Told, link: Option<Link>, http2: bool, events: bool) -> Self {
        let tokens = shape.stall.as_ref().is_some_and(|planned| matches!(&planned.fault, Fault::Stall(stall) if stall.at == StallAt::Tokens));
        let splitter = (events && (tokens || shape.events.is_some())).then(Splitter::default);
        Self {
            source,
            shape,
            told,
            link,
            http2,
            splitter,
            units: VecDeque::new(),
            unit: Bytes::new(),
            trailers: None,
            ended: false,
            wait: None,
            begun: false,
            counted: Vec::new(),
            since_ns: 0,
            sent: 0,
            units_begun: 0,
            given_at: None,
            cutting: None,
        }
    }

    /// A fault took place: it is counted once for this answer.
    fn tell(&mut self, kind: FaultKind) {
        if self.counted.contains(&kind) {
            return;
        }
        self.counted.push(kind);
        let planned = match kind {
            FaultKind::Stall => &self.shape.stall,
            FaultKind::Slice => &self.shape.slice,
            FaultKind::Throttle => &self.shape.throttle,
            FaultKind::Reset => &self.shape.reset,
            FaultKind::Truncate => &self.shape.truncate,
            _ => &self.shape.events,
        };
        if let Some(planned) = planned {
            self.told.injected(planned);
        }
    }

    /// Lets go of what belongs to policies that are in force no more.
    fn forget_what_is_over(&mut self) {
        let shape = &mut self.shape;
        for planned in [&mut shape.stall, &mut shape.slice, &mut shape.throttle, &mut shape.reset, &mut shape.truncate, &mut shape.events] {
            if planned.as_ref().is_some_and(|planned| planned.policy.is_over()) {
                *planned = None;
            }
        }
    }

    /// Takes in what came.
    fn take_in(&mut self, bytes: Bytes) {
        let events = match &mut self.splitter {
            Some(splitter) => splitter.push(&bytes),
            None => vec![bytes],
        };
        self.change(events);
    }

    fn change(&mut self, events: Vec<Bytes>) {
        for event in events {
            let changed = match self.shape.events.as_ref().map(|planned| &planned.fault) {
                Some(Fault::Corrupt(corrupt)) => {
                    let worker = Rc::clone(&self.told.worker);
                    let mut rng = worker.rng.borrow_mut();
                    corrupt.events.and_then(|change| events::change(&event, change, corrupt.event_share, &mut *rng))
                }
                _ => None,
            };
            match changed {
                Some(changed) => {
                    self.tell(FaultKind::Corrupt);
                    self.units.extend(changed);
                }
                None => self.units.push_back(event),
            }
        }
    }

    /// What has to be waited for before the next byte of `unit`; `inside`: it is not its first.
    fn pause(&mut self, inside: bool) -> Option<Wait> {
        let now_ns = clock::now_ns();
        let mut pause: Option<Pause> = None;
        let mut want = |policy: &Arc<CompiledPolicy>, deadline_ns: u64, after: Option<(Link, u64)>| {
            if (deadline_ns > now_ns || after.is_some()) && pause.as_ref().is_none_or(|pause| deadline_ns > pause.deadline_ns) {
                pause = Some(Pause { policy: Arc::clone(policy), deadline_ns, after });
            }
        };
        let mut told = Vec::new();
        if let Some(planned) = &self.shape.stall
            && let Fault::Stall(stall) = &planned.fault
            && !inside
            && (self.units_begun == 0) == (stall.at == StallAt::FirstByte)
        {
            want(&planned.policy, now_ns + clock::ns(stall.duration.get()), None);
            told.push(FaultKind::Stall);
        }
        if let Some(planned) = &self.shape.slice
            && let Fault::Slice(slice) = &planned.fault
            && inside
        {
            want(&planned.policy, now_ns + clock::ns(slice.pause.get()), self.link.clone().zip(self.given_at));
            told.push(FaultKind::Slice);
        }
        if let Some(planned) = &self.shape.throttle
            && let Fault::Throttle(throttle) = &planned.fault
        {
            if self.since_ns == 0 {
                self.since_ns = now_ns;
            }
            let due = u128::from(self.sent) * 1_000_000_000 / u128::from(throttle.bytes_per_second.get());
            want(&planned.policy, self.since_ns.saturating_add(u64::try_from(due).unwrap_or(u64::MAX / 4)), None);
            told.push(FaultKind::Throttle);
        }
        for kind in told {
            self.tell(kind);
        }
        pause.map(|pause| pause.begin(&self.told.worker))
    }

    /// The most bytes that may be sent at once.
    fn piece(&self) -> u64 {
        let slice = match self.shape.slice.as_ref().map(|planned| &planned.fault) {
            Some(Fault::Slice(slice)) => slice.bytes.get(),
            _ => u64::MAX,
        };
        let throttle = match self.shape.throttle.as_ref().map(|planned| &planned.fault) {
            Some(Fault::Throttle(throttle)) => (throttle.bytes_per_second.get() / THROTTLE_PARTS).max(1),
            _ => u64::MAX,
        };
        slice.min(throttle)
    }

    /// Cuts the answer off, once what stands before has gone out.
    fn cut(&mut self, kind: FaultKind, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some((link, since)) = self.link.as_ref().zip(self.given_at) {
            ready!(link.poll_flushed(since, cx));
        }
        self.tell(kind);
        self.ended = true;
        (self.units, self.unit, self.trailers) = (VecDeque::new(), Bytes::new(), None);
        self.cutting = None;
        let code = match self.shape.take_cut(kind).map(|planned| planned.fault) {
            Some(Fault::Reset(reset)) => {
                if let Some(link) = self.link.as_ref().filter(|_| !self.http2) {
                    link.reset();
                }
                reset.http2_code
            }
            // HTTP/1 says the end of a body by closing, HTTP/2 by ending the stream.
            _ if self.http2 => return Poll::Ready(None),
            _ => Http2Code::default(),
        };
        Poll::Ready(Some(Err(Cut::new(code).into())))
    }

    /// The next bytes of `unit`.
    fn send(&mut self) -> Bytes {
        let room = self.shape.cut().map_or(u64::MAX, |(limit, _)| limit - self.sent);
        let length = (self.unit.len() as u64).min(self.piece()).min(room) as usize;
        let piece = self.unit.split_to(length);
        self.sent += length as u64;
        self.given_at = self.link.as_ref().map(Link::flushes);
        self.begun = !self.unit.is_empty();
        piece
    }
}

impl Body for Shaped {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        // The head was given just now.
        if this.given_at.is_none() {
            this.given_at = this.link.as_ref().map(Link::flushes);
        }
        loop {
            if let Some(kind) = this.cutting {
                return this.cut(kind, cx);
            }
            if let Some(wait) = &mut this.wait {
                ready!(wait.as_mut().poll(cx));
                this.wait = None;
                return Poll::Ready(Some(Ok(Frame::data(this.send()))));
            }
            this.forget_what_is_over();
            if this.unit.is_empty() {
                if let Some(unit) = this.units.pop_front() {
                    (this.unit, this.begun) = (unit, false);
                    continue;
                }
                if this.ended {
                    return Poll::Ready(this.trailers.take().map(Ok));
                }
                // Right after the head means before whatever comes, if anything ever does.
                if this.shape.cut().is_none_or(|(limit, _)| limit > 0 || this.sent > 0) {
                    match ready!(Pin::new(&mut this.source).poll_frame(cx)?) {
                        Some(frame) if frame.is_trailers() => {
                            this.ended = true;
                            this.trailers = Some(frame);
                        }
                        Some(frame) => this.take_in(frame.into_data().unwrap_or_default()),
                        None => this.ended = true,
                    }
                    if this.ended
                        && let Some(rest) = this.splitter.as_mut().and_then(Splitter::finish)
                    {
                        this.change(vec![rest]);
                    }
                    continue;
                }
            }
            if let Some((limit, planned)) = this.shape.cut()
                && this.sent >= limit
            {
                this.cutting = Some(planned.fault.kind());
                continue;
            }
            let inside = this.begun;
            this.wait = this.pause(inside);
            if !inside {
                this.units_begun += 1;
                this.begun = true;
            }
            if this.wait.is_none() {
                return Poll::Ready(Some(Ok(Frame::data(this.send()))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.unit.is_empty() && self.units.is_empty() && self.trailers.is_none() && self.cutting.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}
