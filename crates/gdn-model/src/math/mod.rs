//! Matrix products and small arithmetic.
//!
//! A sum runs in an order that its length alone decides: a token's numbers have
//! the same bits whatever came with it in the call, and on any number of threads.

mod arrange;
mod element;
mod kernel;
mod product;
mod scratch;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

pub(crate) use self::{kernel::Values, product::Out, scratch::Scratch};

/// How to compute: with which vector instructions, and whether on the threads of
/// the pool that calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Math {
    arch: Arch,
    parallel: bool,
}

impl Math {
    pub(crate) fn new(parallel: bool) -> Self {
        Self { arch: Arch::new(), parallel }
    }

    /// The threads that share the work.
    pub(crate) fn threads(self) -> usize {
        if self.parallel { rayon::current_num_threads() } else { 1 }
    }

    /// Runs what is written for any vector instructions with the best ones here.
    pub(crate) fn run<W: WithSimd>(self, work: W) -> W::Output {
        self.arch.dispatch(work)
    }

    /// The scalar product.
    pub(crate) fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        self.arch.dispatch(Dot { a, b })
    }

    /// Each row of `len(factor)` elements over its root mean square, times `factor`.
    pub(crate) fn rms_norm(self, x: &mut [f32], factor: &[f32], eps: f32) {
        for row in x.chunks_exact_mut(factor.len()) {
            let mean = self.dot(row, row) / factor.len() as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter_mut().zip(factor).for_each(|(x, factor)| *x *= scale * factor);
        }
    }

    /// Calls `f` with every row of `out` and its index, on all threads.
    pub(crate) fn for_rows(
        self,
        out: &mut [f32],
        len: usize,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        if self.parallel {
            out.par_chunks_mut(len).enumerate().for_each(|(i, row)| f(i, row));
        } else {
            out.chunks_mut(len).enumerate().for_each(|(i, row)| f(i, row));
        }
    }
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Turns scores into shares that add up to 1.
pub(crate) fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let ((a, a_last), (b, b_last)) = (S::as_simd_f32s(self.a), S::as_simd_f32s(self.b));
        let mut sum = simd.splat_f32s(0.0);
        for (&a, &b) in a.iter().zip(b) {
            sum = simd.mul_add_f32s(a, b, sum);
        }
        let (a, b) = (simd.partial_load_f32s(a_last), simd.partial_load_f32s(b_last));
        simd.reduce_sum_f32s(simd.mul_add_f32s(a, b, sum))
    }
}

#[cfg(test)]
mod tests;
