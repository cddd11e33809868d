//! What can be read of a sequence's memory.

/// The state of one Gated DeltaNet layer.
#[derive(Clone, Debug, PartialEq)]
pub struct GdnState {
    /// The recurrent state, `[HV, V, K]`.
    pub recurrent: Vec<f32>,
    /// The last W − 1 inputs of the convolution, `[W − 1, C]`, oldest first.
    pub conv: Vec<f32>,
}
