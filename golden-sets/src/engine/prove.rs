//! An engine proves itself: it must reproduce every stored output of a set, or the set is refused on it.

use std::fmt;

use steadfast_api::golden::Digest;

use super::{Engine, GET_ONNX_RUNTIME};
use crate::set::GoldenSet;

/// That an engine reproduced a whole set. Inputs that are not in the set are not proven by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    pub engine: &'static str,
    pub version: String,
    /// Of the set.
    pub set: Digest,
    pub samples: usize,
    /// For each output the largest |computed − stored|.
    pub largest: Vec<(String, f64)>,
}

/// Why a set was refused on an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub engine: &'static str,
    pub sample: String,
    /// Empty when the engine gave no answer at all.
    pub output: String,
    /// What differs and by how much, or the engine's error.
    pub difference: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, sample, output, difference, hint } = self;
        if output.is_empty() {
            write!(f, "{engine} cannot compute sample {sample:?}: {difference}; {hint}")
        } else {
            write!(f, "{engine} does not reproduce sample {sample:?}: {output} {difference}; {hint}")
        }
    }
}

impl std::error::Error for Refused {}

/// Runs every sample and compares the answers with the stored ones by the set's own rules.
pub fn prove(set: &GoldenSet, engine: &mut dyn Engine) -> Result<Proof, Box<Refused>> {
    let rules = set.rules();
    let name = engine.name();
    let hint = || match name {
        "onnxruntime" => "the stored outputs are not this model's: record them anew, or widen the tolerance in golden.yaml".to_owned(),
        _ => GET_ONNX_RUNTIME.to_owned(),
    };
    let mut largest: Vec<(String, f64)> = rules.outputs().iter().map(|rule| (rule.name.clone(), 0.0)).collect();
    for sample in set.samples() {
        let refused = |output: &str, difference: String| {
            Box::new(Refused { engine: name, sample: sample.name.clone(), output: output.to_owned(), difference, hint: hint() })
        };
        let computed = engine.run(&sample.inputs).map_err(|error| refused("", error.to_string()))?;
        let comparison = rules.compare(&sample.outputs, &computed);
        if let Some(difference) = comparison.mismatch() {
            return Err(refused(&difference.output, difference.line.clone()));
        }
        for ((_, largest), difference) in largest.iter_mut().zip(&comparison.outputs) {
            *largest = largest.max(difference.absolute);
        }
    }
    Ok(Proof { engine: name, version: engine.version().to_owned(), set: set.digest(), samples: set.samples().len(), largest })
}
