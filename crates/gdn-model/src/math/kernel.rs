//! The inner loops of a product: some rows of a weight, all tokens of a block.
//!
//! A row goes through the registers in blocks of [`PARTS`] vectors of f32. An output
//! is as many vectors of sums, each of which takes one multiply-add a block, in
//! order; in the end they are added up. What runs side by side, and where the sums
//! wait in between, changes nothing in them.

use gdn::bf16;
use pulp::{Simd, WithSimd};

use super::{
    arrange::{tile_tokens, vectors},
    element::{Element, PARTS},
    scratch::Line,
};

/// Rows whose sums wait at once for the rest of their products.
const CHUNK: usize = 16;
/// Bytes of activations that stay in the first-level cache from row to row.
const STRETCH: usize = 24 << 10;
/// Bytes ahead of their use that weights are fetched, at least.
const AHEAD: usize = 4096;

/// The elements of a weight `[outputs, inputs]`, in dense rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl Values<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

/// The sums of a row for T tokens.
type Sums<S, const T: usize> = [[<S as Simd>::f32s; T]; PARTS];

/// One task: rows of some weights, all tokens of a block.
pub(super) struct Task<'a> {
    /// They lie one behind the other.
    pub(super) weights: &'a [Values<'a>],
    pub(super) inputs: usize,
    /// The first row.
    pub(super) first: usize,
    /// Activations arranged for f32 and for bf16.
    pub(super) x: [&'a [Line]; 2],
    pub(super) tokens: usize,
    /// `[T, rows]`.
    pub(super) out: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Task { weights, inputs, first, x, tokens, out } = self;
        let [x_f32, x_bf16] = x.map(bytemuck::cast_slice);
        let stride = out.len() / tokens;
        let (mut skip, mut col) = (first, 0);
        for weight in weights {
            let rows = weight.len() / inputs;
            let count = rows.saturating_sub(skip).min(stride - col);
            let part = skip.min(rows) * inputs..(skip.min(rows) + count) * inputs;
            match *weight {
                Values::F32(w) => {
                    Rows { w: &w[part], inputs, x: x_f32, tokens, out, stride, col }.run(simd);
                }
                Values::Bf16(w) => {
                    Rows { w: &w[part], inputs, x: x_bf16, tokens, out, stride, col }.run(simd);
                }
            }
            (skip, col) = (skip.saturating_sub(rows), col + count);
        }
    }
}

/// Rows of one weight, whose outputs are the columns from `col` on.
struct Rows<'a, E> {
    w: &'a [E],
    inputs: usize,
    x: &'a [f32],
    tokens: usize,
    out: &'a mut [f32],
    stride: usize,
    col: usize,
}

impl<E: Element> Rows<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let len = vectors::<S, E>(self.inputs);
        let (mut x, _) = S::as_simd_f32s(self.x);
        let mut token = 0;
        while token < self.tokens {
            let tokens = tile_tokens::<S>(self.tokens - token);
            let (tile, others) = x.split_at(tokens * len);
            match tokens {
                // One row after the other, as memory likes it best.
                1 => self.tile::<S, 1, 1>(simd, tile, token),
                2 => self.tile::<S, 2, 2>(simd, tile, token),
                3 => self.tile::<S, 2, 3>(simd, tile, token),
                4 => self.tile::<S, 2, 4>(simd, tile, token),
                5 => self.tile::<S, 2, 5>(simd, tile, token),
                _ => self.tile::<S, 2, 6>(simd, tile, token),
            }
            (x, token) = (others, token + tokens);
        }
    }

    /// All rows, R of them side by side, for T tokens from `token` on.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(
        &mut self,
        simd: S,
        x: &[S::f32s],
        token: usize,
    ) {
        let Self { w, inputs, stride, col, .. } = *self;
        let x: &[Sums<S, T>] = x.as_chunks().0.as_chunks().0;
        let most = (STRETCH / size_of::<Sums<S, T>>()).max(1);
        let stretch = x.len().div_ceil(x.len().div_ceil(most));
        let mut sums = [[[simd.splat_f32s(0.0); T]; PARTS]; CHUNK];
        for (i, w) in w.chunks(CHUNK * inputs).enumerate() {
            let rows = w.len() / inputs;
            for (i, x) in x.chunks(stretch).enumerate() {
                let from = i * stretch * E::block_len::<S>();
                let whole = rows - rows % R;
                for row in (0..whole).step_by(R) {
                    let sums = sums[row..].first_chunk_mut().expect("R rows are left");
                    add::<S, E, R, T>(simd, &w[row * inputs..], inputs, from, x, sums);
                }
                for row in whole..rows {
                    let sums = sums[row..].first_chunk_mut().expect("a row is left");
                    add::<S, E, 1, T>(simd, &w[row * inputs..], inputs, from, x, sums);
                }
            }
            for t in 0..T {
                let out = &mut self.out[(token + t) * stride + col + i * CHUNK..][..rows];
                for (out, sums) in out.iter_mut().zip(&sums) {
                    let mut sum = sums[0][t];
                    for part in &sums[1..] {
                        sum = simd.add_f32s(sum, part[t]);
                    }
                    *out = simd.reduce_sum_f32s(sum);
                }
            }
        }
    }
}

/// Adds products of the first R rows of `w` to their sums: those with the
/// activations `x`, which are the ones from element `from` on.
#[inline(always)]
fn add<S: Simd, E: Element, const R: usize, const T: usize>(
    simd: S,
    w: &[E],
    inputs: usize,
    from: usize,
    x: &[Sums<S, T>],
    sums: &mut [Sums<S, T>; R],
) {
    let len = (x.len() * E::block_len::<S>()).min(inputs - from);
    let (whole, left) = (len / E::block_len::<S>(), len % E::block_len::<S>());
    let mut rows = [&[] as &[E]; R];
    let mut blocks = [&[] as &[E::Block<S>]; R];
    for r in 0..R {
        rows[r] = &w[r * inputs + from..][..len];
        blocks[r] = &E::blocks::<S>(rows[r])[..whole];
    }
    let ahead = (R * inputs * size_of::<E>()).max(AHEAD);
    let mut local = match from {
        0 => [[[simd.splat_f32s(0.0); T]; PARTS]; R],
        _ => *sums,
    };
    for (i, x) in x[..whole].iter().enumerate() {
        let mut block = [&blocks[0][i]; R];
        for r in 0..R {
            block[r] = &blocks[r][i];
            prefetch(block[r], ahead);
        }
        add_block::<S, E, R, T>(simd, block, x, &mut local);
    }
    if left > 0 {
        let mut block = [E::last_block::<S>(rows[0], left); R];
        for r in 0..R {
            block[r] = E::last_block::<S>(rows[r], left);
        }
        add_block::<S, E, R, T>(simd, block.each_ref(), &x[whole], &mut local);
    }
    *sums = local;
}

/// A block of R rows. The order of the loops keeps all of it in registers.
#[inline(always)]
fn add_block<S: Simd, E: Element, const R: usize, const T: usize>(
    simd: S,
    block: [&E::Block<S>; R],
    x: &Sums<S, T>,
    sums: &mut [Sums<S, T>; R],
) {
    for p in 0..PARTS {
        let mut factors = [simd.splat_f32s(0.0); R];
        for r in 0..R {
            factors[r] = E::part(simd, block[r], p);
        }
        for t in 0..T {
            for r in 0..R {
                sums[r][p][t] = simd.mul_add_f32s(factors[r], x[p][t], sums[r][p][t]);
            }
        }
    }
}

/// Asks for what lies `ahead` bytes behind a block; a hint that never faults.
#[inline(always)]
fn prefetch<T>(block: &T, ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        const ALL_LEVELS: i32 = std::arch::x86_64::_MM_HINT_T0;
        for line in (0..size_of::<T>()).step_by(64) {
            let address = std::ptr::from_ref(block).cast::<i8>().wrapping_add(ahead + line);
            sse._mm_prefetch::<ALL_LEVELS>(address);
        }
    }
}
