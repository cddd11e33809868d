//! The rows of the tables.

use std::time::Instant;

use gdn::DType;
use gdn_model::{Logits, Model, Operator, Sequence, Turn};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde::Serialize;

use super::{BenchModelArgs, WARM_UP, yardstick::Yardstick};

/// A prompt.
#[derive(Debug, Serialize)]
pub(super) struct PrefillRow {
    pub(super) tokens: usize,
    pub(super) ms: f64,
    pub(super) tokens_per_s: f64,
}

/// Decode of a batch.
#[derive(Debug, Serialize)]
pub(super) struct DecodeRow {
    pub(super) batch: usize,
    pub(super) median_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) tokens_per_s: f64,
    pub(super) bytes: f64,
    pub(super) memory_gb_per_s: f64,
    pub(super) floor_ms: f64,
    /// Milliseconds of each kind of operator alone, if asked for.
    pub(super) operators: Vec<OperatorMs>,
    /// The same batch with a piece of a prompt beside it.
    pub(super) mixed: Vec<MixedRow>,
}

/// Decode of a batch, and a prompt's first tokens in the same step.
#[derive(Debug, Serialize)]
pub(super) struct MixedRow {
    pub(super) piece: usize,
    pub(super) median_ms: f64,
    pub(super) p99_ms: f64,
    /// How many times as long as without the piece.
    pub(super) stretch: f64,
    pub(super) operators: Vec<OperatorMs>,
}

#[derive(Debug, Serialize)]
pub(super) struct OperatorMs {
    pub(super) operator: String,
    pub(super) ms: f64,
}

pub(super) fn prefill(
    model: &mut Model,
    args: &BenchModelArgs,
    tokens: usize,
) -> anyhow::Result<PrefillRow> {
    let mut times = Vec::new();
    // The first one warms up.
    for round in 0..=args.repeats {
        let prompt = prompt(model, args, round, tokens);
        let mut sequence = model.sequence()?;
        let begin = Instant::now();
        model.generate_greedy(&mut sequence, &prompt, 1, &[])?;
        if round > 0 {
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    let seconds = quantile(&mut times, 0.5);
    Ok(PrefillRow { tokens, ms: 1e3 * seconds, tokens_per_s: tokens as f64 / seconds })
}

pub(super) fn decode(
    model: &mut Model,
    args: &BenchModelArgs,
    batch: usize,
    yardstick: &mut Yardstick,
) -> anyhow::Result<DecodeRow> {
    let mut sequences = Vec::new();
    let mut tokens = Vec::new();
    for i in 0..batch {
        let prompt = prompt(model, args, i, args.context);
        let mut sequence = model.sequence()?;
        tokens.extend(model.generate_greedy(&mut sequence, &prompt, 1, &[])?);
        sequences.push(sequence);
    }
    for _ in 0..WARM_UP {
        step(model, &mut sequences, &mut tokens, &[])?;
    }
    let memory = yardstick.bytes_per_s()?;
    let mut times = timed(model, args.steps, &mut sequences, &mut tokens, &[])?;
    let median = quantile(&mut times, 0.5);
    // Half of the steps have fewer tokens behind them.
    let context = args.context + WARM_UP + args.steps / 2;
    let bytes = model.config().step_bytes(batch, context, activations(args)).total();
    Ok(DecodeRow {
        batch,
        median_ms: 1e3 * median,
        p99_ms: 1e3 * quantile(&mut times, 0.99),
        tokens_per_s: batch as f64 / median,
        bytes,
        memory_gb_per_s: memory / 1e9,
        floor_ms: 1e3 * bytes / memory,
        operators: profile(model, args, &mut sequences, &tokens, &[])?,
        mixed: args
            .prompt_pieces
            .iter()
            .map(|&piece| mixed(model, args, piece, median, &mut sequences, &mut tokens))
            .collect::<Result<_, _>>()?,
    })
}

fn mixed(
    model: &mut Model,
    args: &BenchModelArgs,
    piece: usize,
    decode_s: f64,
    sequences: &mut [Sequence],
    tokens: &mut Vec<u32>,
) -> anyhow::Result<MixedRow> {
    let piece = prompt(model, args, usize::MAX, piece);
    timed(model, WARM_UP, sequences, tokens, &piece)?;
    let mut times = timed(model, args.steps, sequences, tokens, &piece)?;
    let median = quantile(&mut times, 0.5);
    Ok(MixedRow {
        piece: piece.len(),
        median_ms: 1e3 * median,
        p99_ms: 1e3 * quantile(&mut times, 0.99),
        stretch: median / decode_s,
        operators: profile(model, args, sequences, tokens, &piece)?,
    })
}

/// The seconds of some steps.
fn timed(
    model: &mut Model,
    steps: usize,
    sequences: &mut [Sequence],
    tokens: &mut Vec<u32>,
    piece: &[u32],
) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..steps {
        times.push(step(model, sequences, tokens, piece)?);
    }
    Ok(times)
}

/// Empty unless it is asked for.
fn profile(
    model: &mut Model,
    args: &BenchModelArgs,
    sequences: &mut [Sequence],
    tokens: &[u32],
    piece: &[u32],
) -> anyhow::Result<Vec<OperatorMs>> {
    let mut operators = Vec::new();
    if !args.profile {
        return Ok(operators);
    }
    for operator in Operator::ALL {
        model.only(Some(operator));
        // Always the same tokens: those that come out mean nothing.
        let mut times = Vec::new();
        for round in 0..WARM_UP + PROFILED {
            let time = timed(model, 1, sequences, &mut tokens.to_vec(), piece)?;
            times.extend((round >= WARM_UP).then_some(time).into_iter().flatten());
        }
        let ms = 1e3 * quantile(&mut times, 0.5);
        operators.push(OperatorMs { operator: format!("{operator:?}"), ms });
    }
    model.only(None);
    Ok(operators)
}

/// Steps of each operator in a profile.
const PROFILED: usize = 9;

/// One token of each sequence, and the first of a new one, if there is a `piece`; tokens that
/// follow replace them. The seconds that took.
fn step(
    model: &mut Model,
    sequences: &mut [Sequence],
    tokens: &mut Vec<u32>,
    piece: &[u32],
) -> anyhow::Result<f64> {
    let mut prompt = match piece.is_empty() {
        true => None,
        false => Some(model.sequence()?),
    };
    let turns = sequences.iter_mut().zip(&*tokens);
    let mut turns: Vec<_> = turns
        .map(|(sequence, token)| Turn {
            sequence,
            tokens: std::slice::from_ref(token),
            logits: Logits::Last,
        })
        .collect();
    turns.extend(prompt.as_mut().map(|sequence| Turn {
        sequence,
        tokens: piece,
        logits: Logits::Nothing,
    }));
    let begin = Instant::now();
    let next = model.step_tokens(&mut turns, &[])?;
    let seconds = begin.elapsed().as_secs_f64();
    *tokens = next;
    Ok(seconds)
}

/// Random tokens, others each round.
fn prompt(model: &Model, args: &BenchModelArgs, round: usize, tokens: usize) -> Vec<u32> {
    let mut rng = SmallRng::seed_from_u64(u64::from(args.seed) << 32 | round as u64);
    let vocab = model.config().vocab_size as u32;
    (0..tokens).map(|_| rng.random_range(0..vocab)).collect()
}

fn activations(args: &BenchModelArgs) -> DType {
    match args.backend.place() {
        gdn::Place::Host => DType::F32,
        gdn::Place::Cuda(_) => DType::BF16,
    }
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[(part * (values.len() - 1) as f64).round() as usize]
}
