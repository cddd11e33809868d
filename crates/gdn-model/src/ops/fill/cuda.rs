//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use crate::{
    Result,
    cuda::{File, Gpu},
    weights::Dummy,
};

pub(crate) static FILE: File = File { name: "fill", text: include_str!("fill.cu"), constants: &[] };

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Params {
    out: u64,
    n: u64,
    seed: u64,
    first: u64,
    scale: f32,
    pad: u32,
}

/// Fills the `n` bf16 at `out`, aligned to 16 bytes, with the elements of a dummy from
/// `first` on, as [`cpu::fill`](super::cpu::fill) does.
pub(crate) fn fill(gpu: &Gpu, out: u64, n: usize, dummy: Dummy, first: usize) -> Result<()> {
    assert!(first.is_multiple_of(4), "four elements have one hash");
    let most = 8 * gpu.runtime.gpu().multiprocessors as usize;
    let ctas = n.div_ceil(8 * 256).clamp(1, most);
    let geometry = Geometry::rows(ctas, 1, 256).overlapping(true);
    let Dummy { seed, scale } = dummy;
    let params = Params { out, n: n as u64, seed, first: first as u64, scale, pad: 0 };
    gpu.launch(gpu.kernel(&FILE, "gdn_fill", []), &geometry, &params)
}
