//! On the CPU.

use gdn::bf16;
use rayon::prelude::*;

use crate::weights::Dummy;

/// Elements of a task.
const TASK: usize = 1 << 16;

/// `out[i] = scale * u`, with u in [-1, 1) that the seed and `first` + i alone decide.
pub(crate) fn fill(out: &mut [bf16], dummy: Dummy, first: usize) {
    assert!(first.is_multiple_of(4), "four elements have one hash");
    let Dummy { seed, scale } = dummy;
    out.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
        for (i, four) in out.chunks_mut(4).enumerate() {
            let bits = hash(seed, (first / 4 + task * (TASK / 4) + i) as u64);
            for (n, out) in four.iter_mut().enumerate() {
                let u = f32::from((bits >> (16 * n)) as i16) * (1.0 / 32768.0);
                *out = bf16::from_f32(u * scale);
            }
        }
    });
}

/// splitmix64
fn hash(seed: u64, block: u64) -> u64 {
    let mut z = seed.wrapping_add((block + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
