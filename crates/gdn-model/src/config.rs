//! `config.json` of the three families, checked.

mod fields;
mod generation;
mod preset;

use std::{fs, path::Path};

use gdn::LayerSpec;

use self::fields::Fields;
pub use self::{
    generation::GenerationConfig,
    preset::{PRESETS, Parameters},
};
use crate::{Error, Result};

/// How a family stores its weights and writes its config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen3.5 and its successors with dense MLPs.
    Qwen35,
    /// Qwen3.5 and its successors with experts.
    Qwen35Moe,
    /// Qwen3-Next.
    Qwen3Next,
}

/// What mixes the tokens in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated DeltaNet, "linear_attention".
    Gdn,
    /// Softmax attention, "full_attention".
    Attention,
}

/// The shape of the full-attention layers.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; they divide the query heads.
    pub kv_heads: usize,
    /// The dim of a head.
    pub head_dim: usize,
    /// The leading dims of a head that are rotated, an even number.
    pub rotary_dims: usize,
    /// The base of the rotary frequencies.
    pub rope_theta: f32,
}

/// The shape of the MLPs.
#[derive(Clone, Debug, PartialEq)]
pub enum MlpConfig {
    /// One SwiGLU.
    Dense {
        /// Its inner dim.
        intermediate: usize,
    },
    /// Some of many experts, and one that sees every token.
    Moe {
        /// The experts to choose from.
        experts: usize,
        /// The experts that a token takes.
        per_token: usize,
        /// The inner dim of an expert.
        intermediate: usize,
        /// The inner dim of the shared expert.
        shared: usize,
        /// Whether the weights of the chosen experts are scaled to add up to 1.
        renormalise: bool,
    },
}

/// A model's shape and options.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which names and packings its weights have.
    pub family: Family,
    /// Tokens that there are.
    pub vocab_size: usize,
    /// The dim of the residual stream.
    pub hidden_size: usize,
    /// The kind of every layer, first to last.
    pub layers: Vec<LayerKind>,
    /// The Gated DeltaNet layers.
    pub gdn: LayerSpec,
    /// The full-attention layers.
    pub attention: AttentionConfig,
    /// The MLP of every layer.
    pub mlp: MlpConfig,
    /// The epsilon on the mean of squares in every norm.
    pub norm_eps: f32,
    /// Whether the output weights are the embeddings.
    pub tied_embeddings: bool,
    /// The most tokens that a sequence may have.
    pub max_positions: usize,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] if it can't be read, [`Error::Config`]
    /// for an architecture that is not known and for a field that is missing,
    /// out of range, at odds with another, or asks for what is not computed here.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// As [`read`](Self::read), from the text of the file; `path` is what
    /// errors name.
    ///
    /// # Errors
    /// As [`read`](Self::read), but for `Io`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let root = serde_json::from_str(text)
            .map_err(|source| Error::Json { path: path.to_owned(), source })?;
        let root = Fields::new(path, "", &root)?;
        let family = family(&root)?;
        let nested = root.object("text_config")?;
        let text = nested.as_ref().unwrap_or(&root);
        root.reject("quantization_config", "weights that are not quantised")?;
        text.reject("quantization_config", "weights that are not quantised")?;

        let hidden_act: String = text.or("hidden_act", "silu".to_owned())?;
        text.check("hidden_act", hidden_act == "silu", "silu", &hidden_act)?;
        let bias = text.or("attention_bias", false)?;
        text.check("attention_bias", !bias, "false: biases are not computed here", &bias)?;
        let gate = text.or("attn_output_gate", true)?;
        text.check("attn_output_gate", gate, "true: q_proj holds the gates", &gate)?;
        // The gate of the norm in Gated DeltaNet layers; swish is another name of SiLU.
        let gate: String = text.or("output_gate_type", "swish".to_owned())?;
        let silu = gate == "swish" || gate == "silu";
        text.check("output_gate_type", silu, "swish or silu", &gate)?;

        let norm_eps: f32 = text.or("rms_norm_eps", 1e-6)?;
        let fine = norm_eps.is_finite() && norm_eps >= 0.0;
        text.check("rms_norm_eps", fine, "a finite number, at least 0", &norm_eps)?;
        Ok(Self {
            family,
            vocab_size: text.size("vocab_size")?,
            hidden_size: text.size("hidden_size")?,
            layers: layers(text)?,
            gdn: gdn(text)?.with_norm_eps(norm_eps)?,
            attention: attention(text)?,
            mlp: mlp(text, family)?,
            norm_eps,
            tied_embeddings: tied(&root, text)?,
            max_positions: text.size("max_position_embeddings")?,
        })
    }
}

fn family(root: &Fields<'_>) -> Result<Family> {
    const KNOWN: [(&str, &str, Family); 3] = [
        ("qwen3_5", "Qwen3_5For", Family::Qwen35),
        ("qwen3_5_moe", "Qwen3_5MoeFor", Family::Qwen35Moe),
        ("qwen3_next", "Qwen3NextFor", Family::Qwen3Next),
    ];
    let model_type: String = root.need("model_type", "a string")?;
    let stem = model_type.strip_suffix("_text").unwrap_or(&model_type);
    let Some(&(_, class, family)) = KNOWN.iter().find(|(name, ..)| *name == stem) else {
        let expected = "qwen3_5, qwen3_5_moe or qwen3_next; other architectures are not known here";
        return Err(root.error("model_type", expected, &model_type));
    };
    let architectures: Vec<String> = root.or("architectures", Vec::new())?;
    let fits = architectures.iter().all(|name| name.starts_with(class));
    let expected = format!("{class}..., as model_type is {model_type}");
    root.check("architectures", fits, &expected, &architectures.join(", "))?;
    Ok(family)
}

fn layers(text: &Fields<'_>) -> Result<Vec<LayerKind>> {
    let count = text.size("num_hidden_layers")?;
    let interval: Option<usize> = text.get("full_attention_interval", "a number")?;
    let every = |interval: usize| -> Vec<LayerKind> {
        let full = |i: usize| interval > 0 && (i + 1).is_multiple_of(interval);
        (0..count).map(|i| if full(i) { LayerKind::Attention } else { LayerKind::Gdn }).collect()
    };
    let Some(names) = text.get::<Vec<String>>("layer_types", "a list of names")? else {
        return Ok(every(text.size("full_attention_interval")?));
    };
    let expected = format!("num_hidden_layers = {count} names");
    text.check("layer_types", names.len() == count, &expected, &names.len())?;
    let kinds = names.iter().map(|name| match name.as_str() {
        "linear_attention" => Ok(LayerKind::Gdn),
        "full_attention" => Ok(LayerKind::Attention),
        other => Err(text.error("layer_types", "linear_attention or full_attention", other)),
    });
    let kinds = kinds.collect::<Result<Vec<_>>>()?;
    if let Some(interval) = interval {
        let expected = "what layer_types says; remove the one that is wrong";
        text.check("full_attention_interval", kinds == every(interval), expected, &interval)?;
    }
    Ok(kinds)
}

fn gdn(text: &Fields<'_>) -> Result<LayerSpec> {
    let heads = text.size("linear_num_key_heads")?;
    let v_heads = text.size("linear_num_value_heads")?;
    let expected = format!("a multiple of linear_num_key_heads = {heads}");
    text.check("linear_num_value_heads", v_heads.is_multiple_of(heads), &expected, &v_heads)?;
    let (k, v) = (text.size("linear_key_head_dim")?, text.size("linear_value_head_dim")?);
    let width = text.size("linear_conv_kernel_dim")?;
    Ok(LayerSpec::new(heads, v_heads, k, v)?.with_conv_width(width)?)
}

fn attention(text: &Fields<'_>) -> Result<AttentionConfig> {
    let heads = text.size("num_attention_heads")?;
    let kv_heads = text.size("num_key_value_heads")?;
    let expected = format!("a divisor of num_attention_heads = {heads}");
    text.check("num_key_value_heads", heads.is_multiple_of(kv_heads), &expected, &kv_heads)?;
    let head_dim = text.size("head_dim")?;

    // Older configs have the rotary options at the top, newer ones in an object of their own.
    text.reject("rope_scaling", "none: positions are not scaled here")?;
    let nested = text.object("rope_parameters")?;
    if let Some(rope) = &nested {
        let kind: String = rope.or("rope_type", "default".to_owned())?;
        rope.check("rope_type", kind == "default", "default", &kind)?;
    }
    let option = |name: &str| -> Result<Option<f32>> {
        let outer = text.get(name, "a number")?;
        let inner = nested.as_ref().map_or(Ok(None), |rope| rope.get(name, "a number"))?;
        let agree = outer.is_none() || inner.is_none() || outer == inner;
        text.check(name, agree, "what rope_parameters says", &outer.unwrap_or_default())?;
        Ok(inner.or(outer))
    };
    let rope_theta = option("rope_theta")?
        .ok_or_else(|| text.error("rope_theta", "a number, here or in rope_parameters", "none"))?;
    let fine = rope_theta.is_finite() && rope_theta > 0.0;
    text.check("rope_theta", fine, "a finite number above 0", &rope_theta)?;
    let factor = option("partial_rotary_factor")?.unwrap_or(0.25);
    let rotary_dims = head_dim as f32 * factor;
    let even = factor > 0.0 && factor <= 1.0 && rotary_dims % 2.0 == 0.0;
    let expected = format!("0 to 1, an even share of head_dim = {head_dim}");
    text.check("partial_rotary_factor", even, &expected, &factor)?;
    Ok(AttentionConfig { heads, kv_heads, head_dim, rotary_dims: rotary_dims as usize, rope_theta })
}

fn mlp(text: &Fields<'_>, family: Family) -> Result<MlpConfig> {
    let experts: usize = text.or("num_experts", 0)?;
    match family {
        Family::Qwen35 => {
            let expected = "none: model_type is that of a dense model";
            text.check("num_experts", experts == 0, expected, &experts)?;
        }
        Family::Qwen35Moe => _ = text.size("num_experts")?,
        Family::Qwen3Next => {}
    }
    if experts == 0 {
        return Ok(MlpConfig::Dense { intermediate: text.size("intermediate_size")? });
    }
    let experts = text.size("num_experts")?;
    let per_token = text.size("num_experts_per_tok")?;
    let expected = format!("at most num_experts = {experts}");
    text.check("num_experts_per_tok", per_token <= experts, &expected, &per_token)?;
    let step: usize = text.or("decoder_sparse_step", 1)?;
    text.check("decoder_sparse_step", step == 1, "1: experts in every layer", &step)?;
    let dense: Vec<usize> = text.or("mlp_only_layers", Vec::new())?;
    text.check("mlp_only_layers", dense.is_empty(), "none: experts in every layer", &dense.len())?;
    let renormalise = text.or("norm_topk_prob", true)?;
    let always = family == Family::Qwen35Moe;
    text.check("norm_topk_prob", renormalise || !always, "true in this family", &renormalise)?;
    Ok(MlpConfig::Moe {
        experts,
        per_token,
        intermediate: text.size("moe_intermediate_size")?,
        shared: text.size("shared_expert_intermediate_size")?,
        renormalise,
    })
}

fn tied(root: &Fields<'_>, text: &Fields<'_>) -> Result<bool> {
    let outer: Option<bool> = root.get("tie_word_embeddings", "a boolean")?;
    let inner = text.get("tie_word_embeddings", "a boolean")?;
    let agree = outer.is_none() || inner.is_none() || outer == inner;
    text.check("tie_word_embeddings", agree, "the same at both levels", &inner.unwrap_or(false))?;
    Ok(inner.or(outer).unwrap_or(false))
}
