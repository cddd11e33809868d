//! Many requests on one model: continuous batching over [`gdn_model`].
//!
//! An [`Engine`] owns a model on a thread of its own. [`Engine::submit`] hands it a
//! [`Request`] and returns an [`Answer`], from which tokens come as they are generated;
//! dropping it ends the work at once. [`TextOutput`] makes text of them, up to a stop text.
//!
//! A request that runs holds a state slot and pages of keys and values. Requests start
//! in the order in which they came, as soon as there is a slot and there are pages;
//! prompts run in pieces between the steps that generate, so that no answer stalls. When
//! pages run out, the request that came last gives its own back and starts again later.
//! The prefix cache keeps what prompts and answers left behind, so that a prompt that
//! begins like one of them runs only from there on.
#![deny(missing_docs)]

mod engine;
mod error;
mod logprobs;
mod options;
mod output;
mod pace;
mod pool;
mod prefix;
mod request;
mod scheduler;
mod stats;
mod work;
mod worker;

pub use self::{
    engine::{Answer, Engine},
    error::SubmitError,
    options::EngineOptions,
    output::{StopTexts, TextOutput},
    request::{Constraint, Event, FinishReason, Finished, Logprobs, Request},
    stats::Stats,
};
