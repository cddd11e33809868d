//! The text models Qwen3.5, Qwen3.6 and Qwen3-Next in f32 on the CPU, from
//! published checkpoints. Their Gated DeltaNet layers run on the operators of
//! [`gdn`].
//!
//! ```no_run
//! use gdn_model::{Model, Tokenizer};
//!
//! let tokenizer = Tokenizer::load("Qwen3.5-0.8B")?;
//! let mut model = Model::load("Qwen3.5-0.8B")?;
//! let mut sequence = model.state()?;
//! let prompt = tokenizer.encode("The capital of France is")?;
//! let answer = model.generate_greedy(&mut sequence, &prompt, 16, &[])?;
//! let answer = tokenizer.decode(&answer)?;
//! # let _ = answer;
//! # Ok::<(), gdn_model::Error>(())
//! ```
//!
//! - [`Config`] is what `config.json` says, checked: a field that asks for
//!   something else than what is computed here is an error.
//! - [`Checkpoint`] reads tensors out of safetensors files; a missing one is an
//!   error, and so is one that the model has no place for.
//! - [`Model`] is config and weights; a [`Sequence`] is what it remembers of the
//!   tokens so far. [`Model::forward`] takes a prompt in one call or in pieces of
//!   any size, then token by token.
//! - [`Tokenizer`] turns text to tokens and back.
//!
//! The numbers are those of Hugging Face transformers in f32, to within rounding.
//! A token's logits have the same bits on any number of threads, and by default
//! also however the tokens before it were split into calls.
#![deny(missing_docs)]

mod attention;
mod config;
mod error;
mod gdn_layer;
mod generate;
mod math;
mod mlp;
mod model;
mod sequence;
mod tokenizer;
mod weights;

pub use self::{
    config::{AttentionConfig, Config, Family, LayerKind, MlpConfig},
    error::{Error, Result},
    model::{Model, Options},
    sequence::{GdnState, Sequence},
    tokenizer::Tokenizer,
    weights::Checkpoint,
};
