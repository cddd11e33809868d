//! What lies on a GPU: weights, and the integers that describe a batch.

use std::sync::Arc;

use gdn::{
    Slice, bf16,
    cuda::runtime::{Block, Runtime},
};

use super::Gpu;
use crate::{
    Result,
    batch::Batch,
    memory::PAGE,
    ops,
    weights::{Elements, Tensor},
};

/// bf16 weights `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) block: Block,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

impl Matrix {
    /// Matrices on top of each other, as bf16.
    pub(crate) fn new<'a>(
        gpu: &Gpu,
        parts: impl Iterator<Item = &'a Tensor> + Clone,
    ) -> Result<Self> {
        let inputs = parts.clone().next().map_or(0, Tensor::cols);
        let outputs = parts.clone().map(Tensor::rows).sum();
        let mut block = Block::new(&gpu.runtime, outputs * inputs * size_of::<bf16>())?;
        let mut at = 0;
        for part in parts {
            let len = part.rows() * part.cols();
            let round = |values: &[f32]| -> Vec<bf16> {
                values.iter().map(|&value| bf16::from_f32(value)).collect()
            };
            match part.elements() {
                Elements::Stored(Slice::BF16(values)) => {
                    block.upload(at, bytemuck::cast_slice(values))?;
                }
                Elements::Stored(values) => {
                    block.upload(at, bytemuck::cast_slice(&round(&values.to_f32())))?;
                }
                Elements::Dummy(dummy, first) => {
                    let address = block.address() + at as u64;
                    ops::fill::cuda::fill(gpu, address, len, dummy, first)?;
                }
            }
            at += len * size_of::<bf16>();
        }
        Ok(Self { block, outputs, inputs })
    }

    pub(crate) fn address(&self) -> u64 {
        self.block.address()
    }
}

/// f32.
#[derive(Debug)]
pub(crate) struct Vector(Block);

impl Vector {
    pub(crate) fn new(gpu: &Gpu, values: &[f32]) -> Result<Self> {
        let mut block = Block::new(&gpu.runtime, size_of_val(values))?;
        block.upload(0, bytemuck::cast_slice(values))?;
        Ok(Self(block))
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.address()
    }
}

/// Keys and values, `[pages, 64, kv_heads, head_dim]` each.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) keys: Block,
    pub(crate) values: Block,
    pub(crate) pages: usize,
}

/// The experts of a layer, those that are routed to on top of each other.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) shared_gate_up: Matrix,
    pub(crate) shared_down: Matrix,
}

/// A block that is made anew when it must be larger, and loses its content then.
#[derive(Debug)]
pub(crate) struct Growing {
    runtime: Arc<dyn Runtime>,
    block: Block,
}

impl Growing {
    pub(crate) fn new(runtime: &Arc<dyn Runtime>, bytes: usize) -> Result<Self> {
        Ok(Self { runtime: runtime.clone(), block: Block::new(runtime, bytes)? })
    }

    /// Makes room for so many bytes; whether its address changed.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<bool> {
        let grow = bytes > self.block.bytes();
        if grow {
            self.block = Block::new(&self.runtime, bytes.next_power_of_two())?;
        }
        Ok(grow)
    }

    pub(crate) fn address(&self) -> u64 {
        self.block.address()
    }

    pub(crate) fn block(&mut self) -> &mut Block {
        &mut self.block
    }
}

/// A batch's integers on the GPU, all i32 and in one piece.
#[derive(Debug)]
pub(crate) struct Integers {
    at: Growing,
    host: Vec<i32>,
    /// T, the rows, padding included.
    pub(crate) rows: usize,
    /// B, the sequences, padding included.
    pub(crate) sequences: usize,
    /// Entries of a sequence in the page table.
    pub(crate) stride: usize,
    /// R, the rows whose logits are asked for, padding included.
    pub(crate) wanted: usize,
    tiles_at: usize,
    choices_at: usize,
}

/// What two batches must have in common for one graph to serve both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Alike {
    rows: usize,
    stride: usize,
    wanted: usize,
}

impl Integers {
    pub(crate) fn new(runtime: &Arc<dyn Runtime>) -> Result<Self> {
        Ok(Self {
            at: Growing::new(runtime, 1 << 16)?,
            host: Vec::new(),
            rows: 0,
            sequences: 0,
            stride: 0,
            wanted: 0,
            tiles_at: 0,
            choices_at: 0,
        })
    }

    /// Takes a batch's integers; whether their address changed. A batch of single
    /// tokens is padded, so that few sizes occur.
    pub(crate) fn upload(&mut self, batch: &Batch, tiles: &[i32]) -> Result<bool> {
        let decode = batch.decodes == batch.lengths.len();
        let pad = |len: usize| if decode { bucket(len) } else { len };
        self.rows = pad(batch.rows());
        self.sequences = pad(batch.lengths.len());
        self.wanted = pad(batch.logits.len());
        self.stride = batch.stride;
        let Self { host, rows, sequences, stride, wanted, .. } = self;
        host.clear();
        let mut put = |values: &[i32], len: usize, padding: i32| {
            let end = host.len() + len;
            host.extend_from_slice(values);
            host.resize(end, padding);
        };
        put(&batch.tokens, *rows, 0);
        put(&batch.positions, *rows, 0);
        put(&batch.sequences, *rows, -1);
        put(&batch.slots, *sequences, -1);
        put(&batch.logits, *wanted, 0);
        put(&batch.table, *sequences * *stride, -1);
        // The next array starts at a multiple of 16 bytes.
        host.resize(host.len().next_multiple_of(4), 0);
        self.tiles_at = host.len();
        host.extend_from_slice(tiles);
        host.resize(host.len().next_multiple_of(4), 0);
        self.choices_at = host.len();
        // By field, those of 8 bytes first.
        let choice = |i: usize| batch.choices.get(i).copied().unwrap_or_default();
        let halves = |value: u64| [value as i32, (value >> 32) as i32];
        host.extend((0..*wanted).flat_map(|i| halves(choice(i).seed)));
        host.extend((0..*wanted).flat_map(|i| halves(choice(i).step)));
        host.extend((0..*wanted).map(|i| choice(i).temperature.to_bits() as i32));
        host.extend((0..*wanted).map(|i| choice(i).top_k as i32));
        host.extend((0..*wanted).map(|i| choice(i).top_p.to_bits() as i32));
        host.extend((0..*wanted).map(|i| choice(i).min_p.to_bits() as i32));
        let moved = self.at.reserve(size_of_val(&host[..]))?;
        self.at.block().upload(0, bytemuck::cast_slice(host))?;
        Ok(moved)
    }

    pub(crate) fn alike(&self) -> Alike {
        Alike { rows: self.rows, stride: self.stride, wanted: self.wanted }
    }

    fn place(&self, index: usize) -> u64 {
        self.at.address() + (index * size_of::<i32>()) as u64
    }

    /// `[T]`
    pub(crate) fn tokens(&self) -> u64 {
        self.place(0)
    }

    /// `[T]`
    pub(crate) fn positions(&self) -> u64 {
        self.place(self.rows)
    }

    /// `[T]`, -1 for padding.
    pub(crate) fn row_sequences(&self) -> u64 {
        self.place(2 * self.rows)
    }

    /// `[B]`, -1 for padding.
    pub(crate) fn slots(&self) -> u64 {
        self.place(3 * self.rows)
    }

    /// `[R]`
    pub(crate) fn wanted_rows(&self) -> u64 {
        self.place(3 * self.rows + self.sequences)
    }

    /// `[B, stride]`, -1 where there is none.
    pub(crate) fn table(&self) -> u64 {
        self.place(3 * self.rows + self.sequences + self.wanted)
    }

    /// `[R]` each: seeds, steps, temperatures, top-k, top-p and min-p of choices.
    pub(crate) fn choices(&self) -> [u64; 6] {
        [0, 2, 4, 5, 6, 7].map(|arrays| self.place(self.choices_at + arrays * self.wanted))
    }

    /// The tiles of attention, see `ops::attention`.
    pub(crate) fn tile_list(&self) -> u64 {
        self.place(self.tiles_at)
    }
}

/// The rows of the graph that takes so many.
pub(crate) fn bucket(rows: usize) -> usize {
    match rows {
        0..=16 => rows.next_power_of_two(),
        17..=256 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(64),
    }
}

/// Bytes of the cache of one full-attention layer, keys or values alone.
pub(crate) fn cache_bytes(pages: usize, kv_heads: usize, head_dim: usize, element: usize) -> usize {
    pages * PAGE * kv_heads * head_dim * element
}
