use pulp::Simd;

use super::ConvUpdate;
use crate::{
    Element, Layer, Rows,
    cpu::{
        Exec, math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::with_scratch,
    },
    slots::CheckedSlots,
};

pub(crate) fn run(exec: &Exec, args: ConvUpdate<'_>, slots: CheckedSlots<'_>) {
    let ConvUpdate { layer, mixed_qkv, conv, out, .. } = args;
    let rows = mixed_qkv.rows();
    // No recurrent state, so its type is any.
    Launch::<f32>::new(
        layer.spec(),
        Partition::QkHeads,
        rows,
        Some(slots),
        out,
        OutColumns::Channels,
    )
    .with_conv(conv)
    .run(exec, |tile| exec.simd(ConvTile { layer, mixed_qkv, tile }));
}

struct ConvTile<'l, 'a> {
    layer: &'a Layer,
    mixed_qkv: Rows<'a>,
    tile: Tile<'l, 'a, f32>,
}

impl pulp::WithSimd for ConvTile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer, mixed_qkv, mut tile } = self;
        let spec = layer.spec();
        let (row, head) = (tile.row(), tile.part());
        let (head_k, head_v) = (spec.head_k(), spec.head_v());
        let heads = [(spec.q_channel(head), head_k), (spec.k_channel(head), head_k)];
        let heads = heads.into_iter();
        let heads = heads.chain(tile.v_heads().map(|hv| (spec.v_channel(hv), head_v)));
        let longest = head_k.max(head_v);
        with_scratch([longest, longest], |[y, scratch]| {
            for (channel, len) in heads {
                let (y, scratch) = (&mut y[..len], &mut scratch[..len]);
                if tile.is_padding() {
                    y.fill(0.0);
                } else {
                    let phase = tile.phase();
                    token(simd, layer, mixed_qkv, row, phase, channel, &mut tile, y, scratch);
                }
                tile.write_out(row, channel, y);
            }
        });
    }
}

/// One token of the convolution: channels `channel ..` of `token` into `y`, the
/// raw input into ring entry `phase`. `scratch` is as long as `y`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the inner loop of three operators")]
pub(crate) fn token<S: Simd, T: Element>(
    simd: S,
    layer: &Layer,
    mixed_qkv: Rows<'_>,
    token: usize,
    phase: usize,
    channel: usize,
    tile: &mut Tile<'_, '_, T>,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    let width = layer.spec().conv_width();
    let weights = |tap: usize| &layer.conv_tap(tap)[channel..];
    y.copy_from_slice(&layer.conv_bias()[channel..][..y.len()]);
    for tap in 0..width - 1 {
        tile.read_ring((phase + 1 + tap) % width, channel, scratch);
        math::add_product(y, weights(tap), scratch);
    }
    mixed_qkv.read(token, channel, scratch);
    math::add_product(y, weights(width - 1), scratch);
    tile.write_ring(phase, channel, scratch);
    math::silu(simd, y);
}
