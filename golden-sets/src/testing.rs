//! Small models and sets for tests, made in memory: a classifier and a recommender, with weights from a seed.

use std::io::Write as _;

use bytes::Bytes;
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use steadfast_api::golden::SampleSpec;

use crate::{
    engine::{self, EngineChoice, EngineOptions},
    onnx::{
        ModelProto,
        proto::{AttributeProto, DimensionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto},
        tensor::{from_tensor, number, to_tensor},
    },
    set::{GoldenSet, Sample, derive},
    tensor::{DataType, Tensor, Values},
};

pub(crate) fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    let strings = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    NodeProto { op_type: op.into(), name: name.into(), input: strings(inputs), output: strings(outputs), attribute: attributes, domain: String::new() }
}

pub(crate) fn integer(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, kind: 2, ..AttributeProto::default() }
}

pub(crate) fn text(name: &str, s: &'static str) -> AttributeProto {
    AttributeProto { name: name.into(), s: Bytes::from_static(s.as_bytes()), kind: 3, ..AttributeProto::default() }
}

/// -1 is a free dimension.
pub(crate) fn info(name: &str, datatype: DataType, shape: &[i64]) -> ValueInfoProto {
    info_of(name, number(datatype), shape)
}

pub(crate) fn info_of(name: &str, elem_type: i32, shape: &[i64]) -> ValueInfoProto {
    let dim = |value: &i64| match value {
        -1 => DimensionProto { dim_value: None, dim_param: Some("N".into()) },
        value => DimensionProto { dim_value: Some(*value), dim_param: None },
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type, shape: Some(shape) }) }) }
}

pub(crate) fn model(opset: i64, graph: GraphProto) -> ModelProto {
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: opset }];
    ModelProto { ir_version: 8, opset_import, graph: Some(GraphProto { name: "test".into(), ..graph }), ..ModelProto::default() }
}

pub(crate) fn bytes(model: &ModelProto) -> Bytes {
    model.encode_to_vec().into()
}

fn weights(rng: &mut StdRng, name: &str, shape: &[usize]) -> crate::onnx::TensorProto {
    let values = (0..shape.iter().product()).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
    from_tensor(&Tensor::new(name, shape, Values::F32(values)).unwrap())
}

/// `x` FP32 [-1, 8] to `p` FP32 [-1, 3]: two layers and a softmax.
pub(crate) fn classifier() -> ModelProto {
    let mut rng = StdRng::seed_from_u64(1);
    let nodes = vec![
        node("MatMul", "hidden", &["x", "w1"], &["h"], vec![]),
        node("Add", "bias", &["h", "b1"], &["hb"], vec![]),
        node("Relu", "relu", &["hb"], &["r"], vec![]),
        node("MatMul", "head", &["r", "w2"], &["logits"], vec![]),
        node("Softmax", "softmax", &["logits"], &["p"], vec![integer("axis", -1)]),
    ];
    model(
        13,
        GraphProto {
            node: nodes,
            initializer: vec![weights(&mut rng, "w1", &[8, 16]), weights(&mut rng, "b1", &[16]), weights(&mut rng, "w2", &[16, 3])],
            input: vec![info("x", DataType::F32, &[-1, 8])],
            output: vec![info("p", DataType::F32, &[-1, 3])],
            ..GraphProto::default()
        },
    )
}

/// `user_id` INT64 [1] to `item_ids` INT64 [1, 5] and `scores` FP32 [1, 5], of 20 users and 30 items.
pub(crate) fn recommender() -> ModelProto {
    let mut rng = StdRng::seed_from_u64(2);
    let nodes = vec![
        node("Gather", "user", &["users", "user_id"], &["u"], vec![integer("axis", 0)]),
        node("MatMul", "score", &["u", "items"], &["s"], vec![]),
        node("TopK", "top", &["s", "k"], &["scores", "item_ids"], vec![integer("axis", -1)]),
    ];
    let k = from_tensor(&Tensor::new("k", [1], Values::I64(vec![5])).unwrap());
    model(
        13,
        GraphProto {
            node: nodes,
            initializer: vec![weights(&mut rng, "users", &[20, 6]), weights(&mut rng, "items", &[6, 30]), k],
            input: vec![info("user_id", DataType::I64, &[1])],
            output: vec![info("item_ids", DataType::I64, &[1, 5]), info("scores", DataType::F32, &[1, 5])],
            ..GraphProto::default()
        },
    )
}

/// The same model with every weight of one matrix 1 % larger.
pub(crate) fn one_percent_off(mut model: ModelProto, name: &str) -> ModelProto {
    let weight = model.graph.as_mut().unwrap().initializer.iter_mut().find(|weight| weight.name == name).unwrap();
    let mut tensor = to_tensor(weight).unwrap();
    let Values::F32(values) = &mut tensor.values else { panic!("{name} is not FP32") };
    for value in values {
        *value *= 1.01;
    }
    *weight = from_tensor(&tensor);
    model
}

/// A set of `model` over these inputs, with answers computed by `rten` and rules derived from the graph.
pub(crate) fn set(name: &str, model: &ModelProto, inputs: Vec<Tensor>) -> GoldenSet {
    let bytes = bytes(model);
    let mut engine = engine::open(&bytes, &EngineOptions { choice: EngineChoice::Rten, ..EngineOptions::default() }).unwrap();
    let sample = |(index, input): (usize, Tensor)| {
        let inputs = vec![input];
        Sample { name: format!("s{index}"), tags: Vec::new(), outputs: engine.run(&inputs).unwrap(), inputs }
    };
    let samples: Vec<Sample> = inputs.into_iter().enumerate().map(sample).collect();
    let specs = samples.iter().enumerate().map(|(i, s)| SampleSpec { name: s.name.clone(), directory: format!("test_data_set_{i}"), tags: Vec::new() });
    let manifest = derive::manifest(name, "model.onnx", &bytes, model, &derive::Tolerance::default(), specs.collect()).unwrap();
    GoldenSet::new(manifest, bytes, samples).unwrap()
}

pub(crate) fn classifier_set() -> GoldenSet {
    let mut rng = StdRng::seed_from_u64(3);
    let mut input = |rows: usize| Tensor::new("x", [rows, 8], Values::F32((0..rows * 8).map(|_| rng.random_range(-1.0..1.0)).collect())).unwrap();
    let inputs = (0..6).map(|i| input(1 + i % 3)).collect();
    set("classifier", &classifier(), inputs)
}

pub(crate) fn recommender_set() -> GoldenSet {
    let inputs = (0..10).map(|user| Tensor::new("user_id", [1], Values::I64(vec![user])).unwrap()).collect();
    set("recommender", &recommender(), inputs)
}

/// Whether tests of ONNX Runtime can run. Where they cannot, says so past the test harness's capture: a test that did not run must be seen.
pub(crate) fn onnx_runtime_here(test: &str) -> bool {
    let here = std::env::var_os("ORT_DYLIB_PATH").is_some();
    if !here {
        let _ =
            writeln!(std::io::stderr(), "NOT RUN: {test}: ORT_DYLIB_PATH is not set, so there is no ONNX Runtime to test with; {}", engine::GET_ONNX_RUNTIME);
    }
    here
}
