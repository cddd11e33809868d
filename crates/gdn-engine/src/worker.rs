//! The thread that steps the model.

use std::{
    ops::Range,
    sync::{
        Arc, PoisonError,
        atomic::Ordering,
        mpsc::{Receiver, RecvError, TryRecvError},
    },
    time::Instant,
};

use gdn::Place;
use gdn_model::{Choice, Logits, Model, Sequence, Turn};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    EngineOptions, Event, FinishReason, Request, Stats,
    engine::Shared,
    pace::Pace,
    pool::{Pool, Running},
    scheduler::{Job, Limits, Planned, Scheduler},
    work::Work,
};

/// What handles tell the thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Request>, UnboundedSender<Event>),
    AbortAll,
}

/// Steps the model for the requests that it is sent.
#[derive(Debug)]
pub(crate) struct Worker {
    pool: Pool,
    scheduler: Scheduler<Sequence, Work>,
    pace: Pace,
    /// The tokens of a sequence.
    limit: usize,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    stats: Stats,
}

/// What is asked of a job's tokens in a step.
struct Asked {
    /// Its place among those that run.
    index: usize,
    /// Where its tokens start in the sequence.
    start: usize,
    /// The rows of logits.
    rows: usize,
    /// Whether a token comes behind them.
    generates: bool,
}

/// Prompts whose every token has its logits read run in pieces of so many: a row of logits is
/// up to a megabyte.
const READ_AT_ONCE: usize = 64;
/// Prompts at least so long leave a checkpoint short of their end, for others with the same
/// beginning. It costs them a step.
const LONG: usize = 1024;

impl Worker {
    pub(crate) fn new(
        model: Model,
        options: &EngineOptions,
        limit: usize,
        inbox: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        let prefill = options.chunked_prefill_size.max(1);
        let limits = Limits {
            running: options.max_running_requests.max(1),
            prefill,
            mixed: options.mixed_prefill_size.clamp(1, prefill),
        };
        // A GPU reads most weights for a few tokens of a prompt as for a page of them.
        let least = if model.place() == Place::Host { 16 } else { 48 };
        let pace = Pace::new(least, limits.mixed);
        let (slots, tokens) = model.free();
        let stats = Stats { slots, pages: tokens / Model::PAGE_TOKENS, ..Stats::default() };
        let pool = Pool::new(model, options.cached_sequences);
        let scheduler = Scheduler::new(limits);
        let mut worker = Self { pool, scheduler, pace, limit, inbox, shared, stats };
        worker.publish();
        worker
    }

    /// Steps as long as there is work, and waits for more; until nobody can send any.
    pub(crate) fn run(mut self) {
        while let Ok(()) = self.listen() {
            self.step();
        }
        self.abort(|_| true);
    }

    /// Takes what was sent; waits if there is nothing to do.
    fn listen(&mut self) -> Result<(), RecvError> {
        if self.scheduler.is_idle() {
            let command = self.inbox.recv()?;
            self.hear(command);
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.hear(command),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(RecvError),
            }
        }
    }

    fn hear(&mut self, command: Command) {
        match command {
            Command::Submit(request, events) => self.accept(*request, events),
            Command::AbortAll => self.abort(|_| true),
        }
    }

    fn accept(&mut self, mut request: Request, events: UnboundedSender<Event>) {
        let tokens = std::mem::take(&mut request.prompt);
        let len = tokens.len();
        let most = if request.prompt_logprobs.is_some() { READ_AT_ONCE } else { usize::MAX };
        let long = (len >= LONG).then_some((len - 1) / Model::PAGE_TOKENS * Model::PAGE_TOKENS);
        let checkpoint = request.checkpoint.or(long).filter(|&at| at > 0 && at < len);
        let work = Work::new(request, len, events);
        self.scheduler.add(tokens, most, checkpoint, work);
    }

    fn step(&mut self) {
        self.abort(|work| !work.is_wanted());
        let backlog = self.scheduler.backlog(Sequence::len);
        let decodes = self.scheduler.decodes(Sequence::len);
        self.scheduler.set_mixed(self.pace.piece(decodes, backlog));
        let plan = self.scheduler.plan(&mut self.pool);
        if plan.is_empty() {
            if !self.scheduler.is_idle() {
                // What is submitted has memory alone, so this is a fault of ours: better lose
                // requests than wait forever.
                self.fail_all("the engine finds no memory for it");
            }
            return;
        }
        if let Err(error) = self.forward(&plan) {
            self.fail_all(&error.to_string());
        }
        self.retire();
    }

    /// Runs the tokens of a plan, and hears what comes behind them.
    fn forward(&mut self, plan: &[Planned]) -> gdn_model::Result<()> {
        let running = self.scheduler.running();
        let mut counts = vec![0; running.len()];
        plan.iter().for_each(|planned| counts[planned.index] = planned.count);
        let (mut turns, mut choices, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        for (index, job) in running.iter_mut().enumerate().filter(|(index, _)| counts[*index] > 0) {
            let Job { tokens, sequence, data, .. } = job;
            let sequence = sequence.as_mut().expect("it runs");
            let start = sequence.len();
            let end = start + counts[index];
            let generates = end == tokens.len() && data.generates();
            let (logits, rows) = match generates {
                _ if data.reads_prompt(start) => (Logits::All, end - start),
                true => (Logits::Last, 1),
                false => (Logits::Nothing, 0),
            };
            choices.resize(choices.len() + rows, Choice::default());
            if let (true, Some(last)) = (generates, choices.last_mut()) {
                *last = data.choice();
            }
            turns.push(Turn { sequence, tokens: &tokens[start..end], logits });
            asked.push(Asked { index, start, rows, generates });
        }
        let begin = Instant::now();
        let chosen = self.pool.model.step_tokens(&mut turns, &choices)?;
        let seconds = begin.elapsed().as_secs_f64();
        let decodes = plan.iter().filter(|planned| planned.count == 1).count();
        let prompts = plan.iter().map(|planned| planned.count).sum::<usize>() - decodes;
        tracing::trace!(decodes, prompts, seconds, "step");
        if decodes > 0 {
            self.pace.hear(decodes, prompts, seconds);
        }
        self.stats.steps += 1;
        let mut first = 0;
        for asked in asked {
            let rows = first..first + asked.rows;
            first = rows.end;
            self.hear_logits(&asked, rows, &chosen)?;
        }
        Ok(())
    }

    /// Hears the logits of a job, and what was chosen of them.
    fn hear_logits(
        &mut self,
        &Asked { index, start, generates, .. }: &Asked,
        rows: Range<usize>,
        chosen: &[u32],
    ) -> gdn_model::Result<()> {
        let job = &mut self.scheduler.running()[index];
        self.pool.keep_checkpoint(job);
        let Job { tokens, sequence, data, .. } = job;
        let vocab = self.pool.model.config().vocab_size;
        let reads_prompt = data.reads_prompt(start);
        let mut logits = Vec::new();
        if reads_prompt || generates && data.reads_logits() {
            logits = self.pool.model.logits(rows.clone())?;
        }
        if reads_prompt {
            data.hear_prompt(tokens, start, &logits, vocab);
        }
        if generates {
            let last = logits.len().checked_sub(vocab).map(|at| logits.split_off(at));
            data.generate(tokens, chosen[rows.end - 1], last, self.limit);
            self.stats.generated_tokens += 1;
        } else if sequence.as_ref().is_some_and(|sequence| sequence.len() == tokens.len()) {
            data.end_of_prompt();
        }
        Ok(())
    }

    /// Takes leave of those that ended, and keeps what they saw: a conversation goes on from
    /// there.
    fn retire(&mut self) {
        let mut ended = self.scheduler.take(|job| job.data.has_ended());
        for job in &mut ended {
            if let Some(sequence) = job.sequence.take() {
                self.pool.keep(std::mem::take(&mut job.tokens), sequence);
            }
        }
        self.end(ended, |work| work.take_end().unwrap_or(FinishReason::Aborted));
    }

    fn abort(&mut self, which: impl Fn(&Work) -> bool) {
        let jobs = self.scheduler.take(|job| which(&job.data));
        self.end(jobs, |_| FinishReason::Aborted);
    }

    fn fail_all(&mut self, reason: &str) {
        tracing::error!(reason, "all requests fail");
        let jobs = self.scheduler.take(|_| true);
        self.end(jobs, |_| FinishReason::Failed(reason.to_owned()));
    }

    /// Says how jobs ended, when their memory is free and counted.
    fn end(&mut self, jobs: Vec<Running>, reason: impl Fn(&mut Work) -> FinishReason) {
        let mut ends = Vec::with_capacity(jobs.len());
        for Job { mut data, sequence, .. } in jobs {
            drop(sequence);
            let reason = reason(&mut data);
            match &reason {
                FinishReason::Stop | FinishReason::Length => self.stats.finished += 1,
                FinishReason::Aborted => self.stats.aborted += 1,
                FinishReason::Failed(_) => self.stats.failed += 1,
            }
            ends.push((data, reason));
        }
        self.shared.open.fetch_sub(ends.len(), Ordering::Relaxed);
        self.publish();
        for (work, reason) in ends {
            work.finish(reason);
        }
    }

    fn publish(&mut self) {
        self.pool.count(&mut self.stats);
        self.stats.running = self.scheduler.running().len();
        self.stats.queued = self.scheduler.waiting();
        self.stats.preemptions = self.scheduler.preemptions();
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats;
    }
}
