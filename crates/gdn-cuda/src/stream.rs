//! A queue of work on one GPU.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUstream_flags};

use crate::device::Device;
use crate::error::{Error, Result, check};
use crate::event::Event;

/// A queue of work on one GPU, in order.
///
/// Never the default stream: that one waits for every other and cannot be captured. Cloning is
/// cheap, and a clone is the same queue: work is done in the order in which it was enqueued, by
/// whichever clone. While one is being captured, all record.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    device: Device,
    raw: sys::CUstream,
    capturing: AtomicBool,
}

// SAFETY: a stream is an opaque handle that the driver lets any thread use.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver orders concurrent calls on one stream, and the flag is atomic.
unsafe impl Sync for Inner {}

impl Stream {
    /// Creates a stream on `device`.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` is a valid place for one handle, and the context is current.
        let result = unsafe { sys::cuStreamCreate(&mut raw, flags) };
        check(result, "cuStreamCreate")?;
        let capturing = AtomicBool::new(false);
        Ok(Self(Arc::new(Inner { device: device.clone(), raw, capturing })))
    }

    /// The GPU this stream works on.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Waits until all work enqueued so far is done. Faults of kernels come out here.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost) after a fault, and
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) during a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.not_capturing("Stream::synchronize")?;
        self.device().bind()?;
        // SAFETY: the stream is alive and its context current.
        let result = unsafe { sys::cuStreamSynchronize(self.0.raw) };
        check(result, "cuStreamSynchronize")
    }

    /// Marks `event` as reached once all work enqueued so far is done.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the event is of another GPU or
    /// this stream is being captured.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.not_capturing("Stream::record")?;
        self.device().expect_same(event.device(), "Stream::record")?;
        self.device().bind()?;
        // SAFETY: both are alive, of the same context, which is current.
        let result = unsafe { sys::cuEventRecord(event.raw(), self.0.raw) };
        check(result, "cuEventRecord")
    }

    /// Lets work enqueued from now on start only once `event` is reached. The host does not wait;
    /// the event may be of another stream or GPU.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) while this stream is being captured.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.not_capturing("Stream::wait")?;
        self.device().bind()?;
        // SAFETY: both are alive, and the context is current; the flags must be zero.
        let result = unsafe { sys::cuStreamWaitEvent(self.0.raw, event.raw(), 0) };
        check(result, "cuStreamWaitEvent")
    }

    /// The driver's handle, for other libraries that enqueue work on this stream. They must not
    /// destroy it, nor begin or end a capture on it.
    #[inline]
    pub fn as_raw(&self) -> sys::CUstream {
        self.0.raw
    }

    pub(crate) fn set_capturing(&self, on: bool) {
        self.0.capturing.store(on, Ordering::Relaxed);
    }

    /// Refuses, before the driver does: its refusal would also spoil the capture.
    pub(crate) fn not_capturing(&self, what: &str) -> Result<()> {
        if self.0.capturing.load(Ordering::Relaxed) {
            return Err(Error::argument(format!(
                "{what} cannot be recorded in a graph: do it before or after the capture"
            )));
        }
        Ok(())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?} of {:?})", self.0.raw, self.0.device)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: the only handle to the stream. The driver finishes its pending work first, and
        // refuses harmlessly at process exit.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}
