//! The embedded engine: rten. It computes in f32, i32, i8 and u8 only; everything else is converted at the edge or refused.

use std::sync::Arc;

use bytes::Bytes;
use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};

use super::{Engine, EngineError, EngineOptions, find, guarded, traps};
use crate::{
    onnx::{ModelProto, Signature},
    tensor::{DataType, Tensor, Values},
};

const NAME: &str = "rten";
/// rten does not tell its version; this is the one in the workspace's manifest, and a test compares them.
const VERSION: &str = "0.27";

/// A loaded model.
pub struct Rten {
    model: Model,
    inputs: Vec<(String, DataType, NodeId)>,
    outputs: Vec<(String, DataType, NodeId)>,
    pool: Arc<ThreadPool>,
    /// Set by a panic: its state can no longer be trusted.
    poisoned: bool,
}

impl Rten {
    /// `model` is the decoded `bytes`. The graph is inspected before rten sees it.
    pub fn open(bytes: &Bytes, model: &ModelProto, options: &EngineOptions) -> Result<Self, EngineError> {
        traps::refuse(model)?;
        let signature = Signature::of(model)?;
        let loaded =
            guarded(NAME, || ModelOptions::with_all_ops().load(bytes.to_vec()).map_err(|error| EngineError::Load { engine: NAME, why: error.to_string() }))?;
        let node = |name: &str| loaded.find_node(name).ok_or_else(|| EngineError::Load { engine: NAME, why: format!("the loaded graph has no {name:?}") });
        let ports = |ports: Vec<crate::onnx::graph::Port>| {
            ports.into_iter().map(|port| node(&port.name).map(|id| (port.name, port.datatype, id))).collect::<Result<Vec<_>, _>>()
        };
        let (inputs, outputs) = (ports(signature.inputs)?, ports(signature.outputs)?);
        let pool = Arc::new(ThreadPool::with_num_threads(options.threads.max(1)));
        Ok(Self { model: loaded, inputs, outputs, pool, poisoned: false })
    }
}

impl Engine for Rten {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        if self.poisoned {
            return Err(EngineError::Panicked { engine: NAME, why: "in an earlier run; open the model anew".into() });
        }
        let given = (self.inputs.iter())
            .map(|(name, datatype, id)| Ok((*id, ValueOrView::Value(to_value(find(inputs, name)?, *datatype)?))))
            .collect::<Result<Vec<_>, EngineError>>()?;
        let wanted: Vec<NodeId> = self.outputs.iter().map(|(_, _, id)| *id).collect();
        let options = RunOptions::default().with_thread_pool(Some(self.pool.clone()));
        let result = guarded(NAME, || self.model.run(given, &wanted, Some(options)).map_err(|error| EngineError::Run { engine: NAME, why: error.to_string() }));
        self.poisoned = matches!(result, Err(EngineError::Panicked { .. }));
        result?.into_iter().zip(&self.outputs).map(|(value, (name, datatype, _))| to_tensor(name, value, *datatype)).collect()
    }
}

/// Integers of 64 bits and booleans become i32: their values must fit.
fn to_value(tensor: &Tensor, declared: DataType) -> Result<Value, EngineError> {
    let refuse = |why: String| EngineError::Input { name: tensor.name.clone(), why };
    if tensor.datatype() != declared {
        return Err(refuse(format!("is {} where {declared} is declared", tensor.datatype())));
    }
    macro_rules! value {
        ($values:expr) => {
            Value::from_shape(tensor.shape.as_slice(), $values).map_err(|error| refuse(error.to_string()))
        };
    }
    match &tensor.values {
        Values::F32(values) => value!(values.clone()),
        Values::U8(values) => value!(values.clone()),
        Values::I8(values) => value!(values.clone()),
        Values::I32(values) => value!(values.clone()),
        Values::Bool(values) => value!(values.iter().map(|value| i32::from(*value)).collect::<Vec<_>>()),
        Values::I64(values) => {
            let narrow =
                values.iter().map(|value| i32::try_from(*value).map_err(|_| refuse(format!("rten computes integers in 32 bits, which {value} does not fit"))));
            value!(narrow.collect::<Result<Vec<_>, _>>()?)
        }
        _ => Err(refuse(format!("rten has no {declared}"))),
    }
}

fn to_tensor(name: &str, value: Value, declared: DataType) -> Result<Tensor, EngineError> {
    macro_rules! tensor {
        ($tensor:expr, $variant:ident) => {{
            let shape = rten_tensor::Layout::shape(&$tensor).to_vec();
            Tensor::new(name, shape, Values::$variant($tensor.into_data()))
        }};
    }
    let tensor = match value {
        Value::FloatTensor(tensor) => tensor!(tensor, F32),
        Value::Int32Tensor(tensor) => tensor!(tensor, I32),
        Value::Int8Tensor(tensor) => tensor!(tensor, I8),
        Value::UInt8Tensor(tensor) => tensor!(tensor, U8),
        _ => return Err(EngineError::Run { engine: NAME, why: format!("output {name:?} is not a tensor") }),
    };
    tensor.and_then(|tensor| tensor.cast(declared)).map_err(EngineError::output(NAME))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_that_of_the_manifest() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("rten = {{ version = \"{}\"", super::VERSION)));
    }
}
