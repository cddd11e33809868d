//! A small matrix product for operands that lie in L1 and L2.

use pulp::Simd;

/// Rows of the product whose sums run side by side.
const ROWS: usize = 4;

/// The left operand: M × K elements, not necessarily dense.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// Dense rows of `cols` elements; no elements are one row of none.
    #[inline(always)]
    pub(crate) fn rows(data: &'a [f32], cols: usize) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(1);
        Self { data, shape: (rows, cols), strides: (cols, 1) }
    }

    #[inline(always)]
    pub(crate) fn transposed(self) -> Self {
        let Self { data, shape: (m, k), strides: (row, col) } = self;
        Self { data, shape: (k, m), strides: (col, row) }
    }
}

/// `c += a·b`, where `b` and `c` have dense rows of `n` elements. Each sum runs
/// over k in order.
#[inline(always)]
pub(crate) fn add<S: Simd>(simd: S, a: Matrix<'_>, b: &[f32], c: &mut [f32], n: usize) {
    // Sums, one row of `b` and one factor fit the registers.
    if S::REGISTER_COUNT >= 32 {
        add_wide::<S, 4>(simd, a, b, c, n);
    } else {
        add_wide::<S, 2>(simd, a, b, c, n);
    }
}

#[inline(always)]
fn add_wide<S: Simd, const WIDTH: usize>(
    simd: S,
    a: Matrix<'_>,
    b: &[f32],
    c: &mut [f32],
    n: usize,
) {
    let (m, k) = a.shape;
    assert!(b.len() == k * n && c.len() == m * n);
    for (i, c) in c.chunks_mut(ROWS * n).enumerate() {
        if c.len() == ROWS * n {
            add_rows::<S, WIDTH, ROWS>(simd, a, i * ROWS, b, c, n);
        } else {
            for (j, c) in c.chunks_mut(n).enumerate() {
                add_rows::<S, WIDTH, 1>(simd, a, i * ROWS + j, b, c, n);
            }
        }
    }
}

/// R rows of the product, from row `first` on.
#[inline(always)]
fn add_rows<S: Simd, const WIDTH: usize, const R: usize>(
    simd: S,
    a: Matrix<'_>,
    first: usize,
    b: &[f32],
    c: &mut [f32],
    n: usize,
) {
    let step = WIDTH * size_of::<S::f32s>() / size_of::<f32>();
    let a_row = |r: usize, p: usize| a.data[(first + r) * a.strides.0 + p * a.strides.1];
    let mut col = 0;
    while col + step <= n {
        let mut sums = [[simd.splat_f32s(0.0); WIDTH]; R];
        for (p, b) in b.chunks_exact(n).enumerate() {
            let (b, _) = S::as_simd_f32s(&b[col..col + step]);
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = simd.splat_f32s(a_row(r, p));
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum = simd.mul_add_f32s(factor, b, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let (c, _) = S::as_mut_simd_f32s(&mut c[r * n + col..][..step]);
            for (c, &sum) in c.iter_mut().zip(sums) {
                *c = simd.add_f32s(*c, sum);
            }
        }
        col += step;
    }
    for r in 0..R {
        for col in col..n {
            let sum: f32 = (0..a.shape.1).map(|p| a_row(r, p) * b[p * n + col]).sum();
            c[r * n + col] += sum;
        }
    }
}
