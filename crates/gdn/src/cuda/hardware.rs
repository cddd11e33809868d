//! The runtime on a real GPU, over `gdn-cuda`.
#![expect(unsafe_code, reason = "launches and copies trust the addresses they get")]

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use gdn_cuda::{
    Arena, DevicePtr, DeviceSlice, DeviceSliceMut, Function, KernelCache, KernelSource,
    LaunchConfig, MemoryInfo, PinnedBuffer, Stream,
};

use super::{
    kernel::{HEADERS, Kernel},
    runtime::{KernelText, Loaded, Runtime},
    tiles::{Geometry, Gpu},
};
use crate::{ErrorKind, Place, Result};

/// A stream of a GPU and the kernels loaded there.
pub(crate) struct Hardware {
    gpu: Gpu,
    stream: Stream,
    cache: Arc<KernelCache>,
    functions: Arc<Mutex<HashMap<Kernel, Function>>>,
    staging: Mutex<Staging>,
}

/// Pinned memory on the way of small uploads, in turns, so that none waits for the GPU.
#[derive(Default)]
struct Staging {
    buffers: Vec<PinnedBuffer<u8>>,
    uploads: usize,
}

impl Staging {
    /// More than the layers of a model, each of which may upload in a step.
    const BUFFERS: usize = 64;
    const BYTES: usize = 128 << 10;

    fn upload(
        &mut self,
        stream: &Stream,
        to: DeviceSliceMut<'_, u8>,
        bytes: &[u8],
    ) -> gdn_cuda::Result<()> {
        let index = self.uploads % Self::BUFFERS;
        if index == self.buffers.len() {
            self.buffers.push(PinnedBuffer::new(stream.device(), Self::BYTES)?);
        }
        let buffer = &mut self.buffers[index];
        buffer.get_mut()?[..bytes.len()].copy_from_slice(bytes);
        stream.upload_pinned(to, buffer)?;
        self.uploads += 1;
        Ok(())
    }
}

impl Hardware {
    pub(crate) fn new(stream: Stream) -> Self {
        let info = stream.device().info();
        let capability = info.compute_capability;
        let gpu = Gpu {
            name: info.name.clone(),
            capability: capability.major * 10 + capability.minor,
            multiprocessors: info.multiprocessors,
            shared_bytes: info.max_block_shared_bytes,
            memory_gb_s: (info.peak_bytes_per_second().unwrap_or(0.0) / 1e9) as u32,
        };
        let cache = Arc::new(KernelCache::new(stream.device()));
        Self { gpu, stream, cache, functions: Arc::default(), staging: Mutex::default() }
    }

    /// The kernel, compiled and loaded at its first use.
    fn function(&self, kernel: &Kernel) -> Result<Function> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let source = kernel.source;
        let function = self.compile(&KernelText {
            name: source.name(),
            text: source.text(),
            headers: &HEADERS,
            defines: kernel.defines(),
            entry: kernel.entry,
        })?;
        functions.insert(*kernel, function.clone());
        Ok(function)
    }

    fn compile(&self, kernel: &KernelText<'_>) -> Result<Function> {
        let mut text = KernelSource::new(kernel.name, kernel.text)
            .option("--fmad=false")
            // Lambdas say nothing of where they run.
            .option("-default-device");
        for (name, header) in kernel.headers {
            text = text.header(name, header);
        }
        for (name, value) in &kernel.defines {
            text = text.option(format!("-D{name}={value}"));
        }
        if std::env::var_os("GDN_ALL_ARRIVE").is_some() {
            text = text.option("-DGDN_ALL_ARRIVE=1");
        }
        let function = self.cache.function(&text, kernel.entry).map_err(|e| self.refused(e))?;
        tracing::debug!(kernel = kernel.entry, info = ?function.info(), "kernel loaded");
        Ok(function)
    }

    fn refused(&self, error: gdn_cuda::Error) -> crate::Error {
        refused(error, self.ordinal())
    }
}

fn refused(error: gdn_cuda::Error, gpu: usize) -> crate::Error {
    let reason = error.to_string();
    match error.kind() {
        gdn_cuda::ErrorKind::NoCompiler => {
            ErrorKind::Unavailable { backend: "cuda", reason }.into()
        }
        _ => ErrorKind::Device { place: Place::Cuda(gpu), reason }.into(),
    }
}

fn config(gpu: &Gpu, geometry: &Geometry) -> LaunchConfig {
    let Geometry { grid, threads, shared_bytes, cluster, overlap } = *geometry;
    let mut config = LaunchConfig::new(grid, [threads, 1, 1]).shared_bytes(shared_bytes);
    if cluster > 1 {
        config = config.cluster([cluster, 1, 1]);
    }
    if overlap && gpu.is_sm90() {
        config = config.overlap_previous();
    }
    config
}

/// A kernel and the stream that it goes to.
#[derive(Debug)]
struct OnStream {
    function: Function,
    gpu: Gpu,
    stream: Stream,
}

impl Loaded for OnStream {
    unsafe fn launch(&self, geometry: &Geometry, params: &[u8]) -> Result<()> {
        let config = config(&self.gpu, geometry);
        // SAFETY: the caller's promise.
        unsafe { self.function.launch_bytes(&self.stream, &config, params) }
            .map_err(|e| refused(e, self.stream.device().info().ordinal))
    }
}

impl Runtime for Hardware {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn ordinal(&self) -> usize {
        self.stream.device().info().ordinal
    }

    fn allocate(&self, bytes: usize) -> Result<(u64, Box<dyn Any + Send + Sync>)> {
        let buffer = Arena::new(self.stream.device(), bytes).and_then(|a| a.alloc::<u8>(bytes));
        let buffer = buffer.map_err(|e| self.refused(e))?;
        Ok((buffer.ptr().address(), Box::new(buffer)))
    }

    fn memory(&self) -> Result<Option<MemoryInfo>> {
        self.stream.device().memory().map(Some).map_err(|e| self.refused(e))
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        let to = unsafe { device_mut(to, bytes.len(), self.ordinal()) };
        let uploaded = if bytes.len() <= Staging::BYTES {
            let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            staging.upload(&self.stream, to, bytes)
        } else {
            self.stream.upload(to, bytes)
        };
        uploaded.map_err(|e| self.refused(e))
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        let from = unsafe { device(from, bytes.len(), self.ordinal()) };
        self.stream.download(from, bytes).map_err(|e| self.refused(e))
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let at = unsafe { device_mut(at, bytes, self.ordinal()) };
        self.stream.fill_bytes(at, 0).map_err(|e| self.refused(e))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let (to, from) =
            unsafe { (device_mut(to, bytes, self.ordinal()), device(from, bytes, self.ordinal())) };
        self.stream.copy(to, from).map_err(|e| self.refused(e))
    }

    unsafe fn launch(&self, kernel: &Kernel, geometry: &Geometry, params: &[u8]) -> Result<()> {
        let function = self.function(kernel)?;
        let config = config(&self.gpu, geometry);
        // SAFETY: the caller's promise.
        unsafe { function.launch_bytes(&self.stream, &config, params) }
            .map_err(|e| refused(e, self.ordinal()))
    }

    fn load(&self, kernel: &KernelText<'_>) -> Result<Arc<dyn Loaded>> {
        let function = self.compile(kernel)?;
        let (gpu, stream) = (self.gpu.clone(), self.stream.clone());
        Ok(Arc::new(OnStream { function, gpu, stream }))
    }

    fn beside(&self) -> Result<Option<Arc<dyn Runtime>>> {
        let stream = Stream::new(self.stream.device()).map_err(|e| self.refused(e))?;
        let (gpu, cache, functions) =
            (self.gpu.clone(), self.cache.clone(), self.functions.clone());
        Ok(Some(Arc::new(Self { gpu, stream, cache, functions, staging: Mutex::default() })))
    }

    fn stream(&self) -> Option<&Stream> {
        Some(&self.stream)
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.refused(e))
    }
}

/// # Safety
/// As [`DeviceSlice::from_raw_parts`].
unsafe fn device<'a>(address: u64, len: usize, gpu: usize) -> DeviceSlice<'a, u8> {
    // SAFETY: passed on to the caller.
    unsafe { DeviceSlice::from_raw_parts(DevicePtr::from_address(address), len, gpu) }
}

/// # Safety
/// As [`DeviceSliceMut::from_raw_parts`].
unsafe fn device_mut<'a>(address: u64, len: usize, gpu: usize) -> DeviceSliceMut<'a, u8> {
    // SAFETY: passed on to the caller.
    unsafe { DeviceSliceMut::from_raw_parts(DevicePtr::from_address(address), len, gpu) }
}

impl fmt::Debug for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hardware({}, {:?})", self.gpu.name, self.stream)
    }
}
