//! What the tests share: the backends, and sequences that know nothing of the
//! batch in which an operator meets them.
#![allow(dead_code, unreachable_pub, reason = "a module of many tests, none of which uses it all")]

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use gdn::{
    Backend, ConvMut, ConvUpdate, Cpu, Cuda, DType, Decode, DecodePath,
    DecodePath::*,
    GatedNorm, Layer, LayerSpec, LayerStep, Prefill, PrefillForm, RecurrentMut, Result, Rows,
    RowsMut, Slots, StateMut, StatePool,
    cuda::runtime::Runtime,
    oracle::{Oracle, OracleState},
};
use gdn_check::{Case, Inputs, RandomLayer, Tensor};
use gdn_emu::EmulatedGpu;
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// What the tests run on: `GDN_TEST_BACKEND` says `cpu`, `cuda` (the first GPU),
/// or `emu` (the CUDA kernels, run on the CPU).
fn kind() -> &'static str {
    static KIND: OnceLock<String> = OnceLock::new();
    KIND.get_or_init(|| std::env::var("GDN_TEST_BACKEND").unwrap_or_else(|_| "cpu".to_owned()))
}

/// The backend that most tests run on.
pub fn backend() -> Box<dyn Backend> {
    match kind() {
        "cpu" => Box::new(Cpu::with_threads(2).unwrap()),
        _ => Box::new(cuda()),
    }
}

/// The CUDA backend, on one runtime for the whole process: kernels are loaded
/// once.
pub fn cuda() -> Cuda {
    static RUNTIME: OnceLock<Arc<dyn Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| match kind() {
        "cuda" => Cuda::new(0).unwrap().runtime().clone(),
        "emu" => {
            let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
            Arc::new(EmulatedGpu::new(&out).unwrap())
        }
        other => panic!("GDN_TEST_BACKEND={other}: expected cpu, cuda or emu"),
    });
    Cuda::on_runtime(runtime.clone()).unwrap()
}

/// Backends that must agree bit for bit.
pub fn backends() -> Vec<Box<dyn Backend>> {
    let of = |threads| Box::new(Cpu::with_threads(threads).unwrap()) as Box<dyn Backend>;
    match kind() {
        "cpu" => [1, 2, 3].map(of).into(),
        _ => vec![backend(), backend()],
    }
}

/// Whether the tests run on a GPU: a real one, or also an emulated one.
pub fn on_gpu(real: bool) -> bool {
    kind() == "cuda" || (kind() == "emu" && !real)
}

pub const PREFILL_FORMS: [PrefillForm; 2] = [PrefillForm::Recurrent, PrefillForm::Chunked];

/// Everything that a backend runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Conv,
    Decode(DecodePath),
    Norm,
    Layer(DecodePath),
    Prefill(PrefillForm),
}

impl Op {
    /// All that the backend has.
    pub fn all() -> impl Iterator<Item = Self> {
        let steps = [
            Self::Conv,
            Self::Decode(Split),
            Self::Decode(Packed),
            Self::Norm,
            Self::Layer(Split),
            Self::Layer(Packed),
            Self::Layer(Fused),
        ];
        steps.into_iter().chain(PREFILL_FORMS.into_iter().map(Self::Prefill))
    }

    pub fn is_prefill(self) -> bool {
        matches!(self, Self::Prefill(_))
    }

    pub fn has_conv(self) -> bool {
        matches!(self, Self::Conv | Self::Layer(_) | Self::Prefill(_))
    }

    pub fn has_recurrent(self) -> bool {
        !matches!(self, Self::Conv | Self::Norm)
    }

    pub fn out_cols(self, spec: &LayerSpec) -> usize {
        if self == Self::Conv { spec.channels() } else { spec.value_len() }
    }
}

/// The arguments of all operators; each takes those that it has.
#[derive(Debug)]
pub struct Args<'a> {
    pub layer: &'a Layer,
    pub mixed_qkv: Rows<'a>,
    pub a: Rows<'a>,
    pub b: Rows<'a>,
    pub z: Rows<'a>,
    pub o: Rows<'a>,
    pub lengths: &'a [usize],
    pub slots: Slots<'a>,
    pub state: StateMut<'a>,
    pub out: RowsMut<'a>,
}

impl<'a> Args<'a> {
    /// Each of `lengths` is a sequence of a prefill.
    pub fn new(
        layer: &'a Layer,
        inputs: &'a Inputs,
        lengths: &'a [usize],
        slots: Slots<'a>,
        state: StateMut<'a>,
        out: RowsMut<'a>,
    ) -> Self {
        let (mixed_qkv, z) = (inputs.mixed_qkv.view(), inputs.z.view());
        let (a, b) = (inputs.a.view(), inputs.b.view());
        let values = values(layer.spec());
        let o = mixed_qkv.columns(values.start, values.len()).unwrap();
        Self { layer, mixed_qkv, a, b, z, o, lengths, slots, state, out }
    }

    pub fn call(self, backend: &mut dyn Backend, op: Op) -> Result<()> {
        let Self { layer, mixed_qkv, a, b, z, o, lengths, slots, state, out } = self;
        let StateMut { recurrent, conv } = state;
        match op {
            Op::Conv => backend.conv_update(ConvUpdate { layer, mixed_qkv, slots, conv, out }),
            Op::Decode(path) => {
                let args = Decode { layer, mixed_qkv, a, b, slots, recurrent, out };
                match path {
                    Split => backend.split_decode(args),
                    Packed | Fused => backend.packed_decode(args),
                }
            }
            Op::Norm => backend.gated_norm(GatedNorm { layer, o, z, slots, out }),
            Op::Layer(path) => {
                let state = StateMut { recurrent, conv };
                let args = LayerStep { layer, mixed_qkv, a, b, z, slots, state, out };
                backend.layer_step(path, args)
            }
            Op::Prefill(form) => {
                let state = StateMut { recurrent, conv };
                let args = Prefill { layer, mixed_qkv, a, b, z, lengths, slots, state, out };
                backend.prefill(form, args)
            }
        }
    }
}

/// The columns of `mixed_qkv` that stand for the recurrence's output where the
/// gated norm runs alone.
fn values(spec: &LayerSpec) -> Range<usize> {
    spec.channels() - spec.value_len()..spec.channels()
}

/// The dtypes of a problem.
#[derive(Clone, Copy, Debug)]
pub struct DTypes {
    pub activations: DType,
    pub recurrent: DType,
}

impl DTypes {
    pub const F32: Self = Self { activations: DType::F32, recurrent: DType::F32 };

    /// Every pair.
    pub fn all() -> impl Iterator<Item = Self> {
        let pairs = DType::ALL.into_iter().flat_map(|a| DType::ALL.map(|r| (a, r)));
        pairs.map(|(activations, recurrent)| Self { activations, recurrent })
    }

    /// The relative L2 error that out and state may have.
    pub fn tolerance(self, spec: &LayerSpec) -> f64 {
        Case::new(1, spec.clone()).with_dtypes(self.activations, self.recurrent).tolerance()
    }
}

/// A layer that decodes some sequences.
#[derive(Debug)]
pub struct World {
    pub spec: LayerSpec,
    pub dtypes: DTypes,
    pub random: RandomLayer,
    pub sequences: Vec<Sequence>,
}

/// One sequence: its state before, `[HV·V·K]` and `[W − 1, C]`, and its tokens.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub recurrent: Vec<f32>,
    pub conv: Vec<f32>,
    pub tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub mixed_qkv: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub z: Vec<f32>,
}

impl World {
    /// Random sequences of so many tokens each, of numbers that the dtypes
    /// hold.
    pub fn new(spec: &LayerSpec, dtypes: DTypes, lengths: &[usize], seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        // Without the norm, keys of length 1 keep the recurrence stable.
        let bound = if spec.qk_l2norm() { 2.0 } else { (spec.head_k() as f32).powf(-0.5) };
        let mut of = |dtype, len: usize, bound: f32| {
            let values: Vec<f32> = (0..len).map(|_| rng.random_range(-bound..bound)).collect();
            rounded(dtype, &values)
        };
        let DTypes { activations, recurrent } = dtypes;
        let mut sequence = |&len: &usize| Sequence {
            recurrent: of(recurrent, spec.state_len(), 0.5),
            conv: of(activations, (spec.conv_width() - 1) * spec.channels(), bound),
            tokens: (0..len)
                .map(|_| Token {
                    mixed_qkv: of(activations, spec.channels(), bound),
                    a: of(activations, spec.v_heads(), 2.0),
                    b: of(activations, spec.v_heads(), 2.0),
                    z: of(activations, spec.value_len(), 2.0),
                })
                .collect(),
        };
        let sequences = lengths.iter().map(&mut sequence).collect();
        let random = RandomLayer::new(spec, activations, seed);
        Self { spec: spec.clone(), dtypes, random, sequences }
    }

    /// Runs `op` on all tokens of the sequences that `layout` names.
    ///
    /// Whatever the operator must not touch is poison, and is looked at
    /// afterwards: padding rows are zero, and the rest of the pools keeps every
    /// bit.
    pub fn run(&self, backend: &mut dyn Backend, op: Op, layout: &Layout) -> Vec<Trace> {
        let Self { spec, dtypes, random, sequences } = self;
        let mut pools = Pools::new(self, layout);
        let before = pools.bits();
        let mut traces = vec![Trace::default(); sequences.len()];

        let lengths: Vec<usize> = layout.rows.iter().map(|row| self.length(row)).collect();
        let calls = if op.is_prefill() { 1 } else { lengths.iter().copied().max().unwrap_or(0) };
        for step in 0..calls {
            let tokens = |row: usize| match op {
                Op::Prefill(_) => 0..lengths[row],
                _ => step..step + 1,
            };
            // A sequence at its end leaves a padding row behind.
            let token = |row: usize, token: usize| {
                let (sequence, _) = layout.rows[row]?;
                sequences[sequence].tokens.get(token)
            };
            let rows = || 0..layout.rows.len();
            let all: Vec<_> = rows().flat_map(|r| tokens(r).map(move |t| token(r, t))).collect();
            let inputs = self.inputs(&all, layout.row_gap);
            let slots = layout.slots(|row| op.is_prefill() || token(row, step).is_some());
            let mut out = Tensor::poisoned(dtypes.activations, all.len(), op.out_cols(spec));
            let (layer, state) = (&random.layer, pools.view());
            let args = Args::new(layer, &inputs, &lengths, slots.view(), state, out.view_mut());
            args.call(backend, op).unwrap();

            let mut out_rows = 0..all.len();
            for row in rows() {
                for t in tokens(row) {
                    let out = narrow(out.row(out_rows.next().unwrap()));
                    match (layout.rows[row], token(row, t)) {
                        (Some((sequence, _)), Some(_)) => traces[sequence].out.push(out),
                        _ => assert!(out.iter().all(|x| x.to_bits() == 0), "{op:?}: padding"),
                    }
                }
            }
        }
        for &(sequence, slot) in layout.rows.iter().flatten() {
            traces[sequence].recurrent = narrow(pools.recurrent.row(slot));
            traces[sequence].conv = pools.conv(slot);
        }
        self.assert_kept_the_rest(op, layout, &pools, &before);
        traces
    }

    fn length(&self, row: &Option<(usize, usize)>) -> usize {
        // Padding has tokens too, in a prefill.
        row.map_or(2, |(sequence, _)| self.sequences[sequence].tokens.len())
    }

    /// The tokens as an operator takes them; NaN where there is none.
    pub fn inputs(&self, tokens: &[Option<&Token>], gap: usize) -> Inputs {
        let Self { spec, dtypes, .. } = self;
        let tensor = |cols: usize, field: fn(&Token) -> &Vec<f32>| {
            let poison = vec![f32::NAN; cols];
            let rows = tokens.iter().map(|token| token.map_or(&poison, field));
            let values: Vec<f32> = rows.flatten().copied().collect();
            Tensor::new(dtypes.activations, &values, cols, gap)
        };
        Inputs {
            mixed_qkv: tensor(spec.channels(), |token| &token.mixed_qkv),
            a: tensor(spec.v_heads(), |token| &token.a),
            b: tensor(spec.v_heads(), |token| &token.b),
            z: tensor(spec.value_len(), |token| &token.z),
        }
    }

    fn assert_kept_the_rest(&self, op: Op, layout: &Layout, pools: &Pools, before: &[Vec<u32>; 3]) {
        let lens = [self.spec.state_len(), self.spec.conv_len(), 1];
        let pitches = [lens[0] + layout.slot_gap, lens[1] + layout.slot_gap, 1];
        let updates = [op.has_recurrent(), op.has_conv(), op.has_conv()];
        let owned = |slot| layout.rows.iter().flatten().any(|&(_, taken)| taken == slot);
        let owned: Vec<bool> = (0..layout.pool).map(owned).collect();
        for (i, (now, before)) in pools.bits().iter().zip(before).enumerate() {
            for (at, (now, before)) in now.iter().zip(before).enumerate() {
                let (slot, within) = (at / pitches[i], at % pitches[i]);
                let may_change = updates[i] && owned[slot] && within < lens[i];
                assert!(now == before || may_change, "{op:?} wrote to slot {slot}, at {within}");
            }
        }
    }

    /// Writes the state of a sequence to a slot.
    pub fn set(&self, pool: &mut StatePool, slot: i32, sequence: usize) {
        let Sequence { recurrent, conv, .. } = &self.sequences[sequence];
        pool.set(slot, recurrent, conv).unwrap();
    }

    /// What the oracle makes of a sequence.
    pub fn expected(&self, op: Op, sequence: &Sequence) -> Trace<f64> {
        let oracle = &self.random.oracle;
        let mut state = OracleState {
            conv: sequence.conv.chunks_exact(self.spec.channels()).map(wide).collect(),
            recurrent: wide(&sequence.recurrent),
        };
        let out = sequence.tokens.iter().map(|token| self.step(op, oracle, &mut state, token));
        Trace { out: out.collect(), recurrent: state.recurrent, conv: state.conv.concat() }
    }

    fn step(&self, op: Op, oracle: &Oracle, state: &mut OracleState, token: &Token) -> Vec<f64> {
        let Token { mixed_qkv, a, b, z } = token;
        let (mixed_qkv, a, b, z) = (wide(mixed_qkv), wide(a), wide(b), wide(z));
        match op {
            Op::Conv => oracle.conv(state, &mixed_qkv),
            Op::Decode(_) => oracle.decode(state, &mixed_qkv, &a, &b),
            Op::Norm => oracle.gated_norm(&mixed_qkv[values(&self.spec)], &z),
            Op::Layer(_) | Op::Prefill(_) => oracle.step(state, &mixed_qkv, &a, &b, &z),
        }
    }
}

/// Where sequences lie in batch and pool.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Of each row its sequence and slot; `None` is padding.
    pub rows: Vec<Option<(usize, usize)>>,
    /// N, the slots of the pool.
    pub pool: usize,
    /// Elements between the rows of the inputs.
    pub row_gap: usize,
    /// Elements between the slots of the pool.
    pub slot_gap: usize,
    /// Where the ring of slot 0 stands; each slot after it is one further.
    pub phase: usize,
    /// Whether slots are i64.
    pub wide_slots: bool,
}

impl Layout {
    /// These sequences row by row, slot by slot.
    pub fn dense(sequences: impl IntoIterator<Item = usize>) -> Self {
        let rows: Vec<_> = sequences.into_iter().enumerate().map(|(i, s)| Some((s, i))).collect();
        let pool = rows.len();
        Self { rows, pool, row_gap: 0, slot_gap: 0, phase: 0, wide_slots: false }
    }

    fn slots(&self, live: impl Fn(usize) -> bool) -> OwnedSlots {
        let slot = |(row, place): (usize, &Option<(usize, usize)>)| match place {
            Some((_, slot)) if live(row) => *slot as i64,
            _ => -1 - row as i64,
        };
        let slots: Vec<i64> = self.rows.iter().enumerate().map(slot).collect();
        let narrow = slots.iter().map(|&slot| slot as i32).collect();
        if self.wide_slots { OwnedSlots::I64(slots) } else { OwnedSlots::I32(narrow) }
    }
}

enum OwnedSlots {
    I32(Vec<i32>),
    I64(Vec<i64>),
}

impl OwnedSlots {
    fn view(&self) -> Slots<'_> {
        match self {
            Self::I32(slots) => slots.into(),
            Self::I64(slots) => slots.into(),
        }
    }
}

/// Pools in plain memory, NaN wherever no sequence lies.
struct Pools {
    spec: LayerSpec,
    recurrent: Tensor,
    ring: Tensor,
    phase: Vec<u32>,
    pitches: [usize; 2],
}

impl Pools {
    fn new(world: &World, layout: &Layout) -> Self {
        let World { spec, dtypes, sequences, .. } = world;
        let (width, channels) = (spec.conv_width(), spec.channels());
        let phase: Vec<u32> =
            (0..layout.pool).map(|slot| ((slot + layout.phase) % width) as u32).collect();
        let mut recurrent = vec![f32::NAN; layout.pool * spec.state_len()];
        let mut ring = vec![f32::NAN; layout.pool * spec.conv_len()];
        for &(sequence, slot) in layout.rows.iter().flatten() {
            let Sequence { recurrent: state, conv, .. } = &sequences[sequence];
            recurrent[slot * spec.state_len()..][..spec.state_len()].copy_from_slice(state);
            for (tap, input) in conv.chunks_exact(channels).enumerate() {
                let entry = (phase[slot] as usize + 1 + tap) % width;
                let start = slot * spec.conv_len() + entry * channels;
                ring[start..start + channels].copy_from_slice(input);
            }
        }
        let gap = layout.slot_gap;
        Self {
            spec: spec.clone(),
            recurrent: Tensor::new(dtypes.recurrent, &recurrent, spec.state_len(), gap),
            ring: Tensor::new(dtypes.activations, &ring, spec.conv_len(), gap),
            phase,
            pitches: [spec.state_len() + gap, spec.conv_len() + gap],
        }
    }

    fn view(&mut self) -> StateMut<'_> {
        let Self { spec, recurrent, ring, phase, pitches } = self;
        let slots = phase.len();
        StateMut {
            recurrent: RecurrentMut::new(spec, recurrent.slice_mut(), slots, pitches[0]).unwrap(),
            conv: ConvMut::new(spec, ring.slice_mut(), phase, pitches[1]).unwrap(),
        }
    }

    /// The last W − 1 inputs of a slot, oldest first.
    fn conv(&self, slot: usize) -> Vec<f32> {
        let (width, channels) = (self.spec.conv_width(), self.spec.channels());
        let ring = narrow(self.ring.row(slot));
        let entry = |tap: usize| (self.phase[slot] as usize + 1 + tap) % width * channels;
        (0..width - 1).flat_map(|tap| ring[entry(tap)..][..channels].to_vec()).collect()
    }

    fn bits(&self) -> [Vec<u32>; 3] {
        [self.recurrent.bits(), self.ring.bits(), self.phase.clone()]
    }
}

/// What became of a sequence: the output of each token, and its state.
#[derive(Clone, Debug, Default)]
pub struct Trace<T = f32> {
    pub out: Vec<Vec<T>>,
    pub recurrent: Vec<T>,
    pub conv: Vec<T>,
}

impl Trace {
    /// Whether both have the same bits.
    pub fn same(&self, other: &Self) -> bool {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let out = |trace: &Self| trace.out.iter().map(|out| bits(out)).collect::<Vec<_>>();
        out(self) == out(other)
            && bits(&self.recurrent) == bits(&other.recurrent)
            && bits(&self.conv) == bits(&other.conv)
    }

    /// Whether no number of output and state is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        let all = self.out.iter().flatten().chain(&self.recurrent).chain(&self.conv);
        all.into_iter().all(|x| x.is_finite())
    }

    pub fn wide(&self) -> Trace<f64> {
        Trace {
            out: self.out.iter().map(|out| wide(out)).collect(),
            recurrent: wide(&self.recurrent),
            conv: wide(&self.conv),
        }
    }
}

impl Trace<f64> {
    /// The larger relative L2 error of output and recurrent state.
    pub fn error(&self, expected: &Self) -> f64 {
        let out = gdn_check::relative_l2(&self.out.concat(), &expected.out.concat());
        let state = gdn_check::relative_l2(&self.recurrent, &expected.recurrent);
        if out.is_nan() { out } else { out.max(state) }
    }
}

/// The values as a tensor of this dtype holds them.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    if values.is_empty() {
        return Vec::new();
    }
    narrow(Tensor::new(dtype, values, values.len(), 0).row(0))
}

/// Back to the f32 that were widened.
fn narrow(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|x| x as f32).collect()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}
