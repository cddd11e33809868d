//! After warm-up no operator allocates, on any thread.
#![allow(unsafe_code, reason = "a global allocator that counts")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use common::{Args, DTypes, Op, World};
use gdn::{Cpu, DType, LayerSpec, PoolOptions, StatePool};
use gdn_check::Tensor;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: `System` does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One batch of an operator, ready to be called again and again.
struct Batch {
    world: World,
    op: Op,
    inputs: gdn_check::Inputs,
    lengths: Vec<usize>,
    slots: Vec<i32>,
    pool: StatePool,
    out: Tensor,
}

impl Batch {
    fn new(op: Op, dtypes: DTypes) -> Self {
        let spec = LayerSpec::new(2, 4, 16, 24).unwrap();
        let rows = 8;
        let length = if op.is_prefill() { 3 } else { 1 };
        let world = World::new(&spec, dtypes, &vec![length; rows], 41);
        let tokens: Vec<_> = world.sequences.iter().flat_map(|s| &s.tokens).map(Some).collect();
        let options = PoolOptions {
            recurrent: dtypes.recurrent,
            conv: dtypes.activations,
            ..PoolOptions::new(rows)
        };
        let mut slots: Vec<i32> = (0..rows as i32).rev().collect();
        slots[3] = -1;
        Self {
            inputs: world.inputs(&tokens, 0),
            lengths: vec![length; rows],
            slots,
            pool: StatePool::new(&spec, &options).unwrap(),
            out: Tensor::poisoned(dtypes.activations, tokens.len(), op.out_cols(&spec)),
            world,
            op,
        }
    }

    /// The allocations of so many calls.
    fn allocations(&mut self, cpu: &mut Cpu, calls: usize) -> usize {
        let Self { world, op, inputs, lengths, slots, pool, out } = self;
        let before = ALLOCATIONS.load(Relaxed);
        for _ in 0..calls {
            let (layer, slots) = (&world.random.layer, (&*slots).into());
            let (state, out) = (pool.state_mut(), out.view_mut());
            Args::new(layer, inputs, lengths, slots, state, out).call(cpu, *op).unwrap();
        }
        ALLOCATIONS.load(Relaxed) - before
    }
}

// One test: the counter sees every thread of the process.
#[test]
fn no_call_allocates_after_warm_up() {
    let mut batches = Vec::new();
    for dtype in DType::ALL {
        let dtypes = DTypes { activations: dtype, recurrent: dtype };
        batches.extend(Op::all().map(|op| Batch::new(op, dtypes)));
    }
    for threads in [1, 2, 3] {
        let mut cpu = Cpu::with_threads(threads).unwrap();
        for batch in &mut batches {
            let what = format!("{:?}, {:?}, {threads} threads", batch.op, batch.world.dtypes);
            cpu.install(|cpu| {
                // Threads share out the tiles as they like: one may meet its
                // first tile late. Then all must have been quiet for 100 calls,
                // more than rayon's queue of 63 holds.
                batch.allocations(cpu, 1);
                let quiet = || batch.allocations(cpu, 100) == 0;
                let tries = if threads == 1 { 1 } else { 10 };
                assert!(std::iter::repeat_with(quiet).take(tries).any(|quiet| quiet), "{what}");
            });
        }
    }
}
