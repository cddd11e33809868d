//! One opaque error, a kind to match on, and messages that say what to do next.

use std::fmt;
use std::path::PathBuf;

use cudarc::driver::sys::{self, CUresult};

use crate::driver::Version;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and in its message what to do about it. Match on [`Error::kind`].
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Repr>);

/// The classes of error that callers may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No CUDA driver library on this machine.
    NoDriver,
    /// The driver lacks a function this crate needs.
    DriverTooOld,
    /// The driver is there, but no GPU, or not the one asked for.
    NoDevice,
    /// No usable kernel compiler (NVRTC) on this machine.
    NoCompiler,
    /// The kernel source does not compile; see [`Error::compile_log`].
    Compile,
    /// Not enough memory in the arena, on the device or on the host.
    OutOfMemory,
    /// A launch that the device or the kernel cannot take.
    InvalidLaunch,
    /// An argument that does not fit, such as a length or a range.
    InvalidArgument,
    /// A graph whose shape changed: instantiate it anew.
    GraphUpdate,
    /// The device context is lost after a fault on the GPU: only a new process gets a good one.
    DeviceLost,
    /// Any other refusal by the driver; see [`Error::driver_code`].
    Driver,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Repr {
    #[error(
        "no CUDA driver on this machine (libcuda.so.1 was not found): install the NVIDIA driver 570 \
         or newer, or start the container with GPU access (for example `docker run --gpus all`)"
    )]
    NoDriver,
    #[error(
        "the CUDA driver is too old (it serves CUDA {}, and lacks {missing}): install the NVIDIA \
         driver 570 (CUDA 12.8) or newer",
        .version.map_or("of unknown version".to_owned(), |v| v.to_string())
    )]
    DriverTooOld { version: Option<Version>, missing: &'static str },
    #[error(
        "the CUDA driver sees no usable GPU ({reason}): check that `nvidia-smi` lists one, and that \
         CUDA_VISIBLE_DEVICES does not hide it"
    )]
    NoDevice { reason: String },
    #[error(
        "no GPU number {ordinal}: the driver shows {count} (numbered from 0; CUDA_VISIBLE_DEVICES \
         can hide some)"
    )]
    BadOrdinal { ordinal: usize, count: usize },
    #[error(
        "no usable kernel compiler (NVRTC){}: install it with `pip install nvidia-cuda-nvrtc` or the \
         CUDA toolkit, or set GDN_NVRTC to the full path of libnvrtc.so{}",
        .max_major.map_or(String::new(), |m| format!(" of CUDA {m} or older, as the driver needs")),
        list(.tried)
    )]
    NoCompiler { max_major: Option<u32>, tried: Vec<(PathBuf, String)> },
    #[error(
        "NVRTC {version} ({}) cannot compile for {arch}: install a newer one with \
         `pip install -U nvidia-cuda-nvrtc`, or set GDN_NVRTC to its path",
        .path.display()
    )]
    UnsupportedArch { arch: String, version: Version, path: PathBuf },
    #[error("kernel `{name}` does not compile for {arch}:\n{log}")]
    Compile { name: String, arch: String, log: String },
    #[error(
        "kernel `{name}` has no entry point `{entry}`: declare it `extern \"C\" __global__` and check \
         the spelling"
    )]
    NoEntry { name: String, entry: String },
    #[error(
        "arena full: {wanted} bytes wanted, {free} of {capacity} free, {largest} in one piece: make \
         the arena larger, or drop buffers first"
    )]
    ArenaFull { wanted: usize, free: usize, largest: usize, capacity: usize },
    #[error(
        "out of device memory: {wanted} bytes wanted, {free} of {total} free on this GPU: ask for \
         less, or end other processes that hold its memory (`nvidia-smi` lists them)"
    )]
    DeviceMemory { wanted: usize, free: usize, total: usize },
    #[error(
        "out of pinned host memory: {wanted} bytes wanted: ask for less, or raise the memory limit of this process"
    )]
    HostMemory { wanted: usize },
    #[error("launch refused: {0}")]
    Launch(String),
    #[error("{0}")]
    Argument(String),
    #[error("the graph cannot be updated in place ({reason}): instantiate the new capture instead")]
    GraphUpdate { reason: String },
    #[error(
        "{call} failed with {name} ({code}): {text}: earlier work on this GPU faulted and its context \
         is lost; restart the process, and find the kernel with `compute-sanitizer`"
    )]
    DeviceLost { call: &'static str, code: u32, name: String, text: String },
    #[error("{call} failed with {name} ({code}): {text}")]
    Driver { call: &'static str, code: u32, name: String, text: String },
}

fn list(tried: &[(PathBuf, String)]) -> String {
    let mut text = String::new();
    for (path, why) in tried {
        text.push_str(&format!("\n  tried {}: {why}", path.display()));
    }
    text
}

/// The kind and the message: what `main` prints of an error that it returns.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind())
    }
}

impl From<Repr> for Error {
    fn from(repr: Repr) -> Self {
        Self(Box::new(repr))
    }
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match *self.0 {
            Repr::NoDriver => ErrorKind::NoDriver,
            Repr::DriverTooOld { .. } => ErrorKind::DriverTooOld,
            Repr::NoDevice { .. } | Repr::BadOrdinal { .. } => ErrorKind::NoDevice,
            Repr::NoCompiler { .. } | Repr::UnsupportedArch { .. } => ErrorKind::NoCompiler,
            Repr::Compile { .. } => ErrorKind::Compile,
            Repr::ArenaFull { .. } | Repr::DeviceMemory { .. } | Repr::HostMemory { .. } => {
                ErrorKind::OutOfMemory
            }
            Repr::Launch(_) => ErrorKind::InvalidLaunch,
            Repr::Argument(_) | Repr::NoEntry { .. } => ErrorKind::InvalidArgument,
            Repr::GraphUpdate { .. } => ErrorKind::GraphUpdate,
            Repr::DeviceLost { .. } => ErrorKind::DeviceLost,
            Repr::Driver { .. } => ErrorKind::Driver,
        }
    }

    /// The compiler's log, when the source did not compile.
    pub fn compile_log(&self) -> Option<&str> {
        match &*self.0 {
            Repr::Compile { log, .. } => Some(log),
            _ => None,
        }
    }

    /// The driver's `CUresult` code, when the driver refused a call.
    pub fn driver_code(&self) -> Option<u32> {
        match *self.0 {
            Repr::Driver { code, .. } | Repr::DeviceLost { code, .. } => Some(code),
            _ => None,
        }
    }

    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Repr::Argument(text.into()).into()
    }

    pub(crate) fn launch(text: impl Into<String>) -> Self {
        Repr::Launch(text.into()).into()
    }
}

/// Turns a driver's return code into a result; `call` names the function in the message.
#[inline]
pub(crate) fn check(result: CUresult, call: &'static str) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        other => Err(driver_error(other, call)),
    }
}

#[cold]
fn driver_error(result: CUresult, call: &'static str) -> Error {
    let mut text = std::ptr::null();
    // SAFETY: `text` is a valid place for one pointer. A code exists only once the driver has
    // returned it, so the library is loaded.
    let known = unsafe { sys::cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS;
    let text = if known && !text.is_null() {
        // SAFETY: on success the driver points `text` at a static NUL-terminated string.
        unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        "no description".to_owned()
    };
    let (code, name) = (result as u32, format!("{result:?}"));
    match is_lost(code) {
        true => Repr::DeviceLost { call, code, name, text }.into(),
        false => Repr::Driver { call, code, name, text }.into(),
    }
}

/// Codes after which every later call on the context fails with the same code.
fn is_lost(code: u32) -> bool {
    // Uncorrectable memory and link errors, then faults, timeouts and asserts of a kernel.
    matches!(code, 214 | 220 | 700 | 702 | 709 | 710 | 714..=719)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(repr: Repr) -> String {
        Error::from(repr).to_string()
    }

    #[test]
    fn messages_name_the_numbers_and_the_next_step() {
        assert!(text(Repr::NoDriver).contains("install the NVIDIA driver"));
        let old = text(Repr::DriverTooOld { version: Some(Version::new(12, 2)), missing: "cuX" });
        assert!(old.contains("12.2") && old.contains("cuX") && old.contains("570"), "{old}");
        let full = text(Repr::ArenaFull { wanted: 512, free: 300, largest: 256, capacity: 1024 });
        for part in ["512 bytes wanted", "300 of 1024 free", "256 in one piece"] {
            assert!(full.contains(part), "{full}");
        }
        let compiler = text(Repr::NoCompiler {
            max_major: Some(12),
            tried: vec![("/x/libnvrtc.so.13".into(), "is of CUDA 13.0".into())],
        });
        for part in
            ["pip install nvidia-cuda-nvrtc", "GDN_NVRTC", "CUDA 12", "/x/libnvrtc.so.13: is of"]
        {
            assert!(compiler.contains(part), "{compiler}");
        }
    }

    #[test]
    fn kinds_and_details_are_reachable() {
        let e = Error::from(Repr::Compile {
            name: "k".into(),
            arch: "sm_90a".into(),
            log: "bad".into(),
        });
        assert_eq!((e.kind(), e.compile_log()), (ErrorKind::Compile, Some("bad")));
        let e =
            Error::from(Repr::Driver { call: "cuX", code: 1, name: "N".into(), text: "t".into() });
        assert_eq!((e.kind(), e.driver_code()), (ErrorKind::Driver, Some(1)));
        assert_eq!(Error::argument("x").compile_log(), None);
        assert_eq!(format!("{:?}", Error::argument("x")), "InvalidArgument: x");
    }

    #[test]
    fn a_fault_is_told_from_a_refusal() {
        assert!(is_lost(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as u32));
        assert!(is_lost(CUresult::CUDA_ERROR_LAUNCH_FAILED as u32));
        assert!(!is_lost(CUresult::CUDA_ERROR_INVALID_VALUE as u32));
        assert!(!is_lost(CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32));
        assert!(!is_lost(CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES as u32));
    }

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }
}
