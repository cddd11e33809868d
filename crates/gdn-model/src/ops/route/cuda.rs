//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use super::MOST_PER_TOKEN;
use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static FILE: File =
    File { name: "route", text: include_str!("route.cu"), constants: &["EXPERTS", "TOP_K"] };

/// See `route.cu`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) logits: u64,
    pub(crate) sequences: u64,
    pub(crate) experts: u64,
    pub(crate) shares: u64,
    pub(crate) order: u64,
    pub(crate) starts: u64,
    pub(crate) active: u64,
    pub(crate) active_count: u64,
    pub(crate) rows: u32,
    pub(crate) stride: u32,
    pub(crate) renormalise: f32,
    pub(crate) pad: u32,
}

/// Up to so many tokens take one launch, which has one multiprocessor alone.
const FEW: usize = 16;
/// Tokens of a CTA of `gdn_route_sort`.
const CHUNK: usize = 128;

/// `top_k` of `experts`, and the shared one, for each row.
pub(crate) fn route(gpu: &Gpu, experts: usize, top_k: usize, params: Params) -> Result<()> {
    assert!(top_k <= MOST_PER_TOKEN.min(experts) && experts <= 512, "a warp holds a token");
    let kernel = |entry| gpu.kernel(&FILE, entry, [experts as u32, top_k as u32]);
    let (rows, all) = (params.rows as usize, experts + 1);
    // Per expert words, then two totals a warp.
    let shared = |words: usize| (words * all * 4 + 32 * 8) as u32;
    if rows <= FEW {
        let threads = all.next_multiple_of(32).max(32 * rows) as u32;
        let geometry = Geometry { shared_bytes: shared(2), ..Geometry::rows(1, 1, threads) };
        return gpu.launch(kernel("gdn_route_few"), &geometry.overlapping(true), &params);
    }
    let geometry = Geometry::rows(1, rows.div_ceil(4), 128).overlapping(true);
    gpu.launch(kernel("gdn_route_choose"), &geometry, &params)?;
    let shared_bytes = shared(2 + CHUNK / 32);
    let geometry = Geometry { shared_bytes, ..Geometry::rows(rows.div_ceil(CHUNK), 1, 1024) };
    gpu.launch(kernel("gdn_route_sort"), &geometry.overlapping(true), &params)
}
