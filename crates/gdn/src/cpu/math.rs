//! The arithmetic that the operators share, on f32 slices.
//!
//! Every function is `#[inline(always)]`, so that it is compiled for the vector
//! instructions of the kernel that calls it. None of them looks beyond its
//! slices: the order of every sum depends on lengths alone.

use pulp::Simd;

use crate::{BetaRounding, DType, Element, Layer, LayerSpec, Rows};

/// The epsilon on the sum of squares of q and k.
const L2_EPS: f32 = 1e-6;

/// `Σ a·b`.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a_head, a_tail) = S::as_simd_f32s(a);
    let (b_head, b_tail) = S::as_simd_f32s(b);
    let mut sum = simd.splat_f32s(0.0);
    for (&a, &b) in a_head.iter().zip(b_head) {
        sum = simd.mul_add_f32s(a, b, sum);
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + tail
}

/// `y += a·x`, element by element.
#[inline(always)]
pub(crate) fn add_product(y: &mut [f32], a: &[f32], x: &[f32]) {
    for ((y, a), x) in y.iter_mut().zip(a).zip(x) {
        *y += a * x;
    }
}

/// `y += factor·x`.
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// `x = e^x`, to 2 ulp where x ≥ −87.3; below, at most 2e-38.
#[inline(always)]
pub(crate) fn exp_all<S: Simd>(simd: S, x: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(x);
    for x in head {
        *x = exp(simd, *x);
    }
    for x in tail {
        *x = x.exp();
    }
}

/// `x *= factor`.
#[inline(always)]
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `x = x·sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(x);
    let one = simd.splat_f32s(1.0);
    for x in head {
        let e = exp(simd, simd.neg_f32s(*x));
        *x = simd.div_f32s(*x, simd.add_f32s(one, e));
    }
    for x in tail {
        *x /= 1.0 + (-*x).exp();
    }
}

/// e^x to 2 ulp for −87.3 ≤ x ≤ 88; outside, e to the nearer bound. For a NaN
/// some value in range: callers see the NaN in their other operand.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for e^r (the coefficients
/// of Cephes' `expf`), and n added to the exponent.
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    // ln 2 in two parts, the first with few enough bits that n · HIGH is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding it rounds to an integer and leaves that in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;

    let splat = |value| simd.splat_f32s(value);
    let x = simd.min_f32s(simd.max_f32s(x, splat(-87.3)), splat(88.0));
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_f32s(n, splat(-LN_2_HIGH), x);
    let r = simd.mul_add_f32s(n, splat(-LN_2_LOW), r);
    let mut p = splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = simd.mul_add_f32s(p, r, splat(*c));
    }
    let p = simd.mul_add_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    let n = simd.transmute_u32s_f32s(shifted);
    let exponent = simd.wrapping_dyn_shl_u32s(n, simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(p), exponent))
}

/// q and k as the recurrence takes them: normalised if the layer says so, and q
/// times the scale.
#[inline(always)]
pub(crate) fn prepare_qk<S: Simd>(simd: S, spec: &LayerSpec, q: &mut [f32], k: &mut [f32]) {
    let inverse_norm = |x: &[f32]| match spec.qk_l2norm() {
        true => 1.0 / (dot(simd, x, x) + L2_EPS).sqrt(),
        false => 1.0,
    };
    let factor = inverse_norm(q) * spec.scale();
    scale(q, factor);
    let factor = inverse_norm(k);
    scale(k, factor);
}

/// g, the logarithm of the decay, and β of value head `hv`, from row `row` of
/// the gate inputs.
#[inline(always)]
pub(crate) fn gates(layer: &Layer, a: Rows<'_>, b: Rows<'_>, row: usize, hv: usize) -> (f32, f32) {
    let (mut x, mut y) = ([0.0], [0.0]);
    a.read(row, hv, &mut x);
    b.read(row, hv, &mut y);
    let x = x[0] + layer.dt_bias()[hv];
    let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
    let g = layer.neg_exp_a()[hv] * softplus;
    let beta = 1.0 / (1.0 + (-y[0]).exp());
    let beta = match (layer.spec().beta_rounding(), b.dtype()) {
        (BetaRounding::F32, _) | (_, DType::F32) => beta,
        (BetaRounding::Activation, DType::BF16) => rounded::<half::bf16>(beta),
        (BetaRounding::Activation, DType::F16) => rounded::<half::f16>(beta),
    };
    (g, beta)
}

fn rounded<T: Element>(value: f32) -> f32 {
    let mut narrow = [T::zeroed()];
    let mut wide = [0.0];
    T::narrow(&[value], &mut narrow);
    T::widen(&narrow, &mut wide);
    wide[0]
}

/// The gated RMS norm of one value head in place: `o = o / rms(o) · w · silu(z)`.
/// `z` is spent.
#[inline(always)]
pub(crate) fn gated_norm<S: Simd>(simd: S, layer: &Layer, o: &mut [f32], z: &mut [f32]) {
    silu(simd, z);
    let mean = dot(simd, o, o) / o.len() as f32;
    let factor = 1.0 / (mean + layer.spec().norm_eps()).sqrt();
    for ((o, w), z) in o.iter_mut().zip(layer.norm_weight()).zip(z) {
        *o = *o * factor * w * *z;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl pulp::WithSimd for Exp<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            let (head, tail) = S::as_mut_simd_f32s(self.0);
            assert!(tail.is_empty());
            for x in head {
                *x = exp(simd, *x);
            }
        }
    }

    #[test]
    fn exp_is_close_to_the_library_one() {
        let mut x: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) * 0.042_6).collect();
        let exact: Vec<f64> = x.iter().map(|&x| f64::from(x).exp()).collect();
        pulp::Arch::new().dispatch(Exp(&mut x));
        for (x, exact) in x.iter().zip(exact) {
            assert!((f64::from(*x) / exact - 1.0).abs() < 2.4e-7, "{x} {exact}");
        }
    }

    #[test]
    fn exp_saturates() {
        let mut x = [f32::NEG_INFINITY, -1e9, 1e9, f32::INFINITY].repeat(8);
        pulp::Arch::new().dispatch(Exp(&mut x));
        for x in x.chunks_exact(4) {
            assert!(x[..2].iter().all(|x| (0.0..2e-38).contains(x)), "{x:?}");
            assert!(x[2..].iter().all(|&x| 1e38 < x && x.is_finite()), "{x:?}");
        }
    }
}
