use pulp::Simd;

use super::{Prefill, PrefillForm};
use crate::{
    DType, Element,
    cpu::{
        Exec,
        gemm::{self, Matrix},
        math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::{Offsets, with_scratch},
    },
    ops::{
        conv,
        fused::cpu::{Inputs, layer_tokens, zero_out},
    },
    slots::CheckedSlots,
};

/// Tokens of a chunk.
const CHUNK: usize = 64;

pub(crate) fn run(
    exec: &Exec,
    offsets: &Offsets,
    form: PrefillForm,
    args: Prefill<'_>,
    slots: CheckedSlots<'_>,
) {
    match args.state.recurrent.dtype() {
        DType::F32 => run_typed::<f32>(exec, offsets, form, args, slots),
        DType::BF16 => run_typed::<half::bf16>(exec, offsets, form, args, slots),
        DType::F16 => run_typed::<half::f16>(exec, offsets, form, args, slots),
    }
}

fn run_typed<T: Element>(
    exec: &Exec,
    offsets: &Offsets,
    form: PrefillForm,
    args: Prefill<'_>,
    slots: CheckedSlots<'_>,
) {
    let Prefill { layer, mixed_qkv, a, b, z, lengths, state, out, .. } = args;
    let inputs = Inputs { layer, mixed_qkv, a, b, z };
    let sequences = lengths.len();
    let columns = OutColumns::Heads;
    Launch::<T>::new(layer.spec(), Partition::QkHeads, sequences, Some(slots), out, columns)
        .with_offsets(offsets.as_slice())
        .with_recurrent(state.recurrent)
        .with_conv(state.conv)
        .run(exec, |tile| exec.simd(PrefillTile { form, inputs, tile }));
}

struct PrefillTile<'l, 'a, T> {
    form: PrefillForm,
    inputs: Inputs<'a>,
    tile: Tile<'l, 'a, T>,
}

impl<T: Element> pulp::WithSimd for PrefillTile<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { form, inputs, tile } = self;
        match form {
            PrefillForm::Recurrent => layer_tokens(simd, inputs, tile),
            PrefillForm::Chunked => chunked(simd, inputs, tile),
        }
    }
}

/// The tokens of a tile in chunks.
///
/// With c_t = g_1 + … + g_t inside a chunk and S_0 the state before it,
///
/// - `u_t = β_t·(v_t − e^{c_t}·S_0·k_t − Σ_{j<t} e^{c_t−c_j}·(k_t·k_j)·u_j)`,
/// - `o_t = e^{c_t}·S_0·q_t + Σ_{j≤t} e^{c_t−c_j}·(q_t·k_j)·u_j`,
/// - `S_n = e^{c_n}·S_0 + Σ_j e^{c_n−c_j}·u_j·k_jᵀ`,
///
/// which is the recurrence unrolled: five matrix products and a triangular
/// solve. S is held transposed, `[K, V]`, so that all of them run along V.
#[inline(always)]
fn chunked<S: Simd, T: Element>(simd: S, inputs: Inputs<'_>, mut tile: Tile<'_, '_, T>) {
    let Inputs { layer, mixed_qkv, a, b, z } = inputs;
    let spec = layer.spec();
    let (h, len_k, len_v) = (tile.part(), spec.head_k(), spec.head_v());
    let (qk, square, values) = (CHUNK * len_k, CHUNK * CHUNK, CHUNK * len_v);
    let states = spec.head_ratio() * spec.head_len();
    let longest = len_k.max(len_v).max(CHUNK);
    let lengths =
        [states, qk, qk, qk, square, square, square, square, values, values, CHUNK, longest];
    with_scratch(lengths, |scratch| {
        let [states, q, k, k_t, kk, qk, kk_decayed, qk_decayed, u, o, cum, line] = scratch;
        if tile.is_padding() {
            return zero_out(&mut tile, len_v, &mut line[..len_v]);
        }
        let heads = || tile_heads(spec, h);
        for (hv, state) in heads().zip(states.chunks_exact_mut(spec.head_len())) {
            for (j, row) in tile.state(hv).chunks_exact(len_k).enumerate() {
                T::widen(row, &mut line[..len_k]);
                for (i, &s) in line[..len_k].iter().enumerate() {
                    state[i * len_v + j] = s;
                }
            }
        }

        let mut phase = tile.phase();
        let tokens = tile.tokens();
        for start in tokens.clone().step_by(CHUNK) {
            let n = CHUNK.min(tokens.end - start);
            let convolve = |channel: usize, y: &mut [f32], line: &mut [f32], tile: &mut _| {
                let len = y.len() / n;
                for (t, y) in y.chunks_exact_mut(len).enumerate() {
                    let phase = (phase + t) % spec.conv_width();
                    let line = &mut line[..len];
                    conv::cpu::token(
                        simd,
                        layer,
                        mixed_qkv,
                        start + t,
                        phase,
                        channel,
                        tile,
                        y,
                        line,
                    );
                }
            };
            let (q, k) = (&mut q[..n * len_k], &mut k[..n * len_k]);
            convolve(spec.q_channel(h), q, line, &mut tile);
            convolve(spec.k_channel(h), k, line, &mut tile);
            for (t, (q, k)) in q.chunks_exact_mut(len_k).zip(k.chunks_exact_mut(len_k)).enumerate()
            {
                math::prepare_qk(simd, spec, q, k);
                for (i, &k) in k.iter().enumerate() {
                    k_t[i * n + t] = k;
                }
            }
            let (q, k, k_t) = (Matrix::rows(q, len_k), Matrix::rows(k, len_k), &k_t[..len_k * n]);
            kk[..n * n].fill(0.0);
            qk[..n * n].fill(0.0);
            gemm::add(simd, k, k_t, &mut kk[..n * n], n);
            gemm::add(simd, q, k_t, &mut qk[..n * n], n);

            for (hv, state) in heads().zip(states.chunks_exact_mut(spec.head_len())) {
                let (u, o) = (&mut u[..n * len_v], &mut o[..n * len_v]);
                let cum = &mut cum[..n];
                convolve(spec.v_channel(hv), u, line, &mut tile);
                // A = diag(β)·(K·Kᵀ ∘ D) below the diagonal, Q·Kᵀ ∘ D up to it.
                let mut total = 0.0;
                for t in 0..n {
                    let (g, beta) = math::gates(layer, a, b, start + t, hv);
                    total += g;
                    cum[t] = total;
                    let decays = &mut line[..=t];
                    for (d, c) in decays.iter_mut().zip(&*cum) {
                        *d = total - c;
                    }
                    math::exp_all(simd, decays);
                    for j in 0..=t {
                        qk_decayed[t * n + j] = decays[j] * qk[t * n + j];
                        kk_decayed[t * n + j] = -beta * decays[j] * kk[t * n + j];
                    }
                    // The diagonal is not in A: keep β there.
                    kk_decayed[t * n + t] = beta;
                }
                // o = K·S_0 for the solve, then the output itself.
                o.fill(0.0);
                gemm::add(simd, k, state, o, len_v);
                for t in 0..n {
                    let beta = kk_decayed[t * n + t];
                    let (before, u) = u.split_at_mut(t * len_v);
                    let u = &mut u[..len_v];
                    math::add_scaled(u, -cum[t].exp(), &o[t * len_v..][..len_v]);
                    math::scale(u, beta);
                    gemm::add(simd, Matrix::rows(&kk_decayed[t * n..][..t], t), before, u, len_v);
                }
                o.fill(0.0);
                gemm::add(simd, q, state, o, len_v);
                for (t, o) in o.chunks_exact_mut(len_v).enumerate() {
                    math::scale(o, cum[t].exp());
                    let weights = Matrix::rows(&qk_decayed[t * n..][..=t], t + 1);
                    gemm::add(simd, weights, &u[..(t + 1) * len_v], o, len_v);
                    z.read(start + t, hv * len_v, &mut line[..len_v]);
                    math::gated_norm(simd, layer, o, &mut line[..len_v]);
                    tile.write_out(start + t, hv * len_v, o);
                }
                // S_n: decay the old state and the corrections, then add.
                math::scale(state, total.exp());
                for (t, u) in u.chunks_exact_mut(len_v).enumerate() {
                    math::scale(u, (total - cum[t]).exp());
                }
                gemm::add(simd, k.transposed(), u, state, len_v);
            }
            phase = (phase + n) % spec.conv_width();
        }

        for (hv, state) in heads().zip(states.chunks_exact(spec.head_len())) {
            for (j, row) in tile.state(hv).chunks_exact_mut(len_k).enumerate() {
                for (i, s) in line[..len_k].iter_mut().enumerate() {
                    *s = state[i * len_v + j];
                }
                T::narrow(&line[..len_k], row);
            }
        }
    });
}

/// The value heads that read query/key head `h`.
fn tile_heads(spec: &crate::LayerSpec, h: usize) -> impl Iterator<Item = usize> {
    (0..spec.head_ratio()).map(move |i| spec.v_head_of(h, i))
}
