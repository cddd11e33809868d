//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static FILE: File =
    File { name: "embed", text: include_str!("embed.cu"), constants: &["HIDDEN"] };

/// See `embed.cu`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) x: u64,
    pub(crate) table: u64,
    pub(crate) tokens: u64,
    pub(crate) rows: u32,
    pub(crate) vocab: u32,
}

pub(crate) fn embed(gpu: &Gpu, hidden: usize, params: Params) -> Result<()> {
    let kernel = gpu.kernel(&FILE, "gdn_embed", [hidden as u32]);
    let geometry = Geometry::rows(1, params.rows as usize, 128).overlapping(true);
    gpu.launch(kernel, &geometry, &params)
}
