//! What the launchers of all operators share.
#![expect(unsafe_code, reason = "the launch itself")]

use std::collections::HashMap;

use bytemuck::Pod;

use super::{
    kernel::{Kernel, Source},
    params,
    runtime::Runtime,
    tiles::{Form, Geometry, Tile, Tiled, Want},
    weights::Weights,
};
use crate::{BetaRounding, DType, HeadOrder, LayerSpec, Result};

/// A matrix or a pool on the GPU: where it starts, and how far its rows or slots
/// are apart, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided {
    pub(crate) address: u64,
    pub(crate) stride: usize,
}

impl Strided {
    /// Whether every row starts at a multiple of 16 bytes.
    pub(crate) fn is_aligned(self, dtype: DType) -> bool {
        self.address.is_multiple_of(16) && (self.stride * dtype.size()).is_multiple_of(16)
    }
}

/// A layer on a batch: what every launch of a call has in common.
pub(crate) struct Launcher<'c> {
    pub(crate) runtime: &'c dyn Runtime,
    /// In place of the table's tiles.
    pub(crate) force: &'c HashMap<Tiled, Tile>,
    pub(crate) spec: &'c LayerSpec,
    pub(crate) weights: Weights,
    pub(crate) activations: DType,
    pub(crate) recurrent: DType,
    /// B, or the number of sequences.
    pub(crate) rows: usize,
    pub(crate) slots: params::Slots,
}

impl Launcher<'_> {
    /// The flags of [`params::Slots`].
    pub(crate) fn flags(spec: &LayerSpec, i64_slots: bool) -> u32 {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        flag(i64_slots, params::SLOTS_I64)
            | flag(spec.head_order() == HeadOrder::Tiled, params::TILED)
            | flag(spec.qk_l2norm(), params::L2NORM)
            | flag(spec.beta_rounding() == BetaRounding::Activation, params::ROUND_BETA)
    }

    /// H, HV, K, V.
    pub(crate) fn dims(&self) -> [u32; 4] {
        let spec = self.spec;
        [spec.q_heads(), spec.v_heads(), spec.head_k(), spec.head_v()].map(|n| n as u32)
    }

    /// The tile of an operator for this batch, and its launch.
    pub(crate) fn tile(&self, operator: Tiled, aligned: bool) -> (Tile, Geometry) {
        let Self { spec, activations, recurrent, .. } = *self;
        let want = Want::new(operator, spec, activations, recurrent);
        let gpu = self.runtime.gpu();
        let pairs = self.rows * spec.v_heads();
        let forced = if self.force.is_empty() { None } else { self.force.get(&operator) };
        let tile = forced.copied().unwrap_or_else(|| want.tile(gpu, pairs, aligned));
        (tile, tile.geometry(&want, gpu, self.rows, spec.v_heads()))
    }

    /// A kernel for this layer; `tile` says whether it is one for any dims.
    pub(crate) fn kernel(
        &self,
        source: Source,
        entry: &'static str,
        tile: Tile,
        aligned: bool,
    ) -> Kernel {
        let any = tile.form == Form::Any && source != Source::Chunked;
        Kernel {
            source,
            entry,
            activations: self.activations,
            recurrent: self.recurrent,
            head_k: if any { 0 } else { self.spec.head_k() as u32 },
            head_v: if any { 0 } else { self.spec.head_v() as u32 },
            conv_width: self.spec.conv_width() as u32,
            tile,
            aligned: aligned || any,
        }
        .canonical()
    }

    /// Enqueues a kernel.
    pub(crate) fn launch<P: Pod>(
        &self,
        kernel: &Kernel,
        geometry: &Geometry,
        params: &P,
    ) -> Result<()> {
        // SAFETY: the launchers fill `params` from views whose shapes were checked against the
        // layer and from blocks that they sized for it, as `params.cuh` asks.
        unsafe { self.runtime.launch(kernel, geometry, bytemuck::bytes_of(params)) }
    }
}
