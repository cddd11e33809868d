//! Runs every operator in turn and keeps the time.

use std::time::{Duration, Instant};

use anyhow::Context;
use gdn::{Backend, Cpu, Decode, DecodePath, LayerStep, PoolOptions, StatePool};
use gdn_check::{Inputs, RandomLayer, Tensor};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::Serialize;

use super::{copy::Blocks, plan::Plan, stats::Summary};
use crate::cli::BenchArgs;

/// What is timed.
#[derive(Clone, Copy, Debug)]
enum Timed {
    /// The recurrence step by step.
    Split,
    /// The recurrence in one kernel.
    Packed,
    /// Convolution, packed recurrence and norm, one by one.
    Chain,
    /// The same three at once.
    Fused,
    /// A copy of as many bytes.
    Copy,
}

impl Timed {
    /// In the order of their discriminants.
    const ALL: [Self; 5] = [Self::Split, Self::Packed, Self::Chain, Self::Fused, Self::Copy];
}

/// A row of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) batch: usize,
    pub(super) q_heads: usize,
    pub(super) v_heads: usize,
    pub(super) head_k: usize,
    pub(super) head_v: usize,
    /// The state of the batch; decode reads and writes each byte once.
    pub(super) state_bytes: u64,
    /// How often each operator ran.
    pub(super) repeats: usize,
    pub(super) split_us: Summary,
    pub(super) packed_us: Summary,
    pub(super) speedup: Summary,
    pub(super) saved_us: Summary,
    pub(super) chain_us: Summary,
    pub(super) fused_us: Summary,
    pub(super) copy_us: Summary,
    pub(super) state_gb_per_s: Summary,
    pub(super) share_of_copy: Summary,
}

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
        Ok(self.summarise(rows, &samples))
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

    fn summarise(&self, rows: usize, samples: &[Vec<f64>; Timed::ALL.len()]) -> Row {
        let [split, packed, chain, fused, copy] = samples;
        let of = |values: &[f64]| Summary::of(values.iter().copied());
        let with_packed = |values: &[f64], f: fn(f64, f64) -> f64| {
            Summary::of(values.iter().zip(packed).map(|(&value, &packed)| f(value, packed)))
        };
        let spec = self.layer.layer.spec();
        let state_bytes = rows as u64 * self.slot_bytes;
        Row {
            batch: rows,
            q_heads: spec.q_heads(),
            v_heads: spec.v_heads(),
            head_k: spec.head_k(),
            head_v: spec.head_v(),
            state_bytes,
            repeats: packed.len(),
            split_us: of(split),
            packed_us: of(packed),
            speedup: with_packed(split, |split, packed| split / packed),
            saved_us: with_packed(split, |split, packed| split - packed),
            chain_us: of(chain),
            fused_us: of(fused),
            copy_us: of(copy),
            state_gb_per_s: Summary::of(packed.iter().map(|us| 2e-3 * state_bytes as f64 / us)),
            share_of_copy: with_packed(copy, |copy, packed| copy / packed),
        }
    }
}

/// Slots in shuffled order, handed out in turn; or the same ones every time.
#[derive(Debug)]
struct Rotation {
    /// All slots twice: any number of them lies in one piece from any start.
    slots: Vec<i32>,
    next: usize,
    fixed: bool,
}

impl Rotation {
    fn new(slots: usize, fixed: bool, rng: &mut impl Rng) -> Self {
        let mut slots: Vec<i32> = (0..slots as i32).collect();
        slots.shuffle(rng);
        slots.extend_from_within(..);
        Self { slots, next: 0, fixed }
    }

    /// The next `rows` slots, no two alike.
    fn next(&mut self, rows: usize) -> &[i32] {
        let start = self.next;
        if !self.fixed {
            self.next = (start + rows) % (self.slots.len() / 2);
        }
        &self.slots[start..start + rows]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn slots_rotate_through_the_whole_pool() {
        let mut rotation = Rotation::new(7, false, &mut SmallRng::seed_from_u64(1));
        let first = rotation.next(3).to_vec();
        let second = rotation.next(3).to_vec();
        let third = rotation.next(3).to_vec();
        let all: HashSet<_> = first.iter().chain(&second).chain(&third[..1]).collect();
        assert_eq!(all.len(), 7, "no slot comes twice before all have come");
        assert_eq!(third[1..], first[..2], "then they come in the same order");
        assert_eq!(rotation.next(7).iter().collect::<HashSet<_>>().len(), 7);
    }

    #[test]
    fn warm_slots_stay() {
        let mut rotation = Rotation::new(7, true, &mut SmallRng::seed_from_u64(1));
        let first = rotation.next(3).to_vec();
        assert_eq!(rotation.next(3), first);
    }
}
