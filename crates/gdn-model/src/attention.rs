//! Gated softmax attention with grouped heads and partly rotated positions.

use crate::{
    Config, Result,
    config::AttentionConfig,
    math::{Linear, Math, sigmoid, softmax},
    weights::Scope,
};

#[derive(Debug)]
pub(crate) struct Attention {
    shape: AttentionConfig,
    norm_eps: f32,
    /// Per head, first what asks and then what gates the answer.
    q_and_gate: Linear,
    k: Linear,
    v: Linear,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    out: Linear,
    /// `[rotary_dims / 2]`, in radians a position.
    frequencies: Vec<f32>,
}

/// Keys and values of one sequence, `[T, kv_heads, head_dim]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct KvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Attention {
    pub(crate) fn load(config: &Config, mut from: Scope<'_>) -> Result<Self> {
        let (shape, hidden) = (config.attention.clone(), config.hidden_size);
        let (q_len, kv_len) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut linear = |name: &str, outputs: usize, inputs: usize| {
            from.take(name, &[outputs, inputs]).map(|weight| Linear::new(weight, inputs))
        };
        let (q_and_gate, k, v, out) = (
            linear("q_proj.weight", 2 * q_len, hidden)?,
            linear("k_proj.weight", kv_len, hidden)?,
            linear("v_proj.weight", kv_len, hidden)?,
            linear("o_proj.weight", hidden, q_len)?,
        );
        let (theta, dims) = (f64::from(shape.rope_theta), shape.rotary_dims);
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f64 / dims as f64) as f32;
        Ok(Self {
            q_and_gate,
            k,
            v,
            out,
            q_norm: from.take_norm("q_norm.weight", shape.head_dim)?,
            k_norm: from.take_norm("k_norm.weight", shape.head_dim)?,
            norm_eps: config.norm_eps,
            frequencies: (0..dims / 2).map(frequency).collect(),
            shape,
        })
    }

    /// What the layer adds to `x [T, hidden]`, which is normed and whose first
    /// token has this position.
    pub(crate) fn forward(
        &self,
        math: Math,
        x: &[f32],
        position: usize,
        cache: &mut KvCache,
    ) -> Vec<f32> {
        let AttentionConfig { heads, kv_heads, head_dim, .. } = self.shape;
        let q_and_gate = self.q_and_gate.apply(math, x);
        let pairs = || q_and_gate.chunks_exact(2 * head_dim).map(|pair| pair.split_at(head_dim));
        let mut q: Vec<f32> = pairs().flat_map(|(q, _)| q).copied().collect();
        let gates: Vec<&[f32]> = pairs().map(|(_, gate)| gate).collect();
        let mut k = self.k.apply(math, x);
        math.rms_norm(&mut q, &self.q_norm, self.norm_eps);
        math.rms_norm(&mut k, &self.k_norm, self.norm_eps);
        self.rotate(&mut q, heads, position);
        self.rotate(&mut k, kv_heads, position);
        cache.keys.extend(k);
        cache.values.extend(self.v.apply(math, x));

        let scale = (head_dim as f32).powf(-0.5);
        let mut mixed = vec![0.0; q.len()];
        math.for_rows(&mut mixed, head_dim, |row, out| {
            let (token, head) = (row / heads, row % heads);
            let kv_head = head / (heads / kv_heads);
            let past = position + token + 1;
            let start = |i: usize| (i * kv_heads + kv_head) * head_dim;
            let q = &q[row * head_dim..][..head_dim];
            let key = |i: usize| &cache.keys[start(i)..][..head_dim];
            let mut shares: Vec<f32> = (0..past).map(|i| scale * math.dot(q, key(i))).collect();
            softmax(&mut shares);
            for (i, share) in shares.iter().enumerate() {
                let value = &cache.values[start(i)..][..head_dim];
                out.iter_mut().zip(value).for_each(|(out, value)| *out += share * value);
            }
            out.iter_mut().zip(gates[row]).for_each(|(out, &gate)| *out *= sigmoid(gate));
        });
        self.out.apply(math, &mixed)
    }

    /// Rotates the leading dims of every head; dim i goes with dim i + half.
    fn rotate(&self, x: &mut [f32], heads: usize, position: usize) {
        let half = self.frequencies.len();
        for (token, x) in x.chunks_exact_mut(heads * self.shape.head_dim).enumerate() {
            let angles = self.frequencies.iter().map(|f| (position + token) as f32 * f);
            let turns: Vec<(f32, f32)> = angles.map(f32::sin_cos).collect();
            for head in x.chunks_exact_mut(self.shape.head_dim) {
                let (first, second) = head[..2 * half].split_at_mut(half);
                for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
