//! The gated delta rule on the state of one head: the inner loop of packed
//! decode, the fused step and the recurrent prefill.
//!
//! With the old S, p = S·k and r = S·q come out of one pass over a row; then
//! u = β·(v − e^g·p), o = e^g·r + u·(k·q), S ← e^g·S + u·kᵀ while the row is
//! still in the first-level cache. The order of the sums of a row depends on K
//! alone.
#![expect(unsafe_code, reason = "the prefetch hint")]

use half::bf16;
use pulp::Simd;

use crate::{DType, Element};

/// Rows of S whose dot products run side by side: 8 chains of multiply-add
/// cover the latency of one.
const ROWS: usize = 4;

/// The scratch that [`update_head`] asks for.
pub(crate) fn scratch_len<T: Element>(len_k: usize) -> usize {
    match T::DTYPE {
        DType::F32 => 0,
        // q and k by pairs, and a row of S where it is not aligned.
        DType::BF16 if cfg!(target_endian = "little") => 3 * len_k,
        _ => ROWS * len_k,
    }
}

/// One token of one value head: `state [V, K]` is read and written once.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the inner loop of three operators")]
pub(crate) fn update_head<S: Simd, T: Element>(
    simd: S,
    state: &mut [T],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    g: f32,
    beta: f32,
    o: &mut [f32],
    scratch: &mut [f32],
) {
    let rule = Rule { kq: super::math::dot(simd, k, q), decay: g.exp(), beta };
    let len_k = k.len();
    // Loops, not closures: only what is inlined gets the vector instructions.
    match T::DTYPE {
        DType::F32 => {
            for (rows, v, o) in blocks(bytemuck::cast_slice_mut(state), len_k, v, o) {
                rule.update_f32(simd, rows, q, k, v, o);
            }
        }
        DType::BF16 if cfg!(target_endian = "little") => {
            let (pairs, aligned) = scratch[..3 * len_k].split_at_mut(2 * len_k);
            let pairs = Pairs::new(q, k, pairs);
            let aligned: &mut [bf16] = &mut bytemuck::cast_slice_mut(aligned)[..len_k];
            for (rows, v, o) in blocks(bytemuck::cast_slice_mut(state), len_k, v, o) {
                rule.update_bf16(simd, rows, &pairs, aligned, v, o);
            }
        }
        _ => {
            for (rows, v, o) in blocks(state, len_k, v, o) {
                let wide = &mut scratch[..rows.len()];
                T::widen(rows, wide);
                rule.update_f32(simd, wide, q, k, v, o);
                T::narrow(wide, rows);
            }
        }
    }
}

/// How far ahead of its use the state is fetched, in bytes: the hardware's own
/// prefetch stops at every 4 KiB page.
const AHEAD: usize = 2048;

/// Asks for the lines of a head's state that [`update_head`] reads first: for
/// when there is something to do before it.
#[inline(always)]
pub(crate) fn prefetch_start<T>(state: &[T]) {
    prefetch(state.as_ptr().cast(), AHEAD.min(size_of_val(state)));
}

/// Asks for the cache lines of `len` bytes at `start`.
#[inline(always)]
fn prefetch(start: *const i8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for offset in (0..len).step_by(64) {
            let ptr = start.wrapping_add(offset);
            // SAFETY: a hint, which never faults, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr) };
        }
    }
}

/// [`ROWS`] rows of the state at a time with their v and o, then what is left.
#[inline(always)]
fn blocks<'s, T>(
    state: &'s mut [T],
    len_k: usize,
    v: &'s [f32],
    o: &'s mut [f32],
) -> impl Iterator<Item = (&'s mut [T], &'s [f32], &'s mut [f32])> {
    let blocks = state.chunks_mut(ROWS * len_k).zip(v.chunks(ROWS)).zip(o.chunks_mut(ROWS));
    blocks.map(|((rows, v), o)| {
        prefetch(rows.as_ptr().cast::<i8>().wrapping_add(AHEAD), size_of_val(rows));
        (rows, v, o)
    })
}

/// What all rows of a head share.
#[derive(Clone, Copy)]
struct Rule {
    kq: f32,
    decay: f32,
    beta: f32,
}

impl Rule {
    /// u, from p = S·k of a row and its v.
    #[inline(always)]
    fn correction(self, p: f32, v: f32) -> f32 {
        self.beta * (v - self.decay * p)
    }

    /// o, from r = S·q of a row and its u.
    #[inline(always)]
    fn read_out(self, r: f32, u: f32) -> f32 {
        self.decay * r + u * self.kq
    }

    /// Up to [`ROWS`] rows of f32.
    #[inline(always)]
    fn update_f32<S: Simd>(
        self,
        simd: S,
        rows: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        o: &mut [f32],
    ) {
        if v.len() == ROWS {
            self.f32_rows::<S, ROWS>(simd, rows, q, k, v, o);
        } else {
            for ((row, v), o) in
                rows.chunks_exact_mut(k.len()).zip(v.chunks(1)).zip(o.chunks_mut(1))
            {
                self.f32_rows::<S, 1>(simd, row, q, k, v, o);
            }
        }
    }

    #[inline(always)]
    fn f32_rows<S: Simd, const R: usize>(
        self,
        simd: S,
        rows: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        o: &mut [f32],
    ) {
        let mut rows = rows.chunks_exact_mut(k.len());
        let (k, k_tail) = S::as_simd_f32s(k);
        let (q, q_tail) = S::as_simd_f32s(q);
        let mut rows: [_; R] = std::array::from_fn(|_| {
            let (row, tail) = S::as_mut_simd_f32s(rows.next().expect("R rows"));
            (&mut row[..k.len()], tail)
        });

        let mut p = [simd.splat_f32s(0.0); R];
        let mut r = [simd.splat_f32s(0.0); R];
        for (i, (&k, &q)) in k.iter().zip(q).enumerate() {
            for ((p, r), (row, _)) in p.iter_mut().zip(&mut r).zip(&rows) {
                *p = simd.mul_add_f32s(row[i], k, *p);
                *r = simd.mul_add_f32s(row[i], q, *r);
            }
        }

        let decay = simd.splat_f32s(self.decay);
        for (j, (row, tail)) in rows.iter_mut().enumerate() {
            let p = simd.reduce_sum_f32s(p[j]) + tail_dot(tail, k_tail);
            let r = simd.reduce_sum_f32s(r[j]) + tail_dot(tail, q_tail);
            let u = self.correction(p, v[j]);
            o[j] = self.read_out(r, u);
            for (s, k) in tail.iter_mut().zip(k_tail) {
                *s = self.decay * *s + u * k;
            }
            let u = simd.splat_f32s(u);
            for (s, &k) in row.iter_mut().zip(k) {
                *s = simd.mul_add_f32s(u, k, simd.mul_f32s(decay, *s));
            }
        }
    }

    /// Up to [`ROWS`] rows of bf16. A row that does not lie at an even element
    /// is updated in `aligned` instead.
    #[inline(always)]
    fn update_bf16<S: Simd>(
        self,
        simd: S,
        rows: &mut [bf16],
        pairs: &Pairs<'_>,
        aligned: &mut [bf16],
        v: &[f32],
        o: &mut [f32],
    ) {
        let len_k = aligned.len();
        if v.len() == ROWS
            && len_k.is_multiple_of(2)
            && bytemuck::try_cast_slice::<_, u32>(rows).is_ok()
        {
            self.bf16_rows::<S, ROWS>(simd, rows, pairs, v, o);
            return;
        }
        for ((row, v), o) in rows.chunks_exact_mut(len_k).zip(v.chunks(1)).zip(o.chunks_mut(1)) {
            aligned.copy_from_slice(row);
            self.bf16_rows::<S, 1>(simd, aligned, pairs, v, o);
            row.copy_from_slice(aligned);
        }
    }

    #[inline(always)]
    fn bf16_rows<S: Simd, const R: usize>(
        self,
        simd: S,
        rows: &mut [bf16],
        pairs: &Pairs<'_>,
        v: &[f32],
        o: &mut [f32],
    ) {
        let mut rows = rows.chunks_exact_mut(pairs.len_k);
        let (k_even, _) = S::as_simd_f32s(pairs.k_even);
        let (k_odd, _) = S::as_simd_f32s(pairs.k_odd);
        let (q_even, _) = S::as_simd_f32s(pairs.q_even);
        let (q_odd, _) = S::as_simd_f32s(pairs.q_odd);
        let n = k_even.len();
        let (k_odd, q_even, q_odd) = (&k_odd[..n], &q_even[..n], &q_odd[..n]);
        let vector_len = n * 2 * size_of::<S::f32s>() / size_of::<f32>();
        let (k_tail, q_tail) = (&pairs.k[vector_len..], &pairs.q[vector_len..]);
        let mut rows: [_; R] = std::array::from_fn(|_| {
            let (row, tail) = rows.next().expect("R rows").split_at_mut(vector_len);
            let (row, _) = S::as_mut_simd_u32s(bytemuck::cast_slice_mut(row));
            (&mut row[..n], tail)
        });

        let mut p = [simd.splat_f32s(0.0); R];
        let mut r = [simd.splat_f32s(0.0); R];
        for i in 0..n {
            for ((p, r), (row, _)) in p.iter_mut().zip(&mut r).zip(&rows) {
                let (even, odd) = widen_pair(simd, row[i]);
                *p = simd.mul_add_f32s(even, k_even[i], *p);
                *r = simd.mul_add_f32s(even, q_even[i], *r);
                *p = simd.mul_add_f32s(odd, k_odd[i], *p);
                *r = simd.mul_add_f32s(odd, q_odd[i], *r);
            }
        }

        let decay = simd.splat_f32s(self.decay);
        for (j, (row, tail)) in rows.iter_mut().enumerate() {
            let mut wide = 0.0;
            let mut p = simd.reduce_sum_f32s(p[j]);
            let mut r = simd.reduce_sum_f32s(r[j]);
            for ((s, k), q) in tail.iter().zip(k_tail).zip(q_tail) {
                bf16::widen(std::slice::from_ref(s), std::slice::from_mut(&mut wide));
                p += wide * k;
                r += wide * q;
            }
            let u = self.correction(p, v[j]);
            o[j] = self.read_out(r, u);
            for (s, k) in tail.iter_mut().zip(k_tail) {
                bf16::widen(std::slice::from_ref(s), std::slice::from_mut(&mut wide));
                bf16::narrow(&[self.decay * wide + u * k], std::slice::from_mut(s));
            }
            // A NaN in S or k shows in p, one in v or β in u: without them no
            // element becomes NaN, and rounding is cheaper.
            let finite = p.is_finite() && u.is_finite() && self.decay.is_finite();
            let u = simd.splat_f32s(u);
            let next = |s, k| simd.mul_add_f32s(u, k, simd.mul_f32s(decay, s));
            for ((pair, &k_even), &k_odd) in row.iter_mut().zip(k_even).zip(k_odd) {
                let (even, odd) = widen_pair(simd, *pair);
                let (even, odd) = (next(even, k_even), next(odd, k_odd));
                *pair = match finite {
                    true => narrow_pair::<S, false>(simd, even, odd),
                    false => narrow_pair::<S, true>(simd, even, odd),
                };
            }
        }
    }
}

#[inline(always)]
fn tail_dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// q and k with their even and odd elements apart, as [`widen_pair`] leaves
/// those of S.
struct Pairs<'a> {
    len_k: usize,
    q: &'a [f32],
    k: &'a [f32],
    q_even: &'a [f32],
    q_odd: &'a [f32],
    k_even: &'a [f32],
    k_odd: &'a [f32],
}

impl<'a> Pairs<'a> {
    #[inline(always)]
    fn new(q: &'a [f32], k: &'a [f32], scratch: &'a mut [f32]) -> Self {
        let len_k = k.len();
        let half = len_k / 2;
        let (q_pairs, k_pairs) = scratch.split_at_mut(len_k);
        let split = |x: &[f32], pairs: &'a mut [f32]| {
            let (even, odd) = pairs[..2 * half].split_at_mut(half);
            for ((even, odd), pair) in even.iter_mut().zip(&mut *odd).zip(x.chunks_exact(2)) {
                (*even, *odd) = (pair[0], pair[1]);
            }
            (&*even, &*odd)
        };
        let (q_even, q_odd) = split(q, q_pairs);
        let (k_even, k_odd) = split(k, k_pairs);
        Self { len_k, q, k, q_even, q_odd, k_even, k_odd }
    }
}

/// Two bf16 in each lane to two vectors of f32: the low halves, the high ones.
#[inline(always)]
fn widen_pair<S: Simd>(simd: S, pair: S::u32s) -> (S::f32s, S::f32s) {
    let even = simd.wrapping_dyn_shl_u32s(pair, simd.splat_u32s(16));
    let odd = simd.and_u32s(pair, simd.splat_u32s(0xffff_0000));
    (simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd))
}

/// The way back, to nearest with ties to even; `NAN` keeps NaNs.
#[inline(always)]
fn narrow_pair<S: Simd, const NAN: bool>(simd: S, even: S::f32s, odd: S::f32s) -> S::u32s {
    let sixteen = simd.splat_u32s(16);
    let round = |x: S::f32s| {
        let bits = simd.transmute_u32s_f32s(x);
        let last = simd.and_u32s(simd.wrapping_dyn_shr_u32s(bits, sixteen), simd.splat_u32s(1));
        let rounded = simd.add_u32s(simd.add_u32s(bits, simd.splat_u32s(0x7fff)), last);
        match NAN {
            true => simd.select_u32s(simd.equal_f32s(x, x), rounded, simd.splat_u32s(0x7fc0_0000)),
            false => rounded,
        }
    };
    let even = simd.wrapping_dyn_shr_u32s(round(even), sixteen);
    simd.or_u32s(even, simd.and_u32s(round(odd), simd.splat_u32s(0xffff_0000)))
}
