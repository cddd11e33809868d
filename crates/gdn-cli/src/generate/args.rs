//! The flags of `gdn generate`.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    str::FromStr,
};

use clap::Args;
use gdn_model::{Error, SamplingParams};

use crate::{backend::BackendArgs, cli::at_least_one, output::Usage};

/// Generate text with a model
///
/// Takes a folder as it is published (config.json, *.safetensors, tokenizer.json), or
/// an id that is in the local cache of Hugging Face's tools or can be fetched into
/// it. The prompt becomes a conversation by the model's chat template, unless --raw
/// is given. How tokens are chosen is what generation_config.json says; flags go
/// before it.
///
/// Without --model it runs a tiny model that comes with this command. It was trained
/// to add two digits and to recall named values. Without --prompt it is asked some
/// questions, and the answers are checked.
///
/// Text goes to stdout as it comes, what was measured to stderr. Ctrl-C ends the
/// answer; pressed again, the command.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gdn generate                                     ask the model that comes with it
  gdn generate --prompt 'What is 4 + 5?'
  gdn generate --model ./Qwen3.5-0.8B --prompt 'Why is the sky blue?'
  gdn generate --model ./Qwen3.5-35B-A3B --backend cuda --prompt 'Why is the sky blue?'
  gdn generate --model org/name --prompt - --no-thinking < question.txt
  gdn generate --model ./Qwen3.5-0.8B --raw --prompt 'Once upon' --temperature 0 \\
               --max-new-tokens 64 --stop $'\\n\\n' --json

Exit codes: 0 done, 1 something went wrong, 2 bad usage, 130 interrupted.")]
pub(crate) struct GenerateArgs {
    /// The folder of a model, or its id, org/name [default: the one that comes with
    /// this command]
    #[arg(long, value_name = "FOLDER|ID")]
    pub(crate) model: Option<String>,

    /// What to say to the model; - reads it from stdin
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,

    /// Give the prompt to the model as it is, without a chat template
    #[arg(long, requires = "prompt", conflicts_with_all = ["system", "no_thinking"])]
    pub(crate) raw: bool,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "model")]
    pub(crate) system: Option<String>,

    /// Have the model answer without thinking first
    #[arg(long, requires = "model")]
    pub(crate) no_thinking: bool,

    /// Generate at most this many tokens
    #[arg(long, visible_alias = "max-tokens", value_name = "N", default_value = "512",
          value_parser = at_least_one(), allow_negative_numbers = true)]
    pub(crate) max_new_tokens: usize,

    /// End the answer before this text; can be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = some_text)]
    pub(crate) stop: Vec<String>,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) backend: BackendArgs,

    /// Print one JSON object: the text, its tokens, why it ends, times
    #[arg(long)]
    pub(crate) json: bool,
}

/// How tokens are chosen.
#[derive(Args, Debug)]
pub(crate) struct SamplingArgs {
    /// Divide logits by this; 0 takes the most likely token each time
    #[arg(long, value_name = "T", value_parser = number, allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Draw from this many most likely tokens; 0 from all
    #[arg(long, value_name = "K", value_parser = whole::<usize>,
          allow_negative_numbers = true)]
    top_k: Option<usize>,

    /// Draw from the most likely tokens that make up this share, 0 to 1
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Draw from tokens at least this many times as likely as the most likely, 0 to 1
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Divide the logits of tokens that were there before; 1 changes nothing
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// Subtract this from logits of tokens that were generated before, -2 to 2
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,

    /// Subtract this each time that the token was generated before, -2 to 2
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,

    /// What random numbers come from [default: another one each time]
    #[arg(long, value_name = "N", value_parser = whole::<u64>,
          allow_negative_numbers = true)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// These flags before `default`.
    pub(crate) fn over(&self, default: SamplingParams) -> Result<SamplingParams, Usage> {
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            // Of 32 bits, which every reader of JSON keeps.
            seed: self.seed.unwrap_or_else(|| u64::from(any_seed())),
            ..default
        };
        match params.validate() {
            Err(Error::Sampling { name, expected, got }) => {
                let flag = name.replace('_', "-");
                Err(Usage(format!("--{flag}: expected {expected}, got {got}")))
            }
            Err(error) => Err(Usage(error.to_string())),
            Ok(()) => Ok(params),
        }
    }

    /// A flag that plays no part at temperature 0.
    pub(crate) fn of_draws(&self) -> Option<&'static str> {
        let flags = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }
}

/// Another one each time: the standard library seeds its hash maps so.
fn any_seed() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

fn number(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, at least 0".to_owned())
}

fn some_text(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("expected a text that is not empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}
