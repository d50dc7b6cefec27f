//! Engines prove themselves, and traps are found before anything runs.

use super::*;
use crate::{
    DataType, GoldenSet, Values,
    onnx::{
        ModelProto,
        proto::{GraphProto, NodeProto},
        tensor::from_tensor,
    },
    testing::{self, info, info_of, integer, node, onnx_runtime_here, text},
};

const RTEN: EngineOptions = EngineOptions { choice: EngineChoice::Rten, library: None, threads: 1 };
const ONNX_RUNTIME: EngineOptions = EngineOptions { choice: EngineChoice::OnnxRuntime, library: None, threads: 1 };

fn rten(set: &GoldenSet) -> Box<dyn Engine> {
    open(set.model(), &RTEN).unwrap()
}

#[test]
fn rten_reproduces_what_it_computed() {
    for set in [testing::classifier_set(), testing::recommender_set()] {
        let proof = prove(&set, &mut *rten(&set)).unwrap();
        assert_eq!((proof.engine, proof.samples, proof.set), ("rten", set.samples().len(), set.digest()));
        assert!(proof.largest.iter().all(|(_, largest)| *largest == 0.0));
    }
}

#[test]
fn a_weight_matrix_that_is_one_percent_off_is_refused() {
    let set = testing::classifier_set();
    for matrix in ["w1", "w2"] {
        let broken = testing::bytes(&testing::one_percent_off(testing::classifier(), matrix));
        let refused = prove(&set, &mut *open(&broken, &RTEN).unwrap()).unwrap_err();
        assert_eq!((refused.sample.as_str(), refused.output.as_str()), ("s0", "p"));
        let line = refused.to_string();
        assert!(line.contains("does not reproduce sample \"s0\"") && line.contains("pip install onnxruntime"), "{line}");
    }
    let set = testing::recommender_set();
    let broken = testing::bytes(&testing::one_percent_off(testing::recommender(), "items"));
    assert_eq!(prove(&set, &mut *open(&broken, &RTEN).unwrap()).unwrap_err().output, "scores");
}

#[test]
fn integers_that_do_not_fit_rten_are_refused_not_cut() {
    let set = testing::recommender_set();
    let user = Tensor::new("user_id", [1], Values::I64(vec![(1 << 32) + 3])).unwrap();
    let error = rten(&set).run(&[user]).unwrap_err().to_string();
    assert!(error.contains("user_id") && error.contains("4294967299") && error.contains("32 bits"), "{error}");
}

#[test]
fn bad_inputs_are_errors_of_both_engines() {
    let set = testing::recommender_set();
    let mut engines = vec![rten(&set)];
    if onnx_runtime_here("bad_inputs_are_errors_of_both_engines") {
        engines.push(open(set.model(), &ONNX_RUNTIME).unwrap());
    }
    for engine in &mut engines {
        let error = engine.run(&[]).unwrap_err().to_string();
        assert!(error.contains("\"user_id\": is missing"), "{error}");
        let beyond = Tensor::new("user_id", [1], Values::I64(vec![99])).unwrap();
        assert!(engine.run(&[beyond]).is_err(), "{} has no user 99", engine.name());
        let float = Tensor::new("user_id", [1], Values::F32(vec![1.0])).unwrap();
        assert!(engine.run(&[float]).is_err());
        assert!(engine.run(&set.samples()[0].inputs).is_ok(), "{} still works", engine.name());
    }
}

/// A graph of one node from `x` (FP32 [1, 4]) to `y`.
fn single(opset: i64, op: NodeProto, output: DataType) -> ModelProto {
    let graph =
        GraphProto { node: vec![op], input: vec![info("x", DataType::F32, &[1, 4])], output: vec![info("y", output, &[1, 4])], ..GraphProto::default() };
    testing::model(opset, graph)
}

#[test]
fn rten_s_traps_are_refused_by_looking_at_the_graph() {
    let op = |op: &str, attributes| node(op, "the_node", &["x"], &["y"], attributes);
    let float = DataType::F32;
    let lstm = node("LSTM", "the_node", &["x", "w", "r", "", "lengths"], &["y"], vec![]);
    let classical = NodeProto { domain: "ai.onnx.ml".into(), ..op("TreeEnsembleRegressor", vec![]) };
    let traps = [
        (single(13, op("Cast", vec![integer("to", 9)]), DataType::Bool), "Cast to BOOL"),
        (single(13, op("Cast", vec![integer("to", 11)]), float), "DOUBLE"),
        (single(13, op("Cast", vec![integer("to", 10)]), float), "FLOAT16"),
        (single(12, op("Softmax", vec![]), float), "below operator set 13"),
        (single(11, op("LogSoftmax", vec![]), float), "below operator set 13"),
        (single(13, op("NonMaxSuppression", vec![]), float), "suppressed"),
        (single(13, op("ArgMax", vec![]), DataType::I64), "takes the last"),
        (single(13, op("MatMulInteger", vec![]), float), "int8"),
        (single(13, op("QLinearConv", vec![]), float), "int8"),
        (single(13, op("Resize", vec![text("mode", "cubic")]), float), "cubic"),
        (single(13, lstm, float), "sequence_lens"),
        (single(13, op("LRN", vec![]), float), "wrongly"),
        (single(13, op("Scan", vec![]), float), "wrongly"),
        (single(13, classical, float), "ai.onnx.ml"),
    ];
    for (model, why) in traps {
        let Err(EngineError::Trap { at, why: said }) = open(&testing::bytes(&model), &RTEN).map(drop) else { panic!("{why} was not refused") };
        let op = &model.graph.as_ref().unwrap().node[0].op_type;
        assert_eq!(at, format!("node \"the_node\" ({op})"));
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn types_that_rten_lacks_are_refused_wherever_they_stand() {
    let relu = |initializer| GraphProto {
        node: vec![node("Relu", "relu", &["x"], &["y"], vec![])],
        initializer,
        input: vec![info("x", DataType::F32, &[1])],
        output: vec![info("y", DataType::F32, &[1])],
        ..GraphProto::default()
    };
    let trap = |graph: GraphProto| match open(&testing::bytes(&testing::model(13, graph)), &RTEN).map(drop) {
        Err(EngineError::Trap { at, why }) => format!("{at}: {why}"),
        other => panic!("{other:?}"),
    };
    let double = from_tensor(&Tensor::new("w", [1], Values::F64(vec![0.5])).unwrap());
    assert!(trap(relu(vec![double])).starts_with("initializer \"w\": DOUBLE"));
    let large = from_tensor(&Tensor::new("w", [1], Values::I64(vec![1 << 40])).unwrap());
    assert!(trap(relu(vec![large.clone()])).contains("1099511627776 does not fit 32 bits"));
    let hidden = GraphProto { value_info: vec![info_of("middle", 10, &[1])], ..relu(vec![]) };
    assert!(trap(hidden).starts_with("value \"middle\": FLOAT16"));
    let input = GraphProto { input: vec![info("x", DataType::F64, &[1])], ..relu(vec![]) };
    assert!(trap(input).starts_with("input \"x\": DOUBLE"));
    // Inside a branch too.
    let inner = GraphProto { node: vec![node("Cast", "inner", &["x"], &["z"], vec![integer("to", 9)])], ..GraphProto::default() };
    let branch = crate::onnx::proto::AttributeProto { name: "then_branch".into(), g: Some(inner), kind: 5, ..Default::default() };
    let outer = GraphProto { node: vec![node("If", "if", &["c"], &["y"], vec![branch])], ..relu(vec![]) };
    assert!(trap(outer).starts_with("node \"inner\" (Cast)"));
    // "To the end" of a slice is no trap.
    let end = from_tensor(&Tensor::new("end", [1], Values::I64(vec![i64::MAX])).unwrap());
    let start = from_tensor(&Tensor::new("start", [1], Values::I64(vec![0])).unwrap());
    let slice = GraphProto { node: vec![node("Slice", "slice", &["x", "start", "end"], &["y"], vec![])], ..relu(vec![start, end]) };
    assert!(open(&testing::bytes(&testing::model(13, slice)), &RTEN).is_ok());
}

#[test]
fn an_argmax_over_sums_is_allowed() {
    let mut model = testing::classifier();
    let graph = model.graph.as_mut().unwrap();
    graph.node.push(node("ArgMax", "label", &["logits"], &["y"], vec![integer("axis", -1), integer("keepdims", 0)]));
    graph.output.push(info("y", DataType::I64, &[-1]));
    let set = testing::set("labels", &model, vec![Tensor::new("x", [2, 8], Values::F32((0..16_u8).map(f32::from).collect())).unwrap()]);
    assert_eq!(set.samples()[0].outputs[1].datatype(), DataType::I64);
}

#[test]
fn what_is_no_model_is_an_error() {
    for bytes in [&b""[..], b"not a model", &[0xff; 100]] {
        assert!(matches!(open(&Bytes::from_static(bytes), &RTEN).map(drop), Err(EngineError::Model(_))));
    }
    let mut model = testing::classifier();
    model.graph.as_mut().unwrap().initializer[0].data_location = 1;
    let error = open(&testing::bytes(&model), &RTEN).map(drop).unwrap_err().to_string();
    assert!(error.contains("another file") && error.contains("w1"), "{error}");
    // Decodes, and cannot be loaded: its operator does not exist.
    let unknown = single(13, node("Frobnicate", "f", &["x"], &["y"], vec![]), DataType::F32);
    assert!(matches!(open(&testing::bytes(&unknown), &RTEN).map(drop), Err(EngineError::Load { .. })));
}

#[test]
fn a_missing_library_tells_how_to_get_it() {
    let set = testing::classifier_set();
    let options = EngineOptions { library: Some("/nowhere/libonnxruntime.so".into()), ..ONNX_RUNTIME };
    let error = open(set.model(), &options).map(drop).unwrap_err().to_string();
    for part in ["/nowhere/libonnxruntime.so", "pip install onnxruntime", "ORT_DYLIB_PATH"] {
        assert!(error.contains(part), "{error}");
    }
    let auto = EngineOptions { choice: EngineChoice::Auto, ..options };
    assert_eq!(open(set.model(), &auto).unwrap().name(), "rten");
}

#[test]
fn a_file_that_is_no_library_is_an_error_not_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("libonnxruntime.so");
    std::fs::write(&file, "text").unwrap();
    assert!(matches!(onnx_runtime::available(Some(&file)), Err(EngineError::NoLibrary { .. })));
}

#[test]
fn onnx_runtime_agrees_with_rten_within_tolerance() {
    if !onnx_runtime_here("onnx_runtime_agrees_with_rten_within_tolerance") {
        return;
    }
    for set in [testing::classifier_set(), testing::recommender_set()] {
        let mut engine = open(set.model(), &EngineOptions::default()).unwrap();
        assert_eq!(engine.name(), "onnxruntime", "auto prefers it");
        assert!(engine.version().starts_with("1."), "{}", engine.version());
        let proof = prove(&set, &mut *engine).unwrap();
        assert!(proof.largest.iter().all(|(_, largest)| *largest < 1e-6), "{proof:?}");
    }
}

#[test]
fn onnx_runtime_refuses_a_weight_matrix_that_is_one_percent_off() {
    if !onnx_runtime_here("onnx_runtime_refuses_a_weight_matrix_that_is_one_percent_off") {
        return;
    }
    let set = testing::classifier_set();
    let broken = testing::bytes(&testing::one_percent_off(testing::classifier(), "w1"));
    let refused = prove(&set, &mut *open(&broken, &ONNX_RUNTIME).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("record them anew"), "{refused}");
}

#[test]
fn onnx_runtime_computes_what_rten_refuses() {
    if !onnx_runtime_here("onnx_runtime_computes_what_rten_refuses") {
        return;
    }
    let cast = single(13, node("Cast", "cast", &["x"], &["y"], vec![integer("to", 9)]), DataType::Bool);
    let input = Tensor::new("x", [1, 4], Values::F32(vec![0.0, 0.5, -3.0, 1.0])).unwrap();
    let answer = open(&testing::bytes(&cast), &ONNX_RUNTIME).unwrap().run(&[input]).unwrap();
    assert_eq!(answer[0].values, Values::Bool(vec![false, true, true, true]));
    let identity = |datatype| {
        let graph = GraphProto {
            node: vec![node("Identity", "id", &["x"], &["y"], vec![])],
            input: vec![info("x", datatype, &[2])],
            output: vec![info("y", datatype, &[2])],
            ..GraphProto::default()
        };
        testing::bytes(&testing::model(13, graph))
    };
    let every = [
        Values::U8(vec![1, 255]),
        Values::U16(vec![1, 65535]),
        Values::U32(vec![1, u32::MAX]),
        Values::U64(vec![1, u64::MAX]),
        Values::I8(vec![-1, 127]),
        Values::I16(vec![-1, i16::MAX]),
        Values::I32(vec![-1, i32::MAX]),
        Values::I64(vec![-1, i64::MAX]),
        Values::F32(vec![0.5, f32::INFINITY]),
        Values::F64(vec![0.1, -1e300]),
        Values::Bytes(vec!["grüße".into(), b"b".to_vec()]),
    ];
    for values in every {
        let input = Tensor::new("x", [2], values.clone()).unwrap();
        let answer = open(&identity(values.datatype()), &ONNX_RUNTIME).unwrap().run(&[input]).unwrap();
        assert_eq!(answer[0].values, values);
    }
}

/// The sets that come with this crate.
fn shipped() -> Vec<GoldenSet> {
    let parent = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sets");
    let entries = std::fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().path());
    let sets: Vec<_> = entries.filter(|path| path.join("golden.yaml").exists()).map(|path| crate::set::read(path).unwrap()).collect();
    let recommender = sets.iter().find(|set| set.manifest().model == "recommender").expect("the recommender");
    // What it promises: enough samples to tell a mismatch of 5 %, of every kind, and a model that is quick to fetch.
    assert!(recommender.samples().len() >= 200 && recommender.model().len() <= 4 << 20);
    let tags: std::collections::BTreeSet<&str> = recommender.samples().iter().flat_map(|sample| &sample.tags).map(String::as_str).collect();
    assert!(["heavy", "light", "cold", "unknown", "near-tie"].iter().all(|tag| tags.contains(tag)), "{tags:?}");
    sets
}

#[test]
fn every_shipped_set_is_reproduced_by_every_engine() {
    let mut choices = vec![RTEN];
    if onnx_runtime_here("every_shipped_set_is_reproduced_by_every_engine (with ONNX Runtime)") {
        choices.push(ONNX_RUNTIME);
    }
    for (set, options) in shipped().iter().flat_map(|set| choices.iter().map(move |options| (set, options))) {
        let proof = prove(set, &mut *open(set.model(), options).unwrap()).unwrap();
        assert_eq!(proof.samples, set.manifest().samples.len());
    }
}

#[test]
fn a_shipped_model_with_one_matrix_one_percent_off_is_refused() {
    for set in shipped() {
        let model = crate::onnx::decode_model(set.model().clone()).unwrap();
        let weights = model.graph.as_ref().unwrap().initializer.iter().filter(|weight| weight.data_type == 1 && weight.dims.len() >= 2);
        let largest = weights.max_by_key(|weight| weight.raw_data.len()).unwrap().name.clone();
        let broken = testing::bytes(&testing::one_percent_off(model, &largest));
        let refused = prove(&set, &mut *open(&broken, &RTEN).unwrap()).unwrap_err();
        assert!(!refused.output.is_empty(), "{refused}");
    }
}
