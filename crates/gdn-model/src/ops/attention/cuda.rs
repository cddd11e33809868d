//! On a GPU: on tensor cores for bf16, and else plainly.

use bytemuck::{Pod, Zeroable};
use gdn::{
    DType,
    cuda::tiles::{Geometry, Gpu as Facts},
};

use super::{Heads, PAGE};
use crate::{
    Result,
    cuda::{File, Gpu},
};

pub(crate) static PLAIN: File = File {
    name: "attention_plain",
    text: include_str!("plain.cu"),
    constants: &["HEAD_DIM", "RATIO"],
};
pub(crate) static DECODE: File = File {
    name: "attention_decode",
    text: include_str!("decode.cu"),
    constants: &["HEAD_DIM", "RATIO", "PAGES", "STAGES", "SHARED_BYTES"],
};
pub(crate) static PREFILL: File = File {
    name: "attention_prefill",
    text: include_str!("prefill.cu"),
    constants: &["HEAD_DIM", "RATIO", "WARPS", "STAGES", "SHARED_BYTES"],
};

/// See `attention.cuh`; `kv_heads` and `scale` are filled in from [`Heads`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) q: u64,
    pub(crate) gates: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) pages: u64,
    pub(crate) positions: u64,
    pub(crate) sequences: u64,
    pub(crate) out: u64,
    /// Prefill: [`Tile`]s.
    pub(crate) tiles: u64,
    /// Decode: [`partial_bytes`] for each of `max_items`.
    pub(crate) partials: u64,
    /// Decode: zeros, a u32 for every row and kv head.
    pub(crate) counters: u64,
    /// Even.
    pub(crate) gate_stride: i64,
    pub(crate) rows: u32,
    pub(crate) kv_heads: u32,
    pub(crate) max_pages: u32,
    /// What the rows' splits (of 512 positions) times kv heads may come to before
    /// each row is left to one CTA.
    pub(crate) max_items: u32,
    pub(crate) scale: f32,
    pub(crate) pad: u32,
}

/// Rows that one CTA takes, positions of one sequence that ascend by 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Tile {
    pub(crate) first: u32,
    pub(crate) rows: u32,
    /// Negative for padding.
    pub(crate) sequence: i32,
    pub(crate) pad: u32,
}

/// Rows of one sequence in a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) sequence: i32,
    /// Of the first row.
    pub(crate) position: usize,
}

/// How decode lies on a GPU: pages of a step, and buffers for keys or values of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeForm {
    pub(crate) pages: usize,
    pub(crate) stages: usize,
}

/// How prefill does: warps of a CTA, and buffers for a page's keys or values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefillForm {
    pub(crate) warps: usize,
    pub(crate) stages: usize,
}

/// What an item of decode needs of the workspace.
pub(crate) fn partial_bytes(heads: Heads) -> usize {
    (heads.ratio * (heads.dim + 2)).next_multiple_of(4) * 4
}

/// The tiles of these chunks, those with most keys first, and their form.
pub(crate) fn tiles(gpu: &Gpu, heads: Heads, chunks: &[Chunk]) -> (PrefillForm, Vec<Tile>) {
    let rows = chunks.iter().map(|chunk| chunk.rows).sum();
    let form = PrefillForm::of(gpu, heads, rows);
    (form, form.tiles(heads, chunks))
}

/// Attends from rows of one token each: any rows, though those of a prompt come
/// faster by [`prefill`].
pub(crate) fn decode(gpu: &Gpu, heads: Heads, params: Params) -> Result<()> {
    match DecodeForm::of(gpu, heads, params.rows as usize) {
        Some(form) if on_tensor_cores(gpu, heads) => form.launch(gpu, heads, params),
        _ => plain(gpu, heads, params),
    }
}

/// Attends from the rows of `tiles` tiles of a form.
pub(crate) fn prefill(
    gpu: &Gpu,
    heads: Heads,
    form: PrefillForm,
    tiles: usize,
    params: Params,
) -> Result<()> {
    if on_tensor_cores(gpu, heads) {
        form.launch(gpu, heads, tiles, params)
    } else {
        plain(gpu, heads, params)
    }
}

fn on_tensor_cores(gpu: &Gpu, heads: Heads) -> bool {
    gpu.activations == DType::BF16 && heads.dim.is_multiple_of(64) && heads.ratio <= 16
}

fn plain(gpu: &Gpu, heads: Heads, params: Params) -> Result<()> {
    let kernel =
        gpu.kernel(&PLAIN, "gdn_attention_plain", [heads.dim, heads.ratio].map(|n| n as u32));
    let geometry = Geometry {
        shared_bytes: (heads.dim + PAGE) as u32 * 4,
        ..Geometry::rows(heads.queries(), params.rows as usize, 32).overlapping(true)
    };
    gpu.launch(kernel, &geometry, &params.of(heads))
}

impl Params {
    fn of(self, heads: Heads) -> Self {
        Self { kv_heads: heads.kv as u32, scale: heads.scale(), ..self }
    }
}

impl DecodeForm {
    fn of(gpu: &Gpu, heads: Heads, rows: usize) -> Option<Self> {
        let facts = gpu.runtime.gpu();
        let forms = [Self { pages: 2, stages: 3 }, Self { pages: 1, stages: 3 }];
        let fits = |form: &Self| {
            let few = rows * heads.kv <= facts.multiprocessors as usize;
            (form.pages == 1 || few && heads.dim.is_multiple_of(128))
                && form.shared(heads) <= facts.shared_bytes as usize
        };
        forms.into_iter().find(fits)
    }

    fn shared(self, heads: Heads) -> usize {
        let Self { pages, stages } = self;
        let (halves, shares) = (stages * pages * PAGE * heads.dim * 2, pages * 16 * PAGE * 2);
        halves + shares + 16 * 4 * pages * 4 + 4 * pages * 4 + 16
    }

    pub(crate) fn launch(self, gpu: &Gpu, heads: Heads, params: Params) -> Result<()> {
        let Self { pages, stages } = self;
        let (shared, facts) = (self.shared(heads), gpu.runtime.gpu());
        let constants = [heads.dim, heads.ratio, pages, stages, shared].map(|n| n as u32);
        let kernel = gpu.kernel(&DECODE, "gdn_attention_decode", constants);
        // As many CTAs as there is room for; more would wait, fewer leave room.
        let ctas = facts.multiprocessors * (2 / pages as u32).min(ctas_of(facts, shared));
        let items = params.max_items.max(params.rows * heads.kv as u32);
        let geometry = Geometry {
            shared_bytes: shared as u32,
            ..Geometry::rows(ctas.min(items) as usize, 1, 128 * pages as u32).overlapping(true)
        };
        gpu.launch(kernel, &geometry, &params.of(heads))
    }
}

impl PrefillForm {
    fn of(gpu: &Gpu, heads: Heads, rows: usize) -> Self {
        let facts = gpu.runtime.gpu();
        let forms = [(8, 4), (4, 4), (4, 2)].map(|(warps, stages)| Self { warps, stages });
        // Smaller tiles for few rows, whose time is that of one tile.
        let ctas = rows.div_ceil(forms[0].tokens(heads)) * heads.kv;
        let first = usize::from(2 * ctas <= facts.multiprocessors as usize);
        let fits = |form: &&Self| form.shared(heads) <= facts.shared_bytes as usize;
        *forms[first..].iter().find(fits).unwrap_or(&forms[2])
    }

    /// Of a tile.
    fn tokens(self, heads: Heads) -> usize {
        self.warps * 16 / heads.ratio
    }

    fn shared(self, heads: Heads) -> usize {
        (self.warps * 16 + self.stages * PAGE) * heads.dim * 2
    }

    pub(crate) fn tiles(self, heads: Heads, chunks: &[Chunk]) -> Vec<Tile> {
        let each = self.tokens(heads);
        let mut tiles = Vec::new();
        for &Chunk { first, rows, sequence, position } in chunks {
            for row in (0..rows).step_by(each) {
                let rows = each.min(rows - row);
                let tile =
                    Tile { first: (first + row) as u32, rows: rows as u32, sequence, pad: 0 };
                tiles.push((position + row + rows, tile));
            }
        }
        tiles.sort_by_key(|&(keys, _)| std::cmp::Reverse(keys));
        tiles.into_iter().map(|(_, tile)| tile).collect()
    }

    pub(crate) fn launch(
        self,
        gpu: &Gpu,
        heads: Heads,
        tiles: usize,
        params: Params,
    ) -> Result<()> {
        let Self { warps, stages } = self;
        let shared = self.shared(heads);
        let constants = [heads.dim, heads.ratio, warps, stages, shared].map(|n| n as u32);
        let kernel = gpu.kernel(&PREFILL, "gdn_attention_prefill", constants);
        let geometry = Geometry {
            grid: [heads.kv as u32, tiles as u32, 1],
            threads: 32 * warps as u32,
            shared_bytes: shared as u32,
            cluster: 1,
            overlap: true,
        };
        gpu.launch(kernel, &geometry, &params.of(heads))
    }
}

/// CTAs with so much shared memory on a multiprocessor, which keeps a KiB for each.
fn ctas_of(facts: &Facts, shared: usize) -> u32 {
    (facts.shared_bytes + 1024) / (shared as u32 + 1024)
}
