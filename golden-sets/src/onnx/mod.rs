//! What Steadfast reads of ONNX files: messages, tensors, and what a graph takes and gives.
//!
//! Messages are written by hand after `onnx.proto` (fields that nothing here reads are skipped), so that no build needs `protoc`.
//! Nothing here computes: that is [`crate::engine`].

pub mod graph;
pub mod proto;
pub mod tensor;

pub use graph::Signature;
pub use proto::{ModelProto, TensorProto};

use bytes::Bytes;
use prost::Message as _;

/// Why bytes are not a model or a tensor that can be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OnnxError {
    #[error("not {what}: {why}")]
    Decode { what: &'static str, why: String },
    #[error("{at}: {why}")]
    Unusable { at: String, why: String },
}

/// Decodes a model. Weights are shared with `bytes`, not copied.
pub fn decode_model(bytes: Bytes) -> Result<ModelProto, OnnxError> {
    let model = ModelProto::decode(bytes).map_err(|error| OnnxError::Decode { what: "an ONNX model", why: error.to_string() })?;
    if model.graph.is_none() {
        return Err(OnnxError::Decode { what: "an ONNX model", why: "it holds no graph".into() });
    }
    Ok(model)
}
