//! An answer on its way: tokens of the engine become text.

use std::{sync::Arc, time::Instant};

use futures_util::{FutureExt, future::join_all};
use gdn_engine::{
    Answer, Constraint, Event, FinishReason, Finished, Logprobs, Request, TextOutput,
};
use gdn_model::{Model, Tokenizer};
use serde::Serialize;

use crate::{
    App,
    constraint::Grammar,
    error::{ApiError, Result},
    fields::Wanted,
    metrics::Clock,
};

/// A prompt, and what is asked of it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) logprobs: Option<usize>,
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) grammar: Option<Arc<Grammar>>,
    pub(crate) checkpoint: Option<usize>,
}

/// An answer that the engine works on. Dropping it ends the work.
#[derive(Debug)]
pub(crate) struct Job {
    /// `None` once it is over.
    answer: Option<Answer>,
    output: TextOutput,
    /// What came already.
    peeked: Option<Event>,
    tokenizer: Tokenizer,
    wanted: Wanted,
    prompt_tokens: usize,
    /// Of the prompt, once it is known.
    cached_tokens: Option<usize>,
    tokens: Vec<u32>,
    /// Bytes of text that were given out.
    shown: usize,
    clock: Clock,
}

/// What comes of a job, in this order.
#[derive(Debug)]
pub(crate) enum Step {
    /// The log probabilities of the prompt, if they were asked for.
    Prompt(Vec<Option<Logprobs>>),
    /// A token, text, or the end: at least one of them.
    Output(Output),
    /// In place of an end.
    Failed(ApiError),
}

/// A token, and the text that is certain with it.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) token: Option<(u32, Option<Logprobs>)>,
    pub(crate) text: String,
    pub(crate) end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    pub(crate) counts: Counts,
    /// Seconds since the request came.
    pub(crate) seconds: f64,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    Stop(Option<Matched>),
    Length,
}

/// What ended an answer; none for what ends all answers of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Matched {
    Token(u32),
    Text(String),
}

/// Tokens of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) prompt: usize,
    /// Of the prompt, those that were cached, if it is known.
    pub(crate) cached: Option<usize>,
    pub(crate) completion: usize,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    pub(crate) tokens: Vec<(u32, Option<Logprobs>)>,
    pub(crate) text: String,
    pub(crate) end: End,
}

impl Finish {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
        }
    }

    pub(crate) fn matched(&self) -> Option<&Matched> {
        match self {
            Self::Stop(matched) => matched.as_ref(),
            Self::Length => None,
        }
    }
}

/// Hands prompts to the engine, `n` times each; all of them or none. Errors call the
/// prompts `param`.
pub(crate) fn submit(
    app: &App,
    wanted: &Wanted,
    asks: &[Ask],
    arrival: Instant,
    param: &'static str,
) -> Result<Vec<Job>> {
    let each = asks.iter().flat_map(|ask| (0..wanted.n).map(move |choice| (ask, choice)));
    each.map(|(ask, choice)| Job::submit(app, wanted, ask, choice, arrival, param)).collect()
}

/// All of some answers.
///
/// # Errors
/// The first failure; the rest is dropped then.
pub(crate) async fn collect(jobs: Vec<Job>) -> Result<Vec<Done>> {
    let all = join_all(jobs.into_iter().map(Job::collect)).await;
    all.into_iter().collect()
}

impl Job {
    fn submit(
        app: &App,
        wanted: &Wanted,
        ask: &Ask,
        choice: usize,
        arrival: Instant,
        param: &'static str,
    ) -> Result<Self> {
        let mut sampling = wanted.sampling.clone();
        // Each its own random numbers.
        sampling.seed = sampling.seed.wrapping_add(choice as u64);
        let constraint = ask.grammar.as_ref().map(|grammar| grammar.start()).transpose()?;
        // The other answers start there, if the first one runs before they come.
        let pages = ask.prompt.len().saturating_sub(1) / Model::PAGE_TOKENS;
        let repeated = (wanted.n > 1).then_some(pages * Model::PAGE_TOKENS);
        let request = Request {
            prompt: ask.prompt.clone(),
            sampling,
            max_tokens: ask.max_tokens,
            min_tokens: wanted.min_tokens,
            stop_tokens: wanted.stop_tokens.to_vec(),
            logprobs: ask.logprobs,
            prompt_logprobs: ask.prompt_logprobs,
            constraint: constraint.map(|constraint| Box::new(constraint) as Box<dyn Constraint>),
            checkpoint: ask.checkpoint.or(repeated),
        };
        let answer = app.engine().submit(request);
        let answer = answer.map_err(|error| ApiError::submit(error, param))?;
        let tokenizer = app.text().tokenizer.clone();
        let output = match wanted.skip_special {
            true => TextOutput::new(&tokenizer, &wanted.stop),
            false => TextOutput::with_special(&tokenizer, &wanted.stop),
        };
        Ok(Self {
            answer: Some(answer),
            output,
            peeked: None,
            tokenizer,
            wanted: wanted.clone(),
            prompt_tokens: ask.prompt.len(),
            cached_tokens: None,
            tokens: Vec::new(),
            shown: 0,
            clock: Clock::start(app.metrics(), arrival),
        })
    }

    /// The next step, and none behind the end.
    pub(crate) async fn next(&mut self) -> Option<Step> {
        let answer = self.answer.as_mut()?;
        let mut event = match self.peeked.take() {
            Some(event) => Some(event),
            None => answer.recv().await,
        };
        if let Some(Event::Started { cached_tokens }) = event {
            self.cached_tokens = Some(cached_tokens);
            event = answer.recv().await;
        }
        Some(match event {
            Some(Event::Started { .. }) => self.fail(ApiError::failed("it started twice")),
            Some(Event::Prompt(logprobs)) => Step::Prompt(logprobs),
            Some(Event::Token { token, logprobs }) => self.token(token, logprobs),
            Some(Event::Finished(finished)) => match self.finish(finished) {
                Ok((text, end)) => Step::Output(Output { token: None, text, end: Some(end) }),
                Err(error) => Step::Failed(error),
            },
            None => self.fail(ApiError::failed("the engine has died; restart the server")),
        })
    }

    async fn collect(mut self) -> Result<Done> {
        let (mut prompt_logprobs, mut tokens, mut text) = (None, Vec::new(), String::new());
        while let Some(step) = self.next().await {
            match step {
                Step::Prompt(logprobs) => prompt_logprobs = Some(logprobs),
                Step::Failed(error) => return Err(error),
                Step::Output(output) => {
                    tokens.extend(output.token);
                    text.push_str(&output.text);
                    if let Some(end) = output.end {
                        return Ok(Done { prompt_logprobs, tokens, text, end });
                    }
                }
            }
        }
        Err(ApiError::failed("an answer without an end"))
    }

    fn token(&mut self, token: u32, logprobs: Option<Logprobs>) -> Step {
        self.clock.token();
        self.tokens.push(token);
        // A token that ends the answer is no text of it.
        let ends = self.wanted.stop_tokens.contains(&token);
        let pushed = if ends { Ok((String::new(), false)) } else { self.output.push(token) };
        let (mut text, found) = match pushed {
            Ok(pushed) => pushed,
            Err(error) => return self.fail(ApiError::failed(error.to_string())),
        };
        self.shown += text.len();
        let mut end = None;
        if found {
            let matched = self.matched().map(Matched::Text);
            end = Some(self.end(Finish::Stop(matched), self.counts()));
        } else {
            // The end often comes with the last token.
            self.peeked = self.answer.as_mut().and_then(|answer| answer.recv().now_or_never()?);
            if let Some(Event::Finished(finished)) =
                self.peeked.take_if(|event| matches!(event, Event::Finished(f) if is_good(f)))
                && let Ok((rest, its)) = self.finish(finished)
            {
                text.push_str(&rest);
                end = Some(its);
            }
        }
        Step::Output(Output { token: Some((token, logprobs)), text, end })
    }

    /// What is left of the text, and the end.
    fn finish(&mut self, finished: Finished) -> Result<(String, End)> {
        let counts = Counts {
            prompt: finished.prompt_tokens,
            cached: Some(finished.cached_tokens),
            completion: finished.completion_tokens,
        };
        let finish = match finished.reason {
            FinishReason::Stop => {
                let last = self.tokens.last().copied();
                let named = |token: &u32| {
                    self.wanted.stop_tokens.contains(token) && !self.wanted.eos.contains(token)
                };
                Finish::Stop(last.filter(named).map(Matched::Token))
            }
            FinishReason::Length => Finish::Length,
            FinishReason::Aborted => {
                self.close("abort");
                return Err(ApiError::stopping());
            }
            FinishReason::Failed(reason) => {
                self.close("error");
                return Err(ApiError::failed(reason));
            }
        };
        let rest = self.output.finish();
        Ok((rest, self.end(finish, counts)))
    }

    fn counts(&self) -> Counts {
        let (prompt, cached) = (self.prompt_tokens, self.cached_tokens);
        Counts { prompt, cached, completion: self.tokens.len() }
    }

    fn end(&mut self, finish: Finish, counts: Counts) -> End {
        let seconds = self.clock.elapsed().as_secs_f64();
        self.close(finish.name());
        End { finish, counts, seconds }
    }

    fn fail(&mut self, error: ApiError) -> Step {
        self.close("error");
        Step::Failed(error)
    }

    fn close(&mut self, reason: &'static str) {
        self.clock.end(reason);
        self.answer = None;
    }

    /// The text that ended the answer, which follows what was given out of it.
    fn matched(&self) -> Option<String> {
        let mut stream = self.tokenizer.stream();
        if self.wanted.skip_special {
            stream = stream.skip_special();
        }
        let pieces = self.tokens.iter().filter_map(|&token| stream.push(token).ok()?);
        let text: String = pieces.collect();
        let rest = text.get(self.shown..)?;
        let stops = self.wanted.stop.iter().filter(|stop| rest.starts_with(stop.as_str()));
        stops.max_by_key(|stop| stop.len()).cloned()
    }
}

fn is_good(finished: &Finished) -> bool {
    matches!(finished.reason, FinishReason::Stop | FinishReason::Length)
}
