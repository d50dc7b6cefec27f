//! Comparing two answers, output by output, each by the rule of its kind.
//!
//! Sources: NumPy's `allclose` for the shape of the regression rule; the margin rule of classification, ties of rankings and relative L2 of embeddings
//! because engines and batch sizes move near-equal scores past each other without anything being wrong.
//!
//! Everywhere: a missing output, another shape, or a type that cannot be cast to the declared one without a change is a mismatch. NaN equals NaN and an
//! infinity equals itself; each is infinitely far from anything else.

mod numbers;
mod ranking;

use std::fmt;

use steadfast_api::golden::{Compare, DataType, Decimal, Noise, SetManifest};

use crate::tensor::Tensor;

/// How answers are compared: one rule an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    outputs: Vec<Rule>,
}

/// The rule of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub datatype: DataType,
    pub compare: Compare,
}

/// What comparing two answers showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub outputs: Vec<Difference>,
}

/// What comparing one output showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub output: String,
    /// Within the rule.
    pub matches: bool,
    /// Largest |a − b|; for rankings and exact outputs the share of values that differ. Infinite where the two cannot be compared.
    pub absolute: f64,
    /// Largest length of a − b ÷ length of b over the last axis; 0 for what has no lengths.
    pub relative: f64,
    /// Where: the index of the value that is furthest beyond (or nearest to) what is allowed.
    pub at: Option<Vec<usize>>,
    /// For people: what differs, by how much, and how much may.
    pub line: String,
}

/// One output of an answer, cast to its declared type, or why there is none.
type Found = Result<Tensor, String>;

impl Rules {
    /// The set's own.
    pub fn of(manifest: &SetManifest) -> Self {
        let outputs = manifest.outputs.iter().map(|spec| Rule { name: spec.name.clone(), datatype: spec.datatype, compare: spec.compare.clone() });
        Self { outputs: outputs.collect() }
    }

    /// The same outputs under other rules, e.g. those learnt at enrolment; outputs that `rule` does not know keep theirs.
    #[must_use]
    pub fn with(mut self, rule: impl Fn(&str) -> Option<Compare>) -> Self {
        for output in &mut self.outputs {
            if let Some(compare) = rule(&output.name) {
                output.compare = compare;
            }
        }
        self
    }

    pub fn outputs(&self) -> &[Rule] {
        &self.outputs
    }

    /// Compares `live` with `reference`. Outputs are found by name; where `live` has none of the names but as many tensors, by position
    /// (some servers name outputs after themselves). Outputs that no rule names are ignored.
    pub fn compare(&self, reference: &[Tensor], live: &[Tensor]) -> Comparison {
        let by_position = live.len() == self.outputs.len() && self.outputs.iter().all(|rule| live.iter().all(|tensor| tensor.name != rule.name));
        let find = |tensors: &[Tensor], index: usize, by_position: bool| -> Found {
            let rule = &self.outputs[index];
            let tensor = if by_position { tensors.get(index) } else { tensors.iter().find(|tensor| tensor.name == rule.name) };
            let tensor = tensor.ok_or_else(|| {
                let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                format!("is missing; the answer has {names:?}")
            })?;
            tensor.cast(rule.datatype).map_err(|error| error.to_string())
        };
        let pairs: Vec<_> = (0..self.outputs.len()).map(|index| (find(reference, index, false), find(live, index, by_position))).collect();
        let outputs = self.outputs.iter().zip(&pairs).map(|(rule, (reference, live))| match (reference, live) {
            (Err(why), _) => Difference::incomparable(&rule.name, &format!("stored answer: {why}")),
            (_, Err(why)) => Difference::incomparable(&rule.name, why),
            (Ok(reference), Ok(live)) if reference.shape != live.shape => {
                Difference::incomparable(&rule.name, &format!("has shape {:?} where {:?} is expected", live.shape, reference.shape))
            }
            (Ok(reference), Ok(live)) => self.one(rule, reference, live, &pairs),
        });
        Comparison { outputs: outputs.collect() }
    }

    fn one(&self, rule: &Rule, reference: &Tensor, live: &Tensor, pairs: &[(Found, Found)]) -> Difference {
        match &rule.compare {
            Compare::Regression { absolute, relative } => numbers::regression(reference, live, absolute.value(), relative.value()),
            Compare::Classification { absolute } => numbers::classification(reference, live, absolute.value()),
            Compare::Embedding { absolute, relative } => numbers::embedding(reference, live, absolute.value(), relative.value()),
            Compare::Exact {} => ranking::exact(reference, live),
            Compare::Ranking { scores, overlap } => {
                let index = self.outputs.iter().position(|other| other.name == *scores);
                let Some((judge, (reference_scores, live_scores))) = index.and_then(|index| Some((&self.outputs[index], pairs.get(index)?))) else {
                    return Difference::incomparable(&rule.name, &format!("its scores {scores:?} are not among the outputs"));
                };
                let (absolute, relative) = tolerances(&judge.compare);
                match (reference_scores, live_scores) {
                    (Ok(reference_scores), Ok(live_scores)) => ranking::ranking(
                        reference,
                        live,
                        &ranking::Scores { reference: reference_scores, live: live_scores, absolute, relative },
                        overlap.ratio(),
                    ),
                    (Err(why), _) | (_, Err(why)) => Difference::incomparable(&rule.name, &format!("its scores {scores:?}: {why}")),
                }
            }
        }
    }
}

/// Absolute and relative tolerance of a rule for numbers.
fn tolerances(compare: &Compare) -> (f64, f64) {
    match compare {
        Compare::Regression { absolute, relative } => (absolute.value(), relative.value()),
        Compare::Classification { absolute } | Compare::Embedding { absolute, .. } => (absolute.value(), 0.0),
        Compare::Ranking { .. } | Compare::Exact {} => (0.0, 0.0),
    }
}

impl Comparison {
    /// Every output is within its rule.
    pub fn matches(&self) -> bool {
        self.outputs.iter().all(|difference| difference.matches)
    }

    /// The first output beyond its rule.
    pub fn mismatch(&self) -> Option<&Difference> {
        self.outputs.iter().find(|difference| !difference.matches)
    }
}

impl fmt::Display for Comparison {
    /// One line: the first mismatch, or how close everything was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(difference) = self.mismatch() {
            return write!(f, "{difference}");
        }
        let largest = self.outputs.iter().map(|difference| difference.absolute).fold(0.0, f64::max);
        write!(f, "all {} outputs match; largest difference {}", self.outputs.len(), short(largest))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.output, self.line)
    }
}

impl Difference {
    fn incomparable(output: &str, why: &str) -> Self {
        Self { output: output.to_owned(), matches: false, absolute: f64::INFINITY, relative: f64::INFINITY, at: None, line: why.to_owned() }
    }

    /// As it is written to files; a difference that is not finite has no decimal text.
    pub fn noise(&self) -> Option<Noise> {
        Some(Noise { absolute: Decimal::from_f64(self.absolute)?, relative: Decimal::from_f64(self.relative)? })
    }
}

/// The index of a value in row-major order as one index an axis.
fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (place, size) in at.iter_mut().zip(shape).rev() {
        // A value exists, so no axis is empty; `max` keeps the division safe all the same.
        (*place, index) = (index % (*size).max(1), index / (*size).max(1));
    }
    at
}

/// Length of a row, the last axis; scalars are rows of one.
fn row_length(tensor: &Tensor) -> usize {
    tensor.shape.last().copied().unwrap_or(1).max(1)
}

/// Three significant digits, enough to compare with a tolerance.
fn short(value: f64) -> String {
    if value == 0.0 || (1e-3..1e4).contains(&value.abs()) {
        format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.2e}")
    }
}

#[cfg(test)]
mod tests;
