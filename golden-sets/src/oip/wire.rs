//! The JSON of messages as it stands on the wire, before anything in it is believed. Lists and maps are bounded while they are read.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    OipError, Side, TENSORS_MAX, binary,
    json::{self, Flat},
};
use crate::tensor::{DataType, RANK_MAX, Tensor, elements};

/// Parameters of one message or tensor; real ones have a handful.
const PARAMETERS_MAX: usize = 64;

/// A parameter's value. The protocol knows no others; lists, objects and nulls are left out when they are read.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Parameter {
    Flag(bool),
    Whole(i64),
    Number(f64),
    Text(String),
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
        }
    }
}

/// `parameters` of a message, a tensor or a requested output.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Parameters(pub BTreeMap<String, Parameter>);

impl Parameters {
    pub(super) fn with(mut self, name: &str, value: Parameter) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Parameter::Flag(flag)) => Ok(Some(*flag)),
            Some(other) => Err(format!("{name} is {other}; write true or false")),
        }
    }

    pub(super) fn size(&self, name: &str) -> Result<Option<usize>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Parameter::Whole(size)) if *size >= 0 => usize::try_from(*size).map(Some).map_err(|_| format!("{name} is {size}: too large")),
            Some(other) => Err(format!("{name} is {other}; write a number of bytes")),
        }
    }
}

/// A value that is kept only if it is a parameter.
struct Scalar(Option<Parameter>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a parameter")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(Parameter::Flag(value))))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(Parameter::Whole(value))))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(i64::try_from(value).map_or(Parameter::Number(value as f64), Parameter::Whole))))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(Parameter::Number(value))))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(Parameter::Text(value.to_owned()))))
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Parameters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut parameters = BTreeMap::new();
                while let Some((name, Scalar(value))) = map.next_entry::<String, Scalar>()? {
                    if let Some(value) = value {
                        parameters.insert(name, value);
                    }
                    if parameters.len() > PARAMETERS_MAX {
                        return Err(de::Error::custom(format!("more than {PARAMETERS_MAX} parameters")));
                    }
                }
                Ok(Parameters(parameters))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A list of at most `MAX` entries.
#[derive(Debug)]
pub(super) struct Bounded<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    if list.len() == MAX {
                        return Err(de::Error::custom(format!("a list of more than {MAX} entries")));
                    }
                    list.push(entry);
                }
                Ok(Bounded(list))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// `null` where a field may be absent: several servers write it.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// One tensor of a message.
#[derive(Debug, Deserialize)]
pub(super) struct WireTensor {
    name: String,
    shape: Bounded<i64, RANK_MAX>,
    datatype: String,
    #[serde(default, deserialize_with = "nullable")]
    parameters: Parameters,
    #[serde(default)]
    data: Option<Flat>,
}

/// All tensors of a message.
pub(super) type WireTensors = Bounded<WireTensor, TENSORS_MAX>;

/// Reads the JSON part of a message.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, OipError> {
    serde_json::from_slice(json)
        .or_else(|error| match json::without_bare_words(json) {
            // Only where it does differ: Python's `json` writes NaN and Infinity, which JSON does not have.
            Cow::Owned(json) => serde_json::from_slice(&json),
            Cow::Borrowed(_) => Err(error),
        })
        .map_err(|error| OipError::Json { why: error.to_string() })
}

/// Checks all tensors of a message; binary ones are cut off `rest` in their order, and nothing may be left of it.
pub(super) fn tensors(side: Side, wire: WireTensors, binary: Option<&[u8]>) -> Result<Vec<Tensor>, OipError> {
    let mut rest = binary.unwrap_or_default();
    let mut tensors: Vec<Tensor> = Vec::with_capacity(wire.0.len());
    for tensor in wire.0 {
        if tensors.iter().any(|earlier| earlier.name == tensor.name) {
            return Err(OipError::Tensor { side, name: tensor.name, field: "name", why: "stands twice".into() });
        }
        let name = tensor.name.clone();
        tensors.push(one(tensor, binary.is_some(), &mut rest).map_err(|(field, why)| OipError::Tensor { side, name, field, why })?);
    }
    if rest.is_empty() {
        Ok(tensors)
    } else {
        Err(OipError::Message { field: "binary_data_size", why: format!("the body has {} bytes more than its tensors account for", rest.len()) })
    }
}

/// Types that are read as a wider one.
pub(super) enum WireType {
    Plain(DataType),
    Half,
    Brain,
}

impl WireType {
    fn of(name: &str) -> Result<Self, String> {
        match name {
            "FP16" => Ok(Self::Half),
            "BF16" => Ok(Self::Brain),
            _ => DataType::from_name(name).map(Self::Plain).ok_or_else(|| {
                let names: Vec<_> = DataType::ALL.iter().map(|datatype| datatype.name()).collect();
                format!("{name:?} is not a type of the protocol: {}, FP16 or BF16", names.join(", "))
            }),
        }
    }
}

fn one(wire: WireTensor, has_binary: bool, rest: &mut &[u8]) -> Result<Tensor, (&'static str, String)> {
    let datatype = WireType::of(&wire.datatype).map_err(|why| ("datatype", why))?;
    let shape = (wire.shape.0.iter().map(|axis| usize::try_from(*axis)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| ("shape", format!("{:?} has a negative dimension; write the tensor's actual one", wire.shape.0)))?;
    let count = elements(&shape).ok_or_else(|| ("shape", format!("{shape:?} is more than {} values", crate::tensor::ELEMENTS_MAX)))?;
    let size = wire.parameters.size("binary_data_size").map_err(|why| ("parameters", why))?;
    let values = match (size, wire.data) {
        (Some(_), Some(_)) => return Err(("data", "is there as well as binary_data_size; keep one of them".into())),
        (None, None) => return Err(("data", "is missing (and binary_data_size is, too)".into())),
        (Some(_), None) if !has_binary => {
            return Err(("parameters", format!("binary_data_size needs the header {}, which is missing", super::INFERENCE_HEADER_LENGTH)));
        }
        (Some(size), None) => {
            let missing = || ("parameters", format!("binary_data_size is {size}, but {} bytes are left of the body", rest.len()));
            let (own, after) = rest.split_at_checked(size).ok_or_else(missing)?;
            *rest = after;
            binary::read(own, &datatype, count).map_err(|why| ("parameters", why))?
        }
        (None, Some(data)) => json::values(data, &datatype, &shape, count).map_err(|why| ("data", why))?,
    };
    Tensor::new(wire.name, shape, values).map_err(|error| ("data", error.to_string()))
}
