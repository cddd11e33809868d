//! The elements of a weight, and how a vector of them becomes f32.

use bytemuck::{Pod, Zeroable};
use gdn::bf16;
use pulp::Simd;

/// The vectors of f32 that make a block.
pub(super) const PARTS: usize = 2;

/// An element of a weight.
pub(super) trait Element: Pod {
    /// A block of a row as it lies in memory.
    type Block<S: Simd>: Pod;

    /// The elements of a block.
    fn block_len<S: Simd>() -> usize;

    /// Whole blocks.
    fn blocks<S: Simd>(row: &[Self]) -> &[Self::Block<S>];

    /// The last `len` elements of a row, with zeros to fill a block.
    #[inline(always)]
    fn last_block<S: Simd>(row: &[Self], len: usize) -> Self::Block<S> {
        let mut block = Self::Block::<S>::zeroed();
        bytemuck::cast_slice_mut(std::slice::from_mut(&mut block))[..len]
            .copy_from_slice(&row[row.len() - len..]);
        block
    }

    /// One part of a block, in f32.
    fn part<S: Simd>(simd: S, block: &Self::Block<S>, part: usize) -> S::f32s;

    /// Puts a block of activations where [`part`](Self::part) leaves the weights
    /// that go with them.
    fn arrange<S: Simd>(x: &[f32], parts: [&mut [f32]; PARTS]);
}

impl Element for f32 {
    type Block<S: Simd> = [S::f32s; PARTS];

    #[inline(always)]
    fn block_len<S: Simd>() -> usize {
        PARTS * S::F32_LANES
    }

    #[inline(always)]
    fn blocks<S: Simd>(row: &[f32]) -> &[Self::Block<S>] {
        S::as_simd_f32s(row).0.as_chunks().0
    }

    #[inline(always)]
    fn part<S: Simd>(_: S, block: &Self::Block<S>, part: usize) -> S::f32s {
        block[part]
    }

    #[inline(always)]
    fn arrange<S: Simd>(x: &[f32], parts: [&mut [f32]; PARTS]) {
        for (part, x) in parts.into_iter().zip(x.chunks_exact(S::F32_LANES)) {
            part.copy_from_slice(x);
        }
    }
}

/// Two bf16 lie in a word of 32 bits, and each is the high half of an f32: a shift
/// makes the even element, a mask the odd one.
impl Element for bf16 {
    type Block<S: Simd> = [S::u16s; PARTS / 2];

    #[inline(always)]
    fn block_len<S: Simd>() -> usize {
        PARTS / 2 * S::U16_LANES
    }

    #[inline(always)]
    fn blocks<S: Simd>(row: &[bf16]) -> &[Self::Block<S>] {
        S::as_simd_u16s(bytemuck::cast_slice(row)).0.as_chunks().0
    }

    #[inline(always)]
    fn part<S: Simd>(simd: S, block: &Self::Block<S>, part: usize) -> S::f32s {
        // Without vectors a word is one element.
        let words: S::u32s = match S::IS_SCALAR {
            true => bytemuck::cast(u32::from(bytemuck::cast::<_, u16>(block[part / 2]))),
            false => bytemuck::cast(block[part / 2]),
        };
        simd.transmute_f32s_u32s(match part % 2 {
            0 => simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16)),
            _ => simd.and_u32s(words, simd.splat_u32s(0xffff_0000)),
        })
    }

    #[inline(always)]
    fn arrange<S: Simd>(x: &[f32], mut parts: [&mut [f32]; PARTS]) {
        if S::IS_SCALAR {
            for (parts, x) in parts.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                (parts[0][0], parts[1][0]) = (*x, 0.0);
            }
            return;
        }
        for (parts, x) in parts.as_chunks_mut::<2>().0.iter_mut().zip(x.chunks_exact(S::U16_LANES))
        {
            let (pairs, [even, odd]) = (&x.as_chunks::<2>().0[..S::F32_LANES], parts);
            let (even, odd) = (&mut even[..S::F32_LANES], &mut odd[..S::F32_LANES]);
            for i in 0..S::F32_LANES {
                (even[i], odd[i]) = (pairs[i][0], pairs[i][1]);
            }
        }
    }
}
