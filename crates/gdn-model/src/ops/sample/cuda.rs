//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static FILE: File =
    File { name: "sample", text: include_str!("sample.cu"), constants: &[] };

/// See `sample.cu`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) logits: u64,
    /// 0: the highest logit wins in all rows, and the arrays up to `steps` are not read.
    pub(crate) temperature: u64,
    pub(crate) top_k: u64,
    pub(crate) top_p: u64,
    pub(crate) min_p: u64,
    pub(crate) seeds: u64,
    pub(crate) steps: u64,
    /// [`scratch_bytes`].
    pub(crate) best: u64,
    pub(crate) tokens: u64,
    pub(crate) stride: u64,
    pub(crate) rows: u32,
    pub(crate) vocab: u32,
    pub(crate) chunks: u32,
    pub(crate) pad: u32,
}

/// Tokens of a CTA of `gdn_sample_scan`.
const CHUNK: usize = 2048;
/// The bytes of `Shared` of `gdn_sample_pick`; the bests of the chunks follow.
const SHARED: usize = (4096 + 256 + 32 + 2) * 8 + (256 + 4) * 4;

pub(crate) fn scratch_bytes(rows: usize, vocab: usize) -> usize {
    rows * vocab.div_ceil(CHUNK) * 8
}

/// As [`cpu::sample`](super::cpu::sample); fills `chunks` in.
pub(crate) fn sample(gpu: &Gpu, params: Params) -> Result<()> {
    let (rows, chunks) = (params.rows as usize, (params.vocab as usize).div_ceil(CHUNK));
    assert!(params.stride.is_multiple_of(4), "logits are read by four");
    let params = Params { chunks: chunks as u32, ..params };
    let scan =
        Geometry { shared_bytes: 8 * 8, ..Geometry::rows(chunks, rows, 256).overlapping(true) };
    gpu.launch(gpu.kernel(&FILE, "gdn_sample_scan", []), &scan, &params)?;
    let shared_bytes = (SHARED + chunks * 8) as u32;
    let pick = Geometry { shared_bytes, ..Geometry::rows(1, rows, 1024).overlapping(true) };
    gpu.launch(gpu.kernel(&FILE, "gdn_sample_pick", []), &pick, &params)
}
