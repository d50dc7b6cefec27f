//! The way down: the model server's answer, or ours in its stead.

use std::{task::Context, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use steadfast_api::policy::Origin;

use super::{Connection, ENDED, Phase, Step};
use crate::{
    drain::Phase as Drain,
    forward::ForwardError,
    measure::request::{Begun, Record},
    problem::{Dialect, Problem},
    relay::http1::head::{self, Framing, Read},
};

impl Connection<'_> {
    pub(super) fn upstream_said(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        match self.phase {
            Phase::Exchange if self.partial.is_empty() => self.response(cx, bytes),
            Phase::Exchange => {
                let mut partial = std::mem::take(&mut self.partial);
                partial.extend_from_slice(bytes);
                self.response(cx, &partial)
            }
            Phase::Tunnel { opaque } => {
                self.count(opaque, bytes);
                self.tell_client(cx, bytes)
            }
            // Unasked, such as a 408 to a client that has been silent: passed on, and then nothing is known any more.
            Phase::Boundary | Phase::Connecting => {
                self.tell_client(cx, bytes)?;
                self.close(!self.ahead.is_empty());
                Ok(())
            }
            Phase::Closing { .. } => Ok(()),
        }
    }

    /// `bytes` go on where the answer has got to.
    fn response(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        let Some(exchange) = &mut self.exchange else { return Err(ENDED) };
        let (mut read, mut parting) = (0, None);
        while exchange.response.is_none() {
            let head = match head::response(&bytes[read..], exchange.head) {
                Read::Whole(head) if head.status != 101 || exchange.upgrade => head,
                Read::Whole(_) | Read::Long | Read::Odd => return self.not_understood(cx, bytes),
                Read::Partial => {
                    self.partial = bytes[read..].to_vec();
                    return self.tell_client(cx, &bytes[..read]);
                }
            };
            read += head.size;
            if head.is_interim() {
                continue;
            }
            exchange.record = exchange.begun.take().map(|begun| begun.relayed(Origin::Upstream, head.status));
            if head.status == 101 {
                exchange.record.take().iter_mut().for_each(Record::finish);
                self.exchange = None;
                self.phase = Phase::Tunnel { opaque: false };
                self.client.watch();
                self.tell_client(cx, bytes)?;
                let ahead = std::mem::take(&mut self.ahead);
                self.tell_upstream(cx, &ahead);
                return Ok(());
            }
            exchange.persistent &= head.persistent;
            exchange.response = Some(head.framing);
            if self.worker.drain.has_reached(Drain::Parting) && exchange.persistent {
                // As in the stack: a pod that ends says so by its answers.
                exchange.persistent = false;
                parting = Some(read - 2);
            }
        }
        let Some(framing) = &mut exchange.response else { return Ok(()) };
        match framing.take(&bytes[read..]) {
            // What comes behind the answer's end is passed on as it would be without us, and is the last that is believed of this connection.
            Ok(size) if read + size < bytes.len() => exchange.persistent = false,
            Ok(_) => {}
            Err(_) => return self.not_understood(cx, bytes),
        }
        if let Some(at) = parting {
            self.tell_client(cx, &bytes[..at])?;
            self.tell_client(cx, b"connection: close\r\n")?;
            return self.tell_client(cx, &bytes[at..]);
        }
        self.tell_client(cx, bytes)
    }

    /// From here on the bytes are the two sides' own business.
    fn not_understood(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        let metrics = &self.worker.meter.metrics;
        metrics.opaque_connections.inc();
        if let Some(exchange) = self.exchange.take() {
            exchange.begun.into_iter().for_each(Begun::left_to_others);
            exchange.record.into_iter().for_each(|mut record| record.cut_by("upstream"));
        }
        self.phase = Phase::Tunnel { opaque: true };
        self.count(true, bytes);
        self.tell_client(cx, bytes)?;
        let ahead = std::mem::take(&mut self.ahead);
        self.count(true, &ahead);
        self.tell_upstream(cx, &ahead);
        Ok(())
    }

    /// The model server has closed its side, or `broke` off.
    pub(super) fn upstream_ended(&mut self, cx: &mut Context<'_>, broke: bool) -> Step {
        match self.phase {
            // The next request gets another.
            Phase::Boundary | Phase::Connecting => self.upstream = None,
            Phase::Exchange => {
                let Some(exchange) = &mut self.exchange else { return Err(ENDED) };
                match exchange.response {
                    None if self.client.ended => return Err(ENDED),
                    None => return self.answer(cx, &ForwardError::Ended),
                    Some(Framing::UntilClose) if broke => {
                        exchange.record.iter_mut().for_each(|record| record.cut_by("upstream"));
                        // An end would say that this was all.
                        let _ = self.client.stream.set_zero_linger();
                        return Err(ENDED);
                    }
                    Some(Framing::UntilClose) => exchange.response = Some(Framing::NONE),
                    Some(framing) if framing.is_done() => {}
                    Some(_) => {
                        // A server that breaks off because its client has ended its half does what the client asked for.
                        let by = if self.client.ended { "client" } else { "upstream" };
                        exchange.record.iter_mut().for_each(|record| record.cut_by(by));
                        self.exchange = None;
                        self.close(false);
                        return Ok(());
                    }
                }
                (exchange.persistent, exchange.deaf) = (false, true);
            }
            Phase::Tunnel { .. } if broke => return Err(ENDED),
            Phase::Tunnel { .. } | Phase::Closing { .. } => {}
        }
        Ok(())
    }

    /// Answers in the model server's stead.
    pub(super) fn answer(&mut self, cx: &mut Context<'_>, error: &ForwardError) -> Step {
        let Some(exchange) = self.exchange.take() else { return Err(ENDED) };
        if !matches!(error, ForwardError::Malformed) {
            self.worker.shared.suspect.notify_one();
        }
        let problem = error.problem();
        let answer = written(&problem.response(exchange.dialect, Origin::Proxy), exchange.head);
        self.partial.clear();
        self.close(true);
        let sent = self.tell_client(cx, &answer);
        exchange.begun.into_iter().for_each(|begun| begun.relayed(Origin::Proxy, problem.status.as_u16()).finish());
        sent
    }
}

/// To a client that has begun a request's head and not ended it.
pub fn too_slow(within: Duration) -> Vec<u8> {
    let detail = format!("no whole request head came within {within:?}");
    let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request took too long", detail);
    written(&problem.response(Dialect::Http, Origin::Proxy), false)
}

/// The answer as it goes over the wire; it is the connection's last.
fn written(response: &http::Response<Bytes>, head: bool) -> Vec<u8> {
    let status = response.status();
    let mut text = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in response.headers() {
        text.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    text.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", response.body().len()).as_bytes());
    if !head {
        text.extend_from_slice(response.body());
    }
    text
}
