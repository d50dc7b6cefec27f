//! Quantities as people write them: `99.9%`, `500ms`, `200/s`. Parsed once, at the edge, into integers that cannot hold an illegal value.
//!
//! No floats: resource specifications must compare and round-trip exactly.

use std::{fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a quantity was refused: what was written, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {kind}: write {expected}")]
pub struct BadQuantity {
    pub kind: &'static str,
    pub value: String,
    pub expected: &'static str,
}

impl BadQuantity {
    fn new(kind: &'static str, value: &str, expected: &'static str) -> Self {
        Self { kind, value: value.to_owned(), expected }
    }
}

/// A share in parts per million, 0 % to 100 %. Written `12.5%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

impl Percent {
    pub const ZERO: Self = Self(0);
    pub const HUNDRED: Self = Self(1_000_000);
    const EXPECTED: &'static str = "a percentage from 0% to 100% with at most four decimals, such as 99.9%";

    /// From parts per million; `None` above 1,000,000.
    pub const fn from_ppm(ppm: u32) -> Option<Self> {
        if ppm <= 1_000_000 { Some(Self(ppm)) } else { None }
    }

    /// The nearest share to `ratio`, which is clamped to 0..=1 (NaN counts as 0).
    pub fn from_ratio(ratio: f64) -> Self {
        Self((ratio.clamp(0.0, 1.0) * 1e6).round() as u32)
    }

    pub const fn ppm(self) -> u32 {
        self.0
    }

    /// As a ratio, 0.0 to 1.0.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000, self.0 % 10_000);
        if rest == 0 {
            write!(f, "{whole}%")
        } else {
            let decimals = format!("{rest:04}");
            write!(f, "{whole}.{}%", decimals.trim_end_matches('0'))
        }
    }
}

impl FromStr for Percent {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity::new("percentage", text, Self::EXPECTED);
        let number = text.trim().strip_suffix('%').ok_or_else(bad)?.trim_end();
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || whole.len() > 3 || decimals.len() > 4 || (number.contains('.') && !digits(decimals)) {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_| bad())?;
        let fraction: u32 = format!("{decimals:0<4}").parse().map_err(|_| bad())?;
        Self::from_ppm(whole * 10_000 + fraction).ok_or_else(bad)
    }
}

/// A length of time, from a nanosecond to a year. Written `500ms`, `1m`, `2m 30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    pub const ZERO: Self = Self(Duration::ZERO);
    const MAX: Duration = Duration::from_hours(366 * 24);
    const EXPECTED: &'static str = "a duration such as 500ms, 60s, 2m or 1h 30m, at most a year";

    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    pub const fn get(self) -> Duration {
        self.0
    }

    pub const fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Span {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        humantime::parse_duration(text.trim())
            .ok()
            .filter(|duration| *duration <= Self::MAX)
            .map(Self)
            .ok_or_else(|| BadQuantity::new("duration", text, Self::EXPECTED))
    }
}

/// Events a second, kept in thousandths. Written `200/s` or `90/m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    const EXPECTED: &'static str = "a rate such as 200/s, 0.5/s or 90/m, more than zero and at most 100000/s";

    /// Events a second.
    pub fn per_second(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// The time between two events at this rate.
    pub fn interval(self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.per_second())
    }
}

impl FromStr for Rate {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity::new("rate", text, Self::EXPECTED);
        let (number, unit) = text.trim().split_once('/').ok_or_else(bad)?;
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            _ => return Err(bad()),
        };
        let per_second: f64 = number.trim().parse::<f64>().map_err(|_| bad())? / seconds;
        let milli = (per_second * 1000.0).round();
        if (1.0..=1e8).contains(&milli) { Ok(Self(milli as u64)) } else { Err(bad()) }
    }
}

/// A number of bytes, from 0 to a tebibyte. Written `65536`, `64Ki`, `1Gi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    const MAX: u64 = 1 << 40;
    const UNITS: [(&'static str, u32); 3] = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    const EXPECTED: &'static str = "a number of bytes such as 1000, 64Ki, 16Mi or 1Gi, at most 1024Gi";

    /// `None` above a tebibyte.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes <= Self::MAX { Some(Self(bytes)) } else { None }
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity::new("size", text, Self::EXPECTED);
        let trimmed = text.trim();
        let (number, shift) =
            Self::UNITS.iter().find_map(|(unit, shift)| trimmed.strip_suffix(unit).map(|number| (number.trim_end(), *shift))).unwrap_or((trimmed, 0));
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).and_then(Self::from_bytes).ok_or_else(bad)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number, or a text with a unit.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Size::EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Size::from_bytes(bytes).ok_or_else(|| E::custom(BadQuantity::new("size", &bytes.to_string(), Size::EXPECTED)))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).ok().and_then(Size::from_bytes).ok_or_else(|| E::custom(BadQuantity::new("size", &bytes.to_string(), Size::EXPECTED)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes, such as 1000, 64Ki, 16Mi or 1Gi.",
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }],
        })
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
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description, "examples": [$example] })
            }
        }
    };
}

as_text!(Percent, "A share from 0% to 100%, with at most four decimals.", "99.9%");
as_text!(Span, "A length of time.", "500ms");
as_text!(Rate, "Events a second (/s) or a minute (/m).", "200/s");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_reads_and_writes_itself() {
        for (text, ppm) in [("99.9%", 999_000), ("0%", 0), ("100%", 1_000_000), ("0.0001%", 1), ("25%", 250_000)] {
            let percent: Percent = text.parse().unwrap();
            assert_eq!((percent.ppm(), percent.to_string()), (ppm, text.to_owned()));
        }
        for bad in ["", "%", "101%", "-1%", "5", "1e2%", "1.%", ".5%", "0.00001%", "+5%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rate_and_span_refuse_what_makes_no_sense() {
        assert_eq!("90/m".parse::<Rate>().unwrap().per_second(), 1.5);
        for bad in ["0/s", "-1/s", "200", "200/h", "NaN/s", "1e9/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        assert_eq!("2m 30s".parse::<Span>().unwrap().get(), Duration::from_secs(150));
        assert!("500".parse::<Span>().unwrap_err().to_string().contains("500ms"));
    }

    #[test]
    fn a_size_is_a_number_or_a_text_and_is_written_shortly() {
        for (text, bytes, written) in
            [("100", 100, "100"), ("65536", 65536, "64Ki"), ("64Ki", 65536, "64Ki"), ("1536Ki", 1536 << 10, "1536Ki"), ("1Gi", 1 << 30, "1Gi"), ("0", 0, "0")]
        {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, written));
            assert_eq!(serde_json::from_str::<Size>(&format!("{bytes}")).unwrap(), size);
            assert_eq!(serde_json::from_str::<Size>(&format!("{text:?}")).unwrap(), size);
            assert_eq!(crate::read::from_yaml::<Size>("size", text).unwrap(), size);
        }
        for bad in ["", "Ki", "-1", "1.5Mi", "1Ti", "1KB", "1025Gi", "99999999999999999999Gi"] {
            assert!(bad.parse::<Size>().unwrap_err().to_string().contains("64Ki"), "{bad}");
        }
        assert!(serde_json::from_str::<Size>("-1").is_err());
    }
}
