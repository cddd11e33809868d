//! Decode on a GPU as a server does it: everything there, one graph for the
//! batch, replayed while slots change.
//!
//! ```text
//! cargo run --release -p gdn --example cuda_graph
//! ```
//!
//! A graph keeps the addresses of what it recorded: capturing one is unsafe.
#![allow(unsafe_code, clippy::print_stdout)]

use std::error::Error;

use gdn::{
    Backend, Cuda, DType, DecodePath, ErrorKind, Layer, LayerSpec, LayerStep, LayerWeights,
    PoolOptions, Rows, RowsMut, bf16,
};
use gdn_cuda::Arena;

const BATCH: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut cuda = match Cuda::new(0) {
        Ok(cuda) => cuda,
        Err(error) if matches!(error.kind(), ErrorKind::Unavailable { .. }) => {
            println!("{error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let spec = LayerSpec::new(16, 32, 128, 128)?;
    let layer = layer(&spec)?;
    let (channels, heads, values) = (spec.channels(), spec.v_heads(), spec.value_len());

    // State for eight sequences; the models keep it in f32.
    let options = PoolOptions { conv: DType::BF16, ..PoolOptions::new(8) };
    let mut pool = cuda.pool(&spec, &options)?;
    cuda.prepare(&layer, DType::BF16, DType::F32, BATCH)?;

    // What the layer's input projections would write, and what its output
    // projection would read: parts of one block of memory.
    let stream = cuda.stream().clone();
    let arena = Arena::new(stream.device(), 1 << 20)?;
    let activations = |cols: usize| {
        let values: Vec<bf16> =
            (0..BATCH * cols).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
        let mut buffer = arena.alloc::<bf16>(values.len())?;
        stream.upload(buffer.view_mut(), &values)?;
        Ok::<_, gdn_cuda::Error>(buffer)
    };
    let (mixed_qkv, z) = (activations(channels)?, activations(values)?);
    let (a, b) = (activations(heads)?, activations(heads)?);
    let mut out = activations(values)?;
    let mut slots = arena.alloc::<i32>(BATCH)?;

    // SAFETY: layer, pool and buffers outlive the graph, and nobody else uses
    // them while it runs.
    let graph = unsafe {
        stream.capture(|_| {
            let step = LayerStep {
                layer: &layer,
                mixed_qkv: Rows::new(mixed_qkv.view(), BATCH, channels)?,
                a: Rows::new(a.view(), BATCH, heads)?,
                b: Rows::new(b.view(), BATCH, heads)?,
                z: Rows::new(z.view(), BATCH, values)?,
                slots: slots.view().into(),
                state: pool.state_mut(),
                out: RowsMut::new(out.view_mut(), BATCH, values)?,
            };
            Ok::<_, Box<dyn Error>>(cuda.layer_step(DecodePath::Fused, step)?)
        })
    }?;
    let graph = graph.instantiate(&stream)?;

    // Sequences come and go; -1 is a row without one.
    let (first, second) = (pool.allocate()?, pool.allocate()?);
    for batch in [[first, second, -1, -1], [second, -1, -1, -1], [second, first, -1, -1]] {
        stream.upload(slots.view_mut(), &batch)?;
        graph.launch(&stream)?;
        cuda.synchronize()?;
        let mut y = vec![bf16::ZERO; BATCH * values];
        stream.download(out.view(), &mut y)?;
        let firsts: Vec<f32> = y.chunks_exact(values).map(|row| row[0].to_f32()).collect();
        println!("slots {batch:?}: first output of each row {firsts:?}");
    }
    Ok(())
}

fn layer(spec: &LayerSpec) -> gdn::Result<Layer> {
    let (channels, heads) = (spec.channels(), spec.v_heads());
    Layer::new(
        spec,
        LayerWeights {
            conv_weight: Rows::new(&vec![0.25f32; channels * 4], channels, 4)?,
            conv_bias: None,
            a_log: (&vec![0.0f32; heads]).into(),
            dt_bias: (&vec![-2.0f32; heads]).into(),
            norm_weight: (&vec![1.0f32; spec.head_v()]).into(),
        },
    )
}
