//! Weights that nobody trained, for timing: of the sizes that trained ones have,
//! so that activations neither vanish nor overflow.

use std::hash::{DefaultHasher, Hash, Hasher};

use gdn::bf16;

use super::{Dummy, Tensor};
use crate::ops;

pub(super) fn tensor(seed: u64, name: &str, shape: [usize; 2]) -> Tensor {
    // Uniform numbers of this range have a variance of 1 / cols.
    let scale = (3.0 / shape[1] as f32).sqrt();
    Tensor::dummy(Dummy { seed: of_name(seed, name), scale }, shape)
}

pub(super) fn vector(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
    let len = shape.iter().product();
    let spread = |i: usize| i as f32 / len as f32;
    match name.rsplit_once('.').map_or(name, |(_, last)| last) {
        // Decays from slow to fast, as in a trained model.
        "A_log" => (0..len).map(|i| (1.0 + 15.0 * spread(i)).ln()).collect(),
        "dt_bias" => (0..len).map(|i| -7.0 + 5.0 * spread(i)).collect(),
        _ if name.ends_with("linear_attn.norm.weight") => vec![1.0; len],
        // The others are zero-centred.
        _ if name.ends_with("norm.weight") => vec![0.0; len],
        _ => {
            let mut values = vec![bf16::ZERO; len];
            let dummy = Dummy { seed: of_name(seed, name), scale: 0.5 };
            ops::fill::cpu::fill(&mut values, dummy, 0);
            values.into_iter().map(bf16::to_f32).collect()
        }
    }
}

fn of_name(seed: u64, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, name).hash(&mut hasher);
    hasher.finish()
}
