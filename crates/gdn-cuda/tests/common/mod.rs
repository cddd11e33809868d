//! What the tests share: a GPU or a reason to skip, and kernels to run on it.
#![allow(dead_code, unreachable_pub)] // Each test file uses a part.

use gdn_cuda::{
    Arena, Device, DevicePtr, Driver, ErrorKind, Function, KernelCache, KernelSource, LaunchConfig,
    Pod, Stream, Zeroable,
};

/// GPU 0, or `None` with a line saying why the test is skipped.
pub fn device() -> Option<Device> {
    let none = match Driver::load() {
        Err(e) if e.kind() == ErrorKind::NoDriver => "no CUDA driver",
        Err(e) if e.kind() == ErrorKind::NoDevice => "no GPU",
        other => match other.unwrap().device_count().unwrap() {
            0 => "no GPU",
            _ => return Some(Device::open(0).unwrap()),
        },
    };
    println!("skipped: {none}");
    None
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Axpy {
    pub x: DevicePtr<f32>,
    pub y: DevicePtr<f32>,
    pub a: f32,
    pub len: u32,
}

pub const AXPY: &str = r#"
struct Axpy { const float* x; float* y; float a; unsigned len; };
extern "C" __global__ void axpy(const Axpy p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.len) p.y[i] += p.a * p.x[i];
}
extern "C" __global__ void nothing() {}
extern "C" __global__ void several(float* x, int n) { if (n) *x = 0.f; }
"#;

/// Everything a test needs to run axpy.
pub struct Rig {
    pub stream: Stream,
    pub arena: Arena,
    pub axpy: Function,
    pub cache: KernelCache,
    pub device: Device,
}

impl Rig {
    pub fn new() -> Option<Self> {
        let device = device()?;
        let stream = Stream::new(&device).unwrap();
        let arena = Arena::new(&device, 16 << 20).unwrap();
        let cache = KernelCache::with_dir(&device, None);
        let axpy = cache.function(&KernelSource::new("axpy", AXPY), "axpy").unwrap();
        Some(Self { stream, arena, axpy, cache, device })
    }

    /// Compiles the kernel `entry` of `text`, in memory.
    pub fn kernel(&self, text: &str, entry: &str) -> Function {
        self.cache.function(&KernelSource::new(entry, text), entry).unwrap()
    }
}

pub fn shape(len: u32) -> LaunchConfig {
    LaunchConfig::linear(len.div_ceil(256), 256)
}
