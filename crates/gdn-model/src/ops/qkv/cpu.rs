//! On the CPU.

use super::PAGE;
use crate::math::Math;

/// The heads of a layer, and what is done to those of queries and keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads<'a> {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// `[head_dim]`.
    pub(crate) q_norm: &'a [f32],
    /// `[head_dim]`.
    pub(crate) k_norm: &'a [f32],
    pub(crate) eps: f32,
    /// Of the leading dims, in radians a position.
    pub(crate) frequencies: &'a [f32],
}

/// Where each row is: `positions [T]`, `sequences [T]` (negative: padding), and the pages of
/// every sequence, `table [B, max_pages]` (negative: none).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    pub(crate) positions: &'a [i32],
    pub(crate) sequences: &'a [i32],
    pub(crate) table: &'a [i32],
    pub(crate) max_pages: usize,
}

/// Takes rows of `p` (per head q and gate, then k, then v) apart: writes `q [T, heads, head_dim]`,
/// and to `keys` and `values [pages, PAGE, kv_heads, head_dim]`. Padding writes nothing.
pub(crate) fn qkv(
    math: Math,
    p: &[f32],
    heads: Heads<'_>,
    places: Places<'_>,
    q: &mut [f32],
    keys: &mut [f32],
    values: &mut [f32],
) {
    let (dim, kv_heads) = (heads.q_norm.len(), heads.kv_heads);
    let (q_len, kv_len) = (heads.heads * dim, kv_heads * dim);
    let row = |t: usize| &p[t * (2 * q_len + 2 * kv_len)..][..2 * q_len + 2 * kv_len];
    math.for_rows(q, q_len, |t, q| {
        if places.sequences[t] >= 0 {
            let pairs = row(t)[..2 * q_len].chunks_exact(2 * dim);
            q.chunks_exact_mut(dim)
                .zip(pairs)
                .for_each(|(q, pair)| q.copy_from_slice(&pair[..dim]));
            heads.norm_and_rotate(math, q, heads.q_norm, places.positions[t]);
        }
    });
    for t in 0..places.positions.len() {
        if let Some(token) = places.token(t) {
            let (k, v) = row(t)[2 * q_len..].split_at(kv_len);
            values[token * kv_len..][..kv_len].copy_from_slice(v);
            let keys = &mut keys[token * kv_len..][..kv_len];
            keys.copy_from_slice(k);
            heads.norm_and_rotate(math, keys, heads.k_norm, places.positions[t]);
        }
    }
}

impl Places<'_> {
    /// Where row `t` is among the tokens of all pages.
    fn token(&self, t: usize) -> Option<usize> {
        let sequence = usize::try_from(self.sequences[t]).ok()?;
        let position = usize::try_from(self.positions[t]).ok()?;
        let pages = &self.table[sequence * self.max_pages..][..self.max_pages];
        let page = usize::try_from(*pages.get(position / PAGE)?).ok()?;
        Some(page * PAGE + position % PAGE)
    }
}

impl Heads<'_> {
    /// Dim i goes with dim i + half.
    fn norm_and_rotate(&self, math: Math, x: &mut [f32], factor: &[f32], position: i32) {
        math.rms_norm(x, factor, self.eps);
        let half = self.frequencies.len();
        let angles = self.frequencies.iter().map(|f| position as f32 * f);
        let turns: Vec<(f32, f32)> = angles.map(f32::sin_cos).collect();
        for head in x.chunks_exact_mut(factor.len()) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(&turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
