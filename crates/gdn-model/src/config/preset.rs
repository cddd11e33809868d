//! The shapes of published models.

use gdn::LayerSpec;

use super::{AttentionConfig, Config, Family, LayerKind, MlpConfig};
use crate::{Error, Result};

/// The names that [`Config::preset`] knows.
pub const PRESETS: [&str; 11] = [
    "qwen3.5-0.8b",
    "qwen3.5-2b",
    "qwen3.5-4b",
    "qwen3.5-9b",
    "qwen3.5-27b",
    "qwen3.5-35b-a3b",
    "qwen3.5-122b-a10b",
    "qwen3.5-397b-a17b",
    "qwen3.6-27b",
    "qwen3.6-35b-a3b",
    "qwen3-next-80b-a3b",
];

/// What differs between the models.
struct Row {
    hidden: usize,
    layers: usize,
    /// Of queries, and of keys and values.
    heads: [usize; 2],
    gdn_v_heads: usize,
    mlp: MlpConfig,
    tied: bool,
}

const fn dense(intermediate: usize) -> MlpConfig {
    MlpConfig::Dense { intermediate }
}

/// The shared expert is as wide as the others in all of them.
const fn moe(experts: usize, per_token: usize, intermediate: usize) -> MlpConfig {
    MlpConfig::Moe { experts, per_token, intermediate, shared: intermediate, renormalise: true }
}

const fn row(
    [hidden, layers]: [usize; 2],
    heads: [usize; 2],
    gdn_v_heads: usize,
    mlp: MlpConfig,
    tied: bool,
) -> Row {
    Row { hidden, layers, heads, gdn_v_heads, mlp, tied }
}

/// How many numbers a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Of the text model, without layers for speculation.
    pub total: u64,
    /// What a token is multiplied with: without the experts that it does not take,
    /// and without the table of embeddings where that is not the output weights too.
    pub active: u64,
}

impl Config {
    /// The shape of a published model, by one of the names in [`PRESETS`]; upper
    /// and lower case are the same.
    ///
    /// # Errors
    /// [`Error::Preset`] for another name.
    pub fn preset(name: &str) -> Result<Self> {
        let lower = name.to_lowercase();
        let row = match lower.as_str() {
            "qwen3.5-0.8b" => row([1024, 24], [8, 2], 16, dense(3584), true),
            "qwen3.5-2b" => row([2048, 24], [8, 2], 16, dense(6144), true),
            "qwen3.5-4b" => row([2560, 32], [16, 4], 32, dense(9216), true),
            "qwen3.5-9b" => row([4096, 32], [16, 4], 32, dense(12288), false),
            "qwen3.5-27b" | "qwen3.6-27b" => row([5120, 64], [24, 4], 48, dense(17408), false),
            "qwen3.5-35b-a3b" | "qwen3.6-35b-a3b" => {
                row([2048, 40], [16, 2], 32, moe(256, 8, 512), false)
            }
            "qwen3.5-122b-a10b" => row([3072, 48], [32, 2], 64, moe(256, 8, 1024), false),
            "qwen3.5-397b-a17b" => row([4096, 60], [32, 2], 64, moe(512, 10, 1024), false),
            "qwen3-next-80b-a3b" => row([2048, 48], [16, 2], 32, moe(512, 10, 512), false),
            _ => return Err(Error::Preset { got: name.to_owned() }),
        };
        let next = lower.starts_with("qwen3-next");
        let norm_eps = 1e-6;
        let kind = |i: usize| {
            if (i + 1).is_multiple_of(4) { LayerKind::Attention } else { LayerKind::Gdn }
        };
        let gdn = LayerSpec::new(16, row.gdn_v_heads, 128, 128)?.with_conv_width(4)?;
        Ok(Self {
            family: match row.mlp {
                _ if next => Family::Qwen3Next,
                MlpConfig::Dense { .. } => Family::Qwen35,
                MlpConfig::Moe { .. } => Family::Qwen35Moe,
            },
            vocab_size: if next { 151_936 } else { 248_320 },
            hidden_size: row.hidden,
            layers: (0..row.layers).map(kind).collect(),
            gdn: gdn.with_norm_eps(norm_eps)?,
            attention: AttentionConfig {
                heads: row.heads[0],
                kv_heads: row.heads[1],
                head_dim: 256,
                rotary_dims: 64,
                rope_theta: 1e7,
            },
            mlp: row.mlp,
            norm_eps,
            tied_embeddings: row.tied,
            max_positions: 262_144,
        })
    }

    /// How many numbers the text model has.
    pub fn parameters(&self) -> Parameters {
        let hidden = self.hidden_size;
        let embeddings = self.vocab_size * hidden;
        let heads = self.layers.iter().map(|kind| match kind {
            LayerKind::Gdn => gdn(&self.gdn, hidden),
            LayerKind::Attention => attention(&self.attention, hidden),
        });
        let norms = (2 * self.layers.len() + 1) * hidden;
        let shared = embeddings + heads.sum::<usize>() + norms;
        let mlp = |experts: bool| {
            let count = match self.mlp {
                MlpConfig::Dense { intermediate } => 3 * hidden * intermediate,
                MlpConfig::Moe { experts: all, per_token, intermediate, shared, .. } => {
                    let taken = if experts { all } else { per_token };
                    let gates = (all + 1) * hidden;
                    3 * hidden * (taken * intermediate + shared) + gates
                }
            };
            count * self.layers.len()
        };
        let table = if self.tied_embeddings { 0 } else { embeddings };
        Parameters {
            total: (shared + mlp(true) + table) as u64,
            active: (shared + mlp(false)) as u64,
        }
    }
}

fn gdn(spec: &LayerSpec, hidden: usize) -> usize {
    let (v_heads, values) = (spec.v_heads(), spec.value_len());
    let projections = hidden * (spec.channels() + 2 * values + 2 * v_heads);
    // And taps, decay and bias of each head, the norm.
    projections + spec.channels() * spec.conv_width() + 2 * v_heads + spec.head_v()
}

fn attention(config: &AttentionConfig, hidden: usize) -> usize {
    let &AttentionConfig { heads, kv_heads, head_dim, .. } = config;
    // Queries and their gates, keys, values, output; a norm of queries, one of keys.
    hidden * head_dim * (3 * heads + 2 * kv_heads) + 2 * head_dim
}
