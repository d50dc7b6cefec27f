//! Writing a set: a new directory that is whole when it appears.

use std::{fs, path::Path};

use steadfast_api::read::to_yaml;

use super::{
    GoldenSet, SetError,
    files::{beside, create_directory, sync, write_new},
};
use crate::{onnx, tensor::Tensor};

/// Writes `golden.yaml`, the model and every sample to `target`, which must not exist. Nothing is left behind when it fails.
pub fn write(set: &GoldenSet, target: impl AsRef<Path>) -> Result<(), SetError> {
    let (manifest, target) = (set.manifest(), target.as_ref());
    create_directory(target, |directory| {
        let refuse = |why: String| SetError::broken(target, why);
        for (spec, sample) in manifest.samples.iter().zip(set.samples()) {
            let into = beside(directory, &spec.directory).map_err(refuse)?;
            fs::create_dir_all(&into).map_err(SetError::io(&into))?;
            write_tensors(&into, "input", &sample.inputs)?;
            write_tensors(&into, "output", &sample.outputs)?;
            sync(&into)?;
        }
        write_new(&beside(directory, &manifest.onnx.file).map_err(refuse)?, set.model())?;
        write_new(&directory.join("golden.yaml"), to_yaml(manifest).map_err(refuse)?.as_bytes())
    })
}

/// `<prefix>_0.pb`, `<prefix>_1.pb`, …
pub(crate) fn write_tensors(directory: &Path, prefix: &str, tensors: &[Tensor]) -> Result<(), SetError> {
    tensors.iter().enumerate().try_for_each(|(index, tensor)| write_new(&directory.join(format!("{prefix}_{index}.pb")), &onnx::tensor::encode(tensor)))
}
