//! The same measurement on a GPU: graphs of launches, each on other slots.
#![expect(unsafe_code, reason = "a graph keeps the addresses of what it recorded")]

use std::time::Instant;

use anyhow::Context;
use gdn::{
    Backend, Cuda, Decode, DecodePath, LayerStep, PoolOptions, Slots, StatePool, cuda::tiles::Tiled,
};
use gdn_check::{DeviceTensor, Inputs, RandomLayer, Tensor};
use gdn_cuda::{Arena, DeviceBuffer, Event, GraphExec, Stream};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{
    plan::{Memory, Plan},
    rotation::Rotation,
    row::{Launches, Row, Timed},
    stats::Summary,
};
use crate::cli::BenchArgs;

/// Launches of a graph, at most.
const LAUNCHES: usize = 40;

/// Graphs that are replayed back to back. The first of them is not counted: its
/// launch by the host does not hide behind another.
const BURST: usize = 4;

/// Bytes that the driver copies at once: more of them, in a graph, it copies at
/// two thirds of the speed.
const COPY: usize = 256 << 20;

/// Calls without a graph, back to back.
const EAGER: usize = 200;

/// The memory of a GPU, of which some is left for everything else.
pub(super) fn memory(cuda: &Cuda) -> anyhow::Result<Memory> {
    let device = cuda.stream().device();
    Ok(Memory {
        cache_bytes: device.info().l2_bytes as u64,
        available_bytes: device.memory()?.free as u64 * 9 / 10,
        // The slots of some graphs must not fit the cache together.
        cold_factor: 10,
        batches: 2,
    })
}

/// The memory that every row of the table shares.
#[derive(Debug)]
pub(super) struct GpuBench<'a> {
    args: &'a BenchArgs,
    cuda: Cuda,
    stream: Stream,
    layer: RandomLayer,
    pool: StatePool,
    slots: Rotation,
    pool_slots: usize,
    /// Of the copy.
    source: DeviceBuffer<u8>,
    target: DeviceBuffer<u8>,
    blocks: usize,
    slot_bytes: u64,
    rng: SmallRng,
}

/// The activations of a batch, and the slots of every launch.
struct Batch {
    rows: usize,
    mixed_qkv: DeviceTensor,
    a: DeviceTensor,
    b: DeviceTensor,
    z: DeviceTensor,
    out: DeviceTensor,
    /// `[graphs · launches, B]`.
    slots: DeviceBuffer<i32>,
    launches: usize,
    graphs: usize,
}

impl<'a> GpuBench<'a> {
    /// Fills the pool with random state.
    pub(super) fn new(
        args: &'a BenchArgs,
        plan: &Plan,
        layer: RandomLayer,
        mut cuda: Cuda,
    ) -> anyhow::Result<Self> {
        cuda.set_overlap(args.overlap);
        for (operator, tile) in [(Tiled::Packed, args.packed_tile), (Tiled::Fused, args.fused_tile)]
        {
            if let Some(tile) = tile {
                cuda.force_tile(operator, tile);
            }
        }
        let spec = &plan.spec;
        let mut rng = SmallRng::seed_from_u64(args.seed.into());
        let options = PoolOptions {
            recurrent: args.state_dtype,
            conv: args.dtype,
            ..PoolOptions::new(plan.slots)
        };
        let mut pool = cuda.pool(spec, &options).context("no memory for the state pool")?;
        let mut random = |len| (0..len).map(|_| rng.random_range(-0.5..0.5)).collect::<Vec<f32>>();
        let recurrent = random(spec.state_len());
        let conv = random((spec.conv_width() - 1) * spec.channels());
        let first = pool.allocate()?;
        pool.set(first, &recurrent, &conv)?;
        for _ in 1..plan.slots {
            let slot = pool.allocate()?;
            pool.copy(first, slot)?;
        }
        let largest = *args.batch_sizes.iter().max().expect("clap asks for one");
        cuda.prepare(&layer.layer, args.dtype, args.state_dtype, largest)?;

        let stream = cuda.stream().clone();
        let blocks = plan.copy_blocks;
        let bytes = blocks * plan.slot_bytes as usize;
        let arena = Arena::new(stream.device(), 2 * bytes + 512)
            .context("no memory for the buffers of the copy")?;
        let buffer = |byte| {
            let mut buffer = arena.alloc::<u8>(bytes)?;
            stream.fill_bytes(buffer.view_mut(), byte)?;
            Ok::<_, gdn_cuda::Error>(buffer)
        };
        let (source, target) = (buffer(1)?, buffer(2)?);
        let slots = Rotation::new(plan.slots, args.warm, &mut rng);
        let (pool_slots, slot_bytes) = (plan.slots, plan.slot_bytes);
        Ok(Self {
            args,
            cuda,
            stream,
            layer,
            pool,
            slots,
            pool_slots,
            source,
            target,
            blocks,
            slot_bytes,
            rng,
        })
    }

    /// Measures a batch of `rows`. In a round every operator replays some graphs,
    /// in random order.
    pub(super) fn row(&mut self, rows: usize, progress: impl Fn(f64)) -> anyhow::Result<Row> {
        let mut batch = self.batch(rows)?;
        let graphs = Timed::ALL.map(|timed| self.graphs(timed, &mut batch));
        let graphs: Vec<Vec<GraphExec>> = graphs.into_iter().collect::<anyhow::Result<_>>()?;
        let mut samples: [Vec<f64>; Timed::ALL.len()] = Default::default();
        let mut order = Timed::ALL;
        let start = Instant::now();
        let mut next = 0;
        for round in 0usize.. {
            // The first round warms up: graphs are uploaded, clocks rise.
            let counted = round.saturating_sub(1);
            let rounds = counted as f64 / self.args.repeats as f64;
            let time = start.elapsed().as_secs_f64() / self.args.min_time;
            let done = if time < rounds { time } else { rounds };
            if done >= 1.0 {
                break;
            }
            progress(done);
            order.shuffle(&mut self.rng);
            for timed in order {
                let times = self.replay(&graphs[timed as usize], next, batch.launches)?;
                if round > 0 {
                    samples[timed as usize].extend(times);
                }
            }
            next += BURST;
        }
        // A round is one sample: what is compared is what ran side by side.
        let samples = samples.map(|times| {
            times
                .chunks_exact(BURST - 1)
                .map(|burst| Summary::of(burst.iter().copied()).median)
                .collect()
        });
        let launches = self.launches(&mut batch)?;
        let spec = self.layer.layer.spec();
        Ok(Row::new(spec, rows, self.slot_bytes, &samples, Some(launches)))
    }

    fn batch(&mut self, rows: usize) -> anyhow::Result<Batch> {
        let spec = self.layer.layer.spec();
        let launches = (self.pool_slots / rows).clamp(2, LAUNCHES);
        let graphs = self.pool_slots.div_ceil(rows * launches).max(2);
        let inputs = Inputs::random(spec, self.args.dtype, rows, 0, self.args.seed.into());
        let out = Tensor::poisoned(self.args.dtype, rows, spec.value_len());
        let slots: Vec<i32> =
            (0..graphs * launches).flat_map(|_| self.slots.next(rows).to_vec()).collect();
        let tensors = [&inputs.mixed_qkv, &inputs.a, &inputs.b, &inputs.z, &out];
        let bytes = tensors.map(|tensor| tensor.slice().len() * self.args.dtype.size() + 256);
        let slot_bytes = size_of_val(slots.as_slice()) + 256;
        let stream = &self.stream;
        let arena = Arena::new(stream.device(), bytes.iter().sum::<usize>() + slot_bytes)
            .context("no memory for the activations")?;
        let [mixed_qkv, a, b, z, out] = tensors.map(|tensor| tensor.to_device(&arena, stream));
        let mut on_device = arena.alloc(slots.len())?;
        stream.upload(on_device.view_mut(), &slots)?;
        Ok(Batch {
            rows,
            mixed_qkv: mixed_qkv?,
            a: a?,
            b: b?,
            z: z?,
            out: out?,
            slots: on_device,
            launches,
            graphs,
        })
    }

    /// The graphs of an operator: together they visit the whole pool.
    fn graphs(&mut self, timed: Timed, batch: &mut Batch) -> anyhow::Result<Vec<GraphExec>> {
        let launches = batch.launches;
        let chunks = |graph| move |i| graph * launches + i;
        (0..batch.graphs).map(|graph| self.graph(timed, batch, chunks(graph))).collect()
    }

    /// A graph whose launch `i` works on slots `chunk(i)`.
    fn graph(
        &mut self,
        timed: Timed,
        batch: &mut Batch,
        chunk: impl Fn(usize) -> usize,
    ) -> anyhow::Result<GraphExec> {
        let stream = self.stream.clone();
        // SAFETY: the graphs of a row are dropped before its batch, and the pool, the weights, the
        // kernels and the workspaces, which `prepare` sized, live as long as `self`. Nothing else
        // uses them meanwhile.
        let graph = unsafe {
            stream.capture(|_| {
                (0..batch.launches).try_for_each(|i| self.enqueue(timed, batch, chunk(i)))
            })
        }?;
        Ok(graph.instantiate(&stream)?)
    }

    /// One call on the slots of this chunk.
    fn enqueue(&mut self, timed: Timed, batch: &mut Batch, chunk: usize) -> anyhow::Result<()> {
        let rows = batch.rows;
        if let Timed::Copy = timed {
            let slot = self.slot_bytes as usize;
            let start = chunk * rows % (self.blocks - rows + 1) * slot;
            let end = start + rows * slot;
            for start in (start..end).step_by(COPY) {
                let range = start..end.min(start + COPY);
                let source = self.source.slice(range.clone())?;
                self.stream.copy(self.target.slice_mut(range)?, source)?;
            }
            return Ok(());
        }
        let layer = &self.layer.layer;
        let slots: Slots<'_> = batch.slots.slice(chunk * rows..(chunk + 1) * rows)?.into();
        let (mixed_qkv, a, b) = (batch.mixed_qkv.view(), batch.a.view(), batch.b.view());
        let (z, state, out) = (batch.z.view(), self.pool.state_mut(), batch.out.view_mut());
        match timed {
            Timed::Split | Timed::Packed => {
                let recurrent = state.recurrent;
                let args = Decode { layer, mixed_qkv, a, b, slots, recurrent, out };
                match timed {
                    Timed::Split => self.cuda.split_decode(args)?,
                    _ => self.cuda.packed_decode(args)?,
                }
            }
            _ => {
                let path = match timed {
                    Timed::Chain => DecodePath::Packed,
                    _ => DecodePath::Fused,
                };
                let args = LayerStep { layer, mixed_qkv, a, b, z, slots, state, out };
                self.cuda.layer_step(path, args)?;
            }
        }
        Ok(())
    }

    /// The time of a launch in each of a burst of graphs but the first, in µs.
    fn replay(
        &self,
        graphs: &[GraphExec],
        first: usize,
        launches: usize,
    ) -> anyhow::Result<Vec<f64>> {
        let device = self.stream.device();
        let events: Vec<Event> =
            (0..=BURST).map(|_| Event::timed(device)).collect::<gdn_cuda::Result<_>>()?;
        self.stream.record(&events[0])?;
        for (i, event) in events[1..].iter().enumerate() {
            graphs[(first + i) % graphs.len()].launch(&self.stream)?;
            self.stream.record(event)?;
        }
        events[BURST].synchronize()?;
        let pairs = events[1..].windows(2);
        let time = |pair: &[Event]| pair[0].elapsed(&pair[1]);
        pairs.map(|pair| Ok(time(pair)?.as_secs_f64() * 1e6 / launches as f64)).collect()
    }

    /// Packed decode on warm state, and without a graph.
    fn launches(&mut self, batch: &mut Batch) -> anyhow::Result<Launches> {
        // Each launch reads what the one before it wrote.
        self.cuda.set_overlap(false);
        let warm = [self.graph(Timed::Packed, batch, |_| 0)?];
        self.cuda.set_overlap(self.args.overlap);
        let mut warm_us = Vec::new();
        let (mut eager_us, mut host_us) = (Vec::new(), Vec::new());
        let chunks = batch.graphs * batch.launches;
        for _ in 0..10 {
            warm_us.extend(self.replay(&warm, 0, batch.launches)?);
            self.stream.synchronize()?;
            let start = Instant::now();
            for call in 0..EAGER {
                self.enqueue(Timed::Packed, batch, call % chunks)?;
            }
            host_us.push(start.elapsed().as_secs_f64() * 1e6 / EAGER as f64);
            self.stream.synchronize()?;
            eager_us.push(start.elapsed().as_secs_f64() * 1e6 / EAGER as f64);
        }
        let [warm_us, eager_us, host_us] = [warm_us, eager_us, host_us].map(Summary::of);
        Ok(Launches { warm_us, eager_us, host_us })
    }
}
