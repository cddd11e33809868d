//! Memory for a pool: mapped on the host, so that untouched slots cost nothing,
//! or a block of a GPU's.

use std::{borrow::Cow, sync::Arc};

use memmap2::{MmapMut, MmapOptions};

use crate::{
    DType, ErrorKind, Result,
    cuda::runtime::{Block, Runtime},
    device::{DeviceElementsMut, Region},
    views::{DataMut, Slice, SliceMut},
};

/// `len` elements of `dtype`, all zero at first.
#[derive(Debug)]
pub(crate) struct Memory {
    store: Store,
    dtype: DType,
    len: usize,
}

#[derive(Debug)]
enum Store {
    Host(MmapMut),
    Device(Block),
}

impl Memory {
    /// On the host.
    pub(crate) fn host(what: &str, dtype: DType, len: usize) -> Result<Self> {
        let bytes = bytes_of(what, dtype, len)?;
        // A pool may be larger than memory as long as few of its slots are used.
        let map =
            MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon().map_err(|error| {
                let what = format!("{what}: {len} elements of {dtype}");
                ErrorKind::System { what, reason: error.to_string() }
            })?;
        // A slot spans hundreds of small pages: with huge ones a decode step
        // on cold slots misses the TLB less. Only advice, so errors don't count.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { store: Store::Host(map), dtype, len })
    }

    /// On the GPU of `runtime`.
    pub(crate) fn device(
        runtime: &Arc<dyn Runtime>,
        what: &str,
        dtype: DType,
        len: usize,
    ) -> Result<Self> {
        let bytes = bytes_of(what, dtype, len)?;
        Ok(Self { store: Store::Device(Block::zeroed(runtime, bytes)?), dtype, len })
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it starts on its GPU; `None` on the host.
    pub(crate) fn address(&self) -> Option<u64> {
        match &self.store {
            Store::Host(_) => None,
            Store::Device(block) => Some(block.address()),
        }
    }

    /// All elements; `None` where they are on a GPU.
    pub(crate) fn slice(&self) -> Option<Slice<'_>> {
        let Store::Host(map) = &self.store else { return None };
        let bytes = &map[..self.len * self.dtype.size()];
        Some(match self.dtype {
            DType::F32 => Slice::F32(bytemuck::cast_slice(bytes)),
            DType::BF16 => Slice::BF16(bytemuck::cast_slice(bytes)),
            DType::F16 => Slice::F16(bytemuck::cast_slice(bytes)),
        })
    }

    /// All elements, to write.
    pub(crate) fn data_mut(&mut self) -> DataMut<'_> {
        let Self { store, dtype, len } = self;
        match store {
            Store::Device(block) => DataMut::Device(DeviceElementsMut::new(Region {
                address: block.address(),
                dtype: *dtype,
                len: *len,
                gpu: block.gpu(),
            })),
            Store::Host(map) => {
                let bytes = &mut map[..*len * dtype.size()];
                DataMut::Host(match dtype {
                    DType::F32 => SliceMut::F32(bytemuck::cast_slice_mut(bytes)),
                    DType::BF16 => SliceMut::BF16(bytemuck::cast_slice_mut(bytes)),
                    DType::F16 => SliceMut::F16(bytemuck::cast_slice_mut(bytes)),
                })
            }
        }
    }

    /// Elements `start .. start + values.len()` as f32.
    pub(crate) fn read(&self, start: usize, values: &mut [f32]) -> Result<()> {
        let bytes = self.bytes(start, values.len())?;
        self.dtype.widen(&bytes, values);
        Ok(())
    }

    /// Writes `values` from element `start` on, rounded to the dtype.
    pub(crate) fn write(&mut self, start: usize, values: &[f32]) -> Result<()> {
        let bytes = self.dtype.narrow(values);
        self.set_bytes(start, &bytes)
    }

    /// The bytes of elements `start .. start + len`.
    pub(crate) fn bytes(&self, start: usize, len: usize) -> Result<Cow<'_, [u8]>> {
        let size = self.dtype.size();
        Ok(match &self.store {
            Store::Host(map) => Cow::Borrowed(&map[start * size..(start + len) * size]),
            Store::Device(block) => {
                let mut bytes = vec![0; len * size];
                block.download(start * size, &mut bytes)?;
                Cow::Owned(bytes)
            }
        })
    }

    /// Writes `bytes` over the elements from `start` on.
    pub(crate) fn set_bytes(&mut self, start: usize, bytes: &[u8]) -> Result<()> {
        let start = start * self.dtype.size();
        match &mut self.store {
            Store::Host(map) => map[start..start + bytes.len()].copy_from_slice(bytes),
            Store::Device(block) => block.upload(start, bytes)?,
        }
        Ok(())
    }

    /// Zeroes elements `start .. start + len`.
    pub(crate) fn zero(&mut self, start: usize, len: usize) -> Result<()> {
        let size = self.dtype.size();
        match &mut self.store {
            Store::Host(map) => map[start * size..(start + len) * size].fill(0),
            Store::Device(block) => block.zero(start * size, len * size)?,
        }
        Ok(())
    }

    /// Copies `len` elements from `from` to `to`, which don't overlap.
    pub(crate) fn copy_within(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        let size = self.dtype.size();
        match &mut self.store {
            Store::Host(map) => map.copy_within(from * size..(from + len) * size, to * size),
            Store::Device(block) => block.copy_within(from * size, to * size, len * size)?,
        }
        Ok(())
    }
}

fn bytes_of(what: &str, dtype: DType, len: usize) -> Result<usize> {
    len.checked_mul(dtype.size()).ok_or_else(|| {
        let what = format!("{what}: {len} elements of {dtype}");
        ErrorKind::System { what, reason: "more than the address space".to_owned() }.into()
    })
}
