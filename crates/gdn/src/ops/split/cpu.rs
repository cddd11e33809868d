use pulp::Simd;

use crate::{
    DType, Decode, Element, Layer, LayerSpec, Rows, RowsMut,
    cpu::{
        Exec, math,
        tiles::{Launch, OutColumns, Partition, Tile},
        workspace::{SplitWorkspace, with_scratch},
    },
    slots::CheckedSlots,
};

/// Each step reads what the one before it stored.
pub(crate) fn run(
    exec: &Exec,
    workspace: &mut SplitWorkspace,
    args: Decode<'_>,
    slots: CheckedSlots<'_>,
) {
    let Decode { layer, mixed_qkv, a, b, recurrent, out, .. } = args;
    let spec = layer.spec();
    let (rows, dtype) = (mixed_qkv.rows(), mixed_qkv.dtype());
    let qk_len = spec.q_heads() * spec.head_k();
    let SplitWorkspace { q, k, v, gates } = workspace;

    for (part, channel, len) in
        [(&mut *q, 0, qk_len), (&mut *k, qk_len, qk_len), (&mut *v, 2 * qk_len, spec.value_len())]
    {
        copy_columns(exec, spec, mixed_qkv, channel, part.rows_mut(dtype, rows, len));
    }
    compute_gates(exec, layer, a, b, gates.rows_mut(DType::F32, rows, 2 * spec.v_heads()));

    let inputs = Contiguous {
        q: q.rows(dtype, rows, qk_len),
        k: k.rows(dtype, rows, qk_len),
        v: v.rows(dtype, rows, spec.value_len()),
        gates: gates.rows(DType::F32, rows, 2 * spec.v_heads()),
    };
    match recurrent.dtype() {
        DType::F32 => recur::<f32>(exec, spec, inputs, recurrent, out, slots),
        DType::BF16 => recur::<half::bf16>(exec, spec, inputs, recurrent, out, slots),
        DType::F16 => recur::<half::f16>(exec, spec, inputs, recurrent, out, slots),
    }
}

/// Columns `channel ..` of `mixed_qkv` into a tensor of their own.
fn copy_columns(
    exec: &Exec,
    spec: &LayerSpec,
    mixed_qkv: Rows<'_>,
    channel: usize,
    out: RowsMut<'_>,
) {
    let (rows, cols) = (out.rows(), out.cols());
    Launch::<f32>::new(spec, Partition::Rows, rows, None, out, OutColumns::Channels).run(
        exec,
        |mut tile| {
            with_scratch([cols], |[values]| {
                mixed_qkv.read(tile.row(), channel, values);
                tile.write_out(tile.row(), 0, values);
            });
        },
    );
}

/// g ‖ β of every row.
fn compute_gates(exec: &Exec, layer: &Layer, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>) {
    let (spec, rows) = (layer.spec(), out.rows());
    Launch::<f32>::new(spec, Partition::Rows, rows, None, out, OutColumns::Channels).run(
        exec,
        |mut tile| {
            for hv in 0..spec.v_heads() {
                let (g, beta) = math::gates(layer, a, b, tile.row(), hv);
                tile.write_out(tile.row(), hv, &[g]);
                tile.write_out(tile.row(), spec.v_heads() + hv, &[beta]);
            }
        },
    );
}

/// The tensors that the steps before the recurrence stored.
#[derive(Clone, Copy)]
struct Contiguous<'a> {
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    gates: Rows<'a>,
}

fn recur<T: Element>(
    exec: &Exec,
    spec: &LayerSpec,
    inputs: Contiguous<'_>,
    recurrent: crate::RecurrentMut<'_>,
    out: RowsMut<'_>,
    slots: CheckedSlots<'_>,
) {
    let rows = out.rows();
    Launch::<T>::new(spec, Partition::VHeads, rows, Some(slots), out, OutColumns::Heads)
        .with_recurrent(recurrent)
        .run(exec, |tile| {
            let (len_k, len_v) = (spec.head_k(), spec.head_v());
            with_scratch([len_k, len_k, len_v, len_v, len_k], |scratch| {
                exec.simd(SplitTile { spec, inputs, tile, scratch });
            });
        });
}

struct SplitTile<'l, 'a, 's, T> {
    spec: &'a LayerSpec,
    inputs: Contiguous<'a>,
    tile: Tile<'l, 'a, T>,
    scratch: [&'s mut [f32]; 5],
}

impl<T: Element> pulp::WithSimd for SplitTile<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { spec, inputs, mut tile, scratch: [q, k, v, o, s] } = self;
        let (row, hv) = (tile.row(), tile.part());
        let h = spec.q_head_of(hv);
        let (len_k, len_v) = (spec.head_k(), spec.head_v());
        if tile.is_padding() {
            o.fill(0.0);
        } else {
            inputs.q.read(row, h * len_k, q);
            inputs.k.read(row, h * len_k, k);
            inputs.v.read(row, hv * len_v, v);
            math::prepare_qk(simd, spec, q, k);
            let mut gates = [[0.0], [0.0]];
            inputs.gates.read(row, hv, &mut gates[0]);
            inputs.gates.read(row, spec.v_heads() + hv, &mut gates[1]);
            let [[g], [beta]] = gates;
            let rows = tile.state(hv).chunks_exact_mut(len_k);
            for ((row, &v), o) in rows.zip(&*v).zip(&mut *o) {
                // The rule as it is written: decay, predict, correct, read.
                T::widen(row, s);
                math::scale(s, g.exp());
                let u = beta * (v - math::dot(simd, s, k));
                math::add_scaled(s, u, k);
                *o = math::dot(simd, s, q);
                T::narrow(s, row);
            }
        }
        tile.write_out(row, hv * len_v, o);
    }
}
