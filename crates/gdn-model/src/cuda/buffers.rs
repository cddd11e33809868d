//! What lies between the kernels of a pass.

use gdn::cuda::runtime::Block;

use super::{
    Gpu,
    memory::{Growing, bucket},
};
use crate::{
    Config, MlpConfig, Options, Result,
    config::AttentionConfig,
    device::{GdnInputs, Shape},
    ops::attention::{Heads, cuda::partial_bytes},
};

/// The rows of [`Device`](crate::device::Device), and what lies between the kernels of one operator.
#[derive(Debug)]
pub(super) struct Buffers {
    /// f32.
    pub(super) stream: Block,
    pub(super) normed: Block,
    pub(super) projected: Block,
    pub(super) mixed: Block,
    pub(super) output: Block,
    /// Queries, normed and rotated.
    pub(super) queries: Block,
    /// Of attention in `items` splits: what each gives, and how many are done.
    pub(super) items: usize,
    pub(super) partials: Block,
    pub(super) counters: Block,
    /// The router's logits, f32.
    pub(super) router: Block,
    pub(super) routes: Option<Routes>,
    /// What experts made of gates and what they gate, and their outputs.
    pub(super) gated: Block,
    pub(super) parts: Block,
    /// f32.
    pub(super) logits: Growing,
    /// What sampling keeps between its kernels, and the tokens.
    pub(super) best: Growing,
    pub(super) tokens: Growing,
}

/// Which experts the tokens take: see `ops::route`.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) places: usize,
    pub(super) experts: Block,
    pub(super) shares: Block,
    pub(super) order: Block,
    pub(super) starts: Block,
    pub(super) active: Block,
    pub(super) active_count: Block,
}

impl Buffers {
    /// For `rows` rows.
    pub(super) fn new(
        gpu: &Gpu,
        config: &Config,
        shape: &Shape,
        options: &Options,
        rows: usize,
    ) -> Result<Self> {
        let AttentionConfig { heads, kv_heads, head_dim, .. } = shape.attention;
        let (spec, hidden) = (&config.gdn, shape.hidden);
        let of_gdn = GdnInputs::width(spec);
        let of_attention = 2 * (heads + kv_heads) * head_dim;
        let dense = match config.mlp {
            MlpConfig::Dense { intermediate } => intermediate,
            MlpConfig::Moe { .. } => 0,
        };
        let act = gpu.activations.size();
        let items = (bucket(options.sequences) * kv_heads).max(2048);
        let block =
            |cols: usize, element: usize| Block::new(&gpu.runtime, rows * padded(cols) * element);
        let (experts, places, widest) = shape.moe.map_or((0, 0, 0), |moe| {
            (moe.experts + 1, moe.per_token + 1, moe.intermediate.max(moe.shared))
        });
        let integers = |len: usize| Block::new(&gpu.runtime, len * size_of::<i32>());
        let routes = || -> Result<Routes> {
            Ok(Routes {
                places,
                experts: integers(rows * places)?,
                shares: integers(rows * places)?,
                order: integers(rows * places)?,
                starts: integers(experts + 1)?,
                active: integers(experts)?,
                active_count: integers(1)?,
            })
        };
        Ok(Self {
            stream: block(hidden, size_of::<f32>())?,
            normed: block(hidden, act)?,
            projected: block(of_gdn.max(of_attention), act)?,
            mixed: block(spec.value_len().max(heads * head_dim).max(dense), act)?,
            output: block(hidden, act)?,
            queries: block(heads * head_dim, act)?,
            items,
            partials: Block::new(&gpu.runtime, items * partial_bytes(heads_of(&shape.attention)))?,
            counters: Block::zeroed(&gpu.runtime, rows * kv_heads * size_of::<u32>())?,
            router: block(experts, size_of::<f32>())?,
            routes: shape.moe.map(|_| routes()).transpose()?,
            gated: block(places * widest, act)?,
            parts: block(places * hidden, act)?,
            logits: Growing::new(&gpu.runtime, size_of::<f32>())?,
            best: Growing::new(&gpu.runtime, 8)?,
            tokens: Growing::new(&gpu.runtime, 4)?,
        })
    }
}

pub(super) fn heads_of(attention: &AttentionConfig) -> Heads {
    let AttentionConfig { heads, kv_heads, head_dim, .. } = *attention;
    Heads { kv: kv_heads, ratio: heads / kv_heads, dim: head_dim }
}

/// The distance of rows of so many columns: kernels that read 16 bytes at once want
/// them to start at multiples of that.
pub(super) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(8)
}
