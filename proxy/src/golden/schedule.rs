//! When which sample is replayed. Random draws from a seed, one replay of a set at a time.
//!
//! At once when the model server becomes ready, and then quickly until the first right answer (so that the moment of the first correct prediction is known
//! to within [`EAGER`]); every `--golden-every` from then on; skipped and counted while users keep the sidecar busy;
//! nothing is asked of a pod that is held down, since users cannot ask it either, and the end of that is like becoming ready.

use std::{rc::Rc, time::Duration};

use steadfast_api::{
    golden::{Outcome, Verdict},
    sidecar::What,
};
use steadfast_golden_sets::sequential::{Draw, Judge, Next, Settings};
use tokio::time::Instant;

use super::{Loaded, replay::Replayer};
use crate::worker::Worker;

/// Between replays while no right answer has come since the model server became ready.
const EAGER: Duration = Duration::from_millis(20);
/// A server that gives no right answer for this long is asked at the ordinary pace.
const EAGER_FOR: Duration = Duration::from_secs(5);
/// Repetitions of a wrong answer of a server whose enrolment showed no noise.
const RETRIES: u32 = 2;
/// So many right answers in a row after a Fail, and the question is asked anew: the Fail was told, and what caused it has gone.
const RECOVERED_AFTER: u32 = 20;

/// Replays one set for as long as it is polled.
pub async fn run(worker: Rc<Worker>, loaded: Loaded, index: u64) {
    let shared = &worker.shared;
    let config = &shared.config;
    let name = name(&loaded);
    let deterministic = loaded.enrolment.as_ref().is_some_and(steadfast_golden_sets::enrol::Enrolment::deterministic);
    let mut replayer = match Replayer::new(&worker, loaded.set, loaded.enrolment.as_ref()) {
        Ok(replayer) => replayer,
        Err(why) => {
            tracing::error!(set = name, why, "golden set refused: it is not replayed");
            shared.evidence.urgent(What::GoldenVerdict { set: name, verdict: Verdict::ReferenceBroken, samples: 0, mismatches: 0 });
            return;
        }
    };
    let judge = match Judge::monitor(Settings::default()) {
        Ok(judge) if deterministic => judge.deterministic(RETRIES),
        Ok(judge) => judge,
        Err(error) => return tracing::error!(%error, "the settings of verdicts are wrong"),
    };
    let mut asked = Asked { worker: Rc::clone(&worker), name, judge, told: None, right_in_a_row: 0 };
    let mut draw = Draw::new(config.golden_seed.wrapping_add(index), loaded.samples);
    let mut readiness = shared.readiness.subscribe();
    loop {
        if readiness.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        // A server that became ready is another one, as far as anybody can tell.
        asked.judge.reset();
        asked.right_in_a_row = 0;
        asked.tell();
        let (mut ready_since, mut right_since_ready) = (Instant::now(), false);
        let mut due = Instant::now();
        let mut held = worker.held.subscribe();
        while *readiness.borrow_and_update() {
            if *held.borrow_and_update() {
                tokio::select! {
                    // Whoever holds the pod down is this very sidecar.
                    _ = held.wait_for(|held| !*held) => {}
                    changed = readiness.changed() => if changed.is_err() { return },
                }
                (ready_since, right_since_ready, due) = (Instant::now(), false, Instant::now());
                continue;
            }
            if config.golden_skip_above > 0 && shared.in_progress() > i64::from(config.golden_skip_above) {
                worker.meter.metrics.golden_skipped.with_label_values(&[&asked.name]).inc();
            } else if let Some(sample) = draw.next() {
                right_since_ready |= asked.about(&mut replayer, sample).await;
            }
            let eager = !right_since_ready && ready_since.elapsed() < EAGER_FOR;
            let pause = if eager { EAGER.min(config.golden_every) } else { config.golden_every };
            // Late is late: replays that were missed are not made up for.
            due = (due + pause).max(Instant::now());
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                changed = readiness.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The name under which a set is reported: its directory's, or its model's.
fn name(loaded: &Loaded) -> String {
    let directory = loaded.set.directory().and_then(|directory| directory.canonicalize().ok());
    let directory = directory.as_deref().and_then(|directory| directory.file_name()).map(|name| name.to_string_lossy().into_owned());
    directory.unwrap_or_else(|| loaded.set.manifest().model.clone())
}

/// The question about one set, as far as it is answered.
struct Asked {
    worker: Rc<Worker>,
    name: String,
    judge: Judge,
    told: Option<(Verdict, u64, u64)>,
    right_in_a_row: u32,
}

impl Asked {
    /// Replays `sample`, again where the judge wants it confirmed. Whether the answer was right.
    async fn about(&mut self, replayer: &mut Replayer, sample: usize) -> bool {
        loop {
            let replayed = replayer.replay(&self.worker, &self.name, sample).await;
            let outcome = replayed.report.outcome;
            let word = match outcome {
                Outcome::Match => "match",
                Outcome::Mismatch => "mismatch",
                Outcome::NoAnswer => "no-answer",
            };
            self.worker.meter.metrics.golden_replays.with_label_values(&[self.name.as_str(), word]).inc();
            if let Some(whole) = replayed.reference {
                self.judge.set_reference_broken(!whole);
            }
            if let Some(detail) = &replayed.report.detail {
                tracing::info!(set = self.name, sample = replayed.report.sample, detail, "{word}");
            }
            self.worker.shared.evidence.urgent(What::Golden(replayed.report));
            let next = self.judge.observe(outcome);
            self.right_in_a_row = if outcome == Outcome::Match { self.right_in_a_row + 1 } else { 0 };
            self.tell();
            if self.judge.verdict() == Verdict::Fail && self.right_in_a_row >= RECOVERED_AFTER {
                tracing::info!(set = self.name, "right answers again: the verdict is open anew");
                self.judge.reset();
                self.tell();
            }
            // No answer is no confirmation, and asking a server that cannot answer again and again helps nobody.
            if next == Next::Draw || outcome == Outcome::NoAnswer {
                return outcome == Outcome::Match;
            }
        }
    }

    /// Reports the verdict where it or its counts have changed.
    fn tell(&mut self) {
        let now = (self.judge.verdict(), self.judge.samples(), self.judge.mismatches());
        if self.told == Some(now) {
            return;
        }
        let gauge = &self.worker.meter.metrics.golden_verdict;
        for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::ReferenceBroken] {
            gauge.with_label_values(&[self.name.as_str(), &verdict.to_string()]).set(i64::from(verdict == now.0));
        }
        if self.told.is_none_or(|told| told.0 != now.0) {
            tracing::info!(set = self.name, verdict = %now.0, reason = self.judge.reason(), "golden verdict");
        }
        self.told = Some(now);
        let (verdict, samples, mismatches) = now;
        self.worker.shared.evidence.urgent(What::GoldenVerdict { set: self.name.clone(), verdict, samples, mismatches });
    }
}
