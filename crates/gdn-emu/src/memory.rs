//! Memory that a kernel takes for the GPU's.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use bytemuck::Pod;

/// Bytes aligned as `cuMemAlloc` aligns them. The allocation ends with the last
/// byte, so AddressSanitizer sees what is read or written beyond it.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    layout: Layout,
}

impl Memory {
    const ALIGN: usize = 256;

    /// A copy of `bytes`, of which there is at least one.
    pub fn new(bytes: &[u8]) -> Self {
        assert!(!bytes.is_empty(), "no memory of no bytes");
        let layout = Layout::from_size_align(bytes.len(), Self::ALIGN).expect("it is in memory");
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        let mut memory = Self { start, layout };
        memory.bytes_mut().copy_from_slice(bytes);
        memory
    }

    /// A copy of `elements`.
    pub fn of<T: Pod>(elements: &[T]) -> Self {
        Self::new(bytemuck::cast_slice(elements))
    }

    /// Where it starts, for a kernel's parameters.
    pub fn address(&self) -> u64 {
        self.start.expose_provenance() as u64
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised by `new`, and borrowed with `self`; a kernel
        // that writes it runs inside `Kernels::launch`, whose caller vouches for that.
        unsafe { std::slice::from_raw_parts(self.start, self.layout.size()) }
    }

    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }

    /// The elements.
    pub fn read<T: Pod>(&self) -> Vec<T> {
        bytemuck::cast_slice(self.bytes()).to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `new`.
        unsafe { dealloc(self.start, self.layout) }
    }
}
