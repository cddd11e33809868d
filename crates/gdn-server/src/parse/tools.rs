//! Calls of functions, as the families write them: in XML, or as JSON in Qwen3-Next.
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=P>
//! value
//! </parameter>
//! </function>
//! </tool_call>
//! ```

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;

use super::{Delta, beginning};

const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// The schemas of functions' parameters, by name.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    pub(crate) functions: HashMap<String, Value>,
    /// Whether calls behind the first are left out.
    pub(crate) one_call: bool,
}

/// Finds calls in content.
#[derive(Debug)]
pub(super) struct Tools {
    schemas: Arc<Schemas>,
    state: State,
    held: String,
    calls: usize,
}

#[derive(Debug)]
enum State {
    /// Content.
    Text,
    /// Behind a call, where white space means nothing.
    Behind,
    /// Behind `<tool_call>`.
    Called,
    /// Between parameters.
    Function { name: String, parameters: usize },
    /// In a value.
    Parameter { name: String, parameters: usize, parameter: String },
    /// Behind `</function>`.
    Closing,
}

enum Next {
    /// What is held goes on with this.
    Go(State),
    /// More text is needed.
    Wait(State),
}

impl Tools {
    pub(super) fn new(schemas: Arc<Schemas>) -> Self {
        Self { schemas, state: State::Text, held: String::new(), calls: 0 }
    }

    pub(super) fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        self.held.push_str(text);
        let first = deltas.len();
        loop {
            let state = std::mem::replace(&mut self.state, State::Text);
            match self.step(state, deltas) {
                Next::Go(state) => self.state = state,
                Next::Wait(state) => {
                    self.state = state;
                    break;
                }
            }
        }
        self.leave_out(first, deltas);
    }

    /// Ends the text. A call that was cut short keeps what came of it.
    pub(super) fn finish(&mut self, deltas: &mut Vec<Delta>) {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => deltas.push(Delta::Content(held)),
            State::Called => deltas.push(Delta::Content(format!("{CALL}{held}"))),
            _ => {}
        }
        deltas.retain(|delta| *delta != Delta::Content(String::new()));
    }

    fn step(&mut self, state: State, deltas: &mut Vec<Delta>) -> Next {
        match state {
            State::Text => self.text(deltas),
            State::Behind => {
                self.held = self.held.trim_start().to_owned();
                match self.held.is_empty() {
                    true => Next::Wait(State::Behind),
                    false => Next::Go(State::Text),
                }
            }
            State::Called => self.called(deltas),
            State::Function { name, parameters } => self.function(name, parameters, deltas),
            State::Parameter { name, parameters, parameter } => {
                let Some(end) = self.held.find(PARAMETER_END) else {
                    return Next::Wait(State::Parameter { name, parameters, parameter });
                };
                let value = &self.held[..end];
                let value = value.strip_prefix('\n').unwrap_or(value);
                let value = value.strip_suffix('\n').unwrap_or(value);
                let value = self.schemas.value(&name, &parameter, value);
                let open = if parameters == 0 { '{' } else { ',' };
                let json = format!("{open}{}:{value}", Value::from(parameter));
                deltas.push(Delta::Arguments { index: self.calls - 1, json });
                self.held.drain(..end + PARAMETER_END.len());
                Next::Go(State::Function { name, parameters: parameters + 1 })
            }
            State::Closing => {
                let text = self.held.trim_start();
                if !text.starts_with(CALL_END) && CALL_END.starts_with(text) {
                    return Next::Wait(State::Closing);
                }
                self.held = text.strip_prefix(CALL_END).unwrap_or(text).to_owned();
                Next::Go(State::Behind)
            }
        }
    }

    fn text(&mut self, deltas: &mut Vec<Delta>) -> Next {
        if let Some(at) = self.held.find(CALL) {
            deltas.push(Delta::Content(self.held[..at].trim_end().to_owned()));
            self.held.drain(..at + CALL.len());
            return Next::Go(State::Called);
        }
        let certain = self.held.len() - beginning(&self.held, &[CALL]);
        let certain = self.held[..certain].trim_end().len();
        deltas.push(Delta::Content(self.held.drain(..certain).collect()));
        Next::Wait(State::Text)
    }

    fn called(&mut self, deltas: &mut Vec<Delta>) -> Next {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(FUNCTION) {
            let Some((name, rest)) = rest.split_once('>') else {
                return Next::Wait(State::Called);
            };
            let (name, rest) = (name.trim().to_owned(), rest.to_owned());
            deltas.push(Delta::Call { index: self.calls, name: name.clone() });
            self.calls += 1;
            self.held = rest;
            return Next::Go(State::Function { name, parameters: 0 });
        }
        if text.starts_with('{') {
            let Some((json, rest)) = text.split_once(CALL_END) else {
                return Next::Wait(State::Called);
            };
            let rest = rest.to_owned();
            match call_of_json(json) {
                Some((name, json)) => {
                    deltas.push(Delta::Call { index: self.calls, name });
                    deltas.push(Delta::Arguments { index: self.calls, json });
                    self.calls += 1;
                    self.held = rest;
                    return Next::Go(State::Behind);
                }
                None => {
                    let end = self.held.len() - rest.len();
                    deltas.push(Delta::Content(format!("{CALL}{}", &self.held[..end])));
                    self.held = rest;
                    return Next::Go(State::Text);
                }
            }
        }
        if FUNCTION.starts_with(text) {
            return Next::Wait(State::Called);
        }
        // No call after all: it is told as it came.
        deltas.push(Delta::Content(CALL.to_owned()));
        Next::Go(State::Text)
    }

    fn function(&mut self, name: String, parameters: usize, deltas: &mut Vec<Delta>) -> Next {
        let mut text = self.held.trim_start();
        loop {
            if let Some(rest) = text.strip_prefix(PARAMETER) {
                let Some((parameter, rest)) = rest.split_once('>') else { break };
                let parameter = parameter.trim().to_owned();
                self.held = rest.to_owned();
                return Next::Go(State::Parameter { name, parameters, parameter });
            }
            let ends = [FUNCTION_END, CALL_END];
            if let Some(rest) = ends.iter().find_map(|end| text.strip_prefix(end)) {
                let closed = text.starts_with(CALL_END);
                self.held = rest.to_owned();
                let json = if parameters == 0 { "{}" } else { "}" }.to_owned();
                deltas.push(Delta::Arguments { index: self.calls - 1, json });
                return Next::Go(if closed { State::Behind } else { State::Closing });
            }
            if [PARAMETER, FUNCTION_END, CALL_END].iter().any(|marker| marker.starts_with(text)) {
                break;
            }
            // What stands between parameters means nothing.
            let mut chars = text.chars();
            chars.next();
            text = chars.as_str().trim_start();
        }
        self.held = text.to_owned();
        Next::Wait(State::Function { name, parameters })
    }

    /// Drops calls behind the first from what was added, if there may be one alone.
    fn leave_out(&self, first: usize, deltas: &mut Vec<Delta>) {
        if !self.schemas.one_call {
            return;
        }
        let mut added = deltas.split_off(first);
        added.retain(|delta| match delta {
            Delta::Call { index, .. } | Delta::Arguments { index, .. } => *index == 0,
            Delta::Reasoning(_) | Delta::Content(_) => true,
        });
        deltas.append(&mut added);
    }
}

/// The name and the arguments of a call that is JSON.
fn call_of_json(text: &str) -> Option<(String, String)> {
    let call: Value = serde_json::from_str(text.trim()).ok()?;
    let name = call["name"].as_str()?.to_owned();
    let arguments = match &call["arguments"] {
        Value::Null => "{}".to_owned(),
        // Arguments that are JSON already.
        Value::String(json) => json.clone(),
        arguments => arguments.to_string(),
    };
    Some((name, arguments))
}

impl Schemas {
    /// A value that came as text, as the schema wants it.
    fn value(&self, function: &str, parameter: &str, text: &str) -> Value {
        let root = self.functions.get(function);
        let schema = root.and_then(|root| root.get("properties")?.get(parameter));
        let mut types = Vec::new();
        if let (Some(root), Some(schema)) = (root, schema) {
            collect_types(root, schema, 0, &mut types);
        }
        let trimmed = text.trim();
        // As Python writes them, too.
        let spelled = match trimmed {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let parsed = serde_json::from_str::<Value>(spelled).ok();
        let fits = |value: &Value| match value {
            Value::Null => types.contains(&"null"),
            Value::Bool(_) => types.contains(&"boolean"),
            Value::Number(number) => {
                types.contains(&"number")
                    || types.contains(&"integer")
                        && (!number.is_f64() || number.as_f64().is_some_and(|x| x.fract() == 0.0))
            }
            // Quotes are part of a text.
            Value::String(_) => !types.is_empty() && !types.contains(&"string"),
            Value::Array(_) => types.is_empty() || types.contains(&"array"),
            Value::Object(_) => types.is_empty() || types.contains(&"object"),
        };
        parsed.filter(fits).unwrap_or_else(|| Value::from(text))
    }
}

/// Names of types that a schema allows.
fn collect_types<'a>(root: &'a Value, schema: &'a Value, depth: usize, types: &mut Vec<&'a str>) {
    /// References may go round in circles.
    const DEEP: usize = 8;
    if depth > DEEP {
        return;
    }
    match &schema["type"] {
        Value::String(name) => types.push(name),
        Value::Array(names) => types.extend(names.iter().filter_map(Value::as_str)),
        _ => {}
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for inner in schema[key].as_array().into_iter().flatten() {
            collect_types(root, inner, depth + 1, types);
        }
    }
    if let Some(target) = schema["$ref"].as_str().and_then(|name| name.strip_prefix('#'))
        && let Some(target) = root.pointer(target)
    {
        collect_types(root, target, depth + 1, types);
    }
    let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    types.extend(values.map(|value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }));
}
