//! On the CPU.

use gdn::bf16;

use crate::math::Math;

/// Writes rows of `table [vocab, hidden]` to `x [T, hidden]`: zeros for tokens that it has not.
pub(crate) fn embed(math: Math, tokens: &[i32], table: &[bf16], hidden: usize, x: &mut [f32]) {
    math.for_rows(x, hidden, |row, x| {
        let token = usize::try_from(tokens[row]).ok().filter(|&it| it < table.len() / hidden);
        let Some(token) = token else { return x.fill(0.0) };
        let values = &table[token * hidden..][..hidden];
        x.iter_mut().zip(values).for_each(|(x, value)| *x = value.to_f32());
    });
}
