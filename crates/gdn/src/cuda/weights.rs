//! The small weights of a layer on the GPU.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use super::runtime::{Block, Runtime};
use crate::{Layer, Result};

/// Where each of a layer's weights is, all f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// `[W, C]`, oldest tap first.
    pub(crate) conv: u64,
    /// `[C]`, or 0 if there is none.
    pub(crate) bias: u64,
    /// −exp(A_log), `[HV]`.
    pub(crate) neg_exp_a: u64,
    /// `[HV]`.
    pub(crate) dt_bias: u64,
    /// `[V]`.
    pub(crate) norm: u64,
}

/// The layers that were uploaded, for as long as they live.
#[derive(Debug, Default)]
pub(crate) struct WeightCache {
    /// By the address of the layer's token, which is nobody else's while the
    /// weak reference lives.
    layers: HashMap<usize, (Weak<()>, Weights, Block)>,
}

impl WeightCache {
    /// The weights of `layer`, uploaded at its first use.
    pub(crate) fn get(&mut self, runtime: &Arc<dyn Runtime>, layer: &Layer) -> Result<Weights> {
        let key = Arc::as_ptr(layer.token()).addr();
        if let Some((_, weights, _)) = self.layers.get(&key) {
            return Ok(*weights);
        }
        self.layers.retain(|_, (token, ..)| token.strong_count() > 0);
        let (weights, block) = upload(runtime, layer)?;
        self.layers.insert(key, (Arc::downgrade(layer.token()), weights, block));
        Ok(weights)
    }
}

fn upload(runtime: &Arc<dyn Runtime>, layer: &Layer) -> Result<(Weights, Block)> {
    // Each part starts at a multiple of 256 bytes.
    const ALIGN: usize = 64;
    let spec = layer.spec();
    let mut values = Vec::new();
    let mut part = |slice: &[f32]| {
        let start = values.len();
        values.extend_from_slice(slice);
        values.resize(values.len().next_multiple_of(ALIGN), 0.0);
        start
    };
    let mut taps = Vec::with_capacity(spec.conv_len());
    for tap in 0..spec.conv_width() {
        for (channel, len) in spec.conv_heads() {
            taps.extend_from_slice(layer.conv_tap(tap, channel, len));
        }
    }
    let conv = part(&taps);
    let bias = part(layer.conv_bias());
    let neg_exp_a = part(layer.neg_exp_a());
    let dt_bias = part(layer.dt_bias());
    let norm = part(layer.norm_weight());

    let mut block = Block::new(runtime, size_of_val(values.as_slice()))?;
    block.upload(0, bytemuck::cast_slice(&values))?;
    let at = |start: usize| block.address() + (start * size_of::<f32>()) as u64;
    let weights = Weights {
        conv: at(conv),
        bias: if layer.has_conv_bias() { at(bias) } else { 0 },
        neg_exp_a: at(neg_exp_a),
        dt_bias: at(dt_bias),
        norm: at(norm),
    };
    Ok((weights, block))
}
