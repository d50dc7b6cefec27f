//! What a run tells while it goes on.

use std::time::Duration;

use steadfast_api::{golden::Verdict, report::PodState};

/// The run at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub phase: PhaseNow,
    /// From 1; warm-up and clean-up are not counted.
    pub number: u32,
    /// Phases of the whole run.
    pub of: u32,
    /// Of the phase; for an analysis, until the deadline.
    pub phase_left: Duration,
    /// Of the run, if it recovers as expected.
    pub left: Duration,
    /// Share of the run that is behind, 0 to 1.
    pub done: f64,
    /// Over the last five seconds; absent without a request.
    pub availability: Option<f64>,
    pub p99_ms: Option<f64>,
    pub pods: Vec<PodNow>,
}

/// What runs now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PhaseNow {
    /// Pods come up; nothing is measured yet.
    #[default]
    WarmUp,
    Baseline,
    /// A step's fault is in force; its name, and whom it hits in words.
    Fault {
        name: String,
        on: String,
    },
    /// Analysing until stable, after the step of this name.
    Recovery {
        name: String,
    },
    /// Everything is undone and stopped.
    CleanUp,
}

/// A pod at this moment.
#[derive(Clone, Debug, PartialEq)]
pub struct PodNow {
    pub name: String,
    pub node: String,
    pub state: PodState,
    /// Worst of its golden sets; absent before the first.
    pub golden: Option<Verdict>,
    pub p99_ms: Option<f64>,
}
