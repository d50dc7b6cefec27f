//! One tensor: name, shape, values. The common currency of golden samples, engines and the Open Inference Protocol.
//!
//! Invariant: the product of `shape` is the number of values, and neither is beyond [`ELEMENTS_MAX`].

pub use steadfast_api::golden::DataType;

/// More values than any golden sample needs (256 MiB of f32); a shape beyond it is refused before anything is allocated.
pub const ELEMENTS_MAX: usize = 64 << 20;

/// Axes of one tensor. ONNX has no limit; real models stay below eight.
pub const RANK_MAX: usize = 16;

/// Values in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    Bool(Vec<bool>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

/// Runs `$body` with `$values` bound to the vector of whichever type it is.
macro_rules! each {
    ($on:expr, $values:ident => $body:expr) => {
        match $on {
            Values::Bool($values) => $body,
            Values::U8($values) => $body,
            Values::U16($values) => $body,
            Values::U32($values) => $body,
            Values::U64($values) => $body,
            Values::I8($values) => $body,
            Values::I16($values) => $body,
            Values::I32($values) => $body,
            Values::I64($values) => $body,
            Values::F32($values) => $body,
            Values::F64($values) => $body,
            Values::Bytes($values) => $body,
        }
    };
}

impl Values {
    pub const fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::U8(_) => DataType::U8,
            Self::U16(_) => DataType::U16,
            Self::U32(_) => DataType::U32,
            Self::U64(_) => DataType::U64,
            Self::I8(_) => DataType::I8,
            Self::I16(_) => DataType::I16,
            Self::I32(_) => DataType::I32,
            Self::I64(_) => DataType::I64,
            Self::F32(_) => DataType::F32,
            Self::F64(_) => DataType::F64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }

    /// No values of this type.
    pub const fn empty(datatype: DataType) -> Self {
        match datatype {
            DataType::Bool => Self::Bool(Vec::new()),
            DataType::U8 => Self::U8(Vec::new()),
            DataType::U16 => Self::U16(Vec::new()),
            DataType::U32 => Self::U32(Vec::new()),
            DataType::U64 => Self::U64(Vec::new()),
            DataType::I8 => Self::I8(Vec::new()),
            DataType::I16 => Self::I16(Vec::new()),
            DataType::I32 => Self::I32(Vec::new()),
            DataType::I64 => Self::I64(Vec::new()),
            DataType::F32 => Self::F32(Vec::new()),
            DataType::F64 => Self::F64(Vec::new()),
            DataType::Bytes => Self::Bytes(Vec::new()),
        }
    }

    pub const fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at `index` as f64 (integers beyond 2^53 round); `None` for `BYTES` and beyond the end.
    pub fn number(&self, index: usize) -> Option<f64> {
        match self {
            Self::Bool(v) => v.get(index).map(|v| f64::from(u8::from(*v))),
            Self::U8(v) => v.get(index).map(|v| f64::from(*v)),
            Self::U16(v) => v.get(index).map(|v| f64::from(*v)),
            Self::U32(v) => v.get(index).map(|v| f64::from(*v)),
            Self::U64(v) => v.get(index).map(|v| *v as f64),
            Self::I8(v) => v.get(index).map(|v| f64::from(*v)),
            Self::I16(v) => v.get(index).map(|v| f64::from(*v)),
            Self::I32(v) => v.get(index).map(|v| f64::from(*v)),
            Self::I64(v) => v.get(index).map(|v| *v as f64),
            Self::F32(v) => v.get(index).map(|v| f64::from(*v)),
            Self::F64(v) => v.get(index).copied(),
            Self::Bytes(_) => None,
        }
    }

    /// The value at `index` as an integer of any width, exactly; `None` for floats, `BYTES` and beyond the end.
    pub fn integer(&self, index: usize) -> Option<i128> {
        match self {
            Self::Bool(v) => v.get(index).map(|v| i128::from(*v)),
            Self::U8(v) => v.get(index).map(|v| i128::from(*v)),
            Self::U16(v) => v.get(index).map(|v| i128::from(*v)),
            Self::U32(v) => v.get(index).map(|v| i128::from(*v)),
            Self::U64(v) => v.get(index).map(|v| i128::from(*v)),
            Self::I8(v) => v.get(index).map(|v| i128::from(*v)),
            Self::I16(v) => v.get(index).map(|v| i128::from(*v)),
            Self::I32(v) => v.get(index).map(|v| i128::from(*v)),
            Self::I64(v) => v.get(index).map(|v| i128::from(*v)),
            Self::F32(_) | Self::F64(_) | Self::Bytes(_) => None,
        }
    }

    /// The value at `index` as people read it, for messages.
    pub fn show(&self, index: usize) -> String {
        match self {
            Self::Bytes(v) => v.get(index).map_or_else(|| "nothing".to_owned(), |v| format!("{:?}", String::from_utf8_lossy(&v[..v.len().min(64)]))),
            Self::Bool(v) => v.get(index).map_or_else(|| "nothing".to_owned(), ToString::to_string),
            Self::F32(v) => v.get(index).map_or_else(|| "nothing".to_owned(), ToString::to_string),
            Self::F64(v) => v.get(index).map_or_else(|| "nothing".to_owned(), ToString::to_string),
            _ => self.integer(index).map_or_else(|| "nothing".to_owned(), |v| v.to_string()),
        }
    }
}

/// Why values could not become a tensor, or a tensor another type.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TensorError {
    #[error("tensor {name:?}: shape {shape:?} holds {expected} values, but {found} were given")]
    Count { name: String, shape: Vec<usize>, expected: usize, found: usize },
    #[error("tensor {name:?}: shape {shape:?} is too large: at most {RANK_MAX} axes and {ELEMENTS_MAX} values")]
    TooLarge { name: String, shape: Vec<usize> },
    #[error("tensor {name:?}: value {value} at index {index} ({from}) does not fit {to}")]
    Cast { name: String, index: usize, value: String, from: DataType, to: DataType },
}

/// The number of values of a shape; `None` when it is beyond [`ELEMENTS_MAX`] or [`RANK_MAX`]. The empty shape is a scalar: one value.
pub fn elements(shape: &[usize]) -> Option<usize> {
    if shape.len() > RANK_MAX {
        return None;
    }
    // A zero anywhere makes the product zero whatever the other axes say; without this, [2^40, 2^40, 0] would overflow first.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, axis| product.checked_mul(*axis)).filter(|product| *product <= ELEMENTS_MAX)
}

/// A named tensor. The product of `shape` is the number of values; [`Tensor::new`] refuses anything else.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Tensor {
    /// Checks that `values` fill `shape` exactly.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: Values) -> Result<Self, TensorError> {
        let (name, shape) = (name.into(), shape.into());
        match elements(&shape) {
            None => Err(TensorError::TooLarge { name, shape }),
            Some(expected) if expected != values.len() => Err(TensorError::Count { name, shape, expected, found: values.len() }),
            Some(_) => Ok(Self { name, shape, values }),
        }
    }

    pub const fn datatype(&self) -> DataType {
        self.values.datatype()
    }

    /// The number of values.
    pub const fn len(&self) -> usize {
        self.values.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same values as `to`. Servers widen or print types (MLServer answers FP64 for FP32), so answers are cast to the declared type
    /// before they are compared. Floats round to nearest; an integer that would change, a fraction into an integer type, and any
    /// conversion from or to `BYTES` are errors, because they would hide a difference.
    pub fn cast(&self, to: DataType) -> Result<Self, TensorError> {
        let from = self.datatype();
        if from == to {
            return Ok(self.clone());
        }
        let refuse = |index: usize| TensorError::Cast { name: self.name.clone(), index, value: self.values.show(index), from, to };
        let values = match to {
            DataType::Bool => Values::Bool(self.integers(refuse)?),
            DataType::U8 => Values::U8(self.integers(refuse)?),
            DataType::U16 => Values::U16(self.integers(refuse)?),
            DataType::U32 => Values::U32(self.integers(refuse)?),
            DataType::U64 => Values::U64(self.integers(refuse)?),
            DataType::I8 => Values::I8(self.integers(refuse)?),
            DataType::I16 => Values::I16(self.integers(refuse)?),
            DataType::I32 => Values::I32(self.integers(refuse)?),
            DataType::I64 => Values::I64(self.integers(refuse)?),
            DataType::F32 => Values::F32(self.floats(refuse)?.into_iter().map(|v| v as f32).collect()),
            DataType::F64 => Values::F64(self.floats(refuse)?),
            DataType::Bytes if self.is_empty() => Values::Bytes(Vec::new()),
            DataType::Bytes => return Err(refuse(0)),
        };
        Ok(Self { name: self.name.clone(), shape: self.shape.clone(), values })
    }

    fn floats(&self, refuse: impl Fn(usize) -> TensorError) -> Result<Vec<f64>, TensorError> {
        (0..self.len()).map(|index| self.values.number(index).ok_or_else(|| refuse(index))).collect()
    }

    fn integers<T: FromInteger>(&self, refuse: impl Fn(usize) -> TensorError) -> Result<Vec<T>, TensorError> {
        // Whole floats below 2^63 convert exactly; anything else would be a silent change.
        let whole = |v: f64| (v.fract() == 0.0 && v.abs() < 9.2e18).then_some(v as i128);
        (0..self.len())
            .map(|index| {
                let integer = self.values.integer(index).or_else(|| self.values.number(index).and_then(whole));
                integer.and_then(T::from_integer).ok_or_else(|| refuse(index))
            })
            .collect()
    }
}

/// Checked narrowing; only 0 and 1 are booleans.
trait FromInteger: Sized {
    fn from_integer(value: i128) -> Option<Self>;
}

impl FromInteger for bool {
    fn from_integer(value: i128) -> Option<Self> {
        match value {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

macro_rules! from_integer {
    ($($type:ty),*) => { $(impl FromInteger for $type { fn from_integer(value: i128) -> Option<Self> { Self::try_from(value).ok() } })* };
}

from_integer!(u8, u16, u32, u64, i8, i16, i32, i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_and_values_must_agree() {
        assert!(Tensor::new("x", [2, 3], Values::F32(vec![0.0; 6])).is_ok());
        assert!(Tensor::new("scalar", [], Values::F32(vec![0.0])).is_ok());
        let refused = Tensor::new("x", [2, 3], Values::F32(vec![0.0; 5])).unwrap_err();
        assert_eq!(refused.to_string(), r#"tensor "x": shape [2, 3] holds 6 values, but 5 were given"#);
        assert!(matches!(Tensor::new("x", [usize::MAX, 2], Values::U8(vec![])), Err(TensorError::TooLarge { .. })));
        assert!(Tensor::new("x", [usize::MAX, 2, 0], Values::U8(vec![])).is_ok());
    }

    #[test]
    fn casting_never_hides_a_difference() {
        let wide = Tensor::new("scores", [2], Values::F64(vec![f64::from(0.1_f32), 2.0])).unwrap();
        assert_eq!(wide.cast(DataType::F32).unwrap().values, Values::F32(vec![0.1, 2.0]));
        assert!(wide.cast(DataType::I64).unwrap_err().to_string().contains("index 0"));
        let large = Tensor::new("ids", [1], Values::I64(vec![i64::MAX])).unwrap();
        assert!(large.cast(DataType::I32).is_err());
        assert!(large.cast(DataType::U64).is_ok());
        let two = Tensor::new("flag", [1], Values::I32(vec![2])).unwrap();
        assert!(two.cast(DataType::Bool).is_err());
        assert!(two.cast(DataType::Bytes).is_err());
    }

    #[test]
    fn empty_values_keep_their_type() {
        for datatype in DataType::ALL {
            assert_eq!(Values::empty(datatype).datatype(), datatype);
        }
    }
}
