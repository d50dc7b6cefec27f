//! Client connections on the stack: hyper serves them, request by request, until they end or can go (back) to the relay.
//!
//! HTTP/1 goes back between two messages: when the last request was read to its end and its answer was written to its end, and neither side has said that the connection
//! ends, hyper is asked to stop, does so without a word to the client, and gives its buffer back: whatever stands in it is the beginning of a request that nobody has seen.
//!
//! Limits: no head is larger than [`HEAD_MAX`] or has more than [`FIELDS_MAX`] fields (431); a client that does not send a whole one within `header_timeout` is disconnected
//! (408, if it has begun).

mod given;

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use steadfast_api::policy::INJECTED_HEADER;
use tokio::sync::Notify;
use tower::ServiceExt;

use given::Given;

use crate::{
    body::{BodyError, RequestBody, ResponseBody, Whole},
    drain::{Phase, reached},
    fault::link::{Link, NoAnswer},
    half_close::ClientHalf,
    hold::held_down,
    relay::{
        Client,
        http1::{
            Guarded,
            head::{FIELDS_MAX, HEAD_MAX},
            too_slow,
        },
        http2::{self, Standing},
        is_armed, must_stack,
    },
    stack,
    worker::{LocalExec, Worker},
};

/// Streams of one HTTP/2 connection at one moment.
const STREAMS_MAX: u32 = 256;

/// Serves `client`'s HTTP/1 messages. The connection comes back if it is as good as before and nothing keeps it here.
pub async fn http1(worker: &Rc<Worker>, client: Client) -> Option<Client> {
    let Client { stream, ahead, peer, route } = client;
    let at = Rc::<Place>::default();
    let link = Link::default();
    let (stack, seen, half) = (stack::stack(Rc::clone(worker), peer, route, link.clone()), Rc::clone(&at), link.half().clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (request, answering) = Answering::begin(&seen, &half, request);
        let answer = stack.clone().oneshot(request);
        // On the heap while there is a request, and not for as long as the connection lasts.
        Box::pin(async move {
            let Ok(response) = answer.await;
            // An answer that a fault keeps back ends its connection here.
            NoAnswer::heed(response).map(|response| answering.with(response))
        })
    });
    let given = Given::new(stream, ahead, link).ends_in_halves();
    let keep_open = Arc::clone(&given.keep_open);
    let connection = conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(worker.shared.config.header_timeout)
        // A client that has ended its half may wait for its answer; one that is gone is found out by `half_close`.
        .half_close(true)
        .max_buf_size(HEAD_MAX)
        .max_headers(FIELDS_MAX)
        // Answers pass as they are.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(Guarded::new(given, Arc::clone(&at.switched))), service)
        .with_upgrades();
    let mut connection = Box::pin(connection);
    let (mut leaving, mut gone) = (worker.drain.subscribe(), worker.drain.subscribe());
    let mut held = worker.held.subscribe();
    let (mut left, mut taken) = (false, false);
    loop {
        // Looks again whenever the connection has moved.
        let moved = std::future::poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if !taken && at.is_between_messages() && !must_stack(worker) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            biased;
            moved = moved => match moved {
                Some(Ok(())) => break,
                Some(Err(error)) => {
                    tracing::debug!(%peer, %error, "client connection ended");
                    if error.is_timeout() {
                        let half = Pin::into_inner(connection).into_parts().filter(|parts| !parts.read_buf.is_empty());
                        worker.meter.exceeded(if half.is_some() { "head-time" } else { "idle-time" });
                        if let Some(stream) = half.and_then(|parts| parts.io.into_inner().into_parts().0.socket.stream.take()) {
                            // One that does not take it at once is too slow for that, too.
                            let _ = stream.try_write(&too_slow(worker.shared.config.header_timeout));
                        }
                    } else if error.is_parse_too_large() {
                        worker.meter.exceeded("head-size");
                    } else if error.is_parse() {
                        worker.meter.metrics.malformed.inc();
                    }
                    return None;
                }
                None => {
                    taken = true;
                    keep_open.store(true, Ordering::Release);
                    connection.as_mut().graceful_shutdown();
                }
            },
            // Until then each answer's head tells the client to leave.
            () = reached(&mut leaving, Phase::Leaving), if !left => {
                left = true;
                connection.as_mut().graceful_shutdown();
            }
            () = reached(&mut gone, Phase::Gone) => return None,
            () = held_down(&mut held) => return None,
        }
    }
    if !taken || left || !at.is_between_messages() {
        return None;
    }
    let parts = Pin::into_inner(connection).into_parts()?;
    let (mut given, kept) = parts.io.into_inner().into_parts();
    let stream = given.socket.stream.take()?;
    let ahead = [&parts.read_buf[..], &kept[..], &given.ahead[..]].concat();
    worker.meter.metrics.moved.with_label_values(&["relay"]).inc();
    Some(Client { stream, ahead, peer, route })
}

/// Serves `client`'s HTTP/2 connection until it ends; with `go_when_disarmed` its client is asked to come by another one when nothing is armed any more.
pub async fn http2(worker: &Rc<Worker>, client: Client, go_when_disarmed: bool) {
    let Client { stream, ahead, peer, route } = client;
    let standing = Arc::<Standing>::default();
    // Told when a request has come.
    let streams = Rc::new(Notify::new());
    let link = Link::default();
    let (stack, told, answering) = (stack::stack(Rc::clone(worker), peer, route, link.clone()), Rc::clone(&streams), Arc::clone(&standing));
    let service = service_fn(move |request: Request<Incoming>| {
        told.notify_one();
        let (answer, answering) = (stack.clone().oneshot(request.map(|incoming| RequestBody::client(incoming).0)), Arc::clone(&answering));
        async move {
            let Ok(response) = answer.await;
            answering.answered.fetch_add(1, Ordering::AcqRel);
            // An answer that a fault keeps back ends its stream here.
            NoAnswer::heed(response)
        }
    });
    let connection = conn::http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .keep_alive_interval(std::time::Duration::from_secs(30))
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX as u32)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .auto_date_header(false)
        .serve_connection(
            TokioIo::new(http2::Guarded::new(Given::new(stream, ahead, link), Arc::clone(&standing), worker.shared.config.header_timeout)),
            service,
        );
    let mut connection = Box::pin(connection);
    let (mut parting, mut leaving, mut gone) = (worker.drain.subscribe(), worker.drain.subscribe(), worker.drain.subscribe());
    let mut held = worker.held.subscribe();
    let part = async {
        reached(&mut parting, Phase::Parting).await;
        // Nothing is lost with a connection that nobody asks by, and one that was told to go before it asked would come back to where it was told.
        streams.notified().await;
    };
    tokio::pin!(part);
    let disarmed = async {
        let mut changes = worker.shared.store.changes.subscribe();
        while !go_when_disarmed || is_armed(worker) {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::pin!(disarmed);
    let (mut parted, mut left) = (false, false);
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "client connection ended");
                }
                if let Some(flood) = standing.flood() {
                    worker.meter.exceeded(flood.name());
                }
                return;
            }
            () = &mut part, if !parted => {
                parted = true;
                standing.going.store(true, Ordering::Release);
                connection.as_mut().graceful_shutdown();
            }
            () = &mut disarmed, if !parted => {
                parted = true;
                standing.going.store(true, Ordering::Release);
                worker.meter.metrics.moved.with_label_values(&["relay"]).inc();
                connection.as_mut().graceful_shutdown();
            }
            () = reached(&mut leaving, Phase::Leaving), if !left => {
                (parted, left) = (true, true);
                standing.going.store(true, Ordering::Release);
                connection.as_mut().graceful_shutdown();
            }
            () = reached(&mut gone, Phase::Gone) => return,
            () = held_down(&mut held) => return,
        }
    }
}

/// Where an HTTP/1 connection has got to.
#[derive(Default)]
struct Place {
    answering: Cell<bool>,
    /// The last request's.
    whole: std::cell::RefCell<Option<Whole>>,
    /// Another protocol was agreed on.
    switched: Arc<AtomicBool>,
    /// Client or model server have said that the connection ends, or the client asks the sidecar itself and may do so again.
    stays: Cell<bool>,
}

impl Place {
    /// Behind the end of a message, before the beginning of one that anybody has seen.
    fn is_between_messages(&self) -> bool {
        !self.answering.get() && !self.stays.get() && self.whole.borrow().as_ref().is_some_and(Whole::get)
    }
}

/// A request on its way, until its answer has been written or given up.
struct Answering(Rc<Place>, ClientHalf);

impl Answering {
    fn begin(at: &Rc<Place>, half: &ClientHalf, request: Request<Incoming>) -> (Request<RequestBody>, Self) {
        let asks_us = request.headers().keys().any(|name| name.as_str().starts_with("steadfast-"));
        at.answering.set(true);
        // Of a connection that was asked to become another hyper gives nothing back.
        let switches = request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
        at.stays.set(asks_us || switches || request.version() != Version::HTTP_11 || says_close(request.headers()));
        let (parts, incoming) = request.into_parts();
        let (body, whole) = RequestBody::client(incoming);
        at.whole.replace(Some(whole));
        (Request::from_parts(parts, body), Self(Rc::clone(at), half.clone()))
    }

    fn with(self, response: Response<ResponseBody>) -> Response<AnswerBody> {
        let switched = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
        if switched {
            self.0.switched.store(true, Ordering::Release);
        }
        if says_close(response.headers()) || switched {
            self.0.stays.set(true);
        }
        if response.headers().contains_key(INJECTED_HEADER) {
            self.1.held();
        }
        response.map(|body| AnswerBody { body, _answering: self })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.set(false);
        self.1.over();
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// hyper drops it when its last byte is in hyper's hands.
struct AnswerBody {
    body: ResponseBody,
    _answering: Answering,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
