//! The operator in f64, written for reading: what every path is compared with.
//!
//! It follows the formulas one by one, one sequence and one token at a time,
//! and depends on nothing but `std`: not on the crate's shapes, views or
//! kernels. It stores the conv state as a plain list of inputs.

/// A layer in f64. Fields are named as in [`LayerSpec`](crate::LayerSpec) and
/// [`LayerWeights`](crate::LayerWeights).
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// H.
    pub q_heads: usize,
    /// HV.
    pub v_heads: usize,
    /// K.
    pub head_k: usize,
    /// V.
    pub head_v: usize,
    /// W.
    pub conv_width: usize,
    /// Value head hv reads query/key head hv % H, not hv / (HV/H).
    pub tiled: bool,
    /// The factor on q.
    pub scale: f64,
    /// Whether q and k are L2-normalised.
    pub qk_l2norm: bool,
    /// What becomes of β before it is used; `None` leaves it.
    pub round_beta: Option<fn(f64) -> f64>,
    /// The epsilon of the gated norm.
    pub norm_eps: f64,
    /// `[C, W]`, taps oldest to newest.
    pub conv_weight: Vec<f64>,
    /// `[C]`.
    pub conv_bias: Vec<f64>,
    /// `[HV]`.
    pub a_log: Vec<f64>,
    /// `[HV]`.
    pub dt_bias: Vec<f64>,
    /// `[V]`.
    pub norm_weight: Vec<f64>,
}

/// The state of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct OracleState {
    /// The last W − 1 inputs, `[W − 1][C]`, oldest first.
    pub conv: Vec<Vec<f64>>,
    /// S, `[HV, V, K]`.
    pub recurrent: Vec<f64>,
}

impl Oracle {
    /// C = 2·H·K + HV·V.
    pub fn channels(&self) -> usize {
        2 * self.q_heads * self.head_k + self.v_heads * self.head_v
    }

    /// The state of a sequence that has seen no token.
    pub fn zero_state(&self) -> OracleState {
        OracleState {
            conv: vec![vec![0.0; self.channels()]; self.conv_width - 1],
            recurrent: vec![0.0; self.v_heads * self.head_v * self.head_k],
        }
    }

    /// One token of the whole layer: `mixed_qkv [C]`, `a`, `b` `[HV]`,
    /// `z [HV·V]` to `[HV·V]`.
    pub fn step(
        &self,
        state: &mut OracleState,
        mixed_qkv: &[f64],
        a: &[f64],
        b: &[f64],
        z: &[f64],
    ) -> Vec<f64> {
        let qkv = self.conv(state, mixed_qkv);
        let o = self.decode(state, &qkv, a, b);
        self.gated_norm(&o, z)
    }

    /// The causal convolution and its SiLU.
    pub fn conv(&self, state: &mut OracleState, input: &[f64]) -> Vec<f64> {
        state.conv.push(input.to_vec());
        let output = (0..self.channels())
            .map(|c| {
                let weights = &self.conv_weight[c * self.conv_width..][..self.conv_width];
                let taps = state.conv.iter().map(|input| input[c]);
                let sum: f64 = weights.iter().zip(taps).map(|(w, x)| w * x).sum();
                silu(self.conv_bias[c] + sum)
            })
            .collect();
        state.conv.remove(0);
        output
    }

    /// The gated delta rule on convolved q ‖ k ‖ v.
    pub fn decode(&self, state: &mut OracleState, qkv: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
        let (queries, rest) = qkv.split_at(self.q_heads * self.head_k);
        let (keys, values) = rest.split_at(self.q_heads * self.head_k);
        let mut output = Vec::new();
        for hv in 0..self.v_heads {
            let h = match self.tiled {
                true => hv % self.q_heads,
                false => hv / (self.v_heads / self.q_heads),
            };
            let head = h * self.head_k..(h + 1) * self.head_k;
            let q: Vec<f64> = self.l2_norm(&queries[head.clone()]);
            let q: Vec<f64> = q.iter().map(|q| q * self.scale).collect();
            let k: Vec<f64> = self.l2_norm(&keys[head]);
            let v = &values[hv * self.head_v..(hv + 1) * self.head_v];

            let g = -self.a_log[hv].exp() * softplus(a[hv] + self.dt_bias[hv]);
            let beta = sigmoid(b[hv]);
            let beta = self.round_beta.map_or(beta, |round| round(beta));

            let head_len = self.head_v * self.head_k;
            let s = &mut state.recurrent[hv * head_len..(hv + 1) * head_len];
            for (row, v) in s.chunks_exact_mut(self.head_k).zip(v) {
                row.iter_mut().for_each(|s| *s *= g.exp());
                let u = beta * (v - dot(row, &k));
                row.iter_mut().zip(&k).for_each(|(s, k)| *s += u * k);
                output.push(dot(row, &q));
            }
        }
        output
    }

    /// The gated RMS norm of every value head.
    pub fn gated_norm(&self, o: &[f64], z: &[f64]) -> Vec<f64> {
        let mut output = Vec::new();
        for (o, z) in o.chunks_exact(self.head_v).zip(z.chunks_exact(self.head_v)) {
            let rms = (dot(o, o) / self.head_v as f64 + self.norm_eps).sqrt();
            let heads = o.iter().zip(z).zip(&self.norm_weight);
            output.extend(heads.map(|((o, z), w)| o / rms * w * silu(*z)));
        }
        output
    }

    fn l2_norm(&self, x: &[f64]) -> Vec<f64> {
        let norm = if self.qk_l2norm { (dot(x, x) + 1e-6).sqrt() } else { 1.0 };
        x.iter().map(|x| x / norm).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn softplus(x: f64) -> f64 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One head, K = V = 1, worked out by hand.
    #[test]
    fn one_number_per_tensor() {
        let oracle = Oracle {
            q_heads: 1,
            v_heads: 1,
            head_k: 1,
            head_v: 1,
            conv_width: 2,
            scale: 2.0,
            conv_weight: vec![1.0; 6],
            conv_bias: vec![0.0; 3],
            a_log: vec![0.0],
            dt_bias: vec![0.0],
            norm_weight: vec![3.0],
            ..Default::default()
        };
        let mut state = OracleState { conv: vec![vec![0.0; 3]], recurrent: vec![4.0] };
        // g = −ln 2, β = ½: S = ½·4 + ½·(5 − ½·4·1)·1 = 3.5, o = 3.5·(2·1).
        let o = oracle.decode(&mut state, &[1.0, 1.0, 5.0], &[0.0], &[0.0]);
        assert!((state.recurrent[0] - 3.5).abs() < 1e-12 && (o[0] - 7.0).abs() < 1e-12);
        // 7 / sqrt(49) · 3 · silu(0) = 0; silu(1) = 0.731….
        assert_eq!(oracle.gated_norm(&o, &[0.0]), [0.0]);
        assert!((oracle.gated_norm(&o, &[1.0])[0] - 3.0 * 0.731_058_578_630_004_9).abs() < 1e-12);
        // Two taps of weight 1: 0 + 1, then 1 + 1.
        let first = oracle.conv(&mut state, &[1.0, 0.0, 0.0])[0];
        let second = oracle.conv(&mut state, &[1.0, 0.0, 0.0])[0];
        assert!((first - 0.731_058_578_630_004_9).abs() < 1e-12);
        assert!((second - 2.0 * 0.880_797_077_977_882_3).abs() < 1e-12);
    }
}
