//! Which tokens run in the next step. Pure: it knows memory by what it can take of it, and
//! time by the order of calls.
//!
//! Jobs start in the order in which they came. Each step takes one token of every job that
//! generates, and as many of prompts as the limits allow. A job whose token finds no page
//! takes the memory of the job that came last, which waits again, at the head of the queue:
//! the oldest job always goes on, so each is the oldest in the end.

use std::collections::VecDeque;

/// Pieces of prompts end at multiples of this, as chunks and pages do.
const ALIGN: usize = 64;

/// Where jobs keep what the model remembers of them.
pub(crate) trait Memory {
    /// A state slot and some pages, given back when it drops.
    type Sequence;
    /// What jobs carry along.
    type Data;

    /// A sequence with the first tokens of a job, as many as are known, but never all of
    /// them. `None` if there is no slot.
    fn begin(&mut self, job: &mut Job<Self::Sequence, Self::Data>) -> Option<Self::Sequence>;

    /// The tokens of a sequence.
    fn len(&self, sequence: &Self::Sequence) -> usize;

    /// Takes pages for so many more tokens; whether there are as many.
    fn reserve(&mut self, sequence: &mut Self::Sequence, tokens: usize) -> bool;

    /// Whether so many pages are free, or can be made so.
    fn has_pages(&mut self, pages: usize) -> bool;
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Job<S, T> {
    /// The prompt, and what was generated. The model has not seen the last of them.
    pub(crate) tokens: Vec<u32>,
    /// Most tokens of it in a step.
    pub(crate) most: usize,
    /// So many tokens end a piece of the prompt.
    pub(crate) checkpoint: Option<usize>,
    /// While it runs.
    pub(crate) sequence: Option<S>,
    /// Whatever its owner keeps with it.
    pub(crate) data: T,
}

/// The bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Jobs that run at once, at least 1.
    pub(crate) running: usize,
    /// Tokens of prompts in a step that generates nothing, at least 1.
    pub(crate) prefill: usize,
    /// The same for a step that generates.
    pub(crate) mixed: usize,
}

/// The next tokens of a job that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Its place in [`Scheduler::running`].
    pub(crate) index: usize,
    /// At least one.
    pub(crate) count: usize,
}

/// The jobs that wait and those that run.
#[derive(Debug)]
pub(crate) struct Scheduler<S, T> {
    limits: Limits,
    waiting: VecDeque<Job<S, T>>,
    /// In the order in which they came.
    running: Vec<Job<S, T>>,
    preemptions: u64,
}

impl<S, T> Job<S, T> {
    /// The tokens that the model has not seen.
    fn left(&self, len: impl Fn(&S) -> usize) -> usize {
        self.tokens.len() - self.sequence.as_ref().map_or(0, len)
    }
}

impl<S, T> Scheduler<S, T> {
    pub(crate) fn new(limits: Limits) -> Self {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { limits, waiting, running, preemptions: 0 }
    }

    /// Adds a job of at least one token at the end of the queue, which takes `most` tokens at
    /// once.
    pub(crate) fn add(
        &mut self,
        tokens: Vec<u32>,
        most: usize,
        checkpoint: Option<usize>,
        data: T,
    ) {
        self.waiting.push_back(Job { tokens, most, checkpoint, sequence: None, data });
    }

    /// Another bound for tokens of prompts in a step that generates.
    pub(crate) fn set_mixed(&mut self, mixed: usize) {
        self.limits.mixed = mixed.max(1);
    }

    /// The jobs that generate.
    pub(crate) fn decodes(&self, len: impl Fn(&S) -> usize) -> usize {
        self.running.iter().filter(|job| job.left(&len) == 1).count()
    }

    /// The tokens of prompts that no step took yet.
    pub(crate) fn backlog(&self, len: impl Fn(&S) -> usize) -> usize {
        let all = self.running.iter().chain(&self.waiting);
        all.map(|job| job.left(&len)).filter(|&left| left > 1).sum()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Those that run, each with a sequence.
    pub(crate) fn running(&mut self) -> &mut [Job<S, T>] {
        &mut self.running
    }

    /// How often a job lost its memory to an older one.
    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes out the jobs of which `ends` says so.
    pub(crate) fn take(&mut self, mut ends: impl FnMut(&Job<S, T>) -> bool) -> Vec<Job<S, T>> {
        let mut taken: Vec<_> = self.running.extract_if(.., |job| ends(job)).collect();
        let (ended, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|j| ends(j));
        self.waiting = waiting;
        taken.extend::<VecDeque<_>>(ended);
        taken
    }

    /// The tokens of the next step: those that generate first. Empty only if there is no job,
    /// or memory for none.
    pub(crate) fn plan<M: Memory<Sequence = S, Data = T>>(
        &mut self,
        memory: &mut M,
    ) -> Vec<Planned> {
        let mut plan = self.plan_decodes(memory);
        let before = self.running.len();
        self.admit(memory);
        // A job may start with nothing but its last token.
        let last = |&index: &usize| left(memory, &self.running[index]) == 1;
        let started = (before..self.running.len()).filter(last);
        plan.extend(started.map(|index| Planned { index, count: 1 }));
        let Limits { prefill, mixed, .. } = self.limits;
        let budget = if plan.is_empty() { prefill } else { mixed };
        self.plan_prefills(memory, budget, &mut plan);
        plan
    }

    /// One token of every job that lacks no more.
    fn plan_decodes<M: Memory<Sequence = S, Data = T>>(&mut self, memory: &mut M) -> Vec<Planned> {
        let mut plan = Vec::with_capacity(self.running.len());
        let mut index = 0;
        // Whoever loses memory is the last, so places before it stay.
        while index < self.running.len() {
            if left(memory, &self.running[index]) == 1 {
                let job = &mut self.running[index];
                let sequence = job.sequence.as_mut().expect("it runs");
                if !memory.reserve(sequence, 1) {
                    self.preempt_last();
                    continue;
                }
                plan.push(Planned { index, count: 1 });
            }
            index += 1;
        }
        plan
    }

    fn preempt_last(&mut self) {
        let mut job = self.running.pop().expect("one asks for memory");
        job.sequence = None;
        self.waiting.push_front(job);
        self.preemptions += 1;
    }

    /// Starts jobs as long as there is memory for all their tokens, and for each that runs to
    /// grow by a page.
    fn admit<M: Memory<Sequence = S, Data = T>>(&mut self, memory: &mut M) {
        while self.running.len() < self.limits.running
            && let Some(job) = self.waiting.front_mut()
        {
            let Some(mut sequence) = memory.begin(job) else { break };
            let left = job.tokens.len() - memory.len(&sequence);
            let growth = self.running.len();
            if !memory.reserve(&mut sequence, left) || !memory.has_pages(growth) {
                break;
            }
            job.sequence = Some(sequence);
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Shares `budget` tokens among the prompts: half of it is the oldest's, so that it ends;
    /// the shortest come next, so that they don't wait for long ones.
    fn plan_prefills<M: Memory<Sequence = S, Data = T>>(
        &self,
        memory: &M,
        budget: usize,
        plan: &mut Vec<Planned>,
    ) {
        let mut prompts: Vec<_> = (0..self.running.len())
            .map(|index| (index, left(memory, &self.running[index])))
            .filter(|&(_, left)| left > 1)
            .collect();
        let Some(&oldest) = prompts.first() else { return };
        prompts[1..].sort_by_key(|&(_, left)| left);
        let half = if prompts.len() > 1 { budget.div_ceil(2) } else { budget };
        let mut rest = budget;
        for (n, &(index, _)) in prompts.iter().enumerate() {
            let share = if n == 0 { half } else { rest };
            let count = self.piece(memory, index, share, n == 0);
            if count > 0 {
                rest -= count;
                plan.push(Planned { index, count });
            }
        }
        // What nobody took goes to the oldest too.
        let first = plan.iter_mut().find(|planned| planned.index == oldest.0);
        if let Some(first) = first {
            first.count = self.piece(memory, oldest.0, first.count + rest, true);
        }
    }

    /// The next tokens of a prompt, `share` at the most. They end at a checkpoint, the prompt's
    /// end or a multiple of 64; `forced`, anywhere before half of them would be lost to that.
    fn piece<M: Memory<Sequence = S, Data = T>>(
        &self,
        memory: &M,
        index: usize,
        share: usize,
        forced: bool,
    ) -> usize {
        let job = &self.running[index];
        let all = job.tokens.len();
        let start = all - left(memory, job);
        let end = job.checkpoint.filter(|&at| start < at && at < all).unwrap_or(all);
        let wanted = end - start;
        let count = wanted.min(share).min(job.most);
        if count == wanted {
            return count;
        }
        let aligned = ((start + count) / ALIGN * ALIGN).saturating_sub(start);
        if forced && 2 * aligned < count { count } else { aligned }
    }
}

/// The tokens of a job that runs which the model has not seen.
fn left<M: Memory>(memory: &M, job: &Job<M::Sequence, M::Data>) -> usize {
    job.left(|sequence| memory.len(sequence))
}

#[cfg(test)]
mod tests;
