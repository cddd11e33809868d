//! A Gated DeltaNet layer: projections, the operators of `gdn`, output.

use gdn::{
    Backend, Cpu, DecodePath, Layer, LayerSpec, LayerStep, LayerWeights, Prefill, PrefillForm,
    Rows, RowsMut, StatePool,
};

use crate::{
    Config, Result,
    config::Family,
    math::{Linear, Math},
    weights::Scope,
};

/// The slot of a pool that holds one sequence.
pub(crate) const SLOT: i32 = 0;

#[derive(Debug)]
pub(crate) struct GdnLayer {
    layer: Layer,
    qkv: Linear,
    z: Linear,
    b: Linear,
    a: Linear,
    out: Linear,
}

/// The weights of the input projections, q ‖ k ‖ v in the order of the channels.
struct Inputs {
    qkv: Vec<f32>,
    z: Vec<f32>,
    b: Vec<f32>,
    a: Vec<f32>,
}

impl GdnLayer {
    pub(crate) fn load(config: &Config, mut from: Scope<'_>) -> Result<Self> {
        let (spec, hidden) = (&config.gdn, config.hidden_size);
        let (channels, width, v_heads) = (spec.channels(), spec.conv_width(), spec.v_heads());
        let inputs = match config.family {
            Family::Qwen3Next => interleaved(spec, hidden, &mut from)?,
            Family::Qwen35 | Family::Qwen35Moe => Inputs {
                qkv: from.take("in_proj_qkv.weight", &[channels, hidden])?,
                z: from.take("in_proj_z.weight", &[spec.value_len(), hidden])?,
                b: from.take("in_proj_b.weight", &[v_heads, hidden])?,
                a: from.take("in_proj_a.weight", &[v_heads, hidden])?,
            },
        };
        let conv = from.take("conv1d.weight", &[channels, 1, width])?;
        let a_log = from.take("A_log", &[v_heads])?;
        let dt_bias = from.take("dt_bias", &[v_heads])?;
        let norm = from.take("norm.weight", &[spec.head_v()])?;
        let weights = LayerWeights {
            conv_weight: Rows::new(&conv, channels, width)?,
            conv_bias: None,
            a_log: (&a_log).into(),
            dt_bias: (&dt_bias).into(),
            norm_weight: (&norm).into(),
        };
        Ok(Self {
            layer: Layer::new(spec, weights)?,
            qkv: Linear::new(inputs.qkv, hidden),
            z: Linear::new(inputs.z, hidden),
            b: Linear::new(inputs.b, hidden),
            a: Linear::new(inputs.a, hidden),
            out: Linear::new(
                from.take("out_proj.weight", &[hidden, spec.value_len()])?,
                spec.value_len(),
            ),
        })
    }

    /// What the layer adds to `x [T, hidden]`, which is normed.
    pub(crate) fn forward(
        &self,
        math: Math,
        cpu: &mut Cpu,
        form: PrefillForm,
        x: &[f32],
        tokens: usize,
        pool: &mut StatePool,
    ) -> Result<Vec<f32>> {
        let spec = self.layer.spec();
        let (v_heads, values) = (spec.v_heads(), spec.value_len());
        let (qkv, z) = (self.qkv.apply(math, x), self.z.apply(math, x));
        let (a, b) = (self.a.apply(math, x), self.b.apply(math, x));
        let mut out = vec![0.0; tokens * values];
        let layer = &self.layer;
        let mixed_qkv = Rows::new(&qkv, tokens, spec.channels())?;
        let (a, b) = (Rows::new(&a, tokens, v_heads)?, Rows::new(&b, tokens, v_heads)?);
        let z = Rows::new(&z, tokens, values)?;
        let (slots, state) = ((&[SLOT]).into(), pool.state_mut());
        let y = RowsMut::new(&mut out, tokens, values)?;
        if tokens == 1 {
            let step = LayerStep { layer, mixed_qkv, a, b, z, slots, state, out: y };
            cpu.layer_step(DecodePath::Fused, step)?;
        } else {
            let lengths = &[tokens];
            cpu.prefill(
                form,
                Prefill { layer, mixed_qkv, a, b, z, lengths, slots, state, out: y },
            )?;
        }
        Ok(self.out.apply(math, &out))
    }
}

/// Qwen3-Next packs the rows by key head: q, k, and the v and z of the value
/// heads that read them; b and a likewise.
fn interleaved(spec: &LayerSpec, hidden: usize, from: &mut Scope<'_>) -> Result<Inputs> {
    let (heads, k, ratio) = (spec.q_heads(), spec.head_k(), spec.head_ratio());
    let v = ratio * spec.head_v();
    let qkvz = from.take("in_proj_qkvz.weight", &[spec.channels() + spec.value_len(), hidden])?;
    let ba = from.take("in_proj_ba.weight", &[2 * spec.v_heads(), hidden])?;
    // `rows` rows of every group, from its row `first` on.
    let part = |packed: &[f32], first: usize, rows: usize| -> Vec<f32> {
        let groups = packed.chunks_exact(packed.len() / heads);
        groups.flat_map(|group| &group[first * hidden..][..rows * hidden]).copied().collect()
    };
    Ok(Inputs {
        qkv: [part(&qkvz, 0, k), part(&qkvz, k, k), part(&qkvz, 2 * k, v)].concat(),
        z: part(&qkvz, 2 * k + v, v),
        b: part(&ba, 0, ratio),
        a: part(&ba, ratio, ratio),
    })
}
