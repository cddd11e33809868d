use pulp::Simd;

use super::{Prefill, PrefillForm};
use crate::{
    DType, Element, Layer, LayerSpec, Rows,
    cpu::{
        Exec,
        gemm::{self, Matrix},
        math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::{Offsets, with_scratch},
    },
    ops::{
        conv::cpu::ConvToken,
        fused::cpu::{FusedTile, Inputs, scratch_lens, zero_out},
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
        .run(exec, |tile| match form {
            PrefillForm::Recurrent => with_scratch(scratch_lens::<T>(layer.spec(), 1), |scratch| {
                exec.simd(FusedTile { inputs, tile, scratch });
            }),
            PrefillForm::Chunked => with_scratch(chunk_scratch_lens(layer.spec()), |scratch| {
                exec.simd(ChunkedTile { inputs, tile, scratch });
            }),
        });
}

struct ChunkedTile<'l, 'a, 's, T> {
    inputs: Inputs<'a>,
    tile: Tile<'l, 'a, T>,
    scratch: ChunkScratch<'s>,
}

impl<T: Element> pulp::WithSimd for ChunkedTile<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        chunked(simd, self.inputs, self.tile, self.scratch);
    }
}

/// The f32 states of a tile; of a chunk q, k, kᵀ, k·kᵀ, q·kᵀ, both decayed, u, o,
/// c, and the decay of each token since; and a line.
type ChunkScratch<'s> = [&'s mut [f32]; 13];

fn chunk_scratch_lens(spec: &LayerSpec) -> [usize; 13] {
    let (len_k, len_v) = (spec.head_k(), spec.head_v());
    let (qk, square, values) = (CHUNK * len_k, CHUNK * CHUNK, CHUNK * len_v);
    let states = spec.head_ratio() * spec.head_len();
    let line = len_k.max(len_v).max(CHUNK);
    [states, qk, qk, qk, square, square, square, square, values, values, CHUNK, CHUNK, line]
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
fn chunked<S: Simd, T: Element>(
    simd: S,
    inputs: Inputs<'_>,
    mut tile: Tile<'_, '_, T>,
    scratch: ChunkScratch<'_>,
) {
    let [states, q, k, k_t, kk, qk, kk_decayed, qk_decayed, u, o, cum, since, line] = scratch;
    let Inputs { layer, mixed_qkv, a, b, z } = inputs;
    let spec = layer.spec();
    let (h, len_k, len_v) = (tile.part(), spec.head_k(), spec.head_v());
    if tile.is_padding() {
        return zero_out(spec, &mut tile, &mut line[..len_v]);
    }
    for (hv, state) in spec.v_heads_of(h).zip(states.chunks_exact_mut(spec.head_len())) {
        read_transposed(tile.state(hv), state, &mut line[..len_k]);
    }

    let mut phase = tile.phase();
    let tokens = tile.tokens();
    for start in tokens.clone().step_by(CHUNK) {
        let n = CHUNK.min(tokens.end - start);
        let conv = ConvChunk { layer, mixed_qkv, start, phase };
        let (q, k) = (&mut q[..n * len_k], &mut k[..n * len_k]);
        conv.channels(simd, spec.q_channel(h), len_k, &mut tile, q, line);
        conv.channels(simd, spec.k_channel(h), len_k, &mut tile, k, line);
        for (t, (q, k)) in q.chunks_exact_mut(len_k).zip(k.chunks_exact_mut(len_k)).enumerate() {
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

        for (hv, state) in spec.v_heads_of(h).zip(states.chunks_exact_mut(spec.head_len())) {
            let (u, o, cum) = (&mut u[..n * len_v], &mut o[..n * len_v], &mut cum[..n]);
            conv.channels(simd, spec.v_channel(hv), len_v, &mut tile, u, line);

            // −β_t·e^{c_t−c_j}·(k_t·k_j) below the diagonal, β_t on it, and
            // e^{c_t−c_j}·(q_t·k_j) up to it.
            let mut total = 0.0;
            for t in 0..n {
                let (g, beta) = math::gates(layer, a, b, start + t, hv);
                total += g;
                cum[t] = total;
                // Not c_t − c_j, which cancels behind a strong decay.
                since[..t].iter_mut().for_each(|log| *log += g);
                since[t] = 0.0;
                let decays = &mut line[..=t];
                decays.copy_from_slice(&since[..=t]);
                math::exp_all(simd, decays);
                for (j, decay) in decays.iter().enumerate() {
                    qk_decayed[t * n + j] = decay * qk[t * n + j];
                    kk_decayed[t * n + j] = -beta * decay * kk[t * n + j];
                }
                kk_decayed[t * n + t] = beta;
            }

            // S_0·k_t first, which o has room for, then the solve for u.
            o.fill(0.0);
            gemm::add(simd, k, state, o, len_v);
            for t in 0..n {
                let (before, u) = u.split_at_mut(t * len_v);
                let u = &mut u[..len_v];
                math::add_scaled(u, -cum[t].exp(), &o[t * len_v..][..len_v]);
                math::scale(u, kk_decayed[t * n + t]);
                let weights = Matrix::rows(&kk_decayed[t * n..][..t], t);
                gemm::add(simd, weights, before, u, len_v);
            }

            o.fill(0.0);
            gemm::add(simd, q, state, o, len_v);
            for (t, o) in o.chunks_exact_mut(len_v).enumerate() {
                math::scale(o, cum[t].exp());
                let weights = Matrix::rows(&qk_decayed[t * n..][..=t], t + 1);
                gemm::add(simd, weights, &u[..(t + 1) * len_v], o, len_v);
                let gate = &mut line[..len_v];
                z.read(start + t, hv * len_v, gate);
                math::gated_norm(simd, layer, o, gate);
                tile.write_out(start + t, hv * len_v, o);
            }

            math::scale(state, total.exp());
            for (u, log) in u.chunks_exact_mut(len_v).zip(&*since) {
                math::scale(u, log.exp());
            }
            gemm::add(simd, k.transposed(), u, state, len_v);
        }
        phase = (phase + n) % spec.conv_width();
    }

    for (hv, state) in spec.v_heads_of(h).zip(states.chunks_exact(spec.head_len())) {
        write_transposed(state, tile.state(hv), &mut line[..len_k]);
    }
}

/// The convolution of a chunk of tokens.
struct ConvChunk<'a> {
    layer: &'a Layer,
    mixed_qkv: Rows<'a>,
    start: usize,
    /// The ring entry that the first token takes.
    phase: usize,
}

impl ConvChunk<'_> {
    /// Channels `channel .. channel + len` of every token into the rows of `y`.
    #[inline(always)]
    fn channels<S: Simd, T: Element>(
        &self,
        simd: S,
        channel: usize,
        len: usize,
        tile: &mut Tile<'_, '_, T>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let Self { layer, mixed_qkv, start, phase } = *self;
        for (t, y) in y.chunks_exact_mut(len).enumerate() {
            let phase = (phase + t) % layer.spec().conv_width();
            let conv = ConvToken { layer, mixed_qkv, token: start + t, phase };
            conv.channels(simd, channel, tile, y, scratch);
        }
    }
}

/// A state `[V, K]` as f32 `[K, V]`.
fn read_transposed<T: Element>(state: &[T], transposed: &mut [f32], line: &mut [f32]) {
    let len_v = transposed.len() / line.len();
    for (j, row) in state.chunks_exact(line.len()).enumerate() {
        T::widen(row, line);
        for (i, &s) in line.iter().enumerate() {
            transposed[i * len_v + j] = s;
        }
    }
}

/// The way back.
fn write_transposed<T: Element>(transposed: &[f32], state: &mut [T], line: &mut [f32]) {
    let len_v = transposed.len() / line.len();
    for (j, row) in state.chunks_exact_mut(line.len()).enumerate() {
        for (i, s) in line.iter_mut().enumerate() {
            *s = transposed[i * len_v + j];
        }
        T::narrow(line, row);
    }
}
