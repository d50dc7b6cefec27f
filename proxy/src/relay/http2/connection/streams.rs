//! Requests and their answers, as far as they are measured.

use std::task::Context;

use bytes::Bytes;
use http::header;
use steadfast_api::policy::Origin;

use super::{Connection, Step};
use crate::{
    clock,
    forward::ForwardError,
    measure::request::{Begun, Record},
    problem::Dialect,
    relay::http2::{
        frame::{self, Frame, code, flag, kind},
        hpack::{self, Said},
    },
};

/// Streams that are due so close to each other are looked at once.
const TOGETHER_NS: u64 = 5_000_000;

pub(super) struct Stream {
    pub(super) begun: Option<Begun>,
    pub(super) record: Option<Record>,
    pub(super) asks_pod: bool,
    /// A gRPC call.
    grpc: bool,
    /// The request has ended.
    asked: bool,
}

impl Stream {
    pub(super) fn new(begun: Begun) -> Self {
        Self { begun: Some(begun), record: None, asks_pod: false, grpc: false, asked: false }
    }

    fn is_answered(&self) -> bool {
        self.begun.is_none() && self.record.is_none()
    }

    /// The server has given it up: without an answer that is what the stack calls a broken one. If the client `left` first, it was the client's doing.
    pub(super) fn broke_off(self, left: bool) {
        if left {
            return;
        }
        self.begun.into_iter().for_each(|begun| begun.relayed(Origin::Upstream, 502).finish());
        self.record.into_iter().for_each(|mut record| record.cut_by("upstream"));
    }
}

impl Connection<'_> {
    /// The client has said something on `id`.
    pub(super) fn asked(&mut self, id: u32, said: Said, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.asks_pod |= said.asks_pod;
        stream.grpc |= said.grpc;
        stream.asked |= ends;
        if stream.asked && stream.is_answered() {
            self.streams.remove(&id);
        }
    }

    /// The server has said something on `id`.
    pub(super) fn answered(&mut self, id: u32, said: Said, ends: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(status) = said.status.filter(|status| *status >= 200)
            && let Some(begun) = stream.begun.take()
        {
            stream.record = Some(begun.relayed(Origin::Upstream, status));
            self.patience.answered(1);
        }
        if let (Some(code), Some(record)) = (said.grpc_status, &stream.record) {
            record.grpc(code);
        }
        if ends {
            if let Some(mut record) = stream.record.take() {
                record.finish();
            }
            if stream.asked {
                self.streams.remove(&id);
            }
        }
    }

    /// The server has not answered some streams in time: it is told that nobody waits for them any more, and the client why. What it still says on them passes.
    pub(super) fn time_out(&mut self, cx: &mut Context<'_>) -> Step {
        let after = self.worker.shared.config.upstream_timeout;
        // Those that are nearly due with those that are: one look for all.
        let (long_ago, now) = (clock::ns(after).saturating_sub(TOGETHER_NS), clock::now_ns());
        let late = |stream: &Stream| stream.begun.as_ref().is_some_and(|begun| now - begun.since_ns() >= long_ago);
        let mut ids: Vec<u32> = self.streams.iter().filter(|(_, stream)| late(stream)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let problem = ForwardError::Timeout { after }.problem();
        for id in ids.iter().copied() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let (Some(begun), grpc, asked) = (stream.begun.take(), stream.grpc, stream.asked) else { continue };
            self.streams.remove(&id);
            let response = problem.response(if grpc { Dialect::Grpc } else { Dialect::Http }, Origin::Proxy);
            self.inject.extend(written(id, &response, grpc));
            if !asked {
                // It need not send the rest (RFC 9113 §8.1).
                self.inject.extend(frame::reset(id, code::NO_ERROR));
            }
            self.inject_up.extend(frame::reset(id, code::CANCEL));
            let mut record = begun.relayed(Origin::Proxy, response.status().as_u16());
            if grpc {
                record.grpc(problem.grpc_code());
            }
            record.finish();
        }
        if !ids.is_empty() {
            self.worker.shared.suspect.notify_one();
        }
        if let Some(next) = self.streams.values().filter_map(|stream| stream.begun.as_ref().map(Begun::since_ns)).min() {
            self.answers.set(next + clock::ns(after));
        }
        if self.first.is_some() && !ids.is_empty() {
            // It has not even begun to speak: we do so in its stead, and this is all that is said.
            let answers = std::mem::take(&mut self.inject);
            self.first = None;
            self.tell_client(cx, &[&frame::settings()[..], &answers, &frame::go_away(self.last, code::NO_ERROR)].concat())?;
            self.close();
        }
        Ok(())
    }
}

/// An answer without a body, as a block that changes no table; the body would have to be paid for from windows that are others'.
fn written(id: u32, response: &http::Response<Bytes>, grpc: bool) -> Vec<u8> {
    let mut block = hpack::status(response.status().as_u16());
    for (name, value) in response.headers() {
        if grpc || name != header::CONTENT_TYPE {
            block.extend(value.to_str().ok().and_then(|value| hpack::never_indexed(name.as_str(), value)).unwrap_or_default());
        }
    }
    [&Frame { size: block.len(), kind: kind::HEADERS, flags: flag::END_HEADERS | flag::END_STREAM, stream: id }.write()[..], &block].concat()
}
