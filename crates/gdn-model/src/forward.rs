//! A model on a device, and its forward pass.

use std::ops::Range;

use gdn::{Layer, LayerWeights, Rows, StatePool};

use crate::{
    Checkpoint, Config, Family, Result,
    batch::Batch,
    config::{LayerKind, MlpConfig},
    device::{Add, Device, ExpertWeights},
    memory::Room,
    weights::{Scope, Tensor},
};

/// Weights and memory on a device.
#[derive(Debug)]
pub(crate) struct Forward<D: Device> {
    device: D,
    embeddings: D::Matrix,
    blocks: Vec<Block<D>>,
    norm: D::Vector,
    /// `None` if it is the embeddings.
    head: Option<D::Matrix>,
    only: Option<Operator>,
}

#[derive(Debug)]
struct Block<D: Device> {
    input_norm: D::Vector,
    mixer: Mixer<D>,
    mlp_norm: D::Vector,
    mlp: Mlp<D>,
}

#[expect(clippy::large_enum_variant, reason = "one of a layer")]
#[derive(Debug)]
enum Mixer<D: Device> {
    Gdn {
        input: D::Matrix,
        layer: Layer,
        pool: StatePool,
        output: D::Matrix,
    },
    Attention {
        input: D::Matrix,
        q_norm: D::Vector,
        k_norm: D::Vector,
        cache: D::Cache,
        output: D::Matrix,
    },
}

#[derive(Debug)]
enum Mlp<D: Device> {
    Dense { gate_up: D::Matrix, down: D::Matrix },
    Moe { router: D::Matrix, experts: D::Experts },
}

/// What a forward pass consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The embeddings of tokens.
    Embed,
    /// Sums into the residual stream, and its norms.
    Norm,
    /// The projections into and out of Gated DeltaNet layers.
    GdnProjections,
    /// Convolution, recurrence and gated norm of Gated DeltaNet layers.
    Gdn,
    /// The projections into and out of full-attention layers.
    AttentionProjections,
    /// Norm and rotation of heads, the cache, softmax attention.
    Attention,
    /// SwiGLU, or router and experts.
    Mlp,
    /// The last norm, the logits, and the choice of tokens.
    Head,
}

impl Operator {
    /// All of them, in the order of a pass.
    pub const ALL: [Self; 8] = [
        Self::Embed,
        Self::Norm,
        Self::GdnProjections,
        Self::Gdn,
        Self::AttentionProjections,
        Self::Attention,
        Self::Mlp,
        Self::Head,
    ];
}

/// Called with the number of a layer, or of layers behind the last, and its rows.
pub(crate) type Observe<'a> = &'a mut (dyn FnMut(usize, &[f32]) + Send);

/// A model on some device.
pub(crate) trait Runs: std::fmt::Debug + Send {
    /// Runs a batch; another is left in its place.
    fn run(&mut self, batch: &mut Batch, observe: Option<Observe<'_>>) -> Result<()>;

    /// Some of the last batch's R rows of logits, `[rows, vocab]`, replace what is in `out`.
    fn read_logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// The tokens chosen from all of them, `[R]`, likewise.
    fn read_tokens(&mut self, out: &mut Vec<u32>) -> Result<()>;

    /// Leaves out all operators but one kind from now on, or none again.
    fn only(&mut self, operator: Option<Operator>);

    /// Zeroes a slot in all layers.
    fn clear(&mut self, slot: i32) -> Result<()>;

    /// Copies a slot over another, and a page if there is one, in all layers.
    fn copy(&mut self, slots: [i32; 2], pages: Option<[i32; 2]>) -> Result<()>;

    /// The state pool of a Gated DeltaNet layer.
    fn pool(&self, layer: usize) -> Option<&StatePool>;
}

impl<D: Device> Forward<D> {
    /// Moves the weights to the device, and makes room for so many sequences; for none of
    /// their pages yet. `progress` hears of every layer.
    pub(crate) fn load(
        mut device: D,
        config: &Config,
        checkpoint: &mut Checkpoint,
        slots: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // Models with a vision tower keep the text model one level deeper.
        let nested = checkpoint.contains("model.language_model.embed_tokens.weight");
        let prefix = if nested { "model.language_model." } else { "model." };
        let mut from = Scope::new(checkpoint, prefix);
        let embeddings = device.matrix(&[from.tensor("embed_tokens.weight", &[vocab, hidden])?])?;
        let mut blocks = Vec::with_capacity(config.layers.len());
        for (i, &kind) in config.layers.iter().enumerate() {
            progress(i);
            let mut load = Load { device: &mut device, config, slots };
            blocks.push(load.block(kind, from.scope(&format!("layers.{i}")))?);
        }
        let norm = from.take_norm("norm.weight", hidden)?;
        let norm = device.vector(norm)?;
        // A copy of tied embeddings is left alone, as Hugging Face does.
        let stored = !config.tied_embeddings || checkpoint.contains("lm_head.weight");
        let head = if stored {
            Some(checkpoint.tensor("lm_head.weight", &[vocab, hidden])?)
        } else {
            None
        };
        let head = head.filter(|_| !config.tied_embeddings);
        let head = head.map(|head| device.matrix(&[head])).transpose()?;
        progress(config.layers.len());
        Ok(Self { device, embeddings, blocks, norm, head, only: None })
    }

    /// What [`Device::room`] says, with a page of all layers.
    pub(crate) fn room(&self) -> Result<Option<Room>> {
        let attends = |block: &&Block<D>| matches!(block.mixer, Mixer::Attention { .. });
        let layers = self.blocks.iter().filter(attends).count();
        let room = self.device.room()?;
        Ok(room.map(|room| Room { page: layers * room.page, ..room }))
    }

    /// Makes room for so many pages, once.
    pub(crate) fn make_pages(&mut self, pages: usize) -> Result<()> {
        for block in &mut self.blocks {
            if let Mixer::Attention { cache, .. } = &mut block.mixer {
                *cache = self.device.cache(pages)?;
            }
        }
        Ok(())
    }
}

impl<D: Device> Forward<D> {
    fn fill_slots(&mut self, from: Option<i32>, to: i32) -> Result<()> {
        let pools = self.blocks.iter_mut().filter_map(|block| match &mut block.mixer {
            Mixer::Gdn { pool, .. } => Some(pool),
            Mixer::Attention { .. } => None,
        });
        self.device.fill_slots(&mut pools.collect::<Vec<_>>(), from, to)
    }
}

impl<D: Device> Runs for Forward<D> {
    fn run(&mut self, batch: &mut Batch, mut observe: Option<Observe<'_>>) -> Result<()> {
        let Self { device, embeddings, blocks, norm, head, only } = self;
        let on = |operator| only.is_none_or(|only| only == operator);
        let head = head.as_ref().unwrap_or(embeddings);
        device.begin(batch)?;
        let observed = observe.is_some();
        let mut pass = |d: &mut D| {
            if on(Operator::Embed) {
                d.embed(embeddings)?;
            }
            let mut add = Add::Nothing;
            for (i, block) in blocks.iter_mut().enumerate() {
                if on(Operator::Norm) {
                    d.norm(add, &block.input_norm)?;
                }
                if let Some(observe) = &mut observe {
                    observe(i, &d.read_stream()?);
                }
                match &mut block.mixer {
                    Mixer::Gdn { input, layer, pool, output } => {
                        if on(Operator::GdnProjections) {
                            d.project(input)?;
                        }
                        if on(Operator::Gdn) {
                            d.gdn(layer, pool)?;
                        }
                        if on(Operator::GdnProjections) {
                            d.output(output)?;
                        }
                    }
                    Mixer::Attention { input, q_norm, k_norm, cache, output } => {
                        if on(Operator::AttentionProjections) {
                            d.project(input)?;
                        }
                        if on(Operator::Attention) {
                            d.attend(q_norm, k_norm, cache)?;
                        }
                        if on(Operator::AttentionProjections) {
                            d.output(output)?;
                        }
                    }
                }
                if on(Operator::Norm) {
                    d.norm(Add::Output, &block.mlp_norm)?;
                }
                add = match &block.mlp {
                    Mlp::Dense { gate_up, down } => {
                        if on(Operator::Mlp) {
                            d.swiglu(gate_up)?;
                            d.output(down)?;
                        }
                        Add::Output
                    }
                    Mlp::Moe { router, experts } => {
                        if on(Operator::Mlp) {
                            d.moe(router, experts)?;
                        }
                        Add::Experts
                    }
                };
            }
            if on(Operator::Head) {
                d.logits(add, norm, head)?;
            }
            Ok(())
        };
        // What is observed is read between the layers, so it is done anew.
        if observed {
            pass(device)?;
        } else {
            device.run(&mut pass)?;
        }
        if let Some(observe) = &mut observe {
            observe(blocks.len(), &device.read_normed()?);
        }
        Ok(())
    }

    fn read_logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        self.device.read_logits(rows, out)
    }

    fn read_tokens(&mut self, out: &mut Vec<u32>) -> Result<()> {
        self.device.read_tokens(out)
    }

    fn only(&mut self, operator: Option<Operator>) {
        self.only = operator;
        self.device.forget();
    }

    fn clear(&mut self, slot: i32) -> Result<()> {
        self.fill_slots(None, slot)
    }

    fn copy(&mut self, [from, to]: [i32; 2], pages: Option<[i32; 2]>) -> Result<()> {
        self.fill_slots(Some(from), to)?;
        let Some([from, to]) = pages else { return Ok(()) };
        for block in &mut self.blocks {
            if let Mixer::Attention { cache, .. } = &mut block.mixer {
                self.device.copy_page(cache, from as usize, to as usize)?;
            }
        }
        Ok(())
    }

    fn pool(&self, layer: usize) -> Option<&StatePool> {
        match &self.blocks.get(layer)?.mixer {
            Mixer::Gdn { pool, .. } => Some(pool),
            Mixer::Attention { .. } => None,
        }
    }
}

/// What a block is loaded with.
struct Load<'a, D> {
    device: &'a mut D,
    config: &'a Config,
    slots: usize,
}

impl<D: Device> Load<'_, D> {
    fn block(&mut self, kind: LayerKind, mut from: Scope<'_>) -> Result<Block<D>> {
        let hidden = self.config.hidden_size;
        let input_norm = from.take_norm("input_layernorm.weight", hidden)?;
        let mlp_norm = from.take_norm("post_attention_layernorm.weight", hidden)?;
        Ok(Block {
            input_norm: self.device.vector(input_norm)?,
            mixer: match kind {
                LayerKind::Gdn => self.gdn(from.scope("linear_attn"))?,
                LayerKind::Attention => self.attention(from.scope("self_attn"))?,
            },
            mlp_norm: self.device.vector(mlp_norm)?,
            mlp: self.mlp(from.scope("mlp"))?,
        })
    }

    fn gdn(&mut self, mut from: Scope<'_>) -> Result<Mixer<D>> {
        let (spec, hidden) = (&self.config.gdn, self.config.hidden_size);
        let (channels, width, v_heads) = (spec.channels(), spec.conv_width(), spec.v_heads());
        let input = match self.config.family {
            Family::Qwen3Next => interleaved(self.config, &mut from)?,
            Family::Qwen35 | Family::Qwen35Moe => vec![
                from.tensor("in_proj_qkv.weight", &[channels, hidden])?,
                from.tensor("in_proj_z.weight", &[spec.value_len(), hidden])?,
                from.tensor("in_proj_b.weight", &[v_heads, hidden])?,
                from.tensor("in_proj_a.weight", &[v_heads, hidden])?,
            ],
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
        let layer = Layer::new(spec, weights)?;
        let output = from.tensor("out_proj.weight", &[hidden, spec.value_len()])?;
        Ok(Mixer::Gdn {
            input: self.device.matrix(&input)?,
            pool: self.device.pool(&layer, self.slots)?,
            layer,
            output: self.device.matrix(&[output])?,
        })
    }

    fn attention(&mut self, mut from: Scope<'_>) -> Result<Mixer<D>> {
        let (shape, hidden) = (&self.config.attention, self.config.hidden_size);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let input = [
            from.tensor("q_proj.weight", &[2 * q, hidden])?,
            from.tensor("k_proj.weight", &[kv, hidden])?,
            from.tensor("v_proj.weight", &[kv, hidden])?,
        ];
        let output = from.tensor("o_proj.weight", &[hidden, q])?;
        let q_norm = from.take_norm("q_norm.weight", shape.head_dim)?;
        let k_norm = from.take_norm("k_norm.weight", shape.head_dim)?;
        Ok(Mixer::Attention {
            input: self.device.matrix(&input)?,
            q_norm: self.device.vector(q_norm)?,
            k_norm: self.device.vector(k_norm)?,
            // The pages come last: how many there are may depend on what is left.
            cache: self.device.cache(0)?,
            output: self.device.matrix(&[output])?,
        })
    }

    fn mlp(&mut self, mut from: Scope<'_>) -> Result<Mlp<D>> {
        let hidden = self.config.hidden_size;
        let MlpConfig::Moe { experts, intermediate, shared, .. } = self.config.mlp else {
            let MlpConfig::Dense { intermediate } = self.config.mlp else { unreachable!() };
            let (gate_up, down) = swiglu(&mut from, hidden, intermediate)?;
            return Ok(Mlp::Dense {
                gate_up: self.device.matrix(&gate_up)?,
                down: self.device.matrix(&[down])?,
            });
        };
        let router = [
            from.tensor("gate.weight", &[experts, hidden])?,
            from.tensor("shared_expert_gate.weight", &[1, hidden])?,
        ];
        let shared = swiglu(&mut from.scope("shared_expert"), hidden, shared)?;
        let experts = load_experts(from.scope("experts"), experts, hidden, intermediate)?;
        Ok(Mlp::Moe {
            router: self.device.matrix(&router)?,
            experts: self.device.experts(ExpertWeights { experts, shared })?,
        })
    }
}

fn swiglu(
    from: &mut Scope<'_>,
    hidden: usize,
    intermediate: usize,
) -> Result<(Vec<Tensor>, Tensor)> {
    let gate = from.tensor("gate_proj.weight", &[intermediate, hidden])?;
    let up = from.tensor("up_proj.weight", &[intermediate, hidden])?;
    Ok((vec![gate, up], from.tensor("down_proj.weight", &[hidden, intermediate])?))
}

/// Experts lie in one tensor for all, or in tensors of their own.
fn load_experts(
    mut from: Scope<'_>,
    experts: usize,
    hidden: usize,
    intermediate: usize,
) -> Result<Vec<(Vec<Tensor>, Tensor)>> {
    if !from.contains("gate_up_proj") && from.contains("0.gate_proj.weight") {
        let each = 0..experts;
        return each
            .map(|i| swiglu(&mut from.scope(&i.to_string()), hidden, intermediate))
            .collect();
    }
    let gate_up = from.tensor("gate_up_proj", &[experts, 2 * intermediate, hidden])?;
    let down = from.tensor("down_proj", &[experts, hidden, intermediate])?;
    let of = |tensor: &Tensor, i: usize, rows: usize| tensor.cut(i * rows..(i + 1) * rows);
    let pair = |i| (vec![of(&gate_up, i, 2 * intermediate)], of(&down, i, hidden));
    Ok((0..experts).map(pair).collect())
}

/// Qwen3-Next packs the rows by key head: q, k, and the v and z of the value
/// heads that read them; b and a likewise.
fn interleaved(config: &Config, from: &mut Scope<'_>) -> Result<Vec<Tensor>> {
    let (spec, hidden) = (&config.gdn, config.hidden_size);
    let (heads, k, ratio) = (spec.q_heads(), spec.head_k(), spec.head_ratio());
    let v = ratio * spec.head_v();
    let qkvz = from.tensor("in_proj_qkvz.weight", &[spec.channels() + spec.value_len(), hidden])?;
    let ba = from.tensor("in_proj_ba.weight", &[2 * spec.v_heads(), hidden])?;
    // `rows` rows of every group, from its row `first` on.
    let part = |packed: &Tensor, first: usize, rows: usize| -> Vec<Tensor> {
        let group = packed.rows() / heads;
        (0..heads).map(|h| packed.cut(h * group + first..h * group + first + rows)).collect()
    };
    let parts = [
        part(&qkvz, 0, k),
        part(&qkvz, k, k),
        part(&qkvz, 2 * k, v),
        part(&qkvz, 2 * k + v, v),
        part(&ba, 0, ratio),
        part(&ba, ratio, ratio),
    ];
    Ok(parts.concat())
}
