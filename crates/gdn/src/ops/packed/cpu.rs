use pulp::Simd;

use super::Decode;
use crate::{
    DType, Element, Layer, Rows,
    cpu::{
        Exec, math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::with_scratch,
    },
    slots::CheckedSlots,
};

/// Rows of S whose dot products run side by side: 8 chains of multiply-add
/// cover the latency of one.
const ROWS: usize = 4;

pub(crate) fn run(exec: &Exec, args: Decode<'_>, slots: CheckedSlots<'_>) {
    match args.recurrent.dtype() {
        DType::F32 => run_typed::<f32>(exec, args, slots),
        DType::BF16 => run_typed::<half::bf16>(exec, args, slots),
        DType::F16 => run_typed::<half::f16>(exec, args, slots),
    }
}

fn run_typed<T: Element>(exec: &Exec, args: Decode<'_>, slots: CheckedSlots<'_>) {
    let Decode { layer, mixed_qkv, a, b, recurrent, out, .. } = args;
    let rows = mixed_qkv.rows();
    Launch::<T>::new(layer.spec(), Partition::VHeads, rows, Some(slots), out, OutColumns::Heads)
        .with_recurrent(recurrent)
        .run(exec, |tile| exec.simd(PackedTile { layer, mixed_qkv, a, b, tile }));
}

struct PackedTile<'l, 'a, T> {
    layer: &'a Layer,
    mixed_qkv: Rows<'a>,
    a: Rows<'a>,
    b: Rows<'a>,
    tile: Tile<'l, 'a, T>,
}

impl<T: Element> pulp::WithSimd for PackedTile<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer, mixed_qkv, a, b, mut tile } = self;
        let spec = layer.spec();
        let (row, hv) = (tile.row(), tile.part());
        let h = spec.q_head_of(hv);
        let (len_k, len_v) = (spec.head_k(), spec.head_v());
        let lengths = [len_k, len_k, len_v, len_v, scratch_len::<T>(len_k)];
        with_scratch(lengths, |[q, k, v, o, scratch]| {
            if tile.is_padding() {
                o.fill(0.0);
            } else {
                mixed_qkv.read(row, spec.q_channel(h), q);
                mixed_qkv.read(row, spec.k_channel(h), k);
                mixed_qkv.read(row, spec.v_channel(hv), v);
                math::prepare_qk(simd, spec, q, k);
                let (g, beta) = math::gates(layer, a, b, row, hv);
                update_head(simd, tile.state(hv), q, k, v, g, beta, o, scratch);
            }
            tile.write_out(row, hv * len_v, o);
        });
    }
}

/// The scratch that [`update_head`] asks for.
pub(crate) fn scratch_len<T: Element>(len_k: usize) -> usize {
    match T::DTYPE {
        DType::F32 => 0,
        _ => ROWS * len_k,
    }
}

/// One token of one value head: `state [V, K]` is read and written once.
///
/// With the old S, p = S·k and r = S·q come out of one pass; then
/// u = β·(v − e^g·p), o = e^g·r + u·(k·q), S ← e^g·S + u·kᵀ.
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
    let head = Head { q, k, kq: math::dot(simd, k, q), decay: g.exp(), beta };
    let len_k = k.len();
    let blocks = state.chunks_mut(ROWS * len_k).zip(v.chunks(ROWS)).zip(o.chunks_mut(ROWS));
    for ((state, v), o) in blocks {
        if T::DTYPE == DType::F32 {
            head.update_block(simd, bytemuck::cast_slice_mut(state), v, o);
        } else {
            let wide = &mut scratch[..state.len()];
            T::widen(state, wide);
            head.update_block(simd, wide, v, o);
            T::narrow(wide, state);
        }
    }
}

/// What all rows of a head's state share.
struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    kq: f32,
    decay: f32,
    beta: f32,
}

impl Head<'_> {
    /// Up to [`ROWS`] rows of S.
    #[inline(always)]
    fn update_block<S: Simd>(&self, simd: S, rows: &mut [f32], v: &[f32], o: &mut [f32]) {
        if v.len() == ROWS {
            self.update_rows::<S, ROWS>(simd, rows, v, o);
        } else {
            let rows = rows.chunks_exact_mut(self.k.len());
            for ((row, v), o) in rows.zip(v.chunks(1)).zip(o.chunks_mut(1)) {
                self.update_rows::<S, 1>(simd, row, v, o);
            }
        }
    }

    /// R rows of S. The sums of a row run in one order whatever R is.
    #[inline(always)]
    fn update_rows<S: Simd, const R: usize>(
        &self,
        simd: S,
        rows: &mut [f32],
        v: &[f32],
        o: &mut [f32],
    ) {
        let (k, k_tail) = S::as_simd_f32s(self.k);
        let (q, q_tail) = S::as_simd_f32s(self.q);
        let mut rows = rows.chunks_exact_mut(self.k.len());
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
            let mut p = simd.reduce_sum_f32s(p[j]);
            let mut r = simd.reduce_sum_f32s(r[j]);
            for ((s, k), q) in tail.iter().zip(k_tail).zip(q_tail) {
                p += s * k;
                r += s * q;
            }
            let u = self.beta * (v[j] - self.decay * p);
            o[j] = self.decay * r + u * self.kq;
            for (s, k) in tail.iter_mut().zip(k_tail) {
                *s = self.decay * *s + u * k;
            }
            let u = simd.splat_f32s(u);
            for (s, &k) in row.iter_mut().zip(k) {
                *s = simd.mul_add_f32s(u, k, simd.mul_f32s(decay, *s));
            }
        }
    }
}
