//! Views of memory by its address, for the operators of `gdn`.
#![expect(unsafe_code, reason = "views of memory by its address")]

use gdn::{DType, DeviceElements, DeviceElementsMut, DeviceIntegers, Rows, RowsMut, bf16};
use gdn_cuda::{DevicePtr, DeviceSlice, DeviceSliceMut};

use super::Gpu;
use crate::Result;

impl Gpu {
    /// A view of activations by their address.
    pub(super) fn view<'a>(
        &self,
        address: u64,
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Rows<'a>> {
        let (len, gpu) = (rows * stride, self.runtime.ordinal());
        // SAFETY: the address is that of a buffer of at least `batch_tokens` rows of such a
        // stride, and the kernels that use the view run before any that free it.
        let elements: DeviceElements<'a> = unsafe {
            match self.activations {
                DType::BF16 => slice::<bf16>(address, len, gpu).into(),
                _ => slice::<f32>(address, len, gpu).into(),
            }
        };
        Ok(Rows::strided(gdn::Data::Device(elements), rows, cols, stride)?)
    }

    pub(super) fn view_mut<'a>(
        &self,
        address: u64,
        rows: usize,
        cols: usize,
    ) -> Result<RowsMut<'a>> {
        let (len, gpu) = (rows * cols, self.runtime.ordinal());
        // SAFETY: as in `view`; only one view of the buffer is alive at a time.
        let elements: DeviceElementsMut<'a> = unsafe {
            match self.activations {
                DType::BF16 => slice_mut::<bf16>(address, len, gpu).into(),
                _ => slice_mut::<f32>(address, len, gpu).into(),
            }
        };
        Ok(RowsMut::new(gdn::DataMut::Device(elements), rows, cols)?)
    }

    /// The slots of `len` sequences, i32 at `address`.
    pub(super) fn slots<'a>(&self, address: u64, len: usize) -> DeviceIntegers<'a> {
        // SAFETY: there are as many slots as sequences.
        unsafe { slice::<i32>(address, len, self.runtime.ordinal()) }.into()
    }
}

/// # Safety
/// As [`DeviceSlice::from_raw_parts`].
unsafe fn slice<'a, T: bytemuck::Pod>(address: u64, len: usize, gpu: usize) -> DeviceSlice<'a, T> {
    // SAFETY: passed on to the caller.
    unsafe { DeviceSlice::from_raw_parts(DevicePtr::from_address(address), len, gpu) }
}

/// # Safety
/// As [`DeviceSliceMut::from_raw_parts`].
unsafe fn slice_mut<'a, T: bytemuck::Pod>(
    address: u64,
    len: usize,
    gpu: usize,
) -> DeviceSliceMut<'a, T> {
    // SAFETY: passed on to the caller.
    unsafe { DeviceSliceMut::from_raw_parts(DevicePtr::from_address(address), len, gpu) }
}
