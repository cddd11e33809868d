//! The command line of `gdn bench-model`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gdn::{DecodePath, PrefillForm};

use crate::{
    backend::BackendArgs,
    cli::{at_least_one, path},
};

/// Time a whole model: prefill and decode, beside the floor
///
/// With --preset the model has the shapes of a published one and weights that are
/// made up, so any size can be timed without a checkpoint; such weights route tokens
/// to experts at random, and their text means nothing.
///
/// A line of prefill is a prompt of random tokens in a sequence of its own. A line of
/// decode is a batch of sequences, each with a prompt of --context tokens behind it,
/// that all take --steps more, the most likely ones:
///
///   ms/step   the median of the steps
///   P99       99 of 100 steps are not slower
///   tok/s     tokens of all sequences together, at the median
///   GB        what a step must move: weights, of experts those that are taken,
///             states read and written, keys and values
///   floor ms  that over the rate at which memory was seen to move right before:
///             reading on the CPU, copying (both ways counted) on a GPU
///   of floor  floor over median
///
/// With --prompt-pieces, a line below each batch for every piece: the same steps with so
/// many tokens of a prompt beside the batch, and how many times as long they take.
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  gdn bench-model                                    Qwen3.5-0.8B on the CPU
  gdn bench-model --backend cuda --preset qwen3.5-35b-a3b --batch-sizes 1,16,32,128
  gdn bench-model --model Qwen3.5-0.8B --json model.json

Exit codes: 0 measured, 1 something went wrong, 2 bad usage."
)]
pub(crate) struct BenchModelArgs {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,

    /// The shapes of a published model, with made-up weights
    #[arg(long, value_name = "NAME", default_value = "qwen3.5-0.8b",
          value_parser = clap::builder::PossibleValuesParser::new(gdn_model::PRESETS))]
    pub(crate) preset: String,

    /// A folder with a model, in place of --preset
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    pub(crate) model: Option<String>,

    /// Where the weights of --model come from
    #[arg(long, value_enum, default_value_t, requires = "model")]
    pub(crate) load_format: LoadFormat,

    /// Batch sizes of decode, a line each
    #[arg(long, value_name = "B,..", value_delimiter = ',', value_parser = at_least_one(),
          default_value = "1,4,16")]
    pub(crate) batch_sizes: Vec<usize>,

    /// Tokens that each sequence has before decode is timed
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one(), default_value = "128")]
    pub(crate) context: usize,

    /// Decode steps to time
    #[arg(long, value_parser = at_least_one(), default_value = "32")]
    pub(crate) steps: usize,

    /// Lengths of prompts, a line each
    #[arg(long, value_name = "TOKENS,..", value_delimiter = ',', value_parser = at_least_one(),
          default_value = "128,512")]
    pub(crate) prompt_lens: Vec<usize>,

    /// Tokens of a prompt beside each decode step, a line below every batch each
    #[arg(long, value_name = "TOKENS,..", value_delimiter = ',', value_parser = at_least_one())]
    pub(crate) prompt_pieces: Vec<usize>,

    /// How often each prompt is run; the median counts
    #[arg(long, value_parser = at_least_one(), default_value = "5")]
    pub(crate) repeats: usize,

    /// How Gated DeltaNet layers take one token of each sequence
    #[arg(long, env = "GDN_PATH", default_value = "fused", value_parser = path())]
    pub(crate) path: DecodePath,

    /// How Gated DeltaNet layers take prompts
    #[arg(long, default_value = "chunked", value_parser = form)]
    pub(crate) prefill: PrefillForm,

    /// Time each kind of operator alone, too: a line of milliseconds for each
    ///
    /// A step is run without the others, so what they overlap with, and what caches
    /// keep from one to the next, is not in it.
    #[arg(long)]
    pub(crate) profile: bool,

    /// What made-up weights and tokens come from
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u32,

    /// Write the measurements, the machine and the command to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw decode and its floor, and prefill, to this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    /// The *.safetensors of the folder
    #[default]
    #[value(alias = "auto")]
    Safetensors,
    /// Made up; the folder needs a config.json alone
    Dummy,
}

impl BenchModelArgs {
    /// What is timed.
    pub(crate) fn name(&self) -> String {
        let name = self.model.as_ref().unwrap_or(&self.preset);
        match self.model.is_none() || self.load_format == LoadFormat::Dummy {
            true => format!("{name}, made-up weights"),
            false => name.clone(),
        }
    }
}

pub(crate) fn form(name: &str) -> Result<PrefillForm, String> {
    match name {
        "recurrent" => Ok(PrefillForm::Recurrent),
        "chunked" => Ok(PrefillForm::Chunked),
        _ => Err("expected recurrent or chunked".to_owned()),
    }
}
