//! Both forms of prefill on a GPU, on a layer of Qwen3.5-35B-A3B: 16 query/key
//! and 32 value heads of 128 × 128, bf16 activations, f32 state.
//!
//! ```text
//! cargo bench -p gdn --bench prefill -- [sequences [tile of the chunked form]...]
//! ```
//!
//! Milliseconds of a call by the GPU's clock, the median of 20, with nothing of it
//! in the L2. A kernel's launch costs the host some microseconds, which short
//! prompts wait for.
#![allow(clippy::print_stdout)] // A table is what it is for.

use std::{env, error::Error};

use gdn::{
    Backend, Cuda, DType, ErrorKind, LayerSpec, PoolOptions, Prefill,
    PrefillForm::{self, Chunked, Recurrent},
    cuda::tiles::{Tile, Tiled},
};
use gdn_check::{Inputs, RandomLayer, Tensor};
use gdn_cuda::{Arena, Event};

const TOKENS: [usize; 5] = [64, 128, 512, 2048, 8192];
const REPEATS: usize = 20;
/// More than any L2 holds.
const FLUSH: usize = 256 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let sequences: usize = words.iter().find_map(|word| word.parse().ok()).unwrap_or(1);
    let tiles: Vec<Tile> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let mut backends = Vec::new();
    for tile in std::iter::once(None).chain(tiles.into_iter().map(Some)) {
        let mut cuda = match Cuda::new(0) {
            Ok(cuda) => cuda,
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable { .. }) => {
                println!("{error}");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(tile) = tile {
            cuda.force_tile(Tiled::Chunked, tile);
        }
        let name = tile.map_or("chunked".to_owned(), |tile| tile.to_string());
        backends.push((name, Chunked, cuda));
    }
    backends.insert(0, ("recurrent".to_owned(), Recurrent, Cuda::new(0)?));

    let names: Vec<&str> = backends.iter().map(|(name, ..)| name.as_str()).collect();
    println!("{}, {sequences} sequences, ms", backends[0].2.device_name());
    println!("tokens\t{}", names.join("\t"));
    for tokens in TOKENS {
        let times = time(&mut backends, sequences, tokens)?;
        let times: Vec<String> = times.iter().map(|ms| format!("{ms:.3}")).collect();
        println!("{tokens}\t{}", times.join("\t"));
    }
    Ok(())
}

/// The median of each backend, for sequences of so many tokens.
fn time(
    backends: &mut [(String, PrefillForm, Cuda)],
    sequences: usize,
    tokens: usize,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let dtype = DType::BF16;
    let spec = LayerSpec::new(16, 32, 128, 128)?;
    let layer = RandomLayer::new(&spec, dtype, 0).layer;
    let inputs = Inputs::random(&spec, dtype, sequences * tokens, 0, 0);
    let out = Tensor::poisoned(dtype, sequences * tokens, spec.value_len());
    let lengths = vec![tokens; sequences];
    let slots: Vec<i32> = (0..sequences as i32).collect();
    let mut medians = Vec::new();
    for (_, form, cuda) in backends {
        let stream = cuda.stream().clone();
        let bytes = inputs.mixed_qkv.slice().len() * 2 * 4 + FLUSH + (64 << 20);
        let arena = Arena::new(stream.device(), bytes)?;
        let on_device = |tensor: &Tensor| tensor.to_device(&arena, &stream);
        let (mixed_qkv, z) = (on_device(&inputs.mixed_qkv)?, on_device(&inputs.z)?);
        let (a, b) = (on_device(&inputs.a)?, on_device(&inputs.b)?);
        let mut out = on_device(&out)?;
        let mut flush = arena.alloc::<u8>(FLUSH)?;
        let options = PoolOptions { conv: dtype, ..PoolOptions::new(sequences) };
        let mut pool = cuda.pool(&spec, &options)?;
        let mut times = Vec::new();
        for repeat in 0..REPEATS + 3 {
            stream.fill_bytes(flush.view_mut(), 0)?;
            let events = [Event::timed(stream.device())?, Event::timed(stream.device())?];
            stream.record(&events[0])?;
            cuda.prefill(
                *form,
                Prefill {
                    layer: &layer,
                    mixed_qkv: mixed_qkv.view(),
                    a: a.view(),
                    b: b.view(),
                    z: z.view(),
                    lengths: &lengths,
                    slots: (&slots).into(),
                    state: pool.state_mut(),
                    out: out.view_mut(),
                },
            )?;
            stream.record(&events[1])?;
            events[1].synchronize()?;
            if repeat >= 3 {
                times.push(events[0].elapsed(&events[1])?.as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        medians.push(times[REPEATS / 2]);
        cuda.synchronize()?;
    }
    Ok(medians)
}
