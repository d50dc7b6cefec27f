//! What `golden.yaml` would say of a bare model-zoo folder, read from the graph: names, types, shapes, and a rule for each output.
//!
//! The rules are guesses on the strict side: an engine that cannot keep them is refused when the set loads, and a `golden.yaml` can always say otherwise.

use steadfast_api::{
    Percent,
    golden::{Compare, Decimal, OnnxFile, OutputSpec, SampleSpec, SetManifest, TensorSpec},
};

use super::sha256;
use crate::{
    onnx::{ModelProto, OnnxError, Signature, graph::Port},
    tensor::DataType,
};

/// Tolerances where nothing else is known. Twenty times the noise between ONNX Runtime's own batch sizes (6e-7), a tenth of what a weight matrix that is 1 % off shows (1e-3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tolerance {
    pub absolute: Decimal,
    pub relative: Decimal,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { absolute: decimal(1e-5), relative: decimal(1e-4) }
    }
}

fn decimal(value: f64) -> Decimal {
    Decimal::from_f64(value).unwrap_or_default()
}

/// A manifest for `model` (the decoded `bytes`), with these samples.
pub fn manifest(name: &str, file: &str, bytes: &[u8], model: &ModelProto, tolerance: &Tolerance, samples: Vec<SampleSpec>) -> Result<SetManifest, OnnxError> {
    let signature = Signature::of(model)?;
    let outputs = signature.outputs.iter().map(|port| OutputSpec {
        name: port.name.clone(),
        datatype: port.datatype,
        shape: port.shape.clone(),
        compare: rule(port, model, &signature.outputs, tolerance),
    });
    Ok(SetManifest {
        model: name.to_owned(),
        version: String::new(),
        description: String::new(),
        onnx: OnnxFile { file: file.to_owned(), digest: sha256(bytes) },
        outputs: outputs.collect(),
        inputs: signature.inputs.into_iter().map(|port| TensorSpec { name: port.name, datatype: port.datatype, shape: port.shape }).collect(),
        samples,
    })
}

fn rule(port: &Port, model: &ModelProto, outputs: &[Port], tolerance: &Tolerance) -> Compare {
    let producers = model.graph.as_ref().map(crate::onnx::proto::GraphProto::producers).unwrap_or_default();
    let mut producer = producers.get(port.name.as_str());
    // Exporters put a renaming node behind the one that computes.
    while let Some(node) = producer.filter(|node| node.op_type == "Identity") {
        let input = node.input.first().map_or("", String::as_str);
        producer = producers.get(input).filter(|above| !std::ptr::eq(**above, *node));
    }
    let op = producer.map_or("", |node| node.op_type.as_str());
    match port.datatype {
        DataType::F32 | DataType::F64 if op == "Softmax" => Compare::Classification { absolute: tolerance.absolute.clone() },
        DataType::F32 | DataType::F64 => Compare::Regression { absolute: tolerance.absolute.clone(), relative: tolerance.relative.clone() },
        DataType::I64 if op == "TopK" => {
            // Its first output holds the scores; only where that is an output of the model too are they known.
            let scores = producer.and_then(|node| node.output.first()).and_then(|scores| outputs.iter().find(|output| output.name == *scores));
            scores.map_or(Compare::Exact {}, |scores| Compare::Ranking { scores: scores.name.clone(), overlap: Percent::HUNDRED })
        }
        _ => Compare::Exact {},
    }
}
