//! The model, and what it remembers of tokens that nobody asks about any more.

use gdn_model::{Error, Model, Sequence};

use crate::{
    Stats,
    prefix::{Found, PrefixCache},
    scheduler::{Job, Memory},
    work::Work,
};

/// A job of this engine.
pub(crate) type Running = Job<Sequence, Work>;

/// A model and its prefix cache, which share slots and pages.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) model: Model,
    cache: PrefixCache<Sequence>,
    /// Tokens of prompts that started, and those of them that were cached.
    started: [u64; 2],
}

/// A prompt leaves a checkpoint where it parts from another, if that saves the next one so
/// many tokens.
const WORTH_A_CHECKPOINT: usize = Model::PAGE_TOKENS;

impl Pool {
    pub(crate) fn new(model: Model, cached: usize) -> Self {
        Self { model, cache: PrefixCache::new(cached), started: [0; 2] }
    }

    /// Keeps what a job saw, if it is at a checkpoint and there is memory left.
    pub(crate) fn keep_checkpoint(&mut self, job: &Running) {
        let Some(sequence) = &job.sequence else { return };
        let tokens = &job.tokens[..sequence.len()];
        if self.cache.capacity() == 0
            || !job.checkpoints.contains(&tokens.len())
            || self.cache.touch(tokens)
        {
            return;
        }
        if self.cache.len() == self.cache.capacity() {
            self.cache.evict();
        }
        match self.model.fork(sequence) {
            Ok(fork) => self.cache.insert(tokens.to_vec(), fork),
            Err(error) => tracing::debug!(%error, "a checkpoint is not kept"),
        }
    }

    /// Keeps a sequence that nobody needs any more.
    pub(crate) fn keep(&mut self, mut tokens: Vec<u32>, sequence: Sequence) {
        tokens.truncate(sequence.len());
        if !tokens.is_empty() {
            self.cache.insert(tokens, sequence);
        }
    }

    /// Fills in what it counts.
    pub(crate) fn count(&self, stats: &mut Stats) {
        let (slots, tokens) = self.model.free();
        stats.slots_cached = self.cache.len();
        stats.slots_used = stats.slots - slots - stats.slots_cached;
        stats.pages_used = stats.pages - tokens / Model::PAGE_TOKENS;
        [stats.prompt_tokens, stats.cached_tokens] = self.started;
    }

    /// A sequence of the job's first tokens, or one of none.
    fn sequence(&mut self, job: &mut Running) -> Option<Sequence> {
        while !job.data.scores_prompt() {
            let Found { sequence, shared } = self.cache.find(&job.tokens);
            let cached = sequence.map_or(0, |(_, len)| len);
            let at = shared.min(job.tokens.len() - 1) / Model::PAGE_TOKENS * Model::PAGE_TOKENS;
            if job.checkpoints.is_empty() && at >= cached + WORTH_A_CHECKPOINT {
                job.checkpoints.push(at);
            }
            let Some((sequence, _)) = sequence else { break };
            match self.model.fork(sequence) {
                Ok(fork) => return Some(fork),
                // The last page is to be copied: to one of a sequence that is older than this.
                Err(Error::NoPages { .. }) if self.cache.len() > 1 => {
                    self.cache.evict();
                }
                Err(_) => break,
            }
        }
        self.model.sequence().map_err(|error| tracing::error!(%error, "no slot")).ok()
    }
}

impl Memory for Pool {
    type Sequence = Sequence;
    type Data = Work;

    fn begin(&mut self, job: &mut Running) -> Option<Sequence> {
        let sequence = self.sequence(job)?;
        if job.data.start(sequence.len()) {
            self.started[0] += job.data.prompt_len() as u64;
            self.started[1] += sequence.len() as u64;
        }
        Some(sequence)
    }

    fn known(&mut self, job: &Running) -> Option<usize> {
        let shares = self.cache.capacity() > 0 && !job.data.scores_prompt();
        shares.then(|| self.cache.find(&job.tokens).sequence.map_or(0, |(_, len)| len))
    }

    fn len(&self, sequence: &Sequence) -> usize {
        sequence.len()
    }

    fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> bool {
        while sequence.reserve(tokens).is_err() {
            if !self.cache.evict() {
                return false;
            }
        }
        true
    }

    fn has_pages(&mut self, pages: usize) -> bool {
        while self.model.free().1 / Model::PAGE_TOKENS < pages {
            if !self.cache.evict() {
                return false;
            }
        }
        true
    }
}
