use crate::{
    Result,
    cuda::{
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        tiles::{ANY, Geometry, direct},
    },
};

/// The conv states on the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    pub(crate) entries: Strided,
    /// The address of the positions, `[N, HV]`.
    pub(crate) phase: u64,
}

impl Ring {
    pub(crate) fn params(self, launcher: &Launcher<'_>) -> params::Ring {
        params::Ring {
            ring: self.entries.address,
            phase: self.phase,
            pitch: self.entries.stride as i64,
            weight: launcher.weights.conv,
            bias: launcher.weights.bias,
        }
    }
}

/// The parameters of a convolution from `x` to `y`.
pub(crate) fn params(launcher: &Launcher<'_>, x: Strided, ring: Ring, y: Strided) -> params::Conv {
    let [h, hv, k, v] = launcher.dims();
    params::Conv {
        s: launcher.slots,
        r: ring.params(launcher),
        x: x.address,
        y: y.address,
        x_stride: x.stride as i64,
        y_stride: y.stride as i64,
        h,
        hv,
        k,
        v,
    }
}

/// Reads nothing before its wait, so it may overlap whatever comes before.
pub(crate) fn launch(launcher: &Launcher<'_>, x: Strided, ring: Ring, y: Strided) -> Result<()> {
    let spec = launcher.spec;
    let aligned = [x, ring.entries, y].iter().all(|t| t.is_aligned(launcher.activations));
    let by_fours = spec.head_k().is_multiple_of(4) && spec.head_v().is_multiple_of(4);
    // Both have the same bits.
    let (entry, tile) = match aligned && by_fours {
        true => ("gdn_conv", direct(4, 8, 1, 1)),
        false => ("gdn_conv_any", ANY),
    };
    let kernel = launcher.kernel(Source::Conv, entry, tile, true);
    let geometry = Geometry::rows(spec.v_heads(), launcher.rows, 128).overlapping(true);
    launcher.launch(&kernel, &geometry, &params(launcher, x, ring, y))
}
