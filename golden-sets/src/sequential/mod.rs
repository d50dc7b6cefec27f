//! Verdicts that may be looked at after every sample: evidence is an e-process, so peeking costs nothing and the promise holds however long it runs.
//!
//! Samples are drawn uniformly at random with replacement ([`Draw`]), so "no drift" means that each draw mismatches with a conditional probability of at
//! most [`Settings::tolerated`]. [`Judge`] holds three kinds of evidence about that:
//!
//! - against "no drift" for a one-shot gate: a mixture of likelihood ratios ([`Mixture`]); by Ville's inequality it reaches 1/α with
//!   probability at most α, over an unlimited horizon (Howard, Ramdas, McAuliffe, Sekhon 2021);
//! - against "no drift so far" in continuous monitoring: a Shiryaev–Roberts e-detector ([`Detector`]; Shin, Ramdas, Rinaldo 2022), whose alarms come at
//!   least [`Settings::run_length`] samples apart on average while nothing is wrong;
//! - against "mismatches are as frequent as what is to be detected" ([`Exclusion`]): when it reaches 1/α, the verdict is Pass.
//!
//! Until one of them is strong enough the verdict is Inconclusive. A replay without an answer is not evidence of anything and enters none of them.

mod draw;
mod evidence;
pub mod fleet;
mod judge;

pub use draw::Draw;
pub use evidence::{Detector, Exclusion, Mixture};
pub use judge::{Judge, Next};

/// See [`Settings::recovered_after`].
pub const RETURNS_WRONGLY: f64 = 0.05;

/// What a verdict promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// α: the probability of a false Fail of a gate, and of a false Pass. 0.001 by default.
    pub false_alarms: f64,
    /// p0: the share of mismatches that is no drift. 0.001 by default.
    pub tolerated: f64,
    /// The share of mismatches that must not go unseen; more than `tolerated`. 0.01 by default.
    pub detect: f64,
    /// Average number of samples between false alarms of a monitor, at least. 10^7 by default: four months at one sample a second.
    pub run_length: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { false_alarms: 0.001, tolerated: 0.001, detect: 0.01, run_length: 1e7 }
    }
}

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {value} is out of range: {expected}")]
pub struct BadSettings {
    pub field: &'static str,
    pub value: f64,
    pub expected: &'static str,
}

impl Settings {
    /// For a monitor that may give `at_most` false alarms in `samples` samples: `{falseAlarms: {atMost: 1, per: 365d}}` at one sample a second is
    /// `(1.0, 31_536_000.0)`.
    #[must_use]
    pub fn with_alarms(mut self, at_most: f64, samples: f64) -> Self {
        self.run_length = samples / at_most;
        self
    }

    /// For a monitor that is described by `alpha`, the bound on the chance that one test ever raises a false alarm. The detector begins such a test with every
    /// sample and alarms when their evidence adds up to 1/alpha, so false alarms are at least 1/alpha samples apart on average. Mismatches that are to be detected
    /// are `detect` of all; what is tolerated is a tenth of it, and 0.001 at most.
    #[must_use]
    pub fn monitor(alpha: f64, detect: f64) -> Self {
        let default = Self::default();
        Self { run_length: 1.0 / alpha, detect, tolerated: default.tolerated.min(detect / 10.0), ..default }
    }

    /// Right answers in a row after which a server that has failed is asked anew. One that still answers the share `detect` wrong, or more, gives so many with a
    /// probability of at most [`RETURNS_WRONGLY`].
    pub fn recovered_after(&self) -> u32 {
        (RETURNS_WRONGLY.ln() / (-self.detect).ln_1p()).ceil().max(1.0) as u32
    }

    /// Whether these can be promised.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn check(&self) -> Result<(), BadSettings> {
        let fields = [
            ("falseAlarms", self.false_alarms, 1e-12..=0.5, "more than 0 (at least 1e-12) and at most 0.5"),
            ("tolerated", self.tolerated, 1e-9..=0.2, "at least 1e-9 and at most 0.2"),
            ("detect", self.detect, self.tolerated * 2.0..=0.9, "at least twice what is tolerated, and at most 0.9"),
            ("runLength", self.run_length, 10.0..=1e15, "at least 10 samples and at most 1e15"),
        ];
        // NaN lies in no range.
        fields
            .into_iter()
            .find(|(_, value, range, _)| !range.contains(value))
            .map_or(Ok(()), |(field, value, _, expected)| Err(BadSettings { field, value, expected }))
    }
}

/// log Σ exp(x): the sum of what are too large or too small to be written out.
fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_infinite() {
        return largest;
    }
    largest + logs.map(|log| (log - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests;
