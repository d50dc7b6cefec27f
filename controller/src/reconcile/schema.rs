//! JSON schemas of Rust types, made structural: what the API server takes in a CustomResourceDefinition.
//!
//! A structural schema has no references, no `additionalProperties: false` beside `properties`, and no alternatives that bring fields of their own. So references
//! are written out, an enum of objects becomes one object with all their fields and the rule that exactly one is given, and what may be null becomes what may
//! be left out. Everything is bounded, since the cost of rules is reckoned from the bounds.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// Most items of a list, and keys of a map, that have no bound of their own.
pub const ITEMS_MAX: u64 = 64;
/// Most characters of a text that has no bound of its own.
pub const TEXT_MAX: u64 = 1024;

/// The structural schema of `T`.
pub fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    mend(&mut schema);
    schema
}

/// Adds a CEL rule to a schema; `message` says what would be right.
pub fn rule(schema: &mut Value, rule: &str, message: &str) {
    let rules = schema.as_object_mut().map(|schema| schema.entry("x-kubernetes-validations").or_insert_with(|| json!([])));
    if let Some(Value::Array(rules)) = rules {
        rules.push(json!({ "rule": rule, "message": message }));
    }
}

/// `true` exactly when one of `fields` is there.
pub fn exactly_one(fields: &[impl AsRef<str>]) -> String {
    let there: Vec<String> = fields.iter().map(|field| format!("(has(self.{}) ? 1 : 0)", escape(field.as_ref()))).collect();
    format!("{} == 1", there.join(" + "))
}

/// Names that CEL keeps for itself.
fn escape(field: &str) -> String {
    if ["for", "in", "import", "if", "else", "as", "namespace", "package", "void", "while", "loop", "let", "function", "const", "break"].contains(&field) {
        format!("__{field}__")
    } else {
        field.to_owned()
    }
}

/// Texts that are quantities: their example, what they look like, and what to say.
const QUANTITIES: [(&str, &str, &str); 3] = [
    (
        "500ms",
        "^([0-9]+ ?(nanos|nsec|ns|usec|us|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|wks?|w|months?|M|years?|yrs?|y) ?)+$",
        "a length of time such as 500ms, 60s, 2m or 1h 30m",
    ),
    ("99.9%", "^(100([.]0{1,4})?|[0-9]{1,2}([.][0-9]{1,4})?)%$", "a share from 0% to 100%, such as 99.9%"),
    ("200/s", "^[0-9]+([.][0-9]+)?/[sm]$", "a rate such as 200/s or 90/m"),
];
/// Most bytes of a quantity.
const QUANTITY_MAX: u64 = 64;

/// Where texts are quantities, the rule that says how they are written.
fn quantity(schema: &mut Value) {
    let Some((_, pattern, says)) = QUANTITIES.iter().find(|(example, ..)| schema["examples"] == json!([example])) else { return };
    schema["maxLength"] = QUANTITY_MAX.into();
    rule(schema, &format!("self.matches('{pattern}')"), says);
}

fn mend(schema: &mut Value) {
    if schema.is_object() {
        quantity(schema);
    }
    // `true`: anything.
    let Value::Object(map) = schema else {
        *schema = json!({ "x-kubernetes-preserve-unknown-fields": true });
        return;
    };
    for word in ["$schema", "title", "$defs", "examples", "default"] {
        map.remove(word);
    }
    if let Some(Value::String(text)) = map.get_mut("description") {
        *text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
    }
    alternatives(map);
    match map.get("type") {
        Some(Value::Array(types)) => {
            let first = types.iter().find(|kind| *kind != "null").cloned();
            map.insert("type".to_owned(), first.unwrap_or_else(|| "string".into()));
        }
        None if map.contains_key("properties") => drop(map.insert("type".to_owned(), "object".into())),
        _ => {}
    }
    if let Some(constant) = map.remove("const") {
        map.insert("enum".to_owned(), json!([constant]));
    }
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        map.remove("additionalProperties");
    }
    let bound = |map: &mut Map<String, Value>, word: &str, most: u64| {
        map.entry(word).or_insert_with(|| most.into());
    };
    match map.get("type").and_then(Value::as_str) {
        Some("string") if !map.contains_key("enum") => bound(map, "maxLength", TEXT_MAX),
        Some("array") => {
            bound(map, "maxItems", ITEMS_MAX);
            // Conditions: whoever applies one of them leaves the others as they are.
            if map.get("items").is_some_and(|items| items["properties"]["lastTransitionTime"].is_object()) {
                map.insert("x-kubernetes-list-type".to_owned(), "map".into());
                map.insert("x-kubernetes-list-map-keys".to_owned(), json!(["type"]));
            }
        }
        Some("object") if map.contains_key("additionalProperties") => bound(map, "maxProperties", ITEMS_MAX),
        Some("integer") => {
            let wide = matches!(map.get("format").and_then(Value::as_str), Some("uint32" | "uint64" | "int64" | "uint"));
            map.insert("format".to_owned(), if wide { "int64" } else { "int32" }.into());
        }
        Some("number") => drop(map.insert("format".to_owned(), "double".into())),
        _ => {}
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(mend);
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(word) {
            mend(inner);
        }
    }
}

/// `oneOf` and `anyOf`: words, what may be null, count or share, or objects of one field each.
fn alternatives(map: &mut Map<String, Value>) {
    let Some(Value::Array(mut options)) = map.remove("oneOf").or_else(|| map.remove("anyOf")) else { return };
    options.retain(|option| option["type"] != "null");
    let kinds = |kind: &str| options.iter().all(|option| option["type"] == kind);
    if options.len() == 1 && !options[0]["properties"].is_object() {
        merge(map, &options[0]);
        if let Some(Value::Array(_)) = map.get("examples") {
            let mut schema = Value::Object(std::mem::take(map));
            quantity(&mut schema);
            if let Value::Object(mended) = schema {
                *map = mended;
            }
        }
    } else if kinds("string") && options.iter().all(|option| option.get("enum").is_some() || option.get("const").is_some()) {
        let words = options.iter().flat_map(|option| option["enum"].as_array().cloned().unwrap_or_else(|| vec![option["const"].clone()]));
        let words: Vec<Value> = words.collect();
        map.insert("type".to_owned(), "string".into());
        map.insert("enum".to_owned(), words.into());
    } else if kinds("object") && options.len() > 1 || options.first().is_some_and(one_of_by_key) {
        let mut properties = Map::new();
        for option in options {
            if let Value::Object(more) = &option["properties"] {
                properties.extend(more.clone());
            }
        }
        let names: Vec<String> = properties.keys().cloned().collect();
        map.insert("type".to_owned(), "object".into());
        map.insert("properties".to_owned(), properties.into());
        let mut schema = Value::Object(std::mem::take(map));
        rule(&mut schema, &exactly_one(&names), &format!("give exactly one of {}", names.join(", ")));
        if let Value::Object(mended) = schema {
            *map = mended;
        }
    } else if options.len() == 1 {
        merge(map, &options[0]);
    } else {
        map.insert("x-kubernetes-int-or-string".to_owned(), true.into());
    }
    // An option may itself be one of these.
    if map.contains_key("oneOf") || map.contains_key("anyOf") {
        alternatives(map);
    }
}

/// `{required: [a], properties: {a: …}}`: how serde writes a variant that holds something.
fn one_of_by_key(option: &Value) -> bool {
    option["properties"].as_object().is_some_and(|properties| properties.len() == 1 && option["required"] == json!([properties.keys().next()]))
        && option["additionalProperties"] == false
}

/// What the field says of itself stands before what its type says.
fn merge(map: &mut Map<String, Value>, option: &Value) {
    if let Value::Object(option) = option {
        for (word, value) in option {
            map.entry(word.clone()).or_insert_with(|| value.clone());
        }
    }
}
