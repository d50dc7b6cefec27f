//! The Open Inference Protocol v2 over HTTP: bodies to tensors and back. Bytes in, bytes out; who sends them is not decided here.
//!
//! Source: the KServe "Open Inference Protocol" REST document and its binary tensor extension (`Inference-Header-Content-Length`, `binary_data_size`,
//! `binary_data`, `binary_data_output`), and what Triton, MLServer and the KServe SDK accept and answer where the documents are silent:
//!
//! - `data` may be nested or flat; both are read, flat is written.
//! - JSON has no NaN and no infinities. They are written as the texts `"NaN"`, `"Infinity"`, `"-Infinity"` (the JSON mapping of protocol buffers);
//!   those, the bare words that Python writes, and `null` (NaN) are read.
//! - `FP16` and `BF16` are read as `FP32`, which holds each of their values, and never written.
//!
//! Every length in a message is checked against what is there before anything is allocated for it: no bytes can make the reader panic, overflow, or
//! take more than a small multiple of their own size.

mod binary;
mod json;
mod metadata;
mod request;
mod response;
pub mod route;
mod wire;

pub use metadata::{BINARY_EXTENSION, ErrorBody, ModelMetadata, ServerMetadata, TensorMetadata};
pub use request::{InferRequest, RequestOptions, RequestedOutput, decode_request, encode_request};
pub use response::{InferResponse, ResponseHead, decode_response, encode_response};
pub use route::Route;
pub use wire::{Parameter, Parameters};

use bytes::Bytes;

/// Name of the header that says how many bytes of a body are JSON, the rest being binary tensors.
pub const INFERENCE_HEADER_LENGTH: &str = "inference-header-content-length";
/// Content type of a body that is all JSON.
pub const JSON: &str = "application/json";
/// Content type of a body that starts with JSON and ends with binary tensors.
pub const BINARY: &str = "application/octet-stream";

/// Bytes of one message.
pub const BODY_MAX: usize = 256 << 20;
/// Tensors, or requested outputs, of one message.
pub const TENSORS_MAX: usize = 256;

/// A body and what its headers must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedMessage {
    pub content_type: &'static str,
    /// For [`INFERENCE_HEADER_LENGTH`]; `None`: the body is all JSON and the header must be absent.
    pub inference_header_length: Option<usize>,
    pub body: Bytes,
}

/// Which list of a message a tensor stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Input,
    Output,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

/// Why a message cannot be read or written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OipError {
    #[error("the body has {size} bytes; at most {BODY_MAX} are taken")]
    TooLarge { size: usize },
    #[error("the header {INFERENCE_HEADER_LENGTH} is {length}, but the body has {size} bytes: write the length of its JSON part")]
    HeaderLength { length: usize, size: usize },
    #[error("the JSON of the body cannot be read: {why}")]
    Json { why: String },
    #[error("{side} {name:?}: {field}: {why}")]
    Tensor { side: Side, name: String, field: &'static str, why: String },
    #[error("{field}: {why}")]
    Message { field: &'static str, why: String },
}

/// Splits a body into its JSON and its binary part.
fn split(inference_header_length: Option<usize>, body: &[u8]) -> Result<(&[u8], Option<&[u8]>), OipError> {
    if body.len() > BODY_MAX {
        return Err(OipError::TooLarge { size: body.len() });
    }
    match inference_header_length {
        None => Ok((body, None)),
        Some(0) => Err(OipError::Message {
            field: INFERENCE_HEADER_LENGTH,
            why: "is 0: bodies without JSON are not taken; describe the tensors in JSON and write its length".into(),
        }),
        Some(length) => {
            let (json, binary) = body.split_at_checked(length).ok_or(OipError::HeaderLength { length, size: body.len() })?;
            Ok((json, Some(binary)))
        }
    }
}

#[cfg(test)]
mod tests;
