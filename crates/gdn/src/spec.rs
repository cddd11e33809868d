//! The shape of a layer and the options of its math.

use crate::{ErrorKind, Result};

/// Which query/key head a value head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadOrder {
    /// `hv / (HV / H)`: the order of the published checkpoints.
    #[default]
    Grouped,
    /// `hv % H`: the order of GGUF files.
    Tiled,
}

/// The precision in which β = sigmoid(b) enters the recurrence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BetaRounding {
    /// β stays f32.
    #[default]
    F32,
    /// β is rounded to the dtype of the activations first, as older releases
    /// of SGLang and flash-linear-attention do.
    Activation,
}

/// The shape of a Gated DeltaNet layer and the options of its math.
///
/// | symbol | meaning |
/// | --- | --- |
/// | H | query/key heads, [`q_heads`](Self::q_heads) |
/// | HV | value heads, a multiple of H, [`v_heads`](Self::v_heads) |
/// | K | head dim of q and k, [`head_k`](Self::head_k) |
/// | V | head dim of v, [`head_v`](Self::head_v) |
/// | W | taps of the causal convolution, [`conv_width`](Self::conv_width) |
/// | C | channels of the convolution, 2·H·K + HV·V, [`channels`](Self::channels) |
///
/// ```
/// # use gdn::LayerSpec;
/// // Qwen3.5-35B-A3B on one GPU.
/// let spec = LayerSpec::new(16, 32, 128, 128)?;
/// assert_eq!(spec.channels(), 8192);
/// assert_eq!(spec.state_len(), 32 * 128 * 128);
/// # Ok::<(), gdn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    q_heads: usize,
    v_heads: usize,
    head_k: usize,
    head_v: usize,
    conv_width: usize,
    head_order: HeadOrder,
    scale: f32,
    qk_l2norm: bool,
    beta_rounding: BetaRounding,
    norm_eps: f32,
}

impl LayerSpec {
    /// A layer of H = `q_heads`, HV = `v_heads`, K = `head_k`, V = `head_v`,
    /// with the models' defaults: W = 4, grouped heads, scale K^-1/2, q and k
    /// normalised, β in f32, norm eps 1e-6.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a zero, or for dims whose product overflows;
    /// [`ErrorKind::HeadRatio`] if `q_heads` does not divide `v_heads`.
    pub fn new(q_heads: usize, v_heads: usize, head_k: usize, head_v: usize) -> Result<Self> {
        for (argument, value) in
            [("q_heads", q_heads), ("v_heads", v_heads), ("head_k", head_k), ("head_v", head_v)]
        {
            at_least_one(argument, value)?;
        }
        if !v_heads.is_multiple_of(q_heads) {
            return Err(ErrorKind::HeadRatio { q_heads, v_heads }.into());
        }
        let spec = Self {
            q_heads,
            v_heads,
            head_k,
            head_v,
            conv_width: 4,
            head_order: HeadOrder::Grouped,
            scale: (head_k as f32).powf(-0.5),
            qk_l2norm: true,
            beta_rounding: BetaRounding::F32,
            norm_eps: 1e-6,
        };
        spec.check_size()?;
        Ok(spec)
    }

    /// The same layer with W = `conv_width` taps.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for zero.
    pub fn with_conv_width(self, conv_width: usize) -> Result<Self> {
        at_least_one("conv_width", conv_width)?;
        let spec = Self { conv_width, ..self };
        spec.check_size()?;
        Ok(spec)
    }

    /// The same layer with its value heads in this order.
    pub fn with_head_order(self, head_order: HeadOrder) -> Self {
        Self { head_order, ..self }
    }

    /// The same layer with q multiplied by `scale` instead of K^-1/2.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a scale that is not finite.
    pub fn with_scale(self, scale: f32) -> Result<Self> {
        number("scale", scale, scale.is_finite(), "a finite number")?;
        Ok(Self { scale, ..self })
    }

    /// The same layer with the L2 norm of q and k on or off.
    pub fn with_qk_l2norm(self, qk_l2norm: bool) -> Self {
        Self { qk_l2norm, ..self }
    }

    /// The same layer with β in this precision.
    pub fn with_beta_rounding(self, beta_rounding: BetaRounding) -> Self {
        Self { beta_rounding, ..self }
    }

    /// The same layer with this epsilon in the gated norm.
    ///
    /// # Errors
    /// [`ErrorKind::Value`] for a negative epsilon or one that is not finite.
    pub fn with_norm_eps(self, norm_eps: f32) -> Result<Self> {
        let fine = norm_eps.is_finite() && norm_eps >= 0.0;
        number("norm_eps", norm_eps, fine, "a finite number, at least 0")?;
        Ok(Self { norm_eps, ..self })
    }

    /// H, the number of query/key heads.
    pub fn q_heads(&self) -> usize {
        self.q_heads
    }

    /// HV, the number of value heads.
    pub fn v_heads(&self) -> usize {
        self.v_heads
    }

    /// K, the head dim of q and k.
    pub fn head_k(&self) -> usize {
        self.head_k
    }

    /// V, the head dim of v.
    pub fn head_v(&self) -> usize {
        self.head_v
    }

    /// W, the taps of the convolution; the newest is the token's own input.
    pub fn conv_width(&self) -> usize {
        self.conv_width
    }

    /// Which query/key head a value head reads.
    pub fn head_order(&self) -> HeadOrder {
        self.head_order
    }

    /// The factor on q.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether q and k are L2-normalised, with an epsilon of 1e-6 on the sum
    /// of squares.
    pub fn qk_l2norm(&self) -> bool {
        self.qk_l2norm
    }

    /// The precision of β.
    pub fn beta_rounding(&self) -> BetaRounding {
        self.beta_rounding
    }

    /// The epsilon on the mean of squares in the gated norm.
    pub fn norm_eps(&self) -> f32 {
        self.norm_eps
    }

    /// C = 2·H·K + HV·V, the columns q ‖ k ‖ v of `mixed_qkv`.
    pub fn channels(&self) -> usize {
        2 * self.q_heads * self.head_k + self.value_len()
    }

    /// HV·V, the columns of `z` and `out`.
    pub fn value_len(&self) -> usize {
        self.v_heads * self.head_v
    }

    /// HV·V·K, the elements of one slot's recurrent state.
    pub fn state_len(&self) -> usize {
        self.v_heads * self.head_len()
    }

    /// V·K, the elements of one value head's recurrent state.
    pub fn head_len(&self) -> usize {
        self.head_v * self.head_k
    }

    /// W·C, the elements of one slot's conv ring.
    pub fn conv_len(&self) -> usize {
        self.conv_width * self.channels()
    }

    /// HV / H, the value heads that share a query/key head.
    pub fn head_ratio(&self) -> usize {
        self.v_heads / self.q_heads
    }

    /// The query/key head that value head `hv` reads.
    pub fn q_head_of(&self, hv: usize) -> usize {
        match self.head_order {
            HeadOrder::Grouped => hv / self.head_ratio(),
            HeadOrder::Tiled => hv % self.q_heads,
        }
    }

    /// The HV/H value heads that read query/key head `h`.
    pub(crate) fn v_heads_of(&self, h: usize) -> impl Iterator<Item = usize> + use<> {
        let ratio = self.head_ratio();
        let (first, step) = match self.head_order {
            HeadOrder::Grouped => (h * ratio, 1),
            HeadOrder::Tiled => (h, self.q_heads),
        };
        (0..ratio).map(move |i| first + i * step)
    }

    /// Every head of q, k and v: its first channel and how many it has.
    pub(crate) fn conv_heads(&self) -> impl Iterator<Item = (usize, usize)> {
        let qk = (0..2 * self.q_heads).map(|h| (h * self.head_k, self.head_k));
        qk.chain((0..self.v_heads).map(|hv| (self.v_channel(hv), self.head_v)))
    }

    /// The first channel of query head `h`; the head's K channels are dense.
    pub(crate) fn q_channel(&self, h: usize) -> usize {
        h * self.head_k
    }

    /// The first channel of key head `h`.
    pub(crate) fn k_channel(&self, h: usize) -> usize {
        (self.q_heads + h) * self.head_k
    }

    /// The first channel of value head `hv`.
    pub(crate) fn v_channel(&self, hv: usize) -> usize {
        2 * self.q_heads * self.head_k + hv * self.head_v
    }

    /// Every length of a slot fits usize, so that no product below overflows.
    fn check_size(&self) -> Result<()> {
        let product =
            |dims: &[usize]| dims.iter().try_fold(8usize, |product, &dim| product.checked_mul(dim));
        let fits = product(&[self.v_heads, self.head_v, self.head_k]).is_some()
            && product(&[2, self.q_heads, self.head_k])
                .and_then(|qk| qk.checked_add(product(&[self.v_heads, self.head_v])?))
                .and_then(|channels| channels.checked_mul(self.conv_width))
                .is_some();
        if fits {
            return Ok(());
        }
        Err(ErrorKind::Value {
            argument: "spec",
            expected: "a layer whose state fits the address space",
            got: format!("{self:?}"),
        }
        .into())
    }
}

fn at_least_one(argument: &'static str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(ErrorKind::Value { argument, expected: "at least 1", got: value.to_string() }.into())
}

fn number(argument: &'static str, value: f32, fine: bool, expected: &'static str) -> Result<()> {
    if fine {
        return Ok(());
    }
    Err(ErrorKind::Value { argument, expected, got: value.to_string() }.into())
}
