//! The one error type of the crate.

use std::{io, path::PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that names the file and the tensor or field, what was expected and
/// what came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that can't be read.
    #[error("{path}: {source}; a model is a folder with config.json and *.safetensors", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file that is no JSON, or not the JSON that it should be.
    #[error("{path}: {source}; is the download complete?", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field of the config that is missing, out of range, at odds with
    /// another, or beyond what this crate computes.
    #[error("{path}: {field}: expected {expected}, got {got}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, with a dot between levels.
        field: String,
        /// What is accepted, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// A file of weights that is cut short or otherwise no safetensors file.
    #[error("{path}: {source}; fetch the file again, it is cut short or damaged", path = path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that the config asks for and the checkpoint lacks.
    #[error("{path}: no tensor {tensor}; does config.json belong to these weights, and are all shards there?", path = path.display())]
    MissingTensor {
        /// The folder, or the shard that the index names.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another shape than the config asks for.
    #[error("{path}: {tensor}: expected shape {expected:?}, got {got:?}; does config.json belong to these weights?", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the config asks for.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor of an element type that this crate does not read.
    #[error("{path}: {tensor}: expected dtype F32, BF16 or F16, got {got}; use a checkpoint that is not quantised", path = path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype that came.
        got: String,
    },
    /// A tensor that the model has no place for: leaving it out would give
    /// wrong numbers in silence.
    #[error("{path}: {tensor}: expected no such tensor; a model with it is another architecture than config.json says", path = path.display())]
    UnusedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tokenizer that can't be read, or can't take a text or tokens.
    #[error("{path}: {reason}", path = path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder without a chat template.
    #[error("{path}: no chat template; expected chat_template.jinja, or chat_template in tokenizer_config.json", path = path.display())]
    NoChatTemplate {
        /// The folder.
        path: PathBuf,
    },
    /// A chat template that can't be parsed, or rejects messages.
    #[error("{path}: {reason}", path = path.display())]
    ChatTemplate {
        /// Its file.
        path: PathBuf,
        /// What the template raised, or what is wrong with it.
        reason: String,
    },
    /// Neither the folder of a model nor an id.
    #[error(
        "{model}: no such folder, and no id; expected a folder with config.json and *.safetensors, or an id such as org/name"
    )]
    NoModel {
        /// What came.
        model: String,
    },
    /// A model that is not in the cache and can't be fetched.
    #[error("{model}: not complete in {cache}, and can't be fetched: {reason}; fetch it where there is a network, and name its folder", cache = cache.display())]
    Fetch {
        /// The id.
        model: String,
        /// The cache.
        cache: PathBuf,
        /// Why it can't be fetched.
        reason: String,
    },
    /// A name that is not in [`PRESETS`](crate::PRESETS).
    #[error("preset: expected one of {}, got {got}", crate::PRESETS.join(", "))]
    Preset {
        /// The name that came.
        got: String,
    },
    /// A sampling parameter out of its range.
    #[error("{name}: expected {expected}, got {got}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// What is accepted, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// Logits that no token can be chosen from.
    #[error("logits[{index}]: expected {expected}, got {got}")]
    Logits {
        /// The token.
        index: usize,
        /// What is accepted, in words.
        expected: &'static str,
        /// What came.
        got: f32,
    },
    /// A call without tokens.
    #[error("tokens: expected at least 1, got 0")]
    NoTokens,
    /// A token outside the vocabulary.
    #[error("tokens[{index}]: expected a token below {vocab}, got {got}")]
    Token {
        /// Its place in the call.
        index: usize,
        /// The size of the vocabulary.
        vocab: usize,
        /// The token that came.
        got: u32,
    },
    /// A sequence that grows past the positions that the model was made for.
    #[error("tokens: expected at most {limit} in the sequence, got {got}; start a new one")]
    TooLong {
        /// `max_position_embeddings`.
        limit: usize,
        /// The tokens that the sequence would have.
        got: usize,
    },
    /// An option that a device does not have.
    #[error("{option}: expected {expected} on this device, got {got}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is accepted, in words.
        expected: String,
        /// What came.
        got: String,
    },
    /// More tokens in a call than a forward pass takes.
    #[error("turns: expected at most {limit} tokens, the option batch_tokens, got {got}")]
    BatchTokens {
        /// The option `batch_tokens`.
        limit: usize,
        /// The tokens of all turns.
        got: usize,
    },
    /// As many sequences as there is memory for.
    #[error(
        "sequence: all {slots} state slots are taken; drop a sequence or raise the option sequences"
    )]
    NoSlot {
        /// The option `sequences`.
        slots: usize,
    },
    /// As many tokens as there is memory for.
    #[error(
        "tokens: expected at most {left} more pages of {page} tokens, got {needed}: {pages} are there in all; drop a sequence or raise the option tokens"
    )]
    NoPages {
        /// All pages.
        pages: usize,
        /// The free ones.
        left: usize,
        /// Those that the tokens need.
        needed: usize,
        /// The tokens of a page.
        page: usize,
    },
    /// A GPU whose memory has no page left beside the weights and the state slots.
    #[error(
        "GPU memory: expected room for a page of {page} bytes of keys and values in {fraction} of {total} bytes, got {used} in use with the weights, {slots} state slots and the activations; lower the option sequences or batch_tokens, or raise memory_fraction"
    )]
    NoRoom {
        /// Bytes in use, of other processes too.
        used: usize,
        /// All bytes.
        total: usize,
        /// The option `memory_fraction`.
        fraction: f64,
        /// The option `sequences`.
        slots: usize,
        /// Bytes of a page.
        page: usize,
    },
    /// A sequence that another model made.
    #[error("sequence: expected one that this model's `sequence` made, got another model's")]
    ForeignSequence,
    /// A layer that is not there, or is of the other kind.
    #[error("layer: expected a Gated DeltaNet layer below {layers}, got {got}")]
    Layer {
        /// The number of layers.
        layers: usize,
        /// The layer that was asked for.
        got: usize,
    },
    /// An operator's error.
    #[error(transparent)]
    Gdn(#[from] gdn::Error),
}
