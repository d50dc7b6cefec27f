//! `POST …/infer`, what comes out.

use serde::{Deserialize, Serialize};

use super::{
    EncodedMessage, OipError, Side,
    request::{TensorOut, encode},
    split,
    wire::{self, Parameters, WireTensors, nullable},
};
use crate::tensor::{DataType, Tensor};

/// An answer as a client reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferResponse {
    pub model: String,
    /// Empty where the server does not tell.
    pub version: String,
    /// Empty: none was sent.
    pub id: String,
    pub outputs: Vec<Tensor>,
    pub parameters: Parameters,
}

/// What stands in an answer beside its outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResponseHead<'a> {
    #[serde(rename = "model_name")]
    pub model: &'a str,
    #[serde(rename = "model_version", skip_serializing_if = "str::is_empty")]
    pub version: &'a str,
    /// The request's; empty: it had none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub id: &'a str,
}

#[derive(Deserialize)]
struct WireResponse {
    #[serde(default, deserialize_with = "nullable")]
    model_name: String,
    #[serde(default, deserialize_with = "nullable")]
    model_version: String,
    #[serde(default, deserialize_with = "nullable")]
    id: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
    outputs: WireTensors,
}

/// Reads an answer. `inference_header_length` is the value of [`super::INFERENCE_HEADER_LENGTH`], if it was sent.
///
/// Outputs named in `declared` are cast to the type given there (MLServer answers FP64 for FP32) where all of their values fit it; one that does not fit
/// keeps its own type, which a comparison then reports as the difference that it is.
pub fn decode_response(inference_header_length: Option<usize>, body: &[u8], declared: &[(&str, DataType)]) -> Result<InferResponse, OipError> {
    let (json, binary) = split(inference_header_length, body)?;
    let wire: WireResponse = wire::parse(json)?;
    let mut outputs = wire::tensors(Side::Output, wire.outputs, binary)?;
    for output in &mut outputs {
        let wanted = declared.iter().find(|(name, _)| *name == output.name).map(|(_, datatype)| *datatype);
        if let Some(Ok(cast)) = wanted.filter(|wanted| *wanted != output.datatype()).map(|wanted| output.cast(wanted)) {
            *output = cast;
        }
    }
    Ok(InferResponse { model: wire.model_name, version: wire.model_version, id: wire.id, outputs, parameters: wire.parameters })
}

#[derive(Serialize)]
struct ResponseOut<'a> {
    #[serde(flatten)]
    head: ResponseHead<'a>,
    outputs: Vec<TensorOut<'a>>,
}

/// Writes an answer; `binary` says of each output whether it goes as a binary tensor (see [`super::InferRequest::wants_binary`]).
pub fn encode_response(head: ResponseHead<'_>, outputs: &[Tensor], binary: impl Fn(&str) -> bool) -> Result<EncodedMessage, OipError> {
    let binary: Vec<bool> = outputs.iter().map(|output| binary(&output.name)).collect();
    encode(Side::Output, outputs, &binary, |outputs| ResponseOut { head, outputs })
}
