//! An independent reference: the first layer of a tiny checkpoint against what
//! Hugging Face transformers makes of it. See `fixtures/README.md`.

mod common;

use common::{Args, Op, PREFILL_FORMS, backend, wide};
use gdn::{DType, DecodePath, Layer, LayerSpec, LayerWeights, PoolOptions, Rows, StatePool, bf16};
use gdn_check::{Inputs, Tensor, relative_l2};
use safetensors::{Dtype, SafeTensors};

const HIDDEN: usize = 64;
const EPS: f64 = 1e-6;

struct Fixture {
    file: SafeTensors<'static>,
}

impl Fixture {
    fn new() -> Self {
        let bytes = include_bytes!("fixtures/hf_layer0.safetensors");
        Self { file: SafeTensors::deserialize(bytes).unwrap() }
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let tensor = self.file.tensor(name).unwrap();
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            Dtype::BF16 => data
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes(b.try_into().unwrap()).into())
                .collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        wide(&self.f32(name))
    }

    /// `x [T, in] · wᵀ` for `w [out, in]`.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let shape = self.file.tensor(name).unwrap().shape().to_vec();
        let w = self.f64(name);
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
        let rows = x.chunks_exact(shape[1]);
        rows.flat_map(|x| w.chunks_exact(shape[1]).map(move |w| dot(x, w))).collect()
    }

    /// The zero-centred RMS norm: x / rms(x) · (1 + w).
    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.f64(name);
        let mut y = x.to_vec();
        for row in y.chunks_exact_mut(HIDDEN) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / HIDDEN as f64;
            row.iter_mut().zip(&w).for_each(|(x, w)| *x *= (1.0 + w) / (mean + EPS).sqrt());
        }
        y
    }

    fn layer(&self) -> Layer {
        let spec = LayerSpec::new(2, 4, 128, 128).unwrap();
        let of = |name: &str| self.f32(&format!("linear_attn.{name}"));
        let (conv, norm) = (of("conv1d.weight"), of("norm.weight"));
        let (a_log, dt_bias) = (of("A_log"), of("dt_bias"));
        let weights = LayerWeights {
            conv_weight: Rows::new(&conv, spec.channels(), 4).unwrap(),
            conv_bias: None,
            a_log: (&a_log).into(),
            dt_bias: (&dt_bias).into(),
            norm_weight: (&norm).into(),
        };
        Layer::new(&spec, weights).unwrap()
    }

    /// The projections of the prompt's tokens.
    fn inputs(&self, tokens: &[f64]) -> Inputs {
        let x = self.norm("input_layernorm.weight", tokens);
        let project = |name: &str| {
            let name = format!("linear_attn.in_proj_{name}.weight");
            let y: Vec<f32> = self.linear(&name, &x).into_iter().map(|y| y as f32).collect();
            Tensor::new(DType::F32, &y, y.len() / (x.len() / HIDDEN), 0)
        };
        Inputs { mixed_qkv: project("qkv"), z: project("z"), a: project("a"), b: project("b") }
    }

    /// The rest of the decoder layer: out projection, residual, MLP, residual.
    fn hidden(&self, x: &[f64], out: &[f64]) -> Vec<f64> {
        let add = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x + y).collect::<Vec<_>>();
        let h = add(x, &self.linear("linear_attn.out_proj.weight", out));
        let normed = self.norm("post_attention_layernorm.weight", &h);
        let gate = self.linear("mlp.gate_proj.weight", &normed);
        let up = self.linear("mlp.up_proj.weight", &normed);
        let gated: Vec<f64> =
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        add(&h, &self.linear("mlp.down_proj.weight", &gated))
    }
}

/// Runs the prompt, as one prefill or token by token, and compares.
fn check(op: Op) {
    let fixture = Fixture::new();
    let layer = fixture.layer();
    let spec = layer.spec();
    let embeddings = fixture.f64("embeddings");
    let tokens: Vec<&[f64]> =
        if op.is_prefill() { vec![&embeddings] } else { embeddings.chunks_exact(HIDDEN).collect() };
    let mut pool = StatePool::new(spec, &PoolOptions::new(1)).unwrap();
    let mut out = Vec::new();
    for tokens in tokens {
        let inputs = fixture.inputs(tokens);
        let count = tokens.len() / HIDDEN;
        let mut y = Tensor::poisoned(DType::F32, count, spec.value_len());
        let slots = &[0];
        Args::new(&layer, &inputs, &[count], slots.into(), pool.state_mut(), y.view_mut())
            .call(&mut *backend(), op)
            .unwrap();
        out.extend(wide(&y.slice().to_f32()));
    }

    // Ours is [HV, V, K] and [W − 1, C]; theirs [HV, K, V] and [C, W].
    let theirs = fixture.f64("reference.recurrent_state");
    let (k, v) = (spec.head_k(), spec.head_v());
    let theirs: Vec<f64> = (0..spec.state_len())
        .map(|i| theirs[i / (v * k) * v * k + i % k * v + i / k % v])
        .collect();
    let error = relative_l2(&wide(&pool.recurrent(0).unwrap()), &theirs);
    assert!(error < 1e-5, "{op:?}: recurrent state {error}");

    let theirs = fixture.f64("reference.conv_state");
    let channels = spec.channels();
    let theirs: Vec<f64> =
        (0..3 * channels).map(|i| theirs[i % channels * 4 + i / channels + 1]).collect();
    let error = relative_l2(&wide(&pool.conv(0).unwrap()), &theirs);
    assert!(error < 1e-6, "{op:?}: conv state {error}");

    let hidden = fixture.hidden(&embeddings, &out);
    let error = relative_l2(&hidden, &fixture.f64("reference.hidden"));
    assert!(error < 1e-5, "{op:?}: hidden states {error}");
}

#[test]
fn prefill_agrees_with_hugging_face() {
    PREFILL_FORMS.into_iter().map(Op::Prefill).for_each(check);
}

#[test]
fn decode_agrees_with_hugging_face() {
    DecodePath::ALL.into_iter().map(Op::Layer).for_each(check);
}
