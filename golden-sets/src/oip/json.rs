//! Values as JSON carries them. `data` is read into one flat vector of whatever JSON type it turns out to have, because `datatype` may come after it.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::{Error as _, SerializeSeq as _},
};

use super::wire::WireType;
use crate::tensor::{DataType, ELEMENTS_MAX, RANK_MAX, Values};

/// Whole numbers up to here are the same as f64.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// `data` of a tensor, flattened. What is wrong with it is kept until the tensor's name is known.
#[derive(Debug, Default)]
pub(super) struct Flat {
    values: Mixed,
    /// Length of the lists at each depth, as far as all at that depth agree.
    lengths: Vec<usize>,
    wrong: Option<String>,
}

/// Numbers widen as they come: i64, then u64 where none is negative, then f64.
#[derive(Debug, Default)]
enum Mixed {
    #[default]
    None,
    Flags(Vec<bool>),
    Signed(Vec<i64>),
    Unsigned(Vec<u64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
}

impl Mixed {
    const fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Flags(v) => v.len(),
            Self::Signed(v) => v.len(),
            Self::Unsigned(v) => v.len(),
            Self::Floats(v) => v.len(),
            Self::Texts(v) => v.len(),
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::None => "no values",
            Self::Flags(_) => "true and false",
            Self::Signed(_) | Self::Unsigned(_) => "whole numbers",
            Self::Floats(_) => "numbers",
            Self::Texts(_) => "text",
        }
    }

    /// The values so far as f64, to go on with; `None` where they are no numbers.
    fn into_floats(self) -> Result<Vec<f64>, Self> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Signed(v) => Ok(v.into_iter().map(|v| v as f64).collect()),
            Self::Unsigned(v) => Ok(v.into_iter().map(|v| v as f64).collect()),
            Self::Floats(v) => Ok(v),
            Self::Texts(v) => v.iter().map(|text| word(text)).collect::<Option<_>>().ok_or(Self::Texts(v)),
            Self::Flags(v) => Err(Self::Flags(v)),
        }
    }
}

/// The texts that stand for what JSON has no number for.
fn word(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

impl Flat {
    fn refuse(&mut self, why: impl FnOnce(usize) -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(why(self.values.len()));
        }
    }

    /// Whether one more value is taken.
    fn room(&mut self) -> bool {
        if self.values.len() >= ELEMENTS_MAX {
            self.refuse(|_| format!("has more than {ELEMENTS_MAX} values"));
        }
        self.wrong.is_none()
    }

    fn float(&mut self, value: f64) {
        if !self.room() {
            return;
        }
        match std::mem::take(&mut self.values).into_floats() {
            Ok(mut floats) => {
                floats.push(value);
                self.values = Mixed::Floats(floats);
            }
            Err(values) => {
                self.values = values;
                self.mixed("a number");
            }
        }
    }

    fn signed(&mut self, value: i64) {
        if !self.room() {
            return;
        }
        match &mut self.values {
            Mixed::None => self.values = Mixed::Signed(vec![value]),
            Mixed::Signed(values) => values.push(value),
            Mixed::Unsigned(values) if value >= 0 => values.push(value.unsigned_abs()),
            _ => self.float(value as f64),
        }
    }

    fn unsigned(&mut self, value: u64) {
        if let Ok(value) = i64::try_from(value) {
            return self.signed(value);
        }
        if !self.room() {
            return;
        }
        match &mut self.values {
            Mixed::None => self.values = Mixed::Unsigned(vec![value]),
            Mixed::Unsigned(values) => values.push(value),
            Mixed::Signed(values) if values.iter().all(|value| *value >= 0) => {
                let widened = values.iter().map(|value| value.unsigned_abs()).chain([value]).collect();
                self.values = Mixed::Unsigned(widened);
            }
            _ => self.float(value as f64),
        }
    }

    fn flag(&mut self, value: bool) {
        if !self.room() {
            return;
        }
        match &mut self.values {
            Mixed::None => self.values = Mixed::Flags(vec![value]),
            Mixed::Flags(values) => values.push(value),
            _ => self.mixed("true or false"),
        }
    }

    fn text(&mut self, value: &str) {
        if !self.room() {
            return;
        }
        match (&mut self.values, word(value)) {
            (Mixed::None, _) => self.values = Mixed::Texts(vec![value.to_owned()]),
            (Mixed::Texts(values), _) => values.push(value.to_owned()),
            (_, Some(number)) => self.float(number),
            (_, None) => self.mixed("text"),
        }
    }

    fn mixed(&mut self, what: &'static str) {
        let kind = self.values.kind();
        self.refuse(|index| format!("value {index} is {what} among {kind}"));
    }
}

/// Reads whatever stands at one depth into the flat vector.
struct Level<'a> {
    flat: &'a mut Flat,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of values")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.flat.flag(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.flat.signed(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.flat.unsigned(value);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.flat.float(value);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.flat.text(value);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.flat.float(f64::NAN);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.flat.refuse(|index| format!("value {index} is an object"));
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { flat, depth } = self;
        if depth >= RANK_MAX {
            flat.refuse(|_| format!("is nested more than {RANK_MAX} deep"));
        }
        if flat.wrong.is_some() {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        let mut length = 0;
        while seq.next_element_seed(Level { flat: &mut *flat, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        match flat.lengths.get_mut(depth) {
            Some(earlier) if *earlier == UNKNOWN => *earlier = length,
            Some(earlier) if *earlier != length => {
                let earlier = *earlier;
                flat.refuse(|index| format!("is ragged: a list of {length} ends at value {index}, where others have {earlier}"));
            }
            Some(_) => {}
            None => {
                flat.lengths.resize(depth, UNKNOWN);
                flat.lengths.push(length);
            }
        }
        Ok(())
    }
}

/// Length of a list that is still being read.
const UNKNOWN: usize = usize::MAX;

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut flat = Self::default();
        Level { flat: &mut flat, depth: 0 }.deserialize(deserializer)?;
        if flat.lengths.is_empty() && flat.wrong.is_none() {
            flat.wrong = Some("is not a list; write [value, …] in row-major order".into());
        }
        Ok(flat)
    }
}

/// The values as `datatype`, if they fill `shape`.
pub(super) fn values(flat: Flat, datatype: &WireType, shape: &[usize], count: usize) -> Result<Values, String> {
    if let Some(wrong) = flat.wrong {
        return Err(wrong);
    }
    if flat.lengths.len() > 1 && flat.lengths.len() == shape.len() && flat.lengths != shape {
        return Err(format!("is nested as {:?}, but shape is {shape:?}", flat.lengths));
    }
    if flat.values.len() != count {
        return Err(format!("has {} values, but shape {shape:?} takes {count}", flat.values.len()));
    }
    let datatype = match datatype {
        WireType::Half | WireType::Brain => DataType::F32,
        WireType::Plain(datatype) => *datatype,
    };
    let kind = flat.values.kind();
    let refuse = || format!("holds {kind}, which are no {datatype}");
    macro_rules! integers {
        ($variant:ident) => {
            Values::$variant(match flat.values {
                Mixed::Signed(values) => narrow(&values, datatype)?,
                Mixed::Unsigned(values) => narrow(&values, datatype)?,
                Mixed::Floats(values) => narrow(&whole(&values, datatype)?, datatype)?,
                _ => return Err(refuse()),
            })
        };
    }
    if count == 0 {
        return Ok(Values::empty(datatype));
    }
    Ok(match datatype {
        DataType::Bool => match flat.values {
            Mixed::Flags(values) => Values::Bool(values),
            Mixed::Signed(values) if values.iter().all(|value| matches!(value, 0 | 1)) => Values::Bool(values.iter().map(|value| *value == 1).collect()),
            _ => return Err(refuse()),
        },
        DataType::U8 => integers!(U8),
        DataType::U16 => integers!(U16),
        DataType::U32 => integers!(U32),
        DataType::U64 => integers!(U64),
        DataType::I8 => integers!(I8),
        DataType::I16 => integers!(I16),
        DataType::I32 => integers!(I32),
        DataType::I64 => integers!(I64),
        DataType::F32 => {
            let floats = flat.values.into_floats().map_err(|_| refuse())?;
            match floats.iter().position(|value| value.is_finite() && !(*value as f32).is_finite()) {
                Some(index) => return Err(format!("value {index} is {:e}, beyond {datatype}", floats[index])),
                None => Values::F32(floats.iter().map(|value| *value as f32).collect()),
            }
        }
        DataType::F64 => Values::F64(flat.values.into_floats().map_err(|_| refuse())?),
        DataType::Bytes => match flat.values {
            Mixed::Texts(values) => Values::Bytes(values.into_iter().map(String::into_bytes).collect()),
            _ => return Err(refuse()),
        },
    })
}

fn narrow<W: Copy + fmt::Display, N: TryFrom<W>>(values: &[W], datatype: DataType) -> Result<Vec<N>, String> {
    let one = |(index, value): (usize, &W)| N::try_from(*value).map_err(|_| format!("value {index} is {value}, beyond {datatype}"));
    values.iter().enumerate().map(one).collect()
}

/// Some writers print whole numbers with a fraction: `1.0`.
fn whole(values: &[f64], datatype: DataType) -> Result<Vec<i64>, String> {
    let one = |(index, value): (usize, &f64)| {
        let exact = value.fract() == 0.0 && value.abs() <= EXACT;
        if exact { Ok(*value as i64) } else { Err(format!("value {index} is {value}, which is no {datatype}")) }
    };
    values.iter().enumerate().map(one).collect()
}

/// Values as a flat JSON list.
pub(super) struct Data<'a>(pub(super) &'a Values);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        macro_rules! floats {
            ($values:expr) => {{
                let mut list = serializer.serialize_seq(Some($values.len()))?;
                for value in $values {
                    if value.is_finite() {
                        list.serialize_element(value)?;
                    } else {
                        list.serialize_element(if value.is_nan() {
                            "NaN"
                        } else if *value > 0.0 {
                            "Infinity"
                        } else {
                            "-Infinity"
                        })?;
                    }
                }
                list.end()
            }};
        }
        match self.0 {
            Values::Bool(v) => serializer.collect_seq(v),
            Values::U8(v) => serializer.collect_seq(v),
            Values::U16(v) => serializer.collect_seq(v),
            Values::U32(v) => serializer.collect_seq(v),
            Values::U64(v) => serializer.collect_seq(v),
            Values::I8(v) => serializer.collect_seq(v),
            Values::I16(v) => serializer.collect_seq(v),
            Values::I32(v) => serializer.collect_seq(v),
            Values::I64(v) => serializer.collect_seq(v),
            Values::F32(v) => floats!(v),
            Values::F64(v) => floats!(v),
            Values::Bytes(v) => {
                let mut list = serializer.serialize_seq(Some(v.len()))?;
                for (index, value) in v.iter().enumerate() {
                    let text = std::str::from_utf8(value);
                    list.serialize_element(
                        text.map_err(|_| S::Error::custom(format!("value {index} is not UTF-8, which JSON cannot carry; send it as a binary tensor")))?,
                    )?;
                }
                list.end()
            }
        }
    }
}

/// Puts the bare words `NaN`, `Infinity` and `-Infinity` in quotes, outside texts. Borrowed where there are none.
pub(super) fn without_bare_words(json: &[u8]) -> Cow<'_, [u8]> {
    let mut fixed = Vec::new();
    let (mut index, mut copied, mut quoted) = (0, 0, false);
    while index < json.len() {
        match json[index] {
            b'\\' if quoted => index += 1,
            b'"' => quoted = !quoted,
            b'N' | b'I' | b'-' if !quoted => {
                let bare = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|word| json[index..].starts_with(word));
                if let Some(bare) = bare {
                    fixed.extend_from_slice(&json[copied..index]);
                    fixed.push(b'"');
                    fixed.extend_from_slice(bare);
                    fixed.push(b'"');
                    index += bare.len();
                    copied = index;
                    continue;
                }
            }
            _ => {}
        }
        index += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    fixed.extend_from_slice(&json[copied..]);
    Cow::Owned(fixed)
}
