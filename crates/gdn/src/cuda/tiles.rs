//! Which tile each kernel runs in, and the launch that follows from it: the one
//! table that the backend, the emulator's tests and the budget read. `tiles.md`
//! says where the choices come from.

use std::{fmt, str::FromStr};

use crate::{DType, LayerSpec};

/// What tiles depend on in a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its name, for people.
    pub name: String,
    /// Compute capability: 90 for 9.0.
    pub capability: u32,
    /// Its streaming multiprocessors.
    pub multiprocessors: u32,
    /// The shared memory that a CTA may have, in bytes.
    pub shared_bytes: u32,
    /// The peak rate of its memory, in GB/s; 0 where it is not known.
    pub memory_gb_s: u32,
}

impl Gpu {
    /// Whether it has bulk copies, mbarriers, clusters and dependent launches.
    pub fn is_sm90(&self) -> bool {
        self.capability >= 90
    }

    /// Whether it has products of four warps, `wgmma`: those of 9.0 alone do.
    pub fn has_wgmma(&self) -> bool {
        self.capability == 90
    }
}

/// The operators whose kernels lie on the GPU in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiled {
    /// The recurrence of split decode.
    Split,
    /// Packed decode.
    Packed,
    /// The fused layer step.
    Fused,
    /// The recurrence of prefill.
    Prefill,
    /// Prefill in chunks.
    Chunked,
}

/// How a kernel lies on the GPU; `README.md` has the macros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Which of an operator's kernels.
    pub form: Form,
    /// Warps of a CTA that update state.
    pub warps: u32,
    /// State rows of a warp.
    pub rows: u32,
    /// Pieces in flight, of a stream.
    pub stages: u32,
    /// Items of a (row, value head), of a stream.
    pub split: u32,
    /// CTAs of a (row, value head), of a direct fused step.
    pub cluster: u32,
    /// CTAs of a multiprocessor, of a stream.
    pub ctas: u32,
    /// What L2 is told of the state.
    pub hint: u32,
}

/// The kernels of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// State straight to registers.
    Direct,
    /// Persistent CTAs and bulk copies.
    Stream,
    /// Any head dims.
    Any,
    /// Chunks of tokens, in matrix products.
    Chunk,
}

/// A direct tile.
pub const fn direct(warps: u32, rows: u32, cluster: u32, hint: u32) -> Tile {
    Tile { form: Form::Direct, warps, rows, stages: 1, split: 1, cluster, ctas: 1, hint }
}

/// A stream.
pub const fn stream(warps: u32, rows: u32, stages: u32, split: u32, ctas: u32, hint: u32) -> Tile {
    Tile { form: Form::Stream, warps, rows, stages, split, cluster: 1, ctas, hint }
}

/// Prefill in chunks; with a split of 2, other warps make the outputs.
pub const fn chunk(warps: u32, stages: u32, split: u32) -> Tile {
    Tile { form: Form::Chunk, warps, rows: 16, stages, split, ..ANY }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, warps, rows, stages, split, cluster, ctas, hint } = self;
        match form {
            Form::Direct => write!(f, "direct w{warps} r{rows} c{cluster} h{hint}"),
            Form::Stream => {
                write!(f, "stream w{warps} r{rows} s{stages} p{split} /{ctas} h{hint}")
            }
            Form::Any => f.write_str("any"),
            Form::Chunk => write!(f, "chunk w{warps} s{stages} p{split}"),
        }
    }
}

impl FromStr for Tile {
    type Err = String;

    /// Reads what `Display` writes; numbers that are left out are 1.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let form = match words.next() {
            Some("direct") => Form::Direct,
            Some("stream") => Form::Stream,
            Some("chunk") => Form::Chunk,
            _ => return Err("expected `direct w4 r8 c1 h1` or `stream w2 r8 s8 p8 /3 h2`".into()),
        };
        let rows = if form == Form::Chunk { 16 } else { 1 };
        let mut tile = Self { form, warps: 1, rows, stages: 1, ..ANY };
        for word in words {
            let (name, number) = word.split_at_checked(1).unwrap_or_default();
            let number = number.parse().map_err(|_| format!("{word}: expected a number"))?;
            *match name {
                "w" => &mut tile.warps,
                "r" => &mut tile.rows,
                "s" => &mut tile.stages,
                "p" => &mut tile.split,
                "c" => &mut tile.cluster,
                "/" => &mut tile.ctas,
                "h" => &mut tile.hint,
                _ => return Err(format!("{word}: expected one of w r s p c / h")),
            } = number;
        }
        Ok(tile)
    }
}

/// The kernel for any head dims.
pub const ANY: Tile =
    Tile { form: Form::Any, warps: 8, rows: 1, stages: 1, split: 1, cluster: 1, ctas: 1, hint: 1 };

/// A line of the table. The first that fits is taken.
struct Line {
    operator: Tiled,
    /// The least compute capability.
    from: u32,
    /// K and V.
    dims: (u32, u32),
    /// Whether state is f32, else 16 bits wide, if that matters.
    f32_state: Option<bool>,
    /// Whether activations are f32, if that matters.
    f32_activations: Option<bool>,
    /// The least peak rate of the memory, in GB/s.
    from_gb_s: u32,
    /// The most (row, value head) pairs, on a GPU of 132 multiprocessors.
    pairs: usize,
    tile: Tile,
}

const MORE: usize = usize::MAX;

const fn line(
    operator: Tiled,
    from: u32,
    dim: u32,
    f32_state: bool,
    pairs: usize,
    tile: Tile,
) -> Line {
    let (dims, f32_activations, from_gb_s) = ((dim, dim), None, 0);
    let f32_state = Some(f32_state);
    Line { operator, from, dims, f32_state, f32_activations, from_gb_s, pairs, tile }
}

/// Whatever the dtypes and the batch.
const fn default(operator: Tiled, from: u32, dim: u32, tile: Tile) -> Line {
    Line { f32_state: None, ..line(operator, from, dim, false, MORE, tile) }
}

const fn chunked(pairs: usize, tile: Tile) -> Line {
    Line { pairs, ..default(Chunked, 80, 128, tile) }
}

use Tiled::{Chunked, Fused, Packed, Prefill, Split};

/// Measured on sm_90 with K = V = 128; what is before and beside it are defaults
/// that fit.
const TABLE: &[Line] = &[
    line(Packed, 90, 128, true, 2048, direct(1, 8, 1, 2)),
    // Ahead by 2 % on an H200 (HBM3e), behind by 4 % on an H100.
    Line { from_gb_s: 4000, ..line(Packed, 90, 128, true, MORE, stream(2, 8, 7, 8, 3, 2)) },
    line(Packed, 90, 128, true, MORE, direct(2, 4, 1, 2)),
    line(Packed, 90, 128, false, 64, direct(1, 4, 1, 2)),
    line(Packed, 90, 128, false, MORE, direct(4, 8, 1, 2)),
    default(Packed, 0, 128, direct(4, 8, 1, 1)),
    default(Packed, 0, 64, direct(4, 8, 1, 1)),
    default(Packed, 0, 256, direct(4, 8, 1, 1)),
    line(Split, 90, 128, true, MORE, direct(1, 8, 1, 2)),
    line(Split, 90, 128, false, 64, direct(1, 4, 1, 2)),
    line(Split, 90, 128, false, MORE, direct(4, 8, 1, 2)),
    default(Split, 0, 128, direct(4, 8, 1, 1)),
    default(Split, 0, 64, direct(4, 8, 1, 1)),
    default(Split, 0, 256, direct(4, 8, 1, 1)),
    line(Fused, 90, 128, true, 64, direct(4, 8, 4, 2)),
    line(Fused, 90, 128, true, 512, direct(4, 16, 2, 1)),
    line(Fused, 90, 128, true, 2048, stream(8, 4, 12, 1, 1, 2)),
    line(Fused, 90, 128, true, MORE, direct(4, 16, 2, 2)),
    line(Fused, 90, 128, false, 64, direct(4, 32, 1, 2)),
    line(Fused, 90, 128, false, 512, direct(4, 32, 1, 1)),
    line(Fused, 90, 128, false, 2048, stream(8, 8, 6, 1, 1, 1)),
    Line { f32_activations: Some(true), ..line(Fused, 90, 128, false, MORE, direct(4, 16, 2, 2)) },
    line(Fused, 90, 128, false, MORE, direct(4, 32, 1, 2)),
    default(Fused, 0, 128, direct(8, 16, 1, 1)),
    default(Fused, 0, 64, direct(4, 16, 1, 1)),
    default(Fused, 90, 256, direct(4, 16, 4, 1)),
    default(Prefill, 0, 128, direct(4, 8, 1, 1)),
    default(Prefill, 0, 64, direct(4, 8, 1, 1)),
    default(Prefill, 0, 256, direct(4, 8, 1, 1)),
    // As many CTAs as fill a GPU, and then as few reads of a chunk as that leaves.
    chunked(16, chunk(1, 2, 2)),
    chunked(33, chunk(2, 2, 2)),
    chunked(33, chunk(2, 2, 1)),
    chunked(66, chunk(4, 2, 1)),
    chunked(MORE, chunk(8, 2, 1)),
    chunked(16, chunk(1, 1, 1)),
    chunked(33, chunk(2, 1, 1)),
    chunked(MORE, chunk(4, 1, 1)),
];

/// What a tile is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// The operator.
    pub operator: Tiled,
    /// K.
    pub head_k: usize,
    /// V.
    pub head_v: usize,
    /// The dtype of activations.
    pub activations: DType,
    /// The dtype of the state.
    pub recurrent: DType,
}

impl Want {
    /// For a layer of this shape.
    pub fn new(operator: Tiled, spec: &LayerSpec, activations: DType, recurrent: DType) -> Self {
        Self { operator, head_k: spec.head_k(), head_v: spec.head_v(), activations, recurrent }
    }

    /// The tile for this many (row, value head) pairs. Bulk copies, which streams
    /// are made of, move aligned memory alone.
    pub fn tile(&self, gpu: &Gpu, pairs: usize, aligned: bool) -> Tile {
        let within = |line: &&Line| {
            // In u128: no product of what a launch can hold overflows.
            pairs as u128 * 132 <= line.pairs as u128 * u128::from(gpu.multiprocessors)
                && (line.tile.form != Form::Stream
                    // A stream counts its items in 32 bits.
                    || aligned && pairs as u128 * u128::from(line.tile.split) <= u32::MAX.into())
        };
        self.lines(gpu).find(within).map_or(ANY, |line| line.tile)
    }

    /// Every tile that [`tile`](Self::tile) can return for aligned memory, on this
    /// GPU or one with slower memory, each once.
    pub fn tiles(&self, gpu: &Gpu) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for line in self.lines(gpu) {
            if !tiles.contains(&line.tile) {
                tiles.push(line.tile);
            }
            if line.pairs == MORE && line.from_gb_s == 0 {
                break;
            }
        }
        tiles
    }

    fn lines(&self, gpu: &Gpu) -> impl Iterator<Item = &'static Line> {
        let Self { operator, head_k, head_v, activations, recurrent } = *self;
        let (capability, shared) = (gpu.capability, gpu.shared_bytes);
        TABLE.iter().filter(move |line| {
            line.operator == operator
                && line.from <= capability
                && line.from_gb_s <= gpu.memory_gb_s
                && line.dims == (head_k as u32, head_v as u32)
                && line.f32_state.is_none_or(|f32| f32 == (recurrent == DType::F32))
                && line.f32_activations.is_none_or(|f32| f32 == (activations == DType::F32))
                && line.tile.shared(self) <= shared as usize
        })
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// CTAs along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA, along x.
    pub threads: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// CTAs of a cluster, along x.
    pub cluster: u32,
    /// Whether it may start while the kernel before it still runs.
    pub overlap: bool,
}

impl Geometry {
    /// `x` CTAs for each of `rows` rows, which fill y and z.
    pub fn rows(x: usize, rows: usize, threads: u32) -> Self {
        let y = rows.clamp(1, 65_535);
        let grid = [x, y, rows.div_ceil(y).max(1)].map(|n| n as u32);
        Self { grid, threads, shared_bytes: 0, cluster: 1, overlap: false }
    }

    /// The same launch, which may start while the kernel before it still runs.
    pub fn overlapping(self, overlap: bool) -> Self {
        Self { overlap, ..self }
    }
}

impl Tile {
    /// The launch of this tile for `rows` rows of `v_heads` heads.
    pub fn geometry(self, want: &Want, gpu: &Gpu, rows: usize, v_heads: usize) -> Geometry {
        let Want { operator, head_k, head_v, .. } = *want;
        let shared_bytes = self.shared(want) as u32;
        let threads = self.threads(operator, head_k, head_v);
        let cluster = if operator == Fused { self.cluster } else { 1 };
        let ctas = match (self.form, operator) {
            (Form::Stream, _) => {
                let most = gpu.multiprocessors as usize * self.ctas as usize;
                let ctas = (rows * v_heads * self.split as usize).min(most);
                return Geometry { shared_bytes, ..Geometry::rows(ctas, 1, threads) };
            }
            (Form::Any, Prefill) => v_heads * head_v,
            (Form::Any, _) => v_heads,
            (Form::Direct, Fused) => v_heads * cluster as usize,
            (Form::Direct | Form::Chunk, _) => v_heads * head_v / (self.warps * self.rows) as usize,
        };
        Geometry { shared_bytes, cluster, ..Geometry::rows(ctas, rows, threads) }
    }

    fn threads(self, operator: Tiled, head_k: usize, head_v: usize) -> u32 {
        match (self.form, operator) {
            (Form::Direct, _) => self.warps * 32,
            (Form::Chunk, _) => self.warps * self.split * 32,
            (Form::Any, Prefill) => 32,
            (Form::Any, _) => 256,
            (Form::Stream, Fused) => {
                let preparing = (2 * head_k + 2 * head_v).div_ceil(128) as u32;
                (self.warps + preparing + 1) * 32
            }
            (Form::Stream, _) => (self.warps + 2) * 32,
        }
    }

    /// The dynamic shared memory of a CTA, in bytes.
    pub fn shared(self, want: &Want) -> usize {
        let Want { operator, head_k: k, head_v: v, activations, recurrent } = *want;
        let stages = self.stages as usize;
        let piece = (self.warps * self.rows) as usize * k * recurrent.size();
        match (self.form, operator) {
            (Form::Direct, Fused) => (2 * k + 2 * v / self.cluster as usize + v) * 4 + 16,
            (Form::Direct, _) => 0,
            (Form::Stream, Fused) => {
                let prepared = 2 * ((2 * k + 2 * v) * 4 + 32) + 8 * v;
                (stages * piece + prepared + 8 * (2 * stages + 5)).next_multiple_of(128)
            }
            (Form::Stream, _) => {
                let prepared = 2 * ((2 * k + v) * 4 + 16);
                (stages * piece + prepared + 8 * (2 * stages + 4)).next_multiple_of(128)
            }
            (Form::Any, Fused) => (2 * k + v) * 4,
            (Form::Any, Prefill) => 4 * k,
            (Form::Any, _) => 8 * k,
            (Form::Chunk, _) => {
                // k or q, some columns of v, a square, and four numbers a token.
                let columns = (self.warps * 16 + 4) as usize;
                let square = 4 * CHUNK * (CHUNK + 8 + 4);
                let stage = 2 * (chunk_qk_bytes(k, activations) + square) + 4 * CHUNK * columns;
                // The old state and the new values of 16 rows, twice.
                let mail = 2 * 16 * 4 * (k + CHUNK) * self.warps as usize;
                stages * stage + if self.split > 1 { mail } else { 0 }
            }
        }
    }
}

/// The tokens of a chunk.
pub(crate) const CHUNK: usize = 64;

/// The bytes of q or k of a chunk in shared memory, padded as `chunked.cu` has it.
fn chunk_qk_bytes(k: usize, activations: DType) -> usize {
    CHUNK * (k + 8) * qk_dtype(activations).size()
}

/// What normalised q and k are kept in: bf16 activations need no more bits.
pub(crate) fn qk_dtype(activations: DType) -> DType {
    if activations == DType::BF16 { DType::F16 } else { DType::F32 }
}

/// The shared memory of the chunked form's first step: q and k, four numbers a token, and
/// how much each token has decayed since each.
pub fn prepare_shared(k: usize, activations: DType) -> usize {
    2 * chunk_qk_bytes(k, activations) + (4 * CHUNK + CHUNK * (CHUNK + 1)) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hopper(multiprocessors: u32) -> Gpu {
        Gpu {
            name: "a GPU".into(),
            capability: 90,
            multiprocessors,
            shared_bytes: 227 << 10,
            memory_gb_s: 4900,
        }
    }

    fn want(operator: Tiled, dim: usize) -> Want {
        let (activations, recurrent) = (DType::BF16, DType::F32);
        Want { operator, head_k: dim, head_v: dim, activations, recurrent }
    }

    #[test]
    fn tiles_are_read_as_they_are_written() {
        for tile in [direct(4, 16, 2, 1), stream(8, 4, 12, 2, 3, 0), chunk(2, 1, 2)] {
            assert_eq!(tile.to_string().parse(), Ok(tile));
        }
        assert!("direct w4 x1".parse::<Tile>().unwrap_err().starts_with("x1"));
        "any".parse::<Tile>().unwrap_err();
    }

    #[test]
    fn borders_move_with_the_size_of_the_gpu() {
        let want = want(Packed, 128);
        let (small, large) = (direct(1, 8, 1, 2), stream(2, 8, 7, 8, 3, 2));
        assert_eq!(want.tile(&hopper(132), 2048, true), small);
        assert_eq!(want.tile(&hopper(132), 2049, true), large);
        assert_eq!(want.tile(&hopper(66), 1025, true), large);
        assert_eq!(want.tile(&hopper(264), 4096, true), small);
    }

    #[test]
    fn slower_memory_takes_another_tile() {
        let h100 = Gpu { memory_gb_s: 3350, ..hopper(132) };
        assert_eq!(want(Packed, 128).tile(&h100, 8192, true), direct(2, 4, 1, 2));
    }

    #[test]
    fn what_a_stream_cannot_do_is_direct() {
        for operator in [Packed, Fused] {
            let want = want(operator, 128);
            for pairs in [1, 100, 1000, 10_000] {
                assert_eq!(want.tile(&hopper(132), pairs, false).form, Form::Direct);
            }
            assert_eq!(want.tile(&hopper(132), 1 << 30, true).form, Form::Direct, "32 bits");
        }
    }

    #[test]
    fn what_no_line_names_runs_anyway() {
        assert_eq!(want(Fused, 96).tile(&hopper(132), 1, true), ANY);
        let ampere = Gpu { capability: 80, ..hopper(108) };
        assert_eq!(want(Fused, 256).tile(&ampere, 1, true), ANY);
    }

    #[test]
    fn a_stream_that_does_not_fit_gives_way() {
        let blackwell = Gpu { capability: 120, shared_bytes: 99 << 10, ..hopper(188) };
        let tiles = want(Fused, 128).tiles(&blackwell);
        assert!(tiles.iter().all(|tile| tile.form == Form::Direct), "{tiles:?}");
        assert_eq!(want(Fused, 128).tile(&blackwell, 2048, true), direct(4, 16, 2, 2));
    }

    #[test]
    fn rows_beyond_the_grids_y_fill_z() {
        let geometry = Geometry::rows(3, 200_000, 32);
        assert_eq!(geometry.grid, [3, 65_535, 4]);
        assert_eq!(Geometry::rows(3, 7, 32).grid, [3, 7, 1]);
    }
}
