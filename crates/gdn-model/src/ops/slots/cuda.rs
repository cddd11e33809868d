//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::cuda::tiles::Geometry;

use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static FILE: File =
    File { name: "slots", text: include_str!("slots.cu"), constants: &["PARTS"] };

/// Neighbouring bytes of a slot, an even number of them.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Part {
    pub(crate) to: u64,
    /// What is copied there; 0 for zeros.
    pub(crate) from: u64,
    pub(crate) bytes: u64,
}

/// What a launch takes: 4 KiB of parameters are the most that there may be.
const PARTS: usize = 128;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Params {
    parts: [Part; PARTS],
}

/// Fills or copies all of `parts`, none of which overlap.
pub(crate) fn slots(gpu: &Gpu, parts: &[Part]) -> Result<()> {
    for parts in parts.chunks(PARTS) {
        let mut params = Params::zeroed();
        params.parts[..parts.len()].copy_from_slice(parts);
        let most = parts.iter().map(|part| part.bytes).max().unwrap_or(0);
        // 64 KiB for a CTA keep it busy a while.
        let ctas = most.div_ceil(64 << 10).clamp(1, 64) as u32;
        let geometry = Geometry {
            grid: [ctas, parts.len() as u32, 1],
            ..Geometry::rows(1, 1, 256).overlapping(true)
        };
        gpu.launch(gpu.kernel(&FILE, "gdn_slots", [PARTS as u32]), &geometry, &params)?;
    }
    Ok(())
}
