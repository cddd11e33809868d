//! A loaded model and its forward pass.

use std::{path::Path, sync::Arc};

use gdn::{Cpu, PrefillForm};

use crate::{
    Checkpoint, Config, Error, Result, Sequence,
    attention::Attention,
    config::LayerKind,
    gdn_layer::GdnLayer,
    math::{Linear, Math, add},
    mlp::Mlp,
    sequence::LayerState,
    weights::Scope,
};

/// How a model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The threads to compute with; as many as the machine runs at once if
    /// `None`.
    pub threads: Option<usize>,
    /// How the Gated DeltaNet layers take several tokens at once. With
    /// [`PrefillForm::Recurrent`], the default, logits have the same bits however
    /// the tokens are split into calls.
    pub prefill: PrefillForm,
}

impl Options {
    /// These options with this many threads.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// These options with this form of prefill.
    pub fn prefill(self, prefill: PrefillForm) -> Self {
        Self { prefill, ..self }
    }
}

/// A model in f32 on the CPU.
#[derive(Debug)]
pub struct Model {
    weights: Weights,
    cpu: Cpu,
    prefill: PrefillForm,
    token: Arc<()>,
}

#[derive(Debug)]
struct Weights {
    config: Config,
    /// `[vocab, hidden]`.
    embeddings: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None` if it is the embeddings.
    head: Option<Linear>,
}

#[derive(Debug)]
struct Layer {
    input_norm: Vec<f32>,
    mixer: Mixer,
    mlp_norm: Vec<f32>,
    mlp: Mlp,
}

#[derive(Debug)]
enum Mixer {
    Gdn(Box<GdnLayer>),
    Attention(Box<Attention>),
}

impl Model {
    /// Loads `config.json` and the weights beside it.
    ///
    /// # Errors
    /// As [`Config::read`] and [`Checkpoint`], or an operator's if there are no
    /// threads to be had.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(folder, &Options::default())
    }

    /// As [`load`](Self::load), with options.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(folder: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let folder = folder.as_ref();
        let config = Config::read(&folder.join("config.json"))?;
        let mut checkpoint = Checkpoint::open(folder)?;
        let weights = Weights::load(config, &mut checkpoint)?;
        checkpoint.finish()?;
        let cpu = options.threads.map_or_else(Cpu::new, Cpu::with_threads)?;
        Ok(Self { weights, cpu, prefill: options.prefill, token: Arc::default() })
    }

    /// The model's shape and options.
    pub fn config(&self) -> &Config {
        &self.weights.config
    }

    /// A sequence without tokens.
    ///
    /// # Errors
    /// An operator's if there is no memory for its states.
    pub fn state(&self) -> Result<Sequence> {
        Sequence::new(self.config(), &self.token)
    }

    /// Runs tokens through the model, behind those that the sequence has seen,
    /// and returns the logits for what comes after the last, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::Token`], [`Error::TooLong`] or
    /// [`Error::ForeignSequence`]; the sequence is as before then.
    pub fn forward(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        self.run(sequence, tokens, Logits::Last, &mut |_, _| {})
    }

    /// As [`forward`](Self::forward), with the logits of every token,
    /// `[T, vocab]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_all(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        self.run(sequence, tokens, Logits::All, &mut |_, _| {})
    }

    /// As [`forward_all`](Self::forward_all), and shows `observe` the hidden
    /// states `[T, hidden]` on their way: with index i what enters layer i, and
    /// with the number of layers as index what leaves the final norm.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_observed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<Vec<f32>> {
        self.run(sequence, tokens, Logits::All, observe)
    }

    fn run(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        logits: Logits,
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<Vec<f32>> {
        if !Arc::ptr_eq(&sequence.owner, &self.token) {
            return Err(Error::ForeignSequence);
        }
        self.weights.check(sequence, tokens)?;
        let math = Math::new(self.cpu.threads() > 1);
        let (weights, prefill) = (&self.weights, self.prefill);
        // On the backend's threads, so that products and operators share them.
        self.cpu.install(|cpu| {
            let run = Run { math, prefill, cpu };
            weights.forward(run, sequence, tokens, logits, observe)
        })
    }
}

/// Whose logits are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Logits {
    Last,
    All,
}

/// What a forward pass computes with.
struct Run<'a> {
    math: Math,
    prefill: PrefillForm,
    cpu: &'a mut Cpu,
}

impl Weights {
    fn load(config: Config, checkpoint: &mut Checkpoint) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // Models with a vision tower keep the text model one level deeper.
        let nested = checkpoint.contains("model.language_model.embed_tokens.weight");
        let prefix = if nested { "model.language_model." } else { "model." };
        let mut from = Scope::new(checkpoint, prefix);
        let embeddings = from.take("embed_tokens.weight", &[vocab, hidden])?;
        let mut layers = Vec::with_capacity(config.layers.len());
        for (i, &kind) in config.layers.iter().enumerate() {
            layers.push(Layer::load(&config, kind, from.scope(&format!("layers.{i}")))?);
        }
        let norm = from.take_norm("norm.weight", hidden)?;
        // A copy of tied embeddings is left alone, as Hugging Face does.
        let stored = !config.tied_embeddings || checkpoint.contains("lm_head.weight");
        let head =
            if stored { Some(checkpoint.take("lm_head.weight", &[vocab, hidden])?) } else { None };
        let head = head.filter(|_| !config.tied_embeddings).map(|head| Linear::new(head, hidden));
        Ok(Self { config, embeddings, layers, norm, head })
    }

    fn check(&self, sequence: &Sequence, tokens: &[u32]) -> Result<()> {
        let (vocab, limit) = (self.config.vocab_size, self.config.max_positions);
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if let Some(index) = tokens.iter().position(|&token| token as usize >= vocab) {
            return Err(Error::Token { index, vocab, got: tokens[index] });
        }
        let got = sequence.len.saturating_add(tokens.len());
        if got > limit {
            return Err(Error::TooLong { limit, got });
        }
        Ok(())
    }

    fn forward(
        &self,
        run: Run<'_>,
        sequence: &mut Sequence,
        tokens: &[u32],
        logits: Logits,
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<Vec<f32>> {
        let Run { math, prefill, cpu } = run;
        let (hidden, eps) = (self.config.hidden_size, self.config.norm_eps);
        let embedding = |&token: &u32| &self.embeddings[token as usize * hidden..][..hidden];
        let mut x: Vec<f32> = tokens.iter().flat_map(embedding).copied().collect();
        let position = sequence.len;
        for (i, (layer, state)) in self.layers.iter().zip(&mut sequence.layers).enumerate() {
            observe(i, &x);
            let mut normed = x.clone();
            math.rms_norm(&mut normed, &layer.input_norm, eps);
            let mixed = match (&layer.mixer, state) {
                (Mixer::Gdn(gdn), LayerState::Gdn(pool)) => {
                    gdn.forward(math, cpu, prefill, &normed, tokens.len(), pool)?
                }
                (Mixer::Attention(attention), LayerState::Attention(cache)) => {
                    attention.forward(math, &normed, position, cache)
                }
                _ => return Err(Error::ForeignSequence),
            };
            add(&mut x, &mixed);
            let mut normed = x.clone();
            math.rms_norm(&mut normed, &layer.mlp_norm, eps);
            add(&mut x, &layer.mlp.forward(math, &normed));
        }
        sequence.len += tokens.len();
        math.rms_norm(&mut x, &self.norm, eps);
        observe(self.layers.len(), &x);
        let from = if logits == Logits::All { 0 } else { x.len() - hidden };
        Ok(match &self.head {
            Some(head) => head.apply(math, &x[from..]),
            None => math.product(&self.embeddings, hidden, &x[from..]),
        })
    }
}

impl Layer {
    fn load(config: &Config, kind: LayerKind, mut from: Scope<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        Ok(Self {
            input_norm: from.take_norm("input_layernorm.weight", hidden)?,
            mixer: match kind {
                LayerKind::Gdn => {
                    Mixer::Gdn(Box::new(GdnLayer::load(config, from.scope("linear_attn"))?))
                }
                LayerKind::Attention => {
                    Mixer::Attention(Box::new(Attention::load(config, from.scope("self_attn"))?))
                }
            },
            mlp_norm: from.take_norm("post_attention_layernorm.weight", hidden)?,
            mlp: Mlp::load(config, from.scope("mlp"))?,
        })
    }
}
