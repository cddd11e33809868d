use pulp::Simd;

use super::GatedNorm;
use crate::{
    Layer, Rows,
    cpu::{
        Exec, math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::with_scratch,
    },
    slots::CheckedSlots,
};

pub(crate) fn run(exec: &Exec, args: GatedNorm<'_>, slots: CheckedSlots<'_>) {
    let GatedNorm { layer, o, z, out, .. } = args;
    // No recurrent state, so its type is any.
    Launch::<f32>::new(
        layer.spec(),
        Partition::QkHeads,
        o.rows(),
        Some(slots),
        out,
        OutColumns::Heads,
    )
    .run(exec, |tile| {
        with_scratch([layer.spec().head_v(); 2], |scratch| {
            exec.simd(NormTile { layer, o, z, tile, scratch });
        });
    });
}

struct NormTile<'l, 'a, 's> {
    layer: &'a Layer,
    o: Rows<'a>,
    z: Rows<'a>,
    tile: Tile<'l, 'a, f32>,
    scratch: [&'s mut [f32]; 2],
}

impl pulp::WithSimd for NormTile<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer, o, z, mut tile, scratch: [y, gate] } = self;
        let (row, len) = (tile.row(), layer.spec().head_v());
        for hv in layer.spec().v_heads_of(tile.part()) {
            if tile.is_padding() {
                y.fill(0.0);
            } else {
                o.read(row, hv * len, y);
                z.read(row, hv * len, gate);
                math::gated_norm(simd, layer, y, gate);
            }
            tile.write_out(row, hv * len, y);
        }
    }
}
