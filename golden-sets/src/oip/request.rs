//! `POST …/infer`, what goes in.

use serde::{Deserialize, Serialize};

use super::{
    BINARY, BODY_MAX, EncodedMessage, JSON, OipError, Side, TENSORS_MAX, binary,
    json::Data,
    split,
    wire::{self, Bounded, Parameter, Parameters, WireTensors, nullable},
};
use crate::tensor::{Tensor, Values};

/// What a request asks for beside its inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// Comes back with the answer; empty: none.
    pub id: String,
    /// Send the inputs as binary tensors and ask for binary outputs. Only where the server offers the extension.
    pub binary: bool,
    /// The outputs wanted; empty: all.
    pub outputs: Vec<String>,
}

/// A request as a server reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// Empty: none was sent.
    pub id: String,
    pub inputs: Vec<Tensor>,
    /// Empty: all.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs come as binary tensors where they do not say themselves (`binary_data_output`).
    pub binary_default: bool,
    pub parameters: Parameters,
}

/// An output that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    pub binary: bool,
}

impl InferRequest {
    /// Whether this output is wanted.
    pub fn wants(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|requested| requested.name == output)
    }

    /// Whether this output is wanted as a binary tensor.
    pub fn wants_binary(&self, output: &str) -> bool {
        self.outputs.iter().find(|requested| requested.name == output).map_or(self.binary_default, |requested| requested.binary)
    }
}

#[derive(Deserialize)]
struct WireRequest {
    #[serde(default, deserialize_with = "nullable")]
    id: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
    inputs: WireTensors,
    #[serde(default, deserialize_with = "nullable")]
    outputs: Bounded<WireOutput, TENSORS_MAX>,
}

#[derive(Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
}

/// Reads a request. `inference_header_length` is the value of [`super::INFERENCE_HEADER_LENGTH`], if it was sent.
pub fn decode_request(inference_header_length: Option<usize>, body: &[u8]) -> Result<InferRequest, OipError> {
    let (json, binary) = split(inference_header_length, body)?;
    let wire: WireRequest = wire::parse(json)?;
    let binary_default = wire.parameters.flag("binary_data_output").map_err(|why| OipError::Message { field: "parameters", why })?.unwrap_or(false);
    let mut outputs: Vec<RequestedOutput> = Vec::with_capacity(wire.outputs.0.len());
    for output in wire.outputs.0 {
        let refuse = |field, why| OipError::Tensor { side: Side::Output, name: output.name.clone(), field, why };
        if outputs.iter().any(|earlier| earlier.name == output.name) {
            return Err(refuse("name", "is requested twice".into()));
        }
        let own = output.parameters.flag("binary_data").map_err(|why| refuse("parameters", why))?;
        outputs.push(RequestedOutput { binary: own.unwrap_or(binary_default), name: output.name });
    }
    let inputs = wire::tensors(Side::Input, wire.inputs, binary)?;
    Ok(InferRequest { id: wire.id, inputs, outputs, binary_default, parameters: wire.parameters })
}

#[derive(Serialize)]
struct RequestOut<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: Parameters,
    inputs: Vec<TensorOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<OutputOut<'a>>,
}

#[derive(Serialize)]
struct OutputOut<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: Parameters,
}

/// Writes a request. Fails only for what JSON cannot carry (BYTES that are no text), and for more than [`BODY_MAX`] or [`TENSORS_MAX`].
pub fn encode_request(inputs: &[Tensor], options: &RequestOptions) -> Result<EncodedMessage, OipError> {
    let flag = |name: &str| if options.binary { Parameters::default().with(name, Parameter::Flag(true)) } else { Parameters::default() };
    let outputs = options.outputs.iter().map(|name| OutputOut { name, parameters: flag("binary_data") }).collect();
    let binary = vec![options.binary; inputs.len()];
    encode(Side::Input, inputs, &binary, |inputs| RequestOut { id: &options.id, parameters: flag("binary_data_output"), inputs, outputs })
}

/// One tensor as it is written.
#[derive(Serialize)]
pub(super) struct TensorOut<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: Parameters,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

/// Writes a message around its tensors: JSON, then the binary ones in their order.
pub(super) fn encode<'a, M: Serialize>(
    side: Side,
    tensors: &'a [Tensor],
    binary: &[bool],
    message: impl FnOnce(Vec<TensorOut<'a>>) -> M,
) -> Result<EncodedMessage, OipError> {
    if tensors.len() > TENSORS_MAX {
        return Err(OipError::Message { field: "tensors", why: format!("{} of them; at most {TENSORS_MAX}", tensors.len()) });
    }
    let refuse = |tensor: &Tensor, why: String| OipError::Tensor { side, name: tensor.name.clone(), field: "data", why };
    let mut parts: Vec<&Values> = Vec::new();
    let mut out = Vec::with_capacity(tensors.len());
    for (tensor, binary) in tensors.iter().zip(binary) {
        let (parameters, data) = if *binary {
            parts.push(&tensor.values);
            (Parameters::default().with("binary_data_size", Parameter::Whole(binary::size(&tensor.values) as i64)), None)
        } else {
            if let Some(why) = unwritable(&tensor.values) {
                return Err(refuse(tensor, why));
            }
            (Parameters::default(), Some(Data(&tensor.values)))
        };
        out.push(TensorOut { name: &tensor.name, shape: &tensor.shape, datatype: tensor.datatype().name(), parameters, data });
    }
    let tail = parts.iter().map(|values| binary::size(values)).fold(0, usize::saturating_add);
    if tail > BODY_MAX {
        return Err(OipError::TooLarge { size: tail });
    }
    let mut body = serde_json::to_vec(&message(out)).map_err(|error| OipError::Json { why: error.to_string() })?;
    let header = (!parts.is_empty()).then_some(body.len());
    body.reserve_exact(tail);
    for values in parts {
        binary::write(values, &mut body);
    }
    if body.len() > BODY_MAX {
        return Err(OipError::TooLarge { size: body.len() });
    }
    Ok(EncodedMessage { content_type: if header.is_some() { BINARY } else { JSON }, inference_header_length: header, body: body.into() })
}

/// Why JSON cannot carry these values.
fn unwritable(values: &Values) -> Option<String> {
    let Values::Bytes(values) = values else { return None };
    let index = values.iter().position(|value| std::str::from_utf8(value).is_err())?;
    Some(format!("value {index} is not UTF-8 text, which JSON cannot carry; send it as a binary tensor"))
}
