use std::sync::Arc;

use crate::{
    DType, Result,
    cuda::{
        Workspace,
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        runtime::Runtime,
        tiles::{ANY, Form, Geometry, Tiled},
    },
    ops::{
        conv::{self, cuda::Ring},
        norm::{self, cuda::Norm},
        packed::cuda::Recurrence,
    },
};

/// The tokens of a batch of sequences.
pub(crate) struct Tokens {
    /// T.
    pub(crate) count: usize,
    /// The address of the first token of each sequence, then T.
    pub(crate) starts: u64,
    /// The address of the sequence of each token.
    pub(crate) sequences: u64,
}

/// The recurrent form. What lies between its steps is f32, so that its bits are
/// those of the fused step.
pub(crate) fn launch(
    launcher: &Launcher<'_>,
    runtime: &Arc<dyn Runtime>,
    workspace: &mut Workspace,
    tokens: &Tokens,
    args: Recurrence,
    ring: Ring,
    z: Strided,
) -> Result<()> {
    let spec = launcher.spec;
    let (count, sequences) = (tokens.count, launcher.rows);
    let (channels, values) = (spec.channels(), spec.value_len());
    let y = workspace.conv.get(runtime, count * channels * 4)?.address();
    let o = workspace.o.get(runtime, count * values * 4)?.address();
    let y = Strided { address: y, stride: channels };

    let conv = params::PrefillConv {
        c: conv::cuda::params(launcher, args.x, ring, y),
        cu: tokens.starts,
        fresh: 0,
        token_seq: tokens.sequences,
        tokens: count as u32,
        pad: 0,
    };
    let step = |entry| launcher.kernel(Source::Prefill, entry, ANY, true);
    let geometry = Geometry::rows(channels.div_ceil(256), count, 256);
    launcher.launch(&step("gdn_prefill_conv"), &geometry, &conv)?;
    let geometry = Geometry::rows(spec.v_heads(), sequences, 128);
    launcher.launch(&step("gdn_prefill_ring"), &geometry, &conv)?;

    let aligned = args.state.is_aligned(launcher.recurrent);
    let (tile, geometry) = launcher.tile(Tiled::Prefill, aligned);
    let entry = if tile.form == Form::Any { "gdn_prefill_any" } else { "gdn_prefill" };
    let p = Recurrence { x: y, out: o, ..args }.params(launcher);
    let params = params::Prefill { p, cu: tokens.starts, fresh: 0 };
    let kernel = launcher.kernel(Source::Prefill, entry, tile, aligned);
    launcher.launch(&kernel, &geometry, &params)?;

    let o = Strided { address: o, stride: values };
    let (out, owner) = (args.out, tokens.sequences);
    let norm = Norm { rows: count, o, o_dtype: DType::F32, z, out, owner };
    norm::cuda::launch(launcher, norm, false)
}
