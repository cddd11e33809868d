//! An engine's handles.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use gdn_model::{Model, Options};
use tokio::sync::mpsc as tokens;

use crate::{
    EngineOptions, Event, FinishReason, Finished, Request, Stats, SubmitError,
    worker::{Command, Worker},
};

/// A model on a thread of its own. Clones are handles of the same one; when the last is
/// dropped, what runs is aborted and the thread ends.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: EngineOptions,
    vocab: usize,
    /// Tokens of a prompt and its answer together.
    limit: usize,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the thread and the handles both see.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Requests that were taken and did not end.
    pub(crate) open: AtomicUsize,
    stopping: AtomicBool,
    pub(crate) stats: Mutex<Stats>,
}

/// What comes of a request. Dropping it aborts what is left.
#[derive(Debug)]
pub struct Answer {
    events: tokens::UnboundedReceiver<Event>,
    prompt_tokens: usize,
    ended: bool,
}

impl Engine {
    /// The options of a model with memory for such an engine.
    pub fn model_options(options: &EngineOptions, model: Options) -> Options {
        let running = options.max_running_requests;
        let mut model = model.sequences(running + options.cached_sequences);
        model.batch_tokens = running + options.chunked_prefill_size;
        model
    }

    /// Starts the thread. The model has the options that
    /// [`model_options`](Self::model_options) gives.
    ///
    /// # Errors
    /// What the operating system says if there can be no thread.
    pub fn start(model: Model, options: EngineOptions) -> io::Result<Self> {
        let (_, tokens) = model.free();
        let vocab = model.config().vocab_size;
        let limit = model.config().max_positions.min(tokens);
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(model, &options, limit, inbox, shared.clone());
        let thread = thread::Builder::new().name("gdn-engine".to_owned());
        let thread = thread.spawn(move || worker.run())?;
        let (commands, thread) = (Some(commands), Some(thread));
        Ok(Self(Arc::new(Inner { options, vocab, limit, commands, thread, shared })))
    }

    /// Hands over a request.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was taken then.
    pub fn submit(&self, request: Request) -> Result<Answer, SubmitError> {
        let Inner { options, shared, commands, .. } = &*self.0;
        self.check(&request)?;
        if !self.is_ready() {
            return Err(SubmitError::Stopping);
        }
        let most = options.max_running_requests + options.max_queued_requests;
        let more = |open| (open < most).then_some(open + 1);
        if shared.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return Err(SubmitError::QueueFull { limit: options.max_queued_requests });
        }
        let prompt_tokens = request.prompt.len();
        let (sender, events) = tokens::unbounded_channel();
        let commands = commands.as_ref().expect("taken by drop alone");
        if commands.send(Command::Submit(Box::new(request), sender)).is_err() {
            shared.open.fetch_sub(1, Ordering::Relaxed);
            return Err(SubmitError::Stopping);
        }
        Ok(Answer { events, prompt_tokens, ended: false })
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let Inner { vocab, limit, .. } = *self.0;
        let prompt = &request.prompt;
        if prompt.is_empty() {
            return Err(SubmitError::NoTokens);
        }
        // One more is to be generated.
        let limit = if request.max_tokens > 0 { limit.saturating_sub(1) } else { limit };
        if prompt.len() > limit {
            return Err(SubmitError::TooLong { limit, got: prompt.len() });
        }
        if let Some(index) = prompt.iter().position(|&token| token as usize >= vocab) {
            let got = prompt[index];
            return Err(gdn_model::Error::Token { index, vocab, got }.into());
        }
        request.sampling.validate()?;
        Ok(request.sampling.validate_tokens(vocab)?)
    }

    /// What it does right now.
    pub fn stats(&self) -> Stats {
        let stats = *self.0.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that the thread has not heard of yet wait too.
        let open = self.0.shared.open.load(Ordering::Relaxed);
        Stats { queued: open.saturating_sub(stats.running), ..stats }
    }

    /// How it runs.
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    /// The tokens that a prompt may hold are below this.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab
    }

    /// The tokens that a prompt and its answer can have together.
    pub fn max_sequence_tokens(&self) -> usize {
        self.0.limit
    }

    /// Takes no more requests. Those that were taken go on.
    pub fn stop(&self) {
        self.0.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Ends all requests with [`FinishReason::Aborted`].
    pub fn abort_all(&self) {
        if let Some(commands) = &self.0.commands {
            // A thread that is gone has no requests.
            let _ = commands.send(Command::AbortAll);
        }
    }

    /// Whether the thread is there to take requests: it was not stopped, and did not die.
    pub fn is_ready(&self) -> bool {
        let alive = self.0.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        alive && !self.0.shared.stopping.load(Ordering::Relaxed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends when nobody can send it more.
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, it said so.
            let _ = thread.join();
        }
    }
}

impl Answer {
    /// The next event, and `None` behind [`Event::Finished`].
    pub async fn recv(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.hear(event))
    }

    /// As [`recv`](Self::recv), for code that is not asynchronous.
    ///
    /// # Panics
    /// In asynchronous code.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.hear(event))
    }

    fn hear(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| {
            let reason = "the engine's thread died; its log says why".to_owned();
            Event::Finished(Finished {
                reason: FinishReason::Failed(reason),
                prompt_tokens: self.prompt_tokens,
                cached_tokens: 0,
                completion_tokens: 0,
            })
        });
        self.ended = matches!(event, Event::Finished(_));
        event
    }
}
