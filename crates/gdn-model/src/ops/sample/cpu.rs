//! On the CPU: the arithmetic of `sample.cu`, operation by operation.

use super::Choice;

/// The token of a row of logits.
pub(crate) fn sample(logits: &[f32], choice: &Choice) -> u32 {
    let Choice { temperature, top_k, top_p, min_p, seed, step } = *choice;
    let keys = || (0..).zip(logits).map(|(token, &logit)| key_of(logit, token));
    let top = keys().max().expect("a vocabulary");
    let max = logit_of(top);
    if temperature.is_nan() || temperature < 1e-5 {
        return token_of(top);
    }
    let per_t = 1.0 / temperature;
    let top_k = if (top_k as usize) < logits.len() { top_k as usize } else { 0 };
    let drawn = |token: u32| {
        let logit = logits[token as usize];
        key_of(logit * per_t + noise(random(seed, step, token)), token)
    };
    if top_k == 0 && (top_p >= 1.0 || top_p.is_nan()) && (min_p <= 0.0 || min_p.is_nan()) {
        let best = (0..logits.len() as u32).map(drawn).max();
        return token_of(best.expect("a vocabulary"));
    }
    if !max.is_finite() {
        return token_of(top);
    }
    let z = |key: u64| (logit_of(key) - max) * per_t;
    let least = if min_p > 0.0 { ln(min_p.clamp(1e-30, 1.0)) } else { f32::NEG_INFINITY };
    let above_infinity = 0x0080_0000 << 32;
    let mut kept: Vec<u64> =
        keys().filter(|&key| key >= above_infinity && z(key) >= least).collect();
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, |a, b| b.cmp(a));
        kept.truncate(top_k);
    }
    if top_p < 1.0 {
        kept.retain(|&key| weight(z(key)) > 0);
        kept.sort_unstable_by(|a, b| b.cmp(a));
        let mass: u64 = kept.iter().map(|&key| weight(z(key))).sum();
        let part = (top_p.max(0.0) * 4_294_967_296.0) as u64;
        let target = ((mass >> 32) * part + (((mass & 0xffff_ffff) * part) >> 32)).max(1);
        let mut sum = 0;
        let enough = kept.iter().position(|&key| {
            sum += weight(z(key));
            sum >= target
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
    token_of(kept.into_iter().map(|key| drawn(token_of(key))).max().expect("the best token"))
}

/// A float as an integer of the same order, NaN lowest, above one that makes the lower
/// token win of equals.
fn key_of(x: f32, token: u32) -> u64 {
    let bits = (x + 0.0).to_bits(); // no -0
    let key = match x {
        x if x.is_nan() => 1,
        _ if bits >> 31 == 1 => !bits,
        _ => bits | 0x8000_0000,
    };
    u64::from(key) << 32 | u64::from(!token)
}

fn logit_of(key: u64) -> f32 {
    f32::from_bits(match (key >> 32) as u32 {
        1 => 0x7fff_ffff,
        key if key >> 31 == 1 => key & 0x7fff_ffff,
        key => !key,
    })
}

fn token_of(key: u64) -> u32 {
    !(key as u32)
}

/// Of positive normal numbers.
#[expect(clippy::excessive_precision, reason = "as in sample.cu")]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits().wrapping_add(0x004a_fb0d);
    let k = ((bits >> 23) as i32 - 127) as f32;
    let f = f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3) - 1.0;
    let s = f / (2.0 + f);
    let (z, h) = (s * s, 0.5 * f * f);
    let w = z * z;
    let r = z * (0.66666662693 + w * 0.28498786688) + w * (0.40000972152 + w * 0.24279078841);
    s * (h + r) + k * 9.0580006145e-6 - h + f + k * 0.69313812256
}

/// `2^40 e^z`, z <= 0.
#[expect(clippy::excessive_precision, reason = "as in sample.cu")]
fn weight(z: f32) -> u64 {
    if z.is_nan() || z <= -28.0 {
        return 0;
    }
    let k = (1.4426950216 * z - 0.5) as i32;
    let (hi, lo) = (z - k as f32 * 0.69314575195, k as f32 * 1.4286067653e-6);
    let x = hi - lo;
    let xx = x * x;
    let c = x - xx * (0.16666625440 - xx * 0.0027667332906);
    let y = 1.0 + (x * c / (2.0 - c) - lo + hi);
    (y * f32::from_bits(((127 + 40 + k) as u32) << 23)) as u64
}

/// 64 random bits for a token: half of what Philox4x32-10 gives for a pair of tokens.
fn random(seed: u64, step: u64, token: u32) -> u64 {
    let (mut a, mut b, mut c, mut d) = (token / 2, step as u32, (step >> 32) as u32, 0);
    let (mut k, mut l) = (seed as u32, (seed >> 32) as u32);
    for _ in 0..10 {
        let (first, second) = (0xd251_1f53 * u64::from(a), 0xcd9e_8d57 * u64::from(c));
        (a, b, c, d) = (
            (second >> 32) as u32 ^ b ^ k,
            second as u32,
            (first >> 32) as u32 ^ d ^ l,
            first as u32,
        );
        k = k.wrapping_add(0x9e37_79b9);
        l = l.wrapping_add(0xbb67_ae85);
    }
    let (low, high) = if token.is_multiple_of(2) { (a, b) } else { (c, d) };
    u64::from(high) << 32 | u64::from(low)
}

/// Gumbel noise.
fn noise(bits: u64) -> f32 {
    let u = (bits | 1) as f32 * 5.421_011e-20; // 2^-64
    let c = 1.0 - u;
    -ln(if c == 1.0 { u } else { -ln(c) * u / (1.0 - c) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_is_philox() {
        // Known answers of Random123: counter 0, key 0.
        assert_eq!(random(0, 0, 0), 0xe169_c58d_6627_e8d5);
        assert_eq!(random(0, 0, 1), 0x9b00_dbd8_bc57_ac4c);
    }

    #[test]
    fn ln_and_weight_are_close() {
        for i in 1..20_000 {
            let x = (i as f32 * 0.37).powi(3) * 1e-9;
            assert!((ln(x) - x.ln()).abs() <= 2e-7 * x.ln().abs().max(0.1), "ln {x}");
            let z = -i as f32 * 0.0014;
            let expected = f64::from(z).exp() * (1u64 << 40) as f64;
            assert!((weight(z) as f64 - expected).abs() <= 1.0 + 2e-7 * expected, "weight {z}");
        }
        assert_eq!(weight(0.0), 1 << 40);
    }

    #[test]
    fn noise_is_gumbel() {
        // P(noise < x) = exp(-exp(-x))
        let n = 100_000;
        let mut sorted: Vec<f32> = (0..n).map(|token| noise(random(3, 9, token))).collect();
        sorted.sort_by(f32::total_cmp);
        let far = (0..).zip(&sorted).map(|(i, &x): (u32, _)| {
            ((-(-f64::from(x)).exp()).exp() - f64::from(i) / f64::from(n)).abs()
        });
        let far = far.fold(0.0, f64::max);
        assert!(far < 1.95 / f64::from(n).sqrt(), "Kolmogorov-Smirnov: {far}");
        assert!(noise(0).is_finite() && noise(u64::MAX).is_finite());
    }
}
