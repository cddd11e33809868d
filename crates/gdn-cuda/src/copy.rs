//! Copies between host and device, and fills.

use bytemuck::Pod;
use cudarc::driver::sys;

use crate::error::{Error, Result, check};
use crate::memory::{DeviceSlice, DeviceSliceMut};
use crate::pinned::PinnedBuffer;
use crate::stream::Stream;

impl Stream {
    /// Copies `src` to the device and waits for it. For start-up; in a step use
    /// [`upload_pinned`](Self::upload_pinned).
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the lengths differ or this stream
    /// is being captured.
    pub fn upload<T: Pod>(&self, dst: DeviceSliceMut<'_, T>, src: &[T]) -> Result<()> {
        self.not_capturing("Stream::upload")?;
        same_length("Stream::upload", dst.len(), src.len())?;
        self.device().bind()?;
        // SAFETY: `src` holds the bytes and outlives the wait below; `dst` was range-checked.
        unsafe { raw_upload(self, dst.ptr().address(), src.as_ptr(), src.len()) }?;
        self.synchronize()
    }

    /// Copies from the device to `dst` and waits for it. For tests and tools; in a step use
    /// [`download_pinned`](Self::download_pinned).
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn download<T: Pod>(&self, src: DeviceSlice<'_, T>, dst: &mut [T]) -> Result<()> {
        self.not_capturing("Stream::download")?;
        same_length("Stream::download", src.len(), dst.len())?;
        self.device().bind()?;
        // SAFETY: `dst` has room and is not touched before the wait below; `src` was range-checked.
        unsafe { raw_download(self, dst.as_mut_ptr(), src.ptr().address(), dst.len()) }?;
        self.synchronize()
    }

    /// Copies the first elements of `src`, as many as `dst` has, to the device; returns at once.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if `src` is shorter, or this stream
    /// is being captured.
    pub fn upload_pinned<T: Pod>(
        &self,
        dst: DeviceSliceMut<'_, T>,
        src: &mut PinnedBuffer<T>,
    ) -> Result<()> {
        self.not_capturing("Stream::upload_pinned")?;
        self.device().bind()?;
        src.track(self, dst.len(), |data| {
            // SAFETY: the pinned buffer is long enough, and lets nobody at the memory before the
            // copy is over; `dst` was range-checked.
            unsafe { raw_upload(self, dst.ptr().address(), data, dst.len()) }
        })
    }

    /// Copies `src` to the first elements of `dst`; returns at once, and
    /// [`PinnedBuffer::get`] waits.
    ///
    /// # Errors
    /// As [`upload_pinned`](Self::upload_pinned).
    pub fn download_pinned<T: Pod>(
        &self,
        src: DeviceSlice<'_, T>,
        dst: &mut PinnedBuffer<T>,
    ) -> Result<()> {
        self.not_capturing("Stream::download_pinned")?;
        self.device().bind()?;
        dst.track(self, src.len(), |data| {
            // SAFETY: as in `upload_pinned`.
            unsafe { raw_download(self, data, src.ptr().address(), src.len()) }
        })
    }

    /// As [`upload_pinned`](Self::upload_pinned), but untracked, and so fit for a capture.
    ///
    /// # Safety
    /// The host must not write `src`, nor drop it, while the copy or a replay of it is under way.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if `src` is shorter.
    pub unsafe fn enqueue_upload<T: Pod>(
        &self,
        dst: DeviceSliceMut<'_, T>,
        src: &PinnedBuffer<T>,
    ) -> Result<()> {
        fits("Stream::enqueue_upload", dst.len(), src.len())?;
        self.device().bind()?;
        // SAFETY: lengths are checked, and the caller keeps the memory still.
        unsafe { raw_upload(self, dst.ptr().address(), src.as_ptr(), dst.len()) }
    }

    /// As [`download_pinned`](Self::download_pinned), but untracked, and so fit for a capture.
    ///
    /// # Safety
    /// The host must neither read nor write `dst`, nor drop it, while the copy or a replay of it
    /// is under way.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if `dst` is shorter.
    pub unsafe fn enqueue_download<T: Pod>(
        &self,
        src: DeviceSlice<'_, T>,
        dst: &PinnedBuffer<T>,
    ) -> Result<()> {
        fits("Stream::enqueue_download", src.len(), dst.len())?;
        self.device().bind()?;
        // SAFETY: lengths are checked, and the caller keeps the memory still.
        unsafe { raw_download(self, dst.as_ptr(), src.ptr().address(), src.len()) }
    }

    /// Copies within the device; returns at once.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the lengths differ.
    pub fn copy<T: Pod>(&self, dst: DeviceSliceMut<'_, T>, src: DeviceSlice<'_, T>) -> Result<()> {
        same_length("Stream::copy", dst.len(), src.len())?;
        if src.bytes() == 0 {
            return Ok(());
        }
        self.device().bind()?;
        let (to, from) = (dst.ptr().address(), src.ptr().address());
        // SAFETY: both ranges lie in live buffers, and cannot overlap: one is borrowed mutably.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, src.bytes(), self.as_raw()) };
        check(result, "cuMemcpyDtoDAsync")
    }

    /// Sets every byte of `dst` to `byte`; returns at once.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn fill_bytes<T: Pod>(&self, dst: DeviceSliceMut<'_, T>, byte: u8) -> Result<()> {
        if dst.bytes() == 0 {
            return Ok(());
        }
        self.device().bind()?;
        // SAFETY: the range lies in a live buffer, and any bytes are a valid `T`.
        let result =
            unsafe { sys::cuMemsetD8Async(dst.ptr().address(), byte, dst.bytes(), self.as_raw()) };
        check(result, "cuMemsetD8Async")
    }
}

/// # Safety
/// `src` must hold `len` elements until the copy is over, `dst` have room, and the context be
/// current.
unsafe fn raw_upload<T>(stream: &Stream, dst: u64, src: *const T, len: usize) -> Result<()> {
    let bytes = len * size_of::<T>();
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let result = unsafe { sys::cuMemcpyHtoDAsync_v2(dst, src.cast(), bytes, stream.as_raw()) };
    check(result, "cuMemcpyHtoDAsync")
}

/// # Safety
/// As [`raw_upload`], the other way.
unsafe fn raw_download<T>(stream: &Stream, dst: *mut T, src: u64, len: usize) -> Result<()> {
    let bytes = len * size_of::<T>();
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let result = unsafe { sys::cuMemcpyDtoHAsync_v2(dst.cast(), src, bytes, stream.as_raw()) };
    check(result, "cuMemcpyDtoHAsync")
}

fn same_length(what: &str, device: usize, other: usize) -> Result<()> {
    if device == other {
        return Ok(());
    }
    Err(Error::argument(format!("{what}: lengths differ ({device} and {other} elements)")))
}

fn fits(what: &str, needed: usize, pinned: usize) -> Result<()> {
    if needed <= pinned {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{what}: {needed} elements do not fit a pinned buffer of {pinned}"
    )))
}
