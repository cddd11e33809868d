//! What is printed beside an answer's text.

use std::io::{self, Write};

use gdn_model::SamplingParams;
use serde::Serialize;

use super::{
    answer::{Answer, Finish},
    source::Loaded,
};

/// Where an answer comes from: the head of the JSON.
#[derive(Serialize)]
pub(crate) struct Origin<'a> {
    version: &'static str,
    model: &'a str,
    load_s: f64,
    sampling: Sampling,
}

#[derive(Serialize)]
struct Sampling {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    seed: u64,
}

impl<'a> Origin<'a> {
    pub(crate) fn new(loaded: &'a Loaded, params: &SamplingParams) -> Self {
        let &SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = params;
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            seed,
        };
        let version = env!("CARGO_PKG_VERSION");
        Self { version, model: &loaded.name, load_s: loaded.load_s, sampling }
    }
}

/// The JSON of one answer.
#[derive(Serialize)]
pub(crate) struct One<'a> {
    #[serde(flatten)]
    pub(crate) origin: Origin<'a>,
    #[serde(flatten)]
    pub(crate) answer: &'a Answer,
}

/// The JSON of the shipped model's questions.
#[derive(Serialize)]
pub(crate) struct Many<'a> {
    #[serde(flatten)]
    pub(crate) origin: Origin<'a>,
    /// How many are right.
    pub(crate) right: usize,
    pub(crate) answers: &'a [Checked],
}

/// An answer that is known to be right or wrong.
#[derive(Serialize)]
pub(crate) struct Checked {
    pub(crate) question: String,
    pub(crate) target: i64,
    pub(crate) right: bool,
    /// Whether Hugging Face transformers gives the same text.
    pub(crate) same_as_transformers: bool,
    #[serde(flatten)]
    pub(crate) answer: Answer,
}

/// Says on stderr what was measured; where that is closed there is nobody to tell.
pub(crate) fn summarise<'a>(loaded: &Loaded, answers: impl Iterator<Item = &'a Answer> + Clone) {
    let sum = |of: &dyn Fn(&Answer) -> f64| answers.clone().map(of).sum::<f64>();
    let count = answers.clone().count().max(1) as f64;
    let prompt = sum(&|answer| answer.prompt_tokens as f64);
    let tokens = sum(&|answer| answer.completion_tokens as f64);
    let ttft = sum(&|answer| answer.ttft_s);
    let decoded = sum(&|answer| answer.completion_tokens.saturating_sub(1) as f64);
    let decode = sum(&|answer| answer.decode_s);
    let each = if count > 1.0 { " on average" } else { "" };
    let mut line = format!(
        "loaded in {:.2} s; {prompt} prompt tokens, first token after {:.3} s{each} ({:.1} tokens/s); {tokens} tokens",
        loaded.load_s,
        ttft / count,
        prompt / ttft.max(1e-9),
    );
    if decoded > 0.0 {
        line += &format!(" at {:.1} tokens/s", decoded / decode.max(1e-9));
    }
    line += match answers.last().map(|answer| answer.finish_reason) {
        Some(Finish::Length) if each.is_empty() => "; cut at the limit of tokens",
        Some(Finish::Interrupted) => "; interrupted",
        _ => "",
    };
    let _ = writeln!(io::stderr(), "{line}");
}
