//! The text models Qwen3.5, Qwen3.6 and Qwen3-Next from published checkpoints, on
//! the CPU or on an NVIDIA GPU. Their Gated DeltaNet layers run on the operators of
//! [`gdn`].
//!
//! ```no_run
//! use gdn_model::{Model, Tokenizer};
//!
//! let tokenizer = Tokenizer::load("Qwen3.5-0.8B")?;
//! let mut model = Model::load("Qwen3.5-0.8B")?;
//! let mut sequence = model.sequence()?;
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
//! - [`Model`] is config and weights on a device, by [`Options`]; a [`Sequence`] is
//!   what it remembers of the tokens so far. [`Model::forward`] takes a prompt in one
//!   call or in pieces of any size, then token by token; [`Model::step`] takes
//!   [`Turn`]s of many sequences at once, and [`Model::step_tokens`] chooses their next
//!   tokens on the device.
//! - [`Tokenizer`] turns text to tokens and back, with [`TextStream`] token by token;
//!   [`ChatTemplate`] turns a conversation to text.
//! - [`Sampler`] chooses tokens by [`SamplingParams`]; what a model wants is in its
//!   [`GenerationConfig`].
//! - [`resolve`] finds the folder of a model by its id. With the feature `fetch` it
//!   fetches what the cache lacks.
//!
//! The numbers are those of Hugging Face transformers, in f32 to within rounding; a GPU
//! computes in bf16 unless asked for f32. A token's logits have the same bits whatever
//! other sequences are in the call, on any number of threads, and with recurrent prefill
//! (the default) also however the tokens before it were split into calls. (That last holds
//! on the CPU and, in f32, on a GPU.)
#![deny(missing_docs)]

mod batch;
mod chat;
mod config;
mod cost;
mod cpu;
mod cuda;
mod device;
mod error;
mod forward;
mod generate;
mod hub;
mod math;
mod memory;
mod model;
mod ops;
mod sampling;
mod sequence;
mod tokenizer;
mod weights;

#[doc(hidden)]
pub use self::cuda::kernels;
pub use self::{
    batch::Logits,
    chat::{ChatTemplate, Message},
    config::{
        AttentionConfig, Config, Family, GenerationConfig, LayerKind, MlpConfig, PRESETS,
        Parameters,
    },
    cost::StepBytes,
    error::{Error, Result},
    forward::Operator,
    hub::{Fetched, Hub, resolve},
    memory::Sequence,
    model::{Model, Options, Turn},
    ops::sample::Choice,
    sampling::{Sampler, SamplingParams},
    sequence::GdnState,
    tokenizer::{TextStream, Tokenizer},
    weights::Checkpoint,
};
