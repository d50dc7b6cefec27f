//! Promises of reading and writing sets.

use std::fs;

use steadfast_api::golden::Compare;

use super::*;
use crate::testing;

fn refused(directory: &Path) -> String {
    read(directory).unwrap_err().to_string()
}

#[test]
fn a_set_reads_back_as_it_was_written() {
    let parent = tempfile::tempdir().unwrap();
    for set in [testing::classifier_set(), testing::recommender_set()] {
        let directory = parent.path().join(&set.manifest().model);
        write(&set, &directory).unwrap();
        let again = read(&directory).unwrap();
        assert_eq!((again.manifest(), again.samples(), again.digest()), (set.manifest(), set.samples(), set.digest()));
        assert!(write(&set, &directory).unwrap_err().to_string().contains("exists already"));
    }
}

#[test]
fn a_bare_model_zoo_folder_is_read_by_its_graph() {
    let parent = tempfile::tempdir().unwrap();
    let set = testing::recommender_set();
    let directory = parent.path().join("recommender");
    write(&set, &directory).unwrap();
    fs::remove_file(directory.join("golden.yaml")).unwrap();
    fs::write(directory.join("data.json"), r#"{"atol": 1e-7, "rtol": 0.001, "model_name": "x"}"#).unwrap();
    // As the model zoo stores them: without names.
    for sample in 0..set.samples().len() {
        let file = directory.join(format!("test_data_set_{sample}/output_0.pb"));
        let nameless = onnx::tensor::decode(fs::read(&file).unwrap().into()).unwrap().renamed("");
        fs::write(file, onnx::tensor::encode(&nameless)).unwrap();
    }
    let bare = read(&directory).unwrap();
    assert_eq!(bare.manifest().model, "recommender");
    assert_eq!(bare.samples()[2].outputs, set.samples()[2].outputs);
    assert!(matches!(&bare.manifest().outputs[0].compare, Compare::Ranking { scores, .. } if scores == "scores"), "a TopK is a ranking");
    assert!(matches!(&bare.manifest().outputs[1].compare, Compare::Regression { relative, .. } if relative.to_string() == "1e-3"));
    assert_eq!(bare.manifest().samples.last().unwrap().name, "test_data_set_9");
    fs::rename(directory.join("model.onnx"), directory.join("a.onnx")).unwrap();
    assert!(read(&directory).is_ok(), "any one .onnx file will do");
    fs::write(directory.join("b.onnx"), "").unwrap();
    assert!(refused(&directory).contains("2 .onnx files"));
}

#[test]
fn what_is_wrong_is_named_with_its_file() {
    let parent = tempfile::tempdir().unwrap();
    let set = testing::classifier_set();
    let directory = parent.path().join("set");
    write(&set, &directory).unwrap();
    let manifest = fs::read_to_string(directory.join("golden.yaml")).unwrap();
    let edited = |from: &str, to: &str| {
        assert!(manifest.contains(from), "{from} in {manifest}");
        fs::write(directory.join("golden.yaml"), manifest.replacen(from, to, 1)).unwrap();
        refused(&directory)
    };
    assert!(edited("model.onnx", "../model.onnx").contains("onnx.file: \"../model.onnx\""));
    assert!(edited("test_data_set_1", "/etc").contains("sample \"s1\": directory"));
    assert!(edited("FP32", "FP64").contains("is FP64 here and FP32 in the model"));
    assert!(edited("name: p\n", "name: q\n").contains("the model has no \"q\""));
    assert!(edited("s1", "s0").contains("stands twice"));
    fs::write(directory.join("golden.yaml"), &manifest).unwrap();

    let file = directory.join("test_data_set_1/output_0.pb");
    let good = fs::read(&file).unwrap();
    let with = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        refused(&directory)
    };
    assert!(with(&good[..good.len() - 1]).contains("output_0.pb: not a TensorProto"));
    let tensor = onnx::tensor::decode(good.clone().into()).unwrap();
    let flat = Tensor::new("p", [tensor.len()], tensor.values.clone()).unwrap();
    assert!(with(&onnx::tensor::encode(&flat)).contains("sample \"s1\": outputs: \"p\" has shape"));
    assert!(with(&onnx::tensor::encode(&tensor.cast(crate::DataType::F64).unwrap())).contains("is FP64, where FP32 is declared"));
    fs::remove_file(&file).unwrap();
    assert!(refused(&directory).contains("0 tensors where there must be 1"));
    fs::write(&file, &good).unwrap();

    fs::write(directory.join("model.onnx"), testing::bytes(&testing::one_percent_off(testing::classifier(), "w1"))).unwrap();
    assert!(refused(&directory).contains("onnx.digest: model.onnx is sha256:"));
    assert!(refused(&parent.path().join("none")).contains("none"));
    assert!(refused(parent.path()).contains("neither golden.yaml nor test_data_set"));
}

#[test]
fn rules_must_fit_their_outputs() {
    let set = testing::recommender_set();
    let with = |index: usize, compare: Compare| {
        let mut manifest = set.manifest().clone();
        manifest.outputs[index].compare = compare;
        GoldenSet::new(manifest, set.model().clone(), set.samples().to_vec()).map(drop)
    };
    let zero = steadfast_api::golden::Decimal::ZERO;
    let ranking = |scores: &str| Compare::Ranking { scores: scores.into(), overlap: steadfast_api::Percent::HUNDRED };
    assert!(with(0, ranking("nothing")).unwrap_err().to_string().contains("must name another output"));
    assert!(with(1, ranking("scores")).is_err());
    assert!(with(0, Compare::Classification { absolute: zero }).unwrap_err().to_string().contains("for labels use exact"));
    assert!(with(0, Compare::Exact {}).is_ok());
}

#[test]
fn the_digest_covers_answers_and_rules() {
    let set = testing::classifier_set();
    let mut samples = set.samples().to_vec();
    if let crate::Values::F32(values) = &mut samples[0].outputs[0].values {
        values[0] += 1.0;
    }
    let other = GoldenSet::new(set.manifest().clone(), set.model().clone(), samples).unwrap();
    assert_ne!(other.digest(), set.digest());
    let mut manifest = set.manifest().clone();
    manifest.outputs[0].compare = Compare::Exact {};
    assert_ne!(GoldenSet::new(manifest, set.model().clone(), set.samples().to_vec()).unwrap().digest(), set.digest());
}
