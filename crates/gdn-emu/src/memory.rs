//! Memory that a kernel takes for the GPU's.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

/// Bytes aligned as `cuMemAlloc` aligns them. The allocation ends with the last
/// byte, so AddressSanitizer sees what is read or written beyond it.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    layout: Layout,
}

impl Memory {
    const ALIGN: usize = 256;

    /// `len` bytes, at least one, that make NaN of every type.
    pub fn poisoned(len: usize) -> Self {
        assert!(len > 0, "no memory of no bytes");
        let layout = Layout::from_size_align(len, Self::ALIGN).expect("not half of all memory");
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: just allocated with this size.
        unsafe { start.write_bytes(0xff, len) };
        Self { start, layout }
    }

    /// Where it starts, for a kernel's parameters.
    pub fn address(&self) -> u64 {
        self.start.expose_provenance() as u64
    }
}

// SAFETY: owns its bytes like a box.
unsafe impl Send for Memory {}
// SAFETY: gives out its address alone.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `poisoned`.
        unsafe { dealloc(self.start, self.layout) }
    }
}
