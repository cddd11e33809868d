//! The HTTP APIs of OpenAI and SGLang over [`gdn_engine`].
//!
//! An [`App`] is a running engine, a [`ModelText`] and [`Options`]; [`serve`] answers
//! requests on a listener until it is told to stop.
//!
//! ```no_run
//! use gdn_engine::{Engine, EngineOptions};
//! use gdn_model::Model;
//! use gdn_server::{App, ModelText, Options, serve};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let options = EngineOptions::default();
//! let of_model = Engine::model_options(&options, gdn_model::Options::default());
//! let model = Model::load_with("Qwen3.5-0.8B", &of_model)?;
//! let engine = Engine::start(model, options)?;
//! let app = App::new(engine, ModelText::load("Qwen3.5-0.8B")?, Options::default());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:30000").await?;
//! serve(listener, app, std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A request is checked whole before anything of it starts; a client that goes away ends
//! what was done for it. Long texts are tokenised off the threads that serve
//! connections.
#![deny(missing_docs)]

mod api;
mod app;
mod body;
mod constraint;
mod error;
mod fields;
mod generation;
mod grammar;
mod id;
mod limits;
mod metrics;
mod numbers;
mod parse;
mod serve;
mod sse;
mod text;
mod vocabulary;

pub use self::{
    api::{OPENAPI, router, routes},
    app::{App, Options},
    serve::serve,
    text::ModelText,
};
