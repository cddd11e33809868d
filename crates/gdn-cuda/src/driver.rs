//! Finding the CUDA driver, as a value.

use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUresult};

use crate::device::DeviceInfo;
use crate::error::{Repr, Result, check};

/// A CUDA version, such as 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Version {
    /// The version `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Proof that the CUDA driver is loaded and initialized. Costs nothing to copy.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    version: Version,
}

// Every driver function this crate calls. The bindings panic on a missing one, so all are looked
// up before the first call: a new call in this crate is a new line here.
const NEEDED: &[&str] = &[
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphExecUpdate_v2",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxActiveClusters",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

impl Driver {
    /// Loads and initializes the driver; later calls are cheap.
    ///
    /// # Errors
    /// [`NoDriver`](crate::ErrorKind::NoDriver) where its library is absent,
    /// [`DriverTooOld`](crate::ErrorKind::DriverTooOld) where it lacks a needed function, and
    /// [`NoDevice`](crate::ErrorKind::NoDevice) where it finds no GPU to drive.
    pub fn load() -> Result<Self> {
        // Only success is kept: a driver may appear while a long-lived process runs.
        static LOADED: OnceLock<Driver> = OnceLock::new();
        if let Some(driver) = LOADED.get() {
            return Ok(*driver);
        }
        let driver = Self::load_uncached()?;
        Ok(*LOADED.get_or_init(|| driver))
    }

    fn load_uncached() -> Result<Self> {
        // SAFETY: loading libcuda runs its initializers, which the vendor makes safe to run in any
        // process; nothing else is required.
        if !unsafe { sys::is_culib_present() } {
            return Err(Repr::NoDriver.into());
        }
        // SAFETY: as above, and the library was just seen to load, so this does not panic.
        let library = unsafe { sys::culib() };
        let has = |name: &str| {
            // SAFETY: the symbol's address is compared with nothing and never called.
            unsafe { library.get::<*const ()>(name.as_bytes()) }.is_ok()
        };
        let version = if has("cuDriverGetVersion") { query_version().ok() } else { None };
        if let Some(&missing) = NEEDED.iter().find(|name| !has(name)) {
            return Err(Repr::DriverTooOld { version, missing }.into());
        }
        // SAFETY: the flags must be zero.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_SUCCESS => {}
            // A stub of the toolkit stands in for the driver.
            CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(Repr::NoDriver.into()),
            other => {
                return Err(Repr::NoDevice { reason: format!("{other:?}") }.into());
            }
        }
        Ok(Self { version: query_version()? })
    }

    /// The newest CUDA version that the driver serves.
    pub fn version(self) -> Version {
        self.version
    }

    /// How many GPUs the driver shows.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn device_count(self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: `count` is a valid place for one integer; the driver is initialized.
        let result = unsafe { sys::cuDeviceGetCount(&mut count) };
        check(result, "cuDeviceGetCount")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// What each GPU is, in the driver's order. Opens none of them.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn devices(self) -> Result<Vec<DeviceInfo>> {
        (0..self.device_count()?).map(|ordinal| DeviceInfo::query(self, ordinal)).collect()
    }
}

fn query_version() -> Result<Version> {
    let mut packed = 0;
    // SAFETY: `packed` is a valid place for one integer; allowed before `cuInit`.
    let result = unsafe { sys::cuDriverGetVersion(&mut packed) };
    check(result, "cuDriverGetVersion")?;
    let packed = packed.unsigned_abs();
    Ok(Version::new(packed / 1000, packed % 1000 / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list of needed functions is kept by hand; this keeps it honest.
    #[test]
    fn every_driver_call_in_this_crate_is_checked_for() {
        let mut called = std::collections::BTreeSet::new();
        let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let Ok(files) = std::fs::read_dir(&src) else {
            return; // Run away from its source, as on a machine that only has the binary.
        };
        for file in files {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for piece in text.split("sys::cu").skip(1) {
                let name: String =
                    piece.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if name.starts_with(|c: char| c.is_ascii_uppercase()) {
                    called.insert(format!("cu{name}"));
                }
            }
        }
        let needed: std::collections::BTreeSet<String> =
            NEEDED.iter().map(|s| s.to_string()).collect();
        assert_eq!(called, needed);
    }

    #[test]
    fn versions_order_and_print() {
        assert!(Version::new(12, 8) < Version::new(13, 0));
        assert_eq!(Version::new(13, 0).to_string(), "13.0");
    }
}
