//! Reading a set from its directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::Deserialize;
use steadfast_api::{
    golden::{Decimal, SampleSpec, SetManifest},
    read::from_yaml,
};

use super::{
    GoldenSet, MANIFEST_BYTES_MAX, MODEL_BYTES_MAX, PORTS_MAX, SAMPLES_BYTES_MAX, SAMPLES_MAX, Sample, SetError, TENSOR_BYTES_MAX,
    derive::{self, Tolerance},
    files::{beside, read_bounded, read_text},
};
use crate::{onnx, tensor::Tensor};

/// Reads `directory` whole: manifest (or what the graph tells instead), model with its digest checked, every sample.
pub fn read(directory: impl AsRef<Path>) -> Result<GoldenSet, SetError> {
    let directory = directory.as_ref();
    let file = directory.join("golden.yaml");
    let (manifest, model) = if file.exists() {
        let text = read_text(&file, MANIFEST_BYTES_MAX)?;
        let manifest: SetManifest = from_yaml(&file.display().to_string(), &text)?;
        let onnx = beside(directory, &manifest.onnx.file).map_err(|why| SetError::broken(&file, format!("onnx.file: {why}")))?;
        let model = read_bounded(&onnx, MODEL_BYTES_MAX)?;
        (manifest, Bytes::from(model))
    } else {
        bare(directory)?
    };
    if manifest.samples.len() > SAMPLES_MAX {
        return Err(SetError::broken(file, format!("samples: {} of them; at most {SAMPLES_MAX}", manifest.samples.len())));
    }
    let mut budget = SAMPLES_BYTES_MAX;
    let mut samples = Vec::with_capacity(manifest.samples.len());
    for spec in &manifest.samples {
        let from = beside(directory, &spec.directory).map_err(|why| SetError::broken(&file, format!("sample {:?}: directory: {why}", spec.name)))?;
        let inputs = tensors(&from, "input", &mut budget)?;
        let outputs = tensors(&from, "output", &mut budget)?;
        samples.push(Sample { name: spec.name.clone(), tags: spec.tags.clone(), inputs, outputs });
    }
    GoldenSet::checked(Some(directory.to_owned()), manifest, model, samples)
}

/// `input_0.pb`, `input_1.pb`, … up to the first that is missing.
pub(crate) fn tensors(directory: &Path, prefix: &str, budget: &mut u64) -> Result<Vec<Tensor>, SetError> {
    let mut tensors = Vec::new();
    for index in 0.. {
        let file = directory.join(format!("{prefix}_{index}.pb"));
        if !file.exists() {
            break;
        }
        if index == PORTS_MAX {
            return Err(SetError::broken(file, format!("more than {PORTS_MAX} tensors")));
        }
        let bytes = read_bounded(&file, TENSOR_BYTES_MAX.min(*budget))?;
        *budget -= bytes.len() as u64;
        tensors.push(onnx::tensor::decode(bytes.into()).map_err(|error| SetError::broken(&file, error))?);
    }
    Ok(tensors)
}

/// `data.json` of ONNX's own test sets; other fields are of no use here.
#[derive(Deserialize)]
struct DataJson {
    atol: Option<f64>,
    rtol: Option<f64>,
}

fn bare(directory: &Path) -> Result<(SetManifest, Bytes), SetError> {
    let entries = fs::read_dir(directory).map_err(SetError::io(directory))?;
    let (mut models, mut samples): (Vec<PathBuf>, Vec<(u64, String)>) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(SetError::io(directory))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) = name.strip_prefix("test_data_set_").and_then(|number| number.parse().ok()) {
            samples.push((number, name.to_owned()));
        } else if path.extension().is_some_and(|extension| extension == "onnx") && !name.starts_with('.') {
            models.push(path);
        }
    }
    samples.sort_unstable();
    let refuse = |why: String| SetError::broken(directory, why);
    if samples.is_empty() {
        return Err(refuse("is not a golden set: it holds neither golden.yaml nor test_data_set_<n> folders".into()));
    }
    let named = models.iter().position(|model| model.ends_with("model.onnx"));
    let path = match (named, models.len()) {
        (Some(index), _) => models.swap_remove(index),
        (None, 1) => models.swap_remove(0),
        (None, 0) => return Err(refuse("holds no .onnx file".into())),
        (None, n) => return Err(refuse(format!("holds {n} .onnx files and none is model.onnx; write a golden.yaml that names one"))),
    };
    let bytes = Bytes::from(read_bounded(&path, MODEL_BYTES_MAX)?);
    let model = onnx::decode_model(bytes.clone()).map_err(|error| SetError::broken(&path, error))?;
    let samples = samples.into_iter().map(|(_, name)| SampleSpec { name: name.clone(), directory: name, tags: Vec::new() }).collect();
    // The folder's own name is the best that is known of the model's; `.` and `..` have none until resolved.
    let resolved = directory.canonicalize().map_err(SetError::io(directory))?;
    let name = resolved.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let manifest = derive::manifest(&name, &file, &bytes, &model, &tolerance(directory)?, samples).map_err(|error| SetError::broken(&path, error))?;
    Ok((manifest, bytes))
}

fn tolerance(directory: &Path) -> Result<Tolerance, SetError> {
    let mut tolerance = Tolerance::default();
    let file = directory.join("data.json");
    if file.exists() {
        let data: DataJson = serde_json::from_slice(&read_bounded(&file, MANIFEST_BYTES_MAX)?).map_err(|error| SetError::broken(&file, error))?;
        let read = |field: &str, value: f64| {
            Decimal::from_f64(value).ok_or_else(|| SetError::broken(&file, format!("{field}: {value} is not a tolerance; write a number from 0 up")))
        };
        if let Some(atol) = data.atol {
            tolerance.absolute = read("atol", atol)?;
        }
        if let Some(rtol) = data.rtol {
            tolerance.relative = read("rtol", rtol)?;
        }
    }
    Ok(tolerance)
}
