//! NVRTC, the compiler of CUDA C++ at run time. Needs no GPU and no driver.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use crate::driver::Version;
use crate::error::{Error, Repr, Result};
use crate::locate;
use crate::source::KernelSource;

/// A machine's NVRTC, loaded. Costs nothing to copy.
///
/// Bound by hand and not through `cudarc`, which can only load it by bare name, where pip's
/// packages are not found, and panics when that fails.
#[derive(Clone, Copy)]
pub struct Compiler(&'static Nvrtc);

/// A compiled kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compiled {
    /// Machine code for one architecture.
    pub cubin: Vec<u8>,
    /// The compiler's warnings; often empty.
    pub log: String,
}

type Program = *mut c_void;
type Status = c_int;

/// The functions used of NVRTC, whose status is 0 for success.
struct Nvrtc {
    version: Version,
    path: PathBuf,
    archs: Vec<c_int>,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    /// Never unloaded: the compiler keeps per-thread state that would dangle.
    _library: ManuallyDrop<Library>,
}

const NVRTC_SUCCESS: Status = 0;
const NVRTC_ERROR_COMPILATION: Status = 6;

impl Compiler {
    /// Finds and loads NVRTC; later calls are cheap.
    ///
    /// Tried in this order: `$GDN_NVRTC` (a full path; nothing else is tried then), the system's
    /// loader, `$CUDA_HOME`, `$CUDA_PATH`, `/usr/local/cuda`, `/opt/cuda`, and pip's
    /// `nvidia-cuda-nvrtc` in `$VIRTUAL_ENV`, `$CONDA_PREFIX` or the Python on `$PATH`.
    ///
    /// # Errors
    /// [`NoCompiler`](crate::ErrorKind::NoCompiler), listing what was tried and how to install it.
    pub fn find() -> Result<Self> {
        Self::find_upto(None)
    }

    /// As [`find`](Self::find), of CUDA `max_major` at most: a driver loads the binaries of its
    /// own CUDA major version and of older ones.
    pub(crate) fn find_upto(max_major: Option<u32>) -> Result<Self> {
        // One for the process; only success is kept, so that a later install is found.
        static LOADED: Mutex<Vec<&'static Nvrtc>> = Mutex::new(Vec::new());
        let fits = |nvrtc: &Nvrtc| max_major.is_none_or(|major| nvrtc.version.major <= major);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nvrtc) = loaded.iter().find(|nvrtc| fits(nvrtc)) {
            return Ok(Self(nvrtc));
        }
        let mut tried = Vec::new();
        for path in locate::nvrtc_candidates(|name| std::env::var_os(name)) {
            match Nvrtc::open(&path) {
                Ok(nvrtc) if fits(&nvrtc) => {
                    let nvrtc: &'static Nvrtc = Box::leak(Box::new(nvrtc));
                    loaded.push(nvrtc);
                    return Ok(Self(nvrtc));
                }
                Ok(nvrtc) => tried.push((path, format!("it is of CUDA {}", nvrtc.version))),
                Err(why) => tried.push((path, why)),
            }
        }
        Err(Repr::NoCompiler { max_major, tried }.into())
    }

    /// Its CUDA version.
    pub fn version(self) -> Version {
        self.0.version
    }

    /// The library it was loaded from: a full path, or a bare name that the system resolved.
    pub fn path(self) -> &'static Path {
        &self.0.path
    }

    /// Compiles `source` for `arch`, a name like `sm_90a` (see
    /// [`ComputeCapability::arch`](crate::ComputeCapability::arch)), to machine code: the driver
    /// has nothing left to compile when it loads it. Several threads may compile at once.
    ///
    /// # Errors
    /// [`Compile`](crate::ErrorKind::Compile) with the log, and
    /// [`NoCompiler`](crate::ErrorKind::NoCompiler) for an architecture newer than the compiler.
    pub fn compile(self, source: &KernelSource<'_>, arch: &str) -> Result<Compiled> {
        if !self.0.supports(arch) {
            return Err(Repr::UnsupportedArch {
                arch: arch.to_owned(),
                version: self.0.version,
                path: self.0.path.clone(),
            }
            .into());
        }
        self.0.compile(source, arch)
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compiler(NVRTC {} at {})", self.0.version, self.0.path.display())
    }
}

impl Nvrtc {
    fn open(path: &Path) -> Result<Self, String> {
        for builtins in locate::builtins_beside(path) {
            // SAFETY: a data library of the same package; its initializers do nothing of note.
            if let Ok(library) = unsafe { Library::new(builtins) } {
                std::mem::forget(library); // NVRTC finds it by name for as long as it is loaded.
            }
        }
        // SAFETY: the vendor's library may be loaded by any process.
        let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
        /// # Safety
        /// `T` must be the type of the function `name`.
        unsafe fn get<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
            // SAFETY: the caller's promise.
            let symbol = unsafe { library.get::<T>(name.as_bytes()) };
            symbol.map(|symbol| *symbol).map_err(|_| format!("it lacks {name}"))
        }
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the types are those of NVRTC's header, unchanged since CUDA 11.2, and the
        // pointers are valid for one integer each.
        let (version_ok, count_ok) = unsafe {
            let version = get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>(
                &library,
                "nvrtcVersion",
            )?;
            let arch_count = get::<unsafe extern "C" fn(*mut c_int) -> Status>(
                &library,
                "nvrtcGetNumSupportedArchs",
            )?;
            (version(&mut major, &mut minor), arch_count(&mut count))
        };
        if version_ok != NVRTC_SUCCESS || count_ok != NVRTC_SUCCESS {
            return Err("it does not tell its version".to_owned());
        }
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the type is that of NVRTC's header, and there is room for `count` integers.
        let archs_ok = unsafe {
            get::<unsafe extern "C" fn(*mut c_int) -> Status>(&library, "nvrtcGetSupportedArchs")?(
                archs.as_mut_ptr(),
            )
        };
        if archs_ok != NVRTC_SUCCESS {
            return Err("it does not tell its architectures".to_owned());
        }
        // SAFETY: the fields' types are those of NVRTC's header.
        unsafe {
            Ok(Self {
                version: Version::new(major.unsigned_abs(), minor.unsigned_abs()),
                path: path.to_owned(),
                archs,
                error_string: get(&library, "nvrtcGetErrorString")?,
                create: get(&library, "nvrtcCreateProgram")?,
                compile: get(&library, "nvrtcCompileProgram")?,
                log_size: get(&library, "nvrtcGetProgramLogSize")?,
                log: get(&library, "nvrtcGetProgramLog")?,
                cubin_size: get(&library, "nvrtcGetCUBINSize")?,
                cubin: get(&library, "nvrtcGetCUBIN")?,
                destroy: get(&library, "nvrtcDestroyProgram")?,
                _library: ManuallyDrop::new(library),
            })
        }
    }

    /// Whether `arch`, such as `sm_90a`, is among the listed numbers.
    fn supports(&self, arch: &str) -> bool {
        let number = arch.strip_prefix("sm_").map(|s| s.trim_end_matches(['a', 'f']));
        number.and_then(|s| s.parse().ok()).is_some_and(|n: c_int| self.archs.contains(&n))
    }

    fn compile(&self, source: &KernelSource<'_>, arch: &str) -> Result<Compiled> {
        let failed = |log: String| -> Error {
            let (name, arch) = (source.name.to_owned(), arch.to_owned());
            Repr::Compile { name, arch, log }.into()
        };
        let c = |text: &str| {
            CString::new(text).map_err(|_| failed("a NUL byte in source or options".to_owned()))
        };
        let (text, name) = (c(source.text)?, c(&format!("{}.cu", source.name))?);
        let headers = source
            .headers
            .iter()
            .map(|(name, text)| Ok((c(name)?, c(text)?)))
            .collect::<Result<Vec<_>>>()?;
        let header_names: Vec<_> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let header_texts: Vec<_> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let mut options = vec![c(&format!("--gpu-architecture={arch}"))?, c("--std=c++17")?];
        for option in &source.options {
            options.push(c(option)?);
        }
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program = OwnedProgram { nvrtc: self, raw: std::ptr::null_mut() };
        // SAFETY: all strings are NUL-terminated and, with their arrays of the given length,
        // outlive the program, which is dropped first.
        let created = unsafe {
            (self.create)(
                &mut program.raw,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        if created != NVRTC_SUCCESS {
            return Err(failed(self.describe(created)));
        }
        // SAFETY: the program is alive, and the array has the given length.
        let compiled =
            unsafe { (self.compile)(program.raw, options.len() as c_int, options.as_ptr()) };
        let log = program.read(self.log_size, self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
        match compiled {
            NVRTC_SUCCESS => {
                let cubin = program
                    .read(self.cubin_size, self.cubin)
                    .map_err(|s| failed(self.describe(s)))?;
                Ok(Compiled { cubin, log })
            }
            NVRTC_ERROR_COMPILATION => Err(failed(log)),
            other => Err(failed(format!("{}\n{log}", self.describe(other)))),
        }
    }

    fn describe(&self, status: Status) -> String {
        // SAFETY: returns a static string for every status.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        format!("{} ({status})", text.to_string_lossy())
    }
}

/// A program, destroyed when dropped.
struct OwnedProgram<'a> {
    nvrtc: &'a Nvrtc,
    raw: Program,
}

impl OwnedProgram<'_> {
    /// Reads one of the program's outputs, of which one function tells the size.
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        read: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, Status> {
        let mut bytes = 0;
        // SAFETY: the program is alive, and `bytes` a valid place for one size.
        let status = unsafe { size(self.raw, &mut bytes) };
        if status != NVRTC_SUCCESS {
            return Err(status);
        }
        let mut buffer = vec![0u8; bytes];
        // SAFETY: as above, and there is room for as many bytes as will be written.
        match unsafe { read(self.raw, buffer.as_mut_ptr().cast()) } {
            NVRTC_SUCCESS => Ok(buffer),
            other => Err(other),
        }
    }
}

impl Drop for OwnedProgram<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the only handle to a created program.
            unsafe { (self.nvrtc.destroy)(&mut self.raw) };
        }
    }
}
