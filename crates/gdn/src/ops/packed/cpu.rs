use pulp::Simd;

use super::Decode;
use crate::{
    DType, Element, Layer, Rows,
    cpu::{
        Exec,
        delta::{scratch_len, update_head},
        math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::with_scratch,
    },
    slots::CheckedSlots,
};

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
        .run(exec, |tile| {
            let (len_k, len_v) = (layer.spec().head_k(), layer.spec().head_v());
            let lengths = [len_k, len_k, len_v, len_v, scratch_len::<T>(len_k)];
            with_scratch(lengths, |scratch| {
                exec.simd(PackedTile { layer, mixed_qkv, a, b, tile, scratch });
            });
        });
}

struct PackedTile<'l, 'a, 's, T> {
    layer: &'a Layer,
    mixed_qkv: Rows<'a>,
    a: Rows<'a>,
    b: Rows<'a>,
    tile: Tile<'l, 'a, T>,
    scratch: [&'s mut [f32]; 5],
}

impl<T: Element> pulp::WithSimd for PackedTile<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer, mixed_qkv, a, b, mut tile, scratch: [q, k, v, o, scratch] } = self;
        let spec = layer.spec();
        let (row, hv) = (tile.row(), tile.part());
        let h = spec.q_head_of(hv);
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
        tile.write_out(row, hv * spec.head_v(), o);
    }
}
