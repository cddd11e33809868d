//! The flags of `gdn serve`.

use clap::{
    Args,
    builder::{NonEmptyStringValueParser, PossibleValuesParser},
};
use gdn::PrefillForm;
use gdn_engine::EngineOptions;

use crate::{
    backend::BackendArgs,
    bench_model::{LoadFormat, form},
    cli::at_least_one,
};

/// Answer clients of OpenAI's and SGLang's APIs with a model
///
/// Takes a folder as it is published (config.json, *.safetensors, tokenizer.json), or
/// an id that is in the local cache of Hugging Face's tools or can be fetched into it.
/// Without --model it serves a tiny model that comes with this command.
///
/// Requests run together, step by step. Each that runs holds a state slot, of a size that
/// does not grow, and pages of keys and values for its tokens: --max-running-requests
/// and --max-total-tokens say how many there are. What finished requests leave behind
/// is kept, in slots of its own, for prompts that begin alike.
///
/// Ctrl-C or SIGTERM stops it: no more requests are taken, those that run may finish.
/// A second one ends it at once.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gdn serve                                        the model that comes with it
  gdn serve --model ./Qwen3.5-0.8B --port 8000
  gdn serve --model ./Qwen3.5-35B-A3B --backend cuda --max-running-requests 128 \\
            --max-total-tokens 262144
  gdn serve --preset qwen3.5-35b-a3b --backend cuda  shapes without weights, to measure
  curl http://127.0.0.1:30000/v1/chat/completions -d \\
       '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 4 + 5?\"}]}'

Exit codes: 0 stopped, 1 something went wrong, 2 bad usage, 130 ended at once.")]
pub(crate) struct ServeArgs {
    /// The folder of a model, or its id, org/name [default: the one that comes with
    /// this command]
    #[arg(long, visible_alias = "model-path", value_name = "FOLDER|ID")]
    pub(crate) model: Option<String>,

    /// The shapes of a published model, with made-up weights
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "load_format"],
          value_parser = PossibleValuesParser::new(gdn_model::PRESETS))]
    pub(crate) preset: Option<String>,

    /// Where the weights of --model come from
    #[arg(long, value_enum, default_value_t, requires = "model")]
    pub(crate) load_format: LoadFormat,

    /// A folder with another tokenizer and chat template [default: those of the model; with
    /// --preset, token 12 is the text " 12"]
    #[arg(long, visible_alias = "tokenizer-path", value_name = "FOLDER")]
    pub(crate) tokenizer: Option<String>,

    /// What clients call the model [default: as --model names it]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) served_model_name: Option<String>,

    /// The address to listen on; 0.0.0.0 for all of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// The port to listen on; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 30000)]
    pub(crate) port: u16,

    /// What clients must send as a bearer token [default: anyone may ask]
    #[arg(long, value_name = "KEY", env = "GDN_API_KEY", hide_env_values = true,
          value_parser = NonEmptyStringValueParser::new())]
    pub(crate) api_key: Option<String>,

    /// Requests that run at once, a state slot each
    #[arg(long, value_name = "N", value_parser = at_least_one(),
          default_value_t = EngineOptions::default().max_running_requests)]
    pub(crate) max_running_requests: usize,

    /// Requests that wait beyond those; more are refused
    #[arg(long, value_name = "N",
          default_value_t = EngineOptions::default().max_queued_requests)]
    pub(crate) max_queued_requests: usize,

    /// Tokens of all requests together that there is memory for [default: on a GPU what
    /// --mem-fraction-static leaves, all that --max-running-requests can have at the most; on
    /// the CPU as many as one request can have, 65536 at the most]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) max_total_tokens: Option<usize>,

    /// The part of a GPU's memory, above 0 and at most 1, that weights, state slots,
    /// activations and tokens may take, with what others hold there; the rest is for logits,
    /// graphs and kernels. Without --max-total-tokens tokens get what is left of it
    #[arg(long, value_name = "FRACTION", value_parser = fraction, default_value_t = 0.88)]
    pub(crate) mem_fraction_static: f64,

    /// Tokens of a prompt and its answer, if less than the model has
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) context_length: Option<usize>,

    /// Tokens of prompts that a step takes, if nothing is generated in it
    #[arg(long, value_name = "N", value_parser = at_least_one(),
          default_value_t = EngineOptions::default().chunked_prefill_size)]
    pub(crate) chunked_prefill_size: usize,

    /// The same for a step that generates too, at the most: fewer are taken where answers
    /// would wait for them
    #[arg(long, value_name = "N", value_parser = at_least_one(),
          default_value_t = EngineOptions::default().mixed_prefill_size)]
    pub(crate) mixed_prefill_size: usize,

    /// State slots of the prefix cache
    #[arg(long, value_name = "N",
          default_value_t = EngineOptions::default().cached_sequences)]
    pub(crate) cached_sequences: usize,

    /// Keep nothing of finished requests
    #[arg(long, conflicts_with = "cached_sequences")]
    pub(crate) disable_radix_cache: bool,

    /// How Gated DeltaNet layers take prompts [default: recurrent on the CPU, where
    /// answers then have the same bits with and without the prefix cache; chunked on a GPU]
    #[arg(long, value_parser = form)]
    pub(crate) prefill: Option<PrefillForm>,

    /// How long requests may go on once the server stops
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) shutdown_timeout: u64,

    #[command(flatten)]
    pub(crate) backend: BackendArgs,
}

/// A number above 0 and at most 1.
fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|&fraction| fraction > 0.0 && fraction <= 1.0);
    fraction.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

impl ServeArgs {
    pub(crate) fn engine_options(&self) -> EngineOptions {
        let mut options = EngineOptions::default();
        options.max_running_requests = self.max_running_requests;
        options.max_queued_requests = self.max_queued_requests;
        options.chunked_prefill_size = self.chunked_prefill_size;
        options.mixed_prefill_size = self.mixed_prefill_size.min(self.chunked_prefill_size);
        options.cached_sequences = if self.disable_radix_cache { 0 } else { self.cached_sequences };
        options
    }

    /// What is served, in words.
    pub(crate) fn name(&self) -> &str {
        const SHIPPED: &str = "gdn-shipped";
        self.model.as_deref().or(self.preset.as_deref()).unwrap_or(SHIPPED)
    }
}
