//! Memory that outlives a call, so that calls don't allocate.

use std::cell::RefCell;

use half::{bf16, f16};

use crate::{
    DType,
    views::{Rows, RowsMut},
};

/// The intermediates of the paths that run in several steps.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// The convolution's output, `[B, C]`.
    pub(crate) conv: Buffer,
    /// The recurrence's output, `[B, HV·V]`.
    pub(crate) o: Buffer,
    pub(crate) split: SplitWorkspace,
    pub(crate) offsets: Offsets,
}

/// What split decode writes between its steps.
#[derive(Debug, Default)]
pub(crate) struct SplitWorkspace {
    pub(crate) q: Buffer,
    pub(crate) k: Buffer,
    pub(crate) v: Buffer,
    /// g ‖ β, `[B, 2·HV]`.
    pub(crate) gates: Buffer,
}

/// A matrix of any dtype that grows when it must.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    f16: Vec<f16>,
}

impl Buffer {
    /// A dense matrix, its contents left from before.
    pub(crate) fn rows_mut(&mut self, dtype: DType, rows: usize, cols: usize) -> RowsMut<'_> {
        fn sized<T: Clone + Default>(vec: &mut Vec<T>, len: usize) -> &mut [T] {
            if vec.len() < len {
                vec.resize(len, T::default());
            }
            &mut vec[..len]
        }
        let len = rows * cols;
        match dtype {
            DType::F32 => RowsMut::new(sized(&mut self.f32, len), rows, cols),
            DType::BF16 => RowsMut::new(sized(&mut self.bf16, len), rows, cols),
            DType::F16 => RowsMut::new(sized(&mut self.f16, len), rows, cols),
        }
        .expect("sized above")
    }

    /// What [`rows_mut`](Self::rows_mut) of the same shape was filled with.
    pub(crate) fn rows(&self, dtype: DType, rows: usize, cols: usize) -> Rows<'_> {
        match dtype {
            DType::F32 => Rows::new(&self.f32, rows, cols),
            DType::BF16 => Rows::new(&self.bf16, rows, cols),
            DType::F16 => Rows::new(&self.f16, rows, cols),
        }
        .expect("sized by rows_mut")
    }
}

/// Where each sequence of a prefill starts, and where the last one ends.
#[derive(Debug, Default)]
pub(crate) struct Offsets(Vec<usize>);

impl Offsets {
    pub(crate) fn set(&mut self, lengths: &[usize]) {
        self.0.clear();
        self.0.push(0);
        let mut end = 0;
        self.0.extend(lengths.iter().map(|length| {
            end += length;
            end
        }));
    }

    pub(crate) fn as_slice(&self) -> &[usize] {
        &self.0
    }
}

/// Calls `f` with scratch of this thread, one slice for each length, its
/// contents left from before. `f` must not call `with_scratch`.
pub(crate) fn with_scratch<const N: usize, R>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let total = lengths.iter().sum();
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let mut rest = scratch.as_mut_slice();
        f(lengths.map(|length| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(length);
            rest = tail;
            head
        }))
    })
}
