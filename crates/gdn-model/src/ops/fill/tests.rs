use gdn::{DType, bf16};

use super::{cpu, cuda};
use crate::{ops::testing::*, weights::Dummy};

#[test]
fn bits_are_those_of_the_cpu() {
    for gpu in gpus(DType::BF16) {
        for n in [1, 7, 8, 2049, 70_003] {
            for (seed, scale) in [(0, 1.0), (u64::MAX, 0.0123), (77, -3e-3)] {
                let out = upload(&gpu, &vec![bf16::NAN; n + 1]);
                let (dummy, first) = (Dummy { seed, scale }, 12);
                cuda::fill(&gpu, out.address(), n, dummy, first).unwrap();
                let mut all = vec![bf16::NAN; first + n];
                cpu::fill(&mut all, dummy, 0);
                let mut expected = vec![bf16::NAN; n];
                cpu::fill(&mut expected, dummy, first);
                assert_eq!(all[first..], expected);
                let got = download::<u16>(&out, n + 1);
                assert_eq!(got[..n], *bytemuck::cast_slice::<_, u16>(&expected));
                assert_eq!(got[n], bf16::NAN.to_bits(), "beyond the end");
            }
        }
    }
}

#[test]
fn numbers_are_uniform() {
    let mut values = vec![bf16::ZERO; 1 << 18];
    cpu::fill(&mut values, Dummy { seed: 5, scale: 2.0 }, 0);
    let values: Vec<f64> = values.iter().map(|value| value.to_f64()).collect();
    let n = values.len() as f64;
    let (mean, square) =
        values.iter().fold((0.0, 0.0), |(mean, square), x| (mean + x / n, square + x * x / n));
    assert!(mean.abs() < 0.01 && (square - 4.0 / 3.0).abs() < 0.01, "{mean} {square}");
    let product = values.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / n;
    assert!(product.abs() < 0.01, "neighbours: {product}");
    assert!(values.iter().all(|x| (-2.0..=2.0).contains(x)));
}
