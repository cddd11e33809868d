//! On the CPU.

use pulp::{Simd, WithSimd};

use super::{Heads, PAGE};
use crate::math::{Math, sigmoid};

/// Keys and values of all sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache<'a> {
    /// `[pages, PAGE, kv_heads, dim]`.
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    /// `[sequences, max_pages]`: the page of each `PAGE` positions.
    pub(crate) pages: &'a [i32],
    pub(crate) max_pages: usize,
}

/// What asks, a row a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// `[T, heads, dim]`.
    pub(crate) q: &'a [f32],
    /// `[T, heads, 2, dim]`, rows at `gate_stride`; the second halves gate.
    pub(crate) gates: &'a [f32],
    pub(crate) gate_stride: usize,
    pub(crate) positions: &'a [i32],
    /// Negative for padding, which gives zeros.
    pub(crate) sequences: &'a [i32],
}

/// Writes what every head of every row finds to `out [T, heads, dim]`.
pub(crate) fn attention(
    math: Math,
    heads: Heads,
    rows: Rows<'_>,
    cache: Cache<'_>,
    out: &mut [f32],
) {
    let Heads { kv, ratio, dim } = heads;
    let group = group(heads, rows.sequences.len(), math.threads());
    math.for_rows(out, group * dim, |i, out| {
        let (row, head) = (i * group / heads.queries(), i * group % heads.queries());
        out.fill(0.0);
        let Ok(sequence) = usize::try_from(rows.sequences[row]) else { return };
        let keys = rows.positions[row] as usize + 1;
        let pages = &cache.pages[sequence * cache.max_pages..][..keys.div_ceil(PAGE)];
        let q = &rows.q[i * group * dim..][..group * dim];
        let start = |page: i32| (page as usize * PAGE * kv + head / ratio) * dim;
        let gates = &rows.gates[row * rows.gate_stride + 2 * head * dim..][..2 * group * dim];
        math.run(Group {
            dim,
            q,
            gates,
            keys,
            pages,
            start,
            cache,
            pitch: kv * dim,
            scale: heads.scale(),
            out,
        });
    });
}

/// How many heads of a row one task takes, so that a page comes from memory once for
/// all of them: the more the better, while every thread has a task.
fn group(heads: Heads, rows: usize, threads: usize) -> usize {
    let enough = |group: &usize| rows * heads.queries() / group >= threads;
    let groups = (1..=heads.ratio.min(GROUP)).filter(|group| heads.ratio.is_multiple_of(*group));
    groups.rev().find(enough).unwrap_or(1)
}

/// Heads of a task, at most.
const GROUP: usize = 16;

/// Some heads of one row, all with the same keys.
struct Group<'a, F> {
    dim: usize,
    /// `[heads, dim]`.
    q: &'a [f32],
    /// `[heads, 2, dim]`.
    gates: &'a [f32],
    keys: usize,
    pages: &'a [i32],
    /// Where a page's keys of these heads begin; they are `pitch` apart.
    start: F,
    pitch: usize,
    cache: Cache<'a>,
    scale: f32,
    /// Zeros, to add up in.
    out: &'a mut [f32],
}

impl<F: Fn(i32) -> usize> WithSimd for Group<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dim, q, keys, pages, pitch, cache, out, .. } = self;
        let (mut max, mut sum) = ([f32::NEG_INFINITY; GROUP], [0.0; GROUP]);
        for (i, &page) in pages.iter().enumerate() {
            let (start, seen) = ((self.start)(page), PAGE.min(keys - i * PAGE));
            let heads = q.chunks_exact(dim).zip(out.chunks_exact_mut(dim));
            for ((q, out), (max, sum)) in heads.zip(max.iter_mut().zip(&mut sum)) {
                let mut shares = [0.0; PAGE];
                for (key, share) in shares[..seen].iter_mut().enumerate() {
                    let key = &cache.keys[start + key * pitch..][..dim];
                    *share = dot(simd, q, key) * self.scale;
                }
                let shares = &mut shares[..seen];
                let top = shares.iter().copied().fold(*max, f32::max);
                let shrink = (*max - top).exp2();
                shares.iter_mut().for_each(|share| *share = (*share - top).exp2());
                *max = top;
                *sum = *sum * shrink + shares.iter().sum::<f32>();
                add_values(simd, shares, &cache.values[start..], pitch, shrink, out);
            }
        }
        let gates = self.gates.chunks_exact(2 * dim).map(|gates| &gates[dim..]);
        for ((out, gates), sum) in out.chunks_exact_mut(dim).zip(gates).zip(sum) {
            let gates = out.iter_mut().zip(gates);
            gates.for_each(|(out, &gate)| *out = *out / sum * sigmoid(gate));
        }
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_last), (b, b_last)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for ((&a, &b), sum) in a.iter().zip(b).zip(&mut sums) {
            *sum = simd.mul_add_f32s(a, b, *sum);
        }
    }
    let (a, b) = (simd.partial_load_f32s(a_last), simd.partial_load_f32s(b_last));
    let last = simd.mul_add_f32s(a, b, sums[0]);
    let sum = simd.add_f32s(simd.add_f32s(last, sums[1]), simd.add_f32s(sums[2], sums[3]));
    simd.reduce_sum_f32s(sum)
}

/// `out = out * shrink + shares·values`, a vector of columns at a time.
#[inline(always)]
fn add_values<S: Simd>(
    simd: S,
    shares: &[f32],
    values: &[f32],
    pitch: usize,
    shrink: f32,
    out: &mut [f32],
) {
    let dim = out.len();
    let (vectors, last) = S::as_mut_simd_f32s(out);
    let lanes = (dim - last.len()) / vectors.len().max(1);
    for (i, columns) in vectors.chunks_mut(4).enumerate() {
        let mut sums = [simd.splat_f32s(0.0); 4];
        let shrink = simd.splat_f32s(shrink);
        sums.iter_mut().zip(&*columns).for_each(|(sum, &o)| *sum = simd.mul_f32s(o, shrink));
        for (key, &share) in shares.iter().enumerate() {
            let values = &values[key * pitch + i * 4 * lanes..][..columns.len() * lanes];
            let share = simd.splat_f32s(share);
            for (sum, &value) in sums.iter_mut().zip(S::as_simd_f32s(values).0) {
                *sum = simd.mul_add_f32s(share, value, *sum);
            }
        }
        columns.iter_mut().zip(sums).for_each(|(o, sum)| *o = sum);
    }
    let at = dim - last.len();
    for (i, o) in last.iter_mut().enumerate() {
        let share = |(key, share): (usize, &f32)| share * values[key * pitch + at + i];
        *o = *o * shrink + shares.iter().enumerate().map(share).sum::<f32>();
    }
}
