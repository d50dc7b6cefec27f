//! What a server tells of itself and of a model, and how it tells an error.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::wire::nullable;

/// The extension of `GET /v2` that allows binary tensors.
pub const BINARY_EXTENSION: &str = "binary_tensor_data";

/// `GET /v2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub version: String,
    #[serde(default, deserialize_with = "nullable")]
    pub extensions: Vec<String>,
}

impl ServerMetadata {
    /// Whether requests and answers may carry binary tensors.
    pub fn takes_binary(&self) -> bool {
        self.extensions.iter().any(|extension| extension == BINARY_EXTENSION)
    }
}

/// `GET /v2/models/{name}`. Several servers leave inputs, outputs or shapes out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub platform: String,
    #[serde(default, deserialize_with = "nullable")]
    pub inputs: Vec<TensorMetadata>,
    #[serde(default, deserialize_with = "nullable")]
    pub outputs: Vec<TensorMetadata>,
}

/// One input or output of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    pub name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub datatype: String,
    /// -1 is a dimension that may be anything. Empty where the server does not tell.
    #[serde(default, deserialize_with = "nullable")]
    pub shape: Vec<i64>,
}

/// The body of every error answer. Servers of the KServe family nest or name it differently; all that is wanted of it is the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    #[serde(alias = "detail", alias = "message", deserialize_with = "text")]
    pub error: String,
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    match value {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Null => Err(de::Error::custom("no text")),
        other => Ok(other.to_string()),
    }
}
