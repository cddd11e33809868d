//! On the CPU.

use crate::math::{Math, add};

/// How rows are normed: over their root mean square, times `factor [hidden]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    pub(crate) factor: &'a [f32],
    pub(crate) eps: f32,
}

/// What the experts of each row say. The CPU sums that up with their products, so this
/// and what follows is for tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// `[T, places, hidden]`.
    pub(crate) parts: &'a [f32],
    /// `[T, places]`. What belongs to a share of 0 is not used.
    pub(crate) shares: &'a [f32],
    pub(crate) places: usize,
}

/// Adds `delta` to the residual stream `x`, and writes its rows, normed, to `out`; all
/// `[T, hidden]`.
pub(crate) fn add_norm(
    math: Math,
    x: &mut [f32],
    delta: Option<&[f32]>,
    norm: Norm<'_>,
    out: &mut [f32],
) {
    if let Some(delta) = delta {
        add(x, delta);
    }
    out.copy_from_slice(x);
    math.rms_norm(out, norm.factor, norm.eps);
}

/// The same with what experts say, summed up in the order of their places.
#[cfg(test)]
pub(crate) fn experts_norm(
    math: Math,
    x: &mut [f32],
    parts: Parts<'_>,
    norm: Norm<'_>,
    out: &mut [f32],
) {
    let hidden = norm.factor.len();
    math.for_rows(x, hidden, |row, x| add(x, &parts.sum(row, hidden)));
    add_norm(math, x, None, norm, out);
}

/// Row r of `out` is that of `x + delta` at `picked[r]`, zeros where there is none.
#[cfg(test)]
pub(crate) fn picked_norm(
    math: Math,
    x: &[f32],
    delta: Option<&[f32]>,
    picked: &[i32],
    norm: Norm<'_>,
    out: &mut [f32],
) {
    let hidden = norm.factor.len();
    math.for_rows(out, hidden, |r, out| {
        let row = usize::try_from(picked[r]).ok().filter(|row| *row < x.len() / hidden);
        let Some(row) = row else { return out.fill(0.0) };
        out.copy_from_slice(&x[row * hidden..][..hidden]);
        if let Some(delta) = delta {
            add(out, &delta[row * hidden..][..hidden]);
        }
        math.rms_norm(out, norm.factor, norm.eps);
    });
}

#[cfg(test)]
impl Parts<'_> {
    fn sum(&self, row: usize, hidden: usize) -> Vec<f32> {
        let mut sum = vec![0.0; hidden];
        let places = row * self.places..(row + 1) * self.places;
        for place in places.filter(|&place| self.shares[place] != 0.0) {
            let part = &self.parts[place * hidden..][..hidden];
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += self.shares[place] * part);
        }
        sum
    }
}
