//! Activations in the order in which the inner loops take them.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::{
    element::{Element, PARTS},
    scratch::Line,
};

/// The elements of a block, at most.
const MOST: usize = PARTS * 16;

/// The tokens of the next tile, of `left`: tiles of about one size, whose sums fit
/// the registers.
#[inline(always)]
pub(super) fn tile_tokens<S: Simd>(left: usize) -> usize {
    let most = if S::REGISTER_COUNT >= 32 { 6 } else { 3 };
    left.div_ceil(left.div_ceil(most))
}

/// The vectors of a token: the last block may be filled up with zeros.
#[inline(always)]
pub(super) fn vectors<S: Simd, E: Element>(inputs: usize) -> usize {
    PARTS * inputs.div_ceil(E::block_len::<S>())
}

/// Arranges activations `[T, inputs]` for weights of E: by tile, and in it by
/// block, part and token.
pub(super) struct Arrange<'a, E> {
    pub(super) x: &'a [f32],
    pub(super) inputs: usize,
    pub(super) to: &'a mut Vec<Line>,
    pub(super) element: PhantomData<E>,
}

impl<E: Element> WithSimd for Arrange<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (inputs, lanes) = (self.inputs, S::F32_LANES);
        let (len, block_len) = (vectors::<S, E>(inputs) * lanes, E::block_len::<S>());
        let mut left = self.x.len() / inputs;
        Line::resize(self.to, left * len);
        let (mut x, mut to) = (self.x, &mut bytemuck::cast_slice_mut(self.to)[..left * len]);
        while left > 0 {
            let tokens = tile_tokens::<S>(left);
            let (tile, rest) = to.split_at_mut(tokens * len);
            let (rows, others) = x.split_at(tokens * inputs);
            for (t, row) in rows.chunks_exact(inputs).enumerate() {
                let blocks = tile.chunks_exact_mut(PARTS * tokens * lanes);
                for (block, x) in blocks.zip(row.chunks(block_len)) {
                    let mut filled = [0.0; MOST];
                    let x = if x.len() == block_len {
                        x
                    } else {
                        filled[..x.len()].copy_from_slice(x);
                        &filled[..block_len]
                    };
                    let mut parts = block.chunks_exact_mut(tokens * lanes);
                    let parts = std::array::from_fn(|_| {
                        let part = parts.next().expect("a block has as many parts");
                        &mut part[t * lanes..][..lanes]
                    });
                    E::arrange::<S>(x, parts);
                }
            }
            (x, to) = (others, rest);
            left -= tokens;
        }
    }
}
