//! What a model remembers of one sequence.

use std::sync::Arc;

use gdn::{PoolOptions, StatePool};

use crate::{Config, Error, Result, attention::KvCache, config::LayerKind, gdn_layer::SLOT};

/// What a model remembers of the tokens that it has seen: a fixed-size state in
/// each Gated DeltaNet layer, keys and values in each full-attention layer.
///
/// [`Model::state`](crate::Model::state) makes one.
#[derive(Debug)]
pub struct Sequence {
    /// Shared with the model that made it.
    pub(crate) owner: Arc<()>,
    pub(crate) len: usize,
    pub(crate) layers: Vec<LayerState>,
}

#[derive(Debug)]
pub(crate) enum LayerState {
    Gdn(Box<StatePool>),
    Attention(KvCache),
}

/// The state of one Gated DeltaNet layer.
#[derive(Clone, Debug, PartialEq)]
pub struct GdnState {
    /// The recurrent state, `[HV, V, K]`.
    pub recurrent: Vec<f32>,
    /// The last W − 1 inputs of the convolution, `[W − 1, C]`, oldest first.
    pub conv: Vec<f32>,
}

impl Sequence {
    pub(crate) fn new(config: &Config, owner: &Arc<()>) -> Result<Self> {
        let layer = |kind: &LayerKind| -> Result<LayerState> {
            Ok(match kind {
                LayerKind::Attention => LayerState::Attention(KvCache::default()),
                LayerKind::Gdn => {
                    let mut pool = StatePool::new(&config.gdn, &PoolOptions::new(1))?;
                    let slot = pool.allocate()?;
                    debug_assert_eq!(slot, SLOT);
                    LayerState::Gdn(Box::new(pool))
                }
            })
        };
        let layers = config.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { owner: owner.clone(), len: 0, layers })
    }

    /// The number of tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The state of a Gated DeltaNet layer, counted among all layers.
    ///
    /// # Errors
    /// [`Error::Layer`] if there is no such layer, or it is a full-attention one.
    pub fn gdn_state(&self, layer: usize) -> Result<GdnState> {
        let Some(LayerState::Gdn(pool)) = self.layers.get(layer) else {
            return Err(Error::Layer { layers: self.layers.len(), got: layer });
        };
        Ok(GdnState { recurrent: pool.recurrent(SLOT)?, conv: pool.conv(SLOT)? })
    }
}
