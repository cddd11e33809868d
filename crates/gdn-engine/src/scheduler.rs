//! Which tokens run in the next step. Pure: it knows memory by what it can take of it, and
//! time by the order of calls.
//!
//! Jobs start in the order in which they came. Each step takes one token of every job that
//! generates, and as many of prompts as the limits allow. A job whose token finds no page
//! takes the memory of the job that came last, which waits again, at the head of the queue:
//! the oldest job always goes on, so each is the oldest in the end.
//!
//! A job that begins like an older one, which runs its prompt, is held back until that one
//! has left a checkpoint behind what they share. Others start meanwhile, in places that are
//! not those of jobs held back. It waits for older jobs that run, and for nothing else: it
//! goes on by itself where there is none.

use std::collections::VecDeque;

use crate::prefix::common;

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

    /// The tokens that [`begin`](Self::begin) would know. `None` if the job is to run each of
    /// its tokens, or if nothing is kept for others.
    fn known(&mut self, job: &Job<Self::Sequence, Self::Data>) -> Option<usize>;

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
    /// So many tokens end a piece of the prompt each; what was seen then is kept for others.
    pub(crate) checkpoints: Vec<usize>,
    /// Lower than those of jobs that came later.
    order: u64,
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
    /// The jobs that came.
    came: u64,
}

impl<S, T> Job<S, T> {
    /// The tokens that the model has not seen.
    fn left(&self, len: impl Fn(&S) -> usize) -> usize {
        self.tokens.len() - self.sequence.as_ref().map_or(0, len)
    }

    /// Where a piece of its prompt ends that starts at `start`.
    fn end_of_piece(&self, start: usize) -> usize {
        let all = self.tokens.len();
        let inside = self.checkpoints.iter().filter(|&&at| start < at && at < all);
        inside.min().copied().unwrap_or(all)
    }

    /// Where another job should start from that begins with the first `shared` tokens too,
    /// when `seen` of them are run.
    fn fork_point(&self, seen: usize, shared: usize) -> usize {
        let page = shared / ALIGN * ALIGN;
        // A checkpoint that is to come anyway costs no piece more.
        let fits = |&&at: &&usize| seen < at && at <= shared && page < at + ALIGN;
        self.checkpoints.iter().filter(fits).max().copied().unwrap_or(page)
    }
}

impl<S, T> Scheduler<S, T> {
    pub(crate) fn new(limits: Limits) -> Self {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { limits, waiting, running, preemptions: 0, came: 0 }
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
        let (checkpoints, order) = (checkpoint.into_iter().collect(), self.came);
        self.came += 1;
        self.waiting.push_back(Job { tokens, most, checkpoints, order, sequence: None, data });
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
        self.reserve_decodes(memory);
        self.admit(memory);
        // Those that generate, and those that start with nothing but their last token.
        let last = |&index: &usize| left(memory, &self.running[index]) == 1;
        let decodes = (0..self.running.len()).filter(last);
        let mut plan: Vec<_> = decodes.map(|index| Planned { index, count: 1 }).collect();
        let Limits { prefill, mixed, .. } = self.limits;
        let budget = if plan.is_empty() { prefill } else { mixed };
        self.plan_prefills(memory, budget, &mut plan);
        plan
    }

    /// Memory for one token of every job that lacks no more.
    fn reserve_decodes<M: Memory<Sequence = S, Data = T>>(&mut self, memory: &mut M) {
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
            }
            index += 1;
        }
    }

    fn preempt_last(&mut self) {
        let mut job = self.running.pop().expect("one asks for memory");
        job.sequence = None;
        // Behind older ones that are held back.
        let place = self.waiting.partition_point(|other| other.order < job.order);
        self.waiting.insert(place, job);
        self.preemptions += 1;
    }

    /// Starts jobs that need not be held back, as long as there is memory for all their
    /// tokens, and for each that runs to grow by a page.
    fn admit<M: Memory<Sequence = S, Data = T>>(&mut self, memory: &mut M) {
        // Those held back are at the head of the queue, and their places stay theirs.
        let mut held = 0;
        while self.running.len() + held < self.limits.running && held < self.waiting.len() {
            if self.is_held(memory, held) {
                held += 1;
                continue;
            }
            let job = &mut self.waiting[held];
            let Some(mut sequence) = memory.begin(job) else { break };
            let left = job.tokens.len() - memory.len(&sequence);
            let growth = self.running.len();
            if !memory.reserve(&mut sequence, left) || !memory.has_pages(growth) {
                break;
            }
            job.sequence = Some(sequence);
            let job = self.waiting.remove(held).expect("it waits");
            let place = self.running.partition_point(|other| other.order < job.order);
            self.running.insert(place, job);
        }
    }

    /// Whether an older job is about to run a page or more of what a job that waits begins
    /// with. That one will leave a checkpoint there.
    fn is_held<M: Memory<Sequence = S, Data = T>>(
        &mut self,
        memory: &mut M,
        waiting: usize,
    ) -> bool {
        let job = &self.waiting[waiting];
        let mut best = None;
        for (index, older) in self.running.iter().enumerate() {
            let left = left(memory, older);
            if older.order > job.order || left == 1 {
                continue;
            }
            let seen = older.tokens.len() - left;
            // One token is left to run.
            let shared = common(&older.tokens, &job.tokens[..job.tokens.len() - 1]);
            let at = older.fork_point(seen, shared);
            if at > seen && best.is_none_or(|(most, _)| at > most) {
                best = Some((at, index));
            }
        }
        let Some((at, index)) = best else { return false };
        if memory.known(job).is_none_or(|known| at < known + ALIGN) {
            return false;
        }
        let checkpoints = &mut self.running[index].checkpoints;
        if !checkpoints.contains(&at) {
            checkpoints.push(at);
        }
        true
    }

    /// Shares `budget` tokens among the prompts: half of it is the oldest's, so that it ends;
    /// those with the shortest way to their end or a checkpoint come next, so that they, and
    /// who is held back for them, don't wait for long ones.
    fn plan_prefills<M: Memory<Sequence = S, Data = T>>(
        &self,
        memory: &M,
        budget: usize,
        plan: &mut Vec<Planned>,
    ) {
        let mut prompts: Vec<_> =
            (0..self.running.len()).filter(|&i| left(memory, &self.running[i]) > 1).collect();
        let Some(&oldest) = prompts.first() else { return };
        prompts[1..].sort_by_key(|&index| {
            let job = &self.running[index];
            let start = job.tokens.len() - left(memory, job);
            job.end_of_piece(start) - start
        });
        let half = if prompts.len() > 1 { budget.div_ceil(2) } else { budget };
        let mut rest = budget;
        for (n, &index) in prompts.iter().enumerate() {
            let share = if n == 0 { half } else { rest };
            let count = self.piece(memory, index, share, n == 0);
            if count > 0 {
                rest -= count;
                plan.push(Planned { index, count });
            }
        }
        // What nobody took goes to the oldest too.
        let first = plan.iter_mut().find(|planned| planned.index == oldest);
        if let Some(first) = first {
            first.count = self.piece(memory, oldest, first.count + rest, true);
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
        let start = job.tokens.len() - left(memory, job);
        let wanted = job.end_of_piece(start) - start;
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
