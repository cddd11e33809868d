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
    let len_k = k.len();
    let rule = Rule { kq: super::math::dot(simd, k, q), decay: g.exp(), beta };
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
        prefetch(rows.as_ptr().cast::<i8>().wrapping_add(ahead::<T>()), size_of_val(rows));
        (rows, v, o)
    })
}

/// How far ahead of its use the state is fetched, in bytes: the hardware's own
/// prefetch stops at every 4 KiB page. A head takes about as long in half the
/// bytes, and memory as long as ever to answer.
const fn ahead<T>() -> usize {
    8192 / size_of::<T>()
}

/// Asks for the lines of a head's state that [`update_head`] reads first: for
/// when there is something to do before it.
#[inline(always)]
pub(crate) fn prefetch_start<T>(state: &[T]) {
    prefetch(state.as_ptr().cast(), ahead::<T>().min(size_of_val(state)));
}

/// Asks for the cache lines of `len` bytes at `start`.
#[inline(always)]
pub(crate) fn prefetch(start: *const i8, len: usize) {
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
        let (k_head, k_tail) = S::as_simd_f32s(k);
        let (q_head, q_tail) = S::as_simd_f32s(q);
        let n = k_head.len();
        if v.len() == ROWS && k_tail.is_empty() {
            let (rows, _) = S::as_mut_simd_f32s(rows);
            return match n {
                4 => self.f32_rows::<S, ROWS>(simd, rows, 4, q_head, k_head, v, o, no_tail()),
                8 => self.f32_rows::<S, ROWS>(simd, rows, 8, q_head, k_head, v, o, no_tail()),
                16 => self.f32_rows::<S, ROWS>(simd, rows, 16, q_head, k_head, v, o, no_tail()),
                n => self.f32_rows::<S, ROWS>(simd, rows, n, q_head, k_head, v, o, no_tail()),
            };
        }
        for ((row, v), o) in rows.chunks_exact_mut(k.len()).zip(v.chunks(1)).zip(o.chunks_mut(1)) {
            let (row, s) = S::as_mut_simd_f32s(row);
            let tail = (s, q_tail, k_tail);
            self.f32_rows::<S, 1>(simd, row, n, q_head, k_head, v, o, tail);
        }
    }

    /// R rows of `n` vectors of f32; one row may have a tail, with those of q
    /// and k. The sums of a row run in one order whatever R is.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined, so that n may be constant")]
    fn f32_rows<S: Simd, const R: usize>(
        self,
        simd: S,
        rows: &mut [S::f32s],
        n: usize,
        q: &[S::f32s],
        k: &[S::f32s],
        v: &[f32],
        o: &mut [f32],
        (tail, q_tail, k_tail): Tail<'_, f32>,
    ) {
        assert!(rows.len() == R * n && q.len() == n && k.len() == n);
        assert!(v.len() == R && o.len() == R);
        let mut p = [simd.splat_f32s(0.0); R];
        let mut r = [simd.splat_f32s(0.0); R];
        for i in 0..n {
            for j in 0..R {
                p[j] = simd.mul_add_f32s(rows[j * n + i], k[i], p[j]);
                r[j] = simd.mul_add_f32s(rows[j * n + i], q[i], r[j]);
            }
        }
        let decay = simd.splat_f32s(self.decay);
        for j in 0..R {
            let p = simd.reduce_sum_f32s(p[j]) + tail_dot(tail, k_tail);
            let r = simd.reduce_sum_f32s(r[j]) + tail_dot(tail, q_tail);
            let u = self.correction(p, v[j]);
            o[j] = self.read_out(r, u);
            for (s, k) in tail.iter_mut().zip(k_tail) {
                *s = self.decay * *s + u * k;
            }
            let u = simd.splat_f32s(u);
            for i in 0..n {
                let s = &mut rows[j * n + i];
                *s = simd.mul_add_f32s(u, k[i], simd.mul_f32s(decay, *s));
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
        let n = S::as_simd_f32s(pairs.k_even).0.len();
        let vector_len = 2 * n * size_of::<S::f32s>() / size_of::<f32>();
        if v.len() == ROWS
            && vector_len == len_k
            && let Ok(rows) = bytemuck::try_cast_slice_mut::<_, u32>(rows)
        {
            let (rows, _) = S::as_mut_simd_u32s(rows);
            return match n {
                2 => self.bf16_rows::<S, ROWS>(simd, rows, 2, pairs, v, o, no_tail()),
                4 => self.bf16_rows::<S, ROWS>(simd, rows, 4, pairs, v, o, no_tail()),
                8 => self.bf16_rows::<S, ROWS>(simd, rows, 8, pairs, v, o, no_tail()),
                n => self.bf16_rows::<S, ROWS>(simd, rows, n, pairs, v, o, no_tail()),
            };
        }
        for ((row, v), o) in rows.chunks_exact_mut(len_k).zip(v.chunks(1)).zip(o.chunks_mut(1)) {
            aligned.copy_from_slice(row);
            let (head, tail) = aligned.split_at_mut(vector_len);
            let (head, _) = S::as_mut_simd_u32s(bytemuck::cast_slice_mut(head));
            let tail = (tail, &pairs.q[vector_len..], &pairs.k[vector_len..]);
            self.bf16_rows::<S, 1>(simd, head, n, pairs, v, o, tail);
            row.copy_from_slice(aligned);
        }
    }

    /// R rows of `n` vectors of bf16 pairs; one row may have a tail, with those
    /// of q and k.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined, so that n may be constant")]
    fn bf16_rows<S: Simd, const R: usize>(
        self,
        simd: S,
        rows: &mut [S::u32s],
        n: usize,
        pairs: &Pairs<'_>,
        v: &[f32],
        o: &mut [f32],
        (tail, q_tail, k_tail): Tail<'_, bf16>,
    ) {
        let (k_even, _) = S::as_simd_f32s(pairs.k_even);
        let (k_odd, _) = S::as_simd_f32s(pairs.k_odd);
        let (q_even, _) = S::as_simd_f32s(pairs.q_even);
        let (q_odd, _) = S::as_simd_f32s(pairs.q_odd);
        assert!(rows.len() == R * n && v.len() == R && o.len() == R);
        assert!(k_even.len() == n && k_odd.len() == n && q_even.len() == n && q_odd.len() == n);
        let mut p = [simd.splat_f32s(0.0); R];
        let mut r = [simd.splat_f32s(0.0); R];
        for i in 0..n {
            for j in 0..R {
                let (even, odd) = widen_pair(simd, rows[j * n + i]);
                p[j] = simd.mul_add_f32s(even, k_even[i], p[j]);
                r[j] = simd.mul_add_f32s(even, q_even[i], r[j]);
                p[j] = simd.mul_add_f32s(odd, k_odd[i], p[j]);
                r[j] = simd.mul_add_f32s(odd, q_odd[i], r[j]);
            }
        }
        let decay = simd.splat_f32s(self.decay);
        for j in 0..R {
            let mut p = simd.reduce_sum_f32s(p[j]);
            let mut r = simd.reduce_sum_f32s(r[j]);
            for ((s, k), q) in tail.iter().zip(k_tail).zip(q_tail) {
                p += widened(*s) * k;
                r += widened(*s) * q;
            }
            let u = self.correction(p, v[j]);
            o[j] = self.read_out(r, u);
            for (s, k) in tail.iter_mut().zip(k_tail) {
                let next = self.decay * widened(*s) + u * k;
                bf16::narrow(&[next], std::slice::from_mut(s));
            }
            // A NaN in S or k shows in p, one in v or β in u: without them no
            // element becomes NaN, and rounding is cheaper.
            let finite = p.is_finite() && u.is_finite() && self.decay.is_finite();
            let u = simd.splat_f32s(u);
            for i in 0..n {
                let pair = &mut rows[j * n + i];
                let (even, odd) = widen_pair(simd, *pair);
                let even = simd.mul_add_f32s(u, k_even[i], simd.mul_f32s(decay, even));
                let odd = simd.mul_add_f32s(u, k_odd[i], simd.mul_f32s(decay, odd));
                *pair = match finite {
                    true => narrow_pair::<S, false>(simd, even, odd),
                    false => narrow_pair::<S, true>(simd, even, odd),
                };
            }
        }
    }
}

/// What elements are left behind the vectors of a row, with those of q and k.
type Tail<'a, T> = (&'a mut [T], &'a [f32], &'a [f32]);

/// For rows that are whole vectors.
#[inline(always)]
fn no_tail<'a, T>() -> Tail<'a, T> {
    (&mut [], &[], &[])
}

#[inline(always)]
fn widened(s: bf16) -> f32 {
    f32::from_bits(u32::from(s.to_bits()) << 16)
}

#[inline(always)]
fn tail_dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// q and k with their even and odd elements apart, as [`widen_pair`] leaves
/// those of S.
struct Pairs<'a> {
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
        Self { q, k, q_even, q_odd, k_even, k_odd }
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
