use crate::{
    Result,
    cuda::{
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        tiles::{Form, Tiled},
    },
};

/// What the recurrence reads and writes on the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recurrence {
    /// q ‖ k ‖ v.
    pub(crate) x: Strided,
    pub(crate) a: Strided,
    pub(crate) b: Strided,
    pub(crate) state: Strided,
    /// Dense.
    pub(crate) out: u64,
}

impl Recurrence {
    pub(crate) fn params(self, launcher: &Launcher<'_>) -> params::Packed {
        let Self { x, a, b, state, out } = self;
        let [h, hv, kd, vd] = launcher.dims();
        params::Packed {
            s: launcher.slots,
            x: x.address,
            x_stride: x.stride as i64,
            a: a.address,
            bb: b.address,
            a_stride: a.stride as i64,
            b_stride: b.stride as i64,
            neg_exp_a: launcher.weights.neg_exp_a,
            dt_bias: launcher.weights.dt_bias,
            state: state.address,
            state_pitch: state.stride as i64,
            out,
            h,
            hv,
            kd,
            vd,
            scale: launcher.spec.scale(),
            pad: 0,
        }
    }

    /// Whether the kernels may load x and the state by 16 bytes.
    pub(crate) fn is_aligned(&self, launcher: &Launcher<'_>) -> bool {
        self.x.is_aligned(launcher.activations) && self.state.is_aligned(launcher.recurrent)
    }
}

/// `overlap`: the kernel before writes neither slots nor state.
pub(crate) fn launch(launcher: &Launcher<'_>, args: Recurrence, overlap: bool) -> Result<()> {
    let aligned = args.is_aligned(launcher);
    let (tile, geometry) = launcher.tile(Tiled::Packed, aligned);
    let entry = match tile.form {
        Form::Direct => "gdn_packed",
        Form::Stream => "gdn_packed_stream",
        Form::Any | Form::Chunk => "gdn_packed_any",
    };
    let kernel = launcher.kernel(Source::Packed, entry, tile, aligned);
    launcher.launch(&kernel, &geometry.overlapping(overlap), &args.params(launcher))
}
