//! Reading what people write: one YAML document into one type, refused with line, column, field and what would be right.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

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
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        let message = error.to_string();
        // The place stands in front already.
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(head, _)| head).to_owned();
        let field = if field == "." { String::new() } else { std::mem::take(&mut field) };
        BadFile { file: file.to_owned(), line, column, field, message }
    })
}

/// Writes `value` as YAML that [`from_yaml`] reads back.
pub fn to_yaml<T: Serialize>(value: &T) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}
