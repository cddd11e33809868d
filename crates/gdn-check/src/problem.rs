//! Random layers, inputs and states for a case, and the oracle's answers.

use gdn::{
    BetaRounding, DType, HeadOrder, Layer, LayerSpec, LayerWeights, PoolOptions, Rows, StatePool,
    bf16, f16,
    oracle::{Oracle, OracleState},
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use crate::{Case, Tensor};

/// A layer of random weights, and the same in f64.
#[derive(Clone, Debug)]
pub struct RandomLayer {
    /// The layer.
    pub layer: Layer,
    /// The layer as the oracle takes it, for activations of the dtype given.
    pub oracle: Oracle,
}

impl RandomLayer {
    /// Weights like those of a trained layer: decays from 0.3 to 0.999 a token.
    pub fn new(spec: &LayerSpec, activations: DType, seed: u64) -> Self {
        Self::with_bias(spec, activations, seed, true)
    }

    /// The same without a bias of the convolution, as the published models are.
    pub fn without_bias(spec: &LayerSpec, activations: DType, seed: u64) -> Self {
        Self::with_bias(spec, activations, seed, false)
    }

    fn with_bias(spec: &LayerSpec, activations: DType, seed: u64, bias: bool) -> Self {
        let mut rng = rng(seed, 0);
        let (channels, width) = (spec.channels(), spec.conv_width());
        let conv_weight = uniform(&mut rng, channels * width, -0.5, 0.5);
        let mut conv_bias = uniform(&mut rng, channels, -0.1, 0.1);
        if !bias {
            conv_bias.fill(0.0);
        }
        let a_log = uniform(&mut rng, spec.v_heads(), -3.0, 1.0);
        let dt_bias = uniform(&mut rng, spec.v_heads(), -4.0, 0.0);
        let norm_weight = uniform(&mut rng, spec.head_v(), 0.5, 1.5);
        let weights = LayerWeights {
            conv_weight: Rows::new(&conv_weight, channels, width).expect("as many as asked for"),
            conv_bias: bias.then(|| (&conv_bias).into()),
            a_log: (&a_log).into(),
            dt_bias: (&dt_bias).into(),
            norm_weight: (&norm_weight).into(),
        };
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        Self {
            layer: Layer::new(spec, weights).expect("weights of the layer's shape"),
            oracle: Oracle {
                q_heads: spec.q_heads(),
                v_heads: spec.v_heads(),
                head_k: spec.head_k(),
                head_v: spec.head_v(),
                conv_width: width,
                tiled: spec.head_order() == HeadOrder::Tiled,
                scale: spec.scale().into(),
                qk_l2norm: spec.qk_l2norm(),
                round_beta: round_beta(spec, activations),
                norm_eps: spec.norm_eps().into(),
                conv_weight: wide(conv_weight),
                conv_bias: wide(conv_bias),
                a_log: wide(a_log),
                dt_bias: wide(dt_bias),
                norm_weight: wide(norm_weight),
            },
        }
    }
}

fn round_beta(spec: &LayerSpec, activations: DType) -> Option<fn(f64) -> f64> {
    match (spec.beta_rounding(), activations) {
        (BetaRounding::F32, _) | (_, DType::F32) => None,
        (BetaRounding::Activation, DType::BF16) => Some(|beta| bf16::from_f64(beta).into()),
        (BetaRounding::Activation, DType::F16) => Some(|beta| f16::from_f64(beta).into()),
    }
}

/// The activations of one token in every row.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// `[B, C]`.
    pub mixed_qkv: Tensor,
    /// `[B, HV]`.
    pub a: Tensor,
    /// `[B, HV]`.
    pub b: Tensor,
    /// `[B, HV·V]`.
    pub z: Tensor,
}

impl Inputs {
    /// Random activations for `rows` rows, `gap` elements between them.
    pub fn random(spec: &LayerSpec, dtype: DType, rows: usize, gap: usize, seed: u64) -> Self {
        let mut rng = rng(seed, 1);
        let mut tensor = |cols: usize, bound: f32| {
            let values = uniform(&mut rng, rows * cols, -bound, bound);
            Tensor::new(dtype, &values, cols, gap)
        };
        Self {
            mixed_qkv: tensor(spec.channels(), 2.0),
            a: tensor(spec.v_heads(), 2.0),
            b: tensor(spec.v_heads(), 2.0),
            z: tensor(spec.value_len(), 2.0),
        }
    }
}

/// A case with its random numbers.
#[derive(Debug)]
pub struct Problem {
    /// What was asked for.
    pub case: Case,
    /// The layer.
    pub layer: RandomLayer,
    /// The slot of each row; −1 is padding.
    pub slots: Vec<i32>,
    /// The inputs of each step.
    pub steps: Vec<Inputs>,
    /// The pool before the first step.
    pub(crate) before: StatePool,
}

impl Problem {
    /// Draws the random numbers of a case.
    pub fn new(case: Case) -> Self {
        let layer = RandomLayer::with_bias(&case.spec, case.activations, case.seed, case.conv_bias);
        let mut slots: Vec<i32> = (0..case.pool as i32).collect();
        slots.shuffle(&mut rng(case.seed, 2));
        slots.truncate(case.rows);
        if case.padding {
            slots.iter_mut().step_by(3).for_each(|slot| *slot = -1);
        }
        let step = |step: usize| {
            let seed = case.seed + 1000 * (step as u64 + 1);
            Inputs::random(&case.spec, case.activations, case.rows, case.row_gap, seed)
        };
        let steps = (0..case.steps).map(step).collect();
        let before = random_pool(&case);
        Self { layer, slots, steps, case, before }
    }

    /// A pool as it is before the first step.
    pub fn pool(&self) -> StatePool {
        random_pool(&self.case)
    }

    /// The state of a slot as the oracle takes it.
    pub(crate) fn oracle_state(&self, pool: &StatePool, slot: i32) -> OracleState {
        let wide = |values: &[f32]| values.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let conv = pool.conv(slot).expect("a slot of the pool");
        OracleState {
            conv: conv.chunks_exact(self.case.spec.channels()).map(wide).collect(),
            recurrent: wide(&pool.recurrent(slot).expect("a slot of the pool")),
        }
    }
}

/// A pool in which every slot holds its own random state.
pub(crate) fn random_pool(case: &Case) -> StatePool {
    let Case { spec, .. } = case;
    let options = PoolOptions {
        slots: case.pool,
        recurrent: case.recurrent,
        conv: case.activations,
        recurrent_pitch: Some(spec.state_len() + case.slot_gap),
        conv_pitch: Some(spec.conv_len() + case.slot_gap),
    };
    let mut pool = StatePool::new(spec, &options).expect("memory for the pool");
    for slot in 0..case.pool as i32 {
        let mut rng = rng(case.seed, 3 + slot as u64);
        let recurrent = uniform(&mut rng, spec.state_len(), -0.5, 0.5);
        let conv = uniform(&mut rng, (spec.conv_width() - 1) * spec.channels(), -2.0, 2.0);
        pool.set(slot, &recurrent, &conv).expect("a slot of the pool");
    }
    pool
}

fn rng(seed: u64, stream: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(stream))
}

fn uniform(rng: &mut SmallRng, len: usize, from: f32, to: f32) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(from..to)).collect()
}
