//! A golden set: a model, inputs, and the answers it must give. Read from a directory, or made in memory and written to one.
//!
//! On disk it has the layout of the ONNX model zoo, `model.onnx` and `test_data_set_<n>/{input,output}_<i>.pb`, with a `golden.yaml` beside them.
//! Without `golden.yaml` everything it would say is derived from the graph ([`derive`]). As one tar it travels ([`archive`]).

pub mod archive;
mod check;
pub mod derive;
pub mod files;
mod read;
mod write;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use steadfast_api::golden::{Digest, SetManifest};

use crate::{compare::Rules, onnx, tensor::Tensor};

pub use read::read;
pub use write::write;
pub(crate) use {read::tensors as read_tensors, write::write_tensors};

/// Samples of one set.
pub const SAMPLES_MAX: usize = 10_000;
/// Inputs, or outputs, of one model.
pub const PORTS_MAX: usize = 256;
/// The model file: what one protobuf message can hold.
pub const MODEL_BYTES_MAX: u64 = 2 << 30;
/// One `.pb` file.
pub const TENSOR_BYTES_MAX: u64 = 256 << 20;
/// All `.pb` files of one set; they are held in memory.
pub const SAMPLES_BYTES_MAX: u64 = 1 << 30;
/// `golden.yaml` and `enrolled.yaml`.
pub const MANIFEST_BYTES_MAX: u64 = 8 << 20;

/// One input with its right answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub tags: Vec<String>,
    /// In the order of the manifest, under its names.
    pub inputs: Vec<Tensor>,
    /// In the order of the manifest, under its names.
    pub outputs: Vec<Tensor>,
}

/// A set whose parts fit together: [`GoldenSet::new`] and [`read`] check names, types, shapes and digests.
#[derive(Clone, Debug)]
pub struct GoldenSet {
    directory: Option<PathBuf>,
    manifest: SetManifest,
    model: Bytes,
    samples: Vec<Sample>,
    digest: Digest,
}

/// Why a set was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Manifest(#[from] steadfast_api::read::BadFile),
    #[error("{}: {why}", file.display())]
    Broken { file: PathBuf, why: String },
}

impl SetError {
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over messages and errors alike")]
    pub(crate) fn broken(file: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self::Broken { file: file.into(), why: why.to_string() }
    }

    pub(crate) fn io(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { file: file.into(), source }
    }
}

impl GoldenSet {
    /// A set made in memory. The samples' tensors are put in the manifest's order; the manifest's digest must be the model's.
    pub fn new(manifest: SetManifest, model: Bytes, samples: Vec<Sample>) -> Result<Self, SetError> {
        Self::checked(None, manifest, model, samples)
    }

    fn checked(directory: Option<PathBuf>, manifest: SetManifest, model: Bytes, samples: Vec<Sample>) -> Result<Self, SetError> {
        let file = directory.as_deref().unwrap_or(Path::new("")).join("golden.yaml");
        let samples = check::set(&manifest, &model, samples).map_err(|why| SetError::broken(file, why))?;
        let digest = digest(&manifest, &samples);
        Ok(Self { directory, manifest, model, samples, digest })
    }

    /// Where it was read from.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    pub const fn manifest(&self) -> &SetManifest {
        &self.manifest
    }

    /// The ONNX file.
    pub const fn model(&self) -> &Bytes {
        &self.model
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    pub fn sample(&self, name: &str) -> Option<&Sample> {
        self.samples.iter().find(|sample| sample.name == name)
    }

    /// Of everything that decides a verdict: manifest (with the model's digest), inputs and answers.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How answers are compared, by the set itself.
    pub fn rules(&self) -> Rules {
        Rules::of(&self.manifest)
    }
}

/// An answer in the manifest's order, names, types and shapes: found by name, else by position; cast where a server widened a type.
pub(crate) fn arrange_outputs(set: &GoldenSet, answer: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let expected = check::expected_outputs(&set.manifest.outputs);
    let by_name: Vec<&Tensor> = expected.iter().filter_map(|port| answer.iter().find(|tensor| tensor.name == port.name)).collect();
    // Outputs beyond the manifest's are none of its business.
    let chosen = if by_name.len() == expected.len() { by_name } else { answer.iter().collect() };
    let cast = chosen.iter().zip(&expected).map(|(tensor, port)| tensor.cast(port.datatype).map_err(|error| error.to_string()));
    let cast = if chosen.len() == expected.len() { cast.collect::<Result<_, _>>()? } else { chosen.into_iter().cloned().collect() };
    check::arrange(&expected, cast)
}

/// SHA-256 of bytes, as manifests carry it.
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn digest(manifest: &SetManifest, samples: &[Sample]) -> Digest {
    // Every part goes in with its length, so that no two sets share one byte stream.
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(b"steadfast golden set 1");
    // Serializing a manifest cannot fail: its maps have text keys. Were it to, an empty part is still a fixed one.
    part(&serde_json::to_vec(manifest).unwrap_or_default());
    for sample in samples {
        part(sample.name.as_bytes());
        for tensor in sample.inputs.iter().chain(&sample.outputs) {
            part(&onnx::tensor::encode(tensor));
        }
    }
    Digest::new(hasher.finalize().into())
}

#[cfg(test)]
mod tests;
