//! Reading what people write: one YAML document into one type, refused with line, column, field and what would be right.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// Why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BadFile {
    /// File name as the user gave it.
    pub file: String,
    /// 1-based; 0 when the fault lies in no single place.
    pub line: u64,
    pub column: u64,
    /// Dotted path to the field, e.g. `spec.steps[1].for`; empty at the top.
    pub field: String,
    /// What was wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Reads one YAML (or JSON) document. Unknown fields, duplicate keys and trailing documents are errors.
pub fn from_yaml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, BadFile> {
    let mut field = String::new();
    let result = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    });
    result.map_err(|error| {
        let (line, column, message) = complaint(error, text);
        // A question mark stands for a field whose name had not been read yet.
        let field = field.trim_end_matches('?').trim_end_matches('.').to_owned();
        BadFile { file: file.to_owned(), line, column, field, message }
    })
}

/// Line and column, from 1 (0: in no single place), and what is wrong there, in words for people.
pub fn complaint(error: serde_saphyr::Error, text: &str) -> (u64, u64, String) {
    let error = error.without_snippet();
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let message = error.to_string();
    // The place stands in front already.
    let message = plain(message.rsplit_once(" at line ").map_or(message.as_str(), |(head, _)| head), text);
    (line, column, message)
}

/// Reads a value that was read before into one type; refused with its dotted path, and what would be right.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| (error.path().to_string().trim_end_matches(['?', '.']).to_owned(), error.inner().to_string()))
}

/// The library's words where they are meant for programmers, said for people.
fn plain(message: &str, text: &str) -> String {
    let whole = |most: u64| format!("this is no whole number from 0 to {most}");
    match message {
        _ if text.trim().is_empty() => "the file is empty".to_owned(),
        _ if message.contains("from_str_multiple") => "a second document begins here: one file holds one document".to_owned(),
        _ if message.contains("DuplicateKeyPolicy") => {
            let key = message.split(": ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("a field");
            format!("`{key}` is given twice: keep one of them")
        }
        _ if message.contains("non-finite float") => {
            format!("{} is no number that JSON can hold: write it in quotes if a text is meant", message.split('`').nth(1).unwrap_or("this"))
        }
        "invalid u8" => whole(u8::MAX.into()),
        "invalid u16" => whole(u16::MAX.into()),
        "invalid u32" => whole(u32::MAX.into()),
        "invalid u64" => whole(u64::MAX),
        "expected mapping start" => "fields are wanted here, each as `name: value`".to_owned(),
        other if other.contains("tabs disallowed") => "a tab: YAML is indented with spaces".to_owned(),
        other => other.to_owned(),
    }
}

/// Writes `value` as YAML that [`from_yaml`] reads back.
pub fn to_yaml<T: Serialize>(value: &T) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}

/// Where every field of a document stands, for checks that come after reading.
#[derive(Debug)]
pub struct Places {
    line: u64,
    column: u64,
    fields: Vec<(String, Places)>,
}

impl Places {
    /// `None` when `text` is not one YAML document.
    pub fn of(text: &str) -> Option<Self> {
        serde_saphyr::from_str(text).ok()
    }

    /// Line and column, from 1, of the value at a path such as `spec.steps[1].for`; of the nearest field around it that is written out when it is not.
    pub fn find(&self, field: &str) -> (u64, u64) {
        let mut at = self;
        for step in field.replace('[', ".").split('.').map(|step| step.trim_end_matches(']')) {
            let Some((_, next)) = at.fields.iter().find(|(name, _)| name == step) else { break };
            at = next;
        }
        (at.line, at.column)
    }
}

struct Fields(Vec<(String, Places)>);

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Fields(fields), referenced, .. } = Spanned::deserialize(deserializer)?;
        Ok(Self { line: referenced.line(), column: referenced.column(), fields })
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldsVisitor)
    }
}

struct FieldsVisitor;

macro_rules! scalars {
    ($($visit:ident($type:ty)),*) => { $(fn $visit<E>(self, _: $type) -> Result<Fields, E> { Ok(Fields(Vec::new())) })* };
}

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    scalars!(visit_bool(bool), visit_i64(i64), visit_i128(i128), visit_u64(u64), visit_u128(u128), visit_f64(f64), visit_str(&str), visit_bytes(&[u8]));

    fn visit_unit<E>(self) -> Result<Fields, E> {
        Ok(Fields(Vec::new()))
    }

    fn visit_none<E>(self) -> Result<Fields, E> {
        Ok(Fields(Vec::new()))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        Fields::deserialize(deserializer)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key()? {
            fields.push((name, map.next_value()?));
        }
        Ok(Fields(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(item) = seq.next_element()? {
            fields.push((fields.len().to_string(), item));
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_where_it_stands() {
        let places = Places::of("a: 1\nb:\n  - {c: [x, 500ms], d: null}\n  - e: 2.5\n    f:\n      g: true\n").unwrap();
        for (field, at) in [("a", (1, 4)), ("b[0].c[1]", (3, 13)), ("b[1].e", (4, 8)), ("b[1].f.g", (6, 10)), ("b[0].d", (3, 24))] {
            assert_eq!(places.find(field), at, "{field}");
        }
        assert_eq!(places.find("b[1].f.missing"), places.find("b[1].f"), "the nearest field that is there");
        assert!(Places::of("a: [").is_none());
    }
}
