//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::{DType, cuda::tiles::Geometry};

use crate::{
    Result,
    cuda::{File, Gpu},
    ops::linear::cuda::Tile,
};

pub(crate) static FILE: File = File {
    name: "experts",
    text: include_str!("experts.cu"),
    constants: &["FORM", "SWIGLU", "ROWS16", "PAIRS8", "AHEAD", "WARPS"],
};

/// Which pairs each expert has, in i32 on the GPU. A pair is `token · places + place`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routing {
    /// Pairs by expert, `[tokens · places]`; tokens of padding have none.
    pub(crate) order: u64,
    /// Where each expert's pairs start, and the end: `[experts + 2]`.
    pub(crate) starts: u64,
    /// The experts that have some, ascending: `[experts + 1]`.
    pub(crate) active: u64,
    /// How many these are.
    pub(crate) active_count: u64,
    pub(crate) tokens: usize,
    /// Experts of a token, with the shared one.
    pub(crate) places: usize,
    /// Routed experts; the shared one has this number.
    pub(crate) experts: usize,
}

/// A product of every expert with its pairs. Alignment as for `linear`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args {
    pub(crate) routing: Routing,
    /// `[experts, outputs, k]` in bf16; for [`up`] `[experts, 2·outputs, k]`.
    pub(crate) w: u64,
    /// `[shared_outputs, shared_k]`; for [`up`] `[2·shared_outputs, shared_k]`.
    pub(crate) shared_w: u64,
    /// A row for each token for [`up`], for each pair for [`down`].
    pub(crate) x: u64,
    /// A row for each pair.
    pub(crate) y: u64,
    pub(crate) x_stride: usize,
    pub(crate) y_stride: usize,
    pub(crate) outputs: usize,
    pub(crate) shared_outputs: usize,
    pub(crate) k: usize,
    pub(crate) shared_k: usize,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Params {
    w: u64,
    shared_w: u64,
    x: u64,
    y: u64,
    order: u64,
    starts: u64,
    active: u64,
    active_count: u64,
    x_stride: i64,
    y_stride: i64,
    outputs: u32,
    shared_outputs: u32,
    k: u32,
    shared_k: u32,
    experts: u32,
    places: u32,
    per_cta: u32,
    shared_tiles: u32,
}

/// `y[pair] = silu(gate)·up` of the pair's token.
pub(crate) fn up(gpu: &Gpu, args: Args) -> Result<()> {
    launch(gpu, args, true, tile(gpu, args, true))
}

/// `y[pair] = x[pair]·downᵀ`. It runs behind [`up`] and that behind the routing, with
/// no other kernel between: it reads the routing before `up` is complete.
pub(crate) fn down(gpu: &Gpu, args: Args) -> Result<()> {
    launch(gpu, args, false, tile(gpu, args, false))
}

/// The tile for as many pairs as an expert has on average, and then some.
fn tile(gpu: &Gpu, args: Args, up: bool) -> Tile {
    let facts = gpu.runtime.gpu();
    let Routing { tokens, places, experts, .. } = args.routing;
    let average = tokens * (places - 1) / experts.max(1);
    let shared =
        |warps, rows16, ahead| Tile::Shared { warps, rows16, pairs8: 4, ahead, cluster: 1 };
    let grouped = |groups, pairs8, ahead, fed| {
        let rows = groups * 64;
        Tile::Groups { groups, rows, pairs8, ahead, cluster: 1, fed }
    };
    let tile = match (average, facts.has_wgmma()) {
        _ if gpu.activations != DType::BF16 => return Tile::Plain,
        (0..=1, true) => grouped(1, 1, if up { 8 } else { 5 }, false),
        (2..=20, true) => grouped(1, 4, 4, false),
        (21..=48, true) => grouped(2, 8, 4, false),
        (_, true) => grouped(2, 12, 6, true),
        (0..=1, false) => Tile::Stream { rows16: 1, pairs8: 1, ahead: 5, ctas: 0 },
        (2..=31, false) => shared((4, 1), 1, 6),
        (_, false) => shared((2, 2), 4, 4),
    };
    tile.fitting(facts.shared_bytes)
}

pub(super) fn launch(gpu: &Gpu, args: Args, up: bool, tile: Tile) -> Result<()> {
    let Args { routing, outputs, shared_outputs, k, shared_k, x_stride, y_stride, .. } = args;
    let Routing { tokens, places, experts, .. } = routing;
    assert!(
        k.is_multiple_of(32) && shared_k.is_multiple_of(32),
        "weights are read 16 bytes at a time"
    );
    assert!((x_stride * gpu.activations.size()).is_multiple_of(16), "rows of x are aligned");
    if tokens == 0 {
        return Ok(());
    }
    let (form, [rows16, pairs8, ahead, warps, _]) = tile.constants();
    let (weight_rows, pairs) = tile.size();
    let mut per_cta = if up && form != 2 { weight_rows / 2 } else { weight_rows };
    if form == 0 && !up {
        per_cta *= 2; // k is short: a CTA is hardly begun when it ends
    }
    let shared_tiles = tokens.div_ceil(pairs as usize);
    let slots = shared_tiles + experts.min(tokens * (places - 1));
    let geometry = Geometry {
        grid: [outputs.max(shared_outputs).div_ceil(per_cta as usize) as u32, slots as u32, 1],
        threads: tile.threads(),
        shared_bytes: tile.shared_bytes(),
        cluster: 1,
        overlap: true,
    };
    let params = Params {
        w: args.w,
        shared_w: args.shared_w,
        x: args.x,
        y: args.y,
        order: routing.order,
        starts: routing.starts,
        active: routing.active,
        active_count: routing.active_count,
        x_stride: x_stride as i64,
        y_stride: y_stride as i64,
        outputs: outputs as u32,
        shared_outputs: shared_outputs as u32,
        k: k as u32,
        shared_k: shared_k as u32,
        experts: experts as u32,
        places: if up { places as u32 } else { 1 },
        per_cta,
        shared_tiles: shared_tiles as u32,
    };
    let entry = tile.entry(["gdn_experts_stream", "gdn_experts_tile", "gdn_experts_plain"]);
    let kernel = gpu.kernel(&FILE, entry, [form, up.into(), rows16, pairs8, ahead, warps]);
    gpu.launch(kernel, &geometry, &params)
}
