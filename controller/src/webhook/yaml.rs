//! Manifests as kubectl reads them, which is YAML 1.1: `0644` is 420, `off` is false, and what is a key is a text.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;
use steadfast_api::read::complaint;

/// Line, from 1 within the text, and why it is refused.
type Refused = (u64, String);

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Value, Refused> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let node: Node = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, _, why) = complaint(error, text);
        (line, if why.starts_with("a second document") { "`---` stands on a line of its own, between two documents".to_owned() } else { why })
    })?;
    node.value(text)
}

/// A value and where it is written: in bytes, and in lines.
struct Node {
    written: Option<(usize, usize)>,
    line: u64,
    content: Content,
}

enum Content {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    fn value(self, text: &str) -> Result<Value, Refused> {
        match self.content {
            Content::Scalar(value @ Value::Bool(_)) => {
                let written = self.written.and_then(|(at, length)| text.get(at..at + length)).unwrap_or_default();
                Ok(if is_mixed(written) { written.into() } else { value })
            }
            Content::Scalar(value) => Ok(value),
            Content::List(items) => items.into_iter().map(|item| item.value(text)).collect::<Result<_, _>>().map(Value::Array),
            Content::Map(fields) => {
                let mut map = Map::new();
                for (name, value) in fields {
                    let line = name.line;
                    let name = match name.value(text)? {
                        Value::String(name) => name,
                        Value::Null => {
                            return Err((line, "a field has an empty name, or is named null: write a name, in quotes if it is one of YAML's words".to_owned()));
                        }
                        Value::Array(_) | Value::Object(_) => {
                            return Err((
                                line,
                                "a list or an object is no name of a field: `{{` begins an object, and a template has to be rendered before".to_owned(),
                            ));
                        }
                        other => other.to_string(),
                    };
                    if map.contains_key(&name) {
                        return Err((line, format!("`{name}` is given twice: keep one of them")));
                    }
                    map.insert(name, value.value(text)?);
                }
                Ok(Value::Object(map))
            }
        }
    }
}

/// Whether upper and lower case are mixed as in no boolean of YAML 1.1, such as `yEs`.
fn is_mixed(written: &str) -> bool {
    let first_or_all = |rest: &str| rest.chars().all(|c| c.is_ascii_lowercase()) || written.chars().all(|c| c.is_ascii_uppercase());
    written.chars().all(|c| c.is_ascii_alphabetic()) && !written.get(1..).is_none_or(first_or_all)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: content, defined, .. } = Spanned::deserialize(deserializer)?;
        let written = defined.span().byte_offset().zip(defined.span().byte_len());
        Ok(Self { written: written.map(|(at, length)| (at as usize, length as usize)), line: defined.line(), content })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

macro_rules! scalars {
    ($($visit:ident($type:ty)),*) => { $(fn $visit<E>(self, value: $type) -> Result<Content, E> { Ok(Content::Scalar(value.into())) })* };
}

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    scalars!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_str(&str), visit_string(String));

    /// A whole number may be written `1e3`, and is whole in JSON.
    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let is_whole = value.fract() == 0.0 && value.abs() <= EXACT;
        Ok(Content::Scalar(if is_whole { Value::Number(Number::from(value as i64)) } else { value.into() }))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key()? {
            fields.push((name, map.next_value()?));
        }
        Ok(Content::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What `kubectl annotate --local -f FILE x=y -o json` makes of the same text.
    #[test]
    fn scalars_mean_what_kubectl_reads() {
        for (written, value) in [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("-0644", json!(-420)),
            ("00", json!(0)),
            ("0", json!(0)),
            ("08", json!(8)),
            ("0o8", json!("0o8")),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("+5", json!(5)),
            ("1.0", json!(1)),
            ("1e3", json!(1000)),
            ("1.50", json!(1.5)),
            (".5", json!(0.5)),
            ("1:30", json!("1:30")),
            ("2001-12-14", json!("2001-12-14")),
            ("9223372036854775808", json!(9_223_372_036_854_775_808_u64)),
            ("off", json!(false)),
            ("ON", json!(true)),
            ("Yes", json!(true)),
            ("no", json!(false)),
            ("y", json!(true)),
            ("N", json!(false)),
            ("True", json!(true)),
            ("yEs", json!("yEs")),
            ("tRUE", json!("tRUE")),
            ("~", json!(null)),
            ("", json!(null)),
            ("Null", json!(null)),
            ("'off'", json!("off")),
            ("\"0644\"", json!("0644")),
            ("!!str 0644", json!("0644")),
            ("!!int \"5\"", json!(5)),
            ("a_b", json!("a_b")),
        ] {
            assert_eq!(read(&format!("a: {written}\n")), Ok(json!({ "a": value })), "{written}");
        }
        assert_eq!(
            read("x: &x off\ny0: *x\nz: &m {k: 1}\nw: {<<: *m, l: 2}\n"),
            Ok(json!({ "x": false, "y0": false, "z": { "k": 1 }, "w": { "k": 1, "l": 2 } }))
        );
    }

    #[test]
    fn a_key_is_a_text_of_what_it_means() {
        assert_eq!(read("{y: 1, 0644: 2, 1.10: 3, 'on': 4, off: 5}"), Ok(json!({ "true": 1, "420": 2, "1.1": 3, "on": 4, "false": 5 })));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line_in_words_for_people() {
        for (text, line, word) in [
            ("a: 1\nb: 2\na: 3\n", 3, "`a` is given twice"),
            ("a: 1\non: 2\nyes: 3\n", 3, "`true` is given twice"),
            ("a: 1\n~: 2\n", 2, "empty name"),
            ("a:\n  b: {{ .Values.b }}\n", 2, "rendered"),
            ("a: 1\nb: 1e999\n", 2, "1e999"),
            ("a: [\n", 1, "bracket"),
        ] {
            let (at, why) = read(text).unwrap_err();
            assert!(
                at == line && why.contains(word) && !why.contains("Policy") && !why.contains("Options") && !why.contains("policy"),
                "{text:?}: {at}: {why}"
            );
        }
    }
}
