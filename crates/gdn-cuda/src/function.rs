//! A loaded kernel, and the launch itself.

use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult};

use crate::device::Device;
use crate::error::{Error, Repr, Result, check};
use crate::launch::{LaunchConfig, LaunchLimits, PORTABLE_CLUSTER, count};
use crate::stream::Stream;

/// Machine code loaded on one GPU.
pub(crate) struct Module {
    device: Device,
    raw: sys::CUmodule,
    name: String,
}

// SAFETY: a module is an opaque handle that the driver lets any thread use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads `cubin`, which must be a whole image (the driver reads its length from its header).
    pub(crate) fn load(device: &Device, name: &str, cubin: &[u8]) -> Result<Self> {
        // A cubin is an ELF file: anything else could make the driver read past the end.
        if cubin.len() < 64 || !cubin.starts_with(b"\x7fELF") {
            return Err(Error::argument(format!("kernel `{name}`: not a GPU binary")));
        }
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image is a whole ELF file, as the compiler wrote it or as its checksum
        // vouches, and the context is current.
        let result = unsafe { sys::cuModuleLoadData(&mut raw, cubin.as_ptr().cast()) };
        check(result, "cuModuleLoadData")?;
        Ok(Self { device: device.clone(), raw, name: name.to_owned() })
    }

    pub(crate) fn function(self: &Arc<Self>, entry: &str) -> Result<Function> {
        let missing = || Repr::NoEntry { name: self.name.clone(), entry: entry.to_owned() };
        let symbol = CString::new(entry).map_err(|_| missing())?;
        self.device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is alive, the name NUL-terminated, and the context current.
        match unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, symbol.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => Err(missing().into()),
            other => {
                check(other, "cuModuleGetFunction")?;
                Function::new(self.clone(), raw, entry)
            }
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: every function holds its module, so none is left; refusals at process exit are
        // harmless.
        let _ = unsafe { sys::cuModuleUnload(self.raw) };
    }
}

/// What the compiler made of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FunctionInfo {
    /// Registers of one thread.
    pub registers: u32,
    /// Local memory of one thread in bytes: above 0 there are spills or indexed arrays.
    pub local_bytes: u32,
    /// Static shared memory of one block, in bytes.
    pub static_shared_bytes: u32,
    /// Size of the parameter struct in bytes; 0 for a kernel without parameters.
    pub parameter_bytes: usize,
}

/// A loaded kernel: cheap to clone, and to be kept by whoever launches it.
#[derive(Clone)]
pub struct Function(Arc<Inner>);

struct Inner {
    module: Arc<Module>,
    raw: sys::CUfunction,
    entry: String,
    info: FunctionInfo,
    limits: LaunchLimits,
    /// Dynamic shared memory that the driver allows so far, in bytes.
    shared_allowed: AtomicU32,
    wide_clusters_allowed: AtomicBool,
}

// SAFETY: a function is an opaque handle that the driver lets any thread use.
unsafe impl Send for Inner {}
// SAFETY: as above; the two flags are atomic.
unsafe impl Sync for Inner {}

impl Function {
    fn new(module: Arc<Module>, raw: sys::CUfunction, entry: &str) -> Result<Self> {
        let get = |attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: `value` is a valid place for one integer, and the function is loaded.
            let result = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, raw) };
            check(result, "cuFuncGetAttribute")?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let info = FunctionInfo {
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            static_shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            parameter_bytes: parameter_bytes(raw, entry)?,
        };
        let device = module.device.info();
        let limits = LaunchLimits {
            max_grid: device.max_grid,
            max_block: device.max_block,
            max_block_threads: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            max_shared_bytes: device
                .max_block_shared_bytes
                .saturating_sub(info.static_shared_bytes),
            clusters: device.clusters,
        };
        let allowed = get(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?;
        Ok(Self(Arc::new(Inner {
            module,
            raw,
            entry: entry.to_owned(),
            info,
            limits,
            shared_allowed: AtomicU32::new(allowed),
            wide_clusters_allowed: AtomicBool::new(false),
        })))
    }

    /// The name of the entry point.
    pub fn name(&self) -> &str {
        &self.0.entry
    }

    /// What the compiler made of it.
    pub fn info(&self) -> FunctionInfo {
        self.0.info
    }

    /// What a launch of it may ask for on its GPU.
    pub fn limits(&self) -> &LaunchLimits {
        &self.0.limits
    }

    /// Enqueues the kernel on `stream` with one struct of parameters, passed by value. Returns at
    /// once; faults of the kernel come out at a later synchronization.
    ///
    /// `P` is a `#[repr(C)]` twin of the kernel's only parameter, or `()` for a kernel without
    /// parameters. Its size is compared with the kernel's own.
    ///
    /// ```no_run
    /// # use gdn_cuda::{DevicePtr, Function, LaunchConfig, Pod, Stream, Zeroable};
    /// #[repr(C)]
    /// #[derive(Clone, Copy, Pod, Zeroable)]
    /// struct Scale {
    ///     x: DevicePtr<f32>,
    ///     by: f32,
    ///     len: u32,
    /// }
    /// # fn f(kernel: &Function, stream: &Stream, params: &Scale) -> gdn_cuda::Result<()> {
    /// let shape = LaunchConfig::linear(params.len.div_ceil(256), 256);
    /// // SAFETY: `x` holds `len` floats, and the kernel checks its index against `len`.
    /// unsafe { kernel.launch(stream, &shape, params) }
    /// # }
    /// ```
    ///
    /// # Safety
    /// `P` must have the layout of the kernel's parameter, and every access the kernel makes with
    /// these parameters must be in memory that stays valid, and is not used otherwise, until the
    /// kernel has run.
    ///
    /// # Errors
    /// [`InvalidLaunch`](crate::ErrorKind::InvalidLaunch) for a shape, a parameter size or a GPU
    /// that does not fit; nothing was enqueued then.
    #[inline]
    pub unsafe fn launch<P: Pod>(
        &self,
        stream: &Stream,
        config: &LaunchConfig,
        params: &P,
    ) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_bytes(stream, config, bytemuck::bytes_of(params)) }
    }

    /// As [`launch`](Self::launch), for parameters whose type is known elsewhere.
    ///
    /// # Safety
    /// As [`launch`](Self::launch), `params` being the bytes of `P`.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    #[inline]
    pub unsafe fn launch_bytes(
        &self,
        stream: &Stream,
        config: &LaunchConfig,
        params: &[u8],
    ) -> Result<()> {
        let inner = &*self.0;
        if params.len() != inner.info.parameter_bytes || !stream.device().same(self.device()) {
            return Err(self.mismatch(stream, params.len()));
        }
        config.check(&inner.limits)?;
        stream.device().bind()?;
        if self.needs_opt_in(config) {
            self.opt_in(config)?;
        }
        // The driver reads as many entries as the kernel has parameters: one, or none.
        let mut arguments = [params.as_ptr().cast_mut().cast::<c_void>()];
        with_raw(config, stream, |raw| {
            // SAFETY: the function is loaded, the context current, and the only argument points
            // at as many bytes as the kernel takes; the driver copies them before it returns. The
            // rest is the caller's promise.
            let result = unsafe {
                sys::cuLaunchKernelEx(raw, inner.raw, arguments.as_mut_ptr(), std::ptr::null_mut())
            };
            check(result, "cuLaunchKernelEx")
        })
    }

    /// How many blocks of `threads` threads and `shared_bytes` of dynamic shared memory one
    /// multiprocessor holds at once.
    ///
    /// # Errors
    /// [`InvalidLaunch`](crate::ErrorKind::InvalidLaunch) for a block that does not fit.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared_bytes: u32) -> Result<u32> {
        let config = LaunchConfig::linear(1, threads).shared_bytes(shared_bytes);
        config.check(&self.0.limits)?;
        self.device().bind()?;
        self.opt_in(&config)?;
        let mut blocks = 0;
        // SAFETY: `blocks` is a valid place for one integer, and the function is loaded.
        let result = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.0.raw,
                threads as i32,
                shared_bytes as usize,
            )
        };
        check(result, "cuOccupancyMaxActiveBlocksPerMultiprocessor")?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// How many clusters of `config` the whole GPU holds at once; 0 if it has no room for one.
    ///
    /// # Errors
    /// [`InvalidLaunch`](crate::ErrorKind::InvalidLaunch) for a shape that does not fit.
    pub fn max_active_clusters(&self, stream: &Stream, config: &LaunchConfig) -> Result<u32> {
        stream.device().expect_same(self.device(), "Function::max_active_clusters")?;
        config.check(&self.0.limits)?;
        self.device().bind()?;
        self.opt_in(config)?;
        let mut clusters = 0;
        with_raw(config, stream, |raw| {
            // SAFETY: `clusters` is a valid place for one integer, and the function is loaded.
            let result =
                unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, self.0.raw, raw) };
            check(result, "cuOccupancyMaxActiveClusters")
        })?;
        Ok(u32::try_from(clusters).unwrap_or(0))
    }

    /// The GPU it is loaded on.
    pub fn device(&self) -> &Device {
        &self.0.module.device
    }

    #[inline]
    fn needs_opt_in(&self, config: &LaunchConfig) -> bool {
        config.shared_bytes > self.0.shared_allowed.load(Ordering::Relaxed)
            || config.cluster.is_some_and(|c| count(&c) > PORTABLE_CLUSTER)
                && !self.0.wide_clusters_allowed.load(Ordering::Relaxed)
    }

    /// Raises the driver's default limits to what `config` asks for; the context is current.
    #[cold]
    fn opt_in(&self, config: &LaunchConfig) -> Result<()> {
        let set = |attribute, value| {
            // SAFETY: the function is loaded; the driver checks the value.
            let result = unsafe { sys::cuFuncSetAttribute(self.0.raw, attribute, value) };
            check(result, "cuFuncSetAttribute")
        };
        if config.shared_bytes > self.0.shared_allowed.load(Ordering::Relaxed) {
            // Straight to the limit: it costs nothing, and no later launch comes here again.
            let most = self.0.limits.max_shared_bytes;
            set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most as i32)?;
            self.0.shared_allowed.store(most, Ordering::Relaxed);
        }
        if config.cluster.is_some_and(|c| count(&c) > PORTABLE_CLUSTER) {
            set(Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
            self.0.wide_clusters_allowed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    #[cold]
    fn mismatch(&self, stream: &Stream, given: usize) -> Error {
        if let Err(e) = stream.device().expect_same(self.device(), "Function::launch") {
            return e;
        }
        Error::launch(format!(
            "kernel `{}` takes {} bytes of parameters, and {given} were given: compare the struct \
             with its twin in the kernel source",
            self.0.entry, self.0.info.parameter_bytes
        ))
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({} of {})", self.0.entry, self.0.module.name)
    }
}

/// Calls `f` with the driver's form of `config`, which lives on the stack.
#[inline]
fn with_raw(
    config: &LaunchConfig,
    stream: &Stream,
    f: impl FnOnce(&sys::CUlaunchConfig) -> Result<()>,
) -> Result<()> {
    use sys::CUlaunchAttributeID as Id;
    // SAFETY: plain data: numbers, enums with a zero variant, and a union of such.
    let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
    let mut used = 0;
    if let Some([x, y, z]) = config.cluster {
        attributes[used].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attributes[used].value.clusterDim.x = x;
        attributes[used].value.clusterDim.y = y;
        attributes[used].value.clusterDim.z = z;
        used += 1;
    }
    if config.overlap {
        attributes[used].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attributes[used].value.programmaticStreamSerializationAllowed = 1;
        used += 1;
    }
    f(&sys::CUlaunchConfig {
        gridDimX: config.grid[0],
        gridDimY: config.grid[1],
        gridDimZ: config.grid[2],
        blockDimX: config.block[0],
        blockDimY: config.block[1],
        blockDimZ: config.block[2],
        sharedMemBytes: config.shared_bytes,
        hStream: stream.as_raw(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: used as u32,
    })
}

/// Size of the kernel's only parameter, or 0 where it has none. The driver tells the end of the list
/// by a refusal, which `compute-sanitizer` shows unless `--report-api-errors no` is given.
fn parameter_bytes(raw: sys::CUfunction, entry: &str) -> Result<usize> {
    let size_of_parameter = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: both are valid places for one size, and the function is loaded.
        match unsafe { sys::cuFuncGetParamInfo(raw, index, &mut offset, &mut size) } {
            CUresult::CUDA_ERROR_INVALID_VALUE => Ok(None), // There is no such parameter.
            other => check(other, "cuFuncGetParamInfo").map(|()| Some(size)),
        }
    };
    let first = size_of_parameter(0)?;
    if size_of_parameter(1)?.is_some() {
        return Err(Error::launch(format!(
            "kernel `{entry}` takes several parameters: gather them in one struct, passed by value"
        )));
    }
    Ok(first.unwrap_or(0))
}
