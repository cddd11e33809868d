//! The MLPs: one SwiGLU, or some of many experts and a shared one.

use crate::{
    Config, Result,
    config::MlpConfig,
    math::{Linear, Math, add, sigmoid, silu, softmax},
    weights::Scope,
};

#[derive(Debug)]
pub(crate) enum Mlp {
    Dense(SwiGlu),
    Moe(Box<Moe>),
}

#[derive(Debug)]
pub(crate) struct SwiGlu {
    /// The rows of the gate, then those of what it gates.
    gate_up: Linear,
    down: Linear,
    intermediate: usize,
}

#[derive(Debug)]
pub(crate) struct Moe {
    router: Linear,
    experts: Vec<SwiGlu>,
    per_token: usize,
    renormalise: bool,
    shared: SwiGlu,
    shared_gate: Vec<f32>,
}

impl Mlp {
    pub(crate) fn load(config: &Config, mut from: Scope<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        match config.mlp {
            MlpConfig::Dense { intermediate } => {
                SwiGlu::load(from, hidden, intermediate).map(Self::Dense)
            }
            MlpConfig::Moe { experts, per_token, intermediate, shared, renormalise } => {
                Ok(Self::Moe(Box::new(Moe {
                    router: Linear::new(from.take("gate.weight", &[experts, hidden])?, hidden),
                    per_token,
                    renormalise,
                    shared: SwiGlu::load(from.scope("shared_expert"), hidden, shared)?,
                    shared_gate: from.take("shared_expert_gate.weight", &[1, hidden])?,
                    experts: load_experts(from.scope("experts"), experts, hidden, intermediate)?,
                })))
            }
        }
    }

    /// What the MLP adds to `x [T, hidden]`, which is normed.
    pub(crate) fn forward(&self, math: Math, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Dense(mlp) => mlp.forward(math, x),
            Self::Moe(moe) => moe.forward(math, x),
        }
    }
}

impl SwiGlu {
    fn load(mut from: Scope<'_>, hidden: usize, intermediate: usize) -> Result<Self> {
        let mut gate_up = from.take("gate_proj.weight", &[intermediate, hidden])?;
        gate_up.extend(from.take("up_proj.weight", &[intermediate, hidden])?);
        let down = from.take("down_proj.weight", &[hidden, intermediate])?;
        Ok(Self::new(gate_up, down, hidden, intermediate))
    }

    fn new(gate_up: Vec<f32>, down: Vec<f32>, hidden: usize, intermediate: usize) -> Self {
        let (gate_up, down) = (Linear::new(gate_up, hidden), Linear::new(down, intermediate));
        Self { gate_up, down, intermediate }
    }

    fn forward(&self, math: Math, x: &[f32]) -> Vec<f32> {
        let gate_up = self.gate_up.apply(math, x);
        let rows = gate_up.chunks_exact(2 * self.intermediate);
        let gated = rows.flat_map(|row| {
            let (gate, up) = row.split_at(self.intermediate);
            gate.iter().zip(up).map(|(&gate, up)| silu(gate) * up)
        });
        self.down.apply(math, &gated.collect::<Vec<_>>())
    }
}

/// Experts lie in one tensor for all, or in tensors of their own.
fn load_experts(
    mut from: Scope<'_>,
    experts: usize,
    hidden: usize,
    intermediate: usize,
) -> Result<Vec<SwiGlu>> {
    if !from.contains("gate_up_proj") && from.contains("0.gate_proj.weight") {
        let each = 0..experts;
        return each
            .map(|i| SwiGlu::load(from.scope(&i.to_string()), hidden, intermediate))
            .collect();
    }
    let gate_up = from.take("gate_up_proj", &[experts, 2 * intermediate, hidden])?;
    let down = from.take("down_proj", &[experts, hidden, intermediate])?;
    let gate_up = gate_up.chunks_exact(2 * intermediate * hidden);
    let pairs = gate_up.zip(down.chunks_exact(hidden * intermediate));
    Ok(pairs.map(|(g, d)| SwiGlu::new(g.to_vec(), d.to_vec(), hidden, intermediate)).collect())
}

impl Moe {
    fn forward(&self, math: Math, x: &[f32]) -> Vec<f32> {
        let hidden = self.shared_gate.len();
        let mut y = vec![0.0; x.len()];
        // One product for all tokens of an expert. A token's experts are added in
        // order of their index, so its sum does not depend on the other tokens.
        for (expert, tokens) in self.experts.iter().zip(self.route(math, x)) {
            let of_token = |&(token, _): &(usize, f32)| &x[token * hidden..][..hidden];
            let gathered: Vec<f32> = tokens.iter().flat_map(of_token).copied().collect();
            let out = expert.forward(math, &gathered);
            for ((token, share), out) in tokens.into_iter().zip(out.chunks_exact(hidden)) {
                let y = &mut y[token * hidden..][..hidden];
                y.iter_mut().zip(out).for_each(|(y, out)| *y += share * out);
            }
        }
        let mut shared = self.shared.forward(math, x);
        for (shared, x) in shared.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)) {
            let gate = sigmoid(math.dot(x, &self.shared_gate));
            shared.iter_mut().for_each(|value| *value *= gate);
        }
        add(&mut y, &shared);
        y
    }

    /// Per expert, the tokens that take it and what share of it they take.
    fn route(&self, math: Math, x: &[f32]) -> Vec<Vec<(usize, f32)>> {
        let mut taken = vec![Vec::new(); self.experts.len()];
        let mut shares = self.router.apply(math, x);
        for (token, shares) in shares.chunks_exact_mut(self.experts.len()).enumerate() {
            softmax(shares);
            let mut order: Vec<usize> = (0..shares.len()).collect();
            // Equal shares: the lower index first, as the sort is stable.
            order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
            order.truncate(self.per_token);
            let sum: f32 = order.iter().map(|&expert| shares[expert]).sum();
            let scale = if self.renormalise { 1.0 / sum } else { 1.0 };
            for expert in order {
                taken[expert].push((token, shares[expert] * scale));
            }
        }
        taken
    }
}
