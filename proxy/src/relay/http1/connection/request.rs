//! The way up: the client's request, looked at where it begins and nowhere else.

use std::{rc::Rc, task::Context};

use super::{Connection, ENDED, Exchange, Phase, Step, TO_STACK};
use crate::{
    clock,
    forward::{ForwardError, pool::IDLE_NS_MAX},
    measure::request::Begun,
    relay::{
        http1::head::{self, Framing, Read, RequestHead},
        must_stack,
        side::Side,
    },
    upstream::Dialled,
};

impl Connection<'_> {
    pub(super) fn client_said(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        match self.phase {
            Phase::Boundary if self.ahead.is_empty() => self.at_boundary(cx, bytes),
            Phase::Boundary => {
                self.ahead.extend_from_slice(bytes);
                let ahead = std::mem::take(&mut self.ahead);
                self.at_boundary(cx, &ahead)
            }
            Phase::Connecting => Err(ENDED),
            Phase::Exchange => {
                let Some(exchange) = &mut self.exchange else { return Err(ENDED) };
                if exchange.request.is_done() {
                    self.ahead.extend_from_slice(bytes);
                    return Ok(());
                }
                let Ok(size) = exchange.request.take(bytes) else {
                    let answered = exchange.response.is_some();
                    return if answered { Err(ENDED) } else { self.answer(cx, &ForwardError::Malformed) };
                };
                let deaf = exchange.deaf;
                self.ahead.extend_from_slice(&bytes[size..]);
                if !deaf {
                    self.tell_upstream(cx, &bytes[..size]);
                }
                Ok(())
            }
            Phase::Tunnel { opaque } => {
                self.count(opaque, bytes);
                self.tell_upstream(cx, bytes);
                Ok(())
            }
            Phase::Closing { .. } => Ok(()),
        }
    }

    /// `bytes` begin where a request begins.
    pub(super) fn at_boundary(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Step {
        let head = match head::request(bytes) {
            Read::Whole(head) if !head.stack && !must_stack(self.worker) => head,
            Read::Whole(_) | Read::Long | Read::Odd => {
                self.ahead = bytes.to_vec();
                return Err(TO_STACK);
            }
            Read::Partial => {
                self.ahead = bytes.to_vec();
                return Ok(());
            }
        };
        let begun = Begun::new(self.worker);
        if self.upstream.is_some() && begun.since_ns() - self.used_ns >= IDLE_NS_MAX {
            self.upstream = None;
        }
        if self.upstream.is_none() {
            self.upstream = self.worker.parked[self.route].take().map(Side::new);
        }
        if self.upstream.is_some() {
            return self.send_request(cx, &head, bytes, begun);
        }
        self.waiting = Some(begun);
        self.ahead = bytes.to_vec();
        self.phase = Phase::Connecting;
        self.connect();
        Ok(())
    }

    pub(super) fn connect(&mut self) {
        let (worker, route) = (Rc::clone(self.worker), self.route);
        // What is no HTTP has nobody else who would wait for the model server.
        let patient = matches!(self.phase, Phase::Tunnel { .. });
        self.connecting = Some(Box::pin(async move { worker.dial(route, patient).await }));
    }

    pub(super) fn connected(&mut self, cx: &mut Context<'_>, connected: Result<Dialled, ForwardError>) -> Step {
        let (ahead, begun) = (std::mem::take(&mut self.ahead), self.waiting.take());
        match (connected, self.phase) {
            (Ok(stream), Phase::Tunnel { opaque }) => {
                self.upstream = Some(Side::new(stream));
                self.count(opaque, &ahead);
                self.tell_upstream(cx, &ahead);
                Ok(())
            }
            (Ok(stream), _) => {
                self.upstream = Some(Side::new(stream));
                self.used_ns = clock::now_ns();
                match (head::request(&ahead), begun) {
                    (Read::Whole(head), Some(begun)) if !must_stack(self.worker) => self.send_request(cx, &head, &ahead, begun),
                    (_, begun) => self.give_up(ahead, begun),
                }
            }
            (Err(_), Phase::Tunnel { .. }) => {
                self.worker.shared.suspect.notify_one();
                Err(ENDED)
            }
            (Err(error @ ForwardError::ConnectTimeout { .. }), _) => {
                let (Read::Whole(head), Some(begun)) = (head::request(&ahead), begun) else { return Err(ENDED) };
                self.exchange = Some(Exchange::new(&head, Framing::NONE, begun));
                self.ahead = ahead;
                self.answer(cx, &error)
            }
            // The stack finds the same, and says so in the client's terms.
            (Err(_), _) => self.give_up(ahead, begun),
        }
    }

    /// Leaves a request, of which nothing has gone up, to the stack.
    fn give_up(&mut self, ahead: Vec<u8>, begun: Option<Begun>) -> Step {
        begun.into_iter().for_each(Begun::left_to_others);
        self.phase = Phase::Boundary;
        self.ahead = ahead;
        Err(TO_STACK)
    }

    fn send_request(&mut self, cx: &mut Context<'_>, head: &RequestHead, bytes: &[u8], begun: Begun) -> Step {
        let mut framing = head.framing;
        let (_, body) = bytes.split_at(head.size);
        let Ok(size) = framing.take(body) else {
            return self.give_up(bytes.to_vec(), Some(begun));
        };
        self.phase = Phase::Exchange;
        self.deadline.set(begun.since_ns() + clock::ns(self.worker.shared.config.upstream_timeout));
        self.exchange = Some(Exchange::new(head, framing, begun));
        let (now, later) = bytes.split_at(head.size + size);
        self.ahead.extend_from_slice(later);
        self.tell_upstream(cx, now);
        Ok(())
    }

    pub(super) fn tell_upstream(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        let Some(upstream) = &mut self.upstream else { return };
        match upstream.send(cx, bytes) {
            Ok(true) => {}
            Ok(false) => self.client.read_less(),
            Err(_) => self.upstream_is_deaf(),
        }
    }

    /// It takes nothing more, and may have said why: what it says is still passed on.
    pub(super) fn upstream_is_deaf(&mut self) {
        if let Some(upstream) = &mut self.upstream {
            upstream.forget();
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.deaf = true;
        }
    }
}
