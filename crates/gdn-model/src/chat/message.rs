//! A message of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A message of a conversation, in the form of OpenAI's API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// A text, a list of parts such as `{"type": "text", "text": ".."}`, or null.
    #[serde(default)]
    pub content: Value,
    /// What the assistant thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The functions that the assistant calls, as
    /// `{"type": "function", "function": {"name": "..", "arguments": {..}}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
    /// Every other field, such as `name` or `tool_call_id`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<Value>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// What the model is told before the conversation.
    pub fn system(content: impl Into<Value>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<Value>) -> Self {
        Self::new("user", content)
    }

    /// What the assistant said.
    pub fn assistant(content: impl Into<Value>) -> Self {
        Self::new("assistant", content)
    }

    /// As templates want it: the arguments of calls are objects, where the API has
    /// them as text.
    pub(super) fn to_json(&self) -> Value {
        let mut message = serde_json::to_value(self).unwrap_or_default();
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let function = match call.get_mut("function") {
                Some(function) => function,
                None => call,
            };
            let Some(arguments) = function.get_mut("arguments") else { continue };
            let parsed = arguments.as_str().and_then(|text| match text.trim() {
                "" => Some(Value::Object(Map::new())),
                text => serde_json::from_str(text).ok(),
            });
            if let Some(parsed @ Value::Object(_)) = parsed {
                *arguments = parsed;
            }
        }
        message
    }
}
