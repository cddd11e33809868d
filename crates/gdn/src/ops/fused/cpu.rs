use pulp::Simd;

use super::LayerStep;
use crate::{
    DType, DecodePath, Element, Layer, LayerSpec, Rows,
    cpu::{
        Exec, delta, math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::{Workspace, with_scratch},
    },
    ops::{
        ConvUpdate, Decode, GatedNorm,
        conv::{self, cpu::ConvToken},
        norm, packed, split,
    },
    slots::CheckedSlots,
};

/// With so many rows a thread, it matters little if one has a row more.
const ROWS_PER_THREAD: usize = 8;

/// The whole layer in one pass over the rows.
pub(crate) fn run(exec: &Exec, args: LayerStep<'_>, slots: CheckedSlots<'_>) {
    match args.state.recurrent.dtype() {
        DType::F32 => run_typed::<f32>(exec, args, slots),
        DType::BF16 => run_typed::<half::bf16>(exec, args, slots),
        DType::F16 => run_typed::<half::f16>(exec, args, slots),
    }
}

fn run_typed<T: Element>(exec: &Exec, args: LayerStep<'_>, slots: CheckedSlots<'_>) {
    let LayerStep { layer, mixed_qkv, a, b, z, state, out, .. } = args;
    let inputs = Inputs { layer, mixed_qkv, a, b, z };
    let (spec, rows) = (layer.spec(), mixed_qkv.rows());
    // A whole row at a time reads its conv state and weights as long streams;
    // where rows don't share out evenly, smaller tiles keep all threads busy.
    let even = rows.is_multiple_of(exec.threads()) || rows >= ROWS_PER_THREAD * exec.threads();
    let (partition, heads) = match even {
        true => (Partition::Rows, spec.q_heads()),
        false => (Partition::QkHeads, 1),
    };
    Launch::<T>::new(spec, partition, rows, Some(slots), out, OutColumns::Heads)
        .with_recurrent(state.recurrent)
        .with_conv(state.conv)
        .run(exec, |tile| {
            with_scratch(scratch_lens::<T>(spec, heads), |scratch| {
                exec.simd(FusedTile { inputs, tile, scratch });
            });
        });
}

/// The same layer as a chain of operators with stored intermediates.
pub(crate) fn run_chain(
    exec: &Exec,
    workspace: &mut Workspace,
    path: DecodePath,
    args: LayerStep<'_>,
    slots: CheckedSlots<'_>,
) {
    let LayerStep { layer, mixed_qkv, a, b, z, slots: raw_slots, state, out } = args;
    let (rows, dtype) = (mixed_qkv.rows(), mixed_qkv.dtype());
    let (channels, value_len) = (layer.spec().channels(), layer.spec().value_len());

    let convolved = workspace.conv.rows_mut(dtype, rows, channels);
    let update =
        ConvUpdate { layer, mixed_qkv, slots: raw_slots, conv: state.conv, out: convolved };
    conv::cpu::run(exec, update, slots);

    let mixed_qkv = workspace.conv.rows(dtype, rows, channels);
    let o = workspace.o.rows_mut(dtype, rows, value_len);
    let recurrent = state.recurrent;
    let decode = Decode { layer, mixed_qkv, a, b, slots: raw_slots, recurrent, out: o };
    if path == DecodePath::Split {
        split::cpu::run(exec, &mut workspace.split, decode, slots);
    } else {
        packed::cpu::run(exec, decode, slots);
    }

    let o = workspace.o.rows(dtype, rows, value_len);
    norm::cpu::run(exec, GatedNorm { layer, o, z, slots: raw_slots, out }, slots);
}

/// What a token of the layer is computed from.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) layer: &'a Layer,
    pub(crate) mixed_qkv: Rows<'a>,
    pub(crate) a: Rows<'a>,
    pub(crate) b: Rows<'a>,
    pub(crate) z: Rows<'a>,
}

/// Every token of a tile: one in decode, those of a sequence in prefill.
pub(crate) struct FusedTile<'l, 'a, 's, T> {
    pub(crate) inputs: Inputs<'a>,
    pub(crate) tile: Tile<'l, 'a, T>,
    pub(crate) scratch: TokenScratch<'s>,
}

impl<T: Element> pulp::WithSimd for FusedTile<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        layer_tokens(simd, self.inputs, self.tile, self.scratch);
    }
}

/// Convolved q ‖ k ‖ v of every query/key head of a tile, o and z of a value
/// head, and one for the steps between them.
pub(crate) type TokenScratch<'s> = [&'s mut [f32]; 4];

/// The lengths of a [`TokenScratch`] for tiles of `heads` query/key heads.
pub(crate) fn scratch_lens<T: Element>(spec: &LayerSpec, heads: usize) -> [usize; 4] {
    let (len_k, len_v) = (spec.head_k(), spec.head_v());
    let steps = delta::scratch_len::<T>(len_k).max(len_k).max(len_v);
    [heads * group_len(spec), len_v, len_v, steps]
}

/// The channels of a query/key head: its q, its k, and the v of the value heads
/// that read it.
fn group_len(spec: &LayerSpec) -> usize {
    2 * spec.head_k() + spec.head_ratio() * spec.head_v()
}

/// The tokens of a tile, one after the other.
#[inline(always)]
fn layer_tokens<S: Simd, T: Element>(
    simd: S,
    inputs: Inputs<'_>,
    mut tile: Tile<'_, '_, T>,
    [qkv, o, gate, scratch]: TokenScratch<'_>,
) {
    let Inputs { layer, mixed_qkv, a, b, z } = inputs;
    let spec = layer.spec();
    let (len_k, len_v) = (spec.head_k(), spec.head_v());
    if tile.is_padding() {
        return zero_out(spec, &mut tile, o);
    }
    let mut phase = tile.phase();
    if let Some(hv) = tile.q_heads().next().and_then(|h| spec.v_heads_of(h).next()) {
        delta::prefetch_start(tile.state(hv));
    }
    let whole_row = tile.q_heads().len() == spec.q_heads();
    for token in tile.tokens() {
        let conv = ConvToken { layer, mixed_qkv, token, phase };
        for (h, qkv) in tile.q_heads().zip(qkv.chunks_exact_mut(group_len(spec))) {
            let (qk, v) = qkv.split_at_mut(2 * len_k);
            let (q, k) = qk.split_at_mut(len_k);
            conv.channels(simd, spec.q_channel(h), &mut tile, q, scratch);
            conv.channels(simd, spec.k_channel(h), &mut tile, k, scratch);
            math::prepare_qk(simd, spec, q, k);
            for (hv, v) in spec.v_heads_of(h).zip(v.chunks_exact_mut(len_v)) {
                conv.channels(simd, spec.v_channel(hv), &mut tile, v, scratch);
            }
        }
        for (h, qkv) in tile.q_heads().zip(qkv.chunks_exact(group_len(spec))) {
            let (qk, v) = qkv.split_at(2 * len_k);
            let (q, k) = qk.split_at(len_k);
            for (hv, v) in spec.v_heads_of(h).zip(v.chunks_exact(len_v)) {
                let (g, beta) = math::gates(layer, a, b, token, hv);
                if whole_row {
                    tile.prefetch_next_ring(hv, spec.v_heads());
                }
                delta::update_head(simd, tile.state(hv), q, k, v, g, beta, o, scratch);
                z.read(token, hv * len_v, gate);
                math::gated_norm(simd, layer, o, gate);
                tile.write_out(token, hv * len_v, o);
            }
        }
        phase = (phase + 1) % spec.conv_width();
    }
}

/// Zeros in the output of a padding row.
pub(crate) fn zero_out<T: Element>(
    spec: &LayerSpec,
    tile: &mut Tile<'_, '_, T>,
    zeros: &mut [f32],
) {
    zeros.fill(0.0);
    for token in tile.tokens() {
        for hv in tile.q_heads().flat_map(|h| spec.v_heads_of(h)) {
            tile.write_out(token, hv * spec.head_v(), zeros);
        }
    }
}
