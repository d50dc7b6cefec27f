//! What is measured and what is promised of it: the rows of the table, in its order.

use crate::{
    load::Load,
    peer::{Peer, Way},
};

/// What a figure is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most so many times what this peer takes.
    AtMostTimes(f64, Peer),
    /// This peer takes at least so many times as much.
    LessThan(f64, Peer),
    /// At most this, in the row's unit.
    AtMost(f64),
}

/// A row of CPU time.
pub(crate) struct CpuRow {
    pub(crate) group: &'static str,
    pub(crate) title: &'static str,
    pub(crate) per: &'static str,
    pub(crate) way: Way,
    pub(crate) load: Load,
    pub(crate) goals: &'static [Goal],
}

pub(crate) const CPU: [CpuRow; 9] = [
    CpuRow {
        group: "get-16",
        title: "GET 1 KB, 16 connections",
        per: "request",
        way: Way::Http1,
        load: Load::Get { connections: 16 },
        goals: &[Goal::AtMostTimes(1.15, Peer::Copy), Goal::LessThan(3.0, Peer::Envoy)],
    },
    CpuRow {
        group: "get-128",
        title: "GET 1 KB, 128 connections",
        per: "request",
        way: Way::Http1,
        load: Load::Get { connections: 128 },
        goals: &[Goal::LessThan(3.7, Peer::Envoy)],
    },
    CpuRow {
        group: "get-2000",
        title: "GET 1 KB, 2,000 requests/s",
        per: "request",
        way: Way::Http1,
        load: Load::Paced { per_second: 2_000, connections: 16 },
        goals: &[Goal::LessThan(1.8, Peer::Envoy)],
    },
    CpuRow {
        group: "post",
        title: "POST 600 KB, 4 connections",
        per: "request",
        way: Way::Http1,
        load: Load::Post { connections: 4 },
        goals: &[Goal::LessThan(1.4, Peer::Envoy)],
    },
    CpuRow {
        group: "grpc-1x32",
        title: "gRPC-like HTTP/2, 1 connection of 32 streams",
        per: "request",
        way: Way::Http2,
        load: Load::Grpc { connections: 1, streams: 32 },
        goals: &[Goal::LessThan(6.0, Peer::Envoy)],
    },
    CpuRow {
        group: "grpc-16x1",
        title: "gRPC-like HTTP/2, 16 connections of 1 stream",
        per: "request",
        way: Way::Http2,
        load: Load::Grpc { connections: 16, streams: 1 },
        goals: &[Goal::LessThan(2.0, Peer::Envoy)],
    },
    CpuRow {
        group: "events",
        title: "Server-sent events, 64 streams of 100 events/s",
        per: "event",
        way: Way::Http1,
        load: Load::Events { streams: 64 },
        goals: &[Goal::LessThan(1.3, Peer::Envoy)],
    },
    CpuRow {
        group: "anew",
        title: "GET 1 KB, a new connection for each, 16 clients",
        per: "request",
        way: Way::Http1,
        load: Load::Anew { clients: 16 },
        goals: &[Goal::LessThan(2.2, Peer::Envoy)],
    },
    CpuRow {
        group: "armed",
        title: "GET 1 KB, 16 connections, armed with faults that no request asks for",
        per: "request",
        way: Way::Armed,
        load: Load::Get { connections: 16 },
        goals: &[Goal::LessThan(2.0, Peer::Envoy)],
    },
];

pub(crate) const LATENCY: &str = "latency";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const ACCURACY: &str = "accuracy";

/// Names by which rows are asked for.
pub(crate) fn groups() -> Vec<&'static str> {
    CPU.iter().map(|row| row.group).chain([LATENCY, MEMORY, ACCURACY]).collect()
}
