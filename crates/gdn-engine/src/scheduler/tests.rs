//! Simulations: arrivals, ends and memory by chance, steps in place of time.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use proptest::prelude::*;

use super::*;

const PAGE: usize = 64;

/// Counts of what is free.
#[derive(Debug)]
struct Free {
    slots: usize,
    pages: usize,
}

struct Sim {
    free: Rc<RefCell<Free>>,
    /// Tokens of every prompt that are known.
    known: usize,
    /// The checkpoints that are kept, the latest last, and how many may be. `None` if jobs
    /// know nothing of each other.
    kept: Option<(Vec<Vec<u32>>, usize)>,
}

#[derive(Debug)]
struct Seq {
    free: Rc<RefCell<Free>>,
    len: usize,
    pages: usize,
}

impl Drop for Seq {
    fn drop(&mut self) {
        let mut free = self.free.borrow_mut();
        free.slots += 1;
        free.pages += self.pages;
    }
}

/// What is known of a job.
#[derive(Clone, Copy, Debug)]
struct Spec {
    id: usize,
    prompt: usize,
    generate: usize,
}

impl Sim {
    fn new(slots: usize, pages: usize, known: usize) -> Self {
        Self { free: Rc::new(RefCell::new(Free { slots, pages })), known, kept: None }
    }

    fn keep(&mut self, tokens: &[u32]) {
        let Some((kept, most)) = &mut self.kept else { return };
        kept.push(tokens.to_vec());
        if kept.len() > *most {
            kept.remove(0);
        }
    }

    fn kept_of(&self, tokens: &[u32]) -> usize {
        let kept = self.kept.iter().flat_map(|(kept, _)| kept);
        let fits = kept.filter(|kept| kept.len() < tokens.len() && tokens.starts_with(kept));
        fits.map(Vec::len).max().unwrap_or(0).max(self.known.min(tokens.len() - 1))
    }
}

impl Memory for Sim {
    type Sequence = Seq;
    type Data = Spec;

    fn begin(&mut self, job: &mut Job<Seq, Spec>) -> Option<Seq> {
        {
            let mut free = self.free.borrow_mut();
            free.slots = free.slots.checked_sub(1)?;
        }
        let mut sequence = Seq { free: self.free.clone(), len: 0, pages: 0 };
        let known = self.kept_of(&job.tokens);
        if self.reserve(&mut sequence, known) {
            sequence.len = known;
        }
        Some(sequence)
    }

    fn known(&mut self, job: &Job<Seq, Spec>) -> Option<usize> {
        self.kept.as_ref().map(|_| self.kept_of(&job.tokens))
    }

    fn len(&self, sequence: &Seq) -> usize {
        sequence.len
    }

    fn reserve(&mut self, sequence: &mut Seq, tokens: usize) -> bool {
        let more = (sequence.len + tokens).div_ceil(PAGE).saturating_sub(sequence.pages);
        let mut free = self.free.borrow_mut();
        let enough = free.pages >= more;
        if enough {
            free.pages -= more;
            sequence.pages += more;
        }
        enough
    }

    fn has_pages(&mut self, pages: usize) -> bool {
        self.free.borrow().pages >= pages
    }
}

type Jobs = Scheduler<Seq, Spec>;

fn add(jobs: &mut Jobs, spec: Spec) {
    jobs.add(vec![0; spec.prompt], usize::MAX, None, spec);
}

/// Adds a job whose prompt has its first `shared` tokens in common with others.
fn add_like(jobs: &mut Jobs, shared: usize, spec: Spec) {
    let own = |at| if at < shared { 0 } else { 1 + spec.id as u32 };
    jobs.add((0..spec.prompt).map(own).collect(), usize::MAX, None, spec);
}

/// Whether an older job runs a page or more of what a job begins with.
fn may_be_held(jobs: &Jobs, memory: &Sim, job: &Job<Seq, Spec>) -> bool {
    let known = memory.kept_of(&job.tokens);
    memory.kept.is_some()
        && jobs.running.iter().any(|older| {
            let seen = older.sequence.as_ref().unwrap().len;
            let shared = common(&older.tokens, &job.tokens).min(job.tokens.len() - 1);
            older.data.id < job.data.id && shared > seen && shared >= known + PAGE
        })
}

/// Plans a step, checks it and does it; returns those that ended.
fn step(jobs: &mut Jobs, memory: &mut Sim, limits: Limits) -> Vec<Spec> {
    let plan = jobs.plan(memory);
    assert!(!plan.is_empty() || jobs.is_idle(), "somebody goes on");
    assert!(jobs.running().len() <= limits.running);
    assert!(jobs.running.iter().map(|job| job.data.id).is_sorted(), "by age");
    assert!(jobs.waiting.iter().map(|job| job.data.id).is_sorted(), "by age");
    assert_eq!(plan.iter().filter(|p| p.index == 0).count(), 1, "the oldest goes on");
    let (mut prompts, mut decodes) = (0, 0);
    let mut seen = vec![false; jobs.running().len()];
    for &Planned { index, count } in &plan {
        assert!(!std::mem::replace(&mut seen[index], true), "once a step");
        let job = &mut jobs.running()[index];
        let all = job.tokens.len();
        let sequence = job.sequence.as_mut().unwrap();
        assert!(count > 0 && sequence.len + count <= all);
        if all - sequence.len == 1 {
            decodes += 1;
        } else {
            prompts += count;
        }
        sequence.len += count;
        assert!(sequence.len <= sequence.pages * PAGE, "it has the pages");
        if job.checkpoints.contains(&sequence.len) {
            memory.keep(&job.tokens[..sequence.len]);
        }
        if sequence.len == all {
            job.tokens.push(0);
        }
    }
    let budget = if decodes > 0 { limits.mixed } else { limits.prefill };
    assert!(prompts <= budget, "{prompts} tokens of prompts beside {decodes}");
    let ended = jobs.take(|job| job.tokens.len() == job.data.prompt + job.data.generate);
    ended.into_iter().map(|job| job.data).collect()
}

fn limits() -> impl Strategy<Value = Limits> {
    (1usize..9, 1usize..300, 1usize..300).prop_map(|(running, prefill, mixed)| Limits {
        running,
        prefill,
        mixed: mixed.min(prefill),
    })
}

proptest! {
    /// Arrivals and aborts by chance: every job ends once, with all its tokens, and all
    /// memory comes back.
    #[test]
    fn no_job_is_lost_and_no_memory(
        limits in limits(),
        pages in 10usize..60,
        known in prop::sample::select(vec![0, 1, 64, 100]),
        kept in prop::option::of(0usize..4),
        jobs in prop::collection::vec(
            (1usize..600, 1usize..40, 0usize..6, any::<u8>(), 0usize..600),
            1..40,
        ),
    ) {
        let mut memory = Sim::new(limits.running, pages, known);
        memory.kept = kept.map(|most| (Vec::new(), most));
        let mut scheduler = Jobs::new(limits);
        let mut ended = HashMap::new();
        let mut aborted = 0;
        let mut budget = 1000;
        for (id, &(prompt, generate, wait, abort, shared)) in jobs.iter().enumerate() {
            budget += (prompt + generate) * 20;
            add_like(&mut scheduler, shared, Spec { id, prompt, generate });
            for _ in 0..wait {
                if !scheduler.is_idle() {
                    for spec in step(&mut scheduler, &mut memory, limits) {
                        *ended.entry(spec.id).or_insert(0) += 1;
                    }
                }
            }
            if abort < 40 {
                let victim = usize::from(abort) % (id + 1);
                aborted += scheduler.take(|job| job.data.id == victim).len();
            }
        }
        while !scheduler.is_idle() {
            prop_assert!(budget > 0, "it ends");
            budget -= 1;
            for spec in step(&mut scheduler, &mut memory, limits) {
                *ended.entry(spec.id).or_insert(0) += 1;
            }
        }
        prop_assert!(ended.values().all(|&times| times == 1));
        prop_assert_eq!(ended.len() + aborted, jobs.len());
        let free = memory.free.borrow();
        prop_assert_eq!((free.slots, free.pages), (limits.running, pages));
    }

    /// With memory for all, who starts before an older one passes only those held back, and
    /// takes none of their places. Beginnings are run once where checkpoints are kept.
    #[test]
    fn who_is_held_back_keeps_its_place(
        limits in limits(),
        kept in prop::sample::select(vec![0, 2, 1000]),
        jobs in prop::collection::vec((1usize..600, 0usize..4, 0usize..600), 2..30),
    ) {
        let mut memory = Sim::new(limits.running, 1 << 20, 0);
        memory.kept = Some((Vec::new(), kept));
        let mut scheduler = Jobs::new(limits);
        let mut arrivals = jobs.iter().enumerate();
        let mut waits = 0;
        loop {
            while waits == 0 {
                let Some((id, &(prompt, wait, shared))) = arrivals.next() else { break };
                add_like(&mut scheduler, shared, Spec { id, prompt, generate: 3 });
                waits = wait;
            }
            waits = waits.saturating_sub(1);
            if scheduler.is_idle() && arrivals.len() == 0 {
                break;
            }
            // What holds somebody back is there before the step, or starts in it.
            scheduler.admit(&mut memory);
            let places = limits.running - scheduler.running.len();
            for job in scheduler.waiting.iter().take(places) {
                prop_assert!(may_be_held(&scheduler, &memory, job), "{:?} could start", job.data);
            }
            step(&mut scheduler, &mut memory, limits);
        }
        prop_assert_eq!(scheduler.preemptions(), 0);
    }

    /// Without preemption jobs start in the order in which they came.
    #[test]
    fn first_come_first_served(limits in limits(), prompts in prop::collection::vec(1usize..400, 2..30)) {
        let mut memory = Sim::new(limits.running, 1 << 20, 0);
        let mut scheduler = Jobs::new(limits);
        for (id, &prompt) in prompts.iter().enumerate() {
            add(&mut scheduler, Spec { id, prompt, generate: 3 });
        }
        let mut started = 0;
        while !scheduler.is_idle() {
            step(&mut scheduler, &mut memory, limits);
            let running: Vec<_> = scheduler.running().iter().map(|job| job.data.id).collect();
            prop_assert!(running.is_sorted());
            started = running.last().map_or(started, |last| started.max(last + 1));
            let waiting: Vec<_> = scheduler.waiting.iter().map(|job| job.data.id).collect();
            prop_assert!(waiting.iter().all(|&id| id >= started), "{waiting:?}, {started}");
        }
        prop_assert_eq!(scheduler.preemptions(), 0);
    }
}

const LIMITS: Limits = Limits { running: 8, prefill: 512, mixed: 128 };

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut memory = Sim::new(8, 1 << 20, 0);
    let mut jobs = Jobs::new(LIMITS);
    add(&mut jobs, Spec { id: 0, prompt: 100_000, generate: 1 });
    step(&mut jobs, &mut memory, LIMITS);
    add(&mut jobs, Spec { id: 1, prompt: 200, generate: 1 });
    let first = step(&mut jobs, &mut memory, LIMITS);
    assert_eq!(first.iter().map(|spec| spec.id).collect::<Vec<_>>(), [1]);
    // Nor does the long one stand still, however many short ones come.
    let before = jobs.running()[0].sequence.as_ref().unwrap().len;
    for id in 2..9 {
        add(&mut jobs, Spec { id, prompt: 500, generate: 1 });
    }
    step(&mut jobs, &mut memory, LIMITS);
    let after = jobs.running()[0].sequence.as_ref().unwrap().len;
    assert!(after - before >= LIMITS.prefill / 2 - ALIGN, "{before} to {after}");
}

#[test]
fn answers_do_not_wait_for_prompts() {
    let mut memory = Sim::new(8, 1 << 20, 0);
    let mut jobs = Jobs::new(LIMITS);
    add(&mut jobs, Spec { id: 0, prompt: 10, generate: 1000 });
    step(&mut jobs, &mut memory, LIMITS);
    add(&mut jobs, Spec { id: 1, prompt: 1000, generate: 1 });
    let plan = jobs.plan(&mut memory);
    assert_eq!(plan, [Planned { index: 0, count: 1 }, Planned { index: 1, count: LIMITS.mixed }]);
}

#[test]
fn pieces_end_at_checkpoints_and_at_multiples() {
    let mut memory = Sim::new(8, 1 << 20, 0);
    let limits = Limits { prefill: 200, ..LIMITS };
    let mut jobs = Jobs::new(limits);
    jobs.add(vec![0; 520], usize::MAX, Some(300), Spec { id: 0, prompt: 520, generate: 1 });
    let mut ends = Vec::new();
    while !jobs.is_idle() {
        step(&mut jobs, &mut memory, limits);
        ends.extend(jobs.running().first().map(|job| job.sequence.as_ref().unwrap().len));
    }
    assert_eq!(ends, [192, 300, 448]);
    // And no longer than their owner wants.
    jobs.add(vec![0; 150], 64, None, Spec { id: 1, prompt: 150, generate: 1 });
    let plan = jobs.plan(&mut memory);
    assert_eq!(plan, [Planned { index: 0, count: 64 }]);
}

#[test]
fn the_last_gives_way() {
    // Both start with a page each, and there is one more.
    let limits = Limits { running: 2, prefill: 512, mixed: 512 };
    let mut memory = Sim::new(2, 3, 0);
    let mut jobs = Jobs::new(limits);
    add(&mut jobs, Spec { id: 0, prompt: 60, generate: 60 });
    add(&mut jobs, Spec { id: 1, prompt: 60, generate: 60 });
    let mut order = Vec::new();
    while !jobs.is_idle() {
        order.extend(step(&mut jobs, &mut memory, limits).iter().map(|spec| spec.id));
    }
    assert_eq!(order, [0, 1]);
    assert_eq!(jobs.preemptions(), 1);
}

/// A job starts if those that run can grow by a page beside it, and not only to lose its own.
#[test]
fn room_to_grow_stays_free() {
    let mut memory = Sim::new(8, 3, 0);
    let mut jobs = Jobs::new(LIMITS);
    add(&mut jobs, Spec { id: 0, prompt: 60, generate: 10 });
    add(&mut jobs, Spec { id: 1, prompt: 120, generate: 4 });
    step(&mut jobs, &mut memory, LIMITS);
    assert_eq!((jobs.running().len(), jobs.waiting()), (1, 1));
    while !jobs.is_idle() {
        step(&mut jobs, &mut memory, LIMITS);
    }
    assert_eq!(jobs.preemptions(), 0);
}

#[test]
fn small_pieces_are_not_made_smaller_still() {
    let limits = Limits { prefill: 48, ..LIMITS };
    let (mut memory, mut jobs) = (Sim::new(8, 1 << 20, 0), Jobs::new(limits));
    add(&mut jobs, Spec { id: 0, prompt: 150, generate: 1 });
    let mut ends = Vec::new();
    while !jobs.is_idle() {
        step(&mut jobs, &mut memory, limits);
        ends.extend(jobs.running().first().map(|job| job.sequence.as_ref().unwrap().len));
    }
    assert_eq!(ends, [48, 96, 128]);
}

/// Steps until all have ended; returns who ran how many tokens.
fn run_all(jobs: &mut Jobs, memory: &mut Sim, limits: Limits) -> HashMap<usize, usize> {
    let mut ran = HashMap::new();
    while !jobs.is_idle() {
        let lens = |jobs: &Jobs| -> HashMap<usize, usize> {
            let running = jobs.running.iter();
            running.map(|job| (job.data.id, job.sequence.as_ref().unwrap().len)).collect()
        };
        jobs.admit(memory);
        let before = lens(jobs);
        let ended = step(jobs, memory, limits);
        let mut after = lens(jobs);
        after.extend(ended.iter().map(|spec| (spec.id, spec.prompt + spec.generate - 1)));
        for (id, len) in after {
            *ran.entry(id).or_insert(0) += len - before[&id];
        }
    }
    ran
}

#[test]
fn a_beginning_is_run_once() {
    let mut memory = Sim::new(8, 1 << 20, 0);
    memory.kept = Some((Vec::new(), 4));
    let mut jobs = Jobs::new(LIMITS);
    // The same prompt, one that parts from it, and one that is all that two have in common.
    for (id, (shared, prompt)) in
        [(300, 300), (300, 300), (200, 300), (128, 128)].iter().enumerate()
    {
        add_like(&mut jobs, *shared, Spec { id, prompt: *prompt, generate: 1 });
    }
    let ran = run_all(&mut jobs, &mut memory, LIMITS);
    assert_eq!(ran, HashMap::from([(0, 300), (1, 300 - 256), (2, 300 - 192), (3, 64)]));
    // Where nothing can be kept all run, and nobody waits for what does not come.
    memory.kept = Some((Vec::new(), 0));
    for id in 0..3 {
        add_like(&mut jobs, 300, Spec { id, prompt: 300, generate: 1 });
    }
    let ran = run_all(&mut jobs, &mut memory, LIMITS);
    assert_eq!(ran, HashMap::from([(0, 300), (1, 300), (2, 300)]));
}

/// Whoever has nothing in common with a job that is held back starts before it, but not in
/// its place.
#[test]
fn strangers_pass_who_is_held_back() {
    let limits = Limits { running: 3, prefill: 64, mixed: 64 };
    let mut memory = Sim::new(3, 1 << 20, 0);
    memory.kept = Some((Vec::new(), 4));
    let mut jobs = Jobs::new(limits);
    for (id, shared) in [(0, 600), (1, 600), (2, 0), (3, 0)] {
        add_like(&mut jobs, shared, Spec { id, prompt: 700, generate: 1 });
    }
    step(&mut jobs, &mut memory, limits);
    let ids = |jobs: &Jobs| jobs.running.iter().map(|job| job.data.id).collect::<Vec<_>>();
    assert_eq!(ids(&jobs), [0, 2]);
    // The one that it waits for goes away: it starts, in its order.
    jobs.take(|job| job.data.id == 0);
    step(&mut jobs, &mut memory, limits);
    assert_eq!(ids(&jobs), [1, 2, 3]);
}

/// Whoever loses its memory waits behind those held back that came earlier.
#[test]
fn who_gives_way_passes_nobody() {
    let limits = Limits { running: 3, prefill: 64, mixed: 64 };
    let mut memory = Sim::new(3, 102, 0);
    memory.kept = Some((Vec::new(), 4));
    let mut jobs = Jobs::new(limits);
    for (id, shared, prompt) in [(0, 6400, 6400), (1, 6400, 6400), (2, 0, 60)] {
        add_like(&mut jobs, shared, Spec { id, prompt, generate: 90 });
    }
    while jobs.preemptions() == 0 {
        step(&mut jobs, &mut memory, limits);
    }
    assert_eq!(jobs.waiting.iter().map(|job| job.data.id).collect::<Vec<_>>(), [1, 2]);
}

/// A short way to a checkpoint counts as a short prompt: others are held back for it.
#[test]
fn who_is_waited_for_does_not_wait_for_short_prompts() {
    let mut memory = Sim::new(8, 1 << 20, 0);
    memory.kept = Some((Vec::new(), 4));
    let mut jobs = Jobs::new(LIMITS);
    add_like(&mut jobs, 0, Spec { id: 0, prompt: 100_000, generate: 1 });
    add_like(&mut jobs, 128, Spec { id: 1, prompt: 90_000, generate: 1 });
    add_like(&mut jobs, 128, Spec { id: 2, prompt: 160, generate: 1 });
    let mut ended = Vec::new();
    for id in 3..6 {
        add_like(&mut jobs, 0, Spec { id, prompt: 250, generate: 1 });
        ended.extend(step(&mut jobs, &mut memory, LIMITS).iter().map(|spec| spec.id));
    }
    assert!(ended.contains(&2), "{ended:?}");
}
