//! Runs every operator in turn and keeps the time.

use std::time::{Duration, Instant};

use anyhow::Context;
use gdn::{Backend, Cpu, Decode, DecodePath, LayerStep, PoolOptions, StatePool};
use gdn_check::{Inputs, RandomLayer, Tensor};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{
    copy::Blocks,
    plan::Plan,
    rotation::Rotation,
    row::{Row, Timed},
};
use crate::cli::BenchArgs;

/// The memory that every row of the table shares.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    args: &'a BenchArgs,
    layer: RandomLayer,
    pool: StatePool,
    slots: Rotation,
    blocks: Blocks<'a>,
    /// Which blocks of the copy come next.
    copied: Rotation,
    slot_bytes: u64,
    rng: SmallRng,
}

/// The activations of a batch.
struct Batch {
    rows: usize,
    inputs: Inputs,
    out: Tensor,
}

impl<'a> Bench<'a> {
    /// Fills the pool: every page of it is there before the first measurement.
    pub(super) fn new(
        args: &'a BenchArgs,
        plan: &Plan,
        layer: RandomLayer,
        blocks: Blocks<'a>,
    ) -> anyhow::Result<Self> {
        let spec = &plan.spec;
        let mut rng = SmallRng::seed_from_u64(args.seed.into());
        let options = PoolOptions {
            recurrent: args.state_dtype,
            conv: args.dtype,
            ..PoolOptions::new(plan.slots)
        };
        let mut pool = StatePool::new(spec, &options).context("no memory for the state pool")?;
        let mut random = |len| (0..len).map(|_| rng.random_range(-0.5..0.5)).collect::<Vec<f32>>();
        let recurrent = random(spec.state_len());
        let conv = random((spec.conv_width() - 1) * spec.channels());
        for slot in 0..plan.slots as i32 {
            pool.set(slot, &recurrent, &conv)?;
        }
        let slots = Rotation::new(plan.slots, args.warm, &mut rng);
        let copied = Rotation::new(blocks.len(), args.warm, &mut rng);
        Ok(Self { args, layer, pool, slots, blocks, copied, slot_bytes: plan.slot_bytes, rng })
    }

    /// Measures a batch of `rows` until there are enough rounds and enough time
    /// has passed. In a round every operator runs once, in random order, so that
    /// none has the same one before it each time.
    pub(super) fn row(
        &mut self,
        cpu: &mut Cpu,
        rows: usize,
        progress: impl Fn(f64) + Sync,
    ) -> anyhow::Result<Row> {
        let spec = self.layer.layer.spec();
        let mut batch = Batch {
            rows,
            inputs: Inputs::random(spec, self.args.dtype, rows, 0, self.args.seed.into()),
            out: Tensor::poisoned(self.args.dtype, rows, spec.value_len()),
        };
        let mut samples: [Vec<f64>; Timed::ALL.len()] = Default::default();
        // On a thread of the backend: handing over to one is not timed.
        cpu.install(|cpu| {
            let mut order = Timed::ALL;
            for timed in order {
                self.call(cpu, timed, &mut batch)?;
            }
            let start = Instant::now();
            loop {
                let rounds = samples[0].len() as f64 / self.args.repeats as f64;
                let time = start.elapsed().as_secs_f64() / self.args.min_time;
                // Not `time.min(rounds)`: no time at all makes it NaN.
                let done = if time < rounds { time } else { rounds };
                if done >= 1.0 {
                    break;
                }
                progress(done);
                order.shuffle(&mut self.rng);
                for timed in order {
                    if self.args.warm {
                        self.call(cpu, timed, &mut batch)?;
                    }
                    let elapsed = self.call(cpu, timed, &mut batch)?;
                    samples[timed as usize].push(elapsed.as_secs_f64() * 1e6);
                }
            }
            Ok::<_, gdn::Error>(())
        })?;
        Ok(Row::new(self.layer.layer.spec(), rows, self.slot_bytes, &samples, None))
    }

    /// The time of one call on the next slots.
    fn call(&mut self, cpu: &mut Cpu, timed: Timed, batch: &mut Batch) -> gdn::Result<Duration> {
        if let Timed::Copy = timed {
            let blocks = self.copied.next(batch.rows);
            let start = Instant::now();
            self.blocks.copy(cpu, blocks);
            return Ok(start.elapsed());
        }
        let layer = &self.layer.layer;
        let slots = self.slots.next(batch.rows).into();
        let Inputs { mixed_qkv, a, b, z } = &batch.inputs;
        let (mixed_qkv, a, b, z) = (mixed_qkv.view(), a.view(), b.view(), z.view());
        let (state, out) = (self.pool.state_mut(), batch.out.view_mut());
        match timed {
            Timed::Split | Timed::Packed => {
                let recurrent = state.recurrent;
                let args = Decode { layer, mixed_qkv, a, b, slots, recurrent, out };
                let start = Instant::now();
                match timed {
                    Timed::Split => cpu.split_decode(args)?,
                    _ => cpu.packed_decode(args)?,
                }
                Ok(start.elapsed())
            }
            _ => {
                let path = match timed {
                    Timed::Chain => DecodePath::Packed,
                    _ => DecodePath::Fused,
                };
                let args = LayerStep { layer, mixed_qkv, a, b, z, slots, state, out };
                let start = Instant::now();
                cpu.layer_step(path, args)?;
                Ok(start.elapsed())
            }
        }
    }
}
