//! The command line of `gdn bench-serving`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::api::Backend;
use crate::cli::at_least_one;

/// Time a server: throughput, and how long its clients wait for tokens
///
/// Sends prompts to a server that runs, and prints what SGLang's bench_serving
/// prints, from the same definitions:
///
///   TTFT   from sending a request to its first text
///   ITL    between a piece of text and the next one, over all requests
///   TPOT   (latency − TTFT) / (tokens − 1), a request each
///   E2E    from sending a request to the end of its answer
///
/// Percentiles interpolate. Throughputs are over the time from the first request to
/// the end of the last; failed requests count in none of them.
///
/// Tokens of an answer are those of the server's usage, else those asked for; tokens
/// of a prompt are those that were drawn. Text is a prompt that the server tokenizes
/// again, to a few tokens more or less: --tokenize-prompt sends the ids themselves.
/// Numbers are drawn as there, but not by the same generator.
///
/// It differs in three things: streams are asked for their usage, the thoughts of a chat
/// are text like the rest of it, and connections are used again.
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  gdn bench-serving --port 8000 --backend vllm --num-prompts 100
  gdn bench-serving --backend sglang --dataset-name random-ids --tokenizer ./Qwen3.5-0.8B \\
                    --random-input-len 128 --random-output-len 200 --num-prompts 800 \\
                    --max-concurrency 128
  gdn bench-serving --base-url http://10.0.0.2:8000 --backend sglang-oai-chat \\
                    --dataset-name gsm8k --dataset-path eval/gsm8k/test.jsonl \\
                    --tokenizer ./Qwen3.5-0.8B --output-len 256 --request-rate 4 --plot load.svg

Exit codes: 0 measured, 1 every request failed or something went wrong, 2 bad usage."
)]
pub(crate) struct BenchServingArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,

    #[command(flatten)]
    pub(super) dataset: DatasetArgs,

    #[command(flatten)]
    pub(super) load: LoadArgs,

    #[command(flatten)]
    pub(super) body: BodyArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The server, and how to talk to it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    /// What the server is, and which of its routes to use
    #[arg(long, value_enum, default_value_t)]
    pub(super) backend: Backend,

    /// Where the server is, as http://HOST:PORT, in place of --host and --port
    #[arg(long, value_name = "URL", value_parser = base_url, conflicts_with_all = ["host", "port"])]
    pub(super) base_url: Option<String>,

    /// The server's host
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: String,

    /// The server's port [default: 30000, or 8000 for vllm]
    #[arg(long)]
    pub(super) port: Option<u16>,

    /// The model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,

    /// The name that the server has for --model, where it is another
    #[arg(long, value_name = "NAME")]
    pub(super) served_model_name: Option<String>,

    /// Send this as bearer token
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,

    /// Wait this long for the server to be ready
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    pub(super) ready_timeout: u64,
}

/// The prompts.
#[derive(Args, Debug)]
#[command(next_help_heading = "Prompts")]
pub(super) struct DatasetArgs {
    /// Where prompts come from
    #[arg(long, value_enum, default_value_t)]
    pub(super) dataset_name: DatasetName,

    /// The file of the data set: for random and sharegpt conversations as ShareGPT has
    /// them, for gsm8k its JSON lines
    #[arg(long, value_name = "FILE")]
    pub(super) dataset_path: Option<PathBuf>,

    /// A folder with the model's tokenizer.json [default: --model, if it is one]
    #[arg(long, value_name = "FOLDER")]
    pub(super) tokenizer: Option<PathBuf>,

    /// Without a tokenizer, random-ids draws from this many tokens [default: what
    /// /get_server_info says, else 1000]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(super) vocab_size: Option<usize>,

    /// How many prompts to send
    #[arg(long, value_name = "N", default_value = "1000", value_parser = at_least_one())]
    pub(super) num_prompts: usize,

    /// Tokens in a prompt of random or random-ids, at most
    #[arg(long, value_name = "N", default_value = "1024", value_parser = at_least_one())]
    pub(super) random_input_len: usize,

    /// Tokens in an answer to random or random-ids, at most
    #[arg(long, value_name = "N", default_value = "1024", value_parser = at_least_one())]
    pub(super) random_output_len: usize,

    /// Draw lengths from this share of the longest to the longest; 1 draws none
    #[arg(long, value_name = "RATIO", default_value = "0", value_parser = share)]
    pub(super) random_range_ratio: f64,

    /// Tokens in an answer to sharegpt or gsm8k [default: as many as the data set's]
    #[arg(long, alias = "sharegpt-output-len", value_name = "N", value_parser = at_least_one())]
    pub(super) output_len: Option<usize>,

    /// Leave out prompts of sharegpt and gsm8k that take more tokens with their answer
    #[arg(long, alias = "sharegpt-context-len", value_name = "N", value_parser = at_least_one())]
    pub(super) context_len: Option<usize>,

    /// Make a conversation of each prompt of sharegpt and gsm8k, by the chat template
    /// in the tokenizer's folder
    #[arg(long)]
    pub(super) apply_chat_template: bool,

    /// Send tokens of random and random-ids, and not their text
    #[arg(long)]
    pub(super) tokenize_prompt: bool,

    /// What prompts, lengths and arrivals come from
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
}

/// When requests are sent.
#[derive(Args, Debug)]
#[command(next_help_heading = "Load")]
pub(super) struct LoadArgs {
    /// Send this many requests a second, as a Poisson process; inf sends all at once
    #[arg(long, value_name = "PER_SECOND", default_value = "inf", value_parser = rate)]
    pub(super) request_rate: f64,

    /// Have at most this many requests under way [default: no limit]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(super) max_concurrency: Option<usize>,

    /// Send the first prompt this often before, for at most 32 tokens
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) warmup_requests: usize,

    /// Have the server drop what it cached before the load starts
    #[arg(long)]
    pub(super) flush_cache: bool,
}

/// What is in a request beside its prompt.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Requests")]
pub(super) struct BodyArgs {
    /// Have answers come in one piece
    #[arg(long)]
    pub(super) disable_stream: bool,

    /// Let an answer end before it has as many tokens as were asked for
    #[arg(long)]
    pub(super) disable_ignore_eos: bool,

    /// Put these fields into every request, over those that it has
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub(super) extra_request_body: Option<Fields>,
}

/// What is left behind.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Add a line of JSON to this file, with the fields of SGLang's bench_serving
    #[arg(long, value_name = "FILE")]
    pub(super) output_file: Option<PathBuf>,

    /// Put lengths, times and texts of every request into the JSON, too
    #[arg(long)]
    pub(super) output_details: bool,

    /// Put this into the JSON, as "tag"
    #[arg(long, value_name = "TEXT")]
    pub(super) tag: Option<String>,

    /// Write the measurements, the machine and the command to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Draw the distributions of TTFT and ITL to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,

    /// Show no progress bar
    #[arg(long)]
    pub(super) disable_tqdm: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum DatasetName {
    /// Prompts of --dataset-path, cut or repeated to drawn lengths
    Random,
    /// Consecutive token ids from a random one on, of drawn lengths
    #[default]
    RandomIds,
    /// The first turns of conversations in --dataset-path
    Sharegpt,
    /// The questions in --dataset-path
    Gsm8k,
}

impl DatasetName {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RandomIds => "random-ids",
            Self::Sharegpt => "sharegpt",
            Self::Gsm8k => "gsm8k",
        }
    }
}

/// The fields of a JSON object.
pub(super) type Fields = Map<String, Value>;

fn json_object(text: &str) -> Result<Fields, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

fn base_url(text: &str) -> Result<String, String> {
    match text.strip_prefix("http://") {
        Some(rest) if !rest.is_empty() => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("expected http://HOST:PORT; there is no TLS here".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share, from 0 to 1".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("expected requests a second, above 0, or inf".to_owned()),
    }
}
