//! The CUDA backend: the operators on an NVIDIA GPU.
//!
//! [`Cuda`] compiles the kernels of `ops/*/*.cu` at their first use (kept on disk
//! from then on) and launches them on one stream. Tensors lie on the GPU, in
//! [`gdn_cuda::DeviceBuffer`]s or in foreign memory; what lies on the host
//! instead is copied there and back, and the call waits for it: handy for a
//! test, slow in an engine.

mod hardware;
#[doc(hidden)]
pub mod kernel;
pub(crate) mod launch;
#[doc(hidden)]
pub mod params;
#[doc(hidden)]
pub mod runtime;
pub(crate) mod stage;
#[doc(hidden)]
pub mod tiles;
pub(crate) mod weights;

use std::{collections::HashMap, sync::Arc};

use gdn_cuda::{Device, Stream};

use self::{
    hardware::Hardware,
    launch::{Launcher, Strided},
    runtime::{Block, Runtime},
    stage::{Buffer, Stage},
    tiles::{Tile, Tiled, Want},
    weights::WeightCache,
};
use crate::{
    ConvMut, DType, ErrorKind, Layer, LayerSpec, Place, PoolOptions, RecurrentMut, Result, Rows,
    RowsMut, Slots, StatePool,
    backend::{Backend, DecodePath, DecodeSpec, Unsupported},
    device::{DeviceElements, DeviceElementsMut, DeviceIntegers, Region},
    ops::{
        self, ConvUpdate, Decode, GatedNorm, LayerStep, Prefill, PrefillForm, checks::BatchCheck,
        conv::cuda::Ring, norm::cuda::Norm, packed::cuda::Recurrence, prefill::chunked,
        prefill::cuda::LastTokens,
    },
    slots::SlotChecker,
    views::{Data, DataMut},
};

/// Runs the operators on an NVIDIA GPU.
///
/// Calls enqueue work on one stream and return at once, unless a tensor lies on
/// the host. After [`prepare`](Self::prepare), or the first call of its kind, a
/// call allocates nothing and can be captured in a graph; [`Backend::prefill`]
/// cannot, as it uploads the lengths of its sequences when they change.
///
/// ```no_run
/// # use gdn::{Cuda, DType, Layer, LayerSpec, PoolOptions};
/// # fn f(spec: LayerSpec, layer: Layer) -> gdn::Result<()> {
/// let mut cuda = Cuda::new(0)?;
/// let mut pool = cuda.pool(&spec, &PoolOptions::new(256))?;
/// cuda.prepare(&layer, DType::F32, DType::F32, 64)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cuda {
    runtime: Arc<dyn Runtime>,
    stream: Option<Stream>,
    weights: WeightCache,
    workspace: Workspace,
    staged: Vec<Buffer>,
    tokens: LastTokens,
    checker: SlotChecker,
    /// The sticky word that a kernel sets when it meets a bad slot.
    error: Block,
    /// The slots of the pool that was used last, for that error.
    slots: usize,
    overlap: bool,
    force: HashMap<Tiled, Tile>,
}

/// The intermediates of the paths that run in several steps.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// The convolution's output.
    pub(crate) conv: Buffer,
    /// The recurrence's output.
    pub(crate) o: Buffer,
    pub(crate) q: Buffer,
    pub(crate) k: Buffer,
    pub(crate) v: Buffer,
    pub(crate) g: Buffer,
    pub(crate) beta: Buffer,
    /// What chunks of a prefill come with, before the state is known.
    pub(crate) chunks: Buffer,
}

impl Cuda {
    /// Opens GPU number `gpu`, counted from 0, with a stream of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where there is no driver or no such GPU: take
    /// [`Cpu`](crate::Cpu) then. [`ErrorKind::Device`] if the GPU refuses.
    pub fn new(gpu: usize) -> Result<Self> {
        use gdn_cuda::ErrorKind::{DriverTooOld, NoDevice, NoDriver};
        let stream = Device::open(gpu).and_then(|device| Stream::new(&device));
        let stream = stream.map_err(|error| match error.kind() {
            NoDriver | DriverTooOld | NoDevice => {
                ErrorKind::Unavailable { backend: "cuda", reason: error.to_string() }
            }
            _ => ErrorKind::Device { place: Place::Cuda(gpu), reason: error.to_string() },
        })?;
        Self::on_stream(&stream)
    }

    /// Enqueues on `stream`, which an engine shares with its other kernels.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the GPU refuses.
    pub fn on_stream(stream: &Stream) -> Result<Self> {
        let runtime = Arc::new(Hardware::new(stream.clone()));
        Ok(Self { stream: Some(stream.clone()), ..Self::on_runtime(runtime)? })
    }

    /// Another one on this GPU, with the kernels that are loaded and a stream of its
    /// own: what it runs goes on beside what this one does, unless events order them.
    /// `None` on a runtime without streams.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the GPU refuses.
    pub fn beside(&self) -> Result<Option<Self>> {
        let Some(runtime) = self.runtime.beside()? else { return Ok(None) };
        let stream = runtime.stream().cloned();
        Ok(Some(Self { stream, ..Self::on_runtime(runtime)? }))
    }

    /// On another runtime, for tests.
    #[doc(hidden)]
    pub fn on_runtime(runtime: Arc<dyn Runtime>) -> Result<Self> {
        let error = Block::zeroed(&runtime, 8)?;
        Ok(Self {
            runtime,
            stream: None,
            weights: WeightCache::default(),
            workspace: Workspace::default(),
            staged: Vec::new(),
            tokens: LastTokens::default(),
            checker: SlotChecker::default(),
            error,
            slots: 0,
            overlap: false,
            force: HashMap::new(),
        })
    }

    /// What calls run on.
    #[doc(hidden)]
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// Takes this tile for an operator in place of the table's, whatever the
    /// batch: for tests, and to try tiles on a GPU. It must fit the layer.
    #[doc(hidden)]
    pub fn force_tile(&mut self, operator: Tiled, tile: Tile) {
        self.force.insert(operator, tile);
    }

    /// The stream that calls enqueue on.
    ///
    /// # Panics
    /// On the runtime of a test, which has none.
    pub fn stream(&self) -> &Stream {
        self.stream.as_ref().expect("a GPU")
    }

    /// The GPU, as "NVIDIA H100 80GB HBM3".
    pub fn device_name(&self) -> &str {
        &self.runtime.gpu().name
    }

    /// Lets packed decode and the fused step start while the kernel before them
    /// on the stream still runs, and load state meanwhile (programmatic
    /// dependent launch, on GPUs that have it). That kernel must write none of
    /// the slots, the state and the conv state that they read, as a projection
    /// does not. Off by default.
    pub fn set_overlap(&mut self, overlap: bool) {
        self.overlap = overlap;
    }

    /// A state pool on this GPU, whose slots are all free and zero.
    ///
    /// # Errors
    /// As [`StatePool::new`], and [`ErrorKind::Device`] if the GPU has not as
    /// much memory.
    pub fn pool(&self, spec: &LayerSpec, options: &PoolOptions) -> Result<StatePool> {
        StatePool::build(spec, options, Some(&self.runtime))
    }

    /// Uploads the layer's weights, compiles and loads the kernels of all decode
    /// paths for batches of up to `rows` rows, and makes room for what lies
    /// between the steps of a path: what the first calls would do otherwise. A
    /// graph keeps that room's address, so prepare for the largest batch before
    /// the first capture.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where there is no kernel compiler,
    /// [`ErrorKind::Device`] if the GPU refuses.
    pub fn prepare(
        &mut self,
        layer: &Layer,
        activations: DType,
        recurrent: DType,
        rows: usize,
    ) -> Result<()> {
        let spec = layer.spec();
        let options = PoolOptions { recurrent, conv: activations, ..PoolOptions::new(1) };
        let mut pool = self.pool(spec, &options)?;
        let (channels, heads, values) = (spec.channels(), spec.v_heads(), spec.value_len());
        let size = activations.size();
        let input = Block::zeroed(&self.runtime, rows * channels.max(values) * size)?;
        let out = Block::new(&self.runtime, rows * values * size)?;
        let mut slots = Block::new(&self.runtime, rows * size_of::<i32>())?;
        slots.upload(0, bytemuck::cast_slice(&vec![-1i32; rows]))?;
        let gpu = input.gpu();
        let region =
            |block: &Block, len| Region { address: block.address(), dtype: activations, len, gpu };
        // Padding rows run every kernel and touch no state.
        for rows in self.batches(spec, activations, recurrent, rows) {
            let view = |cols| {
                let elements = DeviceElements::new(region(&input, rows * cols));
                Rows::new(Data::Device(elements), rows, cols)
            };
            for path in DecodePath::ALL {
                let elements = DeviceElementsMut::new(region(&out, rows * values));
                self.layer_step(
                    path,
                    LayerStep {
                        layer,
                        mixed_qkv: view(channels)?,
                        a: view(heads)?,
                        b: view(heads)?,
                        z: view(values)?,
                        slots: DeviceIntegers::new(slots.address(), rows, gpu, false).into(),
                        state: pool.state_mut(),
                        out: RowsMut::new(DataMut::Device(elements), rows, values)?,
                    },
                )?;
            }
        }
        self.runtime.synchronize()
    }

    /// Batches of up to `rows` rows that between them take every tile, the
    /// largest first.
    fn batches(
        &self,
        spec: &LayerSpec,
        activations: DType,
        recurrent: DType,
        rows: usize,
    ) -> Vec<usize> {
        let tiles = |rows: usize| {
            [Tiled::Split, Tiled::Packed, Tiled::Fused].map(|operator| {
                let want = Want::new(operator, spec, activations, recurrent);
                want.tile(self.runtime.gpu(), rows * spec.v_heads(), true)
            })
        };
        let largest = |&r: &usize| r == rows || tiles(r) != tiles(r + 1);
        (1..=rows).rev().filter(largest).collect()
    }

    /// Waits for all work of this backend's stream.
    ///
    /// # Errors
    /// [`ErrorKind::SlotOutOfRange`] if a kernel met a slot past the end of its
    /// pool since the last call, and took its row for padding: a slot that lies
    /// on the GPU, which the host could not check. [`ErrorKind::Device`] if work
    /// faulted.
    pub fn synchronize(&mut self) -> Result<()> {
        let mut word = [0; 8];
        self.error.download(0, &mut word)?;
        let word = u64::from_ne_bytes(word);
        if word == 0 {
            return Ok(());
        }
        self.error.zero(0, 8)?;
        let (row, got) = ((word >> 32) as usize - 1, i64::from(word as u32));
        Err(ErrorKind::SlotOutOfRange { row, slots: self.slots, got }.into())
    }
}

/// What a call hands to its launchers.
struct Call<'c, 'a> {
    launcher: Launcher<'c>,
    runtime: &'c Arc<dyn Runtime>,
    workspace: &'c mut Workspace,
    stage: Stage<'c, 'a>,
    overlap: bool,
}

impl Cuda {
    /// Places, shapes, dtypes and the slots of the host: `Err` before anything
    /// is enqueued.
    fn check(&mut self, args: &impl BatchCheck) -> Result<()> {
        let here = Place::Cuda(self.runtime.ordinal());
        args.places(&mut |argument, place| match place {
            Place::Host => Ok(()),
            Place::Cuda(_) => place.expect(argument, here),
        })?;
        args.check()?;
        let (slots, pool) = args.slots();
        if slots.place() == Place::Host
            && let Some(pool) = pool
        {
            self.checker.check(slots, pool)?;
        }
        Ok(())
    }

    /// Readies a call on a pool of so many slots; `None` if all that matters is
    /// which rows are padding.
    fn call<'c, 'a>(
        &'c mut self,
        layer: &'c Layer,
        [activations, recurrent]: [DType; 2],
        slots: Slots<'_>,
        pool: Option<usize>,
    ) -> Result<Call<'c, 'a>> {
        let Self { runtime, weights, workspace, staged, error, overlap, force, .. } = self;
        self.slots = pool.unwrap_or(self.slots);
        let runtime = &*runtime;
        let weights = weights.get(runtime, layer)?;
        let mut stage = Stage::new(runtime, staged);
        let rows = slots.len();
        let (address, wide) = stage.slots(slots)?;
        let spec = layer.spec();
        let launcher = Launcher {
            runtime: &**runtime,
            force,
            spec,
            weights,
            activations,
            recurrent,
            rows,
            slots: params::Slots {
                slots: address,
                error: error.address(),
                n_slots: pool.map_or(i64::MAX, |slots| slots as i64),
                b: rows as u32,
                flags: Launcher::flags(spec, wide),
            },
        };
        Ok(Call { launcher, runtime, workspace, stage, overlap: *overlap })
    }

    fn decode(&mut self, path: DecodePath, args: Decode<'_>) -> Result<()> {
        self.check(&args)?;
        let Decode { layer, mixed_qkv, a, b, slots, recurrent, out } = args;
        if mixed_qkv.rows() == 0 {
            return Ok(());
        }
        let dtypes = [mixed_qkv.dtype(), recurrent.dtype()];
        let mut call = self.call(layer, dtypes, slots, Some(recurrent.slots()))?;
        let recurrence = call.recurrence([&mixed_qkv, &a, &b], recurrent, out)?;
        let overlap = call.overlap;
        call.recur(path, recurrence, overlap)?;
        call.stage.finish()
    }
}

impl<'a> Call<'_, 'a> {
    fn recurrence(
        &mut self,
        [x, a, b]: [&Rows<'_>; 3],
        state: RecurrentMut<'a>,
        out: RowsMut<'a>,
    ) -> Result<Recurrence> {
        let stage = &mut self.stage;
        Ok(Recurrence {
            x: stage.rows(x)?,
            a: stage.rows(a)?,
            b: stage.rows(b)?,
            state: stage.recurrent(state)?,
            out: stage.out(out)?.address,
        })
    }

    fn ring(&mut self, conv: ConvMut<'a>) -> Result<Ring> {
        let spec = self.launcher.spec;
        let (entries, phase) = self.stage.conv(conv, spec.v_heads(), spec.conv_width())?;
        Ok(Ring { entries, phase })
    }

    /// The recurrence alone, split or packed.
    fn recur(&mut self, path: DecodePath, args: Recurrence, overlap: bool) -> Result<()> {
        match path {
            DecodePath::Split => {
                ops::split::cuda::launch(&self.launcher, self.runtime, self.workspace, args)
            }
            _ => ops::packed::cuda::launch(&self.launcher, args, overlap),
        }
    }

    /// Convolution, recurrence and norm one by one.
    fn chain(&mut self, path: DecodePath, args: Recurrence, ring: Ring, z: Strided) -> Result<()> {
        let Launcher { spec, activations, rows, .. } = self.launcher;
        let buffer = |buffer: &mut Buffer, cols: usize| {
            let block = buffer.get(self.runtime, rows * cols * activations.size())?;
            Ok::<_, crate::Error>(Strided { address: block.address(), stride: cols })
        };
        let y = buffer(&mut self.workspace.conv, spec.channels())?;
        let o = buffer(&mut self.workspace.o, spec.value_len())?;
        ops::conv::cuda::launch(&self.launcher, args.x, ring, y)?;
        // The convolution writes no slots and no recurrent state.
        self.recur(path, Recurrence { x: y, out: o.address, ..args }, true)?;
        let norm = Norm { rows, o, o_dtype: activations, z, out: args.out, owner: 0 };
        ops::norm::cuda::launch(&self.launcher, norm, true)
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn supports(&self, path: DecodePath, spec: &DecodeSpec<'_>) -> Result<(), Unsupported> {
        let DecodeSpec { layer, activations, recurrent } = *spec;
        let gpu = self.runtime.gpu();
        let operator = match path {
            DecodePath::Split => Tiled::Split,
            DecodePath::Packed => Tiled::Packed,
            DecodePath::Fused => Tiled::Fused,
        };
        let want = Want::new(operator, layer, activations, recurrent);
        // Every other tile was chosen to fit.
        let shared = want.tile(gpu, 1, false).shared(&want);
        let limit = gpu.shared_bytes as usize;
        let no = |reason: String| Err(Unsupported { reason });
        if gpu.capability < 80 {
            return no(format!("{} is older than compute capability 8.0", gpu.name));
        }
        if shared > limit {
            return no(format!("takes {shared} bytes of shared memory, {} has {limit}", gpu.name));
        }
        if layer.v_heads() >= MAX_HEADS {
            return no(format!("kernels take fewer than {MAX_HEADS} value heads"));
        }
        Ok(())
    }

    fn conv_update(&mut self, args: ConvUpdate<'_>) -> Result<()> {
        self.check(&args)?;
        let ConvUpdate { layer, mixed_qkv, slots, conv, out } = args;
        if mixed_qkv.rows() == 0 {
            return Ok(());
        }
        let dtypes = [mixed_qkv.dtype(), DType::F32];
        let mut call = self.call(layer, dtypes, slots, Some(conv.slots()))?;
        let x = call.stage.rows(&mixed_qkv)?;
        let (ring, y) = (call.ring(conv)?, call.stage.out(out)?);
        ops::conv::cuda::launch(&call.launcher, x, ring, y)?;
        call.stage.finish()
    }

    fn split_decode(&mut self, args: Decode<'_>) -> Result<()> {
        self.decode(DecodePath::Split, args)
    }

    fn packed_decode(&mut self, args: Decode<'_>) -> Result<()> {
        self.decode(DecodePath::Packed, args)
    }

    fn gated_norm(&mut self, args: GatedNorm<'_>) -> Result<()> {
        self.check(&args)?;
        let GatedNorm { layer, o, z, slots, out } = args;
        let (rows, dtype) = (o.rows(), o.dtype());
        if rows == 0 {
            return Ok(());
        }
        let mut call = self.call(layer, [dtype, DType::F32], slots, None)?;
        let (o, z) = (call.stage.rows(&o)?, call.stage.rows(&z)?);
        let out = call.stage.out(out)?;
        let norm = Norm { rows, o, o_dtype: dtype, z, out: out.address, owner: 0 };
        ops::norm::cuda::launch(&call.launcher, norm, call.overlap)?;
        call.stage.finish()
    }

    fn layer_step(&mut self, path: DecodePath, args: LayerStep<'_>) -> Result<()> {
        self.check(&args)?;
        let LayerStep { layer, mixed_qkv, a, b, z, slots, state, out } = args;
        if mixed_qkv.rows() == 0 {
            return Ok(());
        }
        let dtypes = [mixed_qkv.dtype(), state.recurrent.dtype()];
        let mut call = self.call(layer, dtypes, slots, Some(state.recurrent.slots()))?;
        let ring = call.ring(state.conv)?;
        let z = call.stage.rows(&z)?;
        let recurrence = call.recurrence([&mixed_qkv, &a, &b], state.recurrent, out)?;
        match path {
            DecodePath::Fused => {
                ops::fused::cuda::launch(&call.launcher, recurrence, ring, z, call.overlap)?;
            }
            _ => call.chain(path, recurrence, ring, z)?,
        }
        call.stage.finish()
    }

    fn prefill(&mut self, form: PrefillForm, args: Prefill<'_>) -> Result<()> {
        self.check(&args)?;
        let Prefill { layer, mixed_qkv, a, b, z, lengths, slots, state, out } = args;
        if mixed_qkv.rows() == 0 {
            return Ok(());
        }
        let dtypes = [mixed_qkv.dtype(), state.recurrent.dtype()];
        let tokens = self.tokens.get(&self.runtime, lengths)?;
        let mut call = self.call(layer, dtypes, slots, Some(state.recurrent.slots()))?;
        let ring = call.ring(state.conv)?;
        let z = call.stage.rows(&z)?;
        let recurrence = call.recurrence([&mixed_qkv, &a, &b], state.recurrent, out)?;
        let Call { launcher, runtime, workspace, stage, .. } = call;
        let launch = match form {
            PrefillForm::Chunked if chunked::fits(&launcher) => chunked::launch,
            _ => ops::prefill::cuda::launch,
        };
        launch(&launcher, runtime, workspace, &tokens, recurrence, ring, z)?;
        stage.finish()
    }
}

/// The kernels find the query/key head of a value head by a multiplication that
/// is exact below this.
const MAX_HEADS: usize = 1 << 11;
