//! The three-way check of one answer: live against what was enrolled from this server, live against the stored reference answer, and, where it was
//! recomputed, the reference against its own stored answer.

use steadfast_api::golden::Outcome;

use crate::{
    compare::{Comparison, Rules},
    enrol::Enrolment,
    set::{GoldenSet, Sample},
    tensor::Tensor,
};

/// Compares answers of one server with one set.
#[derive(Clone, Debug)]
pub struct Checker {
    stored: Rules,
    enrolled: Option<(Rules, Vec<Vec<Tensor>>)>,
}

/// What was found of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// (1) Live against enrolled; decides where there is an enrolment.
    pub enrolled: Option<Comparison>,
    /// (2) Live against stored; decides where there is none, and tells of the server's distance to the reference where there is one.
    pub stored: Comparison,
    /// (3) Reference recomputed now against stored. If it fails, nothing is said of the server.
    pub reference: Option<Comparison>,
}

impl Checker {
    /// Checks against the set alone, or against what `enrolment` holds as well.
    pub fn new(set: &GoldenSet, enrolment: Option<&Enrolment>) -> Self {
        let stored = set.rules();
        let enrolled = enrolment.map(|enrolment| (enrolment.rules(set), enrolment.answers().to_vec()));
        Self { stored, enrolled }
    }

    /// `index` is the sample's place in the set, `live` the server's answer, `recomputed` the reference's where it was computed.
    pub fn check(&self, index: usize, sample: &Sample, live: &[Tensor], recomputed: Option<&[Tensor]>) -> Check {
        let enrolled = self.enrolled.as_ref().and_then(|(rules, answers)| Some(rules.compare(answers.get(index)?, live)));
        let reference = recomputed.map(|recomputed| self.stored.compare(&sample.outputs, recomputed));
        Check { enrolled, stored: self.stored.compare(&sample.outputs, live), reference }
    }
}

impl Check {
    /// The reference no longer gives its own stored answer: verdict `ReferenceBroken`.
    pub fn reference_broken(&self) -> bool {
        self.reference.as_ref().is_some_and(|reference| !reference.matches())
    }

    /// Match or mismatch of the live answer. Meaningless while [`Check::reference_broken`].
    pub fn outcome(&self) -> Outcome {
        if self.deciding().matches() { Outcome::Match } else { Outcome::Mismatch }
    }

    fn deciding(&self) -> &Comparison {
        self.enrolled.as_ref().unwrap_or(&self.stored)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        match (&self.reference, &self.enrolled) {
            (Some(reference), _) if !reference.matches() => format!("the reference does not reproduce its stored answer: {reference}"),
            (_, Some(enrolled)) if enrolled.matches() && !self.stored.matches() => {
                format!("as enrolled ({enrolled}), though not as the reference: {}", self.stored)
            }
            (_, Some(enrolled)) if !enrolled.matches() && self.stored.matches() => format!("as the reference, though not as enrolled: {enrolled}"),
            _ => self.deciding().to_string(),
        }
    }
}
