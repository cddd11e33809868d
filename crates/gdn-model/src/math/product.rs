//! Products of activations with weights: how they are cut into tasks.

use std::marker::PhantomData;

use gdn::bf16;
use rayon::prelude::*;

use super::{
    Math,
    arrange::Arrange,
    kernel::{Task, Values},
    scratch::{Line, Scratch},
};

/// Multiply-adds below which threads cost more than they save.
const PARALLEL: usize = 1 << 17;
/// Tasks a thread gets, for the others to take if it falls behind.
const TASKS: usize = 8;
/// Rows of a task come in multiples of this.
const ROWS: usize = 8;
/// Bytes of weights in a task that reads them once, at most.
const STREAMED: usize = 1 << 20;
/// Bytes of weights in a task that reads them once for every few tokens, at most.
const CACHED: usize = 1 << 17;
/// Tokens that are arranged at once.
const TOKENS: usize = 192;
/// Outputs that are staged at once, for each thread.
const STAGED: usize = 1 << 18;

/// Where a product goes: the columns from `offset` on of `y`, whose rows are
/// `stride` apart.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) offset: usize,
}

impl Math {
    /// `y[t, offset + n] = x[t]·w[n]` for `x [T, inputs]` and the rows w of all
    /// weights, one weight behind the other.
    pub(crate) fn product_into(
        self,
        weights: &[Values<'_>],
        inputs: usize,
        x: &[f32],
        out: Out<'_>,
        scratch: &mut Scratch,
    ) {
        let Out { y, stride, offset } = out;
        let rows = weights.iter().map(|weight| weight.len() / inputs).sum::<usize>();
        let tokens = x.len() / inputs;
        if rows == 0 || tokens == 0 {
            return;
        }
        assert!(offset + rows <= stride, "columns of one row");
        let y = &mut y[..(tokens - 1) * stride + offset + rows];
        let blocks = x.chunks(TOKENS * inputs).zip(y.chunks_mut(TOKENS * stride));
        for (x, y) in blocks {
            self.arrange(weights, inputs, x, &mut scratch.x);
            let call = Call {
                math: self,
                weights,
                inputs,
                tokens: x.len() / inputs,
                x: scratch.x.each_ref().map(Vec::as_slice),
            };
            call.run(rows, y, stride, offset, &mut scratch.staged);
        }
    }

    fn arrange(self, weights: &[Values<'_>], inputs: usize, x: &[f32], to: &mut [Vec<Line>; 2]) {
        let [to_f32, to_bf16] = to;
        if weights.iter().any(|weight| matches!(weight, Values::F32(_))) {
            self.arch.dispatch(Arrange::<f32> { x, inputs, to: to_f32, element: PhantomData });
        }
        if weights.iter().any(|weight| matches!(weight, Values::Bf16(_))) {
            self.arch.dispatch(Arrange::<bf16> { x, inputs, to: to_bf16, element: PhantomData });
        }
    }
}

/// What the tasks of a block of tokens share.
struct Call<'a> {
    math: Math,
    weights: &'a [Values<'a>],
    inputs: usize,
    x: [&'a [Line]; 2],
    tokens: usize,
}

impl Call<'_> {
    fn run(&self, rows: usize, y: &mut [f32], stride: usize, offset: usize, staged: &mut Vec<f32>) {
        let threads = self.math.threads();
        let work = rows.saturating_mul(self.inputs).saturating_mul(self.tokens);
        let parallel = threads > 1 && work >= PARALLEL;
        let task_rows = self.task_rows(rows, threads);
        if self.tokens == 1 {
            return self.tasks(parallel, 0, task_rows, &mut y[offset..offset + rows]);
        }
        let most = (STAGED * threads / self.tokens).next_multiple_of(task_rows);
        if staged.len() < rows.min(most) * self.tokens {
            staged.resize(rows.min(most) * self.tokens, 0.0);
        }
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            let staged = &mut staged[..count * self.tokens];
            self.tasks(parallel, first, task_rows, staged);
            let staged = &*staged;
            // A task's outputs are `[T, task_rows]`.
            let copy = |(t, y): (usize, &mut [f32])| {
                let y = y[offset + first..][..count].chunks_mut(task_rows);
                for (y, staged) in y.zip(staged.chunks(task_rows * self.tokens)) {
                    y.copy_from_slice(&staged[t * y.len()..][..y.len()]);
                }
            };
            if parallel && staged.len() >= PARALLEL {
                y.par_chunks_mut(stride).enumerate().for_each(copy);
            } else {
                y.chunks_mut(stride).enumerate().for_each(copy);
            }
        }
    }

    fn task_rows(&self, rows: usize, threads: usize) -> usize {
        let bytes = if self.tokens <= 6 { STREAMED } else { CACHED };
        let most = bytes / (2 * self.inputs);
        rows.div_ceil(TASKS * threads).min(most).max(1).next_multiple_of(ROWS)
    }

    /// Rows from `first` on, `task_rows` a task.
    fn tasks(&self, parallel: bool, first: usize, task_rows: usize, out: &mut [f32]) {
        let &Self { math, weights, inputs, x, tokens } = self;
        let task = |(i, out): (usize, &mut [f32])| {
            let first = first + i * task_rows;
            math.arch.dispatch(Task { weights, inputs, first, x, tokens, out });
        };
        if parallel {
            out.par_chunks_mut(task_rows * tokens).enumerate().for_each(task);
        } else {
            out.chunks_mut(task_rows * tokens).enumerate().for_each(task);
        }
    }
}
