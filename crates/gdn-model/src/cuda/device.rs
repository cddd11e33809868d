//! A GPU as a device.
#![expect(unsafe_code, reason = "a graph keeps the addresses of what it recorded")]

use std::{collections::HashMap, mem, ops::Range};

use bytemuck::Zeroable;
use gdn::{
    Backend, Cuda, DType, DecodePath, Layer, LayerStep, PoolOptions, Prefill, PrefillForm,
    StatePool, bf16, cuda::runtime::Block,
};
use gdn_cuda::{GraphExec, MemoryInfo};

use super::{
    Gpu,
    beside::Beside,
    buffers::{Buffers, heads_of, padded},
    failed,
    memory::{Alike, Cache, Experts, Integers, Matrix, Vector, bucket, cache_bytes},
};
use crate::{
    Config, Error, Options, Result,
    batch::Batch,
    config::AttentionConfig,
    device::{Add, Device, ExpertWeights, GdnInputs, Shape},
    memory::Room,
    ops::{
        self,
        attention::cuda::{self as attention, Chunk, Tile},
    },
    weights::Tensor,
};

/// A GPU that runs forward passes on one stream.
#[derive(Debug)]
pub(crate) struct OnGpu {
    gpu: Gpu,
    cuda: Cuda,
    beside: Option<Beside>,
    shape: Shape,
    prefill: PrefillForm,
    decode: DecodePath,
    frequencies: Vector,
    batch: Batch,
    integers: Integers,
    chunks: Vec<Chunk>,
    tiles: (attention::PrefillForm, Vec<Tile>),
    rows: Buffers,
    graphs: HashMap<Alike, Recorded>,
}

/// A pass that was run once is recorded the second time.
#[derive(Debug)]
enum Recorded {
    Once,
    Graph(GraphExec),
}

impl OnGpu {
    pub(crate) fn new(mut cuda: Cuda, config: &Config, options: &Options) -> Result<Self> {
        let activations = options.dtype(&[DType::BF16, DType::F32])?;
        let gpu = Gpu::new(cuda.runtime().clone(), activations);
        // A step's kernels read the state that the layer's own kernels alone write.
        cuda.set_overlap(true);
        let shape = Shape::new(config);
        let most = options.batch_tokens.max(bucket(options.sequences));
        let Options { prefill, decode, .. } = *options;
        Ok(Self {
            frequencies: Vector::new(&gpu, &shape.frequencies)?,
            integers: Integers::new(&gpu.runtime)?,
            rows: Buffers::new(&gpu, config, &shape, options, most)?,
            batch: Batch::default(),
            chunks: Vec::new(),
            tiles: attention::tiles(&gpu, heads_of(&shape.attention), &[]),
            graphs: HashMap::new(),
            beside: Beside::new(&cuda)?,
            gpu,
            cuda,
            shape,
            prefill,
            decode,
        })
    }

    fn act(&self) -> usize {
        self.gpu.activations.size()
    }

    /// The rows of sequences with one token. Padding belongs to a batch of those alone.
    fn singles(&self) -> usize {
        let decode = self.batch.decodes == self.batch.lengths.len();
        if decode { self.integers.rows } else { self.batch.decodes }
    }

    /// The tiles of attention in the sequences with several tokens.
    fn tile(&mut self) {
        let Self { batch, chunks, gpu, shape, .. } = self;
        chunks.clear();
        let mut first = 0;
        for (sequence, &rows) in batch.lengths.iter().enumerate() {
            if rows > 1 {
                let position = batch.positions[first] as usize;
                chunks.push(Chunk { first, rows, sequence: sequence as i32, position });
            }
            first += rows;
        }
        self.tiles = attention::tiles(gpu, heads_of(&shape.attention), chunks);
    }

    /// All rows of `x` through a matrix.
    fn linear(&self, weight: &Matrix, x: u64, y: u64, f32_out: bool) -> Result<()> {
        ops::linear::cuda::linear(
            &self.gpu,
            ops::linear::cuda::Args {
                w: weight.address(),
                x,
                y,
                x_stride: weight.inputs,
                y_stride: padded(weight.outputs),
                rows: self.integers.rows,
                outputs: weight.outputs,
                k: weight.inputs,
                f32_out,
            },
        )
    }

    fn norm_params(&self, add: Add, factor: &Vector) -> ops::norm::cuda::Params {
        let (delta, shares, places) = match (add, &self.rows.routes) {
            (Add::Nothing, _) => (0, 0, 0),
            (Add::Output, _) => (self.rows.output.address(), 0, 0),
            (Add::Experts, Some(routes)) => {
                (self.rows.parts.address(), routes.shares.address(), routes.places as u32)
            }
            (Add::Experts, None) => unreachable!("no experts, no shares"),
        };
        ops::norm::cuda::Params {
            x: self.rows.stream.address(),
            delta,
            shares,
            picked: 0,
            factor: factor.address(),
            out: self.rows.normed.address(),
            rows: self.integers.rows as u32,
            of: self.integers.rows as u32,
            places,
            eps: self.shape.norm_eps,
        }
    }

    fn launch_norm(&self, add: Add, params: ops::norm::cuda::Params) -> Result<()> {
        match add {
            Add::Experts => ops::norm::cuda::experts_norm(&self.gpu, self.shape.hidden, params),
            _ => ops::norm::cuda::add_norm(&self.gpu, self.shape.hidden, params),
        }
    }
}

impl Device for OnGpu {
    type Matrix = Matrix;
    type Vector = Vector;
    type Experts = Experts;
    type Cache = Cache;

    fn matrix(&mut self, parts: &[Tensor]) -> Result<Matrix> {
        Matrix::new(&self.gpu, parts.iter())
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        Vector::new(&self.gpu, &values)
    }

    fn experts(&mut self, weights: ExpertWeights) -> Result<Experts> {
        let ExpertWeights { experts, shared } = weights;
        let gate_up = Matrix::new(&self.gpu, experts.iter().flat_map(|(gate_up, _)| gate_up))?;
        let down = Matrix::new(&self.gpu, experts.iter().map(|(_, down)| down))?;
        Ok(Experts {
            gate_up,
            down,
            shared_gate_up: Matrix::new(&self.gpu, shared.0.iter())?,
            shared_down: Matrix::new(&self.gpu, [&shared.1].into_iter())?,
        })
    }

    fn cache(&mut self, pages: usize) -> Result<Cache> {
        let attention = &self.shape.attention;
        let bytes = cache_bytes(pages, attention.kv_heads, attention.head_dim, self.act());
        let block = || Block::new(&self.gpu.runtime, bytes);
        Ok(Cache { keys: block()?, values: block()?, pages })
    }

    fn room(&self) -> Result<Option<Room>> {
        let AttentionConfig { kv_heads, head_dim, .. } = self.shape.attention;
        let page = 2 * cache_bytes(1, kv_heads, head_dim, self.act());
        let memory = self.gpu.runtime.memory()?;
        Ok(memory.map(|MemoryInfo { free, total }| Room { free, total, page }))
    }

    fn copy_page(&mut self, cache: &mut Cache, from: usize, to: usize) -> Result<()> {
        let bytes = cache.keys.bytes() / cache.pages;
        for block in [&mut cache.keys, &mut cache.values] {
            block.copy_within(from * bytes, to * bytes, bytes)?;
        }
        Ok(())
    }

    fn fill_slots(
        &mut self,
        pools: &mut [&mut StatePool],
        from: Option<i32>,
        to: i32,
    ) -> Result<()> {
        let mut parts = Vec::with_capacity(3 * pools.len());
        for pool in pools {
            let on_gpu = |place: Option<_>| place.expect("a pool of this device");
            let targets = on_gpu(pool.slot_parts(to)?);
            let sources = match from {
                Some(from) => on_gpu(pool.slot_parts(from)?),
                None => [(0, 0); 3],
            };
            parts.extend(targets.into_iter().zip(sources).map(|((to, bytes), (from, _))| {
                ops::slots::cuda::Part { to, from, bytes: bytes as u64 }
            }));
        }
        ops::slots::cuda::slots(&self.gpu, &parts)
    }

    fn pool(&mut self, layer: &Layer, slots: usize) -> Result<StatePool> {
        let options = PoolOptions { conv: self.gpu.activations, ..PoolOptions::new(slots) };
        Ok(self.cuda.pool(layer.spec(), &options)?)
    }

    fn begin(&mut self, batch: &mut Batch) -> Result<()> {
        mem::swap(&mut self.batch, batch);
        self.tile();
        let moved = self.integers.upload(&self.batch, bytemuck::cast_slice(&self.tiles.1))?;
        let (wanted, vocab) = (self.integers.wanted, self.shape.vocab);
        let Buffers { logits, best, tokens, .. } = &mut self.rows;
        let moved = moved
            | logits.reserve(wanted * padded(vocab) * size_of::<f32>())?
            | best.reserve(ops::sample::cuda::scratch_bytes(wanted, vocab))?
            | tokens.reserve(wanted * size_of::<u32>())?;
        if moved {
            // They hold the old addresses.
            self.graphs.clear();
        }
        Ok(())
    }

    fn run(&mut self, pass: &mut (dyn FnMut(&mut Self) -> Result<()> + Send)) -> Result<()> {
        let Some(stream) = self.gpu.runtime.stream().cloned() else { return pass(self) };
        if self.batch.decodes < self.batch.lengths.len() {
            return pass(self);
        }
        let gpu = self.gpu.runtime.ordinal();
        let failed = |error| failed(error, gpu);
        let key = self.integers.alike();
        match self.graphs.get(&key) {
            Some(Recorded::Graph(graph)) => return graph.launch(&stream).map_err(failed),
            Some(Recorded::Once) => {}
            None => {
                pass(self)?;
                self.graphs.insert(key, Recorded::Once);
                return Ok(());
            }
        }
        // SAFETY: what the pass uses are this device's own buffers and kernels, and weights and
        // pools of the model that owns the device: they live as long as it, and graphs are
        // dropped when a buffer moves.
        let graph = unsafe { stream.capture(|_| pass(self).map_err(Captured::Pass)) };
        let graph = graph.map_err(|error| match error {
            Captured::Pass(error) => error,
            Captured::Graph(error) => failed(error),
        })?;
        let graph = graph.instantiate(&stream).map_err(failed)?;
        graph.launch(&stream).map_err(failed)?;
        self.graphs.insert(key, Recorded::Graph(graph));
        Ok(())
    }

    fn forget(&mut self) {
        self.graphs.clear();
    }

    fn embed(&mut self, table: &Matrix) -> Result<()> {
        let params = ops::embed::cuda::Params {
            x: self.rows.stream.address(),
            table: table.address(),
            tokens: self.integers.tokens(),
            rows: self.integers.rows as u32,
            vocab: self.shape.vocab as u32,
        };
        ops::embed::cuda::embed(&self.gpu, self.shape.hidden, params)
    }

    fn norm(&mut self, add: Add, factor: &Vector) -> Result<()> {
        self.launch_norm(add, self.norm_params(add, factor))
    }

    fn project(&mut self, weight: &Matrix) -> Result<()> {
        let (x, y) = (self.rows.normed.address(), self.rows.projected.address());
        self.linear(weight, x, y, false)
    }

    fn gdn(&mut self, layer: &Layer, pool: &mut StatePool) -> Result<()> {
        let spec = layer.spec();
        let (values, stride) = (spec.value_len(), padded(GdnInputs::width(spec)));
        let singles = self.singles();
        let (rows, act) = (self.integers.rows, self.act());
        let address =
            |block: &Block, row: usize, cols: usize| block.address() + (row * cols * act) as u64;
        let all_slots = self.integers.slots();
        let slots = |first: usize, count: usize| {
            self.gpu.slots(all_slots + (first * size_of::<i32>()) as u64, count)
        };
        let step = |cuda: &mut Cuda, pool: &mut StatePool| -> Result<()> {
            let p = address(&self.rows.projected, 0, stride);
            let p = self.gpu.view(p, singles, stride, stride)?;
            let GdnInputs { mixed_qkv, z, b, a } = GdnInputs::of(&p, spec)?;
            let step = LayerStep {
                layer,
                mixed_qkv,
                a,
                b,
                z,
                slots: slots(0, singles).into(),
                state: pool.state_mut(),
                out: self.gpu.view_mut(self.rows.mixed.address(), singles, values)?,
            };
            Ok(cuda.layer_step(self.decode, step)?)
        };
        let prefill = |cuda: &mut Cuda, pool: &mut StatePool| -> Result<()> {
            let p = address(&self.rows.projected, singles, stride);
            let p = self.gpu.view(p, rows - singles, stride, stride)?;
            let out = address(&self.rows.mixed, singles, values);
            let GdnInputs { mixed_qkv, z, b, a } = GdnInputs::of(&p, spec)?;
            let prefill = Prefill {
                layer,
                mixed_qkv,
                a,
                b,
                z,
                lengths: &self.batch.lengths[singles..],
                slots: slots(singles, self.batch.lengths.len() - singles).into(),
                state: pool.state_mut(),
                out: self.gpu.view_mut(out, rows - singles, values)?,
            };
            Ok(cuda.prefill(self.prefill, prefill)?)
        };
        match (singles, rows - singles, &mut self.beside) {
            (0, _, _) => prefill(&mut self.cuda, pool),
            (_, 0, _) => step(&mut self.cuda, pool),
            (_, _, None) => {
                step(&mut self.cuda, pool)?;
                prefill(&mut self.cuda, pool)
            }
            (_, _, Some(beside)) => {
                beside.begin()?;
                prefill(&mut beside.cuda, pool)?;
                step(&mut self.cuda, pool)?;
                beside.end()
            }
        }
    }

    fn attend(&mut self, q_norm: &Vector, k_norm: &Vector, cache: &mut Cache) -> Result<()> {
        let Shape { attention, norm_eps, .. } = &self.shape;
        let AttentionConfig { heads, kv_heads, head_dim, rotary_dims, .. } = *attention;
        let integers = &self.integers;
        let stride = padded(2 * (heads + kv_heads) * head_dim);
        let rows = integers.rows as u32;
        let (heads, kv_heads) = (heads as u32, kv_heads as u32);
        let params = ops::qkv::cuda::Params {
            p: self.rows.projected.address(),
            q_norm: q_norm.address(),
            k_norm: k_norm.address(),
            frequencies: self.frequencies.address(),
            positions: integers.positions(),
            sequences: integers.row_sequences(),
            table: integers.table(),
            q: self.rows.queries.address(),
            keys: cache.keys.address(),
            values: cache.values.address(),
            stride: stride as u64,
            rows,
            heads,
            kv_heads,
            max_pages: integers.stride as u32,
            pages: cache.pages as u32,
            eps: *norm_eps,
        };
        ops::qkv::cuda::qkv(&self.gpu, head_dim, rotary_dims / 2, params)?;
        let params = attention::Params {
            q: params.q,
            gates: params.p,
            keys: params.keys,
            values: params.values,
            pages: params.table,
            positions: params.positions,
            sequences: params.sequences,
            out: self.rows.mixed.address(),
            tiles: integers.tile_list(),
            partials: self.rows.partials.address(),
            counters: self.rows.counters.address(),
            gate_stride: stride as i64,
            rows,
            kv_heads,
            max_pages: params.max_pages,
            max_items: self.rows.items as u32,
            ..Zeroable::zeroed()
        };
        let singles = self.singles();
        let shape = heads_of(attention);
        if singles > 0 {
            let params = attention::Params { rows: singles as u32, ..params };
            attention::decode(&self.gpu, shape, params)?;
        }
        let (form, tiles) = &self.tiles;
        if !tiles.is_empty() {
            attention::prefill(&self.gpu, shape, *form, tiles.len(), params)?;
        }
        Ok(())
    }

    fn swiglu(&mut self, gate_up: &Matrix) -> Result<()> {
        let outputs = gate_up.outputs / 2;
        ops::linear::cuda::swiglu(
            &self.gpu,
            ops::linear::cuda::Args {
                w: gate_up.address(),
                x: self.rows.normed.address(),
                y: self.rows.mixed.address(),
                x_stride: gate_up.inputs,
                y_stride: outputs,
                rows: self.integers.rows,
                outputs,
                k: gate_up.inputs,
                f32_out: false,
            },
        )
    }

    fn output(&mut self, weight: &Matrix) -> Result<()> {
        let (x, y) = (self.rows.mixed.address(), self.rows.output.address());
        self.linear(weight, x, y, false)
    }

    fn moe(&mut self, router: &Matrix, experts: &Experts) -> Result<()> {
        let moe = self.shape.moe.expect("a model with a router");
        let (rows, normed) = (self.integers.rows, self.rows.normed.address());
        self.linear(router, normed, self.rows.router.address(), true)?;
        let routes = self.rows.routes.as_ref().expect("made for such a model");
        let params = ops::route::cuda::Params {
            logits: self.rows.router.address(),
            sequences: self.integers.row_sequences(),
            experts: routes.experts.address(),
            shares: routes.shares.address(),
            order: routes.order.address(),
            starts: routes.starts.address(),
            active: routes.active.address(),
            active_count: routes.active_count.address(),
            rows: rows as u32,
            stride: padded(moe.experts + 1) as u32,
            renormalise: if moe.renormalise { 1.0 } else { 0.0 },
            pad: 0,
        };
        ops::route::cuda::route(&self.gpu, moe.experts, moe.per_token, params)?;
        let routing = ops::experts::cuda::Routing {
            order: params.order,
            starts: params.starts,
            active: params.active,
            active_count: params.active_count,
            tokens: rows,
            places: moe.per_token + 1,
            experts: moe.experts,
        };
        let (hidden, widest) = (self.shape.hidden, moe.intermediate.max(moe.shared));
        let up = ops::experts::cuda::Args {
            routing,
            w: experts.gate_up.address(),
            shared_w: experts.shared_gate_up.address(),
            x: normed,
            y: self.rows.gated.address(),
            x_stride: hidden,
            y_stride: widest,
            outputs: moe.intermediate,
            shared_outputs: moe.shared,
            k: hidden,
            shared_k: hidden,
        };
        ops::experts::cuda::up(&self.gpu, up)?;
        let down = ops::experts::cuda::Args {
            w: experts.down.address(),
            shared_w: experts.shared_down.address(),
            x: self.rows.gated.address(),
            y: self.rows.parts.address(),
            x_stride: widest,
            y_stride: hidden,
            outputs: hidden,
            shared_outputs: hidden,
            k: moe.intermediate,
            shared_k: moe.shared,
            ..up
        };
        ops::experts::cuda::down(&self.gpu, down)
    }

    fn logits(&mut self, add: Add, factor: &Vector, head: &Matrix) -> Result<()> {
        let wanted = self.integers.wanted;
        let params = ops::norm::cuda::Params {
            picked: self.integers.wanted_rows(),
            rows: wanted as u32,
            ..self.norm_params(add, factor)
        };
        self.launch_norm(add, params)?;
        ops::linear::cuda::linear(
            &self.gpu,
            ops::linear::cuda::Args {
                w: head.address(),
                x: self.rows.normed.address(),
                y: self.rows.logits.address(),
                x_stride: head.inputs,
                y_stride: padded(head.outputs),
                rows: wanted,
                outputs: head.outputs,
                k: head.inputs,
                f32_out: true,
            },
        )?;
        let [seeds, steps, temperature, top_k, top_p, min_p] = self.integers.choices();
        let params = ops::sample::cuda::Params {
            logits: self.rows.logits.address(),
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            steps,
            best: self.rows.best.address(),
            tokens: self.rows.tokens.address(),
            stride: padded(self.shape.vocab) as u64,
            rows: wanted as u32,
            vocab: self.shape.vocab as u32,
            ..Zeroable::zeroed()
        };
        ops::sample::cuda::sample(&self.gpu, params)
    }

    fn read_logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (start, rows, vocab) = (rows.start, rows.len(), self.shape.vocab);
        out.clear();
        out.resize(rows * padded(vocab), 0.0);
        let at = start * padded(vocab) * size_of::<f32>();
        self.rows.logits.block().download(at, bytemuck::cast_slice_mut(out))?;
        if padded(vocab) > vocab {
            for row in 1..rows {
                out.copy_within(row * padded(vocab)..row * padded(vocab) + vocab, row * vocab);
            }
        }
        out.truncate(rows * vocab);
        Ok(())
    }

    fn read_tokens(&mut self, out: &mut Vec<u32>) -> Result<()> {
        out.clear();
        out.resize(self.batch.logits.len(), 0);
        Ok(self.rows.tokens.block().download(0, bytemuck::cast_slice_mut(out))?)
    }

    fn read_stream(&mut self) -> Result<Vec<f32>> {
        let mut rows = vec![0.0; self.batch.rows() * self.shape.hidden];
        self.rows.stream.download(0, bytemuck::cast_slice_mut(&mut rows))?;
        Ok(rows)
    }

    fn read_normed(&mut self) -> Result<Vec<f32>> {
        let len = self.batch.logits.len() * self.shape.hidden;
        let mut bytes = vec![0u8; len * self.act()];
        self.rows.normed.download(0, &mut bytes)?;
        Ok(match self.gpu.activations {
            DType::BF16 => {
                bytemuck::cast_slice::<u8, bf16>(&bytes).iter().map(|x| x.to_f32()).collect()
            }
            _ => bytemuck::cast_slice(&bytes).to_vec(),
        })
    }
}

/// An error on the way out of a capture.
enum Captured {
    Pass(Error),
    Graph(gdn_cuda::Error),
}

impl From<gdn_cuda::Error> for Captured {
    fn from(error: gdn_cuda::Error) -> Self {
        Self::Graph(error)
    }
}
