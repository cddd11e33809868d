//! Grammars in the syntax of llguidance, from what requests ask for.

use std::fmt::Write;

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

/// A function that may be called.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// The schema of its parameters, an object.
    pub(crate) parameters: Value,
}

/// White space between thoughts and what follows.
const AFTER_THOUGHTS: &str = "AFTER: /\\n{1,2}/\n";

/// A JSON value of this schema; with `thinking` behind thoughts.
pub(crate) fn json(schema: Value, thinking: bool) -> TopLevelGrammar {
    let schema = bounded(schema);
    if !thinking {
        return TopLevelGrammar::from_json_schema(schema);
    }
    TopLevelGrammar::from_lark(format!(
        "start: AFTER? body\n{AFTER_THOUGHTS}body: %json {schema}\n"
    ))
}

/// A text that matches a regular expression.
pub(crate) fn regex(regex: &str) -> TopLevelGrammar {
    TopLevelGrammar::from_regex(regex)
}

/// Calls of some of these functions, one or more.
pub(crate) fn calls(
    functions: &[Function],
    one_call: bool,
    in_xml: bool,
    thinking: bool,
) -> TopLevelGrammar {
    let after = if thinking { "AFTER? " } else { "" };
    let more = if one_call { "" } else { " (\"\\n\" call)*" };
    let mut lark = format!("start: {after}call{more}\n");
    if thinking {
        lark.push_str(AFTER_THOUGHTS);
    }
    let names: Vec<String> = (0..functions.len()).map(|i| format!("call_{i}")).collect();
    _ = writeln!(lark, "call: {}", names.join(" | "));
    if in_xml {
        xml(functions, &mut lark);
    } else {
        objects(functions, &mut lark);
    }
    TopLevelGrammar::from_lark(lark)
}

fn objects(functions: &[Function], lark: &mut String) {
    for (i, Function { name, parameters }) in functions.iter().enumerate() {
        let name = Value::from(name.as_str());
        let open = quoted(&format!("<tool_call>\n{{\"name\": {name}, \"arguments\": "));
        let close = quoted("}\n</tool_call>");
        // A value of its own: references look for definitions at its root.
        let schema = bounded(parameters.clone());
        _ = writeln!(lark, "call_{i}: {open} args_{i} {close}\nargs_{i}: %json {schema}");
    }
}

fn xml(functions: &[Function], lark: &mut String) {
    // Up to the first mark that ends a value.
    lark.push_str("text[suffix=\"\\n</parameter>\\n\"]: /(?s:.*)/\n");
    for (i, Function { name, parameters }) in functions.iter().enumerate() {
        let open = quoted(&format!("<tool_call>\n<function={name}>\n"));
        _ = write!(lark, "call_{i}: {open}");
        let empty = Map::new();
        let properties = parameters["properties"].as_object().unwrap_or(&empty);
        let required: Vec<&str> = parameters["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (j, name) in properties.keys().enumerate() {
            let mark = if required.contains(&name.as_str()) { "" } else { "?" };
            _ = write!(lark, " p_{i}_{j}{mark}");
        }
        lark.push_str(" \"</function>\\n</tool_call>\"\n");
        for (j, (name, schema)) in properties.iter().enumerate() {
            let open = quoted(&format!("<parameter={name}>\n"));
            let close = "\"\\n</parameter>\\n\"";
            _ = match value(schema) {
                Form::Text => writeln!(lark, "p_{i}_{j}: {open} text"),
                Form::OneOf(texts) => {
                    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                    writeln!(lark, "p_{i}_{j}: {open} ({}) {close}", texts.join(" | "))
                }
                Form::Json => {
                    let schema = bounded(with_definitions(schema, parameters));
                    writeln!(lark, "p_{i}_{j}: {open} v_{i}_{j} {close}\nv_{i}_{j}: %json {schema}")
                }
            };
        }
    }
}

/// How a parameter is written.
enum Form<'a> {
    Text,
    OneOf(Vec<&'a str>),
    Json,
}

fn value(schema: &Value) -> Form<'_> {
    if let Some(values) = schema["enum"].as_array() {
        let texts: Option<Vec<_>> = values.iter().map(Value::as_str).collect();
        if let Some(texts) = texts.filter(|texts| !texts.is_empty()) {
            return Form::OneOf(texts);
        }
    }
    match schema["type"].as_str() {
        Some("string") => Form::Text,
        Some(_) => Form::Json,
        // Several types, or none: a text may be among them.
        None => Form::Text,
    }
}

/// A schema with the definitions of the one that it is part of.
fn with_definitions(schema: &Value, root: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                object.insert(key.to_owned(), definitions.clone());
            }
        }
    }
    schema
}

/// A schema without endless white space, of which models can't get enough.
fn bounded(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        let options = json!({ "whitespace_pattern": "[\\x20\\x0A\\x0D\\x09]{1,20}" });
        object.entry("x-guidance").or_insert(options);
    }
    schema
}

/// A literal of a grammar; they are written as in JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
