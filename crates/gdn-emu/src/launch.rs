//! Launching a kernel on the CPU.

use std::{
    collections::HashMap,
    ffi::c_void,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use libloading::Library;

use crate::{Error, Result};

/// The shape of a launch, and the order of its threads. `shim/emu.h` has the
/// same struct.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Launch {
    /// CTAs along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA.
    pub block: u32,
    /// CTAs of a cluster, along x; they divide the grid's x.
    pub cluster: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared: u32,
    /// 0 runs threads in order; any other is the seed of a random order.
    pub schedule: u32,
}

/// The kernels of one compiled file.
#[derive(Clone, Debug)]
pub struct Kernels {
    /// One launch at a time: the shim's scheduler is a global of its library.
    library: Arc<Mutex<Library>>,
}

type LaunchFn =
    unsafe extern "C" fn(*const c_void, *const Launch, params: *const c_void, size: usize) -> i32;

impl Kernels {
    /// Loads a library, once a process.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        static LOADED: OnceLock<Mutex<HashMap<PathBuf, Kernels>>> = OnceLock::new();
        let mut loaded = lock(LOADED.get_or_init(Mutex::default));
        if let Some(kernels) = loaded.get(path) {
            return Ok(kernels.clone());
        }
        // SAFETY: built by `Compiler`; its initialisers make empty vectors.
        let library = unsafe { Library::new(path)? };
        let kernels = Self { library: Arc::new(Mutex::new(library)) };
        loaded.insert(path.to_owned(), kernels.clone());
        Ok(kernels)
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::Load`] if the file has no such kernel, [`Error::Deadlock`].
    ///
    /// # Safety
    /// `params` are the bytes of what `entry` takes; the addresses in it are those of live memory as large
    /// as the kernel expects, which nobody else uses meanwhile.
    pub unsafe fn launch(&self, entry: &str, launch: Launch, params: &[u8]) -> Result<()> {
        // What the shim passes in two registers would not reach the kernel, nor what it cuts off.
        assert!((17..=4096).contains(&params.len()), "{entry}: not a parameter struct");
        assert!(launch.grid[0].is_multiple_of(launch.cluster), "{entry}: clusters divide the grid");
        let library = lock(&self.library);
        // SAFETY: `entry` is a function of this library, looked up as an address; the shim calls
        // it with a copy of `params`. The rest is the caller's word.
        let status = unsafe {
            let kernel = *library.get::<*const c_void>(entry.as_bytes())?;
            let run = library.get::<LaunchFn>(b"gdn_emu_launch")?;
            run(kernel, &launch, params.as_ptr().cast(), params.len())
        };
        if status == 0 {
            return Ok(());
        }
        Err(Error::Deadlock { entry: entry.to_owned(), schedule: launch.schedule })
    }
}

/// A test that panicked while it held the lock has told so itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
