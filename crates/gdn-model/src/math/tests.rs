use gdn::{Cpu, bf16};

use super::*;

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + seed) as f32).sin()).collect()
}

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

fn product(math: Math, weights: &[Values<'_>], inputs: usize, x: &[f32]) -> Vec<f32> {
    let stride = weights.iter().map(|weight| weight.len() / inputs).sum();
    let mut y = vec![f32::NAN; x.len() / inputs * stride];
    let out = Out { y: &mut y, stride, offset: 0 };
    math.product_into(weights, inputs, x, out, &mut Scratch::default());
    y
}

fn on_threads<R: Send>(threads: usize, f: impl FnOnce(Math) -> R + Send) -> R {
    let mut cpu = Cpu::with_threads(threads).expect("threads");
    cpu.install(|_| f(Math::new(threads > 1)))
}

#[test]
fn a_product_is_the_sum_of_products() {
    let shapes = [(1, 1), (3, 2), (17, 7), (257, 31), (5, 33), (3, 64), (17, 127), (2, 4099)];
    for (outputs, inputs) in shapes {
        for tokens in [1, 2, 3, 4, 5, 6, 7, 13, 70] {
            let x = values(tokens * inputs, 2);
            let narrow = narrow(&values(outputs * inputs, 1));
            let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            for weight in [Values::Bf16(&narrow), Values::F32(&wide)] {
                let y = product(Math::new(true), &[weight], inputs, &x);
                for (i, &y) in y.iter().enumerate() {
                    let (x, w) = (&x[i / outputs * inputs..], &wide[i % outputs * inputs..]);
                    let terms = x.iter().zip(w).take(inputs);
                    let terms = terms.map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let (sum, size) = terms
                        .fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
                    let off = (f64::from(y) - sum).abs();
                    assert!(off <= 1e-6 * size, "{outputs}×{inputs}×{tokens}: {i} off by {off}");
                }
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_company_nor_on_threads() {
    // More than one stretch of activations, and rows for several tasks.
    let (outputs, inputs, most) = (307, 1291, 70);
    let x = values(most * inputs, 2);
    let (first, second) = (values(outputs * inputs, 1), narrow(&values(outputs * inputs, 3)));
    let weights = [Values::F32(&first), Values::Bf16(&second)];
    let alone: Vec<f32> = on_threads(1, |math| {
        x.chunks(inputs).flat_map(|x| product(math, &weights, inputs, x)).collect()
    });
    for threads in 1..=3 {
        on_threads(threads, |math| {
            for tokens in 1..=most {
                let y = product(math, &weights, inputs, &x[..tokens * inputs]);
                assert!(y == alone[..y.len()], "{tokens} tokens on {threads} threads");
            }
            // A row's place, and the other weights of the call.
            let part = [Values::Bf16(&second[5 * inputs..][..9 * inputs])];
            let y = product(math, &part, inputs, &x);
            for (y, all) in y.chunks(9).zip(alone.chunks(2 * outputs)) {
                assert_eq!(y, &all[outputs + 5..][..9]);
            }
        });
    }
}

#[test]
fn many_tokens_in_blocks_are_as_many_alone() {
    let (outputs, inputs, tokens) = (33, 40, 500);
    let (w, x) = (narrow(&values(outputs * inputs, 1)), values(tokens * inputs, 2));
    let all = on_threads(2, |math| product(math, &[Values::Bf16(&w)], inputs, &x));
    let each = x
        .chunks(inputs)
        .flat_map(|x| on_threads(1, |math| product(math, &[Values::Bf16(&w)], inputs, x)));
    assert_eq!(all, each.collect::<Vec<_>>());
}

#[test]
fn other_columns_are_left_alone() {
    let (inputs, stride, offset) = (50, 20, 3);
    let (a, b) = (narrow(&values(7 * inputs, 1)), values(4 * inputs, 3));
    let weights = [Values::Bf16(&a), Values::F32(&b)];
    for tokens in [1, 2, 9, 300] {
        let x = values(tokens * inputs, 2);
        let expected = product(Math::new(false), &weights, inputs, &x);
        let mut y = vec![7.5; tokens * stride];
        let out = Out { y: &mut y, stride, offset };
        on_threads(2, |math| {
            math.product_into(&weights, inputs, &x, out, &mut Scratch::default());
        });
        for (y, expected) in y.chunks(stride).zip(expected.chunks(11)) {
            assert_eq!(&y[offset..offset + 11], expected);
            assert!(y[..offset].iter().chain(&y[offset + 11..]).all(|&y| y == 7.5), "{y:?}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for inputs in [1, 5, 64, 100] {
        for tokens in [1, 3, 8] {
            let x = vec![1.5; tokens * inputs];
            for at in [0, inputs / 2, inputs - 1] {
                let mut w = vec![bf16::ONE; 4 * inputs];
                w[at] = bf16::INFINITY;
                w[inputs + at] = bf16::NAN;
                w[2 * inputs + at] = bf16::NEG_INFINITY;
                let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
                for weight in [Values::Bf16(&w), Values::F32(&wide)] {
                    for y in product(Math::new(false), &[weight], inputs, &x).chunks(4) {
                        assert_eq!((y[0], y[2]), (f32::INFINITY, f32::NEG_INFINITY));
                        assert!(y[1].is_nan() && y[3] == 1.5 * inputs as f32, "{y:?}");
                    }
                }
            }
            // Of an activation, in its token.
            let mut x = x;
            x[inputs - 1] = f32::NAN;
            let w = vec![bf16::ONE; 3 * inputs];
            let y = product(Math::new(false), &[Values::Bf16(&w)], inputs, &x);
            assert!(y[..3].iter().all(|y| y.is_nan()) && y[3..].iter().all(|y| !y.is_nan()));
        }
    }
}

#[test]
fn weights_may_lie_at_any_element() {
    let (outputs, inputs) = (5, 77);
    let (w, x) = (narrow(&values(outputs * inputs + 1, 1)), values(2 * inputs, 2));
    let moved = w[1..].to_vec();
    let y = |w: &[bf16]| product(Math::new(false), &[Values::Bf16(w)], inputs, &x);
    assert_eq!(y(&w[1..]), y(&moved));
}

#[test]
fn nothing_comes_of_nothing() {
    assert!(product(Math::new(true), &[], 4, &[1.0; 8]).is_empty());
    assert!(product(Math::new(true), &[Values::F32(&[1.0; 8])], 4, &[]).is_empty());
}

/// The narrower vectors of a machine without AVX-512, and none at all.
#[test]
fn every_width_of_vectors_gives_the_sums() {
    let (outputs, inputs, tokens) = (19, 203, 7);
    let (w, x) = (narrow(&values(outputs * inputs, 1)), values(tokens * inputs, 2));
    let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
    let mut archs = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    for arch in archs {
        let math = Math { arch, parallel: false };
        let all = product(Math::new(false), &[Values::F32(&wide)], inputs, &x);
        for weight in [Values::Bf16(&w), Values::F32(&wide)] {
            let y = product(math, &[weight], inputs, &x);
            assert!(y.iter().zip(&all).all(|(y, all)| (y - all).abs() < 1e-4), "{arch:?}");
            let alone = x.chunks(inputs).flat_map(|x| product(math, &[weight], inputs, x));
            assert_eq!(y, alone.collect::<Vec<_>>(), "{arch:?}");
        }
    }
}
