use std::sync::Arc;

use crate::{
    DType, Result,
    cuda::{
        Workspace,
        kernel::Source,
        launch::{Launcher, Strided},
        params,
        runtime::Runtime,
        stage::Buffer,
        tiles::{ANY, CHUNK, Form, Geometry, Tiled},
    },
    ops::{
        conv::{self, cuda::Ring},
        norm::{self, cuda::Norm},
        packed::cuda::Recurrence,
    },
};

/// The tokens of a batch of sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    /// T.
    pub(crate) count: usize,
    /// The address of the sequence of each token.
    sequences: u64,
    /// Where sequences and their chunks start.
    pub(crate) chunks: params::Chunks,
}

/// What the kernels look up of the last call's tokens: all layers of a model take the same.
#[derive(Debug, Default)]
pub(crate) struct LastTokens {
    lengths: Vec<usize>,
    buffer: Buffer,
}

impl LastTokens {
    /// Uploads what the kernels look up, unless it is there.
    pub(crate) fn get(&mut self, runtime: &Arc<dyn Runtime>, lengths: &[usize]) -> Result<Tokens> {
        let (sequences, tokens) = (lengths.len(), lengths.iter().sum());
        let chunks: usize = lengths.iter().map(|length| length.div_ceil(CHUNK)).sum();
        // Where sequences start, their first chunks, each token's sequence, each chunk's.
        let parts = [sequences + 1, sequences, tokens, chunks];
        let block = self.buffer.get(runtime, 4 * parts.iter().sum::<usize>())?;
        let at = |n: usize| block.address() + 4 * parts[..n].iter().sum::<usize>() as u64;
        let chunks = params::Chunks {
            cu: at(0),
            first: at(1),
            seq: at(3),
            qk: 0,
            v: 0,
            count: chunks as u32,
            pad: 0,
        };
        let tokens = Tokens { count: tokens, sequences: at(2), chunks };
        if self.lengths != lengths {
            self.lengths.clear();
            block.upload(0, bytemuck::cast_slice(&lookup(lengths).concat()))?;
            lengths.clone_into(&mut self.lengths);
        }
        Ok(tokens)
    }
}

fn lookup(lengths: &[usize]) -> [Vec<i32>; 4] {
    let (mut starts, mut first) = (vec![0], Vec::with_capacity(lengths.len()));
    let (mut sequences, mut chunks) = (Vec::new(), Vec::new());
    for (sequence, &length) in lengths.iter().enumerate() {
        first.push(chunks.len() as i32);
        let of = |count| std::iter::repeat_n(sequence as i32, count);
        sequences.extend(of(length));
        chunks.extend(of(length.div_ceil(CHUNK)));
        starts.push(sequences.len() as i32);
    }
    [starts, first, sequences, chunks]
}

/// The recurrent form.
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
    let (count, channels, values) = (tokens.count, spec.channels(), spec.value_len());
    // What lies between the steps is f32, so that the bits are those of the fused step.
    let y = workspace.conv.get(runtime, count * channels * 4)?.address();
    let o = workspace.o.get(runtime, count * values * 4)?.address();
    let y = Strided { address: y, stride: channels };

    let conv = conv::cuda::params(launcher, args.x, ring, y);
    let geometry = Geometry::rows(channels.div_ceil(256), count, 256);
    let kernel = launcher.kernel(Source::Prefill, "gdn_prefill_conv", ANY, true);
    launcher.launch(&kernel, &geometry, &conv_params(tokens, conv))?;
    move_ring(launcher, tokens, conv)?;

    let aligned = args.state.is_aligned(launcher.recurrent);
    let (tile, geometry) = launcher.tile(Tiled::Prefill, aligned);
    let entry = if tile.form == Form::Any { "gdn_prefill_any" } else { "gdn_prefill" };
    let p = Recurrence { x: y, out: o, ..args }.params(launcher);
    let params = params::Prefill { p, cu: tokens.chunks.cu, fresh: 0 };
    let kernel = launcher.kernel(Source::Prefill, entry, tile, aligned);
    launcher.launch(&kernel, &geometry, &params)?;
    norm(launcher, tokens, o, z, args.out)
}

fn conv_params(tokens: &Tokens, c: params::Conv) -> params::PrefillConv {
    params::PrefillConv {
        c,
        cu: tokens.chunks.cu,
        fresh: 0,
        token_seq: tokens.sequences,
        tokens: tokens.count as u32,
        pad: 0,
    }
}

/// Behind the convolution, which reads what this overwrites.
fn move_ring(launcher: &Launcher<'_>, tokens: &Tokens, conv: params::Conv) -> Result<()> {
    let geometry = Geometry::rows(launcher.spec.v_heads(), launcher.rows, 128);
    let kernel = launcher.kernel(Source::Prefill, "gdn_prefill_ring", ANY, true);
    launcher.launch(&kernel, &geometry, &conv_params(tokens, conv))
}

/// Of the f32 outputs at `o`.
pub(super) fn norm(
    launcher: &Launcher<'_>,
    tokens: &Tokens,
    o: u64,
    z: Strided,
    out: u64,
) -> Result<()> {
    let o = Strided { address: o, stride: launcher.spec.value_len() };
    let owner = tokens.sequences;
    let norm = Norm { rows: tokens.count, o, o_dtype: DType::F32, z, out, owner };
    // Neither form's last kernel writes slots.
    norm::cuda::launch(launcher, norm, true)
}
