//! `POST /v1/chat/completions`.

mod answer;
mod format;
mod logprobs;
mod prompt;
mod tools;

use std::{sync::Arc, time::Instant};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use gdn_model::Message;
use serde::Deserialize;

use self::answer::{Answer, Streaming};
pub(super) use self::{
    format::{ResponseFormat, compile},
    prompt::{Conversation, prompt},
};
use crate::{
    App,
    body::Body,
    error::{ApiError, Result},
    fields::{NotDone, SamplingFields, StreamOptions, in_range, max_tokens},
    generation::{Ask, collect, submit},
    id, limits, numbers,
    parse::Syntax,
    sse::stream,
};

#[derive(Debug, Deserialize)]
struct Fields {
    model: Option<String>,
    messages: Vec<Message>,
    #[serde(default, deserialize_with = "numbers::whole")]
    max_tokens: Option<usize>,
    #[serde(default, deserialize_with = "numbers::whole")]
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    #[serde(default, deserialize_with = "numbers::whole")]
    top_logprobs: Option<usize>,
    parallel_tool_calls: Option<bool>,
    separate_reasoning: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    #[serde(rename = "continue_final_message")]
    _continue_final_message: Option<NotDone>,
    #[serde(rename = "functions")]
    _functions: Option<NotDone>,
}

pub(super) async fn chat(State(app): State<App>, body: Body) -> Result<Response> {
    let arrival = Instant::now();
    let fields: Fields = body.read().await?;
    let conversation: Conversation = body.read().await?;
    let mut wanted = body.read::<SamplingFields>().await?.resolve(&app)?;
    drop(body);
    app.check_model(fields.model.as_deref())?;
    let logprobs = logprobs_wanted(&fields)?;
    let tools = conversation.tools()?;
    let prompt = prompt(&app, fields.messages, conversation).await?;

    let one_call = !fields.parallel_tool_calls.unwrap_or(true);
    let thinking = prompt.thinks;
    let grammar = match (tools.forced(), fields.response_format) {
        (Some(forced), _) => Some(forced.compile(&app, thinking, one_call, prompt.in_xml).await?),
        (None, Some(format)) => format.compile(&app, thinking).await?,
        (None, None) => None,
    };
    if grammar.is_none() {
        let stop = wanted.stop.iter().chain(&app.options().chat_stop);
        wanted.stop = stop.cloned().collect();
    }
    let given = fields.max_completion_tokens.or(fields.max_tokens);
    let name = match fields.max_completion_tokens {
        Some(_) => "max_completion_tokens",
        None => "max_tokens",
    };
    if given == Some(0) {
        return Err(ApiError::field(name, "expected at least 1, got 0"));
    }
    let names = ["messages", name];
    let max_tokens = max_tokens(&app, prompt.tokens.len(), given, usize::MAX, names)?;
    let ask = Ask {
        prompt: prompt.tokens,
        max_tokens,
        logprobs,
        prompt_logprobs: None,
        grammar,
        checkpoint: prompt.checkpoint,
    };
    let jobs = submit(&app, &wanted, &[ask], arrival, "messages")?;
    let answer = Answer {
        id: id::unique("chatcmpl"),
        created: id::now(),
        model: app.options().served_model_name.clone(),
        logprobs: logprobs.is_some(),
        syntax: Syntax {
            reasoning: fields.separate_reasoning.unwrap_or(true),
            thinking,
            tools: tools.schemas(one_call).map(Arc::new),
        },
        app,
    };
    if fields.stream.unwrap_or(false) {
        let options = fields.stream_options.unwrap_or_default();
        let format = Streaming::new(answer, jobs.len(), options.include_usage.unwrap_or(false));
        return Ok(stream(jobs, format));
    }
    Ok(answer.whole(collect(jobs).await?).into_response())
}

/// The likely tokens beside each, if log probabilities are asked for.
fn logprobs_wanted(fields: &Fields) -> Result<Option<usize>> {
    match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (true, top) => {
            let top = top.unwrap_or(0);
            in_range("top_logprobs", top, 0, limits::TOP_LOGPROBS)?;
            Ok(Some(top))
        }
        (false, Some(top @ 1..)) => {
            let what = format!("expected logprobs to be true with it, got {top} without");
            Err(ApiError::field("top_logprobs", what))
        }
        (false, _) => Ok(None),
    }
}
