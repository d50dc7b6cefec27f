//! Engines: what computes a reference answer. None may be believed unchecked, so [`prove`] comes before the first use.
//!
//! - ONNX Runtime ([`onnx_runtime`]): its shared library is loaded while running; the engine of production images and of everything classical.
//! - rten ([`embedded`]): linked in, so that a fresh machine needs nothing. Graphs that it is known to compute wrongly are refused by looking
//!   at them ([`traps`]) before anything runs.

pub mod embedded;
pub mod onnx_runtime;
mod prove;
pub mod traps;

use std::path::PathBuf;

use bytes::Bytes;

pub use prove::{Proof, Refused, prove};

use crate::{
    onnx::{self, OnnxError},
    tensor::{Tensor, TensorError},
};

/// Runs one model. Not shared between threads: one engine per worker.
pub trait Engine: Send {
    /// `onnxruntime` or `rten`.
    fn name(&self) -> &'static str;

    /// Of the engine.
    fn version(&self) -> &str;

    /// Computes all outputs, named, in the model's order and declared types. Inputs are found by name.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError>;
}

/// Which engine to use. Written `auto`, `onnxruntime` or `rten`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// ONNX Runtime if its library can be loaded, else rten.
    #[default]
    Auto,
    OnnxRuntime,
    Rten,
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "onnxruntime" => Ok(Self::OnnxRuntime),
            "rten" => Ok(Self::Rten),
            _ => Err(format!("{text:?} is not an engine: write auto, onnxruntime or rten")),
        }
    }
}

/// How to open an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    pub choice: EngineChoice,
    /// ONNX Runtime's shared library. Without it, the variable `ORT_DYLIB_PATH`, then the system's library path.
    pub library: Option<PathBuf>,
    /// Threads that one answer may use; 0 and 1 both mean one, which leaves a sidecar's neighbours alone.
    pub threads: usize,
}

/// How to get the engine that covers everything; part of every refusal that it would lift.
pub const GET_ONNX_RUNTIME: &str =
    "to use ONNX Runtime, run `pip install onnxruntime` and set ORT_DYLIB_PATH to the file libonnxruntime.so.<version> in its folder onnxruntime/capi";

/// Why an engine could not be opened, or gave no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    #[error("ONNX Runtime could not be loaded: {why}; {GET_ONNX_RUNTIME}")]
    NoLibrary { why: String },
    #[error(transparent)]
    Model(#[from] OnnxError),
    #[error("rten would compute this model wrongly or not at all: {at}: {why}; {GET_ONNX_RUNTIME}")]
    Trap { at: String, why: String },
    #[error("{engine} could not load the model: {why}")]
    Load { engine: &'static str, why: String },
    #[error("input {name:?}: {why}")]
    Input { name: String, why: String },
    #[error("{engine} failed: {why}")]
    Run { engine: &'static str, why: String },
    #[error("{engine} panicked: {why}")]
    Panicked { engine: &'static str, why: String },
}

impl EngineError {
    fn output(engine: &'static str) -> impl Fn(TensorError) -> Self {
        move |error| Self::Run { engine, why: error.to_string() }
    }
}

/// Opens an engine for the model in `bytes` (an ONNX file).
pub fn open(bytes: &Bytes, options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    let model = onnx::decode_model(bytes.clone())?;
    onnx::graph::refuse_external_data(&model)?;
    match options.choice {
        EngineChoice::OnnxRuntime => Ok(Box::new(onnx_runtime::OnnxRuntime::open(bytes, &model, options)?)),
        EngineChoice::Rten => Ok(Box::new(embedded::Rten::open(bytes, &model, options)?)),
        EngineChoice::Auto => match onnx_runtime::OnnxRuntime::open(bytes, &model, options) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(EngineError::NoLibrary { why }) => {
                tracing::debug!(why, "ONNX Runtime is not here; rten computes the reference");
                Ok(Box::new(embedded::Rten::open(bytes, &model, options)?))
            }
            // A model that ONNX Runtime itself refuses is broken; another engine would hide that.
            Err(error) => Err(error),
        },
    }
}

/// Runs foreign code that may panic and turns the panic into an error.
fn guarded<T>(engine: &'static str, call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // What `call` touches is dropped or unused after a panic: every engine refuses to run again then.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
        Err(EngineError::Panicked { engine, why: text.unwrap_or_else(|| "without a message".into()) })
    })
}

fn find<'a>(inputs: &'a [Tensor], name: &str) -> Result<&'a Tensor, EngineError> {
    inputs.iter().find(|tensor| tensor.name == name).ok_or_else(|| {
        let given: Vec<_> = inputs.iter().map(|tensor| tensor.name.as_str()).collect();
        EngineError::Input { name: name.to_owned(), why: format!("is missing; given were {given:?}") }
    })
}

#[cfg(test)]
mod tests;
