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
        Self { free: Rc::new(RefCell::new(Free { slots, pages })), known }
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
        let known = self.known.min(job.tokens.len() - 1);
        if self.reserve(&mut sequence, known) {
            sequence.len = known;
        }
        Some(sequence)
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

/// Plans a step, checks it and does it; returns those that ended.
fn step(jobs: &mut Jobs, memory: &mut Sim, limits: Limits) -> Vec<Spec> {
    let plan = jobs.plan(memory);
    assert!(!plan.is_empty() || jobs.is_idle(), "somebody goes on");
    assert!(jobs.running().len() <= limits.running);
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
        jobs in prop::collection::vec((1usize..600, 1usize..40, 0usize..6, any::<u8>()), 1..40),
    ) {
        let mut memory = Sim::new(limits.running, pages, known);
        let mut scheduler = Jobs::new(limits);
        let mut ended = HashMap::new();
        let mut aborted = 0;
        let mut budget = 1000;
        for (id, &(prompt, generate, wait, abort)) in jobs.iter().enumerate() {
            budget += (prompt + generate) * 20;
            add(&mut scheduler, Spec { id, prompt, generate });
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
