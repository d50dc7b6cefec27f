//! From replays to a verdict.

use steadfast_api::golden::{Outcome, Verdict};

use super::{BadSettings, Detector, Exclusion, Mixture, Settings};

/// What to replay after an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A new draw.
    Draw,
    /// The same sample again, at once: a server that never varies answered it wrongly.
    Retry,
}

/// Evidence about one server and one set, and the verdict that it carries so far. A Fail stays until [`Judge::reset`].
#[derive(Clone, Debug)]
pub struct Judge {
    settings: Settings,
    drift: Drift,
    exclusion: Exclusion,
    confirm: Option<Confirm>,
    failed: Option<&'static str>,
    reference_broken: bool,
    samples: u64,
    mismatches: u64,
    unanswered: u64,
}

#[derive(Clone, Debug)]
enum Drift {
    Once(Mixture),
    Continuous(Detector),
}

/// Immediate retries of a mismatch, for servers whose enrolled noise is zero: for them one confirmed mismatch is proof.
#[derive(Clone, Copy, Debug)]
struct Confirm {
    retries: u32,
    /// Retries still to do; zero when none is under way.
    left: u32,
}

impl Judge {
    /// For a rollout or an experiment: one question, asked once.
    pub fn gate(settings: Settings) -> Result<Self, BadSettings> {
        settings.check()?;
        Ok(Self::new(settings, Drift::Once(Mixture::new(&settings))))
    }

    /// For watching without end.
    pub fn monitor(settings: Settings) -> Result<Self, BadSettings> {
        settings.check()?;
        Ok(Self::new(settings, Drift::Continuous(Detector::new(&settings))))
    }

    fn new(settings: Settings, drift: Drift) -> Self {
        let exclusion = Exclusion::new(&settings);
        Self { settings, drift, exclusion, confirm: None, failed: None, reference_broken: false, samples: 0, mismatches: 0, unanswered: 0 }
    }

    /// The server's enrolled noise is zero: a mismatch is replayed `retries` times (at least once) at once, and if it stays, that is a Fail.
    #[must_use]
    pub fn deterministic(mut self, retries: u32) -> Self {
        self.confirm = Some(Confirm { retries: retries.max(1), left: 0 });
        self
    }

    /// Takes in one replay and says what to replay next. Retries are no random draws: they confirm, and enter no other evidence.
    pub fn observe(&mut self, outcome: Outcome) -> Next {
        let mismatch = match outcome {
            Outcome::NoAnswer => {
                self.unanswered += 1;
                // The server may be back in a moment: what was to be confirmed still is.
                return self.next();
            }
            Outcome::Match => false,
            Outcome::Mismatch => true,
        };
        if let Some(confirm) = self.confirm.as_mut().filter(|confirm| confirm.left > 0) {
            confirm.left = if mismatch { confirm.left - 1 } else { 0 };
            if mismatch && confirm.left == 0 {
                self.failed.get_or_insert("a deterministic server repeats a wrong answer");
            }
            return self.next();
        }
        self.samples += 1;
        self.mismatches += u64::from(mismatch);
        self.exclusion.observe(mismatch);
        let (log_value, threshold) = match &mut self.drift {
            Drift::Once(mixture) => {
                mixture.observe(mismatch);
                (mixture.log_value(), -self.settings.false_alarms.ln())
            }
            Drift::Continuous(detector) => {
                detector.observe(mismatch);
                (detector.log_value(), self.settings.run_length.ln())
            }
        };
        if log_value >= threshold {
            self.failed.get_or_insert("mismatches are more than chance allows");
        }
        if let Some(confirm) = self.confirm.as_mut().filter(|_| mismatch && self.failed.is_none()) {
            confirm.left = confirm.retries;
        }
        self.next()
    }

    fn next(&self) -> Next {
        if self.confirm.is_some_and(|confirm| confirm.left > 0) { Next::Retry } else { Next::Draw }
    }

    /// The reference did not reproduce its own stored answers (or does again): while it does not, nothing is said of the server.
    pub const fn set_reference_broken(&mut self, broken: bool) {
        self.reference_broken = broken;
    }

    /// What the evidence carries now.
    pub fn verdict(&self) -> Verdict {
        if self.reference_broken {
            Verdict::ReferenceBroken
        } else if self.failed.is_some() {
            Verdict::Fail
        } else if self.exclusion.log_value() >= -self.settings.false_alarms.ln() {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        }
    }

    /// Why, in one line.
    pub fn reason(&self) -> String {
        let Self { samples, mismatches, unanswered, settings, .. } = self;
        let counts = format!("{mismatches} of {samples} samples mismatched, {unanswered} without answer");
        match self.verdict() {
            Verdict::ReferenceBroken => "the reference does not reproduce its stored answers".to_owned(),
            Verdict::Fail => format!("{}: {counts}", self.failed.unwrap_or_default()),
            Verdict::Pass => format!("{counts}; {}% or more is excluded", settings.detect * 100.0),
            Verdict::Inconclusive => format!("{counts}; too few to exclude {}%", settings.detect * 100.0),
        }
    }

    /// Promises other false alarms from now on, and keeps what was seen: what a sample tells depends neither on how often there is one nor on how much has to add up for
    /// an alarm, so alarms stay at least as rare as the laxer of the two promises says.
    ///
    /// # Errors
    /// What cannot be promised changes nothing.
    pub fn promise(&mut self, run_length: f64) -> Result<(), BadSettings> {
        let settings = Settings { run_length, ..self.settings };
        settings.check()?;
        self.settings = settings;
        Ok(())
    }

    /// Forgets everything seen, after a new rollout or once an alarm was dealt with.
    pub fn reset(&mut self) {
        let drift = match self.drift {
            Drift::Once(_) => Drift::Once(Mixture::new(&self.settings)),
            Drift::Continuous(_) => Drift::Continuous(Detector::new(&self.settings)),
        };
        let confirm = self.confirm.map(|confirm| Confirm { left: 0, ..confirm });
        *self = Self { confirm, ..Self::new(self.settings, drift) };
    }

    /// log of the evidence against "no drift", for [`super::fleet`] (of gates) and for display.
    pub fn log_evidence(&self) -> f64 {
        match &self.drift {
            Drift::Once(mixture) => mixture.log_value(),
            Drift::Continuous(detector) => detector.log_value(),
        }
    }

    /// Draws that were answered; retries not counted.
    pub const fn samples(&self) -> u64 {
        self.samples
    }

    pub const fn mismatches(&self) -> u64 {
        self.mismatches
    }

    pub const fn unanswered(&self) -> u64 {
        self.unanswered
    }
}
