use pulp::Simd;

use super::LayerStep;
use crate::{
    DType, DecodePath, Element, Layer, LayerSpec, Rows,
    cpu::{
        Exec, math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::{Workspace, with_scratch},
    },
    ops::{
        ConvUpdate, Decode, GatedNorm, conv, norm,
        packed::{self, cpu::update_head},
        split,
    },
    slots::CheckedSlots,
};

/// The whole layer in one pass over (row, query/key head) tiles.
///
/// A tile owns a query/key head and the value heads that read it, so each input
/// of the convolution is read once and nothing is computed twice.
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
    let rows = mixed_qkv.rows();
    Launch::<T>::new(layer.spec(), Partition::QkHeads, rows, Some(slots), out, OutColumns::Heads)
        .with_recurrent(state.recurrent)
        .with_conv(state.conv)
        .run(exec, |tile| exec.simd(FusedTile { inputs, tile }));
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

struct FusedTile<'l, 'a, T> {
    inputs: Inputs<'a>,
    tile: Tile<'l, 'a, T>,
}

impl<T: Element> pulp::WithSimd for FusedTile<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, tile } = self;
        layer_tokens(simd, inputs, tile);
    }
}

/// The scratch of [`layer_tokens`]: q, k, v, o, z, and one for the steps.
fn scratch_lens<T: Element>(spec: &LayerSpec) -> [usize; 6] {
    let (len_k, len_v) = (spec.head_k(), spec.head_v());
    let steps = packed::cpu::scratch_len::<T>(len_k).max(len_k).max(len_v);
    [len_k, len_k, len_v, len_v, len_v, steps]
}

/// The tokens of a tile, one after the other: one in decode, all of a sequence
/// in prefill.
#[inline(always)]
pub(crate) fn layer_tokens<S: Simd, T: Element>(
    simd: S,
    inputs: Inputs<'_>,
    mut tile: Tile<'_, '_, T>,
) {
    let Inputs { layer, mixed_qkv, a, b, z } = inputs;
    let spec = layer.spec();
    let (h, len_v) = (tile.part(), spec.head_v());
    with_scratch(scratch_lens::<T>(spec), |[q, k, v, o, gate, scratch]| {
        if tile.is_padding() {
            return zero_out(&mut tile, len_v, o);
        }
        let mut phase = tile.phase();
        for token in tile.tokens() {
            let convolve = |channel, y: &mut [f32], scratch: &mut [f32], tile: &mut _| {
                let scratch = &mut scratch[..y.len()];
                conv::cpu::token(simd, layer, mixed_qkv, token, phase, channel, tile, y, scratch);
            };
            convolve(spec.q_channel(h), q, scratch, &mut tile);
            convolve(spec.k_channel(h), k, scratch, &mut tile);
            math::prepare_qk(simd, spec, q, k);
            for hv in tile.v_heads() {
                convolve(spec.v_channel(hv), v, scratch, &mut tile);
                let (g, beta) = math::gates(layer, a, b, token, hv);
                update_head(simd, tile.state(hv), q, k, v, g, beta, o, scratch);
                z.read(token, hv * len_v, gate);
                math::gated_norm(simd, layer, o, gate);
                tile.write_out(token, hv * len_v, o);
            }
            phase = (phase + 1) % spec.conv_width();
        }
    });
}

/// Zeros in the output of a padding row.
pub(crate) fn zero_out<T: Element>(tile: &mut Tile<'_, '_, T>, len_v: usize, zeros: &mut [f32]) {
    zeros.fill(0.0);
    for token in tile.tokens() {
        for hv in tile.v_heads() {
            tile.write_out(token, hv * len_v, zeros);
        }
    }
}
