//! What a run tells while it goes on.

use std::time::Duration;

use steadfast_api::{
    golden::Verdict,
    report::PodState,
    resource::{LIVE_OUTAGES_MAX, LIVE_PODS_MAX, LiveOutage, LivePhase, LivePod, LiveProgress},
};

/// The run at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub phase: PhaseNow,
    /// From 1; warm-up and clean-up are not counted.
    pub number: u32,
    /// Phases of the whole run; 0 when it has no end.
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
    /// Of a watch: those that are open, in order of their begin.
    pub outages: Vec<OutageNow>,
}

/// What runs now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PhaseNow {
    /// Pods come up; nothing is measured yet.
    #[default]
    WarmUp,
    Baseline,
    /// Without steps: until somebody ends it.
    Watch,
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

/// An outage that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutageNow {
    pub pod: String,
    pub node: String,
    pub cause: String,
    pub open_for: Duration,
}

impl From<&Progress> for LiveProgress {
    fn from(now: &Progress) -> Self {
        let (phase, name, on) = match &now.phase {
            PhaseNow::WarmUp => (LivePhase::WarmUp, "", ""),
            PhaseNow::Baseline => (LivePhase::Baseline, "", ""),
            PhaseNow::Watch => (LivePhase::Watch, "", ""),
            PhaseNow::Fault { name, on } => (LivePhase::Fault, name.as_str(), on.as_str()),
            PhaseNow::Recovery { name } => (LivePhase::Recovery, name.as_str(), ""),
            PhaseNow::CleanUp => (LivePhase::CleanUp, "", ""),
        };
        let pod = |pod: &PodNow| LivePod { name: pod.name.clone(), node: pod.node.clone(), state: pod.state, golden: pod.golden, p99_ms: pod.p99_ms };
        let outage = |outage: &OutageNow| LiveOutage {
            pod: outage.pod.clone(),
            node: outage.node.clone(),
            cause: outage.cause.clone(),
            open_seconds: outage.open_for.as_secs(),
        };
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            phase,
            name: name.to_owned(),
            on: on.to_owned(),
            number: now.number,
            of: now.of,
            phase_left_ms: ms(now.phase_left),
            left_ms: ms(now.left),
            done: now.done,
            availability: now.availability,
            p99_ms: now.p99_ms,
            pods: shown(&now.pods).into_iter().map(pod).collect(),
            open_outages: u32::try_from(now.outages.len()).unwrap_or(u32::MAX),
            outages: now.outages.iter().take(LIVE_OUTAGES_MAX).map(outage).collect(),
        }
    }
}

/// The pods that a status has room for: all, or those first that somebody should look at.
fn shown(pods: &[PodNow]) -> Vec<&PodNow> {
    let mut shown: Vec<&PodNow> = pods.iter().collect();
    if shown.len() > LIVE_PODS_MAX {
        shown.sort_by_key(|pod| pod.state == PodState::Serving);
        shown.truncate(LIVE_PODS_MAX);
    }
    shown
}

impl From<LiveProgress> for Progress {
    fn from(live: LiveProgress) -> Self {
        let phase = match live.phase {
            LivePhase::WarmUp => PhaseNow::WarmUp,
            LivePhase::Baseline => PhaseNow::Baseline,
            LivePhase::Watch => PhaseNow::Watch,
            LivePhase::Fault => PhaseNow::Fault { name: live.name, on: live.on },
            LivePhase::Recovery => PhaseNow::Recovery { name: live.name },
            LivePhase::CleanUp => PhaseNow::CleanUp,
        };
        let outage =
            |outage: LiveOutage| OutageNow { pod: outage.pod, node: outage.node, cause: outage.cause, open_for: Duration::from_secs(outage.open_seconds) };
        let pod = |pod: LivePod| PodNow { name: pod.name, node: pod.node, state: pod.state, golden: pod.golden, p99_ms: pod.p99_ms };
        Self {
            phase,
            number: live.number,
            of: live.of,
            phase_left: Duration::from_millis(live.phase_left_ms),
            left: Duration::from_millis(live.left_ms),
            done: live.done,
            availability: live.availability,
            p99_ms: live.p99_ms,
            pods: live.pods.into_iter().map(pod).collect(),
            outages: live.outages.into_iter().map(outage).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_says_is_what_the_run_said() {
        let pods = vec![PodNow { name: "a".into(), node: "n1".into(), state: PodState::Serving, golden: Some(Verdict::Pass), p99_ms: Some(2.5) }];
        let now = Progress {
            phase: PhaseNow::Fault { name: "slow".into(), on: "n1".into() },
            number: 2,
            of: 7,
            phase_left: Duration::from_millis(1500),
            left: Duration::from_secs(60),
            done: 0.25,
            availability: Some(0.99),
            p99_ms: Some(3.0),
            pods,
            outages: vec![OutageNow { pod: "b".into(), node: "n2".into(), cause: "deleted".into(), open_for: Duration::from_secs(7) }],
        };
        assert_eq!(Progress::from(LiveProgress::from(&now)), now);
    }

    #[test]
    fn of_more_pods_than_a_status_holds_those_out_of_service_are_shown() {
        let pod = |number: usize| {
            let state = if number % 50 == 49 { PodState::Loading } else { PodState::Serving };
            PodNow { name: format!("p-{number}"), node: "n".into(), state, golden: None, p99_ms: None }
        };
        let pods: Vec<PodNow> = (0..200).map(pod).collect();
        let names: Vec<&str> = shown(&pods).iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!((names.len(), &names[..5]), (LIVE_PODS_MAX, &["p-49", "p-99", "p-149", "p-199", "p-0"][..]));
        assert_eq!(shown(&pods[..LIVE_PODS_MAX]).len(), LIVE_PODS_MAX);
    }
}
