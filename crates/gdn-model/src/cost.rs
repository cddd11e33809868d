//! What a decode step must read and write, whoever computes it.

use gdn::DType;

use crate::{Config, LayerKind, MlpConfig};

/// The bytes that a decode step moves, weights in bf16 and states in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepBytes {
    /// Weights that every token takes, the output weights among them.
    pub weights: f64,
    /// Weights of the experts that some token takes: what is to be expected when
    /// each token takes any of them alike.
    pub experts: f64,
    /// Recurrent and conv states, read and written.
    pub states: f64,
    /// Keys and values of what came before, read.
    pub cache: f64,
}

impl StepBytes {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.weights + self.experts + self.states + self.cache
    }
}

impl Config {
    /// The bytes of a decode step of `batch` sequences that have `context` tokens
    /// each, with conv states, keys and values of this dtype.
    pub fn step_bytes(&self, batch: usize, context: usize, activations: DType) -> StepBytes {
        let count = |kind| self.layers.iter().filter(|&&layer| layer == kind).count() as f64;
        let (gdn, attention) = (count(LayerKind::Gdn), count(LayerKind::Attention));
        let (batch, context) = (batch as f64, context as f64);
        let element = activations.size() as f64;
        let spec = &self.gdn;
        let state = 4.0 * spec.state_len() as f64;
        let conv = element * ((spec.conv_width() - 1) * spec.channels()) as f64;
        // One more input is written.
        let ring = element * spec.channels() as f64;
        let keys = element * (2 * self.attention.kv_heads * self.attention.head_dim) as f64;
        let (hidden, layers) = (self.hidden_size as f64, self.layers.len() as f64);
        let expert = match self.mlp {
            MlpConfig::Dense { .. } => 0.0,
            MlpConfig::Moe { intermediate, .. } => 2.0 * 3.0 * hidden * intermediate as f64,
        };
        let (all, taken) = match self.mlp {
            MlpConfig::Dense { .. } => (0.0, 0.0),
            MlpConfig::Moe { experts, per_token, .. } => (experts as f64, per_token as f64),
        };
        let touched = if all > 0.0 { all * (1.0 - (1.0 - taken / all).powf(batch)) } else { 0.0 };
        let active = 2.0 * self.parameters().active as f64;
        StepBytes {
            weights: active - layers * taken * expert,
            experts: layers * touched * expert,
            states: gdn * batch * (2.0 * state + conv + ring),
            cache: attention * batch * context * keys,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 35B-A3B: a token reads 5.9 GB of weights; a batch of 128 touches nearly all of
    /// 64 GB of experts and moves 15.7 GB of state.
    #[test]
    fn known_sizes() {
        let config = Config::preset("qwen3.5-35b-a3b").unwrap();
        let one = config.step_bytes(1, 0, DType::BF16);
        assert!((one.weights + one.experts - 5.9e9).abs() < 0.1e9, "{one:?}");
        let many = config.step_bytes(128, 0, DType::BF16);
        assert!((many.experts - 63.3e9).abs() < 0.5e9, "{many:?}");
        assert!((many.states - 16.2e9).abs() < 0.3e9, "{many:?}");
        let context = config.step_bytes(1, 1000, DType::BF16);
        assert_eq!(context.cache, 1000.0 * 20.0 * 1024.0);
    }
}
