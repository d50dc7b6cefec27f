//! Requests and their answers, as far as they are measured.

use steadfast_api::policy::Origin;

use super::Connection;
use crate::{
    measure::request::{Begun, Record},
    relay::http2::hpack::Said,
};

pub(super) struct Stream {
    pub(super) begun: Option<Begun>,
    pub(super) record: Option<Record>,
    pub(super) asks_pod: bool,
    /// The request has ended.
    asked: bool,
}

impl Stream {
    pub(super) fn new(begun: Begun) -> Self {
        Self { begun: Some(begun), record: None, asks_pod: false, asked: false }
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
}
