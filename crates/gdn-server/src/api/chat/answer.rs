//! Answers of chats, whole or streamed.

use axum::response::IntoResponse;
use serde::Serialize;

use super::logprobs::{Content, Token};
use crate::{
    App,
    api::Usage,
    body::Json,
    generation::{Counts, Done, End, Finish, Matched, Output, Step},
    id,
    parse::{Delta, Parser, Syntax},
    sse::{Events, Format},
};

/// What all answers to a request share.
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// Whether log probabilities are asked for.
    pub(super) logprobs: bool,
    pub(super) syntax: Syntax,
    pub(super) app: App,
}

#[derive(Serialize)]
struct Completion<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<T>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct Choice<T> {
    index: usize,
    #[serde(flatten)]
    said: T,
    logprobs: Option<Content>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Matched>,
}

#[derive(Serialize)]
struct Whole {
    message: Message,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Default, Serialize)]
struct Piece {
    delta: Said,
}

#[derive(Default, Serialize)]
struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[Call; 1]>,
}

/// A call, or a piece of it.
#[derive(Serialize)]
struct Call {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Call {
    fn begin(index: Option<usize>, name: String) -> Self {
        let function = Function { name: Some(name), arguments: String::new() };
        Self { index, id: Some(id::unique("call")), r#type: Some("function"), function }
    }

    fn more(index: usize, arguments: String) -> Self {
        let function = Function { name: None, arguments };
        Self { index: Some(index), id: None, r#type: None, function }
    }
}

impl Answer {
    fn completion<T>(
        &self,
        object: &'static str,
        choices: Vec<Choice<T>>,
        usage: Option<Usage>,
    ) -> Completion<'_, T> {
        let Self { id, created, model, .. } = self;
        Completion { id, object, created: *created, model, choices, usage }
    }

    pub(super) fn whole(&self, done: Vec<Done>) -> impl IntoResponse + use<> {
        let counts: Vec<Counts> = done.iter().map(|done| done.end.counts).collect();
        let usage = Usage::new(&counts, done.len());
        let choices = done.into_iter().enumerate().map(|(index, done)| {
            let message = self.message(&done.text);
            let logprobs = self.logprobs(done.tokens.iter());
            let calls = !message.tool_calls.is_empty();
            Choice {
                index,
                said: Whole { message },
                logprobs,
                finish_reason: Some(finish_reason(&done.end, calls)),
                stop_reason: done.end.finish.matched().cloned(),
            }
        });
        let choices = choices.collect();
        Json(self.completion("chat.completion", choices, Some(usage))).into_response()
    }

    fn message(&self, text: &str) -> Message {
        let mut parser = Parser::new(&self.syntax);
        let mut deltas = parser.push(text);
        deltas.extend(parser.finish());
        let (mut content, mut reasoning) = (String::new(), None);
        let mut tool_calls: Vec<Call> = Vec::new();
        for delta in deltas {
            match delta {
                Delta::Content(text) => content.push_str(&text),
                Delta::Reasoning(text) => {
                    reasoning.get_or_insert_with(String::new).push_str(&text);
                }
                Delta::Call { name, .. } => tool_calls.push(Call::begin(None, name)),
                Delta::Arguments { json, .. } => {
                    if let Some(call) = tool_calls.last_mut() {
                        call.function.arguments.push_str(&json);
                    }
                }
            }
        }
        let content = (!content.is_empty() || tool_calls.is_empty()).then_some(content);
        Message { role: "assistant", content, reasoning_content: reasoning, tool_calls }
    }

    fn logprobs<'a>(
        &self,
        tokens: impl Iterator<Item = &'a (u32, Option<gdn_engine::Logprobs>)>,
    ) -> Option<Content> {
        let vocabulary = &self.app.text().vocabulary;
        let tokens =
            tokens.filter_map(|(token, of)| Some(Token::new(vocabulary, *token, of.as_ref()?)));
        self.logprobs.then(|| Content { content: tokens.collect() })
    }
}

fn finish_reason(end: &End, calls: bool) -> &'static str {
    match end.finish {
        Finish::Stop(_) if calls => "tool_calls",
        ref finish => finish.name(),
    }
}

pub(super) struct Streaming {
    answer: Answer,
    choices: Vec<State>,
    include_usage: bool,
}

/// Where a choice is.
struct State {
    parser: Parser,
    calls: bool,
    counts: Counts,
}

impl Streaming {
    pub(super) fn new(answer: Answer, choices: usize, include_usage: bool) -> Self {
        let state = || State {
            parser: Parser::new(&answer.syntax),
            calls: false,
            counts: Counts::default(),
        };
        let choices = (0..choices).map(|_| state()).collect();
        Self { answer, choices, include_usage }
    }

    fn send(
        &self,
        index: usize,
        delta: Said,
        logprobs: Option<Content>,
        end: Option<&End>,
        events: &mut Events,
    ) {
        let choice = Choice {
            index,
            said: Piece { delta },
            logprobs,
            finish_reason: end.map(|end| finish_reason(end, self.choices[index].calls)),
            stop_reason: end.and_then(|end| end.finish.matched().cloned()),
        };
        events.push(&self.answer.completion("chat.completion.chunk", vec![choice], None));
    }
}

impl Format for Streaming {
    fn begin(&mut self, events: &mut Events) {
        for index in 0..self.choices.len() {
            let (role, content) = (Some("assistant"), Some(String::new()));
            let delta = Said { role, content, ..Said::default() };
            self.send(index, delta, None, None, events);
        }
    }

    fn step(&mut self, index: usize, step: Step, events: &mut Events) {
        let Step::Output(Output { token, text, end }) = step else { return };
        let state = &mut self.choices[index];
        let mut deltas = state.parser.push(&text);
        if let Some(end) = &end {
            deltas.extend(state.parser.finish());
            state.counts = end.counts;
        }
        state.calls |= deltas.iter().any(|delta| matches!(delta, Delta::Call { .. }));
        let mut said: Vec<Said> = deltas.into_iter().map(Said::of).collect();
        let mut logprobs = self.answer.logprobs(token.iter());
        let alone = logprobs.as_ref().is_some_and(|of| !of.content.is_empty()) || end.is_some();
        if said.is_empty() && alone {
            said.push(Said::default());
        }
        // Log probabilities go with the first delta, the reason to finish with the last.
        let last = said.len().saturating_sub(1);
        for (i, delta) in said.into_iter().enumerate() {
            let end = end.as_ref().filter(|_| i == last);
            self.send(index, delta, logprobs.take(), end, events);
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.include_usage {
            let counts: Vec<Counts> = self.choices.iter().map(|state| state.counts).collect();
            let usage = Usage::new(&counts, counts.len());
            let choices = Vec::<Choice<Piece>>::new();
            events.push(&self.answer.completion("chat.completion.chunk", choices, Some(usage)));
        }
    }
}

impl Said {
    fn of(delta: Delta) -> Self {
        match delta {
            Delta::Content(text) => Self { content: Some(text), ..Self::default() },
            Delta::Reasoning(text) => Self { reasoning_content: Some(text), ..Self::default() },
            Delta::Call { index, name } => {
                Self { tool_calls: Some([Call::begin(Some(index), name)]), ..Self::default() }
            }
            Delta::Arguments { index, json } => {
                Self { tool_calls: Some([Call::more(index, json)]), ..Self::default() }
            }
        }
    }
}
