//! A tensor of a checkpoint, left where it lies.

use std::{ops::Range, sync::Arc};

use gdn::{Slice, bf16};
use memmap2::Mmap;

/// A matrix `[rows, cols]` of weights. Cheap to clone and to cut.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    values: Values,
    /// In elements of `values`.
    start: usize,
    rows: usize,
    cols: usize,
}

#[derive(Clone, Debug)]
enum Values {
    /// bf16, from this byte of a file on.
    Mapped(Arc<Mmap>, usize),
    Bf16(Arc<Vec<bf16>>),
    F32(Arc<Vec<f32>>),
    Dummy(Dummy),
}

/// Numbers made up from a seed: element i is `scale` times what `ops::fill` makes of
/// (seed, i).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dummy {
    pub(crate) seed: u64,
    pub(crate) scale: f32,
}

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements<'a> {
    Stored(Slice<'a>),
    /// Of this dummy, from this element on.
    Dummy(Dummy, usize),
}

impl Tensor {
    /// bf16 of a file, from byte `at` on, which is even.
    pub(crate) fn mapped(map: Arc<Mmap>, at: usize, [rows, cols]: [usize; 2]) -> Self {
        Self { values: Values::Mapped(map, at), start: 0, rows, cols }
    }

    pub(crate) fn bf16(values: Vec<bf16>, cols: usize) -> Self {
        let rows = values.len() / cols;
        Self { values: Values::Bf16(Arc::new(values)), start: 0, rows, cols }
    }

    pub(crate) fn f32(values: Vec<f32>, cols: usize) -> Self {
        let rows = values.len() / cols;
        Self { values: Values::F32(Arc::new(values)), start: 0, rows, cols }
    }

    pub(crate) fn dummy(dummy: Dummy, [rows, cols]: [usize; 2]) -> Self {
        Self { values: Values::Dummy(dummy), start: 0, rows, cols }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Some of its rows.
    pub(crate) fn cut(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows of another tensor");
        let start = self.start + rows.start * self.cols;
        Self { values: self.values.clone(), start, rows: rows.len(), cols: self.cols }
    }

    pub(crate) fn elements(&self) -> Elements<'_> {
        let range = self.start..self.start + self.rows * self.cols;
        Elements::Stored(match &self.values {
            Values::Mapped(map, at) => {
                let bytes = &map[at + 2 * range.start..at + 2 * range.end];
                // Checked when the tensor was taken: maps are pages, and `at` is even.
                Slice::BF16(bytemuck::cast_slice(bytes))
            }
            Values::Bf16(values) => Slice::BF16(&values[range]),
            Values::F32(values) => Slice::F32(&values[range]),
            Values::Dummy(dummy) => return Elements::Dummy(*dummy, range.start),
        })
    }
}
