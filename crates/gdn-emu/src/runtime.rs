//! The emulator as the GPU of the CUDA backend: the backend's own launchers, run
//! on the CPU.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::Arc,
};

use gdn::cuda::{
    kernel::Kernel,
    runtime::{KernelText, Loaded, Runtime},
    tiles::{Geometry, Gpu},
};

use crate::{Build, Compiler, Launch, Memory};

/// Where the kernels are.
const GDN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../gdn/src");

/// A GPU of a few multiprocessors, so that small batches take every tile.
#[derive(Clone, Debug)]
pub struct EmulatedGpu {
    compiler: Compiler,
    gpu: Gpu,
    /// The order of threads: see [`Launch::schedule`].
    pub schedule: u32,
    /// More macros for every kernel, and whether to sanitize.
    pub build: Build,
}

impl EmulatedGpu {
    /// A GPU that leaves compiled kernels in `out`; or why there is none here.
    ///
    /// # Errors
    /// Why, in a few words.
    pub fn new(out: &Path) -> Result<Self, &'static str> {
        Ok(Self {
            compiler: Compiler::new(&Path::new(GDN).join("cuda"), out)?,
            gpu: Gpu {
                name: "emulated GPU".to_owned(),
                capability: 90,
                multiprocessors: 3,
                shared_bytes: 227 << 10,
                memory_gb_s: 4900,
            },
            schedule: 0,
            build: Build::default(),
        })
    }

    /// The compiler of its kernels.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// The CUDA backend on this GPU.
    ///
    /// # Errors
    /// Those of [`gdn::Cuda`].
    pub fn backend(&self) -> gdn::Result<gdn::Cuda> {
        gdn::Cuda::on_runtime(Arc::new(self.clone()))
    }

    fn kernels(&self, kernel: &Kernel) -> gdn::Result<crate::Kernels> {
        let mut build = self.build.clone();
        build.defines.extend(kernel.defines());
        let source = PathBuf::from(format!("{GDN}/ops/{}", kernel.source.path()));
        self.compiler.kernels(&source, &build).map_err(failed)
    }

    fn loaded(&self, kernels: crate::Kernels, entry: &'static str) -> OnCpu {
        OnCpu { kernels, entry, schedule: self.schedule }
    }
}

#[derive(Debug)]
struct OnCpu {
    kernels: crate::Kernels,
    entry: &'static str,
    schedule: u32,
}

impl Loaded for OnCpu {
    unsafe fn launch(&self, geometry: &Geometry, params: &[u8]) -> gdn::Result<()> {
        let Geometry { grid, threads, shared_bytes, cluster, .. } = *geometry;
        let schedule = self.schedule;
        let launch = Launch { grid, block: threads, cluster, shared: shared_bytes, schedule };
        // SAFETY: the caller's promise.
        unsafe { self.kernels.launch(self.entry, launch, params) }.map_err(failed)
    }
}

/// The emulator's word as the backend's.
fn failed(error: crate::Error) -> gdn::Error {
    gdn::ErrorKind::Device { place: gdn::Place::Cuda(0), reason: error.to_string() }.into()
}

impl Runtime for EmulatedGpu {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn ordinal(&self) -> usize {
        0
    }

    fn allocate(&self, bytes: usize) -> gdn::Result<(u64, Box<dyn Any + Send + Sync>)> {
        let memory = Memory::poisoned(bytes);
        Ok((memory.address(), Box::new(memory)))
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> gdn::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { pointer(to).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> gdn::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { pointer(from).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> gdn::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { pointer(at).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> gdn::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { pointer(from).copy_to_nonoverlapping(pointer(to), bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &Kernel,
        geometry: &Geometry,
        params: &[u8],
    ) -> gdn::Result<()> {
        let loaded = self.loaded(self.kernels(kernel)?, kernel.entry);
        // SAFETY: the caller's promise.
        unsafe { loaded.launch(geometry, params) }
    }

    fn load(&self, kernel: &KernelText<'_>) -> gdn::Result<Arc<dyn Loaded>> {
        let mut build = self.build.clone();
        build.defines.extend(kernel.defines.iter().cloned());
        let source = self.compiler.source(kernel.name, kernel.text, kernel.headers);
        let (compiler, source) = source.map_err(failed)?;
        let kernels = compiler.kernels(&source, &build).map_err(failed)?;
        Ok(Arc::new(self.loaded(kernels, kernel.entry)))
    }

    fn stream(&self) -> Option<&gdn_cuda::Stream> {
        None
    }

    fn synchronize(&self) -> gdn::Result<()> {
        Ok(())
    }
}

/// An address that [`Memory::address`] exposed.
fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
