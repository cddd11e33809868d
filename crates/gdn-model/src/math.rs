//! Matrix products and small arithmetic.
//!
//! A sum runs in an order that its length alone decides: a token's numbers have
//! the same bits whatever came with it in the call, and on any number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Outputs whose sums run side by side.
const ROWS: usize = 4;
/// Tokens whose sums run side by side.
const TOKENS: usize = 2;
/// Outputs of one task: their weights stay in the second-level cache.
const TASK_ROWS: usize = 16;
/// Multiply-adds below which threads cost more than they save.
const PARALLEL: usize = 1 << 17;

/// How to compute: with which vector instructions, and whether on the threads of
/// the pool that calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Math {
    arch: Arch,
    parallel: bool,
}

/// A weight `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Vec<f32>,
    inputs: usize,
}

impl Linear {
    /// `weight` has dense rows of `inputs` elements.
    pub(crate) fn new(weight: Vec<f32>, inputs: usize) -> Self {
        Self { weight, inputs }
    }

    /// `y = x·wᵀ` for `x [T, inputs]`.
    pub(crate) fn apply(&self, math: Math, x: &[f32]) -> Vec<f32> {
        math.product(&self.weight, self.inputs, x)
    }
}

impl Math {
    pub(crate) fn new(parallel: bool) -> Self {
        Self { arch: Arch::new(), parallel }
    }

    /// `x·wᵀ`, `[T, outputs]`, for `x [T, inputs]` and `w [outputs, inputs]`.
    pub(crate) fn product(self, weight: &[f32], inputs: usize, x: &[f32]) -> Vec<f32> {
        let (outputs, tokens) = (weight.len() / inputs, x.len() / inputs);
        if tokens == 0 {
            return Vec::new();
        }
        // A task owns some rows of the transposed product, whatever the tokens.
        let mut y = vec![0.0; outputs * tokens];
        let task = |(out, weight): (&mut [f32], &[f32])| {
            self.arch.dispatch(Product { weight, inputs, x, tokens, out });
        };
        let (out_len, weight_len) = (TASK_ROWS * tokens, TASK_ROWS * inputs);
        if self.parallel && weight.len().saturating_mul(tokens) >= PARALLEL {
            y.par_chunks_mut(out_len).zip(weight.par_chunks(weight_len)).for_each(task);
        } else {
            y.chunks_mut(out_len).zip(weight.chunks(weight_len)).for_each(task);
        }
        if tokens == 1 { y } else { transposed(&y, tokens) }
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

/// The transpose of a matrix with rows of `cols` elements.
fn transposed(matrix: &[f32], cols: usize) -> Vec<f32> {
    let rows = matrix.len() / cols;
    let mut out = vec![0.0; matrix.len()];
    for (row, values) in matrix.chunks_exact(cols).enumerate() {
        for (col, &value) in values.iter().enumerate() {
            out[col * rows + row] = value;
        }
    }
    out
}

/// One task: some rows of weights, all tokens.
struct Product<'a> {
    weight: &'a [f32],
    inputs: usize,
    x: &'a [f32],
    tokens: usize,
    /// `[rows, T]`.
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut token = 0;
        while token + TOKENS <= self.tokens {
            self.tokens_from::<S, TOKENS>(simd, token);
            token += TOKENS;
        }
        while token < self.tokens {
            self.tokens_from::<S, 1>(simd, token);
            token += 1;
        }
    }
}

impl Product<'_> {
    /// T tokens from `token` on through all rows.
    #[inline(always)]
    fn tokens_from<S: Simd, const T: usize>(&mut self, simd: S, token: usize) {
        let rows = self.weight.len() / self.inputs;
        let mut row = 0;
        while row + ROWS <= rows {
            self.tile::<S, ROWS, T>(simd, row, token);
            row += ROWS;
        }
        while row < rows {
            self.tile::<S, 1, T>(simd, row, token);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(&mut self, simd: S, row: usize, token: usize) {
        let (weight, x, inputs) = (self.weight, self.x, self.inputs);
        let mut w = [(&[] as &[S::f32s], &[] as &[f32]); R];
        for (r, w) in w.iter_mut().enumerate() {
            *w = S::as_simd_f32s(&weight[(row + r) * inputs..][..inputs]);
        }
        let mut v = [(&[] as &[S::f32s], &[] as &[f32]); T];
        for (t, v) in v.iter_mut().enumerate() {
            *v = S::as_simd_f32s(&x[(token + t) * inputs..][..inputs]);
        }
        let mut sums = [[simd.splat_f32s(0.0); T]; R];
        for i in 0..v[0].0.len() {
            for r in 0..R {
                let factor = w[r].0[i];
                for t in 0..T {
                    sums[r][t] = simd.mul_add_f32s(factor, v[t].0[i], sums[r][t]);
                }
            }
        }
        for r in 0..R {
            let factor = simd.partial_load_f32s(w[r].1);
            for t in 0..T {
                let last = simd.partial_load_f32s(v[t].1);
                let sum = simd.mul_add_f32s(factor, last, sums[r][t]);
                self.out[(row + r) * self.tokens + token + t] = simd.reduce_sum_f32s(sum);
            }
        }
    }
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
mod tests {
    use super::*;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed) as f32).sin()).collect()
    }

    #[test]
    fn a_product_is_the_sum_of_products() {
        for (outputs, inputs, tokens) in [(1, 1, 1), (5, 7, 3), (33, 50, 2), (130, 257, 9)] {
            let (w, x) = (values(outputs * inputs, 1), values(tokens * inputs, 2));
            let y = Math::new(true).product(&w, inputs, &x);
            for (i, &y) in y.iter().enumerate() {
                let (x, w) = (&x[i / outputs * inputs..], &w[i % outputs * inputs..]);
                let pairs = x.iter().zip(w).take(inputs);
                let sum: f64 = pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                assert!((f64::from(y) - sum).abs() < 1e-4, "{outputs}×{inputs}×{tokens}: {i}");
            }
        }
    }

    #[test]
    fn bits_depend_neither_on_company_nor_on_threads() {
        let (outputs, inputs, tokens) = (131, 250, 9);
        let (w, x) = (values(outputs * inputs, 1), values(tokens * inputs, 2));
        let all = Math::new(true).product(&w, inputs, &x);
        let each = |x| Math::new(false).product(&w, inputs, x);
        assert_eq!(all, x.chunks(inputs).flat_map(each).collect::<Vec<_>>());
    }
}
