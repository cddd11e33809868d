//! Memory of products that outlives a call.

use bytemuck::{Pod, Zeroable};

/// Memory that products reuse: after the largest of them none allocates.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Activations arranged for f32 and for bf16.
    pub(super) x: [Vec<Line>; 2],
    /// Outputs, task by task.
    pub(super) staged: Vec<f32>,
}

/// A cache line: vectors in it don't straddle two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

impl Line {
    /// Makes room for `floats`.
    pub(super) fn resize(lines: &mut Vec<Self>, floats: usize) {
        lines.resize(floats.div_ceil(16), Self::zeroed());
    }
}
