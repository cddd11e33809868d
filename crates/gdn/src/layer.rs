//! The weights of a layer, prepared once for every step.

use std::sync::Arc;

use crate::{
    DType, ErrorKind, LayerSpec, Result,
    error::expect_dim,
    views::{Rows, Slice},
};

/// The small weights of a Gated DeltaNet layer as checkpoints store them, in
/// any dtype.
#[derive(Clone, Copy, Debug)]
pub struct LayerWeights<'a> {
    /// `conv1d.weight`, `[C, W]`: channel order q ‖ k ‖ v, taps oldest to
    /// newest. A checkpoint's `[C, 1, W]` is the same memory.
    pub conv_weight: Rows<'a>,
    /// The bias of the convolution, `[C]`. The published models have none.
    pub conv_bias: Option<Slice<'a>>,
    /// `A_log`, `[HV]`: g = −exp(A_log) · softplus(a + dt_bias).
    pub a_log: Slice<'a>,
    /// `dt_bias`, `[HV]`.
    pub dt_bias: Slice<'a>,
    /// `norm.weight`, `[V]`: plain, not 1 + w.
    pub norm_weight: Slice<'a>,
}

/// A layer ready to run: its shape, its options, and its small weights in the
/// form that the kernels read.
#[derive(Clone, Debug)]
pub struct Layer {
    spec: LayerSpec,
    /// For each head of q, k and v in turn `[W, K]` or `[W, V]`: what one tile
    /// reads lies together, and the channels of one tap are dense.
    conv_weight: Vec<f32>,
    conv_bias: Vec<f32>,
    has_conv_bias: bool,
    /// −exp(A_log), `[HV]`.
    neg_exp_a: Vec<f32>,
    dt_bias: Vec<f32>,
    norm_weight: Vec<f32>,
    /// Tells this layer and its clones from every other: what a GPU keeps of it.
    token: Arc<()>,
}

impl Layer {
    /// Checks the weights against the shape and prepares them.
    ///
    /// # Errors
    /// [`ErrorKind::Dim`] for a weight of another shape, [`ErrorKind::DType`]
    /// for an `a_log` or `dt_bias` in f16, which could overflow.
    pub fn new(spec: &LayerSpec, weights: LayerWeights<'_>) -> Result<Self> {
        let (channels, width) = (spec.channels(), spec.conv_width());
        weights.conv_weight.expect("conv_weight", channels, width)?;
        if let Some(bias) = weights.conv_bias {
            expect_dim("conv_bias", "elements", channels, bias.len())?;
        }
        for (argument, vector) in [("a_log", weights.a_log), ("dt_bias", weights.dt_bias)] {
            expect_dim(argument, "elements", spec.v_heads(), vector.len())?;
            if vector.dtype() == DType::F16 {
                let expected = "dtype f32 or bf16";
                let got = vector.dtype().to_string();
                return Err(ErrorKind::Value { argument, expected, got }.into());
            }
        }
        expect_dim("norm_weight", "elements", spec.head_v(), weights.norm_weight.len())?;

        let mut conv_weight = vec![0.0; width * channels];
        let mut taps = vec![0.0; width];
        for (head, len) in spec.conv_heads() {
            let of_head = &mut conv_weight[head * width..][..len * width];
            for channel in 0..len {
                weights.conv_weight.read(head + channel, 0, &mut taps);
                for (tap, &weight) in taps.iter().enumerate() {
                    of_head[tap * len + channel] = weight;
                }
            }
        }
        Ok(Self {
            spec: spec.clone(),
            conv_weight,
            has_conv_bias: weights.conv_bias.is_some(),
            conv_bias: weights.conv_bias.map_or_else(|| vec![0.0; channels], |b| b.to_f32()),
            neg_exp_a: weights.a_log.to_f32().into_iter().map(|a| -a.exp()).collect(),
            dt_bias: weights.dt_bias.to_f32(),
            norm_weight: weights.norm_weight.to_f32(),
            token: Arc::default(),
        })
    }

    /// The layer's shape and options.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// The same for all clones of this layer, and for no other layer.
    pub(crate) fn token(&self) -> &Arc<()> {
        &self.token
    }

    /// The conv weights of one tap for the head of `len` channels that starts at
    /// `channel`; tap 0 is the oldest.
    #[inline(always)]
    pub(crate) fn conv_tap(&self, tap: usize, channel: usize, len: usize) -> &[f32] {
        &self.conv_weight[channel * self.spec.conv_width() + tap * len..][..len]
    }

    /// The bias of the convolution, `[C]`; zeros where there is none.
    pub(crate) fn conv_bias(&self) -> &[f32] {
        &self.conv_bias
    }

    /// Whether there is one.
    pub(crate) fn has_conv_bias(&self) -> bool {
        self.has_conv_bias
    }

    /// −exp(A_log), `[HV]`.
    pub(crate) fn neg_exp_a(&self) -> &[f32] {
        &self.neg_exp_a
    }

    /// `dt_bias`, `[HV]`.
    pub(crate) fn dt_bias(&self) -> &[f32] {
        &self.dt_bias
    }

    /// The weight of the gated norm, `[V]`.
    pub(crate) fn norm_weight(&self) -> &[f32] {
        &self.norm_weight
    }
}
