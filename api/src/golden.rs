//! Golden sets as files: `golden.yaml` (what a model must answer), `enrolled.yaml` (what one live server did answer), and the words of a verdict.
//!
//! No floats here: tolerances are decimal text ([`Decimal`]), so that a file is written back exactly as it was read.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{BadQuantity, Percent};

/// `golden.yaml`: which model, what goes in, what must come out and how closely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetManifest {
    /// The model's name on the server.
    pub model: String,
    /// The model's version on the server; empty: whichever version it serves.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub onnx: OnnxFile,
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<OutputSpec>,
    pub samples: Vec<SampleSpec>,
}

/// The reference model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnnxFile {
    /// Beside `golden.yaml`.
    pub file: String,
    pub digest: Digest,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: DataType,
    /// -1 is a dimension that may be anything.
    pub shape: Vec<i64>,
}

/// One output, and how its answers are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputSpec {
    pub name: String,
    pub datatype: DataType,
    /// -1 is a dimension that may be anything.
    pub shape: Vec<i64>,
    pub compare: Compare,
}

/// How two answers of one output are compared: what kind of output it is, with the tolerances of that kind. A one-of by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Compare {
    /// Every value within `absolute + relative × |reference|`.
    Regression { absolute: Decimal, relative: Decimal },
    /// Scores or probabilities of classes along the last axis: every one within `absolute`, and the same label wherever the reference's margin
    /// between first and second exceeds twice `absolute` (nearer than that, either label is right).
    Classification { absolute: Decimal },
    /// Items along the last axis, best first: the share of the reference's items found in order must reach `overlap`. Items whose scores
    /// (the output named `scores`) both answers may have brought level, each within that output's tolerance, are ties: they may stand in any
    /// order, and at the end of the list be replaced by others as good.
    Ranking { scores: String, overlap: Percent },
    /// Vectors along the last axis: every value within `absolute`, and the length of the difference within `relative` of the reference's length.
    Embedding { absolute: Decimal, relative: Decimal },
    /// Equal, value for value.
    Exact {},
}

/// One sample: a directory of `input_<i>.pb` and `output_<i>.pb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SampleSpec {
    pub name: String,
    /// Beside the file that names it.
    pub directory: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// `enrolled/<name>/enrolled.yaml`: what one live server answered, and how much its answers varied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnrolmentManifest {
    /// Digest of the whole set that was replayed; a set that changed since must be enrolled anew.
    pub set: Digest,
    pub server: Server,
    /// When, as RFC 3339 in UTC.
    pub time: String,
    /// How often each sample was replayed at least.
    pub replays: u32,
    pub outputs: Vec<EnrolledOutput>,
    pub samples: Vec<SampleSpec>,
}

/// Who answered. Answers may depend on the kind of CPU (int8 above all), so a mixed fleet is enrolled once per kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Server {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Kind of CPU or accelerator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hardware: String,
}

/// What enrolment learnt of one output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnrolledOutput {
    pub name: String,
    /// The largest difference between a first answer to a sample and any later one. Zero: this server is deterministic.
    pub noise: Noise,
    /// The largest difference between an answer and the set's stored one: how far this server stands from its reference.
    pub offset: Noise,
    /// The set's own rule with each tolerance raised to four times the noise where that is more.
    pub compare: Compare,
}

/// Largest differences seen between answers that should be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Noise {
    /// Largest |a − b|; for outputs that are not numbers, and for rankings, the share of values that differed.
    pub absolute: Decimal,
    /// Largest length of a − b ÷ length of b.
    pub relative: Decimal,
}

/// What a golden set says of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Enough samples to exclude the drift that was to be detected.
    Pass,
    /// Wrong answers, more than chance allows.
    Fail,
    /// Not enough samples yet for either.
    Inconclusive,
    /// The reference does not reproduce its own stored answers: nothing can be said of the server.
    ReferenceBroken,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What became of one replayed sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Match,
    Mismatch,
    /// Timeout or error. Counted apart, and never drift: a server that is busy or down is not wrong.
    NoAnswer,
}

/// Element type, by its Open Inference Protocol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DataType {
    #[serde(rename = "BOOL")]
    Bool,
    #[serde(rename = "UINT8")]
    U8,
    #[serde(rename = "UINT16")]
    U16,
    #[serde(rename = "UINT32")]
    U32,
    #[serde(rename = "UINT64")]
    U64,
    #[serde(rename = "INT8")]
    I8,
    #[serde(rename = "INT16")]
    I16,
    #[serde(rename = "INT32")]
    I32,
    #[serde(rename = "INT64")]
    I64,
    #[serde(rename = "FP32")]
    F32,
    #[serde(rename = "FP64")]
    F64,
    #[serde(rename = "BYTES")]
    Bytes,
}

impl DataType {
    /// Every type, in the protocol's order.
    pub const ALL: [Self; 12] =
        [Self::Bool, Self::U8, Self::U16, Self::U32, Self::U64, Self::I8, Self::I16, Self::I32, Self::I64, Self::F32, Self::F64, Self::Bytes];

    /// Its Open Inference Protocol name, such as `FP32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "UINT8",
            Self::U16 => "UINT16",
            Self::U32 => "UINT32",
            Self::U64 => "UINT64",
            Self::I8 => "INT8",
            Self::I16 => "INT16",
            Self::I32 => "INT32",
            Self::I64 => "INT64",
            Self::F32 => "FP32",
            Self::F64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The type with this Open Inference Protocol name; `None` for any other word (FP16 and BF16 among them: no engine here computes in them).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// Bytes of one value; `None` for `BYTES`, whose values differ in length.
    pub const fn width(self) -> Option<usize> {
        match self {
            Self::Bool | Self::U8 | Self::I8 => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Bytes => None,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number from zero up, as decimal text: `0.001`, `1e-5`. Kept as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decimal(Cow<'static, str>);

impl Decimal {
    pub const ZERO: Self = Self(Cow::Borrowed("0"));
    const EXPECTED: &'static str = "decimal text from \"0\" up, such as \"0.001\" or \"1e-5\"";
    /// No number of this precision needs more characters.
    const LENGTH_MAX: usize = 32;

    /// The shortest text that reads back as `value`; `None` for negative numbers, infinities and NaN.
    pub fn from_f64(value: f64) -> Option<Self> {
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        // `+ 0.0` turns -0 into 0.
        Some(Self(if value == 0.0 { Cow::Borrowed("0") } else { format!("{:e}", value + 0.0).into() }))
    }

    pub fn value(&self) -> f64 {
        // Checked when it was made.
        self.0.parse().unwrap_or(f64::NAN)
    }

    fn check(text: &str) -> bool {
        let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
        let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        text.len() <= Self::LENGTH_MAX
            && digits(whole)
            && fraction.is_none_or(digits)
            && exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)))
            && text.parse::<f64>().is_ok_and(f64::is_finite)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Decimal {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let text = text.trim();
        if Self::check(text) { Ok(Self(text.to_owned().into())) } else { Err(BadQuantity { kind: "number", value: text.to_owned(), expected: Self::EXPECTED }) }
    }
}

impl Default for Decimal {
    fn default() -> Self {
        Self::ZERO
    }
}

/// SHA-256 of a file or a set. Written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    const EXPECTED: &'static str = "sha256: and 64 hexadecimal digits in lower case";

    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Digest {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let read = || {
            let hex = text.strip_prefix("sha256:")?.as_bytes();
            let digit = |byte: u8| match byte {
                b'0'..=b'9' => Some(byte - b'0'),
                b'a'..=b'f' => Some(byte - b'a' + 10),
                _ => None,
            };
            let mut bytes = [0; 32];
            if hex.len() != 64 {
                return None;
            }
            for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
                *byte = digit(pair[0])? << 4 | digit(pair[1])?;
            }
            Some(Self(bytes))
        };
        read().ok_or_else(|| BadQuantity { kind: "digest", value: text.to_owned(), expected: Self::EXPECTED })
    }
}

macro_rules! as_text {
    ($type:ident, $description:literal, $example:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description, "examples": [$example] })
            }
        }
    };
}

as_text!(Decimal, "A number from zero up, as decimal text.", "1e-5");
as_text!(Digest, "SHA-256 in hexadecimal.", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{from_yaml, to_yaml};

    const EXAMPLE: &str = r#"
model: recommender
version: "1"
description: Ten items for a user.
onnx: {file: model.onnx, digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
inputs: [{name: user_id, datatype: INT64, shape: [1]}]
outputs:
  - {name: item_ids, datatype: INT64, shape: [1, 10], compare: {ranking: {scores: scores, overlap: "100%"}}}
  - {name: scores, datatype: FP32, shape: [1, 10], compare: {regression: {absolute: "1e-5", relative: "1e-5"}}}
  - {name: label, datatype: BYTES, shape: [-1], compare: {exact: {}}}
  - {name: p, datatype: FP32, shape: [1, 3], compare: {classification: {absolute: "0.001"}}}
  - {name: vector, datatype: FP32, shape: [1, 384], compare: {embedding: {absolute: "1e-4", relative: "1e-4"}}}
samples: [{name: heavy-0001, directory: test_data_set_0, tags: [heavy]}]
"#;

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let manifest: SetManifest = from_yaml("golden.yaml", EXAMPLE).unwrap();
        assert_eq!(manifest.outputs[0].compare, Compare::Ranking { scores: "scores".into(), overlap: Percent::HUNDRED });
        assert_eq!(manifest.outputs[2].compare, Compare::Exact {});
        let again: SetManifest = from_yaml("golden.yaml", &to_yaml(&manifest).unwrap()).unwrap();
        assert_eq!(again, manifest);
    }

    #[test]
    fn a_refusal_names_field_and_value() {
        let error = from_yaml::<SetManifest>("golden.yaml", &EXAMPLE.replace("\"0.001\"", "\"-0.001\"")).unwrap_err().to_string();
        assert!(error.contains("outputs[3]") && error.contains("-0.001") && error.contains("1e-5"), "{error}");
        let error = from_yaml::<SetManifest>("golden.yaml", &EXAMPLE.replace("FP32", "FP16")).unwrap_err().to_string();
        assert!(error.contains("FP16") && error.contains("FP32"), "{error}");
        let error = from_yaml::<SetManifest>("golden.yaml", &EXAMPLE.replace("sha256:e3", "sha256:xx")).unwrap_err().to_string();
        assert!(error.contains("onnx.digest") && error.contains("64 hexadecimal"), "{error}");
    }

    #[test]
    fn decimals_are_from_zero_up_and_finite() {
        for (text, value) in [("0", 0.0), ("1e-5", 1e-5), ("0.001", 0.001), ("2.5E+3", 2500.0)] {
            let decimal: Decimal = text.parse().unwrap();
            assert_eq!((decimal.value(), decimal.to_string()), (value, text.to_owned()));
        }
        for bad in ["", "-1", "+1", "NaN", "inf", "1e999", ".5", "5.", "1e", "1 2", "0x1", &"1".repeat(33)] {
            assert!(bad.parse::<Decimal>().is_err(), "{bad}");
        }
        for value in [0.0, 1.0e-7, 0.097, f64::MIN_POSITIVE, f64::MAX] {
            let decimal = Decimal::from_f64(value).unwrap();
            assert_eq!(decimal.value().to_bits(), value.to_bits());
            assert_eq!(decimal.to_string().parse::<Decimal>().unwrap(), decimal);
        }
        assert_eq!((Decimal::from_f64(f64::NAN), Decimal::from_f64(-1.0)), (None, None));
    }

    #[test]
    fn datatype_names_are_those_of_the_protocol() {
        for datatype in DataType::ALL {
            assert_eq!(DataType::from_name(datatype.name()), Some(datatype));
            assert_eq!(serde_json::to_value(datatype).unwrap(), datatype.name());
        }
        assert_eq!(DataType::from_name("FP16"), None);
    }
}
