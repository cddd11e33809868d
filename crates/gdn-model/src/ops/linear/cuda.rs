//! On a GPU.

use bytemuck::{Pod, Zeroable};
use gdn::{
    DType,
    cuda::tiles::{self, Geometry},
};

use crate::{
    Result,
    cuda::{File, Gpu, Kernel},
};

pub(crate) static FILE: File = File {
    name: "linear",
    text: include_str!("linear.cu"),
    constants: &["FORM", "SWIGLU", "OUT_F32", "ROWS16", "PAIRS8", "AHEAD", "WARPS", "CLUSTER"],
};

/// A product of rows with a weight. Addresses and `x_stride` are multiples of 16
/// bytes, `k` of 32; strides count elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args {
    /// `[outputs, k]` in bf16; of a gated product `[2·outputs, k]`, gate rows first.
    pub(crate) w: u64,
    /// `[rows, k]` in activations.
    pub(crate) x: u64,
    /// `[rows, outputs]` in activations, or f32 for [`Args::f32_out`].
    pub(crate) y: u64,
    pub(crate) x_stride: usize,
    pub(crate) y_stride: usize,
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    pub(crate) k: usize,
    pub(crate) f32_out: bool,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Params {
    w: u64,
    x: u64,
    y: u64,
    x_stride: i64,
    y_stride: i64,
    outputs: u32,
    k: u32,
    rows: u32,
    per_tile: u32,
}

/// How a product lies on the GPU. No choice changes a bit of the result: see
/// `linear.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tile {
    /// Weights stream past `pairs8 · 8` rows of x at a time, `rows16 · 16` weight rows
    /// of a CTA at a time, of which it loads `ahead` units.
    Stream { rows16: u32, pairs8: u32, ahead: u32, ctas: u32 },
    /// `rows16 · 16` weight rows and `pairs8 · 8` rows of x for each of `warps.0` times
    /// `warps.1` warps, in `cluster` CTAs.
    Shared { warps: (u32, u32), rows16: u32, pairs8: u32, ahead: u32, cluster: u32 },
    /// The same in groups of four warps, whose products are `wgmma`'s: 64 weight rows
    /// each, and all together `pairs8 · 8` rows of x. A CTA has `rows` weight rows.
    /// Those that are `fed` are two, by four more warps, which copy.
    Groups { groups: u32, rows: u32, pairs8: u32, ahead: u32, cluster: u32, fed: bool },
    /// Plain f32.
    Plain,
}

use Tile::{Groups, Plain, Shared, Stream};

impl Tile {
    /// The tile for so many rows, outputs (two weight rows each if `gated`) and terms.
    pub(crate) fn of(gpu: &tiles::Gpu, rows: usize, outputs: usize, gated: bool) -> Self {
        let sms = gpu.multiprocessors;
        let weight_rows = (outputs << u32::from(gated)) as u32;
        let tile = if gpu.has_wgmma() {
            Self::with_wgmma(sms, rows, weight_rows, gated)
        } else {
            Self::without(gpu, rows, outputs, weight_rows)
        };
        tile.fitting(gpu.shared_bytes)
    }

    /// Where four warps have products together.
    fn with_wgmma(sms: u32, rows: usize, weight_rows: u32, gated: bool) -> Self {
        // Two CTAs to a multiprocessor.
        let narrow =
            |pairs8, ahead| Groups { groups: 1, rows: 64, pairs8, ahead, cluster: 1, fed: false };
        // Few weight rows keep all of them busy with a quarter of the terms in each CTA.
        let split = |pairs8, ahead| {
            let even = 8 << u32::from(gated);
            let rows = (4 * weight_rows).div_ceil(sms).next_multiple_of(even).min(64);
            Groups { groups: 1, rows, pairs8, ahead, cluster: 4, fed: false }
        };
        let wide =
            |pairs8, ahead| Groups { groups: 2, rows: 128, pairs8, ahead, cluster: 1, fed: true };
        let tiles = |tile: Self| tile.tiles(rows, weight_rows);
        match (rows, weight_rows >= 48 * sms) {
            (0..=8, true) => narrow(1, 6),
            (0..=8, false) => split(1, 8),
            (9..=16, true) => narrow(2, 6),
            (9..=16, false) => split(2, 6),
            (17..=32, true) => narrow(4, 7),
            (17..=32, false) => split(4, 5),
            (33..=64, true) => narrow(8, 6),
            // Three CTAs to a multiprocessor where two would not do.
            (33..=64, false) => split(8, if tiles(narrow(8, 6)) > sms / 2 { 4 } else { 6 }),
            (65..=96, true) => narrow(12, 5),
            (65..=96, false) => split(12, 5),
            _ if tiles(split(16, 4)) * 2 <= sms => split(16, 4),
            _ => {
                // Rounds of all multiprocessors; one of the wider tiles takes 1.35 times as long.
                let rounds = |tile| tiles(tile).div_ceil(sms);
                let (square, wider) = (wide(16, 6), wide(24, 5));
                if 27 * rounds(wider) < 20 * rounds(square) { wider } else { square }
            }
        }
    }

    fn without(gpu: &tiles::Gpu, rows: usize, outputs: usize, weight_rows: u32) -> Self {
        let sms = gpu.multiprocessors;
        // Many outputs keep every multiprocessor busy with shorter looks ahead.
        let many = weight_rows >= 32 * sms;
        let stream = |rows16: u32, pairs8, ahead, ctas| {
            // At least 8 weight rows for a CTA, but something for every multiprocessor.
            let few = (weight_rows / 8).max(sms).min(outputs as u32);
            Stream { rows16, pairs8, ahead, ctas: few.min(ctas * sms).max(1) }
        };
        let shared = |rows16, ahead| Shared { warps: (2, 2), rows16, pairs8: 4, ahead, cluster: 1 };
        // All rows of x, so that w is read once.
        let whole = |rows16, ahead| {
            let pairs8 = (rows as u32).div_ceil(16);
            Shared { warps: (2, 2), rows16, pairs8, ahead, cluster: 1 }
        };
        let wide = Shared { warps: (2, 4), rows16: 3, pairs8: 4, ahead: 7, cluster: 1 };
        let tiles = |tile: Self| tile.tiles(rows, weight_rows);
        match (rows, many) {
            (0..=8, true) => stream(1, 1, 5, 5),
            (0..=8, false) => stream(1, 1, 8, 3),
            (9..=16, true) => stream(1, 2, 5, 4),
            (9..=16, false) => stream(1, 2, 8, 3),
            (17..=32, true) => stream(1, 4, 5, 3),
            (17..=32, false) => stream(1, 4, 8, 2),
            (33..=64, true) => shared(1, 6),
            (33..=64, false) if gpu.is_sm90() => shared(1, 5).clustered(),
            (33..=64, false) => shared(2, 6),
            (65..=96, true) if tiles(whole(3, 8)) <= sms => whole(3, 8),
            (65..=96, false) if gpu.is_sm90() && tiles(whole(2, 6)) * 8 >= sms => {
                whole(2, 6).clustered()
            }
            (97..=128, true) if tiles(wide) <= sms => wide,
            _ => {
                let (small, large) = (shared(2, 6), shared(4, 4));
                match tiles(small) {
                    // Three CTAs in a multiprocessor: not every two have a cluster's place.
                    n if n * 2 <= sms && gpu.is_sm90() => shared(2, 4).clustered(),
                    _ if tiles(large) <= 2 * sms => small,
                    _ => large,
                }
            }
        }
    }

    fn clustered(mut self) -> Self {
        if let Shared { cluster, .. } = &mut self {
            *cluster = 4;
        }
        self
    }

    /// Looks less far ahead where shared memory is small.
    pub(crate) fn fitting(mut self, shared_bytes: u32) -> Self {
        while self.shared_bytes() > shared_bytes {
            match &mut self {
                Stream { ahead, .. } | Shared { ahead, .. } if *ahead > 2 => *ahead -= 1,
                _ => return self,
            }
        }
        self
    }

    /// Weight rows and rows of x of a CTA.
    pub(crate) fn size(self) -> (u32, u32) {
        match self {
            Stream { rows16, pairs8, .. } => (rows16 * 16, pairs8 * 8),
            Shared { warps, rows16, pairs8, .. } => (warps.0 * rows16 * 16, warps.1 * pairs8 * 8),
            Groups { rows, pairs8, .. } => (rows, pairs8 * 8),
            Plain => (4, 8),
        }
    }

    fn tiles(self, rows: usize, weight_rows: u32) -> u32 {
        let (m, n) = self.size();
        weight_rows.div_ceil(m) * rows.div_ceil(n as usize) as u32
    }

    pub(crate) fn threads(self) -> u32 {
        match self {
            Shared { warps, .. } => warps.0 * warps.1 * 32,
            Groups { groups, fed, .. } => (groups + u32::from(fed)) * 128,
            Stream { .. } | Plain => 128,
        }
    }

    fn cluster(self) -> u32 {
        match self {
            Shared { cluster, .. } | Groups { cluster, .. } => cluster,
            Stream { .. } | Plain => 1,
        }
    }

    /// What `BYTES` is in `linear.cuh`.
    pub(crate) fn shared_bytes(self) -> u32 {
        let (mut m, n) = self.size();
        match self {
            Stream { rows16, pairs8, ahead, .. } => 8192 * rows16 * ahead + 4096 * rows16 * pairs8,
            Shared { ahead, cluster, .. } | Groups { ahead, cluster, .. } => {
                let mut barriers = 0;
                if let Groups { groups, fed, .. } = self {
                    m = groups * 64;
                    barriers = if fed { 16 * ahead + 16 } else { 0 };
                }
                let sums = if cluster > 1 { m * n * 4 } else { 0 };
                sums.max(ahead * (m + n) * 128) + barriers
            }
            Plain => 0,
        }
    }

    /// Of the kernels that stream, have tiles and are plain, the one that it runs in.
    pub(crate) fn entry(self, [stream, tile, plain]: [&'static str; 3]) -> &'static str {
        match self {
            Stream { .. } => stream,
            Shared { .. } | Groups { .. } => tile,
            Plain => plain,
        }
    }

    /// `FORM`, and the constants from `ROWS16` on.
    pub(crate) fn constants(self) -> (u32, [u32; 5]) {
        match self {
            Stream { rows16, pairs8, ahead, .. } => (0, [rows16, pairs8, ahead, 0, 1]),
            Shared { warps, rows16, pairs8, ahead, cluster } => {
                (1, [rows16, pairs8, ahead, warps.0 * 10 + warps.1, cluster])
            }
            Groups { groups, pairs8, ahead, cluster, fed, .. } => {
                (3 + u32::from(fed), [1, pairs8, ahead, groups * 40 + 1, cluster])
            }
            Plain => (2, [0; 5]),
        }
    }
}

/// `y = x·wᵀ`.
pub(crate) fn linear(gpu: &Gpu, args: Args) -> Result<()> {
    launch(gpu, args, false, tile(gpu, args, false))
}

/// `y = silu(gate)·up`.
pub(crate) fn swiglu(gpu: &Gpu, args: Args) -> Result<()> {
    launch(gpu, args, true, tile(gpu, args, true))
}

fn tile(gpu: &Gpu, args: Args, gated: bool) -> Tile {
    match gpu.activations {
        DType::BF16 => Tile::of(gpu.runtime.gpu(), args.rows, args.outputs, gated),
        _ => Plain,
    }
}

pub(super) fn launch(gpu: &Gpu, args: Args, gated: bool, tile: Tile) -> Result<()> {
    let Args { w, x, y, x_stride, y_stride, rows, outputs, k, f32_out } = args;
    assert!(
        k.is_multiple_of(32) && w % 16 == 0 && x % 16 == 0,
        "weights are read 16 bytes at a time"
    );
    assert!((x_stride * gpu.activations.size()).is_multiple_of(16), "rows of x are aligned");
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let weight_rows = (outputs << u32::from(gated)) as u32;
    let ctas = match tile {
        Stream { ctas, .. } => ctas,
        Shared { .. } | Groups { .. } => tile.tiles(rows, weight_rows) * tile.cluster(),
        Plain => outputs.div_ceil(4) as u32,
    };
    let geometry = Geometry {
        shared_bytes: tile.shared_bytes(),
        cluster: tile.cluster(),
        ..Geometry::rows(ctas as usize, 1, tile.threads()).overlapping(true)
    };
    let params = Params {
        w,
        x,
        y,
        x_stride: x_stride as i64,
        y_stride: y_stride as i64,
        outputs: outputs as u32,
        k: k as u32,
        rows: rows as u32,
        per_tile: tile.size().0 >> u32::from(gated),
    };
    gpu.launch(kernel(gpu, gated, f32_out, tile), &geometry, &params)
}

fn kernel(gpu: &Gpu, gated: bool, f32_out: bool, tile: Tile) -> Kernel {
    let (form, [rows16, pairs8, ahead, warps, cluster]) = tile.constants();
    let entry = tile.entry(["gdn_linear_stream", "gdn_linear_tile", "gdn_linear_plain"]);
    let constants = [form, gated.into(), f32_out.into(), rows16, pairs8, ahead, warps, cluster];
    gpu.kernel(&FILE, entry, constants)
}
