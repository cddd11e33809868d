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
    .run(exec, |tile| {
        let longest = layer.spec().head_k().max(layer.spec().head_v());
        with_scratch([longest; 2], |scratch| {
            exec.simd(ConvTile { layer, mixed_qkv, tile, scratch });
        });
    });
}

struct ConvTile<'l, 'a, 's> {
    layer: &'a Layer,
    mixed_qkv: Rows<'a>,
    tile: Tile<'l, 'a, f32>,
    scratch: [&'s mut [f32]; 2],
}

impl pulp::WithSimd for ConvTile<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer, mixed_qkv, mut tile, scratch: [y, scratch] } = self;
        let spec = layer.spec();
        let (token, head) = (tile.row(), tile.part());
        let phase = if tile.is_padding() { 0 } else { tile.phase() };
        let conv = ConvToken { layer, mixed_qkv, token, phase };
        let queries_and_keys =
            [spec.q_channel(head), spec.k_channel(head)].map(|channel| (channel, spec.head_k()));
        let values = spec.v_heads_of(head).map(|hv| (spec.v_channel(hv), spec.head_v()));
        for (channel, len) in queries_and_keys.into_iter().chain(values) {
            let y = &mut y[..len];
            if tile.is_padding() {
                y.fill(0.0);
            } else {
                conv.channels(simd, channel, &mut tile, y, scratch);
            }
            tile.write_out(token, channel, y);
        }
    }
}

/// The convolution of one token.
pub(crate) struct ConvToken<'a> {
    pub(crate) layer: &'a Layer,
    pub(crate) mixed_qkv: Rows<'a>,
    /// The row of `mixed_qkv`.
    pub(crate) token: usize,
    /// The ring entry that it takes.
    pub(crate) phase: usize,
}

impl ConvToken<'_> {
    /// The head that starts at `channel`: its output into `y`, its raw input into
    /// the ring. `scratch` is at least as long as `y`.
    #[inline(always)]
    pub(crate) fn channels<S: Simd, T: Element>(
        &self,
        simd: S,
        channel: usize,
        tile: &mut Tile<'_, '_, T>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let Self { layer, mixed_qkv, token, phase } = *self;
        let width = layer.spec().conv_width();
        let len = y.len();
        let x = &mut scratch[..len];
        y.copy_from_slice(&layer.conv_bias()[channel..][..len]);
        for tap in 0..width - 1 {
            tile.read_ring((phase + 1 + tap) % width, channel, x);
            math::add_product(y, layer.conv_tap(tap, channel, len), x);
        }
        mixed_qkv.read(token, channel, x);
        math::add_product(y, layer.conv_tap(width - 1, channel, len), x);
        tile.write_ring(phase, channel, x);
        math::silu(simd, y);
    }
}
