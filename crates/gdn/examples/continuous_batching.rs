//! A small continuous-batching loop: sequences come, take a slot, decode, end
//! and free it, while the batch keeps one size by padding.
//!
//! ```text
//! cargo run --release -p gdn --example continuous_batching
//! ```
//!
//! The activations are made up; in an engine they come from the layer's input
//! projections, and `out` goes to its output projection.
#![allow(clippy::print_stdout)]

use std::collections::VecDeque;

use gdn::{
    Cpu, DType, Dispatcher, Layer, LayerSpec, LayerStep, LayerWeights, PoolOptions, Result, Rows,
    RowsMut, StatePool,
};

/// Rows of the batch, whether sequences fill them or not: a server captures one
/// graph for each batch size.
const BATCH: usize = 4;

struct Sequence {
    name: char,
    slot: i32,
    tokens_left: usize,
}

fn main() -> Result<()> {
    let spec = LayerSpec::new(4, 8, 128, 128)?;
    let layer = layer(&spec)?;
    let mut cpu = Cpu::new()?;
    let mut pool = StatePool::new(&spec, &PoolOptions::new(BATCH))?;
    let dispatcher = Dispatcher::new(&cpu, &layer, DType::F32, DType::F32, None)?;
    println!("decoding on the {} path, {}", dispatcher.path(), cpu.simd_level());

    let mut waiting: VecDeque<(char, usize)> =
        [('a', 3), ('b', 5), ('c', 2), ('d', 4), ('e', 3), ('f', 1)].into();
    let mut running: Vec<Sequence> = Vec::new();
    let mut out = vec![0.0f32; BATCH * spec.value_len()];
    for step in 0.. {
        while pool.free_slots() > 0
            && let Some((name, tokens_left)) = waiting.pop_front()
        {
            running.push(Sequence { name, slot: pool.allocate()?, tokens_left });
        }
        if running.is_empty() {
            break;
        }

        // Rows without a sequence are padding: no slot, and zeros come out.
        let mut slots = [-1; BATCH];
        for (slot, sequence) in slots.iter_mut().zip(&running) {
            *slot = sequence.slot;
        }
        let activations = |cols: usize| -> Vec<f32> {
            (0..BATCH * cols).map(|i| ((i + step) as f32 * 0.37).sin()).collect()
        };
        let (channels, heads, values) = (spec.channels(), spec.v_heads(), spec.value_len());
        let qkv = activations(channels);
        // a and b are halves of one projection: views of its columns.
        let ba = activations(2 * heads);
        let ba = Rows::new(&ba, BATCH, 2 * heads)?;
        let z = activations(values);
        let step_args = LayerStep {
            layer: &layer,
            mixed_qkv: Rows::new(&qkv, BATCH, channels)?,
            b: ba.columns(0, heads)?,
            a: ba.columns(heads, heads)?,
            z: Rows::new(&z, BATCH, values)?,
            slots: (&slots).into(),
            state: pool.state_mut(),
            out: RowsMut::new(&mut out, BATCH, values)?,
        };
        dispatcher.step(&mut cpu, step_args)?;

        let line: String = out
            .chunks_exact(values)
            .enumerate()
            .map(|(row, out)| match running.get(row) {
                Some(sequence) => format!("  {}: {:+.3}", sequence.name, out[0]),
                None => "  -".to_owned(),
            })
            .collect();
        println!("step {step}{line}");

        for sequence in &mut running {
            sequence.tokens_left -= 1;
        }
        for done in running.extract_if(.., |sequence| sequence.tokens_left == 0) {
            pool.free(done.slot)?;
        }
    }
    Ok(())
}

/// A layer of made-up weights.
fn layer(spec: &LayerSpec) -> Result<Layer> {
    let wave = |len: usize, step: f32| -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).cos() * 0.5).collect()
    };
    let conv_weight = wave(spec.channels() * spec.conv_width(), 0.7);
    let norm_weight = vec![1.0f32; spec.head_v()];
    let (a_log, dt_bias) = (wave(spec.v_heads(), 0.3), wave(spec.v_heads(), 0.9));
    let weights = LayerWeights {
        conv_weight: Rows::new(&conv_weight, spec.channels(), spec.conv_width())?,
        conv_bias: None,
        a_log: (&a_log).into(),
        dt_bias: (&dt_bias).into(),
        norm_weight: (&norm_weight).into(),
    };
    Layer::new(spec, weights)
}
