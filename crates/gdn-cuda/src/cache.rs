//! From source to a loaded kernel: memory, then disk, then the compiler.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::compiler::Compiler;
use crate::device::Device;
use crate::disk::{self, DiskCache, Lookup};
use crate::error::{ErrorKind, Result};
use crate::function::{Function, Module};
use crate::source::{CacheKey, KernelSource};

/// The kernels of one GPU, each compiled at most once per machine.
///
/// A binary is kept on disk under its source, options, architecture and compiler version, in
/// `$GDN_CACHE_DIR`, else `gdn/kernels` under `$XDG_CACHE_HOME` or `~/.cache`. A damaged file is
/// compiled anew. Where nothing can be written, kernels are kept in memory alone, and
/// [`stats`](Self::stats) tells. The folder is trusted as the program itself is: whoever can write
/// there can run code on the GPU.
pub struct KernelCache {
    device: Device,
    arch: String,
    disk: Option<DiskCache>,
    /// A lock per source, so that different ones compile at once and the same one only once.
    sources: Mutex<HashMap<CacheKey, Arc<Mutex<Slot>>>>,
    counts: Counts,
}

#[derive(Default)]
struct Slot {
    module: Option<Arc<Module>>,
    functions: HashMap<String, Function>,
}

#[derive(Default)]
struct Counts {
    memory_hits: AtomicU64,
    disk_hits: AtomicU64,
    compiled: AtomicU64,
    rejected: AtomicU64,
    store_failures: AtomicU64,
}

/// What a [`KernelCache`] did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CacheStats {
    /// Functions returned that were loaded already.
    pub memory_hits: u64,
    /// Binaries read from disk.
    pub disk_hits: u64,
    /// Sources compiled.
    pub compiled: u64,
    /// Files on disk that were damaged, or that the driver did not take.
    pub rejected: u64,
    /// Binaries that could not be written to disk.
    pub store_failures: u64,
}

impl KernelCache {
    /// A cache for `device`, on disk in the usual folder.
    pub fn new(device: &Device) -> Self {
        Self::with_dir(device, disk::default_dir(|name| std::env::var_os(name)))
    }

    /// A cache for `device`, on disk in `dir`, or in memory alone.
    pub fn with_dir(device: &Device, dir: Option<PathBuf>) -> Self {
        Self {
            device: device.clone(),
            arch: device.info().compute_capability.arch(),
            disk: dir.map(DiskCache::new),
            sources: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// The kernel `entry` of `source`, loaded. Keep what it returns: even a hit in memory reads
    /// the whole source to find it.
    ///
    /// # Errors
    /// [`NoCompiler`](crate::ErrorKind::NoCompiler) and [`Compile`](crate::ErrorKind::Compile) as
    /// [`Compiler::compile`]; [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the source
    /// has no such entry point; [`InvalidLaunch`](crate::ErrorKind::InvalidLaunch) if that takes
    /// several parameters.
    pub fn function(&self, source: &KernelSource<'_>, entry: &str) -> Result<Function> {
        let driver = self.device.info().driver_version;
        let compiler = Compiler::find_upto(Some(driver.major))?;
        let key = source.key(&self.arch, compiler.version());
        let slot = {
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.entry(key.clone()).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = slot.functions.get(entry) {
            bump(&self.counts.memory_hits);
            return Ok(function.clone());
        }
        let module = match &slot.module {
            Some(module) => module.clone(),
            None => slot.module.insert(self.module(compiler, source, &key)?).clone(),
        };
        let function = module.function(entry)?;
        slot.functions.insert(entry.to_owned(), function.clone());
        Ok(function)
    }

    fn module(
        &self,
        compiler: Compiler,
        source: &KernelSource<'_>,
        key: &CacheKey,
    ) -> Result<Arc<Module>> {
        match self.disk.as_ref().map_or(Lookup::Miss, |disk| disk.load(key)) {
            Lookup::Hit(cubin) => match Module::load(&self.device, source.name, &cubin) {
                Ok(module) => {
                    bump(&self.counts.disk_hits);
                    return Ok(Arc::new(module));
                }
                // Whole, and yet refused: perhaps by an older driver. A fresh one may do.
                Err(e) if matches!(e.kind(), ErrorKind::Driver | ErrorKind::InvalidArgument) => {
                    bump(&self.counts.rejected);
                }
                Err(e) => return Err(e),
            },
            Lookup::Rejected => bump(&self.counts.rejected),
            Lookup::Miss => {}
        }
        let cubin = compiler.compile(source, &self.arch)?.cubin;
        bump(&self.counts.compiled);
        let module = Module::load(&self.device, source.name, &cubin)?;
        if let Some(disk) = &self.disk
            && disk.store(key, &cubin).is_err()
        {
            bump(&self.counts.store_failures);
        }
        Ok(Arc::new(module))
    }

    /// What was done so far.
    pub fn stats(&self) -> CacheStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats {
            memory_hits: get(&self.counts.memory_hits),
            disk_hits: get(&self.counts.disk_hits),
            compiled: get(&self.counts.compiled),
            rejected: get(&self.counts.rejected),
            store_failures: get(&self.counts.store_failures),
        }
    }

    /// The folder on disk, if there is one.
    pub fn dir(&self) -> Option<&Path> {
        self.disk.as_ref().map(DiskCache::dir)
    }
}

fn bump(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl fmt::Debug for KernelCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelCache({} in {:?}, {:?})", self.arch, self.dir(), self.stats())
    }
}
