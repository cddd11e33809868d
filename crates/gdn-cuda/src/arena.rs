//! One block of device memory, taken once and handed out in parts.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};

use crate::device::Device;
use crate::error::{Error, Repr, Result, check};
use crate::memory::DeviceBuffer;

/// Alignment and granularity of parts, in bytes: whole sectors and cache lines, and more than any
/// vector or bulk access asks for.
const ALIGN: usize = 256;

/// One block of device memory, taken from the driver once; [`DeviceBuffer`]s are parts of it.
/// Cloning is cheap, and the block stays for as long as a clone or a buffer does.
///
/// Parts are given back when their buffer drops, and handed out again at once, so the block never
/// grows and the driver is not asked again. The GPU may still be at work on a part that is given
/// back: that is sound as long as one arena serves one stream, where later work comes later. If
/// two streams share an arena, synchronize before dropping.
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

struct Inner {
    device: Device,
    base: u64,
    ranges: Mutex<Ranges>,
}

impl Inner {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arena {
    /// Takes `bytes` of device memory, rounded up to 256. The memory holds whatever was there.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory), with the bytes wanted and free, and
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for zero bytes.
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        let capacity = round_up(bytes)
            .filter(|&n| n > 0)
            .ok_or_else(|| Error::argument(format!("an arena cannot have {bytes} bytes")))?;
        device.bind()?;
        let mut base = 0;
        // SAFETY: `base` is a valid place for one address, and the context is current.
        match unsafe { sys::cuMemAlloc_v2(&mut base, capacity) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let memory = device.memory()?;
                Err(Repr::DeviceMemory { wanted: capacity, free: memory.free, total: memory.total }
                    .into())
            }
            other => {
                check(other, "cuMemAlloc")?;
                let ranges = Mutex::new(Ranges::new(capacity));
                Ok(Self(Arc::new(Inner { device: device.clone(), base, ranges })))
            }
        }
    }

    /// Room for `len` elements, aligned to 256 bytes, holding whatever was there.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory), with the bytes wanted, free, and free in
    /// one piece.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        let mut ranges = self.0.ranges();
        let size = len.checked_mul(size_of::<T>()).and_then(round_up);
        let offset = size.and_then(|size| ranges.take(size));
        let (Some(size), Some(offset)) = (size, offset) else {
            return Err(Repr::ArenaFull {
                wanted: size.unwrap_or(usize::MAX),
                free: ranges.free_bytes(),
                largest: ranges.largest(),
                capacity: ranges.capacity,
            }
            .into());
        };
        drop(ranges);
        Ok(DeviceBuffer::new(Region { arena: self.0.clone(), offset, size }, len))
    }

    /// All its bytes.
    pub fn capacity(&self) -> usize {
        self.0.ranges().capacity
    }

    /// Bytes not handed out, perhaps in several pieces.
    pub fn free_bytes(&self) -> usize {
        self.0.ranges().free_bytes()
    }

    /// The GPU that holds it.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} bytes free)", self.free_bytes(), self.capacity())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: the address came from `cuMemAlloc`, and no buffer holds the arena any more. The
        // driver waits for work that uses the block, and refuses harmlessly at process exit.
        let _ = unsafe { sys::cuMemFree_v2(self.base) };
    }
}

/// A part handed out, given back when dropped.
pub(crate) struct Region {
    arena: Arc<Inner>,
    offset: usize,
    size: usize,
}

impl Region {
    pub(crate) fn address(&self) -> u64 {
        self.arena.base + self.offset as u64
    }

    /// The number of the GPU.
    pub(crate) fn gpu(&self) -> usize {
        self.arena.device.info().ordinal
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.arena.ranges().give_back(self.offset, self.size);
    }
}

fn round_up(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN)
}

/// Which bytes of a block are free: sorted, apart from each other, first fit.
struct Ranges {
    capacity: usize,
    /// Offset and length of each free range.
    free: Vec<(usize, usize)>,
}

impl Ranges {
    fn new(capacity: usize) -> Self {
        Self { capacity, free: vec![(0, capacity)] }
    }

    fn take(&mut self, size: usize) -> Option<usize> {
        if size == 0 {
            return Some(0);
        }
        let at = self.free.iter().position(|&(_, len)| len >= size)?;
        let (offset, len) = self.free[at];
        if len == size {
            self.free.remove(at);
        } else {
            self.free[at] = (offset + size, len - size);
        }
        Some(offset)
    }

    fn give_back(&mut self, offset: usize, size: usize) {
        if size == 0 {
            return;
        }
        let at = self.free.partition_point(|&(o, _)| o < offset);
        let joins_next = self.free.get(at).is_some_and(|&(o, _)| offset + size == o);
        let joins_previous = at > 0 && {
            let (o, len) = self.free[at - 1];
            o + len == offset
        };
        match (joins_previous, joins_next) {
            (true, true) => {
                self.free[at - 1].1 += size + self.free[at].1;
                self.free.remove(at);
            }
            (true, false) => self.free[at - 1].1 += size,
            (false, true) => self.free[at] = (offset, size + self.free[at].1),
            (false, false) => self.free.insert(at, (offset, size)),
        }
    }

    fn free_bytes(&self) -> usize {
        self.free.iter().map(|&(_, len)| len).sum()
    }

    fn largest(&self) -> usize {
        self.free.iter().map(|&(_, len)| len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_up_and_do_not_wrap() {
        assert_eq!(round_up(0), Some(0));
        assert_eq!(round_up(1), Some(256));
        assert_eq!(round_up(256), Some(256));
        assert_eq!(round_up(usize::MAX), None);
    }

    #[test]
    fn neighbours_join_again_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut ranges = Ranges::new(768);
            let parts: Vec<_> = (0..3).map(|_| ranges.take(256).unwrap()).collect();
            assert_eq!((parts.as_slice(), ranges.take(256)), ([0, 256, 512].as_slice(), None));
            for i in order {
                ranges.give_back(parts[i], 256);
            }
            assert_eq!(ranges.free, [(0, 768)], "{order:?}");
        }
    }

    #[test]
    fn a_hole_is_filled_first() {
        let mut ranges = Ranges::new(2560);
        let a = ranges.take(512).unwrap();
        let _b = ranges.take(512).unwrap();
        ranges.give_back(a, 512);
        assert_eq!(ranges.take(768), Some(1024));
        assert_eq!(ranges.take(512), Some(a));
        assert_eq!((ranges.free_bytes(), ranges.largest()), (768, 768));
    }

    /// Random takes and returns, against a map of every granule.
    #[test]
    fn parts_never_overlap_and_nothing_is_lost() {
        let mut ranges = Ranges::new(64 * ALIGN);
        let mut owner = [false; 64];
        let mut held: Vec<(usize, usize)> = Vec::new();
        let mut seed = 1u64;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        for _ in 0..20_000 {
            if random(2) == 0 {
                let count = 1 + random(9);
                if let Some(offset) = ranges.take(count * ALIGN) {
                    for granule in &mut owner[offset / ALIGN..][..count] {
                        assert!(!std::mem::replace(granule, true), "handed out twice");
                    }
                    held.push((offset, count));
                }
            } else if !held.is_empty() {
                let (offset, count) = held.swap_remove(random(held.len()));
                owner[offset / ALIGN..][..count].fill(false);
                ranges.give_back(offset, count * ALIGN);
            }
            let free = owner.iter().filter(|&&taken| !taken).count();
            assert_eq!(ranges.free_bytes(), free * ALIGN);
            assert!(ranges.free.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "not joined");
        }
    }
}
