//! What the backend asks of a GPU: memory, copies, launches. The real one is in
//! `hardware.rs`; tests have one that runs kernels on the CPU.
#![expect(unsafe_code, reason = "copies and launches trust the addresses they get")]

use std::{any::Any, fmt, sync::Arc};

use gdn_cuda::{MemoryInfo, Stream};

use super::{
    kernel::Kernel,
    tiles::{Geometry, Gpu},
};
use crate::{Place, Result};

/// The text of a kernel of any crate, and what to compile it with.
#[derive(Clone, Debug)]
pub struct KernelText<'a> {
    /// The name of its file, without the extension.
    pub name: &'a str,
    /// CUDA C++.
    pub text: &'static str,
    /// What it includes: name and text.
    pub headers: &'a [(&'static str, &'static str)],
    /// Macros: name and value.
    pub defines: Vec<(&'static str, String)>,
    /// The entry point.
    pub entry: &'static str,
}

/// A kernel on a device.
pub trait Loaded: fmt::Debug + Send + Sync {
    /// Enqueues it.
    ///
    /// # Safety
    /// As [`Runtime::launch`].
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device).
    unsafe fn launch(&self, geometry: &Geometry, params: &[u8]) -> Result<()>;
}

/// A GPU and one queue of work on it. Whatever is enqueued runs in order.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// What tiles are chosen by.
    fn gpu(&self) -> &Gpu;

    /// Its number, as in [`Place::Cuda`].
    fn ordinal(&self) -> usize;

    /// Device memory of at least `bytes` bytes, aligned to 256, holding
    /// anything.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) if there is not as much.
    fn allocate(&self, bytes: usize) -> Result<(u64, Box<dyn Any + Send + Sync>)>;

    /// Its memory at this moment; `None` where that has no bounds of its own, as in tests.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device).
    fn memory(&self) -> Result<Option<MemoryInfo>> {
        Ok(None)
    }

    /// Copies `bytes` to the device, in order with all work. They may change when it returns.
    ///
    /// # Safety
    /// `to` is the address of as many bytes of this device.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device), as for all that follow.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies from the device to `bytes`, behind all work, and waits.
    ///
    /// # Safety
    /// `from` is the address of as many bytes of this device.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Enqueues zeroing `bytes` bytes.
    ///
    /// # Safety
    /// `at` is the address of as many bytes of this device.
    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<()>;

    /// Enqueues a copy within the device.
    ///
    /// # Safety
    /// Both are addresses of as many bytes of this device, and don't overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Enqueues a kernel. The first launch of a kernel compiles it.
    ///
    /// # Safety
    /// `params` are the bytes of the kernel's parameter struct; what its
    /// addresses name is memory of this device of the shape that they say.
    unsafe fn launch(&self, kernel: &Kernel, geometry: &Geometry, params: &[u8]) -> Result<()>;

    /// Compiles a kernel of another crate, and loads it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where there is no
    /// compiler, [`ErrorKind::Device`](crate::ErrorKind::Device) if it refuses.
    fn load(&self, kernel: &KernelText<'_>) -> Result<Arc<dyn Loaded>>;

    /// Another queue of the same GPU, with the kernels that are loaded; `None` for tests.
    ///
    /// # Errors
    /// If the GPU refuses.
    fn beside(&self) -> Result<Option<Arc<dyn Runtime>>> {
        Ok(None)
    }

    /// The queue, to copy without waiting and to capture graphs; `None` for tests.
    fn stream(&self) -> Option<&Stream>;

    /// Waits for all work.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) if some of it faulted.
    fn synchronize(&self) -> Result<()>;
}

/// A block of a GPU's memory.
pub struct Block {
    runtime: Arc<dyn Runtime>,
    address: u64,
    bytes: usize,
    /// Gives the memory back when it drops.
    _memory: Box<dyn Any + Send + Sync>,
}

impl Block {
    /// `bytes` bytes, at least one, holding anything.
    pub fn new(runtime: &Arc<dyn Runtime>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        let (address, memory) = runtime.allocate(bytes)?;
        Ok(Self { runtime: runtime.clone(), address, bytes, _memory: memory })
    }

    /// `bytes` bytes of zeros.
    pub fn zeroed(runtime: &Arc<dyn Runtime>, bytes: usize) -> Result<Self> {
        let mut block = Self::new(runtime, bytes)?;
        block.zero(0, bytes)?;
        Ok(block)
    }

    /// Where it starts.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The GPU's number.
    pub fn gpu(&self) -> usize {
        self.runtime.ordinal()
    }

    /// Copies `bytes` to the block, from byte `at` on.
    pub fn upload(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let to = self.at(at, bytes.len());
        // SAFETY: `at` checked that the bytes are the block's.
        unsafe { self.runtime.upload(to, bytes) }
    }

    /// Copies the block's bytes from `at` on, as many as `bytes` takes.
    pub fn download(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.at(at, bytes.len());
        // SAFETY: as above.
        unsafe { self.runtime.download(from, bytes) }
    }

    /// Enqueues zeroing `len` bytes from `at` on.
    pub fn zero(&mut self, at: usize, len: usize) -> Result<()> {
        let at = self.at(at, len);
        // SAFETY: as above.
        unsafe { self.runtime.zero(at, len) }
    }

    /// Enqueues a copy of `len` bytes from `from` to `to`.
    ///
    /// # Panics
    /// If the two overlap, unless they are the same.
    pub fn copy_within(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        if from == to {
            return Ok(());
        }
        assert!(from.abs_diff(to) >= len, "a copy within a block overlaps itself");
        let (from, to) = (self.at(from, len), self.at(to, len));
        // SAFETY: as above, and they don't overlap.
        unsafe { self.runtime.copy(from, to, len) }
    }

    /// The address of `len` bytes from byte `at` on.
    fn at(&self, at: usize, len: usize) -> u64 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.bytes), "outside the block");
        self.address + at as u64
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = Place::Cuda(self.gpu());
        write!(f, "Block({} bytes at {:#x}, {place})", self.bytes, self.address)
    }
}
