//! y += a·x on the first GPU: every step from discovery to the result, and a clear word where
//! there is no GPU. Run it with `cargo run --release --example axpy`.

#![allow(unsafe_code, clippy::print_stdout)]

use gdn_cuda::{
    Arena, Device, DevicePtr, Driver, Event, KernelCache, KernelSource, LaunchConfig, Pod, Stream,
    Zeroable,
};

const SOURCE: &str = r#"
struct Axpy { const float* x; float* y; float a; unsigned len; };
extern "C" __global__ void axpy(const Axpy p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.len) p.y[i] += p.a * p.x[i];
}
"#;

/// The twin of `Axpy` above: same fields, same order.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Axpy {
    x: DevicePtr<f32>,
    y: DevicePtr<f32>,
    a: f32,
    len: u32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let driver = Driver::load()?; // An error here says what to install.
    for info in driver.devices()? {
        let gib = info.memory_bytes as f64 / (1u64 << 30) as f64;
        println!("GPU {}: {}, {gib:.0} GiB, {} SMs", info.ordinal, info.name, info.multiprocessors);
    }
    let device = Device::open(0)?;
    let stream = Stream::new(&device)?;

    // All device memory is taken at once; buffers are parts of it.
    let len = 1 << 24;
    let arena = Arena::new(&device, 2 * len * size_of::<f32>())?;
    let (mut x, mut y) = (arena.alloc::<f32>(len)?, arena.alloc::<f32>(len)?);
    stream.upload(x.view_mut(), &vec![1.0; len])?;
    stream.upload(y.view_mut(), &vec![2.0; len])?;

    // Compiled at the first run on this machine, read from disk at the next.
    let kernels = KernelCache::new(&device);
    let axpy = kernels.function(&KernelSource::new("axpy", SOURCE), "axpy")?;
    println!("{:?}, {:?}", axpy.info(), kernels.stats());

    let params = Axpy { x: x.ptr(), y: y.ptr(), a: 3.0, len: len as u32 };
    let shape = LaunchConfig::linear(params.len.div_ceil(256), 256);
    let (start, end) = (Event::timed(&device)?, Event::timed(&device)?);
    stream.record(&start)?;
    // SAFETY: both buffers hold `len` floats, and the kernel checks its index against `len`.
    unsafe { axpy.launch(&stream, &shape, &params) }?;
    stream.record(&end)?;

    let mut result = vec![0.0; len];
    stream.download(y.view(), &mut result)?;
    assert!(result.iter().all(|&y| y == 5.0));
    println!("{len} elements in {:?} on the GPU: all right", start.elapsed(&end)?);
    Ok(())
}
