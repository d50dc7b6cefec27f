//! Does `steadfast golden` tell a right server from a wrong one, a slow one, and a broken set? Real servers, real models, the real command.

mod check;
mod enrol;
mod process;
mod servers;
mod stores;

use std::path::{Path, PathBuf};

use prost::Message as _;
use steadfast_golden_sets::{onnx, set};

/// A server's folder with the model of a set, one of its weights one percent off, under the same model name.
fn one_percent_off(name: &str, into: &Path) -> PathBuf {
    let directory = into.join(name);
    std::fs::create_dir(&directory).unwrap();
    let set = set::read(process::set(name)).unwrap();
    let mut model = onnx::decode_model(set.model().clone()).unwrap();
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let float = |proto: &onnx::TensorProto| proto.data_type == 1;
    let largest = weights.iter_mut().filter(|proto| float(proto)).max_by_key(|proto| proto.dims.iter().product::<i64>()).unwrap();
    let mut tensor = onnx::tensor::to_tensor(largest).unwrap();
    let steadfast_golden_sets::Values::F32(values) = &mut tensor.values else { panic!("filtered by type") };
    for value in values {
        *value *= 1.01;
    }
    *largest = onnx::tensor::from_tensor(&tensor);
    std::fs::write(directory.join("model.onnx"), model.encode_to_vec()).unwrap();
    directory
}

/// A copy of a set that may be written to.
fn copy(name: &str, into: &Path) -> PathBuf {
    let target = into.join(format!("{name}-set"));
    set::write(&set::read(process::set(name)).unwrap(), &target).unwrap();
    target
}
