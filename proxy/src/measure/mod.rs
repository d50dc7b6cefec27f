//! What happened, counted: Prometheus metrics (one registry a thread, merged when somebody asks, so that threads share no counter) and the windows of reports.
//!
//! Every label is bounded: origins and kinds are enums, statuses come from HTTP, and of policy names at most [`NAMES_MAX`] are told apart.

pub mod describe;
pub mod gather;
pub mod request;
pub mod window;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
};
use steadfast_api::{FaultKind, policy::Origin};

use window::Window;

/// Policy names that metrics tell apart; later ones count as `other`.
pub const NAMES_MAX: usize = 64;

/// The last of gRPC's statuses.
const GRPC_MAX: u16 = 16;

const SECONDS: [f64; 16] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const LATENESS: [f64; 10] = [0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002, 0.005, 0.02];

/// One thread's metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// What there is, whether it has been counted yet or not.
    pub described: Arc<Vec<Desc>>,
    pub in_progress: IntGauge,
    pub connections: IntGauge,
    pub requests: IntCounterVec,
    pub duration: HistogramVec,
    pub first_byte: HistogramVec,
    pub grpc: IntCounterVec,
    pub moved: IntCounterVec,
    pub opaque_connections: IntCounter,
    pub opaque_bytes: IntCounter,
    pub cancelled: IntCounter,
    pub limits: IntCounterVec,
    pub malformed: IntCounter,
    pub truncated: IntCounterVec,
    pub injected: IntCounterVec,
    pub over_budget: IntCounterVec,
    pub headers_rejected: IntCounterVec,
    pub headers_stripped: IntCounterVec,
    pub corrupt_skipped: IntCounterVec,
    pub model_unknown: IntCounterVec,
    pub lateness: Histogram,
    pub golden_replays: IntCounterVec,
    pub golden_skipped: IntCounterVec,
    pub golden_verdict: IntGaugeVec,
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let described = RefCell::new(Vec::new());
        let keep = |collector: Box<dyn Collector>| {
            described.borrow_mut().extend(collector.desc().into_iter().cloned());
            // Names are constants and a registry is new: this fails in the first test or never.
            if let Err(error) = registry.register(collector) {
                tracing::error!(%error, "a metric could not be registered");
            }
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels).expect("constant names are valid");
            keep(Box::new(made.clone()));
            made
        };
        let gauge = |name: &str, help: &str| {
            let made = IntGauge::new(name, help).expect("constant names are valid");
            keep(Box::new(made.clone()));
            made
        };
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(name, help).expect("constant names are valid");
            keep(Box::new(made.clone()));
            made
        };
        let duration =
            HistogramOpts::new("steadfast_request_duration_seconds", "From a request's head to the last byte of its response.").buckets(SECONDS.to_vec());
        let duration = HistogramVec::new(duration, &["origin"]).expect("constant names are valid");
        keep(Box::new(duration.clone()));
        let first_byte =
            HistogramOpts::new("steadfast_response_first_byte_seconds", "From a request's head to the head of its response.").buckets(SECONDS.to_vec());
        let first_byte = HistogramVec::new(first_byte, &["origin"]).expect("constant names are valid");
        keep(Box::new(first_byte.clone()));
        let lateness =
            HistogramOpts::new("steadfast_fault_delay_lateness_seconds", "By how much an injected delay was longer than asked.").buckets(LATENESS.to_vec());
        let lateness = Histogram::with_opts(lateness).expect("constant names are valid");
        keep(Box::new(lateness.clone()));
        let golden_verdict = IntGaugeVec::new(Opts::new("steadfast_golden_verdict", "1 for the verdict that a golden set has now."), &["set", "verdict"])
            .expect("constant names are valid");
        keep(Box::new(golden_verdict.clone()));
        let metrics = Self {
            in_progress: gauge("steadfast_requests_in_progress", "User requests in progress."),
            connections: gauge("steadfast_connections", "Client connections open."),
            requests: counters("steadfast_requests_total", "Responses by whose doing their status was.", &["origin", "code"]),
            truncated: counters("steadfast_responses_truncated_total", "Responses that broke off, by who broke them off.", &["by"]),
            injected: counters("steadfast_faults_injected_total", "Faults that took place.", &["policy", "kind"]),
            over_budget: counters("steadfast_over_budget_total", "Faults that a policy called for and its budget refused.", &["policy"]),
            headers_rejected: counters("steadfast_fault_headers_rejected_total", "Trusted steadfast-fault headers that were answered with 400.", &["reason"]),
            headers_stripped: counters("steadfast_fault_headers_stripped_total", "steadfast-fault headers that were taken out and had no effect.", &["reason"]),
            corrupt_skipped: counters("steadfast_corrupt_skipped_total", "Answers that should have been corrupted and could not be.", &["reason"]),
            model_unknown: counters(
                "steadfast_model_unknown_total",
                "Requests whose model a rule asks for and whose body could not be read to find it.",
                &["reason"],
            ),
            golden_replays: counters("steadfast_golden_replays_total", "Golden samples replayed.", &["set", "outcome"]),
            golden_skipped: counters("steadfast_golden_replays_skipped_total", "Replays left out because of load.", &["set"]),
            grpc: counters("steadfast_grpc_responses_total", "gRPC responses by their own status.", &["code"]),
            moved: counters("steadfast_connections_moved_total", "Open client connections that went over to the relay or to the stack.", &["to"]),
            opaque_connections: counter("steadfast_opaque_connections_total", "Connections on which something passed that the sidecar does not understand."),
            opaque_bytes: counter("steadfast_opaque_bytes_total", "Bytes that passed, either way, without being understood."),
            cancelled: counter("steadfast_requests_cancelled_total", "Requests whose client left before the response began."),
            limits: counters(
                "steadfast_limits_exceeded_total",
                "Connections and requests that were ended or kept waiting because they went beyond a limit.",
                &["limit"],
            ),
            malformed: counter(
                "steadfast_requests_malformed_total",
                "Requests that are not HTTP/1 as the standard has it, and were answered with 400 unseen by the model server.",
            ),
            registry: registry.clone(),
            described: Arc::default(),
            duration,
            first_byte,
            lateness,
            golden_verdict,
        };
        Self { described: Arc::new(described.into_inner()), ..metrics }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A thread's metrics with the handles that the request path needs at hand, and its part of the current window.
pub struct Meter {
    pub metrics: Metrics,
    responses: RefCell<HashMap<(Origin, u16), (IntCounter, Histogram)>>,
    first_bytes: RefCell<HashMap<Origin, Histogram>>,
    names: RefCell<HashSet<Arc<str>>>,
    window: RefCell<Window>,
}

impl Meter {
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, responses: RefCell::default(), first_bytes: RefCell::default(), names: RefCell::default(), window: RefCell::new(Window::new()) }
    }

    fn response(&self, origin: Origin, status: u16, duration_ns: u64) {
        let mut responses = self.responses.borrow_mut();
        let (count, duration) = responses.entry((origin, status)).or_insert_with(|| {
            let count = self.metrics.requests.with_label_values(&[origin.name(), &status.to_string()]);
            (count, self.metrics.duration.with_label_values(&[origin.name()]))
        });
        count.inc();
        duration.observe(duration_ns as f64 / 1e9);
        self.window.borrow_mut().response(origin, status, duration_ns);
    }

    fn first_byte(&self, origin: Origin, after_ns: u64) {
        let mut first_bytes = self.first_bytes.borrow_mut();
        first_bytes.entry(origin).or_insert_with(|| self.metrics.first_byte.with_label_values(&[origin.name()])).observe(after_ns as f64 / 1e9);
    }

    fn grpc(&self, code: u16) {
        let code = if code <= GRPC_MAX { code.to_string() } else { "other".to_owned() };
        self.metrics.grpc.with_label_values(&[&code]).inc();
    }

    /// The name that metrics use for a policy or a golden set that somebody else named.
    pub fn label(&self, policy: &Arc<str>) -> Arc<str> {
        let mut names = self.names.borrow_mut();
        if names.contains(policy) {
            Arc::clone(policy)
        } else if names.len() < NAMES_MAX {
            names.insert(Arc::clone(policy));
            Arc::clone(policy)
        } else {
            "other".into()
        }
    }

    /// A fault took place. `policy` is its name, or `header`.
    pub fn injected(&self, policy: &Arc<str>, kind: FaultKind) {
        let name = self.label(policy);
        self.metrics.injected.with_label_values(&[&*name, kind.name()]).inc();
        self.window.borrow_mut().injected(&name, kind);
    }

    /// Something went beyond `limit`, which is one of the words of `docs/limits.md`.
    pub fn exceeded(&self, limit: &'static str) {
        self.metrics.limits.with_label_values(&[limit]).inc();
    }

    /// Faults that the budget refused.
    pub fn over_budget(&self, policy: &Arc<str>, count: u64) {
        if count > 0 {
            self.metrics.over_budget.with_label_values(&[&*self.label(policy)]).inc_by(count);
            self.window.borrow_mut().over_budget += count;
        }
    }

    /// Adds what this thread saw to `all` and begins anew.
    pub fn flush(&self, all: &mut Window) {
        all.take_in(&mut self.window.borrow_mut());
    }
}
