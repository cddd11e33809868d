//! What a device computes of a forward pass.

use std::{fmt::Debug, ops::Range};

use gdn::{Layer, LayerSpec, Rows, StatePool};

use crate::{
    Result,
    batch::Batch,
    config::{AttentionConfig, Config},
    memory::Room,
    weights::Tensor,
};

/// A device that holds weights and runs the operators of a forward pass.
///
/// An operator reads and writes named rows that the device keeps, one a token of the
/// batch:
///
/// | rows | |
/// | --- | --- |
/// | stream | the residual stream, f32 |
/// | normed | its norm, what a layer reads |
/// | projected | what a layer's first matrix made of it |
/// | mixed | what the layer made of that |
/// | output | what the layer adds to the stream |
pub(crate) trait Device: Debug + Send {
    /// Weights `[outputs, inputs]`.
    type Matrix: Debug + Send + Sync;
    /// Factors, f32.
    type Vector: Debug + Send + Sync;
    /// The experts of a layer.
    type Experts: Debug + Send + Sync;
    /// Keys and values of a layer.
    type Cache: Debug + Send + Sync;

    /// One matrix of several on top of each other.
    fn matrix(&mut self, parts: &[Tensor]) -> Result<Self::Matrix>;
    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector>;
    fn experts(&mut self, weights: ExpertWeights) -> Result<Self::Experts>;
    fn cache(&mut self, pages: usize) -> Result<Self::Cache>;
    /// Its memory at this moment, if it has one of its own, and what a page takes of it in
    /// the keys and values of a layer.
    fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }
    /// Copies a page of keys and values over another.
    fn copy_page(&mut self, cache: &mut Self::Cache, from: usize, to: usize) -> Result<()>;

    /// Copies the slot `from` over `to` in these pools, or zeroes `to` if there is none.
    fn fill_slots(
        &mut self,
        pools: &mut [&mut StatePool],
        from: Option<i32>,
        to: i32,
    ) -> Result<()> {
        for pool in pools {
            match from {
                Some(from) => pool.copy(from, to)?,
                None => pool.clear(to)?,
            }
        }
        Ok(())
    }

    /// A state pool of the layer, and what its first call would upload.
    fn pool(&mut self, layer: &Layer, slots: usize) -> Result<StatePool>;

    /// Takes a batch, and leaves another to be filled. All that follows is about it.
    fn begin(&mut self, batch: &mut Batch) -> Result<()>;

    /// Runs `pass` over the batch, or does again what it did for one like it.
    fn run(&mut self, pass: &mut (dyn FnMut(&mut Self) -> Result<()> + Send)) -> Result<()> {
        pass(self)
    }

    /// Does no pass again that was done before.
    fn forget(&mut self) {}

    /// The stream becomes the tokens' embeddings.
    fn embed(&mut self, table: &Self::Matrix) -> Result<()>;

    /// Adds to the stream, and norms it.
    fn norm(&mut self, add: Add, factor: &Self::Vector) -> Result<()>;

    /// normed → projected.
    fn project(&mut self, weight: &Self::Matrix) -> Result<()>;

    /// A Gated DeltaNet layer: projected, which is q ‖ k ‖ v, z, b, a → mixed.
    fn gdn(&mut self, layer: &Layer, pool: &mut StatePool) -> Result<()>;

    /// A full-attention layer: projected, which is q and gate per head, k, v → mixed.
    fn attend(
        &mut self,
        q_norm: &Self::Vector,
        k_norm: &Self::Vector,
        cache: &mut Self::Cache,
    ) -> Result<()>;

    /// normed → mixed, by a matrix of gates and one of what they gate.
    fn swiglu(&mut self, gate_up: &Self::Matrix) -> Result<()>;

    /// mixed → output.
    fn output(&mut self, weight: &Self::Matrix) -> Result<()>;

    /// normed → the outputs of the experts that each token takes.
    fn moe(&mut self, router: &Self::Matrix, experts: &Self::Experts) -> Result<()>;

    /// Adds to the stream, norms the rows that the batch names, → logits.
    fn logits(&mut self, add: Add, factor: &Self::Vector, head: &Self::Matrix) -> Result<()>;

    /// Some of the R rows of logits, `[rows, vocab]`, behind all work.
    fn read_logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// The token chosen from each row of logits, `[R]`, behind all work.
    fn read_tokens(&mut self, out: &mut Vec<u32>) -> Result<()>;

    /// The stream, `[T, hidden]`, behind all work.
    fn read_stream(&mut self) -> Result<Vec<f32>>;

    /// What [`logits`](Self::logits) normed, `[R, hidden]`.
    fn read_normed(&mut self) -> Result<Vec<f32>>;
}

/// What the first matrix of a Gated DeltaNet layer makes of each row, side by side.
#[derive(Debug)]
pub(crate) struct GdnInputs<'a> {
    pub(crate) mixed_qkv: Rows<'a>,
    pub(crate) z: Rows<'a>,
    pub(crate) b: Rows<'a>,
    pub(crate) a: Rows<'a>,
}

impl<'a> GdnInputs<'a> {
    /// Their columns together.
    pub(crate) fn width(spec: &LayerSpec) -> usize {
        spec.channels() + spec.value_len() + 2 * spec.v_heads()
    }

    /// Those in projected rows.
    pub(crate) fn of(projected: &Rows<'a>, spec: &LayerSpec) -> Result<Self> {
        let (channels, values, v_heads) = (spec.channels(), spec.value_len(), spec.v_heads());
        Ok(Self {
            mixed_qkv: projected.columns(0, channels)?,
            z: projected.columns(channels, values)?,
            b: projected.columns(channels + values, v_heads)?,
            a: projected.columns(channels + values + v_heads, v_heads)?,
        })
    }
}

/// What a norm adds to the stream first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Add {
    Nothing,
    /// The rows called output.
    Output,
    /// The shares of the experts' outputs.
    Experts,
}

/// The weights of a layer's experts, each as gate and up on top of each other, and
/// down.
#[derive(Debug)]
pub(crate) struct ExpertWeights {
    pub(crate) experts: Vec<(Vec<Tensor>, Tensor)>,
    pub(crate) shared: (Vec<Tensor>, Tensor),
}

/// The sizes of a model's rows.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) attention: AttentionConfig,
    /// `[rotary_dims / 2]`, in radians a position.
    pub(crate) frequencies: Vec<f32>,
    pub(crate) norm_eps: f32,
    pub(crate) moe: Option<Moe>,
}

/// What a router chooses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moe {
    pub(crate) experts: usize,
    pub(crate) per_token: usize,
    pub(crate) intermediate: usize,
    pub(crate) shared: usize,
    pub(crate) renormalise: bool,
}

impl Shape {
    pub(crate) fn new(config: &Config) -> Self {
        use crate::config::MlpConfig;
        let attention = config.attention.clone();
        let (theta, dims) = (f64::from(attention.rope_theta), attention.rotary_dims);
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f64 / dims as f64) as f32;
        Self {
            hidden: config.hidden_size,
            vocab: config.vocab_size,
            frequencies: (0..dims / 2).map(frequency).collect(),
            attention,
            norm_eps: config.norm_eps,
            moe: match config.mlp {
                MlpConfig::Dense { .. } => None,
                MlpConfig::Moe { experts, per_token, intermediate, shared, renormalise } => {
                    Some(Moe { experts, per_token, intermediate, shared, renormalise })
                }
            },
        }
    }
}
