//! `tools` and `tool_choice`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Conversation, format::compile};
use crate::{
    App,
    constraint::Grammar,
    error::{ApiError, Result},
    fields::in_range,
    grammar::{self, Function},
    limits,
    parse::Schemas,
};

/// The functions that an answer may call.
#[derive(Debug)]
pub(in crate::api) struct Tools {
    functions: Vec<Function>,
    choice: Choice,
}

#[derive(Debug)]
enum Choice {
    Auto,
    Nothing,
    Required,
    /// This function.
    Named(usize),
}

/// Functions of which one must be called.
#[derive(Debug)]
pub(super) struct Forced {
    functions: Vec<Function>,
    one_call: bool,
}

impl Conversation {
    /// What of its tools may be called, checked.
    pub(in crate::api) fn tools(&self) -> Result<Tools> {
        let tools = self.tools.as_deref().unwrap_or_default();
        in_range("tools", tools.len(), 0, limits::TOOLS)?;
        let functions = tools.iter().enumerate().map(|(i, tool)| function(i, tool));
        let functions = functions.collect::<Result<Vec<_>>>()?;
        let choice = choice(self.tool_choice.as_ref(), &functions)?;
        Ok(Tools { functions, choice })
    }
}

fn function(i: usize, tool: &Value) -> Result<Function> {
    of_functions(&tool["type"], || format!("tools[{i}].type"))?;
    let function = &tool["function"];
    let Some(name) = function["name"].as_str().filter(|name| !name.is_empty()) else {
        let what = format!("expected the name of a function, got {}", function["name"]);
        return Err(ApiError::field(format!("tools[{i}].function.name"), what));
    };
    // It stands between brackets.
    if name.contains(['<', '>', '\n', '"']) {
        let what = format!("expected letters, digits, dashes and underscores, got {name:?}");
        return Err(ApiError::field(format!("tools[{i}].function.name"), what));
    }
    let description = &function["description"];
    if !(description.is_string() || description.is_null()) {
        let what = format!("expected a text, got {description}");
        return Err(ApiError::field(format!("tools[{i}].function.description"), what));
    }
    let parameters = match &function["parameters"] {
        Value::Null => json!({ "type": "object", "properties": {} }),
        Value::Object(schema) => Value::Object(schema.clone()),
        other => {
            let what = format!("expected the schema of an object, got {other}");
            return Err(ApiError::field(format!("tools[{i}].function.parameters"), what));
        }
    };
    Ok(Function { name: name.to_owned(), parameters })
}

/// `Err` for another type than that of functions, which is the default.
fn of_functions(kind: &Value, field: impl Fn() -> String) -> Result<()> {
    if kind.is_null() || kind == "function" {
        return Ok(());
    }
    Err(ApiError::field(field(), format!("expected function, got {kind}")))
}

fn choice(choice: Option<&Value>, functions: &[Function]) -> Result<Choice> {
    let wrong = |got: &dyn std::fmt::Display| {
        let what = format!(
            "expected auto, none, required, or {{\"type\": \"function\", \"function\": \
             {{\"name\": one of tools}}}}, got {got}"
        );
        Err(ApiError::field("tool_choice", what))
    };
    let choice = match choice {
        None | Some(Value::Null) => Choice::Auto,
        Some(Value::String(name)) => match name.as_str() {
            "auto" => Choice::Auto,
            "none" => Choice::Nothing,
            "required" => Choice::Required,
            other => return wrong(&other),
        },
        Some(named) => {
            of_functions(&named["type"], || "tool_choice.type".to_owned())?;
            let name = named["function"]["name"].as_str();
            match functions.iter().position(|function| Some(function.name.as_str()) == name) {
                Some(index) => Choice::Named(index),
                None => return wrong(named),
            }
        }
    };
    match choice {
        Choice::Required if functions.is_empty() => {
            Err(ApiError::field("tool_choice", "expected tools to choose from, got none"))
        }
        choice => Ok(choice),
    }
}

impl Tools {
    /// What must be called, if something must.
    pub(super) fn forced(&self) -> Option<Forced> {
        let (functions, one_call) = match self.choice {
            Choice::Auto | Choice::Nothing => return None,
            Choice::Required => (self.functions.clone(), false),
            Choice::Named(index) => (vec![self.functions[index].clone()], true),
        };
        Some(Forced { functions, one_call })
    }

    /// What an answer is searched for, if anything may be called.
    pub(super) fn schemas(&self, one_call: bool) -> Option<Schemas> {
        if self.functions.is_empty() || matches!(self.choice, Choice::Nothing) {
            return None;
        }
        let functions = self.functions.iter();
        let functions = functions.map(|f| (f.name.clone(), f.parameters.clone())).collect();
        Some(Schemas { functions, one_call })
    }

    /// As templates want them, if they are to be told of.
    pub(super) fn for_template(conversation: &Conversation) -> Option<Value> {
        let tools = conversation.tools.as_ref().filter(|tools| !tools.is_empty())?;
        let none = conversation.tool_choice.as_ref().is_some_and(|choice| choice == "none");
        (!none).then(|| Value::Array(tools.clone()))
    }
}

impl Forced {
    pub(super) async fn compile(
        self,
        app: &App,
        thinking: bool,
        one_call: bool,
        in_xml: bool,
    ) -> Result<Arc<Grammar>> {
        let one_call = one_call || self.one_call;
        let grammar = grammar::calls(&self.functions, one_call, in_xml, thinking);
        compile(app, grammar, thinking, "tools").await
    }
}
