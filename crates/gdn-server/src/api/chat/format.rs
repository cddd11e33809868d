//! `response_format`.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{App, body::off_thread, constraint::Grammar, error::Result, grammar};

/// The form that an answer must have.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::api) enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Debug, Deserialize)]
pub(in crate::api) struct JsonSchema {
    schema: Option<Value>,
    /// What others call it; an answer always follows its schema.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl ResponseFormat {
    /// A grammar for it, if it needs one; with `thinking` it begins behind thoughts.
    pub(in crate::api) async fn compile(
        self,
        app: &App,
        thinking: bool,
    ) -> Result<Option<Arc<Grammar>>> {
        const FIELD: &str = "response_format.json_schema.schema";
        let object = || json!({ "type": "object" });
        let schema = match self {
            Self::Text => return Ok(None),
            Self::JsonObject => object(),
            Self::JsonSchema { json_schema } => json_schema.schema.unwrap_or_else(object),
        };
        compile(app, grammar::json(schema, thinking), thinking, FIELD).await.map(Some)
    }
}

/// Compiles off the threads that serve connections: some grammars take long.
pub(in crate::api) async fn compile(
    app: &App,
    grammar: TopLevelGrammar,
    thinking: bool,
    param: &'static str,
) -> Result<Arc<Grammar>> {
    let app = app.clone();
    let work = move || app.grammars()?.compile(grammar, thinking, param);
    off_thread(usize::MAX, work).await?.map(Arc::new)
}
