//! The body itself.
//!
//! Invariants: without a cut or a corrupted stream the bytes are the model server's; a pause ends when its policy does, and what is left then passes as it comes;
//! bytes that stand before a cut have gone out to the kernel when it happens. Nothing is gathered but an event or a message whose end has not come.

use std::{
    collections::VecDeque,
    pin::Pin,
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
    Shape,
    pause::{Pause, Wait},
    units::{Corrupted, Cutter, Unit, Units},
};
use crate::{
    body::{BodyError, Source},
    clock,
    fault::{
        inject::Told,
        link::{Cut, Link},
        policy::CompiledPolicy,
    },
};

/// What comes at once of a slowed answer: so many parts of a second.
const THROTTLE_PARTS: u64 = 50;

/// A body that passes through faults.
#[expect(clippy::struct_excessive_bools, reason = "facts do not exclude each other")]
pub struct Shaped {
    source: Source,
    shape: Shape,
    told: Told,
    link: Option<Link>,
    http2: bool,
    cutter: Cutter,
    /// What came and has not been sent, in the units that stalls lie between; true: it goes on with the one before.
    units: VecDeque<(Bytes, bool)>,
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
    cut: bool,
}

impl Shaped {
    pub fn new(source: Source, shape: Shape, told: Told, link: Option<Link>, http2: bool) -> Self {
        let tokens = shape.stall.as_ref().is_some_and(|planned| matches!(&planned.fault, Fault::Stall(stall) if stall.at == StallAt::Tokens));
        let units = if tokens || shape.corrupt.is_some() { shape.units } else { Units::Pieces };
        let cutter = Cutter::new(units, told.worker.shared.config.corrupt_max_bytes);
        Self {
            source,
            shape,
            told,
            link,
            http2,
            cutter,
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
            cut: false,
        }
    }

    /// It ended before its time.
    pub const fn is_cut(&self) -> bool {
        self.cut
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
            _ => &self.shape.corrupt,
        };
        if let Some(planned) = planned {
            self.told.injected(planned);
        }
    }

    /// Lets go of what belongs to policies that are in force no more.
    fn forget_what_is_over(&mut self) {
        let shape = &mut self.shape;
        for planned in [&mut shape.stall, &mut shape.slice, &mut shape.throttle, &mut shape.reset, &mut shape.truncate, &mut shape.corrupt] {
            if planned.as_ref().is_some_and(|planned| planned.policy.is_over()) {
                *planned = None;
            }
        }
    }

    /// Takes in what came.
    fn take_in(&mut self, bytes: Bytes) {
        for unit in self.cutter.push(bytes) {
            self.change(unit);
        }
    }

    fn change(&mut self, unit: Unit) {
        let corrupted = match self.shape.corrupt.as_ref().map(|planned| &planned.fault) {
            Some(Fault::Corrupt(corrupt)) => self.cutter.corrupt(&unit, corrupt, &mut *self.told.worker.rng.borrow_mut()),
            _ => Corrupted::Same,
        };
        match corrupted {
            Corrupted::Changed(changed) => {
                self.tell(FaultKind::Corrupt);
                self.units.extend(changed.into_iter().map(|unit| (unit, false)));
                return;
            }
            Corrupted::Skipped(reason) => self.told.worker.meter.metrics.corrupt_skipped.with_label_values(&[reason]).inc(),
            Corrupted::Same => {}
        }
        self.units.push_back((unit.bytes, unit.goes_on));
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
        (self.ended, self.cut) = (true, true);
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
                if let Some((unit, goes_on)) = this.units.pop_front() {
                    (this.unit, this.begun) = (unit, goes_on);
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
                        && let Some(rest) = this.cutter.finish()
                    {
                        this.change(rest);
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
        // Whoever knows an answer's length does not ask for what comes behind it.
        let ended = self.ended || (self.source.is_end_stream() && self.cutter.is_empty());
        ended && self.unit.is_empty() && self.units.is_empty() && self.trailers.is_none() && self.cutting.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}
