//! A row of the table, from its samples.

use gdn::LayerSpec;
use serde::Serialize;

use super::stats::Summary;

/// What is timed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timed {
    /// The recurrence step by step.
    Split,
    /// The recurrence in one kernel.
    Packed,
    /// Convolution, packed recurrence and norm, one by one.
    Chain,
    /// The same three at once.
    Fused,
    /// A copy of as many bytes.
    Copy,
}

impl Timed {
    /// In the order of their discriminants.
    pub(super) const ALL: [Self; 5] =
        [Self::Split, Self::Packed, Self::Chain, Self::Fused, Self::Copy];
}

/// A row of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) batch: usize,
    pub(super) q_heads: usize,
    pub(super) v_heads: usize,
    pub(super) head_k: usize,
    pub(super) head_v: usize,
    /// The state of the batch; decode reads and writes each byte once.
    pub(super) state_bytes: u64,
    /// How often each operator ran.
    pub(super) repeats: usize,
    pub(super) split_us: Summary,
    pub(super) packed_us: Summary,
    pub(super) speedup: Summary,
    pub(super) saved_us: Summary,
    pub(super) chain_us: Summary,
    pub(super) fused_us: Summary,
    pub(super) copy_us: Summary,
    pub(super) state_gb_per_s: Summary,
    pub(super) share_of_copy: Summary,
    /// Of a GPU alone.
    #[serde(flatten)]
    pub(super) launches: Option<Launches>,
}

/// What a graph on cold state does not show.
#[derive(Debug, Serialize)]
pub(super) struct Launches {
    /// Packed decode in a graph, the same slots every time.
    pub(super) warm_us: Summary,
    /// Packed decode, call behind call without a graph.
    pub(super) eager_us: Summary,
    /// Of which the host is busy with the call.
    pub(super) host_us: Summary,
}

impl Row {
    /// From the times of each operator, in the order of [`Timed::ALL`].
    pub(super) fn new(
        spec: &LayerSpec,
        rows: usize,
        slot_bytes: u64,
        samples: &[Vec<f64>; Timed::ALL.len()],
        launches: Option<Launches>,
    ) -> Self {
        let [split, packed, chain, fused, copy] = samples;
        let of = |values: &[f64]| Summary::of(values.iter().copied());
        let with_packed = |values: &[f64], f: fn(f64, f64) -> f64| {
            Summary::of(values.iter().zip(packed).map(|(&value, &packed)| f(value, packed)))
        };
        let state_bytes = rows as u64 * slot_bytes;
        Self {
            launches,
            batch: rows,
            q_heads: spec.q_heads(),
            v_heads: spec.v_heads(),
            head_k: spec.head_k(),
            head_v: spec.head_v(),
            state_bytes,
            repeats: packed.len(),
            split_us: of(split),
            packed_us: of(packed),
            speedup: with_packed(split, |split, packed| split / packed),
            saved_us: with_packed(split, |split, packed| split - packed),
            chain_us: of(chain),
            fused_us: of(fused),
            copy_us: of(copy),
            state_gb_per_s: Summary::of(packed.iter().map(|us| 2e-3 * state_bytes as f64 / us)),
            share_of_copy: with_packed(copy, |copy, packed| copy / packed),
        }
    }
}
