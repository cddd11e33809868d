//! Gated softmax attention over a paged cache of keys and values: a row attends to the
//! positions up to its own, and the new keys are in the cache already.
//!
//! A row's bits depend on its own sequence and position alone, neither on the rows
//! beside it nor on where its pages lie: its softmax takes the keys page by page in
//! ascending order. On a GPU it also starts anew every eight pages, and what the
//! eights give is folded in ascending order; decode and prefill share that order.

pub(crate) mod cpu;
pub(crate) mod cuda;

#[cfg(test)]
mod tests;

/// Positions of a page.
pub(crate) const PAGE: usize = 64;

/// The heads of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) kv: usize,
    /// Query heads of a kv head.
    pub(crate) ratio: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// All query heads.
    pub(crate) fn queries(self) -> usize {
        self.kv * self.ratio
    }

    /// The factor of q·k, to take powers of 2 of.
    pub(crate) fn scale(self) -> f32 {
        (std::f64::consts::LOG2_E / (self.dim as f64).sqrt()) as f32
    }
}
