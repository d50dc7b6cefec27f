//! The e-processes themselves, in logarithms throughout: a year of samples neither overflows nor underflows.

use super::{Settings, log_sum};

/// Shares of mismatches that drift may show, and how likely each is held before anything is seen. Spread over three decades, so that one wrong sample in
/// three hundred and a server that is wrong throughout are both found about as fast as if it had been known which to look for; most weight where a single
/// broken item of a set of ten to thirty would be.
const GRID: [(f64, f64); 6] = [(0.003, 0.1), (0.01, 0.2), (0.03, 0.2), (0.1, 0.25), (0.3, 0.15), (0.9, 0.1)];

/// What one sample multiplies the evidence of one alternative by.
#[derive(Clone, Copy, Debug)]
struct Term {
    log_weight: f64,
    /// log(p/p0), for a mismatch.
    mismatch: f64,
    /// log((1−p)/(1−p0)), for a match.
    r#match: f64,
}

fn term(weight: f64, alternative: f64, null: f64) -> Term {
    Term { log_weight: weight.ln(), mismatch: (alternative / null).ln(), r#match: ((1.0 - alternative) / (1.0 - null)).ln() }
}

fn terms(null: f64) -> Vec<Term> {
    // An alternative near or below the null could never be told from it. 0.9 always remains: the null is at most 0.2.
    let usable = GRID.iter().filter(|(p, _)| *p >= 2.0 * null);
    let total: f64 = usable.clone().map(|(_, weight)| weight).sum();
    usable.map(|(p, weight)| term(weight / total, *p, null)).collect()
}

/// E_t = Σ_j w_j Π_i (p_j/p0)^{X_i} ((1−p_j)/(1−p0))^{1−X_i}: evidence against "mismatches are at most p0", once, from the first sample on.
#[derive(Clone, Debug)]
pub struct Mixture {
    terms: Vec<Term>,
    matches: u64,
    mismatches: u64,
}

impl Mixture {
    pub fn new(settings: &Settings) -> Self {
        Self { terms: terms(settings.tolerated), matches: 0, mismatches: 0 }
    }

    pub const fn observe(&mut self, mismatch: bool) {
        // Only counts are kept: nothing accumulates rounding.
        if mismatch { self.mismatches += 1 } else { self.matches += 1 }
    }

    /// log E_t.
    pub fn log_value(&self) -> f64 {
        let (matches, mismatches) = (self.matches as f64, self.mismatches as f64);
        log_sum(self.terms.iter().map(move |term| term.log_weight + mismatches * term.mismatch + matches * term.r#match))
    }
}

/// R_t = Σ_j w_j R_t^j with R_t^j = (R_{t−1}^j + 1)·e_t^j: evidence that mismatches rose above p0 at some moment. An alarm at R ≥ A comes after A samples or
/// more on average while nothing is wrong, because R_t − t is a supermartingale.
#[derive(Clone, Debug)]
pub struct Detector {
    terms: Vec<Term>,
    logs: Vec<f64>,
}

impl Detector {
    pub fn new(settings: &Settings) -> Self {
        let terms = terms(settings.tolerated);
        Self { logs: vec![f64::NEG_INFINITY; terms.len()], terms }
    }

    pub fn observe(&mut self, mismatch: bool) {
        for (log, term) in self.logs.iter_mut().zip(&self.terms) {
            let plus_one = if *log > 0.0 { *log + (-*log).exp().ln_1p() } else { log.exp().ln_1p() };
            *log = plus_one + if mismatch { term.mismatch } else { term.r#match };
        }
    }

    /// log R_t.
    pub fn log_value(&self) -> f64 {
        log_sum(self.logs.iter().zip(&self.terms).map(|(log, term)| log + term.log_weight))
    }
}

/// Evidence against "mismatches are at least `detect`": likelihood ratios of smaller shares against `detect` itself, the hardest case of that claim.
///
/// Each is held at ten times what a Pass needs, so that a server that went wrong after a long good time stops being a Pass after a few mismatches;
/// holding a supermartingale down leaves it one.
#[derive(Clone, Debug)]
pub struct Exclusion {
    terms: Vec<Term>,
    logs: Vec<f64>,
    cap: f64,
}

impl Exclusion {
    pub fn new(settings: &Settings) -> Self {
        // A hundredth for servers that are right throughout (no Pass is much faster), the others for those with a few mismatches below `detect`.
        let terms: Vec<Term> = [(0.01, 0.5), (0.1, 0.4), (0.3, 0.1)].map(|(share, weight)| term(weight, settings.detect * share, settings.detect)).into();
        Self { logs: vec![0.0; terms.len()], terms, cap: (10.0 / settings.false_alarms).ln() }
    }

    pub fn observe(&mut self, mismatch: bool) {
        for (log, term) in self.logs.iter_mut().zip(&self.terms) {
            // The weight is below one, so a term may reach the cap divided by it and the sum still be a mixture of capped parts.
            *log = (*log + if mismatch { term.mismatch } else { term.r#match }).min(self.cap - term.log_weight);
        }
    }

    /// log of the evidence.
    pub fn log_value(&self) -> f64 {
        log_sum(self.logs.iter().zip(&self.terms).map(|(log, term)| log + term.log_weight))
    }
}
