use crate::{
    Result,
    cuda::{
        Workspace,
        kernel::Source,
        launch::Launcher,
        params,
        runtime::Runtime,
        tiles::{ANY, Form, Geometry, Tiled},
    },
    ops::packed::cuda::Recurrence,
};
use std::sync::Arc;

/// Gates and contiguous q, k and v as steps of their own, then the recurrence.
pub(crate) fn launch(
    launcher: &Launcher<'_>,
    runtime: &Arc<dyn Runtime>,
    workspace: &mut Workspace,
    args: Recurrence,
) -> Result<()> {
    let spec = launcher.spec;
    let (rows, size) = (launcher.rows, launcher.activations.size());
    let (qk, vv) = (spec.q_heads() * spec.head_k(), spec.value_len());
    let heads = rows * spec.v_heads();
    let q = workspace.q.get(runtime, rows * qk * size)?.address();
    let k = workspace.k.get(runtime, rows * qk * size)?.address();
    let v = workspace.v.get(runtime, rows * vv * size)?.address();
    let g = workspace.g.get(runtime, heads * 4)?.address();
    let beta = workspace.beta.get(runtime, heads * 4)?.address();

    let [h, hv, kd, vd] = launcher.dims();
    let params::Packed { s, x, x_stride, a, bb, a_stride, b_stride, .. } = args.params(launcher);
    let copy = params::SplitCopy {
        x,
        q,
        k,
        v,
        x_stride,
        b: rows as u32,
        qk: qk as u32,
        vv: vv as u32,
        pad: 0,
    };
    // Neither step depends on dims, and neither reads before its wait.
    let step = |entry| launcher.kernel(Source::Split, entry, ANY, true);
    let columns = (2 * qk + vv).div_ceil(256).min(8);
    let geometry = Geometry::rows(columns, rows, 256).overlapping(true);
    launcher.launch(&step("gdn_split_copy"), &geometry, &copy)?;

    let gates = params::Gates {
        a,
        bb,
        a_stride,
        b_stride,
        neg_exp_a: launcher.weights.neg_exp_a,
        dt_bias: launcher.weights.dt_bias,
        g,
        beta,
        b: rows as u32,
        hv,
        flags: s.flags,
        pad: 0,
    };
    let geometry = Geometry::rows(heads.div_ceil(256), 1, 256).overlapping(true);
    launcher.launch(&step("gdn_gates"), &geometry, &gates)?;

    let split = params::Split {
        s,
        q,
        k,
        v,
        g,
        beta,
        state: args.state.address,
        state_pitch: args.state.stride as i64,
        out: args.out,
        h,
        hv,
        kd,
        vd,
        scale: spec.scale(),
        pad: 0,
    };
    // q, k and v are aligned whatever x was.
    let aligned = args.state.is_aligned(launcher.recurrent);
    let (tile, geometry) = launcher.tile(Tiled::Split, aligned);
    let entry = if tile.form == Form::Any { "gdn_split_any" } else { "gdn_split" };
    let kernel = launcher.kernel(Source::Split, entry, tile, aligned);
    // The kernel before writes the gates alone.
    launcher.launch(&kernel, &geometry.overlapping(true), &split)
}
