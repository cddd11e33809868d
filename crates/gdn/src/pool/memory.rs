//! Zeroed memory for a pool: mapped, so that untouched slots cost nothing.

use memmap2::{MmapMut, MmapOptions};

use crate::{
    DType, ErrorKind, Result,
    views::{Slice, SliceMut},
};

/// `len` elements of `dtype`, all zero at first.
#[derive(Debug)]
pub(crate) struct Memory {
    map: MmapMut,
    dtype: DType,
    len: usize,
}

impl Memory {
    pub(crate) fn zeroed(what: &str, dtype: DType, len: usize) -> Result<Self> {
        let refused = |reason: String| ErrorKind::System {
            what: format!("{what}: {len} elements of {dtype}"),
            reason,
        };
        let bytes = len
            .checked_mul(dtype.size())
            .ok_or_else(|| refused("more than the address space".into()))?;
        // A pool may be larger than memory as long as few of its slots are used.
        let map = MmapOptions::new()
            .len(bytes.max(1))
            .no_reserve_swap()
            .map_anon()
            .map_err(|error| refused(error.to_string()))?;
        // A slot spans hundreds of small pages: with huge ones a decode step
        // on cold slots misses the TLB less. Only advice, so errors don't count.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, dtype, len })
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        let bytes = &self.map[..self.len * self.dtype.size()];
        match self.dtype {
            DType::F32 => Slice::F32(bytemuck::cast_slice(bytes)),
            DType::BF16 => Slice::BF16(bytemuck::cast_slice(bytes)),
            DType::F16 => Slice::F16(bytemuck::cast_slice(bytes)),
        }
    }

    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        let bytes = &mut self.map[..self.len * self.dtype.size()];
        match self.dtype {
            DType::F32 => SliceMut::F32(bytemuck::cast_slice_mut(bytes)),
            DType::BF16 => SliceMut::BF16(bytemuck::cast_slice_mut(bytes)),
            DType::F16 => SliceMut::F16(bytemuck::cast_slice_mut(bytes)),
        }
    }

    /// The bytes of elements `start .. start + len`.
    pub(crate) fn bytes(&self, start: usize, len: usize) -> &[u8] {
        let size = self.dtype.size();
        &self.map[start * size..(start + len) * size]
    }

    /// The bytes of elements `start .. start + len`, to write.
    pub(crate) fn bytes_mut(&mut self, start: usize, len: usize) -> &mut [u8] {
        let size = self.dtype.size();
        &mut self.map[start * size..(start + len) * size]
    }

    /// Copies `len` elements from `from` to `to`, which don't overlap.
    pub(crate) fn copy_within(&mut self, from: usize, to: usize, len: usize) {
        let size = self.dtype.size();
        self.map.copy_within(from * size..(from + len) * size, to * size);
    }
}
