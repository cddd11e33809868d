use crate::{
    DType, Result,
    cuda::{
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        tiles::{ANY, Geometry, direct},
    },
};

/// What the norm reads and writes on the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// The rows of `o`.
    pub(crate) rows: usize,
    pub(crate) o: Strided,
    /// That of the activations, or f32.
    pub(crate) o_dtype: DType,
    pub(crate) z: Strided,
    /// Dense.
    pub(crate) out: u64,
    /// The address of the sequence of each row, whose slot it has; 0 where each
    /// row has its own.
    pub(crate) owner: u64,
}

/// `overlap`: the kernel before writes no slots.
pub(crate) fn launch(launcher: &Launcher<'_>, args: Norm, overlap: bool) -> Result<()> {
    let Norm { rows, o, o_dtype, z, out, owner } = args;
    let [_, hv, _, v] = launcher.dims();
    let params = params::Norm {
        s: launcher.slots,
        owner,
        o: o.address,
        z: z.address,
        out,
        o_stride: o.stride as i64,
        z_stride: z.stride as i64,
        weight: launcher.weights.norm,
        b: rows as u32,
        hv,
        v,
        eps: launcher.spec.norm_eps(),
    };
    let entry = if o_dtype == launcher.activations { "gdn_norm" } else { "gdn_norm_f32" };
    let tile = if v.is_multiple_of(32) { direct(4, 8, 1, 1) } else { ANY };
    let kernel = launcher.kernel(Source::Norm, entry, tile, true);
    let warps = rows * launcher.spec.v_heads();
    let geometry = Geometry::rows(warps.div_ceil(4), 1, 128).overlapping(overlap);
    launcher.launch(&kernel, &geometry, &params)
}
