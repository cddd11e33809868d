use gdn::DType;

use super::{cpu, cuda};
use crate::{cuda::Gpu, ops::testing::*};

struct Case {
    experts: usize,
    top_k: usize,
    renormalise: bool,
    logits: Vec<f32>,
    sequences: Vec<i32>,
}

impl Case {
    fn random(experts: usize, top_k: usize, rows: usize) -> Self {
        let logits = random(rows as u64, rows * (experts + 1)).iter().map(|x| 6.0 * x).collect();
        let sequences = (0..rows as i32).map(|row| if row % 7 == 3 { -1 } else { row }).collect();
        Self { experts, top_k, renormalise: true, logits, sequences }
    }

    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.logits[row * (self.experts + 1)..][..self.experts]
    }

    fn on_cpu(&self) -> (cpu::Routes, cpu::Sorted) {
        let routes = cpu::route(&self.logits, &self.sequences, self.top_k, self.renormalise);
        let sorted = cpu::sort(&routes.experts, self.experts + 1);
        (routes, sorted)
    }

    /// With rows of logits that lie apart.
    fn on_gpu(&self, gpu: &Gpu) -> (cpu::Routes, cpu::Sorted) {
        let (rows, all) = (self.sequences.len(), self.experts + 1);
        let (pairs, stride) = (rows * (self.top_k + 1), all + 3);
        let apart = |row: &[f32]| [row, &[f32::NAN; 3]].concat();
        let logits: Vec<f32> = self.logits.chunks(all).flat_map(apart).collect();
        let on = (upload(gpu, &logits), upload(gpu, &self.sequences));
        let nothing = |len| upload(gpu, &vec![-77i32; len]);
        let (experts, shares, order) = (nothing(pairs), nothing(pairs), nothing(pairs));
        let (starts, active, active_count) = (nothing(all + 1), nothing(all), nothing(1));
        let params = cuda::Params {
            logits: on.0.address(),
            sequences: on.1.address(),
            experts: experts.address(),
            shares: shares.address(),
            order: order.address(),
            starts: starts.address(),
            active: active.address(),
            active_count: active_count.address(),
            rows: rows as u32,
            stride: stride as u32,
            renormalise: if self.renormalise { 1.0 } else { 0.0 },
            pad: 0,
        };
        cuda::route(gpu, self.experts, self.top_k, params).unwrap();
        let starts = download::<i32>(&starts, all + 1);
        let count = download::<i32>(&active_count, 1)[0] as usize;
        let (mut order, mut active) = (download(&order, pairs), download(&active, all));
        for (values, used) in [(&mut order, starts[all] as usize), (&mut active, count)] {
            assert!(values.drain(used..).all(|value| value == -77), "beyond the end");
        }
        let routes =
            cpu::Routes { experts: download(&experts, pairs), shares: download(&shares, pairs) };
        (routes, cpu::Sorted { order, starts, active })
    }

    fn check(&self, gpu: &Gpu) {
        let (expected, got) = (self.on_cpu(), self.on_gpu(gpu));
        assert_eq!(got.0.experts, expected.0.experts);
        assert_close(&got.0.shares, &expected.0.shares, 1e-6);
        assert_eq!(got.1, expected.1);
    }
}

#[test]
fn cuda_gives_what_the_cpu_gives() {
    for gpu in gpus(DType::BF16) {
        for (experts, top_k) in [(8, 2), (256, 8), (512, 10)] {
            for rows in [1, 3, 16, 17, 130] {
                Case::random(experts, top_k, rows).check(&gpu);
            }
        }
        Case { renormalise: false, ..Case::random(40, 16, 5) }.check(&gpu);
        Case { renormalise: false, ..Case::random(8, 8, 290) }.check(&gpu);
    }
}

#[test]
fn all_padding_is_no_pairs() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    for rows in [2, 20] {
        let case = Case { sequences: vec![-1; rows], ..Case::random(8, 2, rows) };
        case.check(&gpu);
        let (routes, sorted) = case.on_gpu(&gpu);
        assert!(routes.shares.iter().all(|&share| share == 0.0));
        assert_eq!((sorted.order, sorted.active), (vec![], vec![]));
    }
}

#[test]
fn of_equal_logits_the_lower_index_wins() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    for (experts, top_k) in [(8, 2), (256, 8)] {
        let mut case = Case::random(experts, top_k, 20);
        case.sequences.fill(0);
        case.row(0).fill(1.5);
        case.row(1).fill(-0.5);
        case.row(1)[experts - 3..].fill(2.0);
        for (i, logit) in case.row(2).iter_mut().enumerate() {
            *logit = if i % 2 == 0 { 0.0 } else { -0.0 };
        }
        case.row(3).fill(f32::NEG_INFINITY);
        case.row(3)[experts - 1] = 0.0;
        let (routes, _) = case.on_gpu(&gpu);
        let places = |row: usize| &routes.experts[row * (top_k + 1)..][..top_k];
        let first: Vec<i32> = (0..top_k as i32).collect();
        assert_eq!(places(0), first);
        assert_eq!(places(1)[..2], [experts as i32 - 3, experts as i32 - 2]);
        assert_eq!(places(3)[..2], [experts as i32 - 1, 0]);
        case.check(&gpu);
    }
}

#[test]
fn bad_logits_still_choose_experts_that_differ() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let mut case = Case::random(8, 2, 4);
    case.sequences.fill(0);
    case.row(0).fill(f32::NAN);
    case.row(1)[2] = f32::NAN;
    case.row(2)[5] = f32::INFINITY;
    let (expected, got) = (case.on_cpu(), case.on_gpu(&gpu));
    assert_eq!(got.0.experts, expected.0.experts);
    assert_eq!(got.1, expected.1);
    assert_eq!(got.0.experts[..3], [0, 1, 8]);
    for (i, (got, expected)) in got.0.shares.iter().zip(&expected.0.shares).enumerate() {
        assert_eq!(got.is_nan(), expected.is_nan(), "{i}");
    }
}

#[test]
fn a_token_does_not_depend_on_the_others() {
    let Some(gpu) = gpu(DType::BF16) else { return };
    let mut case = Case::random(40, 16, 20);
    case.sequences.fill(0);
    let (all, _) = case.on_gpu(&gpu);
    for row in [0, 19] {
        let logits = case.logits[row * 41..][..41].to_vec();
        let (one, _) = Case { logits, sequences: vec![0], ..Case::random(40, 16, 1) }.on_gpu(&gpu);
        assert_eq!(one.experts, all.experts[row * 17..][..17]);
        assert_eq!(one.shares, all.shares[row * 17..][..17]);
    }
}
