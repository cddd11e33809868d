//! The CPU as a device: activations in f32, weights as they are stored.

mod weights;

use std::{mem, ops::Range};

use gdn::{
    Backend, Cpu, DType, DecodePath, Layer, LayerStep, PoolOptions, Prefill, PrefillForm, Rows,
    RowsMut, StatePool,
};

use self::weights::{Between, Experts, Matrix};
use crate::{
    Options, Result,
    batch::Batch,
    config::AttentionConfig,
    device::{Add, Device, ExpertWeights, GdnInputs, Shape},
    math::{Math, Scratch},
    memory::PAGE,
    ops::{self, attention, norm::cpu::Norm, qkv::cpu as qkv, route::cpu::route},
    weights::Tensor,
};

#[derive(Debug)]
pub(crate) struct OnCpu {
    cpu: Cpu,
    math: Math,
    shape: Shape,
    prefill: PrefillForm,
    decode: DecodePath,
    batch: Batch,
    rows: Buffers,
}

/// The rows of [`Device`], dense.
#[derive(Debug, Default)]
struct Buffers {
    stream: Vec<f32>,
    normed: Vec<f32>,
    projected: Vec<f32>,
    queries: Vec<f32>,
    mixed: Vec<f32>,
    output: Vec<f32>,
    logits: Vec<f32>,
    between: Between,
    scratch: Scratch,
}

/// Keys and values, `[pages, 64, kv_heads, head_dim]` each.
#[derive(Debug)]
pub(crate) struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl OnCpu {
    pub(crate) fn new(cpu: Cpu, shape: Shape, options: &Options) -> Result<Self> {
        options.dtype(&[DType::F32])?;
        let math = Math::new(cpu.threads() > 1);
        let Options { prefill, decode, .. } = *options;
        let (batch, rows) = (Batch::default(), Buffers::default());
        Ok(Self { cpu, math, shape, prefill, decode, batch, rows })
    }
}

impl Device for OnCpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Experts = Experts;
    type Cache = Cache;

    fn matrix(&mut self, parts: &[Tensor]) -> Result<Matrix> {
        Ok(Matrix::new(parts))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn experts(&mut self, weights: ExpertWeights) -> Result<Experts> {
        Ok(Experts::new(weights))
    }

    fn cache(&mut self, pages: usize) -> Result<Cache> {
        let attention = &self.shape.attention;
        let len = pages * PAGE * attention.kv_heads * attention.head_dim;
        // Pages that were never used take no memory.
        Ok(Cache { keys: vec![0.0; len], values: vec![0.0; len] })
    }

    fn copy_page(&mut self, cache: &mut Cache, from: usize, to: usize) -> Result<()> {
        let len = PAGE * self.shape.attention.kv_heads * self.shape.attention.head_dim;
        for values in [&mut cache.keys, &mut cache.values] {
            values.copy_within(from * len..(from + 1) * len, to * len);
        }
        Ok(())
    }

    fn pool(&mut self, layer: &Layer, slots: usize) -> Result<StatePool> {
        Ok(StatePool::new(layer.spec(), &PoolOptions::new(slots))?)
    }

    fn begin(&mut self, batch: &mut Batch) -> Result<()> {
        mem::swap(&mut self.batch, batch);
        Ok(())
    }

    /// On the backend's threads, so that all operators share them.
    fn run(&mut self, pass: &mut (dyn FnMut(&mut Self) -> Result<()> + Send)) -> Result<()> {
        self.cpu.share().install(|_| pass(self))
    }

    fn embed(&mut self, table: &Matrix) -> Result<()> {
        let (hidden, stream) = (self.shape.hidden, &mut self.rows.stream);
        stream.resize(self.batch.rows() * hidden, 0.0);
        for (row, &token) in stream.chunks_exact_mut(hidden).zip(&self.batch.tokens) {
            table.read_row(token as usize, row);
        }
        Ok(())
    }

    fn norm(&mut self, add: Add, factor: &Vec<f32>) -> Result<()> {
        let Buffers { stream, normed, output, .. } = &mut self.rows;
        normed.resize(stream.len(), 0.0);
        // What the experts of a row say is summed up already.
        let delta = (add != Add::Nothing).then_some(&output[..]);
        let norm = Norm { factor, eps: self.shape.norm_eps };
        ops::norm::cpu::add_norm(self.math, stream, delta, norm, normed);
        Ok(())
    }

    fn project(&mut self, weight: &Matrix) -> Result<()> {
        let Buffers { normed, projected, scratch, .. } = &mut self.rows;
        weight.apply(self.math, normed, projected, scratch);
        Ok(())
    }

    fn gdn(&mut self, layer: &Layer, pool: &mut StatePool) -> Result<()> {
        let (spec, rows) = (layer.spec(), self.batch.rows());
        let (values, stride) = (spec.value_len(), GdnInputs::width(spec));
        let Buffers { projected, mixed, .. } = &mut self.rows;
        mixed.resize(rows * values, 0.0);
        let singles = self.batch.decodes;
        let (decoded, prefilled) = mixed.split_at_mut(singles * values);
        let (of_decodes, of_prefills) = projected.split_at(singles * stride);
        let (slots, more_slots) = self.batch.slots.split_at(singles);
        if singles > 0 {
            let p = Rows::new(of_decodes, singles, stride)?;
            let GdnInputs { mixed_qkv, z, b, a } = GdnInputs::of(&p, spec)?;
            let step = LayerStep {
                layer,
                mixed_qkv,
                a,
                b,
                z,
                slots: slots.into(),
                state: pool.state_mut(),
                out: RowsMut::new(decoded, singles, values)?,
            };
            self.cpu.layer_step(self.decode, step)?;
        }
        if singles < rows {
            let p = Rows::new(of_prefills, rows - singles, stride)?;
            let GdnInputs { mixed_qkv, z, b, a } = GdnInputs::of(&p, spec)?;
            let prefill = Prefill {
                layer,
                mixed_qkv,
                a,
                b,
                z,
                lengths: &self.batch.lengths[singles..],
                slots: more_slots.into(),
                state: pool.state_mut(),
                out: RowsMut::new(prefilled, rows - singles, values)?,
            };
            self.cpu.prefill(self.prefill, prefill)?;
        }
        Ok(())
    }

    fn attend(&mut self, q_norm: &Vec<f32>, k_norm: &Vec<f32>, cache: &mut Cache) -> Result<()> {
        let Self { math, shape, batch, rows, .. } = self;
        let Buffers { projected, queries, mixed, .. } = rows;
        let AttentionConfig { heads, kv_heads, head_dim, .. } = shape.attention;
        let (rows, q_len) = (batch.rows(), heads * head_dim);
        queries.resize(rows * q_len, 0.0);
        mixed.resize(rows * q_len, 0.0);
        let of = qkv::Heads {
            heads,
            kv_heads,
            q_norm,
            k_norm,
            eps: shape.norm_eps,
            frequencies: &shape.frequencies,
        };
        let places = qkv::Places {
            positions: &batch.positions,
            sequences: &batch.sequences,
            table: &batch.table,
            max_pages: batch.stride,
        };
        let Cache { keys, values } = cache;
        qkv::qkv(*math, projected, of, places, queries, keys, values);
        let asking = attention::cpu::Rows {
            q: queries,
            gates: projected,
            gate_stride: 2 * (heads + kv_heads) * head_dim,
            positions: &batch.positions,
            sequences: &batch.sequences,
        };
        let (pages, max_pages) = (&batch.table[..], batch.stride);
        let cache = attention::cpu::Cache { keys, values, pages, max_pages };
        let heads = attention::Heads { kv: kv_heads, ratio: heads / kv_heads, dim: head_dim };
        attention::cpu::attention(*math, heads, asking, cache, mixed);
        Ok(())
    }

    fn swiglu(&mut self, gate_up: &Matrix) -> Result<()> {
        let Buffers { normed, projected, mixed, scratch, .. } = &mut self.rows;
        gate_up.apply(self.math, normed, projected, scratch);
        weights::swiglu(projected, gate_up.outputs() / 2, mixed);
        Ok(())
    }

    fn output(&mut self, weight: &Matrix) -> Result<()> {
        let Buffers { mixed, output, scratch, .. } = &mut self.rows;
        weight.apply(self.math, mixed, output, scratch);
        Ok(())
    }

    fn moe(&mut self, router: &Matrix, experts: &Experts) -> Result<()> {
        let Buffers { normed, projected, output, between, scratch, .. } = &mut self.rows;
        router.apply(self.math, normed, projected, scratch);
        let moe = self.shape.moe.expect("a model with a router");
        let routes = route(projected, &self.batch.sequences, moe.per_token, moe.renormalise);
        experts.apply(self.math, &routes, normed, output, between, scratch);
        Ok(())
    }

    fn logits(&mut self, add: Add, factor: &Vec<f32>, head: &Matrix) -> Result<()> {
        self.norm(add, factor)?;
        let hidden = self.shape.hidden;
        let Buffers { normed, mixed, logits, scratch, .. } = &mut self.rows;
        mixed.clear();
        for &row in &self.batch.logits {
            mixed.extend_from_slice(&normed[row as usize * hidden..][..hidden]);
        }
        head.apply(self.math, mixed, logits, scratch);
        Ok(())
    }

    fn read_logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let vocab = self.shape.vocab;
        out.clear();
        out.extend_from_slice(&self.rows.logits[rows.start * vocab..rows.end * vocab]);
        Ok(())
    }

    fn read_tokens(&mut self, out: &mut Vec<u32>) -> Result<()> {
        out.clear();
        let rows = self.rows.logits.chunks_exact(self.shape.vocab).zip(&self.batch.choices);
        out.extend(rows.map(|(logits, choice)| ops::sample::cpu::sample(logits, choice)));
        Ok(())
    }

    fn read_stream(&mut self) -> Result<Vec<f32>> {
        Ok(self.rows.stream.clone())
    }

    fn read_normed(&mut self) -> Result<Vec<f32>> {
        Ok(self.rows.mixed.clone())
    }
}
