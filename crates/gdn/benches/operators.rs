//! Every operator on a layer of Qwen3.5-35B-A3B: 16 query/key and 32 value
//! heads of 128 × 128.
//!
//! Decode counts bytes of state, read once and written once; conv update and
//! gated norm those of the tensors they stream; prefill counts tokens.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{hint::black_box, time::Duration};

use common::{Args, Op};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gdn::{Cpu, DType, LayerSpec, PoolOptions, StatePool};
use gdn_check::{Inputs, RandomLayer, Tensor};

const ACTIVATIONS: DType = DType::BF16;

/// The slots of the pool: batches rotate through more state than an L2 holds.
const SLOTS: usize = 96;

/// The tokens of a sequence in a prefill.
const TOKENS: usize = 64;

fn operators(criterion: &mut Criterion) {
    let spec = LayerSpec::new(16, 32, 128, 128).expect("a valid shape");
    let layer = RandomLayer::new(&spec, ACTIVATIONS, 0).layer;
    let mut cpu = Cpu::new().expect("threads");
    for recurrent in [DType::F32, DType::BF16] {
        let options = PoolOptions { recurrent, conv: ACTIVATIONS, ..PoolOptions::new(SLOTS) };
        let mut pool = StatePool::new(&spec, &options).expect("memory for the pool");
        // Untouched slots would all be one page of zeros: write each.
        let mut slots: Vec<i32> = (0..SLOTS).map_while(|_| pool.allocate().ok()).collect();
        for rows in [1, 16] {
            for op in Op::all() {
                if !op.has_recurrent() && recurrent != DType::F32 {
                    continue;
                }
                let tokens = if op.is_prefill() { TOKENS } else { 1 };
                let inputs = Inputs::random(&spec, ACTIVATIONS, rows * tokens, 0, 0);
                let lengths = vec![tokens; rows];
                let mut out = Tensor::poisoned(ACTIVATIONS, rows * tokens, op.out_cols(&spec));

                let mut group = criterion.benchmark_group(name(op));
                group.throughput(throughput(op, &spec, rows, recurrent));
                let id = BenchmarkId::new(format!("{recurrent} state"), format!("B={rows}"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        slots.rotate_left(rows);
                        let batch = slots[..rows].into();
                        let (state, out) = (pool.state_mut(), out.view_mut());
                        let args = Args::new(&layer, &inputs, &lengths, batch, state, out);
                        args.call(black_box(&mut cpu), op).expect("valid arguments");
                    });
                });
            }
        }
    }
}

fn name(op: Op) -> String {
    match op {
        Op::Conv => "conv_update".into(),
        Op::Norm => "gated_norm".into(),
        Op::Decode(path) => format!("{path}_decode"),
        Op::Layer(path) => format!("layer_step, {path}"),
        Op::Prefill(form) => format!("prefill, {form:?}").to_lowercase(),
    }
}

fn throughput(op: Op, spec: &LayerSpec, rows: usize, recurrent: DType) -> Throughput {
    let elements = match op {
        Op::Prefill(_) => return Throughput::Elements((rows * TOKENS) as u64),
        // W − 1 old inputs and the new one read, one written, the output.
        Op::Conv => (spec.conv_width() + 2) * spec.channels() * ACTIVATIONS.size(),
        Op::Norm => 3 * spec.value_len() * ACTIVATIONS.size(),
        Op::Decode(_) | Op::Layer(_) => 2 * spec.state_len() * recurrent.size(),
    };
    Throughput::Bytes((rows * elements) as u64)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = operators
}
criterion_main!(benches);
