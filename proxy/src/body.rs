//! Bodies on their way through. Nothing is gathered here: what arrives is passed on, and the receiver's pace is the sender's.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    fault::{budget::ActiveFault, link::Cut, shape::Shaped},
    forward::{interim::Asked, pool::Lease},
    measure::request::{Record, grpc_status},
};

/// Bytes of a body that nobody wants.
const DISCARD_MAX: usize = 16 << 20;
const DISCARD_WITHIN: Duration = Duration::from_secs(5);

/// Whether a client's request has been read to its end: only then does what follows on the connection begin a message.
#[derive(Clone, Debug, Default)]
pub struct Whole(Arc<AtomicBool>);

impl Whole {
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a client sends, or the sidecar itself.
pub enum RequestBody {
    Client(Incoming, Whole),
    /// The same, not read before it is asked for.
    WhenAsked(Asked, Incoming, Whole),
    /// Read ahead: what was read, then the rest.
    Resumed(VecDeque<Result<Frame<Bytes>, hyper::Error>>, Box<Self>),
    /// The same, and says when it has been given on to its end.
    Told(Box<Self>, Whole),
    Own(Bytes),
    Empty,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Client(incoming, whole) => {
                let polled = poll_filled(incoming, cx);
                if matches!(polled, Poll::Ready(None)) || incoming.is_end_stream() {
                    whole.set();
                }
                polled
            }
            Self::WhenAsked(asked, ..) => {
                std::task::ready!(asked.poll(cx));
                if let Self::WhenAsked(_, incoming, whole) = std::mem::replace(&mut *self, Self::Empty) {
                    *self = Self::Client(incoming, whole);
                }
                self.poll_frame(cx)
            }
            Self::Resumed(read, rest) => match read.pop_front() {
                Some(frame) => Poll::Ready(Some(frame)),
                None => Pin::new(&mut **rest).poll_frame(cx),
            },
            Self::Told(body, whole) => {
                let polled = Pin::new(&mut **body).poll_frame(cx);
                if matches!(polled, Poll::Ready(None)) || body.is_end_stream() {
                    whole.set();
                }
                polled
            }
            Self::Own(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(incoming, _) | Self::WhenAsked(_, incoming, _) => incoming.is_end_stream(),
            Self::Resumed(read, rest) => read.is_empty() && rest.is_end_stream(),
            Self::Told(body, _) => body.is_end_stream(),
            Self::Own(bytes) => bytes.is_empty(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(incoming, _) | Self::WhenAsked(_, incoming, _) => incoming.size_hint(),
            Self::Resumed(read, rest) => resumed_size(read.iter().filter_map(|frame| frame.as_ref().ok()), &rest.size_hint()),
            Self::Told(body, _) => body.size_hint(),
            Self::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

impl RequestBody {
    /// A client's body, and where to see that it was read.
    pub fn client(incoming: Incoming) -> (Self, Whole) {
        let whole = Whole::default();
        if incoming.is_end_stream() {
            whole.set();
        }
        (Self::Client(incoming, whole.clone()), whole)
    }

    /// The same, not read before it is asked for.
    #[must_use]
    pub fn when(self, asked: Asked) -> Self {
        match self {
            Self::Client(incoming, whole) => Self::WhenAsked(asked, incoming, whole),
            other => other,
        }
    }

    /// What it waits for.
    pub fn asked(&self) -> Option<Asked> {
        if let Self::WhenAsked(asked, ..) = self { Some(asked.clone()) } else { None }
    }

    /// Where to see that it was given on to its end.
    pub fn tell_end(&mut self) -> Whole {
        match self {
            Self::Client(_, whole) | Self::WhenAsked(_, _, whole) | Self::Told(_, whole) => whole.clone(),
            Self::Resumed(..) => {
                // What was read ahead is still to be given on.
                let whole = Whole::default();
                *self = Self::Told(Box::new(std::mem::replace(self, Self::Empty)), whole.clone());
                whole
            }
            Self::Own(_) | Self::Empty => {
                let whole = Whole::default();
                whole.set();
                whole
            }
        }
    }

    /// Reads what is left and throws it away, so that whoever is answered without being heard can be heard again on the same connection. Whether it came to its
    /// end within [`DISCARD_MAX`] bytes and [`DISCARD_WITHIN`].
    pub async fn discard(mut self) -> bool {
        let read = async {
            let mut size = 0;
            while let Some(frame) = self.frame().await {
                let Ok(frame) = frame else { return false };
                size += frame.data_ref().map_or(0, Bytes::len);
                if size > DISCARD_MAX {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(DISCARD_WITHIN, read).await.unwrap_or(false)
    }
}

/// The size of what was `read` ahead and of the `rest`.
fn resumed_size<'a>(read: impl Iterator<Item = &'a Frame<Bytes>>, rest: &SizeHint) -> SizeHint {
    let read: u64 = read.filter_map(Frame::data_ref).map(|bytes| bytes.len() as u64).sum();
    let mut hint = SizeHint::new();
    hint.set_lower(read + rest.lower());
    if let Some(upper) = rest.upper() {
        hint.set_upper(read + upper);
    }
    hint
}

/// The next frame that says something: HTTP/2 peers may count empty DATA frames as an attack, so none is passed on.
fn poll_filled(incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    loop {
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            other => return other,
        }
    }
}

/// What the model server sends. Its connection goes back to the pool at the end.
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
}

impl UpstreamBody {
    pub fn new(incoming: Incoming, lease: Option<Lease>) -> Self {
        let mut body = Self { incoming, lease };
        body.end_if_ended();
        body
    }

    fn end_if_ended(&mut self) {
        if self.incoming.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = poll_filled(&mut self.incoming, cx);
        match &polled {
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Ok(_))) => self.end_if_ended(),
            // The client has ended its half, and the model server takes it for gone: so do we, and its connection drops this.
            Poll::Ready(Some(Err(_))) if self.lease.as_ref().is_some_and(Lease::client_has_left) => return Poll::Pending,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Upstream(#[from] hyper::Error),
    #[error(transparent)]
    Cut(#[from] Cut),
}

/// Where a response's bytes come from.
pub enum Source {
    Upstream(UpstreamBody),
    /// On its way through faults.
    Shaped(Box<Shaped>),
    /// Made here, or changed here.
    Own(Bytes),
    /// Read ahead and found too large to change: what was read, then the rest.
    Resumed(VecDeque<Frame<Bytes>>, UpstreamBody),
    /// Changed here; the model server's trailers follow.
    WithTrailers(Bytes, Option<http::HeaderMap>),
}

impl Body for Source {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Upstream(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Shaped(body) => Pin::new(body).poll_frame(cx),
            Self::Own(bytes) => Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(std::mem::take(bytes))))),
            Self::Resumed(read, rest) => match read.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(rest).poll_frame(cx).map_err(BodyError::from),
            },
            Self::WithTrailers(bytes, _) if bytes.has_remaining() => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::WithTrailers(_, trailers) => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Shaped(body) => body.is_end_stream(),
            Self::Own(bytes) => bytes.is_empty(),
            Self::Resumed(read, rest) => read.is_empty() && rest.is_end_stream(),
            Self::WithTrailers(bytes, trailers) => bytes.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream(body) => body.size_hint(),
            Self::Shaped(body) => body.size_hint(),
            Self::Own(bytes) | Self::WithTrailers(bytes, None) => SizeHint::with_exact(bytes.len() as u64),
            Self::Resumed(read, rest) => resumed_size(read.iter(), &rest.size_hint()),
            Self::WithTrailers(bytes, Some(_)) => {
                let mut hint = SizeHint::new();
                hint.set_lower(bytes.len() as u64);
                hint
            }
        }
    }
}

/// What the client gets: wrapped once, so that the fault stays active and the clock runs until the last byte is out.
pub struct ResponseBody {
    source: Source,
    /// A fault that lasts as long as the answer.
    _active: Option<ActiveFault>,
    record: Record,
}

impl ResponseBody {
    pub fn new(source: Source, active: Option<ActiveFault>, mut record: Record) -> Self {
        if source.is_end_stream() {
            record.finish();
        }
        Self { source, _active: active, record }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.source).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(code) = frame.trailers_ref().and_then(grpc_status)
        {
            self.record.grpc(code);
        }
        match &polled {
            // In HTTP/2 the stream ends as if that were all.
            Poll::Ready(None) if matches!(&self.source, Source::Shaped(body) if body.is_cut()) => self.record.cut_by("fault"),
            Poll::Ready(None) => self.record.finish(),
            Poll::Ready(Some(Ok(_))) if self.source.is_end_stream() => self.record.finish(),
            Poll::Ready(Some(Err(BodyError::Upstream(_)))) => self.record.cut_by("upstream"),
            Poll::Ready(Some(Err(BodyError::Cut(_)))) => self.record.cut_by("fault"),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}
