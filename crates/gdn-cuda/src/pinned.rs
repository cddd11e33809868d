//! Host memory that the GPU copies to and from on its own.

use std::cell::Cell;
use std::fmt;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};

use crate::device::Device;
use crate::error::{Error, Repr, Result, check};
use crate::event::Event;
use crate::stream::Stream;

/// Pinned host memory: copies between it and the GPU run while the host goes on.
///
/// It knows whether such a copy is under way, and waits for it before it lets the host see the
/// memory, so reading a result too early is not possible.
pub struct PinnedBuffer<T> {
    data: *mut T,
    len: usize,
    copied: Event,
    pending: Cell<bool>,
}

// SAFETY: owns its memory like a box; the event is `Send`. (Not `Sync`: the cell is not.)
unsafe impl<T: Send> Send for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// `len` elements of zeros, pinned for `device`. Slow: make them at start and keep them.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory), with the bytes wanted.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        let copied = Event::untimed(device)?;
        let bytes =
            len.checked_mul(size_of::<T>()).ok_or(Repr::HostMemory { wanted: usize::MAX })?;
        let mut data = std::ptr::null_mut();
        // SAFETY: `data` is a valid place for one pointer, and making the event left the context
        // current. Zero bytes are refused by the driver, hence one at least.
        match unsafe { sys::cuMemHostAlloc(&mut data, bytes.max(1), 0) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(Repr::HostMemory { wanted: bytes }.into());
            }
            other => check(other, "cuMemHostAlloc")?,
        }
        // SAFETY: just allocated with at least this many bytes.
        unsafe { data.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { data: data.cast(), len, copied, pending: Cell::new(false) })
    }

    /// The elements, after waiting for a copy that is under way.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost) after a fault.
    pub fn get(&self) -> Result<&[T]> {
        self.settle()?;
        // SAFETY: `len` initialized elements (any bits are valid), aligned to pages; no copy is
        // under way, and starting one takes `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.data, self.len) })
    }

    /// The elements, to change, after waiting for a copy that is under way.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_mut(&mut self) -> Result<&mut [T]> {
        self.settle()?;
        // SAFETY: as in `get`, and `&mut self` makes it the only view.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.data, self.len) })
    }
}

impl<T> PinnedBuffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a copy is still under way.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost) after a fault.
    pub fn is_pending(&self) -> Result<bool> {
        if self.pending.get() && self.copied.is_reached()? {
            self.pending.set(false);
        }
        Ok(self.pending.get())
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.data
    }

    fn settle(&self) -> Result<()> {
        if self.pending.get() {
            self.copied.synchronize()?;
            self.pending.set(false);
        }
        Ok(())
    }

    /// Enqueues a copy through `enqueue` and remembers it as under way.
    pub(crate) fn track(
        &mut self,
        stream: &Stream,
        count: usize,
        enqueue: impl FnOnce(*mut T) -> Result<()>,
    ) -> Result<()> {
        if count > self.len {
            return Err(Error::argument(format!(
                "{count} elements do not fit a pinned buffer of {}",
                self.len
            )));
        }
        stream.device().expect_same(self.copied.device(), "copy of a pinned buffer")?;
        if self.pending.get() {
            // The last copy may be of another stream.
            stream.wait(&self.copied)?;
        }
        enqueue(self.data)?;
        let recorded = stream.record(&self.copied);
        match recorded {
            Ok(()) => self.pending.set(true),
            // Without the event only the stream can tell when the copy is over.
            Err(_) => stream.synchronize()?,
        }
        recorded
    }
}

impl<T> fmt::Debug for PinnedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} × {})", self.len, std::any::type_name::<T>())
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        let _ = self.settle();
        let _ = self.copied.device().bind();
        // SAFETY: came from `cuMemHostAlloc`, and no tracked copy is under way. At process exit
        // the driver may refuse: the memory goes with the process then.
        let _ = unsafe { sys::cuMemFreeHost(self.data.cast()) };
    }
}
