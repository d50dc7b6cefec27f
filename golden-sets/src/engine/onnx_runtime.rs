//! ONNX Runtime, through its C API. The shared library is loaded once for the process, by the first engine that asks; whoever comes later shares it.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use bytes::Bytes;
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynValue, Tensor as OrtTensor, TensorElementType},
};

use super::{Engine, EngineError, EngineOptions, find, guarded};
use crate::{
    onnx::{ModelProto, Signature, graph::Port},
    tensor::{Tensor, Values},
};

const NAME: &str = "onnxruntime";

/// The library and its environment: one of each for a process.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

#[derive(Clone)]
struct Loaded {
    environment: Environment,
    version: String,
    path: PathBuf,
}

/// A loaded model.
pub struct OnnxRuntime {
    session: Session,
    signature: Signature,
    version: String,
    /// Set by a panic: its state can no longer be trusted.
    poisoned: bool,
}

impl OnnxRuntime {
    /// `model` is the decoded `bytes`.
    pub fn open(bytes: &Bytes, model: &ModelProto, options: &EngineOptions) -> Result<Self, EngineError> {
        let loaded = load(options.library.as_deref())?;
        let signature = Signature::of(model)?;
        let session = guarded(NAME, || session(&loaded.environment, bytes, options).map_err(|why| EngineError::Load { engine: NAME, why }))?;
        Ok(Self { session, signature, version: loaded.version, poisoned: false })
    }
}

/// Whether the library can be loaded; the error tells how to get it.
pub fn available(library: Option<&Path>) -> Result<String, EngineError> {
    load(library).map(|loaded| loaded.version)
}

fn load(library: Option<&Path>) -> Result<Loaded, EngineError> {
    // A panic while it was held left `None` or something whole.
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(loaded) = &*loaded {
        return match library {
            Some(other) if other != loaded.path => {
                let why = format!("{} was asked for, and this process has loaded {} already; only one is possible", other.display(), loaded.path.display());
                Err(EngineError::NoLibrary { why })
            }
            _ => Ok(loaded.clone()),
        };
    }
    let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = library
        .map(Path::to_owned)
        .or(variable)
        .unwrap_or_else(|| format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX).into());
    let fresh = guarded(NAME, || {
        let no_library = |why: String| EngineError::NoLibrary { why };
        let builder = ort::init_from(&path).map_err(|error| no_library(error.to_string()))?;
        let environment = builder.with_name("steadfast").with_telemetry(false).build().map_err(|error| no_library(error.to_string()))?;
        // Errors come back as errors; printed as well, they would be told twice.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        Ok(Loaded { environment, version: version(&path), path: path.clone() })
    });
    // A library that is there and of the wrong kind panics inside: still "could not be loaded".
    let fresh = fresh.map_err(|error| match error {
        EngineError::Panicked { why, .. } => EngineError::NoLibrary { why: format!("{}: {why}", path.display()) },
        other => other,
    })?;
    *loaded = Some(fresh.clone());
    Ok(fresh)
}

/// The file's name carries the release (`libonnxruntime.so.1.32.0`), also behind a link without it; the library itself tells only what it was built from,
/// `ORT Build Info: git-branch=HEAD, git-commit-id=26250ae, …`.
fn version(path: &Path) -> String {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = resolved.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some((_, version)) = name.split_once(".so.").filter(|(_, version)| version.contains('.')) {
        return version.to_owned();
    }
    let commit = ort::info().split_once("git-commit-id=").and_then(|(_, rest)| rest.split(',').next());
    commit.map_or_else(|| "unknown".to_owned(), |commit| format!("commit {}", commit.trim()))
}

#[expect(clippy::result_large_err, reason = "the builder's own error type")]
fn session(environment: &Environment, bytes: &[u8], options: &EngineOptions) -> Result<Session, String> {
    let builder = Session::builder(environment).map_err(|error| error.to_string())?;
    builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .and_then(|builder| builder.with_intra_threads(options.threads.max(1)))
        .and_then(|builder| builder.with_inter_threads(1))
        // Without it int8 products saturate on CPUs without VNNI: up to 0.097 off, one label in twenty.
        .and_then(|builder| builder.with_config_entry("session.x64quantprecision", "1"))
        .map_err(|error| error.to_string())?
        .commit_from_memory(bytes)
        .map_err(|error| error.to_string())
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        if self.poisoned {
            return Err(EngineError::Panicked { engine: NAME, why: "in an earlier run; open the model anew".into() });
        }
        let given = (self.signature.inputs.iter())
            .map(|port| Ok((port.name.clone(), to_value(find(inputs, &port.name)?)?)))
            .collect::<Result<Vec<(String, SessionInputValue<'static>)>, EngineError>>()?;
        let (session, outputs) = (&mut self.session, &self.signature.outputs);
        let result = guarded(NAME, || {
            let answer = session.run(given).map_err(|error| EngineError::Run { engine: NAME, why: error.to_string() })?;
            outputs.iter().map(|port| to_tensor(port, answer.get(&port.name))).collect()
        });
        self.poisoned = matches!(result, Err(EngineError::Panicked { .. }));
        result
    }
}

fn to_value(tensor: &Tensor) -> Result<SessionInputValue<'static>, EngineError> {
    let refuse = |why: String| EngineError::Input { name: tensor.name.clone(), why };
    let shape: Vec<i64> = tensor.shape.iter().map(|dim| *dim as i64).collect();
    macro_rules! value {
        ($values:expr) => {
            OrtTensor::from_array((shape, $values.clone())).map(|value| value.into_dyn())
        };
    }
    let value: ort::Result<DynValue> = match &tensor.values {
        Values::Bool(values) => value!(values),
        Values::U8(values) => value!(values),
        Values::U16(values) => value!(values),
        Values::U32(values) => value!(values),
        Values::U64(values) => value!(values),
        Values::I8(values) => value!(values),
        Values::I16(values) => value!(values),
        Values::I32(values) => value!(values),
        Values::I64(values) => value!(values),
        Values::F32(values) => value!(values),
        Values::F64(values) => value!(values),
        Values::Bytes(values) => {
            let texts = values.iter().map(|value| String::from_utf8(value.clone())).collect::<Result<Vec<_>, _>>();
            let texts = texts.map_err(|_| refuse("ONNX Runtime takes BYTES only as UTF-8 text".into()))?;
            OrtTensor::from_string_array((shape, texts.as_slice())).map(OrtTensor::into_dyn)
        }
    };
    match value {
        Ok(value) => Ok(value.into()),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn to_tensor(port: &Port, value: Option<&DynValue>) -> Result<Tensor, EngineError> {
    let fail = |why: String| EngineError::Run { engine: NAME, why: format!("output {:?}: {why}", port.name) };
    let value = value.ok_or_else(|| fail("was not computed".into()))?;
    let ort::value::ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(fail("is not a tensor".into()));
    };
    let shape: Vec<usize> = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    macro_rules! values {
        ($variant:ident, $type:ty) => {
            Values::$variant(value.try_extract_tensor::<$type>().map_err(|error| fail(error.to_string()))?.1.to_vec())
        };
    }
    let values = match ty {
        TensorElementType::Bool => values!(Bool, bool),
        TensorElementType::Uint8 => values!(U8, u8),
        TensorElementType::Uint16 => values!(U16, u16),
        TensorElementType::Uint32 => values!(U32, u32),
        TensorElementType::Uint64 => values!(U64, u64),
        TensorElementType::Int8 => values!(I8, i8),
        TensorElementType::Int16 => values!(I16, i16),
        TensorElementType::Int32 => values!(I32, i32),
        TensorElementType::Int64 => values!(I64, i64),
        TensorElementType::Float32 => values!(F32, f32),
        TensorElementType::Float64 => values!(F64, f64),
        TensorElementType::String => {
            let (_, texts) = value.try_extract_strings().map_err(|error| fail(error.to_string()))?;
            Values::Bytes(texts.into_iter().map(String::into_bytes).collect())
        }
        other => return Err(fail(format!("is {other:?}, which is not supported"))),
    };
    Tensor::new(&port.name, shape, values).map_err(EngineError::output(NAME))
}
