//! Points in a stream: to order streams, and to time work on the GPU.

use std::fmt;
use std::time::Duration;

use cudarc::driver::sys::{self, CUevent_flags, CUresult};

use crate::device::Device;
use crate::error::{Result, check};

/// A point in a [`Stream`](crate::Stream), set by [`Stream::record`](crate::Stream::record).
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

// SAFETY: an event is an opaque handle that the driver lets any thread use.
unsafe impl Send for Event {}
// SAFETY: as above; the driver orders concurrent calls on one event.
unsafe impl Sync for Event {}

impl Event {
    /// An event that keeps the time it was reached.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn timed(device: &Device) -> Result<Self> {
        Self::new(device, CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event that keeps no time, which makes recording and waiting cheaper.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn untimed(device: &Device) -> Result<Self> {
        Self::new(device, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn new(device: &Device, flags: CUevent_flags) -> Result<Self> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for one handle, and the context is current.
        let result = unsafe { sys::cuEventCreate(&mut raw, flags as u32) };
        check(result, "cuEventCreate")?;
        Ok(Self { device: device.clone(), raw })
    }

    /// Waits on the host until the event is reached; returns at once if it was never recorded.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost) after a fault.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        let result = unsafe { sys::cuEventSynchronize(self.raw) };
        check(result, "cuEventSynchronize")
    }

    /// Whether the event is reached (or was never recorded), without waiting.
    ///
    /// # Errors
    /// [`DeviceLost`](crate::ErrorKind::DeviceLost) after a fault.
    pub fn is_reached(&self) -> Result<bool> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        match unsafe { sys::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => check(other, "cuEventQuery").map(|()| true),
        }
    }

    /// Time on the GPU from this event to `later`, to about half a microsecond. Waits for `later`.
    /// Zero if `later` came first.
    ///
    /// # Errors
    /// The driver's refusal if either is untimed or was never recorded.
    pub fn elapsed(&self, later: &Event) -> Result<Duration> {
        later.synchronize()?;
        self.synchronize()?;
        let mut ms = 0.0f32;
        // SAFETY: `ms` is a valid place for one float, and both events are alive.
        let result = unsafe { sys::cuEventElapsedTime_v2(&mut ms, self.raw, later.raw) };
        check(result, "cuEventElapsedTime")?;
        Ok(Duration::try_from_secs_f64(f64::from(ms) * 1e-3).unwrap_or_default())
    }

    pub(crate) fn raw(&self) -> sys::CUevent {
        self.raw
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:?} of {:?})", self.raw, self.device)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: the only handle to the event; the driver keeps it until pending work is past it.
        let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}
