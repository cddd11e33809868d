//! From a conversation to the tokens of a prompt.

use gdn_model::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::tools::Tools;
use crate::{
    App,
    body::off_thread,
    error::{ApiError, Result},
    fields::in_range,
    limits,
};

/// What a template is told beside the messages.
#[derive(Debug, Deserialize)]
pub(in crate::api) struct Conversation {
    pub(super) tools: Option<Vec<Value>>,
    pub(super) tool_choice: Option<Value>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A conversation up to where the assistant speaks.
#[derive(Debug)]
pub(in crate::api) struct Prompt {
    pub(in crate::api) tokens: Vec<u32>,
    /// The tokens that the next prompt of the conversation begins with, too.
    pub(super) checkpoint: Option<usize>,
    /// Whether the answer begins with thoughts.
    pub(super) thinks: bool,
    /// Whether calls are written in XML, and not as JSON.
    pub(super) in_xml: bool,
}

/// Renders and tokenises a conversation.
pub(in crate::api) async fn prompt(
    app: &App,
    mut messages: Vec<Message>,
    conversation: Conversation,
) -> Result<Prompt> {
    if app.text().template.is_none() {
        let message = "the model has no chat template; send a prompt to /v1/completions";
        return Err(ApiError::body(message));
    }
    in_range("messages", messages.len(), 1, limits::MESSAGES)?;
    let mut bytes = 0;
    for (i, message) in messages.iter_mut().enumerate() {
        if message.role == "developer" {
            // What OpenAI calls it now.
            message.role = "system".to_owned();
        }
        message.content = content(i, std::mem::take(&mut message.content))?;
        bytes += message.content.as_str().map_or(0, str::len);
    }
    let app = app.clone();
    off_thread(bytes, move || render(&app, &messages, &conversation)).await?
}

/// A text, or null. Templates differ in what they make of a list.
fn content(message: usize, content: Value) -> Result<Value> {
    let parts = match content {
        Value::Null | Value::String(_) => return Ok(content),
        Value::Array(parts) => parts,
        other => {
            let what = format!("expected a text or a list of parts, got {other}");
            return Err(ApiError::field(format!("messages[{message}].content"), what));
        }
    };
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(part)) => text.push_str(part),
            (Some("text") | None, _) => {
                let what = format!("expected {{\"type\": \"text\", \"text\": ..}}, got {part}");
                return Err(ApiError::field(format!("messages[{message}].content[{i}]"), what));
            }
            (Some(kind), _) => {
                let what = format!("expected text, which is all that is read here, got {kind}");
                let field = format!("messages[{message}].content[{i}].type");
                return Err(ApiError::field(field, what));
            }
        }
    }
    Ok(text.into())
}

fn render(app: &App, messages: &[Message], conversation: &Conversation) -> Result<Prompt> {
    let text = app.text();
    let Some(template) = &text.template else {
        return Err(ApiError::failed("a template that was there is gone"));
    };
    let tools = Tools::for_template(conversation);
    let variables = conversation.chat_template_kwargs.clone().unwrap_or_default();
    let render = |generation| template.render(messages, generation, tools.as_ref(), &variables);
    let prompt = render(true)
        .map_err(|error| no_object(messages).unwrap_or_else(|| ApiError::model(error)))?;
    let tokens = text.tokenizer.encode(&prompt).map_err(ApiError::model)?;
    // Some templates reject what does not end with a question.
    let checkpoint = render(false).ok().and_then(|shared| {
        let behind = &prompt[common(&prompt, &shared)..];
        let behind = text.tokenizer.encode(behind).ok()?;
        // Where the text can be cut, so can its tokens.
        tokens.strip_suffix(behind.as_slice()).map(<[u32]>::len)
    });
    Ok(Prompt {
        thinks: prompt.trim_end().ends_with("<think>"),
        in_xml: prompt.contains("<function="),
        checkpoint: checkpoint.filter(|&checkpoint| checkpoint > 0),
        tokens,
    })
}

/// Arguments of a call that are no object, which some templates stumble over in their own words.
fn no_object(messages: &[Message]) -> Option<ApiError> {
    let calls = messages.iter().enumerate().flat_map(|(i, message)| {
        message.tool_calls.iter().flatten().enumerate().map(move |(j, call)| (i, j, call))
    });
    let wrong = |(i, j, call): (usize, usize, &Value)| {
        let arguments = &call["function"]["arguments"];
        let is_object = match arguments {
            Value::Null | Value::Object(_) => true,
            Value::String(text) => {
                text.trim().is_empty() || serde_json::from_str::<Map<_, Value>>(text).is_ok()
            }
            _ => false,
        };
        let field = format!("messages[{i}].tool_calls[{j}].function.arguments");
        let what = || format!("expected an object, as JSON in a text, got {arguments}");
        (!is_object).then(|| ApiError::field(field, what()))
    };
    calls.into_iter().find_map(wrong)
}

/// The bytes that two texts begin with.
fn common(a: &str, b: &str) -> usize {
    let same = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    same.map_or(a.len().min(b.len()), |((at, _), _)| at)
}
