use crate::{
    Result,
    cuda::{
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        tiles::{Form, Tiled},
    },
    ops::{conv::cuda::Ring, packed::cuda::Recurrence},
};

/// `overlap`: the kernel before writes neither slots nor state.
pub(crate) fn launch(
    launcher: &Launcher<'_>,
    args: Recurrence,
    ring: Ring,
    z: Strided,
    overlap: bool,
) -> Result<()> {
    let aligned = args.is_aligned(launcher)
        && ring.entries.is_aligned(launcher.activations)
        && z.is_aligned(launcher.activations);
    let (tile, geometry) = launcher.tile(Tiled::Fused, aligned);
    let entry = match tile.form {
        Form::Direct => "gdn_fused",
        Form::Stream => "gdn_fused_stream",
        Form::Any | Form::Chunk => "gdn_fused_any",
    };
    let params = params::Fused {
        p: args.params(launcher),
        r: ring.params(launcher),
        z: z.address,
        z_stride: z.stride as i64,
        norm_weight: launcher.weights.norm,
        eps: launcher.spec.norm_eps(),
        pad: 0,
    };
    let kernel = launcher.kernel(Source::Fused, entry, tile, aligned);
    launcher.launch(&kernel, &geometry.overlapping(overlap), &params)
}
