//! `POST /v1/completions`.

mod logprobs;

use std::time::Instant;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use self::logprobs::Logprobs;
use super::{Usage, chat::ResponseFormat};
use crate::{
    App,
    body::{Body, Json},
    error::{ApiError, Result},
    fields::{Prompts, SamplingFields, StreamOptions, Wanted, in_range, max_tokens},
    generation::{Ask, Counts, Done, End, Matched, Output, Step, collect, submit},
    id, limits, numbers,
    sse::{Events, Format, stream},
};

/// What OpenAI's API generates if nobody says how much.
const MAX_TOKENS: usize = 16;

#[derive(Debug, Deserialize)]
struct Fields {
    model: Option<String>,
    prompt: Prompts,
    #[serde(default, deserialize_with = "numbers::whole")]
    max_tokens: Option<usize>,
    #[serde(default, deserialize_with = "numbers::whole")]
    best_of: Option<usize>,
    echo: Option<bool>,
    #[serde(default, deserialize_with = "numbers::whole")]
    logprobs: Option<usize>,
    suffix: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Matched>,
}

/// A prompt as it came, and what its answers begin with if it is echoed.
struct Prompt {
    tokens: Vec<u32>,
    echo: Option<String>,
}

pub(super) async fn completions(State(app): State<App>, body: Body) -> Result<Response> {
    let arrival = Instant::now();
    let fields: Fields = body.read().await?;
    let wanted = body.read::<SamplingFields>().await?.resolve(&app)?;
    drop(body);
    app.check_model(fields.model.as_deref())?;
    check(&fields, &wanted)?;
    let echo = fields.echo.unwrap_or(false);
    let grammar = match fields.response_format {
        Some(format) => format.compile(&app, false).await?,
        None => None,
    };
    let (mut prompts, mut asks) = (Vec::new(), Vec::new());
    for (tokens, text) in fields.prompt.encode(&app).await? {
        let names = ["prompt", "max_tokens"];
        let max_tokens = max_tokens(&app, tokens.len(), fields.max_tokens, MAX_TOKENS, names)?;
        // Nothing is generated, so there must be something else to do.
        let least = (max_tokens == 0).then_some(0);
        asks.push(Ask {
            prompt: tokens.clone(),
            max_tokens,
            logprobs: fields.logprobs,
            prompt_logprobs: fields.logprobs.filter(|_| echo).or(least),
            grammar: grammar.clone(),
            checkpoint: None,
        });
        let echo = match (echo, text) {
            (false, _) => None,
            (true, Some(text)) => Some(text),
            (true, None) => Some(app.text().tokenizer.decode(&tokens).map_err(ApiError::model)?),
        };
        prompts.push(Prompt { tokens, echo });
    }
    let jobs = submit(&app, &wanted, &asks, arrival, "prompt")?;
    let options = fields.stream_options.unwrap_or_default();
    let answer = Answer {
        id: id::unique("cmpl"),
        created: id::now(),
        model: app.options().served_model_name.clone(),
        n: wanted.n,
        logprobs: fields.logprobs.is_some(),
        app,
        prompts,
    };
    if fields.stream.unwrap_or(false) {
        let format = Streaming {
            choices: (0..jobs.len()).map(|_| Place::default()).collect(),
            include_usage: options.include_usage.unwrap_or(false),
            answer,
        };
        return Ok(stream(jobs, format));
    }
    let done = collect(jobs).await?;
    Ok(answer.whole(done).into_response())
}

fn check(fields: &Fields, wanted: &Wanted) -> Result<()> {
    in_range("prompt", fields.prompt.len(), 1, limits::PROMPTS)?;
    let answers = fields.prompt.len() * wanted.n;
    if answers > limits::PROMPTS {
        let what = format!("expected at most {} answers in all, got {answers}", limits::PROMPTS);
        return Err(ApiError::field("n", what));
    }
    in_range("logprobs", fields.logprobs.unwrap_or(0), 0, limits::TOP_LOGPROBS)?;
    if let Some(best_of) = fields.best_of.filter(|&best_of| best_of != 1 && best_of != wanted.n) {
        let what = format!("expected 1, or n = {}, got {best_of}", wanted.n);
        return Err(ApiError::field("best_of", what));
    }
    match &fields.suffix {
        Some(suffix) if !suffix.is_empty() => {
            Err(ApiError::field("suffix", "expected none: models write on from a prompt alone"))
        }
        _ => Ok(()),
    }
}

/// What all of the answers to a request share.
struct Answer {
    id: String,
    created: u64,
    model: String,
    n: usize,
    /// Whether log probabilities are asked for.
    logprobs: bool,
    app: App,
    prompts: Vec<Prompt>,
}

impl Answer {
    fn completion(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Completion<'_> {
        let Self { id, created, model, .. } = self;
        Completion { id, object: "text_completion", created: *created, model, choices, usage }
    }

    fn whole(&self, done: Vec<Done>) -> impl IntoResponse {
        let counts: Vec<Counts> = done.iter().map(|done| done.end.counts).collect();
        let choices = done.into_iter().enumerate().map(|(index, done)| {
            let prompt = &self.prompts[index / self.n];
            let logprobs = self.logprobs.then(|| {
                let mut logprobs = Logprobs::default();
                if let (Some(_), Some(of_prompt)) = (&prompt.echo, &done.prompt_logprobs) {
                    let tokens = prompt.tokens.iter().copied().zip(of_prompt);
                    tokens.for_each(|(token, of)| self.push(&mut logprobs, token, of.as_ref()));
                }
                for (token, of) in &done.tokens {
                    self.push(&mut logprobs, *token, of.as_ref());
                }
                logprobs
            });
            let text = match &prompt.echo {
                Some(echo) => echo.clone() + &done.text,
                None => done.text,
            };
            choice(index, text, logprobs, Some(&done.end))
        });
        let usage = Usage::new(&counts, self.n);
        Json(self.completion(choices.collect(), Some(usage))).into_response()
    }

    fn push(&self, to: &mut Logprobs, token: u32, of: Option<&gdn_engine::Logprobs>) {
        to.push(&self.app.text().vocabulary, token, of);
    }
}

fn choice(index: usize, text: String, logprobs: Option<Logprobs>, end: Option<&End>) -> Choice {
    let finish = end.map(|end| &end.finish);
    Choice {
        index,
        text,
        logprobs,
        finish_reason: finish.map(|finish| finish.name()),
        stop_reason: finish.and_then(|finish| finish.matched().cloned()),
    }
}

struct Streaming {
    answer: Answer,
    choices: Vec<Place>,
    include_usage: bool,
}

/// Where a choice is.
#[derive(Default)]
struct Place {
    /// Characters of its tokens so far.
    offset: usize,
    counts: Counts,
}

impl Streaming {
    fn send(&self, choice: Choice, events: &mut Events) {
        events.push(&self.answer.completion(vec![choice], None));
    }

    fn logprobs<'a>(
        &mut self,
        index: usize,
        tokens: impl Iterator<Item = (u32, Option<&'a gdn_engine::Logprobs>)>,
    ) -> Option<Logprobs> {
        if !self.answer.logprobs {
            return None;
        }
        let mut logprobs = Logprobs::from_offset(self.choices[index].offset);
        tokens.for_each(|(token, of)| self.answer.push(&mut logprobs, token, of));
        self.choices[index].offset = logprobs.offset();
        Some(logprobs)
    }
}

impl Format for Streaming {
    fn begin(&mut self, events: &mut Events) {
        if self.answer.logprobs {
            // The text comes with its log probabilities.
            return;
        }
        for index in 0..self.choices.len() {
            if let Some(echo) = self.answer.prompts[index / self.answer.n].echo.clone() {
                self.send(choice(index, echo, None, None), events);
            }
        }
    }

    fn step(&mut self, index: usize, step: Step, events: &mut Events) {
        match step {
            Step::Prompt(of_prompt) if self.answer.logprobs => {
                let prompt = &self.answer.prompts[index / self.answer.n];
                let Some(echo) = prompt.echo.clone() else { return };
                let tokens = prompt.tokens.clone();
                let tokens = tokens.into_iter().zip(of_prompt.iter().map(Option::as_ref));
                let logprobs = self.logprobs(index, tokens);
                self.send(choice(index, echo, logprobs, None), events);
            }
            Step::Output(Output { token, text, end }) => {
                let tokens = token.iter().map(|(token, of)| (*token, of.as_ref()));
                let logprobs = self.logprobs(index, tokens);
                if let Some(end) = &end {
                    self.choices[index].counts = end.counts;
                }
                self.send(choice(index, text, logprobs, end.as_ref()), events);
            }
            Step::Prompt(_) | Step::Failed(_) => {}
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.include_usage {
            let counts: Vec<Counts> = self.choices.iter().map(|place| place.counts).collect();
            let usage = Usage::new(&counts, self.answer.n);
            events.push(&self.answer.completion(Vec::new(), Some(usage)));
        }
    }
}
