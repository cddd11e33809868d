//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static FILE: File =
    File { name: "norm", text: include_str!("norm.cu"), constants: &["HIDDEN"] };

/// See `norm.cu`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) x: u64,
    /// 0 where there is none.
    pub(crate) delta: u64,
    /// Of experts alone.
    pub(crate) shares: u64,
    /// 0 for all rows.
    pub(crate) picked: u64,
    pub(crate) factor: u64,
    pub(crate) out: u64,
    /// Rows of `out`.
    pub(crate) rows: u32,
    /// Rows of `x`.
    pub(crate) of: u32,
    /// Of experts alone.
    pub(crate) places: u32,
    pub(crate) eps: f32,
}

/// As [`cpu::add_norm`](super::cpu::add_norm).
pub(crate) fn add_norm(gpu: &Gpu, hidden: usize, params: Params) -> Result<()> {
    launch(gpu, "gdn_add_norm", hidden, params)
}

/// As [`cpu::experts_norm`](super::cpu::experts_norm).
pub(crate) fn experts_norm(gpu: &Gpu, hidden: usize, params: Params) -> Result<()> {
    launch(gpu, "gdn_experts_norm", hidden, params)
}

fn launch(gpu: &Gpu, entry: &'static str, hidden: usize, params: Params) -> Result<()> {
    let kernel = gpu.kernel(&FILE, entry, [hidden as u32]);
    let geometry = Geometry {
        shared_bytes: 32,
        ..Geometry::rows(1, params.rows as usize, 256).overlapping(true)
    };
    gpu.launch(kernel, &geometry, &params)
}
