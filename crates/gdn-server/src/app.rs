//! What all requests share.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use gdn_engine::Engine;

use crate::{
    ModelText,
    body::off_thread,
    constraint::Grammars,
    error::{ApiError, Result},
    id,
    metrics::Metrics,
};

/// How a server runs.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// What clients call the model.
    pub served_model_name: String,
    /// Where the model comes from, as clients are told.
    pub model_path: String,
    /// What clients must know; anyone may ask if `None`.
    pub api_key: Option<String>,
    /// The tokens that a prompt and its answer may have together, if less than the model
    /// and its memory have.
    pub context_length: Option<usize>,
    /// The bytes that a request may have.
    pub body_limit: usize,
    /// Texts that end the answers of chats, beside those that a request names; but not
    /// where an answer must have a form.
    pub chat_stop: Vec<String>,
    /// How long requests that run may go on once the server stops.
    pub shutdown_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            served_model_name: "default".to_owned(),
            model_path: String::new(),
            api_key: None,
            context_length: None,
            body_limit: 32 << 20,
            chat_stop: Vec::new(),
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("Options")
            .field("served_model_name", &self.served_model_name)
            .field("context_length", &self.context_length)
            .field("body_limit", &self.body_limit)
            .finish_non_exhaustive()
    }
}

/// A model that requests are answered with. Clones share it.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    text: ModelText,
    options: Options,
    metrics: Arc<Metrics>,
    grammars: OnceLock<Result<Grammars, String>>,
    started: u64,
}

impl App {
    /// Answers with this engine, which runs the model of that text.
    pub fn new(engine: Engine, text: ModelText, options: Options) -> Self {
        let metrics = Arc::new(Metrics::new(engine.clone()));
        let (grammars, started) = (OnceLock::new(), id::now());
        Self(Arc::new(Inner { engine, text, options, metrics, grammars, started }))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn text(&self) -> &ModelText {
        &self.0.text
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// When it was made, in seconds since 1970.
    pub(crate) fn started(&self) -> u64 {
        self.0.started
    }

    /// The tokens that a prompt and its answer may have together.
    pub(crate) fn limit(&self) -> usize {
        let limit = self.0.engine.max_sequence_tokens();
        self.0.options.context_length.map_or(limit, |context| limit.min(context))
    }

    /// Compiles grammars; made when the first is asked for, which takes a while.
    pub(crate) fn grammars(&self) -> Result<&Grammars> {
        let grammars = self
            .0
            .grammars
            .get_or_init(|| Grammars::new(&self.0.text.vocabulary, &self.0.text.generation.eos));
        grammars.as_ref().map_err(ApiError::failed)
    }

    /// `Err` for the name of another model; none is any.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<()> {
        let served = self.0.options.served_model_name.as_str();
        match model {
            Some(model) if !model.is_empty() && model != served => {
                Err(ApiError::unknown_model(served, model))
            }
            _ => Ok(()),
        }
    }

    /// The tokens of a text.
    pub(crate) async fn encode(&self, text: String) -> Result<Vec<u32>> {
        let tokenizer = self.0.text.tokenizer.clone();
        let tokens = off_thread(text.len(), move || tokenizer.encode(&text)).await?;
        tokens.map_err(ApiError::model)
    }
}
