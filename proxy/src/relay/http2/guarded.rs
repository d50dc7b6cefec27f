//! A client's HTTP/2 connection as hyper reads it.
//!
//! **Late answers to PINGs.** hyper takes a client's answer to its last PING as a promise that nothing is on its way any more, and refuses what comes behind it. But
//! libraries answer a PING before they send what stands in their queue. So once the client has been told to go, its answers to PINGs reach hyper a moment later than what
//! it has sent behind them.
//!
//! **Floods.** The client has as much [`Patience`] as on the relay. When it is used up hyper is given a frame that cannot be, to which it says GOAWAY and ends.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Sleep,
};

use super::{
    frame::{Event, Frame, Reader, flag, kind},
    patience::{Flood, Patience},
};
use crate::{
    clock,
    relay::{PREFACE, deadline::Deadline},
};

const LATER: Duration = Duration::from_millis(100);
/// More streams than hyper has open at once.
const BEGUN_MAX: usize = 512;
/// A PING of a stream.
const IMPOSSIBLE: Frame = Frame { size: 8, kind: kind::PING, flags: 0, stream: 1 };

/// What the two ends of a connection's way through hyper tell each other.
#[derive(Debug, Default)]
pub struct Standing {
    /// The client has been told to go.
    pub going: AtomicBool,
    /// Answers that have begun, and that its patience has not heard of.
    pub answered: AtomicU32,
    flood: OnceLock<Flood>,
}

impl Standing {
    /// For what the client was ended.
    pub fn flood(&self) -> Option<Flood> {
        self.flood.get().copied()
    }
}

/// A client's HTTP/2 connection, from its first byte on.
pub struct Guarded<S> {
    stream: S,
    standing: Arc<Standing>,
    patience: Patience,
    /// The streams that it began last, and when.
    begun: VecDeque<(u32, u64)>,
    preface: usize,
    reader: Reader,
    /// The frame that is being read waits.
    waits: bool,
    /// What hyper may have, and how much of it it has.
    out: Vec<u8>,
    given: usize,
    late: Option<(Vec<u8>, Pin<Box<Sleep>>)>,
    /// It is no HTTP/2: hyper says so.
    odd: bool,
    /// By then a header block that has begun must be whole.
    head: Deadline,
    head_within: Duration,
}

impl<S> Guarded<S> {
    /// `head_within`: time that a header block may take from its first byte to its last.
    pub fn new(stream: S, standing: Arc<Standing>, head_within: Duration) -> Self {
        Self {
            stream,
            standing,
            patience: Patience::default(),
            begun: VecDeque::new(),
            preface: 0,
            reader: Reader::default(),
            waits: false,
            out: Vec::new(),
            given: 0,
            late: None,
            odd: false,
            head: Deadline::default(),
            head_within,
        }
    }

    /// Whether the client's frame is borne.
    fn bears(&mut self, frame: &Frame) -> Result<(), Flood> {
        if frame.kind == kind::HEADERS {
            if self.begun.len() >= BEGUN_MAX {
                self.begun.pop_front();
            }
            self.begun.push_back((frame.stream, clock::now_ns()));
        }
        let begun = &self.begun;
        let waited = || begun.iter().rev().find(|(stream, _)| *stream == frame.stream).map(|(_, since_ns)| clock::now_ns() - since_ns);
        self.patience.client(frame, waited)
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.standing.flood().is_some() {
            return;
        }
        let preface = bytes.len().min(PREFACE.len() - self.preface);
        self.preface += preface;
        self.out.extend_from_slice(&bytes[..preface]);
        let mut at = preface;
        while !self.odd {
            let before = self.reader.held();
            let Ok((size, event)) = self.reader.next(&bytes[at..]) else {
                self.out.extend_from_slice(&before);
                self.odd = true;
                break;
            };
            let piece = &bytes[at..at + size];
            match event {
                Event::Begins => {
                    self.patience.answered(self.standing.answered.swap(0, Ordering::AcqRel));
                    if let Some(Err(flood)) = self.reader.frame.map(|frame| self.bears(&frame)) {
                        let _ = self.standing.flood.set(flood);
                        self.out.extend_from_slice(&IMPOSSIBLE.write());
                        self.out.extend_from_slice(&[0; 8]);
                        return;
                    }
                    let pong = self.reader.frame.is_some_and(|frame| frame.kind == kind::PING && frame.has(flag::ACK) && frame.size == 8);
                    self.waits = pong && self.late.is_none() && self.standing.going.load(Ordering::Acquire);
                    if !self.waits {
                        self.out.extend_from_slice(&self.reader.head());
                    }
                }
                Event::Payload(_) if self.waits => {}
                Event::Payload(_) => self.out.extend_from_slice(piece),
                Event::Ends => {
                    if self.waits {
                        let pong = [&self.reader.head()[..], &self.reader.payload].concat();
                        self.late = Some((pong, Box::pin(tokio::time::sleep(LATER))));
                    }
                    self.reader.done();
                }
                Event::Dry { .. } => {
                    self.head.bound(self.reader.is_in_head(), self.head_within);
                    return;
                }
            }
            at += size;
        }
        self.out.extend_from_slice(&bytes[at..]);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let this = &mut *self;
            if this.given < this.out.len() {
                let size = (this.out.len() - this.given).min(buffer.remaining());
                buffer.put_slice(&this.out[this.given..this.given + size]);
                this.given += size;
                return Poll::Ready(Ok(()));
            }
            this.out.clear();
            this.given = 0;
            if this.reader.is_between_frames()
                && let Some((pong, sleep)) = &mut this.late
                && sleep.as_mut().poll(cx).is_ready()
            {
                this.out.append(pong);
                this.late = None;
                continue;
            }
            if this.head.is_over(cx) {
                let _ = this.standing.flood.set(Flood::HeadTime);
            }
            if this.standing.flood() == Some(Flood::HeadTime) {
                // In the middle of a frame there is nothing to say but that it ends here.
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 8192];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.take(read.filled());
        }
    }
}

writes_through!(Guarded);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HEAD_WITHIN: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn an_answer_to_a_ping_comes_behind_what_follows_it_and_only_when_the_client_is_to_go() {
        let frame = |kind, flags, payload: &[u8]| [&Frame { size: payload.len(), kind, flags, stream: 0 }.write()[..], payload].concat();
        let (pong, other) = (frame(kind::PING, flag::ACK, b"12345678"), frame(kind::SETTINGS, 0, &[0; 6]));
        let sent = [&PREFACE[..], &other, &pong, &other].concat();
        for (going, expected) in [(false, sent.clone()), (true, [&PREFACE[..], &other, &other, &pong].concat())] {
            for piece in [1, 5, 100] {
                let (mut client, ours) = tokio::io::duplex(1000);
                let mut guarded = Guarded::new(ours, Arc::new(Standing { going: AtomicBool::new(going), ..Standing::default() }), HEAD_WITHIN);
                let mut got = vec![0; sent.len()];
                let sending = async {
                    for piece in sent.chunks(piece) {
                        client.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };
                let (read, ()) = tokio::join!(guarded.read_exact(&mut got), sending);
                read.unwrap();
                assert_eq!(got, expected, "going: {going}, in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_http2_passes_as_it_is() {
        let (mut client, ours) = tokio::io::duplex(1000);
        let mut guarded = Guarded::new(ours, Arc::default(), HEAD_WITHIN);
        let sent = [&PREFACE[..], &Frame { size: 0, kind: kind::CONTINUATION, flags: 0, stream: 1 }.write(), b"and more"].concat();
        client.write_all(&sent).await.unwrap();
        drop(client);
        let mut got = Vec::new();
        guarded.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn a_flood_ends_in_a_frame_that_cannot_be_and_nothing_behind_it() {
        let (mut client, ours) = tokio::io::duplex(1 << 20);
        let standing = Arc::<Standing>::default();
        let mut guarded = Guarded::new(ours, Arc::clone(&standing), HEAD_WITHIN);
        let ping = [&Frame { size: 8, kind: kind::PING, flags: 0, stream: 0 }.write()[..], &[7; 8]].concat();
        client.write_all(&[&PREFACE[..], &ping.repeat(15_000)].concat()).await.unwrap();
        drop(client);
        let mut got = Vec::new();
        guarded.read_to_end(&mut got).await.unwrap();
        assert!(standing.flood() == Some(Flood::Frames) && got.ends_with(&[&IMPOSSIBLE.write()[..], &[0; 8]].concat()));
        assert!((10_000..12_000).contains(&(got.len() / ping.len())), "{}", got.len());
    }
}
