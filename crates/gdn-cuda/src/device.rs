//! One GPU: what it is, and its context.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use crate::driver::{Driver, Version};
use crate::error::{Error, Repr, Result, check};

/// A compute capability, such as 9.0 for Hopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl ComputeCapability {
    /// The capability `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The compiler's name for this very chip: `sm_80`, and from Hopper on with the suffix that
    /// opens the chip's own instructions, as in `sm_90a`.
    pub fn arch(self) -> String {
        let suffix = if self.major >= 9 { "a" } else { "" };
        format!("sm_{}{}{suffix}", self.major, self.minor)
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a GPU is: everything a kernel's launcher needs to choose its tiles.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The driver's number for it, from 0.
    pub ordinal: usize,
    /// Its marketing name.
    pub name: String,
    /// Its compute capability.
    pub compute_capability: ComputeCapability,
    /// The newest CUDA version that the driver serves.
    pub driver_version: Version,
    /// Streaming multiprocessors (SMs).
    pub multiprocessors: u32,
    /// All of its memory, in bytes.
    pub memory_bytes: usize,
    /// Its L2 cache, in bytes.
    pub l2_bytes: usize,
    /// The part of L2 that can be set aside for persisting accesses, in bytes.
    pub persisting_l2_bytes: usize,
    /// Width of the memory bus, in bits.
    pub memory_bus_bits: u32,
    /// Peak memory clock, in kHz; 0 where the driver does not tell.
    pub memory_clock_khz: u32,
    /// Peak clock of the multiprocessors, in kHz; 0 where the driver does not tell.
    pub clock_khz: u32,
    /// Threads that one block may have.
    pub max_block_threads: u32,
    /// Threads of one block along x, y and z.
    pub max_block: [u32; 3],
    /// Blocks of one grid along x, y and z.
    pub max_grid: [u32; 3],
    /// Threads resident on one multiprocessor.
    pub max_multiprocessor_threads: u32,
    /// Shared memory that one block may have after opting in, in bytes.
    pub max_block_shared_bytes: u32,
    /// Shared memory of one multiprocessor, in bytes.
    pub multiprocessor_shared_bytes: u32,
    /// Registers of one multiprocessor, of 32 bits each.
    pub multiprocessor_registers: u32,
    /// Whether blocks can be launched in clusters.
    pub clusters: bool,
}

impl DeviceInfo {
    pub(crate) fn query(driver: Driver, ordinal: usize) -> Result<Self> {
        let raw = raw_device(driver, ordinal)?;
        let get = |attribute| attribute_of(raw, attribute);
        let mut name = [0u8; 256];
        // SAFETY: the buffer holds the length that is passed, and `raw` came from the driver.
        let result =
            unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, raw) };
        check(result, "cuDeviceGetName")?;
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        let mut memory_bytes = 0;
        // SAFETY: `memory_bytes` is a valid place for one size.
        let result = unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, raw) };
        check(result, "cuDeviceTotalMem")?;
        use Attribute as A;
        Ok(Self {
            ordinal,
            name: String::from_utf8_lossy(name).into_owned(),
            compute_capability: ComputeCapability::new(
                get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            driver_version: driver.version(),
            multiprocessors: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes,
            l2_bytes: get(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            persisting_l2_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE)? as usize,
            memory_bus_bits: get(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            memory_clock_khz: get(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0),
            clock_khz: get(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).unwrap_or(0),
            max_block_threads: get(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            max_block: [
                get(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
                get(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
                get(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
            ],
            max_grid: [
                get(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                get(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                get(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
            max_multiprocessor_threads: get(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            max_block_shared_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            multiprocessor_shared_bytes: get(
                A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
            multiprocessor_registers: get(A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)?,
            clusters: get(A::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)? != 0,
        })
    }

    /// Bytes per second that the memory bus carries at its peak clock (two transfers a cycle), or
    /// `None` where the driver does not tell the clock. A datasheet number: measure a copy to know
    /// what can be reached.
    pub fn peak_bytes_per_second(&self) -> Option<f64> {
        (self.memory_clock_khz > 0).then(|| {
            2.0 * f64::from(self.memory_clock_khz) * 1e3 * f64::from(self.memory_bus_bits) / 8.0
        })
    }
}

fn raw_device(driver: Driver, ordinal: usize) -> Result<sys::CUdevice> {
    let count = driver.device_count()?;
    if ordinal >= count {
        return Err(match count {
            0 => Repr::NoDevice { reason: "it shows none".into() }.into(),
            _ => Repr::BadOrdinal { ordinal, count }.into(),
        });
    }
    let mut raw = 0;
    // SAFETY: `raw` is a valid place for one handle, and `ordinal` is under the count.
    let result = unsafe { sys::cuDeviceGet(&mut raw, ordinal as i32) };
    check(result, "cuDeviceGet")?;
    Ok(raw)
}

fn attribute_of(raw: sys::CUdevice, attribute: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: `value` is a valid place for one integer, and `raw` came from the driver.
    let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, raw) };
    check(result, "cuDeviceGetAttribute")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Memory of a GPU at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Free for new allocations, of any process.
    pub free: usize,
    /// All there is.
    pub total: usize,
}

/// One opened GPU, shared by everything that lives on it. Cloning is cheap, and the GPU's primary
/// context stays for as long as any clone does.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    info: DeviceInfo,
    raw: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context is an opaque handle that the driver lets any thread make current.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing in `Inner` changes after it is made.
unsafe impl Sync for Inner {}

impl Device {
    /// Opens GPU number `ordinal`, counted from 0 in the driver's order. The first opening in a
    /// process creates the context, which takes some hundred milliseconds.
    ///
    /// # Errors
    /// As [`Driver::load`], and [`NoDevice`](crate::ErrorKind::NoDevice) for a number that the
    /// driver does not show.
    pub fn open(ordinal: usize) -> Result<Self> {
        let driver = Driver::load()?;
        let raw = raw_device(driver, ordinal)?;
        let info = DeviceInfo::query(driver, ordinal)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is a valid place for one handle, and `raw` came from the driver.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, raw) };
        check(result, "cuDevicePrimaryCtxRetain")?;
        Ok(Self(Arc::new(Inner { info, raw, context })))
    }

    /// What this GPU is.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// How much of its memory is free now.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid places for one size, and the context is current.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, "cuMemGetInfo")?;
        Ok(MemoryInfo { free, total })
    }

    /// Waits for all work on this GPU, of every stream. Faults of kernels come out here.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost) after a fault.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the context is current.
        let result = unsafe { sys::cuCtxSynchronize() };
        check(result, "cuCtxSynchronize")
    }

    /// Makes this GPU's context current on the calling thread. Done before every call that needs
    /// it, since other libraries in the process may have changed it; it costs some nanoseconds.
    #[inline]
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        let result = unsafe { sys::cuCtxSetCurrent(self.0.context) };
        check(result, "cuCtxSetCurrent")
    }

    /// Whether both are openings of the same GPU.
    #[inline]
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.0.context == other.0.context
    }

    #[inline]
    pub(crate) fn expect_same(&self, other: &Self, what: &'static str) -> Result<()> {
        if self.same(other) {
            return Ok(());
        }
        let (a, b) = (self.info().ordinal, other.info().ordinal);
        Err(Error::argument(format!("{what}: one is on GPU {a}, the other on GPU {b}")))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}: {})", self.0.info.ordinal, self.0.info.name)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: gives back the one retain of `open`; everything made in the context holds a
        // clone of the device, so nothing of it is left. At process exit the driver may be gone
        // and refuse: there is nothing more to free then.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arch_names_carry_the_suffix_from_hopper_on() {
        assert_eq!(ComputeCapability::new(8, 0).arch(), "sm_80");
        assert_eq!(ComputeCapability::new(8, 9).arch(), "sm_89");
        assert_eq!(ComputeCapability::new(9, 0).arch(), "sm_90a");
        assert_eq!(ComputeCapability::new(12, 0).arch(), "sm_120a");
    }
}
