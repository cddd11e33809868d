//! From a prompt's tokens to an answer.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use gdn_engine::TextOutput;
use gdn_model::{Model, Sampler, SamplingParams, Tokenizer};
use serde::Serialize;

/// Tokens of the prompt that run in one call, between which Ctrl-C is heard.
const PIECE: usize = 512;

/// What is asked of a model.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// At least one.
    pub(crate) prompt: Vec<u32>,
    pub(crate) params: SamplingParams,
    /// At least one.
    pub(crate) max_new_tokens: usize,
    pub(crate) stop: &'a [String],
    pub(crate) eos: &'a [u32],
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Finish {
    /// A token or a text that ends answers.
    Stop,
    /// As many tokens as were asked for, or as the model has positions.
    Length,
    Interrupted,
}

/// An answer, and what it took.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// All that were generated, the one that ended the answer too.
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish_reason: Finish,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// From the start to the first token.
    pub(crate) ttft_s: f64,
    pub(crate) prompt_tokens_per_s: f64,
    /// From the first token to the last.
    pub(crate) decode_s: f64,
    /// Of the tokens behind the first, if there are any.
    pub(crate) tokens_per_s: Option<f64>,
}

/// Answers, and shows text as it comes.
pub(crate) fn answer(
    model: &mut Model,
    tokenizer: &Tokenizer,
    request: Request<'_>,
    interrupted: &AtomicBool,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let Request { prompt: mut history, params, max_new_tokens, stop, eos } = request;
    let prompt_len = history.len();
    let limit = model.config().max_positions;
    let mut sampler = Sampler::new(params, prompt_len)?;
    let mut output = TextOutput::new(tokenizer, stop);
    let mut text = String::new();
    let mut add = |piece: &str| -> io::Result<()> {
        text.push_str(piece);
        if piece.is_empty() { Ok(()) } else { show(piece) }
    };

    let start = Instant::now();
    let mut sequence = model.sequence()?;
    let mut logits = Vec::new();
    for piece in history.chunks(PIECE) {
        logits = model.forward(&mut sequence, piece)?;
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    let mut ttft = start.elapsed();
    let mut last = ttft;
    let finish_reason = loop {
        if interrupted.load(Ordering::Relaxed) {
            break Finish::Interrupted;
        }
        let token = sampler.sample(&mut logits, &history)?;
        last = start.elapsed();
        if history.len() == prompt_len {
            ttft = last;
        }
        history.push(token);
        if eos.contains(&token) {
            break Finish::Stop;
        }
        let (piece, found) = output.push(token)?;
        add(&piece)?;
        if found {
            break Finish::Stop;
        }
        if history.len() - prompt_len == max_new_tokens || sequence.len() == limit {
            break Finish::Length;
        }
        logits = model.forward(&mut sequence, &[token])?;
    };
    add(&output.finish())?;

    let tokens = history.split_off(prompt_len);
    Ok(Answer {
        completion_tokens: tokens.len(),
        finish_reason,
        prompt_tokens: prompt_len,
        ttft_s: ttft.as_secs_f64(),
        prompt_tokens_per_s: rate(prompt_len, ttft),
        decode_s: (last - ttft).as_secs_f64(),
        tokens_per_s: (tokens.len() > 1).then(|| rate(tokens.len() - 1, last - ttft)),
        text,
        tokens,
    })
}

fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}
