//! When which sample is replayed. Random draws from a seed, one replay of a set at a time.
//!
//! At once when the model server becomes ready, and then quickly until the first right answer (so that the moment of the first correct prediction is known
//! to within [`EAGER`]); every `every` from then on; skipped and counted while users keep the sidecar busy, and beyond the set's share of their requests ([`pace`]);
//! nothing is asked of a pod that is held down, since users cannot ask it either, and the end of that is like becoming ready.
//!
//! **Recovery.** A Fail was told, and the question is open: a second judge begins anew with the first right answer after each wrong one, and takes over when it has
//! seen [`Terms::recovered_after`] right answers and no wrong one. No answer is neither. A pod that is kept out of its Service meanwhile has nobody else to answer,
//! so it is asked every [`PROBATION`].

use std::{rc::Rc, sync::Arc, time::Duration};

use steadfast_api::{
    Percent,
    golden::{Outcome, Verdict},
    sidecar::What,
};
use steadfast_golden_sets::sequential::{BadSettings, Draw, Judge, Next, Settings};
use tokio::{sync::watch, time::Instant};

use super::{Loaded, pace::Allowance, replay::Replayer};
use crate::worker::Worker;

/// Between replays while no right answer has come since the model server became ready.
const EAGER: Duration = Duration::from_millis(20);
/// A pause that is longer is broken off when the pod is taken out of its Service.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Whoever leads may be another by now, and know nothing of what was told.
pub(super) const TELL_AGAIN: Duration = Duration::from_secs(30);
/// A server that gives no right answer for this long is asked at the ordinary pace.
const EAGER_FOR: Duration = Duration::from_secs(5);
/// Between replays of a pod that is out of its Service because of what it answered.
const PROBATION: Duration = Duration::from_millis(100);
/// Repetitions of a wrong answer of a server whose enrolment showed no noise.
const RETRIES: u32 = 2;
/// For sets of the command line.
const RECOVERED_AFTER: u32 = 20;

/// How a set is replayed, and what its verdict promises.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    pub every: Duration,
    /// At most this share of the pod's requests, while it has any. `None`: whatever they are.
    pub share: Option<Percent>,
    pub settings: Settings,
    /// Right answers in a row after which a server that has failed is asked anew.
    pub recovered_after: u32,
    /// A server that has failed and starts again must show that it is right, like any that has failed. Otherwise it counts as another one.
    pub lasting: bool,
}

impl Terms {
    /// For a set that the command line names.
    pub fn by_hand(every: Duration) -> Self {
        Self { every, share: None, settings: Settings::default(), recovered_after: RECOVERED_AFTER, lasting: false }
    }
}

/// A set to be replayed under a name.
pub struct Question {
    pub name: Arc<str>,
    /// Of the set, where the controller assigned it.
    pub digest: Option<String>,
    pub loaded: Loaded,
    /// They may change while it runs; without a sender they stay.
    pub terms: watch::Receiver<Terms>,
    /// Of the draws.
    pub seed: u64,
}

/// Tells that nothing can be said of a server by this set.
pub(super) fn refuse(worker: &Worker, name: &str, digest: Option<String>, why: &str) {
    tracing::error!(set = name, why, "golden set refused: it is not replayed");
    tell_refused(worker, name, digest);
}

/// As [`refuse`], said again: whoever leads may be another by now.
pub(super) fn tell_refused(worker: &Worker, name: &str, digest: Option<String>) {
    let verdict = What::GoldenVerdict { set: name.to_owned(), digest, verdict: Verdict::ReferenceBroken, samples: 0, mismatches: 0 };
    worker.shared.evidence.urgent(verdict);
}

/// Replays one set for as long as it is polled.
pub async fn run(worker: Rc<Worker>, question: Question) {
    let Question { name, digest, loaded, mut terms, seed } = question;
    let shared = &worker.shared;
    let config = &shared.config;
    let deterministic = loaded.enrolment.as_ref().is_some_and(steadfast_golden_sets::enrol::Enrolment::deterministic);
    let mut replayer = match Replayer::new(&worker, loaded.set, loaded.enrolment.as_ref()) {
        Ok(replayer) => replayer,
        Err(why) => return refuse(&worker, &name, digest, &why),
    };
    let mut now = terms.borrow_and_update().clone();
    let mut asked = match Asked::new(&worker, name, digest, deterministic, &now) {
        Ok(asked) => asked,
        Err(error) => return tracing::error!(%error, "the settings of verdicts are wrong"),
    };
    let mut draw = Draw::new(seed, loaded.samples);
    let mut allowance = Allowance::default();
    let mut readiness = shared.readiness.subscribe();
    loop {
        if readiness.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        asked.server_starts(now.lasting);
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
            let latest = terms.borrow_and_update().clone();
            if latest != now {
                now = latest;
                asked.under(&now);
            }
            let busy = config.golden_skip_above > 0 && shared.in_progress() > i64::from(config.golden_skip_above);
            // Whoever is out of the Service has no users to be a share of.
            let share = now.share.filter(|_| shared.store.kept_out().is_none());
            if busy || !allowance.spend(share, shared.answered(), Instant::now().into_std()) {
                worker.meter.metrics.golden_skipped.with_label_values(&[&*asked.label]).inc();
            } else if let Some(sample) = draw.next() {
                right_since_ready |= asked.about(&mut replayer, sample).await;
            }
            let on_probation = || asked.has_failed() && shared.store.kept_out().is_some();
            let pause = if !right_since_ready && ready_since.elapsed() < EAGER_FOR {
                EAGER.min(now.every)
            } else if on_probation() {
                PROBATION.min(now.every)
            } else {
                now.every
            };
            // Late is late: replays that were missed are not made up for.
            due = (due + pause).max(Instant::now());
            tokio::select! {
                () = rest(due, || pause > PROBATION && on_probation()) => {}
                () = changed(&mut terms) => {}
                changed = readiness.changed() => if changed.is_err() { return },
            }
            due = due.min(Instant::now());
        }
    }
}

/// Until then, or until there is a reason to go on sooner, which is looked for every [`LOOK_EVERY`].
async fn rest(until: Instant, sooner: impl Fn() -> bool) {
    loop {
        tokio::time::sleep_until(until.min(Instant::now() + LOOK_EVERY)).await;
        if Instant::now() >= until || sooner() {
            return;
        }
    }
}

/// Returns when the terms are others; never, when nobody is there to change them.
async fn changed(terms: &mut watch::Receiver<Terms>) {
    if terms.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The question about one set, as far as it is answered.
struct Asked {
    worker: Rc<Worker>,
    name: Arc<str>,
    /// Its name in metrics.
    label: Arc<str>,
    digest: Option<String>,
    trial: Trial,
    told: Option<(Verdict, u64, u64)>,
    told_at: Instant,
}

impl Asked {
    fn new(worker: &Rc<Worker>, name: Arc<str>, digest: Option<String>, deterministic: bool, terms: &Terms) -> Result<Self, BadSettings> {
        // What the command line names is bounded by the command line.
        let label = if digest.is_some() { worker.meter.label(&name) } else { Arc::clone(&name) };
        Ok(Self { trial: Trial::new(terms, deterministic)?, worker: Rc::clone(worker), name, label, digest, told: None, told_at: Instant::now() })
    }

    fn has_failed(&self) -> bool {
        self.trial.judge.verdict() == Verdict::Fail
    }

    fn server_starts(&mut self, lasting: bool) {
        self.trial.server_starts(lasting);
        self.tell();
    }

    fn under(&mut self, terms: &Terms) {
        if let Err(error) = self.trial.under(terms) {
            tracing::error!(%error, set = &*self.name, "the settings of verdicts are wrong; the old ones stay");
        }
        self.tell();
    }

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
            self.worker.meter.metrics.golden_replays.with_label_values(&[&*self.label, word]).inc();
            if let Some(whole) = replayed.reference {
                self.trial.judge.set_reference_broken(!whole);
            }
            if let Some(detail) = &replayed.report.detail {
                tracing::info!(set = &*self.name, sample = replayed.report.sample, detail, "{word}");
            }
            self.worker.shared.evidence.urgent(What::Golden(replayed.report));
            let (next, failed) = (self.trial.observe(outcome), self.told.is_some_and(|told| told.0 == Verdict::Fail));
            if failed && !self.has_failed() {
                tracing::info!(set = &*self.name, "right answers again: the verdict is open anew");
            }
            self.tell();
            // No answer is no confirmation, and asking a server that cannot answer again and again helps nobody.
            if next == Next::Draw || outcome == Outcome::NoAnswer {
                return outcome == Outcome::Match;
            }
        }
    }

    /// Reports the verdict where it or its counts have changed, and now and then where they have not.
    fn tell(&mut self) {
        let judge = &self.trial.judge;
        let now = (judge.verdict(), judge.samples(), judge.mismatches());
        if self.told == Some(now) && self.told_at.elapsed() < TELL_AGAIN {
            return;
        }
        self.told_at = Instant::now();
        let gauge = &self.worker.meter.metrics.golden_verdict;
        for verdict in VERDICTS {
            gauge.with_label_values(&[&*self.label, &verdict.to_string()]).set(i64::from(verdict == now.0));
        }
        if self.told.is_none_or(|told| told.0 != now.0) {
            tracing::info!(set = &*self.name, verdict = %now.0, reason = judge.reason(), "golden verdict");
        }
        self.told = Some(now);
        let (verdict, samples, mismatches) = now;
        let told = What::GoldenVerdict { set: self.name.to_string(), digest: self.digest.clone(), verdict, samples, mismatches };
        self.worker.shared.evidence.urgent(told);
    }
}

const VERDICTS: [Verdict; 4] = [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::ReferenceBroken];

impl Drop for Asked {
    fn drop(&mut self) {
        // Nobody asks any more, so there is no verdict.
        for verdict in VERDICTS {
            let _ = self.worker.meter.metrics.golden_verdict.remove_label_values(&[&*self.label, &verdict.to_string()]);
        }
    }
}

/// The judge, and the one that may succeed it.
struct Trial {
    judge: Judge,
    /// Since the last wrong answer of a server that has failed.
    probation: Option<Judge>,
    settings: Settings,
    deterministic: bool,
    recovered_after: u32,
}

impl Trial {
    fn new(terms: &Terms, deterministic: bool) -> Result<Self, BadSettings> {
        let judge = judge(terms.settings, deterministic)?;
        Ok(Self { judge, probation: None, settings: terms.settings, deterministic, recovered_after: terms.recovered_after })
    }

    /// Other terms. Where only false alarms are to be as rare in time at another pace, evidence goes on counting; what was gathered about another share of wrong answers counts no
    /// more, except that a Fail stays until it is mended.
    fn under(&mut self, terms: &Terms) -> Result<(), BadSettings> {
        if self.settings != terms.settings && self.settings == (Settings { run_length: self.settings.run_length, ..terms.settings }) {
            for judge in [Some(&mut self.judge), self.probation.as_mut()].into_iter().flatten() {
                judge.promise(terms.settings.run_length)?;
            }
            self.settings = terms.settings;
        } else if self.settings != terms.settings {
            let fresh = judge(terms.settings, self.deterministic)?;
            if self.judge.verdict() == Verdict::Fail {
                self.probation = Some(fresh);
            } else {
                self.judge = fresh;
            }
            self.settings = terms.settings;
        }
        self.recovered_after = terms.recovered_after;
        Ok(())
    }

    /// A server that became ready is another one, as far as anybody can tell.
    fn server_starts(&mut self, lasting: bool) {
        if !(lasting && self.judge.verdict() == Verdict::Fail) {
            self.judge.reset();
            self.probation = None;
        }
    }

    fn observe(&mut self, outcome: Outcome) -> Next {
        let next = self.judge.observe(outcome);
        if self.judge.verdict() != Verdict::Fail {
            return next;
        }
        if self.probation.is_none() {
            // Its settings were checked when the judge was made.
            self.probation = judge(self.settings, self.deterministic).ok();
        }
        let Some(probation) = &mut self.probation else { return next };
        match outcome {
            Outcome::Mismatch => probation.reset(),
            Outcome::Match => drop(probation.observe(outcome)),
            Outcome::NoAnswer => {}
        }
        if probation.samples() >= u64::from(self.recovered_after)
            && let Some(recovered) = self.probation.take()
        {
            self.judge = recovered;
        }
        next
    }
}

fn judge(settings: Settings, deterministic: bool) -> Result<Judge, BadSettings> {
    let judge = Judge::monitor(settings)?;
    Ok(if deterministic { judge.deterministic(RETRIES) } else { judge })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(lasting: bool) -> (Trial, Terms) {
        let settings = Settings::monitor(3e-8, 0.1);
        let terms = Terms { settings, recovered_after: settings.recovered_after(), lasting, ..Terms::by_hand(Duration::from_secs(1)) };
        (Trial::new(&terms, false).unwrap(), terms)
    }

    fn fail(trial: &mut Trial) {
        let asked = (0..20).position(|_| {
            trial.observe(Outcome::Mismatch);
            trial.judge.verdict() == Verdict::Fail
        });
        assert!(asked.is_some_and(|asked| asked < 10), "{asked:?}");
    }

    #[test]
    fn a_failed_server_is_asked_anew_after_so_many_right_answers_in_a_row() {
        let (mut trial, terms) = trial(true);
        assert_eq!(terms.recovered_after, 29, "0.9^29 is below one in twenty");
        fail(&mut trial);
        for _ in 0..28 {
            trial.observe(Outcome::Match);
        }
        trial.observe(Outcome::Mismatch);
        for _ in 0..28 {
            trial.observe(Outcome::Match);
            trial.observe(Outcome::NoAnswer);
            assert_eq!(trial.judge.verdict(), Verdict::Fail);
        }
        trial.observe(Outcome::Match);
        assert_eq!((trial.judge.verdict(), trial.judge.samples(), trial.judge.mismatches()), (Verdict::Inconclusive, 29, 0), "its evidence is kept");
    }

    #[test]
    fn starting_again_mends_nothing_where_the_verdict_lasts() {
        let (mut trial, _) = trial(true);
        fail(&mut trial);
        trial.server_starts(true);
        assert_eq!(trial.judge.verdict(), Verdict::Fail);
        trial.server_starts(false);
        assert_eq!((trial.judge.verdict(), trial.judge.samples()), (Verdict::Inconclusive, 0));
    }

    #[test]
    fn another_share_begins_anew_and_a_fail_stays() {
        let (mut trial, mut terms) = trial(true);
        trial.observe(Outcome::Match);
        terms.every = Duration::from_secs(2);
        trial.under(&terms).unwrap();
        assert_eq!(trial.judge.samples(), 1, "the pace is no promise");
        terms.settings = Settings::monitor(1e-6, 0.2);
        trial.under(&terms).unwrap();
        assert_eq!(trial.judge.samples(), 0);
        fail(&mut trial);
        terms.settings = Settings::monitor(1e-5, 0.1);
        trial.under(&terms).unwrap();
        assert_eq!(trial.judge.verdict(), Verdict::Fail);
    }

    #[test]
    fn a_run_that_asks_oftener_takes_no_pass_away_neither_when_it_begins_nor_when_it_ends() {
        let (mut trial, terms) = trial(true);
        let oftener = Terms { every: Duration::from_millis(100), settings: Settings::monitor(3e-9, 0.1), ..terms.clone() };
        let passed = (1..1_000).find(|_| {
            trial.observe(Outcome::Match);
            trial.judge.verdict() == Verdict::Pass
        });
        let passed = passed.expect("a Pass");
        for terms in [&oftener, &terms] {
            trial.under(terms).unwrap();
            assert_eq!((trial.judge.verdict(), trial.judge.samples()), (Verdict::Pass, passed));
        }
        trial.under(&oftener).unwrap();
        fail(&mut trial);
        trial.observe(Outcome::Match);
        trial.under(&terms).unwrap();
        assert_eq!((trial.judge.verdict(), trial.probation.as_ref().map(Judge::samples)), (Verdict::Fail, Some(1)), "nor what a failed one has shown since");
    }
}
