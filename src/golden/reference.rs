//! Is the set itself sound? An engine recomputes every stored answer before anything is said of a server.

use serde_json::json;
use steadfast_golden_sets::{
    GoldenSet,
    engine::{self, EngineChoice, EngineError, Proof},
};

use super::{count, engine_options, short};

/// What an engine says of a set.
pub(super) enum Reference {
    Proven(Proof),
    /// The engine cannot compute this model, or is not here: nothing is known either way.
    Unknown {
        engine: &'static str,
        why: String,
    },
    /// The engine computes the model and gives other answers than the stored ones.
    Broken {
        engine: &'static str,
        why: String,
    },
}

/// As [`ask`], but an engine that was asked for by name must be there.
pub(super) fn wanted(set: &GoldenSet, choice: EngineChoice) -> Result<Reference, String> {
    match ask(set, choice) {
        Reference::Unknown { why, .. } if choice != EngineChoice::Auto => {
            Err(format!("--engine {}: {why}", if choice == EngineChoice::Rten { "rten" } else { "onnxruntime" }))
        }
        reference => Ok(reference),
    }
}

/// Opens the engine and lets it compute the whole set.
pub(super) fn ask(set: &GoldenSet, choice: EngineChoice) -> Reference {
    let name = match choice {
        EngineChoice::Rten => "rten",
        EngineChoice::OnnxRuntime | EngineChoice::Auto => "onnxruntime",
    };
    let mut engine = match engine::open(set.model(), &engine_options(choice)) {
        Ok(engine) => engine,
        Err(error) => {
            let engine = if matches!(error, EngineError::Trap { .. }) { "rten" } else { name };
            return Reference::Unknown { engine, why: error.to_string() };
        }
    };
    match engine::prove(set, engine.as_mut()) {
        Ok(proof) => Reference::Proven(proof),
        // Without an output it gave no answer at all.
        Err(refused) if refused.output.is_empty() => Reference::Unknown { engine: refused.engine, why: refused.to_string() },
        Err(refused) => Reference::Broken { engine: refused.engine, why: refused.to_string() },
    }
}

impl Reference {
    pub(super) fn line(&self) -> String {
        match self {
            Self::Proven(proof) => {
                let largest: Vec<String> = proof.largest.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
                format!("{} {} reproduces {}; largest difference: {}", proof.engine, proof.version, count(proof.samples, "stored answer"), largest.join(", "))
            }
            Self::Unknown { why, .. } => format!("not recomputed: {why}"),
            Self::Broken { why, .. } => format!("BROKEN: {why}"),
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Proven(proof) => {
                let largest: serde_json::Map<_, _> = proof.largest.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
                json!({"state": "proven", "engine": proof.engine, "version": proof.version, "samples": proof.samples, "largestDifference": largest})
            }
            Self::Unknown { engine, why } => json!({"state": "unknown", "engine": engine, "why": why}),
            Self::Broken { engine, why } => json!({"state": "broken", "engine": engine, "why": why}),
        }
    }
}
