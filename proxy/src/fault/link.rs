//! A client's connection, as far as faults reach it: it can be broken off, and tells when what was written has gone out.
//!
//! Breaking off goes the way that hyper knows: an answer or a body that fails. In HTTP/1 the connection then ends, by TCP RST where [`Link::reset`] asked for it; in
//! HTTP/2 its stream alone does, with the code that [`Cut`] carries, and its siblings go on.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use steadfast_api::fault::Http2Code;

use crate::half_close::ClientHalf;

/// An injected end of an answer. hyper takes the code of RST_STREAM from its source.
#[derive(Debug, thiserror::Error)]
#[error("broken off by an injected fault")]
pub struct Cut(#[source] h2::Error);

impl Cut {
    pub fn new(code: Http2Code) -> Self {
        Self(h2::Reason::from(u32::from(code.get())).into())
    }
}

/// What cannot fail is not cut off.
impl From<std::convert::Infallible> for Cut {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// On an answer's extensions: it is not to be given, the connection or stream ends instead.
#[derive(Clone, Copy, Debug)]
pub struct NoAnswer(pub Http2Code);

impl NoAnswer {
    /// What an answer becomes where the connection takes it over.
    pub fn heed<B>(response: http::Response<B>) -> Result<http::Response<B>, Cut> {
        match response.extensions().get::<Self>() {
            Some(Self(code)) => Err(Cut::new(*code)),
            None => Ok(response),
        }
    }
}

/// See the module. Clones are the same connection.
#[derive(Clone, Debug, Default)]
pub struct Link(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    reset: AtomicBool,
    half: ClientHalf,
    /// Nothing of an earlier answer is left to be written.
    clear: AtomicBool,
    /// Interim answers, to be written before the answer; whether there are any.
    interim: Mutex<Vec<u8>>,
    informs: AtomicBool,
    /// How often everything that had been written went out.
    flushes: AtomicU64,
    /// Somebody waits for the next time; a look at this is all that a flush costs otherwise.
    awaited: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Link {
    /// The connection ends by RST when it ends.
    pub fn reset(&self) {
        self.0.reset.store(true, Ordering::Release);
    }

    pub fn is_reset(&self) -> bool {
        self.0.reset.load(Ordering::Acquire)
    }

    /// The client's half of it, in HTTP/1.
    pub fn half(&self) -> &ClientHalf {
        &self.0.half
    }

    /// Writes the head of an interim answer before the answer. It is left out where an earlier answer is still on its way, since nobody could say where that ends.
    pub fn inform(&self, head: &[u8]) {
        if self.0.clear.load(Ordering::Acquire) {
            self.0.interim.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(head);
            self.0.informs.store(true, Ordering::Release);
        }
    }

    /// What is to be written before anything else.
    pub fn take_interim(&self) -> Vec<u8> {
        if self.0.informs.load(Ordering::Acquire) && self.0.informs.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut *self.0.interim.lock().unwrap_or_else(PoisonError::into_inner))
        } else {
            Vec::new()
        }
    }

    /// Something is being written.
    pub fn writes(&self) {
        self.0.clear.store(false, Ordering::Release);
    }

    /// Everything that was written has gone out to the kernel.
    pub fn flushed(&self) {
        self.0.clear.store(true, Ordering::Release);
        self.0.flushes.fetch_add(1, Ordering::AcqRel);
        if self.0.awaited.swap(false, Ordering::AcqRel) {
            let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    pub fn flushes(&self) -> u64 {
        self.0.flushes.load(Ordering::Acquire)
    }

    /// Ready once there was a flush after the first `since`.
    pub fn poll_flushed(&self, since: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.flushes() > since {
            return Poll::Ready(());
        }
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(cx.waker().clone());
        self.0.awaited.store(true, Ordering::Release);
        if self.flushes() > since { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_code_is_where_hyper_looks_for_it() {
        let cut = Cut::new(Http2Code::CANCEL);
        let reason = cut.source().and_then(|source| source.downcast_ref::<h2::Error>()).and_then(h2::Error::reason);
        assert_eq!(reason, Some(h2::Reason::CANCEL));
    }

    #[test]
    fn who_waits_for_a_flush_is_woken_by_the_next_one_alone() {
        let link = Link::default();
        let mut cx = Context::from_waker(Waker::noop());
        link.flushed();
        let since = link.flushes();
        assert!(link.poll_flushed(since, &mut cx).is_pending());
        link.flushed();
        assert!(link.poll_flushed(since, &mut cx).is_ready());
    }
}
