//! The chunked form on a GPU.

use std::sync::Arc;

use super::cuda::{Tokens, norm};
use crate::{
    DType, Result,
    cuda::{
        Workspace,
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        runtime::Runtime,
        tiles::{ANY, CHUNK, Form, Geometry, Tiled, prepare_shared, qk_dtype},
    },
    ops::{
        conv::{self, cuda::Ring},
        packed::cuda::Recurrence,
    },
};

/// Tokens of a strip of the convolution.
const STRIP: usize = 4;

/// What `gdn_chunk_prepare` leaves of a chunk and value head, in floats: two
/// squares, and four factors a token.
const WORK: usize = (2 * CHUNK + 4) * CHUNK;

/// Whether there are kernels for this layer; the recurrent form stands in where
/// there are none.
pub(crate) fn fits(launcher: &Launcher<'_>) -> bool {
    // What is not normalised may be too large for the bits that q and k are kept in.
    let kept = launcher.spec.qk_l2norm() || qk_dtype(launcher.activations) == DType::F32;
    kept && launcher.tile(Tiled::Chunked, true).0.form == Form::Chunk
}

/// What [`fits`] says can be launched.
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
    let (heads, values) = (spec.q_heads(), spec.value_len());
    let qk_bytes = 2 * heads * spec.head_k() * qk_dtype(launcher.activations).size();
    let chunks = tokens.chunks.count as usize;
    let qk = workspace.conv.get(runtime, tokens.count * qk_bytes)?.address();
    let v = workspace.v.get(runtime, tokens.count * values * 4)?.address();
    let o = workspace.o.get(runtime, tokens.count * values * 4)?.address();
    let work = workspace.chunks.get(runtime, chunks * spec.v_heads() * WORK * 4)?.address();
    let parts = params::Chunks { qk, v, ..tokens.chunks };

    let aligned = [args.x, ring.entries].iter().all(|t| t.is_aligned(launcher.activations));
    let kernel = |entry, tile, aligned| launcher.kernel(Source::Chunked, entry, tile, aligned);
    let nowhere = Strided { address: 0, stride: 0 };
    let c = conv::cuda::params(launcher, args.x, ring, nowhere);
    let warps = 2 * heads + spec.v_heads();
    // Each kernel waits for the one before it, but for states, which only the last one writes.
    let geometry = |x, rows, threads| Geometry::rows(x, rows, threads).overlapping(true);
    launcher.launch(
        &kernel("gdn_chunk_conv", ANY, aligned),
        &geometry(warps.div_ceil(8), chunks * (CHUNK / STRIP), 256),
        &params::ChunkConv { c, chunks: parts },
    )?;

    // The products of a q/k head serve all its value heads, but few CTAs leave a GPU idle.
    let idle = chunks * heads < 4 * launcher.runtime.gpu().multiprocessors as usize;
    let groups = if idle { spec.head_ratio() } else { 1 };
    let shared_bytes = prepare_shared(spec.head_k(), launcher.activations) as u32;
    let geometry = Geometry { shared_bytes, ..geometry(heads * groups, chunks, 128) };
    let p = Recurrence { out: o, ..args }.params(launcher);
    let params = params::Chunk { p, r: c.r, chunks: parts, work, groups: groups as u32, pad: 0 };
    launcher.launch(&kernel("gdn_chunk_prepare", ANY, true), &geometry, &params)?;
    let (tile, geometry) = launcher.tile(Tiled::Chunked, true);
    launcher.launch(
        &kernel("gdn_chunk_state", tile, true),
        &geometry.overlapping(true),
        &params,
    )?;
    norm(launcher, tokens, o, z, args.out)
}
