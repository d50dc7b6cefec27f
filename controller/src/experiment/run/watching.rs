//! Without steps: nothing is broken on purpose, and what happens is watched in one window after the other, without a gap between them, until somebody ends it.
//!
//! A window ends when its time is over, or once the service has recovered from the loss of a pod: whoever waits for news of an outage has it then. While the
//! service is not well a window goes on, for `stable.within` at most; then what has not recovered is told as it stands, and the next window begins with it.

use std::time::{Duration, Instant};

use steadfast_api::report::PhaseKind;
use tokio::sync::mpsc;

use super::{Conductor, Course, Ending, lock};
use crate::{
    experiment::progress::PhaseNow,
    observe::{History, marks::SILENT_AFTER},
    platform::Platform,
};

/// Beyond the time-outs of users, until what they asked in a window is on record.
const SETTLE: Duration = Duration::from_secs(1);
/// A loss that nobody was told of yet shows by then at the latest, where a sidecar falls silent with it.
const SETTLE_MIN: Duration = Duration::from_micros(SILENT_AFTER as u64).saturating_add(SETTLE);
/// Where nobody asks for windows, the whole watch is one.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// A window that is over: how it went, and what was seen in it.
pub type Window = (Course, History);

impl<P: Platform> Conductor<'_, P> {
    pub(super) async fn watch(&mut self) -> Result<(), Ending> {
        let spec = &self.plan.test.spec;
        let (hold, users, platform) = (spec.stable.hold.get().as_micros() as i64, !spec.load.is_empty(), self.platform);
        let (window, within) = (spec.window().get(), spec.stable.within.get());
        let settle = (SETTLE + spec.load.iter().map(|load| load.timeout.get()).max().unwrap_or_default()).max(SETTLE_MIN);
        let mut begin = self.course.began;
        let Some(windows) = self.windows.clone() else {
            self.phase(PhaseNow::Watch, PhaseKind::Baseline, "watched", 1, None, begin, FOR_EVER);
            return self.wait(begin + FOR_EVER, |_, _| None::<()>).await.map(drop).or_else(ended_by_somebody);
        };
        loop {
            let number = self.number + 1;
            self.phase(PhaseNow::Watch, PhaseKind::Baseline, "watched", 1, None, begin, window);
            let (from, due) = {
                let history = lock(self.history);
                (history.us(begin), history.us(begin + window))
            };
            let over = self.wait(begin + window + within, |history, now| {
                let cut = now - settle.as_micros() as i64;
                // A loss and what explains it may be heard of one after the other: they belong into one window.
                if (cut < due && !history.lost_since(from)) || history.lost_since(cut - hold) {
                    return None;
                }
                // Somebody who cannot be heard may be lost: the cluster knows in a minute.
                if history.silent_since(now).is_some() {
                    return None;
                }
                let since = history.well_since(platform.wanted(), users)?;
                (since + hold <= cut && cut > from).then_some(cut)
            });
            let over = match over.await {
                Ok(over) => over,
                Err(ending) => return ended_by_somebody(ending),
            };
            let now = Instant::now();
            let (cut, earlier) = {
                let mut history = lock(self.history);
                let now_us = history.us(now);
                // What shows first of a loss that is not called one yet belongs into its window.
                let at_deadline = || history.silent_since(now_us).filter(|since| *since > from).unwrap_or(i64::MAX).min(now_us - settle.as_micros() as i64);
                let cut_us = over.unwrap_or_else(at_deadline);
                let ago = Duration::from_micros((now_us - cut_us).max(0) as u64);
                (now.checked_sub(ago).unwrap_or(now), history.before(cut_us, over.is_some(), hold))
            };
            begin = cut;
            self.hand_over(&windows, cut, earlier, number).await;
        }
    }

    /// The window that ended at `cut` goes to whoever reports on it.
    async fn hand_over(&mut self, windows: &mpsc::Sender<Window>, cut: Instant, earlier: History, number: u32) {
        if let Some(phase) = self.course.phases.last_mut() {
            phase.end = cut;
        }
        let mut course = Course { ended: cut, ..self.course.clone() };
        course.sidecar_rss = self.platform.sidecar_rss();
        course.notes.push(format!("Window {number} of a watch that goes on"));
        self.course.phases.clear();
        self.course.began = cut;
        self.course.nodes = self.platform.nodes();
        // Whoever listened has gone: so will this run.
        let _ = self.alongside(windows.send((course, earlier))).await;
    }
}

/// Who ends a watch ends no experiment: what was asked of the last window is judged like that of any other.
fn ended_by_somebody(ending: Ending) -> Result<(), Ending> {
    if matches!(ending, Ending::Interrupted) { Ok(()) } else { Err(ending) }
}
