//! `POST /generate`, as SGLang has it.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use gdn_engine::Logprobs;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeTuple};
use serde_json::Value;

use super::{chat::compile, finite};
use crate::{
    App,
    body::{Body, Json, parse},
    constraint::Grammar,
    error::{ApiError, Result},
    fields::{Inputs, NotDone, OneOrMany, Prompts, SamplingFields, Wanted, in_range, max_tokens},
    generation::{Ask, Done, End, Finish, Job, Matched, Output, Step, collect, submit},
    grammar, id, limits, numbers,
    sse::{Events, Format, stream},
};

/// What SGLang generates if nobody says how much.
const MAX_TOKENS: usize = 128;

#[derive(Debug, Deserialize)]
struct Fields {
    text: Option<Prompts>,
    input_ids: Option<Prompts>,
    /// Of all prompts, or a list of those of each.
    sampling_params: Option<Value>,
    stream: Option<bool>,
    return_logprob: Option<bool>,
    #[serde(default, deserialize_with = "numbers::whole")]
    top_logprobs_num: Option<usize>,
    /// The first token of the prompt whose log probability is asked for.
    #[serde(default, deserialize_with = "numbers::whole")]
    logprob_start_len: Option<i64>,
    return_text_in_logprobs: Option<bool>,
    rid: Option<OneOrMany<String>>,
    #[serde(rename = "input_embeds")]
    _input_embeds: Option<NotDone>,
    #[serde(rename = "image_data")]
    _image_data: Option<NotDone>,
    #[serde(rename = "lora_path")]
    _lora_path: Option<NotDone>,
}

/// Beside what other routes call the same.
#[derive(Debug, Default, Deserialize)]
struct Others {
    #[serde(default, deserialize_with = "numbers::whole")]
    max_new_tokens: Option<usize>,
    #[serde(default, deserialize_with = "numbers::whole")]
    min_new_tokens: Option<usize>,
    json_schema: Option<String>,
    regex: Option<String>,
    #[serde(rename = "ebnf")]
    _ebnf: Option<NotDone>,
}

/// What the answers to a request share.
struct Answer {
    app: App,
    choices: Vec<Choice>,
    /// Whether a list came, and so a list is returned.
    list: bool,
    logprobs: Option<Wants>,
}

/// Which log probabilities are asked for.
#[derive(Clone, Copy)]
struct Wants {
    top: usize,
    /// The first token of the prompt, if any.
    start: Option<usize>,
    text: bool,
}

/// One of the answers.
struct Choice {
    id: String,
    prompt: Arc<[u32]>,
}

#[derive(Serialize)]
struct Generated<'a> {
    text: &'a str,
    output_ids: &'a [u32],
    meta_info: Meta<'a>,
    /// Of a stream of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

#[derive(Serialize)]
struct Meta<'a> {
    id: &'a str,
    finish_reason: Option<Reason<'a>>,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    e2e_latency: Option<f64>,
    #[serde(flatten)]
    logprobs: Option<MetaLogprobs>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Reason<'a> {
    Stop { matched: Option<&'a Matched> },
    Length { length: usize },
}

#[derive(Serialize)]
struct MetaLogprobs {
    input_token_logprobs: Vec<Token>,
    output_token_logprobs: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_top_logprobs: Option<Vec<Option<Vec<Token>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_top_logprobs: Option<Vec<Option<Vec<Token>>>>,
}

/// `[logprob, token, text]`.
struct Token(Option<f32>, u32, Option<String>);

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(&self.0)?;
        tuple.serialize_element(&self.1)?;
        tuple.serialize_element(&self.2)?;
        tuple.end()
    }
}

/// What came of an answer so far.
#[derive(Default)]
struct So {
    text: String,
    tokens: Vec<u32>,
    prompt_logprobs: Vec<Option<Logprobs>>,
    logprobs: Vec<Option<Logprobs>>,
    end: Option<End>,
}

pub(super) async fn generate(State(app): State<App>, body: Body) -> Result<Response> {
    let arrival = Instant::now();
    let fields: Fields = body.read().await?;
    drop(body);
    let (param, prompts) = match (fields.text, fields.input_ids) {
        (Some(text), None) => ("text", text),
        (None, Some(tokens)) => ("input_ids", tokens),
        _ => {
            return Err(ApiError::field("text", "expected it or input_ids, got both or none"));
        }
    };
    if matches!(prompts.each, Inputs::Texts(_)) != (param == "text") {
        let what = "expected texts in text and tokens in input_ids, got one in the other";
        return Err(ApiError::field(param, what));
    }
    in_range(param, prompts.len(), 1, limits::PROMPTS)?;
    let top = fields.top_logprobs_num.unwrap_or(0);
    in_range("top_logprobs_num", top, 0, limits::TOP_LOGPROBS)?;
    let wants = fields.return_logprob.unwrap_or(false).then(|| Wants {
        top,
        start: fields.logprob_start_len.and_then(|start| usize::try_from(start).ok()),
        text: fields.return_text_in_logprobs.unwrap_or(false),
    });

    let list = prompts.list;
    let prompts = prompts.encode(&app).await?;
    let params = resolve(&app, fields.sampling_params, prompts.len()).await?;
    let answers: usize = params.iter().map(|(wanted, ..)| wanted.n).sum();
    if answers > limits::PROMPTS {
        let what = format!("expected at most {} answers in all, got {answers}", limits::PROMPTS);
        return Err(ApiError::field("sampling_params.n", what));
    }
    let rids = fields.rid.map(|rid| rid.0).unwrap_or_default();
    let (mut jobs, mut choices) = (Vec::<Job>::new(), Vec::new());
    for (i, ((tokens, _), (wanted, new, grammar))) in prompts.into_iter().zip(params).enumerate() {
        let names = [param, "sampling_params.max_new_tokens"];
        let max_tokens = max_tokens(&app, tokens.len(), new, MAX_TOKENS, names)?;
        let of_prompt = wants.filter(|wants| wants.start.is_some()).map(|wants| wants.top);
        let prompt: Arc<[u32]> = tokens.as_slice().into();
        let ask = Ask {
            prompt: tokens,
            max_tokens,
            logprobs: wants.map(|wants| wants.top),
            prompt_logprobs: of_prompt.or((max_tokens == 0).then_some(0)),
            grammar,
            checkpoint: None,
        };
        jobs.extend(submit(&app, &wanted, &[ask], arrival, param)?);
        for _ in 0..wanted.n {
            let id = rids.get(i).cloned().unwrap_or_else(|| id::unique("gen"));
            choices.push(Choice { id, prompt: prompt.clone() });
        }
    }
    let list = list || jobs.len() > 1;
    let answer = Answer { app, choices, list, logprobs: wants };
    if fields.stream.unwrap_or(false) {
        let so = jobs.iter().map(|_| So::default()).collect();
        return Ok(stream(jobs, Streaming { answer, so }));
    }
    let done: Vec<So> = collect(jobs).await?.into_iter().map(So::from).collect();
    let all: Vec<_> =
        done.iter().enumerate().map(|(index, so)| answer.generated(index, so, false)).collect();
    Ok(match answer.list {
        true => Json(all).into_response(),
        false => Json(all.into_iter().next()).into_response(),
    })
}

type Resolved = (Wanted, Option<usize>, Option<Arc<Grammar>>);

/// The parameters of each prompt.
async fn resolve(app: &App, params: Option<Value>, prompts: usize) -> Result<Vec<Resolved>> {
    let each = match params.unwrap_or_else(|| Value::Object(Default::default())) {
        Value::Array(each) => each,
        params => return Ok(vec![one(app, params).await?; prompts]),
    };
    if each.len() != prompts {
        let what =
            format!("expected one object, or {prompts} as there are prompts, got {}", each.len());
        return Err(ApiError::field("sampling_params", what));
    }
    let mut all = Vec::new();
    for params in each {
        all.push(one(app, params).await?);
    }
    Ok(all)
}

async fn one(app: &App, params: Value) -> Result<Resolved> {
    // Back to text: errors then name the field.
    let text = params.to_string();
    let mut fields: SamplingFields = parse(text.as_bytes())?;
    let others: Others = parse(text.as_bytes())?;
    fields.min_tokens = others.min_new_tokens.or(fields.min_tokens);
    let wanted = fields.resolve(app)?;
    let grammar = match (others.json_schema, others.regex) {
        (Some(schema), None) => {
            let schema = serde_json::from_str(&schema).map_err(|error| {
                ApiError::field("json_schema", format!("expected JSON as text, got {error}"))
            })?;
            Some(compile(app, grammar::json(schema, false), false, "json_schema").await?)
        }
        (None, Some(regex)) => Some(compile(app, grammar::regex(&regex), false, "regex").await?),
        (None, None) => None,
        (Some(_), Some(_)) => {
            return Err(ApiError::field("regex", "expected it or json_schema, got both"));
        }
    };
    Ok((wanted, others.max_new_tokens, grammar))
}

impl Answer {
    fn generated<'a>(&'a self, index: usize, so: &'a So, streamed: bool) -> Generated<'a> {
        let Choice { id, prompt } = &self.choices[index];
        let end = so.end.as_ref();
        let finish_reason = end.map(|end| match &end.finish {
            Finish::Stop(matched) => Reason::Stop { matched: matched.as_ref() },
            Finish::Length => Reason::Length { length: so.tokens.len() },
        });
        // Log probabilities of a stream come with its end.
        let logprobs = self.logprobs.filter(|_| end.is_some());
        let meta_info = Meta {
            id,
            finish_reason,
            prompt_tokens: prompt.len(),
            completion_tokens: so.tokens.len(),
            cached_tokens: end.and_then(|end| end.counts.cached).unwrap_or(0),
            e2e_latency: end.map(|end| end.seconds),
            logprobs: logprobs.map(|wants| self.logprobs_of(wants, prompt, so)),
        };
        let index = (streamed && self.list).then_some(index);
        Generated { text: &so.text, output_ids: &so.tokens, meta_info, index }
    }

    fn logprobs_of(&self, wants: Wants, prompt: &[u32], so: &So) -> MetaLogprobs {
        let start = wants.start.map_or(prompt.len(), |start| start.min(prompt.len()));
        let of_prompt = so.prompt_logprobs.get(start..).unwrap_or_default();
        let prompt = &prompt[start..];
        let top = |of: &[Option<Logprobs>]| {
            let each = of.iter().map(|of| {
                let top = of.as_ref()?.top.iter();
                Some(top.map(|&(token, of)| self.token(wants, token, Some(of))).collect())
            });
            (wants.top > 0).then(|| each.collect())
        };
        let tokens = |tokens: &[u32], of: &[Option<Logprobs>]| {
            let each = tokens.iter().zip(of);
            each.map(|(&token, of)| self.token(wants, token, of.as_ref().map(|of| of.logprob)))
                .collect()
        };
        MetaLogprobs {
            input_token_logprobs: tokens(prompt, of_prompt),
            output_token_logprobs: tokens(&so.tokens, &so.logprobs),
            input_top_logprobs: top(of_prompt),
            output_top_logprobs: top(&so.logprobs),
        }
    }

    fn token(&self, wants: Wants, token: u32, logprob: Option<f32>) -> Token {
        let text = wants.text.then(|| self.app.text().vocabulary.text(token));
        Token(logprob.map(finite), token, text)
    }
}

impl From<Done> for So {
    fn from(done: Done) -> Self {
        let (tokens, logprobs) = done.tokens.into_iter().unzip();
        let (prompt_logprobs, end) = (done.prompt_logprobs.unwrap_or_default(), Some(done.end));
        Self { text: done.text, tokens, prompt_logprobs, logprobs, end }
    }
}

/// Each event has all of the text so far, as SGLang's clients read it.
struct Streaming {
    answer: Answer,
    so: Vec<So>,
}

impl Format for Streaming {
    fn step(&mut self, index: usize, step: Step, events: &mut Events) {
        let so = &mut self.so[index];
        match step {
            Step::Prompt(of_prompt) => so.prompt_logprobs = of_prompt,
            Step::Output(Output { token, text, end }) => {
                if let Some((token, of)) = token {
                    so.tokens.push(token);
                    so.logprobs.push(of);
                }
                so.text.push_str(&text);
                so.end = end;
                events.push(&self.answer.generated(index, &self.so[index], true));
            }
            Step::Failed(_) => {}
        }
    }
}
