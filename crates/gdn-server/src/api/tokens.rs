//! Text to tokens and back.

use axum::{extract::State, response::IntoResponse};
use serde::{Deserialize, Serialize};

use super::chat;
use crate::{
    App,
    body::{Body, Json, off_thread},
    error::{ApiError, Result},
    numbers::{self, Whole},
};

#[derive(Deserialize)]
struct Tokenize {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<gdn_model::Message>>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

pub(super) async fn tokenize(State(app): State<App>, body: Body) -> Result<impl IntoResponse> {
    let request: Tokenize = body.read().await?;
    app.check_model(request.model.as_deref())?;
    // Beside a prompt nothing comes of it, but it has to be right.
    let conversation: chat::Conversation = body.read().await?;
    conversation.tools()?;
    let tokens = match (request.prompt, request.messages) {
        (Some(prompt), None) => app.encode(prompt).await?,
        (None, Some(messages)) => chat::prompt(&app, messages, conversation).await?.tokens,
        _ => {
            let what = "expected it or messages, got both or none";
            return Err(ApiError::field("prompt", what));
        }
    };
    let vocabulary = &app.text().vocabulary;
    let texts = || tokens.iter().map(|&token| vocabulary.text(token)).collect();
    let token_strs = request.return_token_strs.unwrap_or(false).then(texts);
    Ok(Json(Tokenized { count: tokens.len(), max_model_len: app.limit(), tokens, token_strs }))
}

#[derive(Deserialize)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<Whole<u32>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

pub(super) async fn detokenize(State(app): State<App>, body: Body) -> Result<impl IntoResponse> {
    let Detokenize { model, tokens } = body.read().await?;
    app.check_model(model.as_deref())?;
    let tokens = numbers::plain(tokens);
    let tokenizer = app.text().tokenizer.clone();
    let text = off_thread(tokens.len(), move || tokenizer.decode(&tokens)).await?;
    Ok(Json(Detokenized { prompt: text.map_err(ApiError::model)? }))
}
