//! What the operators' tests share: a GPU, arrays on it, and numbers.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use bytemuck::Pod;
use gdn::{
    DType, bf16,
    cuda::runtime::{Block, Runtime},
};
use gdn_emu::EmulatedGpu;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::cuda::Gpu;

/// The GPU of `GDN_TEST_BACKEND=cuda`, or else an emulated one; `None` where it can't be.
pub(crate) fn gpu(activations: DType) -> Option<Gpu> {
    static RUNTIME: OnceLock<Option<Arc<dyn Runtime>>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        if std::env::var("GDN_TEST_BACKEND").is_ok_and(|kind| kind == "cuda") {
            return Some(gdn::Cuda::new(0).unwrap().runtime().clone());
        }
        match emulated() {
            Ok(gpu) => Some(Arc::new(gpu)),
            Err(reason) => {
                skipped(reason);
                None
            }
        }
    });
    runtime.clone().map(|runtime| Gpu::new(runtime, activations))
}

fn emulated() -> Result<EmulatedGpu, &'static str> {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp/kernels");
    let mut gpu = EmulatedGpu::new(&out)?;
    // Set by `cargo xtask sanitize`, which has loaded what such kernels need.
    gpu.build.sanitize = std::env::var_os("GDN_EMU_SANITIZED").is_some();
    Ok(gpu)
}

#[expect(clippy::print_stderr, reason = "a test that tests nothing says so")]
fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// The GPU, and if it is an emulated one another that runs threads in some other order.
pub(crate) fn gpus(activations: DType) -> Vec<Gpu> {
    let gpu = gpu(activations);
    let emulated = gpu.as_ref().is_some_and(|gpu| gpu.runtime.stream().is_none());
    let shuffled = if emulated { shuffled_gpu(activations, 1) } else { None };
    gpu.into_iter().chain(shuffled).collect()
}

/// An emulated GPU that runs threads in an order drawn from `schedule`.
pub(crate) fn shuffled_gpu(activations: DType, schedule: u32) -> Option<Gpu> {
    let mut runtime = emulated().ok()?;
    runtime.schedule = schedule;
    Some(Gpu::new(Arc::new(runtime), activations))
}

/// An array on the GPU.
pub(crate) fn upload<T: Pod>(gpu: &Gpu, values: &[T]) -> Block {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let mut block = Block::new(&gpu.runtime, bytes.len()).unwrap();
    block.upload(0, bytes).unwrap();
    block
}

/// The array of so many elements.
pub(crate) fn download<T: Pod>(block: &Block, len: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
    block.download(0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// Activations in the GPU's dtype.
pub(crate) fn upload_act(gpu: &Gpu, values: &[f32]) -> Block {
    match gpu.activations {
        DType::BF16 => upload(gpu, &rounded(values)),
        _ => upload(gpu, values),
    }
}

pub(crate) fn download_act(gpu: &Gpu, block: &Block, len: usize) -> Vec<f32> {
    match gpu.activations {
        DType::BF16 => download::<bf16>(block, len).into_iter().map(bf16::to_f32).collect(),
        _ => download(block, len),
    }
}

pub(crate) fn rounded(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

/// Numbers in [-1, 1) that bf16 has.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-1.0..1.0)).to_f32()).collect()
}

/// Fails where the two differ by more than `tolerance`, relative to 1 or to what is expected.
pub(crate) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        let fine = error <= tolerance * expected.abs().max(1.0);
        assert!(fine, "[{i}]: expected {expected}, got {got}, which is {error:e} off");
    }
}
