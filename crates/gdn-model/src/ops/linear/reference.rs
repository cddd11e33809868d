//! Products in f64, to test with. The CPU has `math::product_into`.

use gdn::bf16;

use crate::math::silu;

/// `y = x·wᵀ`, `[rows, outputs]`, for `x [rows, k]` and `w [outputs, k]`.
pub(crate) fn linear(x: &[f32], k: usize, w: &[bf16], y: &mut [f32]) {
    let outputs = w.len() / k;
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(outputs)) {
        for (w, y) in w.chunks_exact(k).zip(y) {
            *y = dot(x, w);
        }
    }
}

/// `silu(gate)·up`, `[rows, outputs]`: the gate has the first half of the rows of
/// `w [2·outputs, k]`.
pub(crate) fn swiglu(x: &[f32], k: usize, w: &[bf16], y: &mut [f32]) {
    let (gate, up) = w.split_at(w.len() / 2);
    let outputs = gate.len() / k;
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(outputs)) {
        for ((gate, up), y) in gate.chunks_exact(k).zip(up.chunks_exact(k)).zip(y) {
            *y = silu(dot(x, gate)) * dot(x, up);
        }
    }
}

fn dot(x: &[f32], w: &[bf16]) -> f32 {
    let sum: f64 = x.iter().zip(w).map(|(&x, w)| f64::from(x) * w.to_f64()).sum();
    sum as f32
}
