//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static FILE: File =
    File { name: "qkv", text: include_str!("qkv.cu"), constants: &["HEAD_DIM", "HALF"] };

/// See `qkv.cu`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) p: u64,
    pub(crate) q_norm: u64,
    pub(crate) k_norm: u64,
    pub(crate) frequencies: u64,
    pub(crate) positions: u64,
    pub(crate) sequences: u64,
    pub(crate) table: u64,
    pub(crate) q: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) stride: u64,
    pub(crate) rows: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) max_pages: u32,
    pub(crate) pages: u32,
    pub(crate) eps: f32,
}

/// For heads of `head_dim`, the first `2 * half` dims of which are rotated.
pub(crate) fn qkv(gpu: &Gpu, head_dim: usize, half: usize, params: Params) -> Result<()> {
    assert!(head_dim.is_multiple_of(32) && head_dim <= 256, "a warp holds a head");
    let kernel = gpu.kernel(&FILE, "gdn_qkv", [head_dim as u32, half as u32]);
    let heads = (params.heads + 2 * params.kv_heads) as usize;
    let geometry = Geometry {
        shared_bytes: ((2 + 8 * 2) * half * 4) as u32,
        ..Geometry::rows(heads.div_ceil(8), params.rows as usize, 256).overlapping(true)
    };
    gpu.launch(kernel, &geometry, &params)
}
