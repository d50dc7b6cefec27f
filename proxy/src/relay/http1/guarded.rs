//! A client's HTTP/1 connection as hyper reads it: with the relay's eyes.
//!
//! hyper gives some messages a meaning that others would not (a coding beside a length, codings that it does not know before `chunked`, lines that end with a lone LF), and by
//! the time a request is here it no longer shows. So whatever the relay would not take for one message is not one in the stack either: hyper is given something that cannot be,
//! says 400, and ends the connection. Only whole reads are looked at and nothing is kept back, so what hyper gives back when a connection leaves it is all there is.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::head::{self, Framing, HEAD_MAX, Read};

/// Stands in no head, no chunk and no trailer, and ends each.
const IMPOSSIBLE: &[u8] = b"\0\n\r\n\r\n";

enum Place {
    /// In a head, of which so much has come.
    Head(Vec<u8>),
    Body(Framing),
    /// Behind a request for another protocol, where nobody knows yet what begins.
    Asked,
    /// What comes now hyper need not see, but for so much of what cannot be.
    Over(&'static [u8]),
}

/// See the module.
pub struct Guarded<S> {
    stream: S,
    place: Place,
    /// The request asks for another protocol.
    asks: bool,
    /// What came behind such a request. hyper reads on when it has been answered, and not before.
    kept: Vec<u8>,
    /// Another protocol was agreed on.
    switched: Arc<AtomicBool>,
}

impl<S> Guarded<S> {
    /// `switched`: true from when another protocol is agreed on.
    pub fn new(stream: S, switched: Arc<AtomicBool>) -> Self {
        Self { stream, place: Place::Head(Vec::new()), asks: false, kept: Vec::new(), switched }
    }

    /// The stream, and what was read of it and not given on.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.kept)
    }

    /// Looks at what has come. How much of it hyper may have.
    fn look(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.place {
                Place::Head(earlier) => {
                    let before = earlier.len();
                    // Nearly always it comes whole, and nothing is copied.
                    let read = if before == 0 {
                        head::request(&bytes[at..])
                    } else {
                        earlier.extend_from_slice(&bytes[at..]);
                        head::request(earlier)
                    };
                    match read {
                        Read::Whole(found) => {
                            at += found.size - before;
                            self.asks = found.upgrade;
                            self.place = Place::Body(found.framing);
                        }
                        Read::Partial => {
                            if before == 0 {
                                earlier.extend_from_slice(&bytes[at..]);
                            }
                            return bytes.len();
                        }
                        // hyper says so itself when it has as much as it takes, and must not see an end.
                        Read::Long => {
                            self.place = Place::Over(b"");
                            return bytes.len().min(at + HEAD_MAX.saturating_sub(before));
                        }
                        Read::Odd => {
                            self.place = Place::Over(IMPOSSIBLE);
                            return at;
                        }
                    }
                }
                Place::Body(framing) => {
                    let Ok(size) = framing.take(&bytes[at..]) else {
                        self.place = Place::Over(IMPOSSIBLE);
                        return at;
                    };
                    at += size;
                }
                Place::Asked | Place::Over(_) => return at,
            }
            if matches!(&self.place, Place::Body(framing) if framing.is_done()) {
                self.place = if self.asks { Place::Asked } else { Place::Head(Vec::new()) };
            }
        }
        at
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let switched = self.switched.load(Ordering::Acquire);
        if matches!(self.place, Place::Asked) && !switched {
            // It was answered in HTTP, so HTTP goes on.
            self.place = Place::Head(Vec::new());
        }
        if !matches!(self.place, Place::Over(_)) {
            if self.kept.is_empty() {
                ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            } else {
                let size = self.kept.len().min(buffer.remaining());
                buffer.put_slice(&self.kept[..size]);
                self.kept.drain(..size);
            }
            let size = buffer.filled().len() - before;
            if switched {
                return Poll::Ready(Ok(()));
            }
            let allowed = self.look(&buffer.filled()[before..]);
            if allowed == size {
                return Poll::Ready(Ok(()));
            }
            if matches!(self.place, Place::Asked) {
                let behind = [&buffer.filled()[before + allowed..], &self.kept[..]].concat();
                self.kept = behind;
                buffer.set_filled(before + allowed);
                return Poll::Ready(Ok(()));
            }
            buffer.set_filled(before + allowed);
        }
        if let Place::Over(impossible) = &mut self.place {
            let size = impossible.len().min(buffer.remaining());
            buffer.put_slice(&impossible[..size]);
            *impossible = &impossible[size..];
        }
        // When nothing is left of it, this is the end.
        Poll::Ready(Ok(()))
    }
}

writes_through!(Guarded);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn through(sent: &[u8], piece: usize) -> Vec<u8> {
        let (mut client, ours) = tokio::io::duplex(1 << 20);
        let mut guarded = Guarded::new(ours, Arc::default());
        let mut got = Vec::new();
        for piece in sent.chunks(piece) {
            client.write_all(piece).await.unwrap();
            guarded.read_buf(&mut got).await.unwrap();
        }
        drop(client);
        guarded.read_to_end(&mut got).await.unwrap();
        got
    }

    #[tokio::test]
    async fn messages_pass_as_they_are_and_nothing_behind_one_that_is_none() {
        let good = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nokPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        let bad = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let chunk = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n";
        for piece in [1, 7, 1000] {
            assert_eq!(through(good, piece).await, good, "in pieces of {piece}");
            // At most up to the end of the head, and of the size.
            for (bad, most) in
                [(&bad[..], bad.len() - b"\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n".len()), (chunk, chunk.len() - b"\nx\r\n0\r\n\r\n".len())]
            {
                let got = through(&[good, bad].concat(), piece).await;
                let got = got.strip_suffix(IMPOSSIBLE).expect("what cannot be");
                assert!(got.starts_with(good) && [good, bad].concat().starts_with(got) && got.len() <= good.len() + most, "{}", got.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn of_a_head_that_is_too_long_no_end_is_seen() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(2 * HEAD_MAX));
        for piece in [10_000, 1 << 20] {
            let got = through(long.as_bytes(), piece).await;
            assert!(got.len() == HEAD_MAX && long.as_bytes().starts_with(&got), "{} in pieces of {piece}", got.len());
        }
    }

    #[tokio::test]
    async fn another_protocol_passes_once_it_is_agreed_on() {
        let (mut client, ours) = tokio::io::duplex(1000);
        let switched = Arc::<AtomicBool>::default();
        let mut guarded = Guarded::new(ours, Arc::clone(&switched));
        let mut got = Vec::new();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
        guarded.read_buf(&mut got).await.unwrap();
        switched.store(true, Ordering::Release);
        client.write_all(b"\0\x01\n\n").await.unwrap();
        guarded.read_buf(&mut got).await.unwrap();
        assert!(got.ends_with(b"\0\x01\n\n"));
    }

    #[tokio::test]
    async fn what_comes_behind_the_question_for_another_protocol_waits_for_the_answer() {
        let asks = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
        for (switches, behind, seen) in [
            (true, &b"\0\x01\n\n"[..], &b"\0\x01\n\n"[..]),
            (false, b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (false, b"\0\x01\n\n", IMPOSSIBLE),
        ] {
            let (mut client, ours) = tokio::io::duplex(1000);
            let switched = Arc::<AtomicBool>::default();
            let mut guarded = Guarded::new(ours, Arc::clone(&switched));
            client.write_all(&[asks, behind].concat()).await.unwrap();
            drop(client);
            let mut got = Vec::new();
            guarded.read_buf(&mut got).await.unwrap();
            assert_eq!(got, asks);
            switched.store(switches, Ordering::Release);
            guarded.read_to_end(&mut got).await.unwrap();
            assert_eq!(got[asks.len()..], *seen, "{switches}");
        }
    }
}
