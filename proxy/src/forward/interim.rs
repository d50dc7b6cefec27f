//! What a model server says before its answer, in HTTP/1.1 (RFC 9110 §15.2). 100 asks for the body of a request that waits to be asked, which is not read before; whatever
//! else is passed on as it is, for a proxy must.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, StatusCode};
use tokio::{sync::mpsc, time::sleep};

use super::hop_by_hop;
use crate::{body::RequestBody, fault::link::Link};

/// A server that does not know of `Expect` says nothing: after so long the body is sent unasked, as clients do (RFC 9110 §10.1.1).
const ASKED_WITHIN: Duration = Duration::from_secs(1);
/// Interim answers of one request that may wait to be passed on; more are left out.
const WAITING_MAX: usize = 16;

/// Whether a body has been asked for. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    asked: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Asked {
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::Release);
        if let Some(waiting) = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waiting.wake();
        }
    }

    pub fn get(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.get() {
            *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        }
        if self.get() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The interim answers to one request.
pub struct Interim {
    heads: mpsc::Receiver<Vec<u8>>,
    asked: Option<Asked>,
}

impl Interim {
    /// Listens for what is said before the answer to `request`. `expects`: its body waits to be asked for.
    pub fn of(request: &mut Request<RequestBody>, expects: bool) -> Self {
        let (heard, heads) = mpsc::channel(WAITING_MAX);
        let asked = expects.then(Asked::default);
        if let Some(asked) = &asked {
            let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
            *request.body_mut() = body.when(asked.clone());
        }
        let asks = asked.clone();
        hyper::ext::on_informational(request, move |interim| match interim.status() {
            // Asked for what is sent anyway: hyper has said so to the client, or the client did not want to know.
            StatusCode::CONTINUE => asks.iter().for_each(Asked::ask),
            status => {
                let mut fields = interim.headers().clone();
                hop_by_hop::strip(&mut fields);
                let mut head = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default()).into_bytes();
                for (name, value) in &fields {
                    head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
                }
                head.extend_from_slice(b"\r\n");
                if heard.try_send(head).is_err() {
                    tracing::debug!("an interim answer of very many is left out");
                }
            }
        });
        Self { heads, asked }
    }

    fn pass_on(&mut self, cx: &mut Context<'_>, link: Option<&Link>) {
        while let Poll::Ready(Some(head)) = self.heads.poll_recv(cx) {
            link.inspect(|link| link.inform(&head));
        }
    }
}

/// Waits for `answer`, and passes on by `link` what is said before it.
pub async fn until<T>(answer: impl Future<Output = T>, mut interim: Option<Interim>, link: Option<&Link>) -> T {
    let mut answer = std::pin::pin!(answer);
    let asked = interim.as_ref().and_then(|interim| interim.asked.clone());
    let mut unasked = asked.is_some().then(|| Box::pin(sleep(ASKED_WITHIN)));
    std::future::poll_fn(|cx| {
        if let Some(interim) = &mut interim {
            interim.pass_on(cx, link);
        }
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            // It may have come in the same moment as what was said before it.
            if let Some(interim) = &mut interim {
                interim.pass_on(cx, link);
            }
            return Poll::Ready(answer);
        }
        if unasked.as_mut().is_some_and(|unasked| unasked.as_mut().poll(cx).is_ready()) {
            unasked = None;
            asked.iter().for_each(Asked::ask);
        }
        Poll::Pending
    })
    .await
}
