//! Whether the parts of a set fit together. Every refusal names the field or sample, what it holds, and what would be right.

use std::collections::HashSet;

use steadfast_api::golden::{Compare, OutputSpec, SetManifest};

use super::{PORTS_MAX, SAMPLES_MAX, Sample, sha256};
use crate::{
    onnx,
    tensor::{DataType, Tensor},
};

/// What a port must be, for inputs and outputs alike.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: DataType,
    pub(crate) shape: &'a [i64],
}

/// Checks everything and puts the samples' tensors in the manifest's order.
pub(crate) fn set(manifest: &SetManifest, model: &bytes::Bytes, samples: Vec<Sample>) -> Result<Vec<Sample>, String> {
    let found = sha256(model);
    if found != manifest.onnx.digest {
        return Err(format!("onnx.digest: {} is {found}, not {}; restore the file or write the new digest", manifest.onnx.file, manifest.onnx.digest));
    }
    let graph = onnx::decode_model(model.clone()).map_err(|error| format!("{}: {error}", manifest.onnx.file))?;
    onnx::graph::refuse_external_data(&graph).map_err(|error| format!("{}: {error}", manifest.onnx.file))?;
    manifest_alone(manifest)?;
    ports_of_graph(manifest, &graph)?;
    if samples.is_empty() || samples.len() > SAMPLES_MAX {
        return Err(format!("samples: {} of them; a set has 1 to {SAMPLES_MAX}", samples.len()));
    }
    if !manifest.samples.iter().map(|spec| &spec.name).eq(samples.iter().map(|sample| &sample.name)) {
        return Err("samples: the manifest names others than there are, or in another order".into());
    }
    let mut names = HashSet::new();
    let inputs: Vec<Expected<'_>> = (manifest.inputs.iter()).map(|spec| Expected { name: &spec.name, datatype: spec.datatype, shape: &spec.shape }).collect();
    let outputs = expected_outputs(&manifest.outputs);
    let mut arranged = Vec::with_capacity(samples.len());
    for mut sample in samples {
        if sample.name.is_empty() || !names.insert(sample.name.clone()) {
            return Err(format!("samples: the name {:?} is empty or stands twice", sample.name));
        }
        sample.inputs = arrange(&inputs, sample.inputs).map_err(|why| format!("sample {:?}: inputs: {why}", sample.name))?;
        sample.outputs = arrange(&outputs, sample.outputs).map_err(|why| format!("sample {:?}: outputs: {why}", sample.name))?;
        arranged.push(sample);
    }
    Ok(arranged)
}

pub(crate) fn expected_outputs(outputs: &[OutputSpec]) -> Vec<Expected<'_>> {
    outputs.iter().map(|spec| Expected { name: &spec.name, datatype: spec.datatype, shape: &spec.shape }).collect()
}

fn manifest_alone(manifest: &SetManifest) -> Result<(), String> {
    if manifest.model.is_empty() {
        return Err("model: is empty; write the model's name on the server".into());
    }
    if manifest.inputs.len() > PORTS_MAX || manifest.outputs.is_empty() || manifest.outputs.len() > PORTS_MAX {
        let (inputs, outputs) = (manifest.inputs.len(), manifest.outputs.len());
        return Err(format!("{inputs} inputs and {outputs} outputs; at most {PORTS_MAX} of each and at least one output"));
    }
    let mut names = HashSet::new();
    for output in &manifest.outputs {
        if !names.insert(output.name.as_str()) {
            return Err(format!("outputs: {:?} stands twice", output.name));
        }
        let name = &output.name;
        match &output.compare {
            Compare::Ranking { scores, .. } => {
                let judged = manifest.outputs.iter().find(|other| other.name == *scores);
                let tolerant = judged.is_some_and(|other| matches!(other.compare, Compare::Regression { .. } | Compare::Classification { .. }));
                if !tolerant || scores == name {
                    return Err(format!(
                        "outputs: {name:?}: ranking.scores: {scores:?} must name another output, compared as regression: its tolerance says what is a tie"
                    ));
                }
                if output.datatype.is_float() {
                    return Err(format!("outputs: {name:?}: ranking needs items (integers or BYTES), not {}", output.datatype));
                }
            }
            Compare::Classification { .. } | Compare::Embedding { .. } if !output.datatype.is_float() => {
                return Err(format!("outputs: {name:?}: is {}; classification and embedding compare FP32 or FP64, for labels use exact", output.datatype));
            }
            Compare::Regression { .. } if output.datatype == DataType::Bytes => {
                return Err(format!("outputs: {name:?}: BYTES cannot be compared as regression; use exact or ranking"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The manifest must speak of this very model.
fn ports_of_graph(manifest: &SetManifest, model: &onnx::ModelProto) -> Result<(), String> {
    let signature = onnx::Signature::of(model).map_err(|error| format!("{}: {error}", manifest.onnx.file))?;
    let check = |what: &str, name: &str, datatype: DataType, ports: &[onnx::graph::Port]| {
        let Some(port) = ports.iter().find(|port| port.name == name) else {
            let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
            return Err(format!("{what}: the model has no {name:?}; it has {names:?}"));
        };
        if port.datatype == datatype { Ok(()) } else { Err(format!("{what}: {name:?} is {datatype} here and {} in the model", port.datatype)) }
    };
    manifest.inputs.iter().try_for_each(|spec| check("inputs", &spec.name, spec.datatype, &signature.inputs))?;
    manifest.outputs.iter().try_for_each(|spec| check("outputs", &spec.name, spec.datatype, &signature.outputs))?;
    let missing = signature.inputs.iter().find(|port| manifest.inputs.iter().all(|spec| spec.name != port.name));
    missing.map_or(Ok(()), |port| Err(format!("inputs: the model also takes {:?}", port.name)))
}

/// Names each tensor and puts it in order: by name where every tensor bears an expected name, by position otherwise (files of the model zoo bear none).
pub(crate) fn arrange(expected: &[Expected<'_>], mut tensors: Vec<Tensor>) -> Result<Vec<Tensor>, String> {
    if tensors.len() != expected.len() {
        let names: Vec<_> = expected.iter().map(|port| port.name).collect();
        return Err(format!("{} tensors where there must be {}: {names:?}", tensors.len(), expected.len()));
    }
    let by_name = expected.iter().all(|port| tensors.iter().any(|tensor| tensor.name == port.name));
    let mut arranged = Vec::with_capacity(tensors.len());
    for port in expected {
        let position = if by_name { tensors.iter().position(|tensor| tensor.name == port.name).unwrap_or(0) } else { 0 };
        let tensor = tensors.remove(position).renamed(port.name);
        if tensor.datatype() != port.datatype {
            return Err(format!("{:?} is {}, where {} is declared", port.name, tensor.datatype(), port.datatype));
        }
        if !fits(&tensor.shape, port.shape) {
            return Err(format!("{:?} has shape {:?}, where {:?} is declared", port.name, tensor.shape, port.shape));
        }
        arranged.push(tensor);
    }
    Ok(arranged)
}

/// Whether a shape is one of those that a declared shape allows.
pub(crate) fn fits(shape: &[usize], declared: &[i64]) -> bool {
    shape.len() == declared.len()
        && shape.iter().zip(declared).all(|(found, declared)| *declared < 0 || u64::try_from(*declared).is_ok_and(|d| d == *found as u64))
}
