//! Products with bf16 weights at the shapes of Qwen3.5-0.8B, on one thread and on
//! all, beside what the machine can: a sum over the same bytes, and multiply-adds
//! in registers. Rounds alternate between the three, and weights rotate through
//! more memory than caches hold. `cargo bench -p gdn-model --bench product -- 1 64`
//! takes these numbers of tokens only.
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

#[expect(dead_code, reason = "a product is all that is measured")]
#[path = "../src/math/mod.rs"]
mod math;

use std::{hint::black_box, time::Instant};

use gdn::{Cpu, bf16};
use math::{Math, Out, Scratch, Values};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Name, outputs of each weight, inputs.
const SHAPES: [(&str, &[usize], usize); 5] = [
    ("gdn in", &[6144, 2048, 16, 16], 1024),
    ("gdn out", &[1024], 2048),
    ("gate, up", &[3584, 3584], 1024),
    ("down", &[1024], 3584),
    ("head", &[248_320], 1024),
];
/// More than the caches hold, and than any of the weights.
const WEIGHTS: usize = 300_000_000;
/// Multiply-adds a vector of [`Peak`] takes.
const STEPS: usize = 100_000;
/// Sums that hide the latency of a multiply-add.
const CHAINS: usize = 12;

fn main() {
    let numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let mut tokens: Vec<usize> = numbers.collect();
    if tokens.is_empty() {
        tokens = vec![1, 2, 4, 8, 64, 512];
    }
    let weights = (0..WEIGHTS).map(|i| bf16::from_bits(0x3c00 + (i % 509) as u16));
    let weights: Vec<bf16> = weights.collect();
    println!("threads tokens shape     GB/s of read     GFLOP/s of peak   (best, median)");
    let all = std::thread::available_parallelism().map_or(1, Into::into);
    for threads in if all > 1 { vec![1, all] } else { vec![1] } {
        let mut cpu = Cpu::with_threads(threads).expect("threads");
        cpu.install(|_| {
            for &tokens in &tokens {
                for (name, outputs, inputs) in SHAPES {
                    // Logits of every token are nobody's hot path.
                    if name != "head" || tokens <= 8 {
                        measure(threads, tokens, name, outputs, inputs, &weights);
                    }
                }
            }
        });
    }
}

fn measure(
    threads: usize,
    tokens: usize,
    name: &str,
    outputs: &[usize],
    inputs: usize,
    all: &[bf16],
) {
    let (arch, math, mut scratch) = (Arch::new(), Math::new(threads > 1), Scratch::default());
    let stride: usize = outputs.iter().sum();
    let len = stride * inputs;
    let x: Vec<f32> = (0..tokens * inputs).map(|i| (i % 13) as f32 - 6.0).collect();
    let mut y = vec![0.0; tokens * stride];
    let rounds = (4_000_000_000 / (len * tokens.max(16))).clamp(10, 50);
    let [mut product, mut read, mut peak] = [(); 3].map(|()| Vec::with_capacity(rounds));
    let copies = all.len() / len;
    for round in 0..rounds {
        let mut rest = &all[round % copies * len..];
        let weights = outputs.iter().map(|outputs| {
            let (weight, others) = rest.split_at(outputs * inputs);
            rest = others;
            Values::Bf16(weight)
        });
        let weights: Vec<Values<'_>> = weights.collect();
        product.push(seconds(|| {
            let out = Out { y: black_box(&mut y), stride, offset: 0 };
            math.product_into(&weights, inputs, &x, out, &mut scratch);
        }));
        let other = &all[(round + copies / 2) % copies * len..][..len];
        let chunk = (len / threads / 8).clamp(1, 1 << 19).next_multiple_of(64);
        let sum = |chunk: &[bf16]| {
            black_box(arch.dispatch(Read(bytemuck::cast_slice(chunk))));
        };
        // One thread is the caller's own, and rayon does not know it.
        read.push(seconds(|| match threads {
            1 => other.chunks(chunk).for_each(sum),
            _ => other.par_chunks(chunk).for_each(sum),
        }));
        let mut lanes = 0;
        let time = seconds(|| {
            lanes = match threads {
                1 => arch.dispatch(Peak),
                _ => rayon::broadcast(|_| arch.dispatch(Peak)).into_iter().sum(),
            };
        });
        peak.push(time / (2 * STEPS * CHAINS * lanes) as f64);
    }
    let [product, read, peak] = [product, read, peak].map(best_and_median);
    let (bytes, flops) = (2.0 * len as f64, 2.0 * (len * tokens) as f64);
    println!(
        "{threads:7} {tokens:6} {name:8} {:5.1} {:4.2} {:4.2}     {:7.1} {:4.2} {:4.2}",
        bytes / product.0 / 1e9,
        read.0 / product.0,
        read.1 / product.1,
        flops / product.0 / 1e9,
        flops * peak.0 / product.0,
        flops * peak.1 / product.1,
    );
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn best_and_median(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

/// A sum over memory.
struct Read<'a>(&'a [u32]);

impl WithSimd for Read<'_> {
    type Output = u32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u32 {
        let (blocks, rest) = S::as_simd_u32s(self.0).0.as_chunks::<8>();
        let mut sums = [simd.splat_u32s(rest.len() as u32); 8];
        for block in blocks {
            for (sum, &value) in sums.iter_mut().zip(block) {
                *sum = simd.add_u32s(*sum, value);
            }
        }
        bytemuck::bytes_of(&sums).iter().map(|&byte| u32::from(byte)).sum()
    }
}

/// Multiply-adds in registers; gives the lanes of one.
struct Peak;

impl WithSimd for Peak {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let half = simd.splat_f32s(black_box(0.5));
        let mut sums = [half; CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(half, *sum, half);
            }
        }
        black_box(bytemuck::bytes_of(&sums));
        S::F32_LANES
    }
}
